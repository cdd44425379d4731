package smtpd

import (
	"bytes"
	"io"
)

// maxLine is the maximum length of a line. The longest line of smtpd is a data-line
// request of 65,616 bytes. A longer line than maxLine is truncated. The head of a
// truncated line contains the session and the token, which the response needs.
const maxLine = 128 << 10

// lines splits a stream into lines. Only LF ends a line, and a CR belongs to the line.
// The buffer has a fixed size.
type lines struct {
	r          io.Reader
	buf        []byte
	start, end int  // the part of buf that has not been returned
	scanned    int  // buf contains no LF before this position
	skip       bool // discard the rest of a line that is too long
	err        error
}

func newLines(r io.Reader) *lines {
	return &lines{r: r, buf: make([]byte, 2*maxLine)}
}

// next returns the next complete line of the buffer without its LF. The line is valid
// until fill is called. cut reports whether the line is truncated. If ok is false, the
// caller must first call fill.
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

// fill reads once from the stream. The error is the error of the stream, or io.EOF at
// its end. A last line without LF is incomplete and is dropped.
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
