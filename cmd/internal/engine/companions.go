package engine

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/fleetkey"
	"scanwatch/filter/dnslist"
	"scanwatch/filter/events"
	"scanwatch/filter/memory"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

// prepareCompanions looks up the companions' users, and tries to create the directory for the
// companions' socket. Neither is possible inside the sandbox.
func (p *Engine) prepareCompanions() {
	if len(p.set.Companions) == 0 {
		return
	}
	p.runDir = p.set.RunDir
	if p.runDir == "" {
		p.runDir = control.DefaultRunDir()
	}
	type result struct {
		companions *control.Companions
		problem    string
	}
	r, ok := withTimeout(p.Log, "preparing the companions", diskTimeout, func() result {
		// The package creates the directory, but if it is on a temporary file system, it is lost
		// at each boot.
		if os.Mkdir(p.runDir, 0o755) == nil {
			_ = os.Chmod(p.runDir, 0o755) // regardless of the umask
		}
		return result{control.NewCompanions(p.set.Companions), control.RunDirProblem(p.runDir, p.dir, os.Geteuid())}
	})
	if !ok {
		p.Log.Warn("no companions: disk timeout; restart smtpd when the disk answers")
		r.problem = "disk timeout at startup; restart smtpd"
	} else if r.problem != "" {
		p.Log.Warn("no companions", "because", r.problem)
	}
	if r.problem != "" { // the status must show the companions and the problem
		p.runDir, p.companions = "", control.DisabledCompanions(p.set.Companions, r.problem)
		return
	}
	p.companions = r.companions
	for _, problem := range p.companions.Problems() {
		p.Log.Warn("companion cannot connect", "because", problem)
	}
}

// joinFleet reads the fleet's key, with which all hosts of the fleet hash names.
func (p *Engine) joinFleet() {
	p.sharing = &control.Sharing{Memory: p.memory, Now: p.eventTime, Log: p.Log}
	p.sharing.Companion = slices.ContainsFunc(p.set.Companions, func(c *rules.Companion) bool { return c.Role == rules.RoleShare })
	if !p.sharing.Companion { // imported files contain both the bans and the standing of other hosts
		p.memory.Bans.HaveStanding()
	}
	if p.set.Fleet == nil {
		p.sharing.Problem = "the filter was started without the statement fleet; restart smtpd"
		return
	}
	type result struct {
		key fleetkey.Key
		err error
	}
	r, ok := withTimeout(p.Log, "reading the fleet key", diskTimeout, func() result {
		key, err := fleetkey.Read(p.set.Fleet.Key)
		return result{key, err}
	})
	switch {
	case !ok:
		p.sharing.Problem = "disk timeout at startup; restart smtpd"
	case r.err != nil:
		p.sharing.Problem = fmt.Sprintf("fleet key: %v; restart smtpd when the filter's user can read the file", r.err)
	default:
		p.memory.UseKey(r.key.State())
		p.memory.UseName(p.set.Fleet.Name)
		p.sharing.Fingerprint = r.key.Fingerprint()
		p.sharing.Name, p.sharing.Settings = p.set.Fleet.Name, p.set.Fleet.String()
		return
	}
	p.sharing.Problem = control.Restart(p.sharing.Problem, p.program.Server)
	p.Log.Warn("not in the fleet", "because", p.sharing.Problem)
}

// serveCompanions serves the companions' socket.
func (p *Engine) serveCompanions(live context.Context) {
	if p.runDir == "" {
		return
	}
	server := control.Server{Log: p.Log, Companions: p.companions, Program: p.program.Server, Commands: []control.Command{
		control.BansCommand(p.memory.Bans, p.state, p.eventTime, p.sparing, p.policies.enforced),
		p.companions.NoteCommand(),
		control.WatchCommand(&p.watchers),
		control.SparedCommand(p.sparedHost, p.policies.enforced),
	}}
	server.Commands = append(server.Commands, control.LookupCommands(p.lookups)...)
	server.Commands = append(server.Commands, p.sharing.Commands()...)
	server.Run(live, p.runDir, socketCheck)
}

// sparing returns a function that reports whether the hosts in one of the given prefixes must not
// be blocked. Exports omit the same hosts: exempt hosts, hosts that rules must not ban, and hosts
// with recent mail, even before they become known.
func (p *Engine) sparing(all []netip.Prefix) func(netip.Prefix) bool {
	exempt := config.NewExempt(p.policies.policy(), p.ownAddrs)
	now := p.eventTime()
	standing := p.networksWithStanding(all, now)
	return func(q netip.Prefix) bool {
		if standing[q] || exempt.Reason(q, false) != "" {
			return true
		}
		if q.IsSingleIP() && p.memory.Peers.Recent(q.Addr(), now) {
			return true
		}
		return p.memory.Peers.Excuse(&memory.Client{Addr: q.Addr(), Cut: q.IsSingleIP()}, now) != ""
	}
}

