package rules

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Pos is a place in a configuration file. Lines and columns count from one;
// a column is one character, a tab too.
type Pos struct {
	File   string
	Line   int
	Column int
}

func (p Pos) String() string { return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column) }

// An Error is one thing wrong, or doubtful, in a configuration file.
type Error struct {
	Pos
	Msg     string
	Hint    string // what to do about it; may be empty
	Source  string // the line as it stands in the file, without its end
	Warning bool   // the policy works, but probably not as it was meant
}

// Error returns `file:line:column: message`.
func (e *Error) Error() string {
	if e.Warning {
		return e.Pos.String() + ": warning: " + e.Msg
	}
	return e.Pos.String() + ": " + e.Msg
}

// Detail returns the error with the line it is in, a caret under the place,
// and the hint: several lines that end with a newline.
func (e *Error) Detail() string {
	var b strings.Builder
	b.WriteString(e.Error() + "\n")
	if e.Source != "" {
		line, caret := excerpt(e.Source, e.Column)
		b.WriteString("    " + line + "\n    " + caret + "^\n")
	}
	if e.Hint != "" {
		wrap(&b, "    ", e.Hint)
	}
	return b.String()
}

// maxExcerpt is how much of a long line is shown, in characters.
const maxExcerpt = 120

// excerpt returns the part of line around column, fit for a terminal, and the
// blanks that lead to the caret below it. Tabs stay tabs in both.
func excerpt(line string, column int) (part, caret string) {
	runes := []rune(line)
	at := min(max(column-1, 0), len(runes))
	start := 0
	if at >= maxExcerpt {
		start = at - maxExcerpt/2
	}
	var text, blanks strings.Builder
	if start > 0 {
		text.WriteString("...")
		blanks.WriteString("   ")
	}
	for i := start; i < len(runes) && i < start+maxExcerpt; i++ {
		r := runes[i]
		if r != '\t' && !printable(r) {
			r = '?'
		}
		text.WriteRune(r)
		if i < at {
			if r != '\t' {
				r = ' '
			}
			blanks.WriteRune(r)
		}
	}
	if start+maxExcerpt < len(runes) {
		text.WriteString("...")
	}
	return text.String(), blanks.String()
}

// Errors are all that was found wrong, in the order of the files.
type Errors []*Error

// Error returns one line for each error.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find each of them.
func (es Errors) Unwrap() []error {
	list := make([]error, len(es))
	for i, e := range es {
		list[i] = e
	}
	return list
}

// Detail returns every error with its line, caret and hint.
func (es Errors) Detail() string {
	var b strings.Builder
	for _, e := range es {
		b.WriteString(e.Detail())
	}
	return b.String()
}

// didYouMean returns a hint that names the word nearest to wrong, or, if none
// is near, those that are possible.
func didYouMean(wrong string, words []string) string {
	best, least := "", 3
	for _, w := range words {
		// A word of two letters is not a slip for another of two.
		if d := distance(strings.ToLower(wrong), w); d < least && d < len(w)-1 {
			best, least = w, d
		}
	}
	if best != "" {
		return "did you mean `" + best + "`?"
	}
	if len(words) == 0 {
		return ""
	}
	const few = 40
	if len(words) > few {
		return "valid are: " + strings.Join(words[:few], ", ") + ", ..."
	}
	return "valid are: " + strings.Join(words, ", ")
}

// distance counts the slips that lead from a to b: a letter put in, left out,
// changed, or two exchanged (optimal string alignment).
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return max(len(a), len(b))
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// runeCount is the number of characters in s, as columns are counted.
func runeCount(s string) int { return utf8.RuneCountInString(s) }
