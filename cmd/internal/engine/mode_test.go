package engine

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/control"
	"scanwatch/rules"
)

// TestEndHalt checks that a halt ends on time, that its end is logged once, and that a
// restart does not reactivate it.
func TestEndHalt(t *testing.T) {
	var log bytes.Buffer
	var mode rules.Mode
	p := &policies{dir: t.TempDir(), log: slog.New(slog.NewTextHandler(&log, nil)), use: func(policy *rules.Policy, _ *config.Config) { mode = policy.Mode }}
	p.active = &config.Config{Policy: (&rules.Policy{}).InMode(rules.Enforce)}
	until := time.Now().Add(time.Hour).Truncate(time.Second)
	h := control.Halt{On: true, Until: until}
	if err := saveHalt(p.dir, h); err != nil {
		t.Fatal(err)
	}
	p.startHalt()
	for _, c := range []struct {
		after time.Duration
		want  rules.Mode
	}{{-time.Second, rules.Observe}, {0, rules.Enforce}, {time.Second, rules.Enforce}} {
		p.endHalt(until.Add(c.after))
		if mode != c.want {
			t.Errorf("%v after the end: %v", c.after, mode)
		}
	}
	if n := strings.Count(log.String(), "observing only has ended"); n != 1 {
		t.Errorf("the end is logged %d times: %s", n, &log)
	}
	if h, err := control.ReadHalt(p.dir); err != nil || h.On {
		t.Errorf("after a restart: %+v, %v", h, err)
	}
}
