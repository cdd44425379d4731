package text

import (
	"encoding/json"
	"fmt"
	"io"
	"unicode/utf8"
)

// A Writer protects a terminal from text that has not been escaped. It writes visible characters,
// line feeds and tabs unchanged. Invalid UTF-8 becomes \xNN. Any other character becomes \uNNNN,
// which has the same meaning in a JSON string.
//
// Callers should escape hostile text with Escape. The Writer protects against callers that do not,
// and against hostile file names.
type Writer struct {
	// Styled is set while the output contains the sequences of a Style, which Write then writes
	// unchanged.
	Styled bool

	to   io.Writer
	rest []byte // bytes of an incomplete character or sequence
	buf  []byte
}

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer { return &Writer{to: w} }

// Write writes p. If p ends in the middle of a character or of a Style's sequence, Write keeps its
// bytes until the next Write or Close.
func (w *Writer) Write(p []byte) (int, error) {
	from, n := p, len(p)
	if len(w.rest) > 0 {
		from = append(w.rest, p...)
		w.rest = nil
	}
	done := 0 // once a byte has been escaped, buf holds the output for from[:done]
	w.buf = w.buf[:0]
	for i := 0; i < len(from); {
		if c := from[i]; c >= ' ' && c <= '~' || c == '\n' || c == '\t' {
			i++
			continue
		}
		r, size := utf8.DecodeRune(from[i:])
		styled, whole := w.sequence(from[i:])
		switch {
		case styled > 0 && whole:
			i += styled
			continue
		case styled > 0:
			w.rest = append(w.rest, from[i:]...)
			from = from[:i]
			continue
		case r == utf8.RuneError && size == 1 && !utf8.FullRune(from[i:]):
			w.rest = append(w.rest, from[i:]...)
			from = from[:i]
			continue
		case r == utf8.RuneError && size == 1:
			w.buf = fmt.Appendf(append(w.buf, from[done:i]...), `\x%02x`, from[i])
		case Visible(r):
			i += size
			continue
		case r > 0xffff: // a surrogate pair, as in JSON
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

// sequence returns the length of the Style's sequence that b starts with, and reports whether it is
// complete. The length is 0 if b starts with other text.
func (w *Writer) sequence(b []byte) (n int, whole bool) {
	if !w.Styled || b[0] != esc {
		return 0, false
	}
	for _, s := range sequences {
		n = min(len(s), len(b))
		if string(b[:n]) == s[:n] {
			return n, n == len(s)
		}
	}
	return 0, false
}

// Close writes the remaining bytes of an incomplete character, but does not
// close the underlying writer. If there are no remaining bytes, Close does not
// touch the underlying writer, because another goroutine may be blocked in it.
func (w *Writer) Close() error {
	if len(w.rest) == 0 {
		return nil
	}
	var end []byte
	for _, c := range w.rest {
		end = fmt.Appendf(end, `\x%02x`, c)
	}
	w.rest = nil
	_, err := w.to.Write(end)
	return err
}

// Schema is the version of the JSON objects that report, bans and why print. Schema increases when
// a member is removed or the meaning of a member changes. Adding a member does not change Schema.
const Schema = 1

// JSON writes v as a JSON value and a line feed. The characters < and > are not
// escaped, because they are common in SMTP. If indent is empty, the value is
// written on one line.
func JSON(w io.Writer, v any, indent string) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	return e.Encode(v)
}
