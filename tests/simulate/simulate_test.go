package simulate_test

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

	"scanwatch/internal/smtp"

	"scanwatch/filter/smtpd"
	"scanwatch/tests/simulate"
)

// A recorder records events and gives predefined answers.
type recorder struct {
	events map[uint64][]string
	order  []uint64
	decide func(*smtpd.Event) smtp.Answer
}

func (r *recorder) Ready(smtpd.Config) {}

func (r *recorder) Report(ev *smtpd.Event) {
	if ev.Out || ev.ID == smtpd.PhaseDataLine {
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

func (r *recorder) Decide(ev *smtpd.Event) smtp.Answer {
	r.Report(ev)
	if r.decide == nil {
		return smtp.Answer{}
	}
	return r.decide(ev)
}

// session returns the events of session n, one per line.
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

// normal returns an event without the fields that vary between runs.
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

// asked lists the phases in recorded streams. It omits auth and data-line, because no filter should
// register for them.
var asked = []smtpd.ID{
	smtpd.PhaseConnect, smtpd.PhaseHelo, smtpd.PhaseEhlo, smtpd.PhaseStartTLS, smtpd.PhaseMailFrom, smtpd.PhaseRcptTo,
	smtpd.PhaseData, smtpd.PhaseRset, smtpd.PhaseQuit, smtpd.PhaseNoop, smtpd.PhaseCommit,
}

// recorded returns the lines recorded from a real smtpd.
func recorded(t *testing.T, name string) *recorder {
	t.Helper()
	f, err := os.Open("../streams/7.9/" + name + ".in")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := new(recorder)
	if err := smtpd.Serve(f, io.Discard, r, smtpd.Options{}); err != nil {
		t.Fatal(err)
	}
	return r
}

var begin = time.Date(2026, 11, 16, 8, 0, 0, 0, time.UTC)

// client returns a Session of a host that pauses between steps.
func client(steps ...simulate.Step) simulate.Session {
	for i := range steps {
		steps[i].Gap = 20 * time.Millisecond
	}
	return simulate.Session{
		Start: begin, Src: netip.MustParseAddrPort("127.0.0.1:40000"), Dst: netip.MustParseAddrPort("127.0.0.1:25"),
		RDNS: "localhost", FCrDNS: "pass", Steps: steps,
	}
}

func step(kind simulate.Kind, text string) simulate.Step {
	return simulate.Step{Kind: kind, Text: text}
}

func play(t *testing.T, h smtpd.Handler, sessions ...simulate.Session) []simulate.Outcome {
	t.Helper()
	out, err := simulate.Play(h, asked, slices.Values(sessions))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// goAway returns a function that answers with reply in the given phase and accepts all other
// requests.
func goAway(phase smtpd.ID, reply smtp.Answer) func(*smtpd.Event) smtp.Answer {
	return func(ev *smtpd.Event) smtp.Answer {
		if ev.ID == phase {
			return reply
		}
		return smtp.Answer{}
	}
}

// TestStreams checks that the simulated smtpd sends the same lines as a real smtpd.
func TestStreams(t *testing.T) {
	ehlo := step(simulate.Ehlo, "p.example.net")
	mail := step(simulate.Mail, "a@example.net")
	alice := step(simulate.Rcpt, "alice@example.org")
	quit := step(simulate.Quit, "")
	hurry := step(simulate.Pipelined, "")
	r, a := step(simulate.Ehlo, "r.example.net"), mail
	bye := smtp.Answer{Decision: smtp.Disconnect, Text: "550 5.7.1 go away"}
	for _, tt := range []struct {
		name   string
		stream string
		n      int // number of the session in the stream
		script []simulate.Step
		phase  smtpd.ID // phase of the negative answer
	}{
		{name: "delivery", stream: "ehlo-starttls-delivery", script: []simulate.Step{
			step(simulate.Ehlo, "client.example.net"), step(simulate.StartTLS, ""), step(simulate.Mail, "bob@example.net"), alice, step(simulate.Rcpt, "bob@example.org"),
			{Kind: simulate.Data, Size: 517}, quit}},
		{name: "helo", stream: "helo-delivery", script: []simulate.Step{
			step(simulate.Helo, "client.example.net"), step(simulate.Mail, "bob@example.net"), alice, {Kind: simulate.Data, Size: sizeIn(t, "helo-delivery")}, quit}},
		{name: "pipelining first", stream: "pipelined", n: 0, script: []simulate.Step{hurry}},
		{name: "pipelining after EHLO", stream: "pipelined", n: 1, script: []simulate.Step{ehlo, hurry}},
		{name: "pipelining after RCPT", stream: "pipelined", n: 2, script: []simulate.Step{ehlo, mail, alice, hurry}},
		{name: "patience", stream: "pipelined", n: 3, script: []simulate.Step{ehlo, mail, alice, {Kind: simulate.Data, Size: 451}, quit}},
		{name: "unknown commands", stream: "pipelined", n: 6, script: []simulate.Step{ehlo,
			step(simulate.Command, "NOOP\r"), step(simulate.Command, ""), step(simulate.Command, " HELO x"), quit}},
		{name: "refused recipients", stream: "harvest-50-unknown", script: harvest(t)},
		{name: "disconnect at connect", stream: "disconnect-550-each-phase", n: 0, phase: smtpd.PhaseConnect},
		{name: "disconnect at helo", stream: "disconnect-550-each-phase", n: 1, phase: smtpd.PhaseHelo, script: []simulate.Step{step(simulate.Helo, "r.example.net")}},
		{name: "disconnect at ehlo", stream: "disconnect-550-each-phase", n: 2, phase: smtpd.PhaseEhlo, script: []simulate.Step{r}},
		{name: "disconnect at starttls", stream: "disconnect-550-each-phase", n: 3, phase: smtpd.PhaseStartTLS, script: []simulate.Step{r, step(simulate.StartTLS, "")}},
		{name: "disconnect at mail-from", stream: "disconnect-550-each-phase", n: 4, phase: smtpd.PhaseMailFrom, script: []simulate.Step{r, a}},
		{name: "disconnect at rcpt-to", stream: "disconnect-550-each-phase", n: 5, phase: smtpd.PhaseRcptTo, script: []simulate.Step{r, a, alice}},
		{name: "disconnect at data", stream: "disconnect-550-each-phase", n: 6, phase: smtpd.PhaseData, script: []simulate.Step{r, a, alice, step(simulate.Data, "")}},
		{name: "disconnect at commit", stream: "disconnect-550-each-phase", n: 7, phase: smtpd.PhaseCommit, script: []simulate.Step{r, a, alice, step(simulate.Data, "")}},
		{name: "disconnect at noop", stream: "disconnect-550-each-phase", n: 8, phase: smtpd.PhaseNoop, script: []simulate.Step{r, step(simulate.Noop, "")}},
		{name: "disconnect at rset", stream: "disconnect-550-each-phase", n: 9, phase: smtpd.PhaseRset, script: []simulate.Step{r, step(simulate.Rset, "")}},
		{name: "disconnect at quit", stream: "disconnect-550-each-phase", n: 10, phase: smtpd.PhaseQuit, script: []simulate.Step{r, quit}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := new(recorder)
			if tt.phase != smtpd.Unknown {
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

// sizeIn returns the size of the only message in a stream.
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

// virtual matches the reply to unknown recipients of a server that uses a virtual table.
var virtual = regexp.MustCompile(`524 5\.2\.4 Mailing list expansion problem:`)

// harvest returns the script of the recorded client that requested 50 recipients.
func harvest(t *testing.T) []simulate.Step {
	steps := []simulate.Step{step(simulate.Ehlo, "harvest.example.net"), step(simulate.Mail, "probe@example.net")}
	for line := range strings.Lines(recorded(t, "harvest-50-unknown").session(t, 0)) {
		if _, rcpt, ok := strings.Cut(strings.TrimSpace(line), `rcpt-to args="`); ok {
			steps = append(steps, simulate.Step{Kind: simulate.Rcpt, Text: strings.TrimSuffix(rcpt, `"`), Fate: simulate.Unknown})
		}
	}
	if len(steps) != 52 {
		t.Fatalf("%d steps", len(steps))
	}
	return append(steps, step(simulate.Rset, ""), step(simulate.Quit, ""))
}

// said returns the lines sent by the client.
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

// TestObeys checks that a client that is rejected or disconnected reacts like a mail server, in
// each phase.
func TestObeys(t *testing.T) {
	permanent := smtp.Answer{Decision: smtp.Reject, Text: "550 5.7.1 no"}
	temporary := smtp.Answer{Decision: smtp.Reject, Text: "451 4.7.1 later"}
	farewell := smtp.Answer{Decision: smtp.Reject, Text: "421 4.7.0 bye"}
	disconnect := smtp.Answer{Decision: smtp.Disconnect, Text: "554 5.7.1 bye"}
	message := []simulate.Step{step(simulate.Mail, "bob@example.net"), step(simulate.Rcpt, "alice@example.org"), step(simulate.Rcpt, "bob@example.org"), step(simulate.Data, "")}
	script := append([]simulate.Step{step(simulate.Ehlo, "client.example.net"), step(simulate.StartTLS, ""), step(simulate.Noop, "")}, message...)
	script = append(script, step(simulate.Rset, ""))
	script = append(append(script, message...), step(simulate.Quit, ""))
	const whole = "EHLO STARTTLS EHLO NOOP MAIL RCPT RCPT DATA . RSET MAIL RCPT RCPT DATA . QUIT"
	for _, tt := range []struct {
		phase          smtpd.ID
		reply          smtp.Answer
		said           string
		refused        int
		gone           bool
		mails          int
		rcptOK, rcptNo int
		absent         string
	}{
		{phase: smtpd.Unknown, said: whole, mails: 2, rcptOK: 4},
		{phase: smtpd.PhaseConnect, reply: permanent, said: "", refused: 1, gone: true, absent: "220 "}, // Serve converts this answer to a disconnect
		{phase: smtpd.PhaseConnect, reply: disconnect, said: "", refused: 1, gone: true},
		{phase: smtpd.PhaseEhlo, reply: permanent, said: "EHLO HELO NOOP MAIL RCPT RCPT DATA . RSET MAIL RCPT RCPT DATA . QUIT", refused: 1, mails: 2, rcptOK: 4, absent: "link-tls"},
		{phase: smtpd.PhaseEhlo, reply: temporary, said: "EHLO QUIT", refused: 1},
		{phase: smtpd.PhaseEhlo, reply: farewell, said: "EHLO", refused: 1, gone: true},
		{phase: smtpd.PhaseStartTLS, reply: permanent, said: "EHLO STARTTLS NOOP MAIL RCPT RCPT DATA . RSET MAIL RCPT RCPT DATA . QUIT", refused: 1, mails: 2, rcptOK: 4, absent: "link-tls"},
		{phase: smtpd.PhaseNoop, reply: permanent, said: whole, refused: 1, mails: 2, rcptOK: 4},
		{phase: smtpd.PhaseNoop, reply: disconnect, said: "EHLO STARTTLS EHLO NOOP", refused: 1, gone: true},
		{phase: smtpd.PhaseMailFrom, reply: permanent, said: "EHLO STARTTLS EHLO NOOP MAIL QUIT", refused: 1, absent: "tx-"},
		{phase: smtpd.PhaseMailFrom, reply: disconnect, said: "EHLO STARTTLS EHLO NOOP MAIL", refused: 1, gone: true, absent: "tx-"},
		{phase: smtpd.PhaseRcptTo, reply: permanent, said: "EHLO STARTTLS EHLO NOOP MAIL RCPT RCPT RSET MAIL RCPT RCPT QUIT", refused: 4, rcptNo: 4, absent: "tx-rcpt msgid=M result=\"tempfail\""},
		{phase: smtpd.PhaseRcptTo, reply: temporary, said: "EHLO STARTTLS EHLO NOOP MAIL RCPT RCPT RSET MAIL RCPT RCPT QUIT", refused: 4, rcptNo: 4, absent: "tx-rcpt msgid=M result=\"permfail\""},
		{phase: smtpd.PhaseRcptTo, reply: farewell, said: "EHLO STARTTLS EHLO NOOP MAIL RCPT", refused: 1, gone: true, rcptNo: 1},
		{phase: smtpd.PhaseData, reply: permanent, said: "EHLO STARTTLS EHLO NOOP MAIL RCPT RCPT DATA RSET MAIL RCPT RCPT DATA QUIT", refused: 2, rcptOK: 4, absent: "354 "},
		{phase: smtpd.PhaseData, reply: disconnect, said: "EHLO STARTTLS EHLO NOOP MAIL RCPT RCPT DATA", refused: 1, gone: true, rcptOK: 2},
		{phase: smtpd.PhaseCommit, reply: temporary, said: whole, refused: 2, rcptOK: 4, absent: "tx-commit"},
		{phase: smtpd.PhaseCommit, reply: disconnect, said: "EHLO STARTTLS EHLO NOOP MAIL RCPT RCPT DATA .", refused: 1, gone: true, rcptOK: 2},
		{phase: smtpd.PhaseRset, reply: disconnect, said: "EHLO STARTTLS EHLO NOOP MAIL RCPT RCPT DATA . RSET", refused: 1, gone: true, mails: 1, rcptOK: 2},
		{phase: smtpd.PhaseQuit, reply: permanent, said: whole, refused: 1, mails: 2, rcptOK: 4, absent: "221 "},
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

// TestJunk checks that the simulation and smtpd mark the same messages as junk.
func TestJunk(t *testing.T) {
	message := []simulate.Step{step(simulate.Mail, "bob@example.net"), step(simulate.Rcpt, "alice@example.org"), step(simulate.Data, "")}
	script := slices.Concat([]simulate.Step{step(simulate.Ehlo, "client.example.net")}, message, []simulate.Step{step(simulate.Quit, "")})
	for _, tt := range []struct {
		phase smtpd.ID
		want  bool
	}{
		{smtpd.Unknown, false},
		{smtpd.PhaseConnect, true},
		{smtpd.PhaseEhlo, true},
		{smtpd.PhaseMailFrom, true},
		{smtpd.PhaseRcptTo, true},
		{smtpd.PhaseData, true},
		{smtpd.PhaseCommit, false}, // Serve never sends this answer, because smtpd would exit
	} {
		h := &recorder{decide: goAway(tt.phase, smtp.Answer{Decision: smtp.Junk})}
		if out := play(t, h, client(slices.Clone(script)...))[0]; out.Junked != tt.want || out.Mails != 1 {
			t.Errorf("junk at %v: %+v", tt.phase, out)
		}
	}
}

// TestHold checks that a delay affects only one client, and only on the clock of the sessions.
func TestHold(t *testing.T) {
	var order []string
	h := &recorder{}
	h.decide = func(ev *smtpd.Event) smtp.Answer {
		if ev.ID == smtpd.PhaseConnect {
			return smtp.Answer{Hold: time.Hour}
		}
		order = append(order, fmt.Sprintf("%d %v", ev.Session>>32, time.UnixMicro(ev.Time).Sub(begin).Round(time.Second)))
		return smtp.Answer{}
	}
	one, two := client(step(simulate.Quit, "")), client(step(simulate.Quit, ""))
	two.Start = begin.Add(10 * time.Second)
	out := play(t, h, one, two)
	if want := []string{"1 1m0s", "2 1m10s"}; !slices.Equal(order, want) {
		t.Errorf("order of QUIT: %q, want %q", order, want)
	}
	if out[0].Held != smtpd.MaxHold {
		t.Errorf("held for %v", out[0].Held)
	}
	got := h.session(t, 0)
	if i, j := strings.Index(got, "connect rdns"), strings.Index(got, "220 "); i < 0 || j < i {
		t.Errorf("banner before the answer:\n%s", got)
	}
}

type panics struct{ recorder }

func (*panics) Decide(*smtpd.Event) smtp.Answer { panic("on purpose") }

// TestPanic checks that Play returns an error if the Handler panics.
func TestPanic(t *testing.T) {
	_, err := simulate.Play(new(panics), asked, slices.Values([]simulate.Session{client(step(simulate.Quit, ""))}))
	if err == nil || !strings.Contains(err.Error(), "on purpose") {
		t.Errorf("err = %v", err)
	}
}

// A listener checks whether a stream is one that smtpd could have sent.
type listener struct {
	t    *testing.T
	open map[uint64]int64 // time of each session's latest event
	at   int64
	back int64
	sum  interface{ io.Writer }
	most int
}

func (*listener) Ready(smtpd.Config) {}

func (l *listener) Report(ev *smtpd.Event) {
	fmt.Fprintln(l.sum, ev.Time, ev)
	last, open := l.open[ev.Session]
	switch {
	case open == (ev.ID == smtpd.LinkConnect):
		l.t.Errorf("%v of a session that is open: %v", ev, open)
	case ev.Time < last:
		l.t.Errorf("%v: time goes back by %d us in a session", ev, last-ev.Time)
	}
	l.open[ev.Session] = ev.Time
	l.most = max(l.most, len(l.open))
	l.back = max(l.back, l.at-ev.Time)
	l.at = max(l.at, ev.Time)
	if ev.ID == smtpd.LinkDisconnect {
		delete(l.open, ev.Session)
	}
}

func (l *listener) Decide(ev *smtpd.Event) smtp.Answer {
	l.Report(ev)
	return smtp.Answer{}
}

// TestOrder checks that sessions overlap, and that the events of different commands are in
// chronological order. The same day must always produce the same stream.
func TestOrder(t *testing.T) {
	run := func(seed uint64) string {
		sum := fnv.New64a()
		l := &listener{t: t, open: make(map[uint64]int64), sum: sum}
		if _, err := simulate.Play(l, asked, simulate.Day(seed, 3000)); err != nil {
			t.Fatal(err)
		}
		if len(l.open) > 0 || l.most < 30 {
			t.Errorf("%d sessions remain open, at most %d overlapped", len(l.open), l.most)
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

// TestMerge checks that Merge returns sessions in chronological order.
func TestMerge(t *testing.T) {
	count := func(seq iter.Seq[simulate.Session]) (n int) {
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
	attack := simulate.Attack{Seed: 1, Start: simulate.Midnight.Add(8 * time.Hour), Every: time.Minute, Sessions: 400, Each: 10}
	a, b := simulate.Day(1, 1000), simulate.Harvest(attack)
	if n, m, both := count(a), count(b), count(simulate.Merge(a, b)); both != n+m || m != 400 {
		t.Errorf("%d and %d sessions became %d", n, m, both)
	}
}

// TestAttacks checks that each session in an attack comes from a different network, that several
// sessions request the same recipients, and that only few of the recipients exist.
func TestAttacks(t *testing.T) {
	attack := simulate.Attack{Seed: 7, Start: simulate.Midnight, Every: time.Minute, Sessions: 200, Each: 12}
	nets, asks := make(map[netip.Prefix]int), make(map[string]int)
	known, total := 0, 0
	for s := range simulate.Harvest(attack) {
		p, _ := s.Src.Addr().Prefix(24)
		nets[p]++
		for _, st := range s.Steps {
			if st.Kind == simulate.Rcpt {
				asks[st.Text]++
				total++
				if st.Fate == simulate.OK {
					known++
				}
			}
		}
	}
	if len(nets) != 200 || total != 2400 || len(asks) > 110 || known == 0 || known*10 > total {
		t.Errorf("%d networks, %d recipients, %d different, %d exist", len(nets), total, len(asks), known)
	}
	out, err := simulate.Play(new(recorder), nil, simulate.Guess(attack))
	if err != nil || len(out) != 200 || out[0].Mails != 0 {
		t.Errorf("%d outcomes, %v", len(out), err)
	}
}

// BenchmarkPlay measures the cost of the simulation itself.
func BenchmarkPlay(b *testing.B) {
	day := slices.Collect(simulate.Day(1, 20_000))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := simulate.Play(idle{}, asked, slices.Values(day)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(day)), "sessions/op")
}

// idle is a Handler that does nothing.
type idle struct{}

func (idle) Ready(smtpd.Config)              {}
func (idle) Report(*smtpd.Event)             {}
func (idle) Decide(*smtpd.Event) smtp.Answer { return smtp.Answer{} }
