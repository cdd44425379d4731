package month

// This file contains the attackers.

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"scanwatch/tests/simulate"
)

const minute, hour = time.Minute, time.Hour

var attacks = slices.Concat(harvests, tricks, distributed, logins, relays, visitors, accounts)

// harvests contains harvests from one host or network.
var harvests = []Attack{
	{Name: "50 in one session", play: func(x *attacker) { x.ask(rival(x.src(50)), manner{}, words("guess", 0, 50)...) }},
	{Name: "50, each in a transaction", play: func(x *attacker) { x.ask(rival(x.src(51)), manner{Per: 1}, words("own", 0, 50)...) }},
	{Name: "one a session, 120 in a day", play: func(x *attacker) { x.bursts(120, 1, 12*minute, manner{}, one(rival(x.src(52)))) }},
	{Name: "four a session, every 10 s", play: func(x *attacker) { x.bursts(400, 4, 10*time.Second, manner{}, one(rival(x.src(53)))) }},
	{Name: "one every 10 min for five days", days: 5, play: func(x *attacker) { x.bursts(720, 1, 10*minute, manner{}, one(rival(x.src(54)))) }},
	{Name: "a list of which a fifth exists", play: func(x *attacker) {
		var to []string
		for i := range 80 {
			if to = append(to, words("name", i, 1)...); i%5 == 4 {
				to[i] = x.list[4+i/5]
			}
		}
		x.ask(rival(x.src(55)), manner{}, to...)
	}},
	{Name: "50 twice a day for ten days", days: 10, play: func(x *attacker) { x.bursts(20, 50, 12*hour, manner{}, one(rival(x.src(56)))) }},
	{Name: "a /24, four from each host", play: func(x *attacker) {
		x.bursts(250, 4, 5*minute, manner{}, func(i int) simulate.Host { return rival(x.src(i + 1)) })
	}},
	{Name: "a /24, fifty from each host", play: func(x *attacker) {
		x.bursts(250, 50, 5*minute, manner{}, func(i int) simulate.Host { return rival(x.src(i + 1)) })
	}},
	{Name: "a /64, four from each address", play: func(x *attacker) {
		x.bursts(100, 4, 5*minute, manner{}, func(i int) simulate.Host { return rival(x.six(i)) })
	}},
	{Name: "a /64 with names of one domain", play: func(x *attacker) {
		x.bursts(100, 4, minute, manner{}, func(i int) simulate.Host { return host(x.six(i), fmt.Sprintf("mx%d.farm.example", i)) })
	}},
	{Name: "half of them from the null sender", play: func(x *attacker) {
		c := x.Connect(rival(x.src(58)))
		c.Ehlo()
		for i, r := range words("both", 0, 40) {
			c.Mail([]string{"", "a@x.example"}[i%2])
			c.Rcpt(r)
			c.Rset()
		}
		c.Quit()
		x.done(c)
	}},
	{Name: "40 in a transaction of the null sender", play: func(x *attacker) { x.ask(rival(x.src(59)), manner{Null: true}, words("null", 0, 40)...) }},
}

