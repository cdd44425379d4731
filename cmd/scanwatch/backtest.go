package main

// The verb backtest: what a configuration would have done with the past.

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/privacy"
	"scanwatch/filter/replay"
	"scanwatch/filter/session"
	"scanwatch/rules"
	"scanwatch/store"
)

const backtestHelp = `Plays the recorded sessions to a configuration as in mode enforce: to FILE, to
--policy open, standard or tight, or else to the one of -f. With --rule only the
rules of that name count. Bans, counts and good peers come about as they would
have, beginning with nothing.
Tells first which accepted mail would have been lost, and exits with status 3
then; after that what would have been stopped, and what differs from the
configuration of -f. --since leaves out what ended before WHEN, which is played
all the same. --json prints one object.
` + sinceHelp

// exitLost is the exit status of a backtest that loses mail.
const exitLost = 3

// statusError ends the program with a status of its own.
type statusError struct {
	status int
	error
}

func backtest(e *env, args []string) error {
	ready := e.flags.String("policy", "", "")
	rule := e.flags.String("rule", "", "")
	when := e.flags.String("since", "", "")
	asJSON := e.flags.Bool("json", false, "")
	args, err := e.parse(args, 0, 1)
	if err != nil {
		return err
	}
	if *ready != "" && len(args) > 0 {
		return usage("backtest: either FILE or --policy")
	}
	b := &pastTest{Lost: []*lostMail{}, Logins: []*hitLogin{}, Stopped: []*stopped{}, lost: map[lostKey]*lostMail{}, logins: map[loginKey]*hitLogin{}, stopped: map[string]*stopped{}, unsures: map[unsure]int{}, hashed: map[unsure]int{}}
	if *when != "" {
		if b.since, err = e.since(*when); err != nil {
			return err
		}
	}
	lists, err := lookup.Builtin()
	if err != nil {
		return err
	}
	var c *config.Config
	if len(args) > 0 {
		c, err = config.Load(args[0], lists, nil, false)
	} else {
		c, err = e.configuration(*ready, lists)
	}
	if err != nil {
		return err
	}
	b.Policy, b.Rule = c.File, *rule
	if *ready != "" {
		b.Policy = *ready
	}
	policy := c.Policy.InMode(rules.Enforce)
	if *rule != "" {
		if policy = policy.Only(*rule); policy == nil {
			return usage("backtest: --rule %s: %s has no such rule", *rule, c.File)
		}
	}
	tested := newPast(c, policy, lists)
	b.cannotTell(c, policy)
	tested.sample(b)
	pasts := []*past{tested}
	// The running policy, if there is another one.
	if name := e.find(e.file); name != "" && (name != c.File || *rule != "") {
		running, err := config.Load(name, lists, nil, false)
		if err != nil {
			return fmt.Errorf("the configuration to compare with: %w", err)
		}
		b.Against = &difference{File: name, Mode: running.Policy.Mode.String(), Only: map[string]int{}, Gone: map[string]int{}}
		pasts = append(pasts, newPast(running, running.Policy, lists))
	}
	if err := b.play(e, pasts); err != nil {
		return err
	}
	b.finish()
	if *asJSON {
		j := json.NewEncoder(e.out)
		j.SetEscapeHTML(false)
		err = j.Encode(b)
	} else {
		b.print(e)
	}
	switch {
	case err != nil:
		return err
	case b.unread != nil:
		return b.unread
	case b.Messages > 0:
		return statusError{exitLost, fmt.Errorf("%d accepted messages would have been lost", b.Messages)}
	}
	return nil
}

// A past is what happened as it would have with one policy.
type past struct {
	player  *replay.Player
	options replay.Options
	ended   []ending // of this batch
}

// ending is what a comparison needs of a session.
type ending struct {
	seq  uint64
	end  time.Time
	rule string // that refused it first
}

func newPast(c *config.Config, p *rules.Policy, lists *lookup.Lists) *past {
	return &past{options: replay.Options{
		Settings: &session.Settings{Policy: p, ASN: c.ASN, Country: c.Country},
		Table:    session.Options{Lists: func() *lookup.Lists { return lists }, OwnAddrs: ownAddrs()},
	}}
}

