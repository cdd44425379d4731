package smtpd

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"scanwatch/internal/smtp"
)

// A recorder is a Handler that records calls and returns the given answers.
type recorder struct {
	config Config
	events []string
	reply  func(*Event) smtp.Answer
	report func(*Event)
}

func (r *recorder) Ready(c Config) { r.config = c }

func (r *recorder) Report(ev *Event) {
	r.events = append(r.events, ev.String())
	if r.report != nil {
		r.report(ev)
	}
}

func (r *recorder) Decide(ev *Event) smtp.Answer {
	r.events = append(r.events, ev.String())
	if r.reply != nil {
		return r.reply(ev)
	}
	return smtp.Answer{}
}

const hello = "config|smtpd-version|7.9.0\nconfig|protocol|0.7\nconfig|smtp-session-timeout|300\nconfig|colour|blue\nconfig|admd|mx.example.org\nconfig|ready\n"

func serve(t *testing.T, in string, r *recorder) (out string, logged []string) {
	t.Helper()
	var b strings.Builder
	o := Options{Reports: []ID{LinkConnect}, Phases: []ID{PhaseConnect}, Log: func(s string) { logged = append(logged, s) }}
	if err := Serve(iotest.OneByteReader(strings.NewReader(in)), &b, r, o); err != nil {
		t.Fatal(err)
	}
	return b.String(), logged
}

func TestHandshake(t *testing.T) {
	var r recorder
	out, logged := serve(t, hello+hello, &r)
	want := "register|report|smtp-in|link-connect\nregister|filter|smtp-in|connect\nregister|ready\n"
	if out != want {
		t.Errorf("registered %q, want %q", out, want)
	}
	if r.config.SMTPDVersion != "7.9.0" || r.config.Protocol != Newest || r.config.ADMD != "mx.example.org" || r.config.SessionTimeout.Seconds() != 300 {
		t.Errorf("config: %+v", r.config)
	}
	if len(logged) > 0 {
		t.Errorf("logged %q", logged)
	}
}

func TestEvents(t *testing.T) {
	const id = "ced64b0c8bd7173c"
	for _, c := range []struct{ name, line, want string }{
		{"connect", "report|0.7|1.000002|smtp-in|link-connect|" + id + "|<unknown>|fail|192.0.2.1:25|[2001:db8::1]:25",
			`link-connect ` + id + ` rdns="<unknown>" fcrdns="fail" src="192.0.2.1:25" dest="[2001:db8::1]:25"`},
		{"auth 0.7", "report|0.7|1.0|smtp-in|link-auth|" + id + "|fail|a|b|c", `link-auth ` + id + ` result="fail" user="a|b|c"`},
		{"auth 0.6", "report|0.6|1.0|smtp-in|link-auth|" + id + "|a|b|c|fail", `link-auth ` + id + ` result="fail" user="a|b|c"`},
		{"auth 0.6 without user", "report|0.6|1.0|smtp-in|link-auth|" + id + "||fail", `link-auth ` + id + ` result="fail" user=""`},
		{"rcpt 0.6", "report|0.6|1.0|smtp-in|tx-rcpt|" + id + "|31f211ba|ok|a|b@example.org", `tx-rcpt ` + id + ` msgid="31f211ba" result="ok" address="a|b@example.org"`},
		{"rcpt 0.5", "report|0.5|1.0|smtp-in|tx-rcpt|" + id + "|31f211ba|a|b@example.org|ok", `tx-rcpt ` + id + ` msgid="31f211ba" result="ok" address="a|b@example.org"`},
		{"mail 0.4", "report|0.4|1.0|smtp-in|tx-mail|" + id + "|31f211ba||tempfail", `tx-mail ` + id + ` msgid="31f211ba" result="tempfail" address=""`},
		{"0.10 is newer than 0.7", "report|0.10|1.0|smtp-in|link-auth|" + id + "|pass|u|x", `link-auth ` + id + ` result="pass" user="u|x"`},
		{"odd bytes", "report|0.7|1.0|smtp-in|protocol-client|" + id + "|\xff\x1b[2J\r|x", `protocol-client ` + id + ` line="\xff\x1b[2J\r|x"`},
		{"no fields", "report|0.7|1.0|smtp-in|link-disconnect|" + id, `link-disconnect ` + id},
		{"too few fields", "report|0.7|1.0|smtp-in|link-connect|" + id + "|x", `link-connect ` + id + ` rdns="x"`},
		{"request", "filter|0.7|1.0|smtp-in|connect|" + id + "|f02b326436bc86e7|x|local", `connect ` + id + ` rdns="x" src="local"`},
		{"empty field", "filter|0.7|1.0|smtp-in|data|" + id + "|f02b326436bc86e7|", `data ` + id + ` =""`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r recorder
			_, logged := serve(t, c.line+"\n", &r)
			if len(r.events) != 1 || r.events[0] != c.want {
				t.Errorf("line %q\n got %q\nwant %q\nlog %q", c.line, r.events, c.want, logged)
			}
		})
	}
}

