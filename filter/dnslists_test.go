package filter_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/dnslist"
	"scanwatch/filter/events"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/replay"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
	"scanwatch/store"
)

// A listBench is a pipeline with a policy that uses DNS lists. The companion of a listBench answers
// the questions.
type listBench struct {
	*testing.T
	policy  *rules.Policy
	memory  *memory.Memory
	lists   *dnslist.Table
	p       *filter.Pipeline
	now     int64
	next    uint64
	records []*store.Record
	log     []string
}

const listPolicy = `mode enforce
companion lookup user _swlookup
lookup zen dnsbl "zen.example.org" codes { 127.0.0.2, 127.0.0.4 } hold 300ms
lookup other dnsbl "bl.example.net" codes 127.0.0.9
lookup white allowlist "list.example.net" codes 127.0.2.0/23 hold 200ms
gateway 198.51.100.1
own-address 198.51.100.2
table <friends> { 198.51.100.3 }
pass from 198.51.100.4
pass match listed white
rule zen phase helo match listed zen reject "550 5.7.1 Listed"
rule points phase rcpt-to match score > 15 reject "550 5.7.1 Points"
score evidence listed 20
`

func newListBench(t *testing.T, text string) *listBench {
	t.Helper()
	tree, err := rules.Parse("test.conf", func(string) ([]byte, error) { return []byte(text), nil })
	if err != nil {
		t.Fatal(err)
	}
	b := &listBench{T: t, memory: memory.New(), lists: dnslist.New(), now: 1_795_000_000e6}
	if b.policy, _, err = rules.Compile(tree, rules.Options{}); err != nil {
		t.Fatal(err)
	}
	b.p = filter.New(filter.Options{
		Record: b.record, Log: func(line []byte) { b.log = append(b.log, string(line)) }, Lists: func() *lookup.Lists { return lists }, Memory: b.memory, Lookups: b.lists,
		OwnAddrs: []netip.Addr{netip.MustParseAddr("198.51.100.5")},
	})
	b.p.Use(&filter.Settings{Policy: b.policy})
	b.lists.Use(b.policy.Lookups)
	b.lists.Questions(context.Background(), 0) // the companion is running
	return b
}

func (b *listBench) record(end time.Time, id uint64, value []byte) {
	r, err := store.Decode(store.AppendKey(nil, end, id), bytes.Clone(value))
	if err != nil {
		b.Errorf("record: %v", err)
	}
	b.records = append(b.records, &r)
}

// connect opens a session and returns its id.
func (b *listBench) connect(src string) uint64 {
	b.next++
	ev := smtp.Event{Kind: smtp.EventConnect, Time: b.now, Session: b.next, FCrDNS: smtp.FCrDNSPass, RDNS: []byte("mail.example.net"), Dst: netip.MustParseAddrPort("203.0.113.25:25")}
	if src == "local" {
		ev.Local = true
	} else {
		ev.Src = netip.AddrPortFrom(netip.MustParseAddr(src), 4000)
	}
	b.p.Event(&ev)
	return b.next
}

// questions returns the next questions of the filter. The questions contain the names of the lists.
func (b *listBench) questions() string {
	return regexp.MustCompile("@[0-9a-f]+").ReplaceAllString(fmt.Sprint(b.lists.Questions(context.Background(), 0)), "")
}

func (b *listBench) answer(src, list string, codes ...string) {
	b.Helper()
	a := dnslist.Answer{Addr: netip.MustParseAddr(src), TTL: time.Hour}
	for _, l := range b.policy.Lookups {
		if l.Name == list {
			a.List = l.ID()
		}
	}
	for _, c := range codes {
		a.Codes = append(a.Codes, netip.MustParseAddr(c))
	}
	if err := b.lists.Answer(a); err != nil {
		b.Error(err)
	}
}

// ask sends a request after a pause, and returns the answer.
func (b *listBench) ask(id uint64, phase smtp.Phase, pause time.Duration, waited bool) string {
	b.now += pause.Microseconds()
	a := b.p.Ask(&smtp.Event{Kind: smtp.EventRequest, Time: b.now, Session: id, Phase: phase, Name: []byte("mail.example.net"), Addr: []byte("joe@example.net"), Waited: waited})
	if a.Wait > 0 {
		return "wait " + a.Wait.String()
	}
	if a.Hold > 0 {
		b.Errorf("answer delayed by %v", a.Hold)
	}
	text, _, _ := strings.Cut(a.Text, " [")
	return strings.TrimSpace(a.Decision.String() + " " + text)
}

