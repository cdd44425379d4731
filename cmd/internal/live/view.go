package live

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/events"
	"scanwatch/internal/text"
)

// Limits on client-controlled data.
const (
	maxSources = 1024 // the source that was inactive longest is evicted
	maxKinds   = 64   // kinds of evidence: the bits of source.kinds
	maxEvents  = 256  // shown events, if the terminal has enough lines
	maxPaused  = 4096 // events held while the view is paused
)

// A row is a line of the screen.
type row struct {
	look look
	text string // printable
}

// A look is the style of a row. Rows also differ in their text.
type look int

const (
	lookPlain look = iota
	lookTitle
	lookHeading
	lookProblem
	lookBan
	lookVerdict
)

// A rate counts all events and the events of the last minute.
type rate struct {
	total   uint64
	seconds [60]uint64
	at      int64 // the latest second
}

func (r *rate) add(now time.Time, n uint64) {
	r.until(now)
	r.total += n
	r.seconds[r.at%60] += n
}

// until removes seconds that are a minute old. It ignores a clock that is set back.
func (r *rate) until(now time.Time) {
	at := now.Unix()
	for i := max(r.at+1, at-59); i <= at; i++ {
		r.seconds[i%60] = 0
	}
	r.at = max(r.at, at)
}

func (r *rate) minute(now time.Time) (n uint64) {
	r.until(now)
	for _, s := range r.seconds {
		n += s
	}
	return n
}

// A source is a host, an IPv6 /64, or a banned network.
type source struct {
	name     string
	findings uint64
	verdicts uint64 // enforced or observed
	last     time.Time
	kinds    uint64 // bits of View.kinds
	org      string
	decision string // latest decision
	banned   time.Time
}

// orders contains the sort orders of sources. Equal sources are ordered by name.
var orders = []struct {
	name  string
	order func(a, b *source) int
}{
	{"last", func(a, b *source) int { return b.last.Compare(a.last) }},
	{"findings", func(a, b *source) int { return cmp.Compare(b.findings, a.findings) }},
	{"verdicts", func(a, b *source) int { return cmp.Compare(b.verdicts, a.verdicts) }},
	{"source", func(*source, *source) int { return 0 }},
}

// An eventRow is a displayed event with the values that select it.
type eventRow struct {
	word string
	line string
	kind uint64
	src  string
}

// A View is the state of scanwatch top. All texts are printable. It must not be used
// concurrently.
type View struct {
	zone    *time.Location
	status  *control.Status // nil before the first status
	trouble string          // the reason for an outdated status

	sessions, findings, verdicts, bans rate

	kinds   []string // evidence in order of arrival
	counts  [maxKinds]uint64
	sources map[string]*source
	evicted uint64     // number of evicted sources
	events  []eventRow // oldest first
	missed  uint64

	order    int
	evidence string // the only displayed evidence; empty for all
	paused   bool
	pending  []events.Event // events during the pause
	helping  bool
}

// NewView returns a View that displays only the given evidence, or all if it is
// empty.
func NewView(zone *time.Location, evidence string) *View {
	return &View{zone: zone, evidence: evidence, sources: make(map[string]*source)}
}

// setStatus sets the status, or the error of requesting it.
func (v *View) setStatus(now time.Time, s *control.Status, err error) {
	if err != nil {
		v.trouble = shown(err.Error(), 256)
		return
	}
	v.trouble = ""
	if v.status != nil && s.Store.Added >= v.status.Store.Added {
		v.sessions.add(now, s.Store.Added-v.status.Store.Added)
	}
	v.status = s
}

// event adds an event, or the number of dropped events.
func (v *View) event(now time.Time, e *events.Event, missing uint64) {
	switch {
	case missing > 0:
		v.missed += missing
	case !v.paused:
		v.add(now, e)
	case len(v.pending) < maxPaused:
		v.pending = append(v.pending, *e)
	default:
		v.missed++
	}
}

// pause pauses the view, or resumes it and adds the events of the pause.
func (v *View) pause(now time.Time) {
	v.paused = !v.paused
	if v.paused {
		return
	}
	for i := range v.pending {
		v.add(now, &v.pending[i])
	}
	v.pending = nil
}

func (v *View) add(now time.Time, e *events.Event) {
	s := v.source(shown(sourceName(e), 64))
	if s.last.Before(e.Time) {
		s.last = e.Time
	}
	kind := v.kind(shown(e.Evidence, 32))
	s.kinds |= kind
	s.org = cmp.Or(shown(e.Org, 64), s.org)
	switch e.Event {
	case "finding":
		v.findings.add(now, 1)
		s.findings++
	case "verdict":
		v.verdicts.add(now, 1)
		s.verdicts++
		s.decision = shown(decision(e), 64)
	case "ban":
		v.bans.add(now, 1)
		if e.Would == "" {
			s.banned = e.Until
		}
	case "unban":
		s.banned = time.Time{}
	}
	if len(v.events) == maxEvents {
		v.events = append(v.events[:0], v.events[1:]...)
	}
	v.events = append(v.events, eventRow{e.Event, EventLine(e, 0, v.zone), kind, s.name})
}

