package report

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"scanwatch/store"
)

// What strangers can make a Collector remember. Beyond that they are counted in
// the totals, and in Summary.NotListed, but not one by one.
const (
	maxSources = 200_000
	maxNames   = 100_000 // HELO names; domains of recipients; organisations
	maxTried   = 200_000 // pairs of a source and a domain
	maxTokens  = 1_000
	maxRules   = 4_000
	maxDays    = 4_000

	// harvestFrom is the number of unknown recipients in one session, in one
	// domain of ours, from which it is called a harvest and not a mistake.
	harvestFrom = 5
)

// A Collector counts sessions, in bounded memory.
type Collector struct {
	sessions int                // all records that were added, to mark what was seen in this one
	summed   int                // sessions that were recorded in sums
	days     map[int64]DayCount // by their beginning

	remote, authenticated, local Totals

	sources  map[netip.Addr]*source
	evidence names
	orgs     names
	helo     names
	domains  names
	tried    map[try]*tried
	rules    map[string]*rule
	refused  refusals // of the record that is being added
	doubts   map[doubtKey]*doubt
	quarters map[int64]*Span // by quarters of an hour since 1970
	missed   map[string]int  // sessions that did not fit, by what was full
}

type source struct {
	helo       *name // the last one: the next is nearly always the same, and need not be looked up
	rdnsIsName bool
	sure       bool // there was evidence of high confidence of what it is
	Source
}

type rule struct {
	Rule
	last [4]int // the session in which each number was counted last
}

// names counts in how many sessions a name occurs.
type names struct {
	limit int
	all   map[string]*name
}

type name struct {
	name     string
	sessions int
	last     int // the session that was counted last
	accepted int // domain: recipients accepted from hosts we do not know
	evidence string
}

type try struct {
	src    netip.Addr
	domain *name
}

type tried struct {
	refused, sessions int
	last, now, most   int // the session counted last, recipients in it, and in the worst one
}

// NewCollector returns an empty Collector.
func NewCollector() *Collector {
	return &Collector{
		sources:  map[netip.Addr]*source{},
		evidence: names{maxTokens, map[string]*name{}},
		orgs:     names{maxNames, map[string]*name{}},
		helo:     names{maxNames, map[string]*name{}},
		domains:  names{maxNames, map[string]*name{}},
		tried:    map[try]*tried{},
		rules:    map[string]*rule{},
		doubts:   map[doubtKey]*doubt{},
		quarters: map[int64]*Span{},
		days:     map[int64]DayCount{},
		missed:   map[string]int{},
	}
}

// find returns the entry of a name, which need not be printable, or nil if there
// is no place for it. A long name is cut.
func (n *names) find(text []byte) *name {
	text = text[:min(len(text), 255)]
	if e := n.all[string(text)]; e != nil {
		return e
	}
	if len(n.all) >= n.limit {
		return nil
	}
	e := &name{name: string(text)}
	n.all[e.name] = e
	return e
}

// count counts a name once a session.
func (c *Collector) count(n *names, what string, text []byte, times int) *name {
	e := n.find(text)
	c.countName(e, what, times)
	return e
}

func (c *Collector) countName(e *name, what string, times int) {
	if e == nil {
		c.missed[what]++
	} else if e.last != c.sessions {
		e.last = c.sessions
		e.sessions += times
	}
}

