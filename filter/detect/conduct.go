package detect

// Detectors of the behaviour of a client: commands, pace, logins, ending.

import (
	"fmt"

	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

var conductDetectors = []detector{
	{"failed login", on(smtp.EventAuth), failedLogin, unauthenticated},
	{"password spray", on(smtp.EventAuth), spray, unauthenticated},
	{"early talker", on(smtp.EventLine), earlyTalker, unauthenticated},
	{"rejected command", on(smtp.EventCommand), rejectedCommand, unauthenticated},
	{"other protocol", on(smtp.EventCommand), otherProtocol, unauthenticated},
	{"pipelining", on(smtp.EventInput), pipelining, unauthenticated},
	{"ending", on(smtp.EventDisconnect), ending, unauthenticated},
}

// protocols maps protocols other than SMTP to their evidence.
var protocols = [...]rules.Evidence{
	smtp.ProtocolNone:   rules.UnknownCommand,
	smtp.ProtocolSSH:    rules.TalksSSH,
	smtp.ProtocolHTTP:   rules.TalksHTTP,
	smtp.ProtocolTLS:    rules.TalksTLS,
	smtp.ProtocolBinary: rules.TalksBinary,
}

// foreign is evidence of a protocol other than SMTP.
const foreign = rules.TalksSSH | rules.TalksHTTP | rules.TalksTLS | rules.TalksBinary

// otherProtocol reports a line that is not an SMTP command, by its protocol.
func otherProtocol(c *Case) {
	ev := c.Event
	if ev.Verb != smtp.VerbUnknown || ev.Cause == smtp.CauseFilter || string(ev.Text) == smtp.Masked {
		return
	}
	if row := c.Lists.Line(ev.Text); row != nil && row.Evidence == "scanner" {
		c.findRow(row, "command", ev.Text, "")
	}
	evidence := protocols[smtp.Sniff(ev.Text)]
	if evidence == rules.UnknownCommand && (c.State.Evidence|c.State.Weak)&foreign != 0 {
		return // further lines of that protocol
	}
	c.find(Finding{Evidence: evidence, By: "command", Proof: ev.Text, Confidence: High})
}

// rejectedCommand reports a command that is out of order, malformed or not offered.
func rejectedCommand(c *Case) {
	ev := c.Event
	f := Finding{By: "command", Proof: ev.Text}
	switch ev.Verb {
	case smtp.VerbAuth:
		if ev.Cause != smtp.CauseUnsupported {
			return
		}
		f.Evidence, f.Confidence = rules.AuthUnsupported, High
	case smtp.VerbMail, smtp.VerbRcpt:
		switch {
		case ev.Cause == smtp.CauseOrder && !c.Greeted:
			f.Evidence, f.Confidence = rules.HeloMissing, Medium
		case ev.Cause == smtp.CauseSyntax:
			f.Evidence, f.Confidence = rules.SyntaxError, Low
		default:
			return
		}
	default:
		return
	}
	c.find(f)
}

// pipelining reports input that arrived before smtpd's reply. Such input before the
// first command is HTTP, TLS or SSH in one packet, or a whole script.
func pipelining(c *Case) {
	if c.Event.Cause != smtp.CausePipelining {
		return
	}
	f := Finding{Evidence: rules.Pipelining, By: "reply", Proof: c.Event.Reply, Confidence: High}
	switch {
	case c.Submission:
		f.Confidence = Low // a mail client that starts TLS instead of sending STARTTLS
	case c.Counts.Commands == 0:
		f.Match = "first"
		c.State.Abused = true
	}
	c.find(f)
}

// Limits for a client that speaks before the greeting of the server. smtpd finds its
// first command within earlyGap of the greeting, although later gaps show that the
// round-trip time is much longer. The first gap of a well-behaved client is at least
// the round-trip time. A very short round trip proves nothing.
const (
	earlyGap   = 1_000  // microseconds
	earlyLater = 15_000 // the shortest later gap that shows the round-trip time
	earlySure  = 4      // number of gaps required, because a host nearby may be slow once or twice
)

// earlyTalker reports a client that speaks before the greeting of the server.
func earlyTalker(c *Case) {
	p := &c.Pace
	if p.Last < 0 || p.Gaps < 2 || p.First > earlyGap || p.Least < earlyLater || c.Internal {
		return
	}
	confidence := Medium // a well-behaved client nearby may look the same
	if p.Gaps < earlySure {
		confidence = Low
	}
	f := Finding{Evidence: rules.EarlyTalker, By: "pace", Confidence: confidence}
	if c.State.lacks(&f) {
		f.Match = fmt.Sprintf("%.1fms,later>%.1fms", float64(p.First)/1000, float64(p.Least)/1000)
		c.find(f)
	}
}

// lacks reports whether f would be new to st.
func (st *State) lacks(f *Finding) bool {
	return !st.Evidence.Has(f.Evidence) && (f.Confidence != Low || !st.Weak.Has(f.Evidence))
}

// failedLogin reports a failed login.
func failedLogin(c *Case) {
	if c.Event.Result == smtp.ResultFail {
		c.find(Finding{Evidence: rules.AuthFailure, By: "auth", Proof: c.User, Confidence: High})
	}
}

// spray reports a source that tries many users, or one user from many networks.
// Confidence is low if the source itself is not proven to attack, because an attacked
// user, or a neighbour of an attacker, may only mistype a password.
func spray(c *Case) {
	if c.Event.Result != smtp.ResultFail || c.Spray.Match == "" {
		return
	}
	confidence := Low
	if c.Spray.Sure {
		confidence = High
	}
	c.find(Finding{Evidence: rules.AuthSpray, By: "memory", Proof: c.User, Match: c.Spray.Match, Confidence: confidence})
}

// ending reports a client that disconnected within a transaction, or that never sent
// mail. A client that was rejected, or that delivered mail, had no reason to continue.
func ending(c *Case) {
	end := c.Event.Ending
	switch {
	case c.Internal || c.TurnedAway || c.Counts.Mails > 0:
	case (c.Transaction.Open || c.Cut) && end != smtp.EndingQuit && end != smtp.EndingRejected:
		c.find(Finding{Evidence: rules.Abandoned, By: "ending", Match: end.String(), Confidence: High})
	case !c.TriedMail:
		match := "greeting"
		if c.Counts.Commands == 0 && len(c.Helo) == 0 {
			match = "silent"
		}
		c.find(Finding{Evidence: rules.NoMail, By: "ending", Match: match, Confidence: High})
	}
}
