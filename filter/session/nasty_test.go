package session_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/events"
	"scanwatch/filter/lookup"
	"scanwatch/filter/session"
	"scanwatch/rules"
	"scanwatch/tests/nasty"
)

// TestNastyLog: what the filter writes of strangers into the log, into the
// stream of events and to smtpd is one safe line each, whatever they have sent.
func TestNastyLog(t *testing.T) {
	tight, err := rules.ReadyPolicy("tight")
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"observe", "enforce"} {
		path := filepath.Join(t.TempDir(), "events")
		stream := events.Open(path, events.Options{Rate: 1e6, Burst: 1e6, Queue: 64 << 20})
		var log, out bytes.Buffer
		table := session.NewTable(session.Options{
			Record: func(time.Time, uint64, []byte) {},
			Log:    func(line []byte) { log.Write(append(line, '\n')) },
			Event:  stream.Send,
			Lists:  func() *lookup.Lists { return lists },
		})
		p := policy(t, strings.Replace(string(tight), "\nmode observe\n", "\nmode "+mode+"\n", 1)+"\nrule noted phase { helo, rcpt-to } match any tag noted\n")
		table.Use(&session.Settings{Policy: p})
		o := filter.Options{Reports: session.Reports, Phases: session.Phases(p), Log: func(s string) { log.WriteString(s + "\n") }}
		if err := filter.Serve(bytes.NewReader(nasty.Stream()), &out, table, o); err != nil {
			t.Fatal(err)
		}
		table.Stop()
		stream.Close(nil)

		lines := 0
		for line := range strings.Lines(log.String()) {
			lines++
			for _, c := range strings.TrimSuffix(line, "\n") {
				if c < ' ' || c > '~' {
					t.Errorf("%s: log: %U in %q", mode, c, line)
					break
				}
			}
		}
		if err := nasty.Terminal(log.Bytes()); err != nil {
			t.Errorf("%s: log: %v", mode, err)
		}
		if n := len(nasty.Texts()); lines < n {
			t.Errorf("%s: %d lines were logged of %d sessions", mode, lines, n)
		}
		if err := nasty.Terminal(out.Bytes()); err != nil {
			t.Errorf("%s: to smtpd: %v", mode, err)
		}
		sent, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		names := make(map[string]bool)
		if err := nasty.JSON(sent, func(v any) {
			e := v.(map[string]any)
			if helo, ok := e["helo"].(string); ok {
				names[helo] = true
			}
			var again any
			if b, err := json.Marshal(e); err != nil || json.Unmarshal(b, &again) != nil {
				t.Errorf("%s: event %v: %v", mode, e, err)
			}
		}); err != nil {
			t.Errorf("%s: events: %v", mode, err)
		}
		if mode == "observe" && !names["\x1b]0;owned\x07"] {
			t.Errorf("no event has the greeting as it was sent: %d of them", len(names))
		}
	}
}
