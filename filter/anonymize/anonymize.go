// Package anonymize makes copies of records that can be shown to others: addresses,
// names and mailboxes are replaced, the same one always by the same, so that what
// can be counted, found and decided stays as it was. It knows the steps of records
// and the shipped lists; it reads and writes no files.
//
// What the lists know stays in clear, because it is the fact that a record tells:
// the names of scanning organisations and clouds, what bots greet with. So do times,
// session ids, the names of rules, tables, tags and listeners.
package anonymize

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"hash"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"golang.org/x/net/publicsuffix"

	"scanwatch/filter/lookup"
	"scanwatch/filter/privacy"
	"scanwatch/filter/session"
	"scanwatch/rules"
	"scanwatch/store"
)

// KeySize is the length of a key in bytes.
const KeySize = 32

// An Anonymizer replaces what it is given. It belongs to one goroutine.
type Anonymizer struct {
	lists   *lookup.Lists
	mixed   map[netip.Prefix]bool
	aes     cipher.Block // of addresses
	wordAES cipher.Block
	hash    hash.Hash
	sum     []byte   // scratch
	block   [16]byte // scratch
	form    []byte   // scratch
	steps   []byte   // scratch
	host    netip.Addr
	names   map[string]string

	patterns map[*lookup.Row]*regexp.Regexp
}

// maxNames is how many names are remembered, for speed.
const maxNames = 50_000

// New returns an Anonymizer with a key of KeySize bytes. Two with the same key
// replace alike.
func New(key []byte, lists *lookup.Lists) *Anonymizer {
	a := &Anonymizer{lists: lists, mixed: mixedNetworks(lists), hash: hmac.New(sha256.New, key), names: make(map[string]string), patterns: make(map[*lookup.Row]*regexp.Regexp)}
	// Keys of 16 bytes are right, so that nothing can fail.
	a.aes, _ = aes.NewCipher(a.mac("addresses", "", "")[:16])
	a.wordAES, _ = aes.NewCipher(a.mac("words", "", "")[:16])
	return a
}

// mac is a keyed hash of three texts, valid until the next one.
func (a *Anonymizer) mac(texts ...string) []byte {
	a.hash.Reset()
	for _, t := range texts {
		a.hash.Write([]byte{byte(len(t) >> 8), byte(len(t))})
		a.hash.Write([]byte(t))
	}
	a.sum = a.hash.Sum(a.sum[:0])
	return a.sum
}

// Record appends the encoding of what replaces r. Refs gives the reference of the
// text that replaces that of a rule.
func (a *Anonymizer) Record(dst []byte, r *store.Record, refs func(uint32) uint32) ([]byte, error) {
	c := *r
	a.host = r.Src.Addr()
	c.Src, c.Dst = a.addrPort(r.Src), a.addrPort(r.Dst)
	c.RDNS = a.Name(r.RDNS)
	a.steps = a.steps[:0]
	last := time.Duration(0)
	err := r.Steps(func(s *store.Step) bool {
		at := s.At
		a.step(s, refs)
		a.steps = store.AppendStep(a.steps, s, at-last)
		last = at
		return true
	})
	return store.AppendRecord(dst, &c, a.steps), err
}

func (a *Anonymizer) addrPort(p netip.AddrPort) netip.AddrPort {
	if !p.IsValid() {
		return p
	}
	return netip.AddrPortFrom(a.Addr(p.Addr()), p.Port())
}

// step replaces what is in a step.
func (a *Anonymizer) step(s *store.Step, refs func(uint32) uint32) {
	switch s.Kind {
	case store.KindHelo:
		s.Text, s.Reply = a.Name(s.Text), reply(s.Reply)
	case store.KindAuth:
		s.Text = a.user(s.Text)
	case store.KindMail, store.KindRcpt:
		s.Text, s.Reply = a.Mailbox(s.Text), reply(s.Reply)
	case store.KindCommand:
		s.Text, s.Reply = a.Line(s.Text), reply(s.Reply)
	case store.KindData, store.KindInput:
		s.Reply = reply(s.Reply)
	case store.KindFinding:
		s.Arg, s.Match = a.proof(s), a.match(s)
	case store.KindVerdict:
		s.Rule = refs(s.Rule)
		if string(s.By) == "ban" && len(s.Match) == 0 {
			s.Text = a.words(nil, s.Text, "reason", nil) // the operator's words
		}
	case store.KindBan:
		s.Rule = refs(s.Rule)
		if p, err := netip.ParsePrefix(string(s.Arg)); err == nil {
			s.Arg = []byte(a.Prefix(p).String())
		}
	case store.KindFilter:
		s.Reply = a.param(s)
	}
}

