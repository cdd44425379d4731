package dnslookup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"scanwatch/filter/dnslist"
	"scanwatch/rules"
)

var (
	client = netip.MustParseAddr("192.0.2.7")
	lookup = &rules.Lookup{Name: "bl", Zone: "bl.example.org",
		Codes:  []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32"), netip.MustParsePrefix("127.0.0.4/32")},
		Ignore: []netip.Prefix{netip.MustParsePrefix("127.0.0.10/32")}}
)

// enough is a timeout that tests never reach. short is a timeout that tests wait for.
const (
	enough = time.Minute
	short  = 50 * time.Millisecond
)

// newTestList returns a list that has passed its test.
func newTestList(t *testing.T, l *rules.Lookup, timeout time.Duration, servers ...*server) *list {
	t.Helper()
	dns := &resolver{timeout: timeout}
	for _, s := range servers {
		dns.servers = append(dns.servers, s.addr)
	}
	z, err := newList(l, dns, slog.New(slog.DiscardHandler), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	z.problem = nil
	z.limits.all.level, z.limits.of = 0, [networks]bucket{}
	later := time.Now().Add(time.Hour) // until this time, listings need no check
	z.setChecked(later)
	return z
}

// setChecked sets the time of the latest check of the list.
func (z *list) setChecked(at time.Time) {
	for i := range z.upstreams {
		z.upstreams[i].checked = [2]time.Time{at, at}
	}
}

// TestAnswers checks the answers for servers that work and for servers that misbehave. An error
// must never become a listing.
func TestAnswers(t *testing.T) {
	soa := func(q *dnsmessage.Message, ttl, least uint32) dnsmessage.Message {
		m := reply(q, dnsmessage.RCodeNameError)
		m.Authorities = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("bl.example.org."), Class: dnsmessage.ClassINET, TTL: ttl},
			Body: &dnsmessage.SOAResource{NS: dnsmessage.MustNewName("ns.example.org."), MBox: dnsmessage.MustNewName("x.example.org."), MinTTL: least}}}
		return m
	}
	good := func(q *dnsmessage.Message) dnsmessage.Message {
		return reply(q, dnsmessage.RCodeSuccess, addresses(q, 600, "127.0.0.4")...)
	}
	changed := func(change func(m *dnsmessage.Message)) func(q *dnsmessage.Message) [][]byte {
		return func(q *dnsmessage.Message) [][]byte {
			m := good(q)
			change(&m)
			return packets(m)
		}
	}
	truncated := changed(func(m *dnsmessage.Message) { m.Truncated, m.Answers = true, nil })
	for _, tt := range []struct {
		name     string
		udp, tcp func(q *dnsmessage.Message) [][]byte
		want     string // codes, TTL, cause
		waits    bool   // the query times out
	}{
		{name: "listed", udp: listed("127.0.0.4"), want: "[127.0.0.4] 10m0s "},
		{name: "several codes", udp: listed("127.0.0.4", "127.0.0.2", "127.0.0.10"), want: "[127.0.0.4 127.0.0.2 127.0.0.10] 10m0s "},
		{name: "not listed", udp: listed(), want: "[] 5m0s "},
		{name: "not listed, with an SOA record", udp: func(q *dnsmessage.Message) [][]byte { return packets(soa(q, 3600, 900)) }, want: "[] 15m0s "},
		{name: "no address", udp: changed(func(m *dnsmessage.Message) { m.Answers = nil }), want: "[] 5m0s "},
		{name: "other letters", udp: changed(func(m *dnsmessage.Message) {
			m.Answers[0].Header.Name = dnsmessage.MustNewName("7.2.0.192.BL.example.ORG.")
		}), want: "[127.0.0.4] 10m0s "},

		{name: "error code", udp: listed("127.255.255.254"), want: "[] 0s code"},
		{name: "error code beside a listing", udp: listed("127.0.0.4", "127.255.255.254"), want: "[] 0s code"},
		{name: "unknown code", udp: listed("127.0.0.99"), want: "[] 0s code"},
		{name: "rewritten NXDOMAIN", udp: listed("198.51.100.80"), want: "[] 0s code"},
		{name: "SERVFAIL", udp: changed(func(m *dnsmessage.Message) { m.RCode, m.Answers = dnsmessage.RCodeServerFailure, nil }), want: "[] 0s failure"},
		{name: "REFUSED with an address", udp: changed(func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeRefused }), want: "[] 0s failure"},
		{name: "NXDOMAIN with an address", udp: changed(func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeNameError }), want: "[] 0s failure"},
		{name: "alias", udp: changed(func(m *dnsmessage.Message) {
			m.Answers = append([]dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET},
				Body: &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName("search.example.net.")}}}, m.Answers...)
		}), want: "[] 0s failure"},
		{name: "address of another name", udp: changed(func(m *dnsmessage.Message) {
			m.Answers[0].Header.Name = dnsmessage.MustNewName("8.2.0.192.bl.example.org.")
		}), want: "[] 0s failure"},
		{name: "short address", udp: func(q *dnsmessage.Message) [][]byte {
			p := packets(good(q))[0] // a record ends with the length of its data, and the address
			p[len(p)-5] = 3
			return [][]byte{p[:len(p)-1]}
		}, want: "[] 0s failure"},
		{name: "long address", udp: func(q *dnsmessage.Message) [][]byte {
			p := packets(good(q))[0]
			p[len(p)-5] = 5
			return [][]byte{append(p, 1)}
		}, want: "[] 0s failure"},
		{name: "empty address", udp: func(q *dnsmessage.Message) [][]byte {
			p := packets(good(q))[0]
			p[len(p)-5] = 0
			return [][]byte{p}
		}, want: "[] 0s failure"},
		{name: "too many addresses", udp: func(q *dnsmessage.Message) [][]byte {
			var many []string
			for range maxAddresses + 1 {
				many = append(many, "127.0.0.4")
			}
			return listed(many...)(q)
		}, want: "[] 0s failure"},
		{name: "cut", udp: func(q *dnsmessage.Message) [][]byte { p := packets(good(q))[0]; return [][]byte{p[:len(p)-2]} }, want: "[] 0s failure"},

		{name: "forged responses before the true one", udp: func(q *dnsmessage.Message) [][]byte {
			other, not, foreign := reply(q, dnsmessage.RCodeSuccess, addresses(q, 1, "127.0.0.2")...), good(q), good(q)
			other.ID++
			not.Response = false
			foreign.Questions = []dnsmessage.Question{{Name: dnsmessage.MustNewName("x.example.org."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}
			return append([][]byte{{}, []byte("x"), make([]byte, 12)}, packets(other, not, foreign, good(q))...)
		}, want: "[127.0.0.4] 10m0s "},
		{name: "flood of forged responses", udp: func(q *dnsmessage.Message) (all [][]byte) {
			m := good(q)
			m.ID++
			for range maxPackets {
				all = append(all, packets(m)...)
			}
			return append(all, packets(good(q))...)
		}, want: "[] 0s failure"},
		{name: "truncated", udp: truncated, tcp: func(q *dnsmessage.Message) [][]byte { return prefixed(good(q)) }, want: "[127.0.0.4] 10m0s "},
		{name: "truncated over TCP", udp: truncated, tcp: func(q *dnsmessage.Message) [][]byte {
			m := good(q)
			m.Truncated = true
			return prefixed(m)
		}, want: "[] 0s failure"},
		{name: "wrong id over TCP", udp: truncated, tcp: func(q *dnsmessage.Message) [][]byte {
			m := good(q)
			m.ID++
			return prefixed(m)
		}, want: "[] 0s failure"},
		{name: "long message over TCP", udp: truncated, tcp: func(*dnsmessage.Message) [][]byte { return [][]byte{{0xff, 0xff}} }, want: "[] 0s failure"},
		{name: "TCP closed", udp: truncated, want: "[] 0s failure"},
		{name: "slow drip over TCP", udp: truncated, tcp: func(q *dnsmessage.Message) [][]byte {
			b := prefixed(good(q))[0]
			return [][]byte{b[:1], b[1:3], b[3:7]}
		}, want: "[] 0s timeout", waits: true},
		{name: "no response", udp: func(*dnsmessage.Message) [][]byte { return nil }, want: "[] 0s timeout", waits: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			limit := enough
			if tt.waits {
				limit = short
			}
			z := newTestList(t, lookup, limit, newServer(t, tt.udp, tt.tcp))
			a := z.ask(context.Background(), client)
			if got := fmt.Sprint(a.Codes, " ", a.TTL, " ", a.Cause); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

// TestRetry checks that an unanswered question is sent once more, to the next resolver.
func TestRetry(t *testing.T) {
	dead := newServer(t, func(q *dnsmessage.Message) [][]byte { return packets(reply(q, dnsmessage.RCodeServerFailure)) }, nil)
	alive := newServer(t, listed("127.0.0.2"), nil)
	z := newTestList(t, lookup, enough, dead, alive)
	if a := z.ask(context.Background(), client); len(a.Codes) != 1 || dead.queries.Load() != 1 {
		t.Errorf("%+v after %d queries", a, dead.queries.Load())
	}
	z = newTestList(t, lookup, enough, dead)
	if a := z.ask(context.Background(), client); a.Cause != causeFailure || dead.queries.Load() != 1+attempts {
		t.Errorf("%+v after %d queries", a, dead.queries.Load())
	}
}

// TestIDs checks that the queries' ids and ports differ.
func TestIDs(t *testing.T) {
	ids := map[uint16]bool{}
	s := newServer(t, func(q *dnsmessage.Message) [][]byte { ids[q.ID] = true; return listed()(q) }, nil)
	z := newTestList(t, lookup, enough, s)
	z.limits.rate = 1000
	for range 50 {
		z.ask(context.Background(), client)
	}
	s.do(func() {
		if len(ids) < 45 {
			t.Errorf("%d ids in 50 queries", len(ids))
		}
	})
}

// TestCheck checks a list's test (RFC 5782 section 5). While the test fails, the list must be
// disabled. Each change must be logged once.
func TestCheck(t *testing.T) {
	responses := map[string][]string{}
	s := newServer(t, func(q *dnsmessage.Message) [][]byte {
		name := q.Questions[0].Name.String()
		if _, ok := responses[name]; !ok && strings.HasSuffix(name, ".127.bl.example.org.") {
			name = "random"
		}
		return listed(responses[name]...)(q)
	}, nil)
	z := newTestList(t, lookup, enough, s)
	var log bytes.Buffer
	z.log, z.problem = slog.New(slog.NewTextHandler(&log, nil)), errUntested
	now, wasFalse := time.Now(), false
	z.now = func() time.Time { return now }
	const has, hasNot = "2.0.0.127.bl.example.org.", "1.0.0.127.bl.example.org."
	z.limits.rate = 1000
	for _, tt := range []struct {
		has, hasNot []string
		problem     string
	}{
		{nil, nil, "127.0.0.2 is not listed"},
		{[]string{"127.0.0.2", "127.0.0.77"}, nil, ""}, // codes that are not in the configuration
		{[]string{"127.0.0.2"}, []string{"127.0.0.2"}, "127.0.0.1 is listed as 127.0.0.2"},
		{[]string{"127.255.255.252"}, nil, "error code 127.255.255.252"},
		{[]string{"127.0.0.2"}, []string{"random"}, "a random loopback address is listed as 127.0.0.2"},
		{[]string{"198.51.100.80"}, []string{"198.51.100.80"}, "error code 198.51.100.80"},
		{[]string{"127.0.0.2"}, nil, ""},
	} {
		s.do(func() {
			responses[has], responses[hasNot], responses["random"] = tt.has, tt.hasNot, nil
			if tt.hasNot != nil && tt.hasNot[0] == "random" { // the test addresses of the list are correct
				responses[hasNot], responses["random"] = nil, tt.has
			}
		})
		log.Reset()
		worked, wrong := z.test(context.Background())
		again := log.String()
		z.test(context.Background())
		lines := 1
		if worked && wasFalse {
			lines = 2 // for the TTL of the false listing, all listings are unknown
		}
		wasFalse = !worked && (wasFalse || len(tt.hasNot) > 0 && rules.IsCode(netip.MustParseAddr(tt.has[0])))
		now = now.Add(time.Hour)
		if worked != (tt.problem == "") || log.String() != again || strings.Count(again, "\n") != lines || !strings.Contains(again, tt.problem) {
			t.Errorf("%v, %v: %v, log %s", tt.has, tt.hasNot, worked, log.String())
		}
		if wrong == worked {
			t.Errorf("%v, %v: earlier listings wrong: %v", tt.has, tt.hasNot, wrong)
		}
		if err := z.state(); worked != (err == nil) {
			t.Errorf("state %v", err)
		}
		if a := z.ask(context.Background(), client); (a.Cause == causeDisabled) == worked {
			t.Errorf("%+v", a)
		}
	}
}

// TestRate checks the maximum rate of questions, and the pauses after errors.
func TestRate(t *testing.T) {
	responses := listed()
	s := newServer(t, func(q *dnsmessage.Message) [][]byte { return responses(q) }, nil)
	l := *lookup
	l.Rate = 2
	z := newTestList(t, &l, enough, s)
	now := time.Now()
	z.now = func() time.Time { return now }
	clients := 0 // each in a different network
	ask := func(n int) (causes map[string]int) {
		causes = map[string]int{}
		for range n {
			clients++
			causes[z.ask(context.Background(), netip.AddrFrom4([4]byte{10, byte(clients >> 8), byte(clients), 7})).Cause]++
		}
		return causes
	}
	if got := ask(150); got[""] != 120 || got[causeRate] != 30 || s.queries.Load() != 120 {
		t.Errorf("%v", got)
	}
	now = now.Add(5 * time.Second)
	if got := ask(20); got[""] != 10 {
		t.Errorf("after 5 s: %v", got)
	}
	s.do(func() {
		responses = func(q *dnsmessage.Message) [][]byte { return packets(reply(q, dnsmessage.RCodeServerFailure)) }
	})
	now = now.Add(time.Minute)
	if got := ask(20); got[causeFailure] != maxErrors || got[causeDisabled] != 20-maxErrors || z.state() == nil {
		t.Errorf("errors: %v", got)
	}
	if z.limits.all.level != maxErrors*attempts {
		t.Errorf("%v queries counted", z.limits.all.level)
	}
	now = now.Add(firstPause)
	if got := ask(2); got[causeFailure] != 1 || got[causeDisabled] != 1 {
		t.Errorf("after the first pause: %v", got)
	}
	now = now.Add(firstPause)
	if got := ask(1); got[causeDisabled] != 1 {
		t.Errorf("within the second pause: %v", got)
	}
	s.do(func() { responses = listed() })
	now = now.Add(firstPause)
	if got := ask(10); got[""] != 10 || z.state() != nil {
		t.Errorf("after an answer: %v", got)
	}
}

// TestStartRate checks that a service that restarts repeatedly exceeds the rate by only a few
// queries. The queries of tests must also count.
func TestStartRate(t *testing.T) {
	l := *lookup
	l.Rate = 10
	z, err := newList(&l, &resolver{}, slog.New(slog.DiscardHandler), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	z.now, z.problem = func() time.Time { return now }, nil
	n := 0
	for i := byte(0); z.take(netip.AddrFrom4([4]byte{192, 0, i, 1})) == ""; i++ {
		n++
	}
	if n != first*l.Rate {
		t.Errorf("%d queries", n)
	}
	z.limits.spend(2, now)
	now = now.Add(200 * time.Millisecond) // time for two queries
	if cause := z.take(client); cause != causeRate {
		t.Errorf("after a test: %q", cause)
	}
	now = now.Add(100 * time.Millisecond)
	if cause := z.take(client); cause != "" {
		t.Errorf("later: %q", cause)
	}
}

// TestNetworks checks that one network's clients cannot use up a list's rate.
func TestNetworks(t *testing.T) {
	l := *lookup
	l.Rate = 20
	for _, network := range []string{"2001:db8:1::/48", "192.0.2.0/24"} {
		z := newTestList(t, &l, enough)
		now := time.Now().Add(burst * time.Second)
		z.now = func() time.Time { return now }
		of := netip.MustParsePrefix(network)
		take := func(i int) string {
			a := of.Addr().AsSlice()
			a[len(a)-1] = byte(i)
			if len(a) == 16 {
				a[6] = byte(i >> 8) // another /64
			}
			client, _ := netip.AddrFromSlice(a)
			return z.take(client)
		}
		n := 0
		for i := range 10_000 {
			if take(i) == "" {
				n++
			}
		}
		if want := l.Rate * burst / share; n != want {
			t.Errorf("%s: %d queries, want %d", network, n, want)
		}
		n = 0
		for i := range byte(100) { // other clients, a few of which share the network's counter
			if z.take(netip.AddrFrom4([4]byte{198, 51, i, 1})) == "" {
				n++
			}
		}
		if n < 90 {
			t.Errorf("%s: %d queries about other clients", network, n)
		}
		now = now.Add(time.Second)
		if n = 0; take(0) == "" {
			for n = 1; take(n) == ""; n++ {
			}
		}
		if n != l.Rate/share {
			t.Errorf("%s: %d queries in the next second", network, n)
		}
	}
}

// TestRateOfIPv6 checks that clients with many IPv6 networks leave half of the rate to IPv4
// clients.
func TestRateOfIPv6(t *testing.T) {
	l := *lookup
	l.Rate = 20
	z := newTestList(t, &l, enough)
	now := time.Now().Add(burst * time.Second)
	z.now = func() time.Time { return now }
	n := 0
	for i := range 10_000 {
		a := netip.MustParseAddr("2001:db8::1").As16()
		a[5], a[7] = byte(i%16), byte(i>>4) // the 16 networks of a /44
		if z.take(netip.AddrFrom16(a)) == "" {
			n++
		}
	}
	if want := l.Rate * burst / sixShare; n != want {
		t.Errorf("%d queries about IPv6, want %d", n, want)
	}
	n = 0
	for i := range 100 {
		if z.take(netip.AddrFrom4([4]byte{198, 51, byte(i), 1})) == "" {
			n++
		}
	}
	if n < 90 {
		t.Errorf("%d queries about IPv4", n)
	}
}

// TestPause checks that simultaneous errors cause only one pause, and that codes that are not in
// the configuration cause none.
func TestPause(t *testing.T) {
	z := newTestList(t, lookup, enough)
	now := time.Now()
	z.now = func() time.Time { return now }
	for range workers {
		z.note(causeTimeout)
	}
	if z.state() == nil || len(z.tests) != 1 {
		t.Error("no pause, or no test")
	}
	now = now.Add(firstPause)
	if err := z.state(); err != nil {
		t.Errorf("after the first pause: %v", err)
	}
	z = newTestList(t, lookup, enough, newServer(t, listed("127.0.0.99"), nil))
	for range 2 * maxErrors {
		if a := z.ask(context.Background(), client); a.Cause != causeCode {
			t.Fatalf("%+v", a)
		}
	}
	if err := z.state(); err != nil {
		t.Errorf("after codes: %v", err)
	}
}

// TestWildcard checks that no listing counts if the list contains every host. One check must be
// enough for all listings within a second.
func TestWildcard(t *testing.T) {
	wildcard := false
	var other []string // names of other hosts
	s := newServer(t, func(q *dnsmessage.Message) [][]byte {
		name := q.Questions[0].Name.String()
		isClient := strings.HasPrefix(name, "7.2.0.192.") || strings.HasPrefix(name, "7.0.0.0.")
		if !isClient && strings.Contains(name, ".127.") || strings.Contains(name, ".f.7.") {
			other = append(other, name)
		}
		if wildcard || isClient || strings.HasPrefix(name, "2.0.0.127.") {
			return listed("127.0.0.2")(q)
		}
		return listed()(q)
	}, nil)
	l := *lookup
	l.Rate = 1000
	now := time.Now()
	var z *list
	checks := func() (names []string) {
		s.do(func() { names = slices.Clone(other) })
		return names
	}
	reset := func() {
		s.do(func() { wildcard, other = false, nil })
		z = newTestList(t, &l, enough, s)
		z.now = func() time.Time { return now }
		z.setChecked(time.Time{})
	}
	for _, a := range []netip.Addr{client, netip.MustParseAddr("2001:db8::7")} {
		reset()
		ask := func() string { return z.ask(context.Background(), a).Cause }
		for i := range 10 {
			if cause := ask(); cause != "" || len(checks()) != 1 {
				t.Errorf("listing %d: %q, checks %q", i, cause, checks())
			}
		}
		now = now.Add(confirmed)
		cause, names := ask(), checks()
		if cause != "" || len(names) != 2 || names[0] == names[1] {
			t.Errorf("after a second: %q, checks %q", cause, names)
		}
		for _, name := range names {
			if v6 := strings.HasSuffix(name, ".f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.bl.example.org."); v6 != a.Is6() || a.Is4() && !strings.HasSuffix(name, ".127.bl.example.org.") {
				t.Errorf("%s: check of %s", a, name)
			}
		}
		now = now.Add(confirmed)
		s.do(func() { wildcard = true })
		if cause := ask(); cause != causeDisabled || len(z.tests) != 1 {
			t.Errorf("the first listing of a wildcard: %q", cause)
		}
		if cause := ask(); cause != causeDisabled {
			t.Errorf("during the test: %q", cause)
		}
		if ok, wrong := z.test(context.Background()); ok || !wrong || ask() != causeDisabled {
			t.Errorf("the test passed: %v, %v", ok, wrong)
		}
		s.do(func() { wildcard = false })
		if ok, wrong := z.test(context.Background()); !ok || wrong || ask() != causeDisabled {
			t.Errorf("the test failed: %v, %v", ok, wrong)
		}
		if now = now.Add(600 * time.Second); ask() != "" { // the TTL of the listings has passed
			t.Error("a listing does not count after the TTL of false listings")
		}
		now = now.Add(confirmed)
	}

	// Without a result of the check, a listing does not count.
	reset()
	z = newTestList(t, &l, enough, newServer(t, func(q *dnsmessage.Message) [][]byte {
		if strings.HasPrefix(q.Questions[0].Name.String(), "7.2.0.192.") {
			return listed("127.0.0.2")(q)
		}
		return packets(reply(q, dnsmessage.RCodeServerFailure))
	}, nil))
	z.setChecked(time.Time{})
	if a := z.ask(context.Background(), client); a.Cause != causeFailure || a.Codes != nil {
		t.Errorf("%+v", a)
	}
}

// TestCheckShared checks that one check is made for several simultaneous listings.
func TestCheckShared(t *testing.T) {
	var checks atomic.Int64
	s := newServer(t, func(q *dnsmessage.Message) [][]byte {
		if strings.HasSuffix(q.Questions[0].Name.String(), ".127.bl.example.org.") {
			checks.Add(1)
			return listed()(q)
		}
		if strings.Count(q.Questions[0].Name.String(), ".") == 4 { // a random label
			return listed()(q)
		}
		return listed("127.0.0.2")(q)
	}, nil)
	z := newTestList(t, lookup, enough, s)
	now := time.Now()
	z.now = func() time.Time { return now }
	z.setChecked(time.Time{})
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			if a := z.ask(context.Background(), client); a.Cause != "" {
				t.Errorf("%+v", a)
			}
		})
	}
	all.Wait()
	if n := checks.Load(); n != 1 {
		t.Errorf("%d checks", n)
	}
}

// zone returns a server function for a zone with the given names. As RFC 4592 requires, a wildcard
// does not apply to names below an existing name.
func zone(origin string, names ...string) func(q *dnsmessage.Message) [][]byte {
	exists := map[string]bool{origin: true}
	has := map[string]bool{}
	for _, name := range names {
		has[name+"."+origin] = true
		for at := name + "." + origin; at != origin; _, at, _ = strings.Cut(at, ".") {
			exists[at] = true
		}
	}
	return func(q *dnsmessage.Message) [][]byte {
		name := strings.TrimSuffix(q.Questions[0].Name.String(), ".")
		encloser := name
		for !exists[encloser] {
			_, encloser, _ = strings.Cut(encloser, ".")
		}
		if has[name] || encloser != name && has["*."+encloser] {
			return listed("127.0.0.2")(q)
		}
		return listed()(q)
	}
}

// TestZoneWildcard checks that a wildcard in a zone disables the list, both in a test and before
// the first listing. The wildcard does not apply to the names of loopback addresses.
func TestZoneWildcard(t *testing.T) {
	names := []string{"2.0.0.127", rules.Question(netip.MustParseAddr("::ffff:127.0.0.2"), "x")}
	names[1] = strings.TrimSuffix(names[1], ".x")
	for _, allow := range []bool{false, true} {
		l := *lookup
		l.Allow = allow
		for _, address := range []string{"192.0.2.7", "2001:db8::7"} {
			s := newServer(t, zone(l.Zone, names...), nil)
			z := newTestList(t, &l, enough, s)
			z.setChecked(time.Time{})
			if ok, _ := z.test(context.Background()); !ok {
				t.Fatalf("the list without a wildcard: %v", z.state())
			}
			s.do(func() { s.udp = zone(l.Zone, append(names, "*")...) })
			if a := z.ask(context.Background(), netip.MustParseAddr(address)); a.Cause != causeDisabled || len(z.tests) != 1 {
				t.Errorf("%s is listed by the wildcard: %+v", address, a)
			}
			if ok, wrong := z.test(context.Background()); ok || !wrong || !strings.Contains(fmt.Sprint(z.state()), "a random name is listed as 127.0.0.2") {
				t.Errorf("the test passed: %v, %v, %v", ok, wrong, z.state())
			}
		}
	}
}

// TestResolvers checks that each resolver is tested. A resolver that fails must not be used, and
// the status must name it. The check before a listing must use the resolver that returned the
// listing.
func TestResolvers(t *testing.T) {
	loses := false
	good := zone("bl.example.org", "2.0.0.127")
	honest := newServer(t, func(q *dnsmessage.Message) [][]byte {
		if loses && strings.HasPrefix(q.Questions[0].Name.String(), "7.2.0.192.") {
			return packets(reply(q, dnsmessage.RCodeServerFailure))
		}
		return good(q)
	}, nil)
	liar := newServer(t, listed("127.0.0.2"), nil)
	s := newTestService(t, newTestList(t, lookup, enough, honest, liar))
	z := s.order[0]
	z.setChecked(time.Time{})
	var log bytes.Buffer
	z.log = slog.New(slog.NewTextHandler(&log, nil))
	honest.do(func() { loses = true })
	if a := z.ask(context.Background(), client); a.Cause != causeDisabled || z.state() != nil {
		t.Errorf("a listing of the second resolver: %+v, %v", a, z.state())
	}
	for i := range 2 { // the second test must not withdraw the other resolver's listings
		if ok, wrong := z.test(context.Background()); ok || wrong != (i == 0) {
			t.Errorf("test %d: %v, %v", i, ok, wrong)
		}
	}
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "resolver disabled") || !strings.Contains(text, "resolver="+liar.addr.String()) {
		t.Error(text)
	}
	before := liar.queries.Load()
	if a := z.ask(context.Background(), client); a.Cause != causeFailure || liar.queries.Load() != before {
		t.Errorf("the resolver that failed the test is used: %+v", a)
	}
	used, err := s.status()
	if want := "bl: resolver " + liar.addr.String() + " not used: test: 127.0.0.1 is listed as 127.0.0.2, so every host may be"; used != 1 || err == nil || err.Error() != want {
		t.Errorf("%d lists in use, %v", used, err)
	}
	liar.do(func() { liar.udp = good })
	if ok, _ := z.test(context.Background()); !ok || !strings.Contains(log.String(), "resolver enabled") {
		t.Errorf("the test failed: %s", log.String())
	}
	if used, err := s.status(); used != 1 || err == nil || !strings.Contains(err.Error(), "bl: listings unknown until ") {
		t.Errorf("%d lists in use, %v", used, err)
	}
	later := time.Now().Add(time.Hour)
	z.now = func() time.Time { return later }
	if used, err := s.status(); used != 1 || err != nil {
		t.Errorf("%d lists in use, %v", used, err)
	}
}

