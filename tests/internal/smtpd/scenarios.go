//go:build linux

package smtpd

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
)

// Recipients lists the local parts that exist.
var Recipients = []string{"alice", "bob", "carol", "mailuser", "postmaster"}

// An Account can log in on the submission ports.
type Account struct{ User, Password string }

// Accounts lists all accounts.
var Accounts = []Account{
	{"alice", AlicePassword},
	{"bob", BobPassword},
	{"carol", CarolPassword},
}

// Passwords used in scenarios.
const (
	AlicePassword = "correct-horse-Ohgh5eiz"
	BobPassword   = "battery-staple-Aeb0phei"
	CarolPassword = "tremendous-iQu7aeth"
	GuessFirst    = "letmein-Thoo3kai"
	GuessSecond   = "hunter2-Zie9ohng"
	GuessThird    = "passw0rd-Eiqu4vee"
)

// GuessUser is the user in brute-force scenarios. No such user exists.
const GuessUser = "office"

// Secrets returns every form in which scenarios send passwords: unencoded, in base64 for AUTH
// LOGIN, or together with the user for AUTH PLAIN (RFC 4616). Tests fail if any of these forms
// appears in a file or in output.
func Secrets() []string {
	var list []string
	for _, a := range append(slices.Clone(Accounts),
		Account{GuessUser, GuessFirst}, Account{GuessUser, GuessSecond}, Account{GuessUser, GuessThird}) {
		list = append(list, a.Password, encode(a.Password), plain(a))
	}
	return list
}

func encode(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// Plain returns the argument for AUTH PLAIN (RFC 4616).
func Plain(user, password string) string { return plain(Account{user, password}) }

func plain(a Account) string { return encode("\x00" + a.User + "\x00" + a.Password) }

// UserAgent is the HTTP header that identifies scans by Expanse.
const UserAgent = "User-Agent: Expanse, a Palo Alto Networks company, searches across the global IPv4 space multiple times per day to identify customers' presences on the Internet. " +
	"If you would like to be excluded from our scans, please send IP addresses/domains to: scaninfo@paloaltonetworks.com"

// A Scenario shows typical behaviour of remote hosts.
type Scenario struct {
	Name     string
	About    string // description to show to users
	Host     Host   // names of the first client; none if Name is empty
	NeedsTLS bool
	Sessions []Session // played in this order
}

// A Session is one connection in a scenario. Script is called before the greeting is
// read, and returns an error if the server does not behave as expected. The caller closes
// the connection.
type Session struct {
	From   string
	Port   int
	Script func(*Client) error
}

// Hosts returns the DNS names that the scenarios need.
func Hosts() []Host {
	var hosts []Host
	for _, sc := range Scenarios {
		if sc.Host.Name != "" {
			hosts = append(hosts, sc.Host)
		}
	}
	return hosts
}

// Play runs all sessions of a scenario and returns their dialogues.
func (s *Server) Play(sc Scenario) ([]Dialogue, error) {
	var dialogues []Dialogue
	for i, session := range sc.Sessions {
		c, err := s.Dial(session.From, session.Port)
		if err != nil {
			return dialogues, fmt.Errorf("scenario %s: %w", sc.Name, err)
		}
		err = session.Script(c)
		c.Close()
		dialogues = append(dialogues, c.Dialogue)
		if err != nil {
			return dialogues, fmt.Errorf("scenario %s, session %d: %w\n%s", sc.Name, i+1, err, c.Dialogue)
		}
	}
	return dialogues, nil
}

// one returns the only session of a scenario, on PortMX.
func one(from string, steps ...step) []Session {
	return []Session{{From: from, Port: PortMX, Script: script(steps...)}}
}

// A step is one step in a script.
type step func(*Client) error

func script(steps ...step) func(*Client) error {
	return func(c *Client) error {
		for _, step := range steps {
			if err := step(c); err != nil {
				return err
			}
		}
		return nil
	}
}

// reads returns a step that expects a reply with the given code.
func reads(code int) step {
	return func(c *Client) error {
		reply, err := c.ReadReply()
		return expect(code, reply, err)
	}
}

func expect(code int, reply Reply, err error) error {
	if err != nil {
		return fmt.Errorf("expected %d: %w", code, err)
	}
	if reply.Code != code {
		return fmt.Errorf("expected %d: %q", code, reply.Text)
	}
	return nil
}

// says returns a step that sends a line and expects a reply with the given code.
func says(code int, line string) step {
	return func(c *Client) error {
		reply, err := c.Cmd(line)
		return expect(code, reply, err)
	}
}

// sends returns a step that sends data without reading a reply.
func sends(data string) step {
	return func(c *Client) error { return c.Send(data) }
}

// closed returns a step that expects a reply containing text, and then the end of the connection.
func closed(text string) step {
	return func(c *Client) error {
		got, err := c.Drain()
		if err != nil {
			return fmt.Errorf("expected the connection to be closed: %w", err)
		}
		if !strings.Contains(got, text) {
			return fmt.Errorf("expected %q and the end: %q", text, got)
		}
		return nil
	}
}

// hangsUp closes the connection for sending, and waits until the server closes the connection.
func hangsUp(c *Client) error {
	if err := c.CloseWrite(); err != nil {
		return err
	}
	_, err := c.Drain()
	return err
}

// drops closes the connection.
func drops(c *Client) error { return c.Close() }

func startsTLS(c *Client) error {
	reply, err := c.StartTLS()
	return expect(220, reply, err)
}

func handshakes(c *Client) error { return c.Handshake() }

// quits sends QUIT and expects the server to close the connection.
func quits(c *Client) error {
	if err := says(221, "QUIT")(c); err != nil {
		return err
	}
	if _, err := c.ReadReply(); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("expected the end after QUIT: %v", err)
	}
	return nil
}

