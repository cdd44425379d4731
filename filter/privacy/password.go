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
	maxDigits = 2 // allows names such as user01, but not monkey123 or summer2024
	maxHard   = 5 // consecutive letters without a vowel
)

// LikePassword reports whether a user name may be a password that a user entered in the wrong
// field. LikePassword returns false only for plain names, for mail addresses with a plain local
// part, and for a domain and a plain name with a backslash between them.
//
// A plain name consists of one to four short words. A word consists of letters in one case, which
// may have an initial capital and up to two digits at the end. A name with a common password as a
// word is not plain. Nor is a name with lower case, upper case and digits.
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

// common lists words that are frequent in published lists of passwords but unusual as user names.
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

// plainPart reports whether p has the form word, Word or WORD, which digits may follow.
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

// hostName reports whether name may be an internet domain. A domain has at least two labels, and
// the last consists of letters.
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
