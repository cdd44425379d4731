//go:build linux

package e2e

// This file contains clients that send mail, try recipients or try passwords. The clients continue
// regardless of the server's replies.

import (
	"encoding/base64"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"scanwatch/tests/internal/smtpd"
)

// A caller is a client that continues until it is rejected.
type caller struct {
	c     *smtpd.Client
	t     *testing.T
	gone  bool
	inTwo bool     // each command is sent in two segments
	texts []string // negative replies from the filter
}

// until matches the part of a reply that is different in each test run.
var until = regexp.MustCompile(` until \S+ \S+ UTC`)

// reference matches the end of every reply from the filter.
var reference = regexp.MustCompile(` \[[0-9a-f]{16}\]$`)

// call connects from an address and reads the greeting.
func call(t *testing.T, s *smtpd.Server, from string, port int) *caller {
	t.Helper()
	c, err := s.Dial(from, port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	x := &caller{c: c, t: t}
	if port == smtpd.PortSMTPS {
		if err := c.Handshake(); err != nil {
			x.gone = true
			return x
		}
	}
	r, err := c.ReadReply()
	x.heard(r, err)
	return x
}

// heard records a reply and returns its code. If the connection has ended, or if the filter rather
// than smtpd has replied, the result is 0.
func (x *caller) heard(r smtpd.Reply, err error) int {
	switch {
	case err != nil:
		x.gone = true
		return 0
	case reference.MatchString(r.Text):
		x.texts = append(x.texts, r.Text)
		return 0
	}
	return r.Code
}

// say sends a line and returns the code of the reply. If the reply is not from smtpd itself, the
// result is 0.
func (x *caller) say(format string, args ...any) int {
	if x.gone {
		return 0
	}
	if x.inTwo {
		return x.heard(x.c.CmdInTwo(fmt.Sprintf(format, args...)))
	}
	return x.heard(x.c.Cmd(fmt.Sprintf(format, args...)))
}

func (x *caller) quit() {
	x.say("QUIT")
	x.c.Close()
}

// message sends a message to local parts. told is the number of recipients to which smtpd itself,
// and not the filter, replied. accepted reports whether the message was accepted.
func (x *caller) message(from string, to ...string) (told int, accepted bool) {
	x.say("MAIL FROM:<%s>", from)
	ok := 0
	for _, r := range to {
		if !strings.Contains(r, "@") {
			r += "@" + smtpd.Domain
		}
		switch code := x.say("RCPT TO:<%s>", r); {
		case code >= 200 && code < 300:
			ok++
			fallthrough
		case code == 550 || code == 524:
			told++
		}
	}
	if ok == 0 || x.say("DATA") != 354 {
		x.say("RSET")
		return told, false
	}
	return told, x.say("Subject: from %s\r\n\r\nHello.\r\n.", from) == 250
}

// password tries a password after EHLO and STARTTLS, and returns the reply code.
func (x *caller) password(user, password string) int {
	x.say("AUTH LOGIN")
	x.say("%s", base64.StdEncoding.EncodeToString([]byte(user)))
	return x.say("%s", base64.StdEncoding.EncodeToString([]byte(password)))
}

// submission connects to the submission port and starts TLS.
func submission(t *testing.T, s *smtpd.Server, from, helo string) *caller {
	t.Helper()
	x := call(t, s, from, smtpd.PortSubmission)
	x.say("EHLO %s", helo)
	if !x.gone {
		if r, err := x.c.StartTLS(); x.heard(r, err) == 220 {
			x.say("EHLO %s", helo)
		}
	}
	return x
}

// asks simulates a session with recipients, and returns the number of replies from smtpd itself.
func asks(t *testing.T, s *smtpd.Server, from, sender string, to ...string) int {
	x := call(t, s, from, smtpd.PortMX)
	defer x.quit()
	x.say("EHLO mail.x.example")
	told, _ := x.message(sender, to...)
	return told
}

// strangers returns n nonexistent local parts.
func strangers(start, n int) (to []string) {
	for i := range n {
		to = append(to, fmt.Sprintf("guess%03d", start+i))
	}
	return to
}

// fine returns "ok" if all is well, or the first rejection.
func fine(accepted bool, xs ...*caller) string {
	for _, x := range xs {
		if len(x.texts) > 0 {
			return until.ReplaceAllString(reference.ReplaceAllString(x.texts[0], ""), "")
		}
	}
	if !accepted {
		return "not accepted"
	}
	return "ok"
}

// slowRule matches rules that delay a client.
var slowRule = regexp.MustCompile(`(?m)^rule .* delay \d+s.*\n`)