// TestCachedListing checks that a resolver's listings do not count while its cache may contain a
// false listing, even if the list itself has been repaired. The status must report this.
func TestCachedListing(t *testing.T) {
	wildcard := false
	good := zone("bl.example.org", "2.0.0.127", "7.2.0.192") // the cache contains a listing of 192.0.2.7
	server := newServer(t, func(q *dnsmessage.Message) [][]byte {
		if wildcard {
			return packets(reply(q, dnsmessage.RCodeSuccess, addresses(q, 900, "127.0.0.4")...))
		}
		return good(q)
	}, nil)
	s := newTestService(t, newTestList(t, lookup, enough, server))
	z, now := s.order[0], time.Now()
	z.now = func() time.Time { return now }
	z.setChecked(time.Time{})
	server.do(func() { wildcard = true })
	if a := z.ask(context.Background(), netip.MustParseAddr("198.51.100.1")); a.Cause != causeDisabled || !z.suspected() {
		t.Errorf("%+v", a)
	}
	server.do(func() { wildcard = false })
	if ok, _ := z.test(context.Background()); !ok {
		t.Fatal(z.state())
	}
	for _, tt := range []struct {
		after time.Duration
		cause string
	}{{0, causeDisabled}, {899 * time.Second, causeDisabled}, {time.Second, ""}} {
		now = now.Add(tt.after)
		a := z.ask(context.Background(), client)
		_, err := s.status()
		if a.Cause != tt.cause || (err == nil) != (tt.cause == "") {
			t.Errorf("after %v: %+v, status %v", tt.after, a, err)
		}
		if a := z.ask(context.Background(), netip.MustParseAddr("198.51.100.2")); a.Cause != "" || a.Codes != nil {
			t.Errorf("a host that is not listed: %+v", a)
		}
	}
}

