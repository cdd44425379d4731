//go:build linux

package fault

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/live"
	"scanwatch/tests/internal/smtpd"
)

// TestDiskFull checks a real server whose state directory is on an 8 MB file system. While the file
// system is full, mail must still be accepted. Once the file system is larger, the filter must
// write all waiting records.
func TestDiskFull(t *testing.T) {
	version := smtpd.Newest()
	smtpd.Require(t, version)
	dir := live.StateDir(t)
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
	s := live.Start(t, smtpd.Options{Version: version, Dir: dir, Filters: []smtpd.Filter{live.FilterAskedInAllPhases()}})
	sent := 0
	send := func(n int) {
		t.Helper()
		for range n {
			sent++
			if ok, refused, err := live.Transaction(s, "198.51.100.1", "a@example.net", []string{"alice"}, true); ok != 1 || refused != 0 || err != nil {
				t.Fatalf("message %d: %d accepted, %d rejected, %v", sent, ok, refused, err)
			}
		}
	}
	many := make([]string, 300)
	for i := range many {
		many[i] = fmt.Sprintf("nobody.of.that.name.is.here.%d", i)
	}
	send(3)
	cli.Run(t, s.State(), "flush")
	before := cli.StatusOf(t, s.State())
	if before.Store.Error != "" || before.Store.Committed < 3 {
		t.Fatalf("with free space: status %+v", before)
	}

	// Fill the rest of the file system.
	ballast, err := os.Create(filepath.Join(state, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 4096)
	for err == nil {
		_, err = ballast.Write(block)
	}
	ballast.Close()
	// Long sessions fill the segment's free pages.
	full := func() bool { return cli.StatusOf(t, s.State()).Store.Error != "" }
	for i := 0; i < 200 && !full(); i++ {
		send(1)
		if _, refused, err := live.Transaction(s, "198.51.100.2", "b@example.net", many, false); refused != len(many) || err != nil {
			t.Fatalf("%d rejected of %d: %v", refused, len(many), err)
		}
		_ = exec.Command(smtpd.Bin("scanwatch"), "-s", s.State(), "flush").Run() // may fail
	}
	st := cli.StatusOf(t, s.State())
	if !strings.Contains(st.Store.Error, "no space left") {
		t.Fatalf("on a full disk: error %q", st.Store.Error)
	}
	send(5)
	if n := strings.Count(s.Log(), "sessions directory unavailable"); n != 1 {
		t.Errorf("%d lines in the log about it:\n%s", n, s.Log())
	}

	// Make the file system larger. The filter must recover without a command from the operator.
	if err := syscall.Mount("", state, "", syscall.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	if err := s.Eventually("records are written again", func() bool {
		st := cli.StatusOf(t, s.State())
		return st.Store.Error == "" && st.State.Error == "" && st.Store.Committed == st.Store.Added
	}); err != nil {
		t.Error(err)
	}
	send(1)
	cli.Run(t, s.State(), "flush")
	st = cli.StatusOf(t, s.State())
	records := cli.Dump(t, s.State())
	mails := 0
	for _, r := range records {
		mails += r.Counts["messages"]
	}
	dropped := 0
	for _, n := range st.Store.Dropped {
		dropped += n
	}
	if mails != sent || dropped != 0 || len(records) != st.Store.Added {
		t.Errorf("%d messages recorded of %d, %d records of %d, %d dropped", mails, sent, len(records), st.Store.Added, dropped)
	}
	live.Stop(t, s)
}
