package rules

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Pos is a position in a configuration file. Lines and columns start at 1. Each character counts as
// one column, even a tab.
type Pos struct {
	File   string
	Line   int
	Column int
}

func (p Pos) String() string { return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column) }

// An Error is an error or a warning about a configuration file.
type Error struct {
	Pos
	Msg     string
	Hint    string // what to do about the error; may be empty
	Source  string // line of the file without its line ending
	Warning bool   // the policy is valid, but probably a mistake of the operator
}

// Error returns `file:line:column: message`.
func (e *Error) Error() string {
	if e.Warning {
		return e.Pos.String() + ": warning: " + e.Msg
	}
	return e.Pos.String() + ": " + e.Msg
}

// Detail returns the error, the line of the file, a caret below the column, and the hint. Each part
// is a line that ends with a line feed.
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

// maxExcerpt is the maximum length of an excerpt, in characters.
const maxExcerpt = 120

// excerpt returns the part of line around column in a form that is safe for a terminal. caret is
// the white space before a caret below the column. caret contains the same tabs as the line.
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

// Errors is a list of errors in file order.
type Errors []*Error

// Error returns a line for each error.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the errors in the list, for errors.As.
func (es Errors) Unwrap() []error {
	list := make([]error, len(es))
	for i, e := range es {
		list[i] = e
	}
	return list
}

// Detail returns Error.Detail of all errors.
func (es Errors) Detail() string {
	var b strings.Builder
	for _, e := range es {
		b.WriteString(e.Detail())
	}
	return b.String()
}

// didYouMean returns a hint with the word that is most similar to wrong. If no word is similar, the
// hint lists all words.
func didYouMean(wrong string, words []string) string {
	if best := Nearest(wrong, words); best != "" {
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

// Nearest returns the word that is most similar to the mistyped word wrong. If no word is similar,
// Nearest returns "".
func Nearest(wrong string, words []string) string {
	best, least := "", 3
	for _, w := range words {
		// Words of only two letters are not compared.
		if d := distance(strings.ToLower(wrong), w); d < least && d < len(w)-1 {
			best, least = w, d
		}
	}
	return best
}

// distance returns the number of typing errors between a and b. A typing error is an inserted,
// omitted or changed letter, or two neighbouring letters that are swapped. The algorithm is known
// as optimal string alignment.
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

// A removedWord is a word of an earlier version of the language, with the word that replaces it.
type removedWord struct {
	word, arg string // an empty arg means any argument
	hint      string
}

// removedWords lists words that were valid in earlier versions. The parser searches the list only
// after it has found an invalid word.
var removedWords = []removedWord{
	{"privacy", "default", "privacy default is now: privacy full"},
	{"privacy", "strict", "privacy strict is now: privacy hashed"},
	{"detail", "", "remove the line: all sessions are recorded in detail"},
	{"events", "", "remove the line: `scanwatch watch --json` prints the events of the running filter"},
	{"escalate", "", "remove the line, and write the durations of repeated bans in each rule: ban { 10m, 1h, 1d, 7d }"},
	{"campaign", "", "remove it: use `count unknown-recipient > 20 in 1h by site`, or evidence probed-recipient"},
}

// replacement returns a hint for a removed word with an argument. For all other words, replacement
// returns "".
func replacement(word, arg string) string {
	for _, r := range removedWords {
		if r.word == word && (r.arg == "" || r.arg == arg) {
			return r.hint
		}
	}
	return ""
}

// runeCount returns the number of columns in s, which are counted in the same way as in Pos.
func runeCount(s string) int { return utf8.RuneCountInString(s) }