// decision returns the decision of a verdict, enforced or observed.
func decision(e *events.Event) string {
	if e.Would != "" {
		return "would " + e.Would
	}
	return e.Decision
}

// sourceName returns the source of an event.
func sourceName(e *events.Event) string {
	addr := e.Src.Unmap().WithZone("")
	if p, err := netip.ParsePrefix(e.Prefix); err == nil && !addr.IsValid() {
		if p.Bits() < p.Addr().BitLen() {
			return p.Masked().String()
		}
		addr = p.Addr()
	}
	switch {
	case addr.Is4():
		return addr.String()
	case addr.Is6():
		return netip.PrefixFrom(addr, 64).Masked().String()
	case e.Prefix != "":
		return e.Prefix
	}
	return "local"
}

func (v *View) source(name string) *source {
	s := v.sources[name]
	if s == nil {
		if len(v.sources) == maxSources {
			var quiet *source
			for _, o := range v.sources {
				if quiet == nil || cmp.Or(o.last.Compare(quiet.last), strings.Compare(o.name, quiet.name)) < 0 {
					quiet = o
				}
			}
			delete(v.sources, quiet.name)
			v.evicted++
		}
		s = &source{name: name}
		v.sources[name] = s
	}
	return s
}

// kind counts evidence and returns its bit, or 0 without evidence. The last bit is
// shared.
func (v *View) kind(token string) uint64 {
	if token == "" {
		return 0
	}
	i := slices.Index(v.kinds, token)
	if i < 0 && len(v.kinds) < maxKinds {
		if len(v.kinds) == maxKinds-1 {
			token = "other"
		}
		i = len(v.kinds)
		v.kinds = append(v.kinds, token)
	}
	if i < 0 {
		i = maxKinds - 1
	}
	v.counts[i]++
	return 1 << i
}

// nextOrder selects the next sort order.
func (v *View) nextOrder() { v.order = (v.order + 1) % len(orders) }

// nextEvidence displays only the next kind of evidence. All kinds follow the last
// one.
func (v *View) nextEvidence() {
	all := slices.Sorted(slices.Values(v.kinds))
	i, found := slices.BinarySearch(all, v.evidence)
	if found {
		i++
	}
	v.evidence = ""
	if i < len(all) {
		v.evidence = all[i]
	}
}

// keys contains the keys and their descriptions.
var keys = []struct{ key, short, long string }{
	{"q", "quit", "quit; so does Ctrl-C"},
	{"p", "pause", "pause, and resume with the events of the pause"},
	{"s", "sort", "sort sources by last, findings, verdicts or source"},
	{"e", "evidence", "show the next kind of evidence alone, then all"},
	{"?", "help", "help; any key closes it"},
}

// screen returns at most height rows of width columns. If interactive is set, the
// last row lists the keys.
func (v *View) screen(width, height int, now time.Time, interactive bool) []row {
	var rows []row
	add := func(look look, format string, args ...any) {
		rows = append(rows, row{look, text.Pad(fmt.Sprintf(format, args...), max(width, 1))})
	}
	title := "scanwatch top  " + now.In(v.zone).Format(time.TimeOnly)
	if s := v.status; s != nil {
		title += fmt.Sprintf("  mode %s, %s", cmp.Or(shown(s.Config.Mode, 16), "observe"), text.Plural(s.Config.Rules, "rule"))
	}
	if v.paused {
		title += fmt.Sprintf("  PAUSED, %d events waiting", len(v.pending))
	}
	add(lookTitle, "%s", title)
	if s := v.status; s != nil {
		add(lookPlain, "sessions  %d recorded, %d/min, %d open, %s", s.Store.Added, v.sessions.minute(now), s.Live.Sessions, delayed(s))
	} else {
		add(lookPlain, "sessions  unknown yet")
	}
	add(lookPlain, "findings  %d, %d/min   verdicts %d, %d/min   bans %d, %d/min", v.findings.total, v.findings.minute(now),
		v.verdicts.total, v.verdicts.minute(now), v.bans.total, v.bans.minute(now))
	add(lookPlain, "evidence  %s", v.evidenceLine())
	for _, problem := range v.problems() {
		add(lookProblem, "PROBLEM   %s", problem)
	}
	bottom := height
	if interactive {
		bottom--
	}
	switch {
	case v.helping:
		add(lookPlain, "")
		for _, k := range keys {
			add(lookPlain, "  %s  %s", k.key, k.long)
		}
		add(lookPlain, "")
		add(lookPlain, "FINDINGS and VERDICTS are counted since the start of this view.")
		add(lookPlain, "scanwatch why ADDRESS explains what was decided about a source.")
	default:
		v.tables(add, bottom-len(rows), now)
	}
	rows = rows[:max(min(len(rows), bottom), 0)]
	if interactive && height > 0 {
		for len(rows) < bottom {
			add(lookPlain, "")
		}
		var text []string
		for _, k := range keys {
			text = append(text, k.key+" "+k.short)
		}
		add(lookHeading, "%s", strings.Join(text, "  "))
	}
	return rows
}

