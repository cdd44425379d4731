//go:build linux && long

package e2e

// This file measures what attackers and legitimate clients achieve with OpenSMTPD alone, and with
// the presets. The same attacks were also measured with widely used tools.

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"scanwatch/tests/internal/live"
	"scanwatch/tests/internal/smtpd"
)

// A toolRow is an attack or a legitimate client. best is the highest result that is permitted.
// Unless a comment says otherwise, it is the best result of the widely used tools. If best is -1,
// the result must be "ok".
type toolRow struct {
	name   string
	best   int
	tight  string // start of the result with the preset tight, if the preset's comments announce it
	slow   bool   // with the greeting delay
	logged bool   // a measurement of speed, which is logged but not checked
	apart  string // time between sessions according to the timestamps that the filter receives
	play   func(t *testing.T, s *smtpd.Server) string
}

func number(n int) string { return fmt.Sprint(n) }

// harvestRows lists attacks on recipients.
var harvestRows = []toolRow{
	{name: "50 unknown recipients in one session", best: 11, play: func(t *testing.T, s *smtpd.Server) string {
		return number(asks(t, s, "203.0.113.50", "a@x.example", strangers(0, 50)...))
	}},
	{name: "one a session, 100 sessions", best: 6, play: func(t *testing.T, s *smtpd.Server) string {
		return number(asksOnce(t, s, "203.0.113.51", 100))
	}},
	{name: "one a session, one a minute, 60 sessions", best: 5, apart: "1m", play: func(t *testing.T, s *smtpd.Server) string {
		return number(asksOnce(t, s, "203.0.113.55", 60))
	}},
	{name: "one a session, one in five minutes, 30 sessions", best: 30, apart: "5m", play: func(t *testing.T, s *smtpd.Server) string {
		return number(asksOnce(t, s, "203.0.113.56", 30))
	}},
	{name: "25 new networks, 8 each", best: 200, play: func(t *testing.T, s *smtpd.Server) string {
		n := 0
		for i := range 25 {
			n += asks(t, s, fmt.Sprintf("198.18.%d.7", i), "a@x.example", strangers(8*i, 8)...)
		}
		return number(n)
	}},
	{name: "25 hosts of a /24, 8 each", best: 200, play: func(t *testing.T, s *smtpd.Server) string {
		n := 0
		for i := range 25 {
			n += asks(t, s, fmt.Sprintf("198.18.7.%d", 10+i), "a@x.example", strangers(8*i, 8)...)
		}
		return number(n)
	}},
	{name: "null sender, 4 in each of 50 sessions", best: 20, play: func(t *testing.T, s *smtpd.Server) string {
		n := 0
		for i := range 50 {
			n += asks(t, s, "203.0.113.52", "", strangers(4*i, 4)...)
		}
		return number(n)
	}},
	{name: "plus-address cover, 50 unknown", best: 10, play: func(t *testing.T, s *smtpd.Server) string {
		x := call(t, s, "203.0.113.53", smtpd.PortMX)
		defer x.quit()
		x.say("EHLO mail.x.example")
		x.say("MAIL FROM:<a@x.example>")
		n := 0
		for i, r := range strangers(0, 50) {
			x.say("RCPT TO:<alice+%d@%s>", i, smtpd.Domain)
			if code := x.say("RCPT TO:<%s@%s>", r, smtpd.Domain); code == 550 || code == 524 {
				n++
			}
		}
		return number(n)
	}},
	{name: "30 relay tries in three sessions", best: 10, play: func(t *testing.T, s *smtpd.Server) string {
		n := 0
		for i := range 3 {
			var to []string
			for j := range 10 {
				to = append(to, fmt.Sprintf("victim@domain%d.example", 10*i+j))
			}
			n += asks(t, s, "203.0.113.54", "a@x.example", to...)
		}
		return number(n)
	}},
}

// asksOnce plays n sessions with one unknown recipient each, and returns the number of replies from
// smtpd itself.
func asksOnce(t *testing.T, s *smtpd.Server, from string, n int) (told int) {
	for i := range n {
		told += asks(t, s, from, "a@x.example", strangers(i, 1)...)
	}
	return told
}

