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

// hanging mounts a file system whose server never says a word: every access waits, the
// first one too, as on NFS when its server has gone. That ends with the test.
func hanging(t *testing.T) (dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "mounting a file system takes root")
	}
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		skip(t, "a file system that hangs: %v", err)
	}
	t.Cleanup(func() { fuse.Close() }) // lets go of everybody, with an error
	dir = t.TempDir()
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse.Fd())
	if err := syscall.Mount("hanging", dir, "fuse", syscall.MS_NOSUID|syscall.MS_NODEV, options); err != nil {
		skip(t, "mount a file system that hangs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestStartWithHangingDisk: smtpd serves nobody until its filters have registered.
// Whatever of a filter's files is on a disk that does not answer, it registers, and
// answers.
func TestStartWithHangingDisk(t *testing.T) {
	for _, c := range []struct {
		name string
		conf string // of which # is the directory that hangs
		hung bool   // the configuration is there, too
		says []string
	}{
		{"state directory", "mode observe\nstore \"#/state\"\n", false, []string{"no sandbox: the disk", "hashed with a key of the moment"}},
		{"event file", "mode observe\nevents \"#/events\"\n", false, []string{"no sandbox: the disk"}},
		{"list", "mode observe\ntable <drop> file \"#/drop\"\nrule drop phase connect match src <drop> disconnect\n", false, []string{"the disk of the configuration does not answer", "no sandbox"}},
		{"configuration", "", true, []string{"the disk of the configuration does not answer", "no sandbox"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // each waits, most of the time
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
			log := logOf(t, cmd)
			p := talk(t, cmd) // is killed when the test ends; that it stops has a test of its own
			var v visits
			p.visit(&v, 10)
			for _, says := range c.says {
				eventually(t, "it says: "+says, func() bool { return strings.Contains(log(), says) })
			}
			if rules := !c.hung && !strings.Contains(c.conf, "table "); rules == strings.Contains(log(), "only observing") {
				t.Errorf("rules in use: want %v\n%s", rules, log())
			}
		})
	}
}
