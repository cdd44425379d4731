package filter_test

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/events"
	"scanwatch/filter/lookup"
	"scanwatch/filter/smtpd"
	"scanwatch/rules"
	"scanwatch/tests/hostiletext"
	"scanwatch/tests/simulate"
)

// TestNastyLog checks that hostile text from clients is escaped in the log, in events and in
// answers to smtpd.
func TestNastyLog(t *testing.T) {
	tight, err := rules.ReadyPolicy("tight")
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"observe", "enforce"} {
		var fan events.Fan
		watcher, err := fan.Watch(events.Choice{})
		if err != nil {
			t.Fatal(err)
		}
		defer watcher.Close()
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // so that Next returns immediately
		var sent []byte
		var log, out bytes.Buffer
		table := simulate.NewFilter(filter.Options{
			Record: func(time.Time, uint64, []byte) {},
			Log:    func(line []byte) { log.Write(append(line, '\n')) },
			Watch: func(e *events.Event) {
				fan.Send(e)
				lines, _ := watcher.Next(ctx, nil)
				sent = append(sent, lines...)
			},
			Lists: func() *lookup.Lists { return lists },
		})
		p := policy(t, strings.Replace(string(tight), "\nmode observe\n", "\nmode "+mode+"\n", 1)+"\nrule noted phase { helo, rcpt-to } match any tag noted\n")
		table.Use(&filter.Settings{Policy: p})
		o := smtpd.Options{Reports: smtpd.Reports, Phases: smtpd.Requests(filter.Phases(p)), Log: func(s string) { log.WriteString(s + "\n") }}
		if err := smtpd.Serve(bytes.NewReader(hostiletext.Stream()), &out, table, o); err != nil {
			t.Fatal(err)
		}
		table.Stop()

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
		if err := hostiletext.Terminal(log.Bytes()); err != nil {
			t.Errorf("%s: log: %v", mode, err)
		}
		if n := len(hostiletext.Texts()); lines < n {
			t.Errorf("%s: %d lines were logged of %d sessions", mode, lines, n)
		}
		if err := hostiletext.Terminal(out.Bytes()); err != nil {
			t.Errorf("%s: to smtpd: %v", mode, err)
		}
		names := make(map[string]bool)
		if err := hostiletext.JSON(sent, func(v any) {
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
			t.Errorf("no event has the unchanged greeting: %d events", len(names))
		}
	}
}
