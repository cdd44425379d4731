//go:build linux

package tests

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/tests/smtpd"
)

// come plays the session after session from src, in which a message is accepted or not,
// and returns the answer.
func (p *program) come(session *int, src string, mail bool) string {
	p.t.Helper()
	*session++
	w := bufio.NewWriter(p.smtpd)
	g := guest{id: *session, src: src, port: 25, helo: "mx.example.net", mail: mail}
	_, requests := g.stream(w, 1_793_620_800_000_000+int64(*session)*1e6, p.asked)
	if err := w.Flush(); err != nil || requests != 1 {
		p.t.Fatal(requests, err)
	}
	_, answer, _ := strings.Cut(strings.TrimPrefix(p.line(), "filter-result|"), "|")
	_, answer, _ = strings.Cut(strings.TrimSpace(answer), "|")
	return answer
}

// TestReach: a list that newly turns away a host whose mail was accepted is not
// taken, neither when the operator asks nor when its file changes, until he says that
// it is meant; one that only hits strangers is.
func TestReach(t *testing.T) {
	dir, etc := t.TempDir(), t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(etc, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	drop := write("drop", "203.0.113.0/24\n")
	conf := write("scanwatch.conf", fmt.Sprintf("mode enforce\nstore %q\ntable <drop> file %q\nrule drop phase connect match src <drop> disconnect\n", dir, drop))
	p := begin(t, "-f", conf)
	session := 0
	come := func(src string, mail bool) string { t.Helper(); return p.come(&session, src, mail) }
	scanwatch := func(args ...string) (string, error) {
		out, err := exec.Command(smtpd.Bin("scanwatch"), append([]string{"-s", dir, "-f", conf}, args...)...).CombinedOutput()
		return string(out), err
	}
	if got := come("203.0.113.7", false); !strings.HasPrefix(got, "disconnect|") {
		t.Errorf("who is listed: %s", got)
	}
	for range 12 {
		if got := come("198.51.100.25", true); got != "proceed" {
			t.Fatalf("a mail server: %s", got)
		}
	}
	// One message makes nobody good enough to keep a list away.
	if got := come("192.0.2.8", true); got != "proceed" {
		t.Errorf("somebody who comes once: %s", got)
	}
	if got := come("192.0.2.9", false); got != "proceed" {
		t.Errorf("a stranger: %s", got) // and the session before has been folded
	}

	write("drop", "203.0.113.0/24\n192.0.2.0/24\n")
	if out, err := scanwatch("reload"); err != nil {
		t.Errorf("a list of strangers: %v, %s", err, out)
	}
	if got := come("192.0.2.9", false); !strings.HasPrefix(got, "disconnect|") {
		t.Errorf("a stranger who is listed now: %s", got)
	}

	write("drop", "203.0.113.0/24\n192.0.2.0/24\n198.51.0.0/16\n")
	const says = "rule drop turns away 1 host at connect that delivered 12 messages lately, the last on 2026-11-02: 198.51.100.25/32"
	if out, err := scanwatch("reload"); err == nil || !strings.Contains(out, says) || !strings.Contains(out, "use --force") {
		t.Errorf("a list with a good host: %v, %s", err, out)
	}
	if got := come("198.51.100.25", false); got != "proceed" {
		t.Errorf("a mail server that a list has newly: %s", got)
	}
	if out, err := scanwatch("status"); err != nil || !strings.Contains(strings.Join(strings.Fields(out), " "), "PROBLEM configuration: not taken, as "+says) {
		t.Errorf("status: %v, %s", err, out)
	}
	if out, err := scanwatch("check"); err != nil || !strings.Contains(out, "warning: rule drop turns away 2 hosts at connect that delivered 13 messages lately") {
		t.Errorf("check: %v, %s", err, out)
	}
	if out, err := scanwatch("reload", "--force"); err != nil {
		t.Errorf("forced: %v, %s", err, out)
	}
	if got := come("198.51.100.25", false); !strings.HasPrefix(got, "disconnect|") {
		t.Errorf("a mail server that is listed on purpose: %s", got)
	}
	// What is in use already is no news.
	write("drop", "203.0.113.0/24\n198.51.0.0/16\n")
	if out, err := scanwatch("reload"); err != nil {
		t.Errorf("a list that is in use: %v, %s", err, out)
	}
	log := p.end(0)
	if !strings.Contains(log, says) {
		t.Errorf("logged %s", log)
	}
}

// TestRefusedStaysRefused: a list that a reload has refused is not taken by a restart
// either, whatever it holds by then, unless the operator has said that it is meant; one
// that is mended is taken.
func TestRefusedStaysRefused(t *testing.T) {
	const friend, stranger, listed = "198.51.100.25", "192.0.2.9", "203.0.113.7"
	for _, c := range []struct {
		name   string
		before string // the reload that comes before the restart
		list   string // that is there at the restart
		forced bool   // the reload after it
		taken  bool
	}{
		{"refused", "reload", "198.51.0.0/16\n203.0.113.0/24\n", false, false},
		{"refused, and another one came", "reload", "198.51.100.0/24\n203.0.113.0/24\n192.0.2.77\n", false, false},
		{"mended", "reload", "203.0.113.0/24\n192.0.2.77\n", false, true},
		{"forced after the restart", "reload", "198.51.0.0/16\n203.0.113.0/24\n", true, true},
		{"forced before the restart", "reload --force", "198.51.0.0/16\n203.0.113.0/24\n", false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, etc := t.TempDir(), t.TempDir()
			drop, conf := filepath.Join(etc, "drop"), filepath.Join(etc, "scanwatch.conf")
			write := func(path, text string) {
				t.Helper()
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			write(conf, fmt.Sprintf("mode enforce\nstore %q\ntable <drop> file %q\nrule drop phase connect match src <drop> disconnect\n", dir, drop))
			write(drop, "203.0.113.0/24\n")
			scanwatch := func(args string) (string, error) {
				out, err := exec.Command(smtpd.Bin("scanwatch"), append([]string{"-s", dir, "-f", conf}, strings.Fields(args)...)...).CombinedOutput()
				return string(out), err
			}
			session := 0
			p := begin(t, "-f", conf)
			for range 12 {
				p.come(&session, friend, true)
			}
			p.come(&session, stranger, false) // the sessions before are folded
			write(drop, "198.51.0.0/16\n203.0.113.0/24\n")
			out, err := scanwatch(c.before)
			if forced := c.before != "reload"; forced != (err == nil) {
				t.Fatalf("%s: %v, %s", c.before, err, out)
			}
			p.end(0)

			write(drop, c.list)
			p = begin(t, "-f", conf)
			if got := p.come(&session, friend, false); c.before == "reload" && got != "proceed" {
				t.Errorf("a mail server, before anything was looked at again: %s", got)
			}
			again := "reload"
			if c.forced {
				again += " --force"
			}
			eventually(t, "state.db is read", func() bool {
				out, err = scanwatch(again)
				return err == nil || !strings.Contains(out, "state.db")
			})
			if c.taken != (err == nil) {
				t.Errorf("%s: %v, %s", again, err, out)
			}
			want := map[bool]string{true: "disconnect|", false: "proceed"}
			if got := p.come(&session, listed, false); !strings.HasPrefix(got, want[c.taken]) {
				t.Errorf("who is listed: %s", got)
			}
			if got := p.come(&session, friend, false); !strings.HasPrefix(got, want[c.taken && strings.Contains(c.list, "198.51")]) {
				t.Errorf("a mail server: %s", got)
			}
			if _, err := os.Stat(filepath.Join(dir, "refused")); c.taken != os.IsNotExist(err) {
				t.Errorf("the note of what is refused: %v", err)
			}
			if log := p.end(0); c.before == "reload" && !strings.Contains(log, "it was refused before the restart") {
				t.Errorf("logged %s", log)
			}
		})
	}
}
