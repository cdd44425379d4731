//go:build linux

// Package milter runs milter-scanwatch with a real Postfix and a real Sendmail.
package milter

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/require"
	"scanwatch/tests/internal/smtpd"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) {
	smtpd.Main(m, "scanwatch/cmd/milter-scanwatch", "scanwatch/cmd/filter-scanwatch", "scanwatch/cmd/scanwatch")
}

// A scenario is a client's session. A line that begins with > is sent without CR LF, and without
// waiting for a reply. Before any other line, the client waits for the reply to its previous line.
type scenario struct {
	name  string
	src   string // 198.51.100.1 has a proven name
	lines []string
}

const (
	mailLine = "MAIL FROM:<a@partner.example>"
	rcptLine = "RCPT TO:<games@example.org>"
)

var message = []string{mailLine, rcptLine, "DATA", "Subject: test\r\n\r\nhello\r\n."}

func join(all ...[]string) []string { return slices.Concat(all...) }

func unknown(n int) (lines []string) {
	for i := range n {
		lines = append(lines, fmt.Sprintf("RCPT TO:<guess%d@example.org>", i))
	}
	return lines
}

var scenarios = []scenario{
	{"mail", "198.51.100.1", join([]string{"EHLO mail.partner.example"}, message, message, []string{"QUIT"})},
	{"mail without a name", "198.51.100.2", join([]string{"EHLO mail.other.example"}, message, []string{"QUIT"})},
	{"one unknown recipient", "198.51.100.3", join([]string{"EHLO mail.other.example", mailLine, "RCPT TO:<left@example.org>", rcptLine, "DATA", "Subject: x\r\n\r\nx\r\n.", "QUIT"})},
	{"bounce", "198.51.100.4", []string{"EHLO mail.other.example", "MAIL FROM:<>", "RCPT TO:<left@example.org>", "QUIT"}},
	{"harvest", "203.0.113.5", join([]string{"EHLO mail.other.example", mailLine}, unknown(12), []string{mailLine, rcptLine, "QUIT"})},
	{"relay probe", "198.51.100.6", []string{"EHLO mail.other.example", mailLine, "RCPT TO:<x@victim.example>", "RSET", mailLine, "RCPT TO:<x%victim.example@example.org>", "QUIT"}},
	{"attack tool", "198.51.100.7", join([]string{"EHLO ylmf-pc"}, message, []string{"QUIT"})},
	{"our name", "198.51.100.8", join([]string{"EHLO mx.example.org"}, message, []string{"QUIT"})},
	{"our address", "198.51.100.9", join([]string{"EHLO [192.0.2.25]"}, message, []string{"QUIT"})},
	{"bare address", "198.51.100.10", join([]string{"EHLO 198.51.100.10"}, message, []string{"QUIT"})},
	{"no greeting", "198.51.100.11", []string{mailLine, rcptLine, "QUIT"}},
	{"bad greeting", "198.51.100.12", []string{"EHLO", "EHLO a b@", "QUIT"}},
	{"another greeting", "198.51.100.13", join([]string{"EHLO one.example", "EHLO two.example"}, message, []string{"QUIT"})},
	{"HTTP", "198.51.100.14", []string{"GET /login?password=secret HTTP/1.1", "Host: mx.example.org", "QUIT"}},
	{"SSH", "198.51.100.15", []string{"SSH-2.0-libssh2_1.9.0", "QUIT"}},
	{"TLS", "198.51.100.16", []string{"\x16\x03\x01\x02\x00\x01", "QUIT"}},
	{"unknown commands", "198.51.100.17", []string{"EHLO mail.other.example", "XYZZY", "FOO bar", "dXNlcg==", "QUIT"}},
	{"login", "198.51.100.18", []string{"EHLO mail.other.example", "AUTH LOGIN", "am9l", "c2VjcmV0cGFzcw==", "QUIT"}},
	{"VRFY", "198.51.100.19", []string{"EHLO mail.other.example", "VRFY joe", "EXPN joe", "NOOP", "QUIT"}},
	{"pipelining", "198.51.100.20", []string{"EHLO mail.other.example", ">" + mailLine + "\r\n" + rcptLine + "\r\nDATA\r\n", "", "", "", "Subject: x\r\n\r\nx\r\n.", "QUIT"}},
	{"early talker", "198.51.100.21", []string{">EHLO mail.other.example\r\n", "", "QUIT"}},
	{"vanish", "198.51.100.22", nil},
	{"vanish after EHLO", "198.51.100.23", []string{"EHLO mail.other.example"}},
	{"vanish after MAIL", "198.51.100.24", []string{"EHLO mail.other.example", mailLine}},
	{"vanish after RCPT", "198.51.100.25", []string{"EHLO mail.other.example", mailLine, rcptLine}},
	{"vanish in the message", "198.51.100.26", []string{"EHLO mail.other.example", mailLine, rcptLine, "DATA", ">Subject: x\r\n"}},
	{"bad syntax", "198.51.100.27", []string{"EHLO mail.other.example", "MAIL FROM:<a@", "RCPT TO:joe", mailLine, "RCPT TO:<joe@@>", "QUIT"}},
	{"banned", "198.51.100.29", join([]string{"EHLO mail.other.example"}, message, []string{"QUIT"})},
	{"blocked", "198.51.100.30", join([]string{"EHLO mail.other.example"}, message, []string{"QUIT"})},
	{"quoted sender", "198.51.100.28", []string{"EHLO mail.other.example", `MAIL FROM:<"a>b"@partner.example>`, rcptLine, "QUIT"}},
}