// delivers returns a step that delivers one message.
func delivers(sender, subject string, recipients ...string) step {
	return func(c *Client) error {
		if err := says(250, "MAIL FROM:<"+sender+">")(c); err != nil {
			return err
		}
		for _, r := range recipients {
			if err := says(250, "RCPT TO:<"+r+">")(c); err != nil {
				return err
			}
		}
		if err := says(354, "DATA")(c); err != nil {
			return err
		}
		if err := c.Send("From: <" + sender + ">\r\nSubject: " + subject + "\r\n\r\nHello.\r\n.\r\n"); err != nil {
			return err
		}
		return reads(250)(c)
	}
}

// unknown returns a step that requests n nonexistent recipients, numbered from first.
func unknown(first, n int) step {
	return func(c *Client) error {
		for i := range n {
			if err := says(524, fmt.Sprintf("RCPT TO:<user%02d@%s>", first+i, Domain))(c); err != nil {
				return err
			}
		}
		return nil
	}
}

// guesses returns a step that tries a password with AUTH LOGIN and expects to be
// rejected.
func guesses(password string) step {
	return script(
		says(334, "AUTH LOGIN"),
		says(334, encode(GuessUser)),
		says(535, encode(password)),
	)
}

// guessesBlindly returns a step that tries a password although the server does not offer AUTH, as
// bots that ignore replies do.
func guessesBlindly(password string) step {
	return script(
		says(503, "AUTH LOGIN"),
		says(500, encode(GuessUser)),
		says(500, encode(password)),
	)
}

// greetsOwn greets with the server's own address.
func greetsOwn(c *Client) error { return says(250, "HELO "+c.Peer())(c) }

// submission returns a mail user's session. The steps follow STARTTLS.
func submission(steps ...step) []Session {
	return []Session{{From: "198.51.100.77", Port: PortSubmission, Script: script(append([]step{
		reads(220), says(250, "EHLO laptop.example.net"), startsTLS, says(250, "EHLO laptop.example.net"),
	}, steps...)...)}}
}

// clientHello is the start of a TLS connection, which scanners send to any port. The string
// consists of the record and handshake headers, the version, a random number, no session, and one
// cipher suite. The string contains no LF, because smtpd reads lines.
const clientHello = "\x16\x03\x01\x00\x2f\x01\x00\x00\x2b\x03\x03" +
	"\x9b\x1c\x7e\x52\x88\x31\xd4\xaf\x60\x05\xf3\x2e\xc1\x77\x19\xb0\x44\xe8\x5d\x93\x26\xfa\x68\x0c\xa7\x3b\xde\x81\x15\x4f\xc2\x99" +
	"\x00\x00\x02\xc0\x2f\x01\x00\x00\x00"

