// Package output provides functions that several commands share: atomic replacement of files, and
// progress on a terminal.
package output

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/term"

	"scanwatch/internal/text"
)

// IsTerminal reports whether w is a character device.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// A Progress shows the number of records or bytes read so far on a terminal.
type Progress struct {
	w     io.Writer
	zone  *time.Location
	shown bool
	n     int
}

// NewProgress returns a Progress that writes to w if w is a terminal.
func NewProgress(w io.Writer, zone *time.Location) *Progress {
	return &Progress{w: w, zone: zone, shown: IsTerminal(w)}
}

// progressStep is the number of records between updates.
const progressStep = 10_000

// Add adds n records to the progress. at is the end of the last record's session.
func (p *Progress) Add(n int, at time.Time) {
	if p.n += n; p.shown && p.n%progressStep < n {
		fmt.Fprintf(p.w, "\r%d sessions, %s", p.n, at.In(p.zone).Format("2006-01-02 15:04"))
	}
}

// Bytes shows the number of bytes read so far and, unless total is 0, the total.
func (p *Progress) Bytes(read, total int64) {
	p.n = progressStep // so that Clear removes the line
	switch {
	case !p.shown:
	case total > 0:
		fmt.Fprintf(p.w, "\r%s of %s ", text.Size(read), text.Size(total))
	default:
		fmt.Fprintf(p.w, "\r%s ", text.Size(read))
	}
}

// Clear removes the progress line from the terminal.
func (p *Progress) Clear() {
	if p.shown && p.n >= progressStep {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

// StyleOf returns the style for text written to w. On a terminal, the text is as wide as the
// terminal. Otherwise, and on a terminal of unknown size, the width is the value of the environment
// variable COLUMNS, or 80. Colours are used on terminals unless NO_COLOR is set (no-color.org).
func StyleOf(w io.Writer) text.Style {
	s := text.Style{Columns: 80}
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil {
		s.Columns = n
	}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 0 {
			s.Columns = n
		}
		s.Colour = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
	s.Columns = min(max(s.Columns, minColumns), maxColumns)
	return s
}

// Limits on the width of text. Narrower terminals wrap lines themselves, and wider tables are hard
// to read.
const (
	minColumns = 60
	maxColumns = 200
)
