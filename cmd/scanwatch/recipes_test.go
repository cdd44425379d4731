//go:build !(386 || arm || mips || mipsle)

// Package mmdbwriter, which writes the test databases, does not compile on 32-bit systems.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
)

// recipeCases maps each recipe in scanwatch.conf(5) to sessions. session contains the flags of
// scanwatch test, and want is the outcome in enforce mode: the first rule that decides or bans, and
// its effect.
var recipeCases = map[string][]struct{ session, want string }{
	"A small family server": {
		{"--src 71.6.135.131 --rdns census1.shodan.io --helo x", "scanner: disconnect"},
		{"--src 203.0.113.9 --rdns mail.example.net --helo mail.example.net --mail-from a@example.net --rcpt mum@example.org", "proceed"},
		{"--src 203.0.113.9 --helo ylmf-pc", "bot: disconnect, ban 7d"},
		{"--src 192.0.2.9 --helo ylmf-pc --mail-from a@example.net --rcpt mum@example.org", "pass: proceed"},
		{"--src 203.0.113.9 --helo a.example.net --mail-from a@example.net --refuse a@example.org --refuse b@example.org --refuse c@example.org --refuse d@example.org --refuse e@example.org --refuse f@example.org", "harvest: disconnect, ban 1d"},
		{"--src 203.0.113.9 --helo phone --auth mum --mail-from mum@example.org --rcpt friend@example.net", "proceed"},
	},
	"A tilde with many users": {
		{"--src 203.0.113.9 --rdns mail.example.net --helo mail.example.net --mail-from a@example.net --rcpt ann@tilde.example.org", "proceed"},
		{"--src 203.0.113.9 --helo ylmf-pc --mail-from a@example.net --rcpt ann@tilde.example.org", "odd: junk, tag odd"},
		{"--src 203.0.113.9 --helo list.example.net --mail-from list@example.net --rcpt ann@tilde.example.org --refuse a@tilde.example.org --refuse b@tilde.example.org --refuse c@tilde.example.org --refuse d@tilde.example.org --refuse e@tilde.example.org --refuse f@tilde.example.org", "proceed"},
		{"--src 203.0.113.9 --helo my-laptop --auth ann --mail-from ann@tilde.example.org --rcpt friend@example.net", "proceed"},
	},
	"A company with submission on port 587": {
		{"--src 203.0.113.9 --rdns mail.example.net --helo mail.example.net --mail-from a@example.net --rcpt sales@example.com", "proceed"},
		{"--src 203.0.113.9 --helo WIN-7N1FIECL6IC --mail-from a@example.net --rcpt sales@example.com", "no-name: reject"},
		{"--src 203.0.113.9 --helo WIN-7N1FIECL6IC --mail-from a@example.net --rcpt postmaster@example.com", "pass: proceed"},
		{"--src 203.0.113.9 --dst 192.0.2.25:587 --helo localhost --auth bob --mail-from bob@example.com --rcpt x@example.net", "proceed"},
		{"--src 203.0.113.9 --dst 192.0.2.25:587 --helo ylmf-pc", "ylmf: disconnect, ban 1h"},
	},
	"Inbound gateway in front of Domino or Exchange": {
		{"--src 192.0.2.10 --helo INSIDE --mail-from bob@example.com --rcpt x@example.net", "pass: proceed"},
		{"--src 203.0.113.9 --rdns mail.example.net --helo mail.example.net --mail-from a@example.net --rcpt bob@example.com", "proceed"},
		{"--src 203.0.113.9 --helo a.example.net --guess bob", "login: ban 7d"},
		{"--src 203.0.113.9 --helo a.example.net --mail-from a@example.net --refuse x@example.edu --refuse y@example.edu --refuse z@example.edu", "relay: ban 7d"},
	},
	"A bulk sender that only accepts bounces": {
		{"--src 192.0.2.20 --helo app --mail-from bounces+7@news.example.org --rcpt reader@example.net", "pass: proceed"},
		{"--src 203.0.113.9 --rdns mail.example.net --helo mail.example.net --mail-from <> --rcpt bounces+7@news.example.org", "proceed"},
		{"--src 203.0.113.9 --rdns mail.example.net --helo mail.example.net --mail-from a@example.net --rcpt postmaster@news.example.org", "pass: proceed"},
		{"--src 203.0.113.9 --rdns mail.example.net --helo mail.example.net --mail-from a@example.net --rcpt info@news.example.org", "bounces: reject"},
	},
	"During a directory harvest": {
		{"--src 203.0.113.9 --helo a.example.net --mail-from a@example.net --refuse a@example.org --refuse b@example.org --refuse c@example.org --refuse d@example.org", "few: reject"},
		{"--src 203.0.113.9 --rdns mail.example.net --helo mail.example.net --mail-from <> --refuse a@example.org --rcpt b@example.org", "proceed"},
		{"--src 203.0.113.9 --rdns mail.example.net --helo mail.example.net --mail-from a@example.net --rcpt b@example.org", "proceed"},
	},
	"During an attack by ylmf-pc": {
		{"--src 203.0.113.9 --helo ylmf-pc --guess info", "ylmf: disconnect, ban 7d"},
		{"--src 203.0.113.9 --rdns mail.example.net --helo mail.example.net --mail-from a@example.net --rcpt b@example.org", "proceed"},
		{"--src 203.0.113.9 --helo my-laptop --auth bob --mail-from bob@example.org --rcpt x@example.net", "proceed"},
	},
	"Ban for attempts to log in as admin": {
		{"--src 203.0.113.9 --dst 192.0.2.25:587 --helo x.example.net --guess admin", "names: ban { 1h, 1d, 7d }"},
		{"--src 203.0.113.9 --dst 192.0.2.25:587 --helo my-laptop --guess bob", "proceed"},
		{"--src 203.0.113.9 --dst 192.0.2.25:587 --helo my-laptop --guess admin --auth bob", "proceed"},
	},
	"Logins from one country only": {
		{"--src 198.51.100.9 --dst 192.0.2.25:587 --helo my-laptop --auth bob", "abroad: disconnect"},
		{"--src 203.0.113.9 --dst 192.0.2.25:587 --helo my-laptop --auth bob", "proceed"},
		{"--src 198.51.100.9 --rdns mail.example.net --helo mail.example.net --mail-from a@example.net --rcpt b@example.org", "proceed"},
	},
	"A monitoring host without noise": {
		{"--src 192.0.2.77 --rdns monitor.example.org --helo monitor.example.org", "pass: proceed"},
	},
	"Scoring with Spamhaus ZEN": {
		{"--src 203.0.113.9 --rdns mail.example.net --helo mail.example.net --mail-from a@example.net --rcpt b@example.org", "proceed"},
		{"--src 203.0.113.9 --listed zen= --rdns mail.example.net --helo mail.example.net --mail-from a@example.net --rcpt b@example.org", "proceed"},
		{"--src 203.0.113.9 --listed zen=127.0.0.11 --rdns mail.example.net --helo mail.example.net --mail-from a@example.net --rcpt b@example.org", "proceed"},
		{"--src 203.0.113.9 --listed zen=127.0.0.4,127.0.0.11 --rdns mail.example.net --helo mail.example.net --mail-from a@example.net --rcpt b@example.org", "few: junk, tag listed"},
		{"--src 203.0.113.9 --helo mail.example.net --listed zen=127.0.0.4 --mail-from a@example.net --rcpt b@example.org", "many: reject"},
		{"--src 203.0.113.9 --helo mail.example.net --listed zen=127.0.0.4 --mail-from a@example.net --rcpt postmaster@example.org", "pass: proceed"},
		{"--src 203.0.113.9 --helo user --mail-from a@example.net --rcpt b@example.org", "proceed"},
	},
	"A stolen account": {
		{"--src 203.0.113.9 --dst 192.0.2.25:587 --helo my-laptop --auth bob --mail-from bob@example.org --refuse a@example.org --refuse b@example.org --refuse c@example.org --refuse d@example.org --refuse e@example.org --refuse f@example.org --refuse g@example.org --refuse h@example.org --refuse i@example.org --refuse j@example.org --rcpt x@example.net", "stolen: reject"},
		{"--src 203.0.113.9 --dst 192.0.2.25:587 --helo my-laptop --auth bob --mail-from bob@example.org --refuse a@example.org --rcpt x@example.net", "proceed"},
	},
}

