package backtest

import (
	"cmp"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"scanwatch/internal/text"
)

const (
	columns  = 80
	maxLines = 20 // maximum length of each list
)

// JSON writes r as a JSON object.
func (r *Result) JSON(w io.Writer) error {
	return text.JSON(w, r, "")
}

// Text writes r for a terminal, with times in zone.
func (r *Result) Text(w io.Writer, zone *time.Location) {
	p := &printer{w, zone}
	p.head(r)
	if r.Played == 0 {
		return
	}
	p.lost(r)
	p.logins(r)
	p.stopped(r)
	if r.Against != nil {
		fmt.Fprintln(w)
		p.difference(r.Against)
	}
}

type printer struct {
	w    io.Writer
	zone *time.Location
}

func (p *printer) say(indent int, format string, args ...any) {
	line := fmt.Sprintf("%*s", indent, "") + fmt.Sprintf(format, args...)
	fmt.Fprintln(p.w, text.Wrap(line, columns, indent+4))
}

func (p *printer) time(t time.Time) string { return t.In(p.zone).Format("2006-01-02 15:04") }

func (p *printer) head(r *Result) {
	name := filepath.Base(r.Policy)
	if r.Rule != "" {
		name = "rule " + r.Rule + " of " + name
	}
	p.say(0, "Backtest of %s, as in enforce mode", text.Escape(name))
	if r.Played == 0 {
		p.say(0, "No sessions recorded.")
		return
	}
	p.say(0, "History: %s to %s, %s", p.time(r.From.Time), p.time(r.To.Time), text.Plural(r.Played, "session"))
	if r.Since != nil || r.Selected {
		reported := "Reported: " + text.Plural(r.Sessions, "session")
		if r.Selected {
			reported = "Reported: " + text.Plural(r.Sessions, "selected session")
		}
		if r.Since != nil {
			reported += " since " + p.time(r.Since.Time)
		}
		p.say(0, "%s", reported)
	}
	p.gaps(r)
	p.unknown(r)
}

// gaps writes the gaps in the history and their causes.
func (p *printer) gaps(r *Result) {
	h := &r.Hidden
	if r.Sums.Sessions > 0 {
		p.say(2, "not played: %s in aggregates, with %s and %s", text.Plural(r.Sums.Sessions, "session"), text.Plural(r.Sums.Messages, "accepted message"), text.Plural(r.Sums.Failed, "failed login"))
	}
	if r.Dropped > 0 {
		p.say(2, "not played: %s dropped instead of recorded", text.Plural(r.Dropped, "session"))
	}
	if h.Cut > 0 {
		p.say(2, "%s incomplete: %s omitted", text.Plural(h.Cut, "session"), text.Plural(h.Omitted, "step"))
	}
	switch {
	case h.Ended > 0 && h.Resumed == 0:
		p.say(2, "%s rejected by a rule when recorded; this policy would also reject them", text.Plural(h.Ended, "session"))
	case h.Ended > 0:
		p.say(2, "%s rejected by a rule when recorded; this policy would not reject %d of them, and how they would have continued is unknown", text.Plural(h.Ended, "session"), h.Resumed)
	}
	if h.EndingNo > 0 {
		p.say(2, "%s with an unknown ending: rules for the phase end did not apply", text.Plural(h.EndingNo, "session"))
	}
	if h.Logged > 0 {
		p.say(2, "%s from a log: all rules are applied, as by a filter or milter, but scanwatch follow applies only rules for the phase end", text.Plural(h.Logged, "session"))
	}
	if r.Late > 0 {
		p.say(2, "%s so long that sessions with a later start were replayed first", text.Plural(r.Late, "session"))
	}
	for _, c := range r.NotEvaluated {
		p.say(2, "%s", c)
	}
}

func (p *printer) unknown(r *Result) {
	for _, u := range r.Unknown {
		p.say(2, "rule %s: condition unknown %s in a sample of one session in %d: %s", u.Rule, text.Plural(u.Times, "time"), sampleOf, text.Escape(u.Condition))
	}
	for _, u := range r.Hashed {
		statement := "rule " + u.Rule
		if u.Rule == "pass" {
			statement = "pass statement"
		}
		p.say(2, "%s: condition unknown %s, because the mailbox was recorded as a hash (see privacy in scanwatch.conf(5)): %s", statement, text.Plural(u.Times, "time"), text.Escape(u.Condition))
	}
}

