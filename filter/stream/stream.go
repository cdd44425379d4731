// Package stream imports recorded streams. A stream contains the lines that smtpd sends to a filter
// (smtpd-filters(7)). A stream can be recorded with tee(1), for example.
//
// The code of the filter processes the sessions, and takes the time from the stream. The records of
// the sessions are written to a state directory. No rules are evaluated, and no clients are banned.
package stream

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

const (
	// maxLine is the maximum length of a line in bytes. The lines of smtpd have at most 65,616
	// bytes.
	maxLine = 128 << 10
	// maxLead is the maximum number of lines before smtpd's first line. An input with more lines
	// before smtpd's first line is not a stream.
	maxLead = 100
)

// Counts holds the number of lines and runs in a stream.
type Counts struct {
	Lines   int   // number of lines, including skipped ones
	Runs    int   // number of times smtpd was started; each run begins with a handshake
	Skipped int   // number of lines that do not come from smtpd
	First   error // describes the first skipped line; may be nil
}

// Split calls run for each run of smtpd in the stream. The reader returns the lines of the
// handshake and all events up to the next handshake. Lines that cannot come from smtpd are skipped
// and counted.
//
// Requests of the phases auth and data-line contain passwords and message text, so Split skips
// them. These requests are not counted.
//
// Split returns errors from in and run, or an error if in is not a stream.
func Split(in io.Reader, run func(io.Reader) error) (Counts, error) {
	s := splitter{in: bufio.NewReaderSize(in, maxLine)}
	for s.next() {
		s.counts.Runs++
		s.rest, s.events, s.ended = s.line, !isHandshake(s.line), false
		if err := run(&s); err != nil {
			return s.counts, err
		}
		// Discard the lines that run has not read.
		if _, err := io.Copy(io.Discard, &s); err != nil {
			return s.counts, err
		}
	}
	switch {
	case s.err != nil && s.err != io.EOF:
		return s.counts, fmt.Errorf("read stream: line %d: %w", s.counts.Lines+1, s.err)
	case s.counts.Lines == 0:
		return s.counts, errors.New("read stream: no lines")
	case s.counts.Runs == 0:
		return s.counts, fmt.Errorf("read stream: %w; expected the lines that smtpd sends to a filter; a mail log is imported by smtpd-log or by the kind of its server", s.counts.First)
	}
	return s.counts, nil
}

// A splitter reads the lines of each run in turn.
type splitter struct {
	in     *bufio.Reader
	err    error  // error from in
	counts Counts // counts of the lines read so far

	line   []byte // latest line from smtpd, valid until next is called
	rest   []byte // part of line that Read has not returned yet
	events bool   // the run has at least one line after its handshake
	ended  bool   // line is the first line of the next run
}

// Read implements io.Reader for the current run.
func (s *splitter) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		if s.ended {
			return 0, io.EOF
		}
		if !s.advance() {
			s.ended = true
			if s.err != nil && s.err != io.EOF {
				return 0, s.err
			}
			return 0, io.EOF
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// advance reads the next line of the current run. advance returns false if the run has ended.
func (s *splitter) advance() bool {
	if !s.read() {
		s.line = nil
		return false
	}
	handshake := isHandshake(s.line)
	if handshake && s.events {
		return false
	}
	s.events = s.events || !handshake
	s.rest = s.line
	return true
}

// next reports whether another run follows. If another run follows, s.line is the first line of the
// run.
func (s *splitter) next() bool { return len(s.line) > 0 && s.ended || s.read() }

// read reads smtpd's next line, including the newline.
func (s *splitter) read() bool {
	for s.err == nil {
		s.line, s.err = s.in.ReadSlice('\n')
		if len(s.line) == 0 {
			return false
		}
		s.counts.Lines++
		problem := ""
		switch {
		case errors.Is(s.err, bufio.ErrBufferFull):
			problem = fmt.Sprintf("longer than %d bytes", maxLine)
			for s.err == bufio.ErrBufferFull {
				_, s.err = s.in.ReadSlice('\n')
			}
		case s.err != nil:
			problem = "incomplete" // smtpd stopped in the middle of the line
		case !isEvent(s.line):
			problem = "not a line of smtpd"
		case isSecret(s.line):
			continue
		default:
			return true
		}
		s.counts.Skipped++
		if s.counts.First == nil {
			line := bytes.TrimRight(s.line[:min(len(s.line), 60)], "\n")
			s.counts.First = fmt.Errorf("line %d: %s: %+q", s.counts.Lines, problem, line)
		}
		if s.counts.Runs == 0 && s.counts.Skipped >= maxLead {
			return false
		}
	}
	return false
}

// isHandshake reports whether a line belongs to a run's handshake.
func isHandshake(line []byte) bool { return bytes.HasPrefix(line, []byte("config|")) }

// isEvent reports whether a line looks like one that smtpd sends.
func isEvent(line []byte) bool {
	word, rest, _ := bytes.Cut(line, []byte{'|'})
	switch string(word) {
	case "config":
		return true
	case "report", "filter":
		fields := bytes.SplitN(rest, []byte{'|'}, 5) // version, time, subsystem, event, session, ...
		return len(fields) == 5 && bytes.IndexByte(fields[1], '.') > 0 && bytes.HasPrefix(fields[2], []byte("smtp-"))
	}
	return false
}

// isSecret reports whether a line from smtpd is a request that contains a password or
// message text.
func isSecret(line []byte) bool {
	fields := bytes.SplitN(line, []byte{'|'}, 6)
	return string(fields[0]) == "filter" && (string(fields[4]) == "auth" || string(fields[4]) == "data-line")
}
