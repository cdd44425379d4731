package live

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/dnslist"
	"scanwatch/filter/memory"
	"scanwatch/filter/share"
	"scanwatch/internal/prefix"
	"scanwatch/internal/text"
	"scanwatch/rules"
)

// Problems returns the problems in a filter's status as printable text.
func Problems(s *control.Status, zone *time.Location) (all []string) {
	add := func(format string, args ...any) {
		all = append(all, text.Escape(fmt.Appendf(nil, format, args...)))
	}
	since := func(t time.Time) string { return t.In(zone).Format(time.DateTime) }
	st := &s.Store
	if st.Error != "" {
		add("since %s: %s", since(st.Since.Time), st.Error)
	}
	if n := st.Dropped.Total(); n > 0 {
		add("%d sessions were dropped: %s", n, st.Dropped)
	}
	if st.Quarantined > 0 {
		add("%s quarantined as corrupt", text.Plural(st.Quarantined, "segment"))
	}
	if st.SealError != "" {
		add("finished days cannot be sealed: %s", st.SealError)
	}
	if s.State.Error != "" {
		add("since %s: %s", since(s.State.Since.Time), s.State.Error)
	}
	if problem := s.StateLost(time.Now()); problem != "" {
		add("%s", problem)
	}
	if s.Source != nil && s.Source.Problem != "" {
		add("log of the mail server: %s", s.Source.Problem)
	}
	if s.Config.Problem != "" {
		add("configuration: %s", s.Config.Problem)
	}
	for _, n := range s.Config.Notes {
		add("configuration: %s", n)
	}
	for _, problem := range append(s.FleetProblems(), s.CompanionProblems(time.Now())...) {
		add("%s", problem)
	}
	return all
}

// PrintStatus writes a filter's status, problems first.
func PrintStatus(w io.Writer, s *control.Status, zone *time.Location) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-10s%s\n", name, fmt.Sprintf(format, args...))
	}
	for _, problem := range Problems(s, zone) {
		fmt.Fprintln(w, text.Wrap("PROBLEM   "+problem, 79, 10))
	}
	line("filter", "version %s, pid %d, since %s", s.Program, s.PID, s.Started.In(zone).Format("2006-01-02 15:04:05 -0700"))
	if s.Config.File != "" {
		line("policy", "%s, mode %s, %s", s.Config.File, s.Config.Mode, text.Plural(s.Config.Rules, "rule"))
	} else {
		line("policy", "none, mode observe")
	}
	if h := s.Config.Halted; h != nil {
		until := "until scanwatch mode policy"
		if !h.Until.IsZero() {
			until = "until " + h.Until.In(zone).Format("2006-01-02 15:04:05 -0700")
		}
		line("halted", "observing only %s; the mode of the policy is %s", until, h.Mode)
	}
	if s.Log != "" {
		line("log", "%s", s.Log)
	}
	if s.Source != nil {
		line("source", "%s", sourceLine(s.Source, zone))
	}
	if s.Sandbox != "" {
		line("sandbox", "%s", s.Sandbox)
	}
	st := &s.Store
	line("sessions", "%d recorded since then, %d of them on disk", st.Added, st.Committed)
	line("open", "%s, %s", text.Plural(s.Live.Sessions, "session"), delayed(s))
	line("memory", "%s of %s wait to be written", text.ShortSize(int64(st.Buffered)), text.ShortSize(int64(st.Buffer)))
	line("disk", "%s of %s, %s (%d sealed) in %s", text.ShortSize(st.Bytes), text.ShortSize(st.Budget), text.Plural(st.Segments, "segment"), st.Sealed, st.Dir)
	if st.Segment != "" {
		line("writing", "%s", st.Segment)
	}
	if st.Sealing != "" {
		line("sealing", "%s", st.Sealing)
	}
	line("bans", "%s", bansLine(s))
	line("standing", "%s known, %d trusted", text.Plural(s.Standing.Known, "host"), s.Standing.Trusted)
	for _, p := range s.Standing.Gateways {
		line("gateway?", "many hosts share %s: list it as gateway", prefix.String(p))
	}
	for i := range s.Companions {
		line("companion", "%s", companionLine(&s.Companions[i], zone))
	}
	if f := s.Fleet; f != nil {
		line("fleet", "%s", fleetLine(f))
	}
	for i := range s.Hosts {
		line("host", "%s", hostLine(&s.Hosts[i], time.Now()))
	}
	for i := range s.Lookups {
		line("lookup", "%s", lookupLine(&s.Lookups[i]))
	}
	for _, m := range s.Memory {
		if m.Rows == 0 {
			continue
		}
		row := fmt.Sprintf("%d of %d %s", m.Rows, m.Limit, m.Table)
		if strings.Contains(m.Table, "bans") {
			row = fmt.Sprintf("%d of %d rows of %s, including expired bans and offences", m.Rows, m.Limit, m.Table)
		}
		if m.Evicted > 0 {
			row += fmt.Sprintf(", %d evicted because the table was full", m.Evicted)
		}
		line("state", "%s", row)
	}
}

