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

// Page returns the page of the report. Lists have at most limit entries.
func (a *Report) Page(limit int) (*report.Page, error) {
	s := a.source
	locate, problems := s.places()
	a.counts.Locate(locate)
	p := &report.Page{Summary: a.Summary(limit), Site: a.site}
	if !a.site.Running { // the status of a running filter includes these problems
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
	names, visitor := BanNames(bans)
	all := Source{Dir: s.Dir, Selector: &selector.Selector{Until: s.Selector.Until}, Zone: s.Zone}
	if p.Returns, _, err = all.Returns(visitor); err != nil {
		return nil, err
	}
	for i := range bans {
		b := &bans[i]
		p.Bans.List = append(p.Bans.List, report.ActiveBan{Prefix: prefix.String(b.Prefix), Name: names[b.Prefix], Rule: text.Escape(b.Rule),
			Since: b.Since, Until: b.Until, Times: b.Times, Attempts: b.Attempts, Manual: b.Manual, Observed: b.Observe})
	}
	return p, nil
}

// SortBans sorts bans, the newest first.
func SortBans(list []memory.Ban) {
	slices.SortFunc(list, func(a, b memory.Ban) int {
		return cmp.Or(b.Since.Compare(a.Since), a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
}

// setBanned sets the end of the enforced bans of the sources.
func setBanned(sources []report.Source, bans []memory.Ban) {
	for i := range sources {
		p, _, err := prefix.Parse(sources[i].Address)
		if err != nil {
			continue
		}
		for k := range bans {
			b := &bans[k]
			if !b.Observe && b.Prefix.Bits() <= p.Bits() && b.Prefix.Contains(p.Addr()) && b.Until.After(sources[i].Banned.Time) {
				sources[i].Banned = text.At(b.Until)
			}
		}
	}
}

// BanNames returns a map, and a visitor that fills it with the latest reverse DNS name
// and organisation of each banned host. The names are printable.
func BanNames(list []memory.Ban) (map[netip.Prefix]string, history.Visitor) {
	names := map[netip.Prefix]string{}
	for i := range list {
		names[list[i].Prefix] = ""
	}
	visit := func(rec *store.Record) error {
		if !rec.Src.IsValid() || len(names) == 0 {
			return nil
		}
		addr := rec.Src.Addr().Unmap()
		host := netip.PrefixFrom(addr, addr.BitLen()) // an IPv6 host with a proven name is banned by its address, not by its /64
		if _, banned := names[host]; !banned {
			host = memory.Source(addr)
		}
		if _, banned := names[host]; !banned {
			return nil
		}
		name := text.Escape(rec.RDNS)
		err := rec.Steps(func(s *store.Step) bool {
			if s.Kind == store.KindFinding && len(s.Org) > 0 {
				name = strings.TrimSpace(name + " (" + text.Escape(s.Org) + ")")
				return false
			}
			return true
		})
		if name != "" {
			names[host] = name
		}
		return err
	}
	return names, history.Visitor{Kinds: store.KindsOf(store.KindFinding), Session: visit, Sum: visit}
}

// before returns the figures of the preceding period of the same length. If records of
// that period are missing, it returns the reason why the figures are omitted.
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

// recordedBefore reports whether a session ended before a time.
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

// places returns a function that looks up an address in the databases of the
// configuration, and the problems of the databases. The function is nil if there is no
// database.
func (s *Source) places() (func(netip.Addr) report.Place, []string) {
	var problems []string
	settings := &s.Dir.Settings
	open := func(name string) *lookup.Origins {
		if name == "" {
			return nil
		}
		o := lookup.NewOrigins(config.ResolvePath(s.Config, name))
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

// site describes the filter and its policy. Without a running filter, status is nil.
func (s *Source) site(status *control.Status) (site report.Site) {
	if status == nil && s.Config == "" { // the directory may be from another server
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
	site.Mode, site.Policy = s.Dir.Settings.Mode.String(), text.Escape(s.Config)
	return site
}
