package reports

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/selector"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/internal/prefix"
	"scanwatch/internal/text"
	"scanwatch/store"
	"scanwatch/store/history"
	"scanwatch/store/report"
)

// Page returns the HTML page for the report. Lists have at most limit entries.
func (a *Report) Page(limit int) (*report.Page, error) {
	s := a.source
	locate, problems := s.places()
	a.counts.Locate(locate)
	p := &report.Page{Summary: a.Summary(limit), Site: a.site}
	if !a.site.Running { // if a filter is running, its status includes these problems
		p.Problems = append(p.Problems, problems...)
	}
	p.Site.Made = s.Dir.Now()
	bans, err := s.Dir.Bans(func(b *memory.Ban) bool { return !b.Expired(p.Site.Made) })
	if err != nil {
		p.Bans.Problem = text.Escape(err.Error())
	}
	SortBans(bans)
	p.Bans.More = max(len(bans)-limit, 0)
	bans = bans[:min(len(bans), limit)]
	if p.Before, err = a.before(); err != nil {
		return nil, err
	}
	hosts, visitor := BanHosts(bans, organisation(locate))
	all := Source{Dir: s.Dir, Selector: &selector.Selector{Until: s.Selector.Until}, Zone: s.Zone}
	if p.Returns, _, err = all.Returns(visitor); err != nil {
		return nil, err
	}
	for i := range bans {
		b := &bans[i]
		p.Bans.List = append(p.Bans.List, report.ActiveBan{Prefix: prefix.String(b.Prefix), Name: hosts[b.Prefix].String(), Rule: text.Escape(b.Rule), On: text.Escape(b.On()),
			Since: b.Since, Until: b.Until, Times: b.Times, Attempts: b.Attempts, Manual: b.Manual, Observed: b.Observe})
	}
	return p, nil
}

// organisation returns a function that looks up the organisation of an address, or nil if
// locate is nil.
func organisation(locate func(netip.Addr) report.Place) func(netip.Addr) string {
	if locate == nil {
		return nil
	}
	return func(a netip.Addr) string { return locate(a).Org }
}

// SortBans sorts bans, newest first. Among bans that started at the same time, this host's
// bans come first.
func SortBans(list []memory.Ban) {
	slices.SortFunc(list, func(a, b memory.Ban) int {
		return cmp.Or(b.Since.Compare(a.Since), a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), cmp.Compare(a.Origin, b.Origin))
	})
}

// setBanned sets the end of the enforced ban in each banned source.
func setBanned(sources []report.Source, bans []memory.Ban) {
	for i := range sources {
		p, _, err := prefix.Parse(sources[i].Address)
		if err != nil {
			continue
		}
		for k := range bans {
			b := &bans[k]
			other := sources[i].Named && !b.Affects(p) // a /64's ban does not apply to a host that has a name
			if !b.Observe && !other && b.Prefix.Bits() <= p.Bits() && b.Prefix.Contains(p.Addr()) && b.Until.After(sources[i].Banned.Time) {
				sources[i].Banned = text.At(b.Until)
			}
		}
	}
}

// A BanHost identifies a banned host. All its text is printable.
type BanHost struct {
	Name string // latest reverse DNS name; empty if there is none, or if hosts in a /64 have different names
	Org  string // organisation; empty if unknown

	addr    netip.Addr // address in the latest session
	several bool       // different names were found
}

// String returns the name and organisation, or "".
func (h *BanHost) String() string {
	if h.Org == "" {
		return h.Name
	}
	return strings.TrimSpace(h.Name + " (" + h.Org + ")")
}