// greet sends a greeting and its reply.
func (b *listBench) greet(id uint64) {
	for _, ev := range []smtp.Event{
		{Kind: smtp.EventGreeting, Code: 220, Name: []byte("mx.example.org")},
		{Kind: smtp.EventLine, Verb: smtp.VerbEhlo, Text: []byte("EHLO mail.example.net")},
	} {
		ev.Time, ev.Session = b.now, id
		b.p.Event(&ev)
	}
}

func (b *listBench) end(id uint64) {
	b.p.Event(&smtp.Event{Kind: smtp.EventDisconnect, Time: b.now, Session: id, Ending: smtp.EndingQuit})
}

// TestListAnswers checks the effect of each answer. TestListAnswers also checks that a request
// never waits longer for a list than the list's hold.
func TestListAnswers(t *testing.T) {
	const src = "192.0.2.7"
	for _, tt := range []struct {
		name    string
		answer  func(b *listBench)
		waits   string // answer in the helo phase, 100 ms after the start
		helo    string
		rcpt    string
		listing string // steps and findings about lists in the record
	}{
		{"no answer", func(*listBench) {}, "wait 200ms", "proceed", "proceed", ""},
		{"listed", func(b *listBench) { b.answer(src, "zen", "127.0.0.4"); b.answer(src, "white") }, "reject 550 5.7.1 Listed", "reject 550 5.7.1 Listed", "reject 550 5.7.1 Points",
			"zen 127.0.0.4 zen.example.org fail; listed 127.0.0.4 zen zen.example.org; white   list.example.net ok"},
		{"not listed", func(b *listBench) { b.answer(src, "zen"); b.answer(src, "other"); b.answer(src, "white") }, "proceed", "proceed", "proceed",
			"zen  zen.example.org ok; other  bl.example.net ok; white  list.example.net ok"},
		{"points", func(b *listBench) { b.answer(src, "zen"); b.answer(src, "other", "127.0.0.9"); b.answer(src, "white") }, "proceed", "proceed", "reject 550 5.7.1 Points",
			"zen  zen.example.org ok; other 127.0.0.9 bl.example.net fail; listed 127.0.0.9 other bl.example.net; white  list.example.net ok"},
		{"two lists", func(b *listBench) {
			b.answer(src, "zen", "127.0.0.2", "127.0.0.4")
			b.answer(src, "other", "127.0.0.9")
		}, "wait 100ms", "reject 450 4.7.1 Listed", "reject 450 4.7.1 Points", // temporary, because the list "white" has not answered
			"zen 127.0.0.2,127.0.0.4 zen.example.org fail; listed 127.0.0.2,127.0.0.4 zen zen.example.org; other 127.0.0.9 bl.example.net fail; listed 127.0.0.9 other bl.example.net"},
		{"allowed", func(b *listBench) { b.answer(src, "zen", "127.0.0.4"); b.answer(src, "white", "127.0.3.2") }, "proceed", "proceed", "proceed",
			"zen 127.0.0.4 zen.example.org fail; listed 127.0.0.4 zen zen.example.org; white 127.0.3.2 list.example.net pass"},
		{"error", func(b *listBench) {
			b.answer(src, "zen", "127.0.0.4", "127.0.0.77")
			b.answer(src, "white", "127.1.0.1")
		}, "proceed", "proceed", "proceed", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newListBench(t, listPolicy)
			id := b.connect(src)
			if got := b.questions(); got != "[{192.0.2.7 [zen other white]}]" {
				t.Errorf("questions %s", got)
			}
			// No rule in the connect phase depends on a list.
			if got := b.ask(id, smtp.PhaseConnect, 0, false); got != "proceed" {
				t.Errorf("connect: %s", got)
			}
			b.greet(id)
			tt.answer(b)
			got := b.ask(id, smtp.PhaseHelo, 100*time.Millisecond, false)
			if got != tt.waits {
				t.Errorf("helo: %s, want %s", got, tt.waits)
			}
			if strings.HasPrefix(got, "wait") {
				if got := b.ask(id, smtp.PhaseHelo, 200*time.Millisecond, true); got != tt.helo {
					t.Errorf("helo after the wait: %s, want %s", got, tt.helo)
				}
			}
			if got := b.ask(id, smtp.PhaseRcptTo, time.Second, false); got != tt.rcpt {
				t.Errorf("rcpt-to: %s, want %s", got, tt.rcpt)
			}
			b.end(id)
			if got := strings.Join(strings.Fields(b.listings(b.records[0])), " "); got != strings.Join(strings.Fields(tt.listing), " ") {
				t.Errorf("record: %s, want %s", got, tt.listing)
			}
		})
	}
}

