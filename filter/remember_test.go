package filter_test

import (
	"bytes"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/events"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/smtpd"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/tests/simulate"
)

// A site is a filter that handles many sessions one after the other.
type site struct {
	verbose bool
	t       testing.TB
	policy  *rules.Policy
	memory  *memory.Memory
	records []*store.Record
	log     []string
	events  []string
}

func newSite(t testing.TB, policyText string) *site {
	return &site{t: t, policy: policy(t, policyText), memory: memory.New()}
}

// readySite returns a site with a preset in enforce mode.
func readySite(t testing.TB, name string) *site {
	t.Helper()
	text, err := rules.ReadyPolicy(name)
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, string(text))
	s.policy = s.policy.InMode(rules.Enforce)
	return s
}

// play plays sessions and returns their outcomes. After the call, s contains only the new records
// and log lines.
func (s *site) play(sessions iter.Seq[simulate.Session]) []simulate.Outcome {
	s.t.Helper()
	s.records, s.log, s.events = nil, nil, nil
	table := simulate.NewFilter(filter.Options{
		Record: func(end time.Time, id uint64, value []byte) {
			r, err := store.Decode(store.AppendKey(nil, end, id), bytes.Clone(value))
			if err != nil {
				s.t.Error(err)
			}
			s.records = append(s.records, &r)
		},
		Log:     func(line []byte) { s.log = append(s.log, string(line)) },
		Verbose: func() bool { return s.verbose },
		Lists:   func() *lookup.Lists { return lists },
		Memory:  s.memory,
		Watch: func(e *events.Event) {
			s.events = append(s.events, strings.Join([]string{e.Event, e.Src.String(), e.Evidence, e.Rule, e.Phase, e.Decision + e.Would, e.Reason}, " "))
		},
	})
	table.Use(&filter.Settings{Policy: s.policy})
	outcomes, err := simulate.Play(table, smtpd.Requests(filter.Phases(s.policy)), sessions)
	if err != nil {
		s.t.Fatal(err)
	}
	table.Stop()
	return outcomes
}

// restart restarts the filter. Only the state on disk remains.
func (s *site) restart(at time.Time) {
	var disk []store.Entry
	for _, e := range s.memory.Changes(1 << 20) {
		if e.Value != nil {
			disk = append(disk, e)
		}
	}
	s.memory = memory.New()
	s.memory.Load(func(yield func(store.Entry) bool) {
		for _, b := range memory.Buckets() {
			for _, e := range disk {
				if e.Bucket == b && !yield(e) {
					return
				}
			}
		}
	}, at.UnixMicro())
}

// findings returns the findings of a session in order. The word "rcpt" marks the request for the
// first recipient.
func findings(t testing.TB, r *store.Record) (list []string) {
	err := r.Steps(func(s *store.Step) bool {
		switch s.Kind {
		case store.KindFinding:
			list = append(list, string(s.Text))
		case store.KindRcpt, store.KindFilter:
			if !slices.Contains(list, "rcpt") {
				list = append(list, "rcpt")
			}
		}
		return true
	})
	if err != nil {
		t.Error(err)
	}
	return list
}

var monday = time.Date(2026, 11, 16, 9, 0, 0, 0, time.UTC)

// visitor returns a session on port 25. If there is an AUTH step, the session is on port 587.
func visitor(at time.Time, addr, rdns string, steps ...simulate.Step) simulate.Session {
	s := simulate.Session{Start: at, Src: netip.AddrPortFrom(netip.MustParseAddr(addr), 4000), Dst: netip.MustParseAddrPort("192.0.2.25:25"),
		RDNS: rdns, FCrDNS: "pass", Steps: steps}
	if rdns == "" {
		s.FCrDNS = "fail"
	}
	for i := range steps {
		s.Steps[i].Gap = max(s.Steps[i].Gap, 20*time.Millisecond)
		if steps[i].Kind == simulate.Auth {
			s.Dst = netip.MustParseAddrPort("192.0.2.25:587")
		}
	}
	return s
}

