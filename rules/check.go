package rules

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// wellKnown are tables that the program itself looks at, so that no rule has to.
var wellKnown = []string{"friends", "local-domains"}

// Limits of a checked configuration.
const (
	maxRules     = 2000 // each is compared with all before it
	maxListeners = 64   // bits of a listener set
)

// Check finds what is wrong or doubtful in c, in the order of the files. The
// error is Errors, or nil.
func (c *Config) Check(o Options) (warnings Errors, err error) {
	k := &checker{
		settings:  c.Settings(),
		tables:    map[string]*declared{},
		listeners: map[string]*declared{},
		once:      map[string]Pos{},
		tags:      map[string]bool{},
		files:     map[string]*Config{},
	}
	// Names may be used before they are declared.
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
	k.unused()
	k.shadows()
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

// A declared thing can be named by others.
type declared struct {
	pos  Pos
	used bool
}

type checker struct {
	settings  Settings
	files     map[string]*Config
	order     []string // of the files
	tables    map[string]*declared
	listeners map[string]*declared
	once      map[string]Pos // where a setting or the name of a rule stands
	tags      map[string]bool
	macros    []*Macro
	passes    []*Pass
	rules     []*Rule
	weights   []*Weight

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

// unique notes what may be there only once.
func (k *checker) unique(what string, pos Pos) {
	if before, ok := k.once[what]; ok {
		k.errorf(pos, "", "%s is already there: %s", what, before)
		return
	}
	k.once[what] = pos
}

func (k *checker) declare(s Statement) {
	switch s := s.(type) {
	case *Setting:
		if s.Word != "own-name" && s.Word != "own-address" {
			k.unique(s.Word, s.Pos)
		}
	case *Macro:
		k.macros = append(k.macros, s)
	case *TableDecl:
		k.unique("table <"+s.Name+">", s.Pos)
		k.tables[s.Name] = &declared{s.Pos, slices.Contains(wellKnown, s.Name)}
	case *Listener:
		k.unique("listener "+s.Name, s.Pos)
		k.listeners[s.Name] = &declared{pos: s.Pos}
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
			k.errorf(s.Pos, "long lists belong into tables", "more than %d rules", maxRules)
		}
	}
}

func (k *checker) listener(name string, pos Pos) {
	if name == "" {
		return
	}
	l := k.listeners[name]
	if l == nil {
		k.errorf(pos, k.suggest(name, k.listeners, "listener "+name+" port 25"), "there is no listener %s", name)
		return
	}
	l.used = true
}

// suggest is the hint for a name that is not declared.
func (k *checker) suggest(wrong string, names map[string]*declared, example string) string {
	if len(names) == 0 {
		return "declare it: " + example
	}
	return didYouMean(wrong, slices.Sorted(maps.Keys(names)))
}

// conds checks what does not depend on the phase.
func (k *checker) conds(cs []*Cond) {
	for _, c := range cs {
		for _, v := range c.Values {
			switch {
			case v.Kind == TableValue:
				if t := k.tables[v.Text]; t != nil {
					t.used = true
				} else {
					k.errorf(v.Pos, k.suggest(v.Text, k.tables, "table <"+v.Text+"> { ... }"), "there is no table <%s>", v.Text)
				}
			case c.Word == "listener":
				k.listener(v.Text, v.Pos)
			case v.Kind == PrefixValue && v.Prefix.Bits() == 0:
				k.warnf(v.Pos, "", "%s is every address", v.Prefix)
			}
		}
		switch {
		case (c.Word == "asn" || c.By == ByASN) && k.settings.ASN == "":
			k.warnf(c.Pos, `name one: asn "/path/to/file.mmdb"`, "without an asn file this can never match")
		case c.Word == "country" && k.settings.Country == "":
			k.warnf(c.Pos, `name one: country "/path/to/file.mmdb"`, "without a country file this can never match")
		}
	}
	for i, a := range cs {
		for _, b := range cs[:i] {
			switch {
			case !a.same(b):
			case a.Not == b.Not:
				k.warnf(a.Pos, "", "the condition stands here for the second time")
			default:
				k.warnf(a.Pos, "", "this can never match: it contradicts `%s`", b)
			}
		}
	}
}

func (k *checker) pass(p *Pass) {
	k.listener(p.On, p.Pos)
	k.conds(p.Conds)
	if len(p.Conds) == 0 {
		k.errorf(p.Pos, "to refuse nothing at all, write `mode observe`", "this would let everybody pass")
	}
	if c := unproven(p.Conds); c != nil {
		k.errorf(c.Pos, "add fcrdns", "anybody can give his address such a name; only fcrdns proves it")
	}
	for _, c := range p.Conds {
		// Evidence that is not known yet cannot speak against anybody.
		if first, _ := c.span(); first == End {
			k.errorf(c.Pos, "", "`%s` is known only at phase %s", c, End)
		}
	}
}

// unproven returns a condition on the reverse DNS name that nothing proves.
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
	k.conds(r.Conds)
	if len(r.actions) == 0 {
		k.errorf(r.Pos, "end it with an action: "+actionWords(), "rule %s does nothing", r.Name)
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
	refuses := r.Decides && r.Decision >= Reject
	switch {
	case (refuses || r.Ban > 0) && len(r.Conds) == 0 && !r.Observe:
		k.errorf(r.Pos, "say whom it is meant for", "rule %s would refuse everybody", r.Name)
	case r.Decides && r.Decision == Proceed && r.Ban > 0:
		k.errorf(r.Pos, "", "rule %s lets a host proceed and bans it", r.Name)
	}
	if r.Decides && r.Decision == Reject && strings.HasPrefix(r.Text, "421") {
		k.warnf(r.Pos, "use disconnect, or another code", "smtpd closes the connection after 421: reject acts as disconnect")
	}
	if c := unproven(r.Conds); c != nil && (refuses || r.Ban > 0) {
		k.warnf(c.Pos, "add fcrdns", "anybody can give his address such a name; only fcrdns proves it")
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

// phase checks that c can be answered at every phase of r.
func (k *checker) phase(r *Rule, c *Cond) {
	for _, v := range c.Values {
		if c.Word != "evidence" || len(c.Values) == 1 {
			break
		}
		if t := TokenByName(v.Text); t.From > r.Phases.last() {
			k.errorf(v.Pos, known(t.From, End), "evidence %s is not known at phase %s", t.Name, r.Phases.last())
			return
		}
	}
	first, last := c.span()
	for _, p := range r.Phases.List() {
		if p < first || p > last {
			k.errorf(c.Pos, known(first, last), "`%s` is not known at phase %s", c, p)
			return
		}
	}
}

// known says when something is known.
func known(first, last Phase) string {
	switch {
	case first == End:
		return "it is known only at phase " + End.String() + "; `count ... in` can look back at it"
	case first == last:
		return "it is known only at phase " + first.String()
	}
	return "it is known from phase " + first.String() + " on"
}

// scores warns about scores that nothing looks at, and of rules that look at a
// score that nothing makes.
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
		k.warnf(looks.Pos, "add: score evidence ...", "nothing adds to the score: this can never match")
	case looks == nil && len(made) > 0:
		k.warnf(made[0], "add a rule that matches `score > ...`", "no rule looks at the score")
	}
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

// shadows warns of rules that are never reached: a pass statement or an earlier
// rule takes all they match.
func (k *checker) shadows() {
	for i, r := range k.rules {
		if p := k.passedBy(r); p != nil {
			k.warnf(r.Pos, "", "rule %s is never reached: `%s` on line %d lets pass all it matches", r.Name, p, p.Line)
			continue
		}
		for _, earlier := range k.rules[:i] {
			if !earlier.Decides || earlier.Observe || r.Phases&^earlier.Phases != 0 ||
				!implies(r.On, r.Conds, earlier.On, earlier.Conds) || earlier.authed() != r.authed() {
				continue
			}
			same := r.Decides && r.Decision != earlier.Decision && implies(earlier.On, earlier.Conds, r.On, r.Conds)
			if same {
				k.warnf(r.Pos, "take one of them away, or make their conditions differ", "rule %s conflicts with rule %s on line %d, which matches the same and decides %s", r.Name, earlier.Name, earlier.Line, earlier.Decision)
			} else {
				k.warnf(r.Pos, "put the narrower rule first", "rule %s is never reached: rule %s on line %d takes all it matches", r.Name, earlier.Name, earlier.Line)
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

// authed tells whether r looks at authenticated sessions.
func (r *Rule) authed() bool {
	return slices.ContainsFunc(r.Conds, func(c *Cond) bool { return c.Word == "auth" })
}

// implies tells whether everything that matches the conditions cs on listener
// on is sure to match the conditions wide on listener wideOn, too.
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

// same tells whether c and w ask the same, negated or not.
func (c *Cond) same(w *Cond) bool {
	return c.Word == w.Word && c.Over == w.Over && c.Window == w.Window && c.By == w.By &&
		slices.EqualFunc(c.Values, w.Values, func(a, b Value) bool {
			a.Pos, b.Pos = Pos{}, Pos{}
			return a == b
		})
}

// maxCompare is how many pairs of values are worth looking at for a warning.
const maxCompare = 10000

// implies tells whether w says yes whenever c does, as far as that can be seen.
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

// within tells whether all that v stands for is in x.
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
