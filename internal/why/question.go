package why

import (
	"bytes"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"scanwatch/filter/memory"
	"scanwatch/filter/privacy"
	"scanwatch/internal/mailbox"
	"scanwatch/internal/prefix"
	"scanwatch/internal/text"
	"scanwatch/store"
)

// A Question selects sessions by session id, address or name.
type Question struct {
	kinds   []string // possible kinds of text
	text    []byte
	session uint64
	short   int // missing digits of a partial session id
	prefix  netip.Prefix
	addr    netip.Addr // the IPv6 address if the question is about one IPv6 host, otherwise zero
	hashes  [][]byte   // possible hashes of the mailbox or user; nil without the key
	missed  bool       // a record has a hash, which cannot be compared without the key
}

// A kind is a way to interpret a question, for example as a user or a host name. Depending on its
// kind, a question is compared with record headers or with steps.
type kind struct {
	name string
	like []string // kinds earlier in the table with the same syntax
	// fits reports whether a question's text has this kind's syntax, and stores the parsed value.
	// After a kind fits, Parse tries only those later kinds whose like field contains the name of
	// that kind.
	fits   func(*Question) bool
	strict bool // with --as, text without this syntax is an error
	head   func(*Question, *store.Record) bool
	kinds  store.Kinds // kinds of steps that the step function compares
	step   func(*Question, *store.Step) bool
}

var kinds = []kind{
	{name: "session", strict: true,
		fits:  func(q *Question) (ok bool) { q.session, q.short, ok = parseSession(q.text); return ok },
		head:  func(q *Question, r *store.Record) bool { return q.id(r.ID) },
		kinds: store.KindsOf(store.KindReference),
		step:  func(q *Question, s *store.Step) bool { return q.id(s.Session) }},
	{name: "address", strict: true,
		fits: func(q *Question) (ok bool) { q.prefix, q.addr, ok = parseHosts(string(q.text)); return ok },
		head: func(q *Question, r *store.Record) bool { return q.from(r) }},
	{name: "sender",
		fits:  func(q *Question) bool { return len(q.text) == 0 || bytes.IndexByte(q.text, '@') >= 0 },
		kinds: store.KindsOf(store.KindMail),
		step:  func(q *Question, s *store.Step) bool { return q.mailbox(s.Text) }},
	{name: "recipient", like: []string{"sender"},
		fits:  func(q *Question) bool { return bytes.IndexByte(q.text, '@') >= 0 },
		kinds: store.KindsOf(store.KindRcpt),
		step:  func(q *Question, s *store.Step) bool { return q.mailbox(s.Text) }},
	{name: "rdns",
		fits: func(q *Question) bool { return bytes.IndexByte(q.text, '.') > 0 && q.text[0] != '[' },
		head: func(q *Question, r *store.Record) bool { return q.host(r.RDNS) }},
	{name: "helo", like: []string{"rdns"},
		fits:  func(*Question) bool { return true },
		kinds: store.KindsOf(store.KindHelo),
		step:  func(q *Question, s *store.Step) bool { return bytes.EqualFold(s.Text, q.text) }},
	{name: "user", like: []string{"sender", "helo"},
		fits:  func(q *Question) bool { return len(q.text) > 0 && q.text[0] != '@' },
		kinds: store.KindsOf(store.KindAuth),
		step:  func(q *Question, s *store.Step) bool { return q.user(s.Text) }},
}

// Kinds returns the names of all kinds.
func Kinds() (names []string) {
	for _, k := range kinds {
		names = append(names, k.name)
	}
	return names
}

// Parse returns the question for arg. If kind is empty, the syntax of arg determines the possible
// kinds.
func Parse(arg, kind string) (*Question, error) {
	q := &Question{text: []byte(arg)}
	if b, err := text.Unescape(arg); err == nil { // the operator may copy arg from escaped output
		q.text = b
	}
	if n := len(q.text); n > 1 && q.text[0] == '<' && q.text[n-1] == '>' {
		q.text = q.text[1 : n-1]
	}
	for _, k := range kinds {
		switch {
		case kind != "" && kind != k.name:
			continue
		case kind == "" && len(q.kinds) > 0 && q.short == 0 && !slices.ContainsFunc(k.like, q.is):
			continue // a partial session id may also be a name
		case k.fits(q), kind != "" && !k.strict:
			q.kinds = append(q.kinds, k.name)
		case kind != "":
			return nil, fmt.Errorf("why --as %s: invalid %[1]s %q", kind, arg)
		}
	}
	if len(q.kinds) == 0 {
		return nil, fmt.Errorf("why --as %q: must be one of %s", kind, strings.Join(Kinds(), ", "))
	}
	return q, nil
}

// String returns the question for output.
func (q *Question) String() string {
	switch {
	case q.session != 0 && q.short == 0:
		return sessionID(q.session)
	case q.prefix.IsValid():
		return prefix.String(q.prefix)
	}
	return text.Escape(q.text)
}

var (
	// sessionForm matches a session id or its first digits, possibly in brackets, as at
	// the end of a reply.
	sessionForm = regexp.MustCompile(`^\[?([0-9A-Fa-f]{6,16})\]?$`)
	// sessionInLine matches a session id within a line, for example from a
	// bounce or a log.
	sessionInLine = regexp.MustCompile(`(?:^|[^0-9A-Za-z])([0-9A-Fa-f]{16})(?:[^0-9A-Za-z]|$)`)
)

