//go:build linux

package tests

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"scanwatch/tests/smtpd"
)

// What happens to the machine must not happen to the mail. Each test here breaks
// something under the program that runs, checks that every request is answered
// meanwhile, mends it, and checks what was recorded.

// visits makes whole sessions, each from another address and with one request,
// in which one recipient is refused.
type visits struct{ n int }

const firstVisit = 1795219327 // seconds since 1970

// one returns the lines of a session and the answer that it must get.
func (v *visits) one(at time.Time) (lines, answer string) {
	v.n++
	id := fmt.Sprintf("%016x", 1000+v.n)
	src := fmt.Sprintf("198.%d.%d.%d", 18+v.n>>16&1, v.n>>8&255, v.n&255)
	var b strings.Builder
	for i, rest := range []string{
		"link-connect|" + id + "|<unknown>|fail|" + src + ":4000|192.0.2.25:25",
		"protocol-server|" + id + "|220 mx.example.org ESMTP OpenSMTPD",
		"protocol-client|" + id + "|EHLO mail.example.net",
		"link-identify|" + id + "|EHLO|mail.example.net",
		"protocol-client|" + id + "|RCPT TO:<nobody@example.org>",
		"tx-rcpt|" + id + "|31f211ba|permfail|nobody@example.org",
		"protocol-server|" + id + "|550 Invalid recipient",
		"link-disconnect|" + id,
	} {
		us := at.UnixMicro() + int64(i)
		fmt.Fprintf(&b, "report|0.7|%d.%06d|smtp-in|%s\n", us/1e6, us%1e6, rest)
		if i == 2 {
			fmt.Fprintf(&b, "filter|0.7|%d.%06d|smtp-in|ehlo|%s|00000000000000ff|mail.example.net\n", us/1e6, us%1e6, id)
		}
	}
	return b.String(), "filter-result|" + id + "|00000000000000ff|proceed\n"
}

// visit plays n sessions, and fails if one is not answered as it must be. That
// the answer comes at all is what matters: go test's own limit ends the wait.
func (p *program) visit(v *visits, n int) {
	p.t.Helper()
	for range n {
		lines, want := v.one(time.Unix(firstVisit+int64(v.n/1000), 0))
		p.send(lines)
		if got := p.line(); got != want {
			p.t.Fatalf("answer %q, want %q", got, want)
		}
	}
}

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(90 * time.Second); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long until %s", what)
		}
	}
}

// status asks a filter that may not listen yet.
func status(dir string) (s storeStatus, err error) {
	out, err := exec.Command(smtpd.Bin("scanwatch"), "-s", dir, "status", "--json").Output()
	if err == nil {
		err = json.Unmarshal(out, &s)
	}
	return s, err
}

func listens(dir string) func() bool {
	return func() bool { _, err := status(dir); return err == nil }
}

func flushes(dir string) func() bool {
	return func() bool { return exec.Command(smtpd.Bin("scanwatch"), "-s", dir, "flush").Run() == nil }
}

// fault tells whether the store has an error in which text is.
func fault(dir, text string) func() bool {
	return func() bool { s, err := status(dir); return err == nil && strings.Contains(s.Store.Error, text) }
}

// logOf lets a command log to a file, which can be read while it runs.
func logOf(t *testing.T, cmd *exec.Cmd) (read func() string) {
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

// skip says loudly that something was not tested, or fails if nothing may be left out.
func skip(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("SCANWATCH_NO_SKIP") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf("SKIP, NOT TESTED: "+format, args...)
}

// tmpfs mounts one of the given size.
func tmpfs(t *testing.T, size string) (dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "mounting a file system takes root")
	}
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		skip(t, "mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// disk makes an ext4 file system of 64 MB on a loop device, in memory.
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
		skip(t, "make an ext4 file system: %v %s", err, out)
	}
	dir = t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		skip(t, "mount a loop device: %v %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", "-d", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	})
	return dir
}

