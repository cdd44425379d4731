package serverlog

import (
	"cmp"
	"hash/fnv"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"scanwatch/internal/smtp"
)

// maxOpen is the maximum number of sessions in a table. If there are more, the session that has
// been idle for the longest time is reported early.
const maxOpen = 20_000

// maxHeld is the maximum size of all sessions in a table, in bytes.
const maxHeld = 128 << 20

// maxFree is the maximum number of unused sessions that are kept for reuse.
const maxFree = 1000

// A table holds the sessions that have not been reported yet.
type table struct {
	kind *Kind
	zone *time.Location // time zone of times that have no UTC offset
	date time.Time      // date of the first line
	// prompt reports whether sessions are reported before their messages are delivered.
	prompt bool
	play   player
	rows   map[string]*session
	first  *session // session that has been idle for the longest time
	last   *session
	free   []*session
	// waiting holds the ended sessions of each address that have not been reported yet, in order.
	waiting map[netip.Addr][]*session
	now     int64 // newest time in the log
	clock   func() time.Time

	serial uint64            // serial number of the latest session
	line   []byte            // line that is being read
	seen   map[uint64]uint64 // recent session ids; the value is the next id to try if the id is in use

	held     int // size of all sessions in the table, in bytes
	maxHeld  int
	sessions int // number of reported sessions
	lost     int // number of sessions that were reported early
	// ready, if set, adds the last steps to a session before it is reported.
	ready func(*session)
}

func newTable(kind *Kind, sink Sink) *table {
	return &table{kind: kind, clock: time.Now, maxHeld: maxHeld, play: player{sink: sink}, rows: make(map[string]*session), waiting: make(map[netip.Addr][]*session), seen: make(map[uint64]uint64)}
}

// Jumps in the times of a log. Jumps that are smaller than backward occur because several processes
// write at the same time.
const (
	ahead    = 5 * minute   // if a line is further ahead of the host's clock, its time is wrong
	backward = minute       // if a line is further back, the clock was set back, for example at the end of summer time
	restart  = 120 * minute // if a line is further back, an earlier line had a wrong time, or another file has started
)

// tick handles the time of a line. tick reports the sessions that have been idle too long, and
// returns the time to use for the line. The returned time never goes back by more than a minute, so
// that a single line with a wrong time cannot end all sessions.
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

// open starts a session. If a session with the same key is open, the log lacks its end.
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
	h := fnv.New64a()
	_, _ = h.Write(t.line)
	s.first = h.Sum64()
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
	*s = session{steps: s.steps[:0], text: s.text[:0], helo: s.helo[:0], sender: s.sender[:0], pending: s.pending[:0], server: s.server}
	return s
}

// newID returns the id of a session. The id is the same whenever the log is read. The first line
// distinguishes the two parts of a session that was open when scanwatch restarted, because both may
// begin in the same second.
func (t *table) newID(s *session) uint64 {
	h := fnv.New64a()
	for _, part := range [...]string{t.kind.Name, s.server, s.name, strconv.FormatInt(s.start, 10), s.src.String(), strconv.FormatUint(s.first, 16)} {
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

// shift moves the times of all sessions. shift is called when the date of the log becomes known.
func (t *table) shift(by int64) {
	t.now += by
	for s := t.first; s != nil; s = s.next {
		s.start, s.last = s.start+by, s.last+by
		for i := range s.steps {
			s.steps[i].at += by
		}
	}
}

// get returns the open session with the given key, or nil. get also stores the time of the
// session's latest line.
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

// end stores how a session has ended. The session is reported once no message of it, or of an earlier
// session of the same address, waits for its outcome. Otherwise, the missing members of a mailing list
// would be reported before the existing ones.
func (t *table) end(s *session, at int64, how smtp.Ending) {
	s.last, s.ending, s.ended = max(s.last, at), how, true
	a := s.src.Addr()
	if !a.IsValid() || len(s.pending) == 0 && len(t.waiting[a]) == 0 {
		t.finish(s)
		return
	}
	t.waiting[a], s.waits = append(t.waiting[a], s), a
	delete(t.rows, s.key) // the next session can use the key
	if s.name == "" {
		s.name = s.key
	}
	s.key = "ended " + strconv.FormatUint(s.serial, 16)
	t.rows[s.key] = s
}

// release reports the ended sessions of an address that no longer wait.
func (t *table) release(a netip.Addr) {
	for len(t.waiting[a]) > 0 && len(t.waiting[a][0].pending) == 0 {
		t.report(t.waiting[a][0])
	}
}

// finish reports a session and removes it, and then the sessions that have waited for it.
func (t *table) finish(s *session) {
	a := s.waits
	t.report(s)
	t.release(a)
}

// stopWaiting removes a session from the sessions that wait.
func (t *table) stopWaiting(s *session) {
	if !s.waits.IsValid() {
		return
	}
	all := slices.DeleteFunc(t.waiting[s.waits], func(other *session) bool { return other == s })
	if t.waiting[s.waits] = all; len(all) == 0 {
		delete(t.waiting, s.waits)
	}
	s.waits = netip.Addr{}
}

func (t *table) report(s *session) {
	t.stopWaiting(s)
	switch {
	case s.ended || s.ending != smtp.EndingUnknown:
	case s.talk != nil && s.talk.quit:
		s.ending = smtp.EndingQuit
	default:
		s.ending = t.kind.quiet
	}
	delete(t.rows, s.key)
	t.remove(s)
	for _, one := range s.pending {
		one.report(one.known)
	}
	if t.ready != nil {
		t.ready(s)
	}
	t.held -= s.size
	if !s.src.IsValid() {
		s.serial = 0
		return // the log does not contain the client's address
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

// flush reports all sessions.
func (t *table) flush() {
	for t.first != nil {
		t.finish(t.first)
	}
}

// forget removes a session without reporting it.
func (t *table) forget(s *session) {
	t.stopWaiting(s)
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

// address parses an address and a port. The address may have the prefix "IPv6:" (RFC 5321 section
// 4.1.3).
func address(addr, port []byte) netip.AddrPort {
	a, err := netip.ParseAddr(strings.TrimPrefix(string(addr), "IPv6:"))
	if err != nil {
		return netip.AddrPort{}
	}
	n, _ := strconv.ParseUint(string(port), 10, 16)
	return netip.AddrPortFrom(a.Unmap().WithZone(""), uint16(n))
}
