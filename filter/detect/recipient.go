package detect

// This file holds the detectors for bad recipients.

import (
	"bytes"
	"fmt"
	"slices"

	"scanwatch/internal/mailbox"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

var recipientDetectors = []detector{
	{"recipient", on(smtp.EventRcpt), recipient, anySession},
	{"probed recipient", on(smtp.EventRcpt, smtp.EventRequest), probedRecipient, unauthenticated},
	{"harvest", on(smtp.EventRcpt, smtp.EventRequest), harvest, anySession},
	{"recipient flood", on(smtp.EventRequest), recipientFlood, unauthenticated},
}

// RcptClass classifies a recipient by the server's reply to RCPT.
type RcptClass uint8

// The classes of recipients.
const (
	RcptNone      RcptClass = iota // a filter rejected the recipient, or the session is exempt
	RcptAccepted                   // accepted, with a plain address
	RcptRouted                     // accepted, with a source route
	RcptSyntax                     // malformed
	RcptUnclear                    // the recipient may exist: it was deferred, sent out of order, or accepted earlier
	RcptRoute                      // rejected, with a source route
	RcptRelay                      // rejected, and the domain is certainly not local
	RcptForeign                    // rejected, and the domain is probably not local, but may be a new local domain
	RcptUnknown                    // rejected, and the domain is local
	RcptUndecided                  // rejected, but no local domain is known; the recipient may be missing or foreign
)

// observed is the set of event kinds that observe handles.
const observed = kinds(1<<smtp.EventHelo | 1<<smtp.EventRequest | 1<<smtp.EventMail | 1<<smtp.EventData | 1<<smtp.EventCommit | 1<<smtp.EventRollback | 1<<smtp.EventCommand | 1<<smtp.EventRcpt)

// observe updates the state shared by the detectors.
func (st *State) observe(c *Case) {
	switch ev := c.Event; ev.Kind {
	case smtp.EventHelo, smtp.EventRequest:
		st.greeted(c)
	case smtp.EventMail:
		if ev.Result == smtp.ResultOK {
			st.tx, st.unnamed = mailboxes{}, 0
		}
	case smtp.EventData:
		for ; st.unnamed > 0 && ev.Result == smtp.ResultOK; st.unnamed-- {
			box := c.Memory.Recipients.Mailbox(fmt.Appendf(nil, "%x %d", c.ID, st.unnamed))
			st.Accepted.add(box)
			c.Memory.Recipients.Found(c.Client, box, ev.Time)
		}
	case smtp.EventCommit, smtp.EventRollback:
		st.tx, st.unnamed = mailboxes{}, 0
	case smtp.EventCommand:
		if ev.Verb == smtp.VerbNames && ev.Cause != smtp.CauseFilter && !c.Exempt() {
			st.Names.add(c.Memory.Recipients.Mailbox(ev.Text))
		}
		if ev.Verb == smtp.VerbAuth && ev.Cause == smtp.CauseUnsupported && !c.Exempt() && !c.Submission {
			st.Unsupported++
		}
	case smtp.EventRcpt:
		st.Missed = false
		if st.Rcpt = RcptNone; !c.Local && !c.Friend && c.Src.IsValid() {
			st.Rcpt = st.classify(c)
		}
	}
}

// classify returns the class of an EventRcpt and counts the recipient.
func (st *State) classify(c *Case) RcptClass {
	ev := c.Event
	domain, routed := Domain(ev.Addr)
	local, sure := c.Site.LocalDomain(domain)
	switch {
	case ev.Cause == smtp.CauseFilter:
		// Greylisting may defer the existing members of a mailing list, but not the missing ones. If a
		// rule of this filter rejected the recipient, it does not count: otherwise, a request for a
		// known mailbox after the harvest would prevent the ban.
		if !st.Turned && c.Memory.Recipients.Known(ev.Addr, ev.Time) {
			c.Memory.Recipients.Found(c.Client, c.existing(), ev.Time)
		}
		return RcptNone
	case ev.Result == smtp.ResultOK:
		box := c.existing()
		st.Accepted.add(box)
		if len(ev.Addr) == 0 {
			st.unnamed++
		}
		c.Memory.Recipients.Found(c.Client, box, ev.Time)
		if routed && !c.Authed {
			return RcptRouted
		}
		return RcptAccepted
	case ev.Cause == smtp.CauseSyntax:
		return RcptSyntax
	case ev.Cause == smtp.CauseRelay && !c.Authed:
		st.relay(c)
		if routed {
			return RcptRoute
		}
		return RcptRelay
	case ev.Result != smtp.ResultPermfail || ev.Cause == smtp.CauseOrder, c.Memory.Recipients.Lagging(c.Client, ev.Addr, ev.Time):
		return RcptUnclear
	case c.Authed:
		st.missing(c)
		return RcptUnknown
	case routed:
		if ev.Cause == smtp.CauseUser { // the server looked for a local mailbox, so this may be a harvest
			st.missing(c)
			st.Missed = !st.Repeated
		}
		st.relay(c)
		return RcptRoute
	case ev.Cause == smtp.CauseUser: // the server knows its domains better than this filter does
		st.missing(c)
		return RcptUnknown
	case len(domain) > 0 && !local && sure:
		st.relay(c)
		return RcptRelay
	case len(domain) > 0 && !local && c.Memory.Domains.Known():
		st.relay(c)
		return RcptForeign
	}
	st.missing(c)
	if local {
		return RcptUnknown
	}
	st.undecided = true
	return RcptUndecided
}

// relay counts a recipient whose domain is not local. Repeated requests for a recipient count once.
// Anyone can publish an MX record that points to this server, and other servers then keep retrying
// that domain's mail for days.
func (st *State) relay(c *Case) {
	if st.Repeated = c.Memory.Recipients.Tried(c.Client, c.Event.Addr, c.Event.Time); !st.Repeated {
		st.Relay++
		if !st.Missed { // already counted
			c.Memory.Recipients.Missed(c.Client, c.Event.Time)
		}
	}
}

// missing counts a recipient that does not exist. Recipients of bounces are counted separately,
// because a bounce may be a reply to a message with a forged sender.
//
// A recipient that is requested repeatedly within 30 days counts once. For example, a mailing list
// that ignores rejections keeps sending to mailboxes that no longer exist. A recipient that a rule
// has rejected counts in Held. Its retry counts only in Deferred, because a mail server retries only
// the recipients that were rejected, so that all recipients of the retry may be missing.
func (st *State) missing(c *Case) {
	if st.Repeated = c.Memory.Recipients.Asked(c.Client, c.Event.Addr, c.Event.Time); st.Repeated {
		return
	}
	box := c.mailbox()
	if !c.Authed && c.Memory.Recipients.WasHeld(c.Client, c.Event.Addr, c.Event.Time) {
		st.Deferred.add(box)
		return
	}
	c.Memory.Recipients.Missed(c.Client, c.Event.Time)
	st.tx.add(box)
	if c.Transaction.Automatic() {
		st.Bounced.add(box)
		return
	}
	st.Unknown.add(box)
	sender := c.Memory.Recipients.Mailbox(c.Transaction.Sender)
	st.senders = st.senders || st.sender != 0 && st.sender != sender
	st.sender = sender
}

// existing returns the number of an accepted mailbox. All addresses that are not plain have the same
// number, because one mailbox has any number of them, and many accepted mailboxes hide a harvest.
//
// If a log does not contain the addresses, they also have the same number. In a transaction with
// message text, each counts as another mailbox; see observe. Requesting the same known
// mailbox repeatedly, without a message, therefore does not hide a harvest.
func (c *Case) existing() uint64 {
	if !mailbox.Plain(c.Event.Addr) {
		return 0
	}
	return c.mailbox()
}

func (c *Case) mailbox() uint64 { return c.Memory.Recipients.Mailbox(c.Event.Addr) }

// Missing reports whether the mail server has rejected the recipient because it does not exist.
func (r RcptClass) Missing() bool { return r == RcptUnknown || r == RcptUndecided }

// Domain returns the domain of a recipient. routed reports whether the address is in
// source-route, percent or bang form. All three forms request relaying (RFC 5321
// sections 3.6.1 and 4.1.1.3, appendix C).
func Domain(addr []byte) (domain []byte, routed bool) {
	i := bytes.LastIndexByte(addr, '@')
	if i < 0 {
		return nil, bytes.IndexByte(addr, '!') > 0
	}
	local := addr[:i]
	routed = bytes.HasPrefix(addr, []byte{'@'}) || bytes.ContainsAny(local, "%!@")
	return addr[i+1:], routed
}

// mailboxes counts distinct mailboxes. If every request counted, repeated mail to an existing
// mailbox could hide a dictionary attack, and repeated mail to a missing mailbox would look like a
// dictionary attack.
type mailboxes struct {
	N    uint32
	seen []uint64
	next int
}

// maxSeen is the number of recent mailboxes that are stored. If an older mailbox is requested
// again, it counts twice.
const maxSeen = 256

func (m *mailboxes) add(box uint64) {
	switch {
	case slices.Contains(m.seen, box):
		return
	case len(m.seen) < maxSeen:
		m.seen = append(m.seen, box)
	default:
		m.seen[m.next] = box
		m.next = (m.next + 1) % maxSeen
	}
	m.N++
}

// recipient reports the rejection of a single recipient.
func recipient(c *Case) {
	f := Finding{By: "rcpt", Proof: c.Event.Addr, Mailbox: true, Confidence: High}
	switch c.State.Rcpt {
	case RcptSyntax:
		f.Evidence, f.Confidence = rules.SyntaxError, Low
	case RcptRoute:
		f.Evidence, f.Match = rules.RelayProbe, "route"
	case RcptRelay:
		f.Evidence, f.Match = rules.RelayProbe, "domain"
	case RcptForeign:
		f.Evidence, f.Match, f.Confidence = rules.RelayProbe, "domain", Medium
	case RcptUnknown:
		f.Evidence, f.Match, f.Confidence = rules.UnknownRecipient, "domain", c.confidence()
		if c.Transaction.Automatic() {
			f.Evidence = rules.Backscatter
		}
	case RcptUndecided:
		f.Evidence, f.Match, f.Confidence = rules.UnknownRecipient, "undecided", Low
		if bytes.EqualFold(c.Transaction.Sender, c.Event.Addr) {
			// A relay tester often sends a message to itself, and then checks whether the message
			// arrives.
			f.Evidence, f.Match, f.Confidence = rules.RelayProbe, "self", Medium
		}
	default:
		return
	}
	if f.Evidence == rules.RelayProbe && c.State.Repeated {
		f.Confidence = Low
	}
	c.find(f)
}

// confidence returns the confidence that a rejected recipient does not exist. If the server's reply
// is unknown, a filter may have rejected the recipient for another reason.
func (c *Case) confidence() string {
	if c.Event.Code == 0 {
		return Medium
	}
	return High
}

// Numbers of distinct missing recipients at which a session counts as a harvest.
const (
	harvestAll   = 5  // all recipients are missing, and the sender is the same
	harvestMixed = 10 // at least three quarters of the recipients are missing
	harvestNames = 10 // the server rejected VRFY or EXPN for all names
	harvestNull  = 3  // one transaction with the null sender; a real bounce has only one recipient
)

// harvest reports a directory harvest. For known clients, the thresholds are doubled, because these
// clients may have outdated mailing lists. A recipient that was rejected by a rule may exist, so
// these rejections prove nothing with more than low confidence. If the server itself has rejected the
// recipient before the rule, this applies only to sessions in which a mailbox exists, as in an
// outdated mailing list; the rule itself bans clients that have several such sessions.
func harvest(c *Case) {
	st := c.State
	if c.Event.Kind == smtp.EventRequest && c.Event.Phase != smtp.PhaseRcptTo || st.Evidence.Has(rules.Harvest) {
		return
	}
	factor := uint32(1)
	if c.Standing >= rules.StandingKnown {
		factor = 2
	}
	missing, all := st.Unknown.N, st.Unknown.N+st.Held.N
	certain := missing // without the recipients that a rule has rejected as well, unless no mailbox exists
	if st.Accepted.N > 0 {
		certain -= min(missing, st.Denied)
	}
	share := func(n uint32) bool { return n >= harvestMixed*factor && 4*n >= 3*(n+st.Accepted.N) }
	f := Finding{Evidence: rules.Harvest, By: "rcpt", Proof: c.Event.Addr, Mailbox: true, Confidence: High}
	switch {
	case st.undecided && missing >= harvestAll*factor && st.Accepted.N == 0:
		// No local domain is known, so the requests are either a harvest or relay
		// probes. Legitimate mail servers send neither.
		f.Match, f.Confidence = "undecided", Medium
	case missing >= harvestAll*factor && st.Accepted.N == 0 && !st.senders:
		f.Match = "all"
	case share(certain):
		f.Match = "share"
	case missing >= harvestAll && share(all):
		f.Match, f.Confidence = "share", Low
	case c.Transaction.Null() && st.tx.N >= harvestNull:
		f.Match = "null-sender"
	case c.Transaction.Automatic() && st.tx.N >= harvestAll*factor && st.Accepted.N == 0:
		f.Match = "all"
	default:
		return
	}
	c.find(f)
}

// floodOfRecipients is the number of recipients that a rule rejects before the session counts as a
// flood. The rule rejects them because too many recipients do not exist. The session must then end,
// because further replies show the client which mailboxes exist.
const floodOfRecipients = 10

// recipientFlood reports a client that continues after floodOfRecipients rejections.
func recipientFlood(c *Case) {
	if c.Event.Phase == smtp.PhaseRcptTo && c.State.Held.N+c.State.Denied >= floodOfRecipients {
		c.find(Finding{Evidence: rules.RecipientFlood, By: "rcpt", Proof: c.Event.Addr, Mailbox: true, Confidence: Medium})
	}
}

// probedRecipient reports a missing recipient that hosts in other networks have requested as well.
// The mailbox may have been created since then. A client with a proven name may therefore request
// such a recipient once, if it requests no other missing recipients.
func probedRecipient(c *Case) {
	ev, st := c.Event, c.State
	request := ev.Kind == smtp.EventRequest
	if request && ev.Phase != smtp.PhaseRcptTo || !request && !st.Rcpt.Missing() || (st.Evidence | st.Weak).Has(rules.ProbedRecipient) || !c.Memory.Recipients.Probed(c.Client, ev.Addr, ev.Time) {
		return
	}
	box := c.mailbox()
	others := st.Unknown.N
	if !request && others > 0 {
		others-- // this recipient is already counted
	}
	if st.free == 0 && others == 0 && c.Memory.Recipients.Excused(c.Client, c.Transaction.Sender, ev.Addr, ev.Time) {
		st.free = box
	}
	if st.free != box {
		c.find(Finding{Evidence: rules.ProbedRecipient, By: "memory", Proof: ev.Addr, Mailbox: true, Confidence: Medium})
	}
}
