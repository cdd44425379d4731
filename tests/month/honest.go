package month

// This file contains the kinds of legitimate senders. The reasons in Later and Tight must be the
// same as in package cases.

import (
	_ "embed"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"scanwatch/tests/simulate"
)

// kinds lists all kinds in the table's order.
var kinds = []Kind{
	{Name: "forms of senders", plan: func(w *World, k *Kind) { w.forms(k, false) }},
	{Name: "forms noted for tight", plan: func(w *World, k *Kind) { w.forms(k, true) }, Tight: "the notes of senders.tsv"},
	{Name: "partner", plan: (*World).partners},
	{Name: "newcomer", plan: (*World).newcomers},
	{Name: "list server", plan: (*World).lists},
	{Name: "new list server", plan: (*World).newLists, Later: "unknown, and half of the members have left"},
	{Name: "newsletter", plan: (*World).newsletters, Later: "starts with many former addresses"},
	{Name: "bounce", plan: (*World).bounces},
	{Name: "backscatter", plan: (*World).backscatter},
	{Name: "sender verification", plan: (*World).verification},
	{Name: "forum", plan: (*World).forum},
	{Name: "new forum", plan: (*World).newForum},
	{Name: "forwarder", plan: (*World).forwarders},
	{Name: "notices to former users", plan: (*World).notices},
	{Name: "web application", plan: (*World).applications},
	{Name: "moved to a container", plan: (*World).container},
	{Name: "domain that moved away", plan: (*World).movedDomain, Later: "six recipients of a foreign domain"},
	{Name: "once a year", plan: (*World).yearly},
	{Name: "pace", plan: (*World).paces},
	{Name: "burst", plan: (*World).burst},
	{Name: "new mailbox", plan: (*World).newMailbox, Later: "the mailbox was probed before it existed"},
	{Name: "known in a shared /64", plan: (*World).shared64, Shared: true},
	{Name: "new in a shared /64", plan: (*World).new64, Shared: true, Later: "unknown, in the /64 of a bot"},
	{Name: "customers of a hoster", plan: (*World).customers},
	{Name: "rented address, used by a scanner before", plan: (*World).rented},
	{Name: "gateway", plan: (*World).gateway, Later: "shares its address with a harvester"},
	{Name: "mail host of a scanner", plan: (*World).reports},
	{Name: "printer", plan: (*World).printers},
	{Name: "monitor", plan: (*World).monitor},
	{Name: "DNS down", plan: nothing, Later: "no name in DNS can be looked up"},
	{Name: "directory down", plan: nothing, Later: "the server itself defers"},
	{Name: "table broken", plan: nothing, Later: "the server itself rejects"},
	{Name: "office", plan: (*World).office},
	{Name: "office that moved", plan: (*World).movedOffice, Ban: "five users fail within five minutes from an address without earlier logins"},
	{Name: "telephone with an old password", plan: (*World).telephone},
	{Name: "mistyping user", plan: (*World).mistyping},
	{Name: "traveller", plan: (*World).traveller},
	{Name: "name of the computer", plan: (*World).computers},
	{Name: "attacked user", plan: (*World).attacked},
}

func nothing(*World, *Kind) {}

//go:embed testdata/senders.tsv
var senders string

// Forms returns the number of rows in senders.tsv.
func Forms() (n int) {
	for line := range strings.Lines(senders) {
		if line[0] != '#' && !strings.HasPrefix(line, "rdns\t") {
			n++
		}
	}
	return n
}

// forms simulates rows of senders.tsv. If tight is set, it simulates the rows that the tight preset
// may reject. Otherwise, it simulates all other rows. A third of the senders send mail daily, a
// third weekly, and a third only once.
func (w *World) forms(k *Kind, tight bool) {
	n := 0
	for line := range strings.Lines(senders) {
		if line[0] == '#' || strings.HasPrefix(line, "rdns\t") {
			continue
		}
		f := append(strings.Split(strings.TrimSpace(line), "\t"), "")
		n++
		if strings.Contains(f[3], "tight:") != tight {
			continue
		}
		h := simulate.Host{RDNS: f[0], FCrDNS: f[1], Helo: f[2]}
		if f[0] == "-" {
			h.RDNS = ""
		}
		if f[2] == "=" {
			h.Helo = h.RDNS
		}
		if f[4] != "" {
			h.Src = netip.MustParseAddr(f[4])
		} else {
			h.Src = w.net()(25)
		}
		from := "someone@" + domain(h.Helo)
		if !strings.Contains(from, ".") || strings.ContainsAny(from, "[:") {
			from = "someone@sender.example"
		}
		every := []int{1, 7, Days}[n%3]
		w.Go("form "+line, Start, func(a *Actor) {
			a.each(a.IntN(every), every, func(int) { a.Send(k, h, from, a.someone()) })
		})
	}
}

