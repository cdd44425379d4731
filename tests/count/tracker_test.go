//go:build linux

package count

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A session holds what smtpd reports about a session.
type session struct {
	id         uint64
	start, end int64 // microseconds since 1970
	src        netip.Addr
	local      bool
	rdns       string
	counts
	names   []string    // distinct greetings, in order
	users   []string    // distinct users with a failed login
	tries   []int       // failed logins of each user
	domains []recipient // distinct recipient domains
	stopped bool        // the session was open when the filter stopped
	facts
}

// counts holds the counters of one or more sessions.
type counts struct {
	Messages     int
	RcptOK       int `json:"rcpt_ok"`
	RcptPermfail int `json:"rcpt_permfail"`
	RcptTempfail int `json:"rcpt_tempfail"`
	AuthPass     int `json:"auth_pass"`
	AuthFail     int `json:"auth_fail"`
	AuthRefused  int `json:"auth_refused"`
}

func (c *counts) add(n *counts) {
	c.Messages += n.Messages
	c.RcptOK += n.RcptOK
	c.RcptPermfail += n.RcptPermfail
	c.RcptTempfail += n.RcptTempfail
	c.AuthPass += n.AuthPass
	c.AuthFail += n.AuthFail
	c.AuthRefused += n.AuthRefused
}

// A recipient counts a session's recipients in a domain.
type recipient struct {
	domain       string
	ok, permfail int
}

// A tracker reads lines from smtpd.
type tracker struct {
	open map[uint64]*session
	auth map[uint64]bool // sessions whose AUTH outcome is pending
	now  int64
}

func newTracker() *tracker {
	return &tracker{open: map[uint64]*session{}, auth: map[uint64]bool{}}
}

// line reads a line. If the line ends a session, line returns that session.
func (t *tracker) line(l *line) *session {
	t.now = l.at
	if l.ask {
		return nil
	}
	f := strings.Split(l.text, "|")
	id, _ := strconv.ParseUint(f[1], 16, 64)
	if f[0] == "link-connect" {
		s := &session{id: id, start: l.at, local: strings.HasPrefix(f[4], "unix:")}
		if f[2] != "<unknown>" {
			s.rdns = f[2]
		}
		if !s.local {
			s.src = netip.MustParseAddrPort(f[4]).Addr()
		}
		t.open[id] = s
		return nil
	}
	s := t.open[id]
	switch f[0] {
	case "link-disconnect":
		s.end = l.at
		delete(t.open, id)
		delete(t.auth, id)
		return s
	case "link-auth":
		t.auth[id] = false
		s.login(f[2] == "pass", f[3])
	case "tx-commit":
		s.Messages++
	case "tx-rcpt":
		s.rcpt(f[3], f[4])
	case "protocol-client":
		t.auth[id] = strings.HasPrefix(f[2], "AUTH ") || t.auth[id] && f[2] == "********"
		if name, ok := strings.CutPrefix(f[2], "EHLO"); ok {
			s.greets(strings.TrimPrefix(name, " "))
		}
	case "protocol-server":
		if t.auth[id] && f[2][0] > '3' {
			s.AuthRefused++
		}
	}
	return nil
}

func (s *session) greets(name string) {
	if name != "" && !slices.Contains(s.names, name) {
		s.names = append(s.names, name)
	}
}

func (s *session) login(pass bool, user string) {
	if pass {
		s.AuthPass++
		return
	}
	s.AuthFail++
	i := slices.Index(s.users, user)
	if i < 0 {
		i = len(s.users)
		s.users, s.tries = append(s.users, user), append(s.tries, 0)
	}
	s.tries[i]++
}

func (s *session) rcpt(result, to string) {
	_, domain, _ := strings.Cut(to, "@")
	i := slices.IndexFunc(s.domains, func(r recipient) bool { return r.domain == domain })
	if i < 0 {
		i = len(s.domains)
		s.domains = append(s.domains, recipient{domain: domain})
	}
	switch result {
	case "ok":
		s.RcptOK++
		s.domains[i].ok++
	case "permfail":
		s.RcptPermfail++
		s.domains[i].permfail++
	default:
		s.RcptTempfail++
	}
}

// stop ends the sessions that are open when smtpd stops, in the order of their ids.
func (t *tracker) stop() (all []*session) {
	for _, s := range t.open {
		s.end, s.stopped = t.now, true
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *session) int { return int(a.id) - int(b.id) })
	t.kill()
	return all
}

// kill drops the open sessions, because the filter was killed.
func (t *tracker) kill() {
	clear(t.open)
	clear(t.auth)
}
