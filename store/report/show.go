package report

import (
	"fmt"
	"io"
	"strings"
	"time"

	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/store"
)

// Show writes a session as a transcript, with times in zone.
func Show(w io.Writer, v *View, zone *time.Location) error {
	var b strings.Builder
	head := func(name, format string, args ...any) {
		wrap(&b, fmt.Sprintf("%-10s", name)+fmt.Sprintf(format, args...), 10)
	}
	head("Session", "%s", v.Session)
	switch {
	case v.Sources > 0:
		head("Aggregate", "%s of about %s; counts are totals", text.Plural(v.Sum, "session"), text.Plural(v.Sources, "host"))
	case v.Sum > 0:
		head("Aggregate", "%s of this host; counts are totals, other values are from the last session", text.Plural(v.Sum, "session"))
	}
	head("From", "%s", v.from())
	if v.Dst != "" {
		head("To", "%s", v.Dst)
	}
	if v.Front != "" {
		head("Reported", "%s", store.ReportedBy(v.Server, v.Front))
	}
	head("Start", "%s", v.Start.In(zone).Format("2006-01-02 15:04:05.000 -0700"))
	head("End", "after %s: %s", duration(Seconds(v.End.Sub(v.Start.Time))), endings(v.Ending, store.MailServer(v.Front)))
	c := &v.Counts
	head("Commands", "%d; errors: %d, unknown: %d", c.Commands, c.Failed, c.Unknown)
	head("Mail", "%s accepted; recipients: %d accepted, %d rejected, %d deferred", text.Plural(c.Mails, "message"), c.RcptOK, c.RcptPermfail, c.RcptTempfail)
	if c.AuthPass+c.AuthFail+c.AuthRefused > 0 {
		head("AUTH", "%d succeeded, %d failed, %d rejected", c.AuthPass, c.AuthFail, c.AuthRefused)
	}
	for i := range v.Finding {
		head("Finding", "%s", v.Finding[i].line())
	}
	b.WriteByte('\n')

	for i := range v.steps {
		s := &v.steps[i]
		for n, line := range v.lines(s) {
			stamp := ""
			if n == 0 && v.Sum == 0 {
				stamp = fmt.Sprintf("+%d.%03ds", time.Duration(s.at)/time.Second, time.Duration(s.at)%time.Second/time.Millisecond)
			}
			wrap(&b, fmt.Sprintf("%10s  %s", stamp, line), 15)
		}
	}
	if n := len(v.References); n > 0 {
		wrap(&b, fmt.Sprintf("%10s  -- rejected: %s", "", strings.Join(v.References[:min(n, maxReferences)], " ")), 15)
		if n > maxReferences {
			wrap(&b, fmt.Sprintf("%10s  and %d more; --json lists all", "", n-maxReferences), 15)
		}
	}
	if v.Omitted > 0 {
		wrap(&b, fmt.Sprintf("%10s  and %d more steps, which were only counted", "", v.Omitted), 15)
	}
	if v.Damage != "" {
		wrap(&b, fmt.Sprintf("%10s  the rest of the record is corrupt: %s", "", v.Damage), 15)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// maxReferences is the maximum number of session references that Show prints for an
// aggregate.
const maxReferences = 20

// lines renders a step as lines of the transcript.
func (v *View) lines(s *viewStep) []string {
	if v.Sum > 0 && int(s.kind) < len(tallies) && tallies[s.kind] != nil {
		return []string{tallies[s.kind](s)}
	}
	if int(s.kind) < len(kinds) && kinds[s.kind] != nil {
		return kinds[s.kind](s)
	}
	if s.kind == store.KindReference {
		return nil
	}
	return kinds[store.KindNone](s)
}

// tallies renders the kinds of tallies in an aggregate that look different from
// single steps.
var tallies = [...]func(*viewStep) string{
	store.KindHelo: func(s *viewStep) string {
		if s.text == "" {
			return "-- further greetings" + inSessions(s.times)
		}
		return "-- greeting " + quoted(s.text) + inSessions(s.times)
	},
	store.KindAuth: func(s *viewStep) string {
		user := "as " + quoted(s.text)
		if s.text == "" {
			user = "of further users"
		}
		return fmt.Sprintf("-- AUTH %s: %s %s%s", user, s.result, text.Plural(s.count, "time"), inSessions(s.times))
	},
	store.KindRcpt: func(s *viewStep) string {
		domain := "without a domain"
		switch {
		case s.text == "*":
			domain = "in further domains"
		case s.text != "":
			domain = "in " + strings.TrimPrefix(s.text, "@")
		}
		result := "rejected"
		if s.result == smtp.ResultOK.String() {
			result = "accepted"
		}
		return fmt.Sprintf("-- %s %s %s%s, at most %d in one", text.Plural(s.count, "recipient"), domain, result, inSessions(s.times), s.most)
	},
}

func (v *View) from() string {
	switch {
	case v.Local:
		return "this machine"
	case v.Erased:
		return ErasedAddress
	case v.Sources > 0:
		return "several addresses"
	case v.Src == "":
		return "an unknown address"
	}
	host := v.Src
	if v.SrcPort > 0 {
		host += fmt.Sprintf(" port %d", v.SrcPort)
	}
	if v.RDNS == "" && v.FCrDNS == smtp.FCrDNSUnknown.String() {
		return host + ", reverse DNS name unknown"
	}
	if v.RDNS == "" {
		return host + ", no reverse DNS name"
	}
	return fmt.Sprintf("%s, %s (fcrdns %s)", host, v.RDNS, v.FCrDNS)
}

// endings describes how a session ended.
func endings(ending, server string) string {
	switch ending {
	case "quit":
		return "the client sent QUIT"
	case "dropped":
		return "the client closed the connection"
	case "timeout":
		return server + " timed out"
	case "rejected":
		return server + " or a filter closed the connection"
	case "stopped":
		return server + " stopped"
	case "closed":
		return "the ending was not reported"
	case "partial":
		return "the log shows only some of the commands"
	}
	return ending
}

func duration(s Seconds) string {
	return fmt.Sprintf("%.3f s", time.Duration(s).Seconds())
}

// kinds renders each kind of step as lines. C: marks a line from the client, and S: a
// line from the server.
var kinds = [...]func(*viewStep) []string{
	store.KindNone:     func(s *viewStep) []string { return []string{"-- a step of an unknown kind"} },
	store.KindGreeting: func(s *viewStep) []string { return []string{"S: " + space("220", s.text)} },
	store.KindHelo:     func(s *viewStep) []string { return s.exchange(space(s.arg, s.text)) },
	store.KindTLS:      func(s *viewStep) []string { return []string{"-- TLS: " + s.text} },
	store.KindAuth: func(s *viewStep) []string {
		return []string{"-- AUTH as " + quoted(s.text) + ": " + s.result}
	},
	store.KindMail:     func(s *viewStep) []string { return s.exchange("MAIL FROM:<" + s.text + ">") },
	store.KindRcpt:     func(s *viewStep) []string { return s.exchange("RCPT TO:<" + s.text + ">") },
	store.KindData:     func(s *viewStep) []string { return s.exchange("DATA") },
	store.KindCommit:   func(s *viewStep) []string { return []string{fmt.Sprintf("-- message of %d bytes accepted", s.size)} },
	store.KindRollback: func(*viewStep) []string { return []string{"-- transaction without a message"} },
	store.KindCommand:  func(s *viewStep) []string { return s.exchange(s.text) },
	store.KindInput:    func(s *viewStep) []string { return s.exchange("(invalid input)") },
	store.KindTimeout:  func(*viewStep) []string { return []string{"-- timeout"} },
	store.KindQuit:     func(s *viewStep) []string { return s.exchange("QUIT") },
	store.KindFinding: func(s *viewStep) []string {
		f := Finding{s.at, s.text, s.org, s.by, s.match, s.confidence, s.arg, s.times}
		return []string{"!! " + f.line() + inSessions(s.times)}
	},
	store.KindVerdict: func(s *viewStep) []string {
		effect := "observed only"
		switch {
		case s.enforced:
			effect = "enforced"
		case s.exempt != "":
			effect = "withheld: " + s.exempt
		}
		ban := ""
		if s.banned {
			ban = ", manual ban"
			if s.session != "" {
				ban = ", ban of session " + s.session
			}
		}
		return []string{fmt.Sprintf("=> rule %s%s at %s: %s (%s)", s.text, ban, s.phase, s.decision, effect) + inSessions(s.times)}
	},
	store.KindBan: func(s *viewStep) []string {
		line := fmt.Sprintf("=> rule %s bans %s until %s", s.text, s.prefix, s.until)
		switch {
		case s.exempt != "":
			line = fmt.Sprintf("=> rule %s would ban %s, which is exempt: %s", s.text, s.prefix, s.exempt)
		case !s.enforced:
			line += " (observed only)"
		}
		return []string{line + inSessions(s.times)}
	},
	store.KindTag: func(s *viewStep) []string { return []string{"-- tagged " + s.text + " at " + s.phase} },
	store.KindListed: func(s *viewStep) []string {
		if s.result == smtp.ResultOK.String() {
			return []string{"-- not listed in " + s.list()}
		}
		return []string{"-- listed in " + s.list() + ": " + s.arg}
	},
	store.KindFilter: func(s *viewStep) []string {
		return []string{"=> " + space("filter at "+s.phase+":", space(s.decision, s.reply))}
	},
}

// list describes a DNS list.
func (s *viewStep) list() string { return space(s.text, "("+s.match+")") }

// inSessions describes the number of sessions with a step in an aggregate.
func inSessions(times uint32) string {
	if times == 0 {
		return ""
	}
	return ", in " + text.Plural(times, "session")
}

// exchange renders a command and its reply.
func (s *viewStep) exchange(command string) []string {
	lines := []string{"C: " + command}
	switch {
	case s.code != 0:
		lines = append(lines, "S: "+space(fmt.Sprint(s.code), s.reply))
	case s.reply != "":
		lines = append(lines, "S: "+s.reply)
	case s.result != "":
		lines = append(lines, "S: ("+s.result+")")
	}
	return lines
}

func (f *Finding) line() string {
	b := f.Evidence
	if f.Organisation != "" {
		b += " " + f.Organisation
	}
	if f.Proof != "" {
		b += " because of " + quoted(f.Proof)
	}
	var how []string
	if f.By != "" {
		how = append(how, "by "+f.By)
	}
	if f.Match != "" {
		how = append(how, "matches "+quoted(f.Match))
	}
	if f.Confidence != "" {
		how = append(how, "confidence "+f.Confidence)
	}
	if how != nil {
		b += " (" + strings.Join(how, ", ") + ")"
	}
	return b
}

// quoted encloses a client's printable text in quotes.
func quoted(s string) string { return `"` + s + `"` }

func space(a, b string) string {
	if b == "" {
		return a
	}
	return a + " " + b
}
