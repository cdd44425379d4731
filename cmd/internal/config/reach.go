package config

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/rules"
)

// A Reach tells which hosts that did good lately a rule turns away for where they
// are: for their address, their network or their country.
type Reach struct {
	Rule     string
	Phase    rules.Phase
	Observed bool // it only would
	Hosts    int
	Mails    int            // that came from them
	Last     time.Time      // the day of the last of them, in UTC
	Logins   int            // hosts from which somebody logged in
	Examples []netip.Prefix // the first few
}

// maxExamples is how many hosts are named.
const maxExamples = 3

func (r *Reach) String() string {
	var good []string
	if !r.Last.IsZero() {
		good = append(good, fmt.Sprintf("delivered %s lately, the last on %s", count(r.Mails, "message"), r.Last.Format(time.DateOnly)))
	}
	if r.Logins > 0 {
		good = append(good, fmt.Sprintf("were used to log in (%d of them)", r.Logins))
	}
	var names []string
	for _, p := range r.Examples {
		names = append(names, p.String())
	}
	if r.Hosts > len(names) {
		names = append(names, "...")
	}
	return fmt.Sprintf("rule %s turns away %s at %s that %s: %s", r.Rule, count(r.Hosts, "host"), r.Phase,
		strings.Join(good, ", and "), strings.Join(names, " "))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Reach finds the rules of c that turn away peers which before, if it is not
// nil, lets in. Only where a host is counts; of everything else the best is
// assumed.
func (c *Config) Reach(peers iter.Seq[memory.Peer], before *Config) []Reach {
	type key struct {
		rule     *rules.Rule
		observed bool
	}
	found := map[key]*Reach{}
	for p := range peers {
		rule, phase, observed := c.turnsAway(&p, before)
		if rule == nil {
			continue
		}
		k := key{rule, observed}
		r := found[k]
		if r == nil {
			r = &Reach{Rule: rule.Name, Phase: phase, Observed: observed}
			found[k] = r
		}
		r.Hosts++
		if !p.LastMail.IsZero() {
			r.Mails += p.Mails
			if p.LastMail.After(r.Last) {
				r.Last = p.LastMail
			}
		}
		if !p.LastLogin.IsZero() {
			r.Logins++
		}
		r.Examples = append(r.Examples, p.Prefix)
		slices.SortFunc(r.Examples, netip.Prefix.Compare)
		r.Examples = r.Examples[:min(len(r.Examples), maxExamples)]
	}
	var all []Reach
	for _, r := range found {
		all = append(all, *r)
	}
	slices.SortFunc(all, func(a, b Reach) int { return cmp.Or(cmp.Compare(b.Hosts, a.Hosts), strings.Compare(a.Rule, b.Rule)) })
	return all
}

// maxNarrower is how many networks within a host's /64 are looked at.
const maxNarrower = 64

// turnsAway finds a rule that refuses or bans a host for where it is, although before
// lets it in. Of an IPv6 host only the /64 is known: a rule that hits one address of it
// may hit the host.
func (c *Config) turnsAway(p *memory.Peer, before *Config) (rule *rules.Rule, phase rules.Phase, observed bool) {
	from := []netip.Prefix{p.Prefix}
	if !p.Prefix.IsSingleIP() {
		from = append(from, c.Policy.Narrower(p.Prefix, maxNarrower)...)
	}
	for _, q := range from {
		r, at, only := c.turnsAwayFrom(q.Addr(), p)
		if r == nil || rule != nil && only {
			continue
		}
		if before != nil && before.Policy != nil {
			if old, _, onlyOld := before.turnsAwayFrom(q.Addr(), p); old != nil && (!onlyOld || only) {
				continue
			}
		}
		if rule, phase, observed = r, at, only; !only {
			break
		}
	}
	return rule, phase, observed
}

// turnsAwayFrom finds the rule that does so with the address src.
func (c *Config) turnsAwayFrom(src netip.Addr, p *memory.Peer) (rule *rules.Rule, phase rules.Phase, observed bool) {
	f := rules.Facts{Src: src, FCrDNS: rules.FCrDNS(1), RDNS: []byte("unknown.invalid"), RDNSCut: true, Helo: []byte("unknown.invalid")}
	if !p.LastMail.IsZero() {
		f.SeenGood = rules.Yes
	}
	if c.ASN != nil {
		o, ok := c.ASN.Lookup(f.Src)
		f.ASN, f.ASNKnown, f.Country = o.ASN, ok, o.Country
	}
	if c.Country != nil {
		if o, ok := c.Country.Lookup(f.Src); ok {
			f.Country = o.Country
		}
	}
	for _, phase := range []rules.Phase{rules.Connect, rules.Helo, rules.MailFrom, rules.RcptTo} {
		f.Phase = phase
		v := c.Policy.Eval(&f)
		if v.Pass != nil {
			return nil, 0, false
		}
		for _, o := range []struct {
			*rules.Outcome
			observed bool
		}{{&v.Act, false}, {&v.Would, true}} {
			if o.Rule != nil && o.Decision >= rules.Reject && byPlace(o.Rule) {
				return o.Rule, phase, o.observed
			}
			if o.BanRule != nil && byPlace(o.BanRule) {
				return o.BanRule, phase, o.observed
			}
		}
	}
	return nil, 0, false
}

// byPlace tells whether a rule looks at where a host is.
func byPlace(r *rules.Rule) bool {
	return slices.ContainsFunc(r.Conds, func(c *rules.Cond) bool {
		return c.Word == "src" || c.Word == "asn" || c.Word == "country"
	})
}
