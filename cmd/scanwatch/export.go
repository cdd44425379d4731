package main

// The verb export: bans and findings for firewalls, mail servers and services.

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/filter/lookup"
	"scanwatch/filter/lookup/feed"
	"scanwatch/filter/memory"
	"scanwatch/filter/session"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/store/export"
)

const exportHelp = `Without --evidence the bans that hold, with it the hosts found with such
evidence; with --bans both. Never written: friends, this host's own addresses,
and hosts from which mail was accepted or somebody logged in lately.

  --evidence TOKEN,...   hosts found with one of these; any stands for all
  --min-confidence WORD  high, medium or low; medium by default. A ban is high
  --since WHEN           how far back sessions are read; 7d by default
  --ttl DURATION         for how long a host is listed after it was seen last,
                         unless it is banned; 7d by default
  --bans                 bans as well
  --aggregate            make one network of two halves, of nothing unlisted
  --private              private, loopback and link-local addresses, too
  --diff STATEFILE       only what has changed since STATEFILE; what holds now
                         goes to STATEFILE.new. When the consumer has taken the
                         changes: mv STATEFILE.new STATEFILE
  -o FILE                write to FILE, and replace it in one step
  -v                     say what was left out

FORMAT is one of:
`

// exportHelpText is the help with the formats.
func exportHelpText() string {
	var b strings.Builder
	b.WriteString(exportHelp)
	for _, f := range export.Formats() {
		fmt.Fprintf(&b, "  %-10s %s\n", f.Name, f.Short)
	}
	b.WriteString(sinceHelp)
	return b.String()
}

const (
	exportTime = "7d" // of --since and --ttl
	// maxExported is how many hosts are told apart in what is recorded.
	maxExported = 1_000_000
	// exportMode is that of a new file: daemons read it as users of their own.
	exportMode = 0o644
)

// An exporter gathers what is exported.
type exporter struct {
	e          *env
	policy     *config.Config // nil if there is none
	memory     *memory.Memory
	spared     lookup.Prefixes[string] // networks with what speaks for them
	evidence   map[string]bool         // that is asked for; nil for none
	any        bool
	bans       bool
	private    bool
	confidence int
	ttl        time.Duration

	banned  map[netip.Prefix]*memory.Ban
	around  lookup.Prefixes[bool] // the same, to find who lies within
	sources map[netip.Prefix]*exportSource
	left    map[string]int // entries that are left out, by reason
}

// exportSource is what is recorded of one host.
type exportSource struct {
	host        netip.Addr
	first, last time.Time
	found       time.Time // when there was evidence that is asked for last
	sessions    int
	evidence    [4]rules.Evidence // by rank of confidence
	org         string
}

func exportVerb(e *env, args []string) error {
	evidence := e.flags.String("evidence", "", "")
	least := e.flags.String("min-confidence", "", "")
	when := e.flags.String("since", exportTime, "")
	ttl := e.flags.String("ttl", exportTime, "")
	bans := e.flags.Bool("bans", false, "")
	aggregate := e.flags.Bool("aggregate", false, "")
	private := e.flags.Bool("private", false, "")
	diff := e.flags.String("diff", "", "")
	output := e.flags.String("o", "", "")
	verbose := e.flags.Bool("v", false, "")
	args, err := e.parse(args, 0, 1)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		return usage("export: in which format?\n%s", exportHelpText())
	}
	format := export.FormatByName(args[0])
	if format == nil {
		return usage("export %q: there is no such format; see scanwatch export -h", args[0])
	}
	if *diff != "" && !format.Changes() {
		return usage("export %s: --diff makes no sense: an entry ends because %s", format.Name, format.Ends)
	}
	x := &exporter{e: e, memory: memory.New(), any: *evidence == "any", private: *private,
		banned: map[netip.Prefix]*memory.Ban{}, sources: map[netip.Prefix]*exportSource{}, left: map[string]int{}}
	if *evidence != "" && !x.any {
		x.evidence = map[string]bool{}
		for token := range strings.SplitSeq(*evidence, ",") {
			if rules.TokenByName(token) == nil {
				return usage("--evidence %q: there is no such token; the manual scanwatch.conf(5) lists them", token)
			}
			x.evidence[token] = true
		}
	}
	x.any = x.any || *evidence == "" && *least != ""
	x.bans = *bans || x.evidence == nil && !x.any
	if x.confidence = export.Confidence(cmp.Or(*least, "medium")); x.confidence == 0 {
		return usage("--min-confidence %q: must be high, medium or low", *least)
	}
	if x.ttl, err = span(*ttl); err != nil || x.ttl < time.Minute || x.ttl > 366*24*time.Hour {
		return usage("--ttl %q: must be a time span from 1m to 366d", *ttl)
	}
	since, err := e.since(*when)
	if err != nil {
		return err
	}
	before, err := exportState(*diff, format)
	if err != nil {
		return err
	}
	// Only the consumer knows whether it has taken the changes, so the state file
	// is its to replace. What an export has left that it did not take must not be.
	told := *diff + ".new"
	if *diff != "" && *output == told {
		return usage("export: -o %s is where --diff notes what it has told", told)
	}
	if *diff != "" {
		if err := os.Remove(told); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	list, err := x.list(since)
	if err != nil {
		return err
	}
	if *aggregate {
		list.Aggregate()
	}
	var after *export.State
	leftOut := 0
	write := func(w io.Writer) (err error) {
		if *diff != "" {
			after, leftOut, err = format.WriteChanges(w, list, before)
		} else {
			leftOut, err = format.Write(w, list)
		}
		return err
	}
	if *output != "" {
		err = replaceFile(*output, exportMode, write)
	} else {
		err = errors.Join(write(e.out), e.out.Flush())
	}
	if err != nil {
		return err
	}
	if after != nil {
		if err := replaceFile(told, exportMode, func(w io.Writer) error { return export.WriteState(w, after) }); err != nil {
			return fmt.Errorf("what was written is not noted, and will come again: %w", err)
		}
	}
	if leftOut > 0 {
		x.left[format.Name+" cannot express them, or takes no more"] += leftOut
	}
	if *verbose || newProgress(e).shown {
		x.tell(list)
	}
	return nil
}

