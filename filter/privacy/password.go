package privacy

import "bytes"

// The longest plain name, and the parts that one has, in bytes.
const (
	maxPlain  = 32
	maxPart   = 16
	maxParts  = 4
	maxDigits = 3 // user01, not summer2024
	maxHard   = 5 // letters without a vowel
)

// LikePassword tells whether what somebody gave as his user name may as well be a
// password, typed into the wrong field. It goes by what is surely a name: a mail
// address, or one to four short words of letters in one case, each with at most
// three digits at its end but not with small letters, capitals and digits, with a domain and a backslash in front perhaps.
// Everything else may be a password. So may a word like sunshine: that cannot be
// told from a name.
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

// plainPart tells whether p is word, Word or WORD, and digits.
func plainPart(p []byte) bool {
	if len(p) == 0 || len(p) > maxPart {
		return false
	}
	digits := len(p)
	for digits > 0 && '0' <= p[digits-1] && p[digits-1] <= '9' {
		digits--
	}
	word := p[:digits]
	if len(word) == 0 || len(p)-digits > maxDigits {
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

// hostName tells whether a name can be a domain on the internet: two labels or
// more, the last of letters.
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
