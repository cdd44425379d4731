package filter_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/tests/simulate"
)

// TestMailboxesElsewhere checks that mailboxes which another host accepts, or pretends to
// accept, do not hide a harvest here. A sender whose recipient this host does not know yet is
// exempt once.
func TestMailboxesElsewhere(t *testing.T) {
	// cut returns the number of recipients that one client can probe, one in each session.
	cut := func(f *fleet, addr string) (n int) {
		for n < 40 {
			if o := f.one(0, visitor(monday.Add(time.Duration(n)*time.Minute), addr, "", say(simulate.Ehlo, "mail.sender.example"), say(simulate.Mail, "spam@example.net"),
				wrong(simulate.Rcpt, fmt.Sprintf("name%d@example.org", n)), say(simulate.Quit, ""))); o.Disconnected || o.RcptRefused > 0 {
				return n
			}
			n++
		}
		return n
	}
	alone := cut(newFleet(t, 1), "198.51.100.7")
	if alone == 40 {
		t.Fatal("the harvest is not cut")
	}
	for _, refusals := range []int{0, 19, 20} {
		t.Run(fmt.Sprint(refusals, " refusals"), func(t *testing.T) {
			f := newFleet(t, 2)
			other, at := f.sites[1].memory.Recipients, monday.Add(-time.Hour)
			for i := range 40 {
				other.Accepted(fmt.Appendf(nil, "name%d@example.org", i), at.UnixMicro())
			}
			f.exchange(at)
			for i := range refusals {
				other.Refused(&memory.Client{Addr: netip.MustParseAddr("203.0.113.9")}, fmt.Appendf(nil, "missing%d@example.org", i), at.UnixMicro())
			}
			f.exchange(at)
			want := alone
			if refusals >= 20 {
				want++ // the first mailbox is exempt
			}
			if n := cut(f, "198.51.100.7"); n != want {
				t.Errorf("cut after %d recipients, want %d", n, want)
			}
		})
	}
	t.Run("a new user", func(t *testing.T) {
		f := newFleet(t, 2)
		other, at := f.sites[1].memory.Recipients, monday.Add(-time.Hour)
		other.Accepted([]byte("new@example.org"), at.UnixMicro())
		for i := range 20 {
			other.Refused(&memory.Client{Addr: netip.MustParseAddr("203.0.113.9")}, fmt.Appendf(nil, "missing%d@example.org", i), at.UnixMicro())
		}
		f.exchange(at)
		for i := range 12 { // senders of several networks, and their retries
			o := f.one(0, visitor(monday.Add(time.Duration(i)*time.Minute), fmt.Sprintf("198.51.%d.7", i%6), "", say(simulate.Ehlo, "mail.sender.example"), say(simulate.Mail, "joe@example.net"),
				wrong(simulate.Rcpt, "new@example.org"), say(simulate.Quit, "")))
			if o.Disconnected || o.RcptRefused > 0 {
				t.Errorf("session %d: %+v", i, o)
			}
		}
	})
}