// ext4Shutdown is what a test of file systems does to one: it answers EIO from then
// on, as when its disk has gone. An ioctl of ext4, and its argument for no last words.
const (
	ext4Shutdown = 0x8004587D
	noLogFlush   = 2
)

// TestDiskErrors: the disk fails for good, and somebody mounts another one in its
// place. What was recorded since the failure is on that.
func TestDiskErrors(t *testing.T) {
	dir := disk(t)
	var v visits
	p := begin(t, "-S", "-s", dir) // the sandbox lets nobody into a disk that comes later
	eventually(t, "it listens", listens(dir))
	p.visit(&v, 100)
	eventually(t, "the first are written", flushes(dir))
	if err := ioctl(dir, ext4Shutdown, noLogFlush); err != nil {
		skip(t, "shut down a file system: %v", err)
	}
	p.visit(&v, 500)
	_ = flushes(dir)()
	eventually(t, "the error is told", fault(dir, "input/output error"))
	p.visit(&v, 500)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	eventually(t, "it is written again", flushes(dir))
	p.visit(&v, 10)
	log := p.end(0)
	if n := len(dump(t, dir)); n != v.n-100 {
		t.Errorf("%d records of %d sessions after the failure", n, v.n-100)
	}
	if n := strings.Count(log, "sessions cannot be written"); n != 1 {
		t.Errorf("the trouble was logged %d times:\n%.2000s", n, log)
	}
}

// Freezing is what LVM, SAN and VM snapshots do: every write waits, for ever if
// need be. Ioctls of linux/fs.h.
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

