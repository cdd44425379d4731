package config

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/internal/smtp"

	"scanwatch/filter/lookup"
	"scanwatch/rules"
)

func builtinLists(t testing.TB) *lookup.Lists {
	t.Helper()
	l, err := lookup.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

const withTable = "mode enforce\ntable <drop> file \"drop.txt\"\nrule drop phase connect match src <drop> disconnect\n"

func prefixes(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "2001:db8:%x::/48\n", i)
	}
	return b.String()
}

// TestDownload checks a feed's format, and the error for a file that has not been downloaded yet. A
// change to the download interval must not lose the table.
func TestDownload(t *testing.T) {
	lists := builtinLists(t)
	dir := t.TempDir()
	conf, drop := filepath.Join(dir, "scanwatch.conf"), filepath.Join(dir, "drop.txt")
	const text = "table <mail> file \"drop.txt\" feed blocklist-de-mail%s\nrule drop phase connect match src <mail> disconnect\n"
	write(t, conf, fmt.Sprintf(text, ""))
	if _, err := Load(conf, lists, nil, true); err == nil || !strings.Contains(err.Error(), "no such file or directory; to download it: scanwatch update mail") {
		t.Errorf("without the file: %v", err)
	}
	write(t, drop, "2001:db8::1\nbad.example.net\n2001:db8::2\n") // the format plain would accept the name
	first, err := Load(conf, lists, nil, true)
	if err != nil || first.Tables()["mail"] != 2 {
		t.Fatal(err, first.Tables())
	}
	write(t, conf, fmt.Sprintf(text, " every 12h"))
	write(t, drop, "<html>")
	second, err := Load(conf, lists, first, false)
	if err != nil || second.Tables()["mail"] != 2 || len(second.Kept) != 1 {
		t.Errorf("%v, %v", err, second.Tables())
	}
}

// TestReloadKeepsTables checks that the previous table remains in use while its file is
// missing or invalid.
func TestReloadKeepsTables(t *testing.T) {
	lists := builtinLists(t)
	for _, c := range []struct {
		name string
		file func(t *testing.T, name string)
		note string
	}{
		{"removed", func(t *testing.T, name string) { os.Remove(name) }, "no such file"},
		{"empty", func(t *testing.T, name string) { write(t, name, "") }, "no entries, previously 20"},
		{"comments only", func(t *testing.T, name string) { write(t, name, "# nothing\n\n") }, "no entries, previously 20"},
		{"an error page", func(t *testing.T, name string) { write(t, name, "<!DOCTYPE html>\n<p>no</p>\n") }, "web page"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			conf, drop := filepath.Join(dir, "scanwatch.conf"), filepath.Join(dir, "drop.txt")
			write(t, conf, withTable)
			write(t, drop, prefixes(20))
			first, err := Load(conf, lists, nil, true)
			if err != nil {
				t.Fatal(err)
			}
			if first.Changed() {
				t.Error("changed without a change")
			}
			c.file(t, drop)
			if !first.Changed() {
				t.Error("the change was not detected")
			}
			second, err := Load(conf, lists, first, false)
			if err != nil {
				t.Fatal(err)
			}
			inside := netip.MustParseAddr("2001:db8:13::1")
			if !second.Policy.Table("drop").MatchAddr(inside) {
				t.Error("the previous table is not in use")
			}
			if len(second.Notes) != 1 || !strings.Contains(second.Notes[0], c.note) || !strings.Contains(second.Notes[0], "keeping the previous table") {
				t.Errorf("notes %q, want one about %q", second.Notes, c.note)
			}
			if _, err := Load(conf, lists, first, true); err == nil {
				t.Error("no error with strict")
			}
			write(t, drop, prefixes(3)) // the operator may remove most entries
			third, err := Load(conf, lists, second, false)
			if err != nil || len(third.Notes) > 0 {
				t.Fatalf("%v, notes %q", err, third.Notes)
			}
			if third.Policy.Table("drop").MatchAddr(inside) {
				t.Error("the new table is not in use")
			}
		})
	}
}

