package report

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"scanwatch/internal/text"
	"scanwatch/store"
	"scanwatch/store/history"
)

// returnSteps lists the periods within which returning hosts are counted. These periods are usual
// ban lengths.
var returnSteps = [...]struct {
	name string
	time time.Duration
}{
	{"1h", time.Hour},
	{"1d", 24 * time.Hour},
	{"7d", 7 * 24 * time.Hour},
	{"30d", 30 * 24 * time.Hour},
}

const (
	// maxReturns is the maximum number of pairs of a host and a class. Each pair uses
	// 24 bytes, and each host uses another 20.
	maxReturns = 1_000_000
	// maxClasses is the maximum number of classes, which is greater than the number of
	// evidence tokens.
	maxClasses = 200

	// minHosts is the minimum number of hosts for which a ban length is suggested. A
	// longer ban is not worthwhile if the share of hosts that return later is below
	// fewMore.
	minHosts = 20
	fewMore  = 0.05
)

// Classes of hosts that are not kinds of evidence.
const (
	classBanned = iota
	classObserved
	classFound
)

// Returns counts the hosts that return after their first ban or finding, in bounded
// memory. Records must be added in the order of their ends.
type Returns struct {
	source  func(netip.Addr) uint64
	limit   int
	classes []string
	hosts   map[uint64]int32 // the newest entry of each host
	entries []returnEntry
	first   time.Time // end of the first session
	dropped int
}

// A returnEntry is a host in a class. A host's entries form a linked list.
type returnEntry struct {
	class uint8
	next  int32         // index of the next entry; -1 at the end
	at    int64         // end of the first session in the class, in microseconds since 1970
	after time.Duration // time until the next session started; never if there was none
}

const never = time.Duration(math.MaxInt64)

// NewReturns returns an empty Returns. source maps an address to the identity of a host.
func NewReturns(source func(netip.Addr) uint64) *Returns {
	return &Returns{source: source, limit: maxReturns, classes: []string{"banned", "banned, observed only", "any finding"}, hosts: map[uint64]int32{}}
}

// Visitor returns a visitor that adds all records to c. The visitor returns an error for a record
// with corrupt steps.
func (c *Returns) Visitor() history.Visitor {
	return history.Visitor{Kinds: store.KindsOf(store.KindBan, store.KindFinding), Session: c.Add, Sum: c.Add}
}

// Add counts a session. r is not retained.
func (c *Returns) Add(r *store.Record) error {
	if c.first.IsZero() {
		c.first = r.End
	}
	if !r.Src.IsValid() {
		return c.skip(r)
	}
	host := c.source(r.Src.Addr())
	head, known := c.hosts[host]
	if !known {
		head = -1
	}
	for i := head; i >= 0; i = c.entries[i].next {
		c.entries[i].connects(r)
	}
	at := r.End.UnixMicro() // end of the aggregate's first session with the step
	found := func(class int) {
		if class < 0 {
			c.dropped++
			return
		}
		for i := head; i >= 0; i = c.entries[i].next {
			if e := &c.entries[i]; e.class == uint8(class) {
				e.precede(at, r)
				return
			}
		}
		if len(c.entries) >= c.limit {
			c.dropped++
			return
		}
		e := returnEntry{uint8(class), head, at, never}
		if r.Sessions > 0 {
			e.connects(r) // a later session of the aggregate is a return
		}
		c.entries = append(c.entries, e)
		head = int32(len(c.entries) - 1)
		c.hosts[host] = head
	}
	return r.Steps(func(s *store.Step) bool {
		if r.Sessions > 0 {
			at = r.Start.UnixMicro() + int64(s.First)
		}
		switch {
		case s.Kind == store.KindBan && s.Enforced:
			found(classBanned)
		case s.Kind == store.KindBan && s.Exempt == "":
			found(classObserved)
		case s.Kind == store.KindFinding && string(s.Confidence) != "low":
			found(classFound)
			found(c.class(s.Text))
		}
		return true
	})
}

