package backtest

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"scanwatch/filter/memory"
	"scanwatch/filter/replay"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
)

// A Result is the outcome of Run.
type Result struct {
	Policy       string           `json:"policy"`
	Rule         string           `json:"rule,omitempty"` // the only rule tested
	From         text.Time        `json:"from"`
	To           text.Time        `json:"to"`
	Since        *text.Time       `json:"since,omitempty"`
	Played       int              `json:"sessions"`
	Selected     bool             `json:"selected,omitempty"` // the operator selected sessions by more than their time
	Sessions     int              `json:"sessions_reported"`  // selected sessions that ended at Since or later
	Hidden       Hidden           `json:"hidden"`
	Dropped      uint64           `json:"dropped"`
	Sums         Sums             `json:"sums"` // sessions in aggregates, which are not replayed
	Late         int              `json:"late"` // sessions replayed out of order, after a session that started later
	NotEvaluated []string         `json:"not_evaluated"`
	Unknown      []Unknown        `json:"unknown_conditions"` // counted in one of 16 sessions
	Hashed       []Unknown        `json:"hashed"`             // unknown because records hold hashes
	Messages     int              `json:"messages_lost"`
	Rcpts        int              `json:"recipients_lost"`
	Known        int              `json:"messages_lost_of_known_hosts"`
	Lost         []*LostMail      `json:"lost"`
	Junked       int              `json:"messages_marked_as_junk"`
	Logins       []*RejectedLogin `json:"logins_rejected"`
	Stopped      []*Stopped       `json:"stopped"`
	Against      *Difference      `json:"against,omitempty"`
}

// Hidden counts sessions with incomplete records.
type Hidden struct {
	Ended    int    `json:"ended"`                       // sessions that a rule rejected while they were recorded
	Resumed  int    `json:"ended_otherwise"`             // sessions in Ended that the tested policy would not reject
	Cut      int    `json:"sessions_with_steps_omitted"` // sessions with steps that were not recorded
	Omitted  uint64 `json:"steps_omitted"`
	EndingNo int    `json:"endings_unknown"` // sessions with an unknown ending
	Logged   int    `json:"from_logs"`       // sessions from the log of a mail server
}

// Sums counts the sessions in aggregates. An aggregate cannot be replayed, because its
// steps cannot be attributed to individual sessions.
type Sums struct {
	Sessions int `json:"sessions"`
	Messages int `json:"messages"`
	Failed   int `json:"logins_failed"`
}

func (s *Sums) add(r *store.Record) {
	s.Sessions += r.Many()
	s.Messages += int(r.Counts.Mails)
	s.Failed += int(r.Counts.AuthFail) + int(r.Counts.AuthRefused)
}

// LostMail describes a host's accepted messages that the policy would have
// rejected.
type LostMail struct {
	Src      string    `json:"src,omitempty"`
	RDNS     string    `json:"rdns,omitempty"`
	Known    bool      `json:"known_host"`
	Accepted Accepted  `json:"history"`
	Some     int       `json:"some_recipients_only,omitempty"` // messages that the policy would have rejected for some recipients but not for all
	Messages int       `json:"messages"`
	Rcpts    int       `json:"recipients"`
	Domains  []string  `json:"sender_domains"`           // first 20 sender domains; empty for the null sender
	Unknown  int       `json:"sender_unknown,omitempty"` // messages without a recorded sender
	Rules    []*LostBy `json:"rules"`
}

// LostBy describes the messages that one rule would have rejected.
type LostBy struct {
	Rule     string   `json:"rule"`
	Phase    string   `json:"phase"`
	Ban      bool     `json:"ban,omitempty"`
	Messages int      `json:"messages"`
	Sessions []string `json:"examples"`
}

// Accepted describes a host's accepted mail in all records. Mail from users who logged in is not
// counted.
type Accepted struct {
	Messages uint32 `json:"messages"`
	Days     uint32 `json:"days"` // days with messages, in UTC
	last     int64
}

