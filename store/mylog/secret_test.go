package mylog

import (
	"bytes"
	"strings"
	"testing"
)

// Lines that begin with C: were sent by the client, those with S: by smtpd.
func TestCensor(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"mail", "C:EHLO pass.example.org\nC:MAIL FROM:<user@example.org>\nC:RCPT TO:<password@example.org>\nC:DATA\nC:.", ""},
		{"plain", "C:AUTH PLAIN xyz", "C:AUTH PLAIN ********"},
		{"plain, smtpd masks not", "C:AUTH  PLAIN xyz\nC:auth\tplain\txyz", "C:AUTH PLAIN ********\nC:AUTH PLAIN ********"},
		{"no initial response", "C:AUTH LOGIN", ""},
		{"unknown mechanism", "C:AUTH xyz", "C:AUTH ********"},
		{"colon", "C:AUTH: xyz", "C:AUTH ********"},
		{"equals", "C:AUTH=xyz", "C:AUTH ********"},
		{"misspelt", "C:AUHT PLAIN xyz\nC:xyz", "C:********\nC:********"},
		{"backspace", "C:AX\bUTH PLAIN xyz", "C:AUTH ********"},
		{"blanks before", "C:  AUTH LOGIN xyz", "C:AUTH LOGIN ********"},
		{"bytes before", "C:\x00\xffAUTH LOGIN xyz", "C:AUTH ********"},
		{"exchange", "C:AUTH LOGIN\nS:334 VXNlcm5hbWU6\nC:QUIT xyz\nS:334 UGFzc3dvcmQ6\nC:.\nS:235 2.0.0 ok\nC:MAIL FROM:<a@example.org>",
			"C:AUTH LOGIN\nS:334 \nC:********\nS:334 \nC:********\nS:235 2.0.0 ok\nC:MAIL FROM:<a@example.org>"},
		{"refused, and sent all the same", "C:AUTH LOGIN\nS:503 5.5.1 no\nC:xyz\nC:QUIT xyz\nC:NOOP xyz\nC:EHLO bot",
			"C:AUTH LOGIN\nS:503 5.5.1 no\nC:********\nC:QUIT\nC:NOOP\nC:EHLO bot"},
		{"repeated by smtpd", "C:AUTH xyz\nS:504 5.7.4 AUTH method \"xyz\" not supported", "C:AUTH ********\nS:504 5.7.4 AUTH method "},
		{"quotes elsewhere", "C:RCPT TO:<\"x y\"@example.org>\nS:550 Invalid recipient: <\"x y\"@example.org>", ""},
		{"POP3", "C:USER alice\nC:PASS xyz", "C:********\nC:********"},
		{"IMAP", "C:a1 LOGIN alice xyz", "C:********"},
		{"HTTP", "C:GET / HTTP/1.1\nC:Host: example.org\nC:Authorization: Basic xyz", "C:GET / HTTP/1.1\nC:Host: example.org\nC:********"},
		{"HTTP form", "C:POST /login?password=xyz HTTP/1.1\nC:xyz", "C:POST ******** HTTP/\nC:********"},
		{"nonsense", "C:\x16\x03\x01\nC:\nC:HELP", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var c censor
			var got []string
			for line := range strings.SplitSeq(tc.in, "\n") {
				do := c.client
				if line[0] == 'S' {
					do = c.server
				}
				got = append(got, line[:2]+string(do([]byte(line[2:]))))
			}
			want := tc.want
			if want == "" {
				want = tc.in
			}
			if s := strings.Join(got, "\n"); s != want {
				t.Errorf("got  %q\nwant %q", s, want)
			}
		})
	}
}

// FuzzCensor checks that nothing of a line remains that has AUTH for its first
// word, or that is part of an exchange.
func FuzzCensor(f *testing.F) {
	f.Add([]byte("AUTH PLAIN "), []byte("xyz"))
	f.Add([]byte("auth\tx"), []byte("QUIT"))
	f.Fuzz(func(t *testing.T, before, secret []byte) {
		if len(secret) < 3 || bytes.ContainsAny(secret, "*\r\n") || bytes.Contains([]byte("AUTH "+stars), bytes.ToUpper(secret)) {
			return
		}
		for name := range mechanisms {
			if strings.Contains("AUTH "+name+" "+stars, strings.ToUpper(string(secret))) {
				return
			}
		}
		var c censor
		if got := c.client(append([]byte("AUTH "), secret...)); bytes.Contains(got, secret) {
			t.Errorf("AUTH %q: %q", secret, got)
		}
		if got := c.client(append([]byte("Auth LOGIN "), append(before, secret...)...)); bytes.Contains(got, secret) {
			t.Errorf("LOGIN %q: %q", secret, got)
		}
		c.server([]byte("334 "))
		if got := c.client(secret); string(got) != stars {
			t.Errorf("exchange %q: %q", secret, got)
		}
	})
}
