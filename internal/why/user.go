package why

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/prefix"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
)

// maxLoginHosts is the maximum number of counted hosts that have only failed
// logins by the user.
const maxLoginHosts = 10_000

// Logins describes the logins by the user in question. A host with only failed
// logins may be an attacker, and its ban does not affect the user.
type Logins struct {
	Passed int        `json:"passed"`
	Failed int        `json:"failed"`
	Hosts  int        `json:"hosts"`       // hosts with a successful login
	Others int        `json:"other_hosts"` // hosts with only failed logins
	Last   *text.Time `json:"last,omitempty"`
	From   string     `json:"from,omitempty"` // host of the last successful login; empty for an aggregate of many hosts
	// AtLeast is set if maxLoginHosts was exceeded; the numbers are then lower
	// bounds.
	AtLeast bool `json:"at_least,omitempty"`
	// Tried lists up to maxHosts hosts with failed logins. Hosts from which the user has logged in
	// come first, so that banned attackers do not hide them. Banned hosts are next, and all other
	// hosts are last. In each group, the latest failure comes first.
	Tried  []*LoginHost `json:"tried"`
	More   int          `json:"more_tried,omitempty"`
	Limits []string     `json:"limits"` // consequences of failed logins under the current policy

	hosts map[netip.Prefix]*LoginHost
	wrong time.Time // last failed login from a host with a successful login
}

// A LoginHost describes the user's logins from one host.
type LoginHost struct {
	Prefix netip.Prefix `json:"prefix"`
	Passed bool         `json:"passed"` // the user has logged in
	Failed int          `json:"failed"`
	Last   text.Time    `json:"last,omitzero"` // last failed login
	Ban    *Ban         `json:"ban,omitempty"` // active ban
}

// countLogins counts the logins in r that match the question.
func (w *query) countLogins(r *store.Record) {
	l := w.answer.Logins
	if l == nil {
		l = &Logins{Tried: []*LoginHost{}, Limits: []string{}, hosts: map[netip.Prefix]*LoginHost{}}
		w.answer.Logins = l
	}
	host := identity(r)
	_ = r.Steps(func(s *store.Step) bool { // query.session reports corrupt steps
		if s.Kind != store.KindAuth || !w.q.user(s.Text) {
			return true
		}
		n := int(max(s.Count, s.Times, 1))
		ok := s.Result == smtp.ResultPass
		if ok {
			l.Passed += n
			l.Last, l.From = new(text.At(r.End)), ""
			if host.IsValid() {
				l.From = prefix.String(host)
			}
		} else {
			l.Failed += n
		}
		h := l.hosts[host]
		if h == nil && host.IsValid() && (ok || len(l.hosts) < maxLoginHosts) {
			h = &LoginHost{Prefix: host}
			l.hosts[host] = h
		}
		l.AtLeast = l.AtLeast || h == nil
		switch {
		case h == nil:
		case ok:
			h.Passed = true
		default:
			h.Failed += n
			h.Last = text.At(r.End)
			if h.Passed {
				l.wrong = r.End
			}
		}
		return true
	})
}

// unnamedLogins returns the number of logins in an aggregate that have no
// recorded user.
func unnamedLogins(r *store.Record) (n int) {
	_ = r.Steps(func(s *store.Step) bool {
		if s.Kind == store.KindAuth && len(s.Text) == 0 {
			n += int(max(s.Count, s.Times, 1))
		}
		return true
	})
	return n
}

// count fills in the numbers of hosts with and without a successful login.
func (l *Logins) count() {
	for _, h := range l.hosts {
		if h.Passed {
			l.Hosts++
		} else {
			l.Others++
		}
	}
}

// summarizeUser answers a question about a user. A ban counts only if the user has logged in from
// the banned host.
func (a *Answer) summarizeUser(day func(time.Time) string) {
	l := a.Logins
	var own []*Ban
	for _, b := range a.banned() {
		for host, h := range l.hosts {
			if h.Passed && b.Affects(host) {
				own = append(own, b)
				break
			}
		}
	}
	least := ""
	if l.AtLeast {
		least = "at least "
	}
	a.State = fmt.Sprintf("no logins by this user in the records, %s from %s%s", text.Plural(l.Failed, "failed attempt"), least, text.Plural(l.Others, "host"))
	a.Cause, a.Undo = "the server rejected each password", "nothing to undo"
	if l.Passed > 0 {
		a.State = fmt.Sprintf("%s from %s, the last on %s from %s", text.Plural(l.Passed, "login"), text.Plural(l.Hosts, "host"), day(l.Last.Time), cmp.Or(l.From, "one of many hosts"))
		if l.Others > 0 {
			a.State += fmt.Sprintf("; %s%s only failed", least, text.Plural(l.Others, "other host"))
		}
		a.Cause = "no failed logins from hosts from which the user has logged in"
		if !l.wrong.IsZero() {
			a.Cause = "the server rejected a password from such a host, the last on " + day(l.wrong)
		}
	}
	if len(own) > 0 {
		b := own[0]
		a.State = fmt.Sprintf("%s, from which the user logged in, is banned until %s; %s", prefix.String(b.Prefix), day(b.Until), a.State)
		a.Cause, a.Undo = a.banCause(b, day), unban(a.command, b)
	} else if n := l.banned(); n > 0 {
		a.State += fmt.Sprintf("; %s banned now", text.Plural(n, "of these hosts is", "of these hosts are"))
		a.Undo = a.command + " unban ADDRESS, if the user is at one of the banned hosts below"
	}
	if a.observes() {
		a.State = "mode observe, nothing is rejected; " + a.State
	}
}

