package sandbox

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// The test runs its own binary with and without the sandbox. The comparison proves that the sandbox
// causes the errors.
const (
	envHelper   = "SANDBOX_TEST_HELPER" // run with or without the sandbox
	envDir      = "SANDBOX_TEST_DIR"
	envTCP      = "SANDBOX_TEST_TCP"      // address of a listener
	envAbstract = "SANDBOX_TEST_ABSTRACT" // name of a listener
)

func TestMain(m *testing.M) {
	switch how := os.Getenv(envHelper); how {
	case "":
	case "asking":
		asking()
		os.Exit(0)
	default:
		helper(os.Getenv(envDir), how == "confined")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// An attempt is an operation that the filter needs, or that an attacker would try.
type attempt struct {
	name string
	need string // restriction that denies the operation; empty if it must be allowed
	do   func() error
}

// effects lists the possible restrictions. The helper prints the active restrictions.
var effects = []struct {
	name string
	in   func(*Report) bool
}{
	{"files", func(r *Report) bool { return r.Files }},
	{"truncate", func(r *Report) bool { return r.Files && landlockVersion() >= 3 }},
	{"exec", func(r *Report) bool { return r.Exec }},
	{"tcp", func(r *Report) bool { return r.TCP }},
	{"net", func(r *Report) bool { return r.Net }},
	{"ipc", func(r *Report) bool { return r.IPC }},
}

// attempts returns the attempts made by a process that may access dir.
func attempts(dir string) []attempt {
	in := func(name string) string { return filepath.Join(dir, name) }
	read := func(path string) func() error {
		return func() error { _, err := os.ReadFile(path); return err }
	}
	write := func(path string) func() error {
		return func() error { return os.WriteFile(path, []byte("x"), 0o600) }
	}
	all := func(steps ...func() error) func() error {
		return func() error {
			for _, step := range steps {
				if err := step(); err != nil {
					return err
				}
			}
			return nil
		}
	}
	rename := func(from, to string) func() error { return func() error { return os.Rename(from, to) } }
	socket := func(family, kind, protocol int) func() error {
		return func() error {
			fd, err := unix.Socket(family, kind, protocol)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}
	}
	return []attempt{
		{"read the configuration, which was replaced", "", read(in("etc/scanwatch.conf"))},
		{"read through a link", "", read(in("etc/link"))},
		{"read a database", "", read(in("db/asn.mmdb"))},
		{"write, rename and remove in the state directory", "", all(write(in("state/new")), rename(in("state/new"), in("state/old")), read(in("state/old")), func() error { return os.Remove(in("state/old")) })},
		{"truncate there", "", all(write(in("state/f")), func() error { return os.Truncate(in("state/f"), 0) })},
		{"create a directory there, and a file in it", "", all(func() error { _ = os.Mkdir(in("state/sessions"), 0o750); return nil }, write(in("state/sessions/a")), func() error { _, err := os.ReadDir(in("state/sessions")); return err })},
		{"map a file there", "", func() error {
			f, err := os.OpenFile(in("state/map"), os.O_RDWR|os.O_CREATE, 0o600)
			if err != nil {
				return err
			}
			defer f.Close()
			if err := f.Truncate(4096); err != nil {
				return err
			}
			m, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				return err
			}
			m[0] = 1
			return unix.Munmap(m)
		}},
		{"listen on a socket there, and connect", "", func() error {
			l, err := net.Listen("unix", in("state/s"))
			if err != nil {
				return err
			}
			defer l.Close()
			c, err := net.Dial("unix", in("state/s"))
			if err == nil {
				c.Close()
			}
			return err
		}},
		{"connect to a stale socket there", "", func() error {
			if _, err := net.Dial("unix", in("state/left")); !errors.Is(err, syscall.ECONNREFUSED) {
				return fmt.Errorf("%v, not ECONNREFUSED", err)
			}
			return nil
		}},
		{"signal oneself", "", func() error { return syscall.Kill(os.Getpid(), syscall.SIGURG) }},

		{"read /etc/passwd", "files", read("/etc/passwd")},
		{"read it through a link in the state directory", "files", read(in("state/passwd"))},
		{"read it through a link in the configuration's directory", "files", read(in("etc/passwd"))},
		{"read the environment of this process", "files", read("/proc/self/environ")},
		{"list /", "files", func() error { _, err := os.ReadDir("/"); return err }},
		{"read a file outside its directories", "files", read(in("secret"))},
		{"write a file outside its directories", "files", write(in("new"))},
		{"write to the configuration", "files", write(in("etc/scanwatch.conf"))},
		{"create a file in the directory of the configuration", "files", write(in("etc/new"))},
		{"write to the database", "files", write(in("db/asn.mmdb"))},
		{"truncate a file elsewhere", "truncate", func() error { return os.Truncate(in("secret"), 0) }},
		{"remove a file elsewhere", "files", func() error { return os.Remove(in("secret")) }},
		{"move a file elsewhere into the state directory", "files", rename(in("secret"), in("state/secret"))},
		{"link a file elsewhere into the state directory", "files", func() error { return os.Link(in("secret"), in("state/secret")) }},
		{"create a directory elsewhere", "files", func() error { return os.Mkdir(in("newdir"), 0o700) }},
		{"create a link in the state directory", "files", func() error { return os.Symlink("/etc/passwd", in("state/link")) }},
		{"create a FIFO in the state directory", "files", func() error { return unix.Mkfifo(in("state/fifo"), 0o600) }},
		{"listen on a socket elsewhere", "files", func() error { _, err := net.Listen("unix", in("s")); return err }},
		{"run a program", "exec", func() error { return exec.Command("/bin/true").Run() }},
		{"run one in the state directory", "exec", func() error {
			if err := os.WriteFile(in("state/x"), []byte("#!/bin/sh\n"), 0o700); err != nil {
				return err
			}
			return exec.Command(in("state/x")).Run()
		}},
		{"connect over IPv4", "tcp", func() error { _, err := net.Dial("tcp4", os.Getenv(envTCP)); return err }},
		{"listen over IPv4", "net", func() error { _, err := net.Listen("tcp4", "127.0.0.1:0"); return err }},
		{"listen over IPv6", "net", func() error { _, err := net.Listen("tcp6", "[::1]:0"); return err }},
		{"send datagrams", "net", func() error { _, err := net.Dial("udp4", "127.0.0.1:53"); return err }},
		{"use Multipath TCP", "net", socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)},
		{"use raw packets", "net", socket(unix.AF_PACKET, unix.SOCK_RAW, 0)},
		{"use netlink", "net", socket(unix.AF_NETLINK, unix.SOCK_RAW, 0)},
		{"reach the host of a virtual machine", "net", socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)},
		{"create an io_uring", "net", func() error {
			var params [120]byte
			_, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
			if errno != 0 {
				return errno
			}
			return nil
		}},
		{"run a program by its descriptor", "exec", func() error {
			_, _, errno := unix.Syscall6(unix.SYS_EXECVEAT, ^uintptr(0), uintptr(unsafe.Pointer(&[1]byte{})), 0, 0, unix.AT_EMPTY_PATH, 0)
			return errno
		}},
		{"create a socket with the system call of another architecture", "net", func() error {
			const x32 = 0x40000000
			fd, _, errno := unix.Syscall(x32|unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 0)
			if errno == 0 {
				unix.Close(int(fd))
				return nil
			}
			return errno
		}},
		{"signal the parent", "ipc", func() error { return syscall.Kill(os.Getppid(), 0) }},
		{"reach an abstract socket of the parent", "ipc", func() error {
			_, err := net.Dial("unix", "@"+os.Getenv(envAbstract))
			return err
		}},
	}
}