// listings returns the answers of lists in a record, and the findings about them.
func (b *listBench) listings(r *store.Record) string {
	var all []string
	err := r.Steps(func(s *store.Step) bool {
		switch {
		case s.Kind == store.KindListed:
			all = append(all, fmt.Sprintf("%s %s %s %s", s.Text, s.Arg, s.Match, s.Result))
		case s.Kind == store.KindFinding && string(s.Text) == "listed":
			all = append(all, fmt.Sprintf("%s %s %s", s.Text, s.Arg, s.Match))
		}
		return true
	})
	if err != nil {
		b.Error(err)
	}
	return strings.Join(all, "; ")
}

// TestListNotAsked checks about which clients the lists are not asked.
func TestListNotAsked(t *testing.T) {
	b := newListBench(t, listPolicy)
	known, banned := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	b.memory.Peers.Delivered(&memory.Client{Addr: known}, memory.Delivery{Messages: 2, Senders: []string{"example.net"}}, b.now-(48*time.Hour).Microseconds())
	b.memory.Bans.AddPrefix(netip.PrefixFrom(banned, 32), time.Hour, "manual", b.now)
	for _, src := range []string{"local", "198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.4", "198.51.100.5", known.String(), banned.String(),
		"127.0.0.1", "10.1.2.3", "169.254.1.1", "100.64.1.1", "::1", "fe80::1", "fd00::1"} {
		id := b.connect(src)
		b.ask(id, smtp.PhaseConnect, 0, false)
		if got := b.ask(id, smtp.PhaseHelo, 0, false); strings.HasPrefix(got, "wait") {
			t.Errorf("%s waits", src)
		}
		if got := b.questions(); got != "[]" {
			t.Errorf("%s: questions %s", src, got)
		}
		b.end(id)
	}
	b.end(b.connect("2001:db8::1"))
	b.end(b.connect("192.0.2.3"))
	b.end(b.connect("192.0.2.3"))
	if got := b.questions(); got != "[{2001:db8::1 [zen other white]} {192.0.2.3 [zen other white]}]" {
		t.Errorf("questions %s", got)
	}
}

// TestListNoCompanion checks that requests do not wait if no companion is running, or if no list in
// the policy has a hold.
func TestListNoCompanion(t *testing.T) {
	b := newListBench(t, listPolicy)
	b.lists.Now = func() time.Duration { return time.Hour }
	id := b.connect("192.0.2.7")
	if got := b.ask(id, smtp.PhaseHelo, 0, false); got != "proceed" {
		t.Errorf("without a companion: %s", got)
	}
	b = newListBench(t, strings.NewReplacer(" hold 300ms", "", " hold 200ms", "").Replace(listPolicy))
	id = b.connect("192.0.2.7")
	if got := b.questions() + b.ask(id, smtp.PhaseHelo, 0, false); !strings.HasSuffix(got, "]}]proceed") {
		t.Errorf("without a hold: %s", got)
	}
}

// TestListNoWait checks that requests do not wait for a list in observe mode, after a login, or
// after the clock has been set back.
func TestListNoWait(t *testing.T) {
	const src = "192.0.2.7"
	helo := func(b *listBench, id uint64) string { return b.ask(id, smtp.PhaseHelo, 0, false) }
	b := newListBench(t, listPolicy)
	if got := helo(b, b.connect(src)); got != "wait 300ms" {
		t.Errorf("enforce: %s", got)
	}
	b = newListBench(t, listPolicy)
	id := b.connect(src)
	b.now -= time.Hour.Microseconds()
	if got := helo(b, id); got != "proceed" {
		t.Errorf("after the clock was set back: %s", got)
	}
	b = newListBench(t, strings.Replace(listPolicy, "mode enforce", "mode observe", 1))
	if got := helo(b, b.connect(src)); got != "proceed" {
		t.Errorf("mode observe: %s", got)
	}
	b = newListBench(t, listPolicy)
	b.p.Use(&filter.Settings{Policy: b.policy.InMode(rules.Observe)}) // "scanwatch mode observe" does the same
	if got := helo(b, b.connect(src)); got != "proceed" {
		t.Errorf("halted: %s", got)
	}

	b = newListBench(t, listPolicy+"rule users phase mail-from match auth listed zen reject \"550 5.7.1 Users\"\n")
	id = b.connect(src)
	b.p.Event(&smtp.Event{Kind: smtp.EventAuth, Time: b.now, Session: id, Name: []byte("bob"), Result: smtp.ResultPass})
	if got := helo(b, id); got != "proceed" {
		t.Errorf("after the login: %s", got)
	}
	b.questions()
	b.answer(src, "zen", "127.0.0.4")
	b.answer(src, "white")
	if got := b.ask(id, smtp.PhaseMailFrom, 0, false); got != "reject 550 5.7.1 Users" {
		t.Errorf("an answer after the login: %s", got)
	}
	id = b.connect("192.0.2.8")
	b.questions()
	b.p.Event(&smtp.Event{Kind: smtp.EventAuth, Time: b.now, Session: id, Name: []byte("bob"), Result: smtp.ResultPass})
	b.lists.Now = func() time.Duration { return dnslist.MinTTL } // the question has expired
	b.questions()
	helo(b, id)
	if got := b.questions(); got != "[]" {
		t.Errorf("questions about a user: %s", got)
	}
}