// exportState reads the state file of the last export; nil if there is none.
func exportState(name string, f *export.Format) (*export.State, error) {
	if name == "" {
		return nil, nil
	}
	file, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	s, err := export.ReadState(file)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the state file %s: %w; remove it to begin anew", name, err)
	case s.Format != f.Name:
		return nil, fmt.Errorf("%s is the state of %q, not of %s: each consumer needs a file of its own", name, s.Format, f.Name)
	}
	return s, nil
}

// list gathers the entries.
func (x *exporter) list(since time.Time) (*export.List, error) {
	now := x.e.now()
	if err := x.load(); err != nil {
		return nil, err
	}
	noted, err := x.remember()
	if err != nil {
		return nil, err
	}
	from, recent := since, now.AddDate(0, 0, -recentDays)
	if recent.Before(from) && (noted.IsZero() || noted.After(recent)) {
		from = recent // nothing else tells whose mail was accepted
	}
	// Who was banned then may be excused now.
	for p := range x.banned {
		if b := x.banned[p].Since; b.Before(from) && recent.Before(from) {
			from = slices.MaxFunc([]time.Time{b, recent}, time.Time.Compare)
		}
	}
	if err := x.read(from, since); err != nil {
		return nil, err
	}
	l := &export.List{Made: now}
	for p, b := range x.banned {
		entry := export.Entry{Prefix: p, Kind: export.Ban, First: b.Since, Last: b.Last, Confidence: "high", Reason: b.Rule, Expires: b.Until}
		if s := x.sources[p]; s != nil {
			s.fill(&entry, x.confidence)
		}
		x.add(l, entry)
	}
	for p, s := range x.sources {
		if s.found.IsZero() || x.banned[p] != nil && x.banned[p].Until.After(s.found.Add(x.ttl)) {
			continue
		}
		entry := export.Entry{Prefix: p, Kind: export.Found, Expires: s.found.Add(x.ttl)}
		s.fill(&entry, x.confidence)
		x.add(l, entry)
	}
	l.Sort()
	return l, nil
}

