// Package erase removes a person from records. If a session came from one of the person's
// addresses, its source and all its names and texts are removed. Times, counts, findings and
// decisions are kept, so that totals do not change. In other sessions, only the person's names are
// replaced.
package erase

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"

	"scanwatch/filter/memory"
	"scanwatch/filter/privacy"
	"scanwatch/internal/mailbox"
	"scanwatch/internal/prefix"
	"scanwatch/internal/text"
	"scanwatch/store"
)

// Marker replaces a name. smtpd accepts it neither as an unquoted mailbox nor as a user name, so it
// cannot be confused with one.
const Marker = "(erased)"

// maxName is the maximum length of a name in bytes.
const maxName = 255

// Lengths of the widest prefixes that can be erased.
const (
	leastBits4 = 8
	leastBits6 = 16
)

// A Subject identifies a person by address or network, mailbox, or user name.
type Subject struct {
	prefix netip.Prefix // invalid for a name
	name   []byte       // in lower case; empty for a prefix
}

// Parse parses an address, a prefix, a mailbox or a user name. A name may be escaped in the form
// that other commands print. An IPv6 address is widened to its /64. If a filter is running, it
// receives the result of String, and Parse must then return the same subject.
func Parse(arg string) (Subject, error) {
	s, err := parse(arg)
	if err != nil {
		return s, err
	}
	again, err := parse(s.String())
	if err != nil || again.prefix != s.prefix || !bytes.Equal(again.name, s.name) {
		return Subject{}, fmt.Errorf("%q is ambiguous; write the address or name without brackets and escapes", arg)
	}
	return s, nil
}

func parse(arg string) (s Subject, err error) {
	if p, _, err := prefix.Parse(arg); err == nil {
		if p.Addr().Is6() && p.Bits() > 64 {
			p, _ = p.Addr().Prefix(64)
		}
		if p.Bits() < leastBits4 || p.Addr().Is6() && p.Bits() < leastBits6 {
			return s, fmt.Errorf("%s is larger than a /%d (IPv6: /%d)", p, leastBits4, leastBits6)
		}
		return Subject{prefix: p}, nil
	} else if likePrefix(arg) {
		return s, err
	}
	name, err := text.Unescape(arg)
	if err != nil {
		name = []byte(arg)
	}
	if n := len(name); n > 1 && name[0] == '<' && name[n-1] == '>' {
		name = name[1 : n-1]
	}
	name = unquoted(name)
	at := bytes.LastIndexByte(name, '@')
	switch {
	case len(name) == 0:
		return s, fmt.Errorf("%q is not an address, prefix, mailbox or user", arg)
	case len(name) > maxName:
		return s, fmt.Errorf("the name has %d bytes; the limit is %d", len(name), maxName)
	case at == 0 || at == len(name)-1:
		return s, fmt.Errorf("%q is not a mailbox such as user@example.org", arg)
	case at > 0 && mailbox.IsRole(name[:at]) || at < 0 && mailbox.IsRole(name):
		return s, fmt.Errorf("%q is a role account, which does not identify a person", arg)
	}
	return Subject{name: lower(name)}, nil
}

// likePrefix reports whether arg can only be an address or prefix with a typing error. A number
// alone may also be a user name, and a local part may contain a slash. A user name with two colons
// is always hashed, because it may be a password.
func likePrefix(arg string) bool {
	if strings.Contains(arg, "@") {
		return false
	}
	return strings.Trim(arg, "0123456789./:-") == "" && strings.Contains(arg, ".") || strings.Count(arg, ":") > 1 ||
		strings.Contains(arg, "/") || strings.HasPrefix(arg, "[")
}

// unquoted removes quotes from a local part if they are not needed.
func unquoted(name []byte) []byte {
	at := bytes.LastIndexByte(name, '@')
	if at < 3 || name[0] != '"' || name[at-1] != '"' {
		return name
	}
	local := name[1 : at-1]
	if bytes.ContainsAny(local, `"\\`) || bytes.ContainsFunc(local, func(r rune) bool { return r < 0x80 && endsLocal(byte(r)) }) {
		return name
	}
	return append(bytes.Clone(local), name[at:]...)
}

// Role reports whether the subject is a role account with a detail. A role account with a detail
// cannot be erased without erasing the role account itself.
func (s Subject) Role(delimiter byte) bool {
	base := mailbox.AppendBase(nil, s.name, delimiter)
	at := bytes.LastIndexByte(base, '@')
	return at > 0 && mailbox.IsRole(base[:at])
}

