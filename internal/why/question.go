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

// A Question selects sessions by a session id, an address or a name.
type Question struct {
	kinds   []string // possible meanings of text
	text    []byte
	session uint64
	prefix  netip.Prefix
	hashes  [][]byte // possible hashes of a mailbox; nil without the key
	missed  bool     // the records contain hashes that cannot be compared
}

// A kind is a meaning of a question. It compares the head or the steps of a
// record.
type kind struct {
	name string
	like string // an earlier kind with the same form
	// fits reports whether the text of a question has the form of the kind, and
	// stores its value. The first kind that fits excludes later ones, except
	// similar ones.
	fits   func(*Question) bool
	strict bool // the kind requires its form
	head   func(*Question, *store.Record) bool
	kinds  store.Kinds // of steps that step compares
	step   func(*Question, *store.Step) bool
}

var kinds = []kind{
	{name: "session", strict: true,
		fits:  func(q *Question) (ok bool) { q.session, ok = ParseSession(q.text); return ok },
		head:  func(q *Question, r *store.Record) bool { return r.ID == q.session },
		kinds: store.KindsOf(store.KindReference),
		step:  func(q *Question, s *store.Step) bool { return s.Session == q.session }},
	{name: "address", strict: true,
		fits: func(q *Question) (ok bool) { q.prefix, ok = parseHosts(string(q.text)); return ok },
		head: func(q *Question, r *store.Record) bool { return r.Src.IsValid() && q.prefix.Contains(r.Src.Addr()) }},
	{name: "sender",
		fits:  func(q *Question) bool { return len(q.text) == 0 || bytes.IndexByte(q.text, '@') >= 0 },
		kinds: store.KindsOf(store.KindMail),
		step:  func(q *Question, s *store.Step) bool { return q.mailbox(s.Text) }},
	{name: "recipient", like: "sender",
		fits:  func(q *Question) bool { return bytes.IndexByte(q.text, '@') >= 0 },
		kinds: store.KindsOf(store.KindRcpt),
		step:  func(q *Question, s *store.Step) bool { return q.mailbox(s.Text) }},
	{name: "rdns",
		fits: func(q *Question) bool { return bytes.IndexByte(q.text, '.') > 0 && q.text[0] != '[' },
		head: func(q *Question, r *store.Record) bool { return q.host(r.RDNS) }},
	{name: "helo", like: "rdns",
		fits:  func(*Question) bool { return true },
		kinds: store.KindsOf(store.KindHelo),
		step:  func(q *Question, s *store.Step) bool { return bytes.EqualFold(s.Text, q.text) }},
}

// Kinds returns the names of all kinds.
func Kinds() (names []string) {
	for _, k := range kinds {
		names = append(names, k.name)
	}
	return names
}

// Parse returns the question for arg. An empty kind selects the kinds by the
// form of arg.
func Parse(arg, kind string) (*Question, error) {
	q := &Question{text: []byte(arg)}
	if b, err := text.Unescape(arg); err == nil { // copied from our output
		q.text = b
	}
	if n := len(q.text); n > 1 && q.text[0] == '<' && q.text[n-1] == '>' {
		q.text = q.text[1 : n-1]
	}
	for _, k := range kinds {
		switch {
		case kind != "" && kind != k.name, kind == "" && len(q.kinds) > 0 && !slices.Contains(q.kinds, k.like):
			continue
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

// String returns the question as it appears in output.
func (q *Question) String() string {
	switch {
	case q.session != 0:
		return sessionID(q.session)
	case q.prefix.IsValid():
		return prefix.String(q.prefix)
	}
	return text.Escape(q.text)
}

var sessionForm = regexp.MustCompile(`^[0-9a-f]{16}$`)

// ParseSession reads a session id, with or without the brackets that it has at
// the end of a reply.
func ParseSession(id []byte) (uint64, bool) {
	s := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(string(id), "["), "]"))
	if !sessionForm.MatchString(s) {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 16, 64)
	return n, err == nil
}

// parseHosts reads an address, a prefix, or an address with a port. An IPv6 address may
// be in brackets. An IPv4 address in brackets is a greeting.
func parseHosts(s string) (netip.Prefix, bool) {
	if inner, ok := strings.CutPrefix(s, "["); ok && strings.Contains(inner, ":") {
		s = strings.TrimSuffix(inner, "]")
		if s == inner { // a port follows
			s = "[" + inner
		}
	}
	p, _, err := prefix.ParseLogged(s)
	if p.IsSingleIP() {
		p = memory.Source(p.Addr())
	}
	return p, err == nil
}

// is reports whether kind is a possible meaning of q.
func (q *Question) is(kind string) bool { return slices.Contains(q.kinds, kind) }

// mailbox reports whether address is the mailbox of q, or in its domain.
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

// hash computes the hashes of a mailbox with the key of the state directory. A
// question can also be a hash.
func (q *Question) hash(dir string) {
	if mailbox.Hashed(q.text) {
		q.hashes = [][]byte{q.text}
		return
	}
	if key, err := privacy.ReadKey(dir); err == nil {
		h := privacy.New(key)
		q.hashes = [][]byte{h.Mailbox(nil, q.text)}
	}
}

// host reports whether name is the name of q or below it.
func (q *Question) host(name []byte) bool {
	if len(name) == len(q.text) || len(name) > len(q.text) && name[len(name)-len(q.text)-1] == '.' {
		return bytes.EqualFold(name[len(name)-len(q.text):], q.text)
	}
	return false
}

// selection returns the records that q can match; nil for all.
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

// match returns the kinds by which q selects r.
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
	_ = r.Steps(func(s *store.Step) bool { // the answer reports damage
		for i := range kinds {
			if k := &kinds[i]; steps.Has(s.Kind) && k.selects(q, s) && !slices.Contains(matched, k.name) {
				matched = append(matched, k.name)
			}
		}
		return true
	})
	return matched
}

// selects reports whether a question of this kind selects a step.
func (k *kind) selects(q *Question, s *store.Step) bool {
	return k.kinds.Has(s.Kind) && q.is(k.name) && k.step(q, s)
}

// matchStep reports whether q selects a step.
func (q *Question) matchStep(s *store.Step) bool {
	return slices.ContainsFunc(kinds, func(k kind) bool { return k.selects(q, s) })
}