// replyCodes are the code and the enhanced code that a reply begins with. What
// follows is free text, of which nothing is kept but what a finding goes by.
var replyCodes = regexp.MustCompile(`^([245][0-9][0-9][ -]?)?([245]\.[0-9]{1,3}\.[0-9]{1,3} ?)?`)

// phrases are what findings go by.
var phrases = []string{"Pipelining not supported"}

func reply(text []byte) []byte {
	if len(text) == 0 {
		return nil
	}
	rest := "..."
	for _, p := range phrases {
		if bytes.Contains(text, []byte(p)) {
			rest = p
		}
	}
	return append(bytes.Clone(replyCodes.Find(text)), rest...)
}

// param replaces what a filter gave with its decision.
func (a *Anonymizer) param(s *store.Step) []byte {
	switch phase := string(s.Arg); {
	case string(s.Text) != "rewrite":
		return reply(s.Reply)
	case phase == "mail-from", phase == "rcpt-to":
		return a.Mailbox(s.Reply)
	case phase == "helo", phase == "ehlo":
		return a.Name(s.Reply)
	}
	return a.Line(s.Reply)
}

// proof replaces the proof of a finding.
func (a *Anonymizer) proof(s *store.Step) []byte {
	token := rules.TokenByName(string(s.Text))
	switch by := string(s.By); {
	case len(s.Arg) == 0, by == "asn":
		return s.Arg
	case token != nil && token.Evidence&(rules.AuthFailure|rules.AuthSpray) != 0:
		return a.user(s.Arg)
	case by == "rcpt", by == "memory":
		return a.Mailbox(s.Arg)
	case by == "reply":
		return reply(s.Arg)
	case by == "command":
		return a.Line(s.Arg)
	case by == "helo":
		if word, name, ok := bytes.Cut(s.Arg, []byte{' '}); ok && (bytes.EqualFold(word, []byte("EHLO")) || bytes.EqualFold(word, []byte("HELO"))) {
			return append(append(bytes.Clone(word), ' '), a.Name(name)...)
		}
		return a.Name(s.Arg)
	}
	return a.words(nil, s.Arg, "proof", nil)
}

// match replaces what a finding matched: mostly a word of ours, or a row of the
// lists.
func (a *Anonymizer) match(s *store.Step) []byte {
	if string(s.Text) == rules.HeloChanged.String() {
		return a.Name(s.Match)
	}
	return s.Match
}

// user replaces the name of a user, which may be his address.
func (a *Anonymizer) user(name []byte) []byte {
	if bytes.IndexByte(name, '@') >= 0 || privacy.IsHash(name) {
		return a.Mailbox(name)
	}
	return a.words(nil, name, "user", nil)
}

// Mailbox replaces a mail address. Its form stays, and the names of roles.
func (a *Anonymizer) Mailbox(addr []byte) []byte {
	local, domain := addr, []byte(nil)
	if i := bytes.LastIndexByte(addr, '@'); i >= 0 {
		local, domain = addr[:i], addr[i+1:]
	}
	var out []byte
	if privacy.IsRole(local) {
		out = append(out, local...)
	} else {
		out = a.local(nil, local, "@"+lower(domain))
	}
	if len(local) < len(addr) {
		out = append(append(out, '@'), a.host1(domain)...)
	}
	return out
}

// host1 replaces a domain, which may be a hash.
func (a *Anonymizer) host1(domain []byte) []byte {
	if rest, ok := bytes.CutPrefix(domain, []byte(privacy.Prefix)); ok {
		return a.words([]byte(privacy.Prefix), rest, "hash", nil)
	}
	return a.Name(domain)
}

// local replaces a local part. Hosts that stand in it are replaced as hosts.
func (a *Anonymizer) local(dst, local []byte, context string) []byte {
	before := byte(0)
	for {
		n := bytes.IndexAny(local, "%!@,")
		piece, after := local, byte(0)
		if n >= 0 {
			piece, after = local[:n], local[n]
		}
		relay, user, routed := bytes.Cut(piece, []byte{':'})
		switch {
		case bytes.HasPrefix(piece, []byte(privacy.Prefix)):
			dst = a.words(append(dst, privacy.Prefix...), piece[len(privacy.Prefix):], "hash", nil)
		case (before == '@' || before == '%') && routed:
			dst = append(append(dst, a.host1(relay)...), ':')
			if bytes.HasPrefix(user, []byte(privacy.Prefix)) {
				dst = a.words(append(dst, privacy.Prefix...), user[len(privacy.Prefix):], "hash", nil)
			} else {
				dst = a.words(dst, user, context, nil)
			}
		case (before == '@' || before == '%' || after == '!') && bytes.IndexByte(piece, '.') > 0:
			dst = append(dst, a.host1(piece)...)
		default:
			dst = a.words(dst, piece, context, nil)
		}
		if n < 0 {
			return dst
		}
		dst, before, local = append(dst, after), after, local[n+1:]
	}
}

