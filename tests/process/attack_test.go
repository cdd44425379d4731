//go:build linux

package process

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scanwatch/store"
	"scanwatch/tests/internal/attacker"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/smtpd"
)

// attacks returns how many times each command runs during an attack.
func attacks() int {
	if testing.Short() {
		return 5
	}
	return 40
}

// scanwatch runs a command and returns its status and errors.
func scanwatch(t *testing.T, stdin string, args ...string) (status int, out, stderr string) {
	t.Helper()
	cmd := exec.Command(smtpd.Bin("scanwatch"), args...)
	var o, e bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &o, &e
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), o.String(), e.String()
}

const mailLog = `2026-11-20T10:00:00Z mx smtpd[1]: f000000000000001 smtp connected address=198.51.100.1 host=mail.example.net
2026-11-20T10:00:01Z mx smtpd[1]: f000000000000001 smtp envelope evpid=f100000000000001 from=<joe@example.net> to=<alice@example.org>
`

// finding records a session with a finding.
func finding(t *testing.T, dir string) {
	t.Helper()
	w := store.Open(dir, store.Options{Program: "test"})
	steps := store.AppendStep(nil, &store.Step{Kind: store.KindFinding, Text: []byte("harvest"), By: []byte("rcpt"), Confidence: []byte("high")}, 0)
	end := time.Now().Add(-time.Hour)
	r := &store.Record{Start: end, End: end, Src: netip.MustParseAddrPort("203.0.113.9:25")}
	w.Add(end, 1, store.AppendRecord(nil, r, steps))
	if err := errors.Join(w.Flush(t.Context()), w.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestAttackImport checks that an import by root changes no file outside the state directory, even
// if the directory's owner interferes. New files must belong to that owner.
func TestAttackImport(t *testing.T) {
	stream, err := os.ReadFile("../streams/7.9/bad-helo.in")
	if err != nil {
		t.Fatal(err)
	}
	today := time.Now().UTC().Format(time.DateOnly) + ".db"
	for _, c := range []struct {
		name, stdin string
		args        []string
	}{
		{"stream", string(stream), []string{"import", "smtpd", "-"}},
		{"log", mailLog, []string{"import", "smtpd-log", "--again", "-"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := attacker.New(t, "state.db", "state.db.new", "imported", "key", today, today+".new", "other")
			args := append([]string{"-s", s.Dir}, c.args...)
			if status, _, stderr := scanwatch(t, c.stdin, args...); status != 0 {
				t.Fatalf("status %d: %s", status, stderr)
			}
			if name := s.Left(); name != "" {
				t.Errorf("%s belongs to root", name)
			}
			precious := filepath.Join(s.Victim, "other")
			s.During(attacks(), []string{"sessions", "state.db", "imported", "key", "control.sock", "state.db.new"},
				[]string{s.Victim, precious, filepath.Join(s.Victim, "imported"), precious, precious, filepath.Join(s.Victim, "fresh")},
				func() { scanwatch(t, c.stdin, args...) })
		})
	}
}

// TestAttackExport checks an export by root into another user's directory. Root must neither
// replace nor remove a file outside the directory.
func TestAttackExport(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	filterproc.Start(t, "-s", state).End(0)
	finding(t, state)
	for _, c := range []struct {
		name string
		args []string // FILE is in the attacked directory
	}{
		{"export", []string{"export", "pf", "--evidence", "any", "--diff", "FILE.state", "-o", "FILE"}},
		{"page", []string{"report", "--html", "FILE"}},
		{"metrics", []string{"stats", "--prometheus", "-o", "FILE"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := attacker.New(t, "list", "list.state.new", "other")
			sub := filepath.Join(s.Dir, "sub")
			s.Check(os.Mkdir(sub, 0o755))
			s.Give()
			args := []string{"-s", state}
			for _, a := range c.args {
				args = append(args, strings.ReplaceAll(a, "FILE", filepath.Join(sub, "list")))
			}
			if status, _, stderr := scanwatch(t, "", args...); status != 0 {
				t.Fatalf("status %d: %s", status, stderr)
			}
			s.During(attacks(), []string{"sub", "sub/list", "sub/list.state", "sub/list.state.new"},
				[]string{s.Victim, filepath.Join(s.Victim, "list"), filepath.Join(s.Victim, "fresh"), filepath.Join(s.Victim, "fresh")},
				func() { scanwatch(t, "", args...) })
		})
	}
	t.Run("anonymize", func(t *testing.T) {
		s := attacker.New(t, "other")
		// The second directory represents one that the user has created in /tmp.
		for _, out := range []string{filepath.Join(s.Dir, "copy"), s.Dir} {
			status, _, stderr := scanwatch(t, "", "-s", state, "anonymize", out)
			if status == 0 || !strings.Contains(stderr, "that only root can replace") {
				t.Errorf("status %d: %s", status, stderr)
			}
		}
		if all, err := os.ReadDir(s.Dir); err != nil || len(all) > 0 {
			t.Errorf("written: %v, %v", all, err)
		}
	})
}

// TestAttackSocket checks that a command run by root does not connect to other sockets of root,
// which the state directory's owner may not use.
func TestAttackSocket(t *testing.T) {
	s := attacker.New(t)
	name := filepath.Join(s.Victim, "socket")
	l, err := net.Listen("unix", name)
	s.Check(err, os.Chmod(name, 0o600), os.Symlink(name, filepath.Join(s.Dir, "control.sock")))
	defer l.Close()
	connected := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			conn.Close()
		}
		connected <- err
	}()
	for _, args := range [][]string{{"ban", "--force", "192.0.2.1"}, {"unban", "192.0.2.1"}, {"status"}, {"reload"}} {
		if status, _, stderr := scanwatch(t, "", append([]string{"-s", s.Dir}, args...)...); status == 0 || !strings.Contains(stderr, "permission denied") {
			t.Errorf("%v: status %d: %s", args, status, stderr)
		}
	}
	l.Close()
	if err := <-connected; err == nil {
		t.Error("a command has connected to the socket of root")
	}
}

// TestAttackFilter checks that a filter started as root continues as the owner of its state
// directory. The filter's files must belong to the directory's owner.
func TestAttackFilter(t *testing.T) {
	s := attacker.New(t, "other")
	p := filterproc.Start(t, "-s", s.Dir)
	if got := p.Ask(1, "x.example.net"); got != "proceed\n" {
		t.Errorf("answer %q", got)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Cmd.Process.Pid))
	s.Check(err)
	if !strings.Contains(string(status), "Uid:\t54321\t54321\t54321\t54321\nGid:\t54321\t54321\t54321\t54321\n") || !strings.Contains(string(status), "Groups:\t54321 \n") {
		t.Errorf("status %s", status)
	}
	log := p.End(0)
	if !strings.Contains(log, `msg="running as the owner of the state directory, not as root" uid=54321`) {
		t.Errorf("log %s", log)
	}
	if name := s.Left(); name != "" {
		t.Errorf("%s belongs to root", name)
	}
	if _, err := os.Stat(filepath.Join(s.Dir, "state.db")); err != nil {
		t.Error(err)
	}
	s.Unchanged()
}
