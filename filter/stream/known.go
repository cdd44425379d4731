package stream

import (
	"io"
	"slices"
	"time"

	"scanwatch/store"
	"scanwatch/store/history"
)

// maxDays is the number of days whose sessions a known holds. A few days suffice, because a log is
// in chronological order except for sessions that end late.
const maxDays = 3

// A known is an index of the sessions that are already recorded.
type known struct {
	reader store.Reader
	flush  func() error
	days   []knownDay // days in chronological order
}

type knownDay struct {
	start time.Time
	keys  map[knownKey]struct{}
}

type knownKey struct {
	end int64 // microseconds since 1970
	id  uint64
}

// newKnown returns a known for the state directory into which w writes.
func newKnown(dir string, w *store.Writer, flush func() error) *known {
	snapshot := func(out io.Writer, name string) error {
		s, err := w.Snapshot(name)
		if err != nil {
			return err
		}
		defer s.Close()
		_, err = s.WriteTo(out)
		return err
	}
	return &known{reader: store.Reader{Dir: dir, Snapshot: snapshot}, flush: flush}
}

// add adds a session. add reports whether the session was already recorded.
func (k *known) add(end time.Time, id uint64) (recorded bool, err error) {
	keys, err := k.day(end.UTC().Truncate(24 * time.Hour))
	if err != nil {
		return false, err
	}
	key := knownKey{end.UnixMicro(), id}
	if _, recorded = keys[key]; !recorded {
		keys[key] = struct{}{}
	}
	return recorded, nil
}

// day returns the sessions that ended on the day that begins at start.
func (k *known) day(start time.Time) (map[knownKey]struct{}, error) {
	if i := slices.IndexFunc(k.days, func(d knownDay) bool { return d.start.Equal(start) }); i >= 0 {
		return k.days[i].keys, nil
	}
	if err := k.flush(); err != nil {
		return nil, err
	}
	d := knownDay{start, make(map[knownKey]struct{})}
	note := func(r *store.Record) error {
		d.keys[knownKey{r.End.UnixMicro(), r.ID}] = struct{}{}
		return nil
	}
	err := history.Walk(&k.reader, start, start.Add(24*time.Hour), history.Visitor{Session: note, Sum: note})
	if err != nil {
		return nil, err
	}
	if len(k.days) == maxDays {
		k.days = slices.Delete(k.days, 0, 1)
	}
	k.days = append(k.days, d)
	return d.keys, nil
}