func (a *Accepted) add(r *store.Record) {
	a.Messages += r.Counts.Mails
	if day := r.End.Unix() / (24 * 3600); a.Days == 0 || day != a.last {
		a.last = day
		a.Days++
	}
}

// known reports whether a host has delivered enough mail to count as known. An operator may want to
// reject the only message of an unknown host.
func (a *Accepted) known() bool { return a.Days > 1 || a.Messages >= 10 }

// A RejectedLogin is a group of authenticated sessions that the policy would have
// rejected.
type RejectedLogin struct {
	Src      string   `json:"src"`
	Rule     string   `json:"rule"`
	Phase    string   `json:"phase"`
	Ban      bool     `json:"ban,omitempty"`
	Count    int      `json:"sessions"`
	Sessions []string `json:"examples"`
}

// Stopped describes sessions without mail that a rule would have rejected.
type Stopped struct {
	Rule     string   `json:"rule"`
	Count    int      `json:"sessions"`
	Banned   int      `json:"because_of_a_ban"`
	Sources  int      `json:"sources"`
	High     int      `json:"with_high_confidence"`
	Rejected uint64   `json:"recipients_refused"`
	Logins   uint64   `json:"logins_failed"`
	Sessions []string `json:"examples"`

	sources map[netip.Addr]bool
}

// A Difference compares the tested policy with the running policy.
type Difference struct {
	File string         `json:"file"`
	Mode string         `json:"mode"`
	Only map[string]int `json:"refused_by_tested_only"`  // number of sessions by rule of the tested policy
	Gone map[string]int `json:"refused_by_running_only"` // number of sessions by rule of the running policy
	Both int            `json:"refused_by_both"`
}

// Unknown counts how often a condition was unknown.
type Unknown struct {
	Rule      string `json:"rule"`
	Condition string `json:"condition"`
	Times     int    `json:"times"`
}

type unknownKey struct {
	rule string
	cond *rules.Cond
}

// Limits of a result's lists.
const (
	maxGroups   = 10_000  // groups of lost mail, and groups of logins
	maxSources  = 100_000 // sources of a rule
	maxExamples = 3       // example sessions of a group
	maxDomains  = 20      // sender domains of a host
	maxHosts    = 500_000 // hosts with accepted mail
)

type loginKey struct {
	rule, phase string
	src         netip.Addr
}

type collector struct {
	o       *Options
	result  Result
	names   bool // a condition of the policy compares mailboxes
	lost    map[netip.Addr]*LostMail
	hosts   map[uint64]Accepted // accepted mail by memory.Number of the host
	logins  map[loginKey]*RejectedLogin
	stopped map[string]*Stopped
	unknown map[unknownKey]int
	hashed  map[unknownKey]int
	waiting map[uint64]ending // sessions that have ended in only one of the two runs
}

func newCollector(o *Options) *collector {
	return &collector{
		o:       o,
		result:  Result{Policy: o.Name, Rule: o.Rule, NotEvaluated: notEvaluated(o.Test, o.Notes), Lost: []*LostMail{}, Logins: []*RejectedLogin{}, Stopped: []*Stopped{}},
		names:   o.Test.Policy.Needs().Names,
		lost:    map[netip.Addr]*LostMail{},
		hosts:   map[uint64]Accepted{},
		logins:  map[loginKey]*RejectedLogin{},
		stopped: map[string]*Stopped{},
		unknown: map[unknownKey]int{},
		hashed:  map[unknownKey]int{},
		waiting: map[uint64]ending{},
	}
}

