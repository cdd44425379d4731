package memory

import (
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"scanwatch/rules"
)

// Days is the table of daily counters. Days are in UTC and follow event times. The
// table keeps the latest dayKeep days that had sessions, regardless of the retention of
// session records.
type Days struct {
	*shared
	rows table[uint16, *dayCounters]
}

// dayKeep exceeds the retention of session records.
const dayKeep = 400

// A DayCounter is one of the counters kept for each day.
type DayCounter uint8

// Counters of a day; see also DayEvidence.
const (
	DaySessions      DayCounter = iota // all ended sessions
	DayLocal                           // sessions of local programs, over smtpd's own socket
	DayAuthenticated                   // sessions with a successful login
	DayFound                           // sessions of unknown clients, with evidence other than a missing or unproven reverse DNS name
	DayRefused                         // sessions with a rejected command, or disconnected by the filter
	DayWhole                           // sessions with separate records
	DaySummed                          // sessions added to an aggregate
	DayMails
	DayRcptOK
	DayRcptPermfail
	DayRcptTempfail
	DayAuthFail
	dayEvidence
	numDayCounters = int(dayEvidence) + 64
)

// DayEvidence returns the counter for sessions with evidence e.
func DayEvidence(e rules.Evidence) DayCounter { return dayEvidence + DayCounter(e.Index()) }

// dayNames lists the counters' names, which are also used on disk.
var dayNames = func() (names [numDayCounters]string) {
	copy(names[:], []string{"sessions", "local", "authenticated", "found", "refused", "whole", "summed",
		"mails", "rcpt-ok", "rcpt-permfail", "rcpt-tempfail", "auth-fail"})
	for _, t := range rules.Tokens {
		names[int(dayEvidence)+t.Evidence.Index()] = "evidence " + t.Name
	}
	return names
}()

func (c DayCounter) String() string { return dayNames[c] }

type dayCounters [numDayCounters]uint64

func newDays(s *shared) *Days {
	return &Days{shared: s, rows: newTable(s, schema[uint16, *dayCounters]{
		name: "days", bucket: "days", limit: maxDays,
		evictionScore: func(k uint16, _ *dayCounters, _ uint32) int64 { return int64(k) },
		key:           func(k uint16) []byte { return words(k) },
		value:         dayValue,
		decode:        readDay,
		merge: func(live **dayCounters, stored *dayCounters) {
			for i, n := range stored {
				(*live)[i] += n
			}
		},
	})}
}

// Ended describes an ended session for the daily counters.
type Ended struct {
	Local, Authenticated bool
	Found                bool // the client is unknown and there is evidence
	Refused              bool // a command was rejected, or the filter disconnected the client
	Whole                bool // the session got its own record
	Evidence             rules.Evidence

	Mails, RcptOK, RcptPermfail, RcptTempfail, AuthFail uint32
}

// Add counts a session that ended at now.
func (t *Days) Add(e *Ended, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := dayOf(seconds(now)) // day of the events, as in the records, rather than of the rows
	d, ok := t.rows.get(k)
	if !ok {
		d = new(dayCounters)
		t.dropOldest()
	}
	t.rows.put(k, d, 0)
	d[DaySessions]++
	for _, f := range [...]struct {
		yes     bool
		counter DayCounter
	}{{e.Local, DayLocal}, {e.Authenticated, DayAuthenticated}, {e.Found && !e.Local && !e.Authenticated, DayFound}, {e.Refused, DayRefused}, {e.Whole, DayWhole}, {!e.Whole, DaySummed}} {
		if f.yes {
			d[f.counter]++
		}
	}
	d[DayMails] += uint64(e.Mails)
	d[DayRcptOK] += uint64(e.RcptOK)
	d[DayRcptPermfail] += uint64(e.RcptPermfail)
	d[DayRcptTempfail] += uint64(e.RcptTempfail)
	d[DayAuthFail] += uint64(e.AuthFail)
	for ev := e.Evidence; ev != 0; ev &= ev - 1 {
		d[int(dayEvidence)+ev.Index()]++
	}
}

// dropOldest drops the oldest day from a full table. Days are never dropped because of
// their age, since the clock may be wrong.
func (t *Days) dropOldest() {
	for len(t.rows.rows) >= dayKeep {
		t.rows.del(slices.Min(slices.Collect(maps.Keys(t.rows.rows))))
	}
}

// A Day holds a day's counters.
type Day struct {
	Day      time.Time         `json:"day"`      // start of the day in UTC
	Counters map[string]uint64 `json:"counters"` // by name, without zeros; "evidence " and the token for DayEvidence
}

// Of returns one of d's counters.
func (d *Day) Of(c DayCounter) uint64 { return d.Counters[c.String()] }

// List returns all days, oldest first.
func (t *Days) List() (list []Day) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, d := range t.rows.rows {
		e := Day{dayTime(k), map[string]uint64{}}
		for i, n := range d {
			if n > 0 {
				e.Counters[dayNames[i]] = n
			}
		}
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b Day) int { return a.Day.Compare(b.Day) })
	return list
}

func dayTime(k uint16) time.Time { return time.Unix(int64(k)*daySeconds, 0).UTC() }

// ReadDay decodes a row of the days bucket for programs that read the file.
func ReadDay(key, value []byte) (Day, bool) {
	if len(key) != 2 {
		return Day{}, false
	}
	d := Day{dayTime(be.Uint16(key)), map[string]uint64{}}
	ok := eachCounter(value, func(name []byte, n uint64) { d.Counters[string(name)] = n })
	return d, ok
}

// eachCounter decodes a value made up of names and numbers. Each name is preceded by
// its length in one byte.
func eachCounter(v []byte, visit func(name []byte, n uint64)) (ok bool) {
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

func dayValue(d *dayCounters) (value []byte) {
	for i, n := range d {
		if n > 0 {
			value = append(append(value, byte(len(dayNames[i]))), dayNames[i]...)
			value = binary.AppendUvarint(value, n)
		}
	}
	return value
}

func readDay(key, v []byte) (uint16, *dayCounters, bool) {
	d := new(dayCounters)
	ok := len(key) == 2 && eachCounter(v, func(name []byte, n uint64) {
		for i := range dayNames {
			if dayNames[i] == string(name) {
				d[i] = n
			}
		}
	})
	if !ok {
		return 0, nil, false
	}
	return be.Uint16(key), d, true
}
