package why

import (
	"fmt"
	"net/netip"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/prefix"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/store"
)

// maxLoginHosts is the maximum number of hosts that are counted for a user.
const maxLoginHosts = 10_000

// Logins describes the logins of the user that the question is about. Hosts from which
// all logins failed may be attackers, and their bans do not affect the user.
type Logins struct {
	Passed int        `json:"passed"`
	Failed int        `json:"failed"`
	Hosts  int        `json:"hosts"`       // number of hosts with a successful login
	Others int        `json:"other_hosts"` // number of hosts from which all logins failed
	Last   *text.Time `json:"last,omitempty"`
	From   string     `json:"from,omitempty"` // host of the last successful login

	hosts map[netip.Prefix]bool // reports for each host whether a login succeeded
	wrong time.Time             // time of the last failed login from a host with a successful login
}

// countLogins adds the logins in r that match the question.
func (w *query) countLogins(r *store.Record) {
	l := w.answer.Logins
	if l == nil {
		l = &Logins{hosts: map[netip.Prefix]bool{}}
		w.answer.Logins = l
	}
	var host netip.Prefix
	if r.Src.IsValid() {
		host = memory.Source(r.Src.Addr())
	}
	_ = r.Steps(func(s *store.Step) bool { // damage is reported in the description of the session
		if s.Kind != store.KindAuth || !w.q.user(s.Text) {
			return true
		}
		n := int(max(s.Count, s.Times, 1))
		ok := s.Result == smtp.ResultPass
		if ok {
			l.Passed += n
			l.Last, l.From = new(text.At(r.End)), prefix.String(host)
		} else {
			l.Failed += n
		}
		if before, seen := l.hosts[host]; host.IsValid() && (seen || ok || len(l.hosts) < maxLoginHosts) {
			l.hosts[host] = before || ok
		}
		if !ok && l.hosts[host] {
			l.wrong = r.End
		}
		return true
	})
}

// count sets the numbers of hosts.
func (l *Logins) count() {
	for _, ok := range l.hosts {
		if ok {
			l.Hosts++
		} else {
			l.Others++
		}
	}
}

// summarizeUser answers a question about a user. Only bans of hosts from which the user
// logged in matter.
func (a *Answer) summarizeUser(day func(time.Time) string) {
	l := a.Logins
	var own []*Ban
	for _, b := range a.banned() {
		for host, ok := range l.hosts {
			if ok && b.Prefix.Overlaps(host) {
				own = append(own, b)
				break
			}
		}
	}
	a.State = fmt.Sprintf("no login of this user in the records, %s from %s", text.Plural(l.Failed, "failed attempt"), text.Plural(l.Others, "host"))
	a.Cause, a.Undo = "the server rejected each password", "nothing to undo"
	if l.Passed > 0 {
		a.State = fmt.Sprintf("%s from %s, the last on %s from %s", text.Plural(l.Passed, "login"), text.Plural(l.Hosts, "host"), day(l.Last.Time), l.From)
		if l.Others > 0 {
			a.State += fmt.Sprintf("; %s only failed", text.Plural(l.Others, "other host"))
		}
		a.Cause = "no failed login from these hosts"
		if !l.wrong.IsZero() {
			a.Cause = "the server rejected a password from such a host, the last on " + day(l.wrong)
		}
	}
	if len(own) > 0 {
		b := own[0]
		a.State = fmt.Sprintf("%s, from which the user logged in, is banned until %s; %s", prefix.String(b.Prefix), day(b.Until), a.State)
		a.Cause, a.Undo = b.cause(), "scanwatch unban "+prefix.String(b.Prefix)
	}
}