// paths returns the filter's paths in dir.
func paths(dir string) Paths {
	in := func(name string) string { return filepath.Join(dir, name) }
	return Paths{State: in("state"), Read: []string{in("etc/scanwatch.conf"), in("etc/link"), in("db/asn.mmdb")}}
}

// threads is the number of threads that make the attempts.
const threads = 3

// helper tries everything on threads that existed before Enter, because Enter might fail to
// restrict such threads. It prints a line for each attempt on each thread.
func helper(dir string, confine bool) {
	var ready, all sync.WaitGroup
	begin, turn := make(chan struct{}), make(chan struct{}, 1) // the threads take turns
	for n := range threads {
		ready.Add(1)
		all.Go(func() {
			runtime.LockOSThread()
			ready.Done()
			<-begin
			turn <- struct{}{}
			defer func() { <-turn }()
			for _, a := range attempts(dir) {
				fmt.Printf("%s\t%d\t%s\n", a.name, n, outcome(a.do()))
			}
		})
		if !confine {
			break // this attempt can succeed only once
		}
	}
	ready.Wait()
	if confine {
		r := Prepare(paths(dir)).Enter()
		for _, e := range effects {
			fmt.Printf("effect %s\t0\t%v\n", e.name, e.in(r))
		}
		fmt.Printf("problems\t0\t%v\n", r.Problems)
		fmt.Printf("covers\t0\t%v %v\n", r.Covers(filepath.Join(dir, "etc/friends")), r.Covers(filepath.Join(dir, "secret")))
		// Replace the file after Enter, as an editor does. Landlock rules apply only to inodes that
		// existed before Enter.
		conf := filepath.Join(dir, "etc/scanwatch.conf")
		fmt.Println("ready\t0\t" + conf)
		_, _ = os.Stdin.Read(make([]byte, 1)) // wait until the file is replaced
	}
	close(begin)
	all.Wait()
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "done"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EXDEV): // EXDEV means that the file cannot be moved between directories
		return "denied"
	}
	return "failed: " + err.Error()
}

