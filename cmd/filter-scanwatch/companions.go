package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/lookup"
	"scanwatch/filter/lookup/feed"
	"scanwatch/filter/memory"
	"scanwatch/rules"
)

// prepareCompanions looks up the users of the companions and creates the directory of
// their socket, if the filter may do so. Neither is possible in the sandbox.
func (p *program) prepareCompanions() {
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
	r, ok := withTimeout(p.log, "preparing the companions", diskTimeout, func() result {
		_ = os.Mkdir(p.runDir, 0o755) // the package creates it, unless it is temporary
		return result{control.NewCompanions(p.set.Companions), runDirProblem(p.runDir)}
	})
	if !ok {
		p.log.Warn("no companions: disk timeout; restart smtpd when the disk answers")
		r.problem = "disk timeout at startup; restart smtpd"
	} else if r.problem != "" {
		p.log.Warn("no companions", "because", r.problem)
	}
	if r.problem != "" { // the status must name them
		p.runDir, p.companions = "", control.DisabledCompanions(p.set.Companions, r.problem)
		return
	}
	p.companions = r.companions
	for _, problem := range p.companions.Problems() {
		p.log.Warn("companion cannot connect", "because", problem)
	}
}

// runDirProblem returns the reason why dir cannot contain the socket of the companions,
// or "". Another user who can create or replace the socket could make the companions
// unban hosts, also in a sticky directory: before the filter starts.
func runDirProblem(dir string) string {
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return fmt.Sprintf("%v; create it, owned by the user of the filter", err)
	case !info.IsDir():
		return dir + " is not a directory"
	case info.Mode()&0o022 != 0:
		return fmt.Sprintf("other users can write to %s; run chmod go-w", dir)
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid != 0 && int(s.Uid) != os.Geteuid() {
		return fmt.Sprintf("%s belongs to another user; run chown", dir)
	}
	return ""
}

// serveCompanions serves the socket of the companions.
func (p *program) serveCompanions(live context.Context) {
	if p.runDir == "" {
		return
	}
	server := control.Server{Log: p.log, Companions: p.companions, Commands: []control.Command{
		control.BansCommand(p.memory.Bans, p.state, p.eventTime, p.sparing, p.policies.enforced),
		p.companions.NoteCommand(),
		control.WatchCommand(&p.watchers),
		control.SparedCommand(p.sparing),
	}}
	server.Run(live, p.runDir, socketCheck)
}

// sparing returns a function that reports whether the hosts in one of the given
// prefixes must not be blocked, as in the exports: friends, addresses of this host, hosts
// that rules must not ban, and hosts with recent mail, which may not be known yet.
func (p *program) sparing(all []netip.Prefix) func(netip.Prefix) bool {
	var own lookup.Prefixes[bool]
	for _, a := range p.ownAddrs {
		own.Add(netip.PrefixFrom(a, a.BitLen()), true)
	}
	policy := p.policies.policy()
	if policy != nil {
		for _, q := range policy.OwnAddresses {
			own.Add(q, true)
		}
	}
	now := p.eventTime()
	standing := p.networksWithStanding(all, now)
	return func(q netip.Prefix) bool {
		if _, ok := own.Overlapping(q); ok || standing[q] || feed.Forbidden(q) != "" {
			return true
		}
		if policy != nil && policy.Friends(q) != rules.No {
			return true
		}
		if q.IsSingleIP() && p.memory.Peers.Recent(q.Addr(), now) {
			return true
		}
		return p.memory.Peers.Excuse(&memory.Client{Addr: q.Addr(), Cut: q.IsSingleIP()}, now) != ""
	}
}

// networksWithStanding returns the networks in all that contain a host with recent mail
// or a recent login.
func (p *program) networksWithStanding(all []netip.Prefix, now int64) map[netip.Prefix]bool {
	standing := map[netip.Prefix]bool{}
	var bits [2][129]bool // lengths of the networks by family
	family := func(a netip.Addr) int { return a.BitLen() / 128 }
	for _, q := range all {
		if !q.IsSingleIP() {
			standing[q], bits[family(q.Addr())][q.Bits()] = false, true
		}
	}
	if len(standing) == 0 {
		return nil
	}
	p.memory.Peers.Each(now, func(peer memory.Peer) {
		a := peer.Prefix.Addr()
		for n, used := range bits[family(a)] {
			if !used || n > peer.Prefix.Bits() {
				continue
			}
			if q, err := a.Prefix(n); err == nil {
				if _, ok := standing[q]; ok {
					standing[q] = true
				}
			}
		}
	})
	return standing
}
