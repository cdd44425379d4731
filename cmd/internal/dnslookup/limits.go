package dnslookup

import (
	"hash/maphash"
	"net/netip"
	"time"
)

// Limits of a list's queries.
const (
	defaultRate = 1  // average number of queries per second
	burst       = 60 // maximum burst, in seconds at the average rate
	// first is the burst allowed immediately after a start. It is small, so that a service that
	// restarts repeatedly does not exceed the rate.
	first = 5
	// Clients in one network may use at most 1/share of the rate.
	share    = 4
	networks = 1024 // number of counters; networks with the same hash share a counter
	// All IPv6 clients may use at most 1/sixShare of the rate. Otherwise a client with many IPv6
	// networks could use up the rate.
	sixShare = 2
)

// A bucket counts queries, and drains at a constant rate.
type bucket struct {
	level float64
	at    time.Time // time of level
}

// drain lowers the level, and returns how many queries still fit into a bucket of the given size.
func (b *bucket) drain(now time.Time, rate, size float64) (room float64) {
	b.level = max(0, b.level-rate*max(0, now.Sub(b.at).Seconds()))
	b.at = now
	return size - b.level
}

// A limiter limits three rates of a list's queries: all queries, queries about IPv6 clients, and
// queries about clients in one network.
type limiter struct {
	rate float64
	all  bucket
	six  bucket // IPv6
	of   [networks]bucket
	seed maphash.Seed
}

func newLimiter(rate int, now time.Time) limiter {
	l := limiter{rate: float64(rate), seed: maphash.MakeSeed()}
	l.all = bucket{l.rate * (burst - first), now}
	l.six = bucket{l.all.level / sixShare, now}
	for i := range l.of {
		l.of[i] = bucket{l.all.level / share, now}
	}
	return l
}

// take reports whether a query about a client is allowed and, if so, counts it.
func (l *limiter) take(a netip.Addr, now time.Time) bool {
	network := &l.of[maphash.Comparable(l.seed, networkOf(a))%networks]
	if l.all.drain(now, l.rate, l.rate*burst) < 1 || network.drain(now, l.rate/share, l.rate*burst/share) < 1 {
		return false
	}
	if a.Is6() {
		if l.six.drain(now, l.rate/sixShare, l.rate*burst/sixShare) < 1 {
			return false
		}
		l.six.level++
	}
	l.all.level++
	network.level++
	return true
}

// spend counts tests and repeated queries, which are never delayed. Later queries are delayed
// instead.
func (l *limiter) spend(n int, now time.Time) {
	l.all.drain(now, l.rate, l.rate*burst)
	l.all.level += float64(n)
}

// networkOf returns a client's network: an IPv4 /24, or an IPv6 /48, which is the usual size of a
// site.
func networkOf(a netip.Addr) netip.Prefix {
	bits := 48
	if a.Is4() {
		bits = 24
	}
	p, _ := a.Prefix(bits)
	return p
}

// After several consecutive errors, a list is paused. A list that fails a test is tested again
// after a pause.
const (
	maxErrors  = 5
	firstPause = 5 * time.Second
	lastPause  = time.Minute
)

// pause returns the pause after the given number of consecutive failures, at least 1.
func pause(failures int) time.Duration {
	return min(firstPause<<min(failures-1, 10), lastPause)
}