// facts is what the lists know of a name, and whether it is too long to be whole:
// the same of the name that replaces it.
type facts struct {
	rows [6]*lookup.Row
	cut  bool
}

func (a *Anonymizer) facts(name []byte) (f facts) {
	f.rows[0], f.rows[1], f.rows[2] = a.lists.RDNS(name)
	f.rows[3], f.rows[4], f.rows[5] = a.lists.Helo(name)
	f.cut = len(name) >= 64
	return f
}

// Name replaces the name of a host, a domain, a greeting or an address literal. Its
// labels and its public suffix stay, and as much of it as the lists need to know it.
func (a *Anonymizer) Name(name []byte) []byte {
	if len(name) == 0 {
		return name
	}
	cached := string(name)
	if a.host.Is4() { // see appendQuad
		cached = a.host.String() + " " + cached
	}
	if have, ok := a.names[cached]; ok {
		return []byte(have)
	}
	out := a.name(name)
	if len(a.names) == maxNames {
		clear(a.names)
	}
	a.names[cached] = string(out)
	return out
}

func (a *Anonymizer) name(name []byte) []byte {
	if lit, ok := a.literal(name); ok {
		return lit
	}
	was := a.facts(name)
	suffix, domain := suffixes(name)
	// A domain is replaced as if it stood alone, and what is below depends on it.
	below, context := name[:suffix], lower(name[suffix:])
	replaced := name[suffix:]
	if domain > 0 {
		below, context = name[:domain], lower(name[domain:])
		replaced = a.Name(name[domain:])
	}
	replace := func(keepTo int, rest []byte, keep func([]byte) bool) []byte {
		out := append([]byte(nil), below[:keepTo]...)
		return append(a.hosts(out, below[keepTo:], context, keep), rest...)
	}
	first := 0
	for first < len(below) && alnum(below[first]) {
		first++
	}
	letters := func(w []byte) bool { return !bytes.ContainsFunc(w, func(r rune) bool { return isDigit(byte(r)) }) }
	// The end that the longest of the rows is about: a cloud's suffix may be longer than
	// a registered domain.
	end := len(name)
	for _, row := range was.rows {
		if row != nil && strings.HasPrefix(row.Value, ".") && strings.HasSuffix(lower(name), row.Value) {
			end = min(end, len(name)-len(row.Value))
		}
	}
	made := 0 // ec2 of ec2-192-0-2-1
	if first+1 < end {
		if _, _, n := quad(name[first+1:]); n > 0 {
			made = first
		}
	}
	for _, try := range []func() []byte{
		func() []byte { return replace(0, replaced, nil) },
		func() []byte { return replace(first, replaced, nil) },
		func() []byte { return replace(0, name[len(below):], nil) },
		func() []byte { return replace(first, name[len(below):], nil) },
		func() []byte {
			return append(a.hosts(bytes.Clone(name[:made]), name[made:end], lower(name[end:]), nil), name[end:]...)
		},
		func() []byte { return replace(0, name[len(below):], letters) },
	} {
		if out := try(); a.facts(out) == was {
			return out
		}
	}
	return bytes.Clone(name) // the lists know this very name
}

// suffixes returns where the public suffix of a name begins, and where its
// registered domain: 0 if it has no more.
func suffixes(name []byte) (suffix, domain int) {
	whole := strings.TrimSuffix(lower(name), ".")
	if !strings.Contains(whole, ".") {
		return len(name), 0
	}
	ps, _ := publicsuffix.PublicSuffix(whole)
	suffix = len(whole) - len(ps)
	if suffix == 0 {
		suffix = strings.LastIndexByte(whole, '.') + 1 // the name of a suffix itself
	}
	if i := strings.LastIndexByte(whole[:suffix-1], '.'); i >= 0 {
		domain = i + 1
	}
	return suffix, domain
}

