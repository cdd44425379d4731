package rules

import (
	"net/netip"
	"slices"
	"time"

	"scanwatch/internal/smtp"
)

// Settings holds the settings in a configuration. Settings that are not in the configuration have
// their default.
type Settings struct {
	Mode         Mode          // Observe if not set
	Store        string        // directory; empty if there is no store statement
	Keep         time.Duration // 90 days if not set
	Budget       int64         // bytes; 512M if not set
	ASN          string        // path of the file; empty if not set
	Country      string        // path of the file; empty if not set
	ASNFrom      Download
	CountryFrom  Download
	Contact      string  // contact for senders of mail; empty if not set
	Privacy      Privacy // PrivacyFull if not set
	Log          Log
	OwnNames     []string
	OwnAddresses []netip.Prefix
	Gateways     []netip.Prefix // addresses shared by many hosts
	Delimiter    byte           // character between a mailbox and its detail; the default is +
	// RunDir is the directory of the companions' socket. RunDir is empty if not set.
	RunDir     string
	Companions []*Companion
	Zones      []*Zone
	Lookups    []*Lookup
	Fleet      *Fleet // nil if there are no other hosts
}

// These are the defaults of the store statement.
const (
	DefaultKeep   = 90 * day
	DefaultBudget = 512 << 20
)

// Settings returns the settings in the configuration.
func (c *Config) Settings() Settings {
	s := Settings{Keep: DefaultKeep, Budget: DefaultBudget, Delimiter: '+'}
	for _, st := range c.All() {
		switch st := st.(type) {
		case *Companion:
			s.Companions = append(s.Companions, st)
		case *Zone:
			s.Zones = append(s.Zones, st)
		case *Lookup:
			s.Lookups = append(s.Lookups, st)
		case *Fleet:
			s.Fleet = st
		}
		set, ok := st.(*Setting)
		if !ok {
			continue
		}
		switch set.Word {
		case "mode":
			s.Mode = set.Mode
		case "store":
			s.Store = set.Text
			if set.Keep > 0 {
				s.Keep = set.Keep
			}
			if set.Budget > 0 {
				s.Budget = set.Budget
			}
		case "asn":
			s.ASN, s.ASNFrom = set.Text, set.Download
		case "country":
			s.Country, s.CountryFrom = set.Text, set.Download
		case "contact":
			s.Contact = set.Text
		case "privacy":
			s.Privacy = set.Privacy
		case "log":
			s.Log = set.Log
		case "own-name":
			for _, v := range set.Values {
				s.OwnNames = append(s.OwnNames, v.Text)
			}
		case "own-address":
			for _, v := range set.Values {
				s.OwnAddresses = append(s.OwnAddresses, v.Prefix)
			}
		case "delimiter":
			s.Delimiter = set.Text[0]
		case "rundir":
			s.RunDir = set.Text
		case "gateway":
			for _, v := range set.Values {
				s.Gateways = append(s.Gateways, v.Prefix)
			}
		}
	}
	return s
}

// Options holds the functions that a policy needs.
type Options struct {
	// Load loads a table whose entries are not in the configuration. If Load returns nil,
	// conditions on the table are unknown. If Load itself is nil, tables whose entries are not in
	// the configuration are not loaded.
	Load func(Source) (Table, error)
}

// A Source is the origin of a table's entries. A Source is a file, or the shipped list with the
// name of the table.
type Source struct {
	Table   string
	Builtin bool
	File    string // path as written in the configuration
	Format  string // format of the file; empty to detect it
	Param   string
	Download
	Pos     Pos
	Exempts bool // the table is used only for exemptions
}

// A Policy is a compiled configuration. A Policy is read-only and safe for concurrent use.
type Policy struct {
	Settings
	config    *Config
	listeners []*Listener
	tables    map[string]sources
	weights   []weight
	passes    []pass
	rules     []rule
	phases    [smtp.NumPhases][]int // indexes of the rules in each phase
	tags      []string
	friends   friends
}

type weight struct {
	evidence Evidence
	score    int
}

type pass struct {
	tree      *Pass
	listeners uint64 // set of listeners; 0 for all
	conds     []cond
}

type rule struct {
	tree      *Rule
	listeners uint64 // set of listeners; 0 for all
	auth      bool   // the rule has a condition on auth, so it applies to authenticated sessions
	sticky    bool
	shield    shield
	listed    bool // the rule may match because the client is on a DNS list
	ladder    []time.Duration
	text      string
	tags      TagSet
	conds     []cond
}

