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
	w := bufio.NewWriter(p.smtpd)
	session := 0
	come := func(src string, mail bool) string {
		t.Helper()
		session++
		g := guest{id: session, src: src, port: 25, helo: "mx.example.net", mail: mail}
		_, requests := g.stream(w, 1_793_620_800_000_000+int64(session)*1e6, p.asked)
		if err := w.Flush(); err != nil || requests != 1 {
			t.Fatal(requests, err)
		}
		_, answer, _ := strings.Cut(strings.TrimPrefix(p.line(), "filter-result|"), "|")
		_, answer, _ = strings.Cut(strings.TrimSpace(answer), "|")
		return answer
	}
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
	if out, err := scanwatch("status"); err != nil || !strings.Contains(out, "PROBLEM   configuration: not taken, as "+says) {
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
