package rules

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"scanwatch/internal/text"
)

// These are limits on a configuration. The limits are far above any reasonable need. The limits
// also bound the time for parsing a file that is not a configuration.
const (
	maxFile   = 1 << 20 // size of a file, in bytes
	maxFiles  = 64      // number of include files
	maxDepth  = 8       // depth of nested includes
	maxTokens = 20000   // number of tokens in a line after macros are expanded
	maxErrors = 50
	maxName   = 255 // length of a name in bytes, RFC 5321 section 4.5.3.1.2
	maxRegex  = 1000
)

const tooLong = `write long lists as a table: table <name> file "..."`

// Parse parses a configuration file and the files that it includes. Parse reads them with readFile,
// for example os.ReadFile. The error is of type Errors and contains all errors, including files
// that cannot be read. Parse does not check the Config; see Check and Compile.
func Parse(name string, readFile func(name string) ([]byte, error)) (*Config, error) {
	p := &parser{readFile: readFile, reserved: reserved(), statements: statements}
	c := p.file(name, nil)
	if len(p.errors) > 0 {
		return nil, p.errors
	}
	return c, nil
}

// ParseStore returns the values of the store statement, even if other statements are invalid. If
// the store statement itself is missing or invalid, Store is empty.
func ParseStore(name string, readFile func(name string) ([]byte, error)) Settings {
	p := &parser{readFile: readFile, reserved: reserved(), statements: statements}
	set := p.file(name, nil).Settings()
	return Settings{Store: set.Store, Keep: set.Keep, Budget: set.Budget}
}

// A statement is a row in the table of statements.
type statement struct {
	word   string
	syntax string
	parse  func(*line) (Statement, *Error)
}

// statements contains all statements except macros.
var statements = []statement{
	{"mode", "mode observe | enforce", parseMode},
	{"store", `store "directory" [keep duration] [budget size]`, parseStore},
	{"asn", `asn "file" ` + downloadSyntax, parseDatabase},
	{"country", `country "file" ` + downloadSyntax, parseDatabase},
	{"contact", `contact "text"`, parseText},
	{"privacy", "privacy full | hashed", parsePrivacy},
	{"log", "log [syslog] [verbose]", parseLog},
	{"own-name", "own-name name | { name, ... }", parseOwn(nameValue)},
	{"own-address", "own-address address | { address, ... }", parseOwn(addressValue)},
	{"delimiter", `delimiter "character"`, parseDelimiter},
	{"gateway", "gateway address | { address, ... }", parseOwn(addressValue)},
	{"table", "table <name> builtin | file ... | { value, ... }", parseTable},
	{"listener", "listener name port number | { number, ... } [address address | { address, ... }]", parseListener},
	{"pass", "pass [on listener] from value | match condition ...", parsePass},
	{"rule", "rule name [observe] [even trusted] [on listener] phase phase match condition ... action ...", parseRule},
	{"score", "score evidence token number", parseWeight},
	{"rundir", `rundir "directory"`, parseText},
	{"companion", `companion sync user name to target "argument" ... | serve user name listen address ... | ` + forwardSyntax + ` | lookup user name [resolver address ...] | share user name to "server" | { "server", ... } [login "name"] [password "file"] [ca "file"] [sentinel "name"]`, parseCompanion},
	{"fleet", `fleet "name" key "file" [observe] [bans number] [longest duration] [ignore "name" | { "name", ... }]`, parseFleet},
	{"zone", `zone "name" bans | builtin name | file "file" [ttl duration]`, parseZone},
	{"lookup", `lookup name dnsbl | allowlist "zone" codes code | { code, ... } [ignore code | { code, ... }] [key "file"] [rate number] [hold duration]`, parseLookup},
	{"include", `include "file"`, parseInclude},
}