// Add counts a session. Nothing refers to r afterwards.
func (c *Collector) Add(r *store.Record) error {
	c.sessions++
	if r.Sessions > 0 {
		c.summed += r.Many()
	}
	at := r.End.Unix()
	at -= at % (24 * 3600)
	if day, ok := c.days[at]; ok || len(c.days) < maxDays {
		day.Sessions += r.Many()
		day.Mails += int(r.Counts.Mails)
		c.days[at] = day
	}
	switch {
	case r.Local:
		c.local.add(r)
		return nil
	case r.Counts.AuthPass > 0:
		c.authenticated.add(r)
		c.refused = refusals{}
		err := r.Steps(func(s *store.Step) bool { c.refused.add(s); return true })
		c.doubt(r)
		return err
	}
	c.remote.add(r)
	addr := r.Src.Addr()
	src := c.source(r, addr)
	found := false
	c.refused = refusals{}
	var span Span
	byFilter := false // the recipient that comes next was refused by a filter, and says nothing
	err := r.Steps(func(s *store.Step) bool {
		c.refused.add(s)
		times := max(int(s.Times), 1)
		switch s.Kind {
		case store.KindFilter:
			byFilter = string(s.Arg) == "rcpt-to" && (string(s.Text) == "reject" || string(s.Text) == "disconnect")
		case store.KindVerdict:
			c.rule(s, Rule{Done: times}, Rule{Observed: times})
		case store.KindBan:
			c.rule(s, Rule{Bans: 1}, Rule{Spared: 1})
		case store.KindHelo:
			c.countName(c.heloOf(src, s.Text), "HELO names", 1)
		case store.KindRcpt:
			if !byFilter {
				c.rcpt(addr, s)
			}
			byFilter = false
		case store.KindFinding:
			found = true
			c.count(&c.evidence, "kinds of evidence", s.Text, times)
			if len(s.Org) > 0 {
				if o := c.count(&c.orgs, "organisations", s.Org, times); o != nil && o.evidence == "" {
					o.evidence = string(s.Text)
				}
			}
		}
		return true
	})
	if src != nil {
		src.sure = src.sure || c.refused.sure
	}
	if found {
		n := max(int(r.Found), 1)
		c.remote.Found += n
		if src != nil {
			src.Found += n
		}
		span.Found = n
	}
	span.Sessions, span.Refused = r.Many(), c.refused.done(r.Many())
	c.remote.Refused += span.Refused
	c.doubt(r)
	c.span(r.End, span)
	return err
}

// rule counts what a rule did: done if it was carried out, else other.
func (c *Collector) rule(s *store.Step, done, other Rule) {
	e := c.rules[string(s.Text)]
	if e == nil {
		if len(c.rules) >= maxRules {
			c.missed["rules"]++
			return
		}
		e = &rule{Rule: Rule{Rule: Printable(s.Text)}}
		c.rules[string(s.Text)] = e
	}
	add := other
	if s.Result == store.ResultOK {
		add = done
	}
	for i, n := range [...]struct{ to, from *int }{{&e.Done, &add.Done}, {&e.Observed, &add.Observed}, {&e.Bans, &add.Bans}, {&e.Spared, &add.Spared}} {
		if *n.from > 0 && e.last[i] != c.sessions {
			e.last[i] = c.sessions
			*n.to += *n.from
		}
	}
}

func (c *Collector) source(r *store.Record, addr netip.Addr) *source {
	src := c.sources[addr]
	if src == nil {
		if len(c.sources) >= maxSources {
			c.missed["addresses"]++
			return nil
		}
		src = &source{}
		c.sources[addr] = src
	}
	if !src.rdnsIsName && len(r.RDNS) > 0 {
		src.RDNS, src.rdnsIsName = Printable(r.RDNS), true
	}
	src.add(r)
	return src
}

func (c *Collector) heloOf(src *source, text []byte) *name {
	if src == nil {
		return c.helo.find(text)
	}
	if src.helo == nil || src.helo.name != string(text) {
		src.helo = c.helo.find(text)
	}
	return src.helo
}

// rcpt notes a recipient that was accepted or refused for good.
func (c *Collector) rcpt(addr netip.Addr, s *store.Step) {
	if s.Result != store.ResultOK && s.Result != store.ResultPermfail {
		return
	}
	domain := s.Text[bytes.LastIndexByte(s.Text, '@')+1:]
	if len(domain) == len(s.Text) {
		domain = nil // without a domain it is for us
	}
	var lower [255]byte
	d := c.domains.find(appendLower(lower[:0], domain))
	if d == nil {
		c.missed["domains of recipients"]++
		return
	}
	if s.Result == store.ResultOK {
		d.accepted++
		return
	}
	key := try{addr, d}
	t := c.tried[key]
	if t == nil {
		if len(c.tried) >= maxTried {
			c.missed["attempts"]++
			return
		}
		t = &tried{}
		c.tried[key] = t
	}
	if t.last != c.sessions {
		t.last, t.now = c.sessions, 0
		t.sessions++
	}
	t.refused++
	t.now++
	t.most = max(t.most, t.now)
}

