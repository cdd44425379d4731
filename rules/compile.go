package rules

import (
	"net/netip"
	"time"
)

// Settings are the settings of a configuration, with defaults put in.
type Settings struct {
	Mode    Mode          // Observe if not set
	Store   string        // directory; empty if not set
	Keep    time.Duration // 90 days if not set
	Budget  int64         // bytes; 512M if not set
	ASN     string        // file; empty if not set
	Country string        // file; empty if not set
	Contact string        // how to reach the postmaster; empty if not set
	Events  string        // file, FIFO or socket for events; empty if not set
	Privacy Privacy       // PrivacyDefault if not set
	Detail  Detail        // DetailFull if not set
	// Escalate says how many times longer the second, third ... ban of a
	// host is, as long as it is remembered.
	Escalate     []int
	OwnNames     []string
	OwnAddresses []netip.Prefix
}

// The defaults of the store statement.
const (
	DefaultKeep   = 90 * day
	DefaultBudget = 512 << 20
)

// DefaultEscalate is what returning hosts get if the configuration does not say.
func DefaultEscalate() []int { return []int{7, 30} }

// Settings returns what the configuration sets.
func (c *Config) Settings() Settings {
	s := Settings{Keep: DefaultKeep, Budget: DefaultBudget, Escalate: DefaultEscalate()}
	for _, st := range c.All() {
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
			s.ASN = set.Text
		case "country":
			s.Country = set.Text
		case "contact":
			s.Contact = set.Text
		case "events":
			s.Events = set.Text
		case "privacy":
			s.Privacy = set.Privacy
		case "detail":
			s.Detail = set.Detail
		case "escalate":
			s.Escalate = set.Factors
		case "own-name":
			for _, v := range set.Values {
				s.OwnNames = append(s.OwnNames, v.Text)
			}
		case "own-address":
			for _, v := range set.Values {
				s.OwnAddresses = append(s.OwnAddresses, v.Prefix)
			}
		}
	}
	return s
}

// Options say what surrounds a policy.
type Options struct {
	// Load provides a table that is not written in the configuration. It may
	// return nil for one that is not there yet: what asks for it cannot tell
	// then. With no Load that is so for all.
	Load func(Source) (Table, error)
}

// A Source is where the contents of a table come from: a file, or a list that
// is shipped with the program under the name of the table.
type Source struct {
	Table   string
	Builtin bool
	File    string // as written
	Format  string // empty to find out
	Param   string
	Pos     Pos
}

// A Policy is a configuration made ready for evaluation. It does not change
// and may be used by many goroutines at once.
type Policy struct {
	Settings
	config    *Config
	listeners []*Listener
	tables    map[string]sources
	weights   []weight
	passes    []pass
	rules     []rule
	phases    [numPhases][]int // indexes into rules
	tags      []string
	memos     uint // bits of Memo that are in use
}

type weight struct {
	evidence Evidence
	score    int
}

type pass struct {
	tree      *Pass
	listeners uint64 // 0 for all
	conds     []cond
}

type rule struct {
	tree      *Rule
	listeners uint64 // 0 for all
	auth      bool   // has an auth condition, and so looks at sessions that are exempt
	sticky    bool
	text      string
	tags      TagSet
	conds     []cond
}

// Compile checks c and makes a policy of it. It returns the warnings, too. An
// error is Errors, or one that Load returned.
func Compile(c *Config, o Options) (p *Policy, warnings Errors, err error) {
	warnings, err = c.Check(o)
	if err != nil {
		return nil, warnings, err
	}
	p = &Policy{Settings: c.Settings(), config: c, tables: map[string]sources{}}
	for file, s := range c.All() {
		switch s := s.(type) {
		case *Listener:
			p.listeners = append(p.listeners, s)
		case *TableDecl:
			if p.tables[s.Name], err = load(file, s, o.Load); err != nil {
				return nil, warnings, err
			}
		case *Weight:
			p.weights = append(p.weights, weight{s.Token.Evidence, s.Score})
		}
	}
	// Tables and listeners may stand behind the rules that use them.
	for _, s := range c.All() {
		switch s := s.(type) {
		case *Pass:
			p.passes = append(p.passes, pass{s, p.listenerSet(s.On), p.conds(s.Conds)})
		case *Rule:
			p.addRule(s)
		}
	}
	return p, warnings, nil
}