// tricks contains simple ways to look like a mail server.
var tricks = []Attack{
	{Name: "postmaster+N before each", play: func(x *attacker) {
		x.ask(rival(x.src(60)), manner{Before: func(i int) string { return fmt.Sprintf("postmaster+%d@example.org", i) }}, words("plus", 0, 200)...)
	}},
	{Name: "an existing mailbox+N before each", play: func(x *attacker) {
		x.free = x.list[5:6]
		local, _, _ := strings.Cut(x.free[0], "@")
		x.ask(host(x.src(61), "vps.x.example"), manner{Before: func(i int) string { return fmt.Sprintf("%s+%d@example.org", local, i) }}, words("tag", 0, 200)...)
	}},
	{Name: "17 existing mailboxes in turn", play: func(x *attacker) {
		x.free = x.list[4:21]
		x.ask(rival(x.src(62)), manner{Before: func(i int) string { return x.free[i%17] }}, words("ring", 0, 300)...)
	}},
	{Name: "four existing ones and four others", play: func(x *attacker) {
		x.free = x.list[4:8]
		x.bursts(150, 4, 5*minute, manner{Before: func(i int) string { return x.free[i%4] }}, one(rival(x.src(63))))
	}},
	{Name: "null sender, four a session", play: func(x *attacker) {
		x.bursts(300, 4, 10*time.Second, manner{Null: true, Per: 1}, one(rival(x.src(64))))
	}},
	{Name: "null sender, one a session", play: func(x *attacker) { x.bursts(200, 1, 5*minute, manner{Null: true}, one(rival(x.src(65)))) }},
	{Name: "a message to postmaster first", play: func(x *attacker) {
		h := host(x.src(66), "vps.x.example")
		x.good(h, 1, minute, "postmaster@example.org")
		x.bursts(300, 4, 10*time.Second, manner{}, one(h))
	}},
	{Name: "messages to postmaster between", play: func(x *attacker) {
		h := host(x.src(67), "mail.x.example")
		for i := range 20 {
			x.ask(h, manner{Per: 1, Send: true}, strings.Fields(strings.Repeat("postmaster@example.org ", 20))...)
			x.Wait(minute)
			x.ask(h, manner{}, words("pm", 9*i, 9)...)
			x.Wait(minute)
		}
	}},
	{Name: "ten messages to a user on one day", days: 2, play: func(x *attacker) {
		x.free = x.list[7:8]
		h := host(x.src(68), "mail.x.example")
		x.good(h, 10, 5*minute, x.list[7])
		x.Wait(24 * hour)
		x.bursts(100, 9, minute, manner{}, one(h))
	}},
	{Name: "messages of neighbours first", days: 2, play: func(x *attacker) {
		x.free = x.list[7:8]
		for i := range 3 {
			x.good(host(x.src(10+i), fmt.Sprintf("mail.other%d.example", i)), 1, hour, x.list[7])
		}
		x.Wait(24 * hour)
		x.bursts(300, 4, 10*time.Second, manner{}, one(rival(x.src(69))))
	}},
	{Name: "default name of a hoster whose customer is known", days: 2, play: func(x *attacker) {
		x.free = x.list[7:8]
		x.good(host(x.src(20), "vmi1234567.contaboserver.net"), 1, 24*hour, x.list[7])
		x.bursts(200, 4, 10*time.Second, manner{}, one(host(x.src(71), "vmi7654321.contaboserver.net")))
	}},
	{Name: "15 messages on 15 days, then four a session", days: 16, play: func(x *attacker) {
		x.free = x.list[7:8]
		h := host(x.src(140), "mail.bulk.example")
		x.good(h, 15, 24*hour, x.list[7])
		x.bursts(100, 4, 2*minute, manner{}, one(h))
	}},
}

// distributed contains harvests that switch to a new network every five minutes.
var distributed = []Attack{
	{Name: "a new network every 5 min, fifty each", play: func(x *attacker) {
		x.bursts(250, 50, 5*minute, manner{}, func(i int) simulate.Host {
			return simulate.Host{Src: x.far(i), Helo: fmt.Sprintf("mail.x%d.example", i)}
		})
	}},
	{Name: "the same fifty from each network", play: func(x *attacker) {
		for i := range 60 {
			x.ask(simulate.Host{Src: x.far(i), Helo: fmt.Sprintf("mail.x%d.example", i)}, manner{}, words("list", 0, 50)...)
			x.Wait(5 * minute)
		}
	}},
	{Name: "a message of the botnet first, four each", play: func(x *attacker) {
		x.spam(simulate.Host{Src: x.far(249), Helo: "mail.x9.example"}, "postmaster@example.org")
		for i := range 60 {
			x.Wait(5 * minute)
			x.ask(simulate.Host{Src: x.far(i), Helo: fmt.Sprintf("mail.x%d.example", i)}, manner{}, words("few", 4*i, 4)...)
		}
	}},
	{Name: "servers with proven names, fifty each", play: func(x *attacker) {
		x.bursts(100, 50, 5*minute, manner{}, func(i int) simulate.Host { return host(x.far(i), fmt.Sprintf("mx%d.broken%d.example", i%7, i)) })
	}},
	{Name: "an existing one and twenty others each", play: func(x *attacker) {
		x.free = x.list[4:5]
		for i := range 40 {
			x.ask(simulate.Host{Src: x.far(i), Helo: fmt.Sprintf("mail.x%d.example", i)}, manner{}, append(x.list[4:5:5], words("mix", 20*i, 20)...)...)
			x.Wait(5 * minute)
		}
	}},
	{Name: "forty networks within 80 min, twenty each, jobs@ too", play: func(x *attacker) {
		for i := range 40 {
			x.ask(rival(x.far(i)), manner{}, append(words("siege", 20*i, 20), "jobs@example.org")...)
			x.Wait(2 * minute)
		}
	}},
}

