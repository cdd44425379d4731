package filter

import (
	"bytes"
	"io"
)

// maxLine is the longest line that is taken as a whole. The longest one smtpd
// can send is a data-line request of 65,616 bytes; of a longer line the head
// is kept, which holds the session and token that an answer needs.
const maxLine = 128 << 10

// lines splits a stream at LF, and only there: a CR is part of the line. It
// reads into one buffer that it never grows.
type lines struct {
	r          io.Reader
	buf        []byte
	start, end int  // what has been read and not yet been handed out
	scanned    int  // no LF before this position
	skip       bool // in the tail of an over-long line
	err        error
}

func newLines(r io.Reader) *lines {
	return &lines{r: r, buf: make([]byte, 2*maxLine)}
}

// next returns the next line that is in the buffer, without its LF, or false
// if fill must be called first. The line is valid until then.
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

// fill reads once from the stream. It returns the stream's error, io.EOF at
// the end; a last line without LF is dropped, as smtpd never finished it.
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