// Scenarios lists sessions of real hosts. Addresses and names are invented unless a scenario
// depends on the real ones.
var Scenarios = []Scenario{
	{
		Name: "good-mail", About: "ordinary mail to two recipients",
		Host: Host{"198.51.100.10", "mail.example.net", true},
		Sessions: one("198.51.100.10", reads(220), says(250, "EHLO mail.example.net"),
			delivers("dave@example.net", "Lunch", "alice@example.org", "bob@example.org"), quits),
	},
	{
		Name: "good-mail-ipv6", About: "ordinary mail over IPv6",
		Host: Host{"2001:db8:a::7", "mail6.example.net", true},
		Sessions: one("2001:db8:a::7", reads(220), says(250, "EHLO mail6.example.net"),
			delivers("dave@example.net", "Dinner", "carol@example.org"), quits),
	},
	{
		Name: "good-mail-tls", About: "ordinary mail over STARTTLS", NeedsTLS: true,
		Host: Host{"198.51.100.11", "mail2.example.net", true},
		Sessions: one("198.51.100.11", reads(220), says(250, "EHLO mail2.example.net"), startsTLS,
			says(250, "EHLO mail2.example.net"), delivers("dave@example.net", "Tea", "alice@example.org"), quits),
	},
	{
		Name: "null-sender", About: "a bounce, from the null sender",
		Host: Host{"198.51.100.20", "mta.example.com", true},
		Sessions: one("198.51.100.20", reads(220), says(250, "EHLO mta.example.com"),
			delivers("", "Undeliverable", "bob@example.org"), quits),
	},
	{
		Name: "ylmf-pc", About: "the ylmf-pc botnet guessing passwords where AUTH is not offered",
		Sessions: one("203.0.113.66", reads(220), says(250, "EHLO ylmf-pc"),
			guessesBlindly(GuessFirst), guessesBlindly(GuessSecond), guessesBlindly(GuessThird), hangsUp),
	},
	{
		Name: "ylmf-pc-submission", About: "the same botnet on the submission port", NeedsTLS: true,
		Sessions: []Session{{From: "203.0.113.66", Port: PortSubmission, Script: script(reads(220), says(250, "EHLO ylmf-pc"),
			startsTLS, says(250, "EHLO ylmf-pc"), guesses(GuessFirst), guesses(GuessSecond), guesses(GuessThird), hangsUp)}},
	},
	{
		Name: "harvest", About: "fifty unknown recipients in one session",
		Host: Host{"203.0.113.50", "host-50.isp.example", false},
		Sessions: one("203.0.113.50", reads(220), says(250, "EHLO host-50.isp.example"),
			says(250, "MAIL FROM:<info@example.com>"), unknown(0, 50), quits),
	},
	{
		Name: "slow-harvest", About: "four unknown recipients each from six neighbours",
		Sessions: slowHarvest(6),
	},
	{
		Name: "relay-probe", About: "looking for an open relay",
		Host: Host{"203.0.113.77", "static-77.isp.example", true},
		Sessions: one("203.0.113.77", reads(220), says(250, "EHLO static-77.isp.example"),
			says(250, "MAIL FROM:<test@example.com>"), says(550, "RCPT TO:<victim@example.com>"),
			says(524, "RCPT TO:<victim%example.com@example.org>"), quits),
	},
	{
		Name: "ssh", About: "an SSH client",
		Sessions: one("203.0.113.22", reads(220), says(500, "SSH-2.0-Go"), hangsUp),
	},
	{
		Name: "http-lines", About: "an HTTP request of Expanse, line by line",
		Sessions: one("203.0.113.80", reads(220), says(500, "GET / HTTP/1.1"), says(500, "Host: 192.0.2.25:25"),
			says(500, UserAgent), says(500, ""), hangsUp),
	},
	{
		Name: "http-one-write", About: "the same request in one write",
		Sessions: one("203.0.113.81", reads(220), sends("GET / HTTP/1.1\r\nHost: 192.0.2.25:25\r\n"+UserAgent+"\r\n\r\n"),
			closed("Pipelining not supported")),
	},
	{
		Name: "tls-hello", About: "a TLS ClientHello on port 25",
		Sessions: one("203.0.113.43", reads(220), sends(clientHello), hangsUp),
	},
	{
		Name: "tls-hello-line", About: "the same with a line end in it",
		Sessions: one("203.0.113.44", reads(220), sends(clientHello+"\r\n"), reads(500), hangsUp),
	},
	{
		Name: "pipelined", About: "a dialogue in one write; smtpd does not offer pipelining",
		Sessions: one("203.0.113.90", reads(220),
			sends("EHLO mail.example.com\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<alice@example.org>\r\nDATA\r\n"),
			closed("Pipelining not supported")),
	},
	{
		Name: "own-address", About: "greets with our own address",
		Sessions: one("203.0.113.91", reads(220), greetsOwn, says(250, "MAIL FROM:<x@example.com>"),
			says(250, "RCPT TO:<postmaster@example.org>"), says(250, "RSET"), quits),
	},
	{
		Name: "localhost-helo", About: "greets as localhost.localdomain",
		Sessions: one("203.0.113.92", reads(220), says(250, "EHLO localhost.localdomain"),
			says(250, "MAIL FROM:<x@example.com>"), hangsUp),
	},
	{
		Name: "drop-after-banner", About: "connects, reads the banner and leaves",
		Sessions: one("203.0.113.93", reads(220), hangsUp),
	},
	{
		Name: "drop", About: "connects and leaves",
		Sessions: one("203.0.113.94", drops),
	},
	{
		Name: "shadowserver", About: "a Shadowserver scanner, saying who it is",
		Host:     Host{"203.0.113.101", "scan-01.shadowserver.org", true},
		Sessions: one("203.0.113.101", reads(220), says(250, "EHLO scan-01.shadowserver.org"), hangsUp),
	},
	{
		Name: "shodan", About: "a Shodan scanner",
		Host:     Host{"71.6.135.131", "census1.shodan.io", true},
		Sessions: one("71.6.135.131", reads(220), says(250, "EHLO census1.shodan.io"), quits),
	},
	{
		Name: "ec2", About: "a rented host at Amazon",
		Host:     Host{"3.131.215.38", "ec2-3-131-215-38.us-east-2.compute.amazonaws.com", true},
		Sessions: one("3.131.215.38", reads(220), says(250, "EHLO [3.131.215.38]"), quits),
	},
	{
		Name: "auth-plain", About: "AUTH PLAIN and a message", NeedsTLS: true,
		Sessions: submission(says(235, "AUTH PLAIN "+plain(Accounts[0])),
			delivers("alice@example.org", "Sent by Alice", "bob@example.org"), quits),
	},
	{
		Name: "auth-plain-two-spaces", About: "AUTH  PLAIN, which smtpd does not mask", NeedsTLS: true,
		Sessions: submission(says(235, "AUTH  PLAIN "+plain(Accounts[1])), quits),
	},
	{
		Name: "auth-plain-lower-case", About: "auth plain", NeedsTLS: true,
		Sessions: submission(says(235, "auth plain "+plain(Accounts[2])), quits),
	},
	{
		Name: "auth-plain-tab", About: "AUTH PLAIN with a tab", NeedsTLS: true,
		Sessions: submission(says(235, "AUTH PLAIN\t"+plain(Accounts[2])), quits),
	},
	{
		Name: "auth-plain-continued", About: "AUTH PLAIN with the credentials on their own line", NeedsTLS: true,
		Sessions: submission(says(334, "AUTH PLAIN"), says(235, plain(Accounts[0])), quits),
	},
	{
		Name: "auth-login", About: "AUTH LOGIN", NeedsTLS: true,
		Sessions: submission(says(334, "AUTH LOGIN"), says(334, encode("bob")), says(235, encode(BobPassword)), quits),
	},
	{
		Name: "auth-login-initial", About: "AUTH LOGIN with the user on the same line", NeedsTLS: true,
		Sessions: submission(says(334, "AUTH LOGIN "+encode("carol")), says(235, encode(CarolPassword)), quits),
	},
	{
		Name: "auth-cancelled", About: "AUTH given up with *, then the password where a command belongs", NeedsTLS: true,
		Sessions: submission(says(334, "AUTH LOGIN"), says(334, encode("alice")), says(501, "*"),
			says(500, encode(AlicePassword)), says(334, "AUTH PLAIN"), says(501, "*"), says(500, plain(Accounts[0])), quits),
	},
	{
		Name: "auth-wrong", About: "a wrong password with AUTH PLAIN", NeedsTLS: true,
		Sessions: submission(says(535, "AUTH PLAIN "+plain(Account{GuessUser, GuessFirst})), quits),
	},
	{
		Name: "auth-smtps", About: "AUTH PLAIN on the port with TLS from the start", NeedsTLS: true,
		Sessions: []Session{{From: "198.51.100.77", Port: PortSMTPS, Script: script(handshakes, reads(220),
			says(250, "EHLO laptop.example.net"), says(235, "AUTH PLAIN "+plain(Accounts[0])), quits)}},
	},
	{
		Name: "auth-before-greeting", About: "AUTH as the first word",
		Sessions: one("203.0.113.95", reads(220), says(503, "AUTH PLAIN "+plain(Account{GuessUser, GuessSecond})), quits),
	},
}

func slowHarvest(hosts int) []Session {
	var list []Session
	for i := range hosts {
		list = append(list, one(fmt.Sprintf("203.0.113.%d", 120+i), reads(220), says(250, "HELO mail.example.com"),
			says(250, "MAIL FROM:<news@example.com>"), unknown(100+4*i, 4), quits)...)
	}
	return list
}