func load(file *Config, t *TableDecl, loadFile func(Source) (Table, error)) (sources, error) {
	var list sources
	if t.Inline {
		in := &inline{}
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
		srcs = append(srcs, Source{Table: t.Name, File: f.Path, Format: f.Format, Param: f.Param, Pos: f.Pos})
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

func (p *Policy) addRule(s *Rule) {
	r := rule{tree: s, listeners: p.listenerSet(s.On), sticky: s.sticky(), text: s.answer(), conds: p.conds(s.Conds)}
	for _, c := range s.Conds {
		r.auth = r.auth || c.Word == "auth"
	}
	for _, t := range s.Tags {
		i := index(p.tags, t)
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

// listenerSet returns the set that a name stands for, one bit each.
func (p *Policy) listenerSet(name string) uint64 {
	for i, l := range p.listeners {
		if l.Name == name {
			return 1 << i
		}
	}
	return 0
}

func (p *Policy) conds(trees []*Cond) []cond {
	list := make([]cond, len(trees))
	for i, tree := range trees {
		row := conditionByWord(tree.Word)
		c := &list[i]
		*c = cond{tree: tree, not: tree.Not, match: row.match, over: tree.Over, window: tree.Window, by: tree.By}
		c.first, c.last = tree.span()
		for _, v := range tree.Values {
			switch {
			case v.Kind == TableValue:
				c.tables = append(c.tables, p.tables[v.Text]...)
			case v.Kind != WordValue:
				c.add(v, row.envelope)
			case tree.Word == "listener":
				c.listeners |= p.listenerSet(v.Text)
			case tree.Word == "fcrdns":
				c.states |= 1 << index(fcrdnsNames[:], v.Text)
			default:
				c.evidence |= TokenByName(v.Text).Evidence
			}
		}
		// Lists that are loaded stay as they are for as long as there is p.
		if row.fixed && len(c.tables) > 0 && p.memos < 64 {
			c.memo = 1 << p.memos
			p.memos++
		}
	}
	return list
}

// add makes a value ready to be compared with.
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

// InMode returns the same policy in another mode, to see what it would do.
func (p *Policy) InMode(m Mode) *Policy {
	other := *p
	other.Mode = m
	return &other
}

// Only returns p with no other rules than those of that name, to see what they
// do alone; pass statements, weights and tables stay. It returns nil if there
// is none.
func (p *Policy) Only(name string) *Policy {
	other := *p
	other.rules, other.phases = nil, [numPhases][]int{}
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

// String returns the configuration in its canonical form.
func (p *Policy) String() string { return p.config.String() }

// Rules returns the rules in their order.
func (p *Policy) Rules() []*Rule {
	list := make([]*Rule, len(p.rules))
	for i := range p.rules {
		list[i] = p.rules[i].tree
	}
	return list
}

// Table returns the table of that name, or nil. What is not loaded yet matches
// nothing.
func (p *Policy) Table(name string) Table {
	if t, ok := p.tables[name]; ok {
		return t
	}
	return nil
}

// Phases returns the phases the policy has to be asked at: those of its rules,
// and all in which a decision that holds for the session has to be repeated.
func (p *Policy) Phases() (set PhaseSet) {
	for i := range p.rules {
		r := &p.rules[i]
		set |= r.tree.Phases
		if r.sticky && r.tree.Decision != Disconnect {
			set |= from(Helo)
		}
	}
	return set
}

// Needs says which facts a policy looks at, apart from those that smtpd gives.
type Needs struct {
	ASN      bool
	Country  bool
	SeenGood bool
	Evidence Evidence
	Windows  []Window
	Names    bool // who writes, to whom, or who logged in: what may be kept as a hash only
}

// A Window is a count over sessions that a rule asks for.
type Window struct {
	Evidence Evidence
	Window   time.Duration
	By       Key
}

// Needs returns the facts that rules and pass statements look at.
func (p *Policy) Needs() (n Needs) {
	visit := func(cs []cond) {
		for i := range cs {
			c := &cs[i]
			n.ASN = n.ASN || c.tree.Word == "asn" || c.by == ByASN
			n.Country = n.Country || c.tree.Word == "country"
			n.SeenGood = n.SeenGood || c.tree.Word == "seen-good"
			n.Evidence |= c.evidence
			n.Names = n.Names || c.tree.Word == "mail-from" || c.tree.Word == "rcpt-to" || c.tree.Word == "auth" && len(c.tree.Values) > 0
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
