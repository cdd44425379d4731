package smtpd

import (
	"bytes"
	"encoding/base64"

	"scanwatch/internal/smtp"
)

// A Redactor removes secrets from the lines of a session. No other code sees the original lines.
type Redactor struct {
	st    lineState
	mech  string // mechanism of the latest AUTH
	lines int    // number of lines in the exchange so far
	user  []byte // user in the latest login
	buf   []byte
}

// Late prepares the redactor for a session whose start is unknown. The next lines may belong to a
// login.
func (r *Redactor) Late() { r.st.sawAuth = true }

// Line returns a client's line without secrets, and the verb of the line. For a line of an AUTH
// exchange, the verb is VerbExchange. The result is valid until the next call.
func (r *Redactor) Line(line []byte) (shown []byte, verb smtp.Verb) {
	if r.st.inExchange {
		r.exchange(bytes.TrimSpace(line))
	} else if word, rest := cutWord(bytes.TrimLeft(line, " \t")); lookupVerb(word) == smtp.VerbAuth {
		mech, initial := cutWord(rest)
		r.mech, r.lines, r.user = mechanism(mech), 0, r.user[:0]
		if len(initial) > 0 {
			r.exchange(bytes.TrimSpace(initial))
		}
	}
	shown, verb, secret := redact(r.buf[:0], line, r.st)
	r.buf, r.st.sawAuth = shown, r.st.sawAuth || secret || verb == smtp.VerbAuth
	return shown, verb
}

// Reply stores the code of the server's reply to the latest line.
func (r *Redactor) Reply(verb smtp.Verb, code uint32) {
	r.st.inExchange = code == 334
	r.st.noData = verb == smtp.VerbData && code >= 400
}

// User returns the user in the latest login, or nil if the user is unknown.
func (r *Redactor) User() []byte {
	if len(r.user) == 0 {
		return nil
	}
	return r.user
}

// exchange reads the user from a line of a login. The user is the first line of a LOGIN exchange,
// or the second field of a PLAIN response (RFC 4616).
func (r *Redactor) exchange(line []byte) {
	r.lines++
	if r.lines > 1 || len(line) > maxParts || r.mech != "LOGIN" && r.mech != "PLAIN" {
		return
	}
	var b [maxParts]byte
	n, err := base64.StdEncoding.Decode(b[:], line)
	if err != nil {
		return
	}
	user := b[:n]
	if r.mech == "PLAIN" {
		fields := bytes.SplitN(user, []byte{0}, 3)
		if len(fields) != 3 {
			return
		}
		user = fields[1]
	}
	r.user = append(r.user[:0], clip(user, maxPath)...)
}

// An UnknownRedactor removes secrets from lines that a mail server does not recognise as commands.
// An UnknownRedactor is used for servers that report neither AUTH nor replies. A line that is not
// recognised may belong to a login, or to a message that follows a rejected DATA.
type UnknownRedactor struct{ seen bool } // a line belonged to a login

// Line returns the part of a line that may be shown, and the verb of the line. If first is set, the
// client has not greeted yet, and a line in another protocol may be shown. After a greeting, only
// the first word may be shown, and only if it may be a command.
func (r *UnknownRedactor) Line(line []byte, first bool) ([]byte, smtp.Verb) {
	line = bytes.TrimRight(line, " \t")
	shown, verb, secret := redact(nil, line, lineState{sawAuth: r.seen})
	word, _ := cutWord(line)
	switch {
	case secret: // redact has already masked the line
		r.seen = true
		return shown, verb
	case likeCredentials(line):
		r.seen = true
		return []byte(smtp.Masked), verb
	case r.seen && verb == smtp.VerbUnknown:
		return []byte(smtp.Masked), verb
	case verb != smtp.VerbUnknown || first && (smtp.Sniff(line) != smtp.ProtocolNone || hasPrefixFold(line, "User-Agent:") || hasPrefixFold(line, "Host:")):
		return shown, verb
	case len(word) > 0 && len(bytes.Trim(word, digits64[:26])) == 0: // the word consists of capital letters
		return clip(word, maxExample), verb
	}
	return []byte(smtp.Masked), verb
}

// RedactUnknown is like UnknownRedactor.Line, for a line whose session is not known.
func RedactUnknown(line []byte) []byte {
	var r UnknownRedactor
	shown, _ := r.Line(line, true)
	return shown
}

const digits64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="

// likeCredentials reports whether a line may be base64, as lines of a login are (RFC 4954). Short
// words in capital letters are treated as commands.
func likeCredentials(line []byte) bool {
	const long = 8
	return len(line) >= 4 && len(bytes.Trim(line, digits64)) == 0 && (len(line) >= long || len(line)%4 == 0 && len(bytes.Trim(line, digits64[:26])) > 0)
}