// TestEmptyTable checks that a new table's file may be empty, and that a forced reload of an empty
// file empties the table.
func TestEmptyTable(t *testing.T) {
	dir := t.TempDir()
	conf, drop := filepath.Join(dir, "scanwatch.conf"), filepath.Join(dir, "drop.txt")
	write(t, conf, withTable)
	write(t, drop, "# friends\n")
	first, err := Load(conf, builtinLists(t), nil, true)
	if err != nil || len(first.Notes) > 0 {
		t.Fatalf("%v, notes %q", err, first.Notes)
	}
	write(t, drop, prefixes(20))
	for _, c := range []struct {
		text   string
		forced bool
		want   bool // expect the table to have entries
	}{
		{prefixes(20), false, true},
		{"", false, true},
		{"<html>", true, true}, // not loadable
		{"", true, false},
		{"", false, false},
	} {
		write(t, drop, c.text)
		if first, err = Reload(first, builtinLists(t), c.forced); err != nil {
			t.Fatal(err)
		}
		if got := first.Policy.Table("drop").MatchAddr(netip.MustParseAddr("2001:db8:1::1")); got != c.want {
			t.Errorf("%.10q, forced %v: matches %v", c.text, c.forced, got)
		}
	}
}

// TestBlankTable checks that a table file containing only white space causes a note,
// because its entries may have been lost. A comment in the file prevents the note.
func TestBlankTable(t *testing.T) {
	dir := t.TempDir()
	conf, drop := filepath.Join(dir, "scanwatch.conf"), filepath.Join(dir, "drop.txt")
	write(t, conf, withTable)
	for text, blank := range map[string]bool{"": true, " \n\n": true, "# none\n": false, "192.0.2.7\n": false} {
		write(t, drop, text)
		c, err := Load(conf, builtinLists(t), nil, true)
		if err != nil || (len(c.Blank) == 1) != blank || (len(c.Notes) == 1) != blank {
			t.Errorf("%q: %v, blank %q, notes %q", text, err, c.Blank, c.Notes)
		}
	}
}

