package memory

import (
	"fmt"
	"testing"
	"time"
)

func TestProbed(t *testing.T) {
	m := New()
	rcpt := []byte("Sales@example.org")
	for i := range 3 {
		if m.Recipients.Probed(who("203.0.113.1"), rcpt, at(0)) {
			t.Errorf("probed after %d networks", i)
		}
		m.Recipients.Refused(who(fmt.Sprintf("198.18.%d.1", i)), rcpt, at(0))
		m.Recipients.Refused(who(fmt.Sprintf("198.18.%d.2", i)), []byte("sales+x@EXAMPLE.org"), at(0))
	}
	if !m.Recipients.Probed(who("203.0.113.1"), rcpt, at(0)) || !m.Recipients.Probed(who("203.0.113.1"), []byte("SALES+1@example.org"), at(0)) {
		t.Error("not probed after three networks")
	}
	if m.Recipients.Probed(who("198.18.2.77"), rcpt, at(0)) {
		t.Error("probed by two other networks")
	}
	if m.Recipients.Probed(who("203.0.113.1"), rcpt, at(32*day)) {
		t.Error("probed a month ago")
	}
	m.Recipients.Accepted(rcpt, at(0))
	m.Recipients.Refused(who("198.18.9.1"), rcpt, at(time.Hour))
	if m.Recipients.Probed(who("203.0.113.1"), rcpt, at(time.Hour)) {
		t.Error("an existing recipient is probed")
	}
}

// TestKnownRecipient checks that a mailbox with accepted mail is known by all its
// subaddresses, and that it is unknown after a year without mail.
func TestKnownRecipient(t *testing.T) {
	m := New()
	m.Recipients.Accepted([]byte("Alice+lists@Example.org"), at(0))
	for _, tt := range []struct {
		rcpt  string
		after time.Duration
		want  bool
	}{
		{"alice@example.org", 0, true}, {"ALICE+other@example.org", day, true}, {"alice@example.org", 399 * day, true},
		{"alice@example.org", 401 * day, false}, {"alice@example.com", 0, false}, {"alice-lists@example.org", 0, false}, {"bob@example.org", 0, false},
	} {
		if got := m.Recipients.Known([]byte(tt.rcpt), at(tt.after)); got != tt.want {
			t.Errorf("%s after %v: %v", tt.rcpt, tt.after, got)
		}
	}
	m.Recipients.Delimiter('-')
	if m.Recipients.Mailbox([]byte("alice-x@example.org")) != m.Recipients.Mailbox([]byte("alice@example.org")) ||
		m.Recipients.Mailbox([]byte("alice+x@example.org")) == m.Recipients.Mailbox([]byte("alice@example.org")) {
		t.Error("the delimiter - has no effect, or + still has one")
	}
}

// TestAsked checks that a host's repeated requests for a mailbox count once.
func TestAsked(t *testing.T) {
	m := New()
	account := who("192.0.2.1")
	account.Account, account.User = true, []byte("carol")
	elsewhere := who("198.51.100.7")
	elsewhere.Account, elsewhere.User = true, []byte("carol")
	for i, tt := range []struct {
		c     *Client
		rcpt  string
		after time.Duration
		again bool
	}{
		{who("192.0.2.1"), "nobody@example.org", 0, false},
		{who("192.0.2.1"), "Nobody+1@example.org", time.Hour, true},
		{who("192.0.2.1"), "other@example.org", time.Hour, false},
		{who("192.0.2.2"), "nobody@example.org", time.Hour, false},
		{account, "nobody@example.org", time.Hour, false},
		{elsewhere, "nobody@example.org", time.Hour, true},
		{who("2001:db8::1"), "nobody@example.org", time.Hour, false},
		{who("2001:db8::2"), "nobody@example.org", time.Hour, true},
		{named("2001:db8::1", "mail.example.net"), "nobody@example.org", time.Hour, false},
		{who("192.0.2.1"), "nobody@example.org", 29 * day, true},
		{who("192.0.2.1"), "nobody@example.org", 31 * day, false},
	} {
		if got := m.Recipients.Asked(tt.c, []byte(tt.rcpt), at(tt.after)); got != tt.again {
			t.Errorf("ask %d, %s for %s: %v", i, tt.c.Addr, tt.rcpt, got)
		}
	}
}

// TestExcused checks which requests for a probed mailbox are exempt. A host with a
// proven name gets one exempt request for each pair of sender and recipient, and its
// domain gets five a day.
func TestExcused(t *testing.T) {
	m := New()
	ask := func(c *Client, sender, rcpt string, d time.Duration) bool {
		return m.Recipients.Excused(c, []byte(sender), []byte(rcpt), at(d))
	}
	one, sister := named("192.0.2.1", "mx1.example.net"), named("192.0.2.2", "mx2.example.net")
	if ask(who("192.0.2.1"), "a@example.net", "new@example.org", 0) {
		t.Error("a client without a proven name is excused")
	}
	if !ask(one, "a@example.net", "new@example.org", 0) {
		t.Error("the first ask is not excused")
	}
	if ask(one, "a@example.net", "New+1@example.org", time.Minute) || ask(sister, "a@example.net", "new@example.org", time.Minute) {
		t.Error("the same request is exempt twice")
	}
	n := 1
	for i := range 9 {
		if ask(sister, "b@example.net", fmt.Sprintf("new%d@example.org", i), time.Hour) {
			n++
		}
	}
	if n != freeAsks {
		t.Errorf("%d asks of a domain were excused", n)
	}
	if !ask(named("192.0.2.9", "mx.example.com"), "c@example.com", "new@example.org", time.Hour) {
		t.Error("another domain is not excused")
	}
	if !ask(sister, "b@example.net", "new9@example.org", day+time.Hour) {
		t.Error("a day later, the domain has no further asks")
	}
	if ask(one, "a@example.net", "new@example.org", 29*day) || !ask(one, "a@example.net", "new@example.org", 31*day) {
		t.Error("the request is not exempt once a month")
	}
}