// TestCheckAfterListing checks that a listing that relied on an earlier check is followed by a new
// check, even if there is no other listing.
func TestCheckAfterListing(t *testing.T) {
	for _, address := range []string{"192.0.2.7", "2001:db8::7"} {
		s := newServer(t, listed("127.0.0.2"), nil) // after the check, the list contains every host
		z := newTestList(t, lookup, enough, s)
		now := time.Now()
		z.now = func() time.Time { return now }
		z.setChecked(now.Add(time.Millisecond - confirmed))
		if a := z.ask(context.Background(), netip.MustParseAddr(address)); a.Cause != "" {
			t.Fatalf("%+v", a)
		}
		<-z.checks
		z.recheck(context.Background())
		if !z.suspected() || len(z.tests) != 1 {
			t.Errorf("%s: no test after the listing", address)
		}
		ctx, cancel := context.WithCancel(context.Background())
		dropped := make(chan bool, 10)
		done := make(chan bool)
		go func() { defer close(done); z.run(ctx, func() { dropped <- true }) }()
		<-dropped
		cancel()
		<-done
	}
}

// TestRegions checks that a list of most hosts of a region is disabled even if it lacks the test
// addresses. A list of many hosts must remain enabled.
func TestRegions(t *testing.T) {
	for _, tt := range []struct {
		lists string
		want  string
	}{
		{"128.0.0.0/1", "20 of 20 random addresses of 128.0.0.0/1 are listed"},
		{"0.0.0.0/1", "20 of 20 random addresses of 0.0.0.0/1 are listed"},
		{"2000::/3", "20 of 20 random addresses of 2000::/3 are listed"},
		{"192.0.0.0/4", ""},
	} {
		wide := netip.MustParsePrefix(tt.lists)
		s := newServer(t, func(q *dnsmessage.Message) [][]byte {
			name := strings.TrimSuffix(q.Questions[0].Name.String(), ".bl.example.org.")
			a := addrOf(name)
			if name == "2.0.0.127" || a.IsValid() && wide.Contains(a) && !a.IsLoopback() && !a.Is4In6() {
				return listed("127.0.0.2")(q)
			}
			return listed()(q)
		}, nil)
		l := *lookup
		l.Rate = 1000
		z := newTestList(t, &l, enough, s)
		ok, wrong := z.test(context.Background())
		if got := fmt.Sprint(z.state()); ok != (tt.want == "") || wrong == ok || !ok && !strings.Contains(got, tt.want) {
			t.Errorf("%s: %v, %v, %s", tt.lists, ok, wrong, got)
		}
	}
	for range 1000 {
		for _, region := range regions {
			if a := publicAddr(region); !region.Contains(a) || !dnslist.Public(a) {
				t.Errorf("%s is not a public address of %s", a, region)
			}
		}
	}
}

