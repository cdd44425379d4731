//go:build linux

package tests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"scanwatch/tests/smtpd"
)

// storeStatus is what status tells of the disk.
type storeStatus struct {
	Store struct {
		Error            string
		Added, Committed int
		Dropped          map[string]int
	}
	State struct{ Error string }
}

func statusOf(t *testing.T, dir string) (s storeStatus) {
	t.Helper()
	decode(t, command(t, dir, "status", "--json"), &s)
	return s
}

// TestDiskFull gives the real server a file system of 8 MB as state directory.
// It is filled; mail goes on; it is made larger, and everything is written
// without anybody's help.
func TestDiskFull(t *testing.T) {
	version := smtpd.Versions[len(smtpd.Versions)-1]
	smtpd.Require(t, version)
	dir := stateDir(t)
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(state, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", state, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(state, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := start(t, smtpd.Options{Version: version, Dir: dir, Filters: []smtpd.Filter{asked()}})
	sent := 0
	send := func(n int) {
		t.Helper()
		for range n {
			sent++
			if ok, refused, err := transaction(s, "198.51.100.1", "a@example.net", []string{"alice"}, true); ok != 1 || refused != 0 || err != nil {
				t.Fatalf("message %d: %d accepted, %d refused, %v", sent, ok, refused, err)
			}
		}
	}
	many := make([]string, 300)
	for i := range many {
		many[i] = fmt.Sprintf("nobody.of.that.name.is.here.%d", i)
	}
	send(3)
	command(t, s.State(), "flush")
	before := statusOf(t, s.State())
	if before.Store.Error != "" || before.Store.Committed < 3 {
		t.Fatalf("with room it says %+v", before)
	}

	// Nothing is left.
	ballast, err := os.Create(filepath.Join(state, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 4096)
	for err == nil {
		_, err = ballast.Write(block)
	}
	ballast.Close()
	// What the segment has room for already is used up by long sessions.
	full := func() bool { return statusOf(t, s.State()).Store.Error != "" }
	for i := 0; i < 200 && !full(); i++ {
		send(1)
		if _, refused, err := transaction(s, "198.51.100.2", "b@example.net", many, false); refused != len(many) || err != nil {
			t.Fatalf("%d refused of %d: %v", refused, len(many), err)
		}
		_ = exec.Command(smtpd.Bin("scanwatch"), "-s", s.State(), "flush").Run() // it may fail
	}
	st := statusOf(t, s.State())
	if !strings.Contains(st.Store.Error, "no space left") {
		t.Fatalf("on a full disk it says %q", st.Store.Error)
	}
	send(5)
	if n := strings.Count(s.Log(), "sessions cannot be written"); n != 1 {
		t.Errorf("%d lines in the log tell of it:\n%s", n, s.Log())
	}

	// More room, and nobody does anything.
	if err := syscall.Mount("", state, "", syscall.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	if err := s.Eventually("records are written again", func() bool {
		st := statusOf(t, s.State())
		return st.Store.Error == "" && st.State.Error == "" && st.Store.Committed == st.Store.Added
	}); err != nil {
		t.Error(err)
	}
	send(1)
	command(t, s.State(), "flush")
	st = statusOf(t, s.State())
	records := dump(t, s.State())
	mails := 0
	for _, r := range records {
		mails += r.Counts["mails"]
	}
	dropped := 0
	for _, n := range st.Store.Dropped {
		dropped += n
	}
	if mails != sent || dropped != 0 || len(records) != st.Store.Added {
		t.Errorf("%d messages recorded of %d, %d records of %d, %d dropped", mails, sent, len(records), st.Store.Added, dropped)
	}
	stop(t, s)
}
