// Package exportlist selects bans and findings for an export, omitting hosts that must
// not be blocked.
package exportlist

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/output"
	"scanwatch/cmd/internal/selector"
	"scanwatch/cmd/internal/statedir"
	"scanwatch/filter/detect"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/internal/prefix"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/store/export"
	"scanwatch/store/history"
)

// maxHosts is the maximum number of hosts with findings.
const maxHosts = 1_000_000

// Reasons for omitting an entry, as shown to users.
const (
	reasonMail     = "hosts whose mail was accepted recently"
	reasonLogin    = "hosts with a recent login"
	reasonObserved = "bans in observe mode"
	reasonWithheld = "bans by other hosts for which this filter has rejected no client in the last day"
	reasonWaiting  = "bans by other hosts, whose standing has not arrived"
	reasonFurther  = "sessions of further hosts"
	reasonFuture   = "sessions dated in the future, recorded while the clock was wrong"
	reasonMany     = "addresses that many hosts share"
)

// exemptReasons maps results of Peers.Excuse to reasons.
var exemptReasons = map[string]string{"login": reasonLogin, "known": reasonMail, "trusted": reasonMail, "many": reasonMany}

// Options selects the entries of an export.
type Options struct {
	Dir      *statedir.Dir
	Policy   *config.Config // nil without a configuration
	Selector *selector.Selector
	Bans     bool // include bans
	Found    bool // include hosts with selected evidence; see Selector
	// Private includes private, loopback and link-local addresses.
	Private    bool
	Confidence int           // minimum rank; see export.Confidence
	TTL        time.Duration // lifetime of entries for findings
	// AcceptLoss is the last day for which the operator accepts that data may be missing: records
	// up to that day, and bans imposed before it.
	AcceptLoss time.Time
	Progress   *output.Progress
	Warn       func(string) // called for each read error
}

// LoadPolicy loads the configuration, which determines the exempt hosts. It returns an error if a
// table or database that a pass statement needs is unavailable. If the file of such a table is
// empty, that is also an error, because its entries may have been lost.
func LoadPolicy(file string) (*config.Config, error) {
	lists, err := lookup.Builtin()
	if err != nil {
		return nil, err
	}
	c, err := config.Load(file, lists, nil, false)
	if err != nil {
		return nil, err
	}
	if !c.Policy.PassesKnown() || missing(c.Policy, "asn", c.Policy.ASN, c.ASN) || missing(c.Policy, "country", c.Policy.Country, c.Country) {
		return nil, fmt.Errorf("a table of exempt hosts is not available: %s", strings.Join(c.Notes, "; "))
	}
	if c.Empty() {
		return nil, fmt.Errorf("the exempt hosts are unknown: the configuration %s is empty; if this is intended, write a comment in it", file)
	}
	for _, name := range c.Blank {
		if c.Policy.PassesUseTable(name) {
			return nil, fmt.Errorf("the exempt hosts are unknown: the file of the table <%s> is empty; if this is intended, write a comment in it", name)
		}
	}
	return c, nil
}

// missing reports whether any pass statement needs a database that is not loaded.
func missing(p *rules.Policy, word, file string, o *lookup.Origins) bool {
	return file != "" && p.PassesUse(word) && (o == nil || !o.State().Loaded)
}

// A builder collects the entries of an export.
type builder struct {
	Options
	now     time.Time
	memory  *memory.Memory
	known   known
	exempt  *config.Exempt
	banned  map[netip.Prefix]*memory.Ban
	around  lookup.Prefixes[bool] // prefixes in banned
	hosts   map[netip.Prefix]*host
	omitted map[string]int
}

// A host is a source with findings or a ban.
type host struct {
	addr        netip.Addr
	first, last time.Time
	found       time.Time // end of the last session with selected evidence
	sessions    int
	evidence    [4]rules.Evidence // by rank of confidence
	org         string
}

// Build returns the entries, and the number of omitted entries by reason.
func Build(o Options) (*export.List, map[string]int, error) {
	b := &builder{Options: o, now: o.Dir.Now(), memory: memory.New(), banned: map[netip.Prefix]*memory.Ban{},
		hosts: map[netip.Prefix]*host{}, omitted: map[string]int{}}
	var policy *rules.Policy
	if o.Policy != nil {
		policy = o.Policy.Policy
	}
	b.exempt = config.NewExempt(policy, prefix.Local())
	if err := b.readState(); err != nil {
		return nil, nil, err
	}
	since := o.Selector.Since
	from, recent := since, b.now.AddDate(0, 0, -statedir.RecentDays)
	if recent.Before(from) && b.known.needsRecords(recent) {
		from = recent // records are needed to find the hosts with accepted mail
	}
	// A host that was banned before the period may have become exempt later.
	for _, ban := range b.banned {
		if ban.Since.Before(from) && recent.Before(from) {
			from = slices.MaxFunc([]time.Time{ban.Since, recent}, time.Time.Compare)
		}
	}
	from = from.Truncate(day) // the counters count whole days
	b.known.from, b.known.sessions, b.known.cut = from, map[dayNumber]uint64{}, map[dayNumber]bool{}
	if err := b.readRecords(from); err != nil {
		return nil, nil, err
	}
	if err := b.checkComplete(recent); err != nil {
		return nil, nil, err
	}
	return b.list(), b.omitted, nil
}

