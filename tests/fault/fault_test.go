//go:build linux

package fault

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/require"
	"scanwatch/tests/internal/smtpd"
)

// tmpfs mounts a tmpfs of the given size.
func tmpfs(t *testing.T, size string) (dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		require.Missing(t, "mounting a file system takes root")
	}
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		require.Missing(t, "mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// disk mounts a 64 MB ext4 file system on a loop device in memory.
func disk(t *testing.T) (dir string) {
	t.Helper()
	under := tmpfs(t, "80m")
	image := filepath.Join(under, "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 64<<20); err != nil {
		t.Fatal(err)
	}
	mkfs := exec.Command("mkfs.ext4", "-q", "-F", image)
	if out, err := mkfs.CombinedOutput(); err != nil {
		require.Missing(t, "make an ext4 file system: %v %s", err, out)
	}
	dir = t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		require.Missing(t, "mount a loop device: %v %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", "-d", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	})
	return dir
}

// ext4Shutdown is an ioctl after which an ext4 file system returns EIO, as if its disk were lost.
// The argument noLogFlush discards the journal.
const (
	ext4Shutdown = 0x8004587D
	noLogFlush   = 2
)

// TestDiskErrors checks that the filter continues on a new disk after its disk has failed.
func TestDiskErrors(t *testing.T) {
	dir := disk(t)
	var v filterproc.Visits
	p := filterproc.Start(t, "-S", "-s", dir) // the sandbox denies access to file systems that are mounted later
	filterproc.Eventually(t, "the filter listens", cli.Listens(dir))
	p.Visit(&v, 100)
	filterproc.Eventually(t, "the first records are written", cli.Flushes(dir))
	if err := ioctl(dir, ext4Shutdown, noLogFlush); err != nil {
		require.Missing(t, "shut down a file system: %v", err)
	}
	p.Visit(&v, 500)
	_ = cli.Flushes(dir)()
	filterproc.Eventually(t, "status has the error", cli.HasStoreError(dir, "input/output error"))
	p.Visit(&v, 500)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	filterproc.Eventually(t, "records are written again", cli.Flushes(dir))
	p.Visit(&v, 10)
	log := p.End(0)
	if n := len(cli.Dump(t, dir)); n != v.N-100 {
		t.Errorf("%d records of %d sessions after the failure", n, v.N-100)
	}
	if n := strings.Count(log, "sessions directory unavailable"); n != 1 {
		t.Errorf("the error was logged %d times:\n%.2000s", n, log)
	}
}

// These ioctls from linux/fs.h freeze and thaw a file system, as snapshots with LVM, SANs or VMs
// do. Writes to a frozen file system wait until it is thawed.
const (
	fiFreeze = 0xC0045877
	fiThaw   = 0xC0045878
)

func ioctl(dir string, request uintptr, arg uint32) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return errno
	}
	return nil
}

