package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
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
	log   *slog.Logger

	state   int64                // bytes reserved for state.db and its temporary file; 0 until the first reservation
	created map[string]time.Time // by segment name: cached results of expiry
}

// usage describes disk usage after pruning.
type usage struct {
	segments, sealed, quarantined int
	bytes                         int64 // excludes the open segment and the segment that is being sealed
}

var errBudget = errors.New("budget exceeded")

// prune removes expired segments. If fewer than room bytes of the budget are free, prune also
// removes spare files, and then the oldest segments. room includes space for the open segment and
// the files in apart, so prune does not count their current size.
func (b *budget) prune(d *directory, open string, apart []string, room int64) (u usage, err error) {
	state, err := openDirectory(b.dir)
	if err != nil {
		return u, err
	}
	defer state.root.Close()
	size, copies, err := state.stateFiles()
	if err != nil {
		return u, err
	}
	all, total, err := b.files(d, slices.Concat(apart, []string{open}))
	if err != nil {
		return u, err
	}
	// The State will compact a state.db that was written with a larger budget. Until
	// then, the file's excess size must neither evict history nor block new records.
	over := int64(0)
	if info, err := state.root.Lstat(StateFile); err == nil {
		over = max(info.Size()-b.bytes/2, 0)
	}
	total += size - over
	for _, c := range copies {
		total += c.Size()
	}
	room += max(b.state-(size-over), 0)
	oldest := utcDay(b.clock.read(d, all).Add(-b.keep))
	full := func() bool { return total+room > b.bytes }
	var evicted []string // quarantined files
	remove := func(from *directory, name string, size int64) bool {
		e := from.remove(name)
		if e == nil {
			total -= size
		} else if err == nil {
			err = e
		}
		return e == nil
	}
	all = slices.DeleteFunc(all, func(s Segment) bool {
		return s.Name != open && b.expiry(d, &s, oldest).Before(oldest) && remove(d, s.Name, s.Size)
	})
	for _, s := range sparesOf(state, copies, d, all) {
		if full() && remove(s.in, s.name, s.size) {
			evicted = append(evicted, s.name)
			all = slices.DeleteFunc(all, func(o Segment) bool { return s.in == d && o.Name == s.name })
		}
	}
	all = slices.DeleteFunc(all, func(s Segment) bool {
		gone := s.Name != open && full() && remove(d, s.Name, s.Size)
		if gone && s.Quarantined {
			evicted = append(evicted, s.Name)
		}
		return gone
	})
	b.evicted(evicted)
	if err == nil && full() {
		err = fmt.Errorf("%w: %d bytes for %s are in use, and nothing can be removed", errBudget, b.bytes, d.path)
	}
	return usageOf(all, total+over), err
}

func usageOf(all []Segment, bytes int64) usage {
	u := usage{bytes: bytes, segments: len(all)}
	for i := range all {
		switch {
		case all[i].Quarantined:
			u.quarantined++
		case all[i].Sealed:
			u.sealed++
		}
	}
	return u
}

// evicted logs the quarantined files that were removed to make room.
func (b *budget) evicted(names []string) {
	if len(names) > 0 {
		b.log.Warn("quarantined files removed, the budget is full", "files", strings.Join(names, " "))
	}
}

// A spare is a quarantined file that is no longer needed: a salvaged segment or a copy
// of state.db. Spares are removed before any day's segments.
type spare struct {
	in   *directory
	name string
	size int64
}

// sparesOf returns the quarantined copies of state.db and the salvaged
// segments, in the order in which they were quarantined.
func sparesOf(state *directory, copies []fs.FileInfo, sessions *directory, all []Segment) (list []spare) {
	for _, c := range copies {
		list = append(list, spare{state, c.Name(), c.Size()})
	}
	for _, s := range all {
		if strings.HasSuffix(s.Name, salvagedMark) {
			list = append(list, spare{sessions, s.Name, s.Size})
		}
	}
	slices.SortStableFunc(list, func(a, b spare) int { return strings.Compare(quarantinedAt(a.name), quarantinedAt(b.name)) })
	return list
}

// quarantinedAt returns the time in the name of a quarantined file.
func quarantinedAt(name string) string {
	_, at, _ := strings.Cut(name, damagedMark)
	return at
}

// expiry returns the day on which a segment's retention starts. Normally, this is the segment's own
// day. If the clock was wrong, the retention starts on the trusted day on which the segment was
// created. To find that day, expiry opens segments from expired or future days, each of them only
// once.
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

// files returns the segments in d and the size of the store's files. The size excludes the files in
// apart. The size also excludes files that do not belong to the store, because prune cannot remove
// them.
func (b *budget) files(d *directory, apart []string) (all []Segment, total int64, err error) {
	files, err := d.files()
	if err != nil {
		return nil, 0, err
	}
	for _, f := range files {
		name := strings.TrimSuffix(f.Name(), newSuffix)
		_, ok := parseSegment(name)
		if (ok || name == clockFile) && !slices.Contains(apart, f.Name()) {
			total += f.Size()
		}
	}
	return segmentsOf(files), total, nil
}

// stateFiles returns the combined size of state.db and its temporary file, and the
// quarantined copies of state.db, oldest first. All of them count towards the budget.
func (d *directory) stateFiles() (size int64, copies []fs.FileInfo, err error) {
	files, err := d.files()
	if err != nil {
		return 0, nil, err
	}
	for _, f := range files { // sorted by name and thus by time
		switch name := f.Name(); {
		case name == StateFile, name == StateFile+newSuffix:
			size += f.Size()
		case strings.HasPrefix(name, StateFile+damagedMark):
			copies = append(copies, f)
		}
	}
	return size, copies, nil
}

// trimCopies removes the oldest quarantined copies of state.db and returns their names.
// The last stateQuarantined copies remain.
func (d *directory) trimCopies() (names []string) {
	_, copies, err := d.stateFiles()
	if err != nil {
		return nil // one file too many may remain
	}
	for _, f := range copies[:max(0, len(copies)-stateQuarantined)] {
		if d.remove(f.Name()) == nil {
			names = append(names, f.Name())
		}
	}
	return names
}