func (p *printer) lost(r *Result) {
	fmt.Fprintln(p.w)
	if r.Messages == 0 {
		p.say(0, "LOST: no accepted mail.")
	} else {
		p.say(0, "LOST: %s for %s, %d from known clients.", text.Plural(r.Messages, "accepted message"), text.Plural(r.Rcpts, "recipient"), r.Known)
	}
	for i, l := range r.Lost {
		if i == maxLines {
			p.say(2, "and %s; --json lists all", text.Plural(len(r.Lost)-maxLines, "more host"))
			break
		}
		p.lostMail(l)
	}
	if r.Junked > 0 {
		p.say(0, "JUNK: %s would be marked as junk.", text.Plural(r.Junked, "accepted message"))
	}
}

// maxLostDomains is the maximum number of sender domains printed for a host.
const maxLostDomains = 3

func (p *printer) lostMail(l *LostMail) {
	from := cmp.Or(l.Src, "elsewhere")
	if l.RDNS != "" {
		from += " (" + l.RDNS + ")"
	}
	client := "unknown client"
	if l.Known {
		client = fmt.Sprintf("KNOWN-GOOD client: %s on %s", text.Plural(l.Accepted.Messages, "accepted message"), text.Plural(l.Accepted.Days, "day"))
	}
	messages := text.Plural(l.Messages, "message")
	if l.Some > 0 {
		messages += fmt.Sprintf(" (%d for some recipients only)", l.Some)
	}
	p.say(2, "%s for %s from %s, %s", messages, text.Plural(l.Rcpts, "recipient"), from, client)
	senders := []string{}
	for _, d := range l.Domains[:min(len(l.Domains), maxLostDomains)] {
		senders = append(senders, cmp.Or(d, "<>"))
	}
	if n := len(l.Domains) - maxLostDomains; n > 0 {
		senders = append(senders, fmt.Sprintf("+%d", n))
	}
	if l.Unknown > 0 {
		senders = append(senders, "unknown senders")
	}
	p.say(6, "senders: %s", strings.Join(senders, " "))
	for _, b := range l.Rules {
		number := ""
		if len(l.Rules) > 1 {
			number = ", " + text.Plural(b.Messages, "message")
		}
		p.say(6, "rule %s at %s%s%s: %s", b.Rule, b.Phase, banned(b.Ban), number, strings.Join(b.Sessions, " "))
	}
}

func banned(ban bool) string {
	if ban {
		return " (banned)"
	}
	return ""
}

func (p *printer) logins(r *Result) {
	fmt.Fprintln(p.w)
	if len(r.Logins) == 0 {
		p.say(0, "LOGINS: no authenticated session rejected.")
	} else {
		p.say(0, "LOGINS: authenticated sessions would be rejected.")
	}
	for i, l := range r.Logins {
		if i == maxLines {
			p.say(2, "and %s; --json lists all", text.Plural(len(r.Logins)-maxLines, "more group"))
			break
		}
		p.say(2, "%s from %s by rule %s at %s%s: %s", text.Plural(l.Count, "session"), cmp.Or(l.Src, "elsewhere"), l.Rule, l.Phase, banned(l.Ban), strings.Join(l.Sessions, " "))
	}
}

func (p *printer) stopped(r *Result) {
	fmt.Fprintln(p.w)
	if len(r.Stopped) == 0 {
		p.say(0, "STOPPED: no further sessions.")
		return
	}
	p.say(0, "STOPPED: sessions without accepted mail, by rule:")
	fmt.Fprintf(p.w, "  %8s %8s %8s %8s %8s  %s\n", "sessions", "sources", "high", "rcpts", "logins", "rule, example")
	for _, s := range r.Stopped {
		fmt.Fprintf(p.w, "  %8d %8d %8d %8d %8d  %s %s\n", s.Count, s.Sources, s.High, s.Rejected, s.Logins, s.Rule, s.Sessions[0])
	}
}

func (p *printer) difference(d *Difference) {
	p.say(0, "Compared with %s, mode %s:", text.Escape(filepath.Base(d.File)), d.Mode)
	p.say(2, "rejected by both: %s", text.Plural(d.Both, "session"))
	p.byRule("rejected by the tested policy only", d.Only)
	p.byRule("rejected by the running policy only", d.Gone)
}

func (p *printer) byRule(title string, sessions map[string]int) {
	if len(sessions) == 0 {
		p.say(2, "%s: none", title)
		return
	}
	p.say(2, "%s:", title)
	names := make([]string, 0, len(sessions))
	for name := range sessions {
		names = append(names, name)
	}
	slices.SortFunc(names, func(x, y string) int { return cmp.Or(sessions[y]-sessions[x], cmp.Compare(x, y)) })
	for _, name := range names {
		p.say(4, "%s by rule %s", text.Plural(sessions[name], "session"), name)
	}
}
