//go:build linux

package tests

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"scanwatch/tests/smtpd"
)

var request = regexp.MustCompile(`(?m)^filter\|[^|]*\|[^|]*\|smtp-in\|([^|]*)\|([0-9a-f]{16})\|([0-9a-f]{16})\|(.*)$`)

// TestReplay feeds every recorded stream to the program: it answers each
// request once, logs nothing but findings, ends with status 0, and leaves one
// record for each session.
func TestReplay(t *testing.T) {
	names, err := filepath.Glob("streams/*/*.in")
	if err != nil || len(names) < 160 {
		t.Fatalf("%d streams, %v", len(names), err)
	}
	for _, name := range names {
		t.Run(strings.TrimPrefix(name, "streams/"), func(t *testing.T) {
			in, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			cmd := exec.Command(smtpd.Bin("filter-scanwatch"), "-s", dir)
			cmd.Stdin = bytes.NewReader(in)
			var out, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &stderr
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v\n%s", err, stderr.String())
			}
			_, answers, _ := strings.Cut(out.String(), "register|ready\n")
			var want strings.Builder
			for _, m := range request.FindAllSubmatch(in, -1) {
				if string(m[1]) == "data-line" {
					fmt.Fprintf(&want, "filter-dataline|%s|%s|%s\n", m[2], m[3], m[4])
				} else {
					fmt.Fprintf(&want, "filter-result|%s|%s|proceed\n", m[2], m[3])
				}
			}
			if answers != want.String() {
				t.Errorf("answers differ, got %d bytes and want %d", len(answers), want.Len())
			}
			for line := range strings.Lines(stderr.String()) {
				if strings.HasPrefix(line, "level=WARN msg=sandbox ") && !landlocked(t) {
					continue
				}
				if !strings.HasPrefix(line, "finding evidence=") && !strings.HasPrefix(line, "findings evidence=") {
					t.Errorf("logged %q", line)
				}
			}
			sessions := len(regexp.MustCompile(`(?m)\|smtp-in\|link-connect\|`).FindAll(in, -1))
			if n := len(dump(t, dir)); n != sessions {
				t.Errorf("%d records of %d sessions", n, sessions)
			}
		})
	}
}

// program is a filter that the test talks to over a socket, as smtpd does.
type program struct {
	t      *testing.T
	cmd    *exec.Cmd
	smtpd  *os.File // our end
	lines  *bufio.Reader
	stderr tail
	asked  map[string]bool // phases that it has registered for
}

// begin starts the filter and does the handshake.
func begin(t *testing.T, args ...string) *program {
	t.Helper()
	return talk(t, exec.Command(smtpd.Bin("filter-scanwatch"), args...))
}

