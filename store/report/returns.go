package report

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"scanwatch/store"
)

// returnSteps are the times after which it is counted who has come back. They
// are the lengths of bans that are worth a choice.
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
	// maxReturns is how many hosts are followed for each thing that was found of
	// them, all added up. One takes 24 bytes, and a host 20 more.
	maxReturns = 1_000_000
	// maxClasses is the number of rows: more than there are kinds of evidence.
	maxClasses = 200

	// leastHosts is how many hosts must have been watched for a ban to be
	// suggested, and fewMore the share of them that is small enough to be let be.
	leastHosts = 20
	fewMore    = 0.05
)

// The rows that are not about one kind of evidence.
const (
	classBanned = iota
	classObserved
	classFound
)

// Returns counts which hosts come back after they were first banned or found, in
// bounded memory. Records must come in the order in which sessions ended.
type Returns struct {
	source  func(netip.Addr) uint64
	most    int
	classes []string
	hosts   map[uint64]int32 // the newest of its entries
	entries []returnEntry
	first   time.Time // end of the first session
	missed  int
}

// returnEntry is a host of which something was found. The entries of one host
// are a list.
type returnEntry struct {
	class uint8
	next  int32         // -1 at the end
	at    int64         // end of the session in which it was found first, microseconds
	after time.Duration // from there to the start of the next session; never if there was none
}

const never = time.Duration(math.MaxInt64)

// NewReturns returns an empty Returns. Source is a number for what one host is
// known by.
func NewReturns(source func(netip.Addr) uint64) *Returns {
	return &Returns{source: source, most: maxReturns, classes: []string{"banned", "banned, observed only", "any finding"}, hosts: map[uint64]int32{}}
}

// Add counts a session. Nothing refers to r afterwards.
func (c *Returns) Add(r *store.Record) error {
	if c.first.IsZero() {
		c.first = r.End
	}
	if !r.Src.IsValid() {
		return nil // local
	}
	host := c.source(r.Src.Addr())
	head, known := c.hosts[host]
	if !known {
		head = -1
	}
	for i := head; i >= 0; i = c.entries[i].next {
		e := &c.entries[i]
		// A session that was open at the same time is no return.
		if after := r.Start.Sub(time.UnixMicro(e.at)); after > 0 {
			e.after = min(e.after, after)
		}
	}
	found := func(class int) {
		if class < 0 {
			c.missed++
			return
		}
		for i := head; i >= 0; i = c.entries[i].next {
			if c.entries[i].class == uint8(class) {
				return
			}
		}
		if len(c.entries) >= c.most {
			c.missed++
			return
		}
		c.entries = append(c.entries, returnEntry{uint8(class), head, r.End.UnixMicro(), never})
		head = int32(len(c.entries) - 1)
		c.hosts[host] = head
	}
	return r.Steps(func(s *store.Step) bool {
		switch {
		case s.Kind == store.KindBan && s.Result == store.ResultOK:
			found(classBanned)
		case s.Kind == store.KindBan && len(s.Match) == 0: // nothing spared it
			found(classObserved)
		case s.Kind == store.KindFinding && string(s.Confidence) != "low":
			found(classFound)
			found(c.class(s.Text))
		}
		return true
	})
}

// class is the row of a kind of evidence, or -1 if there are too many.
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

// A ReturnSummary tells which hosts came back.
type ReturnSummary struct {
	Since       Time        `json:"since"`
	Until       Time        `json:"until"`
	Problems    []string    `json:"problems"`
	Rows        []ReturnRow `json:"rows"`
	NotFollowed int         `json:"not_followed"` // times that something was found when memory was full
}

// A ReturnRow is about the hosts of which one thing was found.
type ReturnRow struct {
	Of     string         `json:"of"` // banned, "banned, observed only", "any finding", or a token
	Hosts  int            `json:"hosts"`
	Within []ReturnWithin `json:"within"`

	// Ban is the shortest of the steps after which fewer than 5 % of the hosts came
	// back that had not done so before, "" if too few hosts were watched. Over is
	// how long the hosts were watched that say so. If AtLeast is set, more than that
	// still came back in the last step: a longer ban may be worth it.
	Ban     string `json:"ban,omitempty"`
	Over    string `json:"watched_for,omitempty"`
	AtLeast bool   `json:"at_least,omitempty"`
}

