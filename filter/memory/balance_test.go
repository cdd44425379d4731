package memory

import (
	"fmt"
	"testing"
	"time"
)

// TestBalance checks the estimated number of existing mailboxes and the number of missing ones, and
// that a balance starts again after a day and after an unban.
func TestBalance(t *testing.T) {
	m := New()
	w := who("198.18.0.1")
	check := func(what string, now time.Duration, low, high, want uint32) {
		t.Helper()
		existing, missing := m.Recipients.Balance(w, at(now))
		if existing < low || existing > high || missing != want {
			t.Errorf("%s: %d existing and %d missing mailboxes, want %d to %d and %d", what, existing, missing, low, high, want)
		}
	}
	check("new host", 0, 0, 0, 0)
	for i := range 50 {
		m.Recipients.Found(w, m.Recipients.Mailbox([]byte("alice@example.org")), at(0))
		m.Recipients.Missed(w, at(0))
		check("the same mailbox", 0, 1, 1, uint32(i+1))
	}
	for i := range 40 {
		m.Recipients.Found(w, m.Recipients.Mailbox(fmt.Appendf(nil, "u%d@example.org", i)), at(time.Hour))
	}
	check("forty mailboxes", time.Hour, 28, 55, 50)
	m.Recipients.Found(&Client{Addr: w.Addr, Account: true, User: []byte("erin")}, 1, at(2*time.Hour))
	m.Recipients.Missed(&Client{Addr: w.Addr, Account: true, User: []byte("erin")}, at(2*time.Hour))
	check("a user's recipients", 2*time.Hour, 28, 55, 50)
	check("the next day", day+time.Minute, 0, 0, 0)
	for i := range 5000 {
		m.Recipients.Found(w, m.Recipients.Mailbox(fmt.Appendf(nil, "u%d@example.org", i)), at(2*day))
		if i%25 == 0 {
			m.Recipients.Missed(w, at(2*day))
		}
		if existing, missing := m.Recipients.Balance(w, at(2*day)); missing > existing+3 {
			t.Fatalf("after %d mailboxes: %d existing and %d missing", i, existing, missing)
		}
	}
	check("very many mailboxes", 2*day, 266, 266, 200)
	m.Forget(w.Host().Prefix())
	check("after an unban", 2*day, 0, 0, 0)
}
