// Package export writes lists of addresses for firewalls, mail servers and
// services: one row of Formats each.
//
// What an Entry holds may come from the network. Formats show it only through
// plain, which leaves nothing that any of them could take for syntax.
package export

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// An Entry is one host or network that is to be kept away.
type Entry struct {
	Prefix       netip.Prefix `json:"prefix"`
	Kind         Kind         `json:"kind"`
	Host         netip.Addr   `json:"host,omitzero"`  // within Prefix, that came last; invalid if none is recorded
	First        time.Time    `json:"first,omitzero"` // when it was seen first and last
	Last         time.Time    `json:"last,omitzero"`
	Sessions     int          `json:"sessions"`
	Evidence     []string     `json:"evidence,omitempty"` // tokens, sorted
	Organisation string       `json:"organisation,omitempty"`
	Confidence   string       `json:"confidence"`       // high, medium or low
	Reason       string       `json:"reason,omitempty"` // the rule that banned it, or the operator's words
	Expires      time.Time    `json:"expires"`
}

// Kind says why an entry is in the list.
type Kind string

// The kinds.
const (
	Ban   Kind = "ban"   // it is banned
	Found Kind = "found" // there is evidence against it
)

// A List is what is exported.
type List struct {
	Entries []Entry   // as Sort leaves them
	Made    time.Time // entries that have ended by then are not in the list
}

