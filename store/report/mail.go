package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// mailColumns is how wide a letter is (RFC 3676 section 4.2 asks for 78 or less).
const mailColumns = 72

// Nothing tells whether there is nothing to tell: no problem, no refusal that may
// have hit good mail, no finding, and nothing that a rule did.
func (s *Summary) Nothing() bool {
	return len(s.Problems) == 0 && s.Summed == 0 && s.NotKept.Sessions == 0 && len(s.Doubts) == 0 && len(s.Rules) == 0 && s.Remote.Found == 0
}

// Mail writes the summary as a letter for people, 72 columns wide, with times in
// zone: problems first, then refusals that may have hit good mail, then findings.
func (s *Summary) Mail(w io.Writer, zone *time.Location) error {
	var b strings.Builder
	const layout = "2006-01-02 15:04"
	problems := append(slices.Clone(s.Problems), s.sampled()...)
	head := "No problems"
	if n := len(problems); n > 0 {
		head = plural(n, "problem", "problems")
	}
	if n := len(s.Doubts) + s.More["doubts"]; n > 0 {
		head += "; " + plural(n, "host", "hosts") + " turned away that may have had good mail"
	}
	wrapTo(&b, fmt.Sprintf("%s; findings in %d of %s.", head, s.Remote.Found, plural(s.Remote.Sessions, "session", "sessions")), 0, mailColumns)
	fmt.Fprintf(&b, "From %s to %s.\n", s.Since.In(zone).Format(layout), s.Until.In(zone).Format(layout+" -0700"))

	if len(problems) > 0 {
		b.WriteString("\nProblems\n")
		for _, p := range problems {
			wrapTo(&b, "  ! "+p, 4, mailColumns)
		}
	}
	s.doubts(&b, zone, mailColumns)

	section(&b, "Mail", s.Remote.Sessions+s.Authenticated.Sessions+s.Local.Sessions)
	line := func(who string, t *Totals) {
		if t.Sessions > 0 {
			wrapTo(&b, fmt.Sprintf("  %-12s %s, %s; recipients: %d accepted, %d refused, %d put off", who, plural(t.Sessions, "session", "sessions"),
				plural(t.Mails, "message", "messages"), t.RcptOK, t.RcptPermfail, t.RcptTempfail), 15, mailColumns)
		}
	}
	line("other hosts", &s.Remote)
	line("logged in", &s.Authenticated)
	line("local", &s.Local)
	if n := s.Remote.AuthFail + s.Remote.AuthRefused; n > 0 {
		wrapTo(&b, fmt.Sprintf("  %-12s %s to log in that failed", "other hosts", plural(n, "attempt", "attempts")), 15, mailColumns)
	}

	if section(&b, "Rules", len(s.Rules)) {
		rowTo(&b, "      done observed     bans   spared  rule", mailColumns)
		for _, x := range s.Rules {
			rowTo(&b, fmt.Sprintf("  %8d %8d %8d %8d  %s", x.Done, x.Observed, x.Bans, x.Spared, x.Rule), mailColumns)
		}
		s.rest(&b, "rules")
	}
	count := func(list, title string, all []Name) {
		if section(&b, title, len(all)) {
			for _, n := range all {
				rowTo(&b, fmt.Sprintf("  %8d  %s", n.Sessions, n.Name), mailColumns)
			}
			s.rest(&b, list)
		}
	}
	count("evidence", "Sessions by what was found", s.Evidence)
	count("organisations", "Sessions by organisation", s.Organisations)
	if s.Remote.Found > 0 && section(&b, "Networks with most sessions", len(s.Networks)) {
		rowTo(&b, "  sessions findings  network", mailColumns)
		for _, n := range s.Networks {
			rowTo(&b, fmt.Sprintf("  %8d %8d  %s", n.Sessions, n.Found, n.Prefix), mailColumns)
		}
		s.rest(&b, "networks")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// doubts lists the refusals that may have hit good mail.
func (s *Summary) doubts(b *strings.Builder, zone *time.Location, columns int) {
	if !section(b, "Turned away, and may have had good mail", len(s.Doubts)) {
		return
	}
	for i := range s.Doubts {
		d := &s.Doubts[i]
		rowTo(b, "  "+d.Address+" "+d.RDNS, columns)
		text := "    rule " + d.Rule + " " + d.refusals()
		text += ", the last on " + d.Last.In(zone).Format("2006-01-02 15:04")
		if d.Sender != "" {
			text += ", from <" + d.Sender + ">"
		}
		text += "; " + d.Why
		if d.Mails > 0 {
			text += fmt.Sprintf(" (%s)", plural(d.Mails, "message", "messages"))
		}
		wrapTo(b, text, 4, columns)
		rowTo(b, "    scanwatch why "+d.Session, columns)
	}
	s.rest(b, "doubts")
}

// refusals says how many sessions the rule refused.
func (d *Doubt) refusals() string {
	switch {
	case d.Observed == 0:
		return "refused " + plural(d.Refused, "session", "sessions")
	case d.Refused == 0:
		return "would have refused " + plural(d.Observed, "session", "sessions")
	}
	return fmt.Sprintf("refused %s, and would have %d", plural(d.Refused, "session", "sessions"), d.Observed)
}