// addrOf returns the address in a query's name, or the zero Addr.
func addrOf(name string) netip.Addr {
	labels := strings.Split(name, ".")
	slices.Reverse(labels)
	if len(labels) == 32 {
		var groups []string
		for g := range slices.Chunk(labels, 4) {
			groups = append(groups, strings.Join(g, ""))
		}
		a, _ := netip.ParseAddr(strings.Join(groups, ":"))
		return a
	}
	a, _ := netip.ParseAddr(strings.Join(labels, "."))
	return a
}

// TestCheckNoAnswer checks that a list is not used if a check has no answer. Other pending listings
// must not repeat the check. The status must report the problem until a test succeeds.
func TestCheckNoAnswer(t *testing.T) {
	var probes atomic.Int64
	dead := true
	good := zone("bl.example.org", "2.0.0.127", "7.2.0.192")
	server := newServer(t, func(q *dnsmessage.Message) [][]byte {
		if dead && !strings.HasPrefix(q.Questions[0].Name.String(), "7.2.0.192.") {
			probes.Add(1)
			return nil
		}
		return good(q)
	}, nil)
	l := *lookup
	l.Rate = 1000
	s := newTestService(t, newTestList(t, &l, short, server))
	z := s.order[0]
	z.setChecked(time.Time{})
	causes := make(chan string, workers)
	var all sync.WaitGroup
	for range workers {
		all.Go(func() { causes <- z.ask(context.Background(), client).Cause })
	}
	all.Wait()
	close(causes)
	count := map[string]int{}
	for cause := range causes {
		count[cause]++
	}
	if count[causeTimeout] == 0 || count[causeTimeout]+count[causeDisabled] != workers || probes.Load() != attempts {
		t.Errorf("%v, %d queries of checks", count, probes.Load())
	}
	if used, err := s.status(); used != 0 || err == nil || len(z.tests) != 1 {
		t.Errorf("%d lists in use, %v", used, err)
	}
	if ok, wrong := z.test(context.Background()); ok || wrong {
		t.Errorf("test: %v, %v", ok, wrong)
	}
	if used, err := s.status(); used != 0 || err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("%d lists in use, %v", used, err)
	}
	server.do(func() { dead = false })
	if ok, _ := z.test(context.Background()); !ok {
		t.Error(z.state())
	}
	if a := z.ask(context.Background(), client); a.Cause != "" {
		t.Errorf("%+v", a)
	}
}