// blocked is a rule that rejects a connection permanently.
const blocked = `
table <blocked> { 198.51.100.30 }
rule blocked phase connect match src <blocked> disconnect "554 5.7.1 Not from your network"
`

const patience = time.Minute

// play plays a scenario and returns the replies. If the connection has ended, "closed" takes the
// place of a reply.
func (s *scenario) play(t *testing.T) (replies []string) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(s.src)}}
	c, err := d.DialContext(t.Context(), "tcp", server)
	if err != nil {
		t.Error(err)
		return nil
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Error(err)
	}
	in := bufio.NewReader(c)
	lines := s.lines
	if len(lines) > 0 && strings.HasPrefix(lines[0], ">") { // sent before the greeting
		_, _ = io.WriteString(c, lines[0][1:])
		lines = lines[1:]
	}
	r := reply(in)
	replies = append(replies, r)
	for _, line := range lines {
		if r == closed {
			break
		}
		if strings.HasPrefix(line, "Subject:") && !strings.HasPrefix(r, "354") {
			continue // do not send the message, because DATA was rejected
		}
		raw, early := strings.CutPrefix(line, ">")
		if early {
			_, _ = io.WriteString(c, raw)
			continue
		}
		if line != "" {
			if _, err := io.WriteString(c, line+"\r\n"); err != nil {
				break
			}
		}
		r = reply(in)
		replies = append(replies, r)
	}
	return replies
}

const closed = "closed"

// variable matches the parts of replies that are different in each run.
var variable = regexp.MustCompile(`Sendmail [0-9./]+|queued as \w+|[0-9a-f]{16}|\b\w{8}\d{6}\b|(Mon|Tue|Wed|Thu|Fri|Sat|Sun), .*`)

// reply reads a reply.
func reply(in *bufio.Reader) string {
	var text strings.Builder
	for {
		line, err := in.ReadString('\n')
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return "timeout"
		case err != nil:
			return closed
		case len(line) > 3 && line[3] == '-':
			text.WriteString(line)
		default:
			text.WriteString(strings.TrimSpace(line))
			return variable.ReplaceAllString(text.String(), "...")
		}
	}
}

