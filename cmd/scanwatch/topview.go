package main

// What the verb top knows, and how that looks. It draws lines of text; where they
// are shown is not known here.

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/events"
	store_report "scanwatch/store/report"
)

// All of these grow with what strangers do.
const (
	topSources = 1024 // the one that was quiet the longest makes place
	topKinds   = 64   // of evidence; bits of a source's found
	topEvents  = 256  // that are shown, if the terminal is that high
	topHeld    = 4096 // that wait while the view is paused
)

// A topRow is a line of the screen.
type topRow struct {
	look topLook
	text string // printable
}

// A topLook is never all that tells two rows apart.
type topLook int

const (
	lookPlain topLook = iota
	lookTitle
	lookHeading
	lookProblem
	lookBan
	lookVerdict
)

// A rate counts, and knows how much of it was in the last minute.
type rate struct {
	total   uint64
	seconds [60]uint64
	at      int64 // the second that was counted last
}

func (r *rate) add(now time.Time, n uint64) {
	r.until(now)
	r.total += n
	r.seconds[r.at%60] += n
}

// until forgets what is a minute old. A clock that goes back changes nothing.
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

// A topSource is a host, an IPv6 /64, or a network that was banned.
type topSource struct {
	name     string
	found    uint64 // findings
	told     uint64 // verdicts, carried out or not
	last     time.Time
	kinds    uint64 // its evidence: bits of topView.kinds
	org      string
	decision string // the last one
	banned   time.Time
}

// topOrders are the ways to sort sources; what is equal goes by the name.
var topOrders = []struct {
	name  string
	order func(a, b *topSource) int
}{
	{"last", func(a, b *topSource) int { return b.last.Compare(a.last) }},
	{"found", func(a, b *topSource) int { return cmp.Compare(b.found, a.found) }},
	{"verdicts", func(a, b *topSource) int { return cmp.Compare(b.told, a.told) }},
	{"source", func(*topSource, *topSource) int { return 0 }},
}

// A topEvent is an event as it is shown, and what it is chosen by.
type topEvent struct {
	word string
	line string
	kind uint64
	src  string
}

// A topView is the state of the verb top. All its texts are printable. It is not
// for concurrent use.
type topView struct {
	zone    *time.Location
	status  *control.Status // nil until the first came
	trouble string          // why there is no newer one

	sessions, findings, verdicts, bans rate

	kinds   []string // of evidence, in the order in which they came
	counts  [topKinds]uint64
	sources map[string]*topSource
	forgot  uint64     // sources that had no place
	events  []topEvent // oldest first
	missed  uint64

	order    int
	evidence string // shown alone, unless it is empty
	paused   bool
	held     []events.Event
	help     bool
}

func newTopView(zone *time.Location, evidence string) *topView {
	return &topView{zone: zone, evidence: evidence, sources: make(map[string]*topSource)}
}