func appendLower(dst, text []byte) []byte {
	for _, b := range text[:min(len(text), 255)] {
		if 'A' <= b && b <= 'Z' {
			b += 'a' - 'A'
		}
		dst = append(dst, b)
	}
	return dst
}

// Totals are the sums of a class of sessions.
type Totals struct {
	Sessions     int `json:"sessions"`
	Found        int `json:"found,omitempty"`   // sessions with a finding
	Refused      int `json:"refused,omitempty"` // sessions that a rule or a ban turned away
	Mails        int `json:"mails"`
	RcptOK       int `json:"rcpt_ok"`
	RcptPermfail int `json:"rcpt_permfail"`
	RcptTempfail int `json:"rcpt_tempfail"`
	AuthFail     int `json:"auth_fail"`
	AuthRefused  int `json:"auth_refused"`
}

func (t *Totals) add(r *store.Record) {
	c := &r.Counts
	t.Sessions += r.Many()
	t.Mails += int(c.Mails)
	t.RcptOK += int(c.RcptOK)
	t.RcptPermfail += int(c.RcptPermfail)
	t.RcptTempfail += int(c.RcptTempfail)
	t.AuthFail += int(c.AuthFail)
	t.AuthRefused += int(c.AuthRefused)
}

// A Summary is what came in during a time. All texts are printable. Lists are
// sorted, the largest first, and cut.
type Summary struct {
	Since         Time           `json:"since"`
	Until         Time           `json:"until"`
	Problems      []string       `json:"problems"`
	Remote        Totals         `json:"remote"` // hosts that did not log in; the lists are about these only
	Addresses     int            `json:"addresses"`
	Authenticated Totals         `json:"authenticated"`
	Local         Totals         `json:"local"`
	Summed        int            `json:"summed"` // of all these sessions: recorded in sums, because their sources came too often
	NotKept       NotKept        `json:"not_kept"`
	Doubts        []Doubt        `json:"doubts"` // refusals that may have hit good mail
	Timeline      []Span         `json:"timeline"`
	Rules         []Rule         `json:"rules"`
	Evidence      []Name         `json:"evidence"`
	Organisations []Name         `json:"organisations"`
	Networks      []Network      `json:"networks"`
	Sources       []Source       `json:"sources"`
	Helo          []Name         `json:"helo"`
	Harvest       []Attempt      `json:"harvest"`
	Relay         []Attempt      `json:"relay"`
	Auth          []Source       `json:"auth"`
	More          map[string]int `json:"more"`       // how many lines each list would have beyond those given
	NotListed     map[string]int `json:"not_listed"` // what was seen when memory for it was full; in the totals only
}

// NotKept is what came on the days (UTC) of the report, the first one left out if
// it does not begin at midnight, and of which only the numbers are known: it was
// part of a flood, or gave way to the budget.
type NotKept struct {
	Sessions int `json:"sessions"`
	Mails    int `json:"mails"`
	Days     int `json:"days"` // on which that was so
}

// A DayCount is what was counted on one day, whether it is kept or not.
type DayCount struct {
	Day             time.Time
	Sessions, Mails int
}

// Compare finds what is not kept of the days since a time.
func (c *Collector) Compare(days []DayCount, since time.Time) (n NotKept) {
	for _, d := range days {
		if d.Day.Before(since) {
			continue
		}
		kept := c.days[d.Day.Unix()]
		if d.Sessions > kept.Sessions {
			n.Days++
			n.Sessions += d.Sessions - kept.Sessions
			n.Mails += max(d.Mails-kept.Mails, 0)
		}
	}
	return n
}

// A Rule and the number of sessions in which it did something. Who came while it
// was banned counts for the rule that had banned it.
type Rule struct {
	Rule     string `json:"rule"`
	Done     int    `json:"done"`     // decided, and that was carried out
	Observed int    `json:"observed"` // would have decided
	Bans     int    `json:"bans"`
	Spared   int    `json:"spared"` // would have banned somebody who is spared, or only observed
}

// A Name and the number of sessions in which it occurred.
type Name struct {
	Name     string `json:"name"`
	Sessions int    `json:"sessions"`
	Evidence string `json:"evidence,omitempty"` // of an organisation: the first token that named it
}