// logins contains brute-force attacks.
var logins = []Attack{
	{Name: "ylmf-pc on port 25", Area: "passwords", play: func(x *attacker) { x.blind(simulate.Host{Src: x.src(80), Helo: "ylmf-pc"}, 1, "LOGIN") }},
	{Name: "ylmf-pc on port 587", Area: "passwords", play: func(x *attacker) { x.guess(simulate.Host{Src: x.src(81), Helo: "ylmf-pc"}, "hanks") }},
	{Name: "ylmf-pc, a hundred hosts", Area: "passwords", play: func(x *attacker) {
		for i := range 100 {
			x.blind(simulate.Host{Src: x.far(i), Helo: "ylmf-pc"}, 1, "LOGIN")
			x.Wait(minute)
		}
	}},
	{Name: "port 25, 15 in one session, then again", Area: "passwords", play: func(x *attacker) {
		for range 4 {
			x.blind(rival(x.src(82)), 15, "LOGIN")
			x.Wait(minute)
		}
	}},
	{Name: "port 25, one every 2 min", Area: "passwords", play: func(x *attacker) {
		for range 60 {
			x.blind(rival(x.src(83)), 1, "LOGIN")
			x.Wait(2 * minute)
		}
	}},
	{Name: "port 25, one an hour, three days", Area: "passwords", days: 3, play: func(x *attacker) {
		for range 72 {
			x.blind(rival(x.src(84)), 1, "LOGIN")
			x.Wait(hour)
		}
	}},
	{Name: "port 25, NTLM and CRAM-MD5", Area: "passwords", play: func(x *attacker) {
		for i := range 14 {
			x.blind(rival(x.src(85)), 1, []string{"NTLM", "CRAM-MD5"}[i%2])
			x.Wait(minute)
		}
	}},
	{Name: "port 25, speaks before the greeting", Area: "passwords", play: func(x *attacker) {
		for range 10 {
			h := rival(x.src(90))
			h.Pace = []time.Duration{50 * time.Microsecond, 120 * time.Millisecond}
			x.blind(h, 3, "LOGIN")
			x.Wait(minute)
		}
	}},
	{Name: "one user, 42 in an hour", Area: "passwords", play: func(x *attacker) {
		for range 14 {
			x.guess(rival(x.src(86)), "office", "office", "office")
			x.Wait(4 * minute)
		}
	}},
	{Name: "six users, one each", Area: "passwords", play: func(x *attacker) {
		for _, u := range []string{"office", "info", "test", "scan", "admin", "backup"} {
			x.guess(rival(x.src(87)), u)
			x.Wait(minute)
		}
	}},
	{Name: "a new user every 20 min", Area: "passwords", play: func(x *attacker) {
		for i := range 72 {
			x.guess(rival(x.src(88)), fmt.Sprint("user", i))
			x.Wait(20 * minute)
		}
	}},
	{Name: "three users in turn, every 3 min", Area: "passwords", play: func(x *attacker) {
		for i := range 480 {
			x.guess(rival(x.src(89)), []string{"office", "scan", "backup"}[i%3])
			x.Wait(3 * minute)
		}
	}},
	{Name: "40 hosts of a network, a new user an hour each", Area: "passwords", play: func(x *attacker) {
		for i := range 400 {
			x.guess(rival(x.src(100+i%40)), fmt.Sprintf("user%d-%d", i/40, i%40))
			x.Wait(90 * time.Second)
		}
	}},
	{Name: "30 networks, one an hour each, for alice", Area: "passwords", play: func(x *attacker) {
		for i := range 300 {
			x.guess(simulate.Host{Src: x.far(i % 30), Helo: fmt.Sprintf("mail%d.x.example", i%30)}, "alice")
			x.Wait(2 * minute)
		}
	}},
	{Name: "a /64, one from each address", Area: "passwords", play: func(x *attacker) {
		for i := range 45 {
			x.guess(rival(x.six(i)), "office")
			x.Wait(minute)
		}
	}},
	{Name: "120 sessions at the same time", Area: "visitor", play: func(x *attacker) {
		var cs []*simulate.Client
		for range 120 {
			cs = append(cs, x.Connect(rival(x.src(92))))
		}
		for _, c := range cs {
			c.Ehlo()
			c.Leave()
			x.done(c)
		}
	}},
}

// relays contains attackers that search for an open relay.
var relays = []Attack{
	{Name: "50 foreign domains in one session", Area: "relay", play: func(x *attacker) { x.ask(rival(x.src(20)), manner{}, foreign(0, 50)...) }},
	{Name: "one a session, 40 domains in a day", Area: "relay", play: func(x *attacker) {
		for i := range 40 {
			x.ask(rival(x.src(22)), manner{}, foreign(i, 1)...)
			x.Wait(20 * minute)
		}
	}},
	{Name: "percent, bang and source routes", Area: "relay", play: func(x *attacker) {
		var to []string
		for i := range 36 {
			to = append(to, fmt.Sprintf([]string{"victim%d%%domain%[1]d.example@example.org", "@example.org:victim%d@domain%[1]d.example", "domain%d.example!victim%[1]d@example.org"}[i%3], i))
		}
		x.ask(rival(x.src(23)), manner{}, to...)
	}},
	{Name: "known tester, to its own mailbox", Area: "relay", play: func(x *attacker) {
		for i := range 10 {
			x.ask(simulate.Host{Src: x.far(i), Helo: "WIN-9QL4SDRB93L"}, manner{Sender: "spameri@tiscali.it"}, "spameri@tiscali.it")
			x.Wait(hour)
		}
	}},
}

