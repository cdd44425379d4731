package detect

// This file holds the detectors for client behaviour. The detectors examine commands, pace, logins
// and the end of the session.

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
	{"pipelining", on(smtp.EventInput, smtp.EventDisconnect), pipelining, unauthenticated},
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

// foreign is the evidence that a client speaks a protocol other than SMTP.
const foreign = rules.TalksSSH | rules.TalksHTTP | rules.TalksTLS | rules.TalksBinary

// otherProtocol reports a line in a protocol other than SMTP. A masked line is not reported, because
// it may belong to a login: a milter does not learn that the server has rejected AUTH.
func otherProtocol(c *Case) {
	ev := c.Event
	if ev.Verb != smtp.VerbUnknown || ev.Cause == smtp.CauseFilter || string(ev.Text) == smtp.Masked {
		return
	}
	row := c.Lists.Line(ev.Text)
	if row != nil && row.Evidence == "scanner" {
		c.findRow(row, "command", ev.Text, "")
	}
	evidence := protocols[smtp.Sniff(ev.Text)]
	if evidence == rules.UnknownCommand && row != nil && !c.TriedMail { // after MAIL, the line may be message text
		if token := rules.TokenByName(row.Evidence); token != nil && token.Evidence&foreign != 0 {
			evidence = token.Evidence
		}
	}
	if evidence == rules.UnknownCommand && (c.State.Evidence|c.State.Weak)&foreign != 0 {
		return // ignore further lines in that protocol
	}
	confidence := High
	if c.Submission && (evidence | c.State.Weak).Has(rules.TalksTLS) && evidence&(rules.TalksTLS|rules.TalksBinary) != 0 {
		confidence = Low // a mail program may start TLS immediately, without STARTTLS
	}
	c.find(Finding{Evidence: evidence, By: "command", Proof: ev.Text, Confidence: confidence})
}

// rejectedCommand reports a command that the server rejected because it is out of
// sequence, malformed or not offered.
func rejectedCommand(c *Case) {
	ev := c.Event
	f := Finding{By: "command", Proof: ev.Text}
	switch ev.Verb {
	case smtp.VerbAuth:
		if ev.Cause != smtp.CauseUnsupported {
			return
		}
		f.Evidence, f.Confidence = rules.AuthUnsupported, High
		if c.Submission {
			f.Confidence = Low // a mail program may be set up without STARTTLS
		}
	case smtp.VerbNames:
		if c.State.Names.N < harvestNames || c.Counts.RcptOK > 0 || c.Standing >= rules.StandingKnown {
			return
		}
		f.Evidence, f.Match, f.Confidence = rules.Harvest, "names", High
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

// pipelining reports that a client has sent input before the server replied to its earlier command.
// If there was no earlier command, the client's first packet contains several commands or another
// protocol.
//
// smtpd then closes the connection. In a log, there is no reply code, because Postfix may only log a
// warning. The finding then waits for the end of the session: if the server has accepted mail or
// deferred a recipient, the client may be a program of a legitimate sender, and the confidence is low.
func pipelining(c *Case) {
	ev, st := c.Event, c.State
	if ev.Kind == smtp.EventInput {
		if ev.Cause != smtp.CausePipelining {
			return
		}
		st.early, st.first = append([]byte{}, ev.Reply...), c.Counts.Commands == 0
		if ev.Code == 0 {
			return
		}
	}
	if st.early == nil {
		return
	}
	f := Finding{Evidence: rules.Pipelining, By: "reply", Proof: st.early, Confidence: High}
	st.early = nil
	switch {
	case c.Submission: // a mail program may start TLS immediately, without STARTTLS
		f.Confidence = Low
	case c.Counts.Mails > 0 || ev.Kind == smtp.EventDisconnect && c.Counts.RcptTempfail > 0:
		f.Confidence = Low
	case st.first:
		f.Match = "first"
		st.Abused = true
	}
	c.find(f)
}

// Limits for detecting a client that speaks before the server's greeting.
//
// If a client does not wait for the greeting, its first command is already there when smtpd sends
// the greeting. smtpd then reads the command within earlyGap. The gaps between later replies and
// commands are much longer, because they include a round trip. For a well-behaved client, the first
// gap also includes a round trip.
//
// If the round-trip time is very short, the first gap proves nothing.
const (
	earlyGap   = 1_000  // microseconds
	earlyLater = 15_000 // later gaps must be at least this long
	earlySure  = 4      // gaps needed for medium confidence; a nearby host may be slow once or twice
)

// earlyTalker reports a client that speaks before the server's greeting.
func earlyTalker(c *Case) {
	p := &c.Pace
	if p.Last < 0 || p.Gaps < 2 || p.First > earlyGap || p.Least < earlyLater || c.Internal {
		return
	}
	confidence := Medium // a nearby client that waits for the greeting may have the same gaps
	if p.Gaps < earlySure {
		confidence = Low
	}
	f := Finding{Evidence: rules.EarlyTalker, By: "pace", Confidence: confidence}
	if c.State.lacks(&f) {
		f.Match = fmt.Sprintf("%.1fms,later>%.1fms", float64(p.First)/1000, float64(p.Least)/1000)
		c.find(f)
	}
}

// lacks reports whether st does not have the evidence of f yet.
func (st *State) lacks(f *Finding) bool {
	return !st.Evidence.Has(f.Evidence) && (f.Confidence != Low || !st.Weak.Has(f.Evidence))
}

// failedLogin reports a failed login.
func failedLogin(c *Case) {
	if c.Event.Result == smtp.ResultFail {
		c.find(Finding{Evidence: rules.AuthFailure, By: "auth", Proof: c.User, Confidence: High})
	}
}

// spray reports a source that fails to log in as many different users, or as a user whose account
// is under attack from many networks. The confidence is low if the source may be legitimate. For
// example, the attacked user, or another user in the same network, may have mistyped a password.
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

// ending reports a client that disconnected during a transaction, or that never tried to send mail.
// Clients that delivered mail or were rejected are ignored, because they had no reason to continue.
//
// If a server's log does not show how a session ended, it also omits rejected MAIL commands and
// failed logins. The client may have tried either, so the confidence is low. If only part of the
// session is known, a missing command proves nothing.
func ending(c *Case) {
	end, confidence := c.Event.Ending, High
	if end == smtp.EndingClosed {
		confidence = Low
	}
	switch {
	case c.Internal || c.TurnedAway || c.Counts.Mails > 0 || end == smtp.EndingPartial:
	case (c.Transaction.Open || c.Cut) && end != smtp.EndingQuit && end != smtp.EndingRejected && end != smtp.EndingClosed:
		c.find(Finding{Evidence: rules.Abandoned, By: "ending", Match: end.String(), Confidence: High})
	case !c.TriedMail:
		match := "greeting"
		if c.Counts.Commands == 0 && len(c.Helo) == 0 {
			match = "silent"
		}
		c.find(Finding{Evidence: rules.NoMail, By: "ending", Match: match, Confidence: confidence})
	}
}
