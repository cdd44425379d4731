package smtpd

import (
	"bytes"
	"strings"
	"testing"

	"scanwatch/internal/smtp"
)

func TestRedact(t *testing.T) {
	for _, c := range []struct {
		name, line  string
		sawAuth, in bool
		want        string
		verb        smtp.Verb
		noData      bool
	}{
		{"plain", "AUTH PLAIN AGFkbWluAHNlY3JldA==", false, false, "AUTH PLAIN ********", smtp.VerbAuth, false},
		{"two spaces", "AUTH  PLAIN AGFkbWluAHNlY3JldA==", false, false, "AUTH PLAIN ********", smtp.VerbAuth, false},
		{"tab, lower case", "auth\tplain\tAGFkbWluAHNlY3JldA==", false, false, "AUTH PLAIN ********", smtp.VerbAuth, false},
		{"leading blanks", "  Auth login YWRtaW4=", false, false, "AUTH LOGIN ********", smtp.VerbAuth, false},
		{"no argument", "AUTH LOGIN", false, false, "AUTH LOGIN", smtp.VerbAuth, false},
		{"no mechanism", "AUTH", false, false, "AUTH", smtp.VerbAuth, false},
		{"password for a mechanism", "AUTH AGFkbWluAHNlY3JldA==", false, false, "AUTH ********", smtp.VerbAuth, false},
		{"no blank", "AUTHPLAIN secret", false, false, "AUTH ********", smtp.VerbAuth, false},
		{"garbage before it", "\x01\xffAUTH PLAIN secret", false, false, "AUTH ********", smtp.VerbAuth, false},
		{"colon", "AUTH:PLAIN secret", false, false, "AUTH ********", smtp.VerbAuth, false},
		{"in the exchange", "YWRtaW4=", true, true, "********", smtp.VerbExchange, false},
		{"a command in the exchange", "QUIT", true, true, "********", smtp.VerbExchange, false},
		{"cancelled", "*", true, true, "********", smtp.VerbExchange, false},
		{"after a refused AUTH", "YWRtaW4=", true, false, "********", smtp.VerbUnknown, false},
		{"word that begins like a verb", "DATAsecret", true, false, "********", smtp.VerbUnknown, false},
		{"verb after AUTH", "RSET secret", true, false, "RSET", smtp.VerbRset, false},
		{"mail after AUTH", "MAIL FROM:<a@example.org>", true, false, "MAIL FROM:<a@example.org>", smtp.VerbMail, false},
		{"ehlo", "ehlo x", false, false, "ehlo x", smtp.VerbEhlo, false},
		{"dot", ".", true, false, ".", smtp.VerbDot, false},
		{"pop3", "PASS hunter2", false, false, "********", smtp.VerbUnknown, false},
		{"imap", "a1 LOGIN bob hunter2", false, false, "********", smtp.VerbUnknown, false},
		{"imap authenticate", "a1 authenticate plain hunter2", false, false, "********", smtp.VerbUnknown, false},
		{"http", "Authorization: Basic aHVudGVyMg==", false, false, "********", smtp.VerbUnknown, false},
		{"http user agent", "User-Agent: Expanse", false, false, "User-Agent: Expanse", smtp.VerbUnknown, false},
		{"http request", "GET /robots.txt HTTP/1.1", false, false, "GET /robots.txt HTTP/1.1", smtp.VerbUnknown, false},
		{"http form", "POST /login HTTP/1.1", false, false, "POST /login HTTP/1.1", smtp.VerbUnknown, false},
		{"http fields", "GET /?password=hunter2 HTTP/1.1", false, false, "GET ******** HTTP/", smtp.VerbUnknown, false},
		{"mistyped", "ATUH PLAIN AHVzZXIAcGFzcw==", false, false, "********", smtp.VerbUnknown, false},
		{"corrected", "AUTG\bH PLAIN AHVzZXIAcGFzcw==", false, false, "********", smtp.VerbUnknown, false},
		{"another AUTH", "XAUTH PLAIN AHVzZXIAcGFzcw==", false, false, "********", smtp.VerbUnknown, false},
		{"mechanism alone", "PLAIN AHVzZXIAcGFzcw==", false, false, "********", smtp.VerbUnknown, false},
		{"AUTH after CR", "HELO x\rAUTH PLAIN AHVzZXIAcGFzcw==", false, false, "HELO x\r********", smtp.VerbHelo, false},
		{"tab after CR", "NOOP\rAUTH\tPLAIN AHVzZXIAcGFzcw==", false, false, "NOOP\r********", smtp.VerbNoop, false},
		{"AUTH after a greeting", "EHLO x AUTH PLAIN AHVzZXIAcGFzcw==", false, false, "EHLO x ********", smtp.VerbEhlo, false},
		{"AUTH after a command", "NOOP AUTH PLAIN AHVzZXIAcGFzcw==", false, false, "NOOP ********", smtp.VerbNoop, false},
		{"AUTH of MAIL", "MAIL FROM:<a@example.org> auth=AHVzZXIAcGFzcw== SIZE=1", false, false, "MAIL FROM:<a@example.org> auth=********", smtp.VerbMail, false},
		{"AUTH of RCPT", "RCPT TO:<a@example.org> AUTH=AHVzZXIAcGFzcw==", false, false, "RCPT TO:<a@example.org> AUTH=********", smtp.VerbRcpt, false},
		{"empty AUTH of MAIL", "MAIL FROM:<a@example.org> AUTH=<>", false, false, "MAIL FROM:<a@example.org> AUTH=<>", smtp.VerbMail, false},
		{"json", `{"username":"someone-with-a-name","password":"hunter2"}`, false, false, "********", smtp.VerbUnknown, false},
		{"json with spaces", `  "api_key" : "hunter2"`, false, false, "********", smtp.VerbUnknown, false},
		{"form", "u=bob&passwd=hunter2", false, false, "********", smtp.VerbUnknown, false},
		{"xml", "<member><name>pwd</name><string>hunter2</string>", false, false, "********", smtp.VerbUnknown, false},
		{"header", "X-Auth-Token: hunter2", false, false, "********", smtp.VerbUnknown, false},
		{"url", "GET http://bob:hunter2@example.org/ HTTP/1.1", false, false, "GET ******** HTTP/", smtp.VerbUnknown, false},
		{"response without AUTH", "AHVzZXIAcGFzcw==", false, false, "********", smtp.VerbUnknown, false},
		{"message text", "Dear John,", false, false, messageText, smtp.VerbUnknown, true},
		{"message text in Latin-1", "Gr\xfc\xdfe, J\xfcrgen", false, false, messageText, smtp.VerbUnknown, true},
		{"binary message text", "\x00\x01\x02 HTTP/", false, false, messageText, smtp.VerbUnknown, true},
		{"message text like a command", "Help me, John", false, false, "Help", smtp.VerbOther, true},
		{"message text like MAIL", "Mail me, John", false, false, "Mail", smtp.VerbMail, true},
		{"message text like HELO", "Helo dear John", false, false, "Helo dear ********", smtp.VerbHelo, true},
		{"a command after refused DATA", "RCPT TO:<a@example.org>", false, false, "RCPT TO:<a@example.org>", smtp.VerbRcpt, true},
		{"ssh", "SSH-2.0-Go", false, false, "SSH-2.0-Go", smtp.VerbUnknown, false},
		{"long", strings.Repeat("x", 3000), false, false, strings.Repeat("x", maxExample), smtp.VerbUnknown, false},
		{"empty", "", false, false, "", smtp.VerbUnknown, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, v, _ := redact(nil, []byte(c.line), lineState{c.sawAuth, c.in, c.noData})
			if string(got) != c.want || v != c.verb {
				t.Errorf("%q: got %q, verb %d; want %q, %d", c.line, got, v, c.want, c.verb)
			}
		})
	}
}

// FuzzRedact checks that the output contains no word after AUTH.
func FuzzRedact(f *testing.F) {
	f.Add([]byte(" PLAIN "), []byte("x"), false)
	f.Add([]byte("\t login"), []byte("RSET "), true)
	f.Fuzz(func(t *testing.T, middle, before []byte, sawAuth bool) {
		const secret = "Zm9vYmFy4711"
		got, v, _ := redact(nil, []byte("AUTH"+string(middle)+secret), lineState{sawAuth: sawAuth})
		if v != smtp.VerbAuth || bytes.Contains(got, []byte(secret)) {
			t.Errorf("AUTH%q: got %q, verb %d", middle, got, v)
		}
		if len(got) > maxExample+20 {
			t.Errorf("%d bytes kept", len(got))
		}
		got, v, _ = redact(nil, append(before, secret...), lineState{sawAuth: true})
		if v == smtp.VerbUnknown && string(got) != smtp.Masked {
			t.Errorf("after AUTH, %q: got %q", before, got)
		}
	})
}
