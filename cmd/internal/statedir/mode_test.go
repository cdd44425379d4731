package statedir

import (
	"context"
	"errors"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/memory"
	"scanwatch/rules"
	"scanwatch/store"
)

// TestMode checks the mode while no filter is running. The mode must be the configured mode, unless
// the operator has stopped enforcement.
func TestMode(t *testing.T) {
	for _, c := range []struct {
		name, config, halt string
		mode               rules.Mode
		want               string
	}{
		{"no configuration", "", "", rules.Observe, ""},
		{"observe", "c", "", rules.Observe, "observe"},
		{"enforce", "c", "", rules.Enforce, "enforce"},
		{"halted", "c", "observe\n", rules.Enforce, "observe, by the operator; the mode of the configuration is enforce"},
		{"halted for a time", "c", "observe 2026-11-02T13:00:00Z\n", rules.Enforce, "observe, by the operator until 2026-11-02 13:00 +0000; the mode of the configuration is enforce"},
		{"the time is over", "c", "observe 2026-11-02T11:00:00Z\n", rules.Enforce, "enforce"},
		{"an invalid file", "", "\x1b\n", rules.Observe, "observe, by the operator"},
	} {
		d := &Dir{Path: t.TempDir(), Now: clock, Config: c.config, Settings: rules.Settings{Mode: c.mode}}
		if c.halt != "" {
			if err := os.WriteFile(filepath.Join(d.Path, control.ModeFile), []byte(c.halt), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if m := d.Mode(); m.String(time.UTC) != c.want {
			t.Errorf("%s: %q, want %q", c.name, m.String(time.UTC), c.want)
		}
	}
}

// TestLoss checks that a missing state.db is reported if a filter has used the directory. A new
// state.db must still report the loss.
func TestLoss(t *testing.T) {
	d := &Dir{Path: t.TempDir(), Now: clock}
	if err := d.CheckState(); err != nil || d.Loss() != "" {
		t.Errorf("unused: %v, %q", err, d.Loss())
	}
	if err := os.Mkdir(filepath.Join(d.Path, "sessions"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.Path, "sessions", "2026-11-01.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.CheckState(); err != ErrNoState || d.Loss() != ErrNoState.Error() {
		t.Errorf("missing: %v, %q", err, d.Loss())
	}
	for _, want := range []string{"import smtpd-log --again", "LOSS OF STATE in scanwatch(8)"} {
		if !strings.Contains(ErrNoState.Error(), want) || !strings.Contains(control.StateLost(now, now), want) {
			t.Errorf("no %q", want)
		}
	}
	if err := lose(d.Path); err != nil {
		t.Fatal(err)
	}
	if err, want := d.CheckState(), control.StateLost(now.Truncate(24*time.Hour), now); err != nil || d.Loss() != want {
		t.Errorf("a new file: %v, %q, want %q", err, d.Loss(), want)
	}
}

// lose creates a new state.db in a directory whose state.db was lost, as the filter does.
func lose(dir string) error {
	m := memory.New()
	m.Follow()
	m.Tick(now.UnixMicro())
	m.Expect()
	f := store.OpenState(dir, store.StateOptions{Buckets: memory.Buckets(), Program: "test", Changes: m.Changes, Rewrite: m.Rewrite,
		Load: func(all iter.Seq[store.Entry]) { m.Load(all, now.UnixMicro()) }})
	return errors.Join(f.Flush(context.Background()), f.Close())
}