// ownAddrs are this host's addresses, for which the filter looks, too. On another
// machine the configuration has to tell.
func ownAddrs() (addrs []netip.Addr) {
	all, _ := net.InterfaceAddrs() // without them less is found, no more
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			addrs = append(addrs, p.Addr())
		}
	}
	return addrs
}

// sampleOf is how many sessions come to one that is asked what rules could not
// tell.
const sampleOf = 16

// sample makes b know which conditions could not tell.
func (p *past) sample(b *pastTest) {
	names := p.options.Settings.Policy.Needs().Names
	p.options.Table.Trace = func(policy *rules.Policy, f *rules.Facts, _ filter.Reply) {
		sampled := f.Session*0x9e3779b97f4a7c15>>60 == 0 // ids are no random numbers, their multiples nearly
		hashed := names && (privacy.HasHash(f.MailFrom) || privacy.HasHash(f.RcptTo) || privacy.HasHash(f.User))
		if !sampled && !hashed {
			return
		}
		_, traces := policy.Explain(f)
		for i := range traces {
			b.unsure(&traces[i], sampled)
		}
	}
}

// batch is how many records are played before the pasts are compared.
const batch = 500

// play plays the whole history to all pasts.
func (b *pastTest) play(e *env, pasts []*past) error {
	for i, p := range pasts {
		p.options.Done = func(o *replay.Outcome) {
			p.ended = append(p.ended, ending{o.Seq, o.Record.End, o.Refusal.Rule})
			if i == 0 {
				b.add(o)
			}
		}
		p.player = replay.New(p.options)
	}
	r, client, problems, err := e.reader()
	if err != nil {
		return err
	}
	if client != nil {
		defer client.Close()
	}
	e.warn(r, problems)
	progress := newProgress(e)
	var records []store.Record
	flush := func(last bool) {
		var wg sync.WaitGroup
		for _, p := range pasts {
			wg.Go(func() {
				for i := range records {
					p.player.Add(&records[i])
				}
				if last {
					p.player.Close()
				}
			})
		}
		wg.Wait()
		b.compare(pasts)
		records = records[:0]
	}
	err = each(r, time.Time{}, func(rec *store.Record) error {
		if rec.Sessions > 0 { // nobody knows how each went
			b.Summed += rec.Many()
			return nil
		}
		if records = append(records, rec.Clone()); len(records) == batch {
			flush(false)
			progress.tell(batch, rec.End)
		}
		return nil
	})
	progress.clear()
	if err != nil {
		return err
	}
	flush(true)
	days, err := e.days()
	if err != nil {
		return err
	}
	for i := range days {
		if !days[i].Day.AddDate(0, 0, 1).Before(b.From) {
			b.Flood += days[i].Lost()
		}
	}
	b.Dropped, b.Late, b.unread = r.Dropped.Total(), pasts[0].player.Late(), unread(r)
	return nil
}

// A progress tells on a terminal how far a long work is.
type progress struct {
	e     *env
	shown bool
	n     int
}

