//go:build linux

package smtpd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// Where the program is, told to its second life through the environment.
const (
	envOutside  = "SCANWATCH_OUTSIDE"  // network namespace it came from
	envPrograms = "SCANWATCH_PROGRAMS" // folder of the programs Main built
)

// Our names and addresses inside the namespace.
const (
	HostName = "mx.example.org"
	Domain   = "example.org"  // mail for it is accepted
	Addr4    = "192.0.2.25"   // what remote clients connect to
	Addr6    = "2001:db8::25" // the same for IPv6
)

func networkNamespace() string {
	ns, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return ""
	}
	return ns
}

// inside compares with the namespace the mark names, so that a mark that has
// leaked into a shell never lets us change the network of the machine.
func inside() bool {
	outside := os.Getenv(envOutside)
	return outside != "" && outside != networkNamespace()
}

// Enter moves the running program into mount, network and host name
// namespaces of its own. It does so by starting it anew under the same
// process id: call it before anything else has an effect. When it returns
// nil, the program is inside and the network is up; every address of both
// families is local there. It needs root.
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
	defer os.Unsetenv(envOutside) // only on failure
	// unshare(2) moves the calling thread only; execve(2) ends the others and
	// keeps the namespaces of the one that calls it.
	runtime.LockOSThread()
	if err := syscall.Unshare(syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("make namespaces: %w", err)
	}
	// From here on the thread is of no use to the old program: it stays
	// locked, and failing is final.
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

// Main is the body of a TestMain. It builds the named packages into static
// programs, which [Bin] finds, enters the namespace and runs the tests. Where
// the namespace cannot be had it says so and runs them outside, for those
// that need no server; [Require] decides about the others.
func Main(m *testing.M, packages ...string) {
	// Building comes first: there is no network inside to fetch modules from.
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
	if err := os.RemoveAll(os.Getenv(envPrograms)); err != nil {
		fmt.Fprintln(os.Stderr, "smtpd:", err)
	}
	os.Exit(code)
}

func build(packages []string) error {
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
	cmd := exec.Command("go", append([]string{"build", "-o", dir + "/"}, packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		os.RemoveAll(dir)
		return fmt.Errorf("build %s: %w\n%s", strings.Join(packages, " "), err, out)
	}
	return nil
}

// Bin is the path of a program that [Main] has built.
func Bin(name string) string { return filepath.Join(os.Getenv(envPrograms), name) }

// Require skips the test when v cannot be run here, or fails it if
// SCANWATCH_NO_SKIP is 1. It also skips under -short.
func Require(t testing.TB, v Version) {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIP: -short leaves real servers out")
	}
	if err := Check(v); err != nil {
		if os.Getenv("SCANWATCH_NO_SKIP") == "1" {
			t.Fatal(err)
		}
		t.Skipf("SKIP: %v", err)
	}
}
