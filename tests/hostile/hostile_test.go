//go:build linux

package hostile

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"scanwatch/tests/hostiletext"
	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/live"
	"scanwatch/tests/internal/smtpd"
)

// An attack is hostile behaviour of a client. Any reply is correct if the server survives, so
// errors are ignored. The attack ends when the connection is closed.
type attack struct {
	name string
	port int  // 0 for smtpd.PortMX
	ipv6 bool // the client uses IPv6
	// heard is set if smtpd reads part of the attack as commands.
	heard bool
	do    func(*smtpd.Client)
}

// sends returns an attack that sends data after the greeting, and then reads until the connection
// ends.
func sends(name, data string) attack {
	return attack{name: name, do: func(c *smtpd.Client) { greeted(c); sendAll(c, data) }}
}

// sendAll sends data, closes the connection for sending, and reads all replies.
func sendAll(c *smtpd.Client, data string) {
	if c.Send(data) == nil && c.CloseWrite() == nil {
		_, _ = c.Drain()
	}
}

// greeted reads the greeting, sends lines, and reports whether smtpd replied to all of them.
func greeted(c *smtpd.Client, lines ...string) bool {
	if r, err := c.ReadReply(); err != nil || r.Code != 220 {
		return false
	}
	return says(c, lines...)
}

// says sends each line after the reply to the previous line has arrived.
func says(c *smtpd.Client, lines ...string) bool {
	for _, line := range lines {
		if _, err := c.Cmd(line); err != nil {
			return false
		}
	}
	return true
}

// repeats returns an attack that repeats lines n times.
func repeats(name string, n int, first []string, lines ...string) attack {
	return attack{name: name, do: func(c *smtpd.Client) {
		ok := greeted(c, first...)
		for i := 0; ok && i < n; i++ {
			for _, line := range lines {
				ok = ok && says(c, strings.ReplaceAll(line, "#", fmt.Sprint(i)))
			}
		}
	}}
}

// vanishes returns attacks that send some lines, and then close or reset the connection.
func vanishes(after string, lines []string, more string) (list []attack) {
	for how, end := range map[string]func(*smtpd.Client) error{"close": (*smtpd.Client).Close, "reset": (*smtpd.Client).Reset} {
		list = append(list, attack{name: "vanish " + after + ", " + how, do: func(c *smtpd.Client) {
			if lines == nil || greeted(c, lines...) {
				_ = c.Send(more)
			}
			_ = end(c)
		}})
	}
	return list
}

// submits returns an attack on the submission port, with TLS.
func submits(name string, lines ...string) attack {
	return attack{name: name, port: smtpd.PortSubmission, do: func(c *smtpd.Client) {
		if !greeted(c, "EHLO laptop.example.net") {
			return
		}
		if r, err := c.StartTLS(); err == nil && r.Code == 220 {
			says(c, append([]string{"EHLO laptop.example.net"}, lines...)...)
		}
	}}
}

var (
	hello    = []string{"EHLO mail.example.net"}
	offered  = append(hello, "MAIL FROM:<a@example.net>", "RCPT TO:<postmaster@example.org>")
	begun    = append(offered, "DATA")
	tlsHello = "\x16\x03\x01\x00\x2f\x01\x00\x00\x2b\x03\x03" + strings.Repeat("\x9b\x1c\x7e\x52", 8) + "\x00\x00\x02\xc0\x2f\x01\x00\x00\x00"
)

