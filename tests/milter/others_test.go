//go:build linux && others

package milter

import (
	"bufio"
	"cmp"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/require"
)

var pace = flag.Duration("pace", 0, "least time between the rounds of the comparison")

const rounds = 10

// A visitor is a client, or several clients that belong together.
type visitor struct {
	name    string
	hostile bool
	sources []string // used in turn
	// hop is the number of sources between attempts to deliver a message.
	hop int
	// port is the server's port; the default is 25.
	port string
	// count is the number of sessions of a hostile visitor, or the number of messages of any other
	// visitor. A visitor that is not hostile retries a message that was not accepted.
	count, atOnce int
	// greeted is set if the gain may not exceed the number of sessions that reached smtpd.
	greeted bool
	// session plays a session. A hostile session returns the visitor's gain: the number of accepted
	// messages or of answers. Any other session returns one of the results below.
	session func(c *client, message, try int) int
}

const (
	deferred = 0
	accepted = 1
	rejected = -1
)

// A client is one of a visitor's sessions.
type client struct {
	conn  net.Conn
	in    *bufio.Reader
	src   string
	steps []string // names of the commands, and codes of the replies
	again func() *client
}

// dial starts a session.
func dial(src, port string) (*client, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(src)}}
	conn, err := d.Dial("tcp", "192.0.2.25:"+port)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	return &client{conn: conn, in: bufio.NewReader(conn), src: src}, nil
}

// read reads a reply to the named command.
func (c *client) read(name string) string {
	r := reply(c.in)
	if r == closed || r == "timeout" {
		c.steps = append(c.steps, name+" "+r)
	} else {
		c.steps = append(c.steps, name+" "+r[:min(len(r), 3)])
	}
	return r
}

// say sends a line and reads the reply.
func (c *client) say(name, line string) string {
	_, _ = io.WriteString(c.conn, line+"\r\n")
	return c.read(name)
}

// greet reads the server's greeting and sends EHLO.
func (c *client) greet(helo string) string {
	if r := c.read("connect"); result(r) != accepted {
		return r
	}
	return c.say("EHLO", "EHLO "+helo)
}

// result converts a reply into one of the results.
func result(reply string) int {
	switch {
	case strings.HasPrefix(reply, "2"), strings.HasPrefix(reply, "3"):
		return accepted
	case strings.HasPrefix(reply, "5"):
		return rejected
	}
	return deferred // or the connection has ended
}

// send sends a message to an existing mailbox and to the recipients in others. It returns the
// result for the existing mailbox.
func (c *client) send(from, text string, others ...string) int {
	if r := result(c.say("MAIL", "MAIL FROM:<"+from+">")); r != accepted {
		return r
	}
	for _, to := range others {
		c.say("RCPT", "RCPT TO:<"+to+">")
	}
	if r := result(c.say("RCPT", rcptLine)); r != accepted {
		return r
	}
	if r := result(c.say("DATA", "DATA")); r != accepted {
		return r
	}
	return result(c.say("message", text))
}

// login tries a password.
func (c *client) login(password string) string {
	return c.say("AUTH", "AUTH PLAIN "+map[bool]string{true: "AGpvZQByaWdodA==", false: "AGpvZQB3cm9uZw=="}[password == "right"])
}

// pour sends text without waiting, and then reads the replies to the named commands.
func (c *client) pour(text string, names ...string) (replies []string) {
	_, _ = io.WriteString(c.conn, text)
	for _, name := range names {
		r := c.read(name)
		replies = append(replies, r)
		if r == closed {
			break
		}
	}
	return replies
}

// letter returns an ordinary message.
func letter(from string, n int) string {
	at := time.Now().Format(time.RFC1123Z)
	return fmt.Sprintf("From: Ann <%s>\r\nTo: Games <games@example.org>\r\nDate: %s\r\nMessage-ID: <%d.%d@partner.example>\r\nSubject: Minutes of the meeting\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\nDear all,\r\n\r\nplease find below the minutes of the meeting of Monday.\r\n\r\nAnn\r\n.", from, at, time.Now().UnixNano(), n)
}

// spam is a message that a content filter may recognise.
const spam = "From: \"PayPal Security\" <winner@paypal.com>\r\nTo: undisclosed-recipients:;\r\nSubject: CONGRATULATIONS YOU WON $1,000,000 USD VIAGRA !!!\r\nMIME-Version: 1.0\r\nContent-Type: text/html\r\n\r\n" +
	"<html><body><font size=1 color=white>x</font><a href=\"http://203.0.113.99/login.exe\">http://www.paypal.com/</a><img src=\"http://203.0.113.99/a.gif\"></body></html>\r\n."