// TestSlowDisk: a disk that does not answer at all makes no client wait.
func TestSlowDisk(t *testing.T) {
	dir := disk(t)
	conf := filepath.Join(t.TempDir(), "scanwatch.conf")
	if err := os.WriteFile(conf, []byte("mode observe\nrule bad phase helo match helo \"ylmf-pc\" disconnect\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var v visits
	p := begin(t, "-s", dir, "-f", conf)
	eventually(t, "it listens", listens(dir))
	p.visit(&v, 10)
	eventually(t, "the first are written", flushes(dir))
	if err := ioctl(dir, fiFreeze, 0); err != nil {
		skip(t, "freeze a file system: %v", err)
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
	t.Cleanup(thaw) // before the unmount, which would wait
	before, err := status(dir)
	if err != nil {
		t.Errorf("status: %v", err)
	}
	p.visit(&v, 5000)
	if out, err := exec.Command(smtpd.Bin("scanwatch"), "-s", dir, "reload").CombinedOutput(); err != nil {
		t.Errorf("reload: %v %s", err, out)
	}
	p.visit(&v, 100)
	if s, err := status(dir); err != nil || s.Store.Committed != before.Store.Committed {
		t.Errorf("the disk took %d records: %v", s.Store.Committed-before.Store.Committed, err)
	}
	thaw()
	eventually(t, "it is written again", flushes(dir))
	p.end(0)
	if n := len(dump(t, dir)); n != v.n {
		t.Errorf("%d records of %d sessions", n, v.n)
	}
}

// TestStopWithHangingDisk: the filter does not wait longer than ten seconds for such a
// disk, and says what that means. The kernel keeps the process until the disk answers.
func TestStopWithHangingDisk(t *testing.T) {
	dir := disk(t)
	var v visits
	cmd := exec.Command(smtpd.Bin("filter-scanwatch"), "-s", dir)
	log := logOf(t, cmd)
	p := talk(t, cmd)
	eventually(t, "it listens", listens(dir))
	p.visit(&v, 10)
	eventually(t, "the first are written", flushes(dir))
	if err := ioctl(dir, fiFreeze, 0); err != nil {
		skip(t, "freeze a file system: %v", err)
	}
	t.Cleanup(func() { _ = ioctl(dir, fiThaw, 0) }) // if the test fails before
	p.visit(&v, 100)
	p.smtpd.Close()
	eventually(t, "it tells of the loss", func() bool { return strings.Contains(log(), "did not answer in time") })
	if err := ioctl(dir, fiThaw, 0); err != nil {
		t.Fatal(err)
	}
	p.end(0)
	if n := len(dump(t, dir)); n < 10 {
		t.Errorf("%d records, the first 10 were flushed", n)
	}
}

// TestFewDescriptors: with no file descriptor left, a reload, a command and a new
// day fail and are tried again; with some, all is well.
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
	var v visits
	cmd := exec.Command(smtpd.Bin("filter-scanwatch"), "-s", dir, "-f", conf)
	log := logOf(t, cmd)
	p := talk(t, cmd)
	eventually(t, "it listens", listens(dir))
	p.visit(&v, 10)
	eventually(t, "the first are written", flushes(dir))
	limit := func(n uint64) {
		t.Helper()
		if err := unix.Prlimit(p.cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: 4096}, nil); err != nil {
			t.Fatal(err)
		}
	}
	limit(4)
	if err := os.WriteFile(list, []byte("203.0.113.0/24\n192.0.2.99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	// The next day's sessions need a new file.
	tomorrow := time.Unix(firstVisit+24*3600, 0)
	for range 1000 {
		lines, want := v.one(tomorrow)
		p.send(lines)
		if got := p.line(); got != want {
			t.Fatalf("answer %q, want %q", got, want)
		}
	}
	// A client that connects is taken when there is a descriptor for it.
	waits := exec.Command(smtpd.Bin("scanwatch"), "-s", dir, "status")
	if err := waits.Start(); err != nil {
		t.Fatal(err)
	}
	if got := p.ask(1, "ylmf-pc"); !strings.HasPrefix(got, "disconnect|554 first") {
		t.Errorf("the policy is gone: answer %q", got)
	}
	// Its own log is the only witness.
	for _, what := range []string{"too many open files", "sessions cannot be written", "was not taken"} {
		eventually(t, "it logs "+what, func() bool { return strings.Contains(log(), what) })
	}
	limit(1024)
	if err := waits.Wait(); err != nil {
		t.Errorf("a client that waited: %v", err)
	}
	eventually(t, "it is written again", flushes(dir))
	if out, err := exec.Command(smtpd.Bin("scanwatch"), "-s", dir, "reload").CombinedOutput(); err != nil {
		t.Errorf("reload: %v %s", err, out)
	}
	p.end(0)
	if n := strings.Count(log(), "sessions cannot be written"); n != 1 {
		t.Errorf("the trouble was logged %d times:\n%.3000s", n, log())
	}
	if n := len(dump(t, dir)); n != v.n+1 {
		t.Errorf("%d records of %d sessions", n, v.n+1)
	}
}

// memoryLimit makes a control group, of either version, that a process can be put in.
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
	skip(t, "make a control group with a memory limit: %v", errors.Join(errs...))
	return nil
}

// anonymous is the memory of a process that no file holds, in bytes.
func anonymous(t *testing.T, pid int) int64 {
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

// TestMemoryLimit: what strangers do fits into 192 MB, with the disk stopped as
// well: 130,000 sources, and 20,000 sessions open at once. A process over the limit is
// killed by the kernel, which this one is not.
func TestMemoryLimit(t *testing.T) {
	join := memoryLimit(t, 192<<20)
	dir := t.TempDir()
	var v visits
	cmd := exec.Command(smtpd.Bin("filter-scanwatch"), "-s", filepath.Join(dir, "no", "such", "directory")) // records wait, and are dropped
	cmd.Env = append(os.Environ(), "GOMEMLIMIT=150MiB")
	p := talk(t, cmd)
	join(cmd.Process.Pid)
	var in strings.Builder
	most := int64(0)
	for n := 0; n < 130_000; {
		in.Reset()
		want := 0
		for ; want < 500; want++ {
			lines, _ := v.one(time.Unix(firstVisit+int64(n/1000), 0))
			in.WriteString(lines)
			n++
		}
		p.exchange(in.String(), want)
		most = max(most, anonymous(t, cmd.Process.Pid))
	}
	in.Reset()
	const open = 20_000
	for i := range open {
		fmt.Fprintf(&in, "report|0.7|%d.000000|smtp-in|link-connect|%016x|<unknown>|fail|203.0.%d.%d:1|192.0.2.25:25\n", firstVisit+200, 1<<40+i, i>>8, i&255)
		fmt.Fprintf(&in, "filter|0.7|%d.000001|smtp-in|ehlo|%016x|00000000000000ff|%s\n", firstVisit+200, 1<<40+i, strings.Repeat("x", 400))
	}
	p.exchange(in.String(), open)
	most = max(most, anonymous(t, cmd.Process.Pid))
	t.Logf("at most %d MB of anonymous memory", most>>20)
	p.end(0)
}

// exchange sends text and reads n answers at the same time, as smtpd does.
func (p *program) exchange(text string, n int) {
	p.t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(p.smtpd, text)
		sent <- err
	}()
	for range n {
		if line := p.line(); !strings.HasPrefix(line, "filter-result|") {
			p.t.Fatalf("answer %q", line)
		}
	}
	if err := <-sent; err != nil {
		p.t.Fatal(err)
	}
}

// TestUnreadAnswers: smtpd does not read for as long as it takes to stop the
// filter, which then reads nothing more and takes no more memory; when smtpd reads
// again every request is answered, in order.
func TestUnreadAnswers(t *testing.T) {
	p := begin(t, "-s", t.TempDir())
	const most = 200_000
	line := func(i int) string {
		return fmt.Sprintf("filter|0.7|%d.000001|smtp-in|noop|%016x|%016x|%s\n", firstVisit, i, i, strings.Repeat("x", 100))
	}
	raw, err := p.smtpd.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// Sent until the socket has been full for a while: a wait for what must not happen.
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
		t.Fatal("the filter read on, with nobody to read its answers")
	}
	t.Logf("%d requests until it stopped reading, %d MB of anonymous memory", sent, anonymous(t, p.cmd.Process.Pid)>>20)
	if mb := anonymous(t, p.cmd.Process.Pid) >> 20; mb > 40 {
		t.Errorf("it holds %d MB", mb)
	}
	done := make(chan error, 1)
	go func() {
		_, err := io.WriteString(p.smtpd, pending)
		done <- err
	}()
	for i := range sent {
		if got, want := p.line(), fmt.Sprintf("filter-result|%016x|%016[1]x|proceed\n", i); got != want {
			t.Fatalf("answer %d: %q, want %q", i, got, want)
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	p.end(0)
}

// TestStderr: a log that is closed, or full because nobody reads it, stops no
// answer; what was lost is counted when somebody reads again.
func TestStderr(t *testing.T) {
	t.Run("closed", func(t *testing.T) {
		dir := t.TempDir()
		p := talk(t, exec.Command("sh", "-c", `exec "$0" -v -s "$1" 2>&-`, smtpd.Bin("filter-scanwatch"), dir))
		var v visits
		p.visit(&v, 500)
		p.end(0)
		if n := len(dump(t, dir)); n != v.n {
			t.Errorf("%d records of %d sessions", n, v.n)
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
		p := talk(t, cmd)
		w.Close()
		r.Close()
		var v visits
		p.visit(&v, 500)
		p.end(0)
		if n := len(dump(t, dir)); n != v.n {
			t.Errorf("%d records of %d sessions", n, v.n)
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
		p := talk(t, cmd)
		w.Close()
		// Each of these is a finding, and the events' clock goes a minute each time.
		for i := range 8000 {
			at := firstVisit + int64(60*i)
			id := fmt.Sprintf("%016x", i)
			p.send(fmt.Sprintf("report|0.7|%d.000001|smtp-in|link-connect|%s|scan-01.shadowserver.org|pass|198.18.%d.%d:1|192.0.2.25:25\n", at, id, i>>8&255, i&255) +
				fmt.Sprintf("filter|0.7|%d.000002|smtp-in|ehlo|%s|00000000000000ff|x\nreport|0.7|%[1]d.000003|smtp-in|link-disconnect|%[2]s\n", at, id))
			if got := p.line(); got != "filter-result|"+id+"|00000000000000ff|proceed\n" {
				t.Fatalf("answer %q", got)
			}
		}
		text := make(chan string)
		go func() {
			b, _ := io.ReadAll(r)
			text <- string(b)
		}()
		p.end(0)
		if log := <-text; !strings.Contains(log, "log lines were lost, nobody read them") || !strings.Contains(log, "finding evidence=scanner") {
			t.Errorf("%d bytes of log, ending in %q", len(log), log[max(0, len(log)-300):])
		}
	})
}

// TestClock: the clock jumps by days and years, back and forth, in every
// time zone, and while sessions are open. All are recorded, and read back the same.
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
		p := talk(t, cmd)
		var v visits
		stayed := 0
		for round := range 5 {
			for _, jump := range jumps {
				at := time.Unix(firstVisit+int64(round)+jump, 0)
				// One that stays open over the jumps, and ends in the past of its beginning.
				stayed++
				p.send(fmt.Sprintf("report|0.7|%d.000000|smtp-in|link-connect|%016x|<unknown>|fail|203.0.113.%d:1|192.0.2.25:25\n", at.Unix(), stayed, stayed%250))
				lines, want := v.one(at)
				p.send(lines)
				if got := p.line(); got != want {
					t.Fatalf("%s: answer %q, want %q", zone, got, want)
				}
				if stayed%3 == 0 {
					p.send(fmt.Sprintf("report|0.7|%d.000000|smtp-in|link-disconnect|%016x\n", at.Unix()-5000, stayed-1))
				}
			}
		}
		log := p.end(0)
		if strings.Contains(log, "level=ERROR") {
			t.Errorf("%s: logged\n%.2000s", zone, log)
		}
		var all []string
		for _, r := range dump(t, state) {
			all = append(all, fmt.Sprintf("%s %s %s %s %v", r.Session, r.Src, r.Start.UTC(), r.Ending, r.evidence()))
		}
		slices.Sort(all)
		if len(all) != v.n+stayed {
			t.Errorf("%s: %d records of %d sessions", zone, len(all), v.n+stayed)
		}
		if first == nil {
			first = all
		} else if !slices.Equal(first, all) {
			t.Errorf("%s: the records differ from those in UTC", zone)
		}
	}
}

// TestNoise: lines that nobody understands stand between requests, which are
// answered all the same, and the log does not grow with them.
func TestNoise(t *testing.T) {
	dir := t.TempDir()
	p := begin(t, "-s", dir)
	var v visits
	noise := []string{
		"\n", "|\n", "||||||||\n", "config|ready\n", "config|\n", "report|\n", "filter|\n", "report|0.7|1.0|smtp-in|link-teapot|00000000000000aa|x\n",
		"report|9.9|1.0|smtp-in|link-connect|00000000000000ab|x|pass|192.0.2.1:1|192.0.2.2:25\nreport|9.9|1.0|smtp-in|link-disconnect|00000000000000ab\n",
		"filter|0.7|1.0|smtp-in|ehlo|zz|yy|x\n", "\x00\xff\x1b[2J\r\n", strings.Repeat("y", 300_000) + "\n", "report|0.7|x|x|link-auth|00000000000000aa\n",
		"filter-result|00000000000000aa|00000000000000aa|proceed\n", "report|0.7|1.0|smtp-out|link-connect|00000000000000aa|||\n",
	}
	for i := range 300 {
		p.send(noise[i%len(noise)])
		p.visit(&v, 3)
	}
	log := p.end(0)
	if n := bytes.Count([]byte(log), []byte("level=WARN")); n > 10 {
		t.Errorf("%d warnings:\n%.3000s", n, log)
	}
	if n := len(dump(t, dir, "--since", "2026-11-01")); n != v.n {
		t.Errorf("%d records of %d sessions", n, v.n)
	}
}
