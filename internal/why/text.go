package why

import (
	"fmt"
	"io"
	"strings"
	"time"

	"scanwatch/internal/finding"
	"scanwatch/internal/prefix"
	"scanwatch/internal/text"
)

// maxFindings is the maximum number of findings printed for a session.
const maxFindings = 8

// Text writes the answer to w, formatted for a terminal, with times in zone.
func (a *Answer) Text(w io.Writer, zone *time.Location) {
	p := printer{w, zone, a.command}
	p.head(a)
	p.logins(a)
	title := strings.Join(a.Kinds, " or ") + " " + a.Question
	switch n := len(a.Sessions); {
	case n == 0:
		p.wrap(2, "%s: no sessions recorded", title)
	case n < a.records:
		p.wrap(2, "%s: newest %d of %d sessions and aggregates, rejected ones first", title, n, a.records)
	case n == 1:
		p.wrap(2, "%s: 1 session", title)
	default:
		p.wrap(2, "%s: %d sessions, rejected ones first", title, n)
	}
	for _, g := range similar(a.Sessions) {
		fmt.Fprintln(w)
		p.session(g.Session, len(a.Kinds) > 1)
		p.similar(g)
	}
	for _, s := range a.Deciding {
		fmt.Fprintln(w)
		p.session(s, false)
	}
	for _, h := range a.Hosts {
		fmt.Fprintln(w)
		p.host(h)
	}
	if a.More > 0 {
		fmt.Fprintf(w, "\nand %d more hosts\n", a.More)
	}
	p.apart(a)
	fmt.Fprintln(w)
	if a.Oldest == nil {
		p.wrap(0, "No sessions recorded.")
	} else {
		p.wrap(0, "Searched: %s since %s.", text.Plural(a.Searched, "session"), p.time(a.Oldest.Time))
	}
	for _, n := range a.Notes {
		p.wrap(2, "! %s", n)
	}
}

type printer struct {
	w       io.Writer
	zone    *time.Location
	command string // Options.Command
}

func (p *printer) wrap(indent int, format string, args ...any) {
	fmt.Fprintln(p.w, text.Wrap(fmt.Sprintf(format, args...), finding.Columns, indent))
}

func (p *printer) time(t time.Time) string { return t.In(p.zone).Format("2006-01-02 15:04 -0700") }

// line writes a line that starts with a name.
func (p *printer) line(name, format string, args ...any) {
	p.wrap(11, "%s", fmt.Sprintf("  %-9s", name)+fmt.Sprintf(format, args...))
}

// details writes a command on one line, so that it can be copied.
func (p *printer) details(format string, args ...any) {
	fmt.Fprintf(p.w, "  details  "+format+"\n", args...)
}

// lines writes a list that starts with a name.
func (p *printer) lines(name string, list []string) {
	for _, line := range list {
		p.line(name, "%s", line)
		name = ""
	}
}

func (p *printer) session(s *Session, kinds bool) {
	fmt.Fprintf(p.w, "Session %s, %s\n", s.Session, s.Start.In(p.zone).Format("2006-01-02 15:04:05 -0700"))
	switch {
	case s.Local:
		p.line("from", "this machine")
	case s.Erased:
		p.line("from", "an erased address")
	case s.Sources > 0:
		p.line("from", "about %s", text.Plural(s.Sources, "host"))
	case s.RDNS == "" && s.FCrDNS == unknownName:
		p.line("from", "%s, reverse DNS unknown", s.Src)
	case s.RDNS == "":
		p.line("from", "%s, no reverse DNS", s.Src)
	default:
		p.line("from", "%s, %s (fcrdns %s)", s.Src, s.RDNS, s.FCrDNS)
	}
	p.lines("helo", s.Helo)
	if kinds {
		p.line("matches", "as %s", strings.Join(s.Kinds, " and "))
	}
	p.lines("summary", s.Summary)
	p.rules(s.Rules)
	for i := range s.Evidence {
		if i == maxFindings {
			p.wrap(4, "  and %d more findings", len(s.Evidence)-i)
			break
		}
		s.Evidence[i].Text(p.w)
	}
	if s.Sessions > 0 {
		p.line("!", "the aggregate of %s until %s: numbers are totals; name and id belong to the last session", text.Plural(s.Sessions, "session"), p.time(s.End.Time))
	}
	if s.Omitted > 0 {
		p.line("!", "%s counted but not recorded: this description may be incomplete", text.Plural(s.Omitted, "step"))
	}
	if s.Damage != "" {
		p.line("!", "the rest of the record is corrupt: %s", s.Damage)
	}
	p.details("%s show %s", p.command, s.Session)
}