// hosts replaces a part of a name, with addresses in it as addresses.
func (a *Anonymizer) hosts(dst, text []byte, context string, keep func([]byte) bool) []byte {
	from := 0
	for i := 0; i < len(text); i++ {
		if !isDigit(text[i]) || i > 0 && isDigit(text[i-1]) {
			continue
		}
		addr, sep, n := quad(text[i:])
		if n == 0 {
			continue
		}
		dst = a.words(dst, text[from:i], context, keep)
		dst = a.appendQuad(dst, text[i:i+n], addr, sep)
		i += n - 1
		from = i + 1
	}
	return a.words(dst, text[from:], context, keep)
}

// literal replaces an address, bare or as a literal (RFC 5321 section 4.1.3).
func (a *Anonymizer) literal(name []byte) ([]byte, bool) {
	s := string(name)
	open, end := "", ""
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		s, open, end = s[1:len(s)-1], "[", "]"
	}
	if len(s) >= 5 && strings.EqualFold(s[:5], "IPv6:") {
		open, s = open+s[:5], s[5:]
	}
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return nil, false
	}
	mapped := addr.Is4In6()
	addr = a.Addr(addr.Unmap().WithZone(""))
	if mapped {
		addr = netip.AddrFrom16(addr.As16())
	}
	return []byte(open + addr.String() + end), true
}

// kept are words in commands that are no names: what makes a line one of SMTP, HTTP
// or SSH.
var kept = map[string]bool{"HTTP": true, "RTSP": true, "SSH": true, "FROM": true, "TO": true, "SIZE": true, "BODY": true, "8BITMIME": true, "7BIT": true,
	"SMTPUTF8": true, "RET": true, "HDRS": true, "FULL": true, "NOTIFY": true, "NEVER": true, "ORCPT": true, "RFC822": true, "PLAIN": true, "LOGIN": true}

func keptWord(w []byte) bool { return kept[strings.ToUpper(string(w))] }

// maxVerb is how long the first word of a line may be to stay as it is.
const maxVerb = 16

// Line replaces a command: its first word stays, if it can be a verb, and of MAIL and
// RCPT the address is replaced as one. What the lists, and the filter, see in the line
// they see in what replaces it.
func (a *Anonymizer) Line(line []byte) []byte {
	was, language := a.lists.Line(line), session.Language(line)
	out := a.line(line, "line")
	for _, salt := range []string{"line 2", "line 3", "line 4"} {
		if a.lists.Line(out) == was && session.Language(out) == language {
			return out
		}
		out = a.line(line, salt)
	}
	if was == nil {
		return out
	}
	// What a tool calls itself stays; whom it talks to does not.
	if at := a.pattern(was).FindIndex(line); at != nil {
		out = append(a.hosts(nil, line[:at[0]], "line", keptWord), line[at[0]:at[1]]...)
		out = a.hosts(out, line[at[1]:], "line", keptWord)
		if a.lists.Line(out) == was && session.Language(out) == language {
			return out
		}
	}
	out = a.hosts(nil, line, "line", func(w []byte) bool { return true })
	if a.lists.Line(out) == was {
		return out
	}
	return bytes.Clone(line)
}

// pattern is what a row looks for in lines.
func (a *Anonymizer) pattern(row *lookup.Row) *regexp.Regexp {
	re := a.patterns[row]
	if re == nil {
		re = regexp.MustCompile(strings.TrimSuffix(strings.TrimPrefix(row.Value, "/"), "/")) // the lists have been read
		a.patterns[row] = re
	}
	return re
}

func (a *Anonymizer) line(line []byte, context string) []byte {
	n := 0
	for n < len(line) && (alnum(line[n]) && !isDigit(line[n]) || line[n] == '-') {
		n++
	}
	if n > maxVerb || n < len(line) && line[n] != ' ' && line[n] != '\t' && line[n] != ':' && line[n] != '\r' && line[n] != '/' {
		n = 0
	}
	out := append([]byte(nil), line[:n]...)
	rest := line[n:]
	if verb := strings.ToUpper(string(line[:n])); verb == "MAIL" || verb == "RCPT" {
		if i := bytes.IndexByte(rest, ':') + 1; i > 0 {
			for i < len(rest) && (rest[i] == ' ' || rest[i] == '<') {
				i++
			}
			end := bytes.IndexAny(rest[i:], " >")
			if end < 0 {
				end = len(rest) - i
			}
			out = a.hosts(out, rest[:i], context, keptWord)
			out = append(out, a.Mailbox(rest[i:i+end])...)
			rest = rest[i+end:]
		}
	}
	return a.hosts(out, rest, context, keptWord)
}