// skip counts an aggregate's findings if the aggregate has many sources, in
// which case the hosts are unknown. Local sessions have no findings.
func (c *Returns) skip(r *store.Record) error {
	return r.Steps(func(s *store.Step) bool {
		if s.Kind == store.KindFinding && string(s.Confidence) != "low" || s.Kind == store.KindBan && s.Exempt == "" {
			c.dropped += times(s)
		}
		return true
	})
}

// connects sets the time of the return if r started after the host's first ban or finding.
// Concurrent sessions are not returns. Only the first and last start in an aggregate are known. An
// aggregate covers one hour. If the host was found during that hour, both starts are therefore
// within the shortest of returnSteps.
func (e *returnEntry) connects(r *store.Record) {
	after := r.Start.Sub(time.UnixMicro(e.at))
	if after <= 0 && r.Sessions > 0 {
		after += time.Duration(r.LastStart) * time.Microsecond
	}
	if after > 0 {
		e.after = min(e.after, after)
	}
}

// precede sets an earlier time at which the host was found. This time, at, is the end of a session
// in the aggregate r.
func (e *returnEntry) precede(at int64, r *store.Record) {
	if at >= e.at {
		return
	}
	if e.after != never {
		e.after += time.Duration(e.at-at) * time.Microsecond
	}
	e.at = at
	e.connects(r)
}

// class returns the number of the class for evidence, or -1 if there are too many
// classes.
func (c *Returns) class(evidence []byte) int {
	for i := classFound + 1; i < len(c.classes); i++ {
		if c.classes[i] == string(evidence) {
			return i
		}
	}
	if len(c.classes) >= maxClasses {
		return -1
	}
	c.classes = append(c.classes, string(evidence))
	return len(c.classes) - 1
}

// A ReturnSummary is the report on returning hosts.
type ReturnSummary struct {
	Schema      int         `json:"schema"` // text.Schema
	Since       Time        `json:"since"`
	Until       Time        `json:"until"`
	Problems    []string    `json:"problems"`
	Rows        []ReturnRow `json:"rows"`
	NotFollowed int         `json:"not_followed"` // findings over the memory limit, or in an aggregate of many sources
}

// A ReturnRow counts the hosts in a class.
type ReturnRow struct {
	Of     string         `json:"of"` // banned, "banned, observed only", "any finding", or a token
	Hosts  int            `json:"hosts"`
	Within []ReturnWithin `json:"within"`

	// Ban is the suggested ban length: the shortest step after which fewer than 5 % of
	// the hosts return for the first time. If there were too few hosts, Ban is empty.
	// Over is the observation period. AtLeast means that hosts still returned in the
	// last step, so a longer ban may be worthwhile.
	Ban     string `json:"ban,omitempty"`
	Over    string `json:"watched_for,omitempty"`
	AtLeast bool   `json:"at_least,omitempty"`
}

// A ReturnWithin counts the hosts that were observed for at least a period. Returned
// counts the hosts that returned within that period.
type ReturnWithin struct {
	Within   string `json:"within"`
	Watched  int    `json:"watched"`
	Returned int    `json:"returned"`
}

