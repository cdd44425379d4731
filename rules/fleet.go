package rules

import (
	"cmp"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"scanwatch/internal/text"
)

// RoleShare is the role of a companion that shares the state of the filter with other hosts.
const RoleShare Role = "share"

// Fleet is the statement `fleet "name" key "file" ...`. The statement means that this host is one
// of several hosts that share their state.
type Fleet struct {
	Pos
	Name    string        // name of this host
	Key     string        // file with the key that all hosts share
	Observe bool          // bans from other hosts are only observed
	Bans    int           // maximum number of bans from another host in a minute; 0 for the default
	Longest time.Duration // maximum duration of a ban from another host; 0 for the default
	Ignore  []string      // names of other hosts whose rows are ignored
}

// Share holds the options of `companion share`.
type Share struct {
	Servers  []string // URLs or sockets of the servers
	Login    string   // name of the user for the login
	Password string   // file with the password
	CA       string   // file with certificates; empty for the system's certificates
	Sentinel string   // name of the primary server in the configuration of the sentinels
}

const (
	maxFleetName = 64
	maxFleetBans = 100_000
	minLongest   = time.Minute
	maxLongest   = 366 * day
	maxServers   = 16
)

// DefaultLongest is the default maximum duration of a ban from another host.
const DefaultLongest = 30 * day

// LongestBan returns the maximum duration of a ban from another host.
func (f *Fleet) LongestBan() time.Duration { return cmp.Or(f.Longest, DefaultLongest) }

func parseFleet(l *line) (Statement, *Error) {
	f := &Fleet{Pos: l.toks[0].pos}
	at := l.peek()
	var err *Error
	if f.Name, err = l.text("the name of this host"); err != nil {
		return nil, err
	}
	if !isFleetName(f.Name) {
		return nil, l.errorf(at.pos, "write for example: fleet \"mx1\" key \"/etc/scanwatch/fleet.key\"", "%q is not a host name", f.Name)
	}
	if err = l.expect("key"); err == nil {
		f.Key, err = absolute(l)
	}
	for l.at < len(l.toks) && err == nil {
		t := l.next()
		switch {
		case t.is("observe") && !f.Observe:
			f.Observe = true
		case t.is("bans") && f.Bans == 0:
			f.Bans, err = l.number("the number of bans", 1, maxFleetBans)
		case t.is("longest") && f.Longest == 0:
			f.Longest, err = l.duration("the longest ban", minLongest, maxLongest)
		case t.is("ignore") && f.Ignore == nil:
			err = l.each(func() *Error {
				at := l.peek()
				name, err := l.text("the name of a host")
				if err == nil && !isFleetName(name) {
					err = l.errorf(at.pos, "", "%q is not a host name", name)
				}
				f.Ignore = append(f.Ignore, name)
				return err
			})
		default:
			return nil, l.errorf(t.pos, "", "unexpected `%s`", t)
		}
	}
	return f, err
}

// absolute parses the absolute path of a file. A relative path is not accepted, because the
// programs that read the file may have different working directories.
func absolute(l *line) (string, *Error) {
	at := l.peek()
	name, err := l.text("a file name")
	if err == nil && !filepath.IsAbs(name) {
		err = l.errorf(at.pos, "", "%q is not an absolute path", name)
	}
	return name, err
}

func isFleetName(s string) bool {
	return s != "" && len(s) <= maxFleetName && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") == ""
}

func (f *Fleet) String() string {
	s := "fleet " + quote(f.Name) + " key " + quote(f.Key)
	if f.Observe {
		s += " observe"
	}
	if f.Bans > 0 {
		s += " bans " + strconv.Itoa(f.Bans)
	}
	if f.Longest > 0 {
		s += " longest " + text.Duration(f.Longest)
	}
	if f.Ignore != nil {
		s += " ignore " + quotedList(f.Ignore)
	}
	return s
}

func quotedList(all []string) string {
	words := make([]string, len(all))
	for i, s := range all {
		words[i] = quote(s)
	}
	return braces(words)
}

func (c *Companion) parseShare(l *line) *Error {
	if err := l.expect("to"); err != nil {
		return err
	}
	s := &c.Share
	err := l.each(func() *Error {
		at := l.peek()
		server, err := l.text("a server")
		if err == nil {
			if why := unusableServer(server); why != "" {
				err = l.errorf(at.pos, "write for example: to \"valkeys://valkey.example.org:6379\"", "%s", why)
			}
		}
		s.Servers = append(s.Servers, server)
		return err
	})
	if err == nil && len(s.Servers) > maxServers {
		return l.errorf(l.toks[l.at-1].pos, "", "more than %d servers", maxServers)
	}
	for l.at < len(l.toks) && err == nil {
		t := l.next()
		switch {
		case t.is("login") && s.Login == "":
			s.Login, err = l.text("a user of the server")
		case t.is("password") && s.Password == "":
			s.Password, err = absolute(l)
		case t.is("ca") && s.CA == "":
			s.CA, err = absolute(l)
		case t.is("sentinel") && s.Sentinel == "":
			s.Sentinel, err = l.text("the name of the primary server")
		default:
			return l.errorf(t.pos, "", "unexpected `%s`", t)
		}
	}
	if err == nil && s.Login != "" && s.Password == "" {
		return l.errorf(l.end(), "add: password \"file\"", "a login needs a password")
	}
	return err
}

// unusableServer returns why s is not the URL or socket of a Valkey server, or "".
func unusableServer(s string) string {
	if filepath.IsAbs(s) {
		return ""
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || !slices.Contains([]string{"valkey", "valkeys", "redis", "rediss"}, u.Scheme):
		return "a server begins with valkey://, or with valkeys:// for TLS, or is the path of a socket"
	case u.User != nil:
		return "the configuration contains no passwords; add: login \"name\" password \"file\""
	case u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "":
		return "a server's URL may contain only a host, a port and a database number after the scheme"
	}
	if path := strings.Trim(u.Path, "/"); path != "" {
		if n, err := strconv.Atoi(path); err != nil || n < 0 || n > 1000 {
			return "the path of a server is a database number"
		}
	}
	return ""
}

func (c *Companion) shareString() string {
	s := " to " + quotedList(c.Share.Servers)
	for _, o := range []struct{ word, value string }{{"login", c.Share.Login}, {"password", c.Share.Password}, {"ca", c.Share.CA}, {"sentinel", c.Share.Sentinel}} {
		if o.value != "" {
			s += " " + o.word + " " + quote(o.value)
		}
	}
	return s
}

// checkFleet checks the statements fleet and companion share.
func checkFleet(k *checker) {
	var share *Companion
	for _, c := range k.companions {
		if c.Role == RoleShare {
			share = c
		}
	}
	switch {
	case share != nil && k.fleet == nil:
		k.errorf(share.Pos, "add: fleet \"mx1\" key \"/etc/scanwatch/fleet.key\"", "companion share needs the statement fleet")
	case k.fleet != nil && slices.Contains(k.fleet.Ignore, k.fleet.Name):
		k.errorf(k.fleet.Pos, "", "this host cannot ignore itself")
	}
}