func newProgress(e *env) *progress {
	p := &progress{e: e}
	if f, ok := e.terminal.(*os.File); ok {
		info, err := f.Stat()
		p.shown = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

func (p *progress) tell(n int, at time.Time) {
	if p.n += n; p.shown && p.n%10_000 < n {
		fmt.Fprintf(p.e.terminal, "\r%d sessions, %s", p.n, at.In(p.e.zone).Format("2006-01-02 15:04"))
	}
}

func (p *progress) clear() {
	if p.shown && p.n >= 10_000 {
		fmt.Fprint(p.e.terminal, "\r\x1b[K")
	}
}

// pastTest is what a backtest has found.
type pastTest struct {
	Policy   string      `json:"policy"`
	Rule     string      `json:"rule,omitempty"` // the only one that counted
	From     time.Time   `json:"from"`
	To       time.Time   `json:"to"`
	Since    *time.Time  `json:"since,omitempty"`
	Played   int         `json:"sessions"`
	Sessions int         `json:"sessions_told"` // that ended since then
	Hidden   hidden      `json:"hidden"`
	Dropped  uint64      `json:"dropped"`
	Summed   int         `json:"summed"` // sessions that were recorded in sums, and not played
	Flood    uint64      `json:"flood"`  // sessions that were only counted, on the days of the history
	Late     int         `json:"late"`
	Cannot   []string    `json:"cannot_tell"`
	Unsure   []unsure    `json:"could_not_tell"` // of one session in 16
	Hashed   []unsure    `json:"hashed"`         // could not tell because hashes of names were recorded
	Messages int         `json:"messages_lost"`
	Rcpts    int         `json:"recipients_lost"`
	Known    int         `json:"messages_lost_of_known_peers"`
	Lost     []*lostMail `json:"lost"`
	Junked   int         `json:"messages_marked_as_junk"`
	Logins   []*hitLogin `json:"logins_hit"`
	Stopped  []*stopped  `json:"stopped"`
	Against  *difference `json:"against,omitempty"`

	since   time.Time
	unread  error
	lost    map[lostKey]*lostMail
	logins  map[loginKey]*hitLogin
	stopped map[string]*stopped
	unsures map[unsure]int
	hashed  map[unsure]int
	waiting map[uint64]ending // sessions that have ended in one past only
}

// hidden is what the records do not tell.
type hidden struct {
	Ended    int    `json:"ended"`           // sessions that a rule refused when they were recorded
	Spared   int    `json:"ended_otherwise"` // of these, those that the policy would have let go on
	Cut      int    `json:"sessions_with_steps_omitted"`
	Omitted  uint64 `json:"steps_omitted"`
	EndingNo int    `json:"endings_unknown"`
}

// maxGroups is how many groups of lost mail, and of logins, are told apart.
const maxGroups = 10_000

// maxSessionsNamed is how many sessions are named for each group.
const maxSessionsNamed = 3

type lostKey struct {
	domain, rule string
	src          netip.Addr
}

// lostMail is accepted mail that would have been lost.
type lostMail struct {
	Domain   string   `json:"sender_domain"` // empty for the null sender
	Unknown  bool     `json:"sender_unknown,omitempty"`
	Src      string   `json:"src,omitempty"`
	RDNS     string   `json:"rdns,omitempty"`
	Rule     string   `json:"rule"`
	Phase    string   `json:"phase"` // of the first
	Ban      bool     `json:"ban,omitempty"`
	Known    bool     `json:"known_peer"`
	Some     int      `json:"some_recipients_only,omitempty"` // messages that others still got
	Messages int      `json:"messages"`
	Rcpts    int      `json:"recipients"`
	Sessions []string `json:"examples"`
}

type loginKey struct {
	rule, phase string
	src         netip.Addr
}

// hitLogin are sessions of people who logged in, and were refused.
type hitLogin struct {
	Src      string   `json:"src"`
	Rule     string   `json:"rule"`
	Phase    string   `json:"phase"`
	Ban      bool     `json:"ban,omitempty"`
	Count    int      `json:"sessions"`
	Sessions []string `json:"examples"`
}

// stopped is what a rule would have stopped that came through.
type stopped struct {
	Rule     string   `json:"rule"`
	Count    int      `json:"sessions"`
	Banned   int      `json:"because_of_a_ban"`
	Sources  int      `json:"sources"`
	High     int      `json:"with_high_confidence"`
	Unknown  uint64   `json:"recipients_refused"`
	Guesses  uint64   `json:"logins_failed"`
	Sessions []string `json:"examples"`

	sources map[netip.Addr]bool
}

// difference compares with the running policy.
type difference struct {
	File string         `json:"file"`
	Mode string         `json:"mode"`
	Only map[string]int `json:"refused_by_tested_only"`  // sessions by rule
	Gone map[string]int `json:"refused_by_running_only"` // by rule of the running one
	Both int            `json:"refused_by_both"`
}

// unsure is a condition that could not tell.
type unsure struct {
	Rule      string `json:"rule"`
	Condition string `json:"condition"`
	Times     int    `json:"times"`
}

// cannotTell notes what the policy asks for and nobody knows.
func (b *pastTest) cannotTell(c *config.Config, p *rules.Policy) {
	b.Cannot = []string{}
	n := p.Needs()
	if n.ASN && c.ASN == nil {
		b.Cannot = append(b.Cannot, "asn: the configuration names no database of AS numbers")
	}
	if n.Country && c.Country == nil && c.ASN == nil {
		b.Cannot = append(b.Cannot, "country: the configuration names no database of countries")
	}
	for _, note := range c.Notes {
		b.Cannot = append(b.Cannot, printable([]byte(note)))
	}
	if n.SeenGood {
		b.Cannot = append(b.Cannot, "seen-good: nobody was known when the history began")
	}
	var longest time.Duration
	for _, w := range n.Windows {
		longest = max(longest, w.Window)
	}
	if longest > 0 {
		b.Cannot = append(b.Cannot, fmt.Sprintf("count: counts began with nothing; the longest is of %s", spanText(longest)))
	}
	delayed := slices.ContainsFunc(p.Rules(), func(r *rules.Rule) bool { return r.Delay > 0 })
	if delayed {
		b.Cannot = append(b.Cannot, "delay: nobody knows who would not have waited")
	}
}

// spanText is a time span in the words of a configuration.
func spanText(d time.Duration) string {
	for _, u := range []struct {
		word string
		span time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}} {
		if d >= u.span && d%u.span == 0 {
			return fmt.Sprintf("%d%s", d/u.span, u.word)
		}
	}
	return d.String()
}

// unsure notes the conditions of a rule that could not tell because of them.
// That weak evidence does not suffice is no lack of knowledge.
func (b *pastTest) unsure(t *rules.Trace, sampled bool) {
	name := "pass"
	r, ok := t.Statement.(*rules.Rule)
	if ok {
		name = r.Name
	}
	if t.Skipped != "" || slices.ContainsFunc(t.Conds, func(c rules.CondTrace) bool { return c.Answer == rules.No }) {
		return
	}
	for _, c := range t.Conds {
		switch u := (unsure{Rule: name, Condition: c.Cond.String()}); {
		case c.Answer != rules.Unknown:
		case c.Hashed:
			b.hashed[u]++
		case sampled && ok && c.Cond.Word != "evidence":
			b.unsures[u]++
		}
	}
}

// add takes what became of a session.
func (b *pastTest) add(o *replay.Outcome) {
	r := o.Record
	b.Played++
	if b.From.IsZero() || r.Start.Before(b.From) {
		b.From = r.Start
	}
	if r.End.After(b.To) {
		b.To = r.End
	}
	if r.End.Before(b.since) {
		return
	}
	b.Sessions++
	if o.Ended {
		b.Hidden.Ended++
	}
	if o.Spared {
		b.Hidden.Spared++
	}
	if r.Omitted > 0 {
		b.Hidden.Cut++
		b.Hidden.Omitted += uint64(r.Omitted)
	}
	if r.Ending == store.EndingUnknown {
		b.Hidden.EndingNo++
	}
	b.Junked += o.Junked
	for i := range o.Lost {
		b.addLost(o, &o.Lost[i])
	}
	switch {
	case o.Refusal.Rule == "":
	case o.Login:
		b.addLogin(o)
	case len(o.Lost) == 0 && !o.Ended:
		b.addStopped(o)
	}
}

func (b *pastTest) addLost(o *replay.Outcome, m *replay.Message) {
	b.Messages++
	b.Rcpts += m.Rcpts
	if m.Known {
		b.Known++
	}
	k := lostKey{rule: m.Rule, src: o.Record.Src.Addr()}
	if i := bytes.LastIndexByte(m.Sender, '@'); m.Unknown {
		k.domain = "senders that are not known"
	} else if i >= 0 {
		k.domain = printable(bytes.ToLower(m.Sender[i+1:]))
	} else {
		k.domain = printable(m.Sender)
	}
	l := b.lost[k]
	if l == nil {
		if len(b.lost) == maxGroups {
			k = lostKey{rule: "others", domain: "others"}
			l = b.lost[k]
		}
		if l == nil {
			l = &lostMail{Domain: k.domain, Src: source(k.src), Rule: k.rule}
			if k.rule == m.Rule { // not of others
				l.Phase, l.Unknown, l.Ban, l.RDNS = m.Phase, m.Unknown, m.Ban, printable(o.Record.RDNS)
			}
			b.lost[k] = l
		}
	}
	l.Messages++
	l.Rcpts += m.Rcpts
	l.Known = l.Known || m.Known
	if m.Some {
		l.Some++
	}
	example(&l.Sessions, o)
}

// source is an address, or nothing for the local socket and for all others.
func source(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// example names a session, if not enough are named.
func example(list *[]string, o *replay.Outcome) {
	id := fmt.Sprintf("%016x", o.Record.ID)
	if len(*list) < maxSessionsNamed && !slices.Contains(*list, id) {
		*list = append(*list, id)
	}
}

func (b *pastTest) addLogin(o *replay.Outcome) {
	k := loginKey{o.Refusal.Rule, o.Refusal.Phase, o.Record.Src.Addr()}
	l := b.logins[k]
	if l == nil {
		if len(b.logins) == maxGroups {
			k = loginKey{rule: "others"}
			l = b.logins[k]
		}
		if l == nil {
			l = &hitLogin{Src: source(k.src), Rule: k.rule, Phase: k.phase, Ban: o.Refusal.Ban}
			b.logins[k] = l
		}
	}
	l.Count++
	example(&l.Sessions, o)
}

func (b *pastTest) addStopped(o *replay.Outcome) {
	s := b.stopped[o.Refusal.Rule]
	if s == nil {
		s = &stopped{Rule: o.Refusal.Rule, sources: make(map[netip.Addr]bool)}
		b.stopped[s.Rule] = s
	}
	s.Count++
	if o.Refusal.Ban {
		s.Banned++
	}
	if len(s.sources) < maxSources {
		s.sources[o.Record.Src.Addr()] = true
	}
	c := &o.Record.Counts
	s.Unknown += uint64(c.RcptPermfail)
	s.Guesses += uint64(c.AuthFail) + uint64(c.AuthRefused)
	high := false
	_ = o.Record.Steps(func(st *store.Step) bool { // a damaged record has fewer
		high = st.Kind == store.KindFinding && string(st.Confidence) == "high"
		return !high
	})
	if high {
		s.High++
	}
	example(&s.Sessions, o)
}

// maxSources is how many sources of a rule are told apart.
const maxSources = 100_000

// compare brings together what became of a session in two pasts.
func (b *pastTest) compare(pasts []*past) {
	if b.Against == nil {
		pasts[0].ended = pasts[0].ended[:0]
		return
	}
	if b.waiting == nil {
		b.waiting = make(map[uint64]ending)
	}
	// A session may end in one past before it does in the other, at most the
	// player's window later.
	for i, p := range pasts {
		for _, x := range p.ended {
			y, ok := b.waiting[x.seq]
			if !ok {
				b.waiting[x.seq] = x
				continue
			}
			delete(b.waiting, x.seq)
			tested, running := x, y
			if i != 0 {
				tested, running = y, x
			}
			b.Against.add(tested.rule, running.rule, x.end.Before(b.since))
		}
		p.ended = p.ended[:0]
	}
}

func (d *difference) add(tested, running string, before bool) {
	switch {
	case before:
	case tested != "" && running != "":
		d.Both++
	case tested != "":
		d.Only[tested]++
	case running != "":
		d.Gone[running]++
	}
}

// finish sorts what was found: what hurts most first.
func (b *pastTest) finish() {
	if !b.since.IsZero() {
		b.Since = &b.since
	}
	for _, l := range b.lost {
		b.Lost = append(b.Lost, l)
	}
	slices.SortFunc(b.Lost, func(x, y *lostMail) int {
		return cmp.Or(order(y.Known, x.Known), y.Messages-x.Messages, cmp.Compare(x.Domain, y.Domain), cmp.Compare(x.Src, y.Src), cmp.Compare(x.Rule, y.Rule))
	})
	for _, l := range b.logins {
		b.Logins = append(b.Logins, l)
	}
	slices.SortFunc(b.Logins, func(x, y *hitLogin) int {
		return cmp.Or(y.Count-x.Count, cmp.Compare(x.Src, y.Src), cmp.Compare(x.Rule, y.Rule), cmp.Compare(x.Phase, y.Phase))
	})
	for _, s := range b.stopped {
		s.Sources = len(s.sources)
		b.Stopped = append(b.Stopped, s)
	}
	slices.SortFunc(b.Stopped, func(x, y *stopped) int { return cmp.Or(y.Count-x.Count, cmp.Compare(x.Rule, y.Rule)) })
	b.Unsure, b.Hashed = often(b.unsures), often(b.hashed)
}

// often lists what could not tell, the most frequent first.
func often(times map[unsure]int) []unsure {
	list := []unsure{}
	for u, n := range times {
		u.Times = n
		list = append(list, u)
	}
	slices.SortFunc(list, func(x, y unsure) int {
		return cmp.Or(y.Times-x.Times, cmp.Compare(x.Rule, y.Rule), cmp.Compare(x.Condition, y.Condition))
	})
	return list
}

// order sorts false before true.
func order(x, y bool) int {
	switch {
	case x == y:
		return 0
	case y:
		return -1
	}
	return 1
}

// most is how many lines each list has on paper.
const most = 20

// print writes what was found for people.
func (b *pastTest) print(e *env) {
	w := e.out
	say := func(indent int, format string, args ...any) {
		put(w, fmt.Sprintf("%*s", indent, "")+fmt.Sprintf(format, args...), indent+4)
	}
	name := filepath.Base(b.Policy)
	if b.Rule != "" {
		name = "rule " + b.Rule + " of " + name
	}
	say(0, "Backtest of %s, as in mode enforce", printable([]byte(name)))
	if b.Played == 0 {
		say(0, "There is no history: no session is recorded.")
		return
	}
	at := func(t time.Time) string { return t.In(e.zone).Format("2006-01-02 15:04") }
	say(0, "History: %s to %s, %s", at(b.From), at(b.To), count(b.Played, "session"))
	if b.Since != nil {
		say(0, "Told is what ended since %s: %s", at(*b.Since), count(b.Sessions, "session"))
	}
	b.printHidden(say)

	fmt.Fprintln(w)
	if b.Messages == 0 {
		say(0, "No accepted mail would have been lost.")
	} else {
		say(0, "LOST: %s for %s, %d of them from known hosts.", count(b.Messages, "accepted message"), count(b.Rcpts, "recipient"), b.Known)
	}
	for i, l := range b.Lost {
		if i == most {
			say(2, "and %s; --json has all", count(len(b.Lost)-most, "more group"))
			break
		}
		l.print(say)
	}
	if b.Junked > 0 {
		say(0, "%s would have been marked as junk.", count(b.Junked, "accepted message"))
	}

	fmt.Fprintln(w)
	if len(b.Logins) == 0 {
		say(0, "Nobody who logged in would have been refused.")
	} else {
		say(0, "LOGINS: people who logged in would have been refused.")
	}
	for i, l := range b.Logins {
		if i == most {
			say(2, "and %s; --json has all", count(len(b.Logins)-most, "more group"))
			break
		}
		say(2, "%s from %s by rule %s at %s%s: %s", count(l.Count, "session"), cmp.Or(l.Src, "elsewhere"), l.Rule, l.Phase, because(l.Ban), join(l.Sessions))
	}

	fmt.Fprintln(w)
	if len(b.Stopped) == 0 {
		say(0, "Nothing that came through would have been stopped.")
	} else {
		say(0, "Stopped of what came through, by rule:")
		fmt.Fprintf(w, "  %8s %8s %8s %8s %8s  %s\n", "sessions", "sources", "certain", "rcpts", "logins", "rule, example")
	}
	for _, s := range b.Stopped {
		fmt.Fprintf(w, "  %8d %8d %8d %8d %8d  %s %s\n", s.Count, s.Sources, s.High, s.Unknown, s.Guesses, s.Rule, s.Sessions[0])
	}
	if d := b.Against; d != nil {
		fmt.Fprintln(w)
		d.print(say)
	}
}

func (b *pastTest) printHidden(say func(int, string, ...any)) {
	h := &b.Hidden
	if b.Summed > 0 {
		say(2, "%s without mail or login, of sources that came too often, were recorded in sums and are not in the history", count(b.Summed, "session"))
	}
	if b.Flood > 0 {
		say(2, "%s without mail or login, part of a flood, were only counted and are not in the history", count(int(b.Flood), "session"))
	}
	if b.Dropped > 0 {
		say(2, "%d sessions were dropped when they were recorded and are not in the history", b.Dropped)
	}
	if h.Cut > 0 {
		say(2, "%s had more steps than are kept: %d are missing", count(h.Cut, "session"), h.Omitted)
	}
	if h.Ended > 0 {
		say(2, "%s ended because a rule refused them then; %d of them would not be refused, and how they would have gone on is not known", count(h.Ended, "session"), h.Spared)
	}
	if h.EndingNo > 0 {
		say(2, "of %s it is not known how they ended: rules at the end were not asked", count(h.EndingNo, "session"))
	}
	if b.Late > 0 {
		say(2, "%s lasted so long that others came first in this test", count(b.Late, "session"))
	}
	for _, c := range b.Cannot {
		say(2, "%s", c)
	}
	for _, u := range b.Unsure {
		say(2, "rule %s could not tell in %d of one in %d sessions: %s", u.Rule, u.Times, sampleOf, printable([]byte(u.Condition)))
	}
	for _, u := range b.Hashed {
		statement := "rule " + u.Rule
		if u.Rule == "pass" {
			statement = "a pass statement"
		}
		say(2, "%s could not tell %s, because the name was recorded as a hash (see privacy in scanwatch.conf(5)): %s", statement, count(u.Times, "time"), printable([]byte(u.Condition)))
	}
}

func (l *lostMail) print(say func(int, string, ...any)) {
	domain := l.Domain
	if domain == "" {
		domain = "<>"
	}
	from := cmp.Or(l.Src, "elsewhere")
	if l.RDNS != "" {
		from += " (" + l.RDNS + ")"
	}
	known := "a stranger"
	if l.Known {
		known = "KNOWN for good mail"
	}
	what := count(l.Messages, "message")
	if l.Some > 0 {
		what += fmt.Sprintf(" (%d only in part)", l.Some)
	}
	say(2, "%s for %s of %s from %s, %s", what, count(l.Rcpts, "recipient"), domain, from, known)
	at := ""
	if l.Phase != "" {
		at = " at " + l.Phase
	}
	say(6, "rule %s%s%s: %s", l.Rule, at, because(l.Ban), join(l.Sessions))
}

func because(ban bool) string {
	if ban {
		return " (banned)"
	}
	return ""
}

func join(ids []string) (s string) {
	for i, id := range ids {
		if i > 0 {
			s += " "
		}
		s += id
	}
	return s
}

// count is a number of things.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func (d *difference) print(say func(int, string, ...any)) {
	say(0, "Against %s, mode %s:", printable([]byte(filepath.Base(d.File))), d.Mode)
	say(2, "refused by both: %s", count(d.Both, "session"))
	list := func(head string, by map[string]int) {
		if len(by) == 0 {
			say(2, "%s: none", head)
			return
		}
		say(2, "%s:", head)
		names := make([]string, 0, len(by))
		for name := range by {
			names = append(names, name)
		}
		slices.SortFunc(names, func(x, y string) int { return cmp.Or(by[y]-by[x], cmp.Compare(x, y)) })
		for _, name := range names {
			say(4, "%s by rule %s", count(by[name], "session"), name)
		}
	}
	list("refused by the tested one only", d.Only)
	list("refused by that one only", d.Gone)
}