// BanHosts returns a map from banned hosts to their names and organisations, and the visitor that
// fills the map. If a host's findings name no organisation, org returns it. org may be nil.
func BanHosts(list []memory.Ban, org func(netip.Addr) string) (map[netip.Prefix]*BanHost, history.Visitor) {
	hosts := map[netip.Prefix]*BanHost{}
	for i := range list {
		h := &BanHost{}
		if p := list[i].Prefix; org != nil {
			h.Org = text.Escape(org(p.Addr()))
		}
		hosts[list[i].Prefix] = h
	}
	visit := func(rec *store.Record) error {
		if !rec.Src.IsValid() || len(hosts) == 0 {
			return nil
		}
		addr := rec.Src.Addr().Unmap()
		h := hosts[memory.Identify(addr, rec.RDNS, rec.FCrDNS).Prefix()] // a host that is identified by its own name is not part of its /64's ban
		if h == nil {
			return nil
		}
		name := text.Escape(rec.RDNS)
		h.several = h.several || h.addr.IsValid() && h.addr != addr && h.Name != name
		if h.addr = addr; name != "" {
			h.Name = name
		}
		if h.several {
			h.Name = ""
		}
		return rec.Steps(func(s *store.Step) bool {
			if s.Kind == store.KindFinding && len(s.Org) > 0 {
				h.Org = text.Escape(s.Org)
				return false
			}
			return true
		})
	}
	return hosts, history.Visitor{Kinds: store.KindsOf(store.KindFinding), Session: visit, Sum: visit}
}

// before returns the figures for the preceding period of the same length. If records of that period
// are missing, it returns the reason instead of the figures.
func (a *Report) before() (b report.Before, err error) {
	s := a.source
	since := s.Selector.Since
	if since.IsZero() {
		return b, nil
	}
	b.Since, b.Until = since.Add(since.Sub(a.until)), since
	selected := *s.Selector
	selected.Since, selected.Until = b.Since, b.Until
	earlier := Source{Dir: s.Dir, Selector: &selected, Zone: s.Zone}
	recorded, err := earlier.recordedBefore(b.Since)
	if err != nil {
		return b, err
	}
	if !recorded {
		b.Missing = "the records do not reach back to " + b.Since.In(s.Zone).Format("2006-01-02 15:04")
		return b, nil
	}
	r, err := earlier.Read(true)
	if err != nil {
		return b, err
	}
	summary := r.Summary(1)
	b.Figures = report.FiguresOf(summary)
	if r.damaged || r.Incomplete != nil || summary.NotKept.Sessions > 0 {
		b.Missing = "some records of that period are missing"
	}
	return b, nil
}

// recordedBefore reports whether any recorded session ended before the given time.
func (s *Source) recordedBefore(at time.Time) (yes bool, err error) {
	r, err := s.Dir.Open()
	if err != nil {
		return false, err
	}
	defer r.Close()
	stop := func(*store.Record) error { yes = true; return history.ErrStop }
	err = history.Walk(r, time.Time{}, at, history.Visitor{Session: stop, Sum: stop})
	return yes, err
}

// places returns a function that looks up an address in the configured databases, or nil
// if there are none. It also returns the databases' problems.
func (s *Source) places() (func(netip.Addr) report.Place, []string) {
	var problems []string
	settings := &s.Dir.Settings
	open := func(name string) *lookup.Origins {
		if name == "" {
			return nil
		}
		o := lookup.NewOrigins(config.ResolvePath(s.Dir.Config, name))
		if _, err := o.Refresh(); err != nil {
			problems = append(problems, text.Escape(err.Error()))
			return nil
		}
		return o
	}
	as := open(settings.ASN)
	country := as
	if settings.Country != settings.ASN {
		country = open(settings.Country)
	}
	if as == nil && country == nil {
		return nil, problems
	}
	return func(a netip.Addr) (p report.Place) {
		if as != nil {
			if o, ok := as.Lookup(a); ok && o.ASN != 0 {
				p.AS, p.Org = fmt.Sprintf("AS%d", o.ASN), o.Org
			}
		}
		if country != nil {
			if o, ok := country.Lookup(a); ok {
				p.Country = o.Country
			}
		}
		return p
	}, problems
}

// site describes the filter and its policy. status is nil if no filter is running.
func (s *Source) site(status *control.Status) (site report.Site) {
	mode := s.Dir.Mode()
	if status == nil && mode.Word == "" { // the directory may have been copied from another server
		return site
	}
	site.Server = text.Escape(s.Host)
	if own := s.Dir.Settings.OwnNames; len(own) > 0 {
		site.Server = text.Escape(own[0])
	}
	if status != nil {
		c := &status.Config
		return report.Site{Server: site.Server, Mode: c.Mode, Policy: text.Escape(c.File), Rules: c.Rules, Running: true, Halted: c.Halted != nil}
	}
	site.Mode, site.Halted, site.Policy = mode.Word, mode.Halted, text.Escape(s.Dir.Config)
	return site
}