// names lists the proven names of clients.
var names = map[string]string{
	"198.51.100.1": "mail.partner.example", "198.51.100.31": "mx1.supplier.example", "198.51.100.32": "out.school.example", "198.51.100.33": "smtp.town.example",
	"198.51.100.41": "o1.bigpool.example", "198.51.100.42": "o2.bigpool.example", "198.51.100.43": "o3.bigpool.example", "198.51.100.44": "o4.bigpool.example", "198.51.100.45": "o5.bigpool.example", "198.51.100.46": "o6.bigpool.example",
	"198.51.100.50": "lists.club.example", "198.51.100.70": "probe.monitor.example", "198.51.100.71": "slow.partner.example", "198.51.100.72": "fast.partner.example",
	"71.6.135.131": "census1.shodan.io", "162.142.125.10": "scanner-01.ch1.censys-scanner.com",
}

// ordinary sends a message as a mail server does.
func ordinary(others ...string) func(*client, int, int) int {
	return func(c *client, n, _ int) int {
		helo := names[c.src]
		if helo == "" {
			helo = map[string]string{"198.51.100.10": "198.51.100.10", "198.51.100.11": "localhost"}[c.src]
		}
		if helo == "" {
			helo = "mail.other.example"
		}
		if r := result(c.greet(helo)); r != accepted {
			return r
		}
		r := c.send("ann@partner.example", letter("ann@partner.example", n), others...)
		c.say("QUIT", "QUIT")
		return r
	}
}

// submitter logs in and sends a message.
func submitter(c *client, password string, n int) int {
	c.greet("[192.168.1.5]")
	if r := c.login(password); result(r) != accepted {
		c.say("QUIT", "QUIT")
		return deferred
	}
	r := c.send("joe@example.org", letter("joe@example.org", n))
	c.say("QUIT", "QUIT")
	return r
}

// early is a hostile session that sends text before the greeting. The session then waits a few
// seconds for the reply to that text.
func early(text, name string) func(*client, int, int) int {
	return func(c *client, _, _ int) int {
		_, _ = io.WriteString(c.conn, text)
		greeting := c.read("connect")
		_ = c.conn.SetDeadline(time.Now().Add(3 * time.Second))
		c.read(name)
		return served(greeting)
	}
}

// served returns 1 if the server greets the client.
func served(greeting string) int {
	if strings.HasPrefix(greeting, "220") {
		return 1
	}
	return 0
}

// probe greets and leaves.
func probe(helo string) func(*client, int, int) int {
	return func(c *client, _, _ int) int {
		r := c.greet(helo)
		c.say("QUIT", "QUIT")
		return max(result(r), 0)
	}
}

// gain returns 1 if the server has accepted a message.
func gain(replies []string) int {
	if slices.ContainsFunc(replies, func(r string) bool {
		return strings.Contains(r, "queued as") || strings.Contains(r, "250 2.0.0 Ok: ...")
	}) {
		return 1
	}
	return 0
}

const burst = "HELO mail.other.example\r\n" + mailLine + "\r\n" + rcptLine + "\r\nDATA\r\n" + "Subject: offer\r\n\r\nbuy\r\n.\r\nQUIT\r\n"

var burstNames = []string{"HELO", "MAIL", "RCPT", "DATA", "message", "QUIT"}

