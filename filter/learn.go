package filter

// This file updates the memory as events arrive.

import (
	"bytes"
	"slices"

	"scanwatch/filter/detect"
	"scanwatch/filter/memory"
	"scanwatch/internal/mailbox"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

// login records a login in memory. If a failed login is part of a password spray, login returns a
// description of the spray.
func (p *Pipeline) login(s *session, ev *smtp.Event) (spray detect.Spray) {
	switch t := &s.track; {
	case t.Local || !t.Src.IsValid():
	case ev.Result == smtp.ResultPass:
		p.memory.Logins.Succeeded(&p.client, ev.Time)
	case ev.Result == smtp.ResultFail && !t.Authed && len(ev.Name) == 0: // some logs omit the user name, so different users cannot be distinguished
		p.memory.Counters.Add(&p.client, rules.AuthFailure, ev.Time)
	case ev.Result == smtp.ResultFail && !t.Authed:
		spray.Match, spray.Sure = p.memory.Logins.Failed(&p.client, ev.Time)
	}
	return spray
}

// learn records a client's behaviour in memory.
func (p *Pipeline) learn(s *session, ev *smtp.Event) {
	switch {
	case s.track.Local || s.track.Friend || !s.track.Src.IsValid():
		return
	case s.track.Authed:
		p.learnAccount(s, ev)
		return
	}
	switch ev.Kind {
	case smtp.EventConnect:
		p.decider.Remember(p.subject(s))
	case smtp.EventCommand:
		switch {
		case ev.Cause == smtp.CauseFilter:
		case ev.Verb == smtp.VerbAuth && ev.Cause == smtp.CauseUnsupported && s.track.Submission:
			// A mail program without STARTTLS repeats its login until its user corrects the settings.
		case ev.Verb == smtp.VerbAuth && ev.Cause == smtp.CauseUnsupported:
			p.memory.Counters.Add(&p.client, rules.AuthUnsupported, ev.Time)
		case ev.Verb == smtp.VerbUnknown && string(ev.Text) != smtp.Masked:
			p.memory.Counters.Add(&p.client, rules.UnknownCommand, ev.Time)
		}
	case smtp.EventMail:
		if ev.Result == smtp.ResultOK {
			s.ordinary = ""
		}
	case smtp.EventRcpt:
		p.learnRcpt(s, ev)
	case smtp.EventCommit:
		if s.ordinary != "" {
			s.delivery.Messages++
			if len(s.delivery.Senders) < maxSenders && !slices.Contains(s.delivery.Senders, s.ordinary) {
				s.delivery.Senders = append(s.delivery.Senders, s.ordinary)
			}
			s.ordinary = ""
		}
	case smtp.EventRollback:
		s.ordinary = ""
	}
}

// maxSenders is the maximum number of sender domains in a session that count towards the client's
// standing.
const maxSenders = 16

// learnRcpt records a recipient in memory.
func (p *Pipeline) learnRcpt(s *session, ev *smtp.Event) {
	sender := s.track.Transaction.Sender
	switch s.detect.Rcpt {
	case detect.RcptAccepted:
		domain, _ := detect.Domain(ev.Addr)
		if len(ev.Addr) == 0 || !mailbox.Plain(ev.Addr) { // some logs show only that a recipient was accepted, but not the address
			return
		}
		if s.decide.Passed() || s.track.Internal && p.memory.Domains.Known() && !p.memory.Domains.Local(domain) {
			return
		}
		// Internal clients may send mail to any domain. A recipient from an internal client does
		// not show that the recipient's domain is local, even if the recipient is accepted.
		if !s.track.Internal {
			p.memory.Domains.Learn(domain, ev.Time)
		}
		p.memory.Recipients.Accepted(ev.Addr, ev.Time)
		if local := ev.Addr[:len(ev.Addr)-len(domain)]; s.ordinary == "" && len(sender) > 0 && len(local) > 1 && !mailbox.IsRole(local[:len(local)-1]) {
			s.ordinary = s.senderDomain(sender)
		}
	case detect.RcptRoute, detect.RcptRelay, detect.RcptForeign:
		if !s.detect.Repeated {
			p.memory.Counters.Add(&p.client, rules.RelayProbe, ev.Time)
		}
		if s.detect.Missed {
			p.memory.Counters.Add(&p.client, missing(s), ev.Time)
		}
	case detect.RcptUnknown, detect.RcptUndecided:
		if !s.detect.Repeated {
			p.memory.Counters.Add(&p.client, missing(s), ev.Time)
			if s.decide.Held && s.detect.Deny() {
				p.memory.Counters.Add(&p.client, rules.RecipientFlood, ev.Time)
			}
		}
		// A missing recipient may come from an old mailing list, or from backscatter, which is sent
		// to forged senders. Such a recipient must not be recorded as probed. Old mailing lists are
		// likely if the client is known, or if other recipients of the session exist.
		if s.track.Counts.RcptOK == 0 && len(sender) > 0 && !s.track.Transaction.Automatic() && p.decider.Standing(p.subject(s), ev.Time) == rules.StandingNone {
			p.memory.Recipients.Refused(&p.client, ev.Addr, ev.Time)
		}
	}
}

// missing returns the evidence for a missing recipient.
func missing(s *session) rules.Evidence {
	if s.track.Transaction.Automatic() {
		return rules.Backscatter
	}
	return rules.UnknownRecipient
}

// learnAccount records what an authenticated session does with its account. learnAccount also
// records the domains to which the user sends mail.
func (p *Pipeline) learnAccount(s *session, ev *smtp.Event) {
	if ev.Kind != smtp.EventRcpt {
		return
	}
	switch domain, _ := detect.Domain(ev.Addr); {
	case s.detect.Rcpt == detect.RcptUnknown:
		if !s.detect.Repeated {
			p.memory.Counters.Add(&p.client, rules.UnknownRecipient, ev.Time)
		}
	case s.detect.Rcpt == detect.RcptAccepted && len(s.track.Transaction.Sender) > 0 && !p.memory.Domains.Local(domain):
		p.memory.Peers.WroteTo(memory.RegisteredDomain(domain), ev.Time)
	}
}

// senderDomain returns a sender's registered domain, or the whole domain if it has no
// registered domain. The result is cached, because most transactions in a session have
// the same sender domain.
func (s *session) senderDomain(sender []byte) string {
	domain, _ := detect.Domain(sender)
	if s.registered != "" && bytes.Equal(s.sender, domain) {
		return s.registered
	}
	s.sender = append(s.sender[:0], domain...)
	if s.registered = memory.RegisteredDomain(domain); s.registered == "" {
		s.registered = string(domain)
	}
	return s.registered
}

// judge records an ended session as an offence, or records its legitimate mail. If most recipients
// of the session are missing, its mail does not count, because a harvester could otherwise become
// known by requesting a mailbox that exists.
func (p *Pipeline) judge(s *session, at int64) {
	evidence, _ := s.detect.Current()
	switch {
	case s.detect.Abused || s.decide.Offence:
		p.memory.Peers.Misbehaved(&p.client, at)
	case !s.decide.Junked && !s.detect.MostlyMissing() && evidence&(rules.HeloOwnName|rules.HeloOwnAddress) == 0:
		p.memory.Peers.Delivered(&p.client, s.delivery, at)
	}
}