// A Source is an address from which sessions came.
type Source struct {
	Address string `json:"address"`
	RDNS    string `json:"rdns,omitempty"`
	Totals
}

// An Attempt is a source's recipients that were refused.
type Attempt struct {
	Address  string   `json:"address"`
	RDNS     string   `json:"rdns,omitempty"`
	Sessions int      `json:"sessions"` // at most; one session may have tried several domains
	Refused  int      `json:"refused"`
	Domains  []string `json:"domains"` // the first few
	domains  int
}

const maxDomains = 3 // of an Attempt

// Summary makes the report of what was added. Lists have at most top lines, but
// the one of evidence, which is short by nature, is never cut.
func (c *Collector) Summary(since, until time.Time, top int, problems []string) *Summary {
	s := &Summary{
		Since: Time{since}, Until: Time{until}, Problems: append([]string{}, problems...),
		Remote: c.remote, Authenticated: c.authenticated, Local: c.local, Summed: c.summed, Addresses: len(c.sources),
		More: map[string]int{}, NotListed: c.missed,
	}
	s.Timeline = c.timeline(since, until)
	s.Doubts = best(s, "doubts", c.listDoubts(), top, compareDoubts)
	s.Networks = best(s, "networks", c.networks(), top, func(a, b *Network) int {
		return cmp.Or(cmp.Compare(b.Sessions, a.Sessions), cmp.Compare(b.Found, a.Found), cmp.Compare(a.Prefix, b.Prefix))
	})
	sessions := func(n *name) int { return n.sessions }
	evidence := c.evidence.list()
	s.Evidence = sorted(s, "evidence", evidence, len(evidence), sessions)
	s.Organisations = sorted(s, "organisations", c.orgs.list(), top, sessions)
	s.Helo = sorted(s, "helo", c.helo.list(), top, sessions)

	var rules []*Rule
	for _, r := range c.rules {
		rules = append(rules, &r.Rule)
	}
	s.Rules = best(s, "rules", rules, top, func(a, b *Rule) int {
		return cmp.Or(cmp.Compare(b.Done, a.Done), cmp.Compare(b.Observed, a.Observed), cmp.Compare(a.Rule, b.Rule))
	})

	var all, guessing []*Source
	for addr, src := range c.sources {
		src.Address = addr.String()
		all = append(all, &src.Source)
		if src.AuthFail+src.AuthRefused > 0 {
			guessing = append(guessing, &src.Source)
		}
	}
	s.Sources = best(s, "sources", all, top, func(a, b *Source) int {
		return cmp.Or(cmp.Compare(b.Sessions, a.Sessions), cmp.Compare(b.Found, a.Found), cmp.Compare(a.Address, b.Address))
	})
	s.Auth = best(s, "auth", guessing, top, func(a, b *Source) int {
		return cmp.Or(cmp.Compare(b.AuthFail+b.AuthRefused, a.AuthFail+a.AuthRefused), cmp.Compare(a.Address, b.Address))
	})
	harvest, relay := c.attempts()
	byRefused := func(a, b *Attempt) int {
		return cmp.Or(cmp.Compare(b.Refused, a.Refused), cmp.Compare(a.Address, b.Address))
	}
	s.Harvest = best(s, "harvest", harvest, top, byRefused)
	s.Relay = best(s, "relay", relay, top, byRefused)
	return s
}

func (n *names) list() (all []*name) {
	for _, e := range n.all {
		if e.sessions > 0 {
			all = append(all, e)
		}
	}
	return all
}

func sorted(s *Summary, list string, all []*name, top int, of func(*name) int) []Name {
	slices.SortFunc(all, func(a, b *name) int { return cmp.Or(cmp.Compare(of(b), of(a)), cmp.Compare(a.name, b.name)) })
	s.more(list, len(all)-top)
	names := []Name{}
	for _, n := range all[:min(top, len(all))] {
		names = append(names, Name{Printable([]byte(n.name)), of(n), Printable([]byte(n.evidence))})
	}
	return names
}

