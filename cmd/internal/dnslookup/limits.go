package dnslookup

import (
	"hash/maphash"
	"net/netip"
	"time"
)

// The limits of queries to a list.
const (
	defaultRate = 1  // queries in a second on average
	burst       = 60 // seconds whose queries may come together
	// first is the number of seconds whose queries are allowed after a start, so that a
	// service that restarts again and again does not exceed the rate.
	first = 5
	// share is the part of the rate that the clients of one network may use.
	share    = 4
	networks = 1024 // counters of networks; networks with the same hash share one
	// sixShare is the part of the rate that all clients with IPv6 may use. A client can
	// have so many networks of IPv6 that their shares are the whole rate.
	sixShare = 2
)

// A bucket counts queries, and drains at a rate.
type bucket struct {
	level float64
	at    time.Time // of level
}

// drain returns the number of queries for which a bucket of the given size has room.
func (b *bucket) drain(now time.Time, rate, size float64) (room float64) {
	b.level = max(0, b.level-rate*max(0, now.Sub(b.at).Seconds()))
	b.at = now
	return size - b.level
}

// A limiter limits all queries to a list, and the queries about clients with IPv6 and about
// clients of one network.
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

// take reports whether a query about a client is allowed, and counts it.
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

// spend counts queries that are not limited: queries of tests, and repeated queries. Later
// queries have to wait for them.
func (l *limiter) spend(n int, now time.Time) {
	l.all.drain(now, l.rate, l.rate*burst)
	l.all.level += float64(n)
}

// networkOf returns the network of a client: the /24 of IPv4, and the /48 of IPv6, which is
// the usual network of a site.
func networkOf(a netip.Addr) netip.Prefix {
	bits := 48
	if a.Is4() {
		bits = 24
	}
	p, _ := a.Prefix(bits)
	return p
}

// After several errors in a row, a list has a pause. A list whose test fails is tested again
// after a pause.
const (
	maxErrors  = 5
	firstPause = 5 * time.Second
	lastPause  = time.Minute
)

// pause returns the pause after a number of failures in a row, from 1.
func pause(failures int) time.Duration {
	return min(firstPause<<min(failures-1, 10), lastPause)
}
