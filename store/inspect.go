package store

// Going through the files of a state directory: what is in each, and whether it
// can be read.

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Health is the state of a file.
type Health string

// The states of a file.
const (
	HealthOK      Health = "ok"
	HealthDamaged Health = "damaged"      // Repair sets it aside
	HealthNewer   Health = "newer schema" // written by a newer version
	HealthInUse   Health = "in use"       // by a filter, which gives no copy of it
	HealthUnread  Health = "unreadable"   // the system does not let us
	HealthAside   Health = "set aside"    // was found damaged
	HealthLeft    Health = "left over"    // by a crash, while it was made
)

// Bad tells whether something has to be done about the file.
func (h Health) Bad() bool {
	return h == HealthDamaged || h == HealthNewer || h == HealthInUse || h == HealthUnread
}

// A File is what is known of one file of a state directory.
type File struct {
	Name    string         `json:"name"` // below the state directory
	Size    int64          `json:"size"` // bytes
	Health  Health         `json:"state"`
	Problem string         `json:"problem,omitempty"` // why it is not well
	Live    bool           `json:"live,omitempty"`    // a filter writes it; a copy was looked at
	Records int            `json:"records"`           // sessions, or rows of state.db
	Bad     int            `json:"bad,omitempty"`     // records that make no sense; they are among Records
	Oldest  time.Time      `json:"oldest,omitzero"`   // end of the first session
	Newest  time.Time      `json:"newest,omitzero"`   // end of the last session
	Dropped *Dropped       `json:"dropped,omitempty"` // of a segment: while it was written
	Tables  map[string]int `json:"tables,omitempty"`  // of state.db: rows
	Done    string         `json:"done,omitempty"`    // what Repair has done

	Segment *Segment `json:"-"` // nil for other files

	broken bool // the file, and not only a record in it
}

// An Inspector goes through the files of a state directory. It changes nothing
// in it, unless it is told to Repair.
type Inspector struct {
	Dir      string
	Snapshot func(w io.Writer, name string) error // as in Reader
	State    func(w io.Writer) error              // as in ReadState
	Tables   []string                             // the buckets of state.db
	Row      func(Entry) error                    // what is wrong with a row of them; nil: nobody looks
	Decode   bool                                 // whether each record is looked at, too
}

// Each calls visit for each file, segments first, the oldest first. It ends with
// the first error of visit.
func (i *Inspector) Each(visit func(*File) error) error {
	all, err := Segments(i.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, s := range all {
		if err := visit(i.segment(s)); err != nil {
			return err
		}
	}
	for _, dir := range []string{sessionsDir, ""} {
		entries, err := os.ReadDir(filepath.Join(i.Dir, dir))
		if errors.Is(err, fs.ErrNotExist) && dir != "" {
			continue
		}
		if err != nil {
			return fmt.Errorf("list the state directory: %w", err)
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil || !e.Type().IsRegular() {
				continue // gone, or none of ours
			}
			f := File{Name: filepath.Join(dir, e.Name()), Size: info.Size()}
			whole, isNew := strings.CutSuffix(e.Name(), newSuffix)
			_, isSegment := parseSegment(whole)
			switch {
			case isNew && (dir == "" && whole == stateFile || dir != "" && isSegment):
				f.Health = HealthLeft
			case dir == "" && e.Name() == stateFile:
				i.state(&f)
			case dir == "" && strings.HasPrefix(e.Name(), stateFile+damagedMark):
				f.Health = HealthAside
			default:
				continue
			}
			if err := visit(&f); err != nil {
				return err
			}
		}
	}
	return nil
}

// is sets what err means for the file.
func (f *File) is(err error) {
	switch {
	case err == nil:
		return
	case isDamaged(err):
		f.Health, f.broken = HealthDamaged, true
	case errors.Is(err, ErrNewer):
		f.Health = HealthNewer
	case errors.Is(err, ErrInUse):
		f.Health = HealthInUse
	default:
		f.Health = HealthUnread
	}
	f.Problem = strings.TrimPrefix(err.Error(), "damaged: ")
}

// wrong notes a record that makes no sense.
func (f *File) wrong(err error) {
	if f.Bad == 0 {
		f.Health, f.Problem = HealthDamaged, err.Error()
	}
	f.Bad++
}

func (i *Inspector) segment(s Segment) *File {
	f := &File{Name: filepath.Join(sessionsDir, s.Name), Size: s.Size, Health: HealthOK, Segment: &s}
	if s.Damaged {
		f.Health = HealthAside
		if !strings.HasSuffix(s.Name, salvagedMark) {
			f.Problem = "what can be read of it is not salvaged yet"
		}
		return f
	}
	r := Reader{Dir: i.Dir}
	if i.Snapshot != nil {
		r.Snapshot = func(w io.Writer, name string) error {
			err := i.Snapshot(w, name)
			f.Live = err == nil
			return err
		}
	}
	c, err := r.open(s, nil, nil, <-r.openAhead([]Segment{s}))
	if err == nil && c != nil {
		err = i.records(f, c)
		c.close()
	}
	f.Dropped = &r.Dropped
	f.is(err)
	return f
}

// records goes through the records of a segment, from the one at which c is.
func (i *Inspector) records(f *File, c *cursor) (err error) {
	f.Oldest = keyTime(c.key).UTC()
	for ok := true; ok; ok, err = c.next() {
		f.Records++
		f.Newest = keyTime(c.key).UTC()
		if i.Decode {
			if err := wholeRecord(c.key, c.value); err != nil {
				f.wrong(err)
			}
		}
	}
	return err
}

// wholeRecord tells what is wrong with a record, its steps included.
func wholeRecord(key, value []byte) error {
	r, err := Decode(key, value)
	if err != nil {
		return err
	}
	return r.Steps(func(*Step) bool { return true })
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
				f.wrong(err)
			}
		}
		return nil
	}))
}