// ReturnWithin is how many hosts came back within a time, of those that were
// found so long ago that it is known.
type ReturnWithin struct {
	Within   string `json:"within"`
	Watched  int    `json:"watched"`
	Returned int    `json:"returned"`
}

// Summary makes the report of what was added; until is when the last session
// could have come. A zero since stands for the first session.
func (c *Returns) Summary(since, until time.Time, problems []string) *ReturnSummary {
	s := &ReturnSummary{Since: Time{since}, Until: Time{until}, Problems: append([]string{}, problems...), Rows: []ReturnRow{}, NotFollowed: c.missed}
	if since.IsZero() {
		s.Since.Time = cmp.Or(c.first, until)
	}
	// Of each row and each time that hosts were watched for, how many of them
	// came back within each time.
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
	first := 0 // row about one kind of evidence
	for class, name := range c.classes {
		if class == classFound+1 {
			first = len(s.Rows)
		}
		if hosts[class] == 0 {
			continue
		}
		row := ReturnRow{Of: Printable([]byte(name)), Hosts: hosts[class]}
		for w, step := range returnSteps {
			n := &rows[class][w]
			row.Within = append(row.Within, ReturnWithin{step.name, n.watched, n.returned[w]})
			// The hosts that were watched longest decide, if they are enough; from
			// the first step alone nobody knows what comes after it.
			if w > 0 && n.watched >= leastHosts {
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

// suggest finds the ban for hosts that were watched for as long as the given step.
func (r *ReturnRow) suggest(longest, watched int, returned [len(returnSteps)]int) {
	for n := 0; n <= longest; n++ {
		more := returned[longest] - returned[n]
		if float64(more) < fewMore*float64(watched) {
			r.Ban, r.Over, r.AtLeast = returnSteps[n].name, returnSteps[longest].name, n == longest
			return
		}
	}
}

// JSON writes the summary as one object.
func (s *ReturnSummary) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(s)
}

// Text writes the summary for people, 80 columns wide, with times in zone.
func (s *ReturnSummary) Text(w io.Writer, zone *time.Location) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Hosts that came back, from %s to %s\n", s.Since.In(zone).Format("2006-01-02 15:04"), s.Until.In(zone).Format("2006-01-02 15:04 -0700"))
	for _, p := range s.Problems {
		wrap(&b, "  ! "+p, 4)
	}
	if len(s.Rows) == 0 {
		b.WriteString("\nNobody was banned or found.\n")
		_, err := io.WriteString(w, b.String())
		return err
	}
	b.WriteString("\n                                       came back within          suggested\n")
	fmt.Fprintf(&b, "  %-24s %8s", "of hosts that were", "hosts")
	for _, step := range returnSteps {
		fmt.Fprintf(&b, "%8s", step.name)
	}
	b.WriteString("   ban\n")
	short, open := false, false
	for i := range s.Rows {
		r := &s.Rows[i]
		line := fmt.Sprintf("  %s %8d", pad(r.Of, 24), r.Hosts)
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
	wrap(&b, fmt.Sprintf("The shares are of the hosts that were first found long enough ago to know. The suggested ban is the shortest after which fewer than %d%% more came back; it takes %d hosts to tell.", int(fewMore*100), leastHosts), 0)
	if open {
		wrap(&b, "With >= they were still coming back at the end: a longer ban may be worth it.", 0)
	}
	if short {
		wrap(&b, "* The history is too short to tell for 30d.", 0)
	}
	if s.NotFollowed > 0 {
		wrap(&b, fmt.Sprintf("Memory was full: %d times what was found of a host could not be noted. The numbers are of those that were found first.", s.NotFollowed), 0)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
