//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/live"
	"scanwatch/tests/internal/smtpd"
)

// TestObserveChangesNoByte checks that in observe mode, the filter does not change a single byte of
// a dialogue. The test plays every scenario three times: without a filter, with the filter, and
// with the filter registered for all phases.
func TestObserveChangesNoByte(t *testing.T) {
	for _, v := range smtpd.Matrix() {
		t.Run(v.Name, func(t *testing.T) {
			smtpd.Require(t, v)
			var without map[string]string
			for _, chain := range []struct {
				name    string
				filters []smtpd.Filter
			}{
				{"no filter", nil},
				{"the filter in all phases", []smtpd.Filter{live.FilterAskedInAllPhases()}},
				{"the filter", []smtpd.Filter{live.Filter()}},
			} {
				if chain.name == "the filter" && !smtpd.Long {
					continue // the core scenario plays it
				}
				s := live.Start(t, smtpd.Options{Version: v, Filters: chain.filters})
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
				live.Stop(t, s)
				if without == nil {
					without = dialogues
					continue
				}
				for name, want := range without {
					if got := dialogues[name]; got != want {
						t.Errorf("%s: %s: the dialogues differ\ngot:\n%s\nwant:\n%s", chain.name, name, got, want)
					}
				}
			}
		})
	}
}

// TestCoreScenario checks that each kind of client causes the same evidence on every version of
// smtpd. Records and log lines must also be correct. This is the only test that always runs on real
// servers of all versions.
func TestCoreScenario(t *testing.T) {
	for _, v := range smtpd.Versions {
		t.Run(v.Name, func(t *testing.T) {
			s := live.Start(t, smtpd.Options{Version: v, Filters: []smtpd.Filter{live.Filter()}, Socket: true})
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
				return len(cli.Dump(t, s.State())) >= played+1
			}); err != nil {
				t.Error(err)
			}
			running := cli.Dump(t, s.State())
			live.Stop(t, s)
			records := cli.Dump(t, s.State())
			if len(records) < len(running) {
				t.Errorf("%d records while running, %d after the stop", len(running), len(records))
			}
			log := s.Log()
			for _, sc := range smtpd.Scenarios {
				want, ok := live.Expected[sc.Name]
				if !ok || sc.NeedsTLS {
					continue
				}
				found := cli.FromAddr(records, sc.Sessions[0].From)
				if len(found) == 0 {
					t.Errorf("%s: no record from %s", sc.Name, sc.Sessions[0].From)
					continue
				}
				r := found[0]
				for _, token := range want.Evidence {
					if !slices.Contains(r.Evidence(), token) {
						t.Errorf("%s: evidence %v, want %s in it", sc.Name, r.Evidence(), token)
					}
					// A session with only weak evidence has no log line.
					line := regexp.MustCompile("session decision=proceed src=" + regexp.QuoteMeta(cli.ParseAddr(r.Src).String()) + ` evidence=\S*\b` + token + ":")
					if slices.ContainsFunc(r.Findings, func(f cli.Finding) bool { return f.Confidence != "low" }) && !line.MatchString(log) {
						t.Errorf("%s: no line like %q in the log", sc.Name, line)
					}
				}
				if want.Evidence == nil && len(r.Evidence()) > 0 {
					t.Errorf("%s: evidence %v, want none", sc.Name, r.Evidence())
				}
				if want.Org != "" && !slices.ContainsFunc(r.Findings, func(f cli.Finding) bool {
					return strings.Contains(f.Organisation, want.Org) && f.Confidence != "low"
				}) {
					t.Errorf("%s: findings %+v, want one of %s", sc.Name, r.Findings, want.Org)
				}
				if want.Ending != "" && r.Ending != want.Ending {
					t.Errorf("%s: ended %s, want %s", sc.Name, r.Ending, want.Ending)
				}
				fcrdns := "fail"
				if sc.Host.Confirmed {
					fcrdns = "pass"
				}
				if sc.Host.Name != "" && (r.RDNS != sc.Host.Name || r.FCrDNS != fcrdns) {
					t.Errorf("%s: rdns %q, fcrdns %q, want %q and %s", sc.Name, r.RDNS, r.FCrDNS, sc.Host.Name, fcrdns)
				}
				if sc.Name == "harvest" {
					if n := r.RecipientCount(); n != 50 {
						t.Errorf("harvest: %d recipients recorded, want 50", n)
					}
					if n := strings.Count(cli.Run(t, s.State(), "show", r.Session), "C: RCPT TO:<"); n != 50 {
						t.Errorf("harvest: show prints %d recipients, want 50", n)
					}
				}
			}
			if n := slices.IndexFunc(records, func(r cli.Record) bool { return r.Local }); n < 0 {
				t.Error("local mail was not recorded")
			} else if len(records[n].Evidence()) > 0 {
				t.Errorf("local mail has evidence: %v", records[n].Evidence())
			}
			for line := range strings.Lines(s.FilterLog("scanwatch")) {
				if !strings.HasPrefix(line, "session decision=proceed ") && !strings.HasPrefix(line, "sessions evidence=") {
					t.Errorf("the filter logged %q", line)
				}
			}
		})
	}
}