// Summary returns the report. until is the end of the period. If since is zero, the
// period starts at the end of the first session.
func (c *Returns) Summary(since, until time.Time, problems []string) *ReturnSummary {
	s := &ReturnSummary{Schema: text.Schema, Since: text.At(since), Until: text.At(until), Problems: append([]string{}, problems...), Rows: []ReturnRow{}, NotFollowed: c.dropped}
	if since.IsZero() {
		s.Since.Time = cmp.Or(c.first, until)
	}
	// counts holds a row for each step. watched is the number of hosts that were
	// observed for at least the step's time. returned is the number of watched hosts
	// that returned within that time.
	type counts [len(returnSteps)]struct {
		watched  int
		returned [len(returnSteps)]int
	}
	rows := make([]counts, len(c.classes))
	hosts := make([]int, len(c.classes))
	for i := range c.entries {
		e := &c.entries[i]
		hosts[e.class]++
		watched := until.Sub(time.UnixMicro(e.at))
		for w := range returnSteps {
			if watched < returnSteps[w].time {
				break
			}
			row := &rows[e.class][w]
			row.watched++
			for n := range returnSteps {
				if e.after <= returnSteps[n].time {
					row.returned[n]++
				}
			}
		}
	}
	first := 0 // the first row of a kind of evidence
	for class, name := range c.classes {
		if class == classFound+1 {
			first = len(s.Rows)
		}
		if hosts[class] == 0 {
			continue
		}
		row := ReturnRow{Of: text.Escape(name), Hosts: hosts[class]}
		for w, step := range returnSteps {
			n := &rows[class][w]
			row.Within = append(row.Within, ReturnWithin{step.name, n.watched, n.returned[w]})
			// The suggestion is based on the longest step for which enough hosts were
			// observed. The first step alone is never sufficient.
			if w > 0 && n.watched >= minHosts {
				row.suggest(w, n.watched, n.returned)
			}
		}
		s.Rows = append(s.Rows, row)
	}
	slices.SortFunc(s.Rows[first:], func(a, b ReturnRow) int {
		return cmp.Or(cmp.Compare(b.Hosts, a.Hosts), strings.Compare(a.Of, b.Of))
	})
	return s
}

// suggest sets the shortest ban after which few hosts would return. suggest considers only hosts
// that were observed for the longest step.
func (r *ReturnRow) suggest(longest, watched int, returned [len(returnSteps)]int) {
	for n := 0; n <= longest; n++ {
		more := returned[longest] - returned[n]
		if float64(more) < fewMore*float64(watched) {
			r.Ban, r.Over, r.AtLeast = returnSteps[n].name, returnSteps[longest].name, n == longest
			return
		}
	}
}

// JSON writes the summary as a JSON object.
func (s *ReturnSummary) JSON(w io.Writer) error {
	return text.JSON(w, s, "  ")
}

// Text writes the summary as text 80 columns wide, with times in zone.
func (s *ReturnSummary) Text(w io.Writer, zone *time.Location) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Returning hosts, from %s to %s\n", s.Since.In(zone).Format("2006-01-02 15:04"), s.Until.In(zone).Format("2006-01-02 15:04 -0700"))
	for _, p := range s.Problems {
		wrap(&b, "  ! "+p, 4)
	}
	if len(s.Rows) == 0 {
		b.WriteString("\nno bans or findings\n")
		_, err := io.WriteString(w, b.String())
		return err
	}
	b.WriteString("\n                                       returned within           suggested\n")
	fmt.Fprintf(&b, "  %-24s %8s", "class", "hosts")
	for _, step := range returnSteps {
		fmt.Fprintf(&b, "%8s", step.name)
	}
	b.WriteString("   ban\n")
	short, open := false, false
	for i := range s.Rows {
		r := &s.Rows[i]
		line := fmt.Sprintf("  %s %8d", text.Pad(r.Of, 24), r.Hosts)
		for _, n := range r.Within {
			share := "-"
			if n.Watched > 0 {
				share = fmt.Sprintf("%.1f%%", 100*float64(n.Returned)/float64(n.Watched))
			}
			line += fmt.Sprintf("%8s", share)
		}
		ban := cmp.Or(r.Ban, "-")
		if r.AtLeast {
			ban, open = ">="+ban, true
		}
		if r.Ban != "" && r.Over != returnSteps[len(returnSteps)-1].name {
			ban, short = ban+" *", true
		}
		row(&b, line+"   "+ban)
	}
	b.WriteByte('\n')
	wrap(&b, fmt.Sprintf("The shares refer to hosts that were watched for at least the given time. The suggested ban is the shortest after which fewer than %d%% more returned. A suggestion requires %d hosts.", int(fewMore*100), minHosts), 0)
	if open {
		wrap(&b, ">= means that hosts still returned in the last step: a longer ban may be worthwhile.", 0)
	}
	if short {
		wrap(&b, "* The history is shorter than 30d.", 0)
	}
	if s.NotFollowed > 0 {
		wrap(&b, fmt.Sprintf("%d findings exceeded a limit and are not included.", s.NotFollowed), 0)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
