package month

// This file describes attackers and their results.

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"scanwatch/tests/simulate"
)

// An Attack is one of the attackers in a month, with its results.
type Attack struct {
	Name string
	Area string // harvest, passwords, relay, visitor, account
	days int    // maximum duration; 1 if unset
	play func(x *attacker)

	Sessions, Turned int
	LoggedIn         int
	Learned          tally // distinct mailboxes about which the server itself replied
	Passwords        tally // passwords to which the server itself replied
	Relayed          tally // foreign recipients to which the server itself replied
	Sent             tally // messages that the server accepted
	told             map[string]bool
}

// A tally counts events. A tally also contains the highest number in any hour, and the highest
// number in any day after the first event.
type tally struct {
	Total, Hour, Day int
	hours, days      map[int64]int
}

func (t *tally) add(n int, at time.Time) {
	if n == 0 {
		return
	}
	if t.hours == nil {
		t.hours, t.days = make(map[int64]int), make(map[int64]int)
	}
	h, d := at.Unix()/3600, at.Unix()/86400
	t.hours[h] += n
	t.days[d] += n
	t.Total += n
	t.Hour, t.Day = max(t.Hour, t.hours[h]), max(t.Day, t.days[d])
}

// String formats the total, the highest number in an hour, and the highest number in a day.
func (t *tally) String() string {
	if t.Total == 0 {
		return "-"
	}
	return fmt.Sprintf("%d (%d, %d)", t.Total, t.Hour, t.Day)
}

// An attacker is an Attack that is being played.
type attacker struct {
	*Actor
	*Attack
	index int
	first int // day on which the attack starts
	// free lists the mailboxes that the attacker already knows.
	free []string
}

// plan starts attack number i. Attacks that last one day start on different days.
func (w *World) plan(i int, row Attack) {
	row.told = make(map[string]bool)
	w.Attacks = append(w.Attacks, &row)
	days := max(row.days, 1)
	first := 2 + (i*11+int(w.seed)*5)%(Days-2-days)
	w.Go("attack "+row.Name, day(first, time.Duration(i%5)*4*time.Hour), func(a *Actor) {
		row.play(&attacker{Actor: a, Attack: &row, index: i, first: first})
	})
}

// src returns an address in the attacker's network.
func (x *attacker) src(host int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 19, byte(x.index * 3), byte(host)})
}

// far returns an address in network number i of 250.
func (x *attacker) far(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 19, byte(i), byte(10 + (i+x.index)%200)})
}

// six returns an address in one of the attacker's /64s.
func (x *attacker) six(i int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("2001:db8:66:%x::%x", x.index, i+1))
}

// done counts a session that has ended.
func (x *attacker) done(c *simulate.Client) *simulate.Client {
	x.Sessions++
	if len(c.Refusals()) > 0 {
		x.Turned++
	}
	if c.LoggedIn() {
		x.LoggedIn++
	}
	now := x.Now()
	x.Passwords.add(c.Tries, now)
	x.Sent.add(c.Mails(), now)
	x.Relayed.add(c.Relayed(), now)
	c.Told(func(local string) {
		if !x.told[local] && !slices.Contains(x.free, local+"@"+simulate.Domain) {
			x.told[local] = true
			x.Learned.add(1, now)
		}
	})
	return c
}

// rival returns an attacker's host. The host has an address, but no name.
func rival(src netip.Addr) simulate.Host { return simulate.Host{Src: src, Helo: "mail.x.example"} }

type manner = simulate.Manner

var words, foreign = simulate.Words, simulate.Foreign

// ask requests recipients in one session.
func (x *attacker) ask(h simulate.Host, m manner, rcpts ...string) *simulate.Client {
	return x.done(x.Ask(h, m, rcpts...))
}

// bursts plays n sessions that each request new unknown recipients.
func (x *attacker) bursts(n, each int, every time.Duration, m manner, at func(i int) simulate.Host) {
	for i := range n {
		x.ask(at(i), m, words("w", i*each, each)...)
		x.Wait(every)
	}
}

// one returns a function that returns the same host for every session.
func one(h simulate.Host) func(int) simulate.Host {
	return func(int) simulate.Host { return h }
}

// guess tries one password for each user on a submission port.
func (x *attacker) guess(h simulate.Host, users ...string) { x.done(x.Guess(h, users...)) }

// blind tries n passwords on port 25, where smtpd rejects the command.
func (x *attacker) blind(h simulate.Host, n int, mechanism string) { x.done(x.Blind(h, n, mechanism)) }

const unknown = simulate.UnknownCommand

// spam sends a message to a mailbox.
func (x *attacker) spam(h simulate.Host, to string) *simulate.Client {
	return x.ask(h, manner{Sender: "joe@x.example", Send: true}, to)
}

// good sends n messages to a mailbox like a mail server, to gain standing.
func (x *attacker) good(h simulate.Host, n int, every time.Duration, to string) {
	for range n {
		x.ask(h, manner{Sender: "news@" + domain(h.Helo), Send: true}, to)
		x.Wait(every)
	}
}

// member logs in with a stolen password and sends messages.
func (x *attacker) member(h simulate.Host, user string, n int, sender func(i int) string, rcpts func(i int) []string) {
	h.Port = 587
	c := x.Connect(h)
	c.Ehlo()
	c.StartTLS()
	c.Auth(user, true)
	for i := range n {
		c.Mail(sender(i))
		for _, r := range rcpts(i) {
			c.Rcpt(r)
		}
		c.Data()
	}
	c.Quit()
	x.done(c)
}
