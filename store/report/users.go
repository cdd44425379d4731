package report

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/store"
	"scanwatch/store/history"
)

const (
	maxUsers        = 50_000
	maxUserNetworks = 1_000   // networks of one user
	maxAllNetworks  = 300_000 // networks of all users
	listedNetworks  = 3
)

// An attack has at least attackFailures failed logins, or failed logins from at least
// attackNetworks networks. A hotel guest whose device has an old password
// causes fewer failures.
const (
	attackFailures = 10
	attackNetworks = 3
)

// Users counts the logins of each user in bounded memory.
type Users struct {
	users    map[string]*user
	networks int // number of networks of all users
	dropped  map[string]int
}

type user struct {
	networks   map[netip.Prefix]userNetwork
	more       bool // logins failed from further networks
	failed     int
	logins     int
	messages   int
	recipients int
	lastFailed time.Time
	lastLogin  time.Time
}

// A userNetwork counts a user's logins from one network.
type userNetwork struct {
	failed, logins uint32
	last           time.Time
}

// NewUsers returns an empty Users.
func NewUsers() *Users { return &Users{users: map[string]*user{}, dropped: map[string]int{}} }

// Visitor returns a visitor that adds all records to c. The visitor returns an error for a record
// with corrupt steps.
func (c *Users) Visitor() history.Visitor {
	return history.Visitor{Kinds: store.KindsOf(store.KindAuth), Session: c.Add, Sum: c.Add}
}

// Add counts a record's logins. r is not retained.
func (c *Users) Add(r *store.Record) error {
	if r.Counts.AuthPass == 0 && r.Counts.AuthFail == 0 {
		return nil
	}
	var sender *user // user who sent the session's messages
	err := r.Steps(func(s *store.Step) bool {
		if s.Kind != store.KindAuth {
			return true
		}
		n := max(int(s.Count), 1)
		if len(s.Text) == 0 { // users that a full aggregate does not list
			c.dropped["logins of further users"] += n
			return true
		}
		u := c.user(s.Text)
		if u == nil {
			c.dropped["logins"] += n
			return true
		}
		passed := s.Result == smtp.ResultPass
		if passed {
			sender = u
		}
		c.count(u, r, n, passed)
		return true
	})
	if sender != nil {
		sender.messages += int(r.Counts.Mails)
		sender.recipients += int(r.Counts.RcptOK)
	}
	return err
}

// user returns a user's counts, or nil if there are too many users. Names are compared
// in lower case, because brute-force attacks vary the case.
func (c *Users) user(name []byte) *user {
	key := string(bytes.ToLower(name))
	u := c.users[key]
	if u == nil && len(c.users) < maxUsers {
		u = &user{networks: map[netip.Prefix]userNetwork{}}
		c.users[key] = u
	}
	return u
}

