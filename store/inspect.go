package store

// This file checks the files in a state directory.

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"scanwatch/internal/text"
)

// Health is the state of a file.
type Health string

// Values of Health.
const (
	HealthOK      Health = "ok"
	HealthDamaged Health = "corrupt"      // Repair quarantines it
	HealthNewer   Health = "newer schema" // written by a newer version
	HealthOlder   Health = "older schema" // written by an older version in a different format
	HealthInUse   Health = "in use"       // a filter has locked the file and provides no copy
	HealthUnread  Health = "unreadable"   // access is denied
	HealthMissing Health = "missing"      // state.db, although a filter has used the directory; no Inspector returns it
	HealthAside   Health = "quarantined"  // corrupt, ignored
	HealthLeft    Health = "temporary"    // an incomplete file left by a crash
)

// Bad reports whether a file in this state requires action by the operator.
func (h Health) Bad() bool {
	return h == HealthDamaged || h == HealthNewer || h == HealthOlder || h == HealthInUse || h == HealthUnread || h == HealthMissing
}

// A File is the result of checking one file.
type File struct {
	Name    string         `json:"name"` // path below the state directory
	Size    int64          `json:"size"` // bytes
	Health  Health         `json:"state"`
	Problem string         `json:"problem,omitempty"` // the cause of a bad state
	Live    bool           `json:"live,omitempty"`    // a filter is writing the file, and a copy was checked
	Records int            `json:"records"`           // sessions, or rows of state.db
	Bad     int            `json:"bad,omitempty"`     // invalid records, which are included in Records
	Oldest  text.Time      `json:"oldest,omitzero"`   // end of the first session
	Newest  text.Time      `json:"newest,omitzero"`   // end of the last session
	Dropped *Dropped       `json:"dropped,omitempty"` // for a segment: dropped while it was written
	Loss    bool           `json:"loss,omitempty"`    // for a segment: records of this day may have been lost to a corrupt file
	Tables  map[string]int `json:"tables,omitempty"`  // for state.db: number of rows
	Done    string         `json:"done,omitempty"`    // actions of Repair

	Segment *Segment `json:"-"` // nil for other files

	broken bool // the file itself is corrupt, not only some of its records
}

// An Inspector checks the files in a state directory. Only Repair and Rewrite change
// files.
type Inspector struct {
	Dir      string
	Snapshot func(w io.Writer, name string) error // as in Reader
	State    func(w io.Writer) error              // writes a copy of state.db, as for ReadState
	Tables   []string                             // the buckets of state.db
	Row      func(Entry) error                    // checks a row; nil disables the check
	Decode   bool                                 // check each record
	Budget   int64                                // maximum bytes of all files for Repair; 0 for no limit
}

// Each calls visit for each file, starting with the segments, oldest first. Each returns the first
// error returned by visit.
func (i *Inspector) Each(visit func(*File) error) error {
	p, err := openPlaces(i.Dir)
	if err != nil {
		return err
	}
	defer p.close()
	return i.each(p, visit)
}

// places holds the directories that an Inspector checks.
type places struct{ state, sessions *directory } // sessions is nil if it does not exist

func openPlaces(dir string) (p places, err error) {
	if p.state, err = openDirectory(dir); err != nil {
		return p, fmt.Errorf("list the state directory: %w", err)
	}
	p.sessions, err = p.state.sub(sessionsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.close()
		return p, err
	}
	return p, nil
}

func (p places) close() {
	for _, d := range p.all() {
		d.root.Close()
	}
}

// all returns the directories that exist.
func (p places) all() []*directory {
	return slices.DeleteFunc([]*directory{p.sessions, p.state}, func(d *directory) bool { return d == nil })
}

// of returns the directory of a file, and the file's name in the directory.
func (p places) of(f *File) (*directory, string) {
	if name, ok := strings.CutPrefix(f.Name, sessionsDir+"/"); ok {
		return p.sessions, name
	}
	return p.state, f.Name
}

