//go:build linux

package filterproc

import (
	"bufio"
	"fmt"
)

// A Guest is a session in a synthetic load.
type Guest struct {
	ID         int
	Src        string
	Port       int
	Helo       string
	Mail       bool // deliver a message to one recipient
	Login      bool
	Recipients int  // number of nonexistent recipients
	HTTP       bool // send HTTP instead of SMTP
	Auth       bool // try AUTH although it is not offered
}

// GuestOf returns session number i. The session depends only on its number.
func GuestOf(i, strangers int) Guest {
	n := uint64(i)*0x9e3779b97f4a7c15 + 1
	n ^= n >> 29
	pick := func(of int) int { return int(n >> 8 % uint64(of)) }
	stranger := func() string {
		k := 20<<24 + pick(strangers)*7
		return fmt.Sprintf("%d.%d.%d.%d", k>>24, k>>16&255, k>>8&255, k&255)
	}
	g := Guest{ID: i + 1, Port: 25}
	switch kind := i % 20; {
	case kind < 4:
		k := pick(5000)
		g.Src, g.Helo, g.Mail = fmt.Sprintf("198.18.%d.%d", k>>8, k&255), fmt.Sprintf("mx%d.example.net", k), true
	case kind == 4:
		g.Src, g.Helo, g.Mail, g.Login, g.Port = fmt.Sprintf("198.19.0.%d", pick(200)), "laptop.example.com", true, true, 587
	case kind < 9:
		g.Src, g.Helo, g.Recipients = stranger(), "h.example.com", 3
	case kind < 15:
		g.Src, g.Helo = stranger(), "scan.example.com"
	case kind < 17:
		g.Src, g.Helo, g.Auth = stranger(), "ylmf-pc", true
	case kind == 17:
		g.Src, g.HTTP = stranger(), true
	default:
		g.Src, g.Helo = fmt.Sprintf("203.0.113.%d", pick(20)), "again.example.com"
	}
	return g
}

// Stream writes the lines that smtpd sends for g. The session starts at the time at, in
// microseconds. Stream returns the end of the session and the number of requests.
func (g *Guest) Stream(w *bufio.Writer, at int64, asked map[string]bool) (end int64, requests int) {
	report := func(format string, args ...any) {
		at += 20_000
		fmt.Fprintf(w, "report|0.7|%d.%06d|smtp-in|", at/1e6, at%1e6)
		fmt.Fprintf(w, format, args...)
		w.WriteByte('\n')
	}
	ask := func(phase, arg string) {
		if asked[phase] {
			requests++
			fmt.Fprintf(w, "filter|0.7|%d.%06d|smtp-in|%s|%016x|%016x|%s\n", at/1e6, at%1e6, phase, g.ID, requests, arg)
		}
	}
	client := func(line string) { report("protocol-client|%016x|%s", g.ID, line) }
	server := func(line string) { report("protocol-server|%016x|%s", g.ID, line) }
	rdns, fcrdns := "<unknown>", "fail"
	if g.Mail && !g.Login {
		rdns, fcrdns = g.Helo, "pass"
	}
	report("link-connect|%016x|%s|%s|%s:%d|192.0.2.25:%d", g.ID, rdns, fcrdns, g.Src, 1024+g.ID%60000, g.Port)
	ask("connect", rdns+"|"+g.Src)
	server("220 mx.example.org ESMTP OpenSMTPD")
	if g.HTTP {
		client("GET / HTTP/1.1")
		server("500 5.5.1 Invalid command: Command unrecognized")
		client("Host: mx.example.org")
		server("500 5.5.1 Invalid command: Command unrecognized")
		report("link-disconnect|%016x", g.ID)
		return at, requests
	}
	client("EHLO " + g.Helo)
	ask("ehlo", g.Helo)
	report("link-identify|%016x|EHLO|%s", g.ID, g.Helo)
	server("250 mx.example.org Hello")
	if g.Login {
		report("link-auth|%016x|pass|user%d", g.ID, g.ID%50)
	}
	if g.Auth {
		client("AUTH LOGIN")
		server("503 5.5.1 Invalid command: Command not supported")
	}
	if g.Mail || g.Recipients > 0 {
		client("MAIL FROM:<a@example.net>")
		ask("mail-from", "a@example.net")
		report("tx-begin|%016x|%08x", g.ID, g.ID)
		report("tx-mail|%016x|%08x|ok|a@example.net", g.ID, g.ID)
		server("250 2.0.0 Ok")
	}
	for i := range g.Recipients {
		rcpt := fmt.Sprintf("u%d.%d@example.org", g.ID, i)
		client("RCPT TO:<" + rcpt + ">")
		ask("rcpt-to", rcpt)
		report("tx-rcpt|%016x|%08x|permfail|%s", g.ID, g.ID, rcpt)
		server("550 Invalid recipient: <" + rcpt + ">")
	}
	if g.Mail {
		client("RCPT TO:<joe@example.org>")
		ask("rcpt-to", "joe@example.org")
		report("tx-rcpt|%016x|%08x|ok|joe@example.org", g.ID, g.ID)
		server("250 2.1.5 Destination address valid: Recipient ok")
		client("DATA")
		ask("data", "")
		report("tx-data|%016x|%08x|ok", g.ID, g.ID)
		server("354 Enter mail, end with \".\" on a line by itself")
		ask("commit", "")
		report("tx-commit|%016x|%08x|1234", g.ID, g.ID)
		server("250 2.0.0 Message accepted for delivery")
	}
	client("QUIT")
	ask("quit", "")
	server("221 2.0.0 Bye")
	report("link-disconnect|%016x", g.ID)
	return at, requests
}
