package rules

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"scanwatch/internal/text"
)

type kind uint8

const (
	wordToken   kind = iota // letters, digits, and other characters of names and addresses
	stringToken             // "quoted"
	regexToken              // /regular expression/
	tableToken              // <name>
	macroToken              // $name
	signToken               // one of { } , = > !
)

// A token is a word in a line. The text of a token contains no quotes and no escapes.
type token struct {
	kind kind
	text string
	pos  Pos
}

// is reports whether t is a sign or an unquoted word with the given text.
func (t token) is(text string) bool {
	return (t.kind == signToken || t.kind == wordToken) && t.text == text
}

// String returns t in the syntax of the file.
func (t token) String() string {
	switch t.kind {
	case stringToken:
		return quote(t.text)
	case regexToken:
		return slash(t.text)
	case tableToken:
		return "<" + t.text + ">"
	case macroToken:
		return "$" + t.text
	}
	return t.text
}

var quotes = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func quote(s string) string { return `"` + quotes.Replace(s) + `"` }

// slash encloses a regular expression in slashes and escapes the slashes in it. A `\` and the
// character after it do not change.
func slash(re string) string {
	var b strings.Builder
	b.WriteByte('/')
	for i := 0; i < len(re); i++ {
		switch {
		case re[i] == '\\' && i+1 < len(re):
			b.WriteByte(re[i])
			i++
		case re[i] == '/':
			b.WriteByte('\\')
		}
		b.WriteByte(re[i])
	}
	b.WriteByte('/')
	return b.String()
}

// printable reports whether a file may contain r. Invisible characters are not allowed, and neither
// are characters that change the writing direction, because both could hide a line's meaning.
func printable(r rune) bool { return r != utf8.RuneError && text.Visible(r) }

func isWordByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		strings.IndexByte("-._:/*?@+%[]&'|^~();", c) >= 0
}

// isName reports whether s is a valid name for a rule, table, listener, tag or macro.
func isName(s string) bool {
	if len(s) == 0 || len(s) > maxIdent {
		return false
	}
	for i := range len(s) {
		c := s[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || !('0' <= c && c <= '9' || c == '-' || c == '_')) {
			return false
		}
	}
	return true
}

const maxIdent = 32

const nameHint = "a name begins with a letter and has at most 32 letters, digits, `-` and `_`"

// A lexer splits a file into logical lines and these into tokens. A logical line may consist of
// several physical lines.
type lexer struct {
	file  string
	lines []string // physical lines without line endings
	at    int      // index of the next line
	rest  string   // rest of the current line
	pos   Pos      // position of rest
}

func newLexer(file, src string) *lexer {
	src = strings.TrimPrefix(src, "\ufeff")
	src = strings.TrimSuffix(src, "\n")
	lines := strings.Split(src, "\n")
	for i := range lines {
		lines[i] = strings.TrimSuffix(lines[i], "\r")
	}
	return &lexer{file: file, lines: lines}
}

// source returns the physical line at the position pos.
func (l *lexer) source(pos Pos) string {
	if l != nil && pos.File == l.file && 1 <= pos.Line && pos.Line <= len(l.lines) {
		return l.lines[pos.Line-1]
	}
	return ""
}

func (l *lexer) nextLine() {
	l.rest = l.lines[l.at]
	l.at++
	l.pos = Pos{l.file, l.at, 1}
}

func (l *lexer) advance(n int) {
	l.pos.Column += runeCount(l.rest[:n])
	l.rest = l.rest[n:]
}

