package detect

// Detectors of how a client behaves: commands, pace, logins, ending.

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

// otherProtocol reports a line that is not a command of SMTP, by the protocol
// that it belongs to.
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

// rejectedCommand reports a command out of order, with a malformed argument, or
// one that is not offered.
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

// pipelining reports input that came before smtpd's reply. Input before the
// first command is HTTP, TLS or SSH in one piece, or a whole script.
func pipelining(c *Case) {
	if c.Event.Cause != smtp.CausePipelining {
		return
	}
	f := Finding{Evidence: rules.Pipelining, By: "reply", Proof: c.Event.Reply, Confidence: High}
	switch {
	case c.Submission:
		f.Confidence = Low // a mail client that begins with TLS where it needs STARTTLS
	case c.Counts.Commands == 0:
		f.Match = "first"
		c.State.Abused = true
	}
	c.find(f)
}

// A client that speaks before the greeting of the server: smtpd finds its first
// command within earlyGap after the greeting, while the round trip to the client takes
// much longer, as later gaps show. The first gap of a polite client is at least
// the round-trip time, so never shorter than the later ones by that much. A very
// short round trip shows nothing.
const (
	earlyGap   = 1_000  // microseconds
	earlyLater = 15_000 // the shortest later gap that shows the round-trip time
	earlySure  = 4      // gaps that it takes: a host nearby may be slow once or twice
)

// earlyTalker reports a client that speaks before the greeting of the server.
func earlyTalker(c *Case) {
	p := &c.Pace
	if p.Last < 0 || p.Gaps < 2 || p.First > earlyGap || p.Least < earlyLater || c.Internal {
		return
	}
	confidence := Medium // a polite client nearby may look the same
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
// A user under attack from many networks, or whose neighbour attacks, mistypes
// like any other.
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

// ending reports a client that left in the middle of a transaction, or that
// never sent mail. A client that was rejected, or that delivered, had no reason
// to continue.
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
