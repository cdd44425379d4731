//go:build linux

package process

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/smtpd"
)

// people lists the names in privateSession. full and hashed state whether the state directory and
// the log contain the name at that privacy level.
var people = []struct {
	name         string
	full, hashed bool
}{
	{"friend-of-hers", true, false},                  // sender
	{"sender.example", true, true},                   // domain
	{"exists-here", true, false},                     // recipient
	{"nobody-by-that-name", true, false},             // unknown recipient
	{"victim-of-a-probe", true, false},               // recipient in another domain
	{"elsewhere.example", true, true},                // domain of that recipient
	{"postmaster@example.org", true, true},           // role account
	{"out-of-order", true, false},                    // argument of a command that smtpd rejected
	{"plainuser", true, true},                        // user of a failed login
	{"S3cret-passw0rd!", false, false},               // password that was entered as the user name
	{"0123456789abcdef0123456789abcdef", true, true}, // name in HELO
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

// rcpt returns the lines of a RCPT in privateSession.
func rcpt(address, result, reply string) string {
	return fmt.Sprintf(`report|0.7|1795219328.000000|smtp-in|protocol-client|00000000000000a1|RCPT TO:<%[1]s>
report|0.7|1795219328.000001|smtp-in|protocol-server|00000000000000a1|%[3]s
report|0.7|1795219328.000002|smtp-in|tx-rcpt|00000000000000a1|31f211ba|%[2]s|%[1]s
`, address, result, reply)
}

// TestPrivacy checks that records, log and events contain no more data than the setting allows.
// With the key, `why` must find hashed mailboxes.
func TestPrivacy(t *testing.T) {
	for _, c := range []struct {
		how string
		in  func(i int) bool
	}{
		{"full", func(i int) bool { return people[i].full }},
		{"hashed", func(i int) bool { return people[i].hashed }},
	} {
		t.Run(c.how, func(t *testing.T) {
			home := t.TempDir()
			dir, conf := filepath.Join(home, "state"), filepath.Join(home, "scanwatch.conf")
			text := "privacy " + c.how + "\ntable <local-domains> { example.org }\n"
			if err := os.WriteFile(conf, []byte(text), 0o640); err != nil {
				t.Fatal(err)
			}
			p := filterproc.Start(t, "-f", conf, "-s", dir)
			p.Send(privateSession + rcpt("exists-here@example.org", "ok", "250 2.0.0 Ok") +
				rcpt("nobody-by-that-name@example.org", "permfail", "550 Invalid recipient: <nobody-by-that-name@example.org>") +
				rcpt("victim-of-a-probe@elsewhere.example", "permfail", "550 Invalid recipient: <victim-of-a-probe@elsewhere.example>") +
				rcpt("postmaster@example.org", "ok", "250 2.0.0 Ok") +
				"report|0.7|1795219329.000006|smtp-in|link-disconnect|00000000000000a1\n")
			log := []byte(p.End(0))
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
				if out := cli.Run(t, dir, "why", who); !strings.Contains(out, "00000000000000a1") {
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
			if err == nil || !strings.Contains(string(out), "cannot be read; run scanwatch as the owner of the key or as root") {
				t.Errorf("why without the key: %v, %s", err, out)
			}
			out, err = exec.Command(smtpd.Bin("scanwatch"), "-f", conf, "-s", dir, "backtest", writeRules(t, home)).CombinedOutput()
			for _, want := range []string{"the mailbox was recorded as a hash", "LOST: no accepted mail."} {
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

// TestNoKey checks that hashes use a temporary key if no key can be saved. The log must
// report the temporary key.
func TestNoKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(t.TempDir(), "scanwatch.conf")
	if err := os.WriteFile(conf, []byte("privacy hashed\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	p := filterproc.Start(t, "-f", conf, "-s", filepath.Join(file, "state"))
	p.Send(privateSession + rcpt("victim-of-a-probe@elsewhere.example", "permfail", "550 no"))
	if answer := p.Ask(7, "mail.example.net"); answer != "proceed\n" {
		t.Errorf("answer %q", answer)
	}
	log := p.End(0)
	if strings.Contains(log, "victim-of-a-probe") || !strings.Contains(log, "hash key not saved") {
		t.Errorf("logged %s", log)
	}
}

// writeRules writes a configuration with one rule that cannot be evaluated for hashed names. All
// other rules can be evaluated.
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
