package detect

// This file holds the detectors for stolen accounts. What an authenticated client does is evidence
// against the account, never against the client's address.

import (
	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

var accountDetectors = []detector{
	{"account", on(smtp.EventAuth, smtp.EventMail, smtp.EventRcpt), account, authenticated},
}

// An account is considered stolen if its use exceeds one of these thresholds within an hour or a
// session. Legitimate users log in from only a few networks, but they may have several sender
// addresses in local domains.
const (
	accountNetworks   = 8
	accountSenders    = 8   // sender addresses in non-local domains
	accountMissing    = 10  // missing recipients in one session
	accountRecipients = 500 // within an hour
)

// account reports an account that is used like a stolen one. The evidence is reported again at each
// login to the account during the following day. If a log omits the user, nothing is reported.
func account(c *Case) {
	st, ev := c.State, c.Event
	f := Finding{Evidence: rules.AccountAbuse, By: "auth", Proof: c.User, Confidence: Medium}
	if !c.Authed || len(c.User) == 0 || st.Evidence.Has(f.Evidence) {
		return
	}
	logins := c.Memory.Logins
	switch {
	case ev.Kind == smtp.EventAuth:
		if ev.Result == smtp.ResultPass && logins.LoggedIn(c.Client, ev.Time) >= accountNetworks {
			f.Match = "networks"
		} else if logins.Abused(c.Client, ev.Time) {
			f.Match = "found within a day"
		}
	case ev.Kind == smtp.EventMail && ev.Result == smtp.ResultOK:
		domain, _ := Domain(ev.Addr)
		if local, _ := c.Site.LocalDomain(domain); !local && logins.Sent(c.Client, ev.Addr, ev.Time) >= accountSenders {
			f.Match = "senders"
		}
	case ev.Kind == smtp.EventRcpt && st.Unknown.N >= accountMissing:
		f.Match = "recipients that do not exist" // counted per session, because a user may send mail to an outdated list
		c.find(f)
		return
	case ev.Kind == smtp.EventRcpt && st.Rcpt == RcptAccepted && logins.Wrote(c.Client, ev.Time) > accountRecipients:
		f.Match = "recipients"
	}
	if f.Match != "" {
		logins.Abuse(c.Client, ev.Time)
		c.find(f)
	}
}
