// Package store stores SMTP sessions and the filter's state on disk. Sessions
// are recorded in segments, files that cover one UTC day or a part of it. The
// state is kept in state.db.
//
// A Writer and a State write in the background, so that no caller waits for the disk. A
// Reader reads records whether or not a Writer is running. An Inspector checks and
// repairs the files.
//
// Package store neither interprets nor renders records: see store/report and
// store/export. The package does not import the filter or the policy.
package store

// The store consists of the following files:
//
//	DIR/                               mode 0750
//	  sessions/                        mode 0750; the writing process holds a flock(2) on it
//	    2026-11-01.db                  mode 0640; a segment: the sessions of a UTC day
//	    2026-11-01.2.db                the second part of that day, and so on
//	    2026-10-31.sealed.db           mode 0640; the sessions of that day in blocks
//	    2026-11-02.db
//	    2026-11-02.3.db.damaged-20261102T101500Z   quarantined, not read
//	    2026-11-02.db.damaged-20261102T101500Z.salvaged   its readable records are in another part
//	    2026-11-02.5.db.damaged-20261102T101500Z.empty.salvaged   it has no readable records;
//	                                               another part without records has the mark "loss"
//	    2026-11-02.4.db.new            temporary; only a crash leaves one
//	    clock                          the last trusted time (RFC 3339): see clock
//
// A Writer seals finished segments: see docs/sealed-days.md. Unsealed segments consist
// of rows. A segment of rows is a bbolt file with two buckets:
//
//	meta      "schema"          uint16, big-endian: 2
//	          "created"         int64, big-endian: microseconds since 1970
//	          "program"         text: version of the program that created the segment
//	          "doubt"           int64, big-endian: the last trusted time, if the clock was not
//	                            trusted when the segment was created
//	          "loss"            int64, big-endian: when records of the day may have been lost:
//	                            a corrupt file was quarantined, or copied to this one
//	          "dropped-REASON"  uint64, big-endian: records dropped while this segment was
//	                            written; REASON is one of Reasons
//	          "rule-XXXXXXXX"   text: a rule to which verdicts and bans of this segment can
//	                            refer; X is its RuleRef in hexadecimal
//	sessions  key    int64, big-endian: end of the session in microseconds since 1970,
//	                 then uint64, big-endian: smtpd's session id. 16 bytes.
//	          value  the message Session of record.proto
//
// A segment contains sessions that ended on its day, and sessions that ended earlier
// but were written late. A segment does not contain sessions from later days,
// so a reader of sessions since a given time can skip segments by name. Keys
// are ordered by the end of the session. A repeated commit can write a session
// to two parts of a day; the two copies have the same key and value.
//
// Numbers in bbolt's own pages are in the machine's byte order.

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"
)

const (
	schema       = 2 // schema 1 had different step numbers; this program does not read it
	sealedSchema = 3 // schema of sealed segments; schema 2 had no marks
	sessionsDir  = "sessions"
	dayLayout    = "2006-01-02"
	newSuffix    = ".new"
	sealedSuffix = ".sealed.db"
	damagedMark  = ".damaged-"
)

var (
	bucketMeta     = []byte("meta")
	bucketSessions = []byte("sessions")
	keySchema      = []byte("schema")
	keyCreated     = []byte("created")
	keyProgram     = []byte("program")
	keyDoubt       = []byte("doubt")
	keyLoss        = []byte("loss")
	keyDropped     = "dropped-"
	keyRule        = "rule-"
)

// ErrNewer is returned for a file written by a newer version.
var ErrNewer = errors.New("written by a newer version of scanwatch; update this program to read it")

// ErrOlder is returned for a segment with an unsupported older schema.
var ErrOlder = errors.New("written by an older version of scanwatch in a different format; export its records with that version, then move the state directory away")

// ErrInUse is returned for a file or directory that another process has locked.
var ErrInUse = errors.New("in use by another process")

// DefaultDir returns the default state directory.
func DefaultDir() string {
	if runtime.GOOS == "linux" {
		return "/var/lib/scanwatch"
	}
	return "/var/db/scanwatch"
}

// A Segment is a file of sessions.
type Segment struct {
	Name        string    `json:"name"`                  // file name, such as 2026-11-01.2.db
	Day         time.Time `json:"day"`                   // midnight UTC of its day
	Part        int       `json:"part"`                  // 1 for the first of the day
	Size        int64     `json:"size"`                  // bytes
	Sealed      bool      `json:"sealed,omitempty"`      // consists of blocks of columns, and is never written again
	Quarantined bool      `json:"quarantined,omitempty"` // corrupt, not read
}

var segmentName = regexp.MustCompile(`^(\d{4}-\d\d-\d\d)(?:\.([1-9]\d{0,8}))?(\.sealed)?\.db(\.damaged-.*)?$`)

func parseSegment(name string) (Segment, bool) {
	m := segmentName.FindStringSubmatch(name)
	if m == nil {
		return Segment{}, false
	}
	day, err := time.Parse(dayLayout, m[1])
	if err != nil {
		return Segment{}, false
	}
	s := Segment{Name: name, Day: day, Part: 1, Sealed: m[3] != "", Quarantined: m[4] != ""}
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

// sealedName returns the name of the sealed segment for a part of a day.
func sealedName(s Segment) string {
	return strings.TrimSuffix(segmentFile(s.Day, s.Part), ".db") + sealedSuffix
}

func compareSegments(a, b Segment) int {
	return cmp.Or(a.Day.Compare(b.Day), cmp.Compare(a.Part, b.Part), strings.Compare(a.Name, b.Name))
}

func utcDay(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }

// Segments returns the segments in the state directory dir, oldest first. The
// result includes quarantined segments. All other files, and symbolic links,
// are ignored.
func Segments(dir string) ([]Segment, error) {
	d, err := openSessions(dir)
	if err != nil {
		return nil, fmt.Errorf("list recorded sessions: %w", err)
	}
	defer d.root.Close()
	return d.segments()
}

// A Reason is the reason for dropping a record.
type Reason int

// Values of Reason. Their names are stored on disk.
const (
	DropFull   Reason = iota // the buffer was full: the disk was slow or unavailable
	DropLarge                // the record was larger than MaxValue
	DropClosed               // the Writer was closed before the record was written
	numReasons
)

// Reasons lists the names of Reason values.
var Reasons = [numReasons]string{"full", "large", "closed"}

// Dropped counts dropped records by Reason.
type Dropped [numReasons]uint64

// Total returns the number of dropped records.
func (d Dropped) Total() uint64 {
	var n uint64
	for _, v := range d {
		n += v
	}
	return n
}

// String returns the non-zero counters, such as "full=3 large=1".
func (d Dropped) String() string {
	var b strings.Builder
	for r, n := range d {
		if n > 0 {
			fmt.Fprintf(&b, " %s=%d", Reasons[r], n)
		}
	}
	return strings.TrimPrefix(b.String(), " ")
}

// MarshalJSON returns an object with one member per Reason.
func (d Dropped) MarshalJSON() ([]byte, error) {
	m := map[string]uint64{}
	for r, n := range d {
		m[Reasons[r]] = n
	}
	return json.Marshal(m)
}

// UnmarshalJSON decodes the output of MarshalJSON. Unknown reasons are ignored.
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
