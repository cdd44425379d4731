package smtpd

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"

	"scanwatch/internal/mailbox"
	"scanwatch/internal/smtp"
)

// verbs maps the commands of RFC 5321 and its extensions to verbs. A command is recognised by the
// first word of a line, so MAIL FROM: and RCPT TO: are listed as MAIL and RCPT.
var verbs = map[string]smtp.Verb{
	"HELO": smtp.VerbHelo, "EHLO": smtp.VerbEhlo, "MAIL": smtp.VerbMail, "RCPT": smtp.VerbRcpt, "DATA": smtp.VerbData, "RSET": smtp.VerbRset,
	"NOOP": smtp.VerbNoop, "QUIT": smtp.VerbQuit, "STARTTLS": smtp.VerbStartTLS, "AUTH": smtp.VerbAuth,
	"VRFY": smtp.VerbNames, "EXPN": smtp.VerbNames, "HELP": smtp.VerbOther, "BDAT": smtp.VerbOther, "ETRN": smtp.VerbOther, "LHLO": smtp.VerbOther,
	"TURN": smtp.VerbOther, "SEND": smtp.VerbNames, "SOML": smtp.VerbNames, "SAML": smtp.VerbNames,
}

// bare contains the verbs whose arguments have no meaning. After AUTH, such an argument may be a
// password.
var bare = map[smtp.Verb]bool{smtp.VerbData: true, smtp.VerbRset: true, smtp.VerbNoop: true, smtp.VerbQuit: true, smtp.VerbStartTLS: true, smtp.VerbOther: true, smtp.VerbNames: true}

// mechanisms lists the words that are shown in an AUTH line. All other words are masked, because
// they may be passwords in the wrong place.
var mechanisms = []string{"PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5", "NTLM", "GSSAPI", "XOAUTH2", "OAUTHBEARER",
	"SCRAM-SHA-1", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "EXTERNAL", "ANONYMOUS", "KERBEROS_V4"}

// secretWords lists words that clients of POP3, FTP, IMAP and HTTP send if they use the wrong port.
// A line with one of the words, or the line after it, contains credentials.
var secretWords = []string{"USER", "LOGIN", "APOP", "POST", "PUT", "PATCH", "DELETE"}

// secretParts lists names in JSON, forms and headers. A line that contains one of them at any
// position may contain credentials. Punctuation within the name is ignored.
var secretParts = [][]byte{[]byte("PASS"), []byte("PWD"), []byte("SECRET"), []byte("TOKEN"), []byte("CREDENTIAL"), []byte("COOKIE"), []byte("APIKEY"),
	[]byte("AUTH"), []byte("KENNWORT"), []byte("WACHTWOORD"), []byte("CONTRASE"), []byte("SENHA"), []byte("PAROL")}

// Redact returns a line without its secrets. Redact is used for lines that another mail server does
// not recognise as commands.
func Redact(line []byte) []byte {
	text, _, _ := redact(nil, line, lineState{})
	return text
}

// A lineState is the part of a session's state that affects redaction.
type lineState struct {
	sawAuth    bool // an earlier line belonged to a login
	inExchange bool // smtpd expects a line of an AUTH exchange
	noData     bool // DATA was rejected; the following lines may be message text
}

// redact appends a client's line without its secrets to dst, and returns its verb. secret reports
// whether the line belongs to a login. No other code sees the original line.
//
// smtpd's own redaction is not sufficient. smtpd masks only the lines of an accepted AUTH exchange,
// and the argument in `AUTH PLAIN x` if there is one space. smtpd also accepts AUTH PLAIN with two
// spaces or a tab. In addition, bots send a user name and a password even if AUTH LOGIN was
// rejected.
func redact(dst, line []byte, st lineState) (shown []byte, v smtp.Verb, secret bool) {
	if st.inExchange {
		return append(dst, smtp.Masked...), smtp.VerbExchange, true
	}
	if len(line) == 1 && line[0] == '.' {
		return append(dst, '.'), smtp.VerbDot, false
	}
	word, rest := cutWord(bytes.TrimLeft(line, " \t"))
	v = lookupVerb(word)
	switch {
	case v == smtp.VerbAuth:
		dst = append(dst, "AUTH"...)
		mech, initial := cutWord(rest)
		if name := mechanism(mech); name != "" {
			dst, rest = append(append(dst, ' '), name...), initial
		}
		if len(rest) > 0 {
			dst = append(append(dst, ' '), smtp.Masked...)
		}
		return dst, smtp.VerbAuth, true
	case v == smtp.VerbUnknown && st.noData && !st.sawAuth:
		return append(dst, messageText...), v, hasSecret(line)
	case hasPrefixFold(word, "AUTHORIZATION"):
		return append(dst, smtp.Masked...), smtp.VerbUnknown, true // the line belongs to an HTTP request
	case hasPrefixFold(bytes.TrimLeftFunc(line, notLetter), "AUTH"):
		return append(dst, "AUTH "+smtp.Masked...), smtp.VerbAuth, true
	case v == smtp.VerbUnknown && !st.sawAuth && bytes.Contains(line, []byte(" HTTP/")):
		return httpRequest(dst, line, word), v, hasSecret(line) // the target of the request may contain form data
	case v == smtp.VerbUnknown && (st.sawAuth || hasSecret(line)):
		return append(dst, smtp.Masked...), smtp.VerbUnknown, true
	case v == smtp.VerbUnknown:
		return append(dst, clip(line, maxExample)...), v, false
	}
	keep, secret := argument(line, rest, v, st)
	if dst = append(dst, clip(line[:keep], maxExample)...); keep < len(line) && secret {
		dst = append(dst, smtp.Masked...)
	}
	if v == smtp.VerbMail || v == smtp.VerbRcpt {
		dst = maskAuth(dst)
	}
	return dst, v, secret
}

