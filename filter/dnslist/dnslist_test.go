package dnslist

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

// A bench is a Table with a clock that the test sets.
type bench struct {
	*testing.T
	*Table
	now   time.Duration
	wakes int
}

func newBench(t *testing.T, lists ...*rules.Lookup) *bench {
	b := &bench{T: t, Table: New(), now: time.Hour}
	b.Table.Now = func() time.Duration { return b.now }
	b.Use(lists)
	b.Table.Wake = func() { b.wakes++ }
	return b
}

var (
	zen   = &rules.Lookup{Name: "zen", Zone: "zen.example.org", Codes: prefixes("127.0.0.2/32", "127.0.0.4/32"), Ignore: prefixes("127.0.0.10/32")}
	white = &rules.Lookup{Name: "white", Allow: true, Zone: "list.example.net", Codes: prefixes("127.0.0.0/16")}
	host  = netip.MustParseAddr("192.0.2.1")
)

func prefixes(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func codes(list ...string) (all []netip.Addr) {
	for _, s := range list {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

// states returns the states of the answers of all lists about a.
func (b *bench) states(a netip.Addr) string {
	b.Helper()
	text := ""
	for _, f := range b.Ask(a, false, nil) {
		text += [...]string{"unknown ", "pending ", "absent ", "listed "}[f.State]
	}
	return text
}

// digest matches the hash in the ID of a list.
var digest = regexp.MustCompile("@[0-9a-f]{8}")

// questions returns the queued questions without waiting. The questions contain names of lists in
// place of IDs. After the call, the companion is considered running.
func (b *bench) questions() string {
	return digest.ReplaceAllString(fmt.Sprint(b.Questions(context.Background(), 0)), "")
}

// Answer stores an answer that contains the name of the list instead of its ID.
func (b *bench) Answer(a Answer) error {
	for _, l := range b.lists {
		if l.Name == a.List {
			a.List = l.ID()
		}
	}
	return b.Table.Answer(a)
}

func (b *bench) want(a netip.Addr, want string) {
	b.Helper()
	if got := b.states(a); got != want {
		b.Errorf("%s: %s, want %s", a, got, want)
	}
}

// TestQuestion checks that a question is asked only once until its answer has expired.
func TestQuestion(t *testing.T) {
	b := newBench(t, zen, white)
	b.want(host, "unknown unknown ") // there is no companion
	if q := b.questions(); q != "[]" {
		t.Errorf("questions %s", q)
	}
	b.want(host, "pending pending ")
	b.want(host, "pending pending ")
	if q := b.questions(); q != "[{192.0.2.1 [zen white]}]" {
		t.Errorf("questions %s", q)
	}
	if q := b.questions(); q != "[]" {
		t.Errorf("questions again: %s", q)
	}
	for _, a := range []Answer{
		{Addr: host, List: "zen", Codes: codes("127.0.0.4", "127.0.0.10"), TTL: 10 * time.Minute},
		{Addr: host, List: "white", TTL: time.Second},
	} {
		if err := b.Answer(a); err != nil {
			t.Error(err)
		}
		if err := b.Answer(a); !errors.Is(err, ErrNotAsked) {
			t.Errorf("a second answer: %v", err)
		}
	}
	b.want(host, "listed absent ")
	if b.wakes != 2 {
		t.Errorf("%d wakes", b.wakes)
	}
	b.now += MinTTL + time.Second
	b.questions() // the companion is still running
	b.want(host, "listed pending ")
	if q := b.questions(); q != "[{192.0.2.1 [white]}]" {
		t.Errorf("questions after the end of an answer: %s", q)
	}
	b.now += answerTime + time.Second
	b.want(host, "listed unknown ") // the companion has stopped
	if err := b.Answer(Answer{Addr: host, List: "white"}); !errors.Is(err, ErrNotAsked) {
		t.Errorf("a late answer: %v", err)
	}
}

// TestNotAsked checks that answers to questions that were not asked have no effect.
func TestNotAsked(t *testing.T) {
	b := newBench(t, zen)
	b.questions()
	b.want(host, "pending ")
	listed := Answer{Addr: host, List: "zen", Codes: codes("127.0.0.2"), TTL: time.Hour}
	if err := b.Answer(listed); !errors.Is(err, ErrNotAsked) {
		t.Errorf("before the question was sent: %v", err)
	}
	b.questions()
	for _, a := range []Answer{
		{Addr: netip.MustParseAddr("192.0.2.2"), List: "zen", Codes: codes("127.0.0.2")},
		{Addr: host, List: "other", Codes: codes("127.0.0.2")},
	} {
		if err := b.Answer(a); !errors.Is(err, ErrNotAsked) {
			t.Errorf("%+v: %v", a, err)
		}
	}
	for _, a := range []Answer{
		{Addr: host, List: "zen", Codes: codes("127.0.0.1")},
		{Addr: host, List: "zen", Codes: codes("127.255.255.254")},
		{Addr: host, List: "zen", Codes: codes("192.0.2.1")},
		{Addr: host, List: "zen", Cause: "other"},
	} {
		if err := b.Answer(a); err == nil || errors.Is(err, ErrNotAsked) {
			t.Errorf("%+v: %v", a, err)
		}
	}
	b.want(netip.MustParseAddr("192.0.2.2"), "pending ")
	if err := b.Answer(listed); err != nil {
		t.Error(err)
	}
	b.want(host, "listed ")
}

// TestUnknown checks that errors, and codes that are not declared, are counted as unknown answers.
func TestUnknown(t *testing.T) {
	b := newBench(t, zen)
	b.questions()
	for i, a := range []Answer{
		{Cause: "timeout"},
		{Cause: "timeout", Codes: codes("127.0.0.2")},
		{Codes: codes("127.0.0.2", "127.0.0.3")},
		{Codes: codes("127.0.0.3")},
	} {
		a.Addr, a.List = netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), "zen"
		b.want(a.Addr, "pending ")
		b.questions()
		if err := b.Answer(a); err != nil {
			t.Error(err)
		}
		b.want(a.Addr, "unknown ")
	}
	s := b.Status()[0]
	if s.Asked != 4 || s.Listed+s.Absent != 0 || s.Unknown["timeout"] != 2 || s.Unknown["code"] != 2 {
		t.Errorf("%+v", s)
	}
	b.now += MinTTL + time.Second
	b.questions()
	b.want(netip.MustParseAddr("192.0.2.0"), "pending ") // the question is asked again
}

// TestLost checks that each question is counted exactly once, even if its row is replaced or the
// companion stops.
func TestLost(t *testing.T) {
	b := newBench(t, zen, white)
	sum := func() (all uint64) {
		for _, s := range b.Status() {
			all += s.Listed + s.Absent
			for _, n := range s.Unknown {
				all += n
			}
		}
		return all
	}
	asked := func() (all uint64) {
		for _, s := range b.Status() {
			all += s.Asked
		}
		return all
	}
	b.questions()
	for i := range 50_000 { // more addresses than the table has rows
		b.Ask(netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)}), false, nil)
		if i%maxBatch == 0 {
			for _, q := range b.Questions(context.Background(), 0) {
				if q.Addr.As4()[3]%2 == 0 { // the other questions are lost
					if err := b.Answer(Answer{Addr: q.Addr, List: "zen", TTL: time.Hour}); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	if n := sum(); n == 0 || n >= asked() {
		t.Errorf("%d answers to %d questions", n, asked())
	}
	b.now += answerTime + time.Second
	if err := b.Answer(Answer{Addr: netip.MustParseAddr("100.0.195.79"), List: "zen"}); !errors.Is(err, ErrNotAsked) {
		t.Errorf("a late answer: %v", err)
	}
	if n := sum(); n != asked() || sum() != n {
		t.Errorf("%d answers to %d questions", n, asked())
	}
	if s := b.Status(); s[0].Unknown[lost] == 0 || s[1].Unknown[lost] != s[1].Asked {
		t.Errorf("%+v", s)
	}
	b.questions()
	b.want(host, "pending pending ")
	b.now += answerTime + time.Second
	b.questions()
	b.want(host, "pending pending ") // the questions are asked again before the status is read
	b.now += answerTime + time.Second
	if n := sum(); n != asked() {
		t.Errorf("asked again: %d answers to %d questions", n, asked())
	}
}

// TestIgnored checks that an answer with only ignored codes does not mean that the host is listed.
func TestIgnored(t *testing.T) {
	b := newBench(t, zen)
	b.questions()
	b.want(host, "pending ")
	b.questions()
	if err := b.Answer(Answer{Addr: host, List: "zen", Codes: codes("127.0.0.10")}); err != nil {
		t.Error(err)
	}
	b.want(host, "absent ")
}

// TestEvents checks the events for answers.
func TestEvents(t *testing.T) {
	b := newBench(t, zen, white)
	b.questions()
	b.want(host, "pending pending ")
	b.questions()
	for _, list := range []string{"zen", "white"} {
		if err := b.Answer(Answer{Addr: host, List: list, Codes: codes("127.0.0.2", "127.0.0.4")[:len(list)/4+1]}); err != nil {
			t.Error(err)
		}
	}
	got := ""
	for _, f := range b.Ask(host, false, nil) {
		ev := f.Event(&smtp.Event{Time: 5, Session: 7})
		got += fmt.Sprintf("%d %d %s %s %s %s; ", ev.Time, ev.Session, ev.Name, ev.Word, ev.Text, ev.Result)
	}
	if want := "5 7 zen zen.example.org 127.0.0.2 fail; 5 7 white list.example.net 127.0.0.2,127.0.0.4 pass; "; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestBounded checks that clients cannot make the table or its queue grow without limit.
// TestBounded also checks that dropped questions are counted.
func TestBounded(t *testing.T) {
	b := newBench(t, zen)
	b.questions()
	const many = 100_000
	for i := range many {
		b.Ask(netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)}), false, nil)
	}
	if len(b.queue) != maxQueue || len(b.rows) != sets*ways {
		t.Errorf("%d questions, %d rows", len(b.queue), len(b.rows))
	}
	if s := b.Status()[0]; s.Asked != maxQueue || s.Dropped != many-maxQueue {
		t.Errorf("%+v", s)
	}
	// A new address replaces another one if the table is full.
	for range maxQueue/maxBatch + 1 {
		b.questions()
	}
	for i := range many {
		if b.Ask(netip.AddrFrom4([4]byte{101, byte(i >> 16), byte(i >> 8), byte(i)}), false, nil); i%maxBatch == 0 {
			b.questions()
		}
	}
	b.questions()
	b.want(host, "pending ")
}

// TestSource checks that each address has its own answer. TestSource also checks that a client
// cannot cause questions about many addresses in its /64, unless these are listed.
func TestSource(t *testing.T) {
	b := newBench(t, zen, white)
	b.questions()
	address := func(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1)) }
	const many = 20
	for i := range many {
		want := "pending pending "
		if i >= maxOfSource {
			want = "unknown unknown "
		}
		b.want(address(i), want)
	}
	b.want(netip.MustParseAddr("2001:db8:0:1::1"), "pending pending ")
	if s := b.Status()[0]; s.Asked != maxOfSource+1 || s.Dropped != many-maxOfSource {
		t.Errorf("%+v", s)
	}
	b.questions()
	answer := func(i int, list string, of ...string) {
		t.Helper()
		if err := b.Answer(Answer{Addr: address(i), List: list, Codes: codes(of...), TTL: time.Hour}); err != nil {
			t.Error(err)
		}
	}
	answer(0, "white", "127.0.0.2") // a listing in an allowlist does not count here
	answer(0, "zen")
	answer(1, "zen")
	b.want(address(many), "unknown unknown ")
	// The next address replaces the row of a listed address.
	answer(2, "zen", "127.0.0.2")
	b.want(address(many), "pending pending ")
	b.want(address(2), "unknown unknown ")
	b.want(address(0), "absent listed ")
	b.questions()
	answer(many, "zen", "127.0.0.2")
	for i := range many {
		b.want(address(100+i), "pending pending ")
		b.questions()
		answer(100+i, "zen", "127.0.0.2")
	}
	b.now += MaxTTL + time.Second
	b.questions()
	b.want(address(many), "pending pending ") // the answers about the other addresses have expired
}

