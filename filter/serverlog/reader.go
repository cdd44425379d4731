package serverlog

import (
	"bytes"
	"strconv"
	"time"

	"scanwatch/filter/maillog"
	"scanwatch/filter/smtpd"
	"scanwatch/internal/text"
)

// Options are the options of New.
type Options struct {
	// Zone is the time zone of times that have no UTC offset.
	Zone *time.Location
	// Date is the date of the first line. Date is used if the lines of the log have no date.
	Date time.Time
	// Prompt reports whether a session is reported as soon as it ends. Without Prompt, a session is
	// reported when its messages have been delivered. Prompt only affects logs of Postfix.
	Prompt bool
}

// Counts describes the lines that a Reader has read.
type Counts struct {
	Lines    int `json:"lines"`
	Used     int `json:"used"`     // number of lines from the mail server
	Unknown  int `json:"unknown"`  // number of lines that the parser does not understand
	Sessions int `json:"sessions"` // number of reported sessions
	Lost     int `json:"lost"`     // number of sessions that were reported early, because too many were open
	// Samples holds the first lines that the parser does not understand, in quoted form.
	Samples []string `json:"samples,omitempty"`
}

// MaxSamples is the maximum number of samples.
const MaxSamples = 3

// A Reader reads the lines of a log and reports the sessions in it. A Reader must not be used
// concurrently.
type Reader struct {
	table  *table
	parser parser
	counts Counts
}

// New returns a Reader that reports sessions to sink.
func New(kind *Kind, sink Sink, o Options) *Reader {
	t := newTable(kind, sink)
	t.zone, t.prompt = o.Zone, o.Prompt
	y, m, d := o.Date.In(o.Zone).Date()
	t.date = time.Date(y, m, d, 0, 0, 0, 0, o.Zone)
	return &Reader{table: t, parser: kind.make(t)}
}

// Line reads a line, and reports whether the parser understands the line. stamped reports whether
// the line has a syslog prefix.
func (r *Reader) Line(l *maillog.Line, stamped bool) bool {
	r.counts.Lines++
	v := unknown
	if !r.table.kind.Syslog {
		l.Raw = bytes.TrimPrefix(l.Raw, []byte("\ufeff")) // programs on Windows write a byte order mark
		r.table.line = l.Raw
		v = r.parser.line(l)
	} else if stamped {
		l.At = r.table.tick(l.At)
		for range repeated(l) {
			r.table.line = l.Text
			v = r.parser.line(l)
		}
	}
	switch v {
	case used:
		r.counts.Used++
	case unknown:
		r.counts.Unknown++
		if len(r.counts.Samples) < MaxSamples {
			r.counts.Samples = append(r.counts.Samples, Sample(l.Raw))
		}
	}
	return v != unknown
}

// maxRepeated is the maximum number of times that a line counts. The number in the log may be wrong.
const maxRepeated = 1000

// repeated returns the number of times that a line was logged. With $RepeatedMsgReduction, rsyslogd
// combines equal lines in "message repeated N times: [ TEXT]". repeated then sets l.Text to TEXT.
func repeated(l *maillog.Line) int {
	rest, ok := bytes.CutPrefix(l.Text, []byte("message repeated "))
	number, rest, found := bytes.Cut(rest, []byte(" times: [ "))
	n, err := strconv.Atoi(string(number))
	rest, closed := bytes.CutSuffix(rest, []byte("]"))
	if !ok || !found || !closed || err != nil || n < 1 {
		return 1
	}
	_, sendmail, _ := bytes.Cut(rest, []byte(": "))
	if l.Text = rest; !bytes.HasPrefix(rest, []byte("warning: ")) && !bytes.HasPrefix(rest, []byte("NOQUEUE: ")) && !bytes.HasPrefix(sendmail, []byte("AUTH failure (")) {
		return 1 // a session cannot begin or end twice
	}
	return min(n, maxRepeated)
}

// Sample returns the start of a line in printable form and without credentials.
func Sample(line []byte) string {
	return text.Escape(clip(smtpd.RedactLog(clip(line, maxPath)), maxExample))
}

// File must be called at the start of each file. name is the name of the file without its
// directory.
func (r *Reader) File(name string) {
	if t, ok := r.parser.(*transcript); ok {
		t.file(name)
	}
}

// Undated reports whether Options.Date is the only date of the lines.
func (r *Reader) Undated() bool {
	t, ok := r.parser.(*transcript)
	return ok && t.dateless && !t.sure
}

// Tick reports the sessions that have ended by the given time.
func (r *Reader) Tick(at time.Time) {
	r.table.tick(at.UnixMicro())
	if m, ok := r.parser.(interface{ expire(int64) }); ok {
		m.expire(at.UnixMicro())
	}
}

// Flush reports all remaining sessions.
func (r *Reader) Flush() { r.table.flush() }

// Last returns the newest time in the log, in microseconds since 1970.
func (r *Reader) Last() int64 { return r.table.now }

// Counts returns the counts for the lines that have been read so far.
func (r *Reader) Counts() Counts {
	c := r.counts
	c.Sessions, c.Lost = r.table.sessions, r.table.lost
	return c
}
