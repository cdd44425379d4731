package backtest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
	"scanwatch/store"
)

var start = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)

func settings(t *testing.T, text string) *filter.Settings {
	t.Helper()
	tree, err := rules.Parse("test.conf", func(string) ([]byte, error) { return []byte(text), nil })
	if err != nil {
		t.Fatal(err)
	}
	p, _, err := rules.Compile(tree, rules.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return &filter.Settings{Policy: p.InMode(rules.Enforce)}
}

// A testSession is a session to record. A session's position in the list
// determines its id and its time in minutes.
type testSession struct {
	day                   int
	src, helo, rdns, user string
	sender                string // sender of a message; empty if there is none
	rcpts                 []string
	unknown               int    // rejected recipients
	evidence              string // evidence with high confidence
	sum                   uint32 // sessions in an aggregate, each with a message
}

func (s *testSession) record(i int) (key time.Time, id uint64, value []byte) {
	var steps []byte
	add := func(st store.Step) { steps = store.AppendStep(steps, &st, time.Second) }
	c := store.Counts{Commands: 2}
	add(store.Step{Kind: store.KindGreeting})
	add(store.Step{Kind: store.KindHelo, Arg: []byte("EHLO"), Text: []byte(s.helo), Result: smtp.ResultOK})
	if s.user != "" {
		c.AuthPass++
		add(store.Step{Kind: store.KindAuth, Text: []byte(s.user), Result: smtp.ResultPass})
	}
	if s.sender != "" || s.unknown > 0 {
		add(store.Step{Kind: store.KindMail, Text: []byte(s.sender), Result: smtp.ResultOK, MsgID: 1})
	}
	for _, r := range s.rcpts {
		c.RcptOK++
		add(store.Step{Kind: store.KindRcpt, Text: []byte(r), Result: smtp.ResultOK})
	}
	for n := range s.unknown {
		c.RcptPermfail++
		add(store.Step{Kind: store.KindRcpt, Text: fmt.Appendf(nil, "user%d@example.org", n), Result: smtp.ResultPermfail, Code: 550, Reply: []byte("Invalid recipient")})
	}
	if s.evidence != "" {
		add(store.Step{Kind: store.KindFinding, Text: []byte(s.evidence), By: []byte("rcpt"), Confidence: []byte("high")})
	}
	if len(s.rcpts) > 0 {
		c.Mails++
		add(store.Step{Kind: store.KindData, Result: smtp.ResultOK})
		add(store.Step{Kind: store.KindCommit, Size: 100})
	}
	add(store.Step{Kind: store.KindQuit})
	c.Mails += s.sum
	begin := start.Add(time.Duration(i)*time.Minute + time.Duration(s.day)*24*time.Hour)
	r := &store.Record{Start: begin, End: begin.Add(30 * time.Second), Src: netip.MustParseAddrPort(s.src + ":25"), Dst: netip.MustParseAddrPort("192.0.2.25:25"),
		RDNS: []byte(s.rdns), FCrDNS: smtp.FCrDNSPass, Ending: smtp.EndingQuit, Counts: c, Sessions: s.sum}
	return r.End, uint64(i), store.AppendRecord(nil, r, steps)
}

func play(t *testing.T, sessions []testSession, o Options) *Result {
	t.Helper()
	dir := t.TempDir()
	w := store.Open(dir, store.Options{Now: func() time.Time { return start.Add(72 * time.Hour) }, Program: "test"})
	for i := range sessions {
		w.Add(sessions[i].record(i + 1))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	lists, err := lookup.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	o.Lists, o.Reader, o.Progress = lists, &store.Reader{Dir: dir}, func(int, time.Time) {}
	r, err := Run(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// day lists one session of each kind.
var day = []testSession{
	{src: "192.0.2.1", helo: "mail.example.net", rdns: "mail.example.net", sender: "a@example.net", rcpts: []string{"x@example.org"}},
	{src: "192.0.2.1", helo: "mail.example.net", rdns: "mail.example.net", sender: "b@EXAMPLE.net", rcpts: []string{"x@example.org", "y@example.org"}},
	{src: "192.0.2.2", helo: "laptop.example.com", user: "alice", sender: "alice@example.org", rcpts: []string{"z@example.com"}},
	{src: "192.0.2.3", helo: "bad.example.com", sender: "c@example.com", rcpts: []string{"x@example.org"}},
	{src: "192.0.2.4", helo: "bad.example.com", sender: "d@example.com", unknown: 3, evidence: "harvest"},
	{src: "192.0.2.5", helo: "flood.example.com", sum: 7},
}

// TestRun checks the lost mail, the rejected logins, the stopped sessions and the
// differences from the running policy.
func TestRun(t *testing.T) {
	r := play(t, day, Options{
		Name:    "/etc/test.conf",
		Test:    settings(t, "rule domain phase mail-from match mail-from \"*@example.net\" reject\nrule greeting phase helo match helo \"bad.example.com\" disconnect\nrule user phase rcpt-to match auth src 192.0.2.2 reject\n"),
		Running: settings(t, "rule other phase helo match helo \"bad.example.com\" reject\nrule more phase rcpt-to match rcpt-to \"z@example.com\" reject\n"),
		File:    "running.conf",
	})
	if r.Played != 5 || r.Sessions != 5 || r.Sums.Sessions != 7 || r.Sums.Messages != 7 {
		t.Errorf("%d sessions played, %d reported, aggregates %+v", r.Played, r.Sessions, r.Sums)
	}
	if r.Messages != 4 || r.Rcpts != 5 || r.Known != 0 || len(r.Lost) != 3 {
		t.Errorf("%d messages lost, %d recipients, %d known, %d groups", r.Messages, r.Rcpts, r.Known, len(r.Lost))
	}
	if l := r.Lost[0]; l.Src != "192.0.2.1" || !slices.Equal(l.Domains, []string{"example.net"}) || l.Messages != 2 || len(l.Rules) != 1 || l.Rules[0].Rule != "domain" || l.Rules[0].Phase != "mail-from" || !slices.Equal(l.Rules[0].Sessions, []string{"0000000000000001", "0000000000000002"}) {
		t.Errorf("lost: %+v", l)
	}
	if len(r.Logins) != 1 || r.Logins[0].Rule != "user" || r.Logins[0].Src != "192.0.2.2" {
		t.Errorf("logins: %+v", r.Logins)
	}
	if len(r.Stopped) != 1 || r.Stopped[0].Rule != "greeting" || r.Stopped[0].Rejected != 3 || r.Stopped[0].High != 1 || r.Stopped[0].Sources != 1 {
		t.Errorf("stopped: %+v", r.Stopped)
	}
	if d := r.Against; d.Both != 2 || d.Only["domain"] != 2 || d.Only["user"] != 1 || len(d.Gone) != 0 {
		t.Errorf("difference: %+v", d)
	}
	var out strings.Builder
	r.Text(&out, time.UTC)
	for _, want := range []string{
		"Backtest of test.conf, as in enforce mode\nHistory: 2026-11-02 12:01 to 2026-11-02 12:05, 5 sessions\n",
		"not played: 7 sessions in aggregates, with 7 accepted messages and 0 failed\n",
		"LOST: 4 accepted messages for 5 recipients, 0 from known clients.\n",
		"  2 messages for 3 recipients from 192.0.2.1 (mail.example.net), unknown client\n      senders: example.net\n",
		"      rule domain at mail-from: 0000000000000001 0000000000000002\n",
		"LOGINS: authenticated sessions would be rejected.\n  1 session from 192.0.2.2 by rule user at rcpt-to: 0000000000000003\n",
		"         1        1        1        3        0  greeting 0000000000000005\n",
		"Compared with running.conf, mode enforce:\n  rejected by both: 2 sessions\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

// TestSince checks that older sessions are replayed but not reported.
func TestSince(t *testing.T) {
	r := play(t, day, Options{Name: "x", Since: start.Add(4 * time.Minute), Test: settings(t, "rule domain phase mail-from match mail-from \"*@example.net\" reject\n")})
	if r.Played != 5 || r.Sessions != 2 || r.Messages != 0 {
		t.Errorf("%d sessions played, %d reported, %d messages lost", r.Played, r.Sessions, r.Messages)
	}
}

// TestKnown checks that accepted mail in the records makes a client known, even if the tested
// policy rejects all its mail. Known clients' lost mail comes first, in one group per host.
func TestKnown(t *testing.T) {
	var sessions []testSession
	for range 3 {
		sessions = append(sessions, testSession{src: "192.0.2.9", helo: "a.example.com", sender: "a@example.com", rcpts: []string{"x@example.org"}})
	}
	sessions = append(sessions, testSession{src: "192.0.2.1", helo: "mail.example.net", rdns: "mail.example.net", sender: "", sum: 180})
	for i := range 6 {
		sessions = append(sessions, testSession{src: "192.0.2.1", helo: "mail.example.net", rdns: "mail.example.net", sender: fmt.Sprintf("e@list%d.example.net", i), rcpts: []string{"no@example.org"}, day: i % 2})
	}
	r := play(t, sessions, Options{Name: "x", Test: settings(t, "rule a phase mail-from match mail-from \"a@example.com\" reject\nrule b phase connect match src 192.0.2.1 disconnect\n")})
	if r.Messages != 9 || r.Known != 6 || len(r.Lost) != 2 {
		t.Fatalf("%d messages, %d of known hosts, %+v", r.Messages, r.Known, r.Lost)
	}
	if l := r.Lost[0]; l.Src != "192.0.2.1" || !l.Known || l.Accepted.Messages != 186 || l.Accepted.Days != 2 || l.Messages != 6 || r.Lost[1].Known {
		t.Errorf("lost %+v, %+v", l, r.Lost[1])
	}
	var out strings.Builder
	r.Text(&out, time.UTC)
	want := "  6 messages for 6 recipients from 192.0.2.1 (mail.example.net), KNOWN-GOOD\n      client: 186 accepted messages on 2 days\n      senders: list0.example.net list2.example.net list4.example.net +3\n"
	if !strings.Contains(out.String(), want) || strings.Contains(out.String(), "without mail") {
		t.Errorf("no %q in\n%s", want, out.String())
	}
}

// TestNotEvaluated checks that conditions that cannot be evaluated are listed.
func TestNotEvaluated(t *testing.T) {
	r := play(t, nil, Options{Name: "x", Notes: []string{"odd \x1b"}, Test: settings(t, "rule a phase connect match asn AS64500 disconnect\nrule b phase connect match country XX disconnect\nrule c phase connect delay 2s match !seen-good\nrule d phase rcpt-to match count unknown-recipient > 3 in 7d reject\n")})
	for _, want := range []string{"asn: ", "country: ", `odd \x1b`, "known: ", "longest window is 7d", "delay: "} {
		if !slices.ContainsFunc(r.NotEvaluated, func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("no %q in %q", want, r.NotEvaluated)
		}
	}
	var out strings.Builder
	if r.Text(&out, time.UTC); !strings.Contains(out.String(), "No sessions recorded.") {
		t.Error(out.String())
	}
}

// TestHashed checks that conditions on hashed mailboxes are listed.
func TestHashed(t *testing.T) {
	hashed := day[0]
	hashed.sender = "hash:0123456789abcdef@example.net"
	r := play(t, []testSession{hashed}, Options{Name: "x", Test: settings(t, "rule a phase mail-from match mail-from \"bob@example.net\" reject\n")})
	if len(r.Hashed) != 1 || r.Hashed[0].Rule != "a" || r.Messages != 0 {
		t.Errorf("%+v, %d messages lost", r.Hashed, r.Messages)
	}
}