// attacks returns all attacks.
func attacks() []attack {
	long := func(n int) string { return strings.Repeat("x", n) }
	all := []attack{
		// The following attacks use other protocols.
		sends("TLS hello", tlsHello),
		sends("TLS hello with line feeds", strings.ReplaceAll(tlsHello, "\x1c", "\n")),
		sends("SSLv2 hello", "\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10\x01\x00\x80\x02\x00\x80\x03\x00\x80\r\n"),
		sends("SSH banner and key exchange", "SSH-2.0-Go\r\n\x00\x00\x01\x04\x05\x14"+long(200)+"\n"),
		sends("HTTP in one write", "GET / HTTP/1.1\r\nHost: 192.0.2.25:25\r\nUser-Agent: zgrab/0.x\r\n\r\n"),
		sends("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
		repeats("HTTP line by line", 1, nil, "GET / HTTP/1.1", "Host: x", "User-Agent: Expanse, a Palo Alto Networks company", "", "QUIT"),
		sends("RDP", "\x03\x00\x00\x2b\x26\xe0\x00\x00\x00\x00\x00Cookie: mstshash=hello\r\n\x01\x00\x08\x00\x03\x00\x00\x00"),
		sends("SMB", "\x00\x00\x00\x85\xffSMB\x72\x00\x00\x00\x00\x18\x53\xc8\n"),
		sends("SIP", "OPTIONS sip:nm SIP/2.0\r\nVia: SIP/2.0/TCP nm;branch=foo\r\n\r\n"),
		sends("Redis", "*1\r\n$4\r\nINFO\r\n"),
		sends("IMAP", "a001 CAPABILITY\r\n"),
		sends("PROXY v1", "PROXY TCP4 198.51.100.1 192.0.2.25 1 25\r\n"),
		sends("PROXY v2", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x01\xc0\x00\x02\x19\x00\x01\x00\x19"),
		sends("smtpd's own lines", "filter-result|0000000000000001|0000000000000001|proceed\nreport|0.7|0.0|smtp-in|link-disconnect|0000000000000001\nregister|ready\nconfig|ready\n"),
		sends("every byte", func() string {
			b := make([]byte, 256)
			for i := range b {
				b[i] = byte(i)
			}
			return string(b) + "\r\n"
		}()),

		// The following lengths are close to smtpd's limits: 2,047 bytes per command and 65,535
		// bytes per line.
		repeats("commands around 2,047 bytes", 1, hello, "NOOP "+long(2040), "NOOP "+long(2041), "HELO "+long(2041), "MAIL FROM:<"+long(1900)+"@x>", "VRFY "+long(2042), "VRFY "+long(2043)),
		sends("HELO of 300 bytes", "HELO "+long(60)+strings.Repeat("."+long(60), 4)+"\r\n"),
		sends("line of 65,534 bytes", long(65534)+"\r\n"),
		sends("line of 65,535 bytes", "HELO "+long(65535-5)+"\r\n"),
		sends("line of 65,536 bytes", "EHLO "+long(65536)+"\r\n"),
		sends("a megabyte without an end", long(1<<20)),
		sends("a megabyte of line ends", strings.Repeat("\r\n", 1<<19)),
		sends("pipes for a megabyte", strings.Repeat("|", 1<<20)+"\r\n"),

		// The following attacks use unusual line endings.
		sends("bare CR", "EHLO a.example.net\rMAIL FROM:<a@b>\rQUIT\r"),
		sends("bare LF", "EHLO a.example.net\n"),
		sends("NUL in HELO", "HELO a\x00b.example.net|x\r\n"),
		sends("NUL first", "\x00HELO a.example.net\r\n"),
		sends("CR CR LF", "HELO a.example.net\r\r\n"),
		sends("no end", "EHLO mail.exam"),
		sends("only CR", "\r"),
		sends("vertical tab", "EHLO\va.example.net\f\r\n"),

		// These clients talk too early or too fast.
		{name: "EHLO before the greeting", do: func(c *smtpd.Client) { sendAll(c, "EHLO mail.example.net\r\n") }},
		{name: "a dialogue before the greeting", do: func(c *smtpd.Client) {
			sendAll(c, "EHLO mail.example.net\r\nMAIL FROM:<a@example.net>\r\nRCPT TO:<alice@example.org>\r\nDATA\r\nhello\r\n.\r\nQUIT\r\n")
		}},
		{name: "binary before the greeting", do: func(c *smtpd.Client) { sendAll(c, tlsHello+"\x00\xff|\n") }},
		{name: "early and gone", do: func(c *smtpd.Client) { _ = c.Send("EHLO mail.example.net\r\n"); _ = c.Reset() }},
		sends("pipelined", "EHLO mail.example.net\r\nMAIL FROM:<a@example.net>\r\nRCPT TO:<alice@example.org>\r\nDATA\r\n"),
		{name: "byte by byte", do: func(c *smtpd.Client) {
			if greeted(c) {
				for _, b := range []byte("EHLO mail.example.net\r\nMAIL FROM:<" + long(400) + "@example.net>\r\nRCPT TO:<") {
					if c.Send(string(b)) != nil {
						return
					}
				}
			}
		}},
		{name: "half lines", do: func(c *smtpd.Client) {
			ok := greeted(c)
			for _, half := range []string{"EH", "LO mail.example", ".net\r", "\nMAIL FR", "OM:<a@example.net>\r"} {
				ok = ok && c.Send(half) == nil
			}
		}},

		// The following clients send many commands.
		repeats("2,000 NOOP", 2000, hello, "NOOP"),
		repeats("1,000 RSET", 1000, hello, "RSET"),
		repeats("500 HELO and EHLO", 250, nil, "HELO h#.example.net", "EHLO e#.example.net"),
		repeats("300 transactions given up", 300, hello, "MAIL FROM:<a#@example.net>", "RSET"),
		repeats("1,000 recipients", 1000, append(hello, "MAIL FROM:<a@example.net>"), "RCPT TO:<postmaster@example.org>"),
		repeats("200 unknown recipients", 200, append(hello, "MAIL FROM:<a@example.net>"), "RCPT TO:<nobody#@example.org>"),
		repeats("200 relay probes", 200, append(hello, "MAIL FROM:<a@example.net>"), "RCPT TO:<a#@example.com>"),
		repeats("1,000 unknown commands", 1000, hello, "X#|||"),
		repeats("500 AUTH where there is none", 250, hello, "AUTH LOGIN", "AUTH PLAIN AGEAYg=="),
		repeats("STARTTLS without it", 1, hello, "STARTTLS", "EHLO again.example.net"),

		// The following clients send commands in the wrong order.
		repeats("wrong order", 1, nil, "DATA", "RCPT TO:<alice@example.org>", "MAIL FROM:<a@example.net>", "EHLO a.example.net", "RCPT TO:<alice@example.org>", "DATA",
			"MAIL FROM:<a@example.net>", "MAIL FROM:<b@example.net>", "EHLO b.example.net", "RCPT TO:<alice@example.org>", "HELO c.example.net", "STARTTLS", "AUTH PLAIN", "HELP", "VRFY root", "EXPN root", "BDAT 5 LAST", "ETRN x", "TURN", "QUIT"),
		repeats("odd addresses", 1, hello, "MAIL FROM:<>", "RSET", "MAIL FROM:<@a,@b:c@d>", "RSET", `MAIL FROM:<"a|b"@x>`, "MAIL FROM:<a|b|c@example.net>", "RCPT TO:<a|b@example.org>", "RSET",
			"MAIL FROM:<a@[127.0.0.1]> SIZE=99999999999999999999 BODY=8BITMIME AUTH=<>", "MAIL FROM:a@b", "MAIL FROM:<a@b", "MAIL FROM:", "MAIL", "MAIL FROM:<a@b> RET=|x", "RCPT TO:<>", "RCPT TO:<%@%>", "RCPT TO:<a%b@c!d>"),
		{name: "message of odd lines", do: func(c *smtpd.Client) {
			if greeted(c, begun...) {
				_ = c.Send("Subject: x\r\n\x00\r\n\r\r\n" + long(65400) + "\r\n.\r\r\n|filter-dataline|x\r\n..\r\n\xff\xfe\r\n\n.\n\r\n.\r\n")
				_, _ = c.ReadReply()
				says(c, "RSET", "QUIT")
			}
		}},
		{name: "message line of 65,460 bytes", do: func(c *smtpd.Client) { // a reader that limits lines to 64 KiB would fail here
			if greeted(c, begun...) {
				sendAll(c, "Subject: x\r\n\r\n"+long(65460)+"\r\n.\r\nQUIT\r\n")
			}
		}},
		{name: "message line of 70,000 bytes", do: func(c *smtpd.Client) {
			if greeted(c, begun...) {
				sendAll(c, long(70000)+"\r\n.\r\n")
			}
		}},
		{name: "message of 20,000 lines", do: func(c *smtpd.Client) {
			if greeted(c, begun...) {
				sendAll(c, "Subject: x\r\n\r\n"+strings.Repeat("|a line|\r\n", 20000)+".\r\n")
			}
		}},

		// The following attack uses IPv6.
		{name: "IPv6", ipv6: true, do: func(c *smtpd.Client) { greeted(c, append(begun, ".", "QUIT")...) }},
		{name: "IPv6, early", ipv6: true, do: func(c *smtpd.Client) { sendAll(c, "EHLO [IPv6:2001:db8::1]\r\nQUIT\r\n") }},
		{name: "IPv6, vanish", ipv6: true, do: func(c *smtpd.Client) { _ = c.Reset() }},
		{name: "IPv6 literals", ipv6: true, do: func(c *smtpd.Client) {
			greeted(c, "EHLO [IPv6:::1]", "HELO [::1]", "HELO ::1", "HELO [IPv6:"+long(200)+"]", "HELO [127.0.0.1]", "HELO 127.0.0.1", "HELO [", "HELO ]", "HELO [|]")
		}},

		// The following attacks use authentication.
		submits("user names", func() (lines []string) {
			// smtpd needs up to a second for each login.
			for _, user := range []string{"a|b", "|", "", "a\rb"} {
				lines = append(lines, "AUTH PLAIN "+smtpd.Plain(user, "wrong"))
			}
			return lines
		}()...),
		submits("more user names", "AUTH PLAIN "+smtpd.Plain("a\nb", "x"), "AUTH PLAIN "+smtpd.Plain("\x1b[31m|pass", "x"), "AUTH PLAIN "+smtpd.Plain("a\x00b", "x")),
		submits("long user names", "AUTH PLAIN "+smtpd.Plain(long(255), "x"), "AUTH PLAIN "+smtpd.Plain(long(300), "x"), "AUTH PLAIN "+smtpd.Plain("\xff\xfe|\t", "x")),
		submits("AUTH broken", "AUTH", "AUTH PLAIN ====", "AUTH PLAIN \x00", "AUTH LOGIN", "*", "AUTH LOGIN", "!!!", "AUTH LOGIN |", "AUTH PLAIN "+long(1800), "AUTH PLAIN", long(1500), "AUTH NTLM TlRMTVNTUAABAAAA", "AUTH CRAM-MD5", "AUTH XOAUTH2 x|y", "AUTH  PLAIN", "*"),
		submits("AUTH LOGIN given up", "AUTH LOGIN", "YWxpY2U="),
		submits("mail without AUTH", "MAIL FROM:<a@example.net>", "RCPT TO:<alice@example.org>", "DATA"),
		{name: "garbage in STARTTLS", port: smtpd.PortSubmission, do: func(c *smtpd.Client) {
			if greeted(c, "EHLO a.example.net", "STARTTLS") {
				sendAll(c, "\x16\x03|garbage\r\nMAIL FROM:<a@b>\r\n")
			}
		}},
		{name: "injection after STARTTLS", port: smtpd.PortSubmission, do: func(c *smtpd.Client) {
			if greeted(c, "EHLO a.example.net") {
				sendAll(c, "STARTTLS\r\nMAIL FROM:<a@example.net>\r\nRSET\r\n")
			}
		}},
		{name: "vanish in STARTTLS", port: smtpd.PortSubmission, do: func(c *smtpd.Client) {
			if greeted(c, "EHLO a.example.net", "STARTTLS") {
				_ = c.Send(tlsHello[:20])
				_ = c.Reset()
			}
		}},
		{name: "SMTP without TLS on smtps", port: smtpd.PortSMTPS, do: func(c *smtpd.Client) { sendAll(c, "EHLO a|b\r\nQUIT\r\n") }},
		{name: "vanish on smtps", port: smtpd.PortSMTPS, do: func(c *smtpd.Client) { _ = c.Reset() }},
	}
	for _, v := range []struct {
		after string
		lines []string
		more  string
	}{
		{"before the greeting", nil, ""}, {"at the greeting", []string{}, ""}, {"in EHLO", []string{}, "EHLO mail.exa"}, {"after EHLO", []string{}, hello[0] + "\r\n"},
		{"after MAIL", hello, "MAIL FROM:<a@example.net>\r\n"}, {"after RCPT", offered[:2], offered[2] + "\r\n"}, {"after DATA", offered, "DATA\r\n"},
		{"in the message", begun, "Subject: x\r\n\r\nhel"}, {"after the message", begun, "Subject: x\r\n\r\nhello\r\n.\r\n"}, {"after QUIT", offered, "QUIT\r\n"},
	} {
		all = append(all, vanishes(v.after, v.lines, v.more)...)
	}
	// Send each hostile text in every argument.
	for _, text := range hostiletext.Texts() {
		s := text.Text
		// Text with a line ending forms more than one command.
		all = append(all, attack{name: "text: " + text.Name, heard: !strings.Contains(s, "\n"), do: func(c *smtpd.Client) {
			greeted(c)
			for _, line := range []string{"HELO " + s, "EHLO " + s + ".example.net", "EHLO mail.example.net", "MAIL FROM:<" + s + "@example.net>", "RSET", "MAIL FROM:<a@" + s + ">",
				"RSET", "MAIL FROM:<a@example.net> " + s, "MAIL FROM:<a@example.net>", "RCPT TO:<" + s + "@example.org>", "RCPT TO:<" + s + ">", "RCPT TO:<a@" + s + ">", "NOOP " + s, "AUTH " + s, "VRFY " + s, s, "QUIT " + s, "QUIT"} {
				if !says(c, line) {
					return
				}
			}
		}})
	}
	return all
}

const (
	friend     = "198.51.100.99" // sends legitimate mail
	friendName = "mail.example.net"
	atOnce     = 64 // number of attacks in a round
)

// source returns the address of attack number i. Each attack has its own network.
func source(i int, a attack) string {
	if a.ipv6 {
		return fmt.Sprintf("2001:db8:%x::1", 0x1000+i)
	}
	return fmt.Sprintf("198.18.%d.1", i)
}

// dial opens the connection of attack number i.
func dial(s *smtpd.Server, i int, a attack) (*smtpd.Client, error) {
	port := a.port
	if port == 0 {
		port = smtpd.PortMX
	}
	c, err := s.Dial(source(i, a), port)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.name, err)
	}
	return c, accepted(s)
}

