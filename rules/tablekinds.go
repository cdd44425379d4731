package rules

import (
	"fmt"
	"slices"
	"strings"
)

// A ValueClass is a class of table entries. Each condition uses only entries of certain classes and
// ignores all others.
type ValueClass uint8

// The classes of table entries.
const (
	Addresses ValueClass = iota // addresses and prefixes
	Numbers                     // AS numbers
	Names                       // names and patterns
	Codes                       // names of two letters, such as countries
	numClasses
)

var classNames = [numClasses]string{"address", "AS number", "name", "country code"}

// Contents counts the entries of a table by class. Contents also contains an example for each
// class.
type Contents [numClasses]struct {
	Total   int
	Example string
}

// Add adds n entries of a class.
func (c *Contents) Add(class ValueClass, n int, example string) {
	e := &c[class]
	if e.Total += n; e.Example == "" && n > 0 {
		e.Example = example
	}
}

// AddName adds a name.
func (c *Contents) AddName(name string) {
	class := Names
	if len(name) == 2 && !strings.ContainsAny(name, ".*@0123456789") {
		class = Codes
	}
	c.Add(class, 1, name)
}

// asks maps conditions to the classes of entries that they use. All other conditions use names.
var asks = map[string][]ValueClass{"src": {Addresses}, "asn": {Numbers}, "country": {Codes}}

func asked(word string) []ValueClass {
	if list, ok := asks[word]; ok {
		return list
	}
	return []ValueClass{Names, Codes}
}

// contents returns the Contents of values in the configuration.
func contents(values []Value) (c Contents) {
	for _, v := range values {
		switch v.Kind {
		case PrefixValue:
			c.Add(Addresses, 1, v.String())
		case ASValue:
			c.Add(Numbers, 1, v.String())
		case TextValue:
			c.AddName(v.Text)
		default:
			c.Add(Names, 1, v.String())
		}
	}
	return c
}

// A use is a condition that uses a table.
type use struct {
	word string
	pos  Pos  // position of the condition; zero if the program itself uses the table
	rule bool // the condition is in a rule
}

// exempts reports whether a table is used, but only for exemptions.
func exempts(k *checker, name string) bool {
	t := k.tables[name]
	return len(t.uses) > 0 && name != "local-domains" && !slices.ContainsFunc(t.uses, func(u use) bool { return u.rule })
}

// tableTraps warns of table entries that no condition can match. loaded contains the loaded parts
// of each table.
func tableTraps(k *checker, loaded map[string]sources) {
	for _, d := range k.decls {
		t := k.tables[d.Name]
		if len(t.uses) == 0 {
			continue // another function warns of unused tables
		}
		var has Contents
		total, complete := 0, true
		for _, part := range loaded[d.Name] {
			p, ok := part.(interface{ Contents() Contents })
			if complete = complete && ok; ok {
				for class, e := range p.Contents() {
					has.Add(ValueClass(class), e.Total, e.Example)
					total += e.Total
				}
			}
		}
		if !complete && total == 0 {
			continue
		}
		if !emptyUses(k, d, t.uses, &has, total, complete) && !d.Builtin {
			unasked(k, d, t.uses, &has)
		}
		tableShapes(k, d, t.uses)
	}
}

// emptyUses warns of a condition on a table that contains no entries of the classes that the
// condition uses.
func emptyUses(k *checker, d *TableDecl, uses []use, has *Contents, total int, complete bool) (some bool) {
	for _, u := range uses {
		classes := asked(u.word)
		found := slices.ContainsFunc(classes, func(c ValueClass) bool { return has[c].Total > 0 })
		if total == 0 || !complete || found || u.pos == (Pos{}) {
			continue
		}
		some = true
		what := classNames[classes[0]]
		k.warnf(u.pos, "", "this never matches: %s needs %s, and table <%s> has none", u.word, article(what), d.Name)
	}
	return some
}

func article(what string) string {
	if strings.ContainsRune("aA", rune(what[0])) {
		return "an " + what
	}
	return "a " + what
}

// unasked warns of entries in a table if they are of a class that no condition on the table uses.
func unasked(k *checker, d *TableDecl, uses []use, has *Contents) {
	var words []string
	var wanted []ValueClass
	for _, u := range uses {
		if !slices.Contains(words, u.word) {
			words = append(words, u.word)
		}
		wanted = append(wanted, asked(u.word)...)
	}
	for class := range numClasses {
		e := has[class]
		if e.Total == 0 || slices.Contains(wanted, class) {
			continue
		}
		pos, where := d.Pos, ""
		if i := slices.IndexFunc(d.Values, func(v Value) bool { one := contents([]Value{v}); return one[class].Total > 0 }); i >= 0 {
			pos = d.Values[i].Pos
		} else if len(d.Files) > 0 {
			pos, where = d.Files[0].Pos, " of its file"
		}
		k.warnf(pos, fmt.Sprintf("remove it, or use the table with a condition on %ss", classNames[class]),
			"table <%s>: %s %q%s is never compared: the table is only used for %s", d.Name, classNames[class], e.Example, where, strings.Join(words, ", "))
	}
}

// tableShapes warns of names in the configuration that no condition on their table can match.
func tableShapes(k *checker, d *TableDecl, uses []use) {
	for _, v := range d.Values {
		if v.Kind == PrefixValue {
			widePrefix(k, v)
		}
		why, hint := "", ""
		for i, u := range uses {
			w, h := misshapen(u.word, v)
			if i == 0 {
				why, hint = w, h
			}
			if w == "" {
				why = ""
				break
			}
		}
		if why != "" {
			k.warnf(v.Pos, hint, "this never matches: %s", why)
		}
	}
}