// playAll plays all scenarios, several of them concurrently.
func playAll(t *testing.T) map[string][]string {
	t.Helper()
	var mu sync.Mutex
	var wait sync.WaitGroup
	all := map[string][]string{scenarios[0].name: scenarios[0].play(t)} // after this message, the domain of its recipient is local
	free := make(chan struct{}, 4)                                      // with more clients, Sendmail would close some connections
	for _, s := range scenarios[1:] {
		free <- struct{}{}
		wait.Go(func() {
			defer func() { <-free }()
			replies := s.play(t)
			mu.Lock()
			defer mu.Unlock()
			all[s.name] = replies
		})
	}
	wait.Wait()
	return all
}

// conf returns the configuration of a preset in the given mode.
func conf(t *testing.T, preset, mode string) string {
	t.Helper()
	text, err := os.ReadFile("../../rules/policies/" + preset + ".conf")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Replace(string(text), "\nmode observe\n", "\nmode "+mode+"\n", 1)
}

// TestScenarios checks the replies, findings and decisions for each mail server and preset.
func TestScenarios(t *testing.T) {
	require.Full(t)
	playScenarios(t, "")
}

// playScenarios compares replies, findings and decisions with golden files. suite is the Debian
// version of the servers, or "" for the test's own version.
func playScenarios(t *testing.T, suite string) {
	t.Helper()
	for name, start := range servers {
		for _, preset := range []string{"standard", "tight"} {
			t.Run(name+" "+preset, func(t *testing.T) {
				s := newSiteIn(t, suite)
				s.startMilter(conf(t, preset, "enforce") + blocked)
				start(s, s.recipe(name))
				cli.Run(t, s.path("state"), "ban", "--for", "1h", "198.51.100.29")
				replies := playAll(t)
				if suite != "" && name == "Postfix" {
					// Postfix 3.9 closes the connection if it notices the command in time.
					delete(replies, "early talker")
				}
				s.idle()
				log := s.stopMilter()
				if strings.Contains(log, "bug") || strings.Contains(log, "level=ERROR") {
					t.Error(log)
				}
				file := strings.ToLower(name) + "-" + preset
				if suite != "" {
					file = suite + "-" + file
				}
				compare(t, "testdata/"+file+".golden", table(replies, s.records()))
				for _, secret := range []string{"c2VjcmV0cGFzcw", "password=secret"} {
					if out := cli.Run(t, s.path("state"), "dump"); strings.Contains(out, secret) || strings.Contains(log, secret) {
						t.Errorf("%s is recorded or logged", secret)
					}
				}
			})
		}
	}
}

// compare compares text with a golden file.
func compare(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs:\n%s", file, got)
	}
}

// idle waits until no session is open.
func (s *site) idle() {
	s.t.Helper()
	filterproc.Eventually(s.t, "the ends of all sessions", func() bool {
		var status struct{ Live struct{ Sessions int } }
		cli.Decode(s.t, cli.Run(s.t, s.path("state"), "status", "--json"), &status)
		return status.Live.Sessions == 0
	})
}

// A record is a session in dump's output.
type record struct {
	cli.Record
	Server   string
	FrontEnd string                                   `json:"front_end"`
	Rejected []struct{ Rule, Phase, Decision string } `json:"verdicts"`
}

func (s *site) records() map[string]record {
	s.t.Helper()
	all := map[string]record{}
	for line := range strings.Lines(cli.Run(s.t, s.path("state"), "dump")) {
		var r record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			s.t.Fatal(err)
		}
		if r.Server != "mx.example.org" || r.FrontEnd != "milter" {
			s.t.Errorf("no server and front end: %s", line)
		}
		all[r.Src] = r
	}
	return all
}

