package memory

import (
	"slices"
	"sync/atomic"
	"time"

	"scanwatch/internal/kv"
)

const (
	clockJump  = 48 * time.Hour      // a larger step back is the change of a wrong clock
	clockPause = 31 * 24 * time.Hour // a larger step forward is the change of a wrong clock
	clockDoubt = 24 * time.Hour      // time after the latest step in which steps can be undone
	clockEvery = 10 * time.Minute    // interval of writing the row
)

const (
	clockBucket = "clock"
	clockKey    = "time"
	clockSize   = 3 * 8
	clockPoints = 4
)

// A clock converts the time of events to the time of the rows. The system clock can be
// wrong for a while: a machine without a battery boots in 1970 or in another year.
// While the clock is wrong, bans and standing must not expire, and bans must keep their
// length.
//
// A step of the system clock of more than clockJump back, or more than clockPause
// forward, does not change the time of the rows. The clock adds the step to the offset,
// and later subtracts the opposite step.
//
// A smaller step forward may be time that has really passed, for example if the machine
// was off for a week. The time of the rows then steps forward too. If the system clock
// steps back to the earlier time within clockDoubt, the time of the rows also returns.
// During clockDoubt, no row is deleted because of its age.
//
// Until Follow is called or a row of the clock is loaded, the times of events and rows
// are equal. Replayed sessions have gaps, which are not steps. All fields except offset
// require the lock.
type clock struct {
	offset atomic.Int64 // time of events minus time of the rows, in microseconds

	follows bool
	former  int64     // offset before its latest change
	last    int64     // time of the latest event; 0 before the first event
	seen    time.Time // monotonic time of the latest event
	// points contains the state before each step that can be undone, oldest first.
	// stepped is the monotonic time of the latest step.
	points  []clockPoint
	stepped time.Time
	settle  bool // some bans may begin in the future: see ban.settle

	adopted bool // the row of the clock was loaded, or does not exist
	written int64
	dirty   bool

	monotonic func() time.Time // time.Now, except in tests
}

// A clockPoint contains the time of the rows and the offset at one monotonic time.
type clockPoint struct {
	own, offset int64
	at          time.Time
}

// row returns the time of the rows for a time of events.
func (c *clock) row(event int64) uint32 { return seconds(event - c.offset.Load()) }

// event converts a time of the rows to the time of events.
func (c *clock) event(row uint32) time.Time {
	return time.UnixMicro(int64(row)*1e6 + c.offset.Load()).UTC()
}

// day converts a day of the rows to the nearest day of events, in UTC.
func (c *clock) day(row uint16) time.Time {
	return dayTime(dayOf(uint32(max(int64(row)*daySeconds+c.offset.Load()/1e6+daySeconds/2, 0))))
}

// expected returns the time of events at the monotonic time now. The system clock is
// assumed not to have stepped since the latest event.
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

// jumped handles an event after a step of the system clock. The time of the event
// differs much from the expected time.
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
	case near(event, own): // without an offset, the time is as expected, so the clock is correct again
		c.step(0)
		return
	case near(event-c.former, own):
		c.step(c.former)
		return
	case step < 0 || step > clockPause.Microseconds():
		c.step(event - own)
	}
	if len(c.points) == clockPoints {
		c.points = slices.Delete(c.points, 1, 2) // keep the first point, which is from before all steps
	}
	c.points, c.stepped, c.dirty = append(c.points, clockPoint{own, offset, now}), now, true
}

func near(a, b int64) bool { return max(a-b, b-a) <= clockJump.Microseconds() }

func (c *clock) step(offset int64) {
	c.former, c.dirty = c.offset.Load(), true
	c.offset.Store(offset)
}

// past returns the latest time that has certainly passed, even if steps are undone.
// past never returns a time after at.
func (c *clock) past(at uint32) uint32 {
	for _, p := range c.points {
		at = min(at, seconds(p.own))
	}
	return at
}