// countries writes a country database in which 203.0.113.0/24 is in Germany and
// 198.51.100.0/24 is in another country.
func countries(t *testing.T, file string) {
	t.Helper()
	w, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "GeoLite2-Country", IncludeReservedNetworks: true})
	for prefix, code := range map[string]string{"203.0.113.0/24": "DE", "198.51.100.0/24": "XX"} {
		_, n, wrong := net.ParseCIDR(prefix)
		err = errors.Join(err, wrong, w.Insert(n, mmdbtype.Map{"country": mmdbtype.Map{"iso_code": mmdbtype.String(code)}}))
	}
	f, wrong := os.Create(file)
	if err = errors.Join(err, wrong); err != nil {
		t.Fatal(err)
	}
	_, err = w.WriteTo(f)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestRecipes checks that each recipe in the manual is a valid configuration and works as
// described.
func TestRecipes(t *testing.T) {
	page, err := os.ReadFile("../../man/scanwatch.conf.5")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), ".Sh RECIPES\n")
	section, _, _ = strings.Cut(section, "\n.Sh ")
	told := make(map[string]bool)
	for _, part := range strings.Split(section, ".Ss ")[1:] {
		title, text, _ := strings.Cut(part, "\n")
		told[title] = true
		t.Run(title, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "scanwatch.conf")
			_, text, _ = strings.Cut(text, ".Bd -literal -offset indent\n")
			text, _, _ = strings.Cut(text, ".Ed")
			const database = "/var/db/GeoIP/GeoLite2-Country.mmdb"
			if strings.Contains(text, database) {
				countries(t, filepath.Join(filepath.Dir(file), "country.mmdb"))
				text = strings.ReplaceAll(text, database, "country.mmdb")
			}
			if strings.Contains(text, "\ncompanion ") { // scanwatch check requires the user and the directory of a companion
				text = strings.NewReplacer("user _swlookup", "user 4004").Replace(text) + fmt.Sprintf("rundir %q\n", filepath.Dir(file))
			}
			if err := os.WriteFile(file, []byte(unroff(text)), 0o644); err != nil {
				t.Fatal(err)
			}
			run := func(args ...string) string {
				var out, stderr bytes.Buffer
				if status := program(&stderr).main(append([]string{"-f", file}, args...), &out); status != exitOK || stderr.Len() > 0 {
					t.Errorf("%v: exit status %d\n%s%s", args, status, out.String(), stderr.String())
				}
				return out.String()
			}
			if got := run("check"); strings.Contains(got, "warning") {
				t.Error(got)
			}
			run("policy")
			if len(recipeCases[title]) == 0 {
				t.Error("no row gives the purpose of this recipe")
			}
			for _, c := range recipeCases[title] {
				if got := fate(t, run(append([]string{"test", "--json", "--enforce"}, strings.Fields(c.session)...)...)); got != c.want {
					t.Errorf("%s: %s, want %s", c.session, got, c.want)
				}
			}
		})
	}
	for title := range recipeCases {
		if !told[title] {
			t.Errorf("the manual has no recipe %q", title)
		}
	}
}