// TestNoPasswordAnywhere checks that no file, log or output contains a password after any kind of
// AUTH. The test also searches for passwords in base64.
func TestNoPasswordAnywhere(t *testing.T) {
	for _, v := range smtpd.Matrix() {
		t.Run(v.Name, func(t *testing.T) {
			s := live.Start(t, smtpd.Options{Version: v, Filters: []smtpd.Filter{live.FilterAskedInAllPhases()}})
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
			live.Stop(t, s)
			records := cli.Dump(t, s.State())
			var passed int
			for _, r := range records {
				passed += r.Counts["auth_pass"]
			}
			if v.TLS && passed < 5 {
				t.Errorf("%d logins recorded: the scenarios did not log in", passed)
			}
			look := map[string][]byte{
				"log":  []byte(s.FilterLog("scanwatch")), // only the filter's lines: smtpd itself logs rejected commands
				"dump": []byte(cli.Run(t, s.State(), "dump")), "report": []byte(cli.Run(t, s.State(), "report")),
			}
			for _, r := range records {
				look["show "+r.Session] = []byte(cli.Run(t, s.State(), "show", r.Session))
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

// TestConcurrentSessions checks that 200 interleaved sessions produce 200 correct records. Half of
// the sessions have unknown recipients.
func TestConcurrentSessions(t *testing.T) {
	for _, v := range smtpd.Matrix() {
		t.Run(v.Name, func(t *testing.T) {
			const n = 200
			s := live.Start(t, smtpd.Options{Version: v, Filters: []smtpd.Filter{live.FilterAskedInAllPhases()}})
			clients := make([]*smtpd.Client, n)
			from := func(i int) string { return fmt.Sprintf("198.18.%d.%d", 1+i/100, 1+i%100) }
			// smtpd queues only five connections. Connect one client at a time, and then run all
			// sessions together.
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
			if err := s.Eventually("all sessions have ended", func() bool { return len(cli.Dump(t, s.State())) > n }); err != nil {
				t.Error(err)
			}
			live.Stop(t, s)
			records := cli.Dump(t, s.State())
			for i := range n {
				found := cli.FromAddr(records, from(i))
				if len(found) != 1 {
					t.Errorf("session %d: %d records", i, len(found))
					continue
				}
				r := found[0]
				result := "ok"
				if i%2 == 1 {
					result = "permfail"
				}
				if len(r.Helo) != 1 || r.Helo[0].Name != fmt.Sprintf("host%d.example.net", i) ||
					len(r.Transactions) != 1 || r.Transactions[0].Sender != fmt.Sprintf("sender%d@example.net", i) ||
					len(r.Transactions[0].Recipients) != 1 || r.Transactions[0].Recipients[0].Address != user(i) ||
					r.Transactions[0].Recipients[0].Result != result || r.Ending != "quit" {
					t.Errorf("session %d: wrong record %+v", i, r)
				}
			}
		})
	}
}

// TestReportsAgree checks that report and dump print the same numbers, both under load and after
// the server has stopped.
func TestReportsAgree(t *testing.T) {
	v := smtpd.Newest()
	s := live.Start(t, smtpd.Options{Version: v, Filters: []smtpd.Filter{live.Filter()}})
	done := make(chan error, 1)
	played := 0
	go func() {
		var err error
		rounds := 1
		if smtpd.Long {
			rounds = 3
		}
		for range rounds {
			for _, sc := range smtpd.Scenarios {
				_, e := s.Play(sc)
				err = errors.Join(err, e)
				played += len(sc.Sessions)
			}
		}
		done <- err
	}()
	count := func() (sessions, mails int) {
		for _, r := range cli.Dump(t, s.State()) {
			sessions++
			mails += r.Counts["messages"]
		}
		return sessions, mails
	}
	// Under load, the numbers in a report must be between the numbers in an earlier and a later
	// dump.
	agree := func() int {
		t.Helper()
		type numbers struct{ Sessions, Messages int }
		var report struct {
			Remote, Authenticated, Local numbers
		}
		sessions1, mails1 := count()
		text := cli.Run(t, s.State(), "report", "--json")
		sessions2, mails2 := count()
		if err := json.Unmarshal([]byte(text), &report); err != nil {
			t.Fatalf("report: %v\n%s", err, text)
		}
		if n := report.Remote.Sessions + report.Authenticated.Sessions + report.Local.Sessions; n < sessions1 || n > sessions2 {
			t.Errorf("report has %d sessions, dump has %d before and %d after", n, sessions1, sessions2)
		}
		if n := report.Remote.Messages + report.Authenticated.Messages + report.Local.Messages; n < mails1 || n > mails2 {
			t.Errorf("report has %d mails, dump has %d before and %d after", n, mails1, mails2)
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
	live.Stop(t, s)
	if n := agree(); n < played {
		t.Errorf("%d sessions recorded of %d", n, played)
	}
}

// TestChain checks that a second filter in the chain receives all events unchanged. The first
// filter must record the decisions of the second filter.
func TestChain(t *testing.T) {
	for _, v := range smtpd.Matrix() {
		t.Run(v.Name, func(t *testing.T) {
			other := smtpd.Filter{Name: "other", Builtin: `phase mail-from match mail-from regex { "refused[.]example" } reject "550 5.7.1 not you"`}
			s := live.Start(t, smtpd.Options{Version: v, Filters: []smtpd.Filter{live.FilterAskedInAllPhases(), other}})
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
			live.Stop(t, s)
			text := cli.Run(t, s.State(), "dump", "--src", "198.51.100.7")
			if !strings.Contains(text, "not you") || !strings.Contains(text, `"sender":"a@example.net"`) {
				t.Errorf("dump: %s", text)
			}
		})
	}
}
