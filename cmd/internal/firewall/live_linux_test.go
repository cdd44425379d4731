package firewall

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/follow"
	"scanwatch/filter/memory"
	"scanwatch/rules"
	"scanwatch/store"
)

// A network has a server behind a firewall. Hosts in 45.0.0.0/8 and 2a0e::/16 are on the
// namespace's loopback interface.
type network struct {
	t      testing.TB
	server *net.UDPConn
	to     *net.UDPAddr
	n      int
}

// blocking maps each target to firewall rules that use its sets.
var blocking = map[string]string{
	"nftables": "nft -f - <<'END'\ntable inet filter {" + nftSets + `
	chain input { type filter hook input priority filter; policy accept;
		ip saddr @scanwatch4 drop
		ip saddr @scanwatch4net drop
		ip6 saddr @scanwatch6 drop
		ip6 saddr @scanwatch6net drop
	}
}
END`,
	"ipset": `for set in scanwatch4 scanwatch4net; do iptables -A INPUT -m set --match-set $set src -j DROP; done
for set in scanwatch6 scanwatch6net; do ip6tables -A INPUT -m set --match-set $set src -j DROP; done`,
}

func newNetwork(t testing.TB) *network {
	t.Helper()
	shell(t, `ip link set lo up
ip route add local 45.0.0.0/8 dev lo
ip -6 route add local 2a0e::/16 dev lo
echo 1 >/proc/sys/net/ipv6/ip_nonlocal_bind`)
	n := &network{t: t}
	var err error
	if n.server, err = net.ListenUDP("udp", &net.UDPAddr{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.server.Close() })
	n.to = n.server.LocalAddr().(*net.UDPAddr)
	return n
}

// send sends a packet from a host.
func (n *network) send(from, text string) {
	n.t.Helper()
	a := netip.MustParseAddr(from)
	to := &net.UDPAddr{IP: net.IPv4(45, 255, 0, 1), Port: n.to.Port}
	if a.Is6() {
		to.IP = net.ParseIP("2a0e:ffff::1")
	}
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: a.AsSlice()})
	if err == nil {
		_, err = c.WriteTo([]byte(text), to)
		c.Close()
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// accepts reports whether the server receives a packet from a host. It then sends a packet from a
// host that is never banned, and waits until this packet arrives.
func (n *network) accepts(from string) bool {
	n.t.Helper()
	n.n++
	packet, last := fmt.Sprint("packet ", n.n), fmt.Sprint("last ", n.n)
	n.send(from, packet)
	n.send("45.254.0.1", last)
	received := false
	buf := make([]byte, 100)
	for {
		_ = n.server.SetReadDeadline(time.Now().Add(time.Minute))
		length, err := n.server.Read(buf)
		if err != nil {
			n.t.Fatal(err)
		}
		switch string(buf[:length]) {
		case packet:
			received = true
		case last:
			return received
		}
	}
}

// A bare is a state that is never written to disk.
type bare struct{}

func (bare) Flush(context.Context) error        { return nil }
func (bare) Snapshot() (*store.Snapshot, error) { return nil, os.ErrInvalid }

func clock() int64 { return time.Now().UnixMicro() }

// live runs a control socket that serves bans, and a keeper that follows them.
func live(t testing.TB, word, argument string, prepare func(*memory.Bans)) *memory.Bans {
	t.Helper()
	bans := memory.New().Bans
	prepare(bans)
	c := &rules.Companion{Role: rules.RoleSync, User: "0", Target: word, Argument: argument, Max: 200_000}
	companions := control.NewCompanions([]*rules.Companion{c})
	spared := func([]netip.Prefix) func(netip.Prefix) bool {
		return func(p netip.Prefix) bool { return p.Addr().String() == "45.66.66.66" }
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	server := control.Server{Companions: companions, Log: log, Commands: []control.Command{
		control.BansCommand(bans, bare{}, clock, spared, func() bool { return true }), companions.NoteCommand()}}
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	served, kept := make(chan struct{}), make(chan struct{})
	go func() { defer close(served); server.Run(ctx, dir, time.Second) }()
	k, err := New(c, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); <-served; <-kept })
	for {
		if _, err := os.Stat(filepath.Join(dir, "control.sock")); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	// The keeper's thread must be in the same namespace as the test's thread.
	inThread(t, func() { defer close(kept); k.Run(ctx, &follow.Follower{RunDir: dir, Name: c.Name(), Log: log}) })
	return bans
}

func addBan(b *memory.Bans, prefix string, d time.Duration) {
	p, _ := parsePrefix(prefix)
	b.AddPrefix(p, d, "test", clock())
}

func endBan(b *memory.Bans, prefix string) {
	p, _ := parsePrefix(prefix)
	b.Revoke(p, false, clock())
}

// eventually waits for a condition. The time limit is reached only on failure.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(90 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within the time limit", what)
		}
	}
}

// TestPackets checks, with each Linux firewall, that packets from banned hosts are
// dropped, and are accepted again after the ban.
func TestPackets(t *testing.T) {
	for _, f := range firewalls {
		t.Run(f.word, func(t *testing.T) {
			programs := []string{f.program, "ip"}
			if f.word == "ipset" {
				programs = append(programs, "iptables", "ip6tables")
			}
			inNamespace(t, programs...)
			n := newNetwork(t)
			if f.word == "ipset" {
				shell(t, f.create)
			}
			shell(t, blocking[f.word])
			b := live(t, f.word, f.argument, func(b *memory.Bans) {
				addBan(b, "45.1.1.1", time.Hour)
				addBan(b, "45.66.66.66", time.Hour)
				addBan(b, "2a0e:1:2:3::/64", time.Hour)
			})
			waits := func(host string, accepted bool) {
				t.Helper()
				eventually(t, fmt.Sprintf("%s is accepted: %v", host, accepted), func() bool { return n.accepts(host) == accepted })
			}
			waits("45.1.1.1", false)
			waits("2a0e:1:2:3::77", false)
			for host, accepted := range map[string]bool{"45.1.1.2": true, "45.66.66.66": true, "2a0e:1:2:4::77": true, "45.1.1.1": false} {
				if n.accepts(host) != accepted {
					t.Errorf("%s is accepted: %v", host, !accepted)
				}
			}
			endBan(b, "45.1.1.1")
			waits("45.1.1.1", true)
			addBan(b, "45.7.0.0/16", time.Hour)
			addBan(b, "45.7.8.0/24", 2*time.Hour)
			addBan(b, "45.1.1.3", 2*time.Second)
			waits("45.7.8.9", false)
			endBan(b, "45.7.0.0/16")
			waits("45.7.0.1", true)
			waits("45.7.8.9", false)
			waits("45.1.1.3", true)
			endBan(b, "2a0e:1:2:3::/64")
			waits("2a0e:1:2:3::77", true)
		})
	}
}