// add counts a session's outcome.
func (c *collector) add(o *replay.Outcome) {
	b, r := &c.result, o.Record
	b.Played++
	if b.From.IsZero() || r.Start.Before(b.From.Time) {
		b.From = text.At(r.Start)
	}
	if r.End.After(b.To.Time) {
		b.To = text.At(r.End)
	}
	if !c.reports(r) {
		return
	}
	b.Sessions++
	b.Hidden.add(o)
	b.Junked += o.Junked
	for i := range o.Lost {
		c.addLost(o, &o.Lost[i])
	}
	switch {
	case o.Refusal.Rule == "":
	case o.Login:
		c.addLogin(o)
	case len(o.Lost) == 0 && !o.Ended:
		c.addStopped(o)
	}
}

func (h *Hidden) add(o *replay.Outcome) {
	if o.Ended {
		h.Ended++
	}
	if o.Resumed {
		h.Resumed++
	}
	if o.Record.Omitted > 0 {
		h.Cut++
		h.Omitted += uint64(o.Record.Omitted)
	}
	if o.Record.Ending == smtp.EndingUnknown {
		h.EndingNo++
	}
	switch string(o.Record.FrontEnd) {
	case "", "smtpd", "milter":
	default:
		h.Logged++
	}
}

// learn counts a host's accepted mail.
func (c *collector) learn(r *store.Record) {
	if r.Counts.Mails == 0 || r.Counts.AuthPass > 0 || !r.Src.IsValid() {
		return
	}
	k := memory.Number(r.Src.Addr())
	a, ok := c.hosts[k]
	if ok || len(c.hosts) < maxHosts {
		a.add(r)
		c.hosts[k] = a
	}
}

func (c *collector) addLost(o *replay.Outcome, m *replay.Message) {
	c.result.Messages++
	c.result.Rcpts += m.Rcpts
	src := o.Record.Src.Addr()
	l := c.lost[src]
	if l == nil && len(c.lost) >= maxGroups {
		src = netip.Addr{}
		l = c.lost[src]
	}
	if l == nil {
		l = &LostMail{Src: source(src), Domains: []string{}}
		if src.IsValid() {
			l.RDNS = text.Escape(o.Record.RDNS)
		}
		c.lost[src] = l
	}
	l.Messages++
	l.Rcpts += m.Rcpts
	if m.Some {
		l.Some++
	}
	if m.Unknown {
		l.Unknown++
	} else if domain := domainOf(m.Sender); len(l.Domains) < maxDomains && !slices.Contains(l.Domains, domain) {
		l.Domains = append(l.Domains, domain)
	}
	l.by(m).add(o)
}

// domainOf returns a sender's domain. A sender without a domain is returned unchanged.
func domainOf(sender []byte) string {
	return text.Escape(bytes.ToLower(sender[bytes.LastIndexByte(sender, '@')+1:]))
}

// by returns the group of messages rejected by the same rule as m.
func (l *LostMail) by(m *replay.Message) *LostBy {
	for _, b := range l.Rules {
		if b.Rule == m.Rule && b.Phase == m.Phase && b.Ban == m.Ban {
			return b
		}
	}
	b := &LostBy{Rule: m.Rule, Phase: m.Phase, Ban: m.Ban}
	l.Rules = append(l.Rules, b)
	return b
}

func (b *LostBy) add(o *replay.Outcome) {
	b.Messages++
	addExample(&b.Sessions, o)
}

