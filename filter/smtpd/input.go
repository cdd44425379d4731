package smtpd

import (
	"bytes"
	"strings"

	"scanwatch/internal/smtp"
)

// RedactInput returns the input that a client sent without waiting for a reply, without secrets. A
// mail server logs all lines of the input as one text with escape sequences. after is the command
// that the server had not replied to, or CONNECT before the server's greeting.
//
// The lines are redacted in turn, because a login consists of several lines.
func RedactInput(logged, after []byte) (shown []byte) {
	r := UnknownRedactor{seen: VerbOf(after) == smtp.VerbAuth}
	first, message := string(after) == "CONNECT", isMessage(VerbOf(after), after)
	for len(logged) > 0 {
		if message {
			return append(shown, smtp.Masked...)
		}
		var line, end []byte
		if line, end, logged = cutEscaped(logged); len(line) > 0 {
			text, verb := r.Line(line, first)
			shown = append(shown, text...)
			first = first && verb != smtp.VerbHelo && verb != smtp.VerbEhlo
			message = isMessage(verb, line)
		}
		shown = append(shown, end...)
	}
	return shown
}

// isMessage reports whether the text of a message follows the line.
func isMessage(verb smtp.Verb, line []byte) bool {
	return verb == smtp.VerbData || hasPrefixFold(line, "BDAT")
}

// cutEscaped returns the first line of text without escape sequences, the escape sequences at the
// end of the line, and the following lines.
func cutEscaped(text []byte) (line, end, rest []byte) {
	for i := 0; i < len(text); {
		c, n := unescape(text[i:])
		if c == '\n' {
			from := i
			if bytes.HasSuffix(line, []byte("\r")) {
				line, from = line[:len(line)-1], bytes.LastIndexByte(text[:i], '\\')
			}
			return line, text[max(from, 0) : i+n], text[i+n:]
		}
		line = append(line, c)
		i += n
	}
	return line, nil, nil
}

// unescape returns the first character of text, and the length of its escape sequence. C has the same
// escape sequences.
func unescape(text []byte) (c byte, n int) {
	if text[0] != '\\' || len(text) == 1 {
		return text[0], 1
	}
	const names, values = `abfnrtv\`, "\a\b\f\n\r\t\v\\"
	if i := strings.IndexByte(names, text[1]); i >= 0 {
		return values[i], 2
	}
	for n = 1; n < len(text) && n < 4 && '0' <= text[n] && text[n] <= '7'; n++ {
		c = c<<3 | (text[n] - '0')
	}
	if n == 1 {
		return '\\', 1
	}
	return c, n
}
