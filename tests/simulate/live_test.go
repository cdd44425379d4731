package simulate_test

import (
	"net/netip"
	"strings"
	"testing"

	"scanwatch/internal/smtp"

	"scanwatch/filter/smtpd"
	"scanwatch/tests/simulate"
)

// live plays a client against h.
func live(t *testing.T, h smtpd.Handler, port uint16, client func(c *simulate.Client)) *simulate.Client {
	t.Helper()
	l := simulate.NewLive(h, asked, begin)
	l.Exists = func(local string) bool { return local == "alice" }
	c := l.Connect(simulate.Host{Src: netip.MustParseAddr("127.0.0.1"), RDNS: "localhost", Port: port, Helo: "client.example.net"})
	client(c)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if !c.Closed {
		t.Error("the session is still open")
	}
	return c
}

// TestLiveStream checks that a client of a Live causes the same lines as a script with the same
// commands.
func TestLiveStream(t *testing.T) {
	script := []simulate.Step{
		step(simulate.Ehlo, "client.example.net"), step(simulate.Mail, "bob@example.net"), step(simulate.Rcpt, "alice@example.org"),
		{Kind: simulate.Rcpt, Text: "nobody@example.org", Fate: simulate.Unknown}, {Kind: simulate.Data, Size: 1200}, step(simulate.Quit, ""),
	}
	want, got := new(recorder), new(recorder)
	play(t, want, client(script...))
	c := live(t, got, 25, func(c *simulate.Client) {
		c.Ehlo()
		c.Mail("bob@example.net")
		c.Rcpt("Alice+tag@example.org")
		c.Rcpt("nobody@example.org")
		c.Data()
		c.Quit()
	})
	w, g := strings.ReplaceAll(want.session(t, 0), "dest=LOOPBACK", `dest="192.0.2.25:25"`), strings.ReplaceAll(got.session(t, 0), "Alice+tag@", "alice@")
	if g != w || c.Mails() != 1 || len(c.Asked) != 2 {
		t.Errorf("%d messages, got:\n%s\nwant:\n%s", c.Mails(), g, w)
	}
}

// TestLiveObeys checks the results of commands that the filter answers.
func TestLiveObeys(t *testing.T) {
	for _, tt := range []struct {
		phase  smtpd.ID
		answer smtp.Answer
		want   [4]simulate.Result // EHLO, MAIL, RCPT, DATA
	}{
		{smtpd.Unknown, smtp.Answer{}, [4]simulate.Result{"ok", "ok", "ok", "ok"}},
		{smtpd.PhaseConnect, smtp.Answer{Decision: smtp.Disconnect, Text: "550 no"}, [4]simulate.Result{"closed", "closed", "closed", "closed"}},
		{smtpd.PhaseEhlo, smtp.Answer{Decision: smtp.Reject, Text: "550 no"}, [4]simulate.Result{"refused", "failed", "failed", "ok"}},
		{smtpd.PhaseMailFrom, smtp.Answer{Decision: smtp.Reject, Text: "450 later"}, [4]simulate.Result{"ok", "refused", "failed", "ok"}},
		{smtpd.PhaseRcptTo, smtp.Answer{Decision: smtp.Reject, Text: "550 no"}, [4]simulate.Result{"ok", "ok", "refused", "ok"}},
		{smtpd.PhaseRcptTo, smtp.Answer{Decision: smtp.Reject, Text: "421 bye"}, [4]simulate.Result{"ok", "ok", "refused", "closed"}},
		{smtpd.PhaseCommit, smtp.Answer{Decision: smtp.Reject, Text: "550 no"}, [4]simulate.Result{"ok", "ok", "ok", "refused"}},
	} {
		h := &recorder{decide: goAway(tt.phase, tt.answer)}
		var got [4]simulate.Result
		c := live(t, h, 25, func(c *simulate.Client) {
			got = [4]simulate.Result{c.Ehlo(), c.Mail("bob@example.net"), c.Rcpt("alice@example.org"), c.Data()}
			c.Quit()
		})
		refusals := len(c.Refusals())
		if got != tt.want || (refusals == 0) != (tt.phase == smtpd.Unknown) || (c.Mails() == 1) != (tt.phase == smtpd.Unknown) {
			t.Errorf("%s %q: %v, %d refusals, %d messages", tt.phase, tt.answer.Text, got, refusals, c.Mails())
		}
	}
}

// TestLiveLogin checks logins on both submission ports.
func TestLiveLogin(t *testing.T) {
	for _, port := range []uint16{465, 587} {
		c := live(t, new(recorder), port, func(c *simulate.Client) {
			c.Ehlo()
			if port == 587 {
				c.StartTLS()
			}
			if c.Auth("alice", false) != simulate.Failed || c.Auth("alice", true) != simulate.Accepted {
				t.Errorf("port %d: login failed", port)
			}
			c.Mail("alice@example.org")
			c.Rcpt("friend@partner.example")
			c.Data()
			c.Quit()
		})
		if c.Mails() != 1 || c.Tries != 2 {
			t.Errorf("port %d: %d messages, %d passwords", port, c.Mails(), c.Tries)
		}
	}
}