// list returns the entries.
func (b *builder) list() *export.List {
	l := &export.List{Made: b.now}
	for p, ban := range b.banned {
		entry := export.Entry{Prefix: p, Kind: export.Ban, First: ban.Since, Last: ban.Last, Confidence: "high", Reason: ban.Rule + ban.On(), Expires: ban.Firewall, Listed: ban.Listed}
		if h := b.hosts[p]; h != nil {
			h.fill(&entry, b.Confidence)
		}
		b.add(l, entry)
	}
	for p, h := range b.hosts {
		if h.found.After(b.now) {
			h.found = b.now // the end is in the future, because the clock was wrong
		}
		if h.found.IsZero() || b.banned[p] != nil && b.banned[p].Firewall.After(h.found.Add(b.TTL)) {
			continue
		}
		entry := export.Entry{Prefix: p, Kind: export.Found, Expires: h.found.Add(b.TTL)}
		h.fill(&entry, b.Confidence)
		b.add(l, entry)
	}
	l.Sort()
	return l
}

// fill completes an entry with h's records and its evidence of at least the given confidence.
func (h *host) fill(entry *export.Entry, least int) {
	if entry.First.IsZero() || h.first.Before(entry.First) {
		entry.First = h.first
	}
	if h.last.After(entry.Last) {
		entry.Last = h.last
	}
	entry.First, entry.Last, entry.Expires = entry.First.UTC(), entry.Last.UTC(), entry.Expires.UTC()
	entry.Host, entry.Sessions, entry.Organisation = h.addr, h.sessions, h.org
	most := 0
	for rank, all := range h.evidence {
		if rank < least || all == 0 {
			continue
		}
		most = rank
		for e := all; e != 0; e &= e - 1 {
			entry.Evidence = append(entry.Evidence, (e & -e).String())
		}
	}
	slices.Sort(entry.Evidence)
	entry.Evidence = slices.Compact(entry.Evidence)
	if entry.Confidence == "" {
		for _, word := range []string{"low", "medium", "high"} {
			if export.Confidence(word) == most {
				entry.Confidence = word
			}
		}
	}
}

// add adds an entry, or omits it if its hosts must not be blocked.
func (b *builder) add(l *export.List, entry export.Entry) {
	if reason := b.exempt.Reason(entry.Prefix, b.Private); reason != "" {
		b.omitted[reason]++
		return
	}
	l.Entries = append(l.Entries, entry)
}

// readState reads the active bans and the hosts with accepted mail or logins.
func (b *builder) readState() error {
	var rows []store.Entry
	var corrupt error
	reader := memory.NewReader(b.now)
	err := b.Dir.State([]string{"clock", "secret", "peers", memory.BansBucket, memory.OthersBucket, "days"}, func(en store.Entry) error {
		b.known.rows++
		reader.Clock(en)
		switch en.Bucket {
		case memory.BansBucket, memory.OthersBucket:
			ban, ok := reader.Ban(en.Key, en.Value)
			switch {
			case ok:
				b.addBan(&ban)
			case !memory.ValidBan(en.Key, en.Value):
				corrupt = errors.New("state.db has invalid bans; see scanwatch fsck")
			}
		case "days":
			if d, ok := memory.ReadDay(en.Key, en.Value); ok {
				b.known.days = append(b.known.days, d)
			}
		default:
			rows = append(rows, store.Entry{Bucket: en.Bucket, Key: slices.Clone(en.Key), Value: slices.Clone(en.Value)})
		}
		return nil
	})
	if err = errors.Join(err, corrupt); err != nil {
		return err
	}
	b.memory.Expect() // the table of peers is incomplete until its last row is loaded
	b.memory.Load(slices.Values(rows), b.now.UnixMicro())
	b.known.forgotten, b.known.lost = b.memory.Peers.Forgotten()
	b.memory.Peers.Each(b.now.UnixMicro(), func(p memory.Peer) {
		reason := reasonMail
		if p.LastMail.IsZero() {
			reason = reasonLogin
		}
		b.exempt.Add(p.Prefix, reason)
	})
	return nil
}

