package maillog

import (
	"bytes"
	"errors"
	"time"
)

// A line is a parsed log line. The slices in a line point into the log's buffer.
type line struct {
	at      int64 // microseconds since 1970
	host    []byte
	program []byte
	pid     []byte
	text    []byte
	ok      bool // the line contains a time and a program
}

// smtpd reports whether OpenSMTPD has written the line.
func (l *line) smtpd() bool {
	return string(l.program) == "smtpd" || string(l.program) == "opensmtpd"
}

// A clock converts the times in a log to microseconds since 1970.
type clock struct {
	zone *time.Location // time zone of times that have no UTC offset
	year int            // year of the latest RFC 3164 time; 0 before the first such time
	// newest is the latest time that is possible, in microseconds since 1970.
	newest int64

	month, day int // date of the latest RFC 3164 time
	// hour holds the first 9 bytes of the latest RFC 3164 time, which contain its date and hour.
	// base is the start of that hour in microseconds since 1970.
	hour [9]byte
	base int64
}

const (
	second = int64(time.Second / time.Microsecond)
	minute = 60 * second
	oneDay = 24 * 60 * minute
)

// errYear is returned if it is impossible to infer the year of RFC 3164 times.
var errYear = errors.New("the times have no year, and the lines cover more than a year; read a file instead of a pipe")

// parseLine parses a line of syslog. The line is in RFC 5424 format, or consists of an RFC 3164 or
// RFC 3339 time, a host, a program and a text. A priority may precede it.
func parseLine(s []byte, c *clock) (l line, err error) {
	s, version := cutPriority(s)
	if version {
		return parse5424(s), nil
	}
	if len(s) > 0 && '0' <= s[0] && s[0] <= '9' {
		l.at, s, l.ok = cutISO(s, c.zone)
	} else {
		l.at, s, l.ok, err = c.cut3164(s)
	}
	if !l.ok || err != nil {
		return l, err
	}
	l.ok = l.header(s)
	return l, nil
}

// header parses "HOST PROGRAM[PID]: TEXT". The host may be missing. In logs of busybox, the
// facility follows the host.
func (l *line) header(s []byte) bool {
	for range 3 {
		word, rest, ok := bytes.Cut(bytes.TrimLeft(s, " "), []byte(" "))
		if !ok {
			return false
		}
		if program, found := bytes.CutSuffix(word, []byte(":")); found {
			l.program, l.pid, _ = bytes.Cut(program, []byte("["))
			l.pid = bytes.TrimSuffix(l.pid, []byte("]"))
			l.text = rest
			return len(l.program) > 0
		}
		if l.host == nil {
			l.host = word
		} else if bytes.IndexByte(word, '.') < 0 {
			return false
		}
		s = rest
	}
	return false
}

// cutPriority removes a priority such as "<22>" and the RFC 5424 version "1 " from the start of s.
func cutPriority(s []byte) (rest []byte, version bool) {
	if len(s) < 3 || s[0] != '<' {
		return s, false
	}
	i := bytes.IndexByte(s[:min(len(s), 6)], '>')
	if i < 2 {
		return s, false
	}
	s = s[i+1:]
	return bytes.CutPrefix(s, []byte("1 "))
}

// parse5424 parses the part of an RFC 5424 line after the version.
func parse5424(s []byte) (l line) {
	var ok bool
	if l.at, s, ok = cutISO(s, time.UTC); !ok {
		return l
	}
	var words [4][]byte // host, program, process, kind
	for i := range words {
		if words[i], s, ok = bytes.Cut(s, []byte(" ")); !ok {
			return l
		}
	}
	l.host, l.program, l.pid = words[0], words[1], words[2]
	if s, ok = cutStructured(s); !ok {
		return l
	}
	l.text = bytes.TrimPrefix(s, []byte("\ufeff"))
	l.ok = true
	return l
}

// cutStructured removes RFC 5424 structured data and the space after it.
func cutStructured(s []byte) (rest []byte, ok bool) {
	if rest, ok = bytes.CutPrefix(s, []byte("- ")); ok {
		return rest, true
	}
	for quoted, i := false, 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case !quoted && s[i] == ']' && i+1 < len(s) && s[i+1] == ' ':
			return s[i+2:], s[0] == '['
		}
	}
	return nil, false
}

var months = [...]string{"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"}

// monthDay parses the first six bytes of an RFC 3164 time, such as "Nov  1".
func monthDay(s []byte) (month, day int, ok bool) {
	if len(s) < 6 || s[3] != ' ' {
		return 0, 0, false
	}
	for i, m := range months {
		if string(s[:3]) == m {
			month = i + 1
		}
	}
	tens := s[4]
	if tens == ' ' {
		tens = '0'
	}
	day, ok = twoDigits(tens, s[5])
	return month, day, ok && month > 0 && day > 0 && day < 32
}

func twoDigits(a, b byte) (n int, ok bool) {
	a, b = a-'0', b-'0'
	return int(a)*10 + int(b), a < 10 && b < 10
}

// clockTime parses a time such as "10:31:02". rest is the time within the hour in microseconds.
func clockTime(s []byte) (hour int, rest int64, ok bool) {
	if len(s) < 8 || s[2] != ':' || s[5] != ':' {
		return 0, 0, false
	}
	hour, ok1 := twoDigits(s[0], s[1])
	m, ok2 := twoDigits(s[3], s[4])
	sec, ok3 := twoDigits(s[6], s[7])
	return hour, int64(m)*minute + int64(sec)*second, ok1 && ok2 && ok3 && hour < 24 && m < 60 && sec < 61
}