// TestListWaitSum checks that the waits of a session's requests are together not longer than the
// hold. The limit must hold even if the clock is set back after each wait.
func TestListWaitSum(t *testing.T) {
	b := newListBench(t, strings.NewReplacer("rule zen phase helo match", "rule zen phase { helo, mail-from, rcpt-to } match").Replace(listPolicy))
	id := b.connect("192.0.2.7")
	start := b.now
	var got []string
	for _, phase := range []smtp.Phase{smtp.PhaseHelo, smtp.PhaseMailFrom, smtp.PhaseRcptTo} {
		b.now = start
		got = append(got, b.ask(id, phase, 0, false))
		if strings.HasPrefix(got[len(got)-1], "wait") {
			b.ask(id, phase, 50*time.Millisecond, false) // another answer arrives
			b.ask(id, phase, 100*time.Millisecond, true)
		}
	}
	if want := []string{"wait 300ms", "wait 150ms", "proceed"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	b.end(id)
	b.now = start
	if got := b.ask(b.connect("192.0.2.8"), smtp.PhaseHelo, 0, false); got != "wait 300ms" {
		t.Errorf("another session: %s", got)
	}
}

// TestListNeeded checks that a request waits for a list only if the answer may change the filter's
// decision.
func TestListNeeded(t *testing.T) {
	const head = "mode enforce\ncompanion lookup user _swlookup\nlookup zen dnsbl \"zen.example.org\" codes 127.0.0.2 hold 300ms\n" +
		"lookup white allowlist \"list.example.net\" codes 127.0.2.0/23 hold 200ms\n"
	for _, tt := range []struct{ policy, want string }{
		{"rule r phase helo match listed zen reject", "wait 300ms"},
		{"rule r phase helo match listed zen fcrdns fail reject", "proceed"},
		{"rule r phase helo match listed zen helo \"mail.example.net\" reject", "wait 300ms"}, // this request contains the name
		{"rule r phase helo match listed zen helo \"mail.example.com\" reject", "proceed"},
		{"rule r phase helo match listed zen evidence rdns-missing reject", "proceed"},
		{"pass match listed white", "proceed"},
		{"pass match listed white\nrule r phase helo match helo \"mail.example.net\" reject", "wait 200ms"},
		{"pass match listed white\nrule r phase helo match helo \"mail.example.com\" reject", "proceed"},
		{"score evidence listed 5\nrule r phase helo match score > 4 reject", "wait 300ms"},
		{"score evidence listed 5\nrule r phase helo match score > 5 reject", "proceed"},
	} {
		b := newListBench(t, head+tt.policy+"\n")
		id := b.connect("192.0.2.7")
		b.greet(id)
		if got := b.ask(id, smtp.PhaseHelo, 0, false); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.policy, got, tt.want)
		}
	}
}

// TestListWaits checks that a waiting request is handled only once. A second time would count
// findings about its greeting or recipient twice.
func TestListWaits(t *testing.T) {
	b := newListBench(t, listPolicy+"rule wait phase rcpt-to match listed other reject\nrule changed phase { helo, rcpt-to } match evidence helo-changed reject \"550 5.7.1 Changed\"\n")
	id := b.connect("192.0.2.7")
	b.greet(id)
	for i := range 5 {
		want := "wait 300ms"
		if i == 4 {
			want = "proceed"
		}
		if got := b.ask(id, smtp.PhaseHelo, 0, i == 4); got != want {
			t.Errorf("helo: %s", got)
		}
	}
	b.end(id)
	_ = b.records[0].Steps(func(s *store.Step) bool {
		if s.Kind == store.KindFinding && string(s.Text) != "no-mail" {
			t.Errorf("finding %s", s.Text)
		}
		return true
	})
}