// TestDropped checks that a dropped question is counted once per session, and only for lists that
// have no answer.
func TestDropped(t *testing.T) {
	b := newBench(t, zen, white)
	b.questions()
	b.want(host, "pending pending ")
	b.questions()
	if err := b.Answer(Answer{Addr: host, List: "zen", TTL: time.Hour}); err != nil {
		t.Error(err)
	}
	b.now += answerTime + time.Second // the question to the list "white" has expired
	b.questions()
	for i := range maxQueue {
		b.Ask(netip.AddrFrom4([4]byte{100, 0, byte(i >> 8), byte(i)}), false, nil)
	}
	for i := range 5 {
		b.Ask(host, i > 0, nil)
	}
	if s := b.Status(); s[0].Dropped != 0 || s[1].Dropped != 1 {
		t.Errorf("%+v", s)
	}
}

// TestChanged checks that the companion wakes up if the lists change. Requests that wait must wake
// up with each new policy.
func TestChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, zen)
		b.questions()
		start := time.Now()
		done := make(chan []Question)
		go func() { done <- b.Questions(context.Background(), time.Minute) }()
		synctest.Wait()
		b.Use([]*rules.Lookup{white})
		if q := <-done; len(q) != 0 || time.Since(start) >= time.Second || b.wakes != 1 {
			t.Errorf("%v after %v, %d wakes", q, time.Since(start), b.wakes)
		}
		if ids := b.IDs(); len(ids) != 1 || ids[0] != white.ID() {
			t.Errorf("%q", ids)
		}
		if b.Use([]*rules.Lookup{white}); b.wakes != 2 { // the rules may have changed
			t.Errorf("%d wakes", b.wakes)
		}
		b.Questions(context.Background(), time.Minute)
		if took := time.Since(start); took < time.Minute {
			t.Errorf("the same lists: %v", took)
		}
	})
}

