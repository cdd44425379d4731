package lookup

import (
	"fmt"
	"regexp"
)

// A Pattern is an RE2 expression (package regexp/syntax) with a value. The
// expression may match anywhere in the text and is case-sensitive, unless it is
// anchored or contains (?i).
type Pattern[V any] struct {
	Expr  string
	Value V
}

// Patterns finds the first matching expression of a list. A nil *Patterns matches
// nothing.
type Patterns[V any] struct {
	exprs  []*regexp.Regexp
	values []V
}

// NewPatterns compiles list. An error names the position of the first invalid
// expression, counted from 1.
func NewPatterns[V any](list []Pattern[V]) (*Patterns[V], error) {
	p := &Patterns[V]{}
	for i, pattern := range list {
		expr, err := regexp.Compile(pattern.Expr)
		if err != nil {
			return nil, fmt.Errorf("pattern %d: %w", i+1, err)
		}
		p.exprs, p.values = append(p.exprs, expr), append(p.values, pattern.Value)
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
	for i, expr := range p.exprs {
		if expr.Match(text) {
			return p.values[i], true
		}
	}
	return v, false
}