// TestListLate checks that an answer is recorded if it arrives after the session's last request.
// The rules for the end of the session must use it.
func TestListLate(t *testing.T) {
	b := newListBench(t, listPolicy+"rule late phase end match listed other ban 1h\n")
	for i, end := range []func(id uint64){b.end, func(uint64) { b.p.Stop() }} {
		src := fmt.Sprintf("192.0.2.%d", i)
		id := b.connect(src)
		b.greet(id)
		b.questions()
		b.answer(src, "other", "127.0.0.9")
		b.answer(src, "white")
		end(id)
	}
	for i, r := range b.records {
		if got := strings.Join(strings.Fields(b.listings(r)), " "); got != "other 127.0.0.9 bl.example.net fail; listed 127.0.0.9 other bl.example.net; white list.example.net ok" {
			t.Errorf("record %d: %s", i, got)
		}
	}
	if _, banned := first(b.memory.Bans.Banned(&memory.Client{Addr: netip.MustParseAddr("192.0.2.0")}, b.now)); !banned || len(b.records) != 2 {
		t.Errorf("%d records, banned %v", len(b.records), banned)
	}
}

// TestListLog checks that listings in several lists are logged as one kind of evidence. The log
// line must contain the first list.
func TestListLog(t *testing.T) {
	b := newListBench(t, listPolicy)
	id := b.connect("192.0.2.7")
	b.questions()
	b.answer("192.0.2.7", "zen", "127.0.0.4")
	b.answer("192.0.2.7", "other", "127.0.0.9")
	b.end(id)
	if len(b.log) != 1 || !strings.Contains(b.log[0], " evidence=listed:medium,no-mail:high listed=\"zen zen.example.org\" ") {
		t.Errorf("%q", b.log)
	}
}

// TestListReplay checks that a replay uses the recorded answers. If no answer was recorded, the
// answer is unknown.
func TestListReplay(t *testing.T) {
	b := newListBench(t, listPolicy)
	for i, codes := range [][]string{{"127.0.0.2"}, nil, {"127.0.0.77"}} {
		src := fmt.Sprintf("192.0.2.%d", 10+i)
		b.end(b.connect(src)) // the answer arrives after this session has ended
		b.questions()
		b.answer(src, "zen", codes...)
		id := b.connect(src)
		b.ask(id, smtp.PhaseConnect, 0, false)
		b.greet(id)
		b.ask(id, smtp.PhaseHelo, time.Second, false)
		b.p.Event(&smtp.Event{Kind: smtp.EventHelo, Time: b.now, Session: id, Verb: smtp.VerbEhlo, Word: []byte("EHLO"), Name: []byte("mail.example.net"), Result: smtp.ResultOK})
		b.end(id)
	}
	for name, tt := range map[string]struct {
		policy string
		want   string
	}{
		"the same policy": {listPolicy, "- zen - - - -"},
		"at connect":      {"mode enforce\nlookup zen dnsbl \"zen.example.org\" codes 127.0.0.2\nrule zen phase connect match listed zen disconnect\n", "- zen - - - -"},
		"not listed":      {"mode enforce\nlookup zen dnsbl \"zen.example.org\" codes 127.0.0.2\nrule clean phase helo match !listed zen reject\n", "- - - clean - -"},
		"another list":    {"mode enforce\nlookup bl dnsbl \"bl.example.org\" codes 127.0.0.2\nrule bl phase helo match listed bl reject\n", "- - - - - -"},
		"evidence":        {"mode enforce\nrule token phase helo match evidence listed reject\n", "- token - - - -"},
	} {
		c := newListBench(t, tt.policy)
		got := make([]string, len(b.records))
		player := replay.New(replay.Options{
			Settings: &filter.Settings{Policy: c.policy},
			Filter:   filter.Options{Lists: func() *lookup.Lists { return lists }},
			Done: func(o *replay.Outcome) {
				if got[o.Seq] = o.Refusal.Rule; got[o.Seq] == "" {
					got[o.Seq] = "-"
				}
			},
			AskRefused: true,
		})
		for _, r := range b.records {
			player.Add(*r)
		}
		player.Close()
		if !slices.Equal(got, strings.Fields(tt.want)) {
			t.Errorf("%s: %q, want %s", name, got, tt.want)
		}
	}
}