// accepted waits until smtpd has accepted all connections. smtpd queues only five connections, and
// the other clients retry after a second.
func accepted(s *smtpd.Server) error {
	return s.Eventually("smtpd accepts", func() bool {
		for _, name := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
			file, err := os.Open(name)
			if err != nil {
				return false
			}
			// Listening sockets are at the start of the file, followed by thousands of connections.
			head := make([]byte, 8<<10)
			n, err := io.ReadAtLeast(file, head, 1)
			file.Close()
			if err != nil {
				return false
			}
			for line := range strings.Lines(string(head[:n])) {
				// The receive queue of a listening socket (state 0A) is the number of connections
				// that wait to be accepted.
				if f := strings.Fields(line); len(f) > 4 && f[3] == "0A" && !strings.HasSuffix(f[4], ":00000000") {
					return false
				}
			}
		}
		return true
	})
}

// possible returns the attacks that a version of smtpd supports.
func possible(v smtpd.Version) (list []attack) {
	for _, a := range attacks() {
		if v.TLS || a.port == 0 {
			list = append(list, a)
		}
	}
	return list
}

// A fullStatus is the part of scanwatch status --json that the tests need.
type fullStatus struct {
	Live   struct{ Sessions, Held int }
	Config struct{ Mode string }
	Store  struct{ Error string }
	State  struct{ Error string }
}

