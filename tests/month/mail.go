package month

// This file plays mail servers and users, and counts their messages and logins.

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"scanwatch/tests/simulate"
)

// A Kind is a kind of legitimate client, with its results.
type Kind struct {
	Name string
	// Later is the reason why the standard preset may delay messages of this kind. If Later is
	// empty, no message may be delayed.
	Later string
	// Ban is the reason why hosts of this kind may be banned for a few minutes. No login or message
	// may be rejected because of such a ban.
	Ban string
	// Tight is the reason why the tight preset may reject messages of this kind.
	Tight string
	// Shared is set if the host's /64 also contains attackers.
	Shared bool
	plan   func(w *World, k *Kind)

	Sessions, Turned            int // all sessions; sessions in which the filter gave a negative answer
	Sent, AtOnce, Delayed, Lost int // messages with an existing recipient
	Excused                     int // lost messages that the tight preset may reject; see Tight
	Junked, Nowhere             int // marked as junk; messages without an existing recipient
	Logins, Refused             int // attempts with the right password; failures of such attempts
	Bans                        int // bans of its hosts
	Accepted, LoggedIn          int // accepted messages and logins, according to the sessions' replies
	Longest                     time.Duration
	Why                         map[string]int // texts of negative answers
}

// varying matches the parts of replies that are different in each session.
var varying = regexp.MustCompile(` \[[0-9a-f]{16}\]| until \d{4}-\d\d-\d\d \d\d:\d\d UTC`)

// note counts an ended session.
func (k *Kind) note(c *simulate.Client) {
	k.Sessions++
	k.Accepted += c.Mails()
	if c.LoggedIn() {
		k.LoggedIn++
	}
	if len(c.Refusals()) == 0 {
		return
	}
	k.Turned++
	if k.Why == nil {
		k.Why = make(map[string]int)
	}
	for _, r := range c.Refusals() {
		text := varying.ReplaceAllString(r.Text, "")
		k.Why[r.Phase.String()+": "+text]++
	}
}

// A message is a message in a mail server's queue.
type message struct {
	kind  *Kind // counts the message
	tight bool  // the tight preset may reject the sender; see Tight
	from  string
	left  []string // recipients without a final reply
	ask   bool     // request the recipient, but send no message
	first time.Time
	good  bool // a recipient existed at the first attempt
	lost  bool
	done  bool
}

// retries lists the retry times of common mail servers. After the last retry, the message is
// returned to its sender.
var retries = []time.Duration{0, 15 * time.Minute, time.Hour, 4 * time.Hour, 12 * time.Hour, 24 * time.Hour, 48 * time.Hour, 72 * time.Hour, 96 * time.Hour}

// Send queues a message at a host.
func (a *Actor) Send(k *Kind, h simulate.Host, from string, to ...string) {
	a.Batch(k, h, []*message{{from: from, left: to}})
}

// Batch queues messages that the host sends in one connection.
func (a *Actor) Batch(k *Kind, h simulate.Host, list []*message) {
	a.owners[h.Src] = k
	counted := k
	if o := a.outage(); o != nil {
		counted = o
	} else if a.inWindow() && k.Tight == "" {
		counted = a.kind("DNS down")
	}
	for _, m := range list {
		m.kind, m.tight = counted, k.Tight != ""
		m.first = a.Now()
		for _, r := range m.left {
			m.good = m.good || a.exists(r)
		}
		if m.good {
			m.kind.Sent++
		} else {
			m.kind.Nowhere++
		}
	}
	a.Go(fmt.Sprint(k.Name, h.Src, a.order), a.Now(), func(a *Actor) {
		for _, wait := range retries {
			a.Until(list[0].first.Add(wait))
			if a.attempt(k, h, list) {
				break
			}
		}
		for _, m := range list {
			m.count()
		}
	})
}

func (a *Actor) exists(address string) bool {
	local, domain, _ := strings.Cut(address, "@")
	return domain == simulate.Domain && a.mailboxes[local]
}

// count counts a message that was returned to its sender.
func (m *message) count() {
	if m.good && (m.lost || !m.done) {
		m.kind.Lost++
		if m.tight {
			m.kind.Excused++
		}
	}
}

// finish counts a message that has a final reply for each recipient.
func (m *message) finish(now time.Time, junked bool) {
	if m.done || len(m.left) > 0 {
		return
	}
	m.done = true
	if !m.good || m.lost {
		return
	}
	k := m.kind
	if junked {
		k.Junked++
	}
	if d := now.Sub(m.first); d < 10*time.Minute {
		k.AtOnce++
	} else {
		k.Delayed++
		k.Longest = max(k.Longest, d)
	}
}