var visitors = []visitor{
	{name: "mail of four servers", sources: []string{"198.51.100.1", "198.51.100.31", "198.51.100.32", "198.51.100.33"}, count: 8, session: ordinary()},
	{name: "mail of a server without a name in DNS", sources: []string{"198.51.100.2"}, count: 3, session: ordinary()},
	{name: "provider with six addresses", sources: []string{"198.51.100.41", "198.51.100.42", "198.51.100.43", "198.51.100.44", "198.51.100.45", "198.51.100.46"}, hop: 1, count: 6, session: ordinary()},
	{name: "mailing list with two departed members", sources: []string{"198.51.100.50"}, count: 5, session: ordinary("left1@example.org", "left2@example.org")},
	{name: "server that greets with its bare address, or localhost", sources: []string{"198.51.100.10", "198.51.100.11"}, count: 4, session: ordinary()},
	{name: "user who mistypes a password twice", sources: []string{"198.51.100.60"}, port: "587", count: 2, session: func(c *client, n, try int) int {
		return submitter(c, map[bool]string{true: "right", false: "wrong"}[n > 0 || try > 1], n)
	}},
	{name: "user in an office with a phone that has an old password", sources: []string{"198.51.100.61"}, port: "587", count: 10, session: func(c *client, n, _ int) int {
		if phone := c.again(); phone != nil {
			submitter(phone, "wrong", n)
			phone.conn.Close()
		}
		return submitter(c, "right", n)
	}},
	{name: "slow server", sources: []string{"198.51.100.71"}, count: 2, session: func(c *client, n, _ int) int {
		r := deferred
		for _, line := range []string{"", "EHLO slow.partner.example", mailLine, rcptLine, "DATA", letter("ann@partner.example", n)} {
			time.Sleep(500 * time.Millisecond) // the client is slow, not the server
			if line == "" {
				r = result(c.read("connect"))
			} else {
				r = result(c.say(line[:4], line))
			}
			if r != accepted {
				return r
			}
		}
		return r
	}},
	{name: "server that pipelines where the server offers it", sources: []string{"198.51.100.72"}, count: 3, session: func(c *client, n, _ int) int {
		r := c.greet(names[c.src])
		if !strings.Contains(r, "PIPELINING") {
			return c.send("ann@partner.example", letter("ann@partner.example", n))
		}
		for _, r := range c.pour(mailLine+"\r\n"+rcptLine+"\r\nDATA\r\n", "MAIL", "RCPT", "DATA") {
			if result(r) != accepted {
				return result(r)
			}
		}
		return result(c.say("message", letter("ann@partner.example", n)))
	}},
	{name: "probe of a monitoring host", sources: []string{"198.51.100.70"}, count: 10, session: probe("probe.monitor.example")},

	{name: "directory harvest, 5 recipients a session", hostile: true, sources: []string{"203.0.113.5"}, count: 10, session: func(c *client, n, _ int) (answers int) {
		c.greet("mail.other.example")
		c.say("MAIL", mailLine)
		for i := range 5 {
			if r := c.say("RCPT", fmt.Sprintf("RCPT TO:<guess%d@example.org>", 5*n+i)); strings.HasPrefix(r, "250") || strings.Contains(r, "5.1.1") {
				answers++
			}
		}
		c.say("QUIT", "QUIT")
		return answers
	}},
	{name: "password guessing on port 587, 3 a session", hostile: true, sources: []string{"203.0.113.6"}, port: "587", count: 10, session: func(c *client, _, _ int) (answers int) {
		c.greet("mail.other.example")
		for range 3 {
			if strings.HasPrefix(c.login("wrong"), "535") {
				answers++
			}
		}
		c.say("QUIT", "QUIT")
		return answers
	}},
	{name: "relay probe", hostile: true, sources: []string{"203.0.113.7"}, count: 20, atOnce: 2, session: func(c *client, n, _ int) (answers int) {
		c.greet("mail.other.example")
		c.say("MAIL", mailLine)
		if strings.Contains(c.say("RCPT", fmt.Sprintf("RCPT TO:<x%d@victim.example>", n)), "Relay access denied") {
			answers++
		}
		c.say("QUIT", "QUIT")
		return answers
	}},
	{name: "early talker", hostile: true, sources: []string{"203.0.113.8"}, count: 10, session: func(c *client, _, _ int) int {
		return gain(c.pour(burst, slices.Concat([]string{"connect"}, burstNames)...))
	}},
	{name: "pipelining without EHLO", hostile: true, sources: []string{"203.0.113.9"}, count: 10, session: func(c *client, _, _ int) int {
		if result(c.read("connect")) != accepted {
			return 0
		}
		return gain(c.pour(burst, burstNames...))
	}},
	{name: "lines that end with LF only", hostile: true, sources: []string{"203.0.113.10"}, count: 10, session: func(c *client, _, _ int) int {
		c.read("connect")
		var replies []string
		for i, line := range []string{"HELO mail.other.example", mailLine, rcptLine, "DATA", "Subject: offer\n\nbuy\r\n.\r"} {
			_, _ = io.WriteString(c.conn, line+"\n")
			replies = append(replies, c.read(burstNames[i]))
		}
		return gain(replies)
	}},
	{name: "HTTP", hostile: true, sources: []string{"203.0.113.11"}, count: 10, greeted: true, session: early("GET / HTTP/1.1\r\nHost: mx.example.org\r\n\r\n", "GET")},
	{name: "SSH", hostile: true, sources: []string{"203.0.113.12"}, count: 10, greeted: true, session: early("SSH-2.0-Go\r\n", "SSH")},
	{name: "TLS", hostile: true, sources: []string{"203.0.113.13"}, count: 10, greeted: true, session: early("\x16\x03\x01\x02\x00\x01\r\n", "TLS")},
	{name: "mail after EHLO ylmf-pc", hostile: true, sources: []string{"203.0.113.14"}, count: 10, session: func(c *client, n, _ int) int {
		c.greet("ylmf-pc")
		r := c.send("a@partner.example", letter("a@partner.example", n))
		c.say("QUIT", "QUIT")
		return max(r, 0)
	}},
	{name: "EHLO and QUIT of two known scanners", hostile: true, sources: []string{"71.6.135.131", "162.142.125.10"}, count: 20, atOnce: 2, greeted: true, session: probe("x.example")},
	{name: "EHLO and QUIT, 100 sessions", hostile: true, sources: []string{"203.0.113.15"}, count: 100, atOnce: 10, greeted: true, session: probe("mail.other.example")},
	{name: "spam", hostile: true, sources: []string{"203.0.113.16"}, count: 10, session: func(c *client, _, _ int) int {
		c.greet("mail.other.example")
		r := c.send("winner@paypal.com", spam)
		c.say("QUIT", "QUIT")
		return max(r, 0)
	}},
}

