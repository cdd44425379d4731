package rules

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"scanwatch/internal/smtp"
)

// wellKnown contains the tables that the program itself uses. wellKnown maps each to a condition
// that uses the same class of table entries.
var wellKnown = map[string]string{"friends": "src", "local-domains": "local-domains"}

// Limits of a configuration.
const (
	maxRules     = 2000 // limited because all pairs of rules are compared
	maxListeners = 64   // limited because a set of listeners is a uint64
)

// Check returns the warnings and errors about c in the order of the file. The error is of type
// Errors.
func (c *Config) Check(o Options) (warnings Errors, err error) {
	k := c.check()
	return k.result()
}

func (c *Config) check() *checker {
	k := &checker{
		settings:  c.Settings(),
		tables:    map[string]*declared{},
		listeners: map[string]*declared{},
		listens:   map[string]*Listener{},
		once:      map[string]Pos{},
		tags:      map[string]bool{},
		files:     map[string]*Config{},
		listed:    map[string]*declaredLookup{},
	}
	// Collect all declarations first, because statements may use a name before it is declared.
	for file, s := range c.All() {
		if k.files[file.File] == nil {
			k.files[file.File] = file
			k.order = append(k.order, file.File)
		}
		k.declare(s)
	}
	for _, p := range k.passes {
		k.pass(p)
	}
	for _, r := range k.rules {
		k.rule(r)
	}
	k.scores()
	checkCompanions(k)
	checkLookups(k)
	checkFleet(k)
	k.unused()
	k.shadows()
	return k
}

// result returns the warnings and errors in the order of the files.
func (k *checker) result() (warnings Errors, err error) {
	for _, list := range []Errors{k.errors, k.warnings} {
		slices.SortStableFunc(list, func(a, b *Error) int {
			if a.File != b.File {
				return slices.Index(k.order, a.File) - slices.Index(k.order, b.File)
			}
			if a.Line != b.Line {
				return a.Line - b.Line
			}
			return a.Column - b.Column
		})
	}
	if len(k.errors) > 0 {
		return k.warnings, k.errors[:min(len(k.errors), maxErrors)]
	}
	return k.warnings, nil
}

// A declared is a name that a statement declares.
type declared struct {
	pos  Pos
	used bool
	uses []use // conditions that use the table
}

type checker struct {
	settings  Settings
	files     map[string]*Config
	order     []string // names of the files in the order in which they are read
	tables    map[string]*declared
	listeners map[string]*declared
	listens   map[string]*Listener
	decls     []*TableDecl
	once      map[string]Pos // positions of settings and of rules' names
	tags      map[string]bool
	macros    []*Macro
	passes    []*Pass
	rules     []*Rule
	weights   []*Weight

	companions []*Companion
	zones      []*Zone
	lookups    []*Lookup
	fleet      *Fleet // nil if there is no fleet statement
	listed     map[string]*declaredLookup

	errors, warnings Errors
}

func (k *checker) at(pos Pos, hint, format string, args []any) *Error {
	e := &Error{Pos: pos, Msg: fmt.Sprintf(format, args...), Hint: hint}
	if f := k.files[pos.File]; f != nil {
		e.Source = f.lexer.source(pos)
	}
	return e
}

func (k *checker) errorf(pos Pos, hint, format string, args ...any) {
	k.errors = append(k.errors, k.at(pos, hint, format, args))
}

func (k *checker) warnf(pos Pos, hint, format string, args ...any) {
	e := k.at(pos, hint, format, args)
	e.Warning = true
	k.warnings = append(k.warnings, e)
}

// unique adds an error if a statement has occurred before.
func (k *checker) unique(what string, pos Pos) {
	if before, ok := k.once[what]; ok {
		k.errorf(pos, "", "%s is a duplicate of %s", what, before)
		return
	}
	k.once[what] = pos
}

