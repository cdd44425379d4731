//go:build linux

package tests

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

	"scanwatch/tests/nasty"
	"scanwatch/tests/smtpd"
)

// An attack is one thing that a client does to hurt. Whatever the server
// answers is right, as long as it goes on; so that attacks look at no error,
// and end by themselves when the connection is closed.
type attack struct {
	name string
	port int  // smtpd.PortMX if it is 0
	ipv6 bool // over IPv6
	// heard tells that smtpd takes some of it for commands.
	heard bool
	do    func(*smtpd.Client)
}

// sends is an attack of bytes, sent when the greeting has come. The client
// reads until the server is done with it, or says QUIT.
func sends(name, data string) attack {
	return attack{name: name, do: func(c *smtpd.Client) { greeted(c); tell(c, data) }}
}

// tell sends data, lets the server know that nothing more will come, and reads
// all that it says.
func tell(c *smtpd.Client, data string) {
	if c.Send(data) == nil && c.CloseWrite() == nil {
		_, _ = c.Drain()
	}
}

// greeted reads the greeting, and greets if there are words to do it with.
func greeted(c *smtpd.Client, lines ...string) bool {
	if r, err := c.ReadReply(); err != nil || r.Code != 220 {
		return false
	}
	return says(c, lines...)
}

// says sends lines, each when the one before it was answered.
func says(c *smtpd.Client, lines ...string) bool {
	for _, line := range lines {
		if _, err := c.Cmd(line); err != nil {
			return false
		}
	}
	return true
}

// repeats says the same lines many times.
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

// vanishes goes away after some lines: closed, or as if it had lost power.
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

// submits is an attack on the port for mail users, inside of TLS.
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