// table shows each scenario's replies and record.
func table(replies map[string][]string, records map[string]record) string {
	var b strings.Builder
	for _, s := range scenarios {
		if replies != nil && replies[s.name] == nil {
			continue
		}
		fmt.Fprintf(&b, "== %s\n", s.name)
		for _, r := range replies[s.name] {
			fmt.Fprintf(&b, "   %s\n", r[strings.LastIndexByte(r, '\n')+1:])
		}
		r, ok := records[s.src]
		if !ok {
			fmt.Fprintf(&b, "no record\n")
			continue
		}
		var found []string
		for _, f := range r.Findings {
			found = append(found, f.Evidence+"/"+f.Confidence)
		}
		fmt.Fprintf(&b, "ending %s fcrdns %s messages %d commands %d unknown %d recipients %d+%d\n", r.Ending, r.FCrDNS, r.Counts["messages"], r.Counts["commands"], r.Counts["unknown"], r.Counts["rcpt_ok"], r.Counts["rcpt_permfail"])
		fmt.Fprintf(&b, "found %s\n", strings.Join(found, " "))
		for _, v := range r.Rejected {
			fmt.Fprintf(&b, "rule %s at %s: %s\n", v.Rule, v.Phase, v.Decision)
		}
	}
	return b.String()
}

// TestObserve checks that in observe mode, the client receives the same bytes as without the
// milter, except for queue identifiers and times.
func TestObserve(t *testing.T) {
	require.Full(t)
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			var replies [2]map[string][]string
			for i := range replies {
				t.Run("", func(t *testing.T) {
					s, extra := newSite(t), ""
					if i == 1 {
						s.startMilter(conf(t, "tight", "observe"))
						extra = s.recipe(name)
					}
					start(s, extra)
					replies[i] = playAll(t)
					if i == 1 {
						s.idle()
						s.stopMilter()
						if n := len(s.records()); n < len(scenarios) {
							t.Errorf("%d sources are recorded", n)
						}
					}
				})
			}
			for _, s := range scenarios {
				if a, b := replies[0][s.name], replies[1][s.name]; !slices.Equal(a, b) {
					t.Errorf("%s: %q without the milter, %q with it", s.name, a, b)
				}
			}
		})
	}
}

// TestKill checks that mail is accepted even while milter-scanwatch is killed and restarted.
func TestKill(t *testing.T) {
	require.Full(t)
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.startMilter(conf(t, "standard", "enforce"))
			start(s, s.recipe(name))
			var wait sync.WaitGroup
			stop := make(chan struct{})
			var accepted, all atomic.Int64
			for i := range 4 {
				mail := scenarios[0]
				mail.src = fmt.Sprintf("203.0.113.%d", i+1)
				wait.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						all.Add(1)
						// The client may notice if the milter ended during the session.
						if replies := mail.play(t); len(replies) == 11 && strings.HasPrefix(replies[9], "250 2.0.0") {
							accepted.Add(1)
						} else {
							t.Errorf("%q", replies)
						}
					}
				})
			}
			after := func(n int64) {
				from := accepted.Load()
				filterproc.Eventually(t, "mail", func() bool { return accepted.Load() >= from+n })
			}
			for range 2 {
				after(5)
				if err := s.milter.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				_ = s.milter.Wait()
				after(5) // without the milter
				s.startMilter(conf(t, "standard", "enforce"))
			}
			after(5)
			close(stop)
			wait.Wait()
			if a, n := accepted.Load(), all.Load(); a != n {
				t.Errorf("%d of %d sessions delivered mail", a, n)
			}
			s.stopMilter()
		})
	}
}

// TestStateInUse checks that a second front end does not start in the same state directory.
func TestStateInUse(t *testing.T) {
	s := newSite(t)
	s.startMilter("mode observe\n")
	out, err := exec.Command(smtpd.Bin("milter-scanwatch"), "-s", s.path("state"), "-l", "unix:"+s.path("other.sock")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another front end uses the state directory") {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := os.Stat(s.path("other.sock")); err == nil {
		t.Error("the second front end has opened its socket")
	}
}