func (k *checker) declare(s Statement) {
	switch s := s.(type) {
	case *Setting:
		if len(s.Values) == 0 { // a statement with a list may be repeated
			k.unique(s.Word, s.Pos)
		}
		checkOwn(k, s)
	case *Companion:
		k.companions = append(k.companions, s)
	case *Zone:
		k.unique("zone "+s.Name, s.Pos)
		k.zones = append(k.zones, s)
	case *Lookup:
		k.unique("lookup "+s.Name, s.Pos)
		k.lookups, k.listed[s.Name] = append(k.lookups, s), &declaredLookup{allow: s.Allow, hold: s.Hold > 0}
	case *Fleet:
		k.unique("fleet", s.Pos)
		k.fleet = s
	case *Macro:
		k.macros = append(k.macros, s)
	case *TableDecl:
		k.unique("table <"+s.Name+">", s.Pos)
		k.decls = append(k.decls, s)
		k.tables[s.Name] = &declared{pos: s.Pos}
		if word, ok := wellKnown[s.Name]; ok {
			k.tables[s.Name].used, k.tables[s.Name].uses = true, []use{{word: word}}
		}
	case *Listener:
		k.unique("listener "+s.Name, s.Pos)
		k.listeners[s.Name], k.listens[s.Name] = &declared{pos: s.Pos}, s
		if len(k.listeners) > maxListeners {
			k.errorf(s.Pos, "", "more than %d listeners", maxListeners)
		}
	case *Pass:
		k.passes = append(k.passes, s)
	case *Weight:
		k.unique("score evidence "+s.Token.Name, s.Pos)
		k.weights = append(k.weights, s)
	case *Rule:
		k.unique("rule "+s.Name, s.Pos)
		k.rules = append(k.rules, s)
		if len(k.rules) == maxRules+1 {
			k.errorf(s.Pos, "write long lists as tables", "more than %d rules", maxRules)
		}
	}
}

func (k *checker) listener(name string, pos Pos) {
	if name == "" {
		return
	}
	l := k.listeners[name]
	if l == nil {
		k.errorf(pos, k.suggest(name, k.listeners, "listener "+name+" port 25"), "unknown listener %s", name)
		return
	}
	l.used = true
}

// suggest returns a hint for an undeclared name.
func (k *checker) suggest(wrong string, names map[string]*declared, example string) string {
	if len(names) == 0 {
		return "declare it: " + example
	}
	return didYouMean(wrong, slices.Sorted(maps.Keys(names)))
}

// conds checks conditions. The function phase checks whether their facts are known in the phases of
// the rule.
func (k *checker) conds(cs []*Cond, ofRule bool) {
	for _, c := range cs {
		for _, v := range c.Values {
			switch {
			case v.Kind == TableValue:
				if t := k.tables[v.Text]; t != nil {
					t.used = true
					t.uses = append(t.uses, use{c.Word, c.Pos, ofRule})
				} else {
					k.errorf(v.Pos, k.suggest(v.Text, k.tables, "table <"+v.Text+"> { ... }"), "unknown table <%s>", v.Text)
				}
			case c.Word == "listener":
				k.listener(v.Text, v.Pos)
			case v.Kind == PrefixValue && v.Prefix.Bits() == 0:
				k.warnf(v.Pos, "", "%s matches every address", v.Prefix)
			}
		}
		switch {
		case (c.Word == "asn" || c.By == ByASN) && k.settings.ASN == "":
			k.warnf(c.Pos, `add: asn "/path/to/file.mmdb"`, "without an asn file this never matches")
		case c.Word == "country" && k.settings.Country == "":
			k.warnf(c.Pos, `add: country "/path/to/file.mmdb"`, "without a country file this never matches")
		case c.Word == "listed":
			usesLookup(k, c, ofRule)
		}
		for _, trap := range condTraps {
			trap(k, c)
		}
	}
	checkPairs(k, cs)
	for i, a := range cs {
		for _, b := range cs[:i] {
			switch {
			case !a.same(b):
			case a.Not == b.Not:
				k.warnf(a.Pos, "", "the condition is a duplicate")
			default:
				k.warnf(a.Pos, "", "this never matches: it contradicts `%s`", b)
			}
		}
	}
}

func (k *checker) pass(p *Pass) {
	k.listener(p.On, p.Pos)
	k.conds(p.Conds, false)
	if len(p.Conds) == 0 {
		k.errorf(p.Pos, "to reject nothing, write `mode observe`", "this exempts every client")
	}
	if c := unproven(p.Conds); c != nil {
		k.errorf(c.Pos, "add fcrdns", "a reverse DNS name proves nothing without fcrdns")
	}
	for _, c := range p.Conds {
		// Evidence that is only known in the end phase comes too late to exempt a client.
		if first, _ := c.span(); first == smtp.PhaseEnd {
			k.errorf(c.Pos, "", "`%s` is known only at phase %s", c, smtp.PhaseEnd)
		}
	}
	unprovenPass(k, p)
	elsewhere(k, p.On, p.Conds)
}

