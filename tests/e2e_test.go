//go:build linux

// Package tests runs the built programs on real OpenSMTPD servers.
package tests

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"scanwatch/tests/smtpd"
)

func TestMain(m *testing.M) {
	smtpd.Main(m, "scanwatch/cmd/filter-scanwatch", "scanwatch/cmd/scanwatch", "scanwatch/tests/shim")
}

// scanwatch is the filter as an admin would have it.
func scanwatchFilter(args ...string) smtpd.Filter {
	return smtpd.Filter{
		Name: "scanwatch",
		Path: smtpd.Bin("filter-scanwatch"),
		Args: append([]string{"-s", smtpd.StateDir}, args...),
	}
}

// allPhases are those a filter may safely be asked in.
var allPhases = []string{"connect", "helo", "ehlo", "starttls", "mail-from", "rcpt-to", "data", "commit", "rset", "noop", "quit"}

// asked is the filter made to answer in every phase.
func asked() smtpd.Filter {
	return smtpd.Through(smtpd.Bin("shim"), scanwatchFilter(), "", allPhases...)
}

func start(t *testing.T, o smtpd.Options) *smtpd.Server {
	t.Helper()
	smtpd.Require(t, o.Version)
	o.Hosts = append(o.Hosts, smtpd.Hosts()...)
	if o.Dir == "" {
		// What the filter kept is looked at after the stop as well.
		o.Dir = stateDir(t)
	}
	s, err := smtpd.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() })
	return s
}

// stateDir makes a folder that the users of smtpd may enter.
func stateDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func stop(t *testing.T, s *smtpd.Server) {
	t.Helper()
	if !s.Alive() {
		t.Errorf("smtpd has ended by itself:\n%s", s.Log())
	}
	if err := s.Stop(); err != nil {
		t.Errorf("stop: %v\n%s", err, s.Log())
	}
}

// command runs scanwatch(8) on a state directory.
func command(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command(smtpd.Bin("scanwatch"), append([]string{"-s", dir}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("scanwatch %v: %v\n%s", args, err, stderr.String())
	}
	return string(out)
}

// A record is what dump writes, as far as the tests look at it.
type record struct {
	Session string
	Start   time.Time
	Src     string
	RDNS    string
	FCrDNS  string
	Local   bool
	Ending  string
	Counts  map[string]int
	Helo    []struct{ Verb, Name, Result string }
	Auth    []struct{ User, Result string }

	Transactions []struct {
		Sender     string
		Recipients []struct{ Address, Result string }
	}
	Findings []finding
}

type finding struct{ Evidence, Organisation, By, Confidence string }

func (r *record) evidence() (tokens []string) {
	for _, f := range r.Findings {
		tokens = append(tokens, f.Evidence)
	}
	return tokens
}

func (r *record) recipients() (n int) {
	for _, tx := range r.Transactions {
		n += len(tx.Recipients)
	}
	return n
}

func dump(t *testing.T, dir string, args ...string) (records []record) {
	t.Helper()
	for line := range strings.Lines(command(t, dir, append([]string{"dump"}, args...)...)) {
		var r record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("dump: %v in %s", err, line)
		}
		records = append(records, r)
	}
	return records
}

// addr makes addresses comparable however they are written.
func addr(s string) netip.Addr {
	a, _ := netip.ParseAddr(strings.Trim(s, "[]"))
	return a.Unmap()
}

func fromAddr(records []record, from string) (found []record) {
	for _, r := range records {
		if addr(r.Src) == addr(from) {
			found = append(found, r)
		}
	}
	return found
}

// TestObserveChangesNoByte plays every scenario three times: without a filter,
// with ours, and with ours when smtpd asks it in every phase. The dialogues
// must be the same to the byte.
func TestObserveChangesNoByte(t *testing.T) {
	for _, v := range smtpd.Versions {
		t.Run(v.Name, func(t *testing.T) {
			smtpd.Require(t, v)
			var without map[string]string
			for _, chain := range []struct {
				name    string
				filters []smtpd.Filter
			}{
				{"no filter", nil},
				{"our filter", []smtpd.Filter{scanwatchFilter()}},
				{"our filter asked in every phase", []smtpd.Filter{asked()}},
			} {
				s := start(t, smtpd.Options{Version: v, Filters: chain.filters})
				dialogues := make(map[string]string)
				for _, sc := range smtpd.Scenarios {
					if sc.NeedsTLS && !v.TLS {
						continue
					}
					ds, err := s.Play(sc)
					if err != nil {
						t.Errorf("%s: %s: %v", chain.name, sc.Name, err)
					}
					for _, d := range ds {
						dialogues[sc.Name] += d.Masked() + "--\n"
					}
				}
				stop(t, s)
				if without == nil {
					without = dialogues
					continue
				}
				for name, want := range without {
					if got := dialogues[name]; got != want {
						t.Errorf("%s: %s: the client sees a difference\ngot:\n%s\nwant:\n%s", chain.name, name, got, want)
					}
				}
			}
		})
	}
}