// Compile checks and compiles c. The warnings are the same as Check's. The error is of type Errors.
func Compile(c *Config, o Options) (p *Policy, warnings Errors, err error) {
	k := c.check()
	if warnings, err = k.result(); err != nil {
		return nil, warnings, err
	}
	p = &Policy{Settings: c.Settings(), config: c, tables: map[string]sources{}}
	for file, s := range c.All() {
		switch s := s.(type) {
		case *Listener:
			p.listeners = append(p.listeners, s)
		case *TableDecl:
			if p.tables[s.Name], err = load(file, s, exempts(k, s.Name), o.Load); err != nil {
				return nil, warnings, err
			}
		case *Weight:
			p.weights = append(p.weights, weight{s.Token.Evidence, s.Score})
		}
	}
	tableTraps(k, p.tables)
	warnings, _ = k.result()
	// Compile the declarations first, because a rule may come before the tables and listeners that
	// it uses.
	for _, s := range c.All() {
		switch s := s.(type) {
		case *Pass:
			p.passes = append(p.passes, pass{s, listenerSet(p, s.On), compileConds(p, s.Conds)})
		case *Rule:
			addRule(p, s)
		}
	}
	p.friends = findFriends(p)
	return p, warnings, nil
}

func load(file *Config, t *TableDecl, exempts bool, loadFile func(Source) (Table, error)) (sources, error) {
	var list sources
	if t.Inline {
		in := &inline{contents: contents(t.Values)}
		for _, v := range t.Values {
			in.c.add(v, false)
		}
		list = append(list, in)
	}
	var srcs []Source
	if t.Builtin {
		srcs = append(srcs, Source{Table: t.Name, Builtin: true, Pos: t.Pos})
	}
	for _, f := range t.Files {
		srcs = append(srcs, Source{Table: t.Name, File: f.Path, Format: f.Format, Param: f.Param, Download: f.Download, Pos: f.Pos, Exempts: exempts})
	}
	for _, s := range srcs {
		if loadFile == nil {
			list = append(list, nil)
			continue
		}
		loaded, err := loadFile(s)
		if err != nil {
			return nil, Errors{{Pos: s.Pos, Source: file.lexer.source(s.Pos), Msg: "table <" + t.Name + ">: " + err.Error()}}
		}
		list = append(list, loaded)
	}
	return list, nil
}

func addRule(p *Policy, s *Rule) {
	r := rule{tree: s, listeners: listenerSet(p, s.On), sticky: s.sticky(), shield: s.shield(), listed: s.Has(Listed), ladder: s.Ladder(), text: s.answer(), conds: compileConds(p, s.Conds)}
	for _, c := range s.Conds {
		r.auth = r.auth || c.Word == "auth"
		r.listed = r.listed || c.Word == "listed" || c.Word == "score" && scoresListed(p)
	}
	for _, t := range s.Tags {
		i := slices.Index(p.tags, t)
		if i < 0 {
			i = len(p.tags)
			p.tags = append(p.tags, t)
		}
		r.tags |= 1 << i
	}
	for _, phase := range s.Phases.List() {
		p.phases[phase] = append(p.phases[phase], len(p.rules))
	}
	p.rules = append(p.rules, r)
}

// listenerSet returns a set that contains only the listener with the given name.
func listenerSet(p *Policy, name string) uint64 {
	for i, l := range p.listeners {
		if l.Name == name {
			return 1 << i
		}
	}
	return 0
}

func compileConds(p *Policy, trees []*Cond) []cond {
	list := make([]cond, len(trees))
	for i, tree := range trees {
		row := conditionByWord(tree.Word)
		c := &list[i]
		*c = cond{tree: tree, not: tree.Not, delimiter: p.Delimiter, match: row.match, over: tree.Over, window: tree.Window, by: tree.By}
		c.first, c.last = tree.span()
		for _, v := range tree.Values {
			switch {
			case v.Kind == TableValue:
				c.tables = append(c.tables, p.tables[v.Text]...)
			case v.Kind != WordValue:
				c.add(v, row.envelope)
			case tree.Word == "listener":
				c.listeners |= listenerSet(p, v.Text)
			case tree.Word == "listed": // matchListed reads the values from the tree
			case tree.Word == "fcrdns":
				c.states |= 1 << smtp.ParseFCrDNS([]byte(v.Text))
			default:
				c.evidence |= TokenByName(v.Text).Evidence
			}
		}
	}
	// If the name of a rented host fails FCrDNS, the evidence that the host is rented has low
	// confidence. A rule that requires the evidence and the failure could otherwise never match, so
	// it accepts low confidence.
	if slices.ContainsFunc(list, func(c cond) bool { return c.tree.Word == "fcrdns" && c.lacksName() }) {
		for i := range list {
			c := &list[i]
			c.weak = c.tree.Word == "evidence" && c.evidence == Cloud && !c.not
		}
	}
	return list
}

