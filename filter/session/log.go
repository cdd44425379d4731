package session

import (
	"hash/maphash"
	"net/netip"
	"strconv"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/rules"
)

// logFinding logs one line. Its first words and the order of its keys are
// stable: other programs read them. The address stands on every line.
func (t *Table) logFinding(s *Session, token string, f *finding) {
	b := append(t.line[:0], "finding"...)
	b = appendPair(b, "evidence", []byte(token))
	b = appendPair(b, "src", s.source())
	b = appendPair(b, "confidence", []byte(f.confidence))
	if f.org != "" {
		b = appendPair(b, "org", []byte(f.org))
	}
	b = appendPair(b, "by", []byte(f.by))
	if f.match != "" {
		b = appendPair(b, "match", []byte(f.match))
	}
	if len(f.proof) > 0 {
		b = appendPair(b, "proof", f.proof)
	}
	if len(s.RDNS) > 0 {
		b = appendPair(b, "rdns", s.RDNS)
	}
	b = appendPair(b, "fcrdns", []byte(s.FCrDNS.String()))
	b = appendPair(b, "session", appendHex(nil, s.ID))
	t.line = b
	t.options.Log(b)
}

// logVerdict logs what a rule decided, or would have decided.
func (t *Table) logVerdict(s *Session, phase rules.Phase, o *rules.Outcome, done bool, v *rules.Verdict) {
	b := append(t.line[:0], "verdict"...)
	if done {
		b = appendPair(b, "decision", []byte(o.Decision.String()))
	} else {
		b = appendPair(b, "would", []byte(o.Decision.String()))
	}
	b = appendPair(b, "src", s.source())
	b = appendPair(b, "rule", []byte(o.Rule.Name))
	b = appendPair(b, "phase", []byte(phase.String()))
	if e := s.Evidence | s.Weak; e != 0 {
		b = appendPair(b, "evidence", []byte(e.String()))
	}
	if v.Total != 0 {
		b = appendPair(b, "score", strconv.AppendInt(nil, int64(v.Total), 10))
	}
	if len(s.Helo) > 0 {
		b = appendPair(b, "helo", s.Helo)
	}
	if len(s.RDNS) > 0 {
		b = appendPair(b, "rdns", s.RDNS)
	}
	b = appendPair(b, "session", appendHex(nil, s.ID))
	t.line = b
	t.options.Log(b)
}

// logTag logs a word that a rule has noted.
func (t *Table) logTag(s *Session, phase rules.Phase, name string) {
	b := append(t.line[:0], "tagged"...)
	b = appendPair(b, "tag", []byte(name))
	b = appendPair(b, "src", s.source())
	b = appendPair(b, "phase", []byte(phase.String()))
	b = appendPair(b, "session", appendHex(nil, s.ID))
	t.line = b
	t.options.Log(b)
}

// source is the address for log lines.
func (s *Session) source() []byte {
	if s.Local {
		return []byte("local")
	}
	return s.Src.Addr().AppendTo(nil)
}

// logBan logs that a host was banned, would be, or was spared.
func (t *Table) logBan(s *Session, rule string, b *memory.Ban, observe bool, spared string) {
	word := "banned"
	switch {
	case spared != "":
		word = "spared"
	case observe:
		word = "would-ban"
	}
	l := append(t.line[:0], word...)
	l = appendPair(l, "src", s.source())
	l = appendPair(l, "rule", []byte(rule))
	if spared != "" {
		l = appendPair(l, "reason", []byte(spared))
	} else {
		l = appendPair(l, "prefix", []byte(b.Prefix.String()))
		l = appendPair(l, "until", b.Until.AppendFormat(nil, time.RFC3339))
		l = appendPair(l, "times", strconv.AppendInt(nil, int64(b.Times), 10))
	}
	t.line = appendPair(l, "session", appendHex(nil, s.ID))
	t.options.Log(t.line)
}

// logBanned logs that a banned host came.
func (t *Table) logBanned(s *Session, b *memory.Ban, done bool) {
	l := append(t.line[:0], "verdict"...)
	if done {
		l = appendPair(l, "decision", []byte("disconnect"))
	} else {
		l = appendPair(l, "would", []byte("disconnect"))
	}
	l = appendPair(l, "src", s.source())
	l = appendPair(l, "rule", []byte(b.Rule))
	l = appendPair(l, "phase", []byte("connect"))
	l = appendPair(l, "banned-until", b.Until.AppendFormat(nil, time.RFC3339))
	l = appendPair(l, "session", appendHex(nil, s.ID))
	t.line = l
	t.options.Log(l)
}

// logWord is the first word of a log line.
type logWord uint8

const (
	logFinding logWord = iota
	logVerdict
	logTag
	logBan
	logBanned
)

