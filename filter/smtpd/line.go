package smtpd

import (
	"bytes"
	"io"
)

// maxLine is the maximum length of a line; longer lines are truncated. smtpd's longest
// line is a data-line request of 65,616 bytes. The start of a truncated line still has
// the session and token that the response needs.
const maxLine = 128 << 10

// lines splits a stream into lines, using a buffer of fixed size. Only LF ends a line;
// a CR is part of the line.
type lines struct {
	r          io.Reader
	buf        []byte
	start, end int  // part of buf that has not been returned yet
	scanned    int  // there is no LF in buf before this position
	skip       bool // discard the rest of a line that is too long
	err        error
}

func newLines(r io.Reader) *lines {
	return &lines{r: r, buf: make([]byte, 2*maxLine)}
}

// next returns the next complete line in the buffer, without its LF. The line is valid
// until fill is called. cut reports whether the line was truncated. If ok is false,
// call fill before calling next again.
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

// fill reads once from the stream. It returns the stream's error, or io.EOF at the end.
// A last line without LF is incomplete and is dropped.
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