// loginRows lists brute-force attackers, early talkers and scanners.
var loginRows = []toolRow{
	{name: "ylmf-pc on 25, 30 rejections answered", best: 6, play: func(t *testing.T, s *smtpd.Server) string {
		n := 0
		for range 30 {
			x := call(t, s, "203.0.113.60", smtpd.PortMX)
			x.say("EHLO ylmf-pc")
			if x.say("AUTH LOGIN") == 503 {
				n++
			}
			x.quit()
		}
		return number(n)
	}},
	{name: "ylmf-pc on 587, 30 passwords", best: 3, play: func(t *testing.T, s *smtpd.Server) string {
		return number(passwords(t, s, 30, func(int) string { return "203.0.113.61" }, "ylmf-pc"))
	}},
	// fail2ban permits 3 passwords, and locks out 4 of the 5 users in the office below. Postfix
	// permits 20 passwords, and locks out none of these users.
	{name: "ordinary greeting on 587, one user, 30 passwords", best: 20, play: func(t *testing.T, s *smtpd.Server) string {
		return number(passwords(t, s, 30, func(int) string { return "203.0.113.62" }, "laptop.x.example"))
	}},
	{name: "30 hosts, two passwords each", best: 60, play: func(t *testing.T, s *smtpd.Server) string {
		return number(passwords(t, s, 60, func(i int) string { return fmt.Sprintf("198.18.%d.9", i%30) }, "laptop.x.example"))
	}},
	// Postfix lets none of these messages through. smtpd does not report bytes that arrive before
	// the greeting. The pace of the commands alone does not distinguish an early talker from a
	// nearby client.
	{name: "early talker, 10 messages", best: 10, slow: true, play: func(t *testing.T, s *smtpd.Server) string {
		n := 0
		for range 10 {
			if early(t, s, "203.0.113.63") {
				n++
			}
		}
		return number(n)
	}},
	{name: "scanners, EHLO answered, of 12", best: 12, play: func(t *testing.T, s *smtpd.Server) string {
		n := 0
		for i := range 12 {
			h := scanners[i%len(scanners)]
			x := call(t, s, h.Addr, smtpd.PortMX)
			if x.say("EHLO %s", h.Name) == 250 {
				n++
			}
			x.quit()
		}
		return number(n)
	}},
}

// passwords tries a wrong password in each of n sessions, and returns the number of passwords to
// which smtpd replied.
func passwords(t *testing.T, s *smtpd.Server, n int, from func(i int) string, helo string) (tried int) {
	for i := range n {
		x := submission(t, s, from(i), helo)
		if x.password("office", fmt.Sprint("secret", i)) == 535 {
			tried++
		}
		x.quit()
	}
	return tried
}

// early sends EHLO before the greeting, and then a message. It reports whether smtpd accepted the
// message.
func early(t *testing.T, s *smtpd.Server, from string) bool {
	c, err := s.Dial(from, smtpd.PortMX)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Far(60 * time.Millisecond)
	x := &caller{c: c, t: t}
	if err := c.Send("EHLO mail.x.example\r\n"); err != nil {
		return false
	}
	for range 2 { // greeting, and reply to EHLO
		if !x.gone {
			x.heard(c.ReadReply())
		}
	}
	_, accepted := x.message("a@x.example", "alice")
	x.quit()
	return accepted
}

// scanners contains hosts of scanning organisations.
var scanners = []smtpd.Host{
	{Addr: "198.51.100.201", Name: "scan-15k.shadowserver.org", Confirmed: true}, {Addr: "198.51.100.202", Name: "census1.shodan.io", Confirmed: true},
	{Addr: "198.51.100.203", Name: "security.criminalip.com", Confirmed: true}, {Addr: "198.51.100.204", Name: "planned.internet-measurement.com", Confirmed: true},
	{Addr: "198.51.100.205", Name: "probe1.securing-email.com", Confirmed: true}, {Addr: "198.51.100.206", Name: "azpdcs2.scan.cyberresilience.io", Confirmed: true},
}

// toolHosts lists the legitimate hosts in the rows.
var toolHosts = append([]smtpd.Host{
	{Addr: "198.51.100.210", Name: "mail.partner.example", Confirmed: true}, {Addr: "198.51.100.211", Name: "lists.club.example", Confirmed: true},
	{Addr: "198.51.100.212", Name: "app.customer.example", Confirmed: true}, {Addr: "198.51.100.213", Name: "office.firm.example", Confirmed: true},
	{Addr: "198.51.100.214", Name: "mx.earlier.example", Confirmed: true}, {Addr: "2001:db8:77:1::2", Name: "mail.family.example", Confirmed: true},
}, scanners...)

