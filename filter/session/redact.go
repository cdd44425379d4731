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
	verbNames    // as verbOther, and names somebody
)

// verbs are the commands of RFC 5321 and its extensions. Behind a space a
// command ends; MAIL FROM: and RCPT TO: count by their first word.
var verbs = map[string]verb{
	"HELO": verbHelo, "EHLO": verbEhlo, "MAIL": verbMail, "RCPT": verbRcpt, "DATA": verbData, "RSET": verbRset,
	"NOOP": verbNoop, "QUIT": verbQuit, "STARTTLS": verbStartTLS, "AUTH": verbAuth,
	"VRFY": verbNames, "EXPN": verbNames, "HELP": verbOther, "BDAT": verbOther, "ETRN": verbOther, "LHLO": verbOther,
	"TURN": verbOther, "SEND": verbNames, "SOML": verbNames, "SAML": verbNames,
}

// bare tells that a verb takes no argument that is worth keeping once a
// session has tried to log in: what stands there may be a password.
var bare = map[verb]bool{verbData: true, verbRset: true, verbNoop: true, verbQuit: true, verbStartTLS: true, verbOther: true, verbNames: true}

// mechanisms are kept in a redacted AUTH line. Any other word may be a
// password in the wrong place.
var mechanisms = []string{"PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5", "NTLM", "GSSAPI", "XOAUTH2", "OAUTHBEARER",
	"SCRAM-SHA-1", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "EXTERNAL", "ANONYMOUS", "KERBEROS_V4"}

const stars = "********"

// secretWords are found in lines of other protocols that carry credentials, or
// before such lines: POP3, FTP, IMAP and HTTP clients that came to the wrong
// port. Words with AUTH in them need no mention, nor do mechanisms.
var secretWords = []string{"PASS", "PASSWD", "PASSWORD", "USER", "LOGIN", "APOP", "COOKIE", "POST", "PUT"}

// redact appends to dst what may be known of a line that a client sent, and
// tells its verb, and whether it has to do with logging in. Nothing else in the
// program sees the line itself. sawAuth says that there was such a line in
// the session before, inExchange that smtpd waits for a line of an exchange.
//
// smtpd masks only `AUTH PLAIN x` with one space, and the lines of an exchange
// that it has accepted; it takes two spaces or a tab as well, and bots send
// user name and password behind a refused AUTH LOGIN.
func redact(dst, line []byte, sawAuth, inExchange bool) (shown []byte, v verb, secret bool) {
	if inExchange {
		return append(dst, stars...), verbExchange, true
	}
	if len(line) == 1 && line[0] == '.' {
		return append(dst, '.'), verbDot, false
	}
	word, rest := cutWord(bytes.TrimLeft(line, " \t"))
	v = lookupVerb(word)
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
		return dst, verbAuth, true
	case hasPrefixFold(word, "AUTHORIZATION"):
		return append(dst, stars...), verbUnknown, true // HTTP
	case hasPrefixFold(bytes.TrimLeftFunc(line, notLetter), "AUTH"):
		return append(dst, "AUTH "+stars...), verbAuth, true
	case v == verbUnknown && !sawAuth && bytes.Contains(line, []byte(" HTTP/")):
		return request(dst, line, word), v, hasSecret(line) // what follows may be a form
	case v == verbUnknown && (sawAuth || hasSecret(line)):
		return append(dst, stars...), verbUnknown, true
	case v != verbUnknown && sawAuth && bare[v]:
		return append(dst, word[:min(len(word), maxLine)]...), v, false
	}
	return append(dst, line[:min(len(line), maxLine)]...), v, false
}

// request appends the line of an HTTP request (RFC 9112 section 3) without the
// fields that its target may have.
func request(dst, line, method []byte) []byte {
	if !bytes.ContainsAny(line, "?=&") {
		return append(dst, line[:min(len(line), maxLine)]...)
	}
	return append(append(dst, method[:min(len(method), maxLine)]...), " "+stars+" HTTP/"...)
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

// hasSecret looks at the first words of a line: IMAP puts a tag before the
// command, and people mistype.
func hasSecret(line []byte) bool {
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
		if len(line)-len(rest) > maxLine {
			break
		}
	}
	return false
}

// letters appends the letters of a word in capitals, as they stand after the
// backspaces in it. Long words are cut.
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

// likeAuth tells whether a word is AUTH with its letters in another order.
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

// isFold tells whether b is the word w in any case.
func isFold(b []byte, w string) bool { return len(b) == len(w) && hasPrefixFold(b, w) }

func notLetter(r rune) bool { return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') }

// hasPrefixFold tells whether b begins with the word p in any case.
func hasPrefixFold(b []byte, p string) bool {
	return len(b) >= len(p) && bytes.EqualFold(b[:len(p)], []byte(p))
}

// redactReply appends to dst what may be kept of the answer to v: smtpd repeats
// in quotes what followed AUTH, and a filter, which knows the password, may
// say anything.
func redactReply(dst, text []byte, v verb, filtered bool) []byte {
	if filtered && (v == verbAuth || v == verbExchange) {
		return dst
	}
	if v == verbAuth || v == verbExchange {
		if i := bytes.IndexByte(text, '"'); i >= 0 {
			text = text[:i]
		}
	}
	return append(dst, text[:min(len(text), maxLine)]...)
}