// reserved returns the keywords. A keyword must be quoted if it is used as a value.
func reserved() map[string]bool {
	words := map[string]bool{"observe": true, "even": true, "on": true, "phase": true, "match": true, "any": true, "from": true}
	for i := range conditions {
		words[conditions[i].word] = true
	}
	for i := range actions {
		words[actions[i].word] = true
		if actions[i].alias != "" {
			words[actions[i].alias] = true
		}
	}
	return words
}

type parser struct {
	readFile   func(string) ([]byte, error)
	reserved   map[string]bool
	statements []statement
	macros     []macro
	stack      []string // names of the current file and of the files that include it, one inside the other
	files      int
	errors     Errors
}

type macro struct {
	node   *Macro
	tokens []token
}

func (p *parser) report(e *Error) {
	if e != nil && len(p.errors) < maxErrors {
		p.errors = append(p.errors, e)
	}
}

// file parses a file. where is the line that includes the file. The argument where is nil for the
// main file.
func (p *parser) file(name string, where *line) *Config {
	fail := func(hint, format string, args ...any) *Config {
		e := &Error{Pos: Pos{name, 1, 1}, Msg: fmt.Sprintf(format, args...), Hint: hint}
		if where != nil {
			e.Pos, e.Source = where.toks[1].pos, where.lexer.source(where.toks[1].pos)
		}
		p.report(e)
		return nil
	}
	clean := filepath.Clean(name)
	for _, f := range p.stack {
		if f == clean {
			return fail("", "%s includes itself: %s", name, strings.Join(append(p.stack, clean), ", "))
		}
	}
	p.files++
	if len(p.stack) >= maxDepth || p.files > maxFiles {
		return fail("", "too many files; the limit is %d files, %d deep", maxFiles, maxDepth)
	}
	if p.readFile == nil {
		return fail("", "cannot read %s: include files are not supported here", name)
	}
	src, err := p.readFile(name)
	if err != nil {
		return fail("check that the file exists and that this user may read it", "cannot read %s: %v", name, err)
	}
	if len(src) > maxFile {
		return fail(tooLong, "%s has %d bytes; a configuration file may not exceed %d bytes", name, len(src), maxFile)
	}
	p.stack = append(p.stack, clean)
	defer func() { p.stack = p.stack[:len(p.stack)-1] }()

	c := &Config{File: name, lexer: newLexer(name, string(src))}
	for {
		tokens, err, ok := c.lexer.line()
		if !ok {
			return c
		}
		if err == nil && len(tokens) > 0 {
			var s Statement
			if s, err = p.line(c.lexer, tokens); err == nil {
				c.Statements = append(c.Statements, s)
			}
		}
		p.report(err)
	}
}

func (p *parser) line(lx *lexer, tokens []token) (Statement, *Error) {
	l := &line{parser: p, lexer: lx, toks: tokens}
	if len(tokens) > maxTokens {
		return nil, l.errorf(tokens[0].pos, tooLong, "the line has more than %d words", maxTokens)
	}
	if len(tokens) > 1 && tokens[0].kind == wordToken && tokens[1].is("=") {
		return p.macro(l)
	}
	if err := l.expand(); err != nil {
		return nil, err
	}
	first := l.toks[0]
	if first.kind == wordToken {
		for i := range p.statements {
			if p.statements[i].word == first.text {
				l.at = 1
				s, err := p.statements[i].parse(l)
				if err == nil {
					err = l.done()
				}
				if err != nil && len(l.toks) > 1 && replacement(first.text, l.toks[1].text) != "" {
					err.Hint = replacement(first.text, l.toks[1].text)
				}
				if err != nil && err.Hint == "" {
					err.Hint = "syntax: " + p.statements[i].syntax
				}
				return s, err
			}
		}
	}
	if hint := replacement(first.text, ""); hint != "" {
		return nil, l.errorf(first.pos, hint, "`%s` is a statement from an earlier version", first)
	}
	var words []string
	for _, s := range p.statements {
		words = append(words, s.word)
	}
	return nil, l.errorf(first.pos, didYouMean(first.text, words), "`%s` is not a statement", first)
}