// fairRows lists legitimate clients.
var fairRows = []toolRow{
	{name: "8 bounces in one connection, then a message", best: -1, play: func(t *testing.T, s *smtpd.Server) string {
		x := call(t, s, "198.51.100.210", smtpd.PortMX)
		x.say("EHLO mail.partner.example")
		real := 0
		for i, r := range append(strangers(0, 3), "alice", "forged3", "forged4", "forged5", "bob") {
			if _, accepted := x.message("", r); accepted && (i == 3 || i == 7) {
				real++
			}
		}
		x.quit()
		y := call(t, s, "198.51.100.210", smtpd.PortMX)
		y.say("EHLO mail.partner.example")
		_, accepted := y.message("joe@partner.example", "alice")
		y.quit()
		return fine(accepted && real == 2, x, y)
	}},
	{name: "list server 4 + 5, three posts", best: -1, play: func(t *testing.T, s *smtpd.Server) string {
		all, xs := true, []*caller(nil)
		for range 3 {
			x := call(t, s, "198.51.100.211", smtpd.PortMX)
			x.say("EHLO lists.club.example")
			_, accepted := x.message("list-bounces@lists.club.example", "alice", "left1", "bob", "left2", "left3", "carol", "left4", "left5", "mailuser")
			x.quit()
			all, xs = all && accepted, append(xs, x)
		}
		return fine(all, xs...)
	}},
	{name: "[127.0.0.1] from a web application", best: -1, tight: "550 5.7.1 Greet with your host name", play: func(t *testing.T, s *smtpd.Server) string {
		x := call(t, s, "198.51.100.212", smtpd.PortMX)
		x.say("EHLO [127.0.0.1]")
		_, accepted := x.message("app@customer.example", "alice")
		x.quit()
		return fine(accepted, x)
	}},
	{name: "computer called ADMIN on 587", best: -1, play: func(t *testing.T, s *smtpd.Server) string {
		x := submission(t, s, "198.51.100.220", "ADMIN")
		ok := x.password("alice", smtpd.AlicePassword) == 235
		_, accepted := x.message("alice@"+smtpd.Domain, "bob")
		x.quit()
		return fine(ok && accepted, x)
	}},
	{name: "office of five, mistyping", best: -1, play: func(t *testing.T, s *smtpd.Server) string {
		in := 0
		for i := range 5 {
			a := smtpd.Accounts[i%len(smtpd.Accounts)]
			x := submission(t, s, "198.51.100.213", "laptop")
			x.password(a.User, "wrong")
			if x.password(a.User, a.Password) == 235 {
				in++
			}
			x.quit()
		}
		if in == 5 {
			return "ok"
		}
		return fmt.Sprintf("%d/5", in)
	}},
	{name: "neighbour in the same /64", best: -1, play: func(t *testing.T, s *smtpd.Server) string {
		asks(t, s, "2001:db8:77:1::1", "a@x.example", strangers(0, 20)...)
		x := call(t, s, "2001:db8:77:1::2", smtpd.PortMX)
		x.say("EHLO mail.family.example")
		_, accepted := x.message("joe@family.example", "alice")
		x.quit()
		return fine(accepted, x)
	}},
	{name: "seconds for a first message", slow: true, logged: true, play: func(t *testing.T, s *smtpd.Server) string {
		began := time.Now()
		x := call(t, s, "198.51.100.210", smtpd.PortMX)
		x.say("EHLO mail.partner.example")
		_, accepted := x.message("joe@partner.example", "alice")
		x.quit()
		if !accepted {
			return fine(accepted, x)
		}
		return fmt.Sprintf("%.2f", time.Since(began).Seconds())
	}},
}

// worse reports whether a result is worse than the row permits.
func (row *toolRow) worse(preset, got string) bool {
	switch {
	case preset == "" || row.logged:
		return false
	case preset == "tight" && row.tight != "":
		return !strings.HasPrefix(got, row.tight)
	case row.best < 0:
		return got != "ok"
	}
	n, err := strconv.Atoi(got)
	return err != nil || n > row.best
}

// TestUsualTools replays the usual tools' attacks against OpenSMTPD 7.6, without the filter and
// with each preset, and logs the results as a table. With a preset, no result may be worse than its
// row permits.
func TestUsualTools(t *testing.T) {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "row\tpermitted\talone\tstandard\ttight")
	for _, row := range slices.Concat(harvestRows, loginRows, fairRows) {
		best := "ok"
		switch {
		case row.logged:
			best = "-"
		case row.best >= 0:
			best = number(row.best)
		}
		t.Run(row.name, func(t *testing.T) {
			fmt.Fprintf(w, "%s\t%s", row.name, best)
			for _, preset := range []string{"", "standard", "tight"} {
				got := toolServer(t, preset, row)
				fmt.Fprintf(w, "\t%s", got)
				if row.worse(preset, got) {
					t.Errorf("%s: %s, permitted: %s", preset, got, best)
				}
			}
			fmt.Fprintln(w)
		})
	}
	w.Flush()
	t.Log("\n" + b.String())
}

// toolServer plays a row against a new server with a preset, or without a filter.
func toolServer(t *testing.T, preset string, row toolRow) (got string) {
	t.Helper()
	o := smtpd.Options{Version: smtpd.Versions[2], Hosts: toolHosts}
	if preset != "" {
		text := live.Preset(t, preset, "enforce")
		if !row.slow {
			text = slowRule.ReplaceAllString(text, "")
		}
		f, dir := live.Configured(t, text, nil)
		if row.apart != "" {
			f = smtpd.Through(smtpd.Bin("teefilter"), f, "")
			f.Args = append([]string{"-apart", row.apart}, f.Args...)
		}
		o.Filters, o.Dir = []smtpd.Filter{f}, dir
	}
	s := live.Start(t, o)
	// Deliver a message first, because real servers have already received mail.
	x := call(t, s, "198.51.100.214", smtpd.PortMX)
	x.say("EHLO mx.earlier.example")
	if _, accepted := x.message("joe@earlier.example", "alice", "bob"); !accepted {
		t.Errorf("%s: the earlier message was not accepted: %q", preset, x.texts)
	}
	x.quit()
	got = row.play(t, s)
	live.Stop(t, s)
	return got
}
