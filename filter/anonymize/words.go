package anonymize

import (
	"encoding/binary"
	"unicode/utf8"
)

// What replaces a text has letters where it had letters, capitals where it had
// capitals, and digits where it had digits; all other bytes stay.

// maxExact is how many words of a form there may be for their replacement to be a
// permutation. Longer ones meet by chance only.
const maxExact = 1 << 60

// words appends text with every word replaced. The same word becomes the same one in
// the same context, and different ones become different ones. What keep says is left
// as it is.
func (a *Anonymizer) words(dst, text []byte, context string, keep func(word []byte) bool) []byte {
	for len(text) > 0 {
		n := 0
		for n < len(text) && alnum(text[n]) {
			n++
		}
		switch {
		case n == 0 && text[0] < utf8.RuneSelf:
			dst, text = append(dst, text[0]), text[1:]
		case n == 0:
			r, size := utf8.DecodeRune(text)
			dst, text = a.rune(dst, r, text[:size], context), text[size:]
		case keep != nil && keep(text[:n]):
			dst, text = append(dst, text[:n]...), text[n:]
		default:
			dst, text = a.word(dst, text[:n], context), text[n:]
		}
	}
	return dst
}

func alnum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// word appends what replaces a word of letters and digits.
func (a *Anonymizer) word(dst, word []byte, context string) []byte {
	form := a.form[:0]
	size := uint64(1)
	for _, c := range word {
		radix := uint64(26)
		if isDigit(c) {
			radix = 10
		}
		form = append(form, byte(radix))
		if size <= maxExact {
			size *= radix
		}
	}
	a.form = form
	start := len(dst)
	dst = append(dst, word...)
	out := dst[start:]
	if size > maxExact {
		stream := a.mac(context, string(form), lower(word))
		for i, radix := range form {
			if i > 0 && i%len(stream) == 0 {
				stream = a.mac(string(stream), string(form), lower(word))
			}
			out[i] = digit(uint64(stream[i%len(stream)])%uint64(radix), out[i])
		}
		return dst
	}
	v := uint64(0)
	for i, c := range word {
		v = v*uint64(form[i]) + value(c)
	}
	v = a.permute(v, size, binary.BigEndian.Uint64(a.mac(context, string(form), "")))
	for i := len(word) - 1; i >= 0; i-- {
		out[i] = digit(v%uint64(form[i]), out[i])
		v /= uint64(form[i])
	}
	return dst
}

// value is a letter or digit as a number, whatever its case; digit is the way back,
// in the case of another one.
func value(c byte) uint64 {
	switch {
	case isDigit(c):
		return uint64(c - '0')
	case c <= 'Z':
		return uint64(c - 'A')
	}
	return uint64(c - 'a')
}

func digit(v uint64, like byte) byte {
	switch {
	case isDigit(like):
		return '0' + byte(v)
	case like <= 'Z':
		return 'A' + byte(v)
	}
	return 'a' + byte(v)
}

func lower(word []byte) string {
	b := make([]byte, len(word))
	for i, c := range word {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		b[i] = c
	}
	return string(b)
}

// permute permutes the numbers below size: a Feistel network over the next power of
// four, repeated until the number is one of them.
func (a *Anonymizer) permute(v, size, tweak uint64) uint64 {
	bits := 1
	for bits < 31 && uint64(1)<<(2*bits) < size {
		bits++
	}
	mask := uint32(1)<<bits - 1
	for {
		left, right := uint32(v>>bits)&mask, uint32(v)&mask
		for round := range byte(8) {
			left, right = right, left^a.half(tweak, round, right)&mask
		}
		if v = uint64(left)<<bits | uint64(right); v < size {
			return v
		}
	}
}

// rune appends a letter of as many bytes in the place of one that is not ASCII. What
// is no letter at all stays.
func (a *Anonymizer) rune(dst []byte, r rune, text []byte, context string) []byte {
	var first, count rune
	switch len(text) {
	case 2:
		first, count = 0x0430, 32
	case 3:
		first, count = 0x4e00, 0x5000
	case 4:
		first, count = 0x20000, 0xa000
	}
	if count == 0 || r == utf8.RuneError {
		return append(dst, text...)
	}
	sum := a.mac(context, "rune", string(text))
	return utf8.AppendRune(dst, first+rune(binary.BigEndian.Uint32(sum)%uint32(count)))
}
