package memory

import (
	"encoding/binary"
	"slices"
	"time"

	"scanwatch/rules"
	"scanwatch/store"
)

// Days are remembered longer than any segment is likely to be kept.
const (
	dayKeep = 400
	maxDays = dayKeep + 20 // clocks go wrong
)

// A Figure is something that is counted by the day.
type Figure uint8

// The figures of a day. That of a piece of evidence is figureEvidence and its
// index.
const (
	DaySessions      Figure = iota // all sessions that ended
	DayLocal                       // of these, over smtpd's own socket
	DayAuthenticated               // ... and with a login
	DayFound                       // ... and of strangers, with evidence besides their missing or wrong name
	DayRefused                     // ... and turned away by us, or some of its commands were
	DayWhole                       // ... and recorded one by one
	DaySummed                      // ... and recorded in the sum of a source
	DayMails
	DayRcptOK
	DayRcptPermfail
	DayRcptTempfail
	DayAuthFail
	figureEvidence
	numFigures = int(figureEvidence) + 64
)

// DayEvidence is the figure of one piece of evidence.
func DayEvidence(e rules.Evidence) Figure { return figureEvidence + Figure(e.Index()) }

// figures are the names of the figures, which are on disk.
var figures = func() (names [numFigures]string) {
	copy(names[:], []string{"sessions", "local", "authenticated", "found", "refused", "whole", "summed",
		"mails", "rcpt-ok", "rcpt-permfail", "rcpt-tempfail", "auth-fail"})
	for _, t := range rules.Tokens {
		names[int(figureEvidence)+t.Evidence.Index()] = "evidence " + t.Name
	}
	return names
}()

func (f Figure) String() string { return figures[f] }

// counted holds the figures of a day.
type counted [numFigures]uint64

// An Ended session, for the figures of its day.
type Ended struct {
	Local, Authenticated bool
	Found                bool // evidence, in a session of a stranger
	Refused              bool // turned away by us, or some of its commands were
	Whole, Summed        bool // how it was recorded; neither: it was not
	Evidence             rules.Evidence
	Counts               *store.Counts
}

// Ended counts a session that ended at at.
func (m *Memory) Ended(e *Ended, at int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := seconds(at)
	k := dayOf(now)
	d, ok := m.days.get(k)
	if !ok {
		d = new(counted)
	}
	m.days.put(k, d, now)
	d[DaySessions]++
	for _, f := range [...]struct {
		yes    bool
		figure Figure
	}{{e.Local, DayLocal}, {e.Authenticated, DayAuthenticated}, {e.Found && !e.Local && !e.Authenticated, DayFound}, {e.Refused, DayRefused}, {e.Whole, DayWhole}, {e.Summed, DaySummed}} {
		if f.yes {
			d[f.figure]++
		}
	}
	d[DayMails] += uint64(e.Counts.Mails)
	d[DayRcptOK] += uint64(e.Counts.RcptOK)
	d[DayRcptPermfail] += uint64(e.Counts.RcptPermfail)
	d[DayRcptTempfail] += uint64(e.Counts.RcptTempfail)
	d[DayAuthFail] += uint64(e.Counts.AuthFail)
	for ev := e.Evidence; ev != 0; ev &= ev - 1 {
		d[int(figureEvidence)+ev.Index()]++
	}
}

// A Day is what came in on one day, in UTC. What is kept of its sessions does
// not change it.
type Day struct {
	Day     time.Time         `json:"day"`     // its beginning
	Figures map[string]uint64 `json:"figures"` // by name; those of evidence are "evidence " and the token
}

// Of returns a figure of d.
func (d *Day) Of(f Figure) uint64 { return d.Figures[f.String()] }

// Lost is the number of sessions that were not recorded at all, because of a
// flood.
func (d *Day) Lost() uint64 { return d.Of(DaySessions) - d.Of(DayWhole) - d.Of(DaySummed) }

// Days returns all days, the oldest first.
func (m *Memory) Days() (list []Day) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, d := range m.days.rows {
		e := Day{dayTime(k), map[string]uint64{}}
		for i, n := range d {
			if n > 0 {
				e.Figures[figures[i]] = n
			}
		}
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b Day) int { return a.Day.Compare(b.Day) })
	return list
}

func dayTime(k uint16) time.Time { return time.Unix(int64(k)*daySeconds, 0).UTC() }

// ReadDay reads a row of the bucket days, for those who read the file without
// the filter.
func ReadDay(key, value []byte) (Day, bool) {
	if len(key) != 2 {
		return Day{}, false
	}
	d := Day{dayTime(be.Uint16(key)), map[string]uint64{}}
	ok := eachFigure(value, func(name []byte, n uint64) { d.Figures[string(name)] = n })
	return d, ok
}

// eachFigure goes through a row: names with a byte of length before, and
// numbers.
func eachFigure(v []byte, visit func(name []byte, n uint64)) (ok bool) {
	for len(v) > 0 {
		at := 1 + int(v[0])
		if at > len(v) {
			return false
		}
		n, size := binary.Uvarint(v[at:])
		if size <= 0 {
			return false
		}
		visit(v[1:at], n)
		v = v[at+size:]
	}
	return true
}

func dayRow(k uint16, d **counted, _ *Memory) (key, value []byte) {
	key = words(k)
	if d == nil {
		return key, nil
	}
	for i, n := range *d {
		if n > 0 {
			value = append(append(value, byte(len(figures[i]))), figures[i]...)
			value = binary.AppendUvarint(value, n)
		}
	}
	return key, value
}

func loadDay(m *Memory, key, v []byte, now uint32) bool {
	d := new(counted)
	if len(key) != 2 || !eachFigure(v, func(name []byte, n uint64) {
		for i := range figures {
			if figures[i] == string(name) {
				d[i] = n
			}
		}
	}) {
		return false
	}
	adopt(&m.days, be.Uint16(key), d, now, func(ours **counted, old *counted) {
		for i, n := range old {
			(*ours)[i] += n
		}
	})
	return true
}