// TestRetest checks the intervals between a list's tests. While the resolver is down, the intervals
// must increase from seconds to a maximum, and one line must be logged.
func TestRetest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		z := newTestList(t, lookup, -1, &server{addr: netip.MustParseAddrPort("127.0.0.1:1")}) // times out without a packet
		z.log, z.problem = slog.New(slog.NewTextHandler(&log, nil)), errUntested
		ctx, cancel := context.WithCancel(context.Background())
		start := time.Now()
		var times []time.Duration
		z.now = func() time.Time { // called for each query
			if at := time.Since(start); len(times) == 0 || times[len(times)-1] != at {
				times = append(times, at)
			}
			return time.Now()
		}
		go z.run(ctx, func() {})
		time.Sleep(3 * time.Minute)
		cancel()
		synctest.Wait()
		const s = time.Second
		if want := []time.Duration{0, 5 * s, 15 * s, 35 * s, 75 * s, 135 * s}; !slices.Equal(times, want) {
			t.Errorf("tests after %v, want %v", times, want)
		}
		if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "resolver 127.0.0.1:1: timeout") {
			t.Error(text)
		}
	})
}

// TestRefused checks that the error for an unreachable resolver is always the same text. The text
// must not contain the client's port, which varies.
func TestRefused(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	addr := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	conn.Close()
	r := &resolver{servers: []netip.AddrPort{addr}, timeout: enough}
	_, _, n, err := r.ask(context.Background(), []int{0}, "x.example.org")
	if want := fmt.Sprintf("resolver %s: connection refused", addr); err == nil || err.Error() != want || n != attempts {
		t.Errorf("%v after %d queries, want %s", err, n, want)
	}
}

