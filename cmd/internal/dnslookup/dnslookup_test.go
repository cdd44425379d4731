package dnslookup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
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

// enough is a timeout that no test reaches. short is one that a test waits for.
const (
	enough = time.Minute
	short  = 50 * time.Millisecond
)

// newTestList returns a list whose test has passed.
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
	return z
}

// TestAnswers checks the answers to responses of servers that work, and of servers that
// misbehave: an error is never a listing.
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
		waits    bool   // the answer is a timeout
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
			p := packets(good(q))[0] // the record ends with its length and the address
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

// TestRetry checks that a question without an answer is asked once more, at the next
// resolver.
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

// TestIDs checks that ids and ports of queries differ.
func TestIDs(t *testing.T) {
	ids := map[uint16]bool{}
	s := newServer(t, func(q *dnsmessage.Message) [][]byte { ids[q.ID] = true; return listed()(q) }, nil)
	z := newTestList(t, lookup, enough, s)
	for range 50 {
		z.ask(context.Background(), client)
	}
	s.do(func() {
		if len(ids) < 45 {
			t.Errorf("%d ids in 50 queries", len(ids))
		}
	})
}

// TestCheck checks the test of a list (RFC 5782 section 5): a list is disabled while it
// fails, and the log has a line for each change.
func TestCheck(t *testing.T) {
	responses := map[string][]string{}
	s := newServer(t, func(q *dnsmessage.Message) [][]byte { return listed(responses[q.Questions[0].Name.String()]...)(q) }, nil)
	z := newTestList(t, lookup, enough, s)
	var log bytes.Buffer
	z.log, z.problem = slog.New(slog.NewTextHandler(&log, nil)), errUntested
	const has, hasNot = "2.0.0.127.bl.example.org.", "1.0.0.127.bl.example.org."
	for _, tt := range []struct {
		has, hasNot []string
		problem     string
	}{
		{nil, nil, "127.0.0.2 is not listed"},
		{[]string{"127.0.0.2", "127.0.0.77"}, nil, ""}, // codes that the operator does not list
		{[]string{"127.0.0.2"}, []string{"127.0.0.2"}, "127.0.0.1 is listed as 127.0.0.2"},
		{[]string{"127.255.255.252"}, nil, "error code 127.255.255.252"},
		{[]string{"198.51.100.80"}, []string{"198.51.100.80"}, "error code 198.51.100.80"},
		{[]string{"127.0.0.2"}, nil, ""},
	} {
		s.do(func() { responses[has], responses[hasNot] = tt.has, tt.hasNot })
		log.Reset()
		worked, wrong := z.test(context.Background())
		again := log.String()
		z.test(context.Background())
		if worked != (tt.problem == "") || log.String() != again || strings.Count(again, "\n") != 1 || !strings.Contains(again, tt.problem) {
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

// TestRate checks the limits of questions: the rate, and pauses after errors.
func TestRate(t *testing.T) {
	responses := listed()
	s := newServer(t, func(q *dnsmessage.Message) [][]byte { return responses(q) }, nil)
	l := *lookup
	l.Rate = 2
	z := newTestList(t, &l, enough, s)
	now := time.Now()
	z.now = func() time.Time { return now }
	ask := func(n int) (causes map[string]int) {
		causes = map[string]int{}
		for range n {
			causes[z.ask(context.Background(), client).Cause]++
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

// TestPause checks that the errors of questions that were asked together cause one pause,
// and that codes that the operator has not listed cause none.
func TestPause(t *testing.T) {
	z := newTestList(t, lookup, enough)
	now := time.Now()
	z.now = func() time.Time { return now }
	for range workers {
		z.note(&dnslist.Answer{Cause: causeTimeout})
	}
	if z.state() == nil {
		t.Error("no pause")
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

// TestWildcard checks that many listings cause a test, that the listings do not count
// until the test has passed, and that listings of a list with many entries count.
func TestWildcard(t *testing.T) {
	wildcard := true
	s := newServer(t, func(q *dnsmessage.Message) [][]byte {
		name := q.Questions[0].Name.String()
		if wildcard || strings.HasPrefix(name, "2.0.0.127.") || strings.HasPrefix(name, "7.") {
			return listed("127.0.0.2")(q)
		}
		return listed()(q)
	}, nil)
	l := *lookup
	l.Rate = 1000
	z := newTestList(t, &l, enough, s)
	now := time.Now()
	z.now = func() time.Time { return now }
	other := netip.MustParseAddr("192.0.2.8")
	ask := func(n int, a netip.Addr) (causes string) {
		for range n {
			causes = z.ask(context.Background(), a).Cause
		}
		return causes
	}
	if cause := ask(maxRow, client); cause != "" || len(z.tests) > 0 {
		t.Errorf("after %d listings: %q", maxRow, cause)
	}
	if cause := ask(1, client); cause != causeDisabled || len(z.tests) != 1 {
		t.Errorf("after %d listings: %q", maxRow+1, cause)
	}
	for _, listed := range []bool{true, false} { // questions in progress
		a := dnslist.Answer{}
		if listed {
			a.Codes = []netip.Addr{testListed}
		}
		if z.note(&a); (a.Cause == causeDisabled) != listed || len(a.Codes) > 0 {
			t.Errorf("during the test: %+v", a)
		}
	}
	if ok, wrong := z.test(context.Background()); ok || !wrong || ask(1, client) != causeDisabled {
		t.Errorf("the test passed: %v, %v", ok, wrong)
	}
	s.do(func() { wildcard = false })
	if ok, wrong := z.test(context.Background()); !ok || wrong {
		t.Errorf("the test failed: %v, %v", ok, wrong)
	}
	<-z.tests
	now = now.Add(trustTime)
	for i := range 2 * window { // 40 of 50 are listings
		if cause := ask(4, client) + ask(1, other); cause != "" {
			t.Fatalf("answer %d: %q", 5*i, cause)
		}
	}
	ask(maxRow-4, client)
	if cause := ask(1, client); cause != causeDisabled || len(z.tests) != 1 {
		t.Errorf("more than 40 of 50 listings: %q", cause)
	}
	// A list that has passed the test because of many listings is not tested again soon.
	if ok, wrong := z.test(context.Background()); !ok || wrong || ask(10*maxRow, client) != "" {
		t.Errorf("the second test: %v, %v", ok, wrong)
	}
	now = now.Add(trustTime)
	if cause := ask(1, client); cause != causeDisabled {
		t.Errorf("after a minute: %q", cause)
	}
}

// TestKey checks that the key is a part of the questions and of nothing else, and that
// other users must not be able to read its file.
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
	l.Key = filepath.Dir(name)
	if _, err := newList(&l, dns, slog.New(slog.DiscardHandler), time.Now); err == nil {
		t.Error("a directory as a key")
	}
}

// TestResolvConf checks the resolvers of the system.
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
}

// newTestService returns a service for lists whose tests have passed.
func newTestService(t *testing.T, lists ...*list) *Service {
	t.Helper()
	s := &Service{name: "lookup", lists: map[string]*list{}, stale: map[string]bool{}, order: lists, jobs: make(chan job, 1), answers: make(chan dnslist.Answer, 3)}
	for _, z := range lists {
		s.lists[z.id] = z
	}
	return s
}

// TestTooMany checks that a question for which there is no room has an unknown answer.
func TestTooMany(t *testing.T) {
	z := newTestList(t, lookup, enough)
	s := newTestService(t, z)
	for range 2 {
		s.start(context.Background(), client, z.id)
	}
	if a := <-s.answers; a.Cause != causeRate || a.List != z.id {
		t.Errorf("%+v", a)
	}
}

// TestStale checks that a list with another definition in the filter is not asked, and that
// the status asks for a restart of the service.
func TestStale(t *testing.T) {
	s := newTestService(t, newTestList(t, lookup, enough))
	changed := *lookup
	changed.Zone = "other.example.org"
	for _, l := range []*rules.Lookup{&changed, {Name: "new", Zone: lookup.Zone, Codes: lookup.Codes}} {
		s.start(context.Background(), client, l.ID())
		if a := <-s.answers; a.Cause != causeDisabled || a.List != l.ID() || len(s.jobs) > 0 {
			t.Errorf("%s: %+v", l.Name, a)
		}
	}
	const want = "the configuration of the filter has changed: bl, new; restart the service of companion lookup"
	if _, err := s.status(); err == nil || err.Error() != want {
		t.Errorf("status %v, want %s", err, want)
	}
	s.start(context.Background(), client, lookup.ID())
	if _, err := s.status(); err == nil || strings.Contains(err.Error(), "bl,") {
		t.Errorf("status after a question with the same definition: %v", err)
	}
}

// FuzzResponse checks that no packet causes a panic, and that only a response to the
// question has an effect: its addresses are not more than the maximum.
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