// partners simulates companies, four in each network. A partner sends mail on some days, and
// sometimes mistypes an address.
func (w *World) partners(k *Kind) {
	var at func(int) netip.Addr
	for i := range 24 {
		if i%4 == 0 {
			at = w.net()
		}
		name := fmt.Sprintf("mail.partner%d.example", i)
		h := host(at(20+i%4), name)
		w.Go(name, Start, func(a *Actor) {
			a.each(0, 1, func(d int) {
				for range a.IntN(4) {
					to := a.some(1 + a.IntN(2))
					if a.IntN(25) == 0 {
						to = append(to, "typo."+to[0])
					}
					a.Send(k, h, "joe@"+domain(name), to...)
					a.Wait(time.Duration(1+a.IntN(90)) * time.Minute)
				}
			})
		})
	}
}

// newcomers simulates servers that send mail only once. New servers send mail on each day of the
// month.
func (w *World) newcomers(k *Kind) {
	at := [2]func(int) netip.Addr{w.net(), w.net()}
	for d := range Days {
		for i := range 3 {
			name := fmt.Sprintf("mail.newcomer%d-%d.example", d, i)
			h := host(at[i%2](1+d*4+i), name)
			w.Go(name, day(d, 0), func(a *Actor) {
				a.Wait(time.Duration(a.Int64N(int64(23 * time.Hour))))
				a.Send(k, h, "me@"+domain(name), a.someone())
			})
		}
	}
}

// left returns n addresses of former users.
func left(start, n int) (to []string) {
	for i := range n {
		to = append(to, fmt.Sprintf("left%d@%s", start+i, simulate.Domain))
	}
	return to
}

// mixed returns the members of a list mixed with former members.
func (a *Actor) mixed(members, former []string) []string {
	to := append(append([]string(nil), members...), former...)
	a.Shuffle(len(to), func(i, j int) { to[i], to[j] = to[j], to[i] })
	return to
}

// lists simulates mailing lists with a few former members.
func (w *World) lists(k *Kind) {
	at := w.net()
	for i := range 3 {
		name := fmt.Sprintf("lists.club%d.example", i)
		w.Go(name, Start, func(a *Actor) {
			members, former := a.some(12), left(10*i, i) // a tenth of the members have left
			a.each(0, 1, func(int) {
				a.Send(k, host(at(30+i), name), "owner@"+name, a.mixed(members, former)...)
			})
		})
	}
}

// newLists plays mailing lists that start in the middle of the month. Half of their members have
// left.
func (w *World) newLists(k *Kind) {
	at := w.net()
	for i := range 4 {
		name := fmt.Sprintf("lists.school%d.example", i)
		w.Go(name, Start, func(a *Actor) {
			members, former := a.some(4), left(100+10*i, 5+i)
			a.each(9+3*i, 2, func(int) {
				a.Send(k, host(at(30+i), name), "list-bounces@"+name, a.mixed(members, former)...)
			})
		})
	}
}

// newsletters simulates senders that start a newsletter after a few messages. Each newsletter is
// sent to twenty addresses, a third of which no longer exist.
func (w *World) newsletters(k *Kind) {
	for i := range 3 {
		name := fmt.Sprintf("mail.shop%d.example", i)
		h := host(w.net()(40), name)
		w.Go(name, Start, func(a *Actor) {
			a.each(i, 3, func(d int) {
				if d < 12 {
					a.Send(k, h, "orders@"+domain(name), a.someone())
					return
				}
				var list []*message
				for j := range 3 {
					to := append(left(200+40*i+10*j, 6), a.some(14)...)
					if j > 0 {
						to = a.mixed(to, nil)
					}
					list = append(list, &message{from: fmt.Sprintf("bounce-%d-%d@%s", d, j, domain(name)), left: to})
				}
				a.Batch(k, h, list)
			})
		})
	}
}

func nulls(to []string) (list []*message) {
	for _, r := range to {
		list = append(list, &message{left: []string{r}})
	}
	return list
}

// bounces simulates servers that return local users' messages.
func (w *World) bounces(k *Kind) {
	at := w.net()
	for i := range 5 {
		name := fmt.Sprintf("mx.destination%d.example", i)
		w.Go(name, Start, func(a *Actor) {
			a.each(a.IntN(3), 2, func(int) { a.Send(k, host(at(50+i), name), "", a.someone()) })
		})
	}
}

// forged returns n invented senders.
func (a *Actor) forged(n int) (to []string) {
	for range n {
		to = append(to, fmt.Sprintf("x%dq@%s", a.IntN(1_000_000), simulate.Domain))
	}
	return to
}

