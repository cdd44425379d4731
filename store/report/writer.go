package report

import (
	"fmt"
	"io"
	"unicode"
	"unicode/utf8"
)

// A Writer is the last thing between what a program prints and a terminal. It
// lets through what can be seen, line feeds and tabs, and writes everything
// else as \uNNNN (bytes that are no UTF-8 as \xNN). Inside of a JSON string this
// is the same character. Texts of strangers are Printable before they come here;
// this is for those that somebody forgot, and for file names.
type Writer struct {
	to   io.Writer
	rest []byte // the beginning of a rune whose end has not come yet
	buf  []byte
}

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer { return &Writer{to: w} }

// Write writes p. Of the end of p up to three bytes may be kept for the next
// Write, or for Close.
func (w *Writer) Write(p []byte) (int, error) {
	from, n := p, len(p)
	if len(w.rest) > 0 {
		from = append(w.rest, p...)
		w.rest = nil
	}
	done := 0 // up to here from is in buf, unless all of it is harmless
	w.buf = w.buf[:0]
	for i := 0; i < len(from); {
		if c := from[i]; c >= ' ' && c <= '~' || c == '\n' || c == '\t' {
			i++
			continue
		}
		r, size := utf8.DecodeRune(from[i:])
		switch {
		case r == utf8.RuneError && size == 1 && !utf8.FullRune(from[i:]):
			w.rest = append(w.rest, from[i:]...)
			from = from[:i]
			continue
		case r == utf8.RuneError && size == 1:
			w.buf = fmt.Appendf(append(w.buf, from[done:i]...), `\x%02x`, from[i])
		case unicode.IsPrint(r) && !hidden(r):
			i += size
			continue
		case r > 0xffff: // as JSON has it
			w.buf = fmt.Appendf(append(w.buf, from[done:i]...), `\u%04x\u%04x`, 0xd800|(r-0x10000)>>10, 0xdc00|(r-0x10000)&0x3ff)
		default:
			w.buf = fmt.Appendf(append(w.buf, from[done:i]...), `\u%04x`, r)
		}
		i += size
		done = i
	}
	if done > 0 {
		from = append(w.buf, from[done:]...)
		w.buf = from[:0]
	}
	if _, err := w.to.Write(from); err != nil {
		return 0, err
	}
	return n, nil
}

// Close writes what was kept. It does not close what w writes to.
func (w *Writer) Close() error {
	var end []byte
	for _, c := range w.rest {
		end = fmt.Appendf(end, `\x%02x`, c)
	}
	w.rest = nil
	_, err := w.to.Write(end)
	return err
}
