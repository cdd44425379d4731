package cases

// This file reads the sentences in the manual and in the presets' comments.

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"scanwatch/tests/simulate"
)

// sections lists the sections of the manual in which every sentence needs a row. The values are the
// first line of the section, and the first line after it.
var sections = map[string][2]string{
	"Rules":      {"In each phase, the filter evaluates", ".Ss Phases"},
	"Bans":       {".Ss Bans", ".Ss Standing"},
	"Standing":   {".Ss Standing", ".Ss Evidence"},
	"thresholds": {"Detection thresholds:", ".Ss Presets"},
	"Presets":    {".Ss Presets", "To start with a preset"},
}

// sentenceEnd matches the end of a sentence, or of a clause.
var sentenceEnd = regexp.MustCompile(`[.;:]( |$)`)

// split returns a paragraph's sentences. A colon ends a sentence only at the end of the paragraph.
func split(paragraph string) (list []string) {
	from := 0
	add := func(s string) {
		if s = strings.TrimSpace(s); s != "" {
			list = append(list, s)
		}
	}
	for _, at := range sentenceEnd.FindAllStringIndex(paragraph, -1) {
		if paragraph[at[0]] == ':' && at[1] < len(paragraph) {
			continue
		}
		add(paragraph[from:at[0]])
		from = at[1]
	}
	add(paragraph[from:])
	return list
}

// comments returns the sentences in a policy's comments. A comment after a statement continues the
// statement, and both are one sentence.
func comments(policy string) (list []string) {
	var paragraph []string
	end := func() {
		list = append(list, split(strings.Join(paragraph, " "))...)
		paragraph = nil
	}
	for line := range strings.Lines(policy) {
		line = strings.TrimSpace(line)
		if text, ok := strings.CutPrefix(line, "# "); ok {
			paragraph = append(paragraph, text)
			continue
		}
		end()
		if statement, text, ok := strings.Cut(line, " # "); ok {
			list = append(list, strings.TrimSpace(statement)+": "+text)
		}
	}
	end()
	return list
}

// section returns the sentences in a section of the manual.
func section(manual, name string) (list []string) {
	_, text, _ := strings.Cut(manual, "\n"+sections[name][0])
	text, _, _ = strings.Cut(text, "\n"+sections[name][1])
	if !strings.HasPrefix(sections[name][0], ".") {
		text = sections[name][0] + text
	}
	var paragraph []string
	end := func() {
		list = append(list, split(strings.NewReplacer(" ,", ",", " .", ".", " ;", ";", " :", ":", " )", ")", "( ", "(").Replace(strings.Join(paragraph, " ")))...)
		paragraph = nil
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, ".") {
			paragraph = append(paragraph, line)
			continue
		}
		words := slices.DeleteFunc(strings.Fields(line), func(w string) bool { return w == "Cm" || w == "Ic" })
		if len(words) == 0 {
			continue
		}
		switch words[0] {
		case ".Bl", ".El", ".It", ".Pp":
			end()
		case ".Pq":
			paragraph = append(paragraph, strings.TrimSpace("("+words[1]+") "+strings.Join(words[2:], " ")))
		case ".Xr":
			paragraph = append(paragraph, strings.TrimSpace(words[1]+"("+words[2]+") "+strings.Join(words[3:], " ")))
		default:
			paragraph = append(paragraph, strings.TrimSpace(strings.Join(words[1:], " ")))
		}
	}
	end()
	return list
}

// sentences returns the sentences in each preset and section.
func sentences(t *testing.T) map[string][]string {
	t.Helper()
	manual, err := os.ReadFile("../../man/scanwatch.conf.5")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string][]string)
	for name := range sections {
		all[name] = section(string(manual), name)
	}
	for _, preset := range []string{"standard", "tight"} {
		text, err := simulate.PresetText(preset)
		if err != nil {
			t.Fatal(err)
		}
		all[preset] = comments(text)
	}
	return all
}

// TestStatementsComplete checks that a row quotes each sentence in the presets and in the sections
// of the manual. A row must not contain other sentences.
func TestStatementsComplete(t *testing.T) {
	all := sentences(t)
	rows := make(map[string]bool)
	for _, r := range statements() {
		for where := range strings.FieldsSeq(r.where) {
			for _, text := range split(r.text) {
				key := where + ": " + text
				if rows[key] {
					t.Errorf("two rows for %q", key)
				}
				rows[key] = true
				if !slices.Contains(all[where], text) {
					t.Errorf("no sentence for the row %q", key)
				}
			}
		}
	}
	n := 0
	for where, list := range all {
		if len(list) == 0 {
			t.Errorf("no sentences in %s", where)
		}
		for _, text := range list {
			if n++; !rows[where+": "+text] {
				t.Errorf("no row for the sentence %q", where+": "+text)
			}
		}
	}
	t.Logf("%d sentences, %d rows", n, len(statements()))
}