// addBan adds an active ban if the options select it. Bans of this host, which come first, take
// precedence over bans by other hosts.
func (b *builder) addBan(ban *memory.Ban) {
	switch {
	case !b.Bans, ban.Expired(b.now), !b.Selector.HasPrefix(ban.Prefix), !b.Selector.HasRule([]byte(ban.Rule)):
	case ban.Observe:
		b.omitted[reasonObserved]++
	case b.banned[ban.Prefix] != nil:
	case !ban.Firewall.After(b.now):
		b.omitted[reasonWithheld]++
	default:
		b.banned[ban.Prefix] = ban
		b.around.Add(ban.Prefix, true)
	}
}

// omitWaiting omits other hosts' bans, which the filter does not enforce yet.
func (b *builder) omitWaiting() {
	for p, ban := range b.banned {
		if ban.Origin != "" {
			delete(b.banned, p)
			b.omitted[reasonWaiting]++
		}
	}
}

// readRecords reads all sessions that ended at or after from. Sessions outside the
// selected period serve only to identify exempt hosts.
func (b *builder) readRecords(from time.Time) error {
	r, err := b.Dir.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	if r.Client != nil {
		status, err := r.Client.Status()
		if err == nil {
			err = b.checkFilter(&status)
		}
		if err != nil {
			return err
		}
		b.known.unwritten = uint64(max(status.Live.Summed, 0))
		if status.Bans.Waiting > 0 {
			b.omitWaiting()
		}
	}
	r.Warn(b.Warn)
	ruled := false
	incomplete := len(r.Problems()) > 0
	problem := r.Problem
	r.Problem = func(segment string, err error) {
		problem(segment, err)
		// The records of a salvaged file were copied to another file.
		incomplete = incomplete || !strings.HasSuffix(segment, ".salvaged")
	}
	s := b.Selector
	visit := func(rec *store.Record) error {
		b.Progress.Add(rec.Many(), rec.End)
		inPeriod := !rec.End.Before(s.Since) && (s.Until.IsZero() || rec.End.Before(s.Until))
		if inPeriod {
			b.known.records++
		}
		b.known.sessions[dayOf(rec.End)] += uint64(rec.Many())
		if rec.Omitted > 0 {
			b.known.cut[dayOf(rec.End)] = true
		}
		ruled = ruled || b.Policy == nil && r.Client == nil && byRule(rec)
		switch {
		case rec.Local:
		case !rec.Src.IsValid():
			b.known.addNameless(rec)
		default:
			b.addSession(rec, inPeriod)
		}
		return nil
	}
	err = history.Walk(r, from, time.Time{}, history.Visitor{
		Kinds: store.KindsOf(store.KindFinding, store.KindVerdict) | s.Kinds(), Session: visit, Sum: visit})
	b.Progress.Clear()
	b.known.lossy = map[dayNumber]bool{}
	for _, d := range r.Lossy {
		b.known.lossy[dayOf(d)] = true
	}
	switch {
	case err != nil:
		return err
	case ruled:
		return errors.New("the exempt hosts are unknown: the records contain rule decisions, but no configuration was found; name it with -f")
	case b.Policy == nil && r.Client == nil:
		b.Warn("no configuration: no host is exempted by a pass statement; if the filter has a configuration, name it with -f")
	}
	switch {
	case incomplete && b.Found:
		return errors.New("the records are incomplete; see scanwatch fsck")
	}
	return r.Incomplete()
}

// addSession adds a session's findings if the session is in the selected period. Accepted mail or
// logins exempt its host.
func (b *builder) addSession(rec *store.Record, inPeriod bool) {
	if dst := rec.Dst.Addr().Unmap(); dst.IsValid() && !dst.IsUnspecified() {
		b.exempt.Add(netip.PrefixFrom(dst, dst.BitLen()), config.ReasonOwn)
	}
	p := memory.Source(rec.Src.Addr().Unmap())
	if rec.Counts.AuthPass > 0 {
		b.exempt.Add(p, reasonLogin)
		return
	}
	findings, bad, err := findingsOf(rec)
	if rec.Many() > 1 {
		bad = false // the mail may belong to another session
	}
	if !bad && rec.Counts.Mails > 0 {
		b.exempt.Add(p, reasonMail)
	}
	_, banned := b.around.Overlapping(p)
	if banned || len(findings) > 0 && inPeriod {
		b.addExempt(rec, p)
	}
	if len(findings) == 0 && b.banned[p] == nil || !inPeriod || err != nil {
		return // a corrupt record is not evidence
	}
	h := b.hosts[p]
	if h == nil {
		if len(b.hosts) >= maxHosts {
			b.omitted[reasonFurther]++
			return
		}
		h = &host{first: rec.Start}
		b.hosts[p] = h
	}
	selected := b.Found && b.Selector.Match(rec)
	if selected && rec.End.After(b.now.Add(futureDays*24*time.Hour)) {
		b.omitted[reasonFuture]++ // the true time is unknown, so the entry would never expire
		selected = false
	}
	h.add(rec, findings, selected, b.Selector, b.Confidence)
}

