package memory

import "time"

// forgotten describes the hosts that are missing in the table of peers. Without it, the
// absence of a host would not prove that it has sent no mail: the table is bounded.
// Its row is the last one of the bucket, so a reader that finds it has read all peers.
type forgotten struct {
	// day is the day of the latest mail or login of a dropped host; 0 if there is none.
	day uint16
	// lost means that the peers of an earlier file could not be read.
	lost bool

	read, dirty bool // the row has been read; it must be written
}

// forgottenKey is greater than the first byte of the key of a peer.
const forgottenKey = "\xff"

// drop records that a row is evicted or has expired.
func (f *forgotten) drop(k peerKey, p peer) {
	day := max(p.good, p.login)
	if k.kind != peerDomain && day > f.day {
		f.day, f.dirty = day, true
	}
}

// missing records that the peers before today could not be read.
func (f *forgotten) missing(today uint16) {
	f.day, f.lost, f.dirty = max(f.day, today), true, true
}

// Forgotten returns the day of the latest mail or login of a host that is missing in
// the table, or zero. Lost reports that all hosts before that day may be missing, even
// those before the counters of days begin.
func (t *Peers) Forgotten() (day time.Time, lost bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.forgotten.day == 0 {
		return day, false
	}
	return t.clock.day(t.forgotten.day), t.forgotten.lost
}

// forgottenRow is the bucket of the row.
type forgottenRow struct{ *Peers }

func (forgottenRow) bucketName() string { return peersBucket }

func (forgottenRow) status() Status { return Status{} }

func (r forgottenRow) shift(by int64) { shiftDay(&r.forgotten.day, by) }

func (r forgottenRow) rewrite() { r.forgotten.dirty = true }

func (r forgottenRow) changes(n int, put func(key, value []byte)) (left int) {
	f := &r.forgotten
	if n == 0 || !f.dirty {
		return n
	}
	f.dirty = false
	value := words(f.day, 0)
	if f.lost {
		value[3] = 1
	}
	put([]byte(forgottenKey), value)
	return n - 1
}

func (r forgottenRow) restore(key, value []byte, _ uint32) bool {
	if string(key) != forgottenKey || len(value) != 4 || value[2] != 0 || value[3] > 1 {
		return false
	}
	var stored uint16
	read(value, &stored)
	f := &r.forgotten
	f.dirty = f.day > stored || f.lost
	f.read, f.lost, f.day = true, f.lost || value[3] == 1, max(f.day, stored)
	return true
}