// ParseSession parses a session id, which may be part of a longer line, for
// example from a bounce.
func ParseSession(text string) (uint64, bool) {
	id, short, ok := parseSession([]byte(text))
	return id, ok && short == 0
}

// parseSession parses a session id or its first digits. short is the number of missing
// digits.
func parseSession(text []byte) (id uint64, short int, ok bool) {
	m := sessionForm.FindSubmatch(text)
	if m == nil && bytes.ContainsAny(text, " [") { // an id within a line must be a separate word, because a label of a name can look like an id
		m = sessionInLine.FindSubmatch(text)
	}
	if m == nil {
		return 0, 0, false
	}
	id, err := strconv.ParseUint(string(m[1]), 16, 64)
	return id, 16 - len(m[1]), err == nil
}

// id reports whether id is q's session id or starts with q's digits.
func (q *Question) id(id uint64) bool { return id>>(4*q.short) == q.session }

// parseHosts parses an address, a prefix, or an address with a port. An IPv6 address
// may be in brackets; an IPv4 address in brackets is a greeting and is not accepted.
// For a single IPv6 address, the address itself is returned as well.
func parseHosts(s string) (p netip.Prefix, one netip.Addr, ok bool) {
	if inner, ok := strings.CutPrefix(s, "["); ok && strings.Contains(inner, ":") {
		s = strings.TrimSuffix(inner, "]")
		if s == inner { // a port follows
			s = "[" + inner
		}
	}
	p, _, err := prefix.ParseLogged(s)
	if p.IsSingleIP() && p.Addr().Is6() {
		one = p.Addr()
		p = memory.Source(one)
	}
	return p, one, err == nil
}

// from reports whether the client of r is a host that the question is about. If the
// question is about one IPv6 host, the other hosts in its /64 are excluded.
func (q *Question) from(r *store.Record) bool {
	return r.Src.IsValid() && q.prefix.Contains(r.Src.Addr()) && (!q.addr.IsValid() || q.prefix.IsSingleIP() || identity(r) == q.prefix)
}

// is reports whether q may be of the given kind.
func (q *Question) is(kind string) bool { return slices.Contains(q.kinds, kind) }

// onlyUser reports whether the question can only be about a user.
func (q *Question) onlyUser() bool { return len(q.kinds) == 1 && q.is("user") }

// mailbox reports whether address is q's mailbox or in its domain.
func (q *Question) mailbox(address []byte) bool {
	equal := func(text []byte) bool { return bytes.EqualFold(address, text) }
	q.missed = q.missed || q.hashes == nil && mailbox.Hashed(address)
	if len(q.text) > 0 && q.text[0] == '@' {
		i := bytes.LastIndexByte(address, '@')
		if i < 0 {
			return false
		}
		address = address[i:]
	}
	return equal(q.text) || slices.ContainsFunc(q.hashes, equal)
}

// hash computes the hashes of q's mailbox or user, using the key in the state
// directory. If q is itself a hash, no key is needed.
func (q *Question) hash(dir string) {
	if mailbox.Hashed(q.text) {
		q.hashes = [][]byte{q.text}
		return
	}
	if key, err := privacy.ReadKey(dir); err == nil {
		h := privacy.New(key)
		q.hashes = [][]byte{h.Mailbox(nil, q.text), h.Word(nil, q.text)}
	}
}

// user reports whether name is q's user.
func (q *Question) user(name []byte) bool {
	return bytes.EqualFold(name, q.text) || slices.ContainsFunc(q.hashes, func(hash []byte) bool { return bytes.EqualFold(name, hash) })
}

// host reports whether name is q's host name or a name below it.
func (q *Question) host(name []byte) bool {
	if len(name) == len(q.text) || len(name) > len(q.text) && name[len(name)-len(q.text)-1] == '.' {
		return bytes.EqualFold(name[len(name)-len(q.text):], q.text)
	}
	return false
}

// selection selects the records that can match q. selection returns nil if any record can match.
func (q *Question) selection() *store.Selection {
	var only store.Selection
	for _, k := range q.kinds {
		switch k {
		case "session":
			only.IDs = append(only.IDs, q.session)
		case "address":
			only.Sources = append(only.Sources, q.prefix)
		default:
			return nil
		}
	}
	return &only
}

// match returns the kinds (interpretations of q) that match r.
func (q *Question) match(r *store.Record) (matched []string) {
	steps := store.Kinds(0)
	for _, k := range kinds {
		if !q.is(k.name) {
			continue
		}
		if k.head != nil && k.head(q, r) {
			matched = append(matched, k.name)
		} else {
			steps |= k.kinds
		}
	}
	if steps == 0 {
		return matched
	}
	_ = r.Steps(func(s *store.Step) bool { // query.session reports corrupt steps
		for i := range kinds {
			if k := &kinds[i]; steps.Has(s.Kind) && k.selects(q, s) && !slices.Contains(matched, k.name) {
				matched = append(matched, k.name)
			}
		}
		return true
	})
	return matched
}

// selects reports whether a step matches q interpreted as this kind.
func (k *kind) selects(q *Question, s *store.Step) bool {
	return k.kinds.Has(s.Kind) && q.is(k.name) && k.step(q, s)
}

// matchStep reports whether a step matches q.
func (q *Question) matchStep(s *store.Step) bool {
	return slices.ContainsFunc(kinds, func(k kind) bool { return k.selects(q, s) })
}