func say(kind simulate.Kind, text string) simulate.Step {
	return simulate.Step{Kind: kind, Text: text, Size: 1000}
}
func wrong(kind simulate.Kind, text string) simulate.Step {
	return simulate.Step{Kind: kind, Text: text, Fate: simulate.Unknown}
}
func unknown(n int) (steps []simulate.Step) {
	for i := range n {
		steps = append(steps, wrong(simulate.Rcpt, fmt.Sprintf("nobody%d@example.org", i)))
	}
	return steps
}

// delivery returns a legitimate session.
func delivery(at time.Time, addr, rdns string) simulate.Session {
	return visitor(at, addr, rdns, say(simulate.Ehlo, rdns), say(simulate.Mail, "joe@example.net"), say(simulate.Rcpt, simulate.Mailbox(3)), say(simulate.Data, ""), say(simulate.Quit, ""))
}

func sessions(list ...simulate.Session) iter.Seq[simulate.Session] { return slices.Values(list) }

// learn adds example.org to the local domains.
func (s *site) learn() {
	s.play(sessions(delivery(monday.Add(-time.Hour), "198.51.100.200", "mx.example.net")))
}

// TestHarvestCut checks that a session with fifty unknown recipients is ended at the sixth, and
// that the next connection is rejected. A mailing list with 51 recipients, of which three are
// mistyped, must not be rejected.
func TestHarvestCut(t *testing.T) {
	for _, name := range []string{"standard", "tight"} {
		t.Run(name, func(t *testing.T) {
			s := readySite(t, name)
			s.learn()
			harvester := func(at time.Time) simulate.Session {
				return visitor(at, "198.51.100.7", "", append([]simulate.Step{say(simulate.Ehlo, "host.example.com"), say(simulate.Mail, "x@example.com")}, unknown(50)...)...)
			}
			steps := []simulate.Step{say(simulate.Ehlo, "lists.example.com"), say(simulate.Mail, "list-bounces@example.com")}
			for i := range 51 {
				steps = append(steps, say(simulate.Rcpt, simulate.Mailbox(i)))
			}
			for i, at := range []int{2, 3, 20} {
				steps = slices.Insert(steps, at, unknown(3)[i])
			}
			steps = append(steps, say(simulate.Data, ""), say(simulate.Quit, ""))
			list := visitor(monday.Add(time.Minute), "203.0.113.5", "lists.example.com", steps...)
			out := s.play(sessions(harvester(monday), list, harvester(monday.Add(2*time.Minute))))
			if o := out[0]; o.RcptUnknown != 5 || o.RcptRefused != 1 || !o.Disconnected || !strings.HasPrefix(o.Refused[0].Text, "421 4.7.0 Too many unknown recipients") {
				t.Errorf("harvester: %+v", o)
			}
			if o := out[1]; len(o.Refused) > 0 || o.Mails != 1 || o.RcptOK != 51 {
				t.Errorf("list: %+v", o)
			}
			if o := out[2]; !o.Disconnected || o.Refused[0].Phase != smtpd.PhaseConnect || !strings.Contains(o.Refused[0].Text, "Banned until 2026-11-") || !strings.Contains(o.Refused[0].Text, "(harvest)") {
				t.Errorf("the harvester again: %+v", o)
			}
		})
	}
}

