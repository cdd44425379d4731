package smtpd

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// TestRedactInput checks that input of several lines contains no secrets.
func TestRedactInput(t *testing.T) {
	for _, c := range []struct{ name, after, input, want string }{
		{"a greeting", "CONNECT", `EHLO ylmf-pc\r\n`, `EHLO ylmf-pc\r\n`},
		{"a login before the greeting", "CONNECT", `EHLO x\r\nAUTH LOGIN\r\nb2ZmaWNl\r\naHVudGVyMg==\r\nMAIL FROM:<a@b.example>\r\n`,
			`EHLO x\r\nAUTH LOGIN\r\n********\r\n********\r\nMAIL FROM:<a@b.example>\r\n`},
		{"an initial response", "EHLO", `AUTH PLAIN AGEAYg==\r\nQUIT\r\n`, `AUTH PLAIN ********\r\nQUIT\r\n`},
		{"a login without AUTH", "HELO", `b2ZmaWNl\r\nhunter2-x\r\n`, `********\r\n********\r\n`},
		{"the rest of a login", "AUTH", `hunter2\r\nNOOP hunter2\r\n`, `********\r\nNOOP\r\n`},
		{"cut", "CONNECT", `EHLO x\r\nAUTH LOGIN\r\nb2`, `EHLO x\r\nAUTH LOGIN\r\n********`},
		{"no CR", "CONNECT", `EHLO x\nAUTH LOGIN\nb2ZmaWNl\n`, `EHLO x\nAUTH LOGIN\n********\n`},
		{"octal escapes", "CONNECT", `EHLO x\015\012AUTH LOGIN\015\012hunter2`, `EHLO x\015\012AUTH LOGIN\015\012********`},
		{"a hidden word", "CONNECT", `A\001UTH PLAIN hunter2\r\n`, `********\r\n`},
		{"HTTP", "CONNECT", `GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Basic hunter2\r\n\r\n`, `GET / HTTP/1.1\r\nHost: x\r\n********\r\n\r\n`},
		{"TLS", "CONNECT", `\026\003\001`, "\x16\x03\x01"},
		{"a message", "RCPT", `DATA\r\nSubject: x\r\nmail to x\r\n`, `DATA\r\n********`},
		{"a message after DATA", "DATA", `mail hunter2\r\n`, `********`},
		{"a backslash at the end", "CONNECT", `EHLO x\`, `EHLO x\`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := string(RedactInput([]byte(c.input), []byte(c.after))); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

// TestRedactInputRandom checks logins between other commands. The commands before the login must
// not change the redaction.
func TestRedactInputRandom(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	commands := []string{"EHLO x", "HELO y", "NOOP", "RSET", "MAIL FROM:<a@b.example>", "RCPT TO:<c@example.org>", "", "x", "GET / HTTP/1.1", "STARTTLS", `\001\\`, "."}
	ends := []string{`\r\n`, `\n`, `\015\012`}
	for i := range 2000 {
		var b strings.Builder
		end := ends[rnd.IntN(len(ends))]
		for range rnd.IntN(6) {
			b.WriteString(commands[rnd.IntN(len(commands))] + end)
		}
		secret := fmt.Sprintf("Geheim%d", i)
		fmt.Fprintf(&b, "auth login%s%s%s%s", end, secret, end, secret)
		after := []string{"CONNECT", "EHLO", "RCPT", "AUTH"}[rnd.IntN(4)]
		if got := RedactInput([]byte(b.String()), []byte(after)); strings.Contains(string(got), "Geheim") {
			t.Fatalf("after %s, %q becomes %q", after, b.String(), got)
		}
	}
}
