//go:build linux

package main

import (
	"bytes"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/tests/internal/require"
)

// everything returns all events in the streams.
func everything() map[string]bool {
	m := map[string]bool{}
	for _, report := range []string{"link-connect", "link-identify", "link-disconnect", "tx-mail", "tx-rcpt", "protocol-client", "protocol-server"} {
		m["report|smtp-in|"+report] = true
	}
	for _, phase := range []string{"connect", "ehlo", "rcpt-to"} {
		m["filter|smtp-in|"+phase] = true
	}
	return m
}

func TestStreamObeysRegistrations(t *testing.T) {
	begin := time.Unix(1767355200, 0)
	r := recipe{mix: "mix", registered: everything(), open: 5, sessions: 200, begin: begin, apart: time.Millisecond}
	s := r.make()
	if again := r.make(); !bytes.Equal(s.data, again.data) {
		t.Error("the same recipe made another stream")
	}
	open := map[string]bool{}
	lines, asked := 0, 0
	for line := range strings.Lines(string(s.data)) {
		lines++
		f := strings.Split(strings.TrimSuffix(line, "\n"), "|")
		event := f[0] + "|" + f[3] + "|" + f[4]
		if !r.registered[event] {
			t.Fatalf("not registered: %s", line)
		}
		if f[0] == "filter" {
			asked++
		}
		switch f[4] {
		case "link-connect":
			open[f[5]] = true
		case "link-disconnect":
			delete(open, f[5])
		default:
			if !open[f[5]] {
				t.Fatalf("session does not exist: %s", line)
			}
		}
	}
	if lines != s.lines || asked != len(s.cuts) || len(open) != 0 || s.sessions != 200 {
		t.Errorf("%d lines, %d requests, %d still open; the stream has %d, %d of %d sessions", lines, asked, len(open), s.lines, len(s.cuts), s.sessions)
	}
	if !slices.IsSorted(s.cuts) {
		t.Error("cuts are not in order")
	}
	before := strings.Split(string(s.data), "\n")
	s.again(0x1234)
	after := strings.Split(string(s.data), "\n")
	last := strings.Split(before[len(before)-2], "|")[2]
	for i, line := range after[:len(after)-1] {
		old, f := strings.Split(before[i], "|"), strings.Split(line, "|")
		if old[5] == f[5] || f[2] <= last || f[2][10:] != old[2][10:] {
			t.Fatalf("%s\nwas before\n%s\nand must be another session after %s", line, before[i], last)
		}
	}
}

// TestHistory checks that each command reads all sessions in a short history, and that
// sealing is measured. The values do not matter.
func TestHistory(t *testing.T) {
	var out bytes.Buffer
	b := &bench{out: &out, log: t.Output(), dir: t.TempDir()}
	b.hurry()
	for _, build := range [][]string{command, contestants[0].build} {
		args := b.place(build, "")
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	if err := configure(b.dir, b.dir); err != nil {
		t.Fatal(err)
	}
	for _, part := range []func(*bench) error{(*bench).history, (*bench).sealing} {
		if err := part(b); err != nil {
			t.Fatalf("%v\n%s", err, out.Bytes())
		}
	}
	for _, g := range b.goals {
		if g.got == 0 {
			t.Errorf("no measurement for %q", g.what)
		}
	}
}

// TestDriverNoticesAChildThatLeaves checks that a measurement fails if the filter exits.
func TestDriverNoticesAChildThatLeaves(t *testing.T) {
	perl := require.Program(t, "perl")
	c, err := start("leaves", perl, "-e", `$| = 1; while (<STDIN>) { last if /ready/ } print "register|report|smtp-in|link-connect\nregister|filter|smtp-in|connect\nregister|ready\n"; <STDIN>; <STDIN>; exit 0`)
	if err != nil {
		t.Fatal(err)
	}
	s := recipe{mix: "scan", registered: everything(), open: 2, sessions: 10, begin: time.Now(), apart: time.Millisecond}.make()
	if _, err := c.offered(s, 1000); err == nil {
		t.Error("no error after the filter ended")
	}
}