// compare orders prefixes: IPv4 first, then by address, the wider one first.
func compare(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// Sort puts entries in order, drops what has ended by l.Made, and makes one of
// entries of the same prefix: the one that ends last.
func (l *List) Sort() {
	l.Entries = slices.DeleteFunc(l.Entries, func(e Entry) bool { return !e.Expires.After(l.Made) })
	slices.SortStableFunc(l.Entries, func(a, b Entry) int {
		return cmp.Or(compare(a.Prefix, b.Prefix), b.Expires.Compare(a.Expires))
	})
	l.Entries = slices.CompactFunc(l.Entries, func(a, b Entry) bool { return a.Prefix == b.Prefix })
}

// Disjoint drops entries that lie within others. One that would last longer
// than what covers it comes back in the first list after the end of that.
func (l *List) Disjoint() {
	out := l.Entries[:0]
	for _, e := range l.Entries {
		if n := len(out); n > 0 && out[n-1].Prefix.Overlaps(e.Prefix) {
			continue
		}
		out = append(out, e)
	}
	l.Entries = out
}

// Aggregate drops entries that lie within others and makes one of two that are
// the halves of a network, again and again. It never covers an address that is
// not listed, nor for longer: a network made of two ends with the first of them.
func (l *List) Aggregate() {
	var out []Entry
	for _, e := range l.Entries {
		if n := len(out); n > 0 && out[n-1].Prefix.Overlaps(e.Prefix) {
			continue
		}
		out = append(out, e)
		for len(out) > 1 {
			a, b := &out[len(out)-2], &out[len(out)-1]
			parent, ok := halves(a.Prefix, b.Prefix)
			if !ok {
				break
			}
			a.join(b, parent)
			out = out[:len(out)-1]
		}
	}
	l.Entries = out
}

// halves returns the network that a and b are the halves of.
func halves(a, b netip.Prefix) (netip.Prefix, bool) {
	if a.Bits() != b.Bits() || a.Bits() < 2 || a.Addr().Is4() != b.Addr().Is4() {
		return netip.Prefix{}, false
	}
	parent, err := a.Addr().Prefix(a.Bits() - 1)
	return parent, err == nil && a != b && parent.Contains(b.Addr())
}

// confidences are the degrees of confidence, the least first.
var confidences = []string{"low", "medium", "high"}

// Confidence returns the rank of a degree of confidence, 0 for none of that
// name.
func Confidence(name string) int { return slices.Index(confidences, name) + 1 }

// join makes e the entry of parent, which is e and b.
func (e *Entry) join(b *Entry, parent netip.Prefix) {
	e.Prefix = parent
	if e.First.IsZero() || !b.First.IsZero() && b.First.Before(e.First) {
		e.First = b.First
	}
	if b.Last.After(e.Last) {
		e.Last, e.Host = b.Last, b.Host
	}
	if b.Expires.Before(e.Expires) {
		e.Expires = b.Expires
	}
	if Confidence(b.Confidence) < Confidence(e.Confidence) {
		e.Confidence = b.Confidence
	}
	if b.Organisation != e.Organisation {
		e.Organisation = ""
	}
	if b.Reason != e.Reason {
		e.Reason = ""
	}
	if b.Kind != e.Kind {
		e.Kind = Found
	}
	e.Sessions += b.Sessions
	all := append(slices.Clone(e.Evidence), b.Evidence...)
	slices.Sort(all)
	e.Evidence = slices.Compact(all)
}

// host writes a prefix as an address, if it is one.
func host(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// utc writes a time as all formats do that let us choose.
func utc(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// left is how many whole seconds e lasts from at on, at least one.
func (e *Entry) left(at time.Time) int64 { return max(int64(e.Expires.Sub(at)/time.Second), 1) }

// why says in a few plain words what is held against e.
func (e *Entry) why() string {
	var parts []string
	if e.Organisation != "" {
		parts = append(parts, plain(e.Organisation))
	}
	if e.Reason != "" {
		parts = append(parts, plain(e.Reason))
	}
	if len(e.Evidence) > 0 {
		parts = append(parts, plain(strings.Join(e.Evidence, ",")))
	}
	return cut(strings.Join(parts, ", "), maxWhy)
}

// note is the comment on e where a format takes one.
func (e *Entry) note() string {
	text := "until " + utc(e.Expires)
	if why := e.why(); why != "" {
		text += ", " + why
	}
	return text
}

// maxWhy is how long what is held against an entry may get, in bytes.
const maxWhy = 160

func cut(s string, n int) string { return s[:min(len(s), n)] }

// plain leaves of a text only what is no syntax in any format, in a comment or
// between quotes: ASCII letters and digits, the blank, and . , _ - and @ between
// them. Everything else becomes an underscore.
func plain(s string) string {
	b := []byte(cut(s, maxWhy))
	for i, c := range b {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte(" .,_", c) >= 0:
		case c == '-' && i > 0 && b[i-1] != '-': // "--" begins a comment in Lua
		default:
			b[i] = '_'
		}
	}
	return strings.TrimSpace(string(b))
}

// Write writes l in the format f. Entries that f cannot express, or that are too
// many for it, are left out, and counted.
func (f *Format) Write(w io.Writer, l *List) (leftOut int, err error) {
	some, leftOut := f.fit(l)
	if over := len(some.Entries) - f.most; f.most > 0 && over > 0 { // the oldest go
		slices.SortStableFunc(some.Entries, func(a, b Entry) int { return b.Last.Compare(a.Last) })
		some.Entries = some.Entries[:f.most]
		leftOut += over
	}
	b := bufio.NewWriter(w)
	f.write(b, some)
	return leftOut, b.Flush()
}

// fit returns what of l the format can express.
func (f *Format) fit(l *List) (*List, int) {
	some := &List{Made: l.Made, Entries: make([]Entry, 0, len(l.Entries))}
	for i := range l.Entries {
		if e := &l.Entries[i]; f.takes(e) {
			some.Entries = append(some.Entries, *e)
		}
	}
	leftOut := len(l.Entries) - len(some.Entries)
	if f.Disjoint {
		some.Disjoint()
	}
	return some, leftOut
}

func (f *Format) takes(e *Entry) bool {
	switch {
	case f.Only != 0 && f.Only != e.Prefix.Addr().BitLen():
		return false
	case f.fits != nil:
		return f.fits(e)
	}
	return true
}

// FormatByName finds a format; it returns nil if there is none of that name.
func FormatByName(name string) *Format {
	all := Formats()
	for i := range all {
		if all[i].Name == name {
			return &all[i]
		}
	}
	return nil
}

// heading writes the lines that say what a file is.
func heading(w *bufio.Writer, mark string, f string, l *List, more ...string) {
	fmt.Fprintf(w, "%s scanwatch export %s, made %s, %d entries\n", mark, f, utc(l.Made), len(l.Entries))
	for _, line := range more {
		fmt.Fprintf(w, "%s %s\n", mark, line)
	}
}
