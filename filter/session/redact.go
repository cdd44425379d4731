package session

import "bytes"

// verb is the first word of a client's line.
type verb uint8

const (
	verbUnknown verb = iota
	verbHelo
	verbEhlo
	verbMail
	verbRcpt
	verbData
	verbRset
	verbNoop
	verbQuit
	verbStartTLS
	verbAuth
	verbOther    // SMTP has it, smtpd or our users do not care
	verbDot      // the end of message text
	verbExchange // a line of an AUTH exchange
)

// verbs are the commands of RFC 5321 and its extensions. Behind a space a
// command ends; MAIL FROM: and RCPT TO: count by their first word.
var verbs = map[string]verb{
	"HELO": verbHelo, "EHLO": verbEhlo, "MAIL": verbMail, "RCPT": verbRcpt, "DATA": verbData, "RSET": verbRset,
	"NOOP": verbNoop, "QUIT": verbQuit, "STARTTLS": verbStartTLS, "AUTH": verbAuth,
	"VRFY": verbOther, "EXPN": verbOther, "HELP": verbOther, "BDAT": verbOther, "ETRN": verbOther, "LHLO": verbOther,
	"TURN": verbOther, "SEND": verbOther, "SOML": verbOther, "SAML": verbOther,
}

// bare tells that a verb takes no argument that is worth keeping once a
// session has tried to log in: what stands there may be a password.
var bare = map[verb]bool{verbData: true, verbRset: true, verbNoop: true, verbQuit: true, verbStartTLS: true, verbOther: true}

// mechanisms are kept in a redacted AUTH line. Any other word may be a
// password in the wrong place.
var mechanisms = []string{"PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5", "NTLM", "GSSAPI", "XOAUTH2", "OAUTHBEARER",
	"SCRAM-SHA-1", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "EXTERNAL", "ANONYMOUS", "KERBEROS_V4"}

const stars = "********"

// secretWords begin lines of other protocols that carry credentials: POP3,
// FTP, IMAP and HTTP clients that came to the wrong port. What begins with AUTH
// is handled before.
var secretWords = []string{"PASS", "USER", "LOGIN", "APOP", "PROXY-AUTHORIZATION", "COOKIE"}

// redact appends to dst what may be known of a line that a client sent, and
// tells its verb. Nothing else in the program sees the line itself. sawAuth
// says that the session has sent AUTH before, inExchange that smtpd waits for
// a line of that exchange.
//
// smtpd masks only `AUTH PLAIN x` with one space, and the lines of an exchange
// that it has accepted; it takes two spaces or a tab as well, and bots send
// user name and password behind a refused AUTH LOGIN.
func redact(dst, line []byte, sawAuth, inExchange bool) ([]byte, verb) {
	if inExchange {
		return append(dst, stars...), verbExchange
	}
	if len(line) == 1 && line[0] == '.' {
		return append(dst, '.'), verbDot
	}
	word, rest := cutWord(bytes.TrimLeft(line, " \t"))
	v := lookupVerb(word)
	switch {
	case v == verbAuth:
		dst = append(dst, "AUTH"...)
		mech, initial := cutWord(rest)
		if name := mechanism(mech); name != "" {
			dst, rest = append(append(dst, ' '), name...), initial
		}
		if len(rest) > 0 {
			dst = append(append(dst, ' '), stars...)
		}
		return dst, verbAuth
	case hasPrefixFold(word, "AUTHORIZATION"):
		return append(dst, stars...), verbUnknown // HTTP
	case hasPrefixFold(bytes.TrimLeftFunc(line, notLetter), "AUTH"):
		return append(dst, "AUTH "+stars...), verbAuth
	case v == verbUnknown && (sawAuth || hasSecret(line)):
		return append(dst, stars...), verbUnknown
	case v != verbUnknown && sawAuth && bare[v]:
		return append(dst, word[:min(len(word), maxLine)]...), v
	}
	return append(dst, line[:min(len(line), maxLine)]...), v
}

// cutWord cuts behind the first word, which a blank or a colon ends.
func cutWord(line []byte) (word, rest []byte) {
	if i := bytes.IndexAny(line, " \t:\r"); i >= 0 {
		return line[:i], bytes.TrimLeft(line[i:], " \t")
	}
	return line, nil
}

func lookupVerb(word []byte) verb {
	var up [8]byte
	if len(word) > len(up) {
		return verbUnknown
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

func hasSecret(line []byte) bool {
	word, rest := cutWord(bytes.TrimLeftFunc(line, notLetter))
	// IMAP puts a tag before the command.
	second, _ := cutWord(rest)
	if hasPrefixFold(second, "AUTH") {
		return true
	}
	for _, w := range secretWords {
		if isFold(word, w) || isFold(second, w) {
			return true
		}
	}
	return false
}

// isFold tells whether b is the word w in any case.
func isFold(b []byte, w string) bool { return len(b) == len(w) && hasPrefixFold(b, w) }

func notLetter(r rune) bool { return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') }

// hasPrefixFold tells whether b begins with the word p in any case.
func hasPrefixFold(b []byte, p string) bool {
	return len(b) >= len(p) && bytes.EqualFold(b[:len(p)], []byte(p))
}

// redactReply appends to dst what may be kept of smtpd's answer to v: smtpd
// repeats in quotes what followed AUTH.
func redactReply(dst, text []byte, v verb) []byte {
	if v == verbAuth || v == verbExchange {
		if i := bytes.IndexByte(text, '"'); i >= 0 {
			text = text[:i]
		}
	}
	return append(dst, text[:min(len(text), maxLine)]...)
}
