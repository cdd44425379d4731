package main

// What why tells people.

import (
	"bufio"
	"fmt"
	"strings"
	"time"
)

// whyFindings is how many findings of a session are printed.
const whyFindings = 8

func (a *whyAnswer) print(w *bufio.Writer, zone *time.Location) {
	p := whyPrinter{w, zone}
	what := strings.Join(a.As, " or ") + " " + a.Question
	switch n := len(a.Sessions); {
	case n == 0:
		put(w, what+": no session is kept", 2)
	case n < a.Matched:
		put(w, fmt.Sprintf("%s: the newest %d of %d sessions", what, n, a.Matched), 2)
	case n == 1:
		put(w, what+": 1 session", 2)
	default:
		put(w, fmt.Sprintf("%s: %d sessions, the newest first", what, n), 2)
	}
	for _, s := range a.Sessions {
		fmt.Fprintln(w)
		p.session(s, len(a.As) > 1)
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
	fmt.Fprintln(w)
	if a.Oldest == nil {
		put(w, "No session is kept.", 0)
	} else {
		put(w, fmt.Sprintf("Looked at all that is kept: %s, since %s.", plural(a.Looked, "session"), p.time(*a.Oldest)), 0)
	}
	for _, n := range a.Notes {
		put(w, "! "+n, 2)
	}
}

type whyPrinter struct {
	w    *bufio.Writer
	zone *time.Location
}

func (p *whyPrinter) time(t time.Time) string { return t.In(p.zone).Format("2006-01-02 15:04 -0700") }

// line writes a line with a name at its left.
func (p *whyPrinter) line(name, format string, args ...any) {
	put(p.w, fmt.Sprintf("  %-9s", name)+fmt.Sprintf(format, args...), 11)
}

func (p *whyPrinter) session(s *whySession, as bool) {
	fmt.Fprintf(p.w, "Session %s, %s\n", s.Session, s.Start.In(p.zone).Format("2006-01-02 15:04:05 -0700"))
	p.facts(s)
	if as {
		p.line("matches", "as %s", strings.Join(s.As, " and "))
	}
	for i, text := range s.What {
		p.line(first(i, "what"), "%s", text)
	}
	p.rules(s.Rules)
	p.evidence(s)
	if s.Sum > 0 {
		p.line("!", "this is the sum of %s of this address, which came too often to be recorded one by one", plural(int(s.Sum), "session"))
	}
	if s.Omitted > 0 {
		p.line("!", "%d steps were counted but not kept: something may be missing here", s.Omitted)
	}
	if s.Damage != "" {
		p.line("!", "the rest of the record is damaged: %s", s.Damage)
	}
	p.line("story", "scanwatch show %s", s.Session)
}

func (p *whyPrinter) facts(s *whySession) {
	switch {
	case s.Local:
		p.line("from", "this machine")
	case s.RDNS == "":
		p.line("from", "%s, without a name", s.Src)
	default:
		p.line("from", "%s, %s (fcrdns %s)", s.Src, s.RDNS, s.FCrDNS)
	}
	for i, h := range s.Helo {
		p.line(first(i, "helo"), "%s", h)
	}
}

func (p *whyPrinter) evidence(s *whySession) {
	for i := range s.Evidence {
		if i == whyFindings {
			put(p.w, fmt.Sprintf("  and %d more findings", len(s.Evidence)-i), 4)
			break
		}
		s.Evidence[i].print(p.w)
	}
}

// rules tells what rules did; how a rule read comes after the last thing it did.
func (p *whyPrinter) rules(list []whyRule) {
	for i := range list {
		r := &list[i]
		p.rule(r)
		if i+1 < len(list) && list[i+1].Rule == r.Rule && list[i+1].Text == r.Text && r.BannedIn == "" {
			continue
		}
		switch {
		case r.BannedIn == byHand:
			p.line("because", "the postmaster had banned it")
		case r.BannedIn != "" && !r.Kept:
			p.line("because", "it was banned in session %s, which is not kept any more", r.BannedIn)
		case r.BannedIn != "":
			p.line("because", "it was banned in session %s, see below", r.BannedIn)
		case r.Text == "":
			p.line("read", "(its text was not kept)")
		default:
			p.line("read", "%s", r.Text)
		}
		if r.CountedBy != "" {
			p.line("", "(it counts over several sessions, by %s: what is below is only of this one)", r.CountedBy)
		}
		switch r.Now {
		case "changed":
			p.line("", "(it reads differently now)")
		case "gone":
			p.line("", "(it is not in the configuration any more)")
		}
	}
}

func (p *whyPrinter) rule(r *whyRule) {
	text := r.Rule + ": " + r.Decision
	if r.Phases != "" {
		text += " at " + r.Phases
	}
	if r.Until != "" {
		text += " until " + p.moment(r.Until)
	}
	switch {
	case r.Spared != "":
		text += ", but it was spared: " + r.Spared
	case !r.CarriedOut:
		text += ", observed only"
	}
	if r.Times > 1 && !strings.Contains(r.Phases, ",") {
		text += fmt.Sprintf(", %d times", r.Times)
	}
	p.line("rule", "%s", text)
	if r.Reply != "" {
		p.line("reply", "%s", r.Reply)
	}
}

// moment is a time that a record has as text.
func (p *whyPrinter) moment(s string) string {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return p.time(t)
	}
	return s
}