func (i *Inspector) each(p places, visit func(*File) error) error {
	if p.sessions != nil {
		files, err := p.sessions.entries()
		if err != nil {
			return fmt.Errorf("list recorded sessions: %w", err)
		}
		all := segmentsOf(files)
		live := current(all)
		for _, s := range all {
			if s.Quarantined && !exists(p.sessions, s.Name) {
				continue // Repair has removed it to make room
			}
			f := &File{Name: filepath.Join(sessionsDir, s.Name), Size: s.Size, Health: HealthLeft, Problem: "also sealed"}
			if slices.Contains(live, s) {
				f = i.segment(p.sessions, s)
			}
			if err := visit(f); err != nil {
				return err
			}
		}
	}
	for _, d := range p.all() {
		files, err := d.entries()
		if err != nil {
			return fmt.Errorf("list the state directory: %w", err)
		}
		for _, info := range files {
			f := &File{Name: info.Name(), Size: info.Size()}
			if d == p.sessions {
				f.Name = filepath.Join(sessionsDir, info.Name())
			}
			if i.other(f) {
				if err := visit(f); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// temporaryName matches the temporary files for the key and for the mode. Package privacy
// and filter-scanwatch create temporary files with os.CreateTemp.
var temporaryName = regexp.MustCompile(`^(?:key|mode)-\d+\.new$`)

// other checks a file that is not a segment. other returns false if the file does not belong to the
// store.
func (i *Inspector) other(f *File) bool {
	name, inSessions := strings.CutPrefix(f.Name, sessionsDir+"/")
	whole, temporary := strings.CutSuffix(name, newSuffix)
	if inSessions {
		_, ok := parseSegment(whole)
		f.Health = HealthLeft
		return temporary && (ok || whole == clockFile)
	}
	switch {
	case name == StateFile+newSuffix, temporaryName.MatchString(name):
		f.Health = HealthLeft
	case name == StateFile:
		i.state(f)
	case strings.HasPrefix(name, StateFile+damagedMark):
		f.Health = HealthAside
	default:
		return false
	}
	return true
}

// is derives the file's health from err.
func (f *File) is(err error) {
	switch {
	case err == nil:
		return
	case isDamaged(err):
		f.Health, f.broken = HealthDamaged, true
	case errors.Is(err, ErrNewer):
		f.Health = HealthNewer
	case errors.Is(err, ErrOlder):
		f.Health = HealthOlder
	case errors.Is(err, ErrInUse):
		f.Health = HealthInUse
	default:
		f.Health = HealthUnread
	}
	f.Problem = problemOf(err)
}

// problemOf describes an error without the Health and file name, which are already in
// File.
func problemOf(err error) string {
	var d *damagedError
	if errors.As(err, &d) {
		return d.what
	}
	return err.Error()
}

// wrong adds n invalid records to the file's count.
func (f *File) wrong(n int, err error) {
	if f.Health != HealthDamaged {
		f.Health, f.Problem = HealthDamaged, problemOf(err)
	}
	f.Bad += n
}

func (i *Inspector) segment(d *directory, s Segment) *File {
	f := &File{Name: filepath.Join(sessionsDir, s.Name), Size: s.Size, Health: HealthOK, Segment: &s}
	if s.Quarantined {
		f.Health = HealthAside
		if !strings.HasSuffix(s.Name, salvagedMark) {
			f.Problem = "its readable records have not been salvaged"
		}
		return f
	}
	f.Dropped = new(Dropped)
	if s.Sealed {
		f.is(i.blocks(f, d, s))
		return f
	}
	r := Reader{}
	if i.Snapshot != nil {
		r.Snapshot = func(w io.Writer, name string) error {
			err := i.Snapshot(w, name)
			f.Live = err == nil
			return err
		}
	}
	c, err := r.openCursor(d, s, newQuery(time.Time{}, time.Time{}, AllKinds))
	if err == nil {
		f.losses(c.src.metadata())
		err = i.records(f, c)
		c.close()
	}
	f.is(err)
	return f
}

// losses copies a segment's recorded losses from its metadata.
func (f *File) losses(meta metadata) {
	*f.Dropped, f.Loss = readDropped(meta.get), meta.get(keyLoss) != nil
}

// records checks a segment's records.
func (i *Inspector) records(f *File, c *cursor) error {
	rec := Record{step: new(Step)}
	for {
		ok, err := c.next()
		if !ok || err != nil {
			return err
		}
		f.count(1, c.key, c.key)
		if i.Decode {
			err := c.src.record(&rec)
			if err == nil {
				err = rec.Steps(func(*Step) bool { return true })
			}
			if err != nil {
				f.wrong(1, err)
			}
		}
	}
}

// count adds n records, with keys from first to last, to the file's count.
func (f *File) count(n int, first, last recordKey) {
	if f.Records == 0 {
		f.Oldest = text.At(first.time().UTC())
	}
	f.Records += n
	f.Newest = text.At(last.time().UTC())
}

// blocks checks a sealed segment. If Decode is not set, blocks checks only the index.
func (i *Inspector) blocks(f *File, d *directory, s Segment) error {
	file, err := openSealed(d, s)
	if err != nil {
		return err
	}
	defer file.close()
	f.losses(file.meta)
	var b decodedBlock
	for j := range file.blocks {
		info := &file.blocks[j]
		if info.records > 0 {
			f.count(int(info.records), info.first, info.last)
		}
		err := info.lost
		if i.Decode {
			err = file.check(info, &b)
		}
		switch {
		case isDamaged(err):
			f.wrong(int(info.records), err)
		case err != nil:
			return err
		}
	}
	return file.broken
}

func (i *Inspector) state(f *File) {
	f.Health, f.Tables = HealthOK, make(map[string]int)
	var live func(io.Writer) error
	if i.State != nil {
		live = func(w io.Writer) error {
			err := i.State(w)
			f.Live = err == nil
			return err
		}
	}
	f.is(ReadState(i.Dir, i.Tables, live, func(e Entry) error {
		f.Records++
		f.Tables[e.Bucket]++
		if i.Row != nil {
			if err := i.Row(e); err != nil {
				f.wrong(1, err)
			}
		}
		return nil
	}))
}
