package memory

import "time"

// forgotten describes the hosts dropped from the table of peers. The table is bounded,
// so a host without a row may have sent mail. The last row in the bucket holds this
// description, so a reader that reaches that row has read all peers.
type forgotten struct {
	// day is the day of a dropped host's latest mail or login, or 0 if there is
	// none.
	day uint16
	// lost is the latest day on which rows of bans or peers were missing from the
	// file, or 0 if there is none. A missing file from an earlier run counts as a
	// loss.
	lost uint16

	read, dirty bool // read: the row has been read; dirty: the row must be written
}

// forgottenKey is greater than the keys of all peers, so that its row comes last.
const forgottenKey = "\xff"

// drop records that a row was evicted or has expired.
func (f *forgotten) drop(k peerKey, p peer) {
	day := max(p.good, p.login)
	if k.kind != peerDomain && day > f.day {
		f.day, f.dirty = day, true
	}
}

// missing records that bans and peers from before today could not be read.
func (f *forgotten) missing(today uint16) {
	f.day, f.lost, f.dirty = max(f.day, today), max(f.lost, today), true
}

// Forgotten returns the days before which hosts may be missing from the table. day is
// the day of the latest mail or login of a dropped host, or zero. lost is the day on
// which rows were last lost, or zero. Any ban or host from before that day may be
// missing.
func (t *Peers) Forgotten() (day, lost time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := &t.forgotten; f.day != 0 {
		day = t.clock.day(f.day)
	}
	if f := &t.forgotten; f.lost != 0 {
		lost = t.clock.day(f.lost)
	}
	return day, lost
}

// forgottenRow implements the bucket for the row that stores forgotten.
type forgottenRow struct{ *Peers }

func (forgottenRow) bucketName() string { return peersBucket }

func (forgottenRow) status() Status { return Status{} }

func (r forgottenRow) shift(by int64) {
	shiftDay(&r.forgotten.day, by)
	shiftDay(&r.forgotten.lost, by)
}

func (r forgottenRow) rewrite() { r.forgotten.dirty = true }

func (r forgottenRow) changes(n int, put func(key, value []byte)) (left int) {
	f := &r.forgotten
	if n == 0 || !f.dirty {
		return n
	}
	f.dirty = false
	put([]byte(forgottenKey), words(f.day, f.lost))
	return n - 1
}

func (r forgottenRow) restore(key, value []byte, _ uint32) bool {
	if string(key) != forgottenKey || len(value) != 4 {
		return false
	}
	var day, lost uint16
	read(value, &day, &lost)
	f := &r.forgotten
	f.dirty = f.day > day || f.lost > lost
	f.read, f.day, f.lost = true, max(f.day, day), max(f.lost, lost)
	return true
}