// talk starts a command that becomes the filter, and does the handshake.
func talk(t *testing.T, cmd *exec.Cmd) *program {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &program{t: t, cmd: cmd, smtpd: os.NewFile(uintptr(fds[0]), "smtpd")}
	theirs := os.NewFile(uintptr(fds[1]), "filter")
	p.cmd.Stdin, p.cmd.Stdout = theirs, theirs
	if p.cmd.Stderr == nil {
		p.cmd.Stderr = &p.stderr
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	p.lines = bufio.NewReader(p.smtpd)
	t.Cleanup(func() { p.smtpd.Close(); _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	p.send("config|smtpd-version|7.9.0\nconfig|protocol|0.7\nconfig|admd|mx.example.org\nconfig|ready\n")
	p.asked = map[string]bool{}
	for line := p.line(); line != "register|ready\n"; line = p.line() {
		if phase, ok := strings.CutPrefix(line, "register|filter|smtp-in|"); ok {
			p.asked[strings.TrimSuffix(phase, "\n")] = true
		}
	}
	return p
}

// A tail keeps the end of a log.
type tail struct{ text []byte }

func (b *tail) Write(p []byte) (int, error) {
	if len(b.text) > 4<<20 {
		b.text = append(b.text[:0], b.text[len(b.text)/2:]...)
	}
	b.text = append(b.text, p...)
	return len(p), nil
}

func (b *tail) String() string { return string(b.text) }

func (p *program) send(s string) {
	p.t.Helper()
	if _, err := io.WriteString(p.smtpd, s); err != nil {
		p.t.Fatal(err)
	}
}

func (p *program) line() string {
	p.t.Helper()
	line, err := p.lines.ReadString('\n')
	if err != nil {
		p.t.Fatalf("filter: %v\n%s", err, p.stderr.String())
	}
	return line
}

// end closes the program's input, or lets the caller have ended it, and
// returns what it logged.
func (p *program) end(status int) string {
	p.t.Helper()
	p.smtpd.Close()
	err := p.cmd.Wait()
	if p.cmd.ProcessState.ExitCode() != status {
		p.t.Errorf("ended with %v, want status %d\n%s", err, status, p.stderr.String())
	}
	return p.stderr.String()
}

// ask sends a whole session that greets with name, and returns the answer to
// its EHLO.
func (p *program) ask(id int, name string) string {
	p.t.Helper()
	p.send(fmt.Sprintf(`report|0.7|1795219327.000001|smtp-in|link-connect|%016x|<unknown>|fail|192.0.2.1:4000|192.0.2.25:25
report|0.7|1795219327.000002|smtp-in|protocol-server|%016[1]x|220 mx.example.org ESMTP OpenSMTPD
report|0.7|1795219327.000003|smtp-in|protocol-client|%016[1]x|EHLO %[2]s
filter|0.7|1795219327.000004|smtp-in|ehlo|%016[1]x|00000000000000ff|%[2]s
report|0.7|1795219327.000005|smtp-in|link-identify|%016[1]x|EHLO|%[2]s
report|0.7|1795219327.000006|smtp-in|link-disconnect|%016[1]x
`, id, name))
	return strings.TrimPrefix(p.line(), fmt.Sprintf("filter-result|%016x|00000000000000ff|", id))
}

// TestSignals: SIGTERM records everything and ends as the end of input does,
// SIGHUP does not end the program.
func TestSignals(t *testing.T) {
	dir := t.TempDir()
	p := begin(t, "-s", dir)
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if got := p.ask(1, "ylmf-pc"); got != "proceed\n" {
		t.Errorf("answer %q", got)
	}
	p.send("report|0.7|1795219328.000001|smtp-in|link-connect|0000000000000002|<unknown>|fail|192.0.2.1:4000|192.0.2.25:25\n")
	if got := p.ask(3, "x.example.net"); got != "proceed\n" {
		t.Errorf("answer %q", got)
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, p.stderr.String())
	}
	endings := map[string]int{}
	for _, r := range dump(t, dir) {
		endings[r.Ending]++
	}
	if endings["stopped"] != 1 || endings["dropped"] != 2 {
		t.Errorf("sessions ended: %v", endings)
	}
}

// TestStateDirectoryTrouble: without a usable state directory everything else
// works, and the log says what is wrong.
func TestStateDirectoryTrouble(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/nonexistent/scanwatch", file} {
		p := begin(t, "-s", dir)
		if got := p.ask(1, "ylmf-pc"); got != "proceed\n" {
			t.Errorf("%s: answer %q", dir, got)
		}
		log := p.end(0)
		if !strings.Contains(log, dir) || !strings.Contains(log, "finding evidence=botnet-helo") {
			t.Errorf("%s: log %q", dir, log)
		}
	}
}

// TestSecondFilter: two on one directory do not harm each other, and the
// second one says so.
func TestSecondFilter(t *testing.T) {
	dir := t.TempDir()
	first := begin(t, "-s", dir)
	first.ask(1, "one.example.net")
	command(t, dir, "flush")
	second := begin(t, "-s", dir)
	second.ask(2, "two.example.net")
	if log := second.end(0); !strings.Contains(log, "another") {
		t.Errorf("the second one logged %q", log)
	}
	first.ask(3, "three.example.net")
	first.end(0)
	if n := len(dump(t, dir)); n != 2 {
		t.Errorf("%d records, want those of the first one, 2", n)
	}
}

// TestReload: a policy can be changed while the program runs, by SIGHUP and by
// scanwatch reload; a broken one changes nothing and is explained.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "scanwatch.conf")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	reload := func() error {
		return exec.Command(smtpd.Bin("scanwatch"), "-s", dir, "reload").Run()
	}
	const first, second = `disconnect|554 5.7.1 first [`, `disconnect|554 5.7.1 second [`
	rule := "mode enforce\nrule bad phase helo match helo \"ylmf-pc\" disconnect \"554 5.7.1 %s\"\n"
	write(fmt.Sprintf(rule, "first"))
	p := begin(t, "-f", conf, "-s", dir)
	if got := p.ask(1, "ylmf-pc"); !strings.HasPrefix(got, first) {
		t.Errorf("answer %q", got)
	}
	command(t, dir, "flush") // the socket is there
	write("mode enforce\nrule bad phase helo macth helo \"x\" disconnect\n")
	if err := reload(); err == nil {
		t.Error("a broken configuration was taken")
	}
	if got := p.ask(2, "ylmf-pc"); !strings.HasPrefix(got, first) {
		t.Errorf("after a broken reload: answer %q", got)
	}
	write(fmt.Sprintf(rule, "second"))
	if err := reload(); err != nil {
		t.Error(err)
	}
	if got := p.ask(3, "ylmf-pc"); !strings.HasPrefix(got, second) {
		t.Errorf("after the reload: answer %q", got)
	}
	write(fmt.Sprintf(rule, "third"))
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	// Asked until the new policy answers; go test's own limit ends this.
	for i := 4; !strings.HasPrefix(p.ask(i, "ylmf-pc"), `disconnect|554 5.7.1 third [`); i++ {
	}
	if log := p.end(0); !strings.Contains(log, "scanwatch.conf:2:21: `macth`") || !strings.Contains(log, "scanwatch check") {
		t.Errorf("log %q", log)
	}
}

// TestBrokenConfiguration: smtpd must not end because of it.
func TestBrokenConfiguration(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "scanwatch.conf")
	if err := os.WriteFile(conf, []byte("mode enfroce\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := begin(t, "-f", conf, "-s", dir)
	if got := p.ask(1, "ylmf-pc"); got != "proceed\n" {
		t.Errorf("answer %q", got)
	}
	if log := p.end(0); !strings.Contains(log, "only observing") || !strings.Contains(log, "scanwatch.conf:1:6") {
		t.Errorf("log %q", log)
	}
	out, err := exec.Command(smtpd.Bin("filter-scanwatch"), "-n", "-f", conf).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "enforce") {
		t.Errorf("-n: %v, %s", err, out)
	}
}