func (p *whyPrinter) host(h *whyHost) {
	fmt.Fprintf(p.w, "Host %s\n", host(h.Prefix))
	p.line("kept", "%s, %s accepted, %s", plural(h.Sessions, "session"), plural(h.Mails, "message"), plural(h.Logins, "login"))
	for i := range h.Bans {
		b := &h.Bans[i]
		text := "until " + p.time(b.Until)
		if b.Over {
			text = "was banned " + text
		}
		if b.Prefix != h.Prefix {
			text = host(b.Prefix) + " " + text
		}
		if b.Times > 1 {
			text += fmt.Sprintf(", for the %d. time", b.Times)
		}
		switch {
		case b.Manual:
			text += ", by hand: " + printable([]byte(b.Rule))
		case b.Session != "":
			text += fmt.Sprintf(", by rule %s in session %s", printable([]byte(b.Rule)), b.Session)
		}
		if b.Observe {
			text += " (observed only)"
		}
		if b.Lifted {
			text += " (lifted)"
		}
		if b.Tries > 0 {
			text += fmt.Sprintf("; it came %s meanwhile", plural(b.Tries, "time"))
		}
		p.line(first(i, "ban"), "%s", text)
	}
	if len(h.Bans) == 0 && len(h.Excuses) > 0 {
		p.line("ban", "none holds, and none is remembered")
	}
	for i, b := range h.History {
		text := fmt.Sprintf("%s: rule %s in session %s", p.time(b.At), b.Rule, b.Session)
		switch {
		case b.Spared != "":
			text += ", spared: " + b.Spared
		case b.CarriedOut:
			text += ", until " + p.moment(b.Until)
		default:
			text += ", observed only"
		}
		p.line(first(i, "history"), "%s", text)
	}
	if h.TurnedAway > 0 {
		p.line("", "turned away in %s during a ban", plural(h.TurnedAway, "session"))
	}
	if len(h.Excuses) > 0 {
		fmt.Fprintln(p.w, "  It is excused if")
	}
	for _, x := range h.Excuses {
		mark := " "
		if x.Holds {
			mark = "x"
		}
		put(p.w, fmt.Sprintf("    [%s] %s", mark, x.Text), 8)
	}
	if len(h.Undo) > 0 {
		fmt.Fprintln(p.w, "  To undo it")
	}
	for _, u := range h.Undo {
		fmt.Fprintf(p.w, "    %s\n", u.Do)
		put(p.w, "        ("+u.Text+")", 9)
	}
}

// first is the name of the first of several lines.
func first(i int, name string) string {
	if i > 0 {
		return ""
	}
	return name
}