// unproven returns a condition on a reverse DNS name. unproven returns nil if another condition
// requires that the name passes FCrDNS.
func unproven(cs []*Cond) (found *Cond) {
	for _, c := range cs {
		switch {
		case c.Word == "rdns" && !c.Not:
			found = c
		case c.Word == "fcrdns" && !c.Not && len(c.Values) == 1 && c.Values[0].Text == "pass":
			return nil
		}
	}
	return found
}

func (k *checker) rule(r *Rule) {
	k.listener(r.On, r.Pos)
	k.conds(r.Conds, true)
	if len(r.actions) == 0 {
		k.errorf(r.Pos, "add an action: "+actionWords(), "rule %s has no action", r.Name)
	}
	for _, t := range r.actions {
		a := actionByWord(t)
		for _, p := range r.Phases.List() {
			if !a.phases.Has(p) {
				k.errorf(t.pos, a.why, "%s is not possible at phase %s", a.word, p)
			}
		}
	}
	for _, c := range r.Conds {
		k.phase(r, c)
	}
	hitsUsers(k, r)
	needsAuth(k, r)
	accuses(k, r)
	elsewhere(k, r.On, r.Conds)
	refuses := r.Decides && r.Decision >= smtp.Reject
	switch {
	case (refuses || len(r.Ban) > 0) && len(r.Conds) == 0 && !r.Observe:
		k.errorf(r.Pos, "add conditions", "rule %s rejects every client", r.Name)
	case r.Decides && r.Decision == smtp.Proceed && len(r.Ban) > 0:
		k.errorf(r.Pos, "", "rule %s accepts a host and bans it", r.Name)
	}
	if r.Decides && r.Decision == smtp.Reject && strings.HasPrefix(r.Text, "421") {
		k.warnf(r.Pos, "use disconnect, or a different code", "smtpd closes the connection after 421: reject acts as disconnect")
	}
	if c := unproven(r.Conds); c != nil && (refuses || len(r.Ban) > 0) {
		k.warnf(c.Pos, "add fcrdns", "a reverse DNS name proves nothing without fcrdns")
	}
	for _, t := range r.Tags {
		k.tags[t] = true
	}
	if len(k.tags) > maxTags {
		k.errorf(r.Pos, "", "more than %d different tags", maxTags)
	}
}

func actionWords() string {
	var words []string
	for i := range actions {
		words = append(words, actions[i].word)
	}
	return strings.Join(words, ", ")
}

// phase checks that the fact of c is known in all phases of r.
func (k *checker) phase(r *Rule, c *Cond) {
	for _, v := range c.Values {
		if c.Word != "evidence" || len(c.Values) == 1 {
			break
		}
		if t := TokenByName(v.Text); t.From > r.Phases.Last() {
			k.errorf(v.Pos, known(t.From, smtp.PhaseEnd), "evidence %s is unknown at phase %s", t.Name, r.Phases.Last())
			return
		}
	}
	first, last := c.span()
	for _, p := range r.Phases.List() {
		if p < first || p > last {
			k.errorf(c.Pos, known(first, last), "`%s` is unknown at phase %s", c, p)
			return
		}
	}
}

// known returns the names of the phases in which a fact is known.
func known(first, last smtp.Phase) string {
	switch {
	case first == smtp.PhaseEnd:
		return "it is known only at phase " + smtp.PhaseEnd.String() + "; use `count ... in` for earlier sessions"
	case first == last:
		return "it is known only at phase " + first.String()
	}
	return "it is known from phase " + first.String()
}

// scores warns if there is a score but no condition uses it, and if a condition uses the score but
// it is always 0.
func (k *checker) scores() {
	var looks *Cond
	for _, r := range k.rules {
		for _, c := range r.Conds {
			if c.Word == "score" && looks == nil {
				looks = c
			}
		}
	}
	var made []Pos
	for _, w := range k.weights {
		made = append(made, w.Pos)
	}
	for _, r := range k.rules {
		if r.Score != 0 {
			made = append(made, r.Pos)
		}
	}
	switch {
	case looks != nil && len(made) == 0:
		k.warnf(looks.Pos, "add: score evidence ...", "no statement adds to the score: this never matches")
	case looks == nil && len(made) > 0:
		k.warnf(made[0], "add a rule that matches `score > ...`", "no rule uses the score")
	}
	tooHigh(k)
}