// attempt plays one connection of a queue, and reports whether the queue is then empty.
func (a *Actor) attempt(k *Kind, h simulate.Host, list []*message) (empty bool) {
	c := a.Connect(a.trouble(h))
	c.Ehlo()
	for _, m := range list {
		if len(m.left) > 0 && !c.Closed {
			a.offer(c, m)
		}
	}
	c.Quit()
	k.note(c)
	empty = true
	permanent := false
	for _, r := range c.Refusals() {
		permanent = permanent || r.Phase.String() != "rcpt-to" && r.Text[0] == '5'
	}
	for _, m := range list {
		if permanent && len(m.left) > 0 { // the whole session was rejected
			m.left, m.lost = nil, true
		}
		m.finish(a.Now(), c.Junked())
		empty = empty && m.done
	}
	return empty
}

// offer plays the transaction that sends a message.
func (a *Actor) offer(c *simulate.Client, m *message) {
	if c.Mail(m.from) != simulate.Accepted {
		return
	}
	var later, accepted []string
	for i, r := range m.left {
		switch result := a.rcpt(c, r); result {
		case simulate.Accepted:
			accepted = append(accepted, r)
		case simulate.NoSuch:
		case simulate.Refused:
			if last := c.Refusals()[len(c.Refusals())-1]; last.Text[0] == '5' {
				m.lost = m.lost || a.exists(r)
				break
			}
			later = append(later, r)
		default:
			later = append(later, r)
		}
		if c.Closed {
			m.left = append(append(later, accepted...), m.left[i+1:]...)
			return
		}
	}
	m.left = later
	switch {
	case len(accepted) == 0 || m.ask:
		c.Rset()
	case c.Data() != simulate.Accepted:
		m.left = append(later, accepted...)
	}
}

// rcpt requests a recipient. The server's recipient tables may be unavailable.
func (a *Actor) rcpt(c *simulate.Client, to string) simulate.Result {
	switch k := a.outage(); {
	case k == nil:
		return c.Rcpt(to)
	case k.Name == "directory down":
		return c.RcptFate(to, simulate.Later)
	}
	return c.RcptFate(to, simulate.Unknown)
}

// outages lists the outages of the server's recipient table. Each outage lasts an hour.
var outages = map[string]time.Time{"directory down": day(11, 10*time.Hour), "table broken": day(19, 15*time.Hour)}

// outage returns the kind of the current outage, or nil.
func (w *World) outage() *Kind {
	for name, at := range outages {
		if now := w.Now(); !now.Before(at) && now.Before(at.Add(time.Hour)) {
			return w.kind(name)
		}
	}
	return nil
}

func (w *World) kind(name string) *Kind {
	for _, k := range w.Kinds {
		if k.Name == name {
			return k
		}
	}
	panic("month: no kind " + name)
}

// windows lists the times when the server's resolver is unavailable.
var windows = []struct {
	at     time.Time
	long   time.Duration
	fcrdns string
	name   bool // only the address lookup fails; the PTR record is found
}{
	{day(7, 9*time.Hour), 4 * time.Hour, "fail", false},
	{day(15, 10*time.Hour), 2 * time.Hour, "error", false},
	{day(23, 14*time.Hour), 3 * time.Hour, "fail", true},
}

// inWindow reports whether DNS is unavailable.
func (w *World) inWindow() bool {
	h := w.trouble(simulate.Host{RDNS: "x", FCrDNS: "pass"})
	return h.FCrDNS != "pass"
}

// trouble returns h with the names that smtpd reports at the current time, when the resolver may be
// unavailable.
func (w *World) trouble(h simulate.Host) simulate.Host {
	for _, t := range windows {
		if now := w.Now(); !now.Before(t.at) && now.Before(t.at.Add(t.long)) {
			if h.Helo == "" {
				h.Helo = h.RDNS
			}
			h.FCrDNS = t.fcrdns
			if !t.name {
				h.RDNS = ""
			}
		}
	}
	return h
}

// Login plays a user who mistypes the password a few times. If right is set, the user eventually
// logs in and sends a message.
func (a *Actor) Login(k *Kind, h simulate.Host, user string, wrong int, right bool) {
	if h.Port == 0 {
		h.Port = 587
	}
	if h.Helo == "" {
		h.Helo = "laptop"
	}
	a.owners[h.Src] = k
	c := a.Connect(h)
	c.Ehlo()
	if h.Port == 587 {
		c.StartTLS()
	}
	for range wrong {
		c.Auth(user, false)
	}
	if right {
		k.Logins++
		ok := c.Auth(user, true) == simulate.Accepted
		if ok {
			c.Mail(user + "@" + simulate.Domain)
			c.Rcpt("friend@partner.example")
			ok = c.Data() == simulate.Accepted
		}
		if !ok {
			k.Refused++
		}
	}
	c.Quit()
	k.note(c)
}

// host returns a host with a proven name.
func host(addr netip.Addr, name string) simulate.Host {
	return simulate.Host{Src: addr, RDNS: name, Helo: name}
}

// domain returns the domain above a host name.
func domain(name string) string {
	_, above, ok := strings.Cut(name, ".")
	if !ok || !strings.Contains(above, ".") {
		return name
	}
	return above
}
