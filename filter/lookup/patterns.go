package lookup

import (
	"bytes"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
)

// A Pattern maps a regular expression (package regexp/syntax) to a value. The expression may match
// anywhere in a text. The expression is case-sensitive unless it contains (?i).
type Pattern[V any] struct {
	Expr  string
	Value V
}

// Patterns finds the first expression in a list that matches a text. A nil *Patterns matches
// nothing.
type Patterns[V any] struct {
	exprs  []*regexp.Regexp
	values []V
	// For each expression, needed contains a list of lower-case substrings, or nil. Every match of
	// the expression contains at least one of these substrings. Most names contain none of them, so
	// the expression need not be evaluated.
	needed [][][]byte
}

// NewPatterns compiles list. If an expression is invalid, the error contains its position, starting
// at 1.
func NewPatterns[V any](list []Pattern[V]) (*Patterns[V], error) {
	p := &Patterns[V]{}
	for i, pattern := range list {
		expr, err := regexp.Compile(pattern.Expr)
		if err != nil {
			return nil, fmt.Errorf("pattern %d: %w", i+1, err)
		}
		var needed [][]byte
		if tree, err := syntax.Parse(pattern.Expr, syntax.Perl); err == nil {
			needed = literals(tree)
		}
		p.exprs, p.values, p.needed = append(p.exprs, expr), append(p.values, pattern.Value), append(p.needed, needed)
	}
	return p, nil
}

// Len returns the number of patterns.
func (p *Patterns[V]) Len() int {
	if p == nil {
		return 0
	}
	return len(p.exprs)
}

// Match returns the value of the first matching pattern.
func (p *Patterns[V]) Match(text []byte) (v V, ok bool) {
	if p == nil {
		return v, false
	}
	var buf [maxNameBytes]byte
	lower, ascii := appendLower(buf[:0], text)
	for i, expr := range p.exprs {
		// The required substrings are valid only if text is ASCII, because (?i) also matches some
		// non-ASCII letters.
		if ascii && p.needed[i] != nil && !slices.ContainsFunc(p.needed[i], func(t []byte) bool { return bytes.Contains(lower, t) }) {
			continue
		}
		if expr.Match(text) {
			return p.values[i], true
		}
	}
	return v, false
}

// appendLower appends text in lower case. ascii is false if text is not ASCII or does not fit into
// dst.
func appendLower(dst, text []byte) (lower []byte, ascii bool) {
	if len(text) > cap(dst) {
		return nil, false
	}
	for _, c := range text {
		if c >= 0x80 {
			return nil, false
		}
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst, true
}

// literals returns a list of lower-case substrings. Each match of the expression contains at least
// one of these substrings. If no such list is known, literals returns nil.
func literals(re *syntax.Regexp) (list [][]byte) {
	switch re.Op {
	case syntax.OpLiteral:
		return [][]byte{[]byte(strings.ToLower(string(re.Rune)))}
	case syntax.OpCapture, syntax.OpPlus:
		return literals(re.Sub[0])
	case syntax.OpConcat: // use the part whose substrings are longest
		least := func(list [][]byte) int {
			n := 0
			for i, t := range list {
				if i == 0 || len(t) < n {
					n = len(t)
				}
			}
			return n
		}
		for _, sub := range re.Sub {
			if all := literals(sub); least(all) > least(list) {
				list = all
			}
		}
	case syntax.OpAlternate:
		for _, sub := range re.Sub {
			all := literals(sub)
			if all == nil {
				return nil
			}
			list = append(list, all...)
		}
	}
	return list
}
