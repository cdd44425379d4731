package journal

import (
	"hash/maphash"
	"net/netip"
	"strconv"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/filter/track"
)

// A logger keeps clients from filling the log. Only the first of several identical
// lines about a source is logged, and the number of repetitions is logged at the end of
// a window. A rate limit applies to all lines together.
type logger struct {
	line  []byte // scratch
	lines map[uint64]repeats
	seed  maphash.Seed
	order []window // in the order in which they end
	first int      // index into order
	told  int64    // time of the last line that counted unlogged sessions
	found limiter  // rate limit of lines without a decision
	acted limiter  // rate limit of decisions and bans, which findings cannot displace
}

// Limits on the log.
const (
	logWindow    = 10 * time.Minute
	maxLogged    = 20_000 // number of windows
	maxLogBurst  = 200    // lines in a burst, after which maxLogPerSec applies
	maxLogPerSec = 20
	unloggedWait = time.Minute // minimum time between lines that count unlogged sessions
	maxValue     = 100         // length of a value in bytes
)

// repeated describes the line that counts repetitions: `PLURAL KEY=WHAT src=...
// more=N`.
type repeated struct {
	plural, key string
	act         bool // subject to the rate limit of decisions and bans
}

// A logKey identifies identical lines. Only the source in a key depends on the client.
type logKey struct {
	src  uint64
	kind *repeated
	what string // evidence, rule or tag
	form string // observed, withheld or exempt; empty if a decision is enforced
}

func (k *logKey) hash(seed maphash.Seed) uint64 {
	return maphash.String(seed, k.what) ^ maphash.String(seed, k.kind.plural)*3 ^ maphash.String(seed, k.form)*5 ^ k.src*0x9e3779b97f4a7c15
}

// A window is the time during which repetitions of a line are counted but not logged.
type window struct {
	key   logKey
	until int64
}

type repeats struct {
	more uint32
	addr netip.Addr
}

// allow reports whether a line about s with the given key must be logged. allow also
// fills in the key's source.
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

// due logs the number of repetitions for each window that has ended, or for every
// window if all is set.
func (l *logger) due(log func([]byte), now int64, all bool) {
	for l.first < len(l.order) {
		w := &l.order[l.first]
		if !all && w.until > now && w.until <= now+2*logWindow.Microseconds() { // it can end later than that only if the clock was set back
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

// unlogged logs the number of sessions that the rate limit kept out of the log, at most
// once a minute. If all is set, it logs the number immediately.
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

// A limiter allows a burst of lines and then a steady rate. A limiter takes the time
// from events.
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

// appendPair appends ` key=value`. A value with an unsafe character is quoted as an
// ASCII Go string. An unquoted value could start a new line, forge a key, or send an
// escape sequence to a terminal.
func appendPair(dst []byte, key string, value []byte) []byte {
	dst = append(append(append(dst, ' '), key...), '=')
	value = clip(value, maxValue)
	if plain(value) {
		return append(dst, value...)
	}
	return strconv.AppendQuoteToASCII(dst, string(value))
}

// plain reports whether value needs no quotes: it is not empty, and none of its
// characters is special in shells, logs or terminals.
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