// TestFilterInUse checks that the milter does not start if a filter uses the state directory. The filter
// is run by root, in its sandbox.
func TestFilterInUse(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	filterproc.Start(t, "-s", state)
	filterproc.Eventually(t, "the filter listens", cli.Listens(state))
	out, err := exec.Command(smtpd.Bin("milter-scanwatch"), "-s", state, "-l", "unix:"+filepath.Join(filepath.Dir(state), "m.sock")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another front end uses the state directory") {
		t.Errorf("%v: %s", err, out)
	}
	if text, err := os.ReadFile(filepath.Join(state, "front-end")); err == nil {
		t.Errorf("the milter is registered as the front end: %s", text)
	}
}

// TestSocket checks the sockets that milter-scanwatch opens, and the errors about them.
func TestSocket(t *testing.T) {
	s := newSite(t)
	for args, want := range map[string]string{
		"-l tcp:1": "is neither unix:PATH nor inet:ADDRESS:PORT", "-l inet:9900@127.0.0.1": "is neither unix:PATH nor inet:ADDRESS:PORT", "-l unix:sock": "is not an absolute path",
		"-l inet:127.0.0.1:9900 -g mail": "-g is for Unix sockets only", "-l unix:/run/x.sock -g nosuchgroup": "unknown group",
		"-l unix:" + s.path("hosts"): "address already in use",
	} {
		out, err := exec.Command(smtpd.Bin("milter-scanwatch"), append([]string{"-s", s.path("state")}, strings.Fields(args)...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v, %s", args, err, out)
		}
	}
	s.startMilter("mode observe\n")
	if info, err := os.Stat(s.path("milter.sock")); err != nil || info.Mode() != fs.ModeSocket|0o660 {
		t.Errorf("%v, %v", info, err)
	}
	s.stopMilter()
	s.startMilter("mode observe\n") // replaces the socket of the earlier process
}

// TestManyConnections checks that 1,000 concurrent connections are answered.
func TestManyConnections(t *testing.T) {
	s := newSite(t)
	s.startMilter("mode observe\n")
	const many = 1000
	var conns []net.Conn
	for i := range many {
		c, err := net.Dial("unix", s.path("milter.sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
		command := func(text string) {
			if _, err := c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)); err != nil {
				t.Fatal(err)
			}
		}
		command("O\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff")
		command("C[203.0.113.1]\x004\x04\x00" + fmt.Sprintf("203.0.%d.%d\x00", 113+i/250, i%250))
	}
	for _, c := range conns {
		answer := make([]byte, 5)
		for answer[4] != 'c' {
			if _, err := io.ReadFull(c, answer[:4]); err != nil {
				t.Fatal(err)
			}
			rest := make([]byte, binary.BigEndian.Uint32(answer))
			if _, err := io.ReadFull(c, rest); err != nil {
				t.Fatal(err)
			}
			answer[4] = rest[0]
		}
	}
	var status struct{ Live struct{ Sessions int } }
	if cli.Decode(t, cli.Run(t, s.path("state"), "status", "--json"), &status); status.Live.Sessions != many {
		t.Errorf("%d sessions are open", status.Live.Sessions)
	}
	s.stopMilter()
	n := 0
	for line := range strings.Lines(cli.Run(t, s.path("state"), "dump")) {
		var r record
		cli.Decode(t, line, &r)
		if n += max(r.Sum, 1); r.Ending != "stopped" && r.Sum == 0 {
			t.Errorf("ending %s", r.Ending)
		}
	}
	if n != many {
		t.Errorf("%d sessions are recorded", n)
	}
}

// TestReload checks that SIGHUP loads a new configuration. Messages must name the program that must
// be restarted.
func TestReload(t *testing.T) {
	s := newSite(t)
	s.startMilter("mode observe\n")
	for text, want := range map[string]string{
		"mode enforce\n": "mode=enforce", "mode observe\nrundir \"/run/elsewhere\"\n": "companions changed; restart milter-scanwatch",
	} {
		s.write("scanwatch.conf", text)
		if err := s.milter.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		filterproc.Eventually(t, want, func() bool { return strings.Contains(s.log(), want) })
	}
	s.stopMilter()
}
