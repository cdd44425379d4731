package config

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"scanwatch/rules"
)

// FuzzLoad checks that loading any configuration and table returns either a policy or an
// error with a position. Loading a valid configuration again must succeed.
func FuzzLoad(f *testing.F) {
	lists := builtinLists(f)
	list := []byte("192.0.2.0/24\n2001:db8::/32\nscan.example.net\n")
	for _, text := range []string{
		"mode enforce\ntable <t> file \"list\"\nrule a phase connect match src <t> disconnect\n",
		"table <t> file \"list\" format plain\npass from <t>\nrule a phase helo match helo \"x\" reject \"550 no\"\n",
		"include \"list\"\n", "asn \"list\"\ncountry \"list\"\nrule a phase connect match asn 64496 disconnect ban 1h\n",
		"table <t> builtin\nstore \"x\" keep 7d budget 64M\nevents \"y\"\n", "include \"scanwatch.conf\"\n", "x = \"\\\ny\"\n",
	} {
		f.Add([]byte(text), list)
	}
	for _, name := range []string{"open", "standard", "tight"} {
		text, err := rules.ReadyPolicy(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, list)
	}
	f.Fuzz(func(t *testing.T, text, list []byte) {
		t.Chdir(t.TempDir()) // relative names are resolved here
		for name, data := range map[string][]byte{"scanwatch.conf": text, "list": list} {
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		file, err := filepath.Abs("scanwatch.conf")
		if err != nil {
			t.Fatal(err)
		}
		var before *Config
		for _, strict := range []bool{true, false, false} {
			c, err := Load(file, lists, before, strict)
			if (err == nil) != (c.Policy != nil) {
				t.Fatalf("error %v, policy %v", err, c.Policy)
			}
			if err == nil {
				before = c
				continue
			}
			var places rules.Errors
			if errors.As(err, &places) && (len(places) == 0 || places[0].Pos.Line < 1) {
				t.Errorf("error without a position: %v", err)
			}
			if Detail(err) == "" {
				t.Error("empty error text")
			}
		}
	})
}
