package month

// This file plays legitimate senders whose greeting, address or pace is suspicious.

import (
	"fmt"
	"net/netip"
	"time"

	"scanwatch/tests/simulate"
)

// applications simulates programs that greet with an address in their container's network.
func (w *World) applications(k *Kind) {
	at := w.net()
	for i, helo := range []string{"[10.1.2.3]", "[172.17.0.1]", "[192.168.178.20]", "[172.18.0.5]", "[10.0.0.4]"} {
		h := host(at(10+i), fmt.Sprintf("app%d.customer.example", i))
		h.Helo = helo
		w.Go(h.RDNS, Start, func(a *Actor) {
			a.each(2*i, 1+i, func(int) { a.Send(k, h, "app@customer.example", a.someone()) })
		})
	}
}

// container plays a server that changes its greeting after a few weeks.
func (w *World) container(k *Kind) {
	h := host(w.net()(53), "mail.family.example")
	w.Go("container", Start, func(a *Actor) {
		a.each(0, 1, func(d int) {
			if d == 20 {
				h.Helo = "mail.example.com"
			}
			a.Send(k, h, "joe@family.example", a.someone())
		})
	})
}

// movedDomain plays a server with outdated data. This server sends mail to a domain that has moved
// to another server.
func (w *World) movedDomain(k *Kind) {
	h := host(w.net()(54), "mail.oldpartner.example")
	w.Go("moved", Start, func(a *Actor) {
		a.each(0, 1, func(d int) {
			if d == 14 {
				var list []*message
				for i := range 6 {
					list = append(list, &message{from: "joe@oldpartner.example", left: []string{fmt.Sprintf("person%d@moved.example", i)}})
				}
				a.Batch(k, h, list)
				a.Wait(time.Hour)
			}
			a.Send(k, h, "joe@oldpartner.example", a.someone())
		})
	})
}

// yearly plays a server that sends mail on only two days, some of it to a former user. A day
// earlier, another host in the same network harvested addresses.
func (w *World) yearly(k *Kind) {
	h := host(netip.MustParseAddr("198.51.100.121"), "mail.taxoffice.example")
	w.Go(h.RDNS, day(2, 9*time.Hour), func(a *Actor) {
		a.Send(k, h, "notice@taxoffice.example", a.someone())
		a.Until(day(24, 9*time.Hour))
		a.Send(k, h, "notice@taxoffice.example", append(left(1, 1), a.some(2)...)...)
	})
}

// paces simulates very fast and very slow clients.
func (w *World) paces(k *Kind) {
	at := w.net()
	ms := func(times ...float64) (list []time.Duration) {
		for _, t := range times {
			list = append(list, time.Duration(t*float64(time.Millisecond)))
		}
		return list
	}
	for i, pace := range [][]time.Duration{
		ms(0, 40.1, 45.5, 48.2, 43.3, 40.7), ms(0, 20.4, 22.1, 20.8, 21.5), ms(0, .6, 300, .5, 45.2, .4), ms(650, 700, 800, 660),
		ms(50, 60_000, 45_000, 70_000, 58_000),
	} {
		h := host(at(10+i), fmt.Sprintf("pace%d.office.example", i))
		h.Pace = pace
		w.Go(h.RDNS, Start, func(a *Actor) {
			a.each(i, 2, func(int) { a.Send(k, h, "someone@office.example", a.some(2)...) })
		})
	}
}

// burst plays a provider that opens twenty concurrent connections.
func (w *World) burst(k *Kind) {
	h := host(w.net()(10), "out.bigprovider.example")
	w.owners[h.Src] = k
	w.Go("burst", Start, func(a *Actor) {
		a.each(0, 3, func(d int) {
			a.Send(k, h, "joe@bigprovider.example", a.someone())
			a.Wait(time.Hour)
			if d < 6 || a.inWindow() || a.outage() != nil {
				return
			}
			var cs []*simulate.Client
			for range 20 {
				cs = append(cs, a.Connect(h))
			}
			for _, c := range cs {
				k.Sent++
				c.Ehlo()
				c.Mail("joe@bigprovider.example")
				c.Rcpt(a.someone())
				if c.Data() == simulate.Accepted {
					k.AtOnce++
				} else {
					k.Lost++
				}
			}
			for _, c := range cs {
				c.Quit()
				k.note(c)
			}
		})
	})
}

// newMailbox plays mail to the mailbox jobs. Applicants and harvesters request this mailbox before
// it exists.
func (w *World) newMailbox(k *Kind) {
	const jobs = "jobs@example.org"
	at := w.net()
	w.Go("jobs", day(12, 8*time.Hour), func(a *Actor) { a.mailboxes["jobs"] = true })
	for i := range 16 {
		name := fmt.Sprintf("mail.applicant%d.example", i)
		h := host(at(10+i), name)
		w.Go(name, Start, func(a *Actor) {
			if i < 5 {
				a.Until(day(10, time.Duration(8+i)*time.Hour))
				a.Send(k, h, "me@"+domain(name), jobs)
			}
			a.Until(day(12+i, 10*time.Hour))
			a.Send(k, h, "me@"+domain(name), jobs)
		})
	}
}