// best sorts a list and cuts it.
func best[T any](s *Summary, list string, all []*T, top int, compare func(a, b *T) int) []T {
	slices.SortFunc(all, compare)
	s.more(list, len(all)-top)
	first := []T{}
	for _, p := range all[:min(top, len(all))] {
		first = append(first, *p)
	}
	return first
}

func (s *Summary) more(list string, n int) {
	if n > 0 {
		s.More[list] = n
	}
}

// attempts divides what was refused into what was meant for us and what was not.
// A domain counts as ours if a recipient in it was accepted from a host that had
// not logged in.
func (c *Collector) attempts() (harvest, relay []*Attempt) {
	type key struct {
		src  netip.Addr
		ours bool
	}
	found := map[key]*Attempt{}
	for try, t := range c.tried {
		ours := try.domain.accepted > 0 || try.domain.name == ""
		if ours && t.most < harvestFrom {
			continue
		}
		k := key{try.src, ours}
		a := found[k]
		if a == nil {
			a = &Attempt{Address: try.src.String()}
			if src := c.sources[try.src]; src != nil {
				a.RDNS = src.RDNS
			}
			found[k] = a
		}
		a.Refused += t.refused
		a.Sessions += t.sessions
		a.domains++
		a.Domains = append(a.Domains, Printable([]byte(try.domain.name)))
	}
	for k, a := range found {
		slices.Sort(a.Domains)
		a.Domains = a.Domains[:min(len(a.Domains), maxDomains)]
		if src := c.sources[k.src]; src != nil {
			a.Sessions = min(a.Sessions, src.Sessions)
		}
		if k.ours {
			harvest = append(harvest, a)
		} else {
			relay = append(relay, a)
		}
	}
	return harvest, relay
}

// JSON writes the summary as one object.
func (s *Summary) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(s)
}

const textTime = "2006-01-02 15:04:05"

