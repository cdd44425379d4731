package memory

import (
	"slices"
	"sync/atomic"
	"time"

	"scanwatch/internal/kv"
)

const (
	clockJump  = 48 * time.Hour      // a larger step back means that a wrong clock was changed
	clockPause = 31 * 24 * time.Hour // a larger step forward means that a wrong clock was changed
	clockDoubt = 24 * time.Hour      // time after the latest step during which steps can be undone
	clockEvery = 10 * time.Minute    // interval between writes of the row
)

const (
	clockBucket = "clock"
	clockKey    = "time"
	clockSize   = 3 * 8
	clockPoints = 4
)

// A clock converts event times to row times, which are the times used in rows. The
// system clock may be wrong for a while: without a battery, a machine may boot with its
// clock in 1970 or some other year. While the clock is wrong, bans and standing must
// not expire, and bans must keep their length.
//
// If the system clock steps back by more than clockJump, or forward by more than
// clockPause, the row time does not change. Instead, the step is added to the offset,
// and subtracted again when the system clock is corrected.
//
// A smaller step forward may reflect time that has actually passed, for example if the
// machine was off for a week. In this case, the row time also steps forward. If the
// system clock steps back within clockDoubt, so does the row time. Until clockDoubt has
// passed, rows do not expire.
//
// Until Follow is called or the clock's row is loaded, events and rows use the same
// time. Replayed sessions have gaps, which are not steps. All fields except offset
// require the lock.
type clock struct {
	offset atomic.Int64 // time of events minus time of rows, in microseconds

	follows bool
	former  int64     // offset before its latest change
	last    int64     // time of the latest event; 0 before the first event
	seen    time.Time // monotonic time of the latest event
	resumed bool      // last is the time at which an earlier process stopped
	// points holds the state before each step that can be undone, oldest first. stepped
	// is the monotonic time of the latest step.
	points  []clockPoint
	stepped time.Time
	settle  bool // some bans may begin in the future; see ban.settle

	adopted bool   // the clock's row has been loaded or does not exist
	saved   uint32 // row time at which that row was written; 0 if there is none
	written int64
	dirty   bool

	monotonic func() time.Time // time.Now, except in tests
}

// A clockPoint is the row time and the offset at a given monotonic time.
type clockPoint struct {
	own, offset int64
	at          time.Time
}

// row converts an event time to a row time.
func (c *clock) row(event int64) uint32 { return seconds(event - c.offset.Load()) }

// event converts a row time to an event time.
func (c *clock) event(row uint32) time.Time {
	return time.UnixMicro(int64(row)*1e6 + c.offset.Load()).UTC()
}

// day converts a day of the rows to the nearest UTC day of the events.
func (c *clock) day(row uint16) time.Time {
	return dayTime(dayOf(uint32(max(int64(row)*daySeconds+c.offset.Load()/1e6+daySeconds/2, 0))))
}

// expected returns the event time expected at the monotonic time now, assuming that the
// system clock has not stepped since the latest event.
func (c *clock) expected(now time.Time) int64 {
	return c.last + max(now.Sub(c.seen).Microseconds(), 0)
}

// advance sets the time of the latest event.
func (c *clock) advance(event int64) {
	now, jump := c.monotonic(), clockJump.Microseconds()
	c.resumed = false
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

// jumped handles an event whose time differs greatly from the expected time, because
// the system clock has stepped.
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
		c.points = slices.Delete(c.points, 1, 2) // keep the first point, which predates all steps
	}
	c.points, c.stepped, c.dirty = append(c.points, clockPoint{own, offset, now}), now, true
}

func near(a, b int64) bool { return max(a-b, b-a) <= clockJump.Microseconds() }

func (c *clock) step(offset int64) {
	c.former, c.dirty = c.offset.Load(), true
	c.offset.Store(offset)
}

// past returns the latest time that has certainly passed, even if steps of the clock
// are undone later. The result is never later than at.
func (c *clock) past(at uint32) uint32 {
	for _, p := range c.points {
		at = min(at, seconds(p.own))
	}
	return at
}

// Follow lets Tick advance the rows' clock. After Follow, events must be in
// chronological order.
func (m *Memory) Follow() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock.follows = true
}

// Tick sets the time of the latest event if Follow has been called. Tick must be called
// at least once per second of event time, before other methods.
func (m *Memory) Tick(event int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.clock.follows {
		m.clock.advance(event)
	}
}