// rules writes the decisions, with each rule's text after its last
// decision.
func (p *printer) rules(list []Rule) {
	for i := range list {
		r := &list[i]
		p.rule(r)
		if r.Unanswered != "" {
			p.line("list", "%s", r.late())
		}
		if i+1 < len(list) && list[i+1].Rule == r.Rule && list[i+1].Text == r.Text && r.BannedIn == "" {
			continue
		}
		switch {
		case r.BannedIn == manual:
			p.line("because", "the operator banned the client%s", r.on())
		case r.BannedOn != "":
			p.line("because", "banned in session %s%s; run there: scanwatch why %[1]s", r.BannedIn, r.on())
		case r.BannedIn != "" && !r.Kept:
			p.line("because", "banned in session %s, whose record has expired", r.BannedIn)
		case r.BannedIn != "":
			p.line("because", "banned in session %s, see below", r.BannedIn)
		case r.Text == "":
			p.line("text", "(not recorded)")
		default:
			p.line("text", "%s", r.Text)
		}
		if r.CountedBy != "" {
			p.line("", "(counts over several sessions by %s; the evidence below is from this session only)", r.CountedBy)
		}
		switch {
		case r.BannedIn != "":
		case r.Now == assumed:
			p.line("", "(the current rule of this name; its text at that time was not recorded)")
		case r.Now == "changed":
			p.line("", "(the current policy has a different text)")
		case r.Now == "gone":
			p.line("", "(not in the current policy)")
		}
	}
}

func (p *printer) rule(r *Rule) {
	line := r.Rule + ": " + r.Decision
	if r.Phases != "" {
		line += " at " + r.Phases
	}
	if r.Until != "" {
		line += " until " + p.until(r.Until)
	}
	switch {
	case r.Exempt != "":
		line += ", withheld: " + r.Exempt
	case !r.Enforced:
		line += ", observed only"
	}
	if r.Times > 1 && !strings.Contains(r.Phases, ",") {
		line += fmt.Sprintf(", %d times", r.Times)
	}
	p.line("rule", "%s", line)
	if r.Reply != "" {
		p.line("reply", "%s", r.Reply)
	}
}

// until converts a recorded time to the output's time zone.
func (p *printer) until(s string) string {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return p.time(t)
	}
	return s
}

func (p *printer) host(h *Host) {
	fmt.Fprintf(p.w, "Host %s\n", prefix.String(h.Prefix))
	p.line("recorded", "%s, %s accepted, %s", text.Plural(h.Sessions, "session"), text.Plural(h.Messages, "message"), text.Plural(h.Logins, "login"))
	p.bans(h)
	var history []string
	for _, b := range h.History {
		history = append(history, p.event(&b))
	}
	p.lines("history", history)
	if h.WhileBanned > 0 {
		p.line("", "%s rejected by a ban", text.Plural(h.WhileBanned, "session"))
	}
	if len(h.Exemptions) > 0 {
		fmt.Fprintln(p.w, "  Exempt if")
	}
	for _, x := range h.Exemptions {
		mark := " "
		if x.Holds {
			mark = "x"
		}
		p.wrap(8, "    [%s] %s", mark, x.Text)
	}
	if len(h.Remedies) > 0 {
		fmt.Fprintln(p.w, "  To undo")
	}
	for _, r := range h.Remedies {
		fmt.Fprintf(p.w, "    %s\n", r.Do)
		p.wrap(9, "        (%s)", r.Text)
	}
}

func (p *printer) bans(h *Host) {
	var lines []string
	for i := range h.Bans {
		lines = append(lines, p.ban(&h.Bans[i], h))
	}
	if p.lines("ban", lines); len(lines) == 0 && len(h.Exemptions) > 0 {
		p.line("ban", "no bans")
	}
}

func (p *printer) ban(b *Ban, h *Host) string {
	line := "until " + p.time(b.Until)
	if b.Expired {
		line = "expired at " + p.time(b.Until)
	}
	if b.Prefix != h.Prefix {
		line = prefix.String(b.Prefix) + " " + line
	}
	if b.Times > 1 {
		line += fmt.Sprintf(", ban number %d", b.Times)
	}
	switch {
	case b.Manual:
		line += ", manual" + text.Escape(b.On()+": "+b.Rule)
	case b.Session != "":
		line += fmt.Sprintf(", by rule %s in session %s", text.Escape(b.Rule+b.On()), b.Session)
	}
	if b.Observe {
		line += " (observed only)"
	}
	if b.Revoked {
		line += " (" + text.Escape(b.Revocation()) + ")"
	}
	if b.Attempts > 0 {
		line += "; " + text.Plural(b.Attempts, "attempt") + " since"
	}
	return line
}

func (p *printer) event(b *BanEvent) string {
	line := fmt.Sprintf("%s: rule %s in session %s", p.time(b.At.Time), b.Rule, b.Session)
	switch {
	case b.Exempt != "":
		return line + ", exempt: " + b.Exempt
	case b.Enforced:
		return line + ", until " + p.until(b.Until)
	}
	return line + ", observed only"
}