// Text writes the summary for people, 80 columns wide, with times in zone.
func (s *Summary) Text(w io.Writer, zone *time.Location) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Sessions that ended from %s to %s (%s)\n", s.Since.In(zone).Format(textTime), s.Until.In(zone).Format(textTime),
		s.Until.In(zone).Format("-0700"))

	if len(s.Problems) > 0 {
		b.WriteString("\nProblems\n")
		for _, p := range s.Problems {
			wrap(&b, "  ! "+p, 4)
		}
	}

	b.WriteString("\n            sessions    mails   accepted    refused  put off  AUTH failures\n")
	b.WriteString("                              recipients recipients  recip.      +refused\n")
	for _, c := range []struct {
		name string
		t    *Totals
	}{{"other hosts", &s.Remote}, {"logged in", &s.Authenticated}, {"local", &s.Local}} {
		fmt.Fprintf(&b, "%-11s %8d %8d %10d %10d %8d %9d +%d\n", c.name, c.t.Sessions, c.t.Mails, c.t.RcptOK, c.t.RcptPermfail, c.t.RcptTempfail, c.t.AuthFail, c.t.AuthRefused)
	}
	fmt.Fprintf(&b, "\nOther hosts came from %s; %s had findings.\n", plural(s.Addresses, "address", "addresses"), plural(s.Remote.Found, "session", "sessions"))
	b.WriteString("The lists below are about them only.\n")
	for _, text := range s.sampled() {
		wrap(&b, text, 0)
	}
	s.doubts(&b, zone, 80)

	if section(&b, "Rules", len(s.Rules)) {
		row(&b, "      done observed     bans   spared  rule")
		for _, x := range s.Rules {
			row(&b, fmt.Sprintf("  %8d %8d %8d %8d  %s", x.Done, x.Observed, x.Bans, x.Spared, x.Rule))
		}
		s.rest(&b, "rules")
	}
	s.names(&b, "evidence", "Findings by evidence", s.Evidence)
	s.names(&b, "organisations", "Findings by organisation", s.Organisations)

	if section(&b, "Sources", len(s.Sources)) {
		width := addressWidth(s.Sources, func(x *Source) string { return x.Address })
		row(&b, "  sessions findings  "+pad("address", width)+"  name")
		for _, x := range s.Sources {
			row(&b, fmt.Sprintf("  %8d %8d  %s  %s", x.Sessions, x.Found, pad(x.Address, width), x.RDNS))
		}
		s.rest(&b, "sources")
	}
	s.names(&b, "helo", "HELO names", s.Helo)

	if section(&b, "Harvest attempts", len(s.Harvest)) {
		wrap(&b, fmt.Sprintf("Hosts that tried %d or more unknown recipients in one session, in domains where recipients were accepted from other hosts.", harvestFrom), 0)
		s.attempts(&b, "harvest", s.Harvest)
	}
	if section(&b, "Relay attempts", len(s.Relay)) {
		wrap(&b, "Recipients that were refused in domains where none was accepted from other hosts. The owners of these addresses are victims, not culprits.", 0)
		if s.Remote.RcptOK == 0 {
			wrap(&b, "No recipient at all was accepted in this time: some of these domains may be yours, and the attempts harvests.", 0)
		}
		s.attempts(&b, "relay", s.Relay)
	}
	if section(&b, "AUTH guessing", len(s.Auth)) {
		width := addressWidth(s.Auth, func(x *Source) string { return x.Address })
		row(&b, "    failed  refused sessions  "+pad("address", width)+"  name")
		for _, x := range s.Auth {
			row(&b, fmt.Sprintf("  %8d %8d %8d  %s  %s", x.AuthFail, x.AuthRefused, x.Sessions, pad(x.Address, width), x.RDNS))
		}
		s.rest(&b, "auth")
	}
	if len(s.NotListed) > 0 {
		b.WriteString("\nNot listed, for want of memory\n")
		var what []string
		for w := range s.NotListed {
			what = append(what, w)
		}
		slices.Sort(what)
		for _, w := range what {
			wrap(&b, fmt.Sprintf("  %8d  times there was no place for more %s; the totals are right", s.NotListed[w], w), 12)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// sampled tells, in sentences, what is not recorded one by one.
func (s *Summary) sampled() (all []string) {
	if s.Summed > 0 {
		all = append(all, plural(s.Summed, "session was", "sessions were")+" recorded in sums, because their sources came too often.")
	}
	if k := &s.NotKept; k.Sessions > 0 {
		all = append(all, fmt.Sprintf("%s of %s, with %s, more than these: of them only the numbers are known, see scanwatch stats.",
			plural(k.Sessions, "session", "sessions"), plural(k.Days, "day", "days"), plural(k.Mails, "message", "messages")))
	}
	return all
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func section(b *strings.Builder, title string, lines int) bool {
	if lines > 0 {
		fmt.Fprintf(b, "\n%s\n", title)
	}
	return lines > 0
}

func row(b *strings.Builder, s string) { rowTo(b, s, 80) }

func rowTo(b *strings.Builder, s string, columns int) {
	b.WriteString(cut(strings.TrimRight(s, " "), columns))
	b.WriteByte('\n')
}

func (s *Summary) rest(b *strings.Builder, list string) {
	if n := s.More[list]; n > 0 {
		fmt.Fprintf(b, "  and %d more\n", n)
	}
}

func (s *Summary) names(b *strings.Builder, list, title string, all []Name) {
	if !section(b, title, len(all)) {
		return
	}
	b.WriteString("  sessions\n")
	for _, n := range all {
		text := n.Name
		if n.Evidence != "" {
			text = pad(n.Name, 44) + "  " + n.Evidence
		}
		row(b, fmt.Sprintf("  %8d  %s", n.Sessions, text))
	}
	s.rest(b, list)
}

func (s *Summary) attempts(b *strings.Builder, list string, all []Attempt) {
	width := addressWidth(all, func(a *Attempt) string { return a.Address })
	row(b, "   refused sessions  "+pad("address", width)+"  domains")
	for _, a := range all {
		domains := strings.Join(a.Domains, " ")
		if n := a.domains - len(a.Domains); n > 0 {
			domains += fmt.Sprintf(" +%d", n)
		}
		row(b, fmt.Sprintf("  %8d %8d  %s  %s", a.Refused, a.Sessions, pad(a.Address, width), domains))
	}
	s.rest(b, list)
}

// addressWidth is the width of a column of addresses.
func addressWidth[T any](all []T, address func(*T) string) int {
	w := len("address")
	for i := range all {
		w = max(w, len(address(&all[i])))
	}
	return w
}
