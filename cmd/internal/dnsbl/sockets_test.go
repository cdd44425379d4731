package dnsbl

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"scanwatch/cmd/internal/control"
)

// running returns a server that is listening on a port of 127.0.0.1.
func running(t *testing.T) (*Server, netip.AddrPort) {
	t.Helper()
	s := ready(t)
	s.listen = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx, nil) }()
	t.Cleanup(func() { cancel(); <-done })
	return s, s.listen[0]
}

func dial(t *testing.T, network string, to netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.Dial(network, to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// framed returns a message prefixed with its length, as sent over TCP.
func framed(packet []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(packet))), packet...)
}

func receive(t *testing.T, c net.Conn) string {
	t.Helper()
	var n [2]byte
	if _, err := io.ReadFull(c, n[:]); err != nil {
		return err.Error()
	}
	packet := make([]byte, binary.BigEndian.Uint16(n[:]))
	if _, err := io.ReadFull(c, packet); err != nil {
		return err.Error()
	}
	return words(t, packet)
}

// TestTCP checks consecutive queries, queries that arrive in several parts, and clients
// that never send a valid query.
func TestTCP(t *testing.T) {
	_, addr := running(t)
	c := dial(t, "tcp", addr)
	listed, missing := ask(t, "1.2.0.192.bl.example.org.", kindTXT, 0), ask(t, "9.9.9.9.bl.example.org.", kindA, 0)
	all := slices.Concat(framed(listed), framed(missing), framed(listed))
	for _, part := range [][]byte{all[:1], all[1:7], all[7:60], all[60:]} {
		if _, err := c.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []string{"Success aa; 1.2.0.192", "NameError aa;", "Success aa; 1.2.0.192"} {
		if got := receive(t, c); !strings.HasPrefix(got, want) {
			t.Errorf("answer %d: %s", i, got)
		}
	}
	for name, packet := range map[string][]byte{
		"a short message": framed([]byte{1, 2, 3}), "an empty message": framed(nil), "a response": framed(append([]byte{0, 0, 0x80}, listed[3:]...)),
		"a long message": append([]byte{0xff, 0xff}, make([]byte, 5000)...),
	} {
		c := dial(t, "tcp", addr)
		_, _ = c.Write(packet)
		if got := receive(t, c); !strings.Contains(got, "EOF") && !strings.Contains(got, "reset") {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// TestTCPLimit checks that clients from one network cannot use up all connections, and
// that another client can connect once a connection is closed.
func TestTCPLimit(t *testing.T) {
	_, addr := running(t)
	packet := framed(ask(t, "1.2.0.192.bl.example.org.", kindA, 0))
	try := func(c net.Conn) bool {
		_, _ = c.Write(packet)
		return strings.HasPrefix(receive(t, c), "Success")
	}
	var open []net.Conn
	for range maxOfNetwork {
		c := dial(t, "tcp", addr)
		if !try(c) {
			t.Fatal("no answer below the limit")
		}
		open = append(open, c)
	}
	if try(dial(t, "tcp", addr)) {
		t.Error("an answer above the limit")
	}
	open[0].Close()
	for !try(dial(t, "tcp", addr)) { // until the server notices; go test limits the time
	}
}

// TestUDP checks that concurrent clients receive the answers to their own queries while
// the bans are changing.
func TestUDP(t *testing.T) {
	s, addr := running(t)
	stop := make(chan struct{})
	var changes, clients sync.WaitGroup
	changes.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			apply(s, control.BanList{Enforced: true, Full: n%10 == 0}, append(banned(), control.BanEntry{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, 0, byte(n)}), 32), Seconds: 60, Rule: "bot"})...)
		}
	})
	for n := range 8 {
		c := dial(t, "udp", addr)
		clients.Go(func() {
			b := make([]byte, maxUDP)
			for i := range 200 {
				name := fmt.Sprintf("%d.%d.0.192.bl.example.org.", n, i) // only 192.0.2.1 is banned
				packet := ask(t, name, dnsmessage.TypeA, 1232)
				if _, err := c.Write(packet); err != nil {
					t.Error(err)
					return
				}
				size, err := c.Read(b)
				if err != nil {
					t.Error(err)
					return
				}
				want := "NameError aa"
				if n == 1 && i == 2 {
					want = "Success aa; 1.2.0.192"
				}
				if got := words(t, b[:size]); !strings.HasPrefix(got, want) || !slices.Equal(b[12:12+len(name)], packet[12:12+len(name)]) {
					t.Errorf("%s: %s", name, got)
				}
			}
		})
	}
	clients.Wait()
	close(stop)
	changes.Wait()
}
