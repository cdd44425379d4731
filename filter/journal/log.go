package journal

import (
	"hash/maphash"
	"net/netip"
	"strconv"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/filter/track"
)

// A logger prevents clients from filling the log. If several lines about a source are identical,
// only the first is logged. The number of repetitions is logged at the end of a time window. All
// lines together are subject to a rate limit.
type logger struct {
	line  []byte // scratch
	lines map[uint64]repeats
	seed  maphash.Seed
	order []window // windows in the order in which they end
	first int      // index of the first window in order
	told  int64    // time of the last line with the number of sessions missing from the log
	found limiter  // rate limit of lines without a decision
	acted limiter  // separate rate limit for decisions and bans, so that findings cannot use it up
}

// Limits on the log.
const (
	logWindow    = 10 * time.Minute
	maxLogged    = 20_000 // maximum number of windows
	maxLogBurst  = 200    // maximum number of lines in a burst; then maxLogPerSec applies
	maxLogPerSec = 20
	unloggedWait = time.Minute // minimum time between lines with the number of sessions missing from the log
	maxValue     = 100         // length of a value in bytes
)

// repeated describes the log line with the number of repetitions: `PLURAL KEY=WHAT src=... more=N`.
type repeated struct {
	plural, key string
	act         bool // the line is subject to the rate limit of decisions and bans
}

// A logKey is equal for identical lines. Only the source in the key depends on the client.
type logKey struct {
	src  uint64
	kind *repeated
	what string // evidence, rule or tag
	form string // why the decision has no effect: observed, withheld or exempt; empty if it is enforced
}

func (k *logKey) hash(seed maphash.Seed) uint64 {
	return maphash.String(seed, k.what) ^ maphash.String(seed, k.kind.plural)*3 ^ maphash.String(seed, k.form)*5 ^ k.src*0x9e3779b97f4a7c15
}

// A window is a period in which repetitions of a line are counted but not logged.
type window struct {
	key   logKey
	until int64
}

type repeats struct {
	more uint32
	addr netip.Addr
}

// allow reports whether a line about s with the given key must be logged. allow also sets the
// source in the key.
func (l *logger) allow(s *track.Session, k logKey, at int64) bool {
	if s.Src.IsValid() {
		k.src = memory.Number(s.Src.Addr())
	}
	if l.lines == nil {
		l.lines, l.seed = make(map[uint64]repeats), maphash.MakeSeed()
	}
	h := k.hash(l.seed)
	if c, ok := l.lines[h]; ok {
		c.more++
		l.lines[h] = c
		return false
	}
	if len(l.lines) < maxLogged {
		l.lines[h] = repeats{addr: s.Src.Addr()}
		l.order = append(l.order, window{k, at + logWindow.Microseconds()})
	}
	return l.limit(k.kind).allow(at, 1)
}

// For each window that has ended, due logs the number of repetitions in it. If all is set, due does
// so for every window.
func (l *logger) due(log func([]byte), now int64, all bool) {
	for l.first < len(l.order) {
		w := &l.order[l.first]
		if !all && w.until > now && w.until <= now+2*logWindow.Microseconds() { // if a window ends even later, the clock was set back, and the window is treated as ended
			break
		}
		h := w.key.hash(l.seed)
		c := l.lines[h]
		l.first++
		delete(l.lines, h)
		if c.more > 0 {
			l.repeated(log, &w.key, c, now)
		}
	}
	l.unlogged(log, now, all)
	if l.first == len(l.order) || l.first > maxLogged {
		l.order = append(l.order[:0], l.order[l.first:]...)
		l.first = 0
	}
}

func (l *logger) repeated(log func([]byte), k *logKey, c repeats, now int64) {
	if !l.limit(k.kind).allow(now, uint64(c.more)) {
		return
	}
	src := []byte("local")
	if c.addr.IsValid() {
		src = addrText(c.addr)
	}
	b := append(l.line[:0], k.kind.plural...)
	b = appendFilled(b, "kind", []byte(k.form))
	b = appendPair(b, k.kind.key, []byte(k.what))
	b = appendPair(b, "src", src)
	b = appendPair(b, "more", strconv.AppendUint(nil, uint64(c.more), 10))
	l.line = appendPair(b, "within", []byte("10m"))
	log(l.line)
}

func (l *logger) limit(kind *repeated) *limiter {
	if kind.act {
		return &l.acted
	}
	return &l.found
}

// unlogged logs how many sessions are missing from the log because of the rate limit. unlogged logs
// the number at most once a minute unless all is set.
func (l *logger) unlogged(log func([]byte), now int64, all bool) {
	if wait := now - l.told; !all && wait >= 0 && wait < unloggedWait.Microseconds() {
		return
	}
	for _, of := range [...]struct {
		word  string
		limit *limiter
	}{{"sessions", &l.found}, {"decisions", &l.acted}} {
		if of.limit.dropped > 0 {
			l.line = appendPair(append(l.line[:0], of.word...), "unlogged", strconv.AppendUint(nil, of.limit.dropped, 10))
			of.limit.dropped, l.told = 0, now
			log(l.line)
		}
	}
}

// A limiter allows a burst of lines, and after that a steady rate. The clock of a limiter is the
// time of the events.
type limiter struct {
	tokens  float64
	last    int64
	dropped uint64
}

// allow reports whether a line that covers n sessions is within the limit.
func (l *limiter) allow(now int64, n uint64) bool {
	if l.last == 0 {
		l.tokens = maxLogBurst
	} else if now > l.last {
		l.tokens = min(maxLogBurst, l.tokens+float64(now-l.last)/1e6*maxLogPerSec)
	}
	l.last = now // even if the clock was set back
	if l.tokens < 1 {
		l.dropped += n
		return false
	}
	l.tokens--
	return true
}

// appendFilled appends ` key=value` unless the value is empty.
func appendFilled(dst []byte, key string, value []byte) []byte {
	if len(value) == 0 {
		return dst
	}
	return appendPair(dst, key, value)
}

// appendPair appends ` key=value`. If the value contains an unsafe character, it is quoted as a Go
// string in ASCII. Without quotes, a value could start a new line, add a forged key, or send an
// escape sequence to a terminal.
func appendPair(dst []byte, key string, value []byte) []byte {
	dst = append(append(append(dst, ' '), key...), '=')
	value = clip(value, maxValue)
	if plain(value) {
		return append(dst, value...)
	}
	return strconv.AppendQuoteToASCII(dst, string(value))
}

// plain reports whether value needs no quotes. A value needs no quotes if it is not empty and
// contains no special characters of shells, logs or terminals.
func plain(value []byte) bool {
	for _, c := range value {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '.', c == ':', c == '-', c == '_', c == '/', c == '@', c == '+', c == ',':
		default:
			return false
		}
	}
	return len(value) > 0
}

func appendHex(dst []byte, id uint64) []byte {
	const digits = "0123456789abcdef"
	for i := 60; i >= 0; i -= 4 {
		dst = append(dst, digits[id>>i&15])
	}
	return dst
}