// backscatter plays bounces of spam with forged senders. A provider's hosts send three bounces per
// connection. Other servers send many bounces per connection, and the last of these is for a real
// user.
func (w *World) backscatter(k *Kind) {
	at, pool := w.net(), w.net()
	for wave, d := range []int{4, 17, 26} {
		for i := range 5 {
			name := fmt.Sprintf("mout%d.provider%d.example", i, wave)
			w.Go(name, day(d, 10*time.Hour), func(a *Actor) {
				h := host(pool(20*wave+i+1), name)
				for range 16 {
					a.Batch(k, h, nulls(a.forged(3)))
					a.Wait(15 * time.Minute)
				}
				a.Send(k, h, "anna@"+domain(name), a.someone())
			})
		}
		for i, n := range []int{8, 12, 15, 40} {
			name := fmt.Sprintf("mail.victim%d-%d.example", wave, i)
			w.Go(name, day(d, 11*time.Hour), func(a *Actor) {
				h := host(at(1+20*wave+i), name)
				a.Batch(k, h, nulls(append(a.forged(n), a.someone())))
				a.Wait(10 * time.Minute)
				a.Send(k, h, "joe@"+domain(name), a.someone())
				a.Until(day(d+1, 9*time.Hour))
				a.Send(k, h, "joe@"+domain(name), a.someone())
			})
		}
		w.Go("karl"+fmt.Sprint(wave), day(d, 13*time.Hour), func(a *Actor) {
			h := host(at(18+20*wave), fmt.Sprintf("mail.one%d.example", wave))
			a.Batch(k, h, nulls(strings.Fields(strings.Repeat("karl@example.org ", 10))))
			a.Wait(time.Hour)
			a.Send(k, h, "joe@"+domain(h.RDNS), a.someone())
		})
	}
}

// verification plays servers that verify senders. Half of the verified senders are forged.
func (w *World) verification(k *Kind) {
	at := w.net()
	for i := range 3 {
		name := fmt.Sprintf("mail.verifier%d.example", i)
		h := host(at(60+i), name)
		w.Go(name, Start, func(a *Actor) {
			a.each(0, 2, func(int) {
				for j := range 8 {
					to := a.someone()
					if j%2 == 1 {
						to = a.forged(1)[0]
					}
					a.Batch(k, h, []*message{{left: []string{to}, ask: true}})
					a.Wait(7 * time.Minute)
				}
				a.Send(k, h, "joe@"+domain(name), a.someone())
			})
		})
	}
}

// confirmations returns requests for confirmation to invented addresses.
func (a *Actor) confirmations(club string, n int) (list []*message) {
	for i, to := range a.forged(n) {
		list = append(list, &message{from: fmt.Sprintf("confirm-%d@%s", i, club), left: []string{to}})
	}
	return list
}

// forum plays forums that send mail daily. On some days, a visitor enters invented addresses.
func (w *World) forum(k *Kind) {
	h := host(w.net()(70), "forum.club.example")
	w.Go(h.RDNS, Start, func(a *Actor) {
		a.each(0, 1, func(d int) {
			a.Send(k, h, "forum@club.example", a.someone())
			if d > 12 && d%5 == 0 {
				a.Batch(k, h, a.confirmations("club.example", 6))
			}
		})
	})
}

// newForum plays forums whose first messages go to six invented addresses.
func (w *World) newForum(k *Kind) {
	at := w.net()
	for i, together := range []bool{true, false, true, false} {
		name := fmt.Sprintf("forum.band%d.example", i)
		h := host(at(70+i), name)
		w.Go(name, day(6+5*i, 10*time.Hour), func(a *Actor) {
			list := a.confirmations(domain(name), 6)
			for j := range list {
				if !together {
					a.Batch(k, h, list[j:j+1])
					a.Wait(10 * time.Minute)
				}
			}
			if together {
				a.Batch(k, h, list)
			}
			a.Wait(time.Hour)
			a.Send(k, h, "forum@"+domain(name), a.someone())
			a.Wait(20 * time.Hour)
			a.Send(k, h, "forum@"+domain(name), a.someone())
		})
	}
}

// forwarders simulates servers that forward mail from all kinds of senders.
func (w *World) forwarders(k *Kind) {
	at := w.net()
	for i := range 3 {
		name := fmt.Sprintf("forward.alumni%d.example", i)
		w.Go(name, Start, func(a *Actor) {
			to := a.some(5)
			a.each(0, 1, func(int) {
				for range 2 + a.IntN(6) {
					a.Send(k, host(at(80+i), name), fmt.Sprintf("offer@deals%d.example", a.IntN(400)), to[a.IntN(5)])
					a.Wait(time.Duration(a.IntN(60)) * time.Minute)
				}
			})
		})
	}
}

// notices simulates programs that send mail to former users.
func (w *World) notices(k *Kind) {
	at := w.net()
	jobs, supplier := host(at(90), "jobs.partner.example"), host(at(91), "mail.supplier.example")
	w.Go(jobs.RDNS, Start, func(a *Actor) {
		a.each(1, 5, func(d int) {
			var list []*message
			for i := range 10 {
				list = append(list, &message{from: fmt.Sprintf("cron-%d@partner.example", i), left: []string{"karl@example.org"}})
			}
			a.Batch(k, jobs, list)
			a.Wait(time.Hour)
			a.Send(k, jobs, "cron@partner.example", a.someone())
		})
	})
	w.Go(supplier.RDNS, Start, func(a *Actor) {
		a.each(0, 1, func(d int) {
			to := []string{"invoices@example.org", "billing@example.org"}[d%2]
			if d%9 == 8 {
				to = a.someone()
			}
			a.Send(k, supplier, "robot@supplier.example", to)
		})
	})
}
