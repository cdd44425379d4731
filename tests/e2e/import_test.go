//go:build linux

package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/live"
	"scanwatch/tests/internal/smtpd"
)

// sinkAddr is the address of a mail server that acts as the server of all remote correspondents.
const sinkAddr = "127.0.0.1:2600"

// sink runs a mail server that rejects the recipient nobody.
func sink(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", sinkAddr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go receive(c)
		}
	}()
}

// receive serves one connection.
func receive(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(c)
	fmt.Fprint(c, "220 sink.example ESMTP\r\n")
	for data := false; ; {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		verb := strings.ToUpper(strings.TrimRight(line, "\r\n"))
		reply := "250 ok"
		switch {
		case data && verb == ".":
			data, reply = false, "250 stored"
		case data:
			continue
		case verb == "DATA":
			data, reply = true, "354 go on"
		case strings.HasPrefix(verb, "RCPT TO:<NOBODY@"):
			reply = `550 5.1.1 result="Ok" no such user`
		case verb == "QUIT":
			fmt.Fprint(c, "221 bye\r\n")
			return
		}
		fmt.Fprint(c, reply+"\r\n")
	}
}

// converse sends lines to a port and ignores the replies. On a port with TLS, TLS starts before the
// first line. Otherwise, it starts after the line STARTTLS.
func converse(t *testing.T, s *smtpd.Server, from string, port int, lines ...string) {
	t.Helper()
	c, err := s.Dial(from, port)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if port == smtpd.PortSMTPS {
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.ReadReply(); err != nil {
		t.Fatalf("from %s: %v", from, err)
	}
	for _, line := range lines {
		if line == "STARTTLS" {
			_, err = c.StartTLS()
		} else {
			_, err = c.Cmd(line)
		}
		if err != nil {
			t.Fatalf("from %s: %.80q: %v", from, line, err)
		}
	}
}

// message returns the lines of a message.
func message(sender string, to ...string) []string {
	lines := []string{"MAIL FROM:<" + sender + ">"}
	for _, r := range to {
		lines = append(lines, "RCPT TO:<"+r+">")
	}
	return append(lines, "DATA", "Subject: x\r\n\r\nx\r\n.")
}

// injected is text that looks like a log line from smtpd.
const injected = "0123456789abcdef smtp connected address=198.51.100.99 host=x"

// correspond plays the sessions of a site with correspondents and attackers.
func correspond(t *testing.T, s *smtpd.Server) {
	t.Helper()
	mx := func(from string, lines ...string) {
		converse(t, s, from, smtpd.PortMX, append(append([]string{"EHLO mail.example.net"}, lines...), "QUIT")...)
	}
	mx("198.51.100.10", message("joe@example.net", "alice@example.org", "bob@example.org")...)
	mx("203.0.113.20", message("ann@example.com", "carol@example.org")...)
	mx("203.0.113.21", message("ann@example.com", "carol@example.org")...)
	mx("203.0.113.22", message("ann@example.com", "carol@example.org")...)
	mx("2001:db8::10", message("six@example.net", "alice+tag@example.org")...)
	mx("198.51.100.10", message("", "alice@example.org")...)
	mx("198.51.100.11", message("seller@example.net", "postmaster@example.org")...)
	mx("198.51.100.12", message("seller@example.net", "nobody@example.org", "sales@example.org")...)
	mx("198.51.100.13", message("joe@example.net", "fwd@example.org")...) // forwarded to sink.example
	mx("198.51.100.14", "MAIL FROM:<joe@example.net>", "RCPT TO:<nobody@example.org>")
	for _, sender := range []string{"x>_to=<alice@example.org", "\"x> to=<alice\"@example.net", "x|y@example.net", "x@example.net> to=<bob@example.org"} {
		mx("198.51.100.15", "MAIL FROM:<"+sender+">", "RCPT TO:<alice@example.org>", "RSET")
	}
	mx("198.51.100.16", "EHLO a\" result=\"ok smtpd[1]: "+injected, injected, "X\r"+injected, "X\x00"+injected, strings.Repeat("A", 1500))
	converse(t, s, "198.51.100.17", smtpd.PortMX, append(append(append([]string{"HELO mail.example.net"},
		message("helo@example.net", "alice@example.org")...), message("second@example.net", "bob@example.org")...), "QUIT")...)
	if s.Version.TLS {
		mx("198.51.100.18", append([]string{"STARTTLS", "EHLO mail.example.net"}, message("tls@example.net", "alice@example.org")...)...)
		login := "AUTH PLAIN " + smtpd.Plain("alice", smtpd.AlicePassword)
		converse(t, s, "198.51.100.30", smtpd.PortSMTPS, append(append([]string{"EHLO laptop", "AUTH PLAIN " + smtpd.Plain("alice", "wrong"), login},
			message("alice@example.org", "friend@sink.example", "nobody@sink.example", "bob@example.org")...), "QUIT")...)
		converse(t, s, "198.51.100.31", smtpd.PortSMTPS, append(append([]string{"EHLO laptop", login}, message("", "auto@sink.example")...), "QUIT")...)
	}
	for _, args := range [][]string{
		{"-f", "alice@example.org", "local@sink.example"}, {"-f", "alice@example.org", "nobody@sink.example"},
		{"-f", "<>", "null@sink.example"}, {"-f", "x@example.org", "alice@example.org"},
	} {
		if err := s.Sendmail(strings.NewReader("Subject: out\n\nHello.\n"), args...); err != nil {
			t.Error(err)
		}
	}
}

// TestMailLogImport checks that importing the syslog lines of each smtpd version makes the hosts in
// them known. The filter has not seen these hosts before, and receives the facts over its control
// socket. With the -update flag, the test stores the logs for the tests of filter/maillog.
func TestMailLogImport(t *testing.T) {
	versions := smtpd.Matrix()
	if *update {
		versions = smtpd.Versions
	}
	for _, version := range versions {
		t.Run(version.Name, func(t *testing.T) {
			smtpd.Require(t, version)
			sink(t)
			s := live.Start(t, smtpd.Options{Version: version, Syslog: true, Relay: "smtp://" + sinkAddr,
				Members: []string{"sales", "fwd friend@sink.example\nmember"},
				Hosts: []smtpd.Host{
					{Addr: "198.51.100.10", Name: "mail.example.net", Confirmed: true},
					{Addr: "203.0.113.20", Name: "unproven.example.com"},
					{Addr: "203.0.113.21", Name: "mx_a-b.a-very-long-label-that-fills-the-buffer.another-long-label.example.com", Confirmed: true},
					{Addr: "203.0.113.22", Name: `a=b host=x"<y> address=198.51.100.example.com`, Confirmed: true},
				}})
			correspond(t, s)
			relayed := 3 // messages through .forward and from two local programs
			if version.TLS {
				relayed = 5
			}
			if err := s.Eventually("all mail is delivered", func() bool {
				return strings.Count(s.Log(), ` stat="250 stored"`) == relayed && strings.Contains(s.Log(), "to=<alice@example.org> rcpt=<alice@example.org> user=mailuser")
			}); err != nil {
				t.Fatal(err)
			}
			live.Stop(t, s)
			log := filepath.Join(t.TempDir(), "maillog")
			if err := os.WriteFile(log, []byte(s.Log()), 0o600); err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(filepath.Join("..", "..", "filter", "maillog", "testdata", "smtpd-"+version.Name+".log"), []byte(s.Log()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			checkImport(t, version, log)
		})
	}
}

// checkImport imports a log while the filter is running, and again after it has stopped.
func checkImport(t *testing.T, version smtpd.Version, log string) {
	s := live.Start(t, smtpd.Options{Version: version, Filters: []smtpd.Filter{live.Filter()}})
	var result struct {
		Unknown, Unstamped, Delivered, Sent, Hosts, Users uint64
		Running                                           bool `json:"filter_running"`
	}
	cli.Decode(t, cli.Run(t, s.State(), "import", "smtpd-log", "--json", log), &result)
	delivered, hosts, sent, users := uint64(9), uint64(8), uint64(1), uint64(0)
	if version.TLS {
		delivered, hosts, sent, users = 10, 9, 2, 1
	}
	if result.Unknown+result.Unstamped != 0 || result.Delivered != delivered || result.Hosts != hosts || result.Sent != sent || result.Users != users || !result.Running {
		t.Errorf("%+v", result)
	}
	live.Stop(t, s)
	for _, host := range []string{"198.51.100.10", "203.0.113.20", "2001:db8::10", "198.51.100.12", "198.51.100.17"} {
		// Mail from the same day does not yet make a host known.
		if out := cli.Run(t, s.State(), "why", host); !strings.Contains(out, "for mail accepted on earlier days (") || strings.Contains(out, "(0 accepted") {
			t.Errorf("why %s: %s", host, out)
		}
	}
	cli.Decode(t, cli.Run(t, s.State(), "import", "smtpd-log", "--json", log), &result)
	if result.Delivered != 0 || result.Sent != 0 || result.Running {
		t.Errorf("the second import: %+v", result)
	}
}