// attacks are all of them.
func attacks() []attack {
	long := func(n int) string { return strings.Repeat("x", n) }
	all := []attack{
		// Other protocols.
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

		// Lengths, around the limits of smtpd: 2,047 bytes of a command, 65,535 of a line.
		repeats("commands around 2,047 bytes", 1, hello, "NOOP "+long(2040), "NOOP "+long(2041), "HELO "+long(2041), "MAIL FROM:<"+long(1900)+"@x>", "VRFY "+long(2042), "VRFY "+long(2043)),
		sends("HELO of 300 bytes", "HELO "+long(60)+strings.Repeat("."+long(60), 4)+"\r\n"),
		sends("line of 65,534 bytes", long(65534)+"\r\n"),
		sends("line of 65,535 bytes", "HELO "+long(65535-5)+"\r\n"),
		sends("line of 65,536 bytes", "EHLO "+long(65536)+"\r\n"),
		sends("a megabyte without an end", long(1<<20)),
		sends("a megabyte of line ends", strings.Repeat("\r\n", 1<<19)),
		sends("pipes for a megabyte", strings.Repeat("|", 1<<20)+"\r\n"),

		// Ends of lines.
		sends("bare CR", "EHLO a.example.net\rMAIL FROM:<a@b>\rQUIT\r"),
		sends("bare LF", "EHLO a.example.net\n"),
		sends("NUL in HELO", "HELO a\x00b.example.net|x\r\n"),
		sends("NUL first", "\x00HELO a.example.net\r\n"),
		sends("CR CR LF", "HELO a.example.net\r\r\n"),
		sends("no end", "EHLO mail.exam"),
		sends("only CR", "\r"),
		sends("vertical tab", "EHLO\va.example.net\f\r\n"),

		// Too early, too fast.
		{name: "EHLO before the greeting", do: func(c *smtpd.Client) { tell(c, "EHLO mail.example.net\r\n") }},
		{name: "a dialogue before the greeting", do: func(c *smtpd.Client) {
			tell(c, "EHLO mail.example.net\r\nMAIL FROM:<a@example.net>\r\nRCPT TO:<alice@example.org>\r\nDATA\r\nhello\r\n.\r\nQUIT\r\n")
		}},
		{name: "binary before the greeting", do: func(c *smtpd.Client) { tell(c, tlsHello+"\x00\xff|\n") }},
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

		// Thousands of commands.
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

		// The wrong order.
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
		{name: "message line of 65,460 bytes", do: func(c *smtpd.Client) { // with a line reader of 64 KiB this is the end
			if greeted(c, begun...) {
				tell(c, "Subject: x\r\n\r\n"+long(65460)+"\r\n.\r\nQUIT\r\n")
			}
		}},
		{name: "message line of 70,000 bytes", do: func(c *smtpd.Client) {
			if greeted(c, begun...) {
				tell(c, long(70000)+"\r\n.\r\n")
			}
		}},
		{name: "message of 20,000 lines", do: func(c *smtpd.Client) {
			if greeted(c, begun...) {
				tell(c, "Subject: x\r\n\r\n"+strings.Repeat("|a line|\r\n", 20000)+".\r\n")
			}
		}},

		// From elsewhere.
		{name: "IPv6", ipv6: true, do: func(c *smtpd.Client) { greeted(c, append(begun, ".", "QUIT")...) }},
		{name: "IPv6, early", ipv6: true, do: func(c *smtpd.Client) { tell(c, "EHLO [IPv6:2001:db8::1]\r\nQUIT\r\n") }},
		{name: "IPv6, vanish", ipv6: true, do: func(c *smtpd.Client) { _ = c.Reset() }},
		{name: "IPv6 literals", ipv6: true, do: func(c *smtpd.Client) {
			greeted(c, "EHLO [IPv6:::1]", "HELO [::1]", "HELO ::1", "HELO [IPv6:"+long(200)+"]", "HELO [127.0.0.1]", "HELO 127.0.0.1", "HELO [", "HELO ]", "HELO [|]")
		}},

		// Logging in.
		submits("user names", func() (lines []string) {
			// smtpd takes up to a second for each.
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
				tell(c, "\x16\x03|garbage\r\nMAIL FROM:<a@b>\r\n")
			}
		}},
		{name: "injection after STARTTLS", port: smtpd.PortSubmission, do: func(c *smtpd.Client) {
			if greeted(c, "EHLO a.example.net") {
				tell(c, "STARTTLS\r\nMAIL FROM:<a@example.net>\r\nRSET\r\n")
			}
		}},
		{name: "vanish in STARTTLS", port: smtpd.PortSubmission, do: func(c *smtpd.Client) {
			if greeted(c, "EHLO a.example.net", "STARTTLS") {
				_ = c.Send(tlsHello[:20])
				_ = c.Reset()
			}
		}},
		{name: "SMTP without TLS on smtps", port: smtpd.PortSMTPS, do: func(c *smtpd.Client) { tell(c, "EHLO a|b\r\nQUIT\r\n") }},
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
	// Each nasty text in every argument.
	for _, text := range nasty.Texts() {
		s := text.Text
		// Two lines at once are no command.
		all = append(all, attack{name: "nasty: " + text.Name, heard: !strings.Contains(s, "\n"), do: func(c *smtpd.Client) {
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
	friend     = "198.51.100.99" // sends good mail
	friendName = "mail.example.net"
	atOnce     = 64 // attacks of one round
)

// source is where attack number i comes from, in a network of its own.
func source(i int, a attack) string {
	if a.ipv6 {
		return fmt.Sprintf("2001:db8:%x::1", 0x1000+i)
	}
	return fmt.Sprintf("198.18.%d.1", i)
}

// dial connects for attack number i.
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

// accepted waits until smtpd has accepted all connections. Its queue has room
// for five; whoever comes then tries again after a second.
func accepted(s *smtpd.Server) error {
	return s.Eventually("smtpd accepts", func() bool {
		for _, name := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
			file, err := os.Open(name)
			if err != nil {
				return false
			}
			// Listening sockets come first, and thousands of others later.
			head := make([]byte, 8<<10)
			n, err := io.ReadAtLeast(file, head, 1)
			file.Close()
			if err != nil {
				return false
			}
			for line := range strings.Lines(string(head[:n])) {
				// Of a listening socket (state 0A) the receive queue is that of connections.
				if f := strings.Fields(line); len(f) > 4 && f[3] == "0A" && !strings.HasSuffix(f[4], ":00000000") {
					return false
				}
			}
		}
		return true
	})
}

// possible are the attacks that can be made on a version.
func possible(v smtpd.Version) (list []attack) {
	for _, a := range attacks() {
		if v.TLS || a.port == 0 {
			list = append(list, a)
		}
	}
	return list
}

// A fullStatus is what scanwatch status --json tells, as far as it matters here.
type fullStatus struct {
	Live   struct{ Sessions, Held int }
	Config struct{ Mode string }
	Store  struct{ Error string }
	State  struct{ Error string }
}

// liveStatus asks the filter how it is, as scanwatch status does, without the
// cost of a process.
func liveStatus(s *smtpd.Server) (*fullStatus, error) {
	conn, err := net.Dial("unix", filepath.Join(s.State(), "control.sock"))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
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

// idle waits until the filter has no session and owes no answer.
func idle(s *smtpd.Server) (st *fullStatus, err error) {
	var last error
	err = s.Eventually("no session is open and no answer owed", func() bool {
		st, last = liveStatus(s)
		return last == nil && st.Live.Sessions == 0 && st.Live.Held == 0
	})
	if err != nil {
		err = fmt.Errorf("%w; last: %w, %+v", err, last, st)
	}
	return st, err
}

// smtpdsOwn is how a line begins that smtpd logs of a session.
var smtpdsOwn = regexp.MustCompile(`[0-9a-f]{16} smtp `)

// together makes attacks all at once, the first of which has the number first.
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

// notStarted is how suffers begins if the server did not even start.
const notStarted = "does not start: "

// suffers starts a server, makes attacks on it all at once, and tells what
// became of it: nothing if all is well then.
func suffers(o smtpd.Options, list []attack, first int, well func(*smtpd.Server) error) string {
	s, err := smtpd.Start(o)
	if err != nil {
		return notStarted + lastWords(err.Error())
	}
	defer func() { _ = s.Stop() }()
	_ = together(s, list, first) // it may have gone already, or be about to
	err = well(s)
	if err != nil {
		select {
		case <-s.Ended(): // it may take a moment over it
		case <-time.After(time.Second):
		}
	}
	switch {
	case err == nil && s.Alive():
		return ""
	case !s.Alive():
		return "smtpd ends: " + lastWords(s.Log())
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "hangs"
	default:
		return err.Error()
	}
}

// blame finds out which attacks of a round it was that hurt: each is made once more, on
// a server of its own.
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

// TestHostileClients: whatever clients do, on every version of smtpd, it and
// the filter go on, as the same processes; good mail is accepted, local mail
// too; no session is left and no answer owed; and in the end each question had
// exactly one answer, and all can be read.
func TestHostileClients(t *testing.T) {
	for _, v := range smtpd.Versions {
		t.Run(v.Name, func(t *testing.T) {
			smtpd.Require(t, v)
			server := func() smtpd.Options {
				f, dir := configured(t, ready(t, "tight", "enforce"), nil)
				return smtpd.Options{
					Version: v, Dir: dir, Socket: true,
					Filters: []smtpd.Filter{smtpd.Through(smtpd.Bin("shim"), f, smtpd.StateDir, allPhases...)},
					Hosts:   append(smtpd.Hosts(), smtpd.Host{Addr: friend, Name: friendName, Confirmed: true}),
				}
			}
			s := start(t, server())
			pids, err := s.FilterPIDs()
			if err != nil || len(pids) != 1 {
				t.Fatalf("filter: %v, %v", pids, err)
			}
			sessions := 1 // Start's own
			well := func(after string) {
				t.Helper()
				sessions++
				if err := unhurt(s, pids[0]); err != nil {
					t.Fatalf("after %s: %v\n%s", after, err, s.Log())
				}
				if out := command(t, s.State(), "status"); !strings.Contains(out, "open      0 sessions, 0 answers held") {
					t.Errorf("after %s: status says\n%s", after, out)
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
					t.Fatalf("it was\n%s", strings.Join(blame(server, round, first, func(s *smtpd.Server) error { return unhurt(s, 0) }), "\n"))
				}
			}
			for _, args := range [][]string{{"-f", "a|b@example.net", "alice@example.org"}, {"-f", "\x1b[31m", "bob@example.org"}, {"nobody|x@example.org"}} {
				_ = s.Sendmail(strings.NewReader("Subject: \x1b]0;x\x07\n\n|\n"), args...)
				well(fmt.Sprintf("sendmail %q", args))
			}
			sessions += crowd(t, s)
			well("a crowd")
			stop(t, s)

			for line := range strings.Lines(s.FilterLog("scanwatch")) {
				if strings.Contains(line, "level=ERROR") || strings.Contains(line, "bug") {
					t.Errorf("logged: %s", line)
				}
				// smtpd's processes write to one file, and now and then into
				// each other's lines; what smtpd itself logs is not ours.
				if at := smtpdsOwn.FindStringIndex(line); at != nil {
					line = line[:at[0]]
				}
				if err := nasty.Terminal([]byte(line)); err != nil {
					t.Errorf("log: %v", err)
				}
			}
			records := dump(t, s.State())
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
			// Attacks that are turned away at once would prove nothing.
			talked := make(map[string]bool)
			for _, r := range records {
				if r.Counts["commands"] > 0 {
					talked[r.Src] = true
				}
			}
			for i, a := range list {
				if a.heard && !talked[source(i, a)] {
					t.Errorf("%s: was not heard", a.name)
				}
			}
			if n := len(records); n < sessions {
				t.Errorf("%d records of %d sessions", n, sessions)
			}
		})
	}
}

// unhurt tells what is wrong with a server and the filter on it: nothing if good mail is
// accepted, no session is left and no answer owed, and the filter is the process pid, or
// any if that is 0.
func unhurt(s *smtpd.Server, pid int) error {
	if err := deliver(s); err != nil {
		return fmt.Errorf("good mail: %w", err)
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

// TestBlame: of a round that a filter does not survive the attack is found which it
// does not survive alone. A filter on OpenSMTPD-framework ends with the first IPv6
// connection.
func TestBlame(t *testing.T) {
	v := smtpd.Versions[len(smtpd.Versions)-1]
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
	if len(round) != 3 || len(got) != 1 || !strings.HasPrefix(got[0], "IPv6, vanish: smtpd ends") {
		t.Errorf("of %d attacks it was %q", len(round), got)
	}
}

// crowd is a thousand sessions at a time, from a hundred addresses and all of
// them held by the policy, of which half leave without a word.
func crowd(t *testing.T, s *smtpd.Server) int {
	t.Helper()
	const n = 1000
	clients := make([]*smtpd.Client, n)
	// smtpd's backlog is 5: connect one after the other.
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
	if err := s.Eventually("all are there", func() bool {
		st, err := liveStatus(s)
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, st.Live.Sessions)
		return most > n/2 // some were refused by then
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

// answeredOnce compares what smtpd asked with what it was answered; name tells which
// attack a session was.
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
