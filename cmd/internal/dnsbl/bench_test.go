package dnsbl

import (
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"scanwatch/cmd/internal/control"
)

// many is the number of bans in benchmarks.
const many = 400_000

// crowd returns a server with many bans, and queries for it. Half of the queries are about banned
// hosts.
func crowd(b *testing.B) (*Server, [][]byte) {
	b.Helper()
	set := parse(b, b.TempDir(), "companion serve user nobody listen 127.0.0.1\nzone \"bl.example.org\" bans\n")
	s, err := New(set.Companions[0], set.Zones, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		b.Fatal(err)
	}
	s.listen[0] = netip.AddrPortFrom(s.listen[0].Addr(), 0)
	r := rand.New(rand.NewPCG(1, 2))
	random := func() netip.Addr {
		n := r.Uint32()
		return netip.AddrFrom4([4]byte{byte(n>>24)%100 + 20, byte(n >> 16), byte(n >> 8), byte(n)})
	}
	entries := make([]control.BanEntry, many)
	for i := range entries {
		entries[i] = control.BanEntry{Prefix: netip.PrefixFrom(random(), 32), Seconds: 3600, Rule: "harvest", Session: "5a1f9c2e00c0ffee"}
	}
	apply(s, control.BanList{Full: true, Enforced: true}, entries...)
	var packets [][]byte
	for i := range 4096 {
		addr := entries[i].Prefix.Addr()
		if i%2 == 0 {
			addr = random()
		}
		packets = append(packets, ask(b, reversed(addr.String())+".bl.example.org.", dnsmessage.TypeA, 1232))
	}
	return s, packets
}

// BenchmarkAnswer measures the time to build a response, without sockets.
func BenchmarkAnswer(b *testing.B) {
	s, packets := crowd(b)
	buf := make([]byte, 0, maxUDP)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.answer(buf, packets[i%len(packets)], local, false)
	}
}

// BenchmarkUDP measures queries over loopback, including the client's time. One variant also adds
// and removes 500 bans per second.
func BenchmarkUDP(b *testing.B) {
	for _, c := range []struct {
		name    string
		changes bool
	}{{"quiet", false}, {"changes", true}} {
		b.Run(c.name, func(b *testing.B) {
			s, packets := crowd(b)
			if err := s.Listen(); err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan struct{})
			go func() { defer close(done); s.Run(ctx, nil) }()
			defer func() { cancel(); <-done }()
			if c.changes {
				go change500(ctx, s)
			}
			conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(s.listen[0]))
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			answer := make([]byte, maxUDP)
			b.ResetTimer()
			before := cpuTime()
			const window = 64
			for n := 0; n < b.N; n += window {
				for i := range window {
					if _, err := conn.Write(packets[(n+i)%len(packets)]); err != nil {
						b.Fatal(err)
					}
				}
				for range window {
					if _, err := conn.Read(answer); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(b.N)/(cpuTime()-before).Seconds(), "queries/cpu-s")
		})
	}
}

// cpuTime returns the CPU time of this process, including the client. Unlike elapsed
// time, CPU time is not affected by other processes.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// change500 adds and removes 500 bans per second until ctx is done.
func change500(ctx context.Context, s *Server) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var entries []control.BanEntry
		for i := range 50 {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i), byte(n / 2)}), 32)
			entries = append(entries, control.BanEntry{Prefix: p, Seconds: int64(n%2) * 3600, Rule: "bot", Session: "00000000000000aa"})
		}
		apply(s, control.BanList{Enforced: true}, entries...)
	}
}
