package maillog

import (
	"errors"
	"io"
	"os"
	"syscall"
	"time"
)

// A Line is a line of any log. The slices in a Line are valid until the next line is read.
type Line struct {
	At      int64  // time in microseconds since 1970; 0 if the line has no syslog prefix
	Host    []byte // may be empty
	Program []byte
	PID     []byte // may be empty
	Text    []byte // text after the prefix
	Raw     []byte // whole line
}

// A Syslog parses the prefixes of syslog lines. The lines must be passed to it in the order of the
// log.
type Syslog struct{ clock clock }

// NewSyslog returns a Syslog. A time without a UTC offset is in the given zone. If a time has no
// year, the year is the latest one in which the time is at most a day after newest.
func NewSyslog(zone *time.Location, newest time.Time) *Syslog {
	return &Syslog{clock{zone: zone, newest: newest.UnixMicro()}}
}

// Newest sets the latest time that is possible for the following lines.
func (s *Syslog) Newest(t time.Time) { s.clock.newest = t.UnixMicro() }

// Parse parses a line. ok is false if the line has no time or no program.
func (s *Syslog) Parse(raw []byte) (l Line, ok bool) {
	parsed, err := parseLine(raw, &s.clock)
	if err != nil || !parsed.ok {
		return Line{Raw: raw}, false
	}
	return Line{At: parsed.at, Host: parsed.host, Program: parsed.program, PID: parsed.pid, Text: parsed.text, Raw: raw}, true
}

// ErrTooLong is returned by Next for a line longer than 64 KiB. The line is skipped.
var ErrTooLong = errTooLong

// Next returns the next line. ok is false if it is not a syslog line. At the end of the log, Next
// returns io.EOF.
func (l *Log) Next() (line Line, ok bool, err error) {
	parsed, err := l.next()
	if errors.Is(err, errYear) {
		err = nil
		parsed.ok = false
	}
	if err != nil || !parsed.ok {
		return Line{Raw: l.raw}, false, err
	}
	return Line{At: parsed.at, Host: parsed.host, Program: parsed.program, PID: parsed.pid, Text: parsed.text, Raw: l.raw}, true, nil
}

// NextRaw returns the next line of a log that was not written by syslogd(8).
func (l *Log) NextRaw() ([]byte, error) {
	if l.in == nil {
		if err := l.begin(); err != nil {
			return nil, err
		}
		l.export = nil
	}
	l.lineBytes = 0
	err := l.readLine()
	return l.raw, err
}

// Cut reports whether the log is an incomplete compressed file and has been read to its end. For
// example, the server may still be writing the file.
func (l *Log) Cut() bool { return l.cut }

// Read returns the number of compressed bytes that were read, and the size of the file. size is 0
// if it is unknown.
func (l *Log) Read() (read, size int64) { return l.read.Load(), l.size }

// First returns the time of the first line of a syslog, in microseconds since 1970. For a log
// opened with OpenRaw, First returns the modification time of the file.
func (l *Log) First() int64 {
	if l.first != 0 {
		return l.first
	}
	return l.clock.newest
}

// ModTime returns the modification time of the file. For standard input, ModTime returns the value
// of now that was passed to Open or OpenRaw.
func (l *Log) ModTime() time.Time { return time.UnixMicro(l.clock.newest) }

// OpenRaw opens a log that was not written by syslogd(8). The name "-" represents standard input.
func OpenRaw(name string, stdin io.Reader, now time.Time) (*Log, error) {
	l := &Log{Name: name, file: io.NopCloser(stdin), clock: clock{zone: time.UTC, newest: now.UnixMicro()}}
	if name == "-" {
		return l, nil
	}
	file, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	l.file = file
	if err := l.regular(file, now); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return l, nil
}

// Time parses a time such as 2026-12-01T10:31:02.123+01:00. A space may replace the T. A time
// without an offset is in the given zone.
func Time(s []byte, zone *time.Location) (micros int64, ok bool) {
	var b [48]byte
	if len(s) >= len(b) {
		return 0, false
	}
	micros, _, ok = cutISO(append(append(b[:0], s...), ' '), zone)
	return micros, ok
}

// CutTime removes a time and the space after it. CutTime accepts the same formats as Time.
func CutTime(s []byte, zone *time.Location) (micros int64, rest []byte, ok bool) {
	return cutISO(s, zone)
}

// TimeOfDay parses a time such as 10:31:02.
func TimeOfDay(s []byte) (micros int64, ok bool) {
	hour, within, ok := clockTime(s)
	return int64(hour)*60*minute + within, ok
}
