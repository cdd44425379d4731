package month

// This file plays users on the submission ports.

import (
	"fmt"
	"strings"
	"time"

	"scanwatch/tests/simulate"
)

// login returns the user name of mailbox number i. Role accounts do not count.
func login(i int) string {
	local, _, _ := strings.Cut(simulate.Mailbox(4+i), "@")
	return local
}

// office plays twelve users at one address who occasionally mistype, and a phone that
// retries an old password forever.
func (w *World) office(k *Kind) {
	h := simulate.Host{Src: w.net()(44), RDNS: "office.firm.example", Helo: "laptop"}
	for i := range 12 {
		w.Go(fmt.Sprint("office ", i), Start, func(a *Actor) {
			a.each(0, 1, func(int) {
				for range 2 {
					wrong := 0
					if a.IntN(30) == 0 {
						wrong = 1 + a.IntN(2)
					}
					a.Login(k, h, login(i), wrong, true)
					a.Wait(time.Duration(1+a.IntN(90)) * time.Minute)
				}
			})
		})
	}
	w.Go("office telephone", day(1, 3*time.Hour), func(a *Actor) {
		for a.Now().Before(end()) {
			a.Login(k, h, login(12), 1, false)
			a.Wait(10 * time.Minute)
		}
	})
}

// movedOffice plays an office whose address has changed. On the first morning, five users mistype
// their passwords. These users retry immediately or an hour later.
func (w *World) movedOffice(k *Kind) {
	for i := range 4 {
		h := simulate.Host{Src: w.net()(34), RDNS: fmt.Sprintf("office%d.firm.example", i)}
		w.Go(h.RDNS, day(5+6*i, 8*time.Hour), func(a *Actor) {
			for u := range 5 {
				a.Login(k, h, login(13+u), 1, i%2 == 0)
				a.Wait(time.Minute)
			}
			a.Wait(time.Hour)
			for u := range 5 {
				a.Login(k, h, login(13+u), 0, true)
				a.Wait(time.Minute)
			}
		})
	}
}

// telephone plays a user at home whose phone has an old password for a day. Another user's computer
// at the same address has the correct password.
func (w *World) telephone(k *Kind) {
	for i := range 3 {
		h := simulate.Host{Src: w.net()(35), RDNS: fmt.Sprintf("dsl-%d.isp.example", i)}
		w.Go(h.RDNS, day(3+8*i, 7*time.Hour), func(a *Actor) {
			a.Login(k, h, login(20+i), 0, true)
			for j := range 120 {
				a.Login(k, h, login(23+i), 1, false)
				a.Wait(4 * time.Minute)
				if j%20 == 0 {
					a.Login(k, h, login(20+i), 0, true)
				}
			}
			a.Login(k, h, login(23+i), 1, true)
		})
	}
}

// mistyping plays users who need up to twelve attempts.
func (w *World) mistyping(k *Kind) {
	at := w.net()
	for i := range 8 {
		h := simulate.Host{Src: at(20 + i), RDNS: fmt.Sprintf("dsl-%d.cable.example", i)}
		w.Go(h.RDNS, Start, func(a *Actor) {
			a.each(i, 6, func(int) {
				a.Login(k, h, login(26+i), []int{1, 2, 3, 5, 8, 12}[a.IntN(6)], true)
				a.Wait(5 * time.Minute)
				a.Login(k, h, login(26+i), 0, true)
			})
		})
	}
}

// traveller plays a user who mistypes the password in six networks on one day.
func (w *World) traveller(k *Kind) {
	for i := range 2 {
		w.Go(fmt.Sprint("traveller ", i), day(9+10*i, 6*time.Hour), func(a *Actor) {
			for range 6 {
				h := simulate.Host{Src: a.net()(7), RDNS: "guest.hotel.example"}
				a.Login(k, h, login(34+i), 1, false)
				a.Login(k, h, login(34+i), 0, true)
				a.Wait(2 * time.Hour)
			}
		})
	}
}

// computers simulates users whose computers have the same names as bots.
func (w *World) computers(k *Kind) {
	at := w.net()
	for i, name := range []string{"User", "ADMIN", "X", "hydra", "localhost", "[192.168.1.5]", "127.0.0.1", "[127.0.0.1]", "DESKTOP-8F3K2L1", "home"} {
		h := simulate.Host{Src: at(30 + i), RDNS: fmt.Sprintf("p%d.access.example", i), Helo: name, Port: []uint16{587, 465}[i%2]}
		w.Go("computer "+name, Start, func(a *Actor) {
			a.each(i%4, 2, func(d int) {
				a.Login(k, h, login(36+i), 0, true)
				if d%3 == 0 {
					h.Src = at(60 + 5*i + d/6) // the provider assigns a new address
				}
			})
		})
	}
}

// attacked plays the user alice at home and in new places. On some days, attackers in
// thirty networks try to log in as alice.
func (w *World) attacked(k *Kind) {
	home := simulate.Host{Src: w.net()(60), RDNS: "alice.isp.example"}
	at := w.net()
	w.Go("alice", Start, func(a *Actor) {
		a.each(0, 1, func(d int) {
			h := home
			if d%2 == 1 {
				h = simulate.Host{Src: at(100 + d), RDNS: "guest.cafe.example"}
			}
			a.Login(k, h, "alice", d%3%2, true)
		})
	})
}