// macro parses a statement of the form `name = value`.
func (p *parser) macro(l *line) (Statement, *Error) {
	nameTok := l.toks[0]
	if !isName(nameTok.text) {
		return nil, l.errorf(nameTok.pos, nameHint, "`%s` is not a valid macro name", nameTok)
	}
	for _, s := range p.statements {
		if s.word == nameTok.text {
			return nil, l.errorf(l.toks[1].pos, "syntax: "+s.syntax, "`%s` is a statement without `=`", nameTok)
		}
	}
	for _, m := range p.macros {
		if m.node.Name == nameTok.text {
			return nil, l.errorf(nameTok.pos, "", "macro %s is a duplicate", nameTok)
		}
	}
	l.at = 2
	if err := l.expand(); err != nil {
		return nil, err
	}
	value := l.toks[2:]
	depth := 0
	var text []string
	for i, t := range value {
		switch {
		case t.is("{"):
			depth++
		case t.is("}"):
			depth--
		case t.kind == signToken && !t.is(","):
			return nil, l.errorf(t.pos, "a macro has one value or one { list }", "unexpected `%s`", t)
		}
		if depth < 0 || depth == 0 && i < len(value)-1 {
			return nil, l.errorf(t.pos, "a macro has one value or one { list }", "this macro has more than one value")
		}
		if t.is(",") && depth > 0 && len(text) > 0 {
			text[len(text)-1] += ","
			continue
		}
		text = append(text, t.String())
	}
	if len(value) == 0 || depth != 0 || value[0].is(",") {
		return nil, l.errorf(l.end(), "a macro has one value or one { list }", "this macro has no value")
	}
	m := &Macro{Pos: nameTok.pos, Name: nameTok.text, Text: strings.Join(text, " ")}
	p.macros = append(p.macros, macro{m, value})
	return m, nil
}

// A line is the state of the parser in a logical line.
type line struct {
	*parser
	lexer *lexer
	toks  []token
	at    int
}

func (l *line) errorf(pos Pos, hint, format string, args ...any) *Error {
	return &Error{Pos: pos, Msg: fmt.Sprintf(format, args...), Hint: hint, Source: l.lexer.source(pos)}
}

// expand replaces the macros in the rest of the line with their tokens. Errors in the tokens of a
// macro are reported at the position of its name.
func (l *line) expand() *Error {
	out := l.toks[:l.at:l.at]
	for _, t := range l.toks[l.at:] {
		if t.kind != macroToken {
			out = append(out, t)
			continue
		}
		var names []string
		found := false
		for _, m := range l.macros {
			names = append(names, m.node.Name)
			if m.node.Name == t.text {
				m.node.used = true
				for _, v := range m.tokens {
					v.pos = t.pos
					out = append(out, v)
				}
				found = true
			}
		}
		if !found {
			hint := "define it first: " + t.text + " = ..."
			if len(names) > 0 {
				hint = didYouMean(t.text, names)
			}
			return l.errorf(t.pos, hint, "unknown macro %s", t)
		}
		if len(out) > maxTokens {
			return l.errorf(t.pos, tooLong, "the line is too long after macro expansion")
		}
	}
	l.toks = out
	return nil
}

// end returns the position after the last token of the line.
func (l *line) end() Pos {
	t := l.toks[len(l.toks)-1]
	t.pos.Column += runeCount(t.String())
	return t.pos
}

// peek returns the next token. The token remains the next one. At the end of the line, peek returns
// an empty sign.
func (l *line) peek() token {
	if l.at < len(l.toks) {
		return l.toks[l.at]
	}
	return token{kind: signToken, pos: l.end()}
}

func (l *line) next() token {
	t := l.peek()
	l.at++
	return t
}

