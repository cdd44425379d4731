package detect

// This file contains the detectors of stolen accounts. The behaviour of an
// authenticated session is evidence on the account, and never on the address.

import (
	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

var accountDetectors = []detector{
	{"account", on(smtp.EventAuth, smtp.EventMail, smtp.EventRcpt), account, authenticated},
}

// Thresholds for a stolen account within an hour, or in one session. A legitimate user
// moves between a few networks, and has several sender addresses in local domains.
const (
	accountNetworks   = 8
	accountSenders    = 8   // sender addresses in domains that are not local
	accountMissing    = 10  // recipients that do not exist, in one session
	accountRecipients = 500 // within an hour
)

// account reports an account whose use indicates theft. Each later login to the account
// within a day has the same evidence.
func account(c *Case) {
	st, ev := c.State, c.Event
	f := Finding{Evidence: rules.AccountAbuse, By: "auth", Proof: c.User, Confidence: Medium}
	if !c.Authed || st.Evidence.Has(f.Evidence) {
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
		f.Match = "recipients that do not exist" // counted in this session only, because the user may send to an old list
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