// expected is what scenarios must be recognised by, on every version.
var expected = map[string]struct {
	evidence []string // some of the findings, per scenario
	org      string
	ending   string
}{
	"good-mail":         {nil, "", "quit"},
	"good-mail-ipv6":    {nil, "", "quit"},
	"null-sender":       {nil, "", "quit"},
	"ylmf-pc":           {[]string{"botnet-helo", "auth-unsupported"}, "PushDo / Cutwail", ""},
	"harvest":           {[]string{"unknown-recipient", "harvest"}, "", "quit"},
	"relay-probe":       {[]string{"relay-probe"}, "", ""},
	"ssh":               {[]string{"talks-ssh"}, "", ""},
	"http-lines":        {[]string{"talks-http", "scanner"}, "Palo Alto", ""},
	"http-one-write":    {[]string{"pipelining"}, "", "rejected"},
	"tls-hello":         {[]string{"no-mail"}, "", "dropped"},
	"tls-hello-line":    {[]string{"talks-tls"}, "", ""},
	"pipelined":         {[]string{"pipelining"}, "", "rejected"},
	"own-address":       {[]string{"helo-own-address"}, "", ""},
	"localhost-helo":    {[]string{"helo-localhost"}, "", ""},
	"drop-after-banner": {[]string{"no-mail"}, "", "dropped"},
	"drop":              {[]string{"no-mail"}, "", "dropped"},
	"shadowserver":      {[]string{"scanner"}, "Shadowserver", ""},
	"shodan":            {[]string{"scanner"}, "Shodan", ""},
	"ec2":               {[]string{"cloud"}, "Amazon", ""},
}