// futureDays is the maximum number of days that a session may end in the future, because the clock
// may have been set back since. If a session ends even later, it was recorded with a wrong clock.
const futureDays = 2

// byRule reports whether a configured rule decided on a session.
func byRule(rec *store.Record) (found bool) {
	_ = rec.Steps(func(s *store.Step) bool {
		found = s.Kind == store.KindVerdict && (!s.Banned || s.Session != 0) // a manual ban has no session
		return !found
	})
	return found
}

// ofRecipients is the evidence about rejected recipients. If a session has also delivered mail, such
// evidence may be caused by an old mailing list or by recipients who have moved.
const ofRecipients = rules.UnknownRecipient | rules.Backscatter | rules.Harvest | rules.RecipientFlood | rules.ProbedRecipient | rules.RelayProbe

// findingsOf returns a session's findings. If the session has delivered mail, findings does not
// include evidence about recipients. bad reports whether package memory would count the session as
// an offence.
func findingsOf(rec *store.Record) (findings []store.Step, bad bool, err error) {
	err = rec.Steps(func(s *store.Step) bool {
		switch {
		case s.Kind == store.KindFinding:
			token := rules.TokenByName(string(s.Text))
			if rec.Counts.Mails == 0 || token == nil || token.Evidence&ofRecipients == 0 {
				findings = append(findings, store.Step{Text: s.Text, Org: s.Org, Confidence: s.Confidence, At: s.At})
			}
			bad = bad || token == nil || token.Evidence&detect.Abuse != 0 && string(s.Confidence) != "low" || string(s.Match) == "first"
		case s.Kind == store.KindVerdict && s.Decision == smtp.Junk && s.Enforced:
			bad = true
		}
		return true
	})
	return findings, bad, err
}

// add counts a session. If the session is selected, its findings make h an entry.
func (h *host) add(rec *store.Record, findings []store.Step, selected bool, s *selector.Selector, least int) {
	h.sessions += rec.Many()
	if rec.Start.Before(h.first) {
		h.first = rec.Start
	}
	if rec.End.After(h.last) {
		h.last, h.addr = rec.End, rec.Src.Addr().Unmap()
	}
	for i := range findings {
		f := &findings[i]
		token := rules.TokenByName(string(f.Text))
		if token == nil {
			continue
		}
		rank := export.Confidence(string(f.Confidence))
		h.evidence[rank] |= token.Evidence
		if h.org == "" && rank > 1 {
			h.org = string(f.Org)
		}
		if selected && rank >= least && s.HasEvidence(f.Text) && rec.End.After(h.found) {
			h.found = rec.End
		}
	}
}

// addExempt exempts a host if it matches a pass statement at connect, or if its proven name is in a
// domain with accepted mail.
func (b *builder) addExempt(rec *store.Record, p netip.Prefix) {
	addr := rec.Src.Addr().Unmap()
	if rec.FCrDNS == smtp.FCrDNSPass {
		if reason := b.memory.Peers.Excuse(&memory.Client{Addr: addr, Domain: memory.RegisteredDomain(rec.RDNS)}, b.now.UnixMicro()); reason != "" {
			b.exempt.Add(p, exemptReasons[reason])
		}
	}
	if Passes(b.Policy, rec) != nil {
		b.exempt.Add(p, config.ReasonFriend)
	}
}

// Passes returns c's pass statement that matches the session's client at connect, or nil.
func Passes(c *config.Config, rec *store.Record) *rules.Pass {
	if c == nil || !rec.Src.IsValid() {
		return nil
	}
	return c.Policy.Eval(Facts(c, rec)).Pass
}

// Facts returns the facts about the session's client at connect, without the answers of DNS lists.
// The session's source must be known.
func Facts(c *config.Config, rec *store.Record) *rules.Facts {
	addr := rec.Src.Addr().Unmap()
	f := &rules.Facts{Phase: smtp.PhaseConnect, Now: rec.Start, Session: rec.ID, Src: addr, Dst: rec.Dst,
		RDNS: rec.RDNS, FCrDNS: rec.FCrDNS, RDNSCut: smtp.MayBeCut(rec.RDNS, rec.FCrDNS), Recorded: true}
	if c.ASN != nil {
		if origin, ok := c.ASN.Lookup(addr); ok {
			f.ASN, f.ASNKnown, f.Country = origin.ASN, true, origin.Country
		}
	}
	if f.ASN == 0 {
		if n, ok := lookup.ShippedASN(addr); ok {
			f.ASN, f.ASNKnown = n, true
		}
	}
	if c.Country != nil {
		if origin, ok := c.Country.Lookup(addr); ok {
			f.Country = origin.Country
		}
	}
	return f
}