func (c *Users) count(u *user, r *store.Record, n int, passed bool) {
	if passed {
		u.logins += n
		u.lastLogin = later(u.lastLogin, r.End)
	} else {
		u.failed += n
		u.lastFailed = later(u.lastFailed, r.End)
	}
	p := networkOf(r.Src.Addr())
	if !p.IsValid() { // an aggregate of many sources
		u.more = true
		return
	}
	of, known := u.networks[p]
	if !known {
		if len(u.networks) >= maxUserNetworks || c.networks >= maxAllNetworks {
			u.more = true
			return
		}
		c.networks++
	}
	if passed {
		of.logins += uint32(n)
	} else {
		of.failed += uint32(n)
	}
	of.last = later(of.last, r.End)
	u.networks[p] = of
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// A UserSummary is the report on users. All text is printable.
type UserSummary struct {
	Schema   int      `json:"schema"` // text.Schema
	Since    Time     `json:"since"`
	Until    Time     `json:"until"`
	Problems []string `json:"problems"`
	// Attacked lists the users with failed logins from networks from which they
	// have never logged in, sorted by the number of networks, highest first.
	Attacked  []AttackedUser `json:"attacked"`
	Active    []ActiveUser   `json:"active"` // users who logged in, by number of messages, highest first
	More      map[string]int `json:"more"`
	NotListed map[string]int `json:"not_listed"` // over the memory limits
}

// An AttackedUser counts a user's failed logins from networks from which the user
// has never logged in.
type AttackedUser struct {
	User     string `json:"user"`
	Failed   int    `json:"failed"`
	Networks int    `json:"networks"`
	AtLeast  bool   `json:"at_least,omitempty"` // there are further networks
	Logins   int    `json:"logins"`             // logins of the user, from any network
	Last     Time   `json:"last"`               // end of the last session with a failure
}

// An ActiveUser counts a user's logins and messages.
type ActiveUser struct {
	User       string   `json:"user"`
	Logins     int      `json:"logins"`
	Failed     int      `json:"failed"` // failed logins from networks with a login of the user
	Networks   int      `json:"networks"`
	From       []string `json:"from"` // the latest few networks
	Messages   int      `json:"messages"`
	Recipients int      `json:"recipients"`
	Last       Time     `json:"last"` // end of the last session with a login
}

// Summary returns the report. top limits the length of each list.
func (c *Users) Summary(since, until time.Time, top int, problems []string) *UserSummary {
	s := &UserSummary{Schema: text.Schema, Since: text.At(since), Until: text.At(until), Problems: append([]string{}, problems...),
		Attacked: []AttackedUser{}, Active: []ActiveUser{}, More: map[string]int{}, NotListed: c.dropped}
	for name, u := range c.users {
		attacked, active := u.view(text.Escape(name))
		if attacked.Failed >= attackFailures || attacked.Networks >= attackNetworks {
			s.Attacked = append(s.Attacked, attacked)
		}
		if active.Logins > 0 {
			s.Active = append(s.Active, active)
		}
	}
	var more [2]int
	s.Attacked, more[0] = first(s.Attacked, top, func(a, b AttackedUser) int {
		return cmp.Or(b.Networks-a.Networks, b.Failed-a.Failed, cmp.Compare(a.User, b.User))
	})
	s.Active, more[1] = first(s.Active, top, func(a, b ActiveUser) int {
		return cmp.Or(b.Messages-a.Messages, b.Logins-a.Logins, cmp.Compare(a.User, b.User))
	})
	for i, list := range []string{"attacked", "active"} {
		if more[i] > 0 {
			s.More[list] = more[i]
		}
	}
	return s
}

// view separates failures in the user's networks from failures in other networks.
func (u *user) view(name string) (attacked AttackedUser, active ActiveUser) {
	attacked = AttackedUser{User: name, AtLeast: u.more, Logins: u.logins, Last: text.At(u.lastFailed)}
	active = ActiveUser{User: name, Logins: u.logins, Messages: u.messages, Recipients: u.recipients, Last: text.At(u.lastLogin)}
	var own []netip.Prefix
	for p, n := range u.networks {
		if n.logins > 0 {
			active.Failed += int(n.failed)
			own = append(own, p)
		} else {
			attacked.Networks++
		}
	}
	attacked.Failed = u.failed - active.Failed
	active.Networks = len(own)
	slices.SortFunc(own, func(a, b netip.Prefix) int {
		return cmp.Or(u.networks[b].last.Compare(u.networks[a].last), a.Addr().Compare(b.Addr()))
	})
	for _, p := range own[:min(len(own), listedNetworks)] {
		active.From = append(active.From, p.String())
	}
	return attacked, active
}

// networks formats the number of networks and marks a number that is only a
// lower bound.
func (u *AttackedUser) networks() string {
	n := text.Thousands(u.Networks)
	if u.AtLeast {
		n += "+"
	}
	return n
}

// JSON writes the summary as a JSON object.
func (s *UserSummary) JSON(w io.Writer) error { return text.JSON(w, s, "  ") }

// Text writes the summary, with times in zone.
func (s *UserSummary) Text(w io.Writer, zone *time.Location) error {
	l := plainLines(80, zone)
	const layout = "2006-01-02 15:04"
	fmt.Fprintf(l, "Logins, from %s to %s\n", s.Since.In(zone).Format(layout), s.Until.In(zone).Format(layout+" -0700"))
	for _, p := range s.Problems {
		l.para("  ! "+p, 4)
	}
	if len(s.Attacked) == 0 && len(s.Active) == 0 {
		l.WriteString("\nno logins\n")
	}
	writeAttacked(l, s.Attacked, s.More["attacked"])
	if l.section("Logins", len(s.Active)) {
		rows := [][]string{{"  logins", "failed", "messages", "recipients", "last", "user", "from"}}
		for i := range s.Active {
			u := &s.Active[i]
			from := strings.Join(u.From, " ")
			if n := u.Networks - len(u.From); n > 0 {
				from += fmt.Sprintf(" +%d", n)
			}
			rows = append(rows, []string{fmt.Sprintf("  %6d", u.Logins), fmt.Sprintf("%6d", u.Failed), fmt.Sprintf("%8d", u.Messages), fmt.Sprintf("%10d", u.Recipients),
				l.at(u.Last.Time), text.Cut(u.User, maxUserColumn), from})
		}
		text.Table(l, rows)
		l.more(s.More["active"])
	}
	textNotListed(l, s.NotListed)
	_, err := io.WriteString(w, l.String())
	return err
}

// maxUserColumn is the width of the user column.
const maxUserColumn = 32

// attackedText explains the list of attacked users.
const attackedText = "Users with 10 failed logins, or failed logins from 3 networks (/24, IPv6 /48), in networks from which the user has never logged in."

// writeAttacked lists accounts under attack.
func writeAttacked(l *lines, all []AttackedUser, more int) {
	if !l.section("Accounts under attack", len(all)) {
		return
	}
	l.para(attackedText, 0)
	l.row("    failed networks   logins  last         user")
	for i := range all {
		u := &all[i]
		l.row("  %8d %8s %8d  %s  %s", u.Failed, u.networks(), u.Logins, l.at(u.Last.Time), u.User)
	}
	l.more(more)
}