// logWords are the words for lines that were not logged one by one, and the key
// of what they are about.
var logWords = [...]struct{ word, key string }{
	logFinding: {"findings", "evidence"},
	logVerdict: {"verdicts", "rule"},
	logTag:     {"tags", "tag"},
	logBan:     {"bans", "rule"},
	logBanned:  {"returns", "rule"},
}

// An aggregator keeps one source from filling the log: of lines that say the
// same about the same source, the first is logged, and the rest of the window
// is counted and logged once at its end.
type aggregator struct {
	lines map[uint64]logCount // by the hash of their keys
	seed  maphash.Seed
	order []window // in the order in which they end
	first int      // in order
}

type logKey struct {
	src  uint64
	word logWord
	what string // token, rule or tag: none of them comes from the network
}

// hash takes a third of the time that a map of keys with strings in them does.
func (k *logKey) hash(seed maphash.Seed) uint64 {
	return maphash.String(seed, k.what) ^ (k.src*0x9e3779b97f4a7c15 + uint64(k.word))
}

// window is how long a line is only counted. That it has ended is asked with
// every event, and must not cost a look at the map.
type window struct {
	key   logKey
	until int64
}

type logCount struct {
	more uint32
	addr netip.Addr
}

const (
	logWindow = 10 * time.Minute
	maxLogged = 20_000 // lines whose repetition is noticed
)

// tell decides whether to log a line about s now.
func (t *Table) tell(s *Session, word logWord, what string, at int64) bool {
	q := &t.quiet
	k := logKey{word: word, what: what}
	if s.Src.IsValid() {
		k.src = memory.Number(s.Src.Addr())
	}
	if q.lines == nil {
		q.lines, q.seed = make(map[uint64]logCount), maphash.MakeSeed()
	}
	h := k.hash(q.seed)
	if c, ok := q.lines[h]; ok {
		c.more++
		q.lines[h] = c
		return false
	}
	if len(q.lines) < maxLogged {
		q.lines[h] = logCount{addr: s.Src.Addr()}
		q.order = append(q.order, window{k, at + logWindow.Microseconds()})
	}
	// Findings from everywhere must not hide what was done about them.
	l := &t.limit
	if word != logFinding && word != logTag {
		l = &t.limitActs
	}
	if !l.allow(at) {
		return false
	}
	t.logUnlogged()
	return true
}

// tellAgain logs what was counted in windows that are over by now, or in all.
func (t *Table) tellAgain(now int64, all bool) {
	q := &t.quiet
	for q.first < len(q.order) {
		w := &q.order[q.first]
		if !all && w.until > now && w.until <= now+2*logWindow.Microseconds() { // or the clock was set back by more than jitter
			break
		}
		k, h := w.key, w.key.hash(q.seed)
		c := q.lines[h]
		q.first++
		delete(q.lines, h)
		if c.more > 0 {
			t.logAgain(k, c)
		}
	}
	if q.first == len(q.order) || q.first > maxLogged {
		q.order = append(q.order[:0], q.order[q.first:]...)
		q.first = 0
	}
}

func (t *Table) logAgain(k logKey, c logCount) {
	w := logWords[k.word]
	l := append(t.line[:0], w.word...)
	src := []byte("local")
	if c.addr.IsValid() {
		src = c.addr.AppendTo(nil)
	}
	l = appendPair(l, w.key, []byte(k.what))
	l = appendPair(l, "src", src)
	l = appendPair(l, "more", strconv.AppendUint(nil, uint64(c.more), 10))
	t.line = appendPair(l, "within", []byte("10m"))
	t.options.Log(t.line)
}

// logUnlogged tells how many lines were not logged since the last one.
func (t *Table) logUnlogged() {
	for _, of := range [...]struct {
		word  string
		limit *limiter
	}{{"findings", &t.limit}, {"verdicts", &t.limitActs}} {
		if of.limit.dropped > 0 {
			t.line = appendPair(append(t.line[:0], of.word...), "unlogged", strconv.AppendUint(nil, of.limit.dropped, 10))
			of.limit.dropped = 0
			t.options.Log(t.line)
		}
	}
}

// appendPair appends ` key=value`. A value of harmless characters stands as it
// is; any other is quoted as Go quotes, in ASCII, so that no client can begin a
// line, forge a key or send an escape sequence to a terminal.
func appendPair(dst []byte, key string, value []byte) []byte {
	dst = append(append(append(dst, ' '), key...), '=')
	value = cut(value, maxValue)
	if plain(value) {
		return append(dst, value...)
	}
	return strconv.AppendQuoteToASCII(dst, string(value))
}

// plain tells whether value needs no quotes: not empty, and only letters,
// digits and a few signs that mean nothing to shells, logs and terminals.
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