// String returns the subject in an escaped form that Parse accepts.
func (s Subject) String() string {
	if s.prefix.IsValid() {
		return prefix.String(s.prefix)
	}
	return text.Escape(s.name)
}

// Prefix returns the subject's addresses. If the subject is a name, the prefix is invalid.
func (s Subject) Prefix() netip.Prefix { return s.prefix }

// IsMailbox reports whether the subject is a mailbox.
func (s Subject) IsMailbox() bool { return bytes.IndexByte(s.name, '@') > 0 }

// Rows selects the rows of the state that must be erased.
func (s Subject) Rows(bans bool) memory.Erasure {
	e := memory.Erasure{Prefix: s.prefix, User: s.name, Bans: bans}
	if s.IsMailbox() {
		e.Mailbox = s.name
	}
	return e
}

// An Eraser removes a person from records. An Eraser must not be used concurrently.
type Eraser struct {
	subject       Subject
	words         [][]byte // other forms in which the name is stored; these occur only as the person's name
	user          []byte   // user name, which may also be an ordinary word; see place
	local, domain []byte   // parts of the mailbox; local has no detail, and domain begins with @
	delimiter     byte

	record store.Record
	steps  []byte
	lower  []byte // scratch
	bufs   [numTexts][]byte
}

// New returns an Eraser. key is the hash key in the state directory. Without the key, hashes of the
// name are kept. delimiter separates a mailbox from its detail.
func New(s Subject, key []byte, delimiter byte) *Eraser {
	e := &Eraser{subject: s, delimiter: delimiter}
	if len(s.name) == 0 {
		return e
	}
	if s.IsMailbox() {
		at := bytes.LastIndexByte(s.name, '@')
		base := mailbox.AppendBase(nil, s.name, delimiter)
		e.local, e.domain = base[:len(base)-len(s.name[at:])], s.name[at:]
		verp := append(append(bytes.Clone(e.local), '='), e.domain[1:]...) // the form of a recipient in the sender addresses of mailing lists
		e.words = append(e.words, verp)
		if bytes.ContainsFunc(e.local, func(r rune) bool { return r < 0x80 && endsLocal(byte(r)) }) {
			e.words = append(e.words, s.name)
		}
	} else {
		e.user = s.name
	}
	if key != nil && !mailbox.Hashed(s.name) {
		h := privacy.New(key)
		if s.IsMailbox() { // must come first, because the hash of a mailbox begins with the hash of the word
			e.words = append(e.words, h.Mailbox(nil, s.name))
		}
		e.words = append(e.words, h.Word(nil, s.name))
	}
	return e
}

// Edit returns the record without the person. If the record does not mention the person, Edit
// returns nil. Edit is a store.Edit.
func (e *Eraser) Edit(r *store.Record) *store.Record {
	own := e.Own(r)
	if !own && !e.mentions(r) {
		return nil
	}
	e.steps = e.steps[:0]
	e.record = r.WithSteps(nil)
	to := &e.record
	if own {
		to.Src, to.RDNS, to.FCrDNS, to.Erased = netip.AddrPort{}, nil, 0, true
	} else {
		to.RDNS = e.replaced(to.RDNS, 0, nowhere)
	}
	var last store.Step
	c := r.Cursor()
	for s := (store.Step{}); c.Next(&s); last.At = s.At {
		kept := s
		if own {
			blank(&kept, r.Sessions > 0)
		} else {
			e.replace(&kept)
		}
		e.steps = store.AppendStep(e.steps, &kept, s.At-last.At)
	}
	e.record = to.WithSteps(e.steps)
	return &e.record
}

// Own reports whether the recorded session came from one of the person's addresses.
func (e *Eraser) Own(r *store.Record) bool {
	return e.subject.prefix.IsValid() && r.Src.IsValid() && e.subject.prefix.Contains(r.Src.Addr().Unmap())
}

// blank removes the names and texts of a step. blank keeps evidence, decisions, results, numbers
// and times.
func blank(s *store.Step, sum bool) {
	s.Reply, s.Match = nil, nil
	switch s.Kind {
	case store.KindHelo:
		s.Text = nil
	case store.KindRcpt:
		if s.Text = []byte(Marker); sum {
			s.Text = []byte("*") // represents all further domains
		}
	case store.KindAuth, store.KindCommand:
		s.Text = []byte(Marker)
	case store.KindMail:
		if len(s.Text) > 0 { // an empty text is kept, because it means the null sender
			s.Text = []byte(Marker)
		}
	case store.KindFinding, store.KindListed:
		s.Arg = nil
	case store.KindBan:
		s.Prefix = netip.Prefix{}
	}
}