// shared64 plays a server in a /64 that also contains bots and harvesters.
func (w *World) shared64(k *Kind) {
	h := host(netip.MustParseAddr("2001:db8:3c02::f03c:92ff:fe92:3fc7"), "mail.cousins.example")
	w.Go("64", Start, func(a *Actor) {
		a.each(0, 1, func(int) { a.Send(k, h, "joe@cousins.example", a.someone()) })
	})
	w.Go("64 bot", day(5, time.Hour), func(a *Actor) {
		for d := 5; d < Days; d += 4 {
			a.Until(day(d, time.Hour))
			a.bot(netip.MustParseAddr("2001:db8:3c02::f03c:91ff:fe11:1"))
			a.Wait(2 * time.Hour)
			a.harvester(netip.MustParseAddr("2001:db8:3c02::f03c:91ff:fe11:2"), 9)
		}
	})
}

// new64 plays servers whose first mail arrives an hour after a harvest from the same /64.
func (w *World) new64(k *Kind) {
	for i := range 4 {
		w.Go(fmt.Sprint("new 64 ", i), day(6+5*i, 10*time.Hour), func(a *Actor) {
			a.harvester(netip.MustParseAddr(fmt.Sprintf("2001:db8:400:d%d::1001:1", i)), 9)
			a.Wait(time.Hour)
			h := host(netip.MustParseAddr(fmt.Sprintf("2001:db8:400:d%d::2002:1", i)), fmt.Sprintf("mail.uncle%d.example", i))
			a.Send(k, h, "joe@"+domain(h.RDNS), a.someone())
		})
	}
}

// bot plays a session of an infected computer in the same network.
func (a *Actor) bot(src netip.Addr) {
	c := a.Connect(simulate.Host{Src: src, Helo: "ylmf-pc"})
	c.Ehlo()
	c.Quit()
}

// harvester requests n unknown recipients from the same network.
func (a *Actor) harvester(src netip.Addr, n int) {
	c := a.Connect(simulate.Host{Src: src, Helo: "mail.x.example"})
	c.Ehlo()
	c.Mail("s@evil.example")
	for i := range n {
		c.Rcpt(fmt.Sprintf("name%d@example.org", i))
	}
	c.Quit()
}

// customers simulates rented servers whose names are derived by the hosting provider. One of these
// servers harvests addresses.
func (w *World) customers(k *Kind) {
	at := [2]func(int) netip.Addr{w.net(), w.net()}
	for i := range 8 {
		h := host(at[i%2](5+i), fmt.Sprintf("vmi%d.hoster.example", 1000000+37*i))
		h.Helo = fmt.Sprintf("mail.site%d.example", i)
		w.Go(h.RDNS, Start, func(a *Actor) {
			a.each(i, 3, func(int) { a.Send(k, h, "joe@"+domain(h.Helo), a.someone()) })
		})
	}
	w.Go("bad customer", day(9, 9*time.Hour), func(a *Actor) {
		for d := 9; d < Days; d += 6 {
			a.Until(day(d, 9*time.Hour))
			a.harvester(at[0](99), 9)
		}
	})
}

// rented plays servers with addresses that scanners used earlier.
func (w *World) rented(k *Kind) {
	for i, addr := range []string{"68.183.46.233", "3.17.207.148", "172.105.212.74", "159.223.98.198"} {
		h := host(netip.MustParseAddr(addr), fmt.Sprintf("mail.tenant%d.example", i))
		w.Go(addr, Start, func(a *Actor) {
			a.each(i, 5, func(int) { a.Send(k, h, "joe@"+domain(h.RDNS), a.someone()) })
		})
	}
}

// gateway plays ten servers, a bot and a harvester that share a private address.
func (w *World) gateway(k *Kind) {
	addr := netip.MustParseAddr("172.18.0.1")
	for i := range 10 {
		h := simulate.Host{Src: addr, Helo: fmt.Sprintf("mail.good%d.example", i)}
		w.Go(h.Helo, Start, func(a *Actor) {
			a.each(0, 1+i%3, func(int) { a.Send(k, h, "joe@"+domain(h.Helo), a.someone()) })
		})
	}
	w.Go("through the gateway", day(8, 10*time.Hour), func(a *Actor) {
		for d := 8; d < Days; d += 7 {
			a.Until(day(d, 10*time.Hour))
			a.bot(addr)
			a.harvester(addr, 12)
		}
	})
}

// reports simulates messages from a scanning organisation to abuse and postmaster.
func (w *World) reports(k *Kind) {
	h := host(netip.MustParseAddr("198.51.100.111"), "mail.shadowserver.org")
	w.Go(h.RDNS, Start, func(a *Actor) {
		a.each(0, 2, func(d int) {
			a.Send(k, h, "autoreports@shadowserver.org", []string{"abuse@example.org", "postmaster@example.org"}[d/2%2])
		})
	})
}

// printers simulates devices in the local network.
func (w *World) printers(k *Kind) {
	for i, helo := range []string{"printer", "KM8F21A3", "copier.local", "10.20.0.5"} {
		h := simulate.Host{Src: netip.AddrFrom4([4]byte{10, 20, 0, byte(2 + i)}), Helo: helo}
		w.Go(helo, Start, func(a *Actor) {
			a.each(0, 1, func(int) { a.Send(k, h, "scan@example.org", a.someone()) })
		})
	}
}

// monitor plays a program that checks the server every ten minutes. If the filter gives a negative
// answer, a session without mail counts as rejected.
func (w *World) monitor(k *Kind) {
	h := host(w.net()(10), "probe.monitoring.example")
	w.owners[h.Src] = k
	w.Go("monitor", Start, func(a *Actor) {
		for i := 0; a.Now().Before(end()); i++ {
			c := a.Connect(h)
			if i%2 == 0 {
				c.Ehlo()
				c.Quit()
			}
			c.Leave()
			k.note(c)
			a.Until(Start.Add(time.Duration(i+1) * 10 * time.Minute))
		}
	})
}