// liveStatus requests the status from the filter directly, without starting a process.
func liveStatus(s *smtpd.Server) (*fullStatus, error) {
	conn, err := net.Dial("unix", filepath.Join(s.State(), "control.sock"))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(90 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(conn, "status\n"); err != nil {
		return nil, err
	}
	r := bufio.NewReader(conn)
	if _, err := r.ReadBytes('\n'); err != nil { // the greeting
		return nil, err
	}
	line, err := r.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	st := new(fullStatus)
	return st, json.Unmarshal(line, st)
}

// idle waits until the filter has no open session and no delayed answer.
func idle(s *smtpd.Server) (st *fullStatus, err error) {
	var last error
	err = s.Eventually("no session is open and no answer is delayed", func() bool {
		st, last = liveStatus(s)
		return last == nil && st.Live.Sessions == 0 && st.Live.Held == 0
	})
	if err != nil {
		err = fmt.Errorf("%w; last: %w, %+v", err, last, st)
	}
	return st, err
}

// smtpdsOwn matches the start of a line that smtpd itself logs about a session.
var smtpdsOwn = regexp.MustCompile(`[0-9a-f]{16} smtp `)

// together runs attacks concurrently. first is the number of the first attack.
func together(s *smtpd.Server, list []attack, first int) error {
	var all sync.WaitGroup
	defer all.Wait()
	for i, a := range list {
		c, err := dial(s, first+i, a)
		if err != nil {
			return err
		}
		all.Add(1)
		go func() {
			defer all.Done()
			a.do(c)
			c.Close()
		}()
	}
	return nil
}

// notStarted is the prefix of the string that suffers returns if the server fails to start.
const notStarted = "does not start: "

// suffers starts a server, runs attacks concurrently, and returns a description of the damage, or
// "" if there is none.
func suffers(o smtpd.Options, list []attack, first int, well func(*smtpd.Server) error) string {
	s, err := smtpd.Start(o)
	if err != nil {
		return notStarted + lastWords(err.Error())
	}
	defer func() { _ = s.Stop() }()
	_ = together(s, list, first) // fails if the server has exited
	err = well(s)
	if err != nil {
		select {
		case <-s.Ended(): // smtpd needs time to exit
		case <-time.After(10 * time.Second):
		}
	}
	switch {
	case err == nil && s.Alive():
		return ""
	case !s.Alive():
		return "smtpd exits: " + lastWords(s.Log())
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "hangs"
	default:
		return err.Error()
	}
}

// blame returns those attacks of a round that cause damage. Each attack runs on a new server.
func blame(o func() smtpd.Options, round []attack, first int, well func(*smtpd.Server) error) (guilty []string) {
	for i := range round {
		if what := suffers(o(), round[i:i+1], first+i, well); what != "" {
			guilty = append(guilty, round[i].name+": "+what)
		}
	}
	if guilty == nil {
		return []string{"none of them alone"}
	}
	return guilty
}

// TestHostileClients checks that the processes of smtpd and the filter survive all attacks.
// Legitimate mail and local mail must be accepted, and no session may remain open. Each request
// must have exactly one answer, and the records must be readable.
func TestHostileClients(t *testing.T) {
	for _, v := range smtpd.Matrix() {
		t.Run(v.Name, func(t *testing.T) {
			smtpd.Require(t, v)
			server := func() smtpd.Options {
				f, dir := live.Configured(t, live.Preset(t, "tight", "enforce"), nil)
				return smtpd.Options{
					Version: v, Dir: dir, Socket: true,
					Filters: []smtpd.Filter{smtpd.Through(smtpd.Bin("teefilter"), f, smtpd.StateDir, live.AllPhases...)},
					Hosts:   append(smtpd.Hosts(), smtpd.Host{Addr: friend, Name: friendName, Confirmed: true}),
				}
			}
			s := live.Start(t, server())
			pids, err := s.FilterPIDs()
			if err != nil || len(pids) != 1 {
				t.Fatalf("filter: %v, %v", pids, err)
			}
			sessions := 1 // the session of Start
			well := func(after string) {
				t.Helper()
				sessions++
				if err := unhurt(s, pids[0]); err != nil {
					t.Fatalf("after %s: %v\n%s", after, err, s.Log())
				}
				if out := cli.Run(t, s.State(), "status"); !strings.Contains(out, "open      0 sessions, 0 delayed replies") {
					t.Errorf("after %s: status prints\n%s", after, out)
				}
			}
			well("the start")
			list := possible(v)
			for first := 0; first < len(list); first += atOnce {
				round := list[first:min(first+atOnce, len(list))]
				sessions += len(round) + 1
				err := together(s, round, first)
				if err == nil {
					err = unhurt(s, pids[0])
				}
				if err != nil {
					t.Logf("after the round from %q to %q: %v\n%s", round[0].name, round[len(round)-1].name, err, s.Log())
					_ = s.Stop()
					t.Fatalf("the damage is from\n%s", strings.Join(blame(server, round, first, func(s *smtpd.Server) error { return unhurt(s, 0) }), "\n"))
				}
			}
			for _, args := range [][]string{{"-f", "a|b@example.net", "alice@example.org"}, {"-f", "\x1b[31m", "bob@example.org"}, {"nobody|x@example.org"}} {
				_ = s.Sendmail(strings.NewReader("Subject: \x1b]0;x\x07\n\n|\n"), args...)
				well(fmt.Sprintf("sendmail %q", args))
			}
			sessions += crowd(t, s)
			well("a crowd")
			live.Stop(t, s)

			for line := range strings.Lines(s.FilterLog("scanwatch")) {
				if strings.Contains(line, "level=ERROR") || strings.Contains(line, "bug") {
					t.Errorf("logged: %s", line)
				}
				// smtpd's processes write to one file, and sometimes mix their lines. Do not check
				// smtpd's own lines.
				if at := smtpdsOwn.FindStringIndex(line); at != nil {
					line = line[:at[0]]
				}
				if err := hostiletext.Terminal([]byte(line)); err != nil {
					t.Errorf("log: %v", err)
				}
			}
			records := cli.Dump(t, s.State())
			answeredOnce(t, s, func(id string) string {
				for _, r := range records {
					for i, a := range list {
						if r.Session == id && r.Src == source(i, a) {
							return a.name
						}
					}
				}
				return "not an attack"
			})
			// Ignore attacks that were rejected before their commands were read, because they prove
			// nothing.
			talked := make(map[string]bool)
			for _, r := range records {
				if r.Counts["commands"] > 0 {
					talked[r.Src] = true
				}
			}
			for i, a := range list {
				if a.heard && !talked[source(i, a)] {
					t.Errorf("%s: smtpd read no command", a.name)
				}
			}
			if n := len(records); n < sessions {
				t.Errorf("%d records of %d sessions", n, sessions)
			}
		})
	}
}

// unhurt returns an error if a server or its filter is damaged. Legitimate mail must be accepted,
// no session may be open, and no answer may be delayed. pid is the expected process id of the
// filter; 0 accepts any.
func unhurt(s *smtpd.Server, pid int) error {
	if err := deliver(s); err != nil {
		return fmt.Errorf("legitimate mail: %w", err)
	}
	st, err := idle(s)
	if err != nil {
		return err
	}
	if now, err := s.FilterPIDs(); err != nil || len(now) != 1 || pid != 0 && now[0] != pid {
		return fmt.Errorf("the filter is %v, was %d: %v", now, pid, err)
	}
	if st.Store.Error != "" || st.State.Error != "" || st.Config.Mode != "enforce" {
		return fmt.Errorf("status: %+v", st)
	}
	return nil
}

// TestBlame checks that blame finds the attack after which a filter exits. A filter that uses
// OpenSMTPD-framework exits at the first IPv6 connection.
func TestBlame(t *testing.T) {
	v := smtpd.Newest()
	smtpd.Require(t, v)
	f, err := others[0].make(t, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var round []attack
	for _, a := range possible(v) {
		if a.name == "IMAP" || a.name == "IPv6, vanish" || a.name == "only CR" {
			round = append(round, a)
		}
	}
	server := func() smtpd.Options { return smtpd.Options{Version: v, Filters: []smtpd.Filter{f}} }
	got := blame(server, round, 0, deliver)
	if len(round) != 3 || len(got) != 1 || !strings.HasPrefix(got[0], "IPv6, vanish: smtpd exits") {
		t.Errorf("of %d attacks, these cause damage: %q", len(round), got)
	}
}

// crowd opens a thousand sessions from a hundred addresses. The policy delays all of them, and half
// of the clients reset their connection.
func crowd(t *testing.T, s *smtpd.Server) int {
	t.Helper()
	const n = 1000
	clients := make([]*smtpd.Client, n)
	// Connect one client at a time, because smtpd queues only five connections.
	for i := range clients {
		c, err := s.Dial(fmt.Sprintf("198.19.%d.%d", i%100, 1+i/100%2), smtpd.PortMX)
		if err != nil {
			t.Fatal(err)
		}
		clients[i] = c
		if i%4 == 0 {
			if err := accepted(s); err != nil {
				t.Fatal(err)
			}
		}
	}
	most := 0
	if err := s.Eventually("all sessions are open", func() bool {
		st, err := liveStatus(s)
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, st.Live.Sessions)
		return most > n/2 // the other clients were rejected earlier
	}); err != nil {
		t.Error(err)
	}
	var all sync.WaitGroup
	for i, c := range clients {
		if i%2 == 0 {
			_ = c.Reset()
			continue
		}
		all.Add(1)
		go func() {
			defer all.Done()
			if greeted(c, offered...) {
				says(c, "QUIT")
			}
			c.Close()
		}()
	}
	all.Wait()
	t.Logf("%d sessions were open at a time", most)
	return n
}

// answeredOnce checks that each request from smtpd has exactly one answer. name returns the attack
// of a session.
func answeredOnce(t *testing.T, s *smtpd.Server, name func(session string) string) {
	t.Helper()
	count := func(name, word string, field int) map[string]int {
		data, err := os.ReadFile(filepath.Join(s.State(), name))
		if err != nil {
			t.Fatal(err)
		}
		found := make(map[string]int)
		for line := range bytes.Lines(data) {
			if f := strings.SplitN(string(line), "|", field+2); f[0] == word && len(f) > field {
				found[f[field]]++
			}
		}
		return found
	}
	asked, answered := count("stream.in", "filter", 5), count("stream.out", "filter-result", 1)
	total := 0
	for id, n := range asked {
		total += n
		if answered[id] != n {
			t.Errorf("session %s (%s): %d questions, %d answers", id, name(id), n, answered[id])
		}
	}
	if len(answered) != len(asked) {
		t.Errorf("answers to %d sessions, questions of %d", len(answered), len(asked))
	}
	t.Logf("%d questions of %d sessions, each answered once", total, len(asked))
}
