package session

import (
	"bytes"
	"strings"
	"testing"
)

func TestRedact(t *testing.T) {
	for _, c := range []struct {
		name, line  string
		sawAuth, in bool
		want        string
		verb        verb
	}{
		{"plain", "AUTH PLAIN AGFkbWluAHNlY3JldA==", false, false, "AUTH PLAIN ********", verbAuth},
		{"two spaces", "AUTH  PLAIN AGFkbWluAHNlY3JldA==", false, false, "AUTH PLAIN ********", verbAuth},
		{"tab, lower case", "auth\tplain\tAGFkbWluAHNlY3JldA==", false, false, "AUTH PLAIN ********", verbAuth},
		{"leading blanks", "  Auth login YWRtaW4=", false, false, "AUTH LOGIN ********", verbAuth},
		{"no argument", "AUTH LOGIN", false, false, "AUTH LOGIN", verbAuth},
		{"no mechanism", "AUTH", false, false, "AUTH", verbAuth},
		{"password for a mechanism", "AUTH AGFkbWluAHNlY3JldA==", false, false, "AUTH ********", verbAuth},
		{"no blank", "AUTHPLAIN secret", false, false, "AUTH ********", verbAuth},
		{"garbage before it", "\x01\xffAUTH PLAIN secret", false, false, "AUTH ********", verbAuth},
		{"colon", "AUTH:PLAIN secret", false, false, "AUTH ********", verbAuth},
		{"in the exchange", "YWRtaW4=", true, true, "********", verbExchange},
		{"a command in the exchange", "QUIT", true, true, "********", verbExchange},
		{"cancelled", "*", true, true, "********", verbExchange},
		{"after a refused AUTH", "YWRtaW4=", true, false, "********", verbUnknown},
		{"word that begins like a verb", "DATAsecret", true, false, "********", verbUnknown},
		{"verb after AUTH", "RSET secret", true, false, "RSET", verbRset},
		{"mail after AUTH", "MAIL FROM:<a@example.org>", true, false, "MAIL FROM:<a@example.org>", verbMail},
		{"ehlo", "ehlo x", false, false, "ehlo x", verbEhlo},
		{"dot", ".", true, false, ".", verbDot},
		{"pop3", "PASS hunter2", false, false, "********", verbUnknown},
		{"imap", "a1 LOGIN bob hunter2", false, false, "********", verbUnknown},
		{"imap authenticate", "a1 authenticate plain hunter2", false, false, "********", verbUnknown},
		{"http", "Authorization: Basic aHVudGVyMg==", false, false, "********", verbUnknown},
		{"http user agent", "User-Agent: Expanse", false, false, "User-Agent: Expanse", verbUnknown},
		{"http request", "GET /robots.txt HTTP/1.1", false, false, "GET /robots.txt HTTP/1.1", verbUnknown},
		{"http form", "POST /login HTTP/1.1", false, false, "POST /login HTTP/1.1", verbUnknown},
		{"http fields", "GET /?password=hunter2 HTTP/1.1", false, false, "GET ******** HTTP/", verbUnknown},
		{"mistyped", "ATUH PLAIN AHVzZXIAcGFzcw==", false, false, "********", verbUnknown},
		{"corrected", "AUTG\bH PLAIN AHVzZXIAcGFzcw==", false, false, "********", verbUnknown},
		{"another AUTH", "XAUTH PLAIN AHVzZXIAcGFzcw==", false, false, "********", verbUnknown},
		{"mechanism alone", "PLAIN AHVzZXIAcGFzcw==", false, false, "********", verbUnknown},
		{"ssh", "SSH-2.0-Go", false, false, "SSH-2.0-Go", verbUnknown},
		{"long", strings.Repeat("x", 3000), false, false, strings.Repeat("x", maxLine), verbUnknown},
		{"empty", "", false, false, "", verbUnknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, v, _ := redact(nil, []byte(c.line), c.sawAuth, c.in)
			if string(got) != c.want || v != c.verb {
				t.Errorf("%q: got %q, verb %d; want %q, %d", c.line, got, v, c.want, c.verb)
			}
		})
	}
}

// FuzzRedact: whatever stands behind AUTH, a word of it never comes out.
func FuzzRedact(f *testing.F) {
	f.Add([]byte(" PLAIN "), []byte("x"), false)
	f.Add([]byte("\t login"), []byte("RSET "), true)
	f.Fuzz(func(t *testing.T, middle, before []byte, sawAuth bool) {
		const secret = "Zm9vYmFy4711"
		got, v, _ := redact(nil, []byte("AUTH"+string(middle)+secret), sawAuth, false)
		if v != verbAuth || bytes.Contains(got, []byte(secret)) {
			t.Errorf("AUTH%q: got %q, verb %d", middle, got, v)
		}
		if len(got) > maxLine+20 {
			t.Errorf("%d bytes kept", len(got))
		}
		got, v, _ = redact(nil, append(before, secret...), true, false)
		if v == verbUnknown && string(got) != stars {
			t.Errorf("after AUTH, %q: got %q", before, got)
		}
	})
}