// fill puts into an entry what is recorded of s, with the evidence of at least
// that confidence.
func (s *exportSource) fill(entry *export.Entry, least int) {
	if entry.First.IsZero() || s.first.Before(entry.First) {
		entry.First = s.first
	}
	if s.last.After(entry.Last) {
		entry.Last = s.last
	}
	entry.First, entry.Last, entry.Expires = entry.First.UTC(), entry.Last.UTC(), entry.Expires.UTC()
	entry.Host, entry.Sessions, entry.Organisation = s.host, s.sessions, s.org
	most := 0
	for rank, all := range s.evidence {
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

// add adds an entry, unless something speaks for it.
func (x *exporter) add(l *export.List, entry export.Entry) {
	if why := x.speaksFor(entry.Prefix); why != "" {
		x.left[why]++
		return
	}
	l.Entries = append(l.Entries, entry)
}

// speaksFor tells why p must not be exported, "" if it may.
func (x *exporter) speaksFor(p netip.Prefix) string {
	if why, ok := x.spared.Overlapping(p); ok {
		return why
	}
	if x.policy != nil && x.policy.Policy.Friends(p) != rules.No {
		return "friends"
	}
	if why := feed.Forbidden(p); why != "" && (!x.private || p.Bits() == 0) {
		return why
	}
	return ""
}

// load loads the configuration, for what speaks for a host. One that cannot be
// loaded is an error: nobody could tell who is a friend.
func (x *exporter) load() error {
	for _, a := range ownAddrs() {
		x.spare(netip.PrefixFrom(a, a.BitLen()), "addresses of this host")
	}
	name := x.e.find(x.e.file)
	if name == "" {
		return nil
	}
	lists, err := lookup.Builtin()
	if err != nil {
		return err
	}
	c, err := config.Load(name, lists, nil, false)
	if err != nil {
		fmt.Fprint(x.e.err, config.Detail(err))
		return fmt.Errorf("nothing was exported: without %s nobody can tell who is a friend", name)
	}
	for _, p := range c.Policy.OwnAddresses {
		x.spare(p, "addresses of this host")
	}
	// Any address will do: only a table that is missing makes it unknown.
	if c.Policy.Friends(netip.MustParsePrefix("0.0.0.0/32")) == rules.Unknown {
		return fmt.Errorf("nothing was exported: a table of friends is not there: %s", strings.Join(c.Notes, "; "))
	}
	x.policy = c
	return nil
}

func (x *exporter) spare(p netip.Prefix, why string) { x.spared.Add(p, why) }

// remember reads what is known across sessions: the bans that hold, and whose
// mail was accepted or who has logged in lately. It returns since when that was
// noted, zero if it was not.
func (x *exporter) remember() (noted time.Time, err error) {
	now := x.e.now()
	var rows []store.Entry
	err = x.e.state([]string{"secret", "peers", "bans", "days"}, func(en store.Entry) error {
		switch en.Bucket {
		case "bans":
			x.ban(memory.ReadBan(en.Key, en.Value))
		case "days":
			if d, ok := memory.ReadDay(en.Key, en.Value); ok && (noted.IsZero() || d.Day.Before(noted)) {
				noted = d.Day
			}
		default:
			rows = append(rows, store.Entry{Bucket: en.Bucket, Key: slices.Clone(en.Key), Value: slices.Clone(en.Value)})
		}
		return nil
	})
	if err != nil {
		return noted, err
	}
	x.memory.Load(slices.Values(rows), now.UnixMicro())
	x.memory.Peers(now.UnixMicro(), func(p memory.Peer) {
		why := "mail"
		if p.LastMail.IsZero() {
			why = "login"
		}
		x.spare(p.Prefix, goodWords[why])
	})
	return noted, nil
}

// ban takes a ban, if there is one and it counts.
func (x *exporter) ban(b memory.Ban, ok bool) {
	switch {
	case !ok, !x.bans, b.Over(x.e.now()):
	case b.Observe:
		x.left["bans that are only observed"]++
	default:
		x.banned[b.Prefix] = &b
		x.around.Add(b.Prefix, true)
	}
}

// goodWords are the words for what memory.Spared returns.
var goodWords = map[string]string{
	"login":       "hosts from which somebody logged in",
	"mail":        "hosts whose mail was accepted lately",
	"mail-domain": "hosts whose mail was accepted lately",
}

// read goes through the sessions since from. Those before since only tell who
// is good.
func (x *exporter) read(from, since time.Time) error {
	r, client, problems, err := x.e.reader()
	if err != nil {
		return err
	}
	if client != nil {
		defer client.Close()
	}
	x.e.warn(r, problems)
	progress := newProgress(x.e)
	err = each(r, from, func(rec *store.Record) error {
		progress.tell(1, rec.End)
		if rec.Local || !rec.Src.IsValid() {
			return nil
		}
		if dst := rec.Dst.Addr().Unmap(); dst.IsValid() && !dst.IsUnspecified() {
			x.spare(netip.PrefixFrom(dst, dst.BitLen()), "addresses of this host")
		}
		return x.session(rec, !rec.End.Before(since))
	})
	progress.clear()
	return cmp.Or(err, unread(r))
}

// session takes one session.
func (x *exporter) session(rec *store.Record, counts bool) error {
	p := memory.Source(rec.Src.Addr().Unmap())
	if rec.Counts.AuthPass > 0 {
		x.spare(p, goodWords["login"])
		return nil
	}
	var findings []store.Step
	bad := false // as memory sees it: what no mail server does
	err := rec.Steps(func(s *store.Step) bool {
		switch {
		case s.Kind == store.KindFinding:
			findings = append(findings, store.Step{Text: s.Text, Org: s.Org, Confidence: s.Confidence, At: s.At})
			token := rules.TokenByName(string(s.Text))
			bad = bad || token == nil || token.Evidence&session.Abuse != 0 && string(s.Confidence) != "low" || string(s.Match) == "first"
		case s.Kind == store.KindVerdict && string(s.Reply) == "junk" && s.Result == store.ResultOK:
			bad = true
		}
		return true
	})
	if !bad && rec.Counts.Mails > 0 {
		x.spare(p, goodWords["mail"])
	}
	_, banned := x.around.Overlapping(p)
	if banned || len(findings) > 0 && counts {
		x.excused(rec, p)
	}
	if len(findings) == 0 && x.banned[p] == nil || !counts || err != nil {
		return nil // a damaged record proves nothing
	}
	s := x.sources[p]
	if s == nil {
		if len(x.sources) >= maxExported {
			x.left["sessions of more hosts than are told apart"]++
			return nil
		}
		s = &exportSource{first: rec.Start}
		x.sources[p] = s
	}
	s.sessions += rec.Many()
	if rec.Start.Before(s.first) {
		s.first = rec.Start
	}
	if rec.End.After(s.last) {
		s.last, s.host = rec.End, rec.Src.Addr().Unmap()
	}
	for i := range findings {
		f := &findings[i]
		token := rules.TokenByName(string(f.Text))
		if token == nil {
			continue
		}
		rank := export.Confidence(string(f.Confidence))
		s.evidence[rank] |= token.Evidence
		if s.org == "" && rank > 1 {
			s.org = string(f.Org)
		}
		if rank >= x.confidence && (x.any || x.evidence[token.Name]) && rec.End.After(s.found) {
			s.found = rec.End
		}
	}
	return nil
}

// cutRDNS is the length at which smtpd cuts names on Linux.
const cutRDNS = 64

// excused spares a host that a pass statement would have let through, or whose
// proven name belongs to somebody whose mail was accepted.
func (x *exporter) excused(rec *store.Record, p netip.Prefix) {
	addr := rec.Src.Addr().Unmap()
	proven := rec.FCrDNS == store.FCrDNSPass && len(rec.RDNS) < cutRDNS
	if proven {
		if why := x.memory.Spared(&memory.Who{Addr: addr, RDNS: rec.RDNS}, x.e.now().UnixMicro()); why != "" {
			x.spare(p, goodWords[why])
		}
	}
	if passes(x.policy, rec) != nil {
		x.spare(p, "hosts that the policy lets pass")
	}
}

// passes returns the pass statement that lets through whoever had a session, as soon
// as he connects; nil if there is none.
func passes(c *config.Config, rec *store.Record) *rules.Pass {
	if c == nil || !rec.Src.IsValid() {
		return nil
	}
	addr := rec.Src.Addr().Unmap()
	f := rules.Facts{Phase: rules.Connect, Now: rec.Start, Session: rec.ID, Src: addr, Dst: rec.Dst,
		RDNS: rec.RDNS, FCrDNS: rules.FCrDNS(rec.FCrDNS), RDNSCut: len(rec.RDNS) >= cutRDNS}
	if c.ASN != nil {
		if origin, ok := c.ASN.Lookup(addr); ok {
			f.ASN, f.ASNKnown, f.Country = origin.ASN, true, origin.Country
		}
	}
	if c.Country != nil {
		if origin, ok := c.Country.Lookup(addr); ok {
			f.Country = origin.Country
		}
	}
	return c.Policy.Eval(&f).Pass
}

// tell says on standard error what was left out.
func (x *exporter) tell(l *export.List) {
	fmt.Fprintf(x.e.err, "scanwatch: %d exported\n", len(l.Entries))
	for _, why := range slices.Sorted(maps.Keys(x.left)) {
		fmt.Fprintf(x.e.err, "scanwatch: left out %d: %s\n", x.left[why], why)
	}
}
