package rules

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"scanwatch/internal/prefix"
	"scanwatch/internal/text"
)

// A Role is the task of a companion. A companion is a command of scanwatch(8) that runs as a
// service with a separate user.
type Role string

// Roles of companions.
const (
	RoleSync  Role = "sync"  // updates a firewall or a file when bans change
	RoleServe Role = "serve" // answers DNS queries about the bans
	// RoleLookup asks DNS lists about unknown clients.
	RoleLookup Role = "lookup"
)

// roles contains the roles with the functions that parse and format their options.
var roles = []struct {
	role   Role
	parse  func(*Companion, *line) *Error
	format func(*Companion) string
}{
	{RoleSync, (*Companion).parseTarget, (*Companion).targetString},
	{RoleServe, (*Companion).parseListen, (*Companion).listenString},
	{RoleForward, (*Companion).parseForward, (*Companion).forwardString},
	{RoleLookup, (*Companion).parseResolvers, (*Companion).resolversString},
	{RoleShare, (*Companion).parseShare, (*Companion).shareString},
}

func roleNames() (words []string) {
	for i := range roles {
		words = append(words, string(roles[i].role))
	}
	return words
}

// Companion is the statement `companion role user name ...`.
type Companion struct {
	Pos
	Role Role
	User string // name or number of the user that runs the process

	// Target and Argument describe the target of a sync companion. Max is the maximum number of its
	// entries, or 0 for the default.
	Target, Argument string
	Format           string
	Reload           []string
	Max              int

	// Forward holds the options of a forward companion, in addition to Target and Argument.
	Forward Forward
	Share   Share // options of a share companion

	// Listen lists the addresses at which a serve companion listens.
	Listen []netip.Addr
	Port   int // port for Listen or Resolvers; 53 if not set
	Allow  []netip.Prefix

	// Resolvers lists the resolvers that a lookup companion uses. Port is their port.
	Resolvers []netip.Addr // empty for the resolvers in resolv.conf(5)
}

// Targets lists the kinds of targets for a sync companion, and what their arguments mean.
var Targets = []struct{ Word, Argument string }{
	{"nftables", "family, table and prefix of the sets, as in \"inet filter scanwatch\""},
	{"ipset", "prefix of the sets, as in \"scanwatch\""},
	{"pf", "table, as in \"scanwatch\""},
	{"file", "file"},
}

// Zone is the statement `zone "name" ...`. Zone declares a block list that a serve companion
// publishes via DNS.
type Zone struct {
	Pos
	Name    string
	Bans    bool          // include all active bans
	Builtin string        // name of a shipped list
	File    string        // name of a file with addresses
	TTL     time.Duration // maximum time for which resolvers may use an answer; 0 for the default
}

// zoneLists contains the names of the shipped lists of addresses. A zone may include them.
var zoneLists = []string{"scanners", "clouds"}

func parseCompanion(l *line) (Statement, *Error) {
	i, err := l.word("a role", roleNames())
	if err != nil {
		return nil, err
	}
	c := &Companion{Pos: l.toks[0].pos, Role: roles[i].role}
	if err = l.expect("user"); err == nil {
		c.User, err = l.plain("a user")
	}
	if err == nil {
		err = roles[i].parse(c, l)
	}
	return c, err
}

// plain parses a word or a quoted string.
func (l *line) plain(what string) (string, *Error) {
	t := l.next()
	if t.kind != wordToken && t.kind != stringToken || t.text == "" {
		return "", l.errorf(t.pos, "", "expected %s%s", what, insteadOf(t))
	}
	return t.text, nil
}