// rollover returns how the year changes between two consecutive lines, given their dates. The
// result is 1 if the second line is from the next year. The result is -1 if the second line is a
// delayed one from the previous year.
func rollover(month, day, nextMonth, nextDay int) int {
	switch {
	case month == 0:
	case nextMonth-month < -6:
		return 1
	case month == 1 && day == 1 && nextMonth == 12 && nextDay == 31:
		return -1
	}
	return 0
}

// cut3164 removes an RFC 3164 time and the space after it, as in "Nov  1 10:31:02 ". The seconds
// may have a fraction.
func (c *clock) cut3164(s []byte) (at int64, rest []byte, ok bool, err error) {
	if len(s) < 16 || s[6] != ' ' {
		return 0, nil, false, nil
	}
	month, day, ok := monthDay(s)
	if !ok {
		return 0, nil, false, nil
	}
	hour, within, ok := clockTime(s[7:])
	if !ok {
		return 0, nil, false, nil
	}
	if c.year == 0 {
		c.year = yearBefore(month, day, hour, within, c.newest, c.zone)
	}
	c.year += rollover(c.month, c.day, month, day)
	c.month, c.day = month, day
	if [9]byte(s) != c.hour {
		c.hour = [9]byte(s)
		c.base = time.Date(c.year, time.Month(month), day, hour, 0, 0, 0, c.zone).UnixMicro()
	}
	at = c.base + within
	if at > c.newest+366*oneDay/2 {
		return 0, nil, false, errYear
	}
	micros, rest, ok := cutFraction(s[15:])
	if !ok || len(rest) == 0 || rest[0] != ' ' {
		return 0, nil, false, nil
	}
	return at + micros, rest[1:], true, nil
}

// yearBefore returns the latest year in which the given time is at most one day after newest.
func yearBefore(month, day, hour int, within, newest int64, zone *time.Location) int {
	year := time.UnixMicro(newest + oneDay).In(zone).Year()
	for range 8 { // there may be eight years between two leap days
		t := time.Date(year, time.Month(month), day, hour, 0, 0, 0, zone)
		if t.Day() == day && t.UnixMicro()+within <= newest+oneDay {
			break
		}
		year--
	}
	return year
}

// cutFraction removes a fraction such as ".123456" and returns it in microseconds.
func cutFraction(s []byte) (micros int64, rest []byte, ok bool) {
	if len(s) == 0 || s[0] != '.' && s[0] != ',' {
		return 0, s, true
	}
	unit := second
	for i, c := range s[1:] {
		if c < '0' || c > '9' {
			return micros, s[1+i:], i > 0
		}
		unit /= 10
		micros += int64(c-'0') * unit
	}
	return 0, nil, false
}

// cutISO removes an RFC 3339 time and the space after it. The UTC offset may also have the form
// "+0100", and Exim's log_timezone writes a space before the offset. A time without an offset is in
// the given zone.
func cutISO(s []byte, zone *time.Location) (at int64, rest []byte, ok bool) {
	if len(s) < 20 || s[4] != '-' || s[7] != '-' || s[10] != 'T' && s[10] != ' ' {
		return 0, nil, false
	}
	century, ok1 := twoDigits(s[0], s[1])
	year, ok2 := twoDigits(s[2], s[3])
	month, ok3 := twoDigits(s[5], s[6])
	day, ok4 := twoDigits(s[8], s[9])
	hour, within, ok5 := clockTime(s[11:])
	if !(ok1 && ok2 && ok3 && ok4 && ok5) || month < 1 || month > 12 || day < 1 || day > 31 || century < 19 {
		return 0, nil, false
	}
	micros, s, ok := cutFraction(s[19:])
	if !ok {
		return 0, nil, false
	}
	word, rest, ok := bytes.Cut(s, []byte(" "))
	if !ok {
		return 0, nil, false
	}
	if next, after, ok := bytes.Cut(rest, []byte(" ")); ok && len(word) == 0 {
		if _, ok := zoneOffset(next); ok {
			word, rest = next, after
		}
	}
	offset := int64(0)
	switch {
	case len(word) == 0: // the time has no UTC offset
	case string(word) == "Z":
		zone = time.UTC
	default:
		if offset, ok = zoneOffset(word); !ok {
			return 0, nil, false
		}
		zone = time.UTC
	}
	at = time.Date(century*100+year, time.Month(month), day, hour, 0, 0, 0, zone).UnixMicro()
	return at + within + micros - offset, rest, true
}

// zoneOffset parses an offset such as "+01:00" or "+0100" and returns it in microseconds.
func zoneOffset(s []byte) (offset int64, ok bool) {
	if len(s) == 6 && s[3] == ':' {
		s = []byte{s[0], s[1], s[2], s[4], s[5]}
	}
	if len(s) != 5 || s[0] != '+' && s[0] != '-' {
		return 0, false
	}
	h, ok1 := twoDigits(s[1], s[2])
	m, ok2 := twoDigits(s[3], s[4])
	offset = int64(h*60+m) * minute
	if s[0] == '-' {
		offset = -offset
	}
	return offset, ok1 && ok2 && h < 24 && m < 60
}
