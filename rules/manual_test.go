package rules

import (
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
)

const manual = "../man/scanwatch.conf.5"

func readManual(t *testing.T) (text string, blocks []string) {
	t.Helper()
	b, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	text = string(b)
	_, examples, _ := strings.Cut(text, ".Sh EXAMPLES\n")
	examples, _, _ = strings.Cut(examples, ".Sh ")
	for rest := examples; ; {
		var block string
		var ok bool
		if _, rest, ok = strings.Cut(rest, ".Bd -literal -offset indent\n"); !ok {
			return text, blocks
		}
		if block, rest, ok = strings.Cut(rest, ".Ed\n"); !ok {
			t.Fatalf("%s: a display is not closed", manual)
		}
		blocks = append(blocks, strings.NewReplacer(`\e`, `\`, `\&`, "", `\-`, "-").Replace(block))
	}
}

// TestManualExamples checks that all examples in the manual are valid configurations.
func TestManualExamples(t *testing.T) {
	_, blocks := readManual(t)
	if len(blocks) < 8 {
		t.Fatalf("%d examples", len(blocks))
	}
	for _, block := range blocks {
		c, err := Parse("example.conf", func(name string) ([]byte, error) {
			switch name {
			case "example.conf":
				return []byte(block), nil
			case "scanwatch.local.conf":
				return []byte("mode observe\n"), nil
			}
			return nil, fs.ErrNotExist
		})
		var warnings Errors
		if err == nil {
			_, warnings, err = Compile(c, Options{})
		}
		if found := detail(warnings, err); found != "" {
			t.Errorf("example:\n%s\n%s", block, found)
		}
	}
}

// TestManualWords checks that the manual has an item and an example for every word of
// the language.
func TestManualWords(t *testing.T) {
	text, blocks := readManual(t)
	before, _, _ := strings.Cut(text, ".Ss Phases\n")
	sections := map[string]string{
		"statement": before,
		"phase":     section(text, "Phases"),
		"condition": section(text, "Conditions"),
		"action":    section(text, "Actions"),
		"policy":    section(text, "Presets"),
	}
	item := func(kind, word string) bool {
		return slices.ContainsFunc(strings.Split(sections[kind], "\n"), func(line string) bool {
			f := strings.Fields(line)
			f = slices.DeleteFunc(f, func(s string) bool { return s == ".It" || s == "Ic" || s == "Cm" })
			return strings.HasPrefix(line, ".I") && len(f) > 0 && (f[0] == word || f[0] == ".Ic" && len(f) > 1 && f[1] == word)
		})
	}
	used := strings.Fields(strings.NewReplacer("!", " ", "{", " ", "}", " ", ",", " ", "=", " ").Replace(strings.Join(blocks, "\n")))
	for _, k := range Keywords() {
		if k.Kind == "key" {
			if !strings.Contains(text, "\n.It Cm "+k.Word+"\n") {
				t.Errorf("the manual does not describe counting by %s", k.Word)
			}
			continue
		}
		if !item(k.Kind, k.Word) {
			t.Errorf("the manual has no item for the %s %s", k.Kind, k.Word)
		}
		if k.Word != "pass" && !slices.Contains(used, k.Word) {
			t.Errorf("the manual has no example for the %s %s", k.Kind, k.Word)
		}
	}
	for _, tok := range Tokens {
		want := ".It Cm " + tok.Name + "\n" + tok.Means + "\n.Pq Cm " + tok.From.String() + "\n"
		if !strings.Contains(text, want) {
			t.Errorf("the manual does not have:\n%s", want)
		}
	}
	for i := range conditions {
		c := &conditions[i]
		if c.word == "evidence" || c.word == "score" || c.word == "count" || c.from == c.to {
			continue // the item describes the syntax of this statement in words
		}
		_, entry, ok := strings.Cut(sections["condition"], ".It Ic "+c.word+"\n")
		if !ok {
			_, entry, _ = strings.Cut(sections["condition"], ".It Ic "+c.word+" ")
		}
		entry, _, _ = strings.Cut(entry, ".It Ic")
		if !strings.Contains(entry, ".Pq Cm "+c.from.String()+"\n") {
			t.Errorf("the manual does not give %[2]s as the first phase of %[1]s", c.word, c.from)
		}
	}
	for _, p := range PolicyNames() {
		if !item("policy", p) {
			t.Errorf("the manual has no item for the policy %s", p)
		}
	}
}

// section returns the subsection of the manual with the given title.
func section(text, title string) string {
	_, s, _ := strings.Cut(text, ".Ss "+title+"\n")
	s, _, _ = strings.Cut(s, "\n.Ss ")
	return s
}
