package serverlog

import (
	"cmp"
	"hash/fnv"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"scanwatch/internal/smtp"
)

// maxOpen is the maximum number of sessions that have not been played. If there are
// more, the session that has been idle the longest is played.
const maxOpen = 20_000

// maxHeld limits the size of the sessions that have not been played, in bytes.
const maxHeld = 128 << 20

// maxFree is the maximum number of unused sessions kept for reuse.
const maxFree = 1000

// A table holds the sessions that have not been played.
type table struct {
	kind *Kind
	zone *time.Location // of times without a UTC offset
	date time.Time      // of the first line
	// prompt is set if sessions do not wait for their messages.
	prompt bool
	play   player
	rows   map[string]*session
	first  *session // without a line for the longest time
	last   *session
	free   []*session
	now    int64 // newest time in the log
	clock  func() time.Time

	serial uint64            // of the latest session
	seen   map[uint64]uint64 // recent identifiers, each with the next one to try

	held     int // bytes of the sessions that have not been played
	maxHeld  int
	sessions int // played
	lost     int // played because there were too many
	// ready, if set, adds the last steps to a session before it is played.
	ready func(*session)
}

func newTable(kind *Kind, sink Sink) *table {
	return &table{kind: kind, clock: time.Now, maxHeld: maxHeld, play: player{sink: sink}, rows: make(map[string]*session), seen: make(map[uint64]uint64)}
}

// Steps of the log's clock. Smaller steps back occur when processes write at the same time.
const (
	ahead    = 5 * minute   // of the host's clock: the line's time is wrong
	backward = minute       // the clock was set back, such as at the end of summer time
	restart  = 120 * minute // an earlier line had a wrong time, or another file follows
)

// tick records the time of a line, plays the sessions that are idle, and returns the
// time to use for the line. One line with a wrong time must not end the sessions of the
// following lines, so the time of a session never goes back by more than a minute.
func (t *table) tick(at int64) int64 {
	switch {
	case at-t.clock().UnixMicro() > ahead:
		at = cmp.Or(t.now, t.clock().UnixMicro())
	case t.now-at > restart:
		t.flush()
		t.now = at
	case t.now-at > backward:
		at = t.now
	}
	t.now = max(t.now, at)
	for s := t.first; s != nil && t.now-s.last > t.kind.idle; s = t.first {
		t.finish(s)
	}
	for t.held > t.maxHeld && t.first != nil {
		t.lost++
		t.finish(t.first)
	}
	return at
}

// open starts a session. Any open session with the same key must have ended unnoticed.
func (t *table) open(key []byte, at int64, server []byte, src netip.AddrPort) *session {
	if s := t.rows[string(key)]; s != nil {
		t.finish(s)
	}
	if len(t.rows) >= maxOpen {
		t.lost++
		t.finish(t.first)
	}
	s := t.unused()
	s.key, s.start, s.last, s.src = string(key), at, at, src
	if string(server) != s.server {
		s.server = string(server)
	}
	t.serial++
	s.serial, s.held = t.serial, &t.held
	t.rows[s.key] = s
	t.push(s)
	return s
}

// unused returns an empty session.
func (t *table) unused() *session {
	n := len(t.free)
	if n == 0 {
		return &session{steps: make([]step, 0, 8)}
	}
	s := t.free[n-1]
	t.free = t.free[:n-1]
	*s = session{steps: s.steps[:0], text: s.text[:0], helo: s.helo[:0], sender: s.sender[:0], server: s.server}
	return s
}

// newID returns the identifier of a session, which remains the same if the log is read
// again.
func (t *table) newID(s *session) uint64 {
	h := fnv.New64a()
	for _, part := range [...]string{t.kind.Name, s.server, s.name, strconv.FormatInt(s.start, 10), s.src.String()} {
		_, _ = h.Write([]byte(part))
		_, _ = h.Write([]byte{0})
	}
	if len(t.seen) > maxOpen {
		clear(t.seen)
	}
	hash := h.Sum64()
	id := hash
	for id == 0 || t.seen[id] != 0 {
		id = cmp.Or(t.seen[id], id+1)
	}
	t.seen[id], t.seen[hash] = id+1, id+1
	return id
}

// shift changes the times of all sessions, after the date of the log has become known.
func (t *table) shift(by int64) {
	t.now += by
	for s := t.first; s != nil; s = s.next {
		s.start, s.last = s.start+by, s.last+by
		for i := range s.steps {
			s.steps[i].at += by
		}
	}
}

// get returns an open session, and records the time of its latest line.
func (t *table) get(key []byte, at int64) *session {
	s := t.rows[string(key)]
	if s != nil {
		t.touch(s, at)
	}
	return s
}

func (t *table) touch(s *session, at int64) {
	s.last = max(s.last, at)
	if s != t.last {
		t.remove(s)
		t.push(s)
	}
}

// end records how a session ended. The session is played once none of its messages are
// waiting.
func (t *table) end(s *session, at int64, how smtp.Ending) {
	s.last, s.ending, s.ended = max(s.last, at), how, true
	if s.waiting == 0 {
		t.finish(s)
	} else { // the key is free for the next session
		delete(t.rows, s.key)
		if s.name == "" {
			s.name = s.key
		}
		s.key = "ended " + strconv.FormatUint(s.serial, 16)
		t.rows[s.key] = s
	}
}

// finish plays a session and removes it.
func (t *table) finish(s *session) {
	switch {
	case s.ended || s.ending != smtp.EndingUnknown:
	case s.talk != nil && s.talk.quit:
		s.ending = smtp.EndingQuit
	default:
		s.ending = t.kind.quiet
	}
	delete(t.rows, s.key)
	t.remove(s)
	if t.ready != nil {
		t.ready(s)
	}
	t.held -= s.size
	if !s.src.IsValid() {
		s.serial = 0
		return // the log does not name the client
	}
	if s.name == "" {
		s.name = s.key
	}
	s.id = t.newID(s)
	if s.partial && s.ending != smtp.EndingUnknown {
		s.ending = smtp.EndingPartial
	}
	t.play.play(s)
	s.serial = 0
	t.sessions++
	if len(t.free) < maxFree && cap(s.text) <= 4096 && cap(s.steps) <= 64 {
		t.free = append(t.free, s)
	}
}

// flush plays all sessions.
func (t *table) flush() {
	for t.first != nil {
		t.finish(t.first)
	}
}

// forget removes a session without playing it.
func (t *table) forget(s *session) {
	delete(t.rows, s.key)
	t.remove(s)
	t.held -= s.size
	s.serial = 0
}

func (t *table) push(s *session) {
	s.prev, s.next = t.last, nil
	if t.last != nil {
		t.last.next = s
	} else {
		t.first = s
	}
	t.last = s
}

func (t *table) remove(s *session) {
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		t.first = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	} else {
		t.last = s.prev
	}
	s.prev, s.next = nil, nil
}

// address parses an address, which may have the prefix IPv6: (RFC 5321 section 4.1.3),
// and a port.
func address(addr, port []byte) netip.AddrPort {
	a, err := netip.ParseAddr(strings.TrimPrefix(string(addr), "IPv6:"))
	if err != nil {
		return netip.AddrPort{}
	}
	n, _ := strconv.ParseUint(string(port), 10, 16)
	return netip.AddrPortFrom(a.Unmap().WithZone(""), uint16(n))
}
