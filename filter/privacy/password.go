package privacy

import (
	"bytes"
	"strings"
)

// Limits on a plain user name, in bytes.
const (
	maxPlain  = 32
	maxPart   = 16
	maxParts  = 4
	maxDigits = 2 // allows user01, but not monkey123 or summer2024
	maxHard   = 5 // consecutive letters without a vowel
)

// LikePassword reports whether a user name may be a password entered in the wrong
// field.
//
// A plain name is not treated as a password, even after a domain and a backslash, nor
// is a mail address with a plain local part. A plain name consists of one to four short
// words.
//
// A word consists of letters in one case, possibly with an initial capital and up to
// two digits at the end. Anything else may be a password, as may a common password or a
// name that mixes lower case, upper case and digits.
func LikePassword(name []byte) bool {
	if len(name) == 0 {
		return false
	}
	if i := bytes.IndexByte(name, '@'); i >= 0 {
		return !plainName(name[:i]) || !hostName(name[i+1:])
	}
	if i := bytes.IndexByte(name, '\\'); i >= 0 {
		return !plainName(name[:i]) || !plainName(name[i+1:])
	}
	return !plainName(name)
}

func plainName(name []byte) bool {
	has := func(from, to byte) bool {
		return bytes.ContainsFunc(name, func(r rune) bool { return rune(from) <= r && r <= rune(to) })
	}
	if len(name) > maxPlain || has('a', 'z') && has('A', 'Z') && has('0', '9') {
		return false
	}
	for parts := 1; ; parts++ {
		n := bytes.IndexAny(name, "._-+")
		if n < 0 {
			return plainPart(name)
		}
		if parts == maxParts || !plainPart(name[:n]) {
			return false
		}
		name = name[n+1:]
	}
}

// common lists words that are frequent in published password lists but unusual as user
// names.
var common = func() map[string]bool {
	words := make(map[string]bool)
	for word := range strings.FieldsSeq(`password passwd passwort pass pwd letmein qwerty qwertz azerty qwertyuiop asdf asdfgh asdfghjkl
		zxcvbn zxcvbnm abc abcd abcdef iloveyou loveme lovely love monkey dragon sunshine princess football baseball basketball soccer
		hockey superman batman spiderman starwars pokemon welcome shadow trustno ninja mustang harley ranger hunter killer
		cheese cookie chocolate banana flower butterfly rainbow summer winter spring autumn sommer hallo hello secret geheim
		changeme default freedom whatever computer internet samsung google passw pussy fuckyou jordan liverpool arsenal
		chelsea barcelona schatz ficken daniela qazwsx starwars bailey tigger purple orange yellow silver diamond lucky`) {
		words[word] = true
	}
	return words
}()

// plainPart reports whether p is word, Word or WORD, optionally followed by digits.
func plainPart(p []byte) bool {
	if len(p) == 0 || len(p) > maxPart {
		return false
	}
	digits := len(p)
	for digits > 0 && '0' <= p[digits-1] && p[digits-1] <= '9' {
		digits--
	}
	word := p[:digits]
	if len(word) == 0 || len(p)-digits > maxDigits || common[string(bytes.ToLower(word))] {
		return false
	}
	lower, upper, hard := 0, 0, 0
	for _, c := range word {
		switch {
		case 'a' <= c && c <= 'z':
			lower++
		case 'A' <= c && c <= 'Z':
			upper++
			c += 'a' - 'A'
		default:
			return false
		}
		if hard++; bytes.IndexByte([]byte("aeiouy"), c) >= 0 {
			hard = 0
		}
		if hard > maxHard {
			return false
		}
	}
	first := 'A' <= word[0] && word[0] <= 'Z'
	return upper == 0 || lower == 0 || upper == 1 && first
}

// hostName reports whether name may be an internet domain: at least two labels, the
// last made of letters.
func hostName(name []byte) bool {
	last := bytes.LastIndexByte(name, '.')
	if last < 1 || len(name)-last < 3 || len(name) > 253 {
		return false
	}
	for _, c := range name[last+1:] {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	for _, c := range name[:last] {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return false
		}
	}
	return true
}
