package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A budget limits the size and age of the files in a state directory.
type budget struct {
	dir   string // the state directory
	bytes int64
	keep  time.Duration
	clock clock

	state   int64                // bytes reserved for the State; 0 until the first reservation
	created map[string]time.Time // results of expiry
}

// usage describes the disk usage after pruning.
type usage struct {
	segments, sealed, quarantined int
	bytes                         int64 // excludes the open segment and the segment that is being sealed
}

var errBudget = errors.New("budget exceeded")

// prune removes expired segments. While less than room bytes of the budget are free, it
// also removes salvaged files, whose records are in another segment, and then the
// oldest segments. room includes the segment named open and the files in apart, which
// are not counted.
func (b *budget) prune(d *directory, open string, apart []string, room int64) (u usage, err error) {
	all, total, err := b.files(d, slices.Concat(apart, []string{open}))
	if err != nil {
		return u, err
	}
	// A state.db that was written with a larger budget is being compacted. Until
	// then, its excess must not evict history or block new records.
	state, over := stateSize(b.dir), int64(0)
	if info, err := os.Lstat(filepath.Join(b.dir, stateFile)); err == nil {
		over = max(info.Size()-b.bytes/2, 0)
	}
	total += state - over
	room += max(b.state-(state-over), 0)
	oldest := utcDay(b.clock.read(d, all).Add(-b.keep))
	remove := func(useless func(*Segment) bool) {
		all = slices.DeleteFunc(all, func(s Segment) bool {
			if s.Name == open || !useless(&s) {
				return false
			}
			e := d.remove(s.Name)
			if e == nil {
				total -= s.Size
			} else if err == nil {
				err = e
			}
			return e == nil
		})
	}
	remove(func(s *Segment) bool { return b.expiry(d, s, oldest).Before(oldest) })
	remove(func(s *Segment) bool { return total+room > b.bytes && strings.HasSuffix(s.Name, salvagedMark) })
	remove(func(*Segment) bool { return total+room > b.bytes })
	u.bytes, u.segments = total+over, len(all)
	for i := range all {
		switch {
		case all[i].Quarantined:
			u.quarantined++
		case all[i].Sealed:
			u.sealed++
		}
	}
	if err == nil && total+room > b.bytes {
		err = fmt.Errorf("%w: %d bytes for %s are in use, and nothing can be removed", errBudget, b.bytes, d.path)
	}
	return u, err
}

// expiry returns the day from which the retention of a segment counts: its day, or
// the trusted day on which it was created if the clock was wrong. Only segments of a
// day that is expired or in the future are opened, once.
func (b *budget) expiry(d *directory, s *Segment, oldest time.Time) time.Time {
	if s.Quarantined || !s.Day.Before(oldest) && !s.Day.After(b.clock.believed.Add(clockJump)) {
		return s.Day
	}
	day, ok := b.created[s.Name]
	if !ok {
		day = s.Day
		if at, err := createdInDoubt(d, s); err == nil && !at.IsZero() {
			day = utcDay(at)
		}
		b.created[s.Name] = day
	}
	return day
}

// files returns the segments in d, and the size of all files except the files in apart.
func (b *budget) files(d *directory, apart []string) (all []Segment, total int64, err error) {
	files, err := d.files()
	if err != nil {
		return nil, 0, err
	}
	for _, f := range files {
		if !slices.Contains(apart, f.Name()) {
			total += f.Size()
		}
	}
	return segmentsOf(files), total, nil
}

// stateSize returns the size of state.db, its quarantined copies and its temporary
// file. All of them count against the budget.
func stateSize(dir string) (size int64) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), stateFile) || !e.Type().IsRegular() {
			continue
		}
		if info, err := e.Info(); err == nil { // otherwise the file has just been removed
			size += info.Size()
		}
	}
	return size
}
