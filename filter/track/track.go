// Package track maintains the facts about an SMTP session, its transaction and its commands. The
// package does not draw conclusions.
package track

import (
	"bytes"
	"net/netip"
	"slices"

	"scanwatch/internal/smtp"
)

// A Session is an SMTP connection. A Session must not be used concurrently. The zero
// Session is ready to use.
type Session struct {
	ID      uint64
	Src     netip.AddrPort // invalid for a local session
	Dst     netip.AddrPort // listener's address, which may be a wildcard
	RDNS    []byte
	RDNSCut bool
	FCrDNS  smtp.FCrDNS
	Local   bool // uses the server's local socket: mail from sendmail(8), or a bounce of the server

	// The pipeline sets the following facts from the operator's tables and databases.
	Internal bool // the client is this host or in a private network
	Gateway  bool // many hosts share the address
	Friend   bool // the operator exempts the address from all evidence and rules
	// Submission reports whether the session uses a listener for users' mail programs, which may
	// greet with any name.
	Submission bool
	ASNKnown   bool   // if set and ASN is 0, no AS announces Src
	ASN        uint32 // number of the AS that announces Src
	Country    string // two capital letters; empty if unknown

	Listings    []smtp.Listing // answers of DNS lists about Src, at most maxListings
	Helo        []byte         // latest greeting
	PrevHelo    []byte         // previous greeting; empty if it was never changed
	NewHelo     bool           // the latest event changed Helo
	Greeted     bool           // the client has greeted, tried to greet, or was rejected before it could greet
	TLS         bool
	User        []byte   // user name in the latest login attempt, as recorded
	Login       []byte   // user who is logged in
	Failed      [][]byte // distinct user names in failed logins, at most maxFailed
	Authed      bool
	TriedMail   bool // the client has sent MAIL
	TurnedAway  bool // a filter rejected the client or one of its commands
	Counts      Counts
	Start       int64 // microseconds since 1970
	Transaction Transaction
	// Cut reports whether the client disconnected during a transaction. smtpd reports that it
	// rolled back the transaction before it reports the disconnect.
	Cut  bool
	Pace Pace

	verb smtp.Verb // verb of the latest line
}

// Counts holds a session's counters.
type Counts struct {
	Commands     uint32 // lines from the client, not including message text
	Unknown      uint32 // commands that the server did not recognise
	Failed       uint32 // commands answered with 4xx or 5xx, including unknown commands
	Mails        uint32 // messages accepted
	RcptOK       uint32 // recipients accepted
	RcptPermfail uint32 // recipients rejected permanently
	RcptTempfail uint32 // recipients rejected temporarily
	AuthPass     uint32
	AuthFail     uint32
	AuthRefused  uint32 // AUTH commands that the server rejected
}

// A Transaction is a mail transaction, from MAIL to the end of the message or RSET.
type Transaction struct {
	Open   bool
	MsgID  uint32
	Sender []byte // empty for the null sender
}

// A Pace holds the times between the server's replies and the client's next lines, in microseconds.
type Pace struct {
	Replied int64 // time of the last reply; 0 before the server's greeting
	Last    int64 // latest gap; -1 for none
	First   int64 // gap between the server's greeting and the first line
	Least   int64 // shortest of the later gaps
	Gaps    uint8 // number of gaps, at most MaxGaps
}

// MaxGaps is the number of gaps that a Pace measures.
const MaxGaps = 8

// Apply updates s after an event.
func (s *Session) Apply(ev *smtp.Event) {
	s.NewHelo = false
	if apply := appliers[ev.Kind]; apply != nil {
		apply(s, ev)
	}
}

// appliers maps each kind of event to the function that updates the session.
var appliers = [smtp.NumKinds]func(*Session, *smtp.Event){
	smtp.EventConnect:  (*Session).connect,
	smtp.EventGreeting: (*Session).greeting,
	smtp.EventLine:     (*Session).line,
	smtp.EventReply:    (*Session).reply,
	smtp.EventHelo:     (*Session).helo,
	smtp.EventTLS:      func(s *Session, _ *smtp.Event) { s.TLS = true },
	smtp.EventAuth:     (*Session).auth,
	smtp.EventMail:     (*Session).mail,
	smtp.EventRcpt:     (*Session).rcpt,
	smtp.EventData:     func(s *Session, ev *smtp.Event) { s.failed(ev) },
	smtp.EventCommit:   (*Session).commit,
	smtp.EventRollback: (*Session).rollback,
	smtp.EventCommand:  (*Session).command,
	smtp.EventInput:    func(s *Session, _ *smtp.Event) { s.Counts.Failed++ },
	smtp.EventFilter:   (*Session).filter,
	smtp.EventRequest:  (*Session).request,
	smtp.EventListed:   (*Session).listed,
}

