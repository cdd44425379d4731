package export

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"
)

// A State is what a consumer was told the last time, so that it can be told
// what has changed since.
type State struct {
	Format  string
	Entries []Told
}

// Told is an entry as a consumer knows it.
type Told struct {
	Prefix  netip.Prefix `json:"prefix"`
	Expires time.Time    `json:"expires"`
	Last    time.Time    `json:"last,omitzero"` // for formats that tell again
	Told    time.Time    `json:"told,omitzero"` // the same: when that was
}

// stateHead is the first line of a state file.
type stateHead struct {
	Is      string `json:"is"`
	Version int    `json:"version"`
	Format  string `json:"format"`
}

const (
	stateIs      = "scanwatch export"
	stateVersion = 1
	maxState     = 2_000_000 // entries; more than can be exported
)

// ReadState reads what WriteState has written.
func ReadState(r io.Reader) (*State, error) {
	d := json.NewDecoder(bufio.NewReader(r))
	var head stateHead
	if err := d.Decode(&head); err != nil || head.Is != stateIs {
		return nil, errors.New("it is no state of an export")
	}
	if head.Version != stateVersion {
		return nil, fmt.Errorf("version %d is not known, only %d is", head.Version, stateVersion)
	}
	s := &State{Format: head.Format}
	for {
		var t Told
		switch err := d.Decode(&t); {
		case err == io.EOF:
			return s, nil
		case err != nil:
			return nil, fmt.Errorf("entry %d: %w", len(s.Entries)+1, err)
		case !t.Prefix.IsValid() || t.Prefix != t.Prefix.Masked():
			return nil, fmt.Errorf("entry %d is no prefix", len(s.Entries)+1)
		case len(s.Entries) == maxState:
			return nil, fmt.Errorf("more than %d entries", maxState)
		}
		s.Entries = append(s.Entries, t)
	}
}

// WriteState writes s, one JSON object a line.
func WriteState(w io.Writer, s *State) error {
	b := bufio.NewWriter(w)
	e := json.NewEncoder(b)
	err := e.Encode(stateHead{stateIs, stateVersion, s.Format})
	for i := range s.Entries {
		err = errors.Join(err, e.Encode(&s.Entries[i]))
	}
	return errors.Join(err, b.Flush())
}

// Changes are what a consumer has to be told. An entry whose end has moved is
// in both lists if its format asks for that.
type Changes struct {
	Made   time.Time
	Add    []Entry
	Remove []Entry // only Prefix and Expires are set
}

// Changes tells whether the format can tell what has changed.
func (f *Format) Changes() bool { return f.change != nil }

// WriteChanges writes what has changed since before, and returns what the
// consumer knows then. A nil before stands for a consumer that knows nothing.
func (f *Format) WriteChanges(w io.Writer, l *List, before *State) (after *State, leftOut int, err error) {
	if f.change == nil {
		return nil, 0, fmt.Errorf("%s has no changes: %s", f.Name, f.Ends)
	}
	some, leftOut := f.fit(l)
	b := bufio.NewWriter(w)
	c, after := f.changes(some, before)
	if before == nil && f.Whole {
		f.write(b, some)
	} else {
		f.change(b, c)
	}
	return after, leftOut, b.Flush()
}

// end is when e ends at the consumer.
func (f *Format) end(e *Entry, made time.Time) time.Time {
	if most := made.Add(f.longest); f.longest > 0 && e.Expires.After(most) {
		return most.UTC()
	}
	return e.Expires.UTC()
}

func (f *Format) changes(l *List, before *State) (*Changes, *State) {
	c := &Changes{Made: l.Made}
	after := &State{Format: f.Name}
	known := map[netip.Prefix]Told{}
	if before != nil {
		for _, t := range before.Entries {
			known[t.Prefix] = t
		}
	}
	remove := func(t Told) {
		if !f.EndsItself || t.Expires.After(l.Made) { // else it is gone there
			c.Remove = append(c.Remove, Entry{Prefix: t.Prefix, Expires: t.Expires})
		}
	}
	for _, e := range l.Entries {
		now := Told{Prefix: e.Prefix, Expires: f.end(&e, l.Made)}
		if f.again > 0 {
			now.Last, now.Told = e.Last.UTC(), l.Made.UTC()
		}
		old, ok := known[e.Prefix]
		delete(known, e.Prefix)
		half := l.Made.Add(f.longest / 2)
		full := f.most > 0 && len(c.Add) >= f.most
		switch {
		case !ok && full:
			continue // next time
		case !ok:
			c.Add = append(c.Add, e)
		case !full && f.again > 0 && e.Last.Sub(old.Last) >= f.again && l.Made.Sub(old.Told) >= f.again:
			c.Add = append(c.Add, e)
		case f.again > 0:
			now.Last, now.Told = old.Last, old.Told
		case now.Expires.Before(e.Expires) && old.Expires.After(half) && !old.Expires.After(e.Expires):
			now.Expires = old.Expires // it gets more when half of that is over
		case f.Renew && !old.Expires.Equal(now.Expires):
			remove(old)
			c.Add = append(c.Add, e)
		}
		after.Entries = append(after.Entries, now)
	}
	for _, t := range known {
		remove(t)
	}
	slices.SortFunc(c.Remove, func(a, b Entry) int { return compare(a.Prefix, b.Prefix) })
	return c, after
}