// TestSlowList checks that a list that is not answering does not delay other lists.
func TestSlowList(t *testing.T) {
	slow, fast := *lookup, *lookup
	slow.Name, fast.Name = "slow", "fast"
	slow.Rate, fast.Rate = 1000, 1000
	z := newTestList(t, &slow, enough, newServer(t, func(*dnsmessage.Message) [][]byte { return nil }, nil))
	s := newTestService(t, z, newTestList(t, &fast, enough, newServer(t, listed("127.0.0.2"), nil)))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for _, z := range s.order {
		for range workers {
			go s.work(ctx, z)
		}
	}
	for i := range 2 * workers {
		s.start(ctx, netip.AddrFrom4([4]byte{192, 0, byte(i), 1}), z.id)
	}
	s.start(ctx, client, s.order[1].id)
	if a := <-s.answers; a.List != s.order[1].id || a.Cause != "" {
		t.Errorf("%+v", a)
	}
}

// TestKey checks that the key occurs only in questions, and that a key file that other users can
// read is rejected.
func TestKey(t *testing.T) {
	const key = "abcdefghijklmnopqrstuvwxyz"
	var asked string
	s := newServer(t, func(q *dnsmessage.Message) [][]byte {
		asked = q.Questions[0].Name.String()
		return packets(reply(q, dnsmessage.RCodeServerFailure))
	}, nil)
	name := filepath.Join(t.TempDir(), "key")
	write := func(text string, mode fs.FileMode) {
		t.Helper()
		if err := errors.Join(os.WriteFile(name, []byte(text), mode), os.Chmod(name, mode)); err != nil {
			t.Fatal(err)
		}
	}
	l := *lookup
	l.Zone, l.Key = "{key}.zen.example.net", name
	l.Pos.File = filepath.Join(filepath.Dir(name), "scanwatch.conf")
	write(strings.ToUpper(key)+"\n", 0o600)
	z := newTestList(t, &l, enough, s)
	var log bytes.Buffer
	z.log = slog.New(slog.NewTextHandler(&log, nil))
	a := z.ask(context.Background(), client)
	z.test(context.Background())
	s.do(func() {})
	if asked != "2.0.0.127."+key+".zen.example.net." {
		t.Errorf("question %s", asked)
	}
	if all := fmt.Sprint(a, log.String(), z.state(), z.Lookup.String()); strings.Contains(strings.ToLower(all), key) || !strings.Contains(all, "{key}") {
		t.Errorf("%s", all)
	}
	dns := &resolver{timeout: enough, servers: []netip.AddrPort{s.addr}}
	for _, tt := range []struct {
		text string
		mode fs.FileMode
		want string
	}{
		{key, 0o640, "chmod 600"}, {key, 0o604, "chmod 600"}, {"", 0o600, "does not contain one key"},
		{key + " " + key, 0o600, "does not contain one key"}, {key + ".example.org", 0o600, "does not contain one key"},
		{strings.Repeat(key, 9), 0o600, "does not contain one key"},
	} {
		write(tt.text, tt.mode)
		if _, err := newList(&l, dns, slog.New(slog.DiscardHandler), time.Now); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), key) {
			t.Errorf("%q, %o: %v", tt.text, tt.mode, err)
		}
		if err := CheckKey(&l, uint32(os.Geteuid())); (err != nil) != (tt.mode != 0o600) {
			t.Errorf("check of %o: %v", tt.mode, err)
		}
	}
	write(key, 0o600)
	l.Zone = "{key}." + strings.Repeat(strings.Repeat("a", 40)+".", 4) + "example.org"
	if _, err := newList(&l, dns, slog.New(slog.DiscardHandler), time.Now); err == nil || strings.Contains(err.Error(), key) {
		t.Errorf("a long zone: %v", err)
	}
	fifo := name + ".fifo"
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	l.Key = fifo
	if _, err := newList(&l, dns, slog.New(slog.DiscardHandler), time.Now); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a FIFO as a key: %v", err)
	}
	if err := CheckKey(&l, uint32(os.Geteuid())); err == nil {
		t.Error("check of a FIFO")
	}
	l.Key = name + ".missing"
	if err := CheckKey(&l, uint32(os.Geteuid())); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("check of a missing file: %v", err)
	}
	l.Key = filepath.Dir(name)
	if _, err := newList(&l, dns, slog.New(slog.DiscardHandler), time.Now); err == nil {
		t.Error("a directory as a key")
	}
}

