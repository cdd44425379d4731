package filter_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"scanwatch/filter/privacy"
)

// leaks contains the passwords in TestPasswordsNowhere in all forms in which the output might
// contain them.
var leaks = []string{"hunter2", "monkey123", "Geheim", base64.StdEncoding.EncodeToString([]byte("\x00bob\x00hunter2")), base64.StdEncoding.EncodeToString([]byte("hunter2"))}

// TestPasswordsNowhere checks that no record, log line or event for watchers contains a password,
// regardless of where the client sends it.
func TestPasswordsNowhere(t *testing.T) {
	plain, word := leaks[3], leaks[4]
	const unknown = "R protocol-server|500 5.5.1 Invalid command: Command unrecognized"
	refused := []string{"R protocol-client|DATA", "R protocol-server|503 5.5.1 Invalid command: Command not allowed at this point.", "R tx-data|31f211ba|permfail"}
	client := func(lines ...string) (all []string) {
		for _, l := range lines {
			all = append(all, "R protocol-client|"+l, unknown)
		}
		return all
	}
	for _, lines := range [][]string{
		// AUTH in another command, or after one.
		{"R protocol-client|EHLO x\rAUTH PLAIN " + plain, "R link-identify|EHLO|x\rAUTH PLAIN " + plain, "R protocol-server|250 hello x\rAUTH PLAIN " + plain},
		{"F ehlo|x\rAUTH PLAIN " + plain},
		{"F ehlo|x\vAUTH PLAIN " + plain, "R protocol-client|EHLO x\vAUTH PLAIN " + plain, "R protocol-server|501 5.5.1 Invalid command: x\vAUTH PLAIN " + plain},
		{"R protocol-client|EHLO x AUTH PLAIN " + plain, "R protocol-server|501 5.5.1 Invalid command: EHLO \"x AUTH PLAIN " + plain},
		{"R protocol-client|NOOP\rAUTH LOGIN\r" + word, "R protocol-server|503 5.5.4 Unknown \"" + word},
		{"R protocol-client|QUIT PASS hunter2", "R protocol-server|501 no <hunter2>"},
		{"R protocol-client|RSET\rPASS hunter2", "R protocol-server|503 no\rhunter2"},
		{"R protocol-client|MAIL FROM:<a@b.example>\rAUTH PLAIN " + plain, "R protocol-server|501 5.5.2 no <a@b.example>\rAUTH PLAIN " + plain, "R tx-mail|31f211ba|permfail|a@b.example>\rAUTH PLAIN " + plain},
		{"F rcpt-to|a@b.example\rAUTH PLAIN " + plain, "R protocol-client|RCPT TO:<a@b.example\rAUTH PLAIN " + plain + ">", "R protocol-server|550 Invalid recipient: <a@b.example\rAUTH PLAIN " + plain + ">", "R tx-rcpt|31f211ba|permfail|a@b.example\rAUTH PLAIN " + plain},
		{"R protocol-client|MAIL FROM:<a@b.example> AUTH=" + plain + " SIZE=7", "R protocol-server|501 5.5.4 no"},
		{"R protocol-client|MAIL FROM:<a@b.example>\tauth=hunter2", "R protocol-server|501 5.5.4 no"},
		{"F mail-from|a@b.example AUTH=" + plain},
		{"R protocol-client|AUTH LOGIN " + word, "R filter-response|auth|reject|535 no " + word, "R protocol-server|535 no " + word},
		{"R protocol-client|AUTH LOGIN", "R protocol-server|503 5.5.1 no", "R protocol-client|" + word, unknown, "R protocol-client|hunter2", unknown},
		client(plain), client(plain + "==\r"), client("XAUTH PLAIN "+plain, "hunter2"), client("AUTHENTICATE hunter2"),
		// Lines in other protocols.
		client(`{"username":"bob","password":"hunter2"}`), client(`{"user": "bob", "pwd": "hunter2"}`), client(`{"client_secret":"hunter2"}`), client(`["login", "bob", "hunter2"]`),
		client("username=bob&password=hunter2"), client("u=bob&p_a_s_s=hunter2"), client("<name>password</name><value>hunter2</value>"),
		client("POST /wp-login.php HTTP/1.1", "Host: mx.example.org", "", "log=bob&q=hunter2"), client("GET /?t=hunter2 HTTP/1.1"), client("GET http://bob:hunter2@x.example/ HTTP/1.1"),
		client("Cookie: id=hunter2"), client("X-Api-Key: hunter2"), client("Proxy-Authorization: Basic " + word), client("X-Access-Token: hunter2"),
		client("USER bob", "PASS hunter2"), client("a1 LOGIN bob hunter2"), client("a1 LOGIN bob {7}", "hunter2"), client("APOP bob hunter2"), client("CONFIG SET requirepass hunter2"), client("PA\bASS hunter2"),
		// User names that may be passwords.
		{"R link-auth|fail|monkey123"}, {"R link-auth|fail|hunter2!"}, {"R link-auth|fail|bob monkey123"}, {"R link-auth|pass|monkey123"},
		// Message text after a rejected DATA.
		append(refused, client("Gr\xfc\xdfe von Geheim", "\x00\x01Geheim", "Geheim GET / HTTP/1.1", "SSH-2.0-Geheim", "Help Geheim", "Mail to Geheim", "Helo dear Geheim", "Data Geheim", "Send Geheim", "\xff\xfeG\x00", "Geheim")...),
		append(refused, client("=?iso-8859-1?q?Geheim?=", "\x1b$BGeheim", "<html>Geheim", "Auth Geheim", "Author: Geheim", "Noop Geheim", "Rcpt Geheim")...),
	} {
		for _, level := range []string{"full", "hashed"} {
			p := policy(t, "privacy "+level+"\nmode observe\nrule all phase rcpt-to match helo \"mail.example.net\" reject ban 1d\nrule badhelo phase helo match !helo \"mail.example.net\" reject\n")
			got := unhidden(t, privacy.New(bytes.Repeat([]byte{7}, 32)), lines, p)
			if !strings.Contains(got, "record") {
				t.Errorf("%q: no record", lines)
			}
			for _, s := range leaks {
				if strings.Contains(got, s) {
					t.Errorf("privacy %s: %q\nis kept as\n%s", level, lines, got)
				}
			}
		}
	}
}