// A place is a position in a text at which a user name may occur. At other positions, the name is
// kept, because a user name may also be an ordinary word such as mail.
type place uint8

const (
	nowhere  place = iota
	alone          // the whole text is the name
	argument       // the name is a word of a command, but not the first
	brackets       // the name is in angle brackets
)

// A field is a text in a step that comes from a client or a server.
type field struct {
	text *[]byte
	at   place
	buf  int // number of the buffer for the replaced text
}

// numTexts is the number of buffers. There is one for the reverse DNS name, and one for each field
// of a step.
const numTexts = 4

// proofs maps the source of a finding to the place where its proof may contain a user name.
var proofs = map[string]place{"auth": alone, "memory": alone, "rcpt": alone, "command": argument, "reply": brackets}

// fields returns the texts of a step that may contain a name. The text of a verdict or ban is the
// name of a rule or the operator's reason, so it contains no user name.
func fields(s *store.Step) [numTexts - 1]field {
	all := [numTexts - 1]field{{nil, nowhere, 1}, {&s.Reply, brackets, 2}, {&s.Match, nowhere, 3}}
	switch s.Kind {
	case store.KindAuth, store.KindMail, store.KindRcpt:
		all[0] = field{&s.Text, alone, 1}
	case store.KindCommand:
		all[0] = field{&s.Text, argument, 1}
	case store.KindHelo, store.KindVerdict, store.KindBan:
		all[0] = field{&s.Text, nowhere, 1}
	case store.KindFinding:
		all[0] = field{&s.Arg, proofs[string(s.By)], 1}
	}
	return all
}

// mentions reports whether a record of another client mentions the person.
func (e *Eraser) mentions(r *store.Record) (found bool) {
	if from, _ := e.find(r.RDNS, 0, nowhere); from >= 0 {
		return true
	}
	_ = r.Steps(func(s *store.Step) bool { // the error is ignored, because the store reports corrupt records
		found = e.covers(s)
		for _, f := range fields(s) {
			if f.text != nil && !found {
				from, _ := e.find(*f.text, 0, f.at)
				found = from >= 0
			}
		}
		return !found
	})
	return found
}

// covers reports whether the person's addresses are affected by a ban in an aggregate of several
// sources.
func (e *Eraser) covers(s *store.Step) bool {
	p := e.subject.prefix
	return s.Prefix.IsValid() && p.IsValid() && s.Prefix.Bits() >= p.Bits() && p.Contains(s.Prefix.Addr())
}

func (e *Eraser) replace(s *store.Step) {
	if e.covers(s) {
		s.Prefix = netip.Prefix{}
	}
	for _, f := range fields(s) {
		if f.text != nil {
			*f.text = e.replaced(*f.text, f.buf, f.at)
		}
	}
}

// replaced returns b with each of the person's names replaced by Marker. If this would more than
// double the length of b, replaced returns only Marker. This prevents a client that sends many
// short names from making the record too long. The result is valid until the next call with the
// same buf.
func (e *Eraser) replaced(b []byte, buf int, at place) []byte {
	from, to := e.find(b, 0, at)
	if from < 0 {
		return b
	}
	out, done := e.bufs[buf][:0], 0
	for from >= 0 {
		out = append(append(out, b[done:from]...), Marker...)
		done = to
		from, to = e.find(b, to, at)
	}
	out = append(out, b[done:]...)
	if len(out) > 2*len(b)+len(Marker) {
		out = append(out[:0], Marker...)
	}
	e.bufs[buf] = out
	return out
}

// find returns the start and end of the person's first name in b at or after start. If there is
// none, from is -1.
func (e *Eraser) find(b []byte, start int, at place) (from, to int) {
	if len(b) == start {
		return -1, 0
	}
	if e.subject.prefix.IsValid() {
		return e.findAddress(b, start)
	}
	e.lower = appendLower(e.lower[:0], b)
	from = -1
	first := func(i, end int) {
		if i >= 0 && (from < 0 || i < from) {
			from, to = i, end
		}
	}
	for _, w := range e.words {
		i := findWord(e.lower, w, start)
		first(i, i+len(w))
	}
	if len(e.user) > 0 {
		i := e.findUser(e.lower, start, at)
		first(i, i+len(e.user))
	}
	if len(e.local) > 0 {
		first(e.findMailbox(e.lower, start))
	}
	return from, to
}