// TestDistributedHarvest plays a harvest from thirty networks with eight recipients each. All
// networks use the same list, or consecutive parts of a list, or new recipients every time. The
// golden file contains the evidence. The golden file also contains the number of sessions after
// which an unknown client is recognised at its first recipient.
func TestDistributedHarvest(t *testing.T) {
	attack := simulate.Attack{Seed: 1, Start: monday, Every: 5 * time.Minute, Sessions: 30, Each: 8}
	recipients := func(change func(session, step int, s *simulate.Step)) iter.Seq[simulate.Session] {
		return func(yield func(simulate.Session) bool) {
			n := 0
			for s := range simulate.Harvest(attack) {
				for i := range s.Steps {
					if s.Steps[i].Kind == simulate.Rcpt {
						change(n, i, &s.Steps[i])
					}
				}
				n++
				if !yield(s) {
					return
				}
			}
		}
	}
	kinds := []struct {
		name     string
		sessions iter.Seq[simulate.Session]
	}{
		{"the same eight", recipients(func(_, i int, s *simulate.Step) { *s = wrong(simulate.Rcpt, fmt.Sprintf("word%d@example.org", i)) })},
		{"parts of one list", simulate.Harvest(attack)},
		{"never the same", recipients(func(n, i int, s *simulate.Step) {
			*s = wrong(simulate.Rcpt, fmt.Sprintf("word%d.%d@example.org", n, i))
		})},
	}
	tokens := []string{"probed-recipient"}
	var b strings.Builder
	for _, mode := range []struct {
		policy string
		mode   rules.Mode
	}{{"standard", rules.Observe}, {"standard", rules.Enforce}, {"tight", rules.Enforce}} {
		for _, kind := range kinds {
			s := readySite(t, mode.policy)
			s.policy = s.policy.InMode(mode.mode)
			s.learn()
			out := s.play(kind.sessions)
			slices.SortFunc(s.records, func(a, b *store.Record) int { return a.Start.Compare(b.Start) })
			first, times, asked := map[string]int{}, map[string]int{}, 0
			for i, r := range s.records {
				all := findings(t, r)
				known := slices.Index(all, "rcpt")
				if known < 0 {
					continue
				}
				for _, token := range tokens {
					if slices.Contains(all[:known], token) {
						times[token]++
						if first[token] == 0 {
							first[token] = i + 1
						}
					}
				}
			}
			cut := 0
			for _, o := range out {
				asked += o.RcptUnknown
				if o.Disconnected {
					cut++
				}
			}
			fmt.Fprintf(&b, "%s %v, %s:", mode.policy, mode.mode, kind.name)
			for _, token := range tokens {
				if first[token] > 0 {
					fmt.Fprintf(&b, " %s from session %d on, %d times;", token, first[token], times[token])
				}
			}
			fmt.Fprintf(&b, " cut %d of 30, learned of %d recipients\n", cut, asked)
		}
	}
	const golden = "testdata/distributed.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(golden); err != nil || string(want) != b.String() {
		t.Errorf("differs from %s (%v); run with -update and look\ngot:\n%s", golden, err, b.String())
	}
}

// TestGuesser checks that a client that guesses passwords on the submission port is banned for ten
// minutes. After half as many further failures, the client must be banned again. The following must
// not be affected: other users in the network, users who mistype their password, and an office with
// a phone that uses an old password.
func TestGuesser(t *testing.T) {
	s := readySite(t, "standard")
	login := func(at time.Time, addr string, steps ...simulate.Step) simulate.Session {
		return visitor(at, addr, "", append([]simulate.Step{say(simulate.Ehlo, "laptop"), say(simulate.StartTLS, "")}, steps...)...)
	}
	user := func(at time.Time, addr string) simulate.Session {
		return login(at, addr, say(simulate.Auth, "alice"), say(simulate.Mail, "alice@example.org"), say(simulate.Rcpt, "x@example.com"), say(simulate.Data, ""), say(simulate.Quit, ""))
	}
	var list []simulate.Session
	at := monday
	for range 60 { // each session tries one password of the same user
		list = append(list, login(at, "198.51.100.7", wrong(simulate.Auth, "admin")))
		list = append(list, user(at.Add(time.Second), "198.51.100.8"))
		at = at.Add(time.Minute)
	}
	var served []int // minutes in which the client was not rejected
	for i, o := range s.play(sessions(list...)) {
		switch {
		case o.Src.Addr() == netip.MustParseAddr("198.51.100.8"):
			if o.Mails != 1 || len(o.Refused) > 0 {
				t.Errorf("user: %+v", o)
			}
		case !o.Disconnected:
			served = append(served, i/2)
		}
	}
	var want []int
	for i := range 20 { // count > 19 matches after the 20th failure
		want = append(want, i)
	}
	// The ban ends after ten minutes. The ban has halved the count, so ten more failures lead to
	// the next ban, which lasts an hour.
	for i := range 10 {
		want = append(want, 29+i)
	}
	if !slices.Equal(served, want) {
		t.Errorf("served in the minutes %d, want %d", served, want)
	}

	t.Run("office", func(t *testing.T) {
		s := readySite(t, "tight")
		list := []simulate.Session{user(monday, "203.0.113.1")}
		for i := range 200 {
			list = append(list, login(monday.Add(time.Duration(i+1)*5*time.Minute), "203.0.113.1", wrong(simulate.Auth, "telephone")))
			if i%10 == 0 {
				list = append(list, user(monday.Add(time.Duration(i+1)*5*time.Minute+time.Second), "203.0.113.1"))
			}
		}
		for _, o := range s.play(sessions(list...)) {
			if len(o.Refused) > 0 {
				t.Fatalf("%+v\n%s", o, strings.Join(s.log, "\n"))
			}
		}
	})
	t.Run("typos", func(t *testing.T) {
		s := readySite(t, "tight")
		for i := range 10 {
			at := monday.Add(time.Duration(i) * time.Minute)
			out := s.play(sessions(login(at, "203.0.113.9", wrong(simulate.Auth, "bob"), wrong(simulate.Auth, "bob"), say(simulate.Auth, "bob"), say(simulate.Mail, "bob@example.org"), say(simulate.Rcpt, "x@example.com"), say(simulate.Data, ""), say(simulate.Quit, ""))))
			if o := out[0]; o.Mails != 1 || len(o.Refused) > 0 {
				t.Fatalf("day %d: %+v", i, o)
			}
		}
	})
}

