package rules

import (
	"fmt"
	"iter"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"scanwatch/internal/prefix"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
)

// Config is a parsed configuration file. String returns its text without comments and with macros
// expanded. If this text is parsed, the result is the same tree.
type Config struct {
	File       string
	Statements []Statement
	lexer      *lexer
}

// Statement is a logical line. A Statement is a *Setting, *TableDecl, *Listener, *Pass, *Rule,
// *Weight, *Companion, *Zone, *Lookup, *Fleet, *Macro or *Include.
type Statement interface {
	Position() Pos
	String() string // text without the newline
}

// String returns the file in canonical form.
func (c *Config) String() string {
	var b strings.Builder
	for _, s := range c.Statements {
		b.WriteString(s.String() + "\n")
	}
	return b.String()
}

// All iterates over the statements of c and of the files that it includes, in the order of the
// text. Each statement comes with the Config of its file.
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

// Macro is a statement of the form `name = value`.
type Macro struct {
	Pos
	Name string
	Text string // value in the syntax of the file
	used bool
}

// Include is the statement `include "file"`.
type Include struct {
	Pos
	Path   string // unchanged path from the configuration
	Config *Config
}

// Setting is a statement that sets an option of the program. Word is its first word and determines
// which fields are used.
type Setting struct {
	Pos
	Word    string  // mode, store, asn, country, contact, privacy, log, own-name, own-address, gateway, delimiter, rundir
	Mode    Mode    // mode
	Privacy Privacy // privacy
	Log     Log     // log
	Text    string  // argument of store, rundir, asn and country (a path), of contact (an address), or of delimiter (a character)
	Values  []Value // own-name, own-address, gateway
	Keep    time.Duration
	Budget  int64 // disk budget in bytes
	Download
}

// TableDecl is the statement `table <name> ...`. The statement declares a set of addresses, names
// and AS numbers.
type TableDecl struct {
	Pos
	Name    string
	Inline  bool    // the statement contains a list of values
	Values  []Value // values in the list
	Files   []File
	Builtin bool // the table includes the shipped list with the same name
}

// File is a file with entries of a table.
type File struct {
	Pos
	Path   string
	Format string // name of the file's format; empty to detect it
	Param  string // parameter of the format; may be empty
	Download
}

// Listener is the statement `listener name port ... [address ...]`.
type Listener struct {
	Pos
	Name      string
	Ports     []uint16
	Addresses []netip.Addr // empty for any address
}

// Pass is the statement `pass ...`. If a session matches a pass statement, no rule applies to it.
type Pass struct {
	Pos
	On    string // name of the listener; empty for all
	Conds []*Cond
}

// Rule is the statement `rule name ...`.
type Rule struct {
	Pos
	Name    string
	Observe bool
	// EvenTrusted means that the rule applies fully to trusted clients.
	EvenTrusted bool
	On          string // name of the listener; empty for all
	Phases      smtp.PhaseSet
	Conds       []*Cond

	Decides  bool // the rule makes a decision, which is in Decision and Text
	Decision smtp.Decision
	Text     string // text of the reply to the client; empty for the default
	Score    int
	Delay    time.Duration
	Ban      []time.Duration // durations of bans for consecutive offences; see Ladder
	Tags     []string

	actions []token // positions of the actions, for errors
}

// Weight is the statement `score evidence token n`.
type Weight struct {
	Pos
	Token *Token
	Score int
}

// Cond is a condition of a rule or a pass statement. Word is its first word and determines which
// fields are used; see the table of conditions.
type Cond struct {
	Pos
	Not    bool
	Word   string
	Values []Value
	Over   int           // threshold of score or count
	Window time.Duration // time window of count; 0 for the current session
	By     Key
}

// ValueKind is the kind of a Value.
type ValueKind uint8

// The kinds of values.
const (
	TextValue   ValueKind = iota // "name", ".suffix" or "*glob"
	RegexValue                   // /expression/
	TableValue                   // <name>
	PrefixValue                  // address or prefix
	ASValue                      // AS64496
	WordValue                    // a word from a fixed set
)

// Value is a value in a condition or table.
type Value struct {
	Pos
	Kind   ValueKind
	Text   string // text of the value; not set for PrefixValue and ASValue
	Prefix netip.Prefix
	AS     uint32
}

// Position returns p.
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
	case "log":
		line := "log"
		if s.Log.Syslog {
			line += " syslog"
		}
		if s.Log.Verbose {
			line += " verbose"
		}
		return line
	case "own-name", "own-address", "gateway":
		return s.Word + " " + list(s.Values)
	}
	line := s.Word + " " + quote(s.Text)
	if s.Keep > 0 {
		line += " keep " + text.Duration(s.Keep)
	}
	if s.Budget > 0 {
		line += " budget " + text.Size(s.Budget)
	}
	return line + s.suffix()
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
	return text + f.suffix()
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
	if r.EvenTrusted {
		text += " even trusted"
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

// conds returns the text of conditions. A space precedes each condition.
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
	s := c.Word
	if c.Not {
		s = "!" + s
	}
	if len(c.Values) > 0 {
		s += " " + list(c.Values)
	}
	if row := conditionByWord(c.Word); row != nil && row.over {
		s += " > " + strconv.Itoa(c.Over)
	}
	if c.Window > 0 {
		s += " in " + text.Duration(c.Window) + " by " + c.By.String()
	}
	return s
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
		return prefix.String(v.Prefix)
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