func TestAnswers(t *testing.T) {
	const ask = "filter|%s|1.0|smtp-in|%s|ced64b0c8bd7173c|f02b326436bc86e7|x\n"
	const result = "filter-result|ced64b0c8bd7173c|f02b326436bc86e7|"
	for _, c := range []struct {
		name, version, phase string
		reply                smtp.Answer
		want                 string
	}{
		{"proceed", "0.7", "ehlo", smtp.Answer{}, result + "proceed"},
		{"swapped before 0.5", "0.4", "ehlo", smtp.Answer{}, "filter-result|f02b326436bc86e7|ced64b0c8bd7173c|proceed"},
		{"reject", "0.7", "rcpt-to", smtp.Answer{Decision: smtp.Reject, Text: "550 5.1.1 No"}, result + "reject|550 5.1.1 No"},
		{"reject at connect becomes disconnect", "0.7", "connect", smtp.Answer{Decision: smtp.Reject, Text: "550 No"}, result + "disconnect|550 No"},
		{"junk", "0.7", "mail-from", smtp.Answer{Decision: smtp.Junk}, result + "junk"},
		{"junk at commit becomes proceed", "0.7", "commit", smtp.Answer{Decision: smtp.Junk}, result + "proceed"},
		{"unknown decision becomes proceed", "0.7", "data", smtp.Answer{Decision: 9}, result + "proceed"},
		{"text without code", "0.7", "data", smtp.Answer{Decision: smtp.Reject, Text: "no"}, result + "reject|550 no"},
		{"text with wrong code", "0.7", "data", smtp.Answer{Decision: smtp.Reject, Text: "250 ok"}, result + "reject|550 250 ok"},
		{"empty text", "0.7", "data", smtp.Answer{Decision: smtp.Reject, Text: ""}, result + "reject|550 Refused by local policy"},
		{"text of two lines", "0.7", "data", smtp.Answer{Decision: smtp.Disconnect, Text: "421 a\r\nfilter-result|b"}, result + "disconnect|421 a??filter-result|b"},
		{"text of many bytes", "0.7", "data", smtp.Answer{Decision: smtp.Reject, Text: "550 " + strings.Repeat("x", 20000)}, result + "reject|550 " + strings.Repeat("x", maxText-4)},
		{"8-bit text", "0.7", "data", smtp.Answer{Decision: smtp.Reject, Text: "550 é"}, result + "reject|550 ??"},
		{"unknown phase", "0.7", "help", smtp.Answer{Decision: smtp.Reject, Text: "550 no"}, result + "proceed"},
		{"data-line is returned", "0.7", "data-line", smtp.Answer{Decision: smtp.Reject, Text: "550 no"}, "filter-dataline|ced64b0c8bd7173c|f02b326436bc86e7|x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := recorder{reply: func(*Event) smtp.Answer { return c.reply }}
			out, _ := serve(t, fmt.Sprintf(ask, c.version, c.phase), &r)
			if out != c.want+"\n" {
				t.Errorf("got  %q\nwant %q", out, c.want)
			}
		})
	}
}