// FuzzPasswordsNowhere checks that a password is masked, regardless of where in a line AUTH occurs.
func FuzzPasswordsNowhere(f *testing.F) {
	for _, s := range []string{"", "EHLO x\r", "NOOP ", "MAIL FROM:<a@b>\r", "x ", "DATA\r", "\x00", "HELO a\n"} {
		f.Add([]byte(s), []byte(" PLAIN "))
	}
	hasher, p := privacy.New(bytes.Repeat([]byte{7}, 32)), policy(f, "mode observe\n")
	f.Fuzz(func(t *testing.T, before, between []byte) {
		line := string(before) + "AUTH" + string(between)
		if len(before) > 1000 || strings.ContainsAny(line, "\n") || (len(before) > 0 && before[len(before)-1] > ' ') || len(between) == 0 || between[0] > ' ' {
			t.Skip()
		}
		upper := bytes.ToUpper(before)
		if bytes.HasPrefix(bytes.TrimSpace(upper), []byte("MAIL")) || bytes.HasPrefix(bytes.TrimSpace(upper), []byte("RCPT")) {
			if !bytes.ContainsAny(before, "\r") {
				t.Skip() // the address also contains the password
			}
		}
		const secret = "Zm9vYmFyNDcxMQ"
		got := unhidden(t, hasher, []string{fmt.Sprintf("R protocol-client|%s%s", line, secret), fmt.Sprintf("R protocol-server|500 5.5.1 Invalid command: %q", line+secret)}, p)
		if strings.Contains(got, secret) {
			t.Errorf("%q is kept as\n%s", line, got)
		}
	})
}
