package store

import (
	"encoding/binary"
	"os"
	"strings"
	"time"

	"go.etcd.io/bbolt"
)

const (
	clockJump  = 48 * time.Hour // if the clock jumps forward or back by more than this, it is not trusted
	clockDoubt = 24 * time.Hour // a clock that has jumped is trusted again after this time
	clockEvery = time.Hour      // minimum time between two writes of the file
	clockFile  = "clock"        // in the directory of sessions: the last trusted time
)

// A clock determines the trusted time. The system clock can be temporarily wrong: a
// machine without a battery may start in 1970 and correct its clock later. A wrong clock
// must not cause expiry or sealing. A clock that has jumped by more than clockJump is
// therefore trusted only after clockDoubt on the monotonic clock.
//
// A file stores the last trusted time. The newest segment's date cannot replace this file, because
// a session that ends while the clock is wrong is recorded in a segment with the wrong date.
type clock struct {
	now func() time.Time

	believed time.Time // the last trusted time; zero before the first call of read
	latest   time.Time // the system clock at the latest call of read
	seen     time.Time // the monotonic clock at that call
	doubted  time.Time // when the latest jump was noticed; zero if the clock is trusted
	written  time.Time // the time in the file
}

// read returns a time that has certainly been reached. If the clock is trusted, read returns the
// current time. Otherwise, the result is not later than the last trusted time. all lists the
// segments in d.
func (c *clock) read(d *directory, all []Segment) time.Time {
	now := c.now()
	if c.believed.IsZero() {
		c.believed = lastTrusted(d, all, now)
	}
	jumped := now.Sub(c.believed).Abs() > clockJump
	again := (now.Sub(c.latest) - time.Since(c.seen)).Abs() > clockJump
	c.latest, c.seen = now, time.Now()
	switch {
	case jumped && again:
		c.doubted = time.Now()
	case !jumped, !c.doubted.IsZero() && time.Since(c.doubted) >= clockDoubt:
		c.believed, c.doubted = now, time.Time{}
	case c.doubted.IsZero():
		c.doubted = time.Now()
	}
	if c.doubted.IsZero() && now.Sub(c.written).Abs() >= clockEvery && c.write(d, now) == nil {
		c.written = now
	}
	if now.Before(c.believed) {
		return now
	}
	return c.believed
}

func (c *clock) write(d *directory, now time.Time) error {
	f, err := d.create(clockFile + newSuffix)
	if err != nil {
		return err
	}
	_, err = f.WriteString(now.UTC().Format(time.RFC3339) + "\n")
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		_ = d.remove(clockFile + newSuffix)
		return err
	}
	return d.rename(clockFile+newSuffix, clockFile) // an old or empty file does no harm
}

// lastTrusted returns the time stored in the file. If the file is missing, lastTrusted returns the
// end of the newest segment's day, but at most now.
func lastTrusted(d *directory, all []Segment, now time.Time) time.Time {
	if f, err := d.open(clockFile, os.O_RDONLY); err == nil {
		defer f.Close()
		b := make([]byte, 64)
		n, _ := f.Read(b)
		if at, err := time.Parse(time.RFC3339, strings.TrimSpace(string(b[:n]))); err == nil {
			return at
		}
	}
	at := now
	for _, s := range all { // oldest first
		if now.After(s.Day) {
			at = s.Day.Add(24 * time.Hour)
		}
	}
	if at.After(now) {
		return now
	}
	return at
}

// doubt returns the last trusted time if the clock is not trusted, or the zero
// time if it is.
func (c *clock) doubt() time.Time {
	if c.doubted.IsZero() {
		return time.Time{}
	}
	return c.believed
}

// markDoubt stores the last trusted time in a new segment.
func (s *segment) markDoubt(at time.Time) error {
	return s.update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketMeta).Put(keyDoubt, binary.BigEndian.AppendUint64(nil, uint64(at.UnixMicro())))
	})
}

// createdInDoubt returns the trusted time stored by markDoubt, or the zero
// time.
func createdInDoubt(d *directory, s *Segment) (at time.Time, err error) {
	f, err := d.open(s.Name, os.O_RDONLY)
	if err != nil {
		return at, err
	}
	db, err := openReadOnly(f)
	if err != nil {
		return at, err
	}
	seg := segment{db: db, file: f}
	err = seg.view(func(tx *bbolt.Tx) error {
		if b := tx.Bucket(bucketMeta); b != nil {
			if v := b.Get(keyDoubt); len(v) == 8 {
				at = time.UnixMicro(int64(binary.BigEndian.Uint64(v)))
			}
		}
		return nil
	})
	seg.release(err)
	return at, err
}

// ReferenceTime returns the time to use for a state.db that stores no time. Normally, this is now.
// If now differs from the last trusted time by more than two days, the clock may be wrong, and
// ReferenceTime returns the last trusted time.
func ReferenceTime(dir string, now time.Time) time.Time {
	d, err := openSessions(dir)
	if err != nil {
		return now
	}
	defer d.root.Close()
	all, err := d.segments()
	if err != nil {
		return now
	}
	if at := lastTrusted(d, all, now); now.Sub(at).Abs() > clockJump {
		return at
	}
	return now
}