// TestUse checks that a new policy drops the answers only if its lists are different.
func TestUse(t *testing.T) {
	b := newBench(t, zen)
	b.questions()
	b.want(host, "pending ")
	b.questions()
	if err := b.Answer(Answer{Addr: host, List: "zen", Codes: codes("127.0.0.2")}); err != nil {
		t.Error(err)
	}
	same := *zen
	b.Use([]*rules.Lookup{&same})
	b.want(host, "listed ")
	b.Use([]*rules.Lookup{white})
	b.want(host, "pending ")
	b.Use(nil)
	b.want(host, "")
}

// TestDefinition checks that an answer is ignored if the list was defined differently when the
// question was asked.
func TestDefinition(t *testing.T) {
	b := newBench(t, zen)
	b.questions()
	b.want(host, "pending ")
	old := b.Questions(context.Background(), 0)[0].Lists[0]
	other := []*rules.Lookup{}
	for i := range 5 {
		l := *zen
		l.Zone = [...]string{"bl.example.org", l.Zone, l.Zone, l.Zone, l.Zone}[i]
		l.Allow = i == 1
		l.Key = [...]string{"", "", "key", "", ""}[i]
		if i == 3 {
			l.Codes = l.Codes[:1]
		} else if i == 4 {
			l.Ignore = nil
		}
		other = append(other, &l)
	}
	for _, l := range other {
		b.Use([]*rules.Lookup{l})
		b.want(host, "pending ")
		b.questions()
		answer := Answer{Addr: host, List: old, Codes: codes("127.0.0.2"), TTL: time.Hour}
		if err := b.Table.Answer(answer); !errors.Is(err, ErrNotAsked) {
			t.Errorf("%s: %v", l, err)
		}
		b.want(host, "pending ")
	}
	same := *zen
	same.Rate, same.Hold = 5, time.Second
	if same.ID() != old {
		t.Errorf("another rate and hold: %s, want %s", same.ID(), old)
	}
}

