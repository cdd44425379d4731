//go:build linux

package count

import (
	"net/netip"
	"slices"
	"strings"
)

// totals holds the totals of a report or of one source.
type totals struct {
	Sessions, Found, Refused, Observed int
	counts
}

func (t *totals) add(s *session) {
	t.Sessions++
	t.counts.add(&s.counts)
	t.AuthPass = 0 // not in reports
}

// A sourceCount is a source in a report.
type sourceCount struct {
	Address, RDNS string
	totals
}

// An attempt is a source with rejected recipients.
type attempt struct {
	Address           string
	Sessions, Refused int
	Domains           []string
}

// A network counts the sources and sessions of a network.
type network struct {
	Prefix                     string
	Addresses, Sessions, Found int
}

// A rule counts the sessions with each effect of a rule.
type rule struct {
	Rule                             string
	Enforced, Observed, Bans, Exempt int
}

// A summary holds the counted fields of a report.
type summary struct {
	Remote, Authenticated, Local                  totals
	Addresses, AddressesError, Aggregated         int
	Unwritten, NotKept, TimelineSum, TimelineFind int
	Evidence, Organisations, Helo, NotListed      map[string]int
	Sources, Auth                                 map[string]sourceCount
	Networks                                      map[string]network
	Harvest, Relay                                map[string]attempt
	Rules                                         map[string]rule
}

// A sourceTally counts the items that a report lists for a source.
type sourceTally struct {
	sourceCount
	addrs   map[netip.Addr]bool
	domains map[string]*domainTally
}

// A domainTally counts a source's recipients in a domain.
type domainTally struct{ refused, sessions, most int }

// An expectation counts a period's records.
type expectation struct {
	summary
	sources map[netip.Prefix]*sourceTally
	local   map[string]bool // domains with an accepted recipient
}

// expect returns the expected report on the records.
func expect(records []*record) *summary {
	e := expectation{sources: map[netip.Prefix]*sourceTally{}, local: map[string]bool{}}
	e.Evidence, e.Organisations, e.Helo, e.NotListed = map[string]int{}, map[string]int{}, map[string]int{}, map[string]int{}
	e.Rules = map[string]rule{}
	for _, r := range records {
		if r.sum {
			e.Aggregated += len(r.sessions)
		}
		for _, s := range r.sessions {
			switch {
			case s.local:
				e.Local.add(s)
			case s.AuthPass > 0:
				e.Authenticated.add(s)
			default:
				e.remote(r, s)
			}
		}
	}
	e.TimelineSum, e.TimelineFind = e.Remote.Sessions, e.Remote.Found
	e.list()
	return &e.summary
}

// organisations contains the organisations of the generated scanners and tools.
var organisations = map[string]string{"scanner": "Censys", "botnet-helo": "PushDo / Cutwail"}

// remote adds a session of an unauthenticated client to the expected counts.
func (e *expectation) remote(r *record, s *session) {
	k := source(s.src)
	t := e.sources[k]
	if t == nil {
		t = &sourceTally{addrs: map[netip.Addr]bool{}, domains: map[string]*domainTally{}}
		e.sources[k] = t
	}
	t.addrs[r.src] = true
	if s.rdns != "" {
		t.RDNS = s.rdns
	}
	for _, to := range []*totals{&e.Remote, &t.totals} {
		to.add(s)
		if len(s.evidence) > 0 {
			to.Found++
		}
		switch {
		case s.rejected != "":
			to.Refused++
		case s.watched:
			to.Observed++
		}
	}
	for _, token := range s.evidence {
		e.Evidence[token]++
		if org := organisations[token]; org != "" {
			e.Organisations[org]++
		}
	}
	e.rules(s)
	further := false
	for _, name := range s.names {
		if r.sum && !contains(r.names, clip(name)) {
			further = true
			continue
		}
		e.Helo[clip(name)]++
	}
	if further {
		e.NotListed["HELO names"]++
	}
	for _, d := range s.domains {
		if d.ok > 0 {
			e.local[d.domain] = true
		}
		if d.permfail > 0 {
			if t.domains[d.domain] == nil {
				t.domains[d.domain] = new(domainTally)
			}
			n := t.domains[d.domain]
			n.refused, n.sessions, n.most = n.refused+d.permfail, n.sessions+1, max(n.most, d.permfail)
		}
	}
}

// rules adds the effects of the rules on a session to the expected counts.
func (e *expectation) rules(s *session) {
	count := func(name string, f func(*rule)) {
		r := e.Rules[name]
		r.Rule = name
		f(&r)
		e.Rules[name] = r
	}
	if s.rejected != "" {
		count(s.rejected, func(r *rule) { r.Enforced++ })
	}
	if s.ban != nil {
		count(s.ban.rule, func(r *rule) { r.Bans++ })
	}
	if s.watched {
		count("watched", func(r *rule) { r.Observed++ })
	}
}

// list completes the lists of sources.
func (e *expectation) list() {
	e.Sources, e.Auth, e.Networks = map[string]sourceCount{}, map[string]sourceCount{}, map[string]network{}
	e.Harvest, e.Relay = map[string]attempt{}, map[string]attempt{}
	e.Addresses = len(e.sources)
	for k, t := range e.sources {
		t.Address = k.Addr().String()
		if k.Addr().Is6() {
			t.Address = k.String()
			if len(t.addrs) == 1 && !t.addrs[k.Addr()] {
				for a := range t.addrs {
					t.Address = a.String()
				}
			}
		}
		e.Sources[t.Address] = t.sourceCount
		if t.AuthFail+t.AuthRefused > 0 {
			e.Auth[t.Address] = t.sourceCount
		}
		bits := 24
		if k.Addr().Is6() {
			bits = 48
		}
		p, _ := k.Addr().Prefix(bits)
		n := e.Networks[p.String()]
		n.Prefix, n.Addresses, n.Sessions, n.Found = p.String(), n.Addresses+1, n.Sessions+t.Sessions, n.Found+t.Found
		e.Networks[p.String()] = n
		var harvest, relay attempt
		for domain, d := range t.domains {
			switch {
			case !e.local[domain]:
				relay.add(domain, d)
			case d.most >= 5, d.refused >= 20 && t.Messages == 0:
				harvest.add(domain, d)
			}
		}
		harvest.listed(t, e.Harvest)
		relay.listed(t, e.Relay)
	}
}

func (a *attempt) add(domain string, d *domainTally) {
	a.Refused, a.Sessions, a.Domains = a.Refused+d.refused, a.Sessions+d.sessions, append(a.Domains, domain)
}

// listed adds a source's attempts to a list. A list shows the first three domains.
func (a *attempt) listed(t *sourceTally, list map[string]attempt) {
	if a.Refused == 0 {
		return
	}
	slices.SortFunc(a.Domains, strings.Compare)
	a.Domains = a.Domains[:min(len(a.Domains), 3)]
	a.Address, a.Sessions = t.Address, min(a.Sessions, t.Sessions)
	list[t.Address] = *a
}
