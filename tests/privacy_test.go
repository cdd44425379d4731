package tests

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/filter/privacy"
	"scanwatch/tests/smtpd"
)

// people are those of privateSession: what must be in the state directory and the
// log, and what must not, with each setting.
var people = []struct {
	name                   string
	full, standard, strict bool
}{
	{"friend-of-hers", true, false, false},                 // sender
	{"sender.example", true, true, false},                  // his domain
	{"exists-here", true, false, false},                    // recipient
	{"nobody-by-that-name", true, true, false},             // never existed
	{"victim-of-a-probe", true, false, false},              // in a foreign domain
	{"elsewhere.example", true, true, true},                // that domain
	{"postmaster@example.org", true, true, true},           // nobody's name
	{"out-of-order", true, false, false},                   // in a command that smtpd refused
	{"plainuser", true, true, false},                       // failed to log in
	{"S3cret-passw0rd!", false, false, false},              // as user name
	{"0123456789abcdef0123456789abcdef", true, true, true}, // HELO
}

const privateSession = `report|0.7|1795219327.000001|smtp-in|link-connect|00000000000000a1|<unknown>|fail|192.0.2.1:4000|192.0.2.25:25
report|0.7|1795219327.000002|smtp-in|protocol-server|00000000000000a1|220 mx.example.org ESMTP OpenSMTPD
report|0.7|1795219327.000003|smtp-in|protocol-client|00000000000000a1|MAIL FROM:<out-of-order@sender.example>
report|0.7|1795219327.000003|smtp-in|protocol-server|00000000000000a1|503 5.5.1 Invalid command: <out-of-order@sender.example>
report|0.7|1795219327.000003|smtp-in|protocol-client|00000000000000a1|EHLO 0123456789abcdef0123456789abcdef
report|0.7|1795219327.000005|smtp-in|link-identify|00000000000000a1|EHLO|0123456789abcdef0123456789abcdef
report|0.7|1795219327.000006|smtp-in|protocol-server|00000000000000a1|250 hello
report|0.7|1795219327.000010|smtp-in|protocol-client|00000000000000a1|AUTH PLAIN ********
report|0.7|1795219327.000011|smtp-in|link-auth|00000000000000a1|fail|plainuser
report|0.7|1795219327.000012|smtp-in|protocol-server|00000000000000a1|535 5.7.8 no
report|0.7|1795219327.000013|smtp-in|protocol-client|00000000000000a1|AUTH PLAIN ********
report|0.7|1795219327.000014|smtp-in|link-auth|00000000000000a1|fail|S3cret-passw0rd!
report|0.7|1795219327.000015|smtp-in|protocol-server|00000000000000a1|535 5.7.8 no
report|0.7|1795219327.000020|smtp-in|protocol-client|00000000000000a1|MAIL FROM:<friend-of-hers@sender.example>
report|0.7|1795219327.000021|smtp-in|protocol-server|00000000000000a1|250 2.0.0 Ok
report|0.7|1795219327.000022|smtp-in|tx-mail|00000000000000a1|31f211ba|ok|friend-of-hers@sender.example
`

// rcpt is a RCPT of privateSession.
func rcpt(address, result, reply string) string {
	return fmt.Sprintf(`report|0.7|1795219328.000000|smtp-in|protocol-client|00000000000000a1|RCPT TO:<%[1]s>
report|0.7|1795219328.000001|smtp-in|protocol-server|00000000000000a1|%[3]s
report|0.7|1795219328.000002|smtp-in|tx-rcpt|00000000000000a1|31f211ba|%[2]s|%[1]s
`, address, result, reply)
}

// hasherOf makes hashes with the key of a state directory.
func hasherOf(t *testing.T, dir string) *privacy.Hasher {
	t.Helper()
	key, err := privacy.ReadKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	return privacy.New(key)
}