func (c *Companion) parseTarget(l *line) (err *Error) {
	var words []string
	for _, t := range Targets {
		words = append(words, t.Word)
	}
	if err = l.expect("to"); err != nil {
		return err
	}
	i, err := l.word("a target", words)
	if err != nil {
		return err
	}
	c.Target = words[i]
	if c.Argument, err = l.text("a " + Targets[i].Argument); err != nil {
		return err
	}
	for l.at < len(l.toks) && err == nil {
		t := l.next()
		switch {
		case t.is("max") && c.Max == 0:
			c.Max, err = l.number("the number of entries", 1, 1_000_000)
		case t.is("format") && c.Format == "" && c.Target == "file":
			c.Format, err = l.plain("an export format")
		case t.is("reload") && c.Reload == nil && c.Target == "file":
			var command string
			command, err = l.text("a command")
			c.Reload = strings.Fields(command)
		default:
			return l.errorf(t.pos, "", "unexpected `%s`", t)
		}
	}
	if c.Target == "file" && c.Format == "" && err == nil {
		return l.errorf(l.end(), "write for example: format postfix", "a file has a format")
	}
	return err
}

func (c *Companion) parseListen(l *line) (err *Error) {
	if err = l.expect("listen"); err != nil {
		return err
	}
	hosts, err := l.prefixes("an address")
	if err != nil {
		return err
	}
	for _, p := range hosts {
		if !p.IsSingleIP() {
			return l.errorf(l.toks[l.at-1].pos, "", "a companion listens on addresses, not on networks")
		}
		if p.Addr().IsUnspecified() {
			// If the companion listened on a wildcard address, it might answer a UDP query from an
			// address that was not queried.
			return l.errorf(l.toks[l.at-1].pos, "name the addresses of this host", "a companion cannot listen on %s", p.Addr())
		}
		c.Listen = append(c.Listen, p.Addr())
	}
	if l.accept("port") {
		if c.Port, err = l.number("a port", 1, 65535); err != nil {
			return err
		}
	}
	if l.accept("allow") {
		c.Allow, err = l.prefixes("an address or network")
	}
	return err
}

// broadcast is the broadcast address of the local network (RFC 919).
var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// parseResolvers parses the resolvers of a lookup companion.
func (c *Companion) parseResolvers(l *line) *Error {
	if !l.accept("resolver") {
		return nil
	}
	hosts, err := l.prefixes("an address")
	if err != nil {
		return err
	}
	for _, p := range hosts {
		if a := p.Addr(); !p.IsSingleIP() || a.IsUnspecified() || a.IsMulticast() || a == broadcast {
			return l.errorf(l.toks[l.at-1].pos, "", "%s is not the address of a resolver", prefix.String(p))
		}
		c.Resolvers = append(c.Resolvers, p.Addr())
	}
	if l.accept("port") {
		c.Port, err = l.number("a port", 1, 65535)
	}
	return err
}

// prefixes parses an address, a network, or a list of addresses and networks.
func (l *line) prefixes(what string) (list []netip.Prefix, err *Error) {
	values, err := l.values(what, addressValue)
	if err != nil {
		return nil, err
	}
	for _, v := range values {
		if v.Kind != PrefixValue {
			return nil, l.errorf(v.Pos, "list the addresses", "expected %s, not a table", what)
		}
		list = append(list, v.Prefix)
	}
	return list, nil
}

func parseZone(l *line) (Statement, *Error) {
	z := &Zone{Pos: l.toks[0].pos}
	name := l.peek()
	var err *Error
	if z.Name, err = l.text("a domain name"); err != nil {
		return nil, err
	}
	z.Name = strings.ToLower(strings.TrimSuffix(z.Name, "."))
	if !isZoneName(z.Name) {
		return nil, l.errorf(name.pos, "write for example: zone \"bl.example.org\" bans", "%q is not a domain name", z.Name)
	}
	switch t := l.next(); {
	case t.is("bans"):
		z.Bans = true
	case t.is("builtin"):
		var i int
		if i, err = l.word("a list with addresses", zoneLists); err == nil {
			z.Builtin = zoneLists[i]
		}
	case t.is("file"):
		z.File, err = l.text("a file name")
	default:
		return nil, l.errorf(t.pos, "", "expected `bans`, `builtin` or `file`%s", insteadOf(t))
	}
	if err == nil && l.accept("ttl") {
		z.TTL, err = l.duration("the lifetime of an answer", time.Second, day)
	}
	return z, err
}