// TestScenariosAreRecorded: each kind of visitor leaves the right records and
// log lines, whatever the version of smtpd, and is named by the same evidence.
func TestScenariosAreRecorded(t *testing.T) {
	for _, v := range smtpd.Versions {
		t.Run(v.Name, func(t *testing.T) {
			s := start(t, smtpd.Options{Version: v, Filters: []smtpd.Filter{scanwatchFilter()}, Socket: true})
			played := 0
			for _, sc := range smtpd.Scenarios {
				if sc.NeedsTLS && !v.TLS {
					continue
				}
				if _, err := s.Play(sc); err != nil {
					t.Errorf("%s: %v", sc.Name, err)
				}
				played += len(sc.Sessions)
			}
			if err := s.Sendmail(strings.NewReader("Subject: local\n\nhello\n"), "alice@example.org"); err != nil {
				t.Errorf("sendmail: %v", err)
			}
			if err := s.Eventually("all sessions have ended", func() bool {
				return len(dump(t, s.State())) >= played+1
			}); err != nil {
				t.Error(err)
			}
			running := dump(t, s.State())
			stop(t, s)
			records := dump(t, s.State())
			if len(records) < len(running) {
				t.Errorf("%d records while running, %d after the stop", len(running), len(records))
			}
			log := s.Log()
			for _, sc := range smtpd.Scenarios {
				want, ok := expected[sc.Name]
				if !ok || sc.NeedsTLS {
					continue
				}
				found := fromAddr(records, sc.Sessions[0].From)
				if len(found) == 0 {
					t.Errorf("%s: no record from %s", sc.Name, sc.Sessions[0].From)
					continue
				}
				r := found[0]
				for _, token := range want.evidence {
					if !slices.Contains(r.evidence(), token) {
						t.Errorf("%s: evidence %v, want %s in it", sc.Name, r.evidence(), token)
					}
					if line := "evidence=" + token + " src=" + addr(r.Src).String() + " "; !strings.Contains(log, line) {
						t.Errorf("%s: no line with %q in the log", sc.Name, line)
					}
				}
				if want.evidence == nil && len(r.Findings) > 0 {
					t.Errorf("%s: evidence %v, want none", sc.Name, r.evidence())
				}
				if want.org != "" && !slices.ContainsFunc(r.Findings, func(f finding) bool {
					return strings.Contains(f.Organisation, want.org) && f.Confidence != "low"
				}) {
					t.Errorf("%s: findings %+v, want one of %s", sc.Name, r.Findings, want.org)
				}
				if want.ending != "" && r.Ending != want.ending {
					t.Errorf("%s: ended %s, want %s", sc.Name, r.Ending, want.ending)
				}
				fcrdns := "fail"
				if sc.Host.Confirmed {
					fcrdns = "pass"
				}
				if sc.Host.Name != "" && (r.RDNS != sc.Host.Name || r.FCrDNS != fcrdns) {
					t.Errorf("%s: rdns %q, fcrdns %q, want %q and %s", sc.Name, r.RDNS, r.FCrDNS, sc.Host.Name, fcrdns)
				}
				if sc.Name == "harvest" {
					if n := r.recipients(); n != 50 {
						t.Errorf("harvest: %d recipients recorded, want 50", n)
					}
					if n := strings.Count(command(t, s.State(), "show", r.Session), "C: RCPT TO:<"); n != 50 {
						t.Errorf("harvest: show tells of %d recipients, want 50", n)
					}
				}
			}
			if n := slices.IndexFunc(records, func(r record) bool { return r.Local }); n < 0 {
				t.Error("local mail was not recorded")
			} else if len(records[n].Findings) > 0 {
				t.Errorf("local mail gave evidence: %v", records[n].Findings)
			}
			for line := range strings.Lines(s.FilterLog("scanwatch")) {
				if !strings.HasPrefix(line, "finding") {
					t.Errorf("the filter logged %q", line)
				}
			}
		})
	}
}

