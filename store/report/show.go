package report

import (
	"fmt"
	"io"
	"strings"
	"time"

	"scanwatch/store"
)

// Show writes one session as a story, with times in zone.
func Show(w io.Writer, v *View, zone *time.Location) error {
	var b strings.Builder
	head := func(name, format string, args ...any) {
		wrap(&b, fmt.Sprintf("%-10s", name)+fmt.Sprintf(format, args...), 10)
	}
	head("Session", "%s", v.Session)
	if v.Sum > 0 {
		head("Sum", "of %s of this address, which came too often to be recorded one by one; what follows is of all of them, and what changed of the last", plural(int(v.Sum), "session", "sessions"))
	}
	head("From", "%s", v.from())
	if v.Dst != "" {
		head("To", "%s", v.Dst)
	}
	head("Start", "%s", v.Start.In(zone).Format("2006-01-02 15:04:05.000 -0700"))
	head("End", "after %s: %s", duration(Seconds(v.End.Sub(v.Start.Time))), endings(v.Ending))
	c := &v.Counts
	head("Commands", "%d, of these %d failed and %d unknown", c.Commands, c.Failed, c.Unknown)
	head("Mail", "%s accepted; recipients: %d accepted, %d refused, %d put off", plural(int(c.Mails), "message", "messages"), c.RcptOK, c.RcptPermfail, c.RcptTempfail)
	if c.AuthPass+c.AuthFail+c.AuthRefused > 0 {
		head("AUTH", "%d succeeded, %d failed, %d not taken up", c.AuthPass, c.AuthFail, c.AuthRefused)
	}
	for i := range v.Finding {
		head("Finding", "%s", v.Finding[i].line())
	}
	b.WriteByte('\n')

	for i := range v.steps {
		s := &v.steps[i]
		k := kinds[store.KindNone]
		if int(s.kind) < len(kinds) {
			k = kinds[s.kind]
		}
		for n, line := range k(s) {
			stamp := ""
			if n == 0 {
				stamp = fmt.Sprintf("+%d.%03ds", time.Duration(s.at)/time.Second, time.Duration(s.at)%time.Second/time.Millisecond)
			}
			wrap(&b, fmt.Sprintf("%10s  %s", stamp, line), 15)
		}
	}
	if v.Omitted > 0 {
		wrap(&b, fmt.Sprintf("%10s  and %d more steps, which were counted but not kept", "", v.Omitted), 15)
	}
	if v.Damage != "" {
		wrap(&b, fmt.Sprintf("%10s  the rest of the record is damaged: %s", "", v.Damage), 15)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (v *View) from() string {
	if v.Local {
		return "this machine"
	}
	switch {
	case v.Src == "":
		return "an unknown address"
	case v.RDNS == "":
		return fmt.Sprintf("%s port %d, without a name", v.Src, v.SrcPort)
	}
	return fmt.Sprintf("%s port %d, %s (fcrdns %s)", v.Src, v.SrcPort, v.RDNS, v.FCrDNS)
}

func endings(ending string) string {
	switch ending {
	case "quit":
		return "the client said QUIT"
	case "dropped":
		return "the client closed the connection"
	case "timeout":
		return "smtpd gave up waiting"
	case "rejected":
		return "smtpd or a filter closed the connection"
	case "stopped":
		return "smtpd stopped"
	case "closed":
		return "smtpd was not asked to tell how"
	}
	return ending
}

func duration(s Seconds) string {
	return fmt.Sprintf("%.3f s", time.Duration(s).Seconds())
}

// kinds tells each step in lines. C: is what the client said, S: the server.
var kinds = [...]func(*stepOfAll) []string{
	store.KindNone:     func(s *stepOfAll) []string { return []string{"-- a step of a kind that this version does not know"} },
	store.KindGreeting: func(s *stepOfAll) []string { return []string{"S: " + space("220", s.text)} },
	store.KindHelo:     func(s *stepOfAll) []string { return s.said(space(s.arg, s.text)) },
	store.KindTLS:      func(s *stepOfAll) []string { return []string{"-- encrypted from here on: " + s.text} },
	store.KindAuth: func(s *stepOfAll) []string {
		return []string{"-- AUTH as " + quoted(s.text) + ": " + s.result}
	},
	store.KindMail:     func(s *stepOfAll) []string { return s.said("MAIL FROM:<" + s.text + ">") },
	store.KindRcpt:     func(s *stepOfAll) []string { return s.said("RCPT TO:<" + s.text + ">") },
	store.KindData:     func(s *stepOfAll) []string { return s.said("DATA") },
	store.KindCommit:   func(s *stepOfAll) []string { return []string{fmt.Sprintf("-- message of %d bytes accepted", s.size)} },
	store.KindRollback: func(*stepOfAll) []string { return []string{"-- transaction given up"} },
	store.KindCommand:  func(s *stepOfAll) []string { return s.said(s.text) },
	store.KindInput:    func(s *stepOfAll) []string { return s.said("(input that is no command)") },
	store.KindTimeout:  func(*stepOfAll) []string { return []string{"-- nothing more came; smtpd gave up waiting"} },
	store.KindQuit:     func(s *stepOfAll) []string { return s.said("QUIT") },
	store.KindFinding: func(s *stepOfAll) []string {
		f := Finding{s.at, s.text, s.org, s.by, s.match, s.confidence, s.arg, s.times}
		return []string{"!! " + f.line() + inSessions(s.times)}
	},
	store.KindVerdict: func(s *stepOfAll) []string {
		done := "observed only"
		if s.result == store.ResultOK.String() {
			done = "carried out"
		}
		why := ""
		if s.by == "ban" {
			why = space(", which banned it in session", s.match)
		}
		return []string{fmt.Sprintf("=> rule %s%s at %s: %s (%s)", s.text, why, s.arg, s.reply, done) + inSessions(s.times)}
	},
	store.KindBan: func(s *stepOfAll) []string {
		switch {
		case s.match != "":
			return []string{fmt.Sprintf("=> rule %s would ban %s, which is spared: %s", s.text, s.arg, s.match)}
		case s.result != store.ResultOK.String():
			return []string{fmt.Sprintf("=> rule %s bans %s until %s (observed only)", s.text, s.arg, s.reply)}
		}
		return []string{fmt.Sprintf("=> rule %s bans %s until %s", s.text, s.arg, s.reply)}
	},
	store.KindTag: func(s *stepOfAll) []string { return []string{"-- tagged " + s.text + " at " + s.arg} },
	store.KindFilter: func(s *stepOfAll) []string {
		return []string{"=> " + space("filter at "+s.arg+":", space(s.text, s.reply))}
	},
}

// inSessions tells, in a sum, of how many sessions a step speaks.
func inSessions(times uint32) string {
	if times == 0 {
		return ""
	}
	return ", in " + plural(int(times), "session", "sessions")
}

// said tells a command and what the server answered.
func (s *stepOfAll) said(command string) []string {
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

// quoted marks where a client's text begins and ends. It is printable already.
func quoted(s string) string { return `"` + s + `"` }

func space(a, b string) string {
	if b == "" {
		return a
	}
	return a + " " + b
}