// tables draws sources and events in at most lines rows.
func (v *View) tables(add func(look, string, ...any), lines int, now time.Time) {
	only := v.only()
	var sources []*source
	for _, s := range v.sources {
		if v.evidence == "" || s.kinds&only != 0 {
			sources = append(sources, s)
		}
	}
	slices.SortFunc(sources, func(a, b *source) int {
		return cmp.Or(orders[v.order].order(a, b), strings.Compare(a.name, b.name))
	})
	var events []*eventRow
	for i := range v.events {
		e := &v.events[len(v.events)-1-i]
		s := v.sources[e.src] // nil after eviction
		if v.evidence == "" || e.kind&only != 0 || e.kind == 0 && s != nil && s.kinds&only != 0 {
			events = append(events, e)
		}
	}
	lines -= 4 // two headings, each after an empty line
	room := max(lines-lines/2, lines-len(events))
	room = max(min(room, len(sources)), 0)

	add(lookPlain, "")
	of := fmt.Sprintf("by %s, %d of %d", orders[v.order].name, room, len(sources))
	if v.evidence != "" {
		of += ", only " + v.evidence
	}
	if v.evicted > 0 {
		of += fmt.Sprintf(", %d evicted", v.evicted)
	}
	wide := len("255.255.255.255")
	for _, s := range sources[:room] {
		wide = min(max(wide, len(s.name)), len("2001:db8:1234:5678::/64")+1)
	}
	add(lookHeading, "%-*s %8s %8s %-8s %s", wide, "SOURCE", "FINDINGS", "VERDICTS", "LAST", of)
	for _, s := range sources[:room] {
		look := lookPlain
		var what []string
		switch {
		case s.banned.After(now):
			look = lookBan
			what = append(what, "banned until "+s.banned.In(v.zone).Format("01-02 15:04"))
		case s.decision != "":
			look = lookVerdict
		}
		what = append(what, s.decision)
		for i, k := range v.kinds {
			if s.kinds&(1<<i) != 0 {
				what = append(what, k)
			}
		}
		what = append(what, s.org)
		what = slices.DeleteFunc(what, func(s string) bool { return s == "" })
		add(look, "%s %8d %8d %-8s %s", text.Pad(s.name, wide), s.findings, s.verdicts,
			s.last.In(v.zone).Format(time.TimeOnly), strings.Join(what, ", "))
	}
	add(lookPlain, "")
	add(lookHeading, "%-8s %-8s %-15s %s", "TIME", "EVENT", "CLIENT", "newest first")
	looks := map[string]look{"ban": lookBan, "unban": lookBan, "verdict": lookVerdict}
	for _, e := range events[:max(min(lines-room, len(events)), 0)] {
		add(looks[e.word], "%s", e.line)
	}
}

// only returns the bit of the only displayed evidence, or 0 for all.
func (v *View) only() uint64 {
	if i := slices.Index(v.kinds, v.evidence); i >= 0 {
		return 1 << i
	}
	return 0
}

// evidenceLine lists evidence, most frequent first.
func (v *View) evidenceLine() string {
	if len(v.kinds) == 0 {
		return "none yet"
	}
	var order []int
	for i := range v.kinds {
		order = append(order, i)
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(v.counts[b], v.counts[a]), strings.Compare(v.kinds[a], v.kinds[b]))
	})
	var text []string
	for _, i := range order {
		text = append(text, fmt.Sprintf("%s %d", v.kinds[i], v.counts[i]))
	}
	return strings.Join(text, ", ")
}

// problems returns at most five problems, which leaves room for the tables.
func (v *View) problems() (all []string) {
	if v.missed > 0 {
		all = append(all, fmt.Sprintf("%d events are missing: too many to show", v.missed))
	}
	if v.trouble != "" {
		all = append(all, v.trouble)
	}
	if v.status != nil {
		all = append(all, Problems(v.status, v.zone)...)
	}
	if len(all) > 5 {
		all = append(all[:4], fmt.Sprintf("and %d more; see scanwatch status", len(all)-4))
	}
	return all
}
