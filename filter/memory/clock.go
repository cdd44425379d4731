package memory

import (
	"slices"
	"sync/atomic"
	"time"

	"scanwatch/internal/kv"
)

const (
	clockJump  = 48 * time.Hour      // a larger step back is not time that has passed
	clockPause = 31 * 24 * time.Hour // neither is a larger step forward
	clockDoubt = 24 * time.Hour      // after the latest step, in which steps can be undone
	clockEvery = 10 * time.Minute    // between two writes of the row
)

const (
	clockBucket = "clock"
	clockKey    = "time"
	clockSize   = 3 * 8
	clockPoints = 4
)

// A clock converts the time of events to the time of the rows. The clock of the system
// can be wrong for a while: a machine without a battery boots in 1970 or in another
// year. Bans and standing must survive that, and bans must keep their length.
//
// The time of the rows continues when the time of events steps back by more than
// clockJump, or forward by more than clockPause: the step becomes part of the offset,
// and the opposite step removes it. A smaller step forward may be real, such as a
// machine that was off for a week. It counts, but if the clock returns within
// clockDoubt of the latest step, so does the time of the rows. Until then no row is
// deleted for its age.
//
// Without Follow the two times are equal, unless a row of the clock is loaded: records
// that are played have gaps. Except for offset, the fields need the lock.
type clock struct {
	offset atomic.Int64 // time of events less time of rows, in microseconds

	follows bool
	former  int64     // the offset before the latest step that changed it
	last    int64     // time of the latest event; 0 before the first
	seen    time.Time // when that was, on the monotonic clock
	// The state before each step that may be undone, oldest first, and the latest step.
	points  []clockPoint
	stepped time.Time
	settle  bool // bans may begin in the future: see ban.settle

	adopted bool // a row was loaded, or there is none
	written int64
	dirty   bool

	monotonic func() time.Time // time.Now, except in tests
}

// A clockPoint is the time of the rows and the offset at a time of the monotonic clock.
type clockPoint struct {
	own, offset int64
	at          time.Time
}

// row returns the time of the rows at an event.
func (c *clock) row(event int64) uint32 { return seconds(event - c.offset.Load()) }

// event returns the time of events for a time of the rows.
func (c *clock) event(row uint32) time.Time {
	return time.UnixMicro(int64(row)*1e6 + c.offset.Load()).UTC()
}

// day returns the day of events, in UTC, that is closest to a day of the rows.
func (c *clock) day(row uint16) time.Time {
	return dayTime(dayOf(uint32(max(int64(row)*daySeconds+c.offset.Load()/1e6+daySeconds/2, 0))))
}

// expected returns the time of events by the monotonic clock.
func (c *clock) expected(now time.Time) int64 {
	return c.last + max(now.Sub(c.seen).Microseconds(), 0)
}

// advance sets the time of the latest event.
func (c *clock) advance(event int64) {
	now, jump := c.monotonic(), clockJump.Microseconds()
	if c.last == 0 {
		c.last, c.seen = event, now
		return
	}
	expected := c.expected(now)
	if len(c.points) > 0 && now.Sub(c.stepped) >= clockDoubt {
		c.points = c.points[:0]
	}
	if step := event - expected; step < -jump || step > jump {
		c.jumped(event, expected, now)
	}
	c.last, c.seen = event, now
}

// jumped takes a step of the clock from the expected time of events.
func (c *clock) jumped(event, expected int64, now time.Time) {
	offset := c.offset.Load()
	own := expected - offset
	for i, p := range slices.Backward(c.points) {
		if near(event-p.offset, p.own+now.Sub(p.at).Microseconds()) {
			c.step(p.offset)
			c.points, c.settle = c.points[:i], true
			return
		}
	}
	switch step := event - expected; {
	case near(event, own): // the clock is right again
		c.step(0)
		return
	case near(event-c.former, own):
		c.step(c.former)
		return
	case step < 0 || step > clockPause.Microseconds():
		c.step(event - own)
	}
	if len(c.points) == clockPoints {
		c.points = slices.Delete(c.points, 1, 2) // the first is before all steps
	}
	c.points, c.stepped, c.dirty = append(c.points, clockPoint{own, offset, now}), now, true
}

func near(a, b int64) bool { return max(a-b, b-a) <= clockJump.Microseconds() }

func (c *clock) step(offset int64) {
	c.former, c.dirty = c.offset.Load(), true
	c.offset.Store(offset)
}

// past returns a time that has certainly been reached, at most at.
func (c *clock) past(at uint32) uint32 {
	for _, p := range c.points {
		at = min(at, seconds(p.own))
	}
	return at
}

// Follow makes the time of the rows follow Tick, for events in the order of their times.
func (m *Memory) Follow() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock.follows = true
}

// Tick sets the time of the latest event, if the memory follows it. It must be called
// at least once a second of that time before other methods.
func (m *Memory) Tick(event int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.clock.follows {
		m.clock.advance(event)
	}
}

// Now returns the current time by the clock of the events, or fallback before the first
// event.
func (m *Memory) Now(fallback int64) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := &m.clock; c.follows && c.last != 0 {
		return c.expected(c.monotonic())
	}
	return fallback
}

// clockRows is the bucket of the clock.
type clockRows struct{ *Memory }

func (clockRows) bucketName() string { return clockBucket }

func (clockRows) status() Status { return Status{} }

func (r clockRows) rewrite() { r.clock.dirty = true }

func (clockRows) shift(int64) {}