// A history lists a visitor's sessions and messages.
type history struct {
	gained   int
	marked   int        // messages that a content filter marked as spam
	steps    [][]string // of each session
	messages []delivery
}

// A delivery counts the attempts to deliver a message, and holds the result of the last one.
type delivery struct{ tries, result int }

// A match is the mail server with one contestant.
type match struct {
	refused func(src string) bool
	all     map[string]*history
}

// open starts a session, or returns nil if the client is banned.
func (m *match) open(t *testing.T, v *visitor, n int) *client {
	src := v.sources[n%len(v.sources)]
	if m.refused(src) {
		return nil
	}
	c, err := dial(src, cmp.Or(v.port, "25"))
	if err != nil {
		t.Error(err)
		return nil
	}
	c.again = func() *client { return m.open(t, v, n) }
	return c
}

// round plays one round of a visitor's sessions.
func (m *match) round(t *testing.T, v *visitor, h *history, n int) {
	play := func(message, try, source int) (r int) {
		c := m.open(t, v, source)
		if c == nil {
			h.steps = append(h.steps, []string{"banned"})
			return deferred
		}
		defer c.conn.Close()
		r = v.session(c, message, try)
		h.steps = append(h.steps, c.steps)
		return r
	}
	if v.hostile {
		for range max(v.atOnce, 1) {
			if i := len(h.steps); i < v.count {
				h.gained += play(i, 0, i)
			}
		}
		return
	}
	if n < v.count {
		h.messages = append(h.messages, delivery{})
	}
	for i := range h.messages {
		if m := &h.messages[i]; m.result == deferred {
			m.result = play(i, m.tries, (1+v.hop)*i+v.hop*m.tries)
			m.tries++
		}
	}
}

// TestOthers prints the tables in docs/comparison.md. The test fails if legitimate mail is not
// accepted by Postfix alone, or by Postfix with the standard preset.
func TestOthers(t *testing.T) {
	var all []map[string]*history
	var cpu []string
	var played []contestant
	for _, o := range contestants {
		t.Run(o.name, func(t *testing.T) {
			m, used := o.play(t)
			all, cpu, played = append(all, m), append(cpu, used), append(played, o)
		})
	}
	if len(all) == 0 || played[0].name != contestants[0].name {
		require.Missing(t, "Postfix alone was not tested; all results are compared with it")
	}
	print := tabwriter.NewWriter(os.Stdout, 0, 8, 1, ' ', 0)
	fmt.Fprint(print, "| |")
	for _, o := range played {
		fmt.Fprintf(print, "\t %s |", o.name)
	}
	fmt.Fprintf(print, "\n|---|%s\n", strings.Repeat("\t---|", len(played)))
	for _, v := range visitors {
		fmt.Fprintf(print, "| %s |", v.name)
		for i := range all {
			cell := v.cell(all[0][v.name], all[i][v.name])
			if n := all[i][v.name].marked; n > 0 {
				cell += fmt.Sprintf(", %d marked as spam", n)
			}
			fmt.Fprintf(print, "\t %s |", cell)
			if !v.hostile && cell != "-" && (i == 0 || played[i].name == "standard, milter" || played[i].name == "scanwatch follow") {
				t.Errorf("%s: %s: %s", played[i].name, v.name, cell)
			}
		}
		fmt.Fprintln(print)
	}
	fmt.Fprint(print, "| CPU seconds |")
	for _, used := range cpu {
		fmt.Fprintf(print, "\t %s |", used)
	}
	fmt.Fprintln(print)
	print.Flush()
}

