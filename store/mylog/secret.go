package mylog

import "bytes"

const stars = "********"

// A censor takes passwords out of one session's dialogue, as the filter does
// with what smtpd tells it. It knows only what smtpd masks not: smtpd reports
// `AUTH  PLAIN x` with two blanks, and what follows a refused AUTH, in clear.
type censor struct {
	sawAuth    bool // from now on every line that is no command may be a password
	inExchange bool // the server waits for a line of an AUTH exchange
	secret     bool // the client's last line had to do with logging in
}

// commands are the commands of RFC 5321 and its extensions, and whether what
// follows one says anything. (After AUTH it may be a password.)
var commands = map[string]bool{
	"HELO": true, "EHLO": true, "MAIL": true, "RCPT": true,
	"DATA": false, "RSET": false, "NOOP": false, "QUIT": false, "STARTTLS": false, "VRFY": false, "EXPN": false, "HELP": false,
	"BDAT": false, "ETRN": false, "LHLO": false, "TURN": false, "SEND": false, "SOML": false, "SAML": false,
}

// mechanisms may stay behind AUTH; any other word may be a password.
var mechanisms = map[string]bool{
	"PLAIN": true, "LOGIN": true, "CRAM-MD5": true, "DIGEST-MD5": true, "NTLM": true, "GSSAPI": true, "XOAUTH2": true,
	"OAUTHBEARER": true, "SCRAM-SHA-1": true, "SCRAM-SHA-1-PLUS": true, "SCRAM-SHA-256": true, "SCRAM-SHA-256-PLUS": true,
	"EXTERNAL": true, "ANONYMOUS": true, "KERBEROS_V4": true,
}

// credentials are words of POP3, FTP, IMAP and HTTP that come with, or before,
// passwords.
var credentials = map[string]bool{
	"PASS": true, "PASSWD": true, "PASSWORD": true, "USER": true, "LOGIN": true, "APOP": true, "COOKIE": true, "POST": true, "PUT": true,
}

// client returns what may be known of a line of the client.
func (c *censor) client(line []byte) []byte {
	c.secret = c.inExchange
	if c.inExchange {
		return []byte(stars)
	}
	word, rest := cutWord(bytes.TrimLeft(line, " \t"))
	upper := string(bytes.ToUpper(word[:min(len(word), 20)]))
	says, command := commands[upper]
	switch {
	case command:
		if c.sawAuth && !says {
			return word
		}
		return line
	case string(line) == ".":
		return line
	case bytes.HasPrefix(typed(word), []byte("AUTH")) && upper != "AUTHORIZATION":
		c.sawAuth, c.secret = true, true
		b := []byte("AUTH")
		if upper != "AUTH" {
			return append(b, " "+stars...)
		}
		mech, initial := cutWord(rest)
		if name := string(bytes.ToUpper(mech[:min(len(mech), 32)])); mechanisms[name] {
			b, rest = append(append(b, ' '), name...), initial
		}
		if len(rest) > 0 {
			b = append(b, " "+stars...)
		}
		return b
	}
	wasAuth := c.sawAuth
	c.secret = wasAuth || tellsSecret(line)
	c.sawAuth = c.secret
	if !wasAuth && bytes.Contains(line, []byte(" HTTP/")) && upper != "AUTHORIZATION" {
		if bytes.ContainsAny(line, "?=&") { // a form
			return append(append([]byte(nil), word...), " "+stars+" HTTP/"...)
		}
		return line
	}
	if c.secret {
		return []byte(stars)
	}
	return line
}

// server returns what may be known of a line of the server, which repeats in
// quotes what it does not understand.
func (c *censor) server(line []byte) []byte {
	challenge := bytes.HasPrefix(line, []byte("334"))
	if len(line) < 4 || line[3] != '-' {
		c.inExchange = challenge
	}
	if challenge {
		return []byte("334 ")
	}
	if c.secret {
		line, _, _ = bytes.Cut(line, []byte{'"'})
	}
	return line
}

// tellsSecret looks for words that come with passwords, also misspelt AUTHs.
func tellsSecret(line []byte) bool {
	for rest := line[:min(len(line), 512)]; len(rest) > 0; {
		var word []byte
		word, rest = cutWord(rest)
		w := typed(word)
		if credentials[string(w)] || mechanisms[string(w)] || bytes.Contains(w, []byte("AUTH")) || isAnagram(w, "AUTH") {
			return true
		}
	}
	return false
}

// cutWord cuts behind the first word, which a blank or a colon ends.
func cutWord(line []byte) (word, rest []byte) {
	i := bytes.IndexAny(line, " \t:\r")
	if i < 0 {
		return line, nil
	}
	return line[:i], bytes.TrimLeft(line[i:], " \t:\r")
}

// typed returns the letters, digits and hyphens of a word in capitals, without
// what stands before the first letter and what backspaces took back.
func typed(word []byte) []byte {
	b := make([]byte, 0, len(word))
	for _, c := range word {
		switch {
		case c == '\b' || c == 0x7f:
			b = b[:max(len(b)-1, 0)]
		case 'a' <= c && c <= 'z':
			b = append(b, c-('a'-'A'))
		case 'A' <= c && c <= 'Z', len(b) > 0 && (c == '-' || c == '_' || '0' <= c && c <= '9'):
			b = append(b, c)
		}
	}
	return b
}

func isAnagram(word []byte, of string) bool {
	if len(word) != len(of) {
		return false
	}
	for i := range of {
		if bytes.IndexByte(word, of[i]) < 0 {
			return false
		}
	}
	return true
}
