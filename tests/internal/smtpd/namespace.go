//go:build linux

package smtpd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"scanwatch/tests/internal/require"
)

// Variables that Enter passes to the program in the namespace.
const (
	envOutside  = "SCANWATCH_OUTSIDE"  // the network namespace it came from
	envPrograms = "SCANWATCH_PROGRAMS" // directory of the programs built by Main
	// envPrebuilt is the directory in which make test builds the programs once for all
	// packages.
	envPrebuilt = "SCANWATCH_PREBUILT"
)

// Names and addresses of the server in the namespace.
const (
	HostName = "mx.example.org"
	Domain   = "example.org"  // the domain for which mail is accepted
	Addr4    = "192.0.2.25"   // the address to which remote clients connect
	Addr6    = "2001:db8::25" // IPv6 counterpart of Addr4
)

func networkNamespace() string {
	ns, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return ""
	}
	return ns
}

// inside reports whether the program is running in the namespace. It compares the variable with the
// current network namespace. A variable that was exported by accident therefore never makes the
// tests change the machine's network.
func inside() bool {
	outside := os.Getenv(envOutside)
	return outside != "" && outside != networkNamespace()
}

// Enter moves the running program into new mount, network and UTS namespaces. The program must call
// Enter first, because Enter restarts it under the same process id. After Enter returns nil, the
// network is up, and all IPv4 and IPv6 addresses are local. Enter requires root.
func Enter() error {
	if inside() {
		return setUp()
	}
	if os.Geteuid() != 0 {
		return errors.New("making namespaces and running smtpd needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return errors.New("the ip command is missing: install iproute2")
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if err := os.Setenv(envOutside, networkNamespace()); err != nil {
		return err
	}
	defer os.Unsetenv(envOutside) // only reached on failure
	// unshare(2) moves only the calling thread. execve(2) ends all other threads, and the
	// new program runs in the calling thread's namespaces.
	runtime.LockOSThread()
	if err := syscall.Unshare(syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("make namespaces: %w", err)
	}
	// The thread remains locked, because no other goroutine may use it. After an error, Enter
	// cannot be repeated.
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return fmt.Errorf("start %s again: %w", self, syscall.Exec(self, os.Args, os.Environ()))
}

func setUp() error {
	if err := syscall.Sethostname([]byte(HostName)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	for _, args := range []string{
		"link set lo up",
		"addr replace " + Addr4 + "/32 dev lo",
		"-6 addr replace " + Addr6 + "/128 dev lo nodad",
		"route replace local default dev lo",
		"-6 route replace local default dev lo",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	return nil
}

// Main is the body of a TestMain. It builds the given packages as static programs for
// [Bin], enters the namespace and runs the tests. If Enter fails, Main logs the error and
// runs the tests anyway. [Require] then skips or fails each test that needs a server.
func Main(m *testing.M, packages ...string) {
	// Build before entering the namespace, because modules cannot be downloaded inside it.
	if !inside() {
		if err := build(packages); err != nil {
			fmt.Fprintln(os.Stderr, "smtpd:", err)
			os.Exit(1)
		}
	}
	if err := Enter(); err != nil {
		fmt.Fprintf(os.Stderr, "smtpd: no real servers in this run: %v\n", err)
	}
	code := m.Run()
	if dir := os.Getenv(envPrograms); dir != os.Getenv(envPrebuilt) {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, "smtpd:", err)
		}
	}
	os.Exit(code)
}

func build(packages []string) error {
	traces := os.Getenv(EnvTrace)
	if dir := os.Getenv(envPrebuilt); dir != "" && traces == "" && exist(dir, packages) {
		return os.Setenv(envPrograms, dir)
	}
	dir, err := os.MkdirTemp("", "programs-")
	if err != nil {
		return err
	}
	if err := os.Setenv(envPrograms, dir); err != nil {
		return err
	}
	if len(packages) == 0 {
		return nil
	}
	args := []string{"build", "-o", dir + "/"}
	if traces != "" {
		args = append(args, "-tags", "audit")
	}
	cmd := exec.Command("go", append(args, packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		os.RemoveAll(dir)
		return fmt.Errorf("build %s: %w\n%s", strings.Join(packages, " "), err, out)
	}
	if traces != "" {
		return trace(dir, traces)
	}
	return nil
}

// exist reports whether a directory contains the programs of all packages.
func exist(dir string, packages []string) bool {
	for _, p := range packages {
		if _, err := os.Stat(filepath.Join(dir, path.Base(p))); err != nil {
			return false
		}
	}
	return true
}

// Bin returns the path of a program built by [Main].
func Bin(name string) string { return filepath.Join(os.Getenv(envPrograms), name) }

// Require skips the test if v cannot run on this machine, or if -short is set. If
// SCANWATCH_NO_SKIP is 1, an unavailable version fails the test instead.
func Require(t testing.TB, v Version) {
	t.Helper()
	require.Full(t)
	if err := Check(v); err != nil {
		require.Missing(t, "%v", err)
	}
}