// furnish creates the files for the attempts in dir.
func furnish(t *testing.T, dir string) {
	t.Helper()
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"etc", "etc2", "db", "state"} {
		if err := os.Mkdir(in(name), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"etc/scanwatch.conf", "etc2/friends", "db/asn.mmdb", "secret"} {
		if err := os.WriteFile(in(name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"etc/link": "../etc2/friends", "etc/passwd": "/etc/passwd", "state/passwd": "/etc/passwd"} {
		if err := os.Symlink(to, in(name)); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", in("state/left"))
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
}

// run runs the helper and returns its results by attempt and thread.
func run(t *testing.T, how string) map[[2]string]string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sb") // a path short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	furnish(t, dir)
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	abstract, err := net.Listen("unix", "@"+filepath.Base(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer abstract.Close()

	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envHelper+"="+how, envDir+"="+dir, envTCP+"="+tcp.Addr().String(), envAbstract+"="+filepath.Base(dir))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	told := make(map[[2]string]string)
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		name, rest, _ := strings.Cut(lines.Text(), "\t")
		thread, what, _ := strings.Cut(rest, "\t")
		told[[2]string{name, thread}] = what
		if name == "ready" {
			err := errors.Join(os.WriteFile(what+".new", []byte("x"), 0o600), os.Rename(what+".new", what))
			if err != nil {
				t.Error(err)
			}
			stdin.Close()
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("helper: %v\n%s", err, stderr.String())
	}
	return told
}

// TestConfined checks that every thread in the sandbox can perform the filter's operations, but not
// an attacker's. Without the sandbox, every attempt must succeed.
func TestConfined(t *testing.T) {
	_, known := auditArch[runtime.GOARCH]
	expect := map[string]bool{"files": landlockVersion() >= 1, "exec": known || landlockVersion() >= 1, "net": known}
	if landlockVersion() < 1 {
		// A kernel without Landlock is not a failure, even where tests must not be skipped.
		t.Log("SKIP: THIS KERNEL HAS NO LANDLOCK: THE ACCESS TO FILES IS NOT TESTED")
	}
	confined, free := run(t, "confined"), run(t, "free")
	if got := confined[[2]string{"problems", "0"}]; got != "[]" {
		t.Errorf("problems: %s", got)
	}
	if got := confined[[2]string{"covers", "0"}]; landlockVersion() >= 1 && got != "true false" {
		t.Errorf("covers: %s, want true false", got)
	}
	for name, must := range expect {
		if must && confined[[2]string{"effect " + name, "0"}] != "true" {
			t.Errorf("the sandbox does not restrict %s on this system", name)
		}
	}
	for _, a := range attempts("") {
		t.Run(a.name, func(t *testing.T) {
			if a.need != "" && confined[[2]string{"effect " + a.need, "0"}] != "true" {
				t.Skip("SKIP: this kernel cannot deny it")
			}
			want := "done"
			if a.need != "" {
				want = "denied"
			}
			for n := range threads {
				if got := confined[[2]string{a.name, fmt.Sprint(n)}]; got != want {
					t.Errorf("thread %d: %s, want %s", n, got, want)
				}
			}
			got := free[[2]string{a.name, "0"}]
			if got == "" || got == "denied" && os.Geteuid() == 0 && !strings.Contains(a.name, "io_uring") {
				t.Errorf("without a sandbox: %q, want success", got)
			}
		})
	}
}

func landlockVersion() int {
	n, err := ll.LandlockGetABIVersion()
	if err != nil {
		return 0
	}
	return n
}