// source returns an address as text. The text is empty for sessions over the
// local socket and for the group of all other hosts.
func source(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func addExample(list *[]string, o *replay.Outcome) {
	id := fmt.Sprintf("%016x", o.Record.ID)
	if len(*list) < maxExamples && !slices.Contains(*list, id) {
		*list = append(*list, id)
	}
}

func (c *collector) addLogin(o *replay.Outcome) {
	k := loginKey{o.Refusal.Rule, o.Refusal.Phase, o.Record.Src.Addr()}
	l := c.logins[k]
	if l == nil && len(c.logins) >= maxGroups {
		k = loginKey{rule: "others"}
		l = c.logins[k]
	}
	if l == nil {
		l = &RejectedLogin{Src: source(k.src), Rule: k.rule, Phase: k.phase, Ban: o.Refusal.Ban}
		c.logins[k] = l
	}
	l.Count++
	addExample(&l.Sessions, o)
}

func (c *collector) addStopped(o *replay.Outcome) {
	s := c.stopped[o.Refusal.Rule]
	if s == nil {
		s = &Stopped{Rule: o.Refusal.Rule, sources: make(map[netip.Addr]bool)}
		c.stopped[s.Rule] = s
	}
	s.Count++
	if o.Refusal.Ban {
		s.Banned++
	}
	if len(s.sources) < maxSources {
		s.sources[o.Record.Src.Addr()] = true
	}
	n := &o.Record.Counts
	s.Rejected += uint64(n.RcptPermfail)
	s.Logins += uint64(n.AuthFail) + uint64(n.AuthRefused)
	high := false
	_ = o.Record.Steps(func(st *store.Step) bool { // ignore the steps after a corrupt step
		high = st.Kind == store.KindFinding && string(st.Confidence) == "high"
		return !high
	})
	if high {
		s.High++
	}
	addExample(&s.Sessions, o)
}

// add counts a session. tested and running name the rules that rejected it, if any.
func (d *Difference) add(tested, running string) {
	switch {
	case tested != "" && running != "":
		d.Both++
	case tested != "":
		d.Only[tested]++
	case running != "":
		d.Gone[running]++
	}
}

// finish returns the result, with groups in descending order of lost mail.
func (c *collector) finish() *Result {
	b := &c.result
	if !c.o.Since.IsZero() {
		b.Since = new(text.At(c.o.Since))
	}
	b.Selected = c.o.Match != nil
	for src, l := range c.lost {
		if src.IsValid() {
			l.Accepted = c.hosts[memory.Number(src)]
		}
		if l.Known = l.Accepted.known(); l.Known {
			b.Known += l.Messages
		}
		slices.SortFunc(l.Rules, func(x, y *LostBy) int {
			return cmp.Or(y.Messages-x.Messages, cmp.Compare(x.Rule, y.Rule), cmp.Compare(x.Phase, y.Phase))
		})
		b.Lost = append(b.Lost, l)
	}
	slices.SortFunc(b.Lost, func(x, y *LostMail) int {
		return cmp.Or(knownFirst(x, y), y.Messages-x.Messages, cmp.Compare(x.Src, y.Src))
	})
	for _, l := range c.logins {
		b.Logins = append(b.Logins, l)
	}
	slices.SortFunc(b.Logins, func(x, y *RejectedLogin) int {
		return cmp.Or(y.Count-x.Count, cmp.Compare(x.Src, y.Src), cmp.Compare(x.Rule, y.Rule), cmp.Compare(x.Phase, y.Phase))
	})
	for _, s := range c.stopped {
		s.Sources = len(s.sources)
		b.Stopped = append(b.Stopped, s)
	}
	slices.SortFunc(b.Stopped, func(x, y *Stopped) int { return cmp.Or(y.Count-x.Count, cmp.Compare(x.Rule, y.Rule)) })
	b.Unknown, b.Hashed = sortUnknown(c.unknown), sortUnknown(c.hashed)
	return b
}

// knownFirst orders groups of lost mail, known clients first.
func knownFirst(x, y *LostMail) int {
	switch {
	case x.Known == y.Known:
		return 0
	case x.Known:
		return -1
	}
	return 1
}

// sortUnknown returns unknown conditions, most frequent first.
func sortUnknown(times map[unknownKey]int) []Unknown {
	all := map[Unknown]int{} // a rule can have identical conditions
	for k, n := range times {
		all[Unknown{Rule: k.rule, Condition: k.cond.String()}] += n
	}
	list := []Unknown{}
	for u, n := range all {
		u.Times = n
		list = append(list, u)
	}
	slices.SortFunc(list, func(x, y Unknown) int {
		return cmp.Or(y.Times-x.Times, cmp.Compare(x.Rule, y.Rule), cmp.Compare(x.Condition, y.Condition))
	})
	return list
}