// banned returns the number of hosts with failed logins that have an enforced ban.
func (l *Logins) banned() (n int) {
	for _, h := range l.hosts {
		if h.Failed > 0 && h.Ban != nil && !h.Ban.Observe {
			n++
		}
	}
	return n
}

// addBan adds a ban to the hosts that it affects.
func (l *Logins) addBan(b *Ban) {
	if l == nil || b.Expired || b.Revoked {
		return
	}
	if h := l.hosts[b.Prefix]; h != nil {
		h.Ban = b
	}
	if !b.Manual {
		return
	}
	for host, h := range l.hosts {
		if h.Ban == nil && b.Affects(host) {
			h.Ban = b
		}
	}
}

// list fills in Tried.
func (l *Logins) list() {
	for _, h := range l.hosts {
		if h.Failed > 0 {
			l.Tried = append(l.Tried, h)
		}
	}
	slices.SortFunc(l.Tried, func(a, b *LoginHost) int {
		return cmp.Or(first(a.Passed, b.Passed), first(a.Ban != nil, b.Ban != nil), b.Last.Compare(a.Last.Time), a.Prefix.Compare(b.Prefix))
	})
	l.More = max(len(l.Tried)-maxHosts, 0)
	l.Tried = l.Tried[:len(l.Tried)-l.More]
}

// first compares two values, true before false.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// limits fills in the current policy's rules on failed logins.
func (w *query) limits(l *Logins) {
	if w.Policy == nil {
		return
	}
	for _, r := range w.Policy.Rules() {
		if r.Has(rules.AuthFailure|rules.AuthSpray) || slices.ContainsFunc(r.Conds, func(c *rules.Cond) bool { return c.Word == "auth-failed" }) {
			line := "A host that " + w.Policy.DescribeRule(r)
			if r.Observe {
				line += " (observed only)"
			}
			l.Limits = append(l.Limits, text.Escape(line))
		}
	}
}

// logins writes the hosts with failed logins and the consequences of failed
// logins.
func (p *printer) logins(a *Answer) {
	l := a.Logins
	if l == nil {
		return
	}
	if len(l.Tried) > 0 {
		fmt.Fprintln(p.w, "Hosts with failed logins by the user")
	}
	for _, h := range l.Tried {
		line := fmt.Sprintf("%s: %s, the last on %s", prefix.String(h.Prefix), text.Plural(h.Failed, "failed login"), p.time(h.Last.Time))
		if h.Passed {
			line += "; the user also logged in from it"
		}
		switch b := h.Ban; {
		case b == nil:
			line += "; not banned"
		case b.Observe || a.observes():
			line += "; banned until " + p.time(b.Until) + ", but not rejected (observed)"
		case a.waits(b):
			line += "; banned until " + p.time(b.Until) + ", but " + memory.NotEnforced
		default:
			line += fmt.Sprintf("; banned until %s by %s: %s", p.time(b.Until), b.cause(), unban(a.command, b))
		}
		p.wrap(4, "  %s", line)
	}
	if l.More > 0 {
		fmt.Fprintf(p.w, "  and %d more\n", l.More)
	}
	if len(l.Tried) > 0 {
		fmt.Fprintln(p.w)
	}
	fmt.Fprintln(p.w, "Consequences of failed logins")
	if len(l.Limits) == 0 {
		p.wrap(2, "  The policy has no rule about failed logins, or the configuration is unknown.\n")
		return
	}
	p.wrap(2, "  smtpd checks passwords, and the filter cannot reject AUTH. The policy bans hosts after a session, and rejects their next connections:")
	for _, line := range l.Limits {
		p.wrap(4, "  - %s", line)
	}
	p.wrap(2, "  A ban affects all users at the same IPv4 address, or in the same IPv6 /64. A host from which any user logged in during the last 30 days is only banned "+
		"by rules about auth-spray. %s unban ADDRESS ends a ban; an address in the table <friends> is never banned.\n", a.command)
}