// TestKeyOfAnotherUser checks that root does not follow another user's link to a file that only
// root can read.
func TestKeyOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir, secret := t.TempDir(), filepath.Join(t.TempDir(), "secret")
	const user = 65534
	err := errors.Join(os.WriteFile(secret, []byte("rootcookie\n"), 0o400), os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755), os.Chown(dir, user, user),
		os.Symlink(secret, filepath.Join(dir, "link")), os.Link(secret, filepath.Join(dir, "hard")),
		os.WriteFile(filepath.Join(dir, "own"), []byte("key\n"), 0o600), os.Chown(filepath.Join(dir, "own"), user, user))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"link": "", "hard": "", "own": "key"} {
		if key, err := readKey(filepath.Join(dir, name)); key != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", name, key, err)
		}
	}
}

// TestUnusableKey checks that a list with an unusable key does not stop the others, and that the
// status and the log give the reason.
func TestUnusableKey(t *testing.T) {
	bad := *lookup
	bad.Name, bad.Zone, bad.Key = "bad", "{key}.bad.example.net", filepath.Join(t.TempDir(), "key")
	var log bytes.Buffer
	c := &rules.Companion{Role: rules.RoleLookup, Resolvers: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Port: 1}
	s, err := New(c, []*rules.Lookup{&bad, lookup}, t.TempDir(), slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	s.lists[lookup.ID()].problem = nil // as if the test had succeeded
	if used, err := s.status(); used != 1 || err == nil || !strings.Contains(err.Error(), "bad: key: ") || !strings.Contains(err.Error(), "restart the service") {
		t.Errorf("%d lists in use: %v", used, err)
	}
	if text := log.String(); strings.Count(text, "list disabled") != 1 || !strings.Contains(text, "lookup=bad") {
		t.Error(text)
	}
	s.start(context.Background(), client, bad.ID())
	if a := <-s.answers; a.Cause != causeDisabled {
		t.Errorf("%+v", a)
	}
}

// TestDeadResolver checks that a list is disabled, and that this is logged, if its resolver stops
// answering. Only answers must count as success.
func TestDeadResolver(t *testing.T) {
	alive := true
	server := newServer(t, func(q *dnsmessage.Message) [][]byte {
		switch {
		case !alive:
			return packets(reply(q, dnsmessage.RCodeServerFailure))
		case strings.HasPrefix(q.Questions[0].Name.String(), "2.0.0.127."):
			return listed("127.0.0.2")(q)
		}
		return listed()(q)
	}, nil)
	z := newTestList(t, lookup, enough, server)
	s := newTestService(t, z)
	var log bytes.Buffer
	z.log = slog.New(slog.NewTextHandler(&log, nil))
	if ok, _ := z.test(context.Background()); !ok || !s.fresh() || s.fresh() {
		t.Error("an answer is not a success, or counts twice")
	}
	server.do(func() { alive = false })
	for range maxErrors {
		z.ask(context.Background(), client)
	}
	if s.fresh() || len(z.tests) != 1 {
		t.Error("errors count as a success, or cause no test")
	}
	z.test(context.Background())
	now := time.Now().Add(lastPause)
	z.now = func() time.Time { return now }
	if used, err := s.status(); used != 0 || err == nil || s.fresh() || !strings.Contains(log.String(), "list disabled") {
		t.Errorf("%d lists in use: %v, log %s", used, err, log.String())
	}
}

// TestResolvConf checks the parser of resolv.conf.
func TestResolvConf(t *testing.T) {
	name := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string) {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("# nameserver 192.0.2.9\nsearch example.org\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # x\nnameserver x\nnameserver\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n")
	servers, err := systemServers(name, 53)
	if got := fmt.Sprint(servers); err != nil || got != "[192.0.2.1:53 [2001:db8::1]:53 192.0.2.3:53]" {
		t.Errorf("%s, %v", got, err)
	}
	write("search example.org\n")
	if _, err := systemServers(name, 53); err == nil {
		t.Error("a file without resolvers")
	}
	if err := errors.Join(os.Remove(name), syscall.Mkfifo(name, 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := systemServers(name, 53); err == nil {
		t.Error("a FIFO")
	}
}

// newTestService returns a service whose lists have passed their tests.
func newTestService(t *testing.T, lists ...*list) *Service {
	t.Helper()
	s := &Service{name: "lookup", lists: map[string]*list{}, order: lists, answers: make(chan dnslist.Answer, 3)}
	for _, z := range lists {
		s.lists[z.id] = z
	}
	return s
}

// TestTooMany checks that the answer is unknown if too many questions are pending.
func TestTooMany(t *testing.T) {
	z := newTestList(t, lookup, enough)
	s := newTestService(t, z)
	for range maxJobs + 1 {
		s.start(context.Background(), client, z.id)
	}
	if a := <-s.answers; a.Cause != causeLost || a.List != z.id {
		t.Errorf("%+v", a)
	}
}

// TestStale checks that a list that the filter defines differently is not asked. As long as the
// definitions differ, the status output says that the service must be restarted.
func TestStale(t *testing.T) {
	z := newTestList(t, lookup, enough)
	s := newTestService(t, z)
	changed := *lookup
	changed.Zone = "other.example.org"
	var ids []string
	for _, l := range []*rules.Lookup{&changed, {Name: "new", Zone: lookup.Zone, Codes: lookup.Codes}} {
		ids = append(ids, l.ID())
		s.start(context.Background(), client, l.ID())
		if a := <-s.answers; a.Cause != causeDisabled || a.List != l.ID() || len(z.jobs) > 0 {
			t.Errorf("%s: %+v", l.Name, a)
		}
	}
	s.compare(ids)
	const want = "the filter's configuration has changed: bl, new; restart the service of companion lookup"
	if _, err := s.status(); err == nil || err.Error() != want {
		t.Errorf("status %v, want %s", err, want)
	}
	s.compare([]string{lookup.ID()})
	if _, err := s.status(); err != nil {
		t.Errorf("status with the same definition: %v", err)
	}
}

// FuzzResponse checks that no packet causes a panic. Only a response to the question must be
// accepted, with at most maxAddresses addresses.
func FuzzResponse(f *testing.F) {
	const id, name = 0x1234, "7.2.0.192.bl.example.org"
	query, err := newQuery(id, name)
	if err != nil {
		f.Fatal(err)
	}
	var q dnsmessage.Message
	if err := q.Unpack(query); err != nil {
		f.Fatal(err)
	}
	for _, p := range packets(reply(&q, dnsmessage.RCodeNameError), reply(&q, dnsmessage.RCodeSuccess, addresses(&q, 1<<31, "127.0.0.2", "127.0.0.4")...)) {
		f.Add(p)
		f.Add(p[:len(p)-1])
	}
	f.Add(query)
	f.Add([]byte{0x12, 0x34, 0x80, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xc0, 0x0c})
	f.Fuzz(func(t *testing.T, packet []byte) {
		r, matches, err := parseResponse(packet, id, name)
		switch {
		case !matches && (err != nil || r.addrs != nil || r.truncated), err != nil && r.addrs != nil:
			t.Errorf("%+v, %v, %v", r, matches, err)
		case len(r.addrs) > maxAddresses || r.ttl < 0 || r.ttl > maxTTL:
			t.Errorf("%+v", r)
		case err != nil && strings.Contains(err.Error(), "192"):
			t.Errorf("the error contains the name: %v", err)
		}
		var m dnsmessage.Message
		if len(r.addrs) > 0 && m.Unpack(packet) == nil && (m.ID != id || !m.Response || len(m.Answers) < len(r.addrs)) {
			t.Errorf("%+v from %v", r, m.GoString())
		}
	})
}