func TestPanicIsContained(t *testing.T) {
	ask := "filter|0.7|1.0|smtp-in|ehlo|000000000000000%d|f02b326436bc86e7|x\n"
	in := fmt.Sprintf(ask, 1) + "report|0.7|1.0|smtp-in|timeout|0000000000000001\n" + fmt.Sprintf(ask, 2)
	r := recorder{
		reply:  func(*Event) smtp.Answer { panic("reply") },
		report: func(*Event) { panic("report") },
	}
	out, logged := serve(t, in, &r)
	want := "filter-result|0000000000000001|f02b326436bc86e7|proceed\nfilter-result|0000000000000002|f02b326436bc86e7|proceed\n"
	if out != want {
		t.Errorf("answers %q, want %q", out, want)
	}
	if len(logged) != 1 || !strings.Contains(logged[0], "serve_test.go") {
		t.Errorf("logged %d lines, want one with the stack: %q", len(logged), logged)
	}
}

func TestOddLines(t *testing.T) {
	long := "report|0.7|1.0|smtp-in|protocol-client|0000000000000001|" + strings.Repeat("x", maxLine+10)
	longAsk := "filter|0.7|1.0|smtp-in|noop|0000000000000002|0000000000000003|" + strings.Repeat("y", 5*maxLine)
	for _, c := range []struct {
		name, in, out string
		events        int
		logged        string
	}{
		{"empty line", "\n", "", 0, "neither a report nor a filter line"},
		{"other word", "filtre|0.7\n", "", 0, "neither"},
		{"short", "filter|0.7|1.0|smtp-in\n", "", 0, "too few"},
		{"bad session", "report|0.7|1.0|smtp-in|timeout|xyz\n", "", 0, "session id"},
		{"upper-case session", "report|0.7|1.0|smtp-in|timeout|AB\n", "", 0, "session id"},
		{"bad token", "filter|0.7|1.0|smtp-in|noop|1|xyz|\n", "", 0, "token"},
		{"unknown report", "report|0.7|1.0|smtp-in|link-teapot|0000000000000001|x\n", "", 0, "unknown report"},
		{"newer minor", "report|0.8|1.0|smtp-in|timeout|0000000000000001\n", "", 1, "protocol 0.8"},
		{"unfinished last line", "filter|0.7|1.0|smtp-in|noop|0000000000000002|0000000000000003|", "", 0, ""},
		{"over-long report", long + "\n", "", 1, "truncated"},
		{"over-long request", longAsk + "\n", "filter-result|0000000000000002|0000000000000003|proceed\n", 1, "truncated"},
	} {
		t.Run(c.name, func(t *testing.T) {
			// This line must be parsed, regardless of the lines before it.
			const after = "filter|0.7|1.0|smtp-in|quit|00000000000000ff|00000000000000fe|\n"
			in, answer, extra := c.in, "", 0
			if strings.HasSuffix(in, "\n") {
				in, answer, extra = in+after, "filter-result|00000000000000ff|00000000000000fe|proceed\n", 1
			}
			var r recorder
			out, logged := serve(t, in, &r)
			if out != c.out+answer {
				t.Errorf("answers %q, want %q", out, c.out+answer)
			}
			if len(r.events) != c.events+extra {
				t.Errorf("%d events, want %d: %.200q", len(r.events), c.events+extra, r.events)
			}
			if all := strings.Join(logged, "\n"); strings.Contains(all, "filtre") || !strings.Contains(all, c.logged) || c.logged == "" && all != "" {
				t.Errorf("logged %q, want %q in it", all, c.logged)
			}
		})
	}
}

func TestWriteError(t *testing.T) {
	broken := errors.New("broken pipe")
	err := Serve(strings.NewReader(hello), iotestErrWriter{broken}, &recorder{}, Options{})
	if !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
}

type iotestErrWriter struct{ err error }

func (w iotestErrWriter) Write([]byte) (int, error) { return 0, w.err }

func TestCheckRefusesSecrets(t *testing.T) {
	for _, o := range []Options{{Phases: []ID{PhaseAuth}}, {Phases: []ID{PhaseDataLine}}, {Phases: []ID{LinkAuth}}, {Reports: []ID{Unknown}}} {
		if err := o.Check(); !errors.Is(err, ErrNever) {
			t.Errorf("%v: got %v, want ErrNever", o, err)
		}
	}
	if err := (Options{Reports: []ID{LinkAuth}, Phases: []ID{PhaseEhlo}}).Check(); err != nil {
		t.Error(err)
	}
}