// TestNoPasswordAnywhere: after every kind of AUTH no password is in the state
// directory, the log, the dump or the report, in clear or in base64.
func TestNoPasswordAnywhere(t *testing.T) {
	for _, v := range smtpd.Versions {
		t.Run(v.Name, func(t *testing.T) {
			s := start(t, smtpd.Options{Version: v, Filters: []smtpd.Filter{asked()}})
			played := 0
			for _, sc := range smtpd.Scenarios {
				if sc.NeedsTLS && !v.TLS || !strings.Contains(sc.Name, "auth") && !strings.Contains(sc.Name, "ylmf") {
					continue
				}
				if _, err := s.Play(sc); err != nil {
					t.Errorf("%s: %v", sc.Name, err)
				}
				played++
			}
			if played < 2 {
				t.Fatalf("only %d scenarios", played)
			}
			stop(t, s)
			records := dump(t, s.State())
			var passed int
			for _, r := range records {
				passed += r.Counts["auth_pass"]
			}
			if v.TLS && passed < 5 {
				t.Errorf("%d logins recorded: the scenarios did not log in", passed)
			}
			look := map[string][]byte{
				"log":  []byte(s.FilterLog("scanwatch")), // smtpd itself logs commands that it refuses
				"dump": []byte(command(t, s.State(), "dump")), "report": []byte(command(t, s.State(), "report")),
			}
			for _, r := range records {
				look["show "+r.Session] = []byte(command(t, s.State(), "show", r.Session))
			}
			err := filepath.WalkDir(s.State(), func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() {
					look[path], err = os.ReadFile(path)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			for where, data := range look {
				for _, secret := range smtpd.Secrets() {
					if bytes.Contains(data, []byte(secret)) {
						t.Errorf("%q is in %s", secret, where)
					}
				}
			}
		})
	}
}

// TestConcurrentSessions: 200 sessions at a time, half to unknown users, all
// interleaved, give 200 right records.
func TestConcurrentSessions(t *testing.T) {
	for _, v := range smtpd.Versions {
		t.Run(v.Name, func(t *testing.T) {
			const n = 200
			s := start(t, smtpd.Options{Version: v, Filters: []smtpd.Filter{asked()}})
			clients := make([]*smtpd.Client, n)
			from := func(i int) string { return fmt.Sprintf("198.18.%d.%d", 1+i/100, 1+i%100) }
			// smtpd's backlog is 5: connect one after the other, then keep all
			// of them going at once.
			for i := range clients {
				c, err := s.Dial(from(i), smtpd.PortMX)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if _, err := c.ReadReply(); err != nil {
					t.Fatal(err)
				}
				clients[i] = c
			}
			user := func(i int) string {
				if i%2 == 0 {
					return "alice@example.org"
				}
				return fmt.Sprintf("nobody%d@example.org", i)
			}
			var all sync.WaitGroup
			errs := make([]error, n)
			for i, c := range clients {
				all.Add(1)
				go func() {
					defer all.Done()
					for _, line := range []string{
						fmt.Sprintf("EHLO host%d.example.net", i), fmt.Sprintf("MAIL FROM:<sender%d@example.net>", i),
						"RCPT TO:<" + user(i) + ">", "QUIT",
					} {
						if _, err := c.Cmd(line); err != nil {
							errs[i] = fmt.Errorf("session %d: %s: %w", i, line, err)
							return
						}
					}
					_, errs[i] = c.Drain()
				}()
			}
			all.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Error(err)
			}
			if err := s.Eventually("all sessions have ended", func() bool { return len(dump(t, s.State())) > n }); err != nil {
				t.Error(err)
			}
			stop(t, s)
			records := dump(t, s.State())
			hasher := hasherOf(t, s.State())
			hashed := func(address string) string { return string(hasher.Mailbox(nil, []byte(address), false)) }
			for i := range n {
				found := fromAddr(records, from(i))
				if len(found) != 1 {
					t.Errorf("session %d: %d records", i, len(found))
					continue
				}
				r := found[0]
				result, clear := "ok", ""
				if i%2 == 1 {
					// In clear as soon as mail was accepted for that domain.
					result, clear = "permfail", user(i)
				}
				if len(r.Helo) != 1 || r.Helo[0].Name != fmt.Sprintf("host%d.example.net", i) ||
					len(r.Transactions) != 1 || r.Transactions[0].Sender != hashed(fmt.Sprintf("sender%d@example.net", i)) ||
					len(r.Transactions[0].Recipients) != 1 || (r.Transactions[0].Recipients[0].Address != hashed(user(i)) && r.Transactions[0].Recipients[0].Address != clear) ||
					r.Transactions[0].Recipients[0].Result != result || r.Ending != "quit" {
					t.Errorf("session %d: wrong record %+v", i, r)
				}
			}
		})
	}
}

// TestKilledFilter: a filter that is killed under load leaves a state that can
// be read, with everything in it that was flushed, and the next one goes on.
func TestKilledFilter(t *testing.T) {
	for _, v := range smtpd.Versions {
		t.Run(v.Name, func(t *testing.T) {
			o := smtpd.Options{Version: v, Filters: []smtpd.Filter{scanwatchFilter()}, Dir: stateDir(t)}
			s := start(t, o)
			hello := func(s *smtpd.Server, i int) error {
				c, err := s.Dial(fmt.Sprintf("198.18.1.%d", 1+i%250), smtpd.PortMX)
				if err != nil {
					return err
				}
				defer c.Close()
				if _, err := c.ReadReply(); err != nil {
					return err
				}
				if _, err := c.Cmd(fmt.Sprintf("EHLO host%d.example.net", i)); err != nil {
					return err
				}
				_, err = c.Cmd("QUIT")
				return err
			}
			const flushed = 50
			for i := range flushed {
				if err := hello(s, i); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Eventually("the sessions have ended", func() bool { return len(dump(t, s.State())) >= flushed }); err != nil {
				t.Fatal(err)
			}
			command(t, s.State(), "flush")
			loaded := make(chan int)
			begun := make(chan bool)
			go func() {
				n := 0
				for i := 0; ; i++ {
					if hello(s, i) != nil {
						break // smtpd ends with its filter
					}
					if n++; n == 20 {
						close(begun)
					}
				}
				loaded <- n
			}()
			<-begun
			if err := s.KillFilter(); err != nil {
				t.Fatal(err)
			}
			if n := <-loaded; n < 20 {
				t.Errorf("only %d sessions of load", n)
			}
			<-s.Ended()
			_ = s.Stop()
			after := dump(t, s.State())
			if len(after) < flushed {
				t.Errorf("%d records after the kill, %d were flushed", len(after), flushed)
			}
			s = start(t, o)
			if err := hello(s, 0); err != nil {
				t.Error(err)
			}
			stop(t, s)
			if again := dump(t, s.State()); len(again) <= len(after) {
				t.Errorf("%d records after the restart, %d before", len(again), len(after))
			}
			if damaged, _ := filepath.Glob(filepath.Join(s.State(), "sessions", "*damaged*")); len(damaged) > 0 {
				t.Errorf("damaged: %v", damaged)
			}
			for line := range strings.Lines(s.Log()) {
				if strings.Contains(line, "level=ERROR") || strings.Contains(line, "level=WARN") {
					t.Errorf("logged after the restart: %s", line)
				}
			}
		})
	}
}

// TestReportsAgree: report and dump give the same numbers, while the server is
// under load and after it has stopped.
func TestReportsAgree(t *testing.T) {
	v := smtpd.Versions[len(smtpd.Versions)-1]
	s := start(t, smtpd.Options{Version: v, Filters: []smtpd.Filter{scanwatchFilter()}})
	done := make(chan error, 1)
	played := 0
	go func() {
		var err error
		for range 3 {
			for _, sc := range smtpd.Scenarios {
				_, e := s.Play(sc)
				err = errors.Join(err, e)
				played += len(sc.Sessions)
			}
		}
		done <- err
	}()
	count := func() (sessions, mails int) {
		for _, r := range dump(t, s.State()) {
			sessions++
			mails += r.Counts["mails"]
		}
		return sessions, mails
	}
	// While mail comes in, a report made between two dumps lies between them.
	agree := func() int {
		t.Helper()
		type numbers struct{ Sessions, Mails int }
		var report struct {
			Remote, Authenticated, Local numbers
		}
		sessions1, mails1 := count()
		text := command(t, s.State(), "report", "--json")
		sessions2, mails2 := count()
		if err := json.Unmarshal([]byte(text), &report); err != nil {
			t.Fatalf("report: %v\n%s", err, text)
		}
		if n := report.Remote.Sessions + report.Authenticated.Sessions + report.Local.Sessions; n < sessions1 || n > sessions2 {
			t.Errorf("report tells of %d sessions, dump of %d before and %d after", n, sessions1, sessions2)
		}
		if n := report.Remote.Mails + report.Authenticated.Mails + report.Local.Mails; n < mails1 || n > mails2 {
			t.Errorf("report tells of %d mails, dump of %d before and %d after", n, mails1, mails2)
		}
		return sessions2
	}
	seen := 0
	for running := true; running; {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			running = false
		default:
			n := agree()
			if n < seen {
				t.Errorf("%d sessions after %d", n, seen)
			}
			seen = n
		}
	}
	stop(t, s)
	if n := agree(); n < played {
		t.Errorf("%d sessions recorded of %d", n, played)
	}
}

// TestChain: in front of another filter ours neither hides nor changes
// anything, and sees what the other one decides.
func TestChain(t *testing.T) {
	for _, v := range smtpd.Versions {
		t.Run(v.Name, func(t *testing.T) {
			other := smtpd.Filter{Name: "other", Builtin: `phase mail-from match mail-from regex { "refused[.]example" } reject "550 5.7.1 not you"`}
			s := start(t, smtpd.Options{Version: v, Filters: []smtpd.Filter{asked(), other}})
			c, err := s.Dial("198.51.100.7", smtpd.PortMX)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.ReadReply(); err != nil {
				t.Fatal(err)
			}
			for _, step := range []struct {
				line string
				code int
			}{{"EHLO mail.example.net", 250}, {"MAIL FROM:<a@refused.example>", 550}, {"MAIL FROM:<a@example.net>", 250}, {"QUIT", 221}} {
				if r, err := c.Cmd(step.line); err != nil || r.Code != step.code {
					t.Errorf("%s: %v, %v; want %d", step.line, r, err, step.code)
				}
			}
			stop(t, s)
			text := command(t, s.State(), "dump", "--src", "198.51.100.7")
			if !strings.Contains(text, "not you") || !strings.Contains(text, `"sender":"hash:`) || strings.Contains(text, `"a@`) {
				t.Errorf("dump: %s", text)
			}
		})
	}
}