// argument returns the number of bytes of a command that may be recorded. secret reports whether
// the remaining bytes belong to a login. rest is the argument in the line.
func argument(line, rest []byte, v smtp.Verb, st lineState) (keep int, secret bool) {
	start := len(line) - len(rest)
	end := start
	for end > 0 && line[end-1] <= ' ' {
		end-- // remove spaces before the argument
	}
	switch i := secretAfterControl(line); {
	case i > 0:
		return i, true
	case bare[v] && (st.sawAuth || st.noData):
		return end, false
	case bare[v] && hasSecret(rest):
		return start, true
	case v != smtp.VerbHelo && v != smtp.VerbEhlo:
		if st.noData && bytes.IndexByte(rest, ':') < 0 {
			return end, false // a line of message text may start with "Mail"
		}
		return len(line), false
	}
	if _, more := cutWord(rest); len(more) > 0 && (hasSecret(more) || st.noData) {
		return len(line) - len(more), true
	}
	return len(line), false
}

// secretAfterControl returns the index after a control character if a login follows the character,
// or 0. Some clients end lines with only a CR.
func secretAfterControl(line []byte) int {
	for i, c := range line {
		if c < ' ' && c != '\t' {
			if hasSecret(line[i+1:]) {
				return i + 1
			}
			break
		}
	}
	return 0
}

// Argument returns a greeting or an address without credentials. Credentials may follow a control
// character or be in a parameter.
func Argument(name []byte, most int) []byte {
	if i := secretAfterControl(name); i > 0 {
		name = name[:i-1]
	}
	if i := indexAuthParameter(name); i >= 0 {
		name = name[:i]
	}
	return clip(name, most)
}

// Address is like [Argument] for the argument of a MAIL or RCPT command. Address also removes the
// angle brackets and the parameters.
func Address(arg []byte, most int) []byte {
	return clip(mailbox.Address(Argument(arg, len(arg))), most)
}

// Recipient is like [Address], but returns different results for different recipients, even if they
// begin alike. An address longer than most is replaced with a name. If credentials were removed from
// an address that is not plain, the rest may be the same for different recipients, and Recipient
// returns nil.
func Recipient(arg []byte, most int) []byte {
	rest := Argument(arg, len(arg))
	addr := mailbox.Address(rest)
	switch {
	case len(rest) < len(arg) && !mailbox.Plain(addr):
		return nil
	case len(addr) > most:
		return Name(addr)
	}
	return addr
}

// Name returns a name for text that is incomplete or too long.
func Name(text []byte) []byte {
	h := sha256.Sum256(text)
	return fmt.Appendf(nil, "%x...", h[:8])
}

// Greeting is like [Argument], but also removes an AUTH command in the same line as the greeting.
func Greeting(name []byte, most int) []byte {
	for i := 0; i+6 <= len(name); i++ {
		if (name[i] == ' ' || name[i] == '\t') && hasPrefixFold(name[i+1:], "AUTH") && (name[i+5] == ' ' || name[i+5] == '\t') {
			name = name[:i]
			break
		}
	}
	return Argument(name, most)
}

// indexAuthParameter returns the index of the space before the parameter AUTH=value of MAIL (RFC
// 4954 section 5), or -1.
func indexAuthParameter(line []byte) int {
	for i := 0; i+6 <= len(line); i++ {
		if (line[i] == ' ' || line[i] == '\t') && hasPrefixFold(line[i+1:], "AUTH=") {
			return i
		}
	}
	return -1
}

// maskAuth masks the value of an AUTH parameter and all text after it. If the line ends with
// AUTH=<>, it is not changed.
func maskAuth(line []byte) []byte {
	if i := indexAuthParameter(line); i >= 0 && string(line[i+6:]) != "<>" {
		return append(line[:i+6], smtp.Masked...)
	}
	return line
}

// httpRequest appends the request line of HTTP (RFC 9112 section 3). The target of the request is
// masked if it may contain form fields.
func httpRequest(dst, line, method []byte) []byte {
	if !bytes.ContainsAny(line, "?=&@") && !hasParts(line) {
		return append(dst, clip(line, maxExample)...)
	}
	return append(append(dst, clip(method, maxExample)...), " "+smtp.Masked+" HTTP/"...)
}