var request = regexp.MustCompile(`(?m)^filter\|[^|]*\|[^|]*\|smtp-in\|([^|]*)\|([0-9a-f]{16})\|([0-9a-f]{16})\|(.*)$`)

// TestStreams checks that each request in a recorded stream is answered exactly once, in order, and
// with a separate session and token. No line may be logged.
func TestStreams(t *testing.T) {
	streams, err := filepath.Glob("../../tests/streams/*/*.in")
	if err != nil || len(streams) < 160 {
		t.Fatalf("%d recorded streams: %v", len(streams), err)
	}
	for _, name := range streams {
		t.Run(strings.TrimPrefix(name, "../../tests/streams/"), func(t *testing.T) {
			in, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var want strings.Builder
			want.WriteString("register|ready\n")
			for _, m := range request.FindAllSubmatch(in, -1) {
				if string(m[1]) == "data-line" {
					fmt.Fprintf(&want, "filter-dataline|%s|%s|%s\n", m[2], m[3], m[4])
				} else {
					fmt.Fprintf(&want, "filter-result|%s|%s|proceed\n", m[2], m[3])
				}
			}
			var out bytes.Buffer
			var r recorder
			o := Options{Log: func(s string) { t.Errorf("logged %q", s) }}
			if err := Serve(bytes.NewReader(in), &out, &r, o); err != nil {
				t.Fatal(err)
			}
			if out.String() != want.String() {
				t.Errorf("answers differ: got %d bytes, want %d", out.Len(), want.Len())
			}
			if lines := bytes.Count(in, []byte("\nreport|")) + bytes.Count(in, []byte("\nfilter|")); len(r.events) != lines {
				t.Errorf("%d events from %d lines", len(r.events), lines)
			}
		})
	}
}

// FuzzServe checks that Serve returns for any input. Each request in the input must be answered
// once with a line that smtpd accepts.
func FuzzServe(f *testing.F) {
	for _, name := range []string{"odd-addresses", "bad-helo", "junk", "data-lines", "auth-submission"} {
		for _, v := range []string{"6.8", "7.9"} {
			b, err := os.ReadFile(filepath.Join("../../tests/streams", v, name+".in"))
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b[:min(len(b), 6000)], uint8(1))
		}
	}
	f.Add([]byte("filter|0.4|1.0|smtp-in|commit|1|2|\nfilter|||||1|2\nfilter|0.99999|x|y|connect|0|0|\n"), uint8(3))
	legal := regexp.MustCompile(`^(filter-result\|[0-9a-f]{16}\|[0-9a-f]{16}\|(proceed|junk|(reject|disconnect)\|[45][0-9][0-9] [ -~]+)|filter-dataline\|[0-9a-f]{16}\|[0-9a-f]{16}\|.*|register\|ready)$`)
	f.Fuzz(func(t *testing.T, in []byte, decision uint8) {
		asked := 0
		r := recorder{reply: func(ev *Event) smtp.Answer {
			asked++
			if decision > 200 {
				panic("bug")
			}
			return smtp.Answer{Decision: smtp.Decision(decision % 5), Text: string(ev.Field(0))}
		}}
		var out bytes.Buffer
		unknown := 0
		o := Options{Log: func(s string) {
			if strings.HasPrefix(s, "unknown phase") {
				unknown++
			}
		}}
		if err := Serve(iotest.HalfReader(bytes.NewReader(in)), &out, &r, o); err != nil {
			t.Fatal(err)
		}
		answers := 0
		for _, line := range bytes.Split(bytes.TrimSuffix(out.Bytes(), []byte{'\n'}), []byte{'\n'}) {
			if len(line) == 0 {
				continue
			}
			if !legal.Match(line) {
				t.Errorf("smtpd does not take %q", line)
			}
			if !bytes.HasPrefix(line, []byte("register")) {
				answers++
			}
		}
		if answers < asked || unknown == 0 && answers != asked {
			t.Errorf("%d answers to %d requests", answers, asked)
		}
	})
}