// isZoneName reports whether s is a valid name of a zone. The labels of a zone's name consist of
// letters, digits, `-` and `_`. The name must be short enough for queries, in which up to 64
// characters of an address precede it (RFC 5782).
func isZoneName(s string) bool {
	if len(s) > 180 || !strings.Contains(s, ".") {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

func (c *Companion) String() string {
	s := "companion " + string(c.Role) + " user " + quote(c.User)
	for i := range roles {
		if roles[i].role == c.Role {
			s += roles[i].format(c)
		}
	}
	return s
}

func (c *Companion) targetString() string {
	s := " to " + c.Target + " " + quote(c.Argument)
	if c.Format != "" {
		s += " format " + quote(c.Format)
	}
	if c.Reload != nil {
		s += " reload " + quote(strings.Join(c.Reload, " "))
	}
	if c.Max > 0 {
		s += " max " + strconv.Itoa(c.Max)
	}
	return s
}

func (c *Companion) resolversString() (s string) {
	if c.Resolvers != nil {
		s += " resolver " + listOf(c.Resolvers)
	}
	if c.Port > 0 {
		s += " port " + strconv.Itoa(c.Port)
	}
	return s
}

func (c *Companion) listenString() string {
	s := " listen " + listOf(c.Listen)
	if c.Port > 0 {
		s += " port " + strconv.Itoa(c.Port)
	}
	if c.Allow != nil {
		s += " allow " + listOf(c.Allow)
	}
	return s
}

func (z *Zone) String() string {
	s := "zone " + quote(z.Name) + " "
	switch {
	case z.Bans:
		s += "bans"
	case z.Builtin != "":
		s += "builtin " + z.Builtin
	default:
		s += "file " + quote(z.File)
	}
	if z.TTL > 0 {
		s += " ttl " + text.Duration(z.TTL)
	}
	return s
}

// listOf formats addresses or prefixes as a list in the policy language.
func listOf[T interface{ String() string }](all []T) string {
	var words []string
	for _, v := range all {
		words = append(words, v.String())
	}
	return braces(words)
}

// checkCompanions checks statements about companions that depend on each other.
func checkCompanions(k *checker) {
	var serve *Companion
	once := map[Role]Pos{}
	targets := map[string]Pos{}
	for _, c := range k.companions {
		if c.Role == RoleServe || c.Role == RoleLookup || c.Role == RoleShare {
			if before, ok := once[c.Role]; ok {
				k.errorf(c.Pos, "", "companion %s is a duplicate of %s", c.Role, before)
			}
			if once[c.Role] = c.Pos; c.Role == RoleServe {
				serve = c
			}
			continue
		}
		target := c.Name()
		if before, ok := targets[target]; ok {
			hint := ""
			if c.Target == ForwardURL {
				hint = "write the second URL to a file, and name the file: to url \"/etc/scanwatch/hook.url\""
			}
			k.errorf(c.Pos, hint, "this target is a duplicate of %s", before)
		}
		targets[target] = c.Pos
	}
	switch {
	case serve == nil && len(k.zones) > 0:
		k.warnf(k.zones[0].Pos, "add: companion serve user name listen address", "no companion serves this zone")
	case serve != nil && len(k.zones) == 0:
		k.warnf(serve.Pos, "add for example: zone \"bl.example.org\" bans", "there is no zone to serve")
	}
}

// Name returns the name of the companion in the status, in logs and on the command line.
func (c *Companion) Name() string {
	switch c.Role {
	case RoleSync:
		return string(c.Role) + " " + c.Target + " " + c.Argument
	case RoleForward:
		return c.forwardName()
	}
	return string(c.Role)
}
