package simulate

// This file implements behaviour that several attackers share.

import (
	"fmt"
	"slices"
	"strings"
)

// A Manner describes how a client requests recipients.
type Manner struct {
	Sender string             // a@x.example by default
	Null   bool               // the null sender
	Per    int                // recipients per transaction; 0 for no limit
	Before func(i int) string // recipient to request before recipient number i
	Send   bool               // complete each transaction with a message
	Drop   bool               // close the connection without QUIT
}

// Ask requests recipients in a single session until the filter ends it.
func (l *Live) Ask(h Host, m Manner, rcpts ...string) *Client {
	if m.Sender == "" && !m.Null {
		m.Sender = "a@x.example"
	}
	c := l.Connect(h)
	c.Ehlo()
	for i, r := range rcpts {
		if c.Closed {
			break
		}
		if i == 0 || m.Per > 0 && i%m.Per == 0 {
			if c.InTransaction() && (!m.Send || c.Data() != Accepted) {
				c.Rset()
			}
			c.Mail(m.Sender)
		}
		if m.Before != nil {
			c.Rcpt(m.Before(i))
		}
		c.Rcpt(r)
	}
	if m.Send && c.InTransaction() {
		c.Data()
	}
	if m.Drop {
		c.Leave()
	}
	c.Quit()
	return c
}

// Guess tries a wrong password for each user on a submission port.
func (l *Live) Guess(h Host, users ...string) *Client {
	if h.Port == 0 {
		h.Port = 587
	}
	c := l.Connect(h)
	c.Ehlo()
	if h.Port != 465 {
		c.StartTLS()
	}
	for _, u := range users {
		c.Auth(u, false)
	}
	c.Quit()
	return c
}

// UnknownCommand is smtpd's reply to commands that it does not know.
const UnknownCommand = "500 5.5.1 Invalid command: Command unrecognized"

// Blind tries n passwords on port 25. smtpd rejects the AUTH command, but the client
// sends the user and password anyway.
func (l *Live) Blind(h Host, n int, mechanism string) *Client {
	c := l.Connect(h)
	c.Ehlo()
	for i := range n {
		if c.Closed {
			break
		}
		c.Tries++
		c.Command("AUTH "+mechanism, "503 5.5.1 Invalid command: Command not supported")
		if mechanism == "LOGIN" {
			c.Command(fmt.Sprintf("b2ZmaWNl%d", i), UnknownCommand)
			c.Command(fmt.Sprintf("c2VjcmV0%d", i), UnknownCommand)
		}
	}
	c.Quit()
	return c
}

// Words returns n nonexistent recipients, numbered from start.
func Words(prefix string, start, n int) (to []string) {
	for i := range n {
		to = append(to, fmt.Sprintf("%s%03d@%s", prefix, start+i, Domain))
	}
	return to
}

// Foreign returns n recipients, each in a different foreign domain.
func Foreign(start, n int) (to []string) {
	for i := range n {
		to = append(to, fmt.Sprintf("victim%d@domain%d.example", start+i, start+i))
	}
	return to
}

// Told calls visit for each mailbox in Domain whose existence the server's answers have revealed.
// The local part is in lower case and has no subaddress. postmaster and abuse are omitted, because
// they always exist. If a mailbox was requested twice, visit is called twice.
func (c *Client) Told(visit func(local string)) {
	for _, r := range c.Asked {
		at := strings.LastIndexByte(r.Rcpt, '@')
		if r.Result != Accepted && r.Result != NoSuch || !strings.EqualFold(r.Rcpt[at+1:], Domain) || through(r.Rcpt[:at]) {
			continue
		}
		if local, _, _ := strings.Cut(strings.ToLower(r.Rcpt[:at]), "+"); !slices.Contains([]string{"postmaster", "abuse"}, local) {
			visit(local)
		}
	}
}

// Relayed returns the number of recipients in foreign domains to which the server itself
// replied.
func (c *Client) Relayed() (n int) {
	for _, r := range c.Asked {
		at := strings.LastIndexByte(r.Rcpt, '@')
		if (r.Result == Accepted || r.Result == NoSuch) && (!strings.EqualFold(r.Rcpt[at+1:], Domain) || through(r.Rcpt[:at])) {
			n++
		}
	}
	return n
}

// through reports whether a local part contains a route to another server.
func through(local string) bool { return strings.ContainsAny(local, "%!@:") }
