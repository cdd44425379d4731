package trial

import (
	"fmt"
	"io"
	"strings"

	"scanwatch/internal/finding"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/rules"
)

// JSON writes s as a JSON object on a single line.
func (s *Session) JSON(w io.Writer) error {
	return text.JSON(w, s, "")
}

func wrap(w io.Writer, s string, indent int) {
	fmt.Fprintln(w, text.Wrap(s, finding.Columns, indent))
}

// Text writes s for a terminal.
func (s *Session) Text(w io.Writer) {
	fmt.Fprintf(w, "Session %s, mode %s\n", s.Session, s.Mode)
	s.head(w)
	for _, r := range s.Phases {
		r.text(w)
	}
	if len(s.Phases) == 0 {
		fmt.Fprintln(w, "smtpd would send no request")
	}
	if len(s.Later) > 0 {
		fmt.Fprintln(w, "later")
	}
	for _, f := range s.Later {
		f.Text(w)
	}
	if len(s.NotReached) > 0 {
		wrap(w, "not reached: "+strings.Join(s.NotReached, ", "), 4)
	}
}

func (s *Session) head(w io.Writer) {
	line := func(name, value string) { wrap(w, fmt.Sprintf("  %-10s%s", name, value), 12) }
	if s.Local {
		line("from", "the local socket")
	} else {
		line("from", s.Src)
		line("to", s.Dst)
	}
	if s.RDNS == "" {
		line("rdns", "none")
	} else {
		line("rdns", s.RDNS+", fcrdns "+s.FCrDNS)
	}
	if s.Standing != "" && s.Standing != rules.StandingNone.String() {
		line("standing", s.Standing)
	}
	switch {
	case s.ASN == nil: // no database, or no request
	case *s.ASN == 0:
		line("asn", "none")
	default:
		line("asn", fmt.Sprintf("AS%d", *s.ASN))
	}
	if s.Country != "" {
		line("country", s.Country)
	}
}

func (r *Request) text(w io.Writer) {
	wrap(w, strings.TrimSpace(r.Phase+" "+r.About), 4)
	for _, f := range r.Facts {
		wrap(w, "  "+f, 4)
	}
	for _, f := range r.Findings {
		f.Text(w)
	}
	line := func(name, value string) { wrap(w, fmt.Sprintf("  %-9s%s", name, value), 11) }
	if len(r.Evidence) > 0 {
		line("evidence", strings.Join(r.Evidence, " "))
	}
	if len(r.Weak) > 0 {
		line("weak", strings.Join(r.Weak, " "))
	}
	if r.Score != 0 {
		line("score", fmt.Sprint(r.Score))
	}
	for _, rule := range r.Rules {
		wrap(w, "  "+rule.Rule+" "+rule.Outcome, 6)
		for _, c := range rule.Conditions {
			wrap(w, "    "+c, 6)
		}
	}
	if r.Phase != smtp.PhaseEnd.String() { // no answer is possible at the end of a session
		r.answer(w)
	}
}

func (r *Request) answer(w io.Writer) {
	line := "  = " + r.Decision
	if r.Reply != "" {
		line += ": " + r.Reply
	}
	if r.Delay != "" {
		line += ", delayed by " + r.Delay
	}
	if r.Earlier {
		line += " (by an earlier decision for the whole session)"
	}
	wrap(w, line, 4)
	if r.Would != "" {
		line = "  observe: would " + r.Would
		if r.WouldReply != "" {
			line += ": " + r.WouldReply
		}
		wrap(w, line, 4)
	}
}
