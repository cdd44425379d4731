package lookup

import (
	"fmt"
	"math/bits"
	"regexp"
	"regexp/syntax"
	"strings"
)

// MaxPatterns is how many patterns one set may hold.
const MaxPatterns = 4096

// A Pattern is an RE2 expression (package regexp/syntax) and the value it
// stands for. An expression may match anywhere in the text unless it is
// anchored, and minds case unless it says (?i).
type Pattern[V any] struct {
	Expr  string
	Value V
}

// Patterns finds the first of a list of expressions that matches a text,
// without trying each: one pass over the text tells which of them can match at
// all, by the literals they require. Only these are evaluated, in list order.
//
// Limits: an expression that requires no literal (^[^a-z]) is always
// evaluated, and so are those whose literals would make the tables larger than
// a few megabytes. The time is linear in the length of the text, which is the
// caller's to bound.
//
// A set does not change once it is made; any number of goroutines may use it.
// A nil set matches nothing.
type Patterns[V any] struct {
	exprs  []*regexp.Regexp
	values []V
	filter prefilter
}

// NewPatterns compiles a set. The error names the place in the list, from 1,
// of the first expression that is wrong.
func NewPatterns[V any](list []Pattern[V]) (*Patterns[V], error) {
	if len(list) > MaxPatterns {
		return nil, fmt.Errorf("%d patterns in one set: at most %d fit, split the list", len(list), MaxPatterns)
	}
	p := &Patterns[V]{
		exprs:  make([]*regexp.Regexp, len(list)),
		values: make([]V, len(list)),
	}
	literals := make([][]string, len(list))
	for i, pattern := range list {
		expr, err := regexp.Compile(pattern.Expr)
		if err != nil {
			return nil, fmt.Errorf("pattern %d: %w", i+1, err)
		}
		tree, err := syntax.Parse(pattern.Expr, syntax.Perl)
		if err != nil {
			return nil, fmt.Errorf("pattern %d: %w", i+1, err)
		}
		p.exprs[i], p.values[i], literals[i] = expr, pattern.Value, requiredLiterals(tree)
	}
	p.filter = newPrefilter(literals)
	return p, nil
}

// Len counts the patterns.
func (p *Patterns[V]) Len() int {
	if p == nil {
		return 0
	}
	return len(p.exprs)
}

// Match finds the value of the first pattern in the list that matches text.
func (p *Patterns[V]) Match(text []byte) (v V, ok bool) {
	if p == nil {
		return v, false
	}
	var can candidates
	scan(&p.filter, text, &can)
	for w := range p.filter.words {
		for set := can[w]; set != 0; set &= set - 1 {
			i := w*64 + bits.TrailingZeros64(set)
			if p.exprs[i].Match(text) {
				return p.values[i], true
			}
		}
	}
	return v, false
}

// MatchString is Match on a string.
func (p *Patterns[V]) MatchString(text string) (v V, ok bool) {
	if p == nil {
		return v, false
	}
	var can candidates
	scan(&p.filter, text, &can)
	for w := range p.filter.words {
		for set := can[w]; set != 0; set &= set - 1 {
			i := w*64 + bits.TrailingZeros64(set)
			if p.exprs[i].MatchString(text) {
				return p.values[i], true
			}
		}
	}
	return v, false
}

// Glob translates a glob to the expression of a Pattern: * stands for any text,
// none included, ? for one character, everything else for itself without
// regard to case. It covers the whole text.
func Glob(glob string) string {
	var b strings.Builder
	b.WriteString(`(?is)^`)
	for i, part := range strings.Split(glob, "*") {
		if i > 0 {
			b.WriteString(`.*`)
		}
		for j, literal := range strings.Split(part, "?") {
			if j > 0 {
				b.WriteString(`.`)
			}
			b.WriteString(regexp.QuoteMeta(literal))
		}
	}
	b.WriteString(`$`)
	return b.String()
}
