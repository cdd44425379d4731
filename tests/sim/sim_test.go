package sim_test

import (
	"fmt"
	"hash/fnv"
	"io"
	"iter"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/tests/sim"
)

// recorder notes what it is told, and answers as told.
type recorder struct {
	events map[uint64][]string
	order  []uint64
	decide func(*filter.Event) filter.Reply
}

func (r *recorder) Ready(filter.Config) {}

func (r *recorder) Report(ev *filter.Event) {
	if ev.Out || ev.ID == filter.PhaseDataLine {
		return
	}
	if r.events == nil {
		r.events = make(map[uint64][]string)
	}
	if len(r.events[ev.Session]) == 0 {
		r.order = append(r.order, ev.Session)
	}
	r.events[ev.Session] = append(r.events[ev.Session], normal(ev.String()))
}

func (r *recorder) Decide(ev *filter.Event) filter.Reply {
	r.Report(ev)
	if r.decide == nil {
		return filter.Reply{}
	}
	return r.decide(ev)
}

// session returns the events of the n-th session, one to a line.
func (r *recorder) session(t *testing.T, n int) string {
	t.Helper()
	if n >= len(r.order) {
		t.Fatalf("only %d sessions", len(r.order))
	}
	return strings.Join(r.events[r.order[n]], "\n")
}

var differs = []struct{ from, to string }{
	{`^(\S+) [0-9a-f]{16}`, "$1"}, // the session
	{`\b[0-9a-f]{16}"`, `ID"`},    // an evpid
	{`msgid="[0-9a-f]{8}"`, "msgid=M"},
	{`2\.0\.0 [0-9a-f]{8} `, "2.0.0 M "},
	{`(src|dest)="127\.0\.0\.1:\d+"`, "$1=LOOPBACK"},
}

// normal returns an event without what differs from run to run.
var normal = func() func(string) string {
	var res []*regexp.Regexp
	for _, d := range differs {
		res = append(res, regexp.MustCompile(d.from))
	}
	return func(s string) string {
		for i, re := range res {
			s = re.ReplaceAllString(s, differs[i].to)
		}
		return s
	}
}()

// asked are the phases that recorded streams have, but for auth and data-line,
// which nobody should register.
var asked = []filter.ID{
	filter.PhaseConnect, filter.PhaseHelo, filter.PhaseEhlo, filter.PhaseStartTLS, filter.PhaseMailFrom, filter.PhaseRcptTo,
	filter.PhaseData, filter.PhaseRset, filter.PhaseQuit, filter.PhaseNoop, filter.PhaseCommit,
}

// recorded returns what a real smtpd said.
func recorded(t *testing.T, name string) *recorder {
	t.Helper()
	f, err := os.Open("../streams/7.9/" + name + ".in")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := new(recorder)
	if err := filter.Serve(f, io.Discard, r, filter.Options{}); err != nil {
		t.Fatal(err)
	}
	return r
}

var begin = time.Date(2026, 11, 16, 8, 0, 0, 0, time.UTC)

// client is a Session from this host that does steps at a leisurely pace.
func client(steps ...sim.Step) sim.Session {
	for i := range steps {
		steps[i].Gap = 20 * time.Millisecond
	}
	return sim.Session{
		Start: begin, Src: netip.MustParseAddrPort("127.0.0.1:40000"), Dst: netip.MustParseAddrPort("127.0.0.1:25"),
		RDNS: "localhost", FCrDNS: "pass", Steps: steps,
	}
}

func step(kind sim.Kind, text string) sim.Step { return sim.Step{Kind: kind, Text: text} }