func (k *checker) unused() {
	for name, t := range k.tables {
		if !t.used {
			k.warnf(t.pos, "", "table <%s> is never used", name)
		}
	}
	for name, l := range k.listeners {
		if !l.used {
			k.warnf(l.pos, "", "listener %s is never used", name)
		}
	}
	for _, m := range k.macros {
		if !m.used {
			k.warnf(m.Pos, "", "macro %s is never used", m.Name)
		}
	}
}

// shadows warns of unreachable rules. A rule is unreachable if a pass statement or an earlier rule
// matches all its sessions.
func (k *checker) shadows() {
	for i, r := range k.rules {
		if p := k.passedBy(r); p != nil {
			k.warnf(r.Pos, "", "rule %s is unreachable: `%s` on line %d exempts all clients that it matches", r.Name, p, p.Line)
			continue
		}
		for _, earlier := range k.rules[:i] {
			if !earlier.Decides || earlier.Observe || r.Phases&^earlier.Phases != 0 ||
				!implies(r.On, r.Conds, earlier.On, earlier.Conds) || earlier.authed() != r.authed() {
				continue
			}
			same := r.Decides && r.Decision != earlier.Decision && implies(earlier.On, earlier.Conds, r.On, r.Conds)
			if same {
				k.warnf(r.Pos, "remove one of them, or change its conditions", "rule %s conflicts with rule %s on line %d, which matches the same sessions and decides %s", r.Name, earlier.Name, earlier.Line, earlier.Decision)
			} else {
				k.warnf(r.Pos, "put the narrower rule first", "rule %s is unreachable: rule %s on line %d matches everything that it matches", r.Name, earlier.Name, earlier.Line)
			}
			break
		}
	}
}

func (k *checker) passedBy(r *Rule) *Pass {
	for _, p := range k.passes {
		if implies(r.On, r.Conds, p.On, p.Conds) {
			return p
		}
	}
	return nil
}

// authed reports whether r applies to authenticated sessions, because it has a condition on auth.
func (r *Rule) authed() bool {
	return slices.ContainsFunc(r.Conds, func(c *Cond) bool { return c.Word == "auth" })
}

// implies reports whether a statement with wideOn and wide matches every session that a statement
// with on and cs matches. on and wideOn are listeners, and cs and wide are conditions.
func implies(on string, cs []*Cond, wideOn string, wide []*Cond) bool {
	if wideOn != "" && wideOn != on {
		return false
	}
	for _, w := range wide {
		if !slices.ContainsFunc(cs, func(c *Cond) bool { return c.implies(w) }) {
			return false
		}
	}
	return true
}

// same reports whether c and w are identical. The conditions may differ in negation.
func (c *Cond) same(w *Cond) bool {
	return c.Word == w.Word && c.Over == w.Over && c.Window == w.Window && c.By == w.By &&
		slices.EqualFunc(c.Values, w.Values, func(a, b Value) bool {
			a.Pos, b.Pos = Pos{}, Pos{}
			return a == b
		})
}

// maxCompare is the maximum number of pairs of values that Check compares for each warning.
const maxCompare = 10000

// implies reports whether w certainly matches in every session in which c matches. implies does not
// detect all such cases.
func (c *Cond) implies(w *Cond) bool {
	if c.Not == w.Not && c.same(w) {
		return true
	}
	if c.Word != w.Word || c.Not != w.Not || len(c.Values)*len(w.Values) > maxCompare || c.Window != w.Window || c.By != w.By {
		return false
	}
	if c.Not {
		c, w = w, c
	}
	if c.Over < w.Over || len(w.Values) == 0 && len(c.Values) > 0 && c.Word != "auth" {
		return false
	}
	if len(w.Values) == 0 {
		return true
	}
	for _, v := range c.Values {
		if !slices.ContainsFunc(w.Values, func(x Value) bool { return v.within(x) }) {
			return false
		}
	}
	return len(c.Values) > 0
}

// within reports whether x matches everything that v matches.
func (v Value) within(x Value) bool {
	switch {
	case v.Kind != x.Kind:
		return false
	case v.Kind == PrefixValue:
		return x.Prefix.Bits() <= v.Prefix.Bits() && x.Prefix.Contains(v.Prefix.Addr())
	case v.Kind != TextValue:
		return v.Text == x.Text && v.AS == x.AS
	}
	a, b := lower(v.Text), lower(x.Text)
	return a == b || strings.HasPrefix(b, ".") && (strings.HasSuffix(a, b) || a == b[1:])
}