// sparedHost reports whether a host must not be reported to others. This applies to hosts that
// sparing exempts, hosts whose proven name has standing, and hosts that match a pass statement.
func (p *Engine) sparedHost(h control.Names) bool {
	addr := h.Addr.Unmap()
	q := netip.PrefixFrom(addr, addr.BitLen())
	if p.sparing([]netip.Prefix{q})(q) {
		return true
	}
	now := p.eventTime()
	f := rules.Facts{Phase: smtp.PhaseHelo, Now: time.UnixMicro(now), Src: addr, Helo: []byte(h.Helo)}
	if h.RDNS != "" {
		f.RDNS, f.FCrDNS = []byte(h.RDNS), smtp.FCrDNSPass
		if p.memory.Peers.Excuse(&memory.Client{Addr: addr, Domain: memory.RegisteredDomain(f.RDNS)}, now) != "" {
			return true
		}
	}
	for _, a := range p.lookups.Answers(addr, nil) {
		if ev := a.Event(&smtp.Event{}); a.State == dnslist.Listed || a.State == dnslist.Absent {
			f.Listings = append(f.Listings, smtp.Listing{Name: a.List.Name, Listed: ev.Result != smtp.ResultOK, Codes: string(ev.Text)})
		}
	}
	policy := p.policies.policy()
	return policy != nil && policy.Passes(&f)
}

// withdraw ends the bans that are based on listings that a list has withdrawn. A ban that was
// imposed more than dnslist.MaxTTL ago is kept, because it is based on an earlier answer from the
// list.
func (p *Engine) withdraw(list *rules.Lookup, listed []netip.Addr) {
	now, policy := p.eventTime(), p.policies.policy()
	if policy == nil {
		return
	}
	current := policy.Rules()
	refuted := func(b memory.Ban) bool {
		i := slices.IndexFunc(current, func(r *rules.Rule) bool { return r.Name == b.Rule })
		return b.Since.UnixMicro() > now-dnslist.MaxTTL.Microseconds() && (i < 0 || policy.RestsOn(current[i], list.Name))
	}
	bans := 0
	for _, a := range listed {
		for _, b := range p.memory.Bans.RevokeListed(a, refuted, now) {
			bans++
			p.watchers.Send(&events.Event{Event: "unban", By: "dns", Time: time.UnixMicro(now), Prefix: b.Prefix.String(), Until: b.Until, Reason: list.Name})
		}
	}
	p.Log.Warn("listings withdrawn", "lookup", list.Name, "listings", len(listed), "unbanned", bans)
}

// withholdInterval is the interval between checks of other hosts' bans that are in
// firewalls.
const withholdInterval = 10 * time.Second

// withholdExempt removes other hosts' bans from firewalls and exports once the banned
// hosts have become exempt.
func withholdExempt(live context.Context, p *Engine) {
	tick := time.NewTicker(withholdInterval)
	defer tick.Stop()
	for {
		select {
		case <-live.Done():
			return
		case <-tick.C:
		}
		withhold(p)
	}
}

func withhold(p *Engine) {
	var all []netip.Prefix
	now := time.UnixMicro(p.eventTime())
	p.memory.Bans.Each(func(b memory.Ban) {
		if b.Origin != "" && b.Firewall.After(now) {
			all = append(all, b.Prefix)
		}
	})
	if len(all) == 0 {
		return
	}
	spared := p.sparing(all)
	for _, q := range all {
		if spared(q) {
			p.memory.Bans.Withhold(q)
		}
	}
}

// networksWithStanding maps each given network to true if a host in it is protected by a recent
// login, by recent mail, or by its standing on another host.
func (p *Engine) networksWithStanding(all []netip.Prefix, now int64) map[netip.Prefix]bool {
	standing := map[netip.Prefix]bool{}
	var bits [2][129]bool // prefix lengths in use, by address family
	family := func(a netip.Addr) int { return a.BitLen() / 128 }
	for _, q := range all {
		if !q.IsSingleIP() {
			standing[q], bits[family(q.Addr())][q.Bits()] = false, true
		}
	}
	if len(standing) == 0 {
		return nil
	}
	add := func(host netip.Prefix) {
		a := host.Addr()
		for n, used := range bits[family(a)] {
			if !used || n > host.Bits() {
				continue
			}
			if q, err := a.Prefix(n); err == nil {
				if _, ok := standing[q]; ok {
					standing[q] = true
				}
			}
		}
	}
	p.memory.Peers.Each(now, func(peer memory.Peer) { add(peer.Prefix) })
	p.memory.Peers.Elsewhere(now, add)
	return standing
}
