// Package sim plays scripted SMTP sessions against a filter.Handler, as an
// smtpd of version 7.9 would have them: it says what smtpd says in the order in
// which smtpd says it, obeys the answers, and lets the clients react as mail
// servers do. The clock is that of the sessions; a day takes seconds, and the
// same sessions give the same lines every time.
//
// It also invents sessions: the busy day of an honest server (Day), and what
// strangers do to it (Harvest, Guess).
//
// Not played: smtps, sessions of sendmail(8), clients that idle into smtpd's
// timeout, limits on the number of recipients, and message text.
package sim

import (
	"net/netip"
	"time"

	"scanwatch/filter"
)

// The server that is simulated.
const (
	ServerName = "mx.example.org"
	Domain     = "example.org"
)

// A Session is what a client does, as far as it depends on the client.
type Session struct {
	Label  string    // the kind of client it is in truth
	Start  time.Time // when smtpd reports link-connect: the reverse lookup is over
	Src    netip.AddrPort
	Dst    netip.AddrPort // port 587 asks for a login, after STARTTLS
	RDNS   string         // empty for none
	FCrDNS string         // pass, fail or error
	Steps  []Step
}

// A Step is one thing that a client does.
type Step struct {
	Kind Kind
	Gap  time.Duration // between the server's last reply and this
	Text string        // name, user, sender, recipient, or the whole line of a Command
	Fate Fate          // what the server itself says to it
	Size int           // of a message, in bytes
}

// Kind is the kind of a Step.
type Kind uint8

// The kinds of steps. A script that ends without Quit ends like one with Drop.
const (
	Ehlo Kind = iota + 1
	Helo
	StartTLS // with the handshake, and the greeting said anew
	Auth     // AUTH PLAIN; Text is the user
	Mail     // Text is the sender, empty for the null sender
	Rcpt     // Text is the recipient
	Data     // DATA, a message of Size bytes, and the final dot
	Rset
	Noop
	Quit
	Command   // a line that smtpd does not know
	Pipelined // several lines at once; smtpd hangs up
	Drop      // the client closes the connection
)

// Fate is the answer of a server that no filter interferes with.
type Fate uint8

// The answers. Unknown is a recipient whom the server does not know or does not
// relay to, or a login with a wrong password. Later is a recipient who can be
// tried again.
const (
	OK Fate = iota
	Unknown
	Later
)

// An Outcome is what became of a Session.
type Outcome struct {
	Label        string
	Session      uint64 // smtpd's id
	Src          netip.AddrPort
	Refused      []Refusal // by the filter, in order
	Disconnected bool      // by the filter
	Mails        int       // messages the server accepted
	Junked       bool      // one of them at least was marked as junk
	RcptOK       int       // recipients accepted
	RcptUnknown  int       // recipients refused by the server itself, for good or for now
	RcptRefused  int       // recipients refused by the filter
	Held         time.Duration
}

// A Refusal is an answer of the filter that a client does not like.
type Refusal struct {
	Phase filter.ID
	Text  string
}