// TestWithdrawnListing checks that a ban shows the listing that caused it, and that rules ignore a
// listing after it has been withdrawn.
func TestWithdrawnListing(t *testing.T) {
	const src = "192.0.2.7"
	for _, tt := range []struct {
		rule     string
		listed   bool   // the ban depends on a listing
		ban      string // answer before the list withdraws the listing
		withdraw string // answer after the list has withdrawn the listing
	}{
		{"match listed zen", true, "reject 550", "proceed"},
		{"match evidence listed", true, "reject 550", "proceed"},
		{"match score > 15", true, "reject 550", "proceed"},
		{"match !listed other", false, "proceed", "proceed"},
		{"match helo \"mail.example.net\"", false, "reject 550", "reject 550"},
	} {
		for _, withdrawn := range []bool{false, true} {
			b := newListBench(t, `mode enforce
companion lookup user _swlookup
lookup zen dnsbl "zen.example.org" codes 127.0.0.4
lookup other dnsbl "bl.example.net" codes 127.0.0.9
score evidence listed 20
rule block phase rcpt-to `+tt.rule+` reject "550 5.7.1 No" ban 1d
`)
			id := b.connect(src)
			b.questions()
			b.greet(id)
			b.answer(src, "zen", "127.0.0.4")
			b.ask(id, smtp.PhaseHelo, 0, false)
			want := tt.ban
			if withdrawn {
				want = tt.withdraw
				if err := b.lists.Answer(dnslist.Answer{List: b.policy.Lookups[0].ID(), Cause: "disabled"}); err != nil {
					t.Fatal(err)
				}
			}
			if got := b.ask(id, smtp.PhaseRcptTo, time.Second, false); !strings.HasPrefix(got, want) {
				t.Errorf("%s, withdrawn %v: %s", tt.rule, withdrawn, got)
			}
			b.memory.Bans.Each(func(ban memory.Ban) {
				if ban.Listed != (tt.listed && !withdrawn) {
					t.Errorf("%s, withdrawn %v: %+v", tt.rule, withdrawn, ban)
				}
			})
			if got := b.memory.Bans.RevokeListed(netip.MustParseAddr(src), func(memory.Ban) bool { return true }, b.now); (len(got) == 1) != (tt.listed && !withdrawn) {
				t.Errorf("%s, withdrawn %v: revoked %v", tt.rule, withdrawn, got)
			}
		}
	}
}

// TestExemptAfterFinding checks that watchers receive an event when a pass statement matches a
// request of a session that already has findings.
func TestExemptAfterFinding(t *testing.T) {
	b := newListBench(t, "mode enforce\ncompanion lookup user _swlookup\nlookup zen dnsbl \"zen.example.org\" codes 127.0.0.4\npass match mail-from \"joe@example.net\"\nrule r phase helo match listed zen junk\n")
	var reasons []string
	p := filter.New(filter.Options{Record: b.record, Log: func([]byte) {}, Lists: func() *lookup.Lists { return lists }, Memory: b.memory, Lookups: b.lists,
		Watch: func(e *events.Event) { reasons = append(reasons, e.Event+" "+e.Reason) }})
	p.Use(&filter.Settings{Policy: b.policy})
	b.p = p
	for _, listed := range []bool{false, true} {
		reasons = nil
		src := map[bool]string{false: "192.0.2.7", true: "192.0.2.8"}[listed]
		id := b.connect(src)
		b.questions()
		b.greet(id)
		if listed {
			b.answer(src, "zen", "127.0.0.4")
		}
		b.ask(id, smtp.PhaseHelo, 0, false)
		before := len(reasons)
		b.ask(id, smtp.PhaseMailFrom, 0, false)
		b.ask(id, smtp.PhaseMailFrom, 0, false)
		if got := slices.Contains(reasons[:before], "exempt pass"); got {
			t.Errorf("%s: %q", src, reasons)
		}
		if n := len(reasons) - before; n != map[bool]int{false: 0, true: 1}[listed] || n > 0 && reasons[before] != "exempt pass" {
			t.Errorf("%s: %q", src, reasons)
		}
	}
}

// first returns the first ban in the list. ok is false if there is none.
func first(list []memory.Ban) (b memory.Ban, ok bool) {
	if len(list) == 0 {
		return b, false
	}
	return list[0], true
}
