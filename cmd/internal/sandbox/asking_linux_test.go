package sandbox

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// asking is the helper of TestAsking. In a process that may connect to servers on one port, given
// in envTCP, it prints the result of each operation.
func asking() {
	server, other := os.Getenv(envTCP), os.Getenv(envAbstract)
	r := Prepare(Paths{AskPort: int(netip.MustParseAddrPort(server).Port())}).Enter()
	dial := func(network, addr string) error {
		c, err := net.Dial(network, addr)
		if err == nil {
			c.Close()
		}
		return err
	}
	packet := func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	read := func() error { _, err := os.ReadFile("/etc/passwd"); return err }
	fmt.Println("problems:", len(r.Problems), "net:", r.Net, "exec:", r.Exec)
	fmt.Println("udp:", outcome(dial("udp", server)))
	fmt.Println("tcp:", outcome(dial("tcp", server)))
	fmt.Println("other port:", outcome(dial("tcp", other)))
	fmt.Println("packet:", outcome(packet()))
	fmt.Println("program:", outcome(exec.Command("/bin/true").Run()))
	fmt.Println("file:", outcome(read()))
}

// TestAsking checks that a process that sends queries to servers can connect to the servers' port
// only.
func TestAsking(t *testing.T) {
	if _, known := auditArch[runtime.GOARCH]; !known {
		t.Skip("SKIP: no seccomp filter for this architecture")
	}
	var addrs []string
	for range 2 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envHelper+"=asking", envTCP+"="+addrs[0], envAbstract+"="+addrs[1])
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	limited := func(by int) string {
		if landlockVersion() >= by {
			return "denied"
		}
		return "done"
	}
	want := strings.Join([]string{"problems: 0 net: false exec: true", "udp: done", "tcp: done", "other port: " + limited(4), "packet: denied", "program: denied", "file: " + limited(1), ""}, "\n")
	if got := string(out); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
