// Package store keeps what was seen: one record per SMTP session, in files
// that each hold one UTC day or a part of one. It knows nothing of the SMTP
// conversation beyond the types of a Record, and renders nothing.
//
// A Writer takes records without ever waiting for the disk; a Reader goes
// through them while the writer runs and while it does not.
package store

// What is on disk.
//
//	DIR/                               mode 0750
//	  sessions/                        mode 0750; whoever writes holds a flock(2) on it
//	    2026-11-01.db                  mode 0640; a segment: the sessions of a UTC day
//	    2026-11-01.2.db                the second part of that day, and so on
//	    2026-11-02.db
//	    2026-11-02.3.db.damaged-20261102T101500Z   set aside, never read again
//	    2026-11-02.db.damaged-20261102T101500Z.salvaged   what was readable is in a later part
//	    2026-11-02.4.db.new            being made; left behind only by a crash
//
// A segment is a bbolt file with two buckets.
//
//	meta      "schema"          uint16, big-endian: 1
//	          "created"         int64, big-endian: microseconds since 1970
//	          "program"         text: version of the program that made the segment
//	          "dropped-REASON"  uint64, big-endian: records that were dropped while
//	                            this segment was written; REASON as in Reasons
//	          "rule-XXXXXXXX"   text: a rule that verdicts and bans of this segment may
//	                            name; X is its RuleRef in hexadecimal. Files of older
//	                            versions have none.
//	sessions  key    int64, big-endian: end of the session in microseconds since 1970,
//	                 then uint64, big-endian: smtpd's session id. 16 bytes.
//	          value  the message Session of record.proto
//
// A segment holds sessions that ended on its day, and sessions that ended
// earlier but were written late; never later ones. So a reader that looks for
// what came since T may skip segments by name. Within a segment, keys are in
// the order in which sessions ended. A session may be in two parts of a day, if
// a commit was repeated; it then has the same key and value in both.
//
// Numbers inside bbolt's own pages are in the byte order of the machine.

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	schema      = 1
	sessionsDir = "sessions"
	dayLayout   = "2006-01-02"
	newSuffix   = ".new"
	damagedMark = ".damaged-"
)

var (
	bucketMeta     = []byte("meta")
	bucketSessions = []byte("sessions")
	keySchema      = []byte("schema")
	keyCreated     = []byte("created")
	keyProgram     = []byte("program")
	keyDropped     = "dropped-"
	keyRule        = "rule-"
)

// ErrNewer tells that a segment was written by a newer version of the program,
// in a way that this one does not understand.
var ErrNewer = errors.New("written by a newer version of scanwatch; update this program to read it")

// ErrInUse tells that another process has the segment or the directory locked.
var ErrInUse = errors.New("in use by another process")

// DefaultDir is the state directory if the operator names none.
func DefaultDir() string {
	if runtime.GOOS == "linux" {
		return "/var/lib/scanwatch"
	}
	return "/var/db/scanwatch"
}

// A Segment is one file of sessions.
type Segment struct {
	Name    string    `json:"name"`              // file name, such as 2026-11-01.2.db
	Day     time.Time `json:"day"`               // midnight UTC of its day
	Part    int       `json:"part"`              // 1 for the first of the day
	Size    int64     `json:"size"`              // bytes
	Damaged bool      `json:"damaged,omitempty"` // was set aside
}

var segmentName = regexp.MustCompile(`^(\d{4}-\d\d-\d\d)(?:\.([1-9]\d{0,8}))?\.db(\.damaged-.*)?$`)

func parseSegment(name string) (Segment, bool) {
	m := segmentName.FindStringSubmatch(name)
	if m == nil {
		return Segment{}, false
	}
	day, err := time.Parse(dayLayout, m[1])
	if err != nil {
		return Segment{}, false
	}
	s := Segment{Name: name, Day: day, Part: 1, Damaged: m[3] != ""}
	if m[2] != "" {
		s.Part, _ = strconv.Atoi(m[2])
		if s.Part < 2 {
			return Segment{}, false // the first part has no number
		}
	}
	return s, true
}

func segmentFile(day time.Time, part int) string {
	if part < 2 {
		return day.Format(dayLayout) + ".db"
	}
	return fmt.Sprintf("%s.%d.db", day.Format(dayLayout), part)
}

func compareSegments(a, b Segment) int {
	return cmp.Or(a.Day.Compare(b.Day), cmp.Compare(a.Part, b.Part), strings.Compare(a.Name, b.Name))
}

func utcDay(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }

// Segments lists the segments of the state directory dir, oldest first, those
// that were set aside included. Anything else in the directory, symbolic links
// included, is left alone.
func Segments(dir string) ([]Segment, error) {
	entries, err := os.ReadDir(filepath.Join(dir, sessionsDir))
	if err != nil {
		return nil, fmt.Errorf("list recorded sessions: %w", err)
	}
	var all []Segment
	for _, e := range entries {
		s, ok := parseSegment(e.Name())
		if !ok || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // pruned meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list recorded sessions: %w", err)
		}
		s.Size = info.Size()
		all = append(all, s)
	}
	slices.SortFunc(all, compareSegments)
	return all, nil
}

// Reason tells why a record was dropped.
type Reason int

// The reasons. Their names are on disk.
const (
	DropFull   Reason = iota // the buffer was full: the disk was too slow, or could not be written
	DropLarge                // the record was larger than MaxValue
	DropClosed               // the writer was closed and could not write what it had
	numReasons
)

// Reasons names the reasons, in their order.
var Reasons = [numReasons]string{"full", "large", "closed"}

func (r Reason) String() string { return Reasons[r] }

// Dropped counts dropped records by Reason.
type Dropped [numReasons]uint64

// Total is the number of records dropped for any reason.
func (d Dropped) Total() uint64 {
	var n uint64
	for _, v := range d {
		n += v
	}
	return n
}

// String writes the counters that are not zero, as in "full=3 large=1".
func (d Dropped) String() string {
	var b strings.Builder
	for r, n := range d {
		if n > 0 {
			fmt.Fprintf(&b, " %s=%d", Reasons[r], n)
		}
	}
	return strings.TrimPrefix(b.String(), " ")
}

// MarshalJSON writes an object with one member per reason.
func (d Dropped) MarshalJSON() ([]byte, error) {
	m := map[string]uint64{}
	for r, n := range d {
		m[Reasons[r]] = n
	}
	return json.Marshal(m)
}

// UnmarshalJSON reads what MarshalJSON wrote; reasons it does not know are
// ignored.
func (d *Dropped) UnmarshalJSON(b []byte) error {
	var m map[string]uint64
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	for r := range d {
		d[r] = m[Reasons[r]]
	}
	return nil
}