// Maximum lengths of text in bytes.
const (
	maxName = 255 // RFC 5321 section 4.5.3.1.2
	maxPath = 256 // RFC 5321 section 4.5.3.1.3
)

// set replaces dst with a copy of b, truncated to the given length.
func set(dst, b []byte, most int) []byte { return append(dst[:0], b[:min(len(b), most)]...) }

func (s *Session) connect(ev *smtp.Event) {
	s.ID, s.Start = ev.Session, ev.Time
	s.Src, s.Dst, s.Local = ev.Src, ev.Dst, ev.Local
	s.RDNS, s.RDNSCut, s.FCrDNS = set(s.RDNS, ev.RDNS, maxName), ev.RDNSCut, ev.FCrDNS
}

func (s *Session) greeting(ev *smtp.Event) {
	if ev.Code == 220 {
		s.Pace.Replied = ev.Time
	} else {
		s.Greeted = true
	}
}

func (s *Session) line(ev *smtp.Event) {
	s.Pace.line(ev.Time)
	s.verb, s.Cut = ev.Verb, false
	switch ev.Verb {
	case smtp.VerbHelo, smtp.VerbEhlo:
		s.Greeted = true
	case smtp.VerbMail:
		s.TriedMail = true
	case smtp.VerbDot, smtp.VerbExchange:
		return // the line is not a command
	}
	s.Counts.Commands++
}

// line measures the gap before a line from the client at time at.
func (p *Pace) line(at int64) {
	p.Last = -1
	if p.Replied == 0 || p.Gaps >= MaxGaps {
		return
	}
	p.Last = max(at-p.Replied, 0)
	p.Gaps++
	switch p.Gaps {
	case 1:
		p.First = p.Last
	case 2:
		p.Least = p.Last
	default:
		p.Least = min(p.Least, p.Last)
	}
}

func (s *Session) reply(ev *smtp.Event) {
	if s.Pace.Replied != 0 {
		s.Pace.Replied = ev.Time
	}
	if ev.Code >= 400 {
		s.Counts.Failed++
	}
	if ev.Cause == smtp.CauseUnknown {
		s.Counts.Unknown++
	}
}

func (s *Session) helo(ev *smtp.Event) {
	if ev.Result == smtp.ResultOK {
		s.greet(ev.Name, !ev.Rewritten)
	}
}

// greet applies a greeting. If the client repeats its greeting, for example after STARTTLS, greet
// has no effect.
func (s *Session) greet(name []byte, own bool) {
	s.NewHelo = len(s.Helo) == 0 || !bytes.Equal(s.Helo, name)
	if own && len(s.Helo) > 0 && !bytes.EqualFold(s.Helo, name) {
		s.PrevHelo = set(s.PrevHelo, s.Helo, maxName)
	} else {
		s.PrevHelo = s.PrevHelo[:0]
	}
	s.Helo = set(s.Helo, name, maxName)
}

func (s *Session) auth(ev *smtp.Event) {
	s.User = append(s.User[:0], ev.Name...)
	if ev.Result == smtp.ResultPass {
		s.Authed = true
		s.Counts.AuthPass++
	} else {
		s.Counts.AuthFail++
		if len(s.Failed) < maxFailed && !slices.ContainsFunc(s.Failed, func(u []byte) bool { return bytes.EqualFold(u, ev.Name) }) {
			s.Failed = append(s.Failed, bytes.Clone(ev.Name))
		}
	}
}

// maxFailed is the maximum number of user names in Session.Failed.
const maxFailed = 8

// failed counts a failed command without a reply code. Commands with a reply code are counted when
// their EventReply arrives.
func (s *Session) failed(ev *smtp.Event) {
	if ev.Result != smtp.ResultOK && ev.Code == 0 {
		s.Counts.Failed++
	}
}

func (s *Session) mail(ev *smtp.Event) {
	s.failed(ev)
	s.TriedMail = true
	if ev.Result == smtp.ResultOK {
		s.Transaction.reset()
		s.Transaction.Open, s.Transaction.MsgID = true, ev.MsgID
		s.Transaction.Sender = set(s.Transaction.Sender, ev.Addr, maxPath)
	}
}

