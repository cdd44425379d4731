package report

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"

	"scanwatch/filter/memory"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/store"
)

// TestIPv6Sources checks that a client that changes its address within a /64 appears only once in
// each list. Only the list of possible false positives must contain each of its addresses.
func TestIPv6Sources(t *testing.T) {
	c := NewCollector(memory.Number)
	add := func(r *store.Record) {
		t.Helper()
		if err := c.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	missing := tally(rcpt("@example.org", smtp.ResultPermfail, 550, ""), 3, 15, 5)
	relayed := tally(rcpt("@example.net", smtp.ResultPermfail, 550, ""), 1, 1, 1)
	local := tally(rcpt("@example.org", smtp.ResultOK, 250, ""), 1, 1, 1)
	failed := store.Counts{RcptPermfail: 16, AuthFail: 2}
	for i := range 3 {
		add(sum(t, fmt.Sprintf("2001:db8:1:2::%d", i+1), store.Record{Sessions: 3, Found: 1, Counts: failed}, missing, relayed))
	}
	add(sum(t, "2001:db8:1:2::", store.Record{Sessions: 40, Counts: failed}, missing)) // an aggregate of several addresses
	add(sum(t, "2001:db8:1:3::1", store.Record{Sessions: 1, Counts: store.Counts{Mails: 1, RcptOK: 1}}, local))
	s := c.Summary(noon, noon, 10, nil)

	const one = "2001:db8:1:2::/64"
	totals := Totals{Sessions: 49, Found: 3, RcptPermfail: 64, AuthFail: 8}
	for _, x := range []struct {
		list      string
		got, want any
	}{
		{"addresses", s.Addresses, 2},
		{"sources", s.Sources, []Source{{Address: one, Last: text.At(noon), Totals: totals}, {Address: "2001:db8:1:3::1", Last: text.At(noon), Totals: Totals{Sessions: 1, Mails: 1, RcptOK: 1}}}},
		{"auth", s.Auth, []Source{{Address: one, Last: text.At(noon), Totals: totals}}},
		{"networks", s.Networks, []Network{{"2001:db8:1::/48", 2, 50, 3}}},
		{"harvest", s.Harvest, []Attempt{{Address: one, Sessions: 12, Refused: 60, Domains: []string{"example.org"}, domains: 1}}},
		{"relay", s.Relay, []Attempt{{Address: one, Sessions: 3, Refused: 3, Domains: []string{"example.net"}, domains: 1}}},
	} {
		if !reflect.DeepEqual(x.got, x.want) {
			t.Errorf("%s: %+v, want %+v", x.list, x.got, x.want)
		}
	}

	verified := func(addr string, verdict store.Step) *store.Record {
		return sum(t, addr, store.Record{Sessions: 1, FCrDNS: smtp.FCrDNSPass, RDNS: netip.MustParseAddr(addr).AppendTo(nil)}, verdict)
	}
	c = NewCollector(memory.Number)
	add(verified("2001:db8:1:2::a", tally(rejected("scanner", true), 1, 0, 0)))
	abuse := verified("2001:db8:1:2::b", tally(foundStep("talks-http", "high"), 1, 0, 0))
	add(abuse)
	if s := c.Summary(noon, noon, 10, nil); len(s.Suspects) != 1 || s.Suspects[0].Address != "2001:db8:1:2::a" {
		t.Errorf("possible false positives: %+v", s.Suspects)
	}
}
