//go:build linux

// Package filterproc runs the filter as a process. The package acts as smtpd at the other end of
// the filter's standard input and output.
package filterproc

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"scanwatch/tests/internal/smtpd"
)

// Come plays the next session from src and returns the answer. If mail is set, the session delivers
// a message.
func (p *Program) Come(session *int, src string, mail bool) string {
	p.T.Helper()
	*session++
	w := bufio.NewWriter(p.Server)
	g := Guest{ID: *session, Src: src, Port: 25, Helo: "mx.example.net", Mail: mail}
	_, requests := g.Stream(w, 1_793_620_800_000_000+int64(*session)*1e6, p.Asked)
	if err := w.Flush(); err != nil || requests != 1 {
		p.T.Fatal(requests, err)
	}
	_, answer, _ := strings.Cut(strings.TrimPrefix(p.Line(), "filter-result|"), "|")
	_, answer, _ = strings.Cut(strings.TrimSpace(answer), "|")
	return answer
}

// Visit plays n sessions, and fails the test if an answer is wrong. The time limit of go test ends
// the wait for answers.
func (p *Program) Visit(v *Visits, n int) {
	p.T.Helper()
	for range n {
		lines, want := v.Next(time.Unix(FirstVisit+int64(v.N/1000), 0))
		p.Send(lines)
		if got := p.Line(); got != want {
			p.T.Fatalf("answer %q, want %q", got, want)
		}
	}
}

// Eventually waits until cond returns true, and fails the test after a time limit that
// even a busy machine does not reach. what describes cond.
func Eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(90 * time.Second); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within the time limit", what)
		}
	}
}

// LogFile redirects a command's log to a file, and returns a function that reads the
// file.
func LogFile(t *testing.T, cmd *exec.Cmd) (read func() string) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	cmd.Stderr = f
	return func() string {
		text, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
}

// AnonymousMemory returns a process's anonymous memory in bytes.
func AnonymousMemory(t *testing.T, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`RssAnon:\s+(\d+) kB`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("no RssAnon in\n%s", text)
	}
	n, _ := strconv.ParseInt(string(m[1]), 10, 64)
	return n << 10
}

// Exchange sends text and reads n answers at the same time, as smtpd does.
func (p *Program) Exchange(text string, n int) {
	p.T.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(p.Server, text)
		sent <- err
	}()
	for range n {
		if line := p.Line(); !strings.HasPrefix(line, "filter-result|") {
			p.T.Fatalf("answer %q", line)
		}
	}
	if err := <-sent; err != nil {
		p.T.Fatal(err)
	}
}

// A Program is a running filter. The test acts as its smtpd.
type Program struct {
	T      *testing.T
	Cmd    *exec.Cmd
	Server *os.File // the test's end of the socket
	Lines  *bufio.Reader
	Stderr tail
	Asked  map[string]bool // phases for which the filter has registered
}

// Start starts the filter and performs the handshake.
func Start(t *testing.T, args ...string) *Program {
	t.Helper()
	return Talk(t, exec.Command(smtpd.Bin("filter-scanwatch"), args...))
}

// Talk starts a command that runs the filter, and performs the handshake.
func Talk(t *testing.T, cmd *exec.Cmd) *Program {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &Program{T: t, Cmd: cmd, Server: os.NewFile(uintptr(fds[0]), "smtpd")}
	theirs := os.NewFile(uintptr(fds[1]), "filter")
	p.Cmd.Stdin, p.Cmd.Stdout = theirs, theirs
	if p.Cmd.Stderr == nil {
		p.Cmd.Stderr = &p.Stderr
	}
	if err := p.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	p.Lines = bufio.NewReader(p.Server)
	t.Cleanup(func() { p.Server.Close(); _ = p.Cmd.Process.Kill(); _ = p.Cmd.Wait() })
	p.Send("config|smtpd-version|7.9.0\nconfig|protocol|0.7\nconfig|admd|mx.example.org\nconfig|ready\n")
	p.Asked = map[string]bool{}
	for line := p.Line(); line != "register|ready\n"; line = p.Line() {
		if phase, ok := strings.CutPrefix(line, "register|filter|smtp-in|"); ok {
			p.Asked[strings.TrimSuffix(phase, "\n")] = true
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

func (p *Program) Send(s string) {
	p.T.Helper()
	if _, err := io.WriteString(p.Server, s); err != nil {
		p.T.Fatal(err)
	}
}

func (p *Program) Line() string {
	p.T.Helper()
	line, err := p.Lines.ReadString('\n')
	if err != nil {
		p.T.Fatalf("filter: %v\n%s", err, p.Stderr.String())
	}
	return line
}

// End closes the filter's input, waits until the filter exits and returns its log.
func (p *Program) End(status int) string {
	p.T.Helper()
	p.Server.Close()
	err := p.Cmd.Wait()
	if p.Cmd.ProcessState.ExitCode() != status {
		p.T.Errorf("ended with %v, want status %d\n%s", err, status, p.Stderr.String())
	}
	return p.Stderr.String()
}

// Ask plays a session that greets with name, and returns the answer to EHLO.
func (p *Program) Ask(id int, name string) string {
	p.T.Helper()
	p.Send(fmt.Sprintf(`report|0.7|1795219327.000001|smtp-in|link-connect|%016x|<unknown>|fail|192.0.2.1:4000|192.0.2.25:25
report|0.7|1795219327.000002|smtp-in|protocol-server|%016[1]x|220 mx.example.org ESMTP OpenSMTPD
report|0.7|1795219327.000003|smtp-in|protocol-client|%016[1]x|EHLO %[2]s
filter|0.7|1795219327.000004|smtp-in|ehlo|%016[1]x|00000000000000ff|%[2]s
report|0.7|1795219327.000005|smtp-in|link-identify|%016[1]x|EHLO|%[2]s
report|0.7|1795219327.000006|smtp-in|link-disconnect|%016[1]x
`, id, name))
	return strings.TrimPrefix(p.Line(), fmt.Sprintf("filter-result|%016x|00000000000000ff|", id))
}

// HasLandlock reports whether the kernel supports Landlock. Without Landlock, HasLandlock
// logs that some checks are skipped.
func HasLandlock(t *testing.T) bool {
	t.Helper()
	version, _, errno := syscall.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 || version < 1 {
		t.Log("SKIP: THIS KERNEL HAS NO LANDLOCK: ACCESS TO FILES IS NOT TESTED")
		return false
	}
	return true
}