// TestTableFiles checks which entries in table files cause errors or warnings in a strict
// load.
func TestTableFiles(t *testing.T) {
	const pass, drop = "table <t> file \"list\"\npass from <t>\n", "table <t> file \"list\"\nrule r phase connect match src <t> disconnect\n"
	for _, c := range []struct {
		name, conf, list string
		want             string // text in the notes or warnings; empty: none expected
	}{
		{"addresses", pass, "192.0.2.7\n198.51.100.0/24\n", ""},
		{"local networks of friends", pass, "192.168.0.0/16\nfd00::/8\n", ""},
		{"local networks of friends and in a rule", pass + "rule r phase connect match src <t> disconnect\n", "192.0.2.7\n192.168.0.0/16\n", "line 2: 192.168.0.0/16: private"},
		{"a local network in a rule", drop, "192.0.2.7\n192.168.0.0/16\n", "line 2: 192.168.0.0/16: private"},
		{"names of friends", pass, "192.0.2.7\nmail.partner.example\n", "scanwatch.conf:1:11: warning: table <t>: name \"mail.partner.example\" of its file is never compared"},
		{"only names", pass, "mail.partner.example\n", "scanwatch.conf:2:6: warning: this never matches: src needs an address, and table <t> has none"},
		{"host bits", drop, "192.0.2.7\n198.51.100.9/24\n", "line 2: 198.51.100.9/24: bits after the prefix length are ignored: 198.51.100.0/24"},
		{"an address in a remark", drop, "192.0.2.7 was 192.0.2.9\n", "line 1: 192.0.2.9: ignored, because it is part of a remark"},
		{"a wide network", drop, "192.0.2.7\n8.8.8.0/7\n", "line 2: 8.8.8.0/7: wider than /8"},
		{"AS numbers as countries", "country \"nosuch\"\n" + strings.Replace(drop, "src", "country", 1), "AS64496\n", "country needs a country code, and table <t> has none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			conf := filepath.Join(dir, "scanwatch.conf")
			write(t, conf, c.conf)
			write(t, filepath.Join(dir, "list"), c.list)
			loaded, err := Load(conf, builtinLists(t), nil, true)
			got := strings.Join(loaded.Notes, "\n") + loaded.Warnings.Error()
			if err != nil && !strings.Contains(c.conf, "nosuch") {
				t.Fatal(err)
			}
			if !strings.Contains(got, c.want) || c.want == "" && got != "" {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// TestRelativeNames checks that file names are relative to the directory of the file that
// mentions them, not to the working directory.
func TestRelativeNames(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "scanwatch.conf")
	if err := os.Mkdir(filepath.Join(dir, "more"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, conf, "store \"state\"\ninclude \"more/tables.conf\"\ntable <near> file \"near.txt\"\n"+
		"rule r phase connect match src { <near>, <far> } disconnect\n")
	write(t, filepath.Join(dir, "more", "tables.conf"), "table <far> file \"far.txt\"\n")
	write(t, filepath.Join(dir, "near.txt"), "192.0.2.0/24\n")
	write(t, filepath.Join(dir, "more", "far.txt"), "198.51.100.0/24\n")
	c, err := Load(conf, builtinLists(t), nil, true)
	if err != nil {
		t.Fatal(Detail(err))
	}
	for table, addr := range map[string]string{"near": "192.0.2.1", "far": "198.51.100.1"} {
		if !c.Policy.Table(table).MatchAddr(netip.MustParseAddr(addr)) {
			t.Errorf("<%s> does not match %s", table, addr)
		}
	}
	if got, want := c.Policy.Store, filepath.Join(dir, "state"); got != want {
		t.Errorf("store %q, want %q", got, want)
	}
	if c.Changed() {
		t.Error("changed without a change")
	}
	write(t, filepath.Join(dir, "more", "tables.conf"), "table <far> file \"far.txt\" # again\n")
	if !c.Changed() {
		t.Error("a change of an included file was not detected")
	}
}

// TestMarkSeen checks that an invalid configuration is reported once, and is loaded once
// it has been corrected.
func TestMarkSeen(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "scanwatch.conf")
	for _, c := range []struct {
		name  string
		first func(t *testing.T) *Config
	}{
		{"broken by a change", func(t *testing.T) *Config {
			write(t, conf, "mode observe\n")
			c, err := Load(conf, builtinLists(t), nil, false)
			if err != nil {
				t.Fatal(err)
			}
			write(t, conf, "mode obverse\n# and longer\n")
			return c
		}},
		{"broken at the start", func(t *testing.T) *Config {
			write(t, conf, "mode obverse\n")
			c, err := Load(conf, builtinLists(t), nil, false)
			if err == nil || c.Policy != nil {
				t.Fatal("no error")
			}
			if c.Changed() {
				t.Error("changed without a change")
			}
			write(t, conf, "mode obverse\n# still\n")
			return c
		}},
		{"was not there", func(t *testing.T) *Config {
			os.Remove(conf)
			c, err := Load(conf, builtinLists(t), nil, false)
			if err == nil || c.Policy != nil {
				t.Fatal("no error")
			}
			if c.Changed() {
				t.Error("changed without a change")
			}
			write(t, conf, "mode obverse\n")
			return c
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := c.first(t)
			if !config.Changed() {
				t.Fatal("the change was not detected")
			}
			broken, err := Load(conf, builtinLists(t), config, false)
			if err == nil {
				t.Fatal("no error")
			}
			config.MarkSeen(broken)
			if config.Changed() {
				t.Error("the same change is detected again")
			}
			write(t, conf, "mode enforce # fixed\n")
			if !config.Changed() {
				t.Error("the next change was not detected")
			}
			if _, err := Load(conf, builtinLists(t), config, false); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAllErrors checks that a strict load reports an error with a position for each unusable file.
func TestAllErrors(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "scanwatch.conf")
	write(t, conf, "table <a> file \"a.txt\"\n\ttable <b> file \"b.txt\"\nasn \"c.mmdb\"\ncountry \"d.mmdb\"\n"+
		"rule r phase connect match src { <a>, <b> } disconnect\n")
	write(t, filepath.Join(dir, "b.txt"), "<html>")
	_, err := Load(conf, builtinLists(t), nil, true)
	if err == nil {
		t.Fatal("no error")
	}
	got := Detail(err)
	at := 0
	for _, want := range []string{
		conf + ":1:", "a.txt", "\n    table <a> file \"a.txt\"\n", "^\n",
		conf + ":2:", "web page", "\n    \ttable <b> file \"b.txt\"\n", "^\n", "c.mmdb", "d.mmdb",
	} {
		i := strings.Index(got[at:], want)
		if i < 0 {
			t.Fatalf("%q is missing or in the wrong order in:\n%s", want, got)
		}
		at += i
	}
}

// TestMissingAtFirst checks that conditions on a missing table are unknown, and that all
// other rules work.
func TestMissingAtFirst(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "scanwatch.conf")
	write(t, conf, withTable+"rule odd phase connect match !src <drop> disconnect\nasn \"nosuch.mmdb\"\n")
	c, err := Load(conf, builtinLists(t), nil, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Notes) != 2 {
		t.Errorf("notes %q, want one of the table and one of the database", c.Notes)
	}
	v := c.Policy.Eval(&rules.Facts{Phase: smtp.PhaseConnect, Src: netip.MustParseAddr("192.0.2.1")})
	if v.Act.Rule != nil {
		t.Errorf("rule %s decided without its table", v.Act.Rule.Name)
	}
}

func TestBuiltinTables(t *testing.T) {
	lists := builtinLists(t)
	for name, want := range map[string]struct{ in, out string }{
		"scanners":      {"census1.shodan.io", "mail.example.net"},
		"clouds":        {"ec2-192-0-2-1.compute.amazonaws.com", "a.smtp-out.amazonses.com"},
		"botnet-helo":   {"YLMF-PC", "localhost"},
		"known-senders": {"a1.smtp-out.amazonses.com", "mail.example.net"},
	} {
		table, err := builtin(name, lists)
		if err != nil {
			t.Fatal(err)
		}
		if !table.MatchName([]byte(want.in)) || table.MatchName([]byte(want.out)) {
			t.Errorf("<%s>: %s %v, %s %v; want true and false", name, want.in, table.MatchName([]byte(want.in)), want.out, table.MatchName([]byte(want.out)))
		}
	}
	if _, err := builtin("nosuch", lists); err == nil {
		t.Error("no error for a list that is not shipped")
	}
}

func TestReadyPolicies(t *testing.T) {
	for _, name := range rules.PolicyNames() {
		c, err := Ready(name, builtinLists(t))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(c.Warnings)+len(c.Notes) > 0 {
			t.Errorf("%s: %v %v", name, c.Warnings, c.Notes)
		}
	}
}

// BenchmarkLoad measures loading 100,000 prefixes and 200 rules.
func BenchmarkLoad(b *testing.B) {
	dir := b.TempDir()
	conf := filepath.Join(dir, "scanwatch.conf")
	var text strings.Builder
	text.WriteString(withTable)
	for i := range 200 {
		fmt.Fprintf(&text, "rule r%d phase helo match helo \"h%d.example.net\" reject\n", i, i)
	}
	write(b, conf, text.String())
	var list strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&list, "%d.%d.%d.0/24\n", 11+i/65536*10, i/256%256, i%256)
	}
	write(b, filepath.Join(dir, "drop.txt"), list.String())
	lists := builtinLists(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Load(conf, lists, nil, true); err != nil {
			b.Fatal(err)
		}
	}
}

// TestDigest checks that the digest depends on each configuration file and on the tables
// that exempt hosts, but not on paths or other tables.
func TestDigest(t *testing.T) {
	lists := builtinLists(t)
	first := map[string]string{
		"scanwatch.conf": "include \"more.conf\"\ntable <partners> file \"partners\"\ntable <drop> file \"drop\"\npass match src <partners>\n" +
			"rule drop phase connect match src <drop> disconnect\nrule both phase connect match src <partners> disconnect\n",
		"more.conf": "mode enforce\n", "partners": "192.0.2.1\n", "drop": "192.0.2.2\n"}
	digest := func(change, text string) string {
		t.Helper()
		dir := t.TempDir()
		for name, content := range first {
			if name == change {
				content = text
			}
			write(t, filepath.Join(dir, name), content)
		}
		c, err := Load(filepath.Join(dir, "scanwatch.conf"), lists, nil, true)
		if err != nil {
			t.Fatal(err)
		}
		return c.Digest()
	}
	want := digest("", "")
	for _, c := range []struct {
		file, text string
		same       bool
	}{
		{"", "", true},
		{"drop", "192.0.2.3\n", true},
		{"partners", "192.0.2.3\n", false},
		{"partners", "", false},
		{"more.conf", "mode observe\n", false},
		{"scanwatch.conf", first["scanwatch.conf"] + "own-address 192.0.2.9\n", false},
		{"scanwatch.conf", "", false},
	} {
		if got := digest(c.file, c.text); (got == want) != c.same {
			t.Errorf("%s with %q: %s, before %s", c.file, c.text, got, want)
		}
	}
}