// Now returns the current time on the events' clock, or fallback before the first
// event. A clock loaded from disk does not account for the time during which the filter
// was stopped. If there has been no event since the clock was loaded, Now therefore
// treats fallback as the time of an event.
func (m *Memory) Now(fallback int64) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &m.clock
	if !c.follows || c.last == 0 {
		return fallback
	}
	if c.resumed {
		c.advance(fallback)
	}
	return c.expected(c.monotonic())
}

// clockRows implements the bucket that stores the clock.
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
	s := stored{own: own, offset: offset, former: c.former, points: c.points} // includes the points, because steps can still be undone after a restart
	put([]byte(clockKey), s.value())
	return n - 1
}

func (r clockRows) restore(key, value []byte, _ uint32) bool {
	s, ok := readClock(key, value)
	if ok {
		r.adopt(s)
		r.clock.saved = seconds(s.own)
	}
	return ok
}

// stored is the clock's decoded row: the row time, the offset, the former offset, and
// the points without their monotonic times.
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

// resume continues an earlier process's clock.
func (c *clock) resume(s stored) {
	c.last, c.seen, c.former, c.resumed = s.own+s.offset, c.monotonic(), s.former, true
	c.offset.Store(s.offset)
	c.points, c.stepped = s.points, c.seen
	for i := range c.points {
		c.points[i].at = c.seen
	}
}

// adopt continues an earlier process's clock, and converts the times in rows that this
// process has already added. It requires the lock.
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

// rest returns the remaining seconds of a window, or a negative number if the window
// has ended. A window that starts in the future counts as ended, because the clock was
// wrong when it started.
func rest(since, window, now uint32) int64 {
	if future(since, now) {
		return -1
	}
	return int64(since) + int64(window) - int64(now)
}

func future(since, now uint32) bool { return int64(since) > int64(now)+int64(clockJump/time.Second) }

// settle corrects a ban that starts in the future because the clock was wrong. The
// corrected ban starts now and keeps its length. settle reports whether the ban has
// changed.
func (b *ban) settle(at uint32) bool {
	if !future(b.since, at) {
		return false
	}
	b.until, b.since, b.last = at+(b.until-b.since), at, min(b.last, at)
	return true
}

// settleBans corrects bans that start in the future because the row time has been set
// back.
func settleBans(m *Memory) {
	now, due := settling(m)
	if due {
		m.Bans.settle(now)
	}
}

func settling(m *Memory) (now uint32, due bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &m.clock
	due = c.settle && c.last != 0
	c.settle = c.settle && !due
	return c.row(c.expected(c.monotonic())), due
}

// A Reader decodes rows for programs that only read the file. The clock's row must come
// first, because the times in other rows depend on it.
type Reader struct {
	clock clock
	now   int64
}

// NewReader returns a Reader that ignores rows that have expired by now.
func NewReader(now time.Time) *Reader {
	return &Reader{clock: clock{monotonic: func() time.Time { return now }}, now: now.UnixMicro()}
}

// Clock decodes the clock's row. Clock returns false for any other row.
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

// ValidBan reports whether a row of the bans bucket can be decoded. The row may hold
// only an offence, for which Ban returns false.
func ValidBan(key, value []byte) bool {
	_, _, ok := new(ruleNames).read(key, value)
	return ok
}

// Ban decodes a row of the bans bucket. Ban returns false if the row is invalid or does
// not hold a ban.
func (r *Reader) Ban(key, value []byte) (Ban, bool) {
	var names ruleNames
	p, row, ok := names.read(key, value)
	if !ok {
		return Ban{}, false
	}
	row.settle(r.clock.row(r.now))
	return names.export(&r.clock, p, row), row.banned()
}

// Lost decodes the row of the peers bucket that gives the day of the latest loss; see
// Peers.Forgotten. ok is false for any other row, and if no rows have been lost.
func (r *Reader) Lost(e kv.Entry) (lost time.Time, ok bool) {
	var day, at uint16
	if e.Bucket != peersBucket || string(e.Key) != forgottenKey || len(e.Value) != 4 {
		return lost, false
	}
	read(e.Value, &day, &at)
	return r.clock.day(at), at != 0
}

// Peer decodes a row from the peers bucket or from ElsewhereBucket. Peer returns false if the row is
// not about a host, or if the host has neither recent mail nor a recent login.
func (r *Reader) Peer(key, value []byte) (Peer, bool) {
	k, p, ok := readPeer(key[:min(len(key), peerKeySize)], value[:min(len(value), peerSize)])
	if !ok {
		return Peer{}, false
	}
	e, ok := p.export(&r.clock, k, r.clock.row(r.now))
	e.Origin = string(value[peerSize:])
	return e, ok
}