// setStatus takes the answer to "status".
func (v *topView) setStatus(now time.Time, s *control.Status, err error) {
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

// event takes an event; missing is what one of left-out tells of.
func (v *topView) event(now time.Time, e *events.Event, missing uint64) {
	switch {
	case e.Event == "left-out":
		v.missed += missing
	case !v.paused:
		v.take(now, e)
	case len(v.held) < topHeld:
		v.held = append(v.held, *e)
	default:
		v.missed++
	}
}

// pause stops the view, or lets it catch up.
func (v *topView) pause(now time.Time) {
	v.paused = !v.paused
	if v.paused {
		return
	}
	for i := range v.held {
		v.take(now, &v.held[i])
	}
	v.held = nil
}

func (v *topView) take(now time.Time, e *events.Event) {
	s := v.source(shown(topName(e), 64))
	if s.last.Before(e.Time) {
		s.last = e.Time
	}
	kind := v.kind(shown(e.Evidence, 32))
	s.kinds |= kind
	s.org = cmp.Or(shown(e.Org, 64), s.org)
	switch e.Event {
	case "finding":
		v.findings.add(now, 1)
		s.found++
	case "verdict":
		v.verdicts.add(now, 1)
		s.told++
		s.decision = shown(topDecision(e), 64)
	case "ban":
		v.bans.add(now, 1)
		if e.Would == "" {
			s.banned = e.Until
		}
	case "unban":
		s.banned = time.Time{}
	}
	if len(v.events) == topEvents {
		v.events = append(v.events[:0], v.events[1:]...)
	}
	v.events = append(v.events, topEvent{e.Event, eventLine(e, 0, v.zone), kind, s.name})
}

// shown is at most most bytes of a text from the network, fit for a terminal.
func shown(s string, most int) string { return store_report.Printable([]byte(short(s, most))) }

// topDecision is what was decided, whether it was carried out or not.
func topDecision(e *events.Event) string {
	if e.Would != "" {
		return "would " + e.Would
	}
	return e.Decision
}

// topName is whom e is about.
func topName(e *events.Event) string {
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

func (v *topView) source(name string) *topSource {
	s := v.sources[name]
	if s == nil {
		if len(v.sources) == topSources {
			var quiet *topSource
			for _, o := range v.sources {
				if quiet == nil || cmp.Or(o.last.Compare(quiet.last), strings.Compare(o.name, quiet.name)) < 0 {
					quiet = o
				}
			}
			delete(v.sources, quiet.name)
			v.forgot++
		}
		s = &topSource{name: name}
		v.sources[name] = s
	}
	return s
}

// kind counts evidence and returns its bit, 0 if there is none. What comes when
// all bits are taken shares the last one.
func (v *topView) kind(token string) uint64 {
	if token == "" {
		return 0
	}
	i := slices.Index(v.kinds, token)
	if i < 0 && len(v.kinds) < topKinds {
		if len(v.kinds) == topKinds-1 {
			token = "other"
		}
		i = len(v.kinds)
		v.kinds = append(v.kinds, token)
	}
	if i < 0 {
		i = topKinds - 1
	}
	v.counts[i]++
	return 1 << i
}

// nextOrder sorts in the next way.
func (v *topView) nextOrder() { v.order = (v.order + 1) % len(topOrders) }

// nextEvidence shows the next kind of evidence alone, and after the last all.
func (v *topView) nextEvidence() {
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

// topKeys are the keys, with what they do.
var topKeys = []struct{ key, short, long string }{
	{"q", "quit", "end; Ctrl-C as well"},
	{"p", "pause", "stop the view, and let it catch up"},
	{"s", "sort", "sort the sources by the next of last, found, verdicts, source"},
	{"e", "evidence", "show sources and events of the next evidence alone, then all"},
	{"?", "help", "show this; any key ends it"},
}

// screen draws at most height lines of width columns. The last of them tells the
// keys, if it is for a terminal that has some.
func (v *topView) screen(width, height int, now time.Time, keys bool) []topRow {
	var rows []topRow
	add := func(look topLook, format string, args ...any) {
		rows = append(rows, topRow{look, store_report.Fit(fmt.Sprintf(format, args...), max(width, 1))})
	}
	title := "scanwatch top  " + now.In(v.zone).Format(time.TimeOnly)
	if s := v.status; s != nil {
		title += fmt.Sprintf("  mode %s, %d rules", cmp.Or(shown(s.Config.Mode, 16), "observe"), s.Config.Rules)
	}
	if v.paused {
		title += fmt.Sprintf("  PAUSED, %d events wait", len(v.held))
	}
	add(lookTitle, "%s", title)
	if s := v.status; s != nil {
		add(lookPlain, "sessions  %d recorded, %d/min, %d open, %d answers held", s.Store.Added, v.sessions.minute(now), s.Live.Sessions, s.Live.Held)
	} else {
		add(lookPlain, "sessions  not known yet")
	}
	add(lookPlain, "findings  %d, %d/min   verdicts %d, %d/min   bans %d, %d/min", v.findings.total, v.findings.minute(now),
		v.verdicts.total, v.verdicts.minute(now), v.bans.total, v.bans.minute(now))
	add(lookPlain, "evidence  %s", v.evidenceLine())
	for _, problem := range v.problems() {
		add(lookProblem, "PROBLEM   %s", problem)
	}
	bottom := height
	if keys {
		bottom--
	}
	switch {
	case v.help:
		add(lookPlain, "")
		for _, k := range topKeys {
			add(lookPlain, "  %s  %s", k.key, k.long)
		}
		add(lookPlain, "")
		add(lookPlain, "FOUND are findings, TOLD verdicts, since this was started.")
		add(lookPlain, "scanwatch why ADDRESS tells all about a source.")
	default:
		v.tables(add, bottom-len(rows), now)
	}
	rows = rows[:max(min(len(rows), bottom), 0)]
	if keys && height > 0 {
		for len(rows) < bottom {
			add(lookPlain, "")
		}
		var text []string
		for _, k := range topKeys {
			text = append(text, k.key+" "+k.short)
		}
		add(lookHeading, "%s", strings.Join(text, "  "))
	}
	return rows
}

// tables draws sources and events into lines.
func (v *topView) tables(add func(topLook, string, ...any), lines int, now time.Time) {
	only := v.only()
	var sources []*topSource
	for _, s := range v.sources {
		if v.evidence == "" || s.kinds&only != 0 {
			sources = append(sources, s)
		}
	}
	slices.SortFunc(sources, func(a, b *topSource) int {
		return cmp.Or(topOrders[v.order].order(a, b), strings.Compare(a.name, b.name))
	})
	var events []*topEvent
	for i := range v.events {
		e := &v.events[len(v.events)-1-i]
		s := v.sources[e.src] // nil if it was forgotten
		if v.evidence == "" || e.kind&only != 0 || e.kind == 0 && s != nil && s.kinds&only != 0 {
			events = append(events, e)
		}
	}
	lines -= 4 // two headings and the empty lines above them
	room := max(lines-lines/2, lines-len(events))
	room = max(min(room, len(sources)), 0)

	add(lookPlain, "")
	of := fmt.Sprintf("by %s, %d of %d", topOrders[v.order].name, room, len(sources))
	if v.evidence != "" {
		of += ", " + v.evidence + " alone"
	}
	if v.forgot > 0 {
		of += fmt.Sprintf(", %d forgotten", v.forgot)
	}
	wide := len("255.255.255.255")
	for _, s := range sources[:room] {
		wide = min(max(wide, len(s.name)), len("2001:db8:1234:5678::/64")+1)
	}
	add(lookHeading, "%-*s %5s %5s %-8s %s", wide, "SOURCE", "FOUND", "TOLD", "LAST", of)
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
		add(look, "%s %5d %5d %-8s %s", store_report.Fit(s.name, wide), s.found, s.told,
			s.last.In(v.zone).Format(time.TimeOnly), strings.Join(what, ", "))
	}
	add(lookPlain, "")
	add(lookHeading, "%-8s %-8s %-15s %s", "TIME", "EVENT", "CLIENT", "newest first")
	looks := map[string]topLook{"ban": lookBan, "unban": lookBan, "verdict": lookVerdict}
	for _, e := range events[:max(min(lines-room, len(events)), 0)] {
		add(looks[e.word], "%s", e.line)
	}
}

// only are the bits of the evidence that is shown alone.
func (v *topView) only() uint64 {
	if i := slices.Index(v.kinds, v.evidence); i >= 0 {
		return 1 << i
	}
	return 0
}

// evidenceLine tells what was found, the most frequent first.
func (v *topView) evidenceLine() string {
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

// problems are at most five, so that they leave place.
func (v *topView) problems() (all []string) {
	if v.missed > 0 {
		all = append(all, fmt.Sprintf("%d events are missing here: they came too fast for this", v.missed))
	}
	if v.trouble != "" {
		all = append(all, v.trouble)
	}
	if v.status != nil {
		all = append(all, statusProblems(v.status, v.zone)...)
	}
	if len(all) > 5 {
		all = append(all[:4], fmt.Sprintf("and %d more; scanwatch status tells them", len(all)-4))
	}
	return all
}