func (r clockRows) changes(n int, put func(key, value []byte)) (left int) {
	c := &r.clock
	if n == 0 || c.last == 0 {
		return n
	}
	offset := c.offset.Load()
	own := c.expected(c.monotonic()) - offset
	if !c.dirty && own-c.written < clockEvery.Microseconds() {
		return n
	}
	c.dirty, c.written = false, own
	s := stored{own: own, offset: offset, former: c.former, points: c.points} // steps may be undone after a restart
	put([]byte(clockKey), s.value())
	return n - 1
}

func (r clockRows) restore(key, value []byte, _ uint32) bool {
	s, ok := readClock(key, value)
	if ok {
		r.adopt(s)
	}
	return ok
}

// stored is a row of the clock: the time of the rows, the offset, the offset before, and
// points without their times.
type stored struct {
	own, offset, former int64
	points              []clockPoint
}

func (s *stored) value() (b []byte) {
	for _, n := range [...]int64{s.own, s.offset, s.former} {
		b = be.AppendUint64(b, uint64(n))
	}
	for _, p := range s.points {
		b = be.AppendUint64(be.AppendUint64(b, uint64(p.own)), uint64(p.offset))
	}
	return b
}

func readClock(key, value []byte) (s stored, ok bool) {
	more := len(value) - clockSize
	if string(key) != clockKey || more < 0 || more%16 != 0 || more > 16*clockPoints {
		return s, false
	}
	s.points = make([]clockPoint, more/16)
	fields := []*int64{&s.own, &s.offset, &s.former}
	for i := range s.points {
		fields = append(fields, &s.points[i].own, &s.points[i].offset)
	}
	for i, n := range fields {
		*n = int64(be.Uint64(value[8*i:]))
		const most = 1e6 << 32 // the range of times in rows
		if *n <= -most || *n >= most {
			return s, false
		}
	}
	negative := func(p clockPoint) bool { return p.own < 0 }
	return s, s.own > 0 && s.own+s.offset > 0 && !slices.ContainsFunc(s.points, negative)
}

// resume continues the clock of an earlier process.
func (c *clock) resume(s stored) {
	c.last, c.seen, c.former = s.own+s.offset, c.monotonic(), s.former
	c.offset.Store(s.offset)
	c.points, c.stepped = s.points, c.seen
	for i := range c.points {
		c.points[i].at = c.seen
	}
}

// adopt continues the clock of an earlier process. Rows that were added before are
// converted to its time of the rows. It needs the lock.
func (m *Memory) adopt(s stored) {
	c := &m.clock
	event, before := c.last, c.offset.Load()
	c.resume(s)
	c.adopted, c.settle, c.written = true, true, s.own
	if event == 0 {
		return
	}
	c.advance(event)
	if by := before - c.offset.Load(); by != 0 {
		for _, b := range m.buckets {
			b.shift(by / 1e6)
		}
	}
}

func shiftTime(t *uint32, by int64) {
	if *t != 0 {
		*t = uint32(max(int64(*t)+by, 1))
	}
}

func shiftDay(t *uint16, by int64) {
	if *t != 0 {
		*t = uint16(max(int64(*t)+(by+daySeconds/2)/daySeconds, 1))
	}
}

// rest returns the remaining part of a window, below 0 after its end. A window that
// begins in the future began while the clock was wrong, and has ended.
func rest(since, window, now uint32) int64 {
	if future(since, now) {
		return -1
	}
	return int64(since) + int64(window) - int64(now)
}

func future(since, now uint32) bool { return int64(since) > int64(now)+int64(clockJump/time.Second) }

// settle corrects a ban that begins in the future, because the clock was wrong when it
// was made: it keeps its length. It reports whether the ban has changed.
func (b *ban) settle(at uint32) bool {
	if !future(b.since, at) {
		return false
	}
	b.until, b.since, b.last = at+(b.until-b.since), at, min(b.last, at)
	return true
}

// settleBans corrects all bans after the time of the rows has gone back.
func (m *Memory) settleBans() {
	now, due := m.settling()
	if due {
		m.Bans.settle(now)
	}
}

func (m *Memory) settling() (now uint32, due bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &m.clock
	due = c.settle && c.last != 0
	c.settle = c.settle && !due
	return c.row(c.expected(c.monotonic())), due
}

// A Reader decodes rows of the file for readers at a time. Rows of the bucket clock must
// come first: the times of other rows depend on it.
type Reader struct {
	clock clock
	now   int64
}

// NewReader returns a Reader.
func NewReader(now time.Time) *Reader {
	return &Reader{clock: clock{monotonic: func() time.Time { return now }}, now: now.UnixMicro()}
}

// Clock takes the row of the clock, and reports whether e is one.
func (r *Reader) Clock(e kv.Entry) bool {
	if e.Bucket != clockBucket {
		return false
	}
	if s, ok := readClock(e.Key, e.Value); ok {
		r.clock.resume(s)
		r.clock.advance(r.now)
	}
	return true
}

// Ban decodes a row of the bucket bans.
func (r *Reader) Ban(key, value []byte) (Ban, bool) {
	var names ruleNames
	p, row, ok := names.read(key, value)
	if !ok {
		return Ban{}, false
	}
	row.settle(r.clock.row(r.now))
	return names.export(&r.clock, p, row), row.banned()
}

// Peer decodes a row of the bucket peers. It returns false for a row without a host,
// recent mail or a recent login.
func (r *Reader) Peer(key, value []byte) (Peer, bool) {
	k, p, ok := readPeer(key, value)
	if !ok {
		return Peer{}, false
	}
	return p.export(&r.clock, k, r.clock.row(r.now))
}
