package text

// A Style describes the output of text: its width, and whether it has colours.
type Style struct {
	Columns int
	Colour  bool
}

// The sequences of ECMA-48 for attributes and colours. The colours are those of the
// terminal's palette, so that they suit dark and light backgrounds.
const (
	bold   = "\x1b[1m"
	red    = "\x1b[31m"
	yellow = "\x1b[33m"
	reset  = "\x1b[0m"
)

// Title returns a heading.
func (s Style) Title(text string) string { return s.paint(bold, text) }

// Alarm returns text about a problem.
func (s Style) Alarm(text string) string { return s.paint(red, text) }

// Notice returns text that the reader should notice.
func (s Style) Notice(text string) string { return s.paint(yellow, text) }

func (s Style) paint(sequence, text string) string {
	if !s.Colour || text == "" {
		return text
	}
	return sequence + text + reset
}
