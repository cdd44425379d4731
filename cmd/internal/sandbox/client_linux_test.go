package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// envClient names the directory that a helper in the Client sandbox uses.
const envClient = "SANDBOX_TEST_CLIENT"

func init() {
	if dir := os.Getenv(envClient); dir != "" {
		clientHelper(dir)
		os.Exit(0)
	}
}

// clientHelper prints the result of each attempt.
func clientHelper(dir string) {
	in := func(name string) string { return filepath.Join(dir, name) }
	report := Client([]string{in("queue"), in("missing")}, []string{in("run/control.sock")})
	fmt.Println("problems", report.Problems)
	write := func(name string) error { return os.WriteFile(in(name), []byte("x"), 0o600) }
	dial := func(network, address string) error {
		c, err := net.Dial(network, address)
		if err == nil {
			c.Close()
		}
		return err
	}
	for _, a := range []attempt{
		{"write and rename in the queue", "", func() error {
			return errors.Join(write("queue/new"), os.Rename(in("queue/new"), in("queue/old")), os.Remove(in("queue/old")), os.Mkdir(in("queue/sub"), 0o700))
		}},
		{"lock the queue", "", func() error {
			d, err := os.Open(in("queue"))
			if err != nil {
				return err
			}
			return syscall.Flock(int(d.Fd()), syscall.LOCK_EX)
		}},
		{"read elsewhere", "", func() error { _, err := os.ReadFile("/etc/passwd"); return err }},
		{"connect by TCP", "", func() error { return dial("tcp", os.Getenv(envTCP)) }},
		{"connect to the filter", "", func() error { return dial("unix", in("run/control.sock")) }},
		{"write elsewhere", "landlock", func() error { return write("other") }},
		{"remove elsewhere", "landlock", func() error { return os.Remove(in("run/keep")) }},
		{"move out of the queue", "landlock", func() error { return errors.Join(write("queue/x"), os.Rename(in("queue/x"), in("x"))) }},
		{"use raw packets", "seccomp", func() error {
			fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, 0)
			if err == nil {
				syscall.Close(fd)
			}
			return err
		}},
		{"signal another process", "landlock-6", func() error { return syscall.Kill(os.Getppid(), 0) }},
		{"run a program", "landlock", func() error { return exec.Command("/bin/true").Run() }},
	} {
		fmt.Printf("%s: %v\n", a.name, a.do() == nil)
	}
}

// TestClient checks the restrictions of a process in the Client sandbox.
func TestClient(t *testing.T) {
	if landlockVersion() < 6 {
		t.Skip("SKIP: the kernel has no Landlock that restricts signals")
	}
	dir, err := os.MkdirTemp("", "client")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	err = errors.Join(os.Mkdir(filepath.Join(dir, "queue"), 0o700), os.Mkdir(filepath.Join(dir, "run"), 0o755), os.WriteFile(filepath.Join(dir, "run/keep"), nil, 0o600))
	tcp, err1 := net.Listen("tcp", "127.0.0.1:0")
	local, err2 := net.Listen("unix", filepath.Join(dir, "run/control.sock"))
	if err := errors.Join(err, err1, err2); err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	defer local.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), envClient+"="+dir, envTCP+"="+tcp.Addr().String())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	const want = `problems []
write and rename in the queue: true
lock the queue: true
read elsewhere: true
connect by TCP: true
connect to the filter: true
write elsewhere: false
remove elsewhere: false
move out of the queue: false
use raw packets: false
signal another process: false
run a program: false
`
	if got := out.String(); got != want {
		t.Errorf("%s\nwant\n%s", strings.TrimSpace(got), want)
	}
}
