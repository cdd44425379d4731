package rules

import (
	"fmt"
	"iter"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Config is a parsed configuration file. Its String parses to the same tree
// again, without the comments and with macros put in place.
type Config struct {
	File       string
	Statements []Statement
	lexer      *lexer
}

// Statement is one logical line: *Setting, *TableDecl, *Listener, *Pass, *Rule,
// *Weight, *Macro or *Include.
type Statement interface {
	Position() Pos
	String() string // without the newline
}

// String returns the file in its canonical form.
func (c *Config) String() string {
	var b strings.Builder
	for _, s := range c.Statements {
		b.WriteString(s.String() + "\n")
	}
	return b.String()
}

// All returns the statements of c and of the files it includes, in order. The
// Config is the file that a statement is in.
func (c *Config) All() iter.Seq2[*Config, Statement] {
	return func(yield func(*Config, Statement) bool) { c.visit(yield) }
}

func (c *Config) visit(yield func(*Config, Statement) bool) bool {
	for _, s := range c.Statements {
		if !yield(c, s) {
			return false
		}
		if inc, ok := s.(*Include); ok && inc.Config != nil && !inc.Config.visit(yield) {
			return false
		}
	}
	return true
}

// Macro is `name = value`.
type Macro struct {
	Pos
	Name string
	Text string // the value as it can stand in a file
	used bool
}

// Include is `include "file"`.
type Include struct {
	Pos
	Path   string // as written
	Config *Config
}

// Setting is one of the statements that set something for the whole program.
// Which fields are used depends on Word.
type Setting struct {
	Pos
	Word    string  // mode, store, asn, country, contact, events, privacy, detail, escalate, own-name, own-address
	Mode    Mode    // mode
	Privacy Privacy // privacy
	Detail  Detail  // detail
	Text    string  // store, asn, country, events: a path; contact: how to reach the postmaster
	Values  []Value // own-name, own-address
	Keep    time.Duration
	Budget  int64 // bytes
	Factors []int // escalate
}

// TableDecl is `table <name> ...`: a set of addresses, names and AS numbers.
type TableDecl struct {
	Pos
	Name    string
	Inline  bool    // written as a list
	Values  []Value // of the list
	Files   []File
	Builtin bool // shipped with the program under this name
}

// File is a file that fills a table.
type File struct {
	Pos
	Path   string
	Format string // name of a feed format; empty to find out
	Param  string // what to take from the feed, if the format needs telling
}

// Listener is `listener name port ... [address ...]`.
type Listener struct {
	Pos
	Name      string
	Ports     []uint16
	Addresses []netip.Addr // empty for any
}

// Pass is `pass ...`: sessions that no rule touches, wherever it stands.
type Pass struct {
	Pos
	On    string // listener; empty for all
	Conds []*Cond
}

// Rule is `rule name ...`.
type Rule struct {
	Pos
	Name    string
	Observe bool
	On      string // listener; empty for all
	Phases  PhaseSet
	Conds   []*Cond

	Decides  bool // Decision and Text mean something
	Decision Decision
	Text     string // reply to the client; empty for the default
	Score    int
	Delay    time.Duration
	Ban      time.Duration
	Tags     []string

	actions []token // where the actions stand, for the checker
}

// Weight is `score evidence token n`.
type Weight struct {
	Pos
	Token *Token
	Score int
}

// Cond is one condition of a rule. Which fields are used depends on Word; see
// the table of conditions.
type Cond struct {
	Pos
	Not    bool
	Word   string
	Values []Value
	Over   int           // score, count: more than this
	Window time.Duration // count: 0 for this session only
	By     Key
}

// ValueKind tells what a Value is.
type ValueKind uint8

// The kinds of values.
const (
	TextValue   ValueKind = iota // "name", ".suffix" or "*glob"
	RegexValue                   // /expression/
	TableValue                   // <name>
	PrefixValue                  // address or prefix
	ASValue                      // AS64496
	WordValue                    // one of a fixed set of words
)

// Value is one thing a condition compares with.
type Value struct {
	Pos
	Kind   ValueKind
	Text   string // not for PrefixValue and ASValue
	Prefix netip.Prefix
	AS     uint32
}

// Position returns where the thing stands.
func (p Pos) Position() Pos { return p }

func (m *Macro) String() string   { return m.Name + " = " + m.Text }
func (i *Include) String() string { return "include " + quote(i.Path) }
func (w *Weight) String() string {
	return fmt.Sprintf("score evidence %s %d", w.Token.Name, w.Score)
}

func (s *Setting) String() string {
	switch s.Word {
	case "mode":
		return "mode " + s.Mode.String()
	case "privacy":
		return "privacy " + s.Privacy.String()
	case "detail":
		return "detail " + s.Detail.String()
	case "own-name", "own-address":
		return s.Word + " " + list(s.Values)
	case "escalate":
		if len(s.Factors) == 0 {
			return "escalate none"
		}
		var items []string
		for _, n := range s.Factors {
			items = append(items, strconv.Itoa(n))
		}
		return "escalate " + braces(items)
	}
	text := s.Word + " " + quote(s.Text)
	if s.Keep > 0 {
		text += " keep " + duration(s.Keep)
	}
	if s.Budget > 0 {
		text += " budget " + size(s.Budget)
	}
	return text
}

func (t *TableDecl) String() string {
	var items []string
	for _, v := range t.Values {
		items = append(items, v.String())
	}
	for _, f := range t.Files {
		items = append(items, f.String())
	}
	head := "table <" + t.Name + "> "
	switch {
	case t.Builtin:
		return head + "builtin"
	case t.Inline && len(items) == 0:
		return head + "{ }"
	case t.Inline:
		return head + "{ " + strings.Join(items, ", ") + " }"
	}
	return head + strings.Join(items, " ")
}

func (f File) String() string {
	text := "file " + quote(f.Path)
	if f.Format != "" {
		text += " format " + f.Format
	}
	if f.Param != "" {
		text += " " + quote(f.Param)
	}
	return text
}

func (l *Listener) String() string {
	var ports, addrs []string
	for _, p := range l.Ports {
		ports = append(ports, strconv.Itoa(int(p)))
	}
	for _, a := range l.Addresses {
		addrs = append(addrs, a.String())
	}
	text := "listener " + l.Name + " port " + braces(ports)
	if addrs != nil {
		text += " address " + braces(addrs)
	}
	return text
}

func (p *Pass) String() string {
	text := "pass"
	if p.On != "" {
		text += " on " + p.On
	}
	if len(p.Conds) == 1 && p.Conds[0].Word == "src" && !p.Conds[0].Not {
		return text + " from " + list(p.Conds[0].Values)
	}
	return text + " match" + conds(p.Conds)
}

func (r *Rule) String() string {
	text := "rule " + r.Name
	if r.Observe {
		text += " observe"
	}
	if r.On != "" {
		text += " on " + r.On
	}
	text += " phase " + r.Phases.String() + " match" + conds(r.Conds)
	for i := range actions {
		if a := &actions[i]; a.has(r) {
			text += " " + a.print(r)
		}
	}
	return text
}

// conds writes conditions, each with a blank before it.
func conds(cs []*Cond) string {
	if len(cs) == 0 {
		return " any"
	}
	var b strings.Builder
	for _, c := range cs {
		b.WriteString(" " + c.String())
	}
	return b.String()
}

func (c *Cond) String() string {
	text := c.Word
	if c.Not {
		text = "!" + text
	}
	if len(c.Values) > 0 {
		text += " " + list(c.Values)
	}
	if row := conditionByWord(c.Word); row != nil && row.over {
		text += " > " + strconv.Itoa(c.Over)
	}
	if c.Window > 0 {
		text += " in " + duration(c.Window) + " by " + c.By.String()
	}
	return text
}

func (v Value) String() string {
	switch v.Kind {
	case TextValue:
		return quote(v.Text)
	case RegexValue:
		return slash(v.Text)
	case TableValue:
		return "<" + v.Text + ">"
	case PrefixValue:
		if v.Prefix.IsSingleIP() {
			return v.Prefix.Addr().String()
		}
		return v.Prefix.String()
	case ASValue:
		return "AS" + strconv.FormatUint(uint64(v.AS), 10)
	}
	return v.Text
}

func list(values []Value) string {
	items := make([]string, len(values))
	for i, v := range values {
		items[i] = v.String()
	}
	return braces(items)
}

func braces(items []string) string {
	if len(items) == 1 {
		return items[0]
	}
	return "{ " + strings.Join(items, ", ") + " }"
}

// A unit of time or size, the largest first.
type unit struct {
	letter byte
	n      int64
	word   string
}

var timeUnits = []unit{
	{'w', int64(7 * 24 * time.Hour), "week"},
	{'d', int64(24 * time.Hour), "day"},
	{'h', int64(time.Hour), "hour"},
	{'m', int64(time.Minute), "minute"},
	{'s', int64(time.Second), "second"},
}

var sizeUnits = []unit{{'T', 1 << 40, ""}, {'G', 1 << 30, ""}, {'M', 1 << 20, ""}, {'K', 1 << 10, ""}}

// parseUnits reads a number with the letter of its unit.
func parseUnits(s string, units []unit) (int64, bool) {
	if len(s) < 2 {
		return 0, false
	}
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
	if err != nil {
		return 0, false
	}
	for _, u := range units {
		if s[len(s)-1] == u.letter && int64(n) <= (1<<63-1)/u.n {
			return int64(n) * u.n, true
		}
	}
	return 0, false
}

// duration writes d, which is a whole number of seconds, in the largest unit
// that fits. Weeks are left to the reader: 7d says the same.
func duration(d time.Duration) string {
	n, u := inUnits(int64(d), timeUnits[1:])
	return strconv.FormatInt(n, 10) + string(u.letter)
}

func size(n int64) string {
	n, u := inUnits(n, sizeUnits)
	return strconv.FormatInt(n, 10) + string(u.letter)
}

func inUnits(n int64, units []unit) (int64, unit) {
	for _, u := range units {
		if n%u.n == 0 {
			return n / u.n, u
		}
	}
	last := units[len(units)-1]
	return n / last.n, last
}