// accept skips the next token if it has the given text. accept reports whether it has.
func (l *line) accept(text string) bool {
	if l.at < len(l.toks) && l.toks[l.at].is(text) {
		l.at++
		return true
	}
	return false
}

func (l *line) expect(text string) *Error {
	if t := l.peek(); !l.accept(text) {
		return l.errorf(t.pos, "", "expected `%s`%s", text, insteadOf(t))
	}
	return nil
}

// insteadOf returns a description of an unexpected token. The description is the end of an error
// message.
func insteadOf(t token) string {
	if t.kind == signToken && t.text == "" {
		return " at the end of the line"
	}
	return fmt.Sprintf(", not `%s`", t)
}

func (l *line) done() *Error {
	if l.at >= len(l.toks) {
		return nil
	}
	return l.errorf(l.peek().pos, "", "unexpected `%s` after the end of the statement", l.peek())
}

// isValue reports whether t may be a value. Signs and keywords are not values.
func (l *line) isValue(t token) bool {
	return t.kind != signToken && (t.kind != wordToken || !l.reserved[t.text])
}

// name parses the name of a rule, listener or tag.
func (l *line) name(what string) (string, *Error) {
	t := l.next()
	if t.kind != wordToken && t.kind != stringToken {
		return "", l.errorf(t.pos, "", "expected the name of a %s%s", what, insteadOf(t))
	}
	switch {
	case !isName(t.text):
		return "", l.errorf(t.pos, nameHint, "`%s` is not a valid %s name", t, what)
	case l.reserved[t.text] && conditionByWord(t.text) == nil: // a keyword in this place probably means that the name is missing
		return "", l.errorf(t.pos, "choose a different name", "`%s` is a keyword and cannot be a %s name", t, what)
	}
	return t.text, nil
}

// text parses a quoted string.
func (l *line) text(what string) (string, *Error) {
	t := l.next()
	if t.kind != stringToken {
		return "", l.errorf(t.pos, "", "expected %s in \"quotes\"%s", what, insteadOf(t))
	}
	if t.text == "" {
		return "", l.errorf(t.pos, "", "%s may not be empty", what)
	}
	return t.text, nil
}

func (l *line) number(what string, least, most int) (int, *Error) {
	t := l.next()
	n, err := strconv.Atoi(t.text)
	if t.kind != wordToken || err != nil {
		return 0, l.errorf(t.pos, "", "expected %s, a number%s", what, insteadOf(t))
	}
	if n < least || n > most {
		return 0, l.errorf(t.pos, "", "%s must be from %d to %d", what, least, most)
	}
	return n, nil
}

func (l *line) duration(what string, least, most time.Duration) (time.Duration, *Error) {
	t := l.next()
	d, ok := text.ParseDuration(t.text)
	if t.kind != wordToken || !ok {
		return 0, l.errorf(t.pos, "a duration is a number with s, m, h, d or w: 30s, 10m, 2h, 7d, 4w", "expected %s, a duration%s", what, insteadOf(t))
	}
	if d >= least && d <= most {
		return d, nil
	}
	return 0, l.errorf(t.pos, "", "%s must be from %s to %s", what, text.Duration(least), text.Duration(most))
}

// each calls item for each element of a list in braces. Without braces, it calls item once. Lists
// within lists, which macros can cause, are treated as one list.
func (l *line) each(item func() *Error) *Error {
	open := l.peek()
	if !l.accept("{") {
		return item()
	}
	for n := 0; ; n++ {
		t := l.peek()
		switch {
		case l.accept("}"):
			if n == 0 {
				return l.errorf(open.pos, "", "this list is empty")
			}
			return nil
		case l.at >= len(l.toks):
			return l.errorf(open.pos, "close it with `}`; a `\\` at the end of a line continues it", "the list is not closed")
		case t.is(","):
			return l.errorf(t.pos, "", "unexpected `,`")
		}
		if err := l.each(item); err != nil {
			return err
		}
		l.accept(",")
	}
}