// visitors contains scanners, rented hosts, hosts with false greetings, and programs that do not
// speak SMTP. Each visitor tries to send a message three times.
var visitors = func() (list []Attack) {
	mail := func(name string, hosts ...simulate.Host) {
		list = append(list, Attack{Name: name, Area: "visitor", play: func(x *attacker) {
			for i := range 3 * len(hosts) {
				h := hosts[i%len(hosts)]
				if !h.Src.IsValid() {
					h.Src = x.src(30 + i%len(hosts))
				}
				x.spam(h, x.list[9])
				x.Wait(10 * minute)
			}
		}})
	}
	var named []simulate.Host
	for _, n := range []string{"security.criminalip.com", "azpdcs2.scan.cyberresilience.io", "planned.internet-measurement.com", "probe1.securing-email.com", "scan-15k.shadowserver.org", "census1.shodan.io"} {
		named = append(named, host(netip.Addr{}, n))
	}
	mail("scanners by proven names", named...)
	var listed []simulate.Host
	for _, a := range []string{"147.185.132.7", "162.216.149.104", "64.62.197.20"} {
		listed = append(listed, rival(netip.MustParseAddr(a)))
	}
	mail("scanners by address", listed...)
	for _, helo := range []string{"mx.example.org", "192.0.2.25", "[192.0.2.25]", "localhost", "WIN-7N1FIECL6IC", "gmail.com", "mail.example.net", "amazon.co.jp"} {
		mail("greets with "+helo, simulate.Host{Helo: helo})
	}
	mail("rented hosts, names without FCrDNS", simulate.Host{RDNS: "ec2-3-131-215-38.us-east-2.compute.amazonaws.com", FCrDNS: "fail", Helo: "mail.x.example"},
		simulate.Host{RDNS: "104.149.216.162.bc.googleusercontent.com", FCrDNS: "fail", Helo: "mail.x.example"})
	for what, line := range map[string]string{"SSH": "SSH-2.0-Go", "HTTP": "GET / HTTP/1.1", "TLS": "\x16\x03\x01\x02", "RDP": "\x03"} {
		list = append(list, Attack{Name: "speaks " + what + ", then sends mail", Area: "visitor", play: func(x *attacker) {
			for range 4 {
				c := x.Connect(rival(x.src(95)))
				c.Command(line, unknown)
				c.Leave()
				x.done(c)
				x.Wait(minute)
			}
			x.spam(rival(x.src(95)), x.list[9])
		}})
	}
	slices.SortStableFunc(list, func(a, b Attack) int { return strings.Compare(a.Name, b.Name) })
	return append(list,
		Attack{Name: "several commands in one write", Area: "visitor", play: func(x *attacker) {
			for range 8 {
				c := x.Connect(rival(x.src(96)))
				c.Pipelined()
				x.done(c)
				x.Wait(5 * minute)
			}
		}},
		Attack{Name: "nothing but unknown commands", Area: "visitor", play: func(x *attacker) {
			for range 45 {
				c := x.Connect(rival(x.src(97)))
				c.Ehlo()
				for _, line := range []string{"XYZZY", "STAT", "LIST"} {
					c.Command(line, unknown)
				}
				c.Quit()
				x.done(c)
				x.Wait(30 * minute)
			}
		}})
}()

// accounts contains attacks that use a user's password.
var accounts = []Attack{
	{Name: "stolen account, twelve networks in a minute", Area: "account", play: func(x *attacker) {
		for k := range 12 {
			x.member(rival(x.far(k)), login(50), 5, func(i int) string { return fmt.Sprintf("winner%d@lottery.example", i) }, func(i int) []string {
				return []string{fmt.Sprintf("nobody%d-%d@example.org", k, i), fmt.Sprintf("staff%d-%d@example.org", k, i), fmt.Sprintf("x%d-%d@foreign.example", k, i)}
			})
			x.Wait(5 * time.Second)
		}
	}},
	{Name: "stolen account, 300 unknown recipients", Area: "account", play: func(x *attacker) {
		x.member(rival(x.src(70)), login(51), 10, func(int) string { return login(51) + "@example.org" }, func(i int) []string { return words(fmt.Sprintf("acc%d-", i), 0, 30) })
	}},
}
