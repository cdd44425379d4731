package mylog

import (
	"bytes"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// Limits of one text. The filter writes its files from what strangers say.
const (
	maxFile  = 16 << 20 // bytes
	maxDepth = 64       // values in values
	maxNodes = 512 << 10
)

// Kind tells what a Value is.
type Kind uint8

const (
	Undef  Kind = iota
	Scalar      // a string or a number
	Array
	Hash
	Opaque // Perl that is no plain data: a reference to an earlier part, code, a glob
)

// A Value is one value of a Data::Dumper text. Its bytes may alias the text.
type Value struct {
	Kind  Kind
	Text  []byte   // Scalar: its bytes. Opaque: the Perl as it stands there
	Keys  [][]byte // Hash: one for each element, in the order of the text
	Elems []Value  // Array, Hash
}

// Get returns the element of a Hash with the given key, or nil.
func (v *Value) Get(key string) *Value {
	for i, k := range v.Keys {
		if string(k) == key {
			return &v.Elems[i]
		}
	}
	return nil
}

// A SyntaxError tells where a text stops being what Data::Dumper writes.
// Lines and columns (in bytes) count from 1.
type SyntaxError struct {
	Line, Column int
	What         string
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("line %d, column %d: %s", e.Line, e.Column, e.What)
}

// Parse reads the statements `$NAME = VALUE;` of a text that Perl's
// Data::Dumper wrote, in any of its layouts, and returns their values. Lines
// before a statement that do not begin with $ are passed over: the filter puts
// sender and recipient there. Nothing is executed; what is no plain data
// becomes Opaque, and bless(VALUE, CLASS) is VALUE. The error is a
// *SyntaxError.
func Parse(text []byte) ([]Value, error) {
	p := parser{text: text}
	if len(text) > maxFile {
		return nil, p.fail("the text has more than %d bytes", maxFile)
	}
	var all []Value
	for p.seek() {
		if !p.name() {
			return nil, p.fail("a variable's name is expected behind $")
		}
		if err := p.expect("="); err != nil {
			return nil, err
		}
		v, err := p.value(0)
		if err != nil {
			return nil, err
		}
		if err := p.expect(";"); err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	if len(all) == 0 {
		return nil, p.fail("no statement of Data::Dumper (`$VAR1 = ...;`) was found")
	}
	return all, nil
}

type parser struct {
	text  []byte
	pos   int
	nodes int
}

func (p *parser) fail(format string, args ...any) error {
	before := p.text[:min(p.pos, len(p.text))]
	return &SyntaxError{
		Line:   1 + bytes.Count(before, []byte{'\n'}),
		Column: len(before) - bytes.LastIndexByte(before, '\n'),
		What:   fmt.Sprintf(format, args...),
	}
}

// seek goes to the next statement, which begins a line or follows another.
func (p *parser) seek() bool {
	for p.space(); p.pos < len(p.text); p.space() {
		if p.text[p.pos] == '$' {
			return true
		}
		i := bytes.IndexByte(p.text[p.pos:], '\n')
		if i < 0 {
			p.pos = len(p.text)
			return false
		}
		p.pos += i + 1
	}
	return false
}

// space passes over white space and comments, which one of the layouts has.
func (p *parser) space() {
	for ; p.pos < len(p.text); p.pos++ {
		switch p.text[p.pos] {
		case ' ', '\t', '\n', '\r':
		case '#':
			i := bytes.IndexByte(p.text[p.pos:], '\n')
			if i < 0 {
				p.pos = len(p.text)
				return
			}
			p.pos += i
		default:
			return
		}
	}
}

// peek returns the byte at pos, or 0 at the end.
func (p *parser) peek() byte {
	if p.pos < len(p.text) {
		return p.text[p.pos]
	}
	return 0
}

func (p *parser) accept(s string) bool {
	if bytes.HasPrefix(p.text[min(p.pos, len(p.text)):], []byte(s)) {
		p.pos += len(s)
		return true
	}
	return false
}

func (p *parser) expect(s string) error {
	p.space()
	if !p.accept(s) {
		return p.unexpected("`" + s + "`")
	}
	return nil
}

func (p *parser) unexpected(want string) error {
	if p.pos >= len(p.text) {
		return p.fail("the text ends where %s is expected; is the file cut off?", want)
	}
	return p.fail("%s is expected, not %q", want, p.text[p.pos])
}

// name passes over $ and an identifier.
func (p *parser) name() bool {
	p.pos++
	start := p.pos
	for p.pos < len(p.text) && wordByte(p.text[p.pos]) {
		p.pos++
	}
	return p.pos > start
}

func wordByte(c byte) bool {
	return c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

func (p *parser) count() error {
	if p.nodes++; p.nodes > maxNodes {
		return p.fail("more than %d values", maxNodes)
	}
	return nil
}

func (p *parser) value(depth int) (Value, error) {
	if depth > maxDepth {
		return Value{}, p.fail("values are nested more than %d deep", maxDepth)
	}
	if err := p.count(); err != nil {
		return Value{}, err
	}
	p.space()
	switch c := p.peek(); {
	case c == '\'' || c == '"':
		text, err := p.quoted()
		return Value{Kind: Scalar, Text: text}, err
	case c == '-' || '0' <= c && c <= '9':
		return p.number()
	case c == '[':
		v := Value{Kind: Array}
		return v, p.list(&v, ']', depth)
	case c == '{':
		v := Value{Kind: Hash}
		return v, p.list(&v, '}', depth)
	case c == '\\':
		p.pos++ // a reference is as good as what it refers to
		return p.value(depth + 1)
	case c == '$' || c == '*':
		return p.opaque()
	}
	switch {
	case p.accept("undef"):
		return Value{}, nil
	case p.accept("bless("):
		v, err := p.value(depth + 1)
		if err == nil {
			err = p.expect(",")
		}
		if err != nil {
			return v, err
		}
		p.space()
		if c := p.peek(); c != '\'' && c != '"' {
			return v, p.unexpected("the name of a class")
		}
		if _, err := p.quoted(); err != nil {
			return v, err
		}
		return v, p.expect(")")
	case bytes.HasPrefix(p.text[p.pos:], []byte("do{")), bytes.HasPrefix(p.text[p.pos:], []byte("sub ")):
		return p.opaque()
	}
	return Value{}, p.unexpected("a value")
}

// list reads the elements of v up to the closing bracket.
func (p *parser) list(v *Value, end byte, depth int) error {
	for p.pos++; ; {
		if p.space(); p.peek() == end {
			p.pos++
			return nil
		}
		if v.Kind == Hash {
			key, err := p.key()
			if err != nil {
				return err
			}
			v.Keys = append(v.Keys, key)
		}
		e, err := p.value(depth + 1)
		if err != nil {
			return err
		}
		v.Elems = append(v.Elems, e)
		if p.space(); p.peek() != end && !p.accept(",") {
			return p.unexpected("`,` or `" + string(end) + "`")
		}
	}
}

func (p *parser) key() (key []byte, err error) {
	if err := p.count(); err != nil {
		return nil, err
	}
	if c := p.peek(); c == '\'' || c == '"' {
		key, err = p.quoted()
	} else {
		start := p.pos
		for p.peek() == '-' || wordByte(p.peek()) {
			p.pos++
		}
		if key = p.text[start:p.pos]; len(key) == 0 {
			return nil, p.unexpected("a key")
		}
	}
	if err != nil {
		return nil, err
	}
	return key, p.expect("=>")
}

func (p *parser) number() (Value, error) {
	start := p.pos
	for c := p.peek(); c == '-' || c == '+' || c == '.' || wordByte(c); c = p.peek() {
		p.pos++
	}
	text := p.text[start:p.pos]
	if _, err := strconv.ParseFloat(string(text), 64); err != nil {
		p.pos = start
		return Value{}, p.fail("a number is expected")
	}
	return Value{Kind: Scalar, Text: text}, nil
}

// opaque passes over Perl up to where the element or statement ends.
func (p *parser) opaque() (Value, error) {
	start, open := p.pos, 0
	for p.pos < len(p.text) {
		switch p.text[p.pos] {
		case '\'', '"':
			if _, err := p.quoted(); err != nil {
				return Value{}, err
			}
			continue
		case '(', '[', '{':
			open++
		case ',', ';':
			if open == 0 {
				return Value{Kind: Opaque, Text: bytes.TrimSpace(p.text[start:p.pos])}, nil
			}
		case ')', ']', '}':
			if open == 0 {
				return Value{Kind: Opaque, Text: bytes.TrimSpace(p.text[start:p.pos])}, nil
			}
			open--
		}
		p.pos++
	}
	return Value{}, p.unexpected("the end of a value")
}

// quoted reads a string. perlop(1) tells the escapes: between ' only \\ and \'
// are some.
func (p *parser) quoted() ([]byte, error) {
	quote, start := p.text[p.pos], p.pos
	stops := string([]byte{quote, '\\'})
	p.pos++
	var b []byte // nil as long as the string stands there as it is
	for from := p.pos; ; {
		i := bytes.IndexAny(p.text[p.pos:], stops)
		if i < 0 || p.pos+i+1 == len(p.text) && p.text[p.pos+i] == '\\' {
			p.pos = start
			return nil, p.fail("the string that begins here has no end; is the file cut off?")
		}
		p.pos += i
		if p.text[p.pos] == quote {
			text := p.text[from:p.pos:p.pos]
			p.pos++
			if b != nil {
				text = append(b, text...)
			}
			return text, nil
		}
		b = append(b, p.text[from:p.pos]...)
		var err error
		if b, err = p.escape(b, quote); err != nil {
			return nil, err
		}
		from = p.pos
	}
}

// escape appends what a backslash and the bytes behind it stand for.
func (p *parser) escape(b []byte, quote byte) ([]byte, error) {
	c := p.text[p.pos+1]
	if quote == '\'' {
		if c != '\\' && c != '\'' {
			b = append(b, '\\')
		}
		p.pos += 2
		return append(b, c), nil
	}
	if i := bytes.IndexByte([]byte("ntrfbae"), c); i >= 0 {
		p.pos += 2
		return append(b, "\n\t\r\f\b\a\x1b"[i]), nil
	}
	switch {
	case c == 'x' && p.pos+2 < len(p.text) && p.text[p.pos+2] == '{':
		digits := p.text[p.pos+3:]
		n := bytes.IndexByte(digits[:min(len(digits), 9)], '}')
		if n < 0 {
			return nil, p.fail("`}` is missing behind \\x{")
		}
		v, err := strconv.ParseUint(string(digits[:n]), 16, 32)
		if err != nil {
			return nil, p.fail("\\x{...} holds no hexadecimal number")
		}
		p.pos += 3 + n + 1
		// A character: the filter had decoded UTF-8. One that Unicode does
		// not have becomes U+FFFD.
		return utf8.AppendRune(b, rune(min(v, utf8.MaxRune+1))), nil
	case c == 'x':
		return p.code(b, 2, 2, 16)
	case '0' <= c && c <= '7':
		return p.code(b, 1, 3, 8)
	case wordByte(c) && c != '_':
		return nil, p.fail("unknown escape \\%c", c)
	}
	p.pos += 2
	return append(b, c), nil
}

// code appends the byte that up to most digits stand for, which begin skip
// bytes behind pos.
func (p *parser) code(b []byte, skip, most, base int) ([]byte, error) {
	p.pos += skip
	n, v := 0, uint64(0)
	for n < most && p.pos+n < len(p.text) {
		d, err := strconv.ParseUint(string(p.text[p.pos+n]), base, 8)
		if err != nil {
			break
		}
		v = v*uint64(base) + d
		n++
	}
	p.pos += n
	if v > 0xff {
		return utf8.AppendRune(b, rune(v)), nil
	}
	return append(b, byte(v)), nil
}