// TestBanAtTheEnd checks a client that sends only commands that have no phase. The client must be
// banned when its session ends. In observe mode, the ban is only recorded.
func TestBanAtTheEnd(t *testing.T) {
	const text = "rule lost phase end match evidence talks-http ban 3d\n"
	browser := func(at time.Time) simulate.Session {
		return visitor(at, "2001:db8::1", "", say(simulate.Command, "GET / HTTP/1.1"))
	}
	s := newSite(t, "mode enforce\n"+text)
	out := s.play(sessions(browser(monday), browser(monday.Add(time.Minute)), delivery(monday.Add(time.Minute), "2001:db8::2", ""), delivery(monday.Add(time.Minute), "2001:db8:0:1::1", ""), delivery(monday.Add(time.Minute), "2001:db8::3", "mx.example.net")))
	if out[0].Disconnected || !out[1].Disconnected || !strings.HasPrefix(out[1].Refused[0].Text, "554 5.7.1 Banned until 2026-11-19 09:00 UTC (lost) [") {
		t.Errorf("%+v", out)
	}
	if !out[2].Disconnected || out[3].Disconnected || out[4].Disconnected {
		t.Error("a /64 is not one host, two are, or a host with a proven name shares the ban of its neighbours")
	}
	if want := fmt.Sprintf("banned src=2001:db8::1 rule=lost prefix=2001:db8::/64 until=2026-11-19T09:00:00Z times=1 evidence=talks-http:high,no-mail:high fcrdns=fail session=%016x", out[0].Session); !slices.Contains(s.log, want) {
		t.Errorf("log\n%s\ndoes not have\n%s", strings.Join(s.log, "\n"), want)
	}
	for _, want := range []string{"finding 2001:db8::1 talks-http    ", "ban 2001:db8::1  lost   ", "verdict 2001:db8::1  lost connect disconnect "} {
		if !slices.Contains(s.events, want) {
			t.Errorf("events\n%q\ndo not have\n%q", s.events, want)
		}
	}
	// The record of the rejected session contains the id of the session that led to the ban.
	found := false
	for _, r := range s.records {
		if r.ID == out[1].Session {
			err := r.Steps(func(st *store.Step) bool {
				found = found || st.Kind == store.KindVerdict && st.Banned && st.Session == out[0].Session && st.Enforced
				return true
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
	if !found {
		t.Error("the record does not contain the ban")
	}

	s = newSite(t, text)
	for _, o := range s.play(sessions(browser(monday), browser(monday.Add(time.Minute)))) {
		if o.Disconnected {
			t.Error("banned in observe mode")
		}
	}
	s.policy = s.policy.InMode(rules.Enforce)
	if o := s.play(sessions(browser(monday.Add(time.Hour)))); o[0].Disconnected {
		t.Error("an observed ban rejects a later session")
	}
	if o := s.play(sessions(browser(monday.Add(2 * time.Hour)))); !o[0].Disconnected {
		t.Error("the first ban that counts does not")
	}
}

// TestExempt checks that a client with standing is not banned. The exemption must be logged.
func TestExempt(t *testing.T) {
	const text = "mode enforce\ntable <friends> { 203.0.113.77 }\nrule odd phase helo match helo \"odd\" ban 1d\n"
	odd := func(at time.Time, addr, rdns string) simulate.Session {
		return visitor(at, addr, rdns, say(simulate.Ehlo, "odd"), say(simulate.Quit, ""))
	}
	before := monday.Add(-day)
	wrote := visitor(before, "203.0.113.200", "", say(simulate.Ehlo, "laptop"), say(simulate.StartTLS, ""), say(simulate.Auth, "alice"),
		say(simulate.Mail, "alice@example.org"), say(simulate.Rcpt, "bob@example.net"), say(simulate.Data, ""), say(simulate.Quit, ""))
	for _, tt := range []struct {
		name   string
		before simulate.Session
		addr   string
		rdns   string
		reason string
	}{
		{"an unknown client", delivery(before, "198.51.100.99", "mx.example.net"), "203.0.113.1", "", ""},
		{"a friend", delivery(before, "198.51.100.99", "mx.example.net"), "203.0.113.77", "", "friend"},
		{"an own network", delivery(before, "198.51.100.99", "mx.example.net"), "10.0.0.1", "", "local"},
		{"a client with mail of an earlier day", delivery(before, "203.0.113.1", "mx.example.net"), "203.0.113.1", "", "known"},
		{"a client with mail of the same day", delivery(monday, "203.0.113.1", "mx.example.net"), "203.0.113.1", "", ""},
		{"a host of a domain with mail", delivery(before, "198.51.100.99", "mx.example.net"), "203.0.113.1", "mx2.example.net", "known"},
		{"a domain that a user wrote to", wrote, "203.0.113.1", "mx2.example.net", "known"},
		{"a neighbour of a host with mail", delivery(before, "203.0.113.2", "mx.example.net"), "203.0.113.1", "", ""},
		{"an address with a recent login", visitor(monday, "203.0.113.1", "", say(simulate.Ehlo, "laptop"), say(simulate.StartTLS, ""), say(simulate.Auth, "alice"), say(simulate.Quit, "")), "203.0.113.1", "", "login"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t, text)
			s.play(sessions(tt.before))
			s.play(sessions(odd(monday.Add(time.Hour), tt.addr, tt.rdns)))
			want := "banned src=" + tt.addr + " rule=odd "
			if tt.reason != "" {
				want = "exempt src=" + tt.addr + " rule=odd reason=" + tt.reason + " "
			}
			if !slices.ContainsFunc(s.log, func(l string) bool { return strings.HasPrefix(l, want) }) {
				t.Errorf("log\n%s\ndoes not have\n%s", strings.Join(s.log, "\n"), want)
			}
			out := s.play(sessions(odd(monday.Add(2*time.Hour), tt.addr, tt.rdns)))
			if out[0].Disconnected != (tt.reason == "") {
				t.Errorf("%+v", out)
			}
		})
	}
}

// TestAfterRestart checks that bans, counts, standing, probed recipients and domains are still
// known after a restart.
func TestAfterRestart(t *testing.T) {
	s := newSite(t, `mode enforce
rule lost phase end match evidence talks-http ban 3d
rule good phase helo match known tag good
rule slow phase rcpt-to match count unknown-recipient > 2 in 1d by prefix reject
`)
	bad := func(at time.Time, addr string) simulate.Session {
		return visitor(at, addr, "", append([]simulate.Step{say(simulate.Ehlo, "h.example.com"), say(simulate.Mail, "x@example.com")}, unknown(1)...)...)
	}
	s.play(sessions(delivery(monday.Add(-day), "198.51.100.200", "mx.example.net")))
	s.play(sessions(visitor(monday, "203.0.113.1", "", say(simulate.Command, "GET / HTTP/1.1")), bad(monday, "198.18.1.1"), bad(monday, "198.18.1.2"), bad(monday, "198.18.1.3"),
		bad(monday, "198.18.2.3"), bad(monday, "198.18.3.3")))
	later := monday.Add(time.Hour)
	s.restart(later)
	out := s.play(sessions(visitor(later, "203.0.113.1", "", say(simulate.Quit, "")), bad(later, "198.18.1.4"), bad(later, "198.18.9.9"), delivery(later, "198.51.100.200", "mx.example.net")))
	if !out[0].Disconnected {
		t.Error("the ban is forgotten")
	}
	if out[1].RcptRefused != 1 {
		t.Error("the count is forgotten")
	}
	if out[3].Mails != 1 || !slices.ContainsFunc(s.log, func(l string) bool {
		return strings.HasPrefix(l, "session decision=proceed src=198.51.100.200 tag=good ")
	}) {
		t.Error("the standing is forgotten")
	}
	i := slices.IndexFunc(s.records, func(r *store.Record) bool { return r.ID == out[2].Session })
	if got := findings(t, s.records[i]); !slices.Contains(got, "probed-recipient") {
		t.Errorf("the probed recipient was dropped: %q", got)
	}
	if !s.memory.Domains.Local([]byte("example.org")) {
		t.Error("the domain is forgotten")
	}
}

// TestFlood checks how many open sessions from a source are a flood.
func TestFlood(t *testing.T) {
	s := newSite(t, "mode enforce\nrule flood phase connect match evidence flood disconnect \"421 4.7.0 Too many\"\nrule soft observe phase connect match count flood > 30 disconnect\n")
	var list []simulate.Session
	for i := range 60 {
		list = append(list, visitor(monday.Add(time.Duration(i)*time.Millisecond), fmt.Sprintf("2001:db8::%x", i+1), "", simulate.Step{Kind: simulate.Quit, Gap: time.Minute}))
	}
	list = append(list, visitor(monday.Add(time.Second), "2001:db8:0:1::1", "", say(simulate.Quit, "")), visitor(monday.Add(time.Hour), "2001:db8::1", "", say(simulate.Quit, "")))
	refused := 0
	for i, o := range s.play(sessions(list...)) {
		if o.Disconnected {
			refused++
			if i < 50 || i >= 60 {
				t.Errorf("session %d was refused", i+1)
			}
		}
	}
	if refused != 10 {
		t.Errorf("%d of 60 were refused, want 10", refused)
	}
	if !slices.ContainsFunc(s.log, func(l string) bool {
		return strings.HasPrefix(l, "session would=disconnect src=2001:db8::1f rule=soft")
	}) {
		t.Errorf("the 31st was not noticed:\n%s", strings.Join(s.log, "\n"))
	}
}

// TestVerdictsNameTheTextOfTheirRule checks that verdicts and bans refer to the text of their rule.
func TestVerdictsNameTheTextOfTheirRule(t *testing.T) {
	s := newSite(t, "mode enforce\nrule botnet phase helo match evidence botnet-helo disconnect \"554 5.7.1 No\" ban 1d\n")
	texts := filter.RuleTexts(s.policy)
	s.play(sessions(visitor(monday, "192.0.2.1", "", say(simulate.Ehlo, "ylmf-pc"))))
	n := 0
	for _, r := range s.records {
		_ = r.Steps(func(st *store.Step) bool {
			if st.Kind == store.KindVerdict || st.Kind == store.KindBan {
				n++
				if st.Rule != store.RuleRef(texts[0]) {
					t.Errorf("kind %d: %08x", st.Kind, st.Rule)
				}
			}
			return true
		})
	}
	if n != 2 {
		t.Errorf("%d verdicts and bans", n)
	}
}
