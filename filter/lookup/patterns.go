package lookup

import (
	"bytes"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
)

// A Pattern maps a regular expression (package regexp/syntax) to a value. The
// expression is unanchored, and is case-sensitive unless it includes (?i).
type Pattern[V any] struct {
	Expr  string
	Value V
}

// Patterns finds the first matching expression in a list. A nil *Patterns matches
// nothing.
type Patterns[V any] struct {
	exprs  []*regexp.Regexp
	values []V
	// needed lists lower-case texts for each expression, or is nil. Any match of
	// the expression contains at least one of its texts. Most names contain none of
	// the texts, so the expression need not be evaluated for them.
	needed [][][]byte
}

// NewPatterns compiles list. An error gives the position of the first invalid
// expression, counted from 1.
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
		// Rely on the needed texts only if text is ASCII, because (?i) also matches
		// some non-ASCII letters.
		if ascii && p.needed[i] != nil && !slices.ContainsFunc(p.needed[i], func(t []byte) bool { return bytes.Contains(lower, t) }) {
			continue
		}
		if expr.Match(text) {
			return p.values[i], true
		}
	}
	return v, false
}

// appendLower appends text in lower case. ascii is false if text is not ASCII or does
// not fit into dst.
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

// literals returns lower-case texts, at least one of which occurs in any match of the
// expression, or nil if there are none.
func literals(re *syntax.Regexp) (list [][]byte) {
	switch re.Op {
	case syntax.OpLiteral:
		return [][]byte{[]byte(strings.ToLower(string(re.Rune)))}
	case syntax.OpCapture, syntax.OpPlus:
		return literals(re.Sub[0])
	case syntax.OpConcat: // use the part with the longest texts
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