// findUser returns the index of the user name in b at or after start, or -1.
func (e *Eraser) findUser(b []byte, start int, at place) int {
	if at == nowhere {
		return -1
	}
	for i := start; ; i++ {
		if i = findWord(b, e.user, i); i < 0 {
			return -1
		}
		end := i + len(e.user)
		switch {
		case i == 0 && end == len(b):
			return i
		case at != alone && i > 0 && b[i-1] == '<' && end < len(b) && b[end] == '>':
			return i
		case at == argument && i > 0 && (b[i-1] == ' ' || b[i-1] == ':') && (end == len(b) || b[end] == ' '):
			return i
		}
	}
}

// findMailbox returns the position of the mailbox, with or without a detail.
func (e *Eraser) findMailbox(b []byte, at int) (from, to int) {
	for i := at; ; {
		n := bytes.Index(b[i:], e.domain)
		if n < 0 {
			return -1, 0
		}
		sign := i + n
		i = sign + 1
		to = sign + len(e.domain)
		if inWord(b, to) {
			continue
		}
		from = sign
		for from > at && !endsLocal(b[from-1]) {
			from--
		}
		local := b[from:sign]
		local = local[bytes.LastIndexByte(local, ':')+1:] // remove a source route, or TO: before the mailbox
		if n := bytes.Index(local, []byte("auth=")); n == 0 {
			local = local[5:]
		}
		from = sign - len(local)
		local = bytes.Trim(local, `"`)
		if d := bytes.IndexByte(local, e.delimiter); d > 0 {
			local = local[:d]
		}
		if bytes.Equal(local, e.local) {
			return from, to
		}
	}
}

// endsLocal reports whether c cannot be part of an unquoted local part.
func endsLocal(c byte) bool { return c <= ' ' || c == 0x7f || strings.IndexByte(`<>(),;[]@`, c) >= 0 }

// findAddress returns the position of an address within the person's prefix.
func (e *Eraser) findAddress(b []byte, at int) (from, to int) {
	for i := at; i < len(b); {
		if !inAddress(b[i]) {
			i++
			continue
		}
		end, dots, colons := i, 0, 0
		for end < len(b) && inAddress(b[end]) {
			switch b[end] {
			case '.':
				dots++
			case ':':
				colons++
			}
			end++
		}
		from, to, next := i, end, end
		if from >= 3 && bytes.EqualFold(b[from-3:from], []byte("IPv")) && bytes.HasPrefix(b[from:to], []byte("6:")) {
			from += 2 // skip the start of an address literal, as in IPv6:2001:db8::1
		}
		for to > from && (b[to-1] == '.' || b[to-1] == ':' && !bytes.HasSuffix(b[from:to], []byte("::"))) {
			to-- // punctuation after the address
		}
		i = next
		if dots < 3 && colons < 2 || to-from > 45 {
			continue
		}
		if a, err := netip.ParseAddr(string(b[from:to])); err == nil && e.subject.prefix.Contains(a.Unmap()) {
			return from, to
		}
		// The text may be an address with a port.
		if a, err := netip.ParseAddrPort(string(b[from:to])); err == nil && e.subject.prefix.Contains(a.Addr().Unmap()) {
			return from, to
		}
	}
	return -1, 0
}

func inAddress(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f' || c == '.' || c == ':'
}

// findWord returns the index of word in b at or after at, or -1. The arguments word and b must be
// in lower case.
func findWord(b, word []byte, at int) int {
	for i := at; ; {
		n := bytes.Index(b[i:], word)
		if n < 0 {
			return -1
		}
		i += n
		if !inWord(b, i+len(word)) && (i == 0 || !inWordBefore(b, i)) {
			return i
		}
		i++
	}
}

// inWord reports whether the character at i continues a name. A dot continues a name only if
// another character of the name follows.
func inWord(b []byte, i int) bool {
	return i < len(b) && (nameByte(b[i]) || b[i] == '.' && i+1 < len(b) && nameByte(b[i+1]))
}

// inWordBefore reports whether the character before i is part of the word that begins at i. The
// characters +, = and - are not, because a recipient may follow them in the sender address of a
// mailing list.
func inWordBefore(b []byte, i int) bool {
	return nameByte(b[i-1]) && strings.IndexByte("+=-", b[i-1]) < 0 || b[i-1] == '.' && i > 1 && nameByte(b[i-2])
}

func nameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c >= 0x80 || strings.IndexByte("_-+=\\", c) >= 0
}

func appendLower(dst, b []byte) []byte {
	for _, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

func lower(b []byte) []byte { return appendLower(nil, b) }
