package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/rules"
)

// saveHalt saves a halt in a state directory, or removes the file if h.On is false.
func saveHalt(dir string, h control.Halt) error {
	name := filepath.Join(dir, control.ModeFile)
	if !h.On {
		if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	line := rules.Observe.String()
	if !h.Until.IsZero() {
		line += " " + h.Until.UTC().Format(time.RFC3339)
	}
	f, err := os.CreateTemp(dir, control.ModeFile+"-*.new")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, line)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// startHalt reads a halt that was saved by an earlier run. If the disk times out, the
// configured mode applies.
func (p *policies) startHalt() {
	h, _ := withTimeout(p.log, "reading the mode", diskTimeout, func() control.Halt {
		h, err := control.ReadHalt(p.dir)
		if err != nil {
			p.log.Error("mode unreadable, observing only; use scanwatch mode", "err", err)
		}
		return h
	})
	if h.Active(time.Now()) {
		p.log.Warn("observing only, by the operator", p.halted(h)...)
	}
	p.setHalt(h)
}

// setHalt activates h without waiting for the disk.
func (p *policies) setHalt(h control.Halt) {
	p.stateMu.Lock()
	defer p.stateMu.Unlock()
	p.halt = h
	p.apply()
}

// apply passes the policy to the pipeline, in observe mode if a halt is active. The
// caller must hold stateMu.
func (p *policies) apply() {
	if p.active == nil {
		return
	}
	policy := p.active.Policy
	if p.halt.Active(time.Now()) {
		policy = policy.InMode(rules.Observe)
	}
	p.use(policy, p.active)
}

// haltExpired reports whether the current halt has expired.
func (p *policies) haltExpired(now time.Time) bool {
	p.stateMu.Lock()
	defer p.stateMu.Unlock()
	return p.halt.On && !p.halt.Active(now)
}

// endHalt ends an expired halt.
func (p *policies) endHalt(now time.Time) {
	if !p.haltExpired(now) {
		return
	}
	p.setHalt(control.Halt{})
	p.log.Warn("observing only has ended", "mode", p.status().Mode)
	if err := saveHalt(p.dir, control.Halt{}); err != nil { // without the removal, a restart would reactivate the halt
		p.log.Warn("mode not saved", "err", err)
	}
}

// halted returns the log attributes that describe a halt.
func (p *policies) halted(h control.Halt) []any {
	if h.Until.IsZero() {
		return nil
	}
	return []any{"until", h.Until.Format(time.RFC3339)}
}

// modeCommand returns the control command that starts or ends a halt. Ending a halt
// restores the configured mode.
func (p *policies) modeCommand() control.Command {
	return control.Command{Name: "mode", Args: 2, Run: func(_ context.Context, a *control.Answer, args []string) error {
		seconds, err := strconv.ParseUint(args[1], 10, 31)
		if err != nil {
			return fmt.Errorf("parse seconds %q: not a number", args[1])
		}
		h := control.Halt{On: args[0] == rules.Observe.String()}
		switch {
		case !h.On && args[0] != control.PolicyMode:
			return fmt.Errorf("unknown mode %q; use %v or %s", args[0], rules.Observe, control.PolicyMode)
		case h.On && seconds > 0:
			h.Until = time.Now().Add(time.Duration(seconds) * time.Second).Truncate(time.Second)
		}
		p.setHalt(h) // must precede the write to disk, which may block
		if h.On {
			p.log.Warn("observing only, by the operator", p.halted(h)...)
		} else {
			p.log.Warn("operator restored the configured mode", "mode", p.status().Mode)
		}
		if err := saveHalt(p.dir, h); err != nil {
			return fmt.Errorf("the mode has changed, but a restart will undo this: %w", err)
		}
		return a.JSON(p.status())
	}}
}
