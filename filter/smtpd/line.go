package smtpd

import (
	"bytes"
	"io"
)

// maxLine is the maximum length of a line. Longer lines are truncated. The longest line that smtpd
// sends is a data-line request of 65,616 bytes. The start of a truncated line contains the session
// and token, which the response needs.
const maxLine = 128 << 10

// A lines splits a stream into lines. The buffer of a lines has a fixed size. Only LF ends a line;
// CR is part of the line.
type lines struct {
	r          io.Reader
	buf        []byte
	start, end int  // part of buf that next has not returned yet
	scanned    int  // there is no LF in buf between start and this position
	skip       bool // the rest of a line that is too long must be discarded
	err        error
}

func newLines(r io.Reader) *lines {
	return &lines{r: r, buf: make([]byte, 2*maxLine)}
}

// next returns the next complete line in the buffer without its LF. The line is valid until fill is
// called. cut reports whether the line was truncated. If ok is false, the buffer contains no
// complete line, and fill must be called before next.
func (l *lines) next() (line []byte, cut, ok bool) {
	for {
		i := bytes.IndexByte(l.buf[l.scanned:l.end], '\n')
		if i < 0 {
			l.scanned = l.end
			if l.end-l.start < maxLine {
				return nil, false, false
			}
			line, l.start = l.buf[l.start:l.start+maxLine], l.end
			if l.skip {
				return nil, false, false
			}
			l.skip = true
			return line, true, true
		}
		i += l.scanned
		line, l.start, l.scanned = l.buf[l.start:i], i+1, i+1
		if l.skip {
			l.skip = false
			continue
		}
		if len(line) > maxLine {
			return line[:maxLine], true, true
		}
		return line, false, true
	}
}

// fill reads from the stream once, and returns the stream's error, or io.EOF at the end. If the
// last line has no LF, it is incomplete and is dropped.
func (l *lines) fill() error {
	if l.err != nil {
		return l.err
	}
	if l.start > 0 {
		copy(l.buf, l.buf[l.start:l.end])
		l.scanned -= l.start
		l.end -= l.start
		l.start = 0
	}
	var n int
	n, l.err = l.r.Read(l.buf[l.end:])
	l.end += n
	if n > 0 {
		return nil
	}
	return l.err
}