// TestPrivacy: what the setting says is neither recorded nor logged nor told, and
// who has the key finds it all the same.
func TestPrivacy(t *testing.T) {
	for _, c := range []struct {
		how string
		in  func(i int) bool
	}{
		{"full", func(i int) bool { return people[i].full }},
		{"default", func(i int) bool { return people[i].standard }},
		{"strict", func(i int) bool { return people[i].strict }},
	} {
		t.Run(c.how, func(t *testing.T) {
			home := t.TempDir()
			dir, conf, told := filepath.Join(home, "state"), filepath.Join(home, "scanwatch.conf"), filepath.Join(home, "events")
			text := "privacy " + c.how + "\nevents \"" + told + "\"\ntable <local-domains> { example.org }\n"
			if err := os.WriteFile(conf, []byte(text), 0o640); err != nil {
				t.Fatal(err)
			}
			p := begin(t, "-f", conf, "-s", dir)
			p.send(privateSession + rcpt("exists-here@example.org", "ok", "250 2.0.0 Ok") +
				rcpt("nobody-by-that-name@example.org", "permfail", "550 Invalid recipient: <nobody-by-that-name@example.org>") +
				rcpt("victim-of-a-probe@elsewhere.example", "permfail", "550 Invalid recipient: <victim-of-a-probe@elsewhere.example>") +
				rcpt("postmaster@example.org", "ok", "250 2.0.0 Ok") +
				"report|0.7|1795219329.000006|smtp-in|link-disconnect|00000000000000a1\n")
			log := []byte(p.end(0))
			all := log
			err := filepath.WalkDir(home, func(name string, e fs.DirEntry, err error) error {
				if err != nil || !e.Type().IsRegular() || name == conf {
					return err
				}
				b, err := os.ReadFile(name)
				all = append(all, b...)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			for i, p := range people {
				if found := bytes.Contains(all, []byte(p.name)); found != c.in(i) {
					t.Errorf("%s: found %v, want %v", p.name, found, c.in(i))
				}
			}
			if info, err := os.Stat(filepath.Join(dir, "key")); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("the key: %v, %v", info, err)
			}

			for _, who := range []string{"friend-of-hers@sender.example", "exists-here@example.org", "@sender.example", "victim-of-a-probe@elsewhere.example"} {
				if out := command(t, dir, "why", who); !strings.Contains(out, "00000000000000a1") {
					t.Errorf("why %s: %s", who, out)
				}
			}
			if c.how == "full" {
				return
			}
			if err := os.Remove(filepath.Join(dir, "key")); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(smtpd.Bin("scanwatch"), "-s", dir, "why", "exists-here@example.org").CombinedOutput()
			if err == nil || !strings.Contains(string(out), "cannot be read; run this as its owner or as root") {
				t.Errorf("why without the key: %v, %s", err, out)
			}
			out, err = exec.Command(smtpd.Bin("scanwatch"), "-f", conf, "-s", dir, "backtest", writeRules(t, home)).CombinedOutput()
			for _, want := range []string{"because the name was recorded as a hash", "No accepted mail would have been lost."} {
				if !strings.Contains(strings.Join(strings.Fields(string(out)), " "), want) {
					t.Errorf("backtest: %v, %s does not have %q", err, out, want)
				}
			}
			if strings.Contains(string(out), "rule two") || strings.Contains(string(out), "rule three") {
				t.Errorf("backtest: %s", out)
			}
		})
	}
}

// TestNoKey: where no key can be saved all is hashed with one that is forgotten, and
// the log says so.
func TestNoKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := begin(t, "-s", filepath.Join(file, "state"))
	p.send(privateSession + rcpt("victim-of-a-probe@elsewhere.example", "permfail", "550 no"))
	if answer := p.ask(7, "mail.example.net"); answer != "proceed\n" {
		t.Errorf("answer %q", answer)
	}
	log := p.end(0)
	if strings.Contains(log, "victim-of-a-probe") || !strings.Contains(log, "hashed with a key that is not saved") {
		t.Errorf("logged %s", log)
	}
}

// writeRules writes a configuration with a rule that a hash keeps from telling, and
// with others that can tell.
func writeRules(t *testing.T, dir string) string {
	name := filepath.Join(dir, "rules.conf")
	err := os.WriteFile(name, []byte(`table <local-domains> { example.org }
rule one phase rcpt-to match rcpt-to "exists-too@example.org" reject
rule two phase rcpt-to match rcpt-to { "abuse@", "exists-here@example.net" } reject
rule three phase rcpt-to match rcpt-to "@example.com" reject
`), 0o640)
	if err != nil {
		t.Fatal(err)
	}
	return name
}
