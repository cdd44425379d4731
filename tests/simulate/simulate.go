// Package simulate plays scripted SMTP sessions against an smtpd.Handler. It imitates OpenSMTPD
// 7.9: it sends the same lines in the same order, and obeys the answers. Clients react like mail
// servers. Time passes on the sessions' own clock, so a day takes only seconds. The same sessions
// always produce the same lines.
//
// The package also generates the sessions of attacks (Harvest, Guess) and of a busy day
// on a legitimate server (Day).
//
// The package does not simulate smtps, sendmail(8) sessions, smtpd's timeouts, limits on
// the number of recipients, or message text.
package simulate

import (
	"net/netip"
	"time"

	"scanwatch/filter/smtpd"
)

// Names of the simulated server.
const (
	ServerName = "mx.example.org"
	Domain     = "example.org"
)

// A Session describes a client and its actions.
type Session struct {
	Label  string    // actual kind of client
	Start  time.Time // time of link-connect, after the reverse lookup
	Src    netip.AddrPort
	Dst    netip.AddrPort // port 587 requires STARTTLS and a login
	RDNS   string         // empty for none
	FCrDNS string         // pass, fail or error
	Steps  []Step
}

// A Step is one action by a client.
type Step struct {
	Kind Kind
	Gap  time.Duration // time since the server's last reply
	Text string        // name, user, sender or recipient; for Command, the whole line
	Fate Fate          // answer that the server gives without a filter
	Size int           // message size in bytes
}

// Kind is the kind of a Step.
type Kind uint8

// A script that does not end with Quit ends as if it ended with Drop.
const (
	Ehlo Kind = iota + 1
	Helo
	StartTLS // includes the handshake and another EHLO
	Auth     // AUTH PLAIN; Text is the user
	Mail     // Text is the sender, empty for the null sender
	Rcpt     // Text is the recipient
	Data     // DATA, a message of Size bytes, and the final dot
	Rset
	Noop
	Quit
	Command   // a line with a command unknown to smtpd
	Pipelined // several lines in one write; smtpd disconnects
	Drop      // the client closes the connection
)

// Fate is the answer that a server gives without a filter.
type Fate uint8

// Unknown means a recipient that does not exist or to which the server does not relay, or a wrong
// password. Later means a temporary error.
const (
	OK Fate = iota
	Unknown
	Later
)

// An Outcome is the result of a Session.
type Outcome struct {
	Label        string
	Session      uint64 // smtpd's session id
	Src          netip.AddrPort
	Refused      []Refusal // by the filter, in chronological order
	Disconnected bool      // by the filter
	Mails        int       // messages the server accepted
	Junked       bool      // at least one message was marked as junk
	RcptOK       int       // recipients accepted
	RcptUnknown  int       // recipients rejected or deferred by the server itself
	RcptRefused  int       // recipients rejected by the filter
	Held         time.Duration
}

// A Refusal is a negative answer from the filter.
type Refusal struct {
	Phase smtpd.ID
	Text  string
}
