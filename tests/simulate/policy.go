package simulate

// This file loads policies in the same way as the program.

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"scanwatch/filter/lookup"
	"scanwatch/rules"
)

// Lists returns the shipped lists.
var Lists = sync.OnceValue(func() *lookup.Lists {
	l, err := lookup.Builtin()
	if err != nil {
		panic(err)
	}
	return l
})

// PresetText returns the text of the named preset.
func PresetText(name string) (string, error) {
	text, err := rules.ReadyPolicy(name)
	return string(text), err
}

// Compile compiles a configuration that causes no warnings. All its tables must be inline or
// shipped lists.
func Compile(text string) (*rules.Policy, error) {
	p, warnings, err := CompileAnyway(text)
	if err == nil && warnings != "" {
		err = fmt.Errorf("compile policy: %s", warnings)
	}
	return p, err
}

// CompileAnyway compiles a configuration, and returns the text of any warnings.
func CompileAnyway(text string) (p *rules.Policy, warning string, err error) {
	tree, err := rules.Parse("scanwatch.conf", func(string) ([]byte, error) { return []byte(text), nil })
	if err != nil {
		return nil, "", err
	}
	p, warnings, err := rules.Compile(tree, rules.Options{Load: loadAllowed})
	if err == nil && len(warnings) > 0 {
		warning = fmt.Sprint(warnings)
	}
	return p, warning, err
}

// allowed is a rules.Table of the shipped list <known-senders>.
type allowed struct {
	names    lookup.Names[struct{}]
	patterns *lookup.Patterns[struct{}]
}

func (t *allowed) MatchAddr(netip.Addr) bool { return false } // the list contains only names
func (t *allowed) MatchASN(uint32) bool      { return false }

func (t *allowed) MatchName(name []byte) bool {
	if _, ok := t.names.LookupBytes(name); ok || t.patterns == nil {
		return ok
	}
	_, ok := t.patterns.Match(name)
	return ok
}

func loadAllowed(s rules.Source) (rules.Table, error) {
	if !s.Builtin || s.Table != lookup.KnownSenders {
		return nil, fmt.Errorf("the presets have no table <%s>", s.Table)
	}
	t := new(allowed)
	var patterns []lookup.Pattern[struct{}]
	for _, row := range Lists().Rows() {
		if row.List != lookup.KnownSenders || row.Confidence == "low" {
			continue
		}
		if row.Kind != "rdns" && row.Kind != "helo" {
			return nil, fmt.Errorf("line %d of the list does not match a name", row.Line)
		}
		if expr, ok := strings.CutPrefix(row.Value, "/"); ok {
			patterns = append(patterns, lookup.Pattern[struct{}]{Expr: strings.TrimSuffix(expr, "/")})
		} else if err := t.names.Add(row.Value, struct{}{}); err != nil {
			return nil, err
		}
	}
	var err error
	if len(patterns) > 0 {
		t.patterns, err = lookup.NewPatterns(patterns)
	}
	return t, err
}
