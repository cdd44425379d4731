package dnsbl

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// A limiter limits the rate of responses to each client network, because the source address of a
// UDP query may be forged. The limiter's memory is constant. Networks that share a bucket also
// share its rate.
type limiter struct {
	rate, burst float64 // responses per second, and maximum burst
	seed        maphash.Seed

	mu      sync.Mutex
	buckets [1 << 12]bucket
}

type bucket struct {
	network netip.Prefix
	last    time.Duration // since the server started
	tokens  float64
}

// Client networks may query the zones. Other networks receive only refusals, at a much lower rate.
const (
	clientRate, clientBurst     = 500, 1000
	strangerRate, strangerBurst = 2, 5
)

func newLimiter(rate, burst float64) *limiter {
	return &limiter{rate: rate, burst: burst, seed: maphash.MakeSeed()}
}

// networkOf returns the client's network, to which the limits apply.
func networkOf(a netip.Addr) netip.Prefix {
	bits := 24
	if a.Is6() {
		bits = 56
	}
	p, _ := a.WithZone("").Prefix(bits)
	return p
}

// take reports whether a response may be sent and, if so, counts it.
func (l *limiter) take(a netip.Addr, now time.Duration) bool {
	network := networkOf(a)
	b := &l.buckets[maphash.Comparable(l.seed, network)%uint64(len(l.buckets))]
	l.mu.Lock()
	defer l.mu.Unlock()
	b.tokens = min(b.tokens+l.rate*(now-b.last).Seconds(), l.burst)
	if !b.network.IsValid() || b.network != network && b.tokens >= l.burst {
		*b = bucket{network: network, tokens: l.burst}
	}
	b.last = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