func (s *Session) rcpt(ev *smtp.Event) {
	switch ev.Result {
	case smtp.ResultNone: // the session ended before the reply
		return
	case smtp.ResultOK:
		s.Counts.RcptOK++
	case smtp.ResultTempfail:
		s.Counts.RcptTempfail++
	default:
		s.Counts.RcptPermfail++
	}
	s.failed(ev)
}

func (s *Session) commit(*smtp.Event) {
	s.Counts.Mails++
	s.Transaction.reset()
}

func (s *Session) rollback(*smtp.Event) {
	switch s.verb {
	case smtp.VerbMail, smtp.VerbRcpt, smtp.VerbData:
		s.Cut = s.Transaction.Open
	}
	s.Transaction.reset()
}

func (s *Session) command(ev *smtp.Event) {
	if (ev.Verb == smtp.VerbAuth || ev.Verb == smtp.VerbExchange) && ev.Cause != smtp.CauseFilter {
		s.Counts.AuthRefused++
	}
}

func (s *Session) filter(ev *smtp.Event) {
	s.TurnedAway = s.TurnedAway || ev.Cause == smtp.CauseFilter
}

func (s *Session) request(ev *smtp.Event) {
	switch ev.Phase {
	case smtp.PhaseHelo:
		s.greet(ev.Name, true) // smtpd does not report a greeting that a filter has rejected
	case smtp.PhaseMailFrom:
		s.Transaction.Sender = set(s.Transaction.Sender, ev.Addr, maxPath)
	}
}

// maxListings is the maximum number of answers of DNS lists. No policy has more lists, but a
// corrupt record may contain more answers.
const maxListings = 8

func (s *Session) listed(ev *smtp.Event) {
	if len(s.Listings) >= maxListings || s.Asked(string(ev.Name)) {
		return
	}
	s.Listings = append(s.Listings, smtp.Listing{Name: string(ev.Name), Listed: ev.Result != smtp.ResultOK, Codes: string(ev.Text)})
}

// Asked reports whether the DNS list has answered.
func (s *Session) Asked(list string) bool {
	return slices.ContainsFunc(s.Listings, func(l smtp.Listing) bool { return l.Name == list })
}

// Null reports whether the transaction has the null sender. Null returns false if no transaction is
// open. Sender is then empty for another reason: smtpd does not report a transaction whose sender
// is too long.
func (t *Transaction) Null() bool { return t.Open && len(t.Sender) == 0 }

// Automatic reports whether the sender is the null sender, or an address from which mail servers
// verify senders and send error messages. A missing recipient may then be the forged sender of a
// message that someone else has sent.
func (t *Transaction) Automatic() bool {
	local, _, _ := bytes.Cut(t.Sender, []byte{'@'})
	return t.Null() || t.Open && slices.ContainsFunc(automatic, func(name []byte) bool { return bytes.EqualFold(name, local) })
}

// automatic lists the local parts of senders: Postfix verifies with double-bounce, and other servers
// with their postmaster.
var automatic = [][]byte{[]byte("double-bounce"), []byte("mailer-daemon"), []byte("postmaster")}

func (t *Transaction) reset() { *t = Transaction{Sender: t.Sender[:0]} }

// Exempt reports whether nothing in the session can be evidence against the client's address. A
// session is exempt if it uses the local socket, is authenticated, comes from the table "friends",
// or has no address.
func (s *Session) Exempt() bool { return s.Local || s.Authed || s.Friend || !s.Src.IsValid() }

// ProvenName returns the reverse DNS name, or nil if the name fails FCrDNS or is truncated.
func (s *Session) ProvenName() []byte {
	if s.FCrDNS == smtp.FCrDNSPass && !s.RDNSCut {
		return s.RDNS
	}
	return nil
}

// Reset prepares s for another session, and reuses buffers of ordinary size.
func (s *Session) Reset() {
	keep := func(b []byte) []byte {
		if cap(b) > 1024 {
			return nil
		}
		return b[:0]
	}
	*s = Session{
		RDNS: keep(s.RDNS), Helo: keep(s.Helo), PrevHelo: keep(s.PrevHelo), User: keep(s.User), Login: keep(s.Login),
		Transaction: Transaction{Sender: keep(s.Transaction.Sender)},
	}
}