func play(t *testing.T, h filter.Handler, sessions ...sim.Session) []sim.Outcome {
	t.Helper()
	out, err := sim.Play(h, asked, slices.Values(sessions))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// goAway answers in one phase only.
func goAway(phase filter.ID, reply filter.Reply) func(*filter.Event) filter.Reply {
	return func(ev *filter.Event) filter.Reply {
		if ev.ID == phase {
			return reply
		}
		return filter.Reply{}
	}
}

// TestStreams: the simulated smtpd says, word by word, what a real one said.
func TestStreams(t *testing.T) {
	ehlo := step(sim.Ehlo, "p.example.net")
	mail := step(sim.Mail, "a@example.net")
	alice := step(sim.Rcpt, "alice@example.org")
	quit := step(sim.Quit, "")
	hurry := step(sim.Pipelined, "")
	r, a := step(sim.Ehlo, "r.example.net"), mail
	bye := filter.Reply{Decision: filter.Disconnect, Text: "550 5.7.1 go away"}
	for _, tt := range []struct {
		name   string
		stream string
		n      int // of the session in the stream
		script []sim.Step
		phase  filter.ID // in which the client is told to go away
	}{
		{name: "delivery", stream: "ehlo-starttls-delivery", script: []sim.Step{
			step(sim.Ehlo, "client.example.net"), step(sim.StartTLS, ""), step(sim.Mail, "bob@example.net"), alice, step(sim.Rcpt, "bob@example.org"),
			{Kind: sim.Data, Size: 517}, quit}},
		{name: "helo", stream: "helo-delivery", script: []sim.Step{
			step(sim.Helo, "client.example.net"), step(sim.Mail, "bob@example.net"), alice, {Kind: sim.Data, Size: sizeIn(t, "helo-delivery")}, quit}},
		{name: "pipelining at once", stream: "pipelined", n: 0, script: []sim.Step{hurry}},
		{name: "pipelining after EHLO", stream: "pipelined", n: 1, script: []sim.Step{ehlo, hurry}},
		{name: "pipelining after RCPT", stream: "pipelined", n: 2, script: []sim.Step{ehlo, mail, alice, hurry}},
		{name: "patience", stream: "pipelined", n: 3, script: []sim.Step{ehlo, mail, alice, {Kind: sim.Data, Size: 451}, quit}},
		{name: "unknown commands", stream: "pipelined", n: 6, script: []sim.Step{ehlo,
			step(sim.Command, "NOOP\r"), step(sim.Command, ""), step(sim.Command, " HELO x"), quit}},
		{name: "refused recipients", stream: "harvest-50-unknown", script: harvest(t)},
		{name: "disconnect at connect", stream: "disconnect-550-each-phase", n: 0, phase: filter.PhaseConnect},
		{name: "disconnect at helo", stream: "disconnect-550-each-phase", n: 1, phase: filter.PhaseHelo, script: []sim.Step{step(sim.Helo, "r.example.net")}},
		{name: "disconnect at ehlo", stream: "disconnect-550-each-phase", n: 2, phase: filter.PhaseEhlo, script: []sim.Step{r}},
		{name: "disconnect at starttls", stream: "disconnect-550-each-phase", n: 3, phase: filter.PhaseStartTLS, script: []sim.Step{r, step(sim.StartTLS, "")}},
		{name: "disconnect at mail-from", stream: "disconnect-550-each-phase", n: 4, phase: filter.PhaseMailFrom, script: []sim.Step{r, a}},
		{name: "disconnect at rcpt-to", stream: "disconnect-550-each-phase", n: 5, phase: filter.PhaseRcptTo, script: []sim.Step{r, a, alice}},
		{name: "disconnect at data", stream: "disconnect-550-each-phase", n: 6, phase: filter.PhaseData, script: []sim.Step{r, a, alice, step(sim.Data, "")}},
		{name: "disconnect at commit", stream: "disconnect-550-each-phase", n: 7, phase: filter.PhaseCommit, script: []sim.Step{r, a, alice, step(sim.Data, "")}},
		{name: "disconnect at noop", stream: "disconnect-550-each-phase", n: 8, phase: filter.PhaseNoop, script: []sim.Step{r, step(sim.Noop, "")}},
		{name: "disconnect at rset", stream: "disconnect-550-each-phase", n: 9, phase: filter.PhaseRset, script: []sim.Step{r, step(sim.Rset, "")}},
		{name: "disconnect at quit", stream: "disconnect-550-each-phase", n: 10, phase: filter.PhaseQuit, script: []sim.Step{r, quit}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := new(recorder)
			if tt.phase != filter.Unknown {
				h.decide = goAway(tt.phase, bye)
			}
			play(t, h, client(tt.script...))
			got, want := h.session(t, 0), recorded(t, tt.stream).session(t, tt.n)
			want = virtual.ReplaceAllString(want, "550 Invalid recipient:")
			if got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// sizeIn is the size of the only message of a stream.
func sizeIn(t *testing.T, stream string) (n int) {
	for _, line := range recorded(t, stream).events {
		for _, ev := range line {
			if _, size, ok := strings.Cut(ev, `tx-commit msgid=M size="`); ok {
				fmt.Sscan(strings.TrimSuffix(size, `"`), &n)
			}
		}
	}
	return n
}

// virtual is what a server with a virtual table says to unknown recipients.
var virtual = regexp.MustCompile(`524 5\.2\.4 Mailing list expansion problem:`)

// harvest is the script of the recorded client that asked for 50 recipients.
func harvest(t *testing.T) []sim.Step {
	steps := []sim.Step{step(sim.Ehlo, "harvest.example.net"), step(sim.Mail, "probe@example.net")}
	for line := range strings.Lines(recorded(t, "harvest-50-unknown").session(t, 0)) {
		if _, rcpt, ok := strings.Cut(strings.TrimSpace(line), `rcpt-to args="`); ok {
			steps = append(steps, sim.Step{Kind: sim.Rcpt, Text: strings.TrimSuffix(rcpt, `"`), Fate: sim.Unknown})
		}
	}
	if len(steps) != 52 {
		t.Fatalf("%d steps", len(steps))
	}
	return append(steps, step(sim.Rset, ""), step(sim.Quit, ""))
}

// said returns the lines of the client, in one.
func said(r *recorder, t *testing.T, n int) string {
	var lines []string
	for line := range strings.Lines(r.session(t, n)) {
		if _, line, ok := strings.Cut(strings.TrimSpace(line), `protocol-client line="`); ok {
			word, _, _ := strings.Cut(strings.TrimSuffix(line, `"`), " ")
			word, _, _ = strings.Cut(word, ":")
			lines = append(lines, word)
		}
	}
	return strings.Join(lines, " ")
}

// TestObeys: in each phase the client is refused or disconnected, and does then
// what mail servers do.
func TestObeys(t *testing.T) {
	permanent := filter.Reply{Decision: filter.Reject, Text: "550 5.7.1 no"}
	temporary := filter.Reply{Decision: filter.Reject, Text: "451 4.7.1 later"}
	farewell := filter.Reply{Decision: filter.Reject, Text: "421 4.7.0 bye"}
	disconnect := filter.Reply{Decision: filter.Disconnect, Text: "554 5.7.1 bye"}
	message := []sim.Step{step(sim.Mail, "bob@example.net"), step(sim.Rcpt, "alice@example.org"), step(sim.Rcpt, "bob@example.org"), step(sim.Data, "")}
	script := append([]sim.Step{step(sim.Ehlo, "client.example.net"), step(sim.StartTLS, ""), step(sim.Noop, "")}, message...)
	script = append(script, step(sim.Rset, ""))
	script = append(append(script, message...), step(sim.Quit, ""))
	const whole = "EHLO STARTTLS EHLO NOOP MAIL RCPT RCPT DATA . RSET MAIL RCPT RCPT DATA . QUIT"
	for _, tt := range []struct {
		phase          filter.ID
		reply          filter.Reply
		said           string
		refused        int
		gone           bool
		mails          int
		rcptOK, rcptNo int
		absent         string
	}{
		{phase: filter.Unknown, said: whole, mails: 2, rcptOK: 4},
		{phase: filter.PhaseConnect, reply: permanent, said: "", refused: 1, gone: true, absent: "220 "}, // Serve makes it a disconnect
		{phase: filter.PhaseConnect, reply: disconnect, said: "", refused: 1, gone: true},
		{phase: filter.PhaseEhlo, reply: permanent, said: "EHLO HELO NOOP MAIL RCPT RCPT DATA . RSET MAIL RCPT RCPT DATA . QUIT", refused: 1, mails: 2, rcptOK: 4, absent: "link-tls"},
		{phase: filter.PhaseEhlo, reply: temporary, said: "EHLO QUIT", refused: 1},
		{phase: filter.PhaseEhlo, reply: farewell, said: "EHLO", refused: 1, gone: true},
		{phase: filter.PhaseStartTLS, reply: permanent, said: "EHLO STARTTLS NOOP MAIL RCPT RCPT DATA . RSET MAIL RCPT RCPT DATA . QUIT", refused: 1, mails: 2, rcptOK: 4, absent: "link-tls"},
		{phase: filter.PhaseNoop, reply: permanent, said: whole, refused: 1, mails: 2, rcptOK: 4},
		{phase: filter.PhaseNoop, reply: disconnect, said: "EHLO STARTTLS EHLO NOOP", refused: 1, gone: true},
		{phase: filter.PhaseMailFrom, reply: permanent, said: "EHLO STARTTLS EHLO NOOP MAIL QUIT", refused: 1, absent: "tx-"},
		{phase: filter.PhaseMailFrom, reply: disconnect, said: "EHLO STARTTLS EHLO NOOP MAIL", refused: 1, gone: true, absent: "tx-"},
		{phase: filter.PhaseRcptTo, reply: permanent, said: "EHLO STARTTLS EHLO NOOP MAIL RCPT RCPT RSET MAIL RCPT RCPT QUIT", refused: 4, rcptNo: 4, absent: "tx-rcpt msgid=M result=\"tempfail\""},
		{phase: filter.PhaseRcptTo, reply: temporary, said: "EHLO STARTTLS EHLO NOOP MAIL RCPT RCPT RSET MAIL RCPT RCPT QUIT", refused: 4, rcptNo: 4, absent: "tx-rcpt msgid=M result=\"permfail\""},
		{phase: filter.PhaseRcptTo, reply: farewell, said: "EHLO STARTTLS EHLO NOOP MAIL RCPT", refused: 1, gone: true, rcptNo: 1},
		{phase: filter.PhaseData, reply: permanent, said: "EHLO STARTTLS EHLO NOOP MAIL RCPT RCPT DATA RSET MAIL RCPT RCPT DATA QUIT", refused: 2, rcptOK: 4, absent: "354 "},
		{phase: filter.PhaseData, reply: disconnect, said: "EHLO STARTTLS EHLO NOOP MAIL RCPT RCPT DATA", refused: 1, gone: true, rcptOK: 2},
		{phase: filter.PhaseCommit, reply: temporary, said: whole, refused: 2, rcptOK: 4, absent: "tx-commit"},
		{phase: filter.PhaseCommit, reply: disconnect, said: "EHLO STARTTLS EHLO NOOP MAIL RCPT RCPT DATA .", refused: 1, gone: true, rcptOK: 2},
		{phase: filter.PhaseRset, reply: disconnect, said: "EHLO STARTTLS EHLO NOOP MAIL RCPT RCPT DATA . RSET", refused: 1, gone: true, mails: 1, rcptOK: 2},
		{phase: filter.PhaseQuit, reply: permanent, said: whole, refused: 1, mails: 2, rcptOK: 4, absent: "221 "},
	} {
		t.Run(fmt.Sprintf("%v %v %.3s", tt.phase, tt.reply.Decision, tt.reply.Text), func(t *testing.T) {
			h := &recorder{decide: goAway(tt.phase, tt.reply)}
			out := play(t, h, client(slices.Clone(script)...))[0]
			if got := said(h, t, 0); got != tt.said {
				t.Errorf("the client said %s\nwant %s", got, tt.said)
			}
			if len(out.Refused) != tt.refused || out.Disconnected != tt.gone || out.Mails != tt.mails || out.RcptOK != tt.rcptOK || out.RcptRefused != tt.rcptNo {
				t.Errorf("outcome: %+v", out)
			}
			for _, r := range out.Refused {
				if r.Text != tt.reply.Text {
					t.Errorf("refused with %q", r.Text)
				}
			}
			all := h.session(t, 0)
			if !strings.HasSuffix(all, "link-disconnect") {
				t.Errorf("does not end with link-disconnect:\n%s", all)
			}
			if tt.absent != "" && strings.Contains(all, tt.absent) {
				t.Errorf("there is %q in\n%s", tt.absent, all)
			}
			if begun, ended := strings.Count(all, "tx-begin"), strings.Count(all, "tx-reset"); begun != ended {
				t.Errorf("%d transactions began, %d ended", begun, ended)
			}
		})
	}
}

// TestJunk: marks the messages that smtpd would mark.
func TestJunk(t *testing.T) {
	message := []sim.Step{step(sim.Mail, "bob@example.net"), step(sim.Rcpt, "alice@example.org"), step(sim.Data, "")}
	script := slices.Concat([]sim.Step{step(sim.Ehlo, "client.example.net")}, message, []sim.Step{step(sim.Quit, "")})
	for _, tt := range []struct {
		phase filter.ID
		want  bool
	}{
		{filter.Unknown, false},
		{filter.PhaseConnect, true},
		{filter.PhaseEhlo, true},
		{filter.PhaseMailFrom, true},
		{filter.PhaseRcptTo, true},
		{filter.PhaseData, true},
		{filter.PhaseCommit, false}, // Serve does not say it there, smtpd would end
	} {
		h := &recorder{decide: goAway(tt.phase, filter.Reply{Decision: filter.Junk})}
		if out := play(t, h, client(slices.Clone(script)...))[0]; out.Junked != tt.want || out.Mails != 1 {
			t.Errorf("junk at %v: %+v", tt.phase, out)
		}
	}
}

// TestHold: a held client waits by the clock of the sessions, and nobody else.
func TestHold(t *testing.T) {
	var order []string
	h := &recorder{}
	h.decide = func(ev *filter.Event) filter.Reply {
		if ev.ID == filter.PhaseConnect {
			return filter.Reply{Hold: time.Hour}
		}
		order = append(order, fmt.Sprintf("%d %v", ev.Session>>32, time.UnixMicro(ev.Time).Sub(begin).Round(time.Second)))
		return filter.Reply{}
	}
	one, two := client(step(sim.Quit, "")), client(step(sim.Quit, ""))
	two.Start = begin.Add(10 * time.Second)
	out := play(t, h, one, two)
	if want := []string{"1 1m0s", "2 1m10s"}; !slices.Equal(order, want) {
		t.Errorf("order of QUIT: %q, want %q", order, want)
	}
	if out[0].Held != filter.MaxHold {
		t.Errorf("held for %v", out[0].Held)
	}
	got := h.session(t, 0)
	if i, j := strings.Index(got, "connect rdns"), strings.Index(got, "220 "); i < 0 || j < i {
		t.Errorf("banner before the answer:\n%s", got)
	}
}

type panics struct{ recorder }

func (*panics) Decide(*filter.Event) filter.Reply { panic("on purpose") }

// TestPanic: a Handler that panics is an error of the test that plays it.
func TestPanic(t *testing.T) {
	_, err := sim.Play(new(panics), asked, slices.Values([]sim.Session{client(step(sim.Quit, ""))}))
	if err == nil || !strings.Contains(err.Error(), "on purpose") {
		t.Errorf("err = %v", err)
	}
}

// listener checks that a stream is one that smtpd could send.
type listener struct {
	t    *testing.T
	open map[uint64]int64 // the time of the newest event of each session
	at   int64
	back int64
	sum  interface{ io.Writer }
	most int
}

func (*listener) Ready(filter.Config) {}

func (l *listener) Report(ev *filter.Event) {
	fmt.Fprintln(l.sum, ev.Time, ev)
	last, open := l.open[ev.Session]
	switch {
	case open == (ev.ID == filter.LinkConnect):
		l.t.Errorf("%v of a session that is open: %v", ev, open)
	case ev.Time < last:
		l.t.Errorf("%v: time goes back by %d us in a session", ev, last-ev.Time)
	}
	l.open[ev.Session] = ev.Time
	l.most = max(l.most, len(l.open))
	l.back = max(l.back, l.at-ev.Time)
	l.at = max(l.at, ev.Time)
	if ev.ID == filter.LinkDisconnect {
		delete(l.open, ev.Session)
	}
}

func (l *listener) Decide(ev *filter.Event) filter.Reply {
	l.Report(ev)
	return filter.Reply{}
}

// TestOrder: sessions overlap, events are in the order of time but for what one
// command takes, and the same day is the same stream.
func TestOrder(t *testing.T) {
	run := func(seed uint64) string {
		sum := fnv.New64a()
		l := &listener{t: t, open: make(map[uint64]int64), sum: sum}
		if _, err := sim.Play(l, asked, sim.Day(seed, 3000)); err != nil {
			t.Fatal(err)
		}
		if len(l.open) > 0 || l.most < 30 {
			t.Errorf("%d sessions were left open, %d were at once", len(l.open), l.most)
		}
		if l.back > 1000 {
			t.Errorf("time goes back by %d us", l.back)
		}
		return fmt.Sprintf("%x", sum.Sum64())
	}
	one := run(1)
	if two := run(1); one != two {
		t.Error("the same seed gave another day")
	}
	if two := run(2); one == two {
		t.Error("another seed gave the same day")
	}
}

// TestMerge: two sequences become one in the order of time.
func TestMerge(t *testing.T) {
	count := func(seq iter.Seq[sim.Session]) (n int) {
		var last time.Time
		for s := range seq {
			if s.Start.Before(last) {
				t.Fatalf("%v after %v", s.Start, last)
			}
			last = s.Start
			n++
		}
		return n
	}
	attack := sim.Attack{Seed: 1, Start: sim.Midnight.Add(8 * time.Hour), Every: time.Minute, Sessions: 400, Each: 10}
	a, b := sim.Day(1, 1000), sim.Harvest(attack)
	if n, m, both := count(a), count(b), count(sim.Merge(a, b)); both != n+m || m != 400 {
		t.Errorf("%d and %d sessions became %d", n, m, both)
	}
}

// TestAttacks: each session comes from a network of its own and asks for
// recipients that others asked for, and nearly none exists.
func TestAttacks(t *testing.T) {
	attack := sim.Attack{Seed: 7, Start: sim.Midnight, Every: time.Minute, Sessions: 200, Each: 12}
	nets, asks := make(map[netip.Prefix]int), make(map[string]int)
	known, total := 0, 0
	for s := range sim.Harvest(attack) {
		p, _ := s.Src.Addr().Prefix(24)
		nets[p]++
		for _, st := range s.Steps {
			if st.Kind == sim.Rcpt {
				asks[st.Text]++
				total++
				if st.Fate == sim.OK {
					known++
				}
			}
		}
	}
	if len(nets) != 200 || total != 2400 || len(asks) > 110 || known == 0 || known*10 > total {
		t.Errorf("%d networks, %d recipients, %d different, %d exist", len(nets), total, len(asks), known)
	}
	out, err := sim.Play(new(recorder), nil, sim.Guess(attack))
	if err != nil || len(out) != 200 || out[0].Mails != 0 {
		t.Errorf("%d outcomes, %v", len(out), err)
	}
}

// BenchmarkPlay tells what the simulator itself costs.
func BenchmarkPlay(b *testing.B) {
	day := slices.Collect(sim.Day(1, 20_000))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := sim.Play(idle{}, asked, slices.Values(day)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(day)), "sessions/op")
}

// idle is a Handler that does nothing.
type idle struct{}

func (idle) Ready(filter.Config)               {}
func (idle) Report(*filter.Event)              {}
func (idle) Decide(*filter.Event) filter.Reply { return filter.Reply{} }