// TestSlowDisk checks that no client waits for a disk that does not respond.
func TestSlowDisk(t *testing.T) {
	dir := disk(t)
	conf := filepath.Join(t.TempDir(), "scanwatch.conf")
	if err := os.WriteFile(conf, []byte("mode observe\nrule bad phase helo match helo \"ylmf-pc\" disconnect\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var v filterproc.Visits
	p := filterproc.Start(t, "-s", dir, "-f", conf)
	filterproc.Eventually(t, "the filter listens", cli.Listens(dir))
	p.Visit(&v, 10)
	filterproc.Eventually(t, "the first records are written", cli.Flushes(dir))
	if err := ioctl(dir, fiFreeze, 0); err != nil {
		require.Missing(t, "freeze a file system: %v", err)
	}
	frozen := true
	thaw := func() {
		if frozen {
			frozen = false
			if err := ioctl(dir, fiThaw, 0); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(thaw) // must precede the unmount, which would otherwise wait
	before, err := cli.ReadStatus(dir)
	if err != nil {
		t.Errorf("status: %v", err)
	}
	p.Visit(&v, 5000)
	if out, err := exec.Command(smtpd.Bin("scanwatch"), "-s", dir, "reload").CombinedOutput(); err != nil {
		t.Errorf("reload: %v %s", err, out)
	}
	p.Visit(&v, 100)
	if s, err := cli.ReadStatus(dir); err != nil || s.Store.Committed != before.Store.Committed {
		t.Errorf("the disk took %d records: %v", s.Store.Committed-before.Store.Committed, err)
	}
	thaw()
	filterproc.Eventually(t, "records are written again", cli.Flushes(dir))
	p.End(0)
	if n := len(cli.Dump(t, dir)); n != v.N {
		t.Errorf("%d records of %d sessions", n, v.N)
	}
}

// TestStopWithHangingDisk checks that a stopping filter waits at most ten seconds for a disk that
// does not respond, and logs the loss. The filter's process remains in the kernel until the disk
// responds.
func TestStopWithHangingDisk(t *testing.T) {
	dir := disk(t)
	var v filterproc.Visits
	cmd := exec.Command(smtpd.Bin("filter-scanwatch"), "-s", dir)
	log := filterproc.LogFile(t, cmd)
	p := filterproc.Talk(t, cmd)
	filterproc.Eventually(t, "the filter listens", cli.Listens(dir))
	p.Visit(&v, 10)
	filterproc.Eventually(t, "the first records are written", cli.Flushes(dir))
	if err := ioctl(dir, fiFreeze, 0); err != nil {
		require.Missing(t, "freeze a file system: %v", err)
	}
	t.Cleanup(func() { _ = ioctl(dir, fiThaw, 0) }) // in case the test fails earlier
	p.Visit(&v, 100)
	p.Server.Close()
	filterproc.Eventually(t, "the filter logs the loss", func() bool { return strings.Contains(log(), "last records not saved: disk timeout") })
	if err := ioctl(dir, fiThaw, 0); err != nil {
		t.Fatal(err)
	}
	p.End(0)
	if n := len(cli.Dump(t, dir)); n < 10 {
		t.Errorf("%d records, the first 10 were flushed", n)
	}
}

// TestFewDescriptors checks a filter that has no free file descriptor. A reload, a command and a
// new segment must fail at first. The filter must retry them.
func TestFewDescriptors(t *testing.T) {
	dir := t.TempDir()
	conf, list := filepath.Join(dir, "scanwatch.conf"), filepath.Join(dir, "drop")
	if err := os.WriteFile(list, []byte("203.0.113.0/24\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, []byte("mode enforce\ntable <drop> file \"drop\"\nrule drop phase connect match src <drop> disconnect \"554 no\"\n"+
		"rule bad phase helo match helo \"ylmf-pc\" disconnect \"554 first\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var v filterproc.Visits
	cmd := exec.Command(smtpd.Bin("filter-scanwatch"), "-s", dir, "-f", conf)
	log := filterproc.LogFile(t, cmd)
	p := filterproc.Talk(t, cmd)
	filterproc.Eventually(t, "the filter listens", cli.Listens(dir))
	p.Visit(&v, 10)
	filterproc.Eventually(t, "the first records are written", cli.Flushes(dir))
	limit := func(n uint64) {
		t.Helper()
		if err := unix.Prlimit(p.Cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: 4096}, nil); err != nil {
			t.Fatal(err)
		}
	}
	limit(4)
	if err := os.WriteFile(list, []byte("203.0.113.0/24\n192.0.2.99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.Cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	// Sessions on the next day need a new file.
	tomorrow := time.Unix(filterproc.FirstVisit+24*3600, 0)
	for range 1000 {
		lines, want := v.Next(tomorrow)
		p.Send(lines)
		if got := p.Line(); got != want {
			t.Fatalf("answer %q, want %q", got, want)
		}
	}
	// The filter accepts a control client as soon as a descriptor is free.
	waits := exec.Command(smtpd.Bin("scanwatch"), "-s", dir, "status")
	if err := waits.Start(); err != nil {
		t.Fatal(err)
	}
	if got := p.Ask(1, "ylmf-pc"); !strings.HasPrefix(got, "disconnect|554 first") {
		t.Errorf("without a policy: answer %q", got)
	}
	// Only the log shows these failures.
	for _, what := range []string{"too many open files", "sessions directory unavailable", "keeping the previous one"} {
		filterproc.Eventually(t, "the log contains "+what, func() bool { return strings.Contains(log(), what) })
	}
	limit(1024)
	if err := waits.Wait(); err != nil {
		t.Errorf("a client that waited: %v", err)
	}
	filterproc.Eventually(t, "records are written again", cli.Flushes(dir))
	if out, err := exec.Command(smtpd.Bin("scanwatch"), "-s", dir, "reload").CombinedOutput(); err != nil {
		t.Errorf("reload: %v %s", err, out)
	}
	p.End(0)
	if n := strings.Count(log(), "sessions directory unavailable"); n != 1 {
		t.Errorf("the error was logged %d times:\n%.3000s", n, log())
	}
	if n := len(cli.Dump(t, dir)); n != v.N+1 {
		t.Errorf("%d records of %d sessions", n, v.N+1)
	}
}

// memoryLimit creates a control group (version 1 or 2) with a memory limit.
func memoryLimit(t *testing.T, bytes int64) (join func(pid int)) {
	t.Helper()
	name := fmt.Sprintf("scanwatch-test-%d", os.Getpid())
	var errs []error
	for _, at := range []struct{ dir, limit string }{
		{"/sys/fs/cgroup", "memory.max"},
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"},
	} {
		if _, err := os.Stat(filepath.Join(at.dir, "cgroup.procs")); err != nil {
			errs = append(errs, err)
			continue
		}
		group := filepath.Join(at.dir, name)
		err := os.Mkdir(group, 0o755)
		if err == nil {
			t.Cleanup(func() { _ = os.Remove(group) })
			err = os.WriteFile(filepath.Join(group, at.limit), []byte(strconv.FormatInt(bytes, 10)), 0o644)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		return func(pid int) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	require.Missing(t, "make a control group with a memory limit: %v", errors.Join(errs...))
	return nil
}

// TestMemoryLimit checks that the filter needs at most 192 MB for 130,000 sources and 20,000 open
// sessions, while it cannot write to the state directory. If it exceeds the limit, the kernel kills
// it.
func TestMemoryLimit(t *testing.T) {
	join := memoryLimit(t, 192<<20)
	dir := t.TempDir()
	var v filterproc.Visits
	cmd := exec.Command(smtpd.Bin("filter-scanwatch"), "-s", filepath.Join(dir, "no", "such", "directory")) // records wait for the directory, and are dropped in the end
	cmd.Env = append(os.Environ(), "GOMEMLIMIT=150MiB")
	p := filterproc.Talk(t, cmd)
	join(cmd.Process.Pid)
	var in strings.Builder
	most := int64(0)
	for n := 0; n < 130_000; {
		in.Reset()
		want := 0
		for ; want < 500; want++ {
			lines, _ := v.Next(time.Unix(filterproc.FirstVisit+int64(n/1000), 0))
			in.WriteString(lines)
			n++
		}
		p.Exchange(in.String(), want)
		most = max(most, filterproc.AnonymousMemory(t, cmd.Process.Pid))
	}
	in.Reset()
	const open = 20_000
	for i := range open {
		fmt.Fprintf(&in, "report|0.7|%d.000000|smtp-in|link-connect|%016x|<unknown>|fail|203.0.%d.%d:1|192.0.2.25:25\n", filterproc.FirstVisit+200, 1<<40+i, i>>8, i&255)
		fmt.Fprintf(&in, "filter|0.7|%d.000001|smtp-in|ehlo|%016x|00000000000000ff|%s\n", filterproc.FirstVisit+200, 1<<40+i, strings.Repeat("x", 400))
	}
	p.Exchange(in.String(), open)
	most = max(most, filterproc.AnonymousMemory(t, cmd.Process.Pid))
	t.Logf("at most %d MB of anonymous memory", most>>20)
	p.End(0)
}

// TestUnreadAnswers checks that the filter reads no further input while smtpd does not read its
// answers. The filter's memory must not grow during this time. The filter must then answer every
// request in order.
func TestUnreadAnswers(t *testing.T) {
	p := filterproc.Start(t, "-s", t.TempDir())
	const most = 200_000
	line := func(i int) string {
		return fmt.Sprintf("filter|0.7|%d.000001|smtp-in|noop|%016x|%016x|%s\n", filterproc.FirstVisit, i, i, strings.Repeat("x", 100))
	}
	raw, err := p.Server.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// Send until the socket has been full for half a second.
	sent, pending := 0, ""
	idle := 0
	for sent < most && idle < 50 {
		if pending == "" {
			pending = line(sent)
			sent++
		}
		var n int
		if err := raw.Control(func(fd uintptr) { n, err = unix.SendmsgN(int(fd), []byte(pending), nil, nil, unix.MSG_DONTWAIT) }); err != nil {
			t.Fatal(err)
		}
		switch {
		case errors.Is(err, unix.EAGAIN):
			idle++
			time.Sleep(10 * time.Millisecond)
		case err != nil:
			t.Fatal(err)
		default:
			idle = 0
			pending = pending[n:]
		}
	}
	if sent == most {
		t.Fatal("the filter does not stop reading although its answers are not read")
	}
	t.Logf("%d requests until it stopped reading, %d MB of anonymous memory", sent, filterproc.AnonymousMemory(t, p.Cmd.Process.Pid)>>20)
	if mb := filterproc.AnonymousMemory(t, p.Cmd.Process.Pid) >> 20; mb > 40 {
		t.Errorf("the filter uses %d MB", mb)
	}
	done := make(chan error, 1)
	go func() {
		_, err := io.WriteString(p.Server, pending)
		done <- err
	}()
	for i := range sent {
		if got, want := p.Line(), fmt.Sprintf("filter-result|%016x|%016[1]x|proceed\n", i); got != want {
			t.Fatalf("answer %d: %q, want %q", i, got, want)
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	p.End(0)
}

// TestStderr checks that a closed or full log does not delay any answer. The filter must later log
// the number of lost lines.
func TestStderr(t *testing.T) {
	t.Run("closed", func(t *testing.T) {
		dir := t.TempDir()
		p := filterproc.Talk(t, exec.Command("sh", "-c", `exec "$0" -v -s "$1" 2>&-`, smtpd.Bin("filter-scanwatch"), dir))
		var v filterproc.Visits
		p.Visit(&v, 500)
		p.End(0)
		if n := len(cli.Dump(t, dir)); n != v.N {
			t.Errorf("%d records of %d sessions", n, v.N)
		}
	})
	t.Run("reader gone", func(t *testing.T) {
		dir := t.TempDir()
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(smtpd.Bin("filter-scanwatch"), "-v", "-s", dir)
		cmd.Stderr = w
		p := filterproc.Talk(t, cmd)
		w.Close()
		r.Close()
		var v filterproc.Visits
		p.Visit(&v, 500)
		p.End(0)
		if n := len(cli.Dump(t, dir)); n != v.N {
			t.Errorf("%d records of %d sessions", n, v.N)
		}
	})
	t.Run("full", func(t *testing.T) {
		dir := t.TempDir()
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(smtpd.Bin("filter-scanwatch"), "-v", "-s", dir)
		cmd.Stderr = w
		p := filterproc.Talk(t, cmd)
		w.Close()
		// Each session has a finding, and advances the clock of the events by a minute.
		for i := range 8000 {
			at := filterproc.FirstVisit + int64(60*i)
			id := fmt.Sprintf("%016x", i)
			p.Send(fmt.Sprintf("report|0.7|%d.000001|smtp-in|link-connect|%s|scan-01.shadowserver.org|pass|198.18.%d.%d:1|192.0.2.25:25\n", at, id, i>>8&255, i&255) +
				fmt.Sprintf("filter|0.7|%d.000002|smtp-in|ehlo|%s|00000000000000ff|x\nreport|0.7|%[1]d.000003|smtp-in|link-disconnect|%[2]s\n", at, id))
			if got := p.Line(); got != "filter-result|"+id+"|00000000000000ff|proceed\n" {
				t.Fatalf("answer %q", got)
			}
		}
		text := make(chan string)
		go func() {
			b, _ := io.ReadAll(r)
			text <- string(b)
		}()
		p.End(0)
		if log := <-text; !strings.Contains(log, "log lines lost: not read in time") || !strings.Contains(log, "session decision=") {
			t.Errorf("%d bytes of log, ending in %q", len(log), log[max(0, len(log)-300):])
		}
	})
}

// TestClock checks that all sessions are recorded correctly while the clock jumps by days and
// years, forwards and backwards. The test runs in several time zones.
func TestClock(t *testing.T) {
	jumps := []int64{0, 3600, -3600, 7 * 86400, -7 * 86400, 400 * 86400, -400 * 86400, 0, -5 * 365 * 86400, 1, 0, 30 * 365 * 86400, 0}
	var first []string
	for _, zone := range []string{"UTC", "Pacific/Kiritimati", "America/St_Johns", "Nowhere/Wrong"} {
		dir := t.TempDir()
		conf, state := filepath.Join(dir, "scanwatch.conf"), filepath.Join(dir, "state")
		if err := os.WriteFile(conf, []byte("mode enforce\nstore \"state\" keep 3650d budget 64M\nrule bad phase helo match helo \"ylmf-pc\" disconnect ban 1h\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(smtpd.Bin("filter-scanwatch"), "-f", conf, "-s", state)
		cmd.Env = append(os.Environ(), "TZ="+zone)
		p := filterproc.Talk(t, cmd)
		var v filterproc.Visits
		stayed := 0
		for round := range 5 {
			for _, jump := range jumps {
				at := time.Unix(filterproc.FirstVisit+int64(round)+jump, 0)
				// This session stays open during the jumps. According to its timestamps, it ends
				// before it starts.
				stayed++
				p.Send(fmt.Sprintf("report|0.7|%d.000000|smtp-in|link-connect|%016x|<unknown>|fail|203.0.113.%d:1|192.0.2.25:25\n", at.Unix(), stayed, stayed%250))
				lines, want := v.Next(at)
				p.Send(lines)
				if got := p.Line(); got != want {
					t.Fatalf("%s: answer %q, want %q", zone, got, want)
				}
				if stayed%3 == 0 {
					p.Send(fmt.Sprintf("report|0.7|%d.000000|smtp-in|link-disconnect|%016x\n", at.Unix()-5000, stayed-1))
				}
			}
		}
		log := p.End(0)
		if strings.Contains(log, "level=ERROR") {
			t.Errorf("%s: logged\n%.2000s", zone, log)
		}
		var all []string
		for _, r := range cli.Dump(t, state) {
			all = append(all, fmt.Sprintf("%s %s %s %s %v", r.Session, r.Src, r.Start.UTC(), r.Ending, r.Evidence()))
		}
		slices.Sort(all)
		if len(all) != v.N+stayed {
			t.Errorf("%s: %d records of %d sessions", zone, len(all), v.N+stayed)
		}
		if first == nil {
			first = all
		} else if !slices.Equal(first, all) {
			t.Errorf("%s: the records differ from the records in UTC", zone)
		}
	}
}

// TestNoise checks that invalid lines between requests neither delay an answer nor flood the log.
func TestNoise(t *testing.T) {
	dir := t.TempDir()
	p := filterproc.Start(t, "-s", dir)
	var v filterproc.Visits
	noise := []string{
		"\n", "|\n", "||||||||\n", "config|ready\n", "config|\n", "report|\n", "filter|\n", "report|0.7|1.0|smtp-in|link-teapot|00000000000000aa|x\n",
		"report|9.9|1.0|smtp-in|link-connect|00000000000000ab|x|pass|192.0.2.1:1|192.0.2.2:25\nreport|9.9|1.0|smtp-in|link-disconnect|00000000000000ab\n",
		"filter|0.7|1.0|smtp-in|ehlo|zz|yy|x\n", "\x00\xff\x1b[2J\r\n", strings.Repeat("y", 300_000) + "\n", "report|0.7|x|x|link-auth|00000000000000aa\n",
		"filter-result|00000000000000aa|00000000000000aa|proceed\n", "report|0.7|1.0|smtp-out|link-connect|00000000000000aa|||\n",
	}
	for i := range 300 {
		p.Send(noise[i%len(noise)])
		p.Visit(&v, 3)
	}
	log := p.End(0)
	if n := bytes.Count([]byte(log), []byte("level=WARN")); n > 10 {
		t.Errorf("%d warnings:\n%.3000s", n, log)
	}
	if n := len(cli.Dump(t, dir, "--since", "2026-11-01")); n != v.N {
		t.Errorf("%d records of %d sessions", n, v.N)
	}
}