// cutWord splits a line after its first word. The word ends at a space or a colon.
func cutWord(line []byte) (word, rest []byte) {
	if i := bytes.IndexAny(line, " \t:\r"); i >= 0 {
		return line[:i], bytes.TrimLeft(line[i:], " \t")
	}
	return line, nil
}

func lookupVerb(word []byte) smtp.Verb {
	var up [8]byte
	if len(word) > len(up) {
		return smtp.VerbUnknown
	}
	for i, c := range word {
		if 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		up[i] = c
	}
	return verbs[string(up[:len(word)])]
}

func mechanism(word []byte) string {
	for _, m := range mechanisms {
		if isFold(word, m) {
			return m
		}
	}
	return ""
}

// hasSecret reports whether line contains credentials. hasSecret checks several words, because a
// tag precedes the command in IMAP, and because users may mistype the first word.
func hasSecret(line []byte) bool {
	if hasParts(line) || plainResponse(line) {
		return true
	}
	for rest := bytes.TrimLeftFunc(line, notLetter); len(rest) > 0; {
		var word []byte
		word, rest = cutWord(rest)
		rest = bytes.TrimLeftFunc(rest, notLetter)
		var b [16]byte
		typed := letters(b[:0], word)
		if bytes.Contains(typed, []byte("AUTH")) || likeAuth(typed) || mechanism(typed) != "" {
			return true
		}
		for _, w := range secretWords {
			if string(typed) == w {
				return true
			}
		}
		if len(line)-len(rest) > maxExample {
			break
		}
	}
	return false
}

// maxParts is the maximum number of bytes that hasParts searches.
const maxParts = 4096

// hasParts reports whether line contains one of secretParts. hasParts searches the line in upper
// case and without punctuation, which could hide a word. hasParts searches twice: once without
// backspaces, and once without the characters that they erase.
func hasParts(line []byte) bool {
	var a, b [maxParts]byte
	raw, typed := a[:0], b[:0]
	for _, c := range clip(line, maxParts) {
		switch {
		case c == '\b' || c == 0x7f:
			typed = typed[:max(len(typed)-1, 0)]
			continue
		case c < ' ' && c != '\t' || c == '-' || c == '_':
			continue
		case 'a' <= c && c <= 'z':
			c -= 'a' - 'A'
		}
		raw, typed = append(raw, c), append(typed, c)
	}
	return slices.ContainsFunc(secretParts, func(p []byte) bool { return bytes.Contains(raw, p) || bytes.Contains(typed, p) })
}

// plainResponse reports whether line is a response of SASL PLAIN (RFC 4616) in base64. The response
// contains a user name and a password with a NUL byte before each.
func plainResponse(line []byte) bool {
	line = bytes.TrimSpace(line)
	if len(line) < 8 || len(line) > maxParts {
		return false
	}
	var b [maxParts]byte
	n, _ := base64.StdEncoding.Decode(b[:], line)
	return bytes.Count(b[:n], []byte{0}) == 2
}

// letters appends the letters in word to dst in upper case, after applying backspaces. letters does
// not exceed the capacity of dst.
func letters(dst, word []byte) []byte {
	for _, c := range word {
		switch {
		case c == '\b' || c == 0x7f:
			dst = dst[:max(len(dst)-1, 0)]
		case len(dst) == cap(dst):
		case 'a' <= c && c <= 'z':
			dst = append(dst, c-('a'-'A'))
		case 'A' <= c && c <= 'Z', c == '-', '0' <= c && c <= '9':
			dst = append(dst, c)
		}
	}
	return dst
}

// likeAuth reports whether word consists of the letters of AUTH in any order.
func likeAuth(word []byte) bool {
	if len(word) != 4 {
		return false
	}
	for _, c := range []byte("AUTH") {
		if bytes.IndexByte(word, c) < 0 {
			return false
		}
	}
	return true
}

// isFold reports whether b equals w. Case is ignored.
func isFold(b []byte, w string) bool { return len(b) == len(w) && hasPrefixFold(b, w) }

func notLetter(r rune) bool { return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') }

// hasPrefixFold reports whether b starts with p. Case is ignored.
func hasPrefixFold(b []byte, p string) bool {
	return len(b) >= len(p) && bytes.EqualFold(b[:len(p)], []byte(p))
}

// redactReply appends text to dst without its secrets. text is the reply to cmd. smtpd may repeat
// arguments of the command in quotes, in angle brackets or after a control character. Other filters
// may repeat any part of the line.
func redactReply(dst, text []byte, cmd *command) []byte {
	switch {
	case !cmd.secret:
	case cmd.filtered:
		return dst
	default:
		if i := bytes.IndexFunc(text, func(r rune) bool { return r < ' ' || r == '"' || r == '<' }); i >= 0 {
			text = text[:i]
		}
	}
	return append(dst, clip(text, maxExample)...)
}