// Follow lets Tick advance the clock of the rows. Events must then be in the order of
// their times.
func (m *Memory) Follow() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock.follows = true
}

// Tick sets the time of the latest event, if Follow was called. Tick must be called at
// least once per second of event time, before other methods.
func (m *Memory) Tick(event int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.clock.follows {
		m.clock.advance(event)
	}
}

// Now returns the current time on the clock of the events. Before the first event, Now
// returns fallback.
func (m *Memory) Now(fallback int64) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := &m.clock; c.follows && c.last != 0 {
		return c.expected(c.monotonic())
	}
	return fallback
}

// clockRows implements the bucket that contains the clock.
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
	s := stored{own: own, offset: offset, former: c.former, points: c.points} // includes the points, because steps can be undone after a restart
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

// A stored is the decoded row of the clock. The row contains the time of the rows, the
// offset, the former offset, and the points without their monotonic times.
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
		const most = 1e6 << 32 // range of valid times in rows
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

// adopt continues the clock of an earlier process, and requires the lock. The times of
// rows that this process has already added are converted.
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

// rest returns the remaining seconds of a window. After the end of the window, rest
// returns a negative number. A window that begins in the future has ended, because the
// clock was wrong at its beginning.
func rest(since, window, now uint32) int64 {
	if future(since, now) {
		return -1
	}
	return int64(since) + int64(window) - int64(now)
}

func future(since, now uint32) bool { return int64(since) > int64(now)+int64(clockJump/time.Second) }

// settle corrects a ban that begins in the future, because the clock was wrong. The
// corrected ban begins now and has the same length. settle reports whether the ban has
// changed.
func (b *ban) settle(at uint32) bool {
	if !future(b.since, at) {
		return false
	}
	b.until, b.since, b.last = at+(b.until-b.since), at, min(b.last, at)
	return true
}

// settleBans corrects all bans after the time of the rows was set back.
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

// A Reader decodes rows for programs that only read the file. The row of the clock must
// come first, because the times in other rows depend on it.
type Reader struct {
	clock clock
	now   int64
}

// NewReader returns a Reader that ignores rows that have expired at the time now.
func NewReader(now time.Time) *Reader {
	return &Reader{clock: clock{monotonic: func() time.Time { return now }}, now: now.UnixMicro()}
}

// Clock decodes the row of the clock. Clock returns false for any other row.
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

// ValidBan reports whether a row of the bucket bans can be decoded. The row may contain
// only an offence, for which Ban returns false.
func ValidBan(key, value []byte) bool {
	_, _, ok := new(ruleNames).read(key, value)
	return ok
}

// Ban decodes a row of the bucket bans. Ban returns false for an invalid row, and for a
// row without a ban.
func (r *Reader) Ban(key, value []byte) (Ban, bool) {
	var names ruleNames
	p, row, ok := names.read(key, value)
	if !ok {
		return Ban{}, false
	}
	row.settle(r.clock.row(r.now))
	return names.export(&r.clock, p, row), row.banned()
}

// Lost decodes the row of the bucket peers that contains the day of the latest loss:
// see Peers.Forgotten. ok is false for any other row, and if no rows were lost.
func (r *Reader) Lost(e kv.Entry) (lost time.Time, ok bool) {
	var day, at uint16
	if e.Bucket != peersBucket || string(e.Key) != forgottenKey || len(e.Value) != 4 {
		return lost, false
	}
	read(e.Value, &day, &at)
	return r.clock.day(at), at != 0
}

// Peer decodes a row of the bucket peers. Peer returns false if the row does not
// describe a host. A host without recent mail and a recent login is also ignored.
func (r *Reader) Peer(key, value []byte) (Peer, bool) {
	k, p, ok := readPeer(key, value)
	if !ok {
		return Peer{}, false
	}
	return p.export(&r.clock, k, r.clock.row(r.now))
}
