package report

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"time"

	"scanwatch/internal/text"
)

// mailColumns is the line width of a message. RFC 3676 section 4.2 allows at most 78
// columns.
const mailColumns = 72

// Empty reports whether the summary has no problems, possible false positives,
// findings or rule decisions.
func (s *Summary) Empty() bool {
	return len(s.Problems) == 0 && s.Aggregated == 0 && s.NotKept.Sessions == 0 && len(s.Suspects) == 0 && len(s.Rules) == 0 && s.Remote.Found == 0
}

// troubles returns the problems and the gaps in the records. Aggregated sessions do not
// count as a gap.
func troubles(s *Summary) []string {
	all := slices.Clone(s.Problems)
	if s.NotKept.Sessions > 0 {
		all = append(all, s.NotKept.text())
	}
	return all
}

// Mail writes the summary as a message 72 columns wide. The message contains
// problems, possible false positives and findings. Times are in zone.
func (s *Summary) Mail(w io.Writer, zone *time.Location) error {
	l := plainLines(mailColumns, zone)
	const layout = "2006-01-02 15:04"
	problems := troubles(s)
	head := "No problems"
	if n := len(problems); n > 0 {
		head = text.Plural(n, "problem")
	}
	if hosts := s.SuspectHosts.String(); hosts != "" {
		head += "; possible false positives: " + hosts
	}
	l.para(fmt.Sprintf("%s; findings in %d of %s.", head, s.Remote.Found, text.Plural(s.Remote.Sessions, "session")), 0)
	fmt.Fprintf(l, "From %s to %s.\n", s.Since.In(zone).Format(layout), s.Until.In(zone).Format(layout+" -0700"))
	l.problems(problems)
	s.writeSuspects(l)

	l.section("Mail", s.Remote.Sessions+s.Authenticated.Sessions+s.Local.Sessions)
	line := func(name string, t *Totals) {
		if t.Sessions > 0 {
			l.para(fmt.Sprintf("  %-14s %s, %s; recipients: %d accepted, %d rejected, %d deferred", name, text.Plural(t.Sessions, "session"),
				text.Plural(t.Mails, "message"), t.RcptOK, t.RcptPermfail, t.RcptTempfail), 17)
		}
	}
	line("other hosts", &s.Remote)
	line("authenticated", &s.Authenticated)
	line("local", &s.Local)
	if n := s.Remote.AuthFail + s.Remote.AuthRefused; n > 0 {
		l.para(fmt.Sprintf("  %-14s %s", "other hosts", text.Plural(n, "failed login")), 17)
	}

	writeAttacked(l, s.Attacked, s.More["attacked_accounts"])
	s.textRules(l)
	count := func(list, title string, all []Name) {
		if l.section(title, len(all)) {
			for _, n := range all {
				l.row("  %8d  %s", n.Sessions, n.Name)
			}
			l.more(s.More[list])
		}
	}
	count("evidence", "Sessions by evidence", s.Evidence)
	count("organisations", "Sessions by organisation", s.Organisations)
	if s.Remote.Found > 0 {
		s.textNetworks(l)
	}
	_, err := io.WriteString(w, l.String())
	return err
}

// writeSuspects lists the possible false positives.
func (s *Summary) writeSuspects(l *lines) {
	if len(s.Suspects) == 0 {
		return
	}
	l.WriteString("\n" + l.style.Notice("Possible false positives") + "\n")
	for i := range s.Suspects {
		d := &s.Suspects[i]
		l.row("  %s %s", d.Address, d.RDNS)
		line := "    rule " + d.Rule + " " + d.refusals()
		line += ", the last on " + d.Last.In(l.zone).Format("2006-01-02 15:04")
		if d.Sender != "" {
			line += ", from <" + d.Sender + ">"
		}
		line += "; " + d.Why
		if d.Mails > 0 {
			line += fmt.Sprintf(" (%s)", text.Plural(d.Mails, "message"))
		}
		l.para(line, 4)
		fmt.Fprintf(l, "    %s why %s\n", cmp.Or(s.Command, "scanwatch"), d.Session) // uncut, so that it can be copied
	}
	l.more(s.More["possible_false_positives"])
}

// refusals describes how many sessions the rule rejected or would have rejected.
func (d *SuspectRefusal) refusals() string {
	switch {
	case d.Observed == 0:
		return "rejected " + text.Plural(d.Refused, "session")
	case d.Refused == 0:
		return "would have rejected " + text.Plural(d.Observed, "session")
	}
	return fmt.Sprintf("rejected %s and would have rejected %d", text.Plural(d.Refused, "session"), d.Observed)
}
