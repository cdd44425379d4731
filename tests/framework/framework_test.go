//go:build linux

package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"scanwatch/internal/smtp"

	"scanwatch/filter/smtpd"
)

var update = flag.Bool("update", false, "rewrite the golden file")

// peerEvents lists the registrations of the filter in main.go.
var peerEvents = []smtpd.ID{
	smtpd.LinkConnect, smtpd.LinkGreeting, smtpd.LinkIdentify, smtpd.LinkTLS, smtpd.LinkAuth, smtpd.LinkDisconnect,
	smtpd.TxReset, smtpd.TxBegin, smtpd.TxMail, smtpd.TxRcpt, smtpd.TxEnvelope, smtpd.TxData, smtpd.TxCommit, smtpd.TxRollback,
	smtpd.ProtocolClient, smtpd.ProtocolServer, smtpd.FilterResponse, smtpd.Timeout,
	smtpd.PhaseConnect, smtpd.PhaseHelo, smtpd.PhaseEhlo, smtpd.PhaseMailFrom, smtpd.PhaseRcptTo,
}

// A decoder writes events in the format of the filter in main.go.
type decoder struct{ lines []string }

func (d *decoder) Ready(smtpd.Config) {}

func (d *decoder) Report(ev *smtpd.Event) {
	if ev.ID != smtpd.PhaseConnect {
		d.lines = append(d.lines, ev.String())
	}
}

func (d *decoder) Decide(ev *smtpd.Event) smtp.Answer {
	d.Report(ev)
	return smtp.Answer{}
}

// registered returns those lines of a recorded stream for which the filter in main.go registers.
func registered(in []byte) []byte {
	var kept []byte
	for line := range bytes.Lines(in) {
		f := bytes.SplitN(line, []byte{'|'}, 6)
		if len(f) < 6 || slices.ContainsFunc(peerEvents, func(id smtpd.ID) bool {
			word := "report"
			if id.IsPhase() {
				word = "filter"
			}
			return string(f[0]) == word && string(f[3]) == "smtp-in" && string(f[4]) == id.String()
		}) {
			kept = append(kept, line...)
		}
	}
	return kept
}

// TestPeer checks that the framework and this project's reader decode the same fields in all
// recorded streams. The golden file lists the streams for which the framework exits or decodes
// other fields. Because of these differences, this project has its own reader.
func TestPeer(t *testing.T) {
	peer := filepath.Join(t.TempDir(), "framework")
	if out, err := exec.Command("go", "build", "-o", peer, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	names, err := filepath.Glob("../streams/*/*.in")
	if err != nil || len(names) < 160 {
		t.Fatalf("%d streams, %v", len(names), err)
	}
	found := make(map[string][]string) // the framework's differences, each with the streams in which they occur
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		in := registered(raw)
		var ours decoder
		if err := smtpd.Serve(bytes.NewReader(in), io.Discard, &ours, smtpd.Options{}); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(peer)
		cmd.Stdin = bytes.NewReader(in)
		// The framework looks up the word "local" in DNS. Without a network, this lookup fails
		// immediately.
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		_ = cmd.Run() // the framework exits with status 1 even at the end of its input
		theirs, death := split(stderr.String())
		short := strings.TrimPrefix(name, "../streams/")
		note := func(what string) {
			if !slices.Contains(found[what], short) {
				found[what] = append(found[what], short)
			}
		}
		for i, line := range theirs {
			switch want := ours.lines[i]; {
			case line == want:
			case line == strings.TrimSuffix(want, `\r"`)+`"`:
				note("drops a CR that the client sent")
			case strings.HasPrefix(want, strings.TrimSuffix(line, `"`)+"|"):
				note("cuts a last field at its first |")
			default:
				t.Errorf("%s: event %d differs\ntheirs %s\nours   %s", short, i, line, want)
			}
		}
		if len(theirs) < len(ours.lines) {
			event, _, _ := strings.Cut(ours.lines[len(theirs)], " ")
			note(fmt.Sprintf("ends at a %s event: %.100s", event, death))
		} else {
			note("lives to the end")
		}
	}
	var story strings.Builder
	for _, what := range slices.Sorted(maps.Keys(found)) {
		fmt.Fprintf(&story, "%s (%d streams)\n", what, len(found[what]))
		if len(found[what]) < 50 {
			fmt.Fprintf(&story, "\t%s\n", strings.Join(found[what], "\n\t"))
		}
	}
	const golden = "testdata/peer.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(story.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || string(want) != story.String() {
		t.Errorf("differs from %s (%v), run with -update and look; got:\n%s", golden, err, story.String())
	}
}

// split separates the events in the output of main.go from the filter's last messages.
func split(stderr string) (events []string, death string) {
	for _, line := range strings.Split(strings.TrimSuffix(stderr, "\n"), "\n") {
		word, _, _ := strings.Cut(line, " ")
		if slices.ContainsFunc(peerEvents, func(id smtpd.ID) bool { return id.String() == word }) {
			events = append(events, line)
		} else if death == "" {
			death = stable(line)
		}
	}
	return events, death
}

// stable removes the times that package log adds.
func stable(s string) string {
	if len(s) > 20 && s[4] == '/' && s[7] == '/' {
		return s[20:]
	}
	return s
}