// TestWithdrawn checks that the companion can withdraw the listings of one list. Answers of other
// lists must not change.
func TestWithdrawn(t *testing.T) {
	b := newBench(t, zen, white)
	b.questions()
	other := netip.MustParseAddr("192.0.2.2")
	for _, a := range []netip.Addr{host, other} {
		b.want(a, "pending pending ")
		b.questions()
		for _, list := range []string{"zen", "white"} {
			answer := Answer{Addr: a, List: list, TTL: time.Hour}
			if a == host {
				answer.Codes = codes("127.0.0.2")
			}
			if err := b.Answer(answer); err != nil {
				t.Error(err)
			}
		}
	}
	for _, a := range []Answer{{List: "zen"}, {List: "zen", Cause: "timeout"}, {List: "none", Cause: "disabled"}} {
		if err := b.Answer(a); err == nil {
			t.Errorf("accepted %+v", a)
		}
	}
	b.want(host, "listed listed ")
	var withdrawn []string
	b.Withdraw = func(list *rules.Lookup, listed []netip.Addr) {
		withdrawn = append(withdrawn, fmt.Sprint(list.Name, listed))
	}
	before := b.Withdrawals()
	for range 2 {
		if err := b.Answer(Answer{List: "zen", Cause: "disabled"}); err != nil {
			t.Error(err)
		}
	}
	if want := fmt.Sprint("zen", []netip.Addr{host}); !slices.Equal(withdrawn, []string{want}) || b.Withdrawals() == before {
		t.Errorf("withdrawn %q, want %q", withdrawn, want)
	}
	if !b.WithdrawnSince("zen", before) || b.WithdrawnSince("zen", b.Withdrawals()) || b.WithdrawnSince("white", before) {
		t.Error("wrong lists have withdrawn listings")
	}
	b.want(other, "absent absent ")
	b.want(host, "pending listed ")
	if s := b.Status(); s[0].Withdrawn != 1 || s[1].Withdrawn != 0 {
		t.Errorf("%+v", s)
	}
}

// TestPublic checks for which addresses the lists are asked.
func TestPublic(t *testing.T) {
	for a, want := range map[string]bool{
		"192.0.2.1": true, "2001:db8::1": true, "10.0.0.1": false, "127.0.0.1": false, "169.254.1.1": false, "100.64.0.1": false,
		"0.0.0.1": false, "255.255.255.255": false, "224.0.0.1": false, "::1": false, "fe80::1": false, "fd00::1": false, "::": false,
	} {
		if got := Public(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %v", a, got)
		}
	}
}
