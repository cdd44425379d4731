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

	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/require"
	"scanwatch/tests/internal/smtpd"
)

// hanging mounts a file system that never responds, as NFS does without a server. Every access
// waits until the test ends.
func hanging(t *testing.T) (dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		require.Missing(t, "mounting a file system takes root")
	}
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		require.Missing(t, "a file system that hangs: %v", err)
	}
	t.Cleanup(func() { fuse.Close() }) // all waiting accesses then fail
	dir = t.TempDir()
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse.Fd())
	if err := syscall.Mount("hanging", dir, "fuse", syscall.MS_NOSUID|syscall.MS_NODEV, options); err != nil {
		require.Missing(t, "mount a file system that hangs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestStartWithHangingDisk checks that the filter registers and answers even if one of its files is
// on a disk that does not respond. smtpd accepts no mail until its filters have registered.
func TestStartWithHangingDisk(t *testing.T) {
	for _, c := range []struct {
		name string
		conf string // # represents the directory that hangs
		hung bool   // the disk also contains the configuration file
		logs []string
	}{
		{"state directory", "mode observe\nstore \"#/state\"\n", false, []string{"no sandbox: disk timeout", "hashing with a temporary key"}},
		{"list", "mode observe\ntable <drop> file \"#/drop\"\nrule drop phase connect match src <drop> disconnect\n", false, []string{"configuration unreadable: disk timeout", "no sandbox"}},
		{"configuration", "", true, []string{"configuration unreadable: disk timeout", "no sandbox"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // the tests mostly wait
			hung := hanging(t)
			args := []string{"-s", t.TempDir()}
			if strings.Contains(c.conf, "store ") {
				args = nil
			}
			conf := filepath.Join(hung, "scanwatch.conf")
			if !c.hung {
				conf = filepath.Join(t.TempDir(), "scanwatch.conf")
				if err := os.WriteFile(conf, []byte(strings.ReplaceAll(c.conf, "#", hung)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.Command(smtpd.Bin("filter-scanwatch"), append(args, "-f", conf)...)
			log := filterproc.LogFile(t, cmd)
			p := filterproc.Talk(t, cmd) // killed at the end; TestStopWithHangingDisk checks the stop
			var v filterproc.Visits
			p.Visit(&v, 10)
			for _, text := range c.logs {
				filterproc.Eventually(t, "the log contains "+text, func() bool { return strings.Contains(log(), text) })
			}
			if rules := !c.hung && !strings.Contains(c.conf, "table "); rules == strings.Contains(log(), "observing only") {
				t.Errorf("rules in use: want %v\n%s", rules, log())
			}
		})
	}
}