// lacksName reports whether a condition on FCrDNS matches clients that fail FCrDNS.
func (c *cond) lacksName() bool { return (c.states&(1<<smtp.FCrDNSFail) != 0) != c.not }

func (c *cond) add(v Value, envelope bool) {
	switch v.Kind {
	case PrefixValue:
		c.prefixes = append(c.prefixes, v.Prefix)
	case ASValue:
		c.as = append(c.as, v.AS)
	default:
		c.names = append(c.names, newPattern(v, envelope))
	}
}

// InMode returns a copy of p with the mode m.
func (p *Policy) InMode(m Mode) *Policy {
	other := *p
	other.Mode = m
	return &other
}

// Only returns a copy of p that contains only the rule with the given name. The copy also contains
// all pass statements, weights and tables. If no rule has the given name, Only returns nil.
func (p *Policy) Only(name string) *Policy {
	other := *p
	other.rules, other.phases = nil, [smtp.NumPhases][]int{}
	for _, r := range p.rules {
		if r.tree.Name != name {
			continue
		}
		for _, phase := range r.tree.Phases.List() {
			other.phases[phase] = append(other.phases[phase], len(other.rules))
		}
		other.rules = append(other.rules, r)
	}
	if len(other.rules) == 0 {
		return nil
	}
	return &other
}

// String returns the policy's configuration in canonical form.
func (p *Policy) String() string { return p.config.String() }

// Rules returns the rules in the order of the configuration.
func (p *Policy) Rules() []*Rule {
	list := make([]*Rule, len(p.rules))
	for i := range p.rules {
		list[i] = p.rules[i].tree
	}
	return list
}

// Submission reports whether the listener at dst is for users' mail programs, which may greet with
// any name. Such a listener has the port 465 or 587 (RFC 8314, RFC 6409), or the name submission.
func (p *Policy) Submission(dst netip.AddrPort) bool {
	if dst.Port() == 465 || dst.Port() == 587 {
		return true
	}
	return p != nil && slices.ContainsFunc(p.listeners, func(l *Listener) bool { return l.Name == "submission" && l.match(dst) })
}

// Table returns the table with the given name, or nil. Parts of the table that are not loaded match
// nothing.
func (p *Policy) Table(name string) Table {
	if t, ok := p.tables[name]; ok {
		return t
	}
	return nil
}

// Phases returns the phases in which the caller must evaluate the policy. The policy must be
// evaluated in all phases with rules. If the decision of a rule is sticky, all phases after it are
// included as well.
func (p *Policy) Phases() (set smtp.PhaseSet) {
	for i := range p.rules {
		r := &p.rules[i]
		set |= r.tree.Phases
		if r.sticky && r.tree.Decision != smtp.Disconnect {
			set |= smtp.PhasesFrom(r.tree.Phases.List()[0])
		}
	}
	return set
}

// Needs describes the facts that a policy uses and that smtpd does not report.
type Needs struct {
	ASN      bool
	Country  bool
	Standing bool
	Evidence Evidence
	Windows  []Window
	Names    bool // the policy uses senders, recipients or users, which may be hashed in records
}

// A Window describes a count over several sessions that a rule uses.
type Window struct {
	Evidence Evidence
	Window   time.Duration
	By       Key
}

// Needs returns the facts that all rules, pass statements and weights need.
func (p *Policy) Needs() (n Needs) {
	visit := func(cs []cond) {
		for i := range cs {
			c := &cs[i]
			n.ASN = n.ASN || c.tree.Word == "asn" || c.by == ByASN
			n.Country = n.Country || c.tree.Word == "country"
			n.Standing = n.Standing || c.tree.Word == "known" || c.tree.Word == "trusted"
			n.Evidence |= c.evidence
			n.Names = n.Names || c.tree.Word == "mail-from" || c.tree.Word == "rcpt-to" || c.tree.Word == "auth-failed" || c.tree.Word == "auth" && len(c.tree.Values) > 0
			if c.window > 0 {
				n.Windows = append(n.Windows, Window{c.evidence, c.window, c.by})
			}
		}
	}
	for i := range p.passes {
		visit(p.passes[i].conds)
	}
	for i := range p.rules {
		visit(p.rules[i].conds)
	}
	for _, w := range p.weights {
		n.Evidence |= w.evidence
	}
	return n
}