// cell describes the difference between the results of Postfix alone and with a contestant.
func (v *visitor) cell(alone, h *history) string {
	if !v.hostile {
		return legitimate(alone, h)
	}
	at, ban := "", ""
	for i, steps := range h.steps {
		end := firstDifference(alone.steps[i], steps)
		switch {
		case end == "":
		case (end == "banned" || end == "connect 421") && ban == "":
			ban = fmt.Sprintf("banned after %d", i/len(v.sources))
		case end != "banned" && end != "connect 421" && at == "":
			if at = "at " + end; i > 0 {
				at += fmt.Sprintf(" in session %d", i/len(v.sources)+1)
			}
		}
	}
	cell := []string{fmt.Sprint(h.gained)}
	for _, s := range []string{at, ban} {
		if s != "" {
			cell = append(cell, s)
		}
	}
	return strings.Join(cell, ", ")
}

// firstDifference returns the first step that differs from the same session with Postfix alone.
func firstDifference(alone, steps []string) string {
	for i, s := range steps {
		if i >= len(alone) || s != alone[i] {
			return s
		}
	}
	return ""
}

// legitimate describes the messages that were delayed or lost.
func legitimate(alone, h *history) string {
	delayed, lost, waiting, most := 0, 0, 0, 0
	for i, m := range h.messages {
		more := m.tries - alone.messages[i].tries
		switch {
		case m.result == rejected:
			lost++
		case m.result == deferred:
			waiting++
		case more > 0:
			delayed, most = delayed+1, max(most, more)
		}
	}
	var cell []string
	if lost > 0 {
		cell = append(cell, fmt.Sprintf("%d of %d rejected", lost, len(h.messages)))
	}
	if waiting > 0 {
		cell = append(cell, fmt.Sprintf("%d of %d not accepted", waiting, len(h.messages)))
	}
	if delayed > 0 {
		cell = append(cell, fmt.Sprintf("%d of %d delayed by up to %d retries", delayed, len(h.messages), most))
	}
	if len(cell) == 0 {
		return "-"
	}
	for i, steps := range h.steps {
		if end := firstDifference(alone.steps[min(i, len(alone.steps)-1)], steps); end != "" {
			return strings.Join(append(cell, end), ", ")
		}
	}
	return strings.Join(cell, ", ")
}

// play plays all visitors with a contestant, and returns their histories and the
// contestant's CPU time.
func (o *contestant) play(t *testing.T) (map[string]*history, string) {
	s := newSite(t)
	hosts := "127.0.0.1 localhost\n192.0.2.25 mx.example.org\n"
	for a, name := range names {
		hosts += a + " " + name + "\n"
	}
	s.write("hosts", hosts)
	o.begin(s)
	used := cpuSeconds(o.process)
	m := &match{all: map[string]*history{}, refused: func(string) bool { return false }}
	banned := map[string]bool{}
	if o.bans != nil {
		m.refused = func(src string) bool { return banned[src] }
	}
	for n := range rounds {
		next := time.After(*pace)
		var wait sync.WaitGroup
		for i := range visitors {
			v := &visitors[i]
			if m.all[v.name] == nil {
				m.all[v.name] = &history{}
			}
			h := m.all[v.name]
			wait.Go(func() { m.round(t, v, h, n) })
		}
		wait.Wait()
		switch {
		case o.bans != nil:
			sentinel := fmt.Sprintf("198.18.0.%d", n+1)
			provoke(t, sentinel)
			filterproc.Eventually(t, "bans", func() bool { banned = o.bans(s); return banned[sentinel] })
		case s.milter != nil:
			s.idle()
		}
		<-next
	}
	log, err := os.ReadFile(s.path("maillog"))
	if err != nil {
		t.Fatal(err)
	}
	spam := marked(s)
	for _, v := range visitors {
		reached, h := 0, m.all[v.name]
		for _, src := range v.sources {
			reached += len(regexp.MustCompile(`/smtpd\[\d+\]: connect from [^ ]*\[`+regexp.QuoteMeta(src)+`\]`).FindAll(log, -1))
			h.marked += spam[src]
		}
		if v.greeted {
			h.gained = min(h.gained, reached)
		}
	}
	return m.all, fmt.Sprintf("%.1f", cpuSeconds(o.process)-used)
}
