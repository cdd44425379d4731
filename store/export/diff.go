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

// A State is the set of entries that a consumer has received. The next changes
// are relative to this set.
type State struct {
	Format  string
	Entries []ExportedEntry
}

// An ExportedEntry is an entry that a consumer has received.
type ExportedEntry struct {
	Prefix  netip.Prefix `json:"prefix"`
	Expires time.Time    `json:"expires"`
	// Last is the end of the entry's last session when the entry was exported. Reported is the time
	// of that export. Last and Reported are set only by formats that export active entries
	// repeatedly.
	Last     time.Time `json:"last,omitzero"`
	Reported time.Time `json:"told,omitzero"`
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
	maxState     = 2_000_000 // maximum number of entries; no export has more
)

// ReadState reads the output of WriteState.
func ReadState(r io.Reader) (*State, error) {
	d := json.NewDecoder(bufio.NewReader(r))
	var head stateHead
	if err := d.Decode(&head); err != nil || head.Is != stateIs {
		return nil, errors.New("not a state file of an export")
	}
	if head.Version != stateVersion {
		return nil, fmt.Errorf("version %d is unknown; this program reads version %d", head.Version, stateVersion)
	}
	s := &State{Format: head.Format}
	for {
		var t ExportedEntry
		switch err := d.Decode(&t); {
		case err == io.EOF:
			return s, nil
		case err != nil:
			return nil, fmt.Errorf("entry %d: %w", len(s.Entries)+1, err)
		case !t.Prefix.IsValid() || t.Prefix != t.Prefix.Masked():
			return nil, fmt.Errorf("entry %d is not a prefix", len(s.Entries)+1)
		case len(s.Entries) == maxState:
			return nil, fmt.Errorf("more than %d entries", maxState)
		}
		s.Entries = append(s.Entries, t)
	}
}

// WriteState writes s as lines of JSON objects.
func WriteState(w io.Writer, s *State) error {
	b := bufio.NewWriter(w)
	e := json.NewEncoder(b)
	err := e.Encode(stateHead{stateIs, stateVersion, s.Format})
	for i := range s.Entries {
		err = errors.Join(err, e.Encode(&s.Entries[i]))
	}
	return errors.Join(err, b.Flush())
}

// Changes is the difference between two exports. If Format.Renew is set, an entry whose
// end has changed is both removed and added.
type Changes struct {
	Made   time.Time
	Add    []Entry
	Remove []Entry // only Prefix and Expires are set
}

// Changes reports whether the format supports changes.
func (f *Format) Changes() bool { return f.change != nil }

// WriteChanges writes the changes since the consumer's previous state. before is that state, or nil
// for a new consumer. WriteChanges returns the consumer's new state and the number of dropped
// entries.
func (f *Format) WriteChanges(w io.Writer, l *List, before *State) (after *State, dropped int, err error) {
	if f.change == nil {
		return nil, 0, fmt.Errorf("format %s has no changes: entries end %s", f.Name, f.Ends)
	}
	some, dropped := f.fit(l)
	b := bufio.NewWriter(w)
	c, after := f.changes(some, before)
	if before == nil && f.Whole {
		f.write(b, some)
	} else {
		f.change(b, c)
	}
	return after, dropped, b.Flush()
}

// end returns the time at which the consumer removes e.
func (f *Format) end(e *Entry, made time.Time) time.Time {
	if last := made.Add(f.longest); f.longest > 0 && e.Expires.After(last) {
		return last.UTC()
	}
	return e.Expires.UTC()
}

func (f *Format) changes(l *List, before *State) (*Changes, *State) {
	c := &Changes{Made: l.Made}
	after := &State{Format: f.Name}
	known := map[netip.Prefix]ExportedEntry{}
	if before != nil {
		for _, t := range before.Entries {
			known[t.Prefix] = t
		}
	}
	remove := func(t ExportedEntry) {
		if !f.EndsItself || t.Expires.After(l.Made) { // otherwise the consumer has already removed the entry
			c.Remove = append(c.Remove, Entry{Prefix: t.Prefix, Expires: t.Expires})
		}
	}
	for _, e := range l.Entries {
		now := ExportedEntry{Prefix: e.Prefix, Expires: f.end(&e, l.Made)}
		if f.again > 0 {
			now.Last, now.Reported = e.Last.UTC(), l.Made.UTC()
		}
		old, ok := known[e.Prefix]
		delete(known, e.Prefix)
		half := l.Made.Add(f.longest / 2)
		full := f.limit > 0 && len(c.Add) >= f.limit
		switch {
		case !ok && full:
			continue // the next changes will include this entry
		case !ok:
			c.Add = append(c.Add, e)
		case !full && f.again > 0 && e.Last.Sub(old.Last) >= f.again && l.Made.Sub(old.Reported) >= f.again:
			c.Add = append(c.Add, e)
		case f.again > 0:
			now.Last, now.Reported = old.Last, old.Reported
		case now.Expires.Before(e.Expires) && old.Expires.After(half) && !old.Expires.After(e.Expires):
			now.Expires = old.Expires // renew the entry when half of the maximum time remains
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
