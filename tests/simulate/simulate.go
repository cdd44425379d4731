// Package simulate plays scripted SMTP sessions against a smtpd.Handler like OpenSMTPD
// 7.9. The simulation sends the same lines in the same order and obeys the answers. The
// clients react like mail servers. Time is the time of the sessions, so that a day takes
// only seconds. The same sessions always result in the same lines.
//
// Package simulate also generates the sessions of a busy day of a legitimate server (Day)
// and of attacks (Harvest, Guess).
//
// The simulation does not include smtps, sessions of sendmail(8), timeouts of smtpd,
// limits on the number of recipients, or message text.
package simulate

import (
	"net/netip"
	"time"

	"scanwatch/filter/smtpd"
)

// These are the names of the simulated server.
const (
	ServerName = "mx.example.org"
	Domain     = "example.org"
)

// A Session is the behaviour of a client.
type Session struct {
	Label  string    // the true kind of client
	Start  time.Time // time of link-connect, after the reverse lookup
	Src    netip.AddrPort
	Dst    netip.AddrPort // port 587 asks for a login, after STARTTLS
	RDNS   string         // empty for none
	FCrDNS string         // pass, fail or error
	Steps  []Step
}

// A Step is an action of a client.
type Step struct {
	Kind Kind
	Gap  time.Duration // between the server's last reply and this
	Text string        // name, user, sender, recipient, or the whole line of a Command
	Fate Fate          // the answer without a filter
	Size int           // of a message, in bytes
}

// Kind is the kind of a Step.
type Kind uint8

// A script that ends without Quit ends like a script with Drop.
const (
	Ehlo Kind = iota + 1
	Helo
	StartTLS // with the handshake and another EHLO
	Auth     // AUTH PLAIN; Text is the user
	Mail     // Text is the sender, empty for the null sender
	Rcpt     // Text is the recipient
	Data     // DATA, a message of Size bytes, and the final dot
	Rset
	Noop
	Quit
	Command   // a line that smtpd does not know
	Pipelined // several lines in one write; smtpd disconnects
	Drop      // the client closes the connection
)

// Fate is the answer of a server without a filter.
type Fate uint8

// Unknown means that a recipient does not exist or is not relayed, or that a password is
// wrong. Later means a temporary error.
const (
	OK Fate = iota
	Unknown
	Later
)

// An Outcome is the result of a Session.
type Outcome struct {
	Label        string
	Session      uint64 // smtpd's id
	Src          netip.AddrPort
	Refused      []Refusal // by the filter, in order
	Disconnected bool      // by the filter
	Mails        int       // messages the server accepted
	Junked       bool      // at least one of them was marked as junk
	RcptOK       int       // recipients accepted
	RcptUnknown  int       // recipients rejected or deferred by the server itself
	RcptRefused  int       // recipients rejected by the filter
	Held         time.Duration
}

// A Refusal is a negative answer of the filter.
type Refusal struct {
	Phase smtpd.ID
	Text  string
}