func bansLine(s *control.Status) string {
	bans := fmt.Sprintf("%d active", s.Bans.Active)
	if s.Bans.Active > 0 && s.Config.Mode != rules.Enforce.String() {
		bans += ", not enforced in observe mode"
	}
	if n := s.Bans.Waiting; n > 0 {
		bans += fmt.Sprintf(", %d of other hosts %s", n, memory.NotEnforced)
	}
	if n := s.Bans.Observed; n > 0 {
		bans += fmt.Sprintf(", %d observed", n)
	}
	return bans
}

// delayed returns the number of delayed replies as text.
func delayed(s *control.Status) string {
	return text.Plural(s.Live.Delayed, "delayed reply", "delayed replies")
}

// lookupLine describes a DNS list's answers.
func lookupLine(l *dnslist.ListStatus) string {
	line := fmt.Sprintf("%s (%s): %s, %d listed, %d not listed", text.Escape(l.Name), text.Escape(l.Zone), text.Plural(l.Asked, "question"), l.Listed, l.Absent)
	var causes []string
	for _, cause := range dnslist.Causes {
		if n := l.Unknown[cause]; n > 0 {
			causes = append(causes, fmt.Sprintf("%d %s", n, cause))
		}
	}
	if causes != nil {
		line += ", unknown: " + strings.Join(causes, ", ")
	}
	if l.Withdrawn > 0 {
		line += fmt.Sprintf(", %d withdrawn", l.Withdrawn)
	}
	if l.Dropped > 0 {
		line += fmt.Sprintf(", %d dropped", l.Dropped)
	}
	return line
}

// fleetLine describes this host as a member of a fleet.
func fleetLine(f *control.FleetStatus) string {
	line := "this host is " + text.Escape(f.Name) + ", fingerprint of the key " + cmp.Or(text.Escape(f.Key), "unknown")
	if f.Observe {
		line += ", bans by other hosts are only observed"
	}
	if len(f.Ignore) > 0 {
		line += ", ignoring " + text.Escape(strings.Join(f.Ignore, ", "))
	}
	return line
}

// hostLine describes another host that shares its state with this one.
func hostLine(h *share.HostStatus, now time.Time) string {
	ago := func(t time.Time) string { return text.ShortDuration(max(now.Sub(t), 0)) + " ago" }
	line := text.Escape(h.Name) + ": " + text.Plural(h.Rows, "row")
	if h.Unbans > 0 {
		line += " (" + text.Plural(h.Unbans, "unban") + ")"
	}
	if h.Rows > 0 && !h.Last.IsZero() {
		line += ", latest change " + ago(h.Last)
	}
	switch {
	case h.By == share.ByFile:
		line += ", from a file written " + ago(h.Heard)
	case h.By == "":
		line += ", received before the start of the filter"
	case h.Heard.IsZero():
		line += ", not heard on the server"
	default:
		line += ", last heard on the server " + ago(h.Heard)
	}
	if h.Omitted > 0 {
		line += fmt.Sprintf(", %d omitted", h.Omitted)
	}
	if h.Problem != "" {
		line += "; " + text.Escape(h.Problem)
	}
	return line
}

// companionLine describes a companion.
func companionLine(c *control.CompanionStatus, zone *time.Location) string {
	line := text.Escape(c.Name) + ": "
	switch {
	case c.Seen.IsZero():
		return line + "not seen since the filter started"
	case c.Running(time.Now()):
		line += "running, " + text.Plural(c.Entries, "entry", "entries")
	default:
		line += "last seen " + c.Seen.In(zone).Format(time.DateTime)
	}
	if !c.Done.IsZero() {
		line += ", last success " + c.Done.In(zone).Format(time.DateTime)
	}
	if c.Lost > 0 {
		line += fmt.Sprintf(", %d lost", c.Lost)
	}
	return line
}

// sourceLine describes the log that scanwatch follow reads.
func sourceLine(s *control.SourceStatus, zone *time.Location) string {
	line := fmt.Sprintf("%s %s at byte %d, %d behind, %s (%d not understood), %s", s.Kind, text.Escape(s.File), s.Position, s.Behind,
		text.Plural(s.Lines, "line"), s.Unknown, text.Plural(s.Sessions, "session"))
	if !s.Last.IsZero() {
		line += ", last line of " + s.Last.In(zone).Format("2006-01-02 15:04:05 -0700")
	}
	if s.Problem != "" {
		line += "; " + text.Escape(s.Problem)
	}
	return line
}