// line returns the tokens of the next logical line. There may be none. After an error, the rest of
// the logical line is skipped. ok is false at the end of the file.
func (l *lexer) line() (tokens []token, err *Error, ok bool) {
	if l.at >= len(l.lines) {
		return nil, nil, false
	}
	l.nextLine()
	for {
		blanks := len(l.rest) - len(strings.TrimLeft(l.rest, " \t"))
		l.advance(blanks)
		switch {
		case l.rest == "" || l.rest[0] == '#':
			return tokens, nil, true
		case l.rest == `\`:
			if l.at >= len(l.lines) {
				return tokens, l.errorf("continue after the `\\`, or remove it", "no line follows the last line"), true
			}
			l.nextLine()
			continue
		}
		t, err := l.token()
		if err != nil {
			for strings.HasSuffix(l.lines[l.at-1], `\`) && l.at < len(l.lines) {
				l.at++
			}
			return nil, err, true
		}
		tokens = append(tokens, t)
	}
}

func (l *lexer) errorf(hint, msg string) *Error {
	return &Error{Pos: l.pos, Msg: msg, Hint: hint, Source: l.source(l.pos)}
}

// token parses the next token. The rest of the line must not be empty.
func (l *lexer) token() (token, *Error) {
	t := token{pos: l.pos}
	c := l.rest[0]
	switch {
	case c == '"':
		return l.quoted(t)
	case c == '/':
		return l.regex(t)
	case strings.HasPrefix(l.rest, "<>"):
		// The null sender needs no quotation marks.
		t.kind, t.text = stringToken, "<>"
		l.advance(2)
		return t, nil
	case c == '<':
		end := strings.IndexByte(l.rest, '>')
		if end < 0 || !isName(l.rest[1:end]) {
			return t, l.errorf("a table is written <name>; "+nameHint, "invalid table name")
		}
		t.kind, t.text = tableToken, l.rest[1:end]
		l.advance(end + 1)
		return t, nil
	case strings.IndexByte("{},=>!", c) >= 0:
		t.kind, t.text = signToken, l.rest[:1]
		l.advance(1)
		return t, nil
	case c == '$':
		n := 1 + wordLen(l.rest[1:])
		if !isName(l.rest[1:n]) {
			return t, l.errorf("a macro is written $name; "+nameHint, "invalid macro name")
		}
		t.kind, t.text = macroToken, l.rest[1:n]
		l.advance(n)
		return t, nil
	case c == '\\':
		return t, l.errorf("a `\\` that continues a line must be its last character", "unexpected `\\`")
	case isWordByte(c):
		n := wordLen(l.rest)
		t.kind, t.text = wordToken, l.rest[:n]
		l.advance(n)
		return t, nil
	}
	r, _ := utf8.DecodeRuneInString(l.rest)
	return t, l.errorf(`write text with such characters in "quotes"`, "unexpected character "+strconv.QuoteRuneToASCII(r))
}

func wordLen(s string) int {
	n := 0
	for n < len(s) && isWordByte(s[n]) {
		n++
	}
	return n
}

// quoted parses a string. In a string, `\"` is a quotation mark, and `\\` is a backslash.
func (l *lexer) quoted(t token) (token, *Error) {
	t.kind = stringToken
	var b strings.Builder
	l.advance(1)
	for l.rest != "" {
		r, n := utf8.DecodeRuneInString(l.rest)
		switch {
		case r == '"':
			l.advance(1)
			t.text = b.String()
			return t, nil
		case r == '\\':
			if len(l.rest) < 2 || l.rest[1] != '"' && l.rest[1] != '\\' {
				return t, l.errorf("inside quotes write `\\\\` for a backslash and `\\\"` for a quote; a regular expression is between slashes", "unexpected `\\` in a string")
			}
			b.WriteByte(l.rest[1])
			l.advance(2)
			continue
		case !printable(r):
			return t, l.errorf("", "unprintable character in a string")
		}
		b.WriteString(l.rest[:n])
		l.advance(n)
	}
	l.pos = t.pos
	return t, l.errorf("close it with `\"` on the same line", "the string is not closed")
}

// regex parses a regular expression. `\/` is a slash. All other escapes are part of the expression.
func (l *lexer) regex(t token) (token, *Error) {
	t.kind = regexToken
	var b strings.Builder
	l.advance(1)
	for l.rest != "" {
		r, n := utf8.DecodeRuneInString(l.rest)
		switch {
		case r == '/':
			l.advance(1)
			t.text = b.String()
			return t, nil
		case strings.HasPrefix(l.rest, `\/`):
			b.WriteByte('/')
			l.advance(2)
			continue
		case r == '\\' && len(l.rest) > 1:
			b.WriteByte('\\')
			l.advance(1)
			r, n = utf8.DecodeRuneInString(l.rest)
		}
		if !printable(r) {
			return t, l.errorf("", "unprintable character in a regular expression")
		}
		b.WriteString(l.rest[:n])
		l.advance(n)
	}
	l.pos = t.pos
	return t, l.errorf("close it with `/` on the same line; a file name is in \"quotes\"", "the regular expression is not closed")
}
