// Package export renders lists of addresses for firewalls, mail servers and services.
// Each output format has a row in Formats. Package export neither selects addresses nor
// reads records.
//
// The text in an Entry may come from the network. A format must write it through plain,
// which replaces all characters that have a special meaning in any format.
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

// An Entry is a host or network to block.
type Entry struct {
	Prefix       netip.Prefix `json:"prefix"`
	Kind         Kind         `json:"kind"`
	Host         netip.Addr   `json:"host,omitzero"`  // the latest client in Prefix; invalid if unknown
	First        time.Time    `json:"first,omitzero"` // start of the first session
	Last         time.Time    `json:"last,omitzero"`  // end of the last session
	Sessions     int          `json:"sessions"`
	Evidence     []string     `json:"evidence,omitempty"` // tokens, sorted
	Organisation string       `json:"organisation,omitempty"`
	Confidence   string       `json:"confidence"`       // high, medium or low
	Reason       string       `json:"reason,omitempty"` // the rule of the ban, or the operator's reason for a manual ban
	Expires      time.Time    `json:"expires"`
	// Listed is set if a ban is based on a listing in a DNS list.
	Listed bool `json:"-"`
}

// Kind is the reason for listing an entry.
type Kind string

// Values of Kind.
const (
	Ban   Kind = "ban"   // an active ban
	Found Kind = "found" // evidence in sessions
)

// A List is a list of entries to export.
type List struct {
	Entries []Entry   // in the order of Sort
	Made    time.Time // the time of the export
}

// compare orders prefixes. IPv4 precedes IPv6, lower addresses precede higher addresses,
// and wider prefixes precede narrower prefixes.
func compare(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// Sort sorts the entries and drops the expired ones. For duplicate prefixes,
// Sort keeps the entry with the latest end.
func (l *List) Sort() {
	l.Entries = slices.DeleteFunc(l.Entries, func(e Entry) bool { return !e.Expires.After(l.Made) })
	slices.SortStableFunc(l.Entries, func(a, b Entry) int {
		return cmp.Or(compare(a.Prefix, b.Prefix), b.Expires.Compare(a.Expires))
	})
	l.Entries = slices.CompactFunc(l.Entries, func(a, b Entry) bool { return a.Prefix == b.Prefix })
}

// Disjoint drops entries that other entries cover. If a dropped entry ends
// later than the covering entry, it reappears in a later list.
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

// Aggregate drops entries that other entries cover and merges pairs of entries that are the two
// halves of a network. Aggregate neither adds an address nor extends an entry. A merged network
// expires when the first of its halves expires.
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

// halves returns the network whose halves are a and b.
func halves(a, b netip.Prefix) (netip.Prefix, bool) {
	if a.Bits() != b.Bits() || a.Bits() < 2 || a.Addr().Is4() != b.Addr().Is4() {
		return netip.Prefix{}, false
	}
	parent, err := a.Addr().Prefix(a.Bits() - 1)
	return parent, err == nil && a != b && parent.Contains(b.Addr())
}

// confidences lists the confidence levels in ascending order.
var confidences = []string{"low", "medium", "high"}

// Confidence returns the rank of a confidence level, or 0 for an unknown level.
func Confidence(name string) int { return slices.Index(confidences, name) + 1 }

// join turns e into the entry for the network parent, whose halves are e and b.
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

// utc formats t for formats that do not prescribe a layout.
func utc(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// left returns e's remaining time in seconds, which is at least 1.
func (e *Entry) left(at time.Time) int64 { return max(int64(e.Expires.Sub(at)/time.Second), 1) }

// why returns the reasons for e as plain text.
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
	why := strings.Join(parts, ", ")
	return why[:min(len(why), maxWhy)]
}

// note returns a comment that describes e.
func (e *Entry) note() string {
	text := "until " + utc(e.Expires)
	if why := e.why(); why != "" {
		text += ", " + why
	}
	return text
}

// maxWhy is the maximum length of the reasons in bytes.
const maxWhy = 160

// plain replaces characters that have a special meaning in any format, in a comment or
// between quotes. All characters except ASCII letters, digits, spaces and . , _ -
// become underscores.
func plain(s string) string {
	b := []byte(s[:min(len(s), maxWhy)])
	for i, c := range b {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte(" .,_", c) >= 0:
		case c == '-' && i > 0 && b[i-1] != '-': // "--" starts a comment in Lua
		default:
			b[i] = '_'
		}
	}
	return strings.TrimSpace(string(b))
}

// Write writes l in format f. Write drops entries that f cannot express or that exceed f's limit,
// and returns their number.
func (f *Format) Write(w io.Writer, l *List) (dropped int, err error) {
	some, dropped := f.fit(l)
	if over := len(some.Entries) - f.limit; f.limit > 0 && over > 0 { // drop the oldest
		slices.SortStableFunc(some.Entries, func(a, b Entry) int { return b.Last.Compare(a.Last) })
		some.Entries = some.Entries[:f.limit]
		dropped += over
	}
	b := bufio.NewWriter(w)
	f.write(b, some)
	return dropped, b.Flush()
}

// fit returns the entries that the format can express and the number of other
// entries.
func (f *Format) fit(l *List) (*List, int) {
	some := &List{Made: l.Made, Entries: make([]Entry, 0, len(l.Entries))}
	for i := range l.Entries {
		if e := &l.Entries[i]; f.takes(e) {
			some.Entries = append(some.Entries, *e)
		}
	}
	dropped := len(l.Entries) - len(some.Entries)
	if f.Disjoint {
		some.Disjoint()
	}
	return some, dropped
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

// heading writes comment lines with a file's origin and use.
func heading(w *bufio.Writer, mark string, f string, l *List, more ...string) {
	fmt.Fprintf(w, "%s scanwatch export %s, made %s, %d entries\n", mark, f, utc(l.Made), len(l.Entries))
	for _, line := range more {
		fmt.Fprintf(w, "%s %s\n", mark, line)
	}
}
