package lookup

import (
	"regexp/syntax"
	"strings"
	"unicode/utf8"
)

const (
	maxLiteralBytes = 16      // of a literal, so many bytes are looked for
	maxAlternatives = 32      // literals of one pattern, of which one must occur
	maxStates       = 1 << 15 // of the automaton; each takes 4 bytes for every distinct byte in the literals
)

// hitBit marks a state in which a literal has just ended.
const hitBit = 1 << 31

// candidates is a set of patterns, one bit each.
type candidates [MaxPatterns / 64]uint64

// A prefilter is an Aho-Corasick automaton over the literals of all patterns,
// unrolled into a table, that collects which patterns a text can match. ASCII
// letters are compared without regard to case: it may name too many patterns,
// never too few.
type prefilter struct {
	words  int        // of candidates that are in use
	always []uint64   // patterns that must be tried on every text
	class  [256]uint8 // byte to column of next; 0 is every byte in no literal
	width  int        // columns
	next   []uint32   // next[state+class] is the next state: the offset of its row, and hitBit
	hit    []uint32   // by state number, for states with hitBit: which row of hits
	hits   []uint64   // rows of words words
}

// scan puts the patterns that text can match into can.
func scan[T string | []byte](f *prefilter, text T, can *candidates) {
	copy(can[:], f.always)
	if len(f.next) == 0 {
		return
	}
	state := uint32(0)
	for i := range len(text) {
		state = f.next[state+uint32(f.class[text[i]])]
		if state&hitBit != 0 {
			state &^= hitBit
			row := int(f.hit[state/uint32(f.width)])
			for w, set := range f.hits[row*f.words:][:f.words] {
				can[w] |= set
			}
		}
	}
}

// newPrefilter builds the automaton. literals holds for each pattern the
// literals of which a matching text contains at least one, in lower case; a
// pattern without any is always tried.
func newPrefilter(literals [][]string) prefilter {
	f := prefilter{words: (len(literals) + 63) / 64}
	f.always = make([]uint64, f.words)
	f.width = 1
	for _, alternatives := range literals {
		for _, literal := range alternatives {
			for i := range len(literal) {
				if c := literal[i]; f.class[c] == 0 {
					// At most 256-26 bytes can be in a literal, since it is in lower case.
					f.class[c] = uint8(f.width)
					f.width++
				}
			}
		}
	}
	for c := 'A'; c <= 'Z'; c++ {
		f.class[c] = f.class[c+'a'-'A']
	}

	// The trie, one row of children a state; 0 is both the root and "none".
	type trieState struct {
		next []uint32
		fail uint32
		hits []uint64
	}
	newState := func() trieState { return trieState{next: make([]uint32, f.width)} }
	states := []trieState{newState()}
	for i, alternatives := range literals {
		bytes := 0
		for _, literal := range alternatives {
			bytes += len(literal)
		}
		if bytes == 0 || len(states)+bytes > maxStates {
			f.always[i/64] |= 1 << (i % 64)
			continue
		}
		for _, literal := range alternatives {
			at := uint32(0)
			for j := range len(literal) {
				class := f.class[literal[j]]
				if states[at].next[class] == 0 {
					states[at].next[class] = uint32(len(states))
					states = append(states, newState())
				}
				at = states[at].next[class]
			}
			if states[at].hits == nil {
				states[at].hits = make([]uint64, f.words)
			}
			states[at].hits[i/64] |= 1 << (i % 64)
		}
	}
	if len(states) == 1 {
		return f
	}

	// Breadth first, so that a state's fail state, which is shorter, is complete
	// before it: then missing children and hits can be taken over from there.
	queue := []uint32{0}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		fail := states[at].fail
		for class := range f.width {
			child := states[at].next[class]
			inherited := states[fail].next[class]
			if child == 0 {
				states[at].next[class] = inherited
				continue
			}
			if at != 0 {
				states[child].fail = inherited
			}
			if more := states[states[child].fail].hits; more != nil {
				if states[child].hits == nil {
					states[child].hits = make([]uint64, f.words)
				}
				for w := range more {
					states[child].hits[w] |= more[w]
				}
			}
			queue = append(queue, child)
		}
	}

	f.next = make([]uint32, 0, len(states)*f.width)
	f.hit = make([]uint32, len(states))
	for i, s := range states {
		for _, to := range s.next {
			offset := to * uint32(f.width)
			if states[to].hits != nil {
				offset |= hitBit
			}
			f.next = append(f.next, offset)
		}
		if s.hits != nil {
			f.hit[i] = uint32(len(f.hits) / f.words)
			f.hits = append(f.hits, s.hits...)
		}
	}
	return f
}

// Under (?i) these also match the ASCII letters s and k: U+017F, the long s,
// and U+212A, the Kelvin sign.
const longS, kelvin = "\u017f", "\u212a"

// requiredLiterals finds literals, in lower case, of which every text that re
// matches contains at least one. It returns none if there are none to be found.
func requiredLiterals(re *syntax.Regexp) []string {
	switch re.Op {
	case syntax.OpLiteral:
		fold := re.Flags&syntax.FoldCase != 0
		piece := longestPiece(re.Rune, fold)
		if piece == "" {
			return nil
		}
		literals := []string{piece}
		if fold && strings.Contains(piece, "s") {
			literals = append(literals, longS)
		}
		if fold && strings.Contains(piece, "k") {
			literals = append(literals, kelvin)
		}
		return literals
	case syntax.OpCapture, syntax.OpPlus:
		return requiredLiterals(re.Sub[0])
	case syntax.OpRepeat:
		if re.Min > 0 {
			return requiredLiterals(re.Sub[0])
		}
	case syntax.OpConcat:
		var best []string
		for _, sub := range re.Sub {
			if literals := requiredLiterals(sub); rarer(literals, best) {
				best = literals
			}
		}
		return best
	case syntax.OpAlternate:
		var all []string
		for _, sub := range re.Sub {
			literals := requiredLiterals(sub)
			if literals == nil || len(all)+len(literals) > maxAlternatives {
				return nil
			}
			all = append(all, literals...)
		}
		return all
	}
	return nil
}

// rarer guesses whether a is found less often than b: by the shortest literal,
// then by their number.
func rarer(a, b []string) bool {
	if a == nil || b == nil {
		return a != nil
	}
	if x, y := shortest(a), shortest(b); x != y {
		return x > y
	}
	return len(a) < len(b)
}

func shortest(literals []string) int {
	n := maxLiteralBytes
	for _, literal := range literals {
		if literal != longS && literal != kelvin {
			n = min(n, len(literal))
		}
	}
	return n
}

// longestPiece returns the longest part of a literal that is found byte by byte
// in every text it matches, but for the case of ASCII letters and the letters
// that have relatives outside ASCII.
func longestPiece(runes []rune, fold bool) string {
	var best, piece []byte
	for _, r := range runes {
		switch {
		case r == utf8.RuneError, fold && r >= utf8.RuneSelf:
			// U+FFFD matches any byte that is no UTF-8; under (?i) other letters
			// match one another.
			piece = nil
			continue
		case r < utf8.RuneSelf:
			r = rune(lowerByte(byte(r)))
		}
		piece = utf8.AppendRune(piece, r)
		if len(piece) > len(best) {
			best = piece
		}
	}
	if len(best) > maxLiteralBytes {
		best = best[:maxLiteralBytes]
	}
	return string(best)
}
