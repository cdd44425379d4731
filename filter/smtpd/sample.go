package smtpd

import (
	"bytes"

	"scanwatch/internal/smtp"
)

// fromClient lists the marks that precede a client's line in transcripts.
var fromClient = [][]byte{[]byte("<<< "), []byte("<-- "), []byte("<= ")}

// RedactLog returns a line of a log in an unknown format, without parts that may be secrets. If the
// line contains a line from a client, only commands are shown. Otherwise, words that may be
// passwords or base64 are masked.
func RedactLog(line []byte) []byte {
	for _, mark := range fromClient {
		if i := bytes.Index(line, mark); i >= 0 {
			i += len(mark)
			var r UnknownRedactor
			text, _ := r.Line(bytes.TrimRight(line[i:], "\r"), false)
			return append(maskWords(line[:i]), text...)
		}
	}
	return maskWords(line)
}

// maskWords masks words that may be secrets. After a word such as AUTH or PASS, the rest of the line
// is masked.
func maskWords(line []byte) (shown []byte) {
	for len(line) > 0 {
		word := line[:len(line)-len(bytes.TrimLeftFunc(line, func(r rune) bool { return r != ' ' }))]
		if hasSecret(word) {
			return append(shown, smtp.Masked...)
		}
		for len(word) > 0 {
			n := len(word) - len(bytes.TrimLeft(word, digits64))
			switch run := word[:n]; {
			case n >= 4 && !plainWord(run):
				shown = append(shown, smtp.Masked...)
			case n == 0:
				n = 1
				shown = append(shown, word[0])
			default:
				shown = append(shown, run...)
			}
			word, line = word[n:], line[n:]
		}
		if len(line) > 0 {
			shown, line = append(shown, line[0]), line[1:]
		}
	}
	return shown
}

// plainWord reports whether a word consists of parts that are unlikely in base64 and in passwords: a
// number, a time, or letters of which only the first may differ in case.
func plainWord(word []byte) bool {
	for _, part := range bytes.FieldsFunc(word, func(r rune) bool { return r == '/' || r == '=' || r == '+' }) {
		upper, lower := len(bytes.Trim(part, digits64[:26])) == 0, len(bytes.Trim(part[1:], digits64[26:52])) == 0
		digits := len(bytes.Trim(part, digits64[52:62]+"T")) == 0
		if !upper && !digits && (!lower || notLetter(rune(part[0]))) {
			return false
		}
	}
	return true
}