func BenchmarkServe(b *testing.B) {
	for _, name := range []string{"ehlo-delivery", "harvest-50-unknown", "concurrent-200"} {
		b.Run(name, func(b *testing.B) {
			in, err := os.ReadFile(filepath.Join("../../tests/streams/7.9", name+".in"))
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(in)))
			b.ReportAllocs()
			lines := bytes.Count(in, []byte{'\n'})
			r := endless{in: in, n: b.N}
			if err := Serve(&r, io.Discard, nobody{}, Options{}); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*lines), "ns/line")
		})
	}
}

// An endless repeats in n times without copying it.
type endless struct {
	in []byte
	at int
	n  int
}

func (e *endless) Read(b []byte) (int, error) {
	if e.n == 0 {
		return 0, io.EOF
	}
	n := copy(b, e.in[e.at:])
	if e.at += n; e.at == len(e.in) {
		e.at = 0
		e.n--
	}
	return n, nil
}

type nobody struct{}

func (nobody) Ready(Config)              {}
func (nobody) Report(*Event)             {}
func (nobody) Decide(*Event) smtp.Answer { return smtp.Answer{} }

// TestHeldAnswers checks that a delayed answer is sent when its delay has passed, and that other
// answers do not wait for it. At the end of the input, all answers must be sent.
func TestHeldAnswers(t *testing.T) {
	ask := func(session int) string {
		return fmt.Sprintf("filter|0.7|1.0|smtp-in|ehlo|%016x|00000000000000ff|x\n", session)
	}
	answer := func(session int) string {
		return fmt.Sprintf("filter-result|%016x|00000000000000ff|proceed\n", session)
	}
	holds := []time.Duration{50 * time.Millisecond, time.Hour, 0, 10 * time.Millisecond}
	r := recorder{reply: func(ev *Event) smtp.Answer { return smtp.Answer{Hold: holds[ev.Session]} }}
	in, toIn := io.Pipe()
	fromOut, out := io.Pipe()
	done := make(chan error)
	go func() { done <- Serve(in, out, &r, Options{}); out.Close() }()
	go func() { fmt.Fprint(toIn, ask(0), ask(1), ask(2), ask(3)) }()
	lines := bufio.NewReader(fromOut)
	for _, session := range []int{2, 3, 0} {
		if got, err := lines.ReadString('\n'); err != nil || got != answer(session) {
			t.Fatalf("got %q, %v; want %q", got, err, answer(session))
		}
	}
	toIn.Close()
	if got, err := lines.ReadString('\n'); err != nil || got != answer(1) {
		t.Fatalf("at the end: got %q, %v; want %q", got, err, answer(1))
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestHoldLimit checks that an answer is sent immediately if too many others are delayed.
func TestHoldLimit(t *testing.T) {
	var in strings.Builder
	for i := range MaxHeld + 10 {
		fmt.Fprintf(&in, "filter|0.7|1.0|smtp-in|ehlo|%016x|00000000000000ff|x\n", i)
	}
	r := recorder{reply: func(*Event) smtp.Answer { return smtp.Answer{Hold: time.Hour} }}
	out, _ := serve(t, in.String(), &r)
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(lines) != MaxHeld+10 {
		t.Fatalf("%d answers", len(lines))
	}
	for i, line := range lines[:10] {
		if want := fmt.Sprintf("filter-result|%016x|", MaxHeld+i); !strings.HasPrefix(line, want) {
			t.Errorf("answer %d is %q, want an answer that was rejected because the queue was full", i, line)
		}
	}
}

// TestMake checks that Make and parsing a line result in the same event.
func TestMake(t *testing.T) {
	var made, parsed Event
	if err := parsed.parse([]byte("report|0.7|1795219327.000001|smtp-in|tx-rcpt|00000000000000ff|0a0b0c0d|ok|a|b@example.org")); err != nil {
		t.Fatal(err)
	}
	made.Make(TxRcpt, 1795219327000001, 0xff, []byte("0a0b0c0d"), []byte("ok"), []byte("a|b@example.org"))
	if made.String() != parsed.String() || made.Time != parsed.Time || made.Version != parsed.Version {
		t.Errorf("made %v, parsed %v", &made, &parsed)
	}
	made.Make(PhaseNoop, 0, 1, nil, nil, nil, nil, nil, nil)
	if made.Field(9) != nil || !made.request {
		t.Errorf("made %+v", made)
	}
}
