package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/rules"
)

// modeFile is the file in the state directory that contains a halt: the word observe
// and, unless the halt is unlimited, the time at which it ends.
const modeFile = "mode"

// A halt is the operator's command to observe only, regardless of the configuration. It
// survives restarts.
type halt struct {
	on    bool
	until time.Time // zero if only the operator ends the halt
}

func (h halt) active(now time.Time) bool { return h.on && (h.until.IsZero() || now.Before(h.until)) }

// readHalt reads the halt from a state directory. If the file is invalid, it returns an
// unlimited halt, because the file shows that the operator requested a halt.
func readHalt(dir string) (halt, error) {
	data, err := os.ReadFile(filepath.Join(dir, modeFile))
	if errors.Is(err, fs.ErrNotExist) {
		return halt{}, nil
	}
	h := halt{on: true}
	words := strings.Fields(string(data))
	switch {
	case err != nil:
	case len(words) == 1 && words[0] == rules.Observe.String():
	case len(words) == 2 && words[0] == rules.Observe.String():
		h.until, err = time.Parse(time.RFC3339, words[1])
	default:
		err = fmt.Errorf("%s: neither \"observe\" nor \"observe TIME\"", filepath.Join(dir, modeFile))
	}
	return h, err
}

// save writes the halt to a state directory. Without a halt, it removes the file.
func (h halt) save(dir string) error {
	name := filepath.Join(dir, modeFile)
	if !h.on {
		if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	line := rules.Observe.String()
	if !h.until.IsZero() {
		line += " " + h.until.UTC().Format(time.RFC3339)
	}
	f, err := os.CreateTemp(dir, modeFile+"-*.new")
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

// startHalt reads the halt of an earlier run. If the disk times out, the mode of the
// configuration applies.
func (p *policies) startHalt() {
	h, _ := withTimeout(p.log, "reading the mode", diskTimeout, func() halt {
		h, err := readHalt(p.dir)
		if err != nil {
			p.log.Error("mode unreadable, observing only; use scanwatch mode", "err", err)
		}
		return h
	})
	if h.active(time.Now()) {
		p.log.Warn("observing only, by the operator", p.halted(h)...)
	}
	p.setHalt(h)
}

// setHalt activates a halt. It does not wait for the disk.
func (p *policies) setHalt(h halt) {
	p.stateMu.Lock()
	defer p.stateMu.Unlock()
	p.halt = h
	p.apply()
}

// apply passes the policy to the pipeline, in mode observe if there is a halt. The
// caller holds stateMu.
func (p *policies) apply() {
	if p.active == nil {
		return
	}
	policy := p.active.Policy
	if p.halt.active(time.Now()) {
		policy = policy.InMode(rules.Observe)
	}
	p.use(policy, p.active)
}

// haltExpired reports whether there is a halt that has expired.
func (p *policies) haltExpired(now time.Time) bool {
	p.stateMu.Lock()
	defer p.stateMu.Unlock()
	return p.halt.on && !p.halt.active(now)
}

// endHalt ends an expired halt.
func (p *policies) endHalt(now time.Time) {
	if !p.haltExpired(now) {
		return
	}
	p.setHalt(halt{})
	p.log.Warn("observing only has ended", "mode", p.status().Mode)
	if err := (halt{}).save(p.dir); err != nil { // otherwise the halt would be active again after a restart
		p.log.Warn("mode not saved", "err", err)
	}
}

// halted returns the attributes that describe a halt in a log line.
func (p *policies) halted(h halt) []any {
	if h.until.IsZero() {
		return nil
	}
	return []any{"until", h.until.Format(time.RFC3339)}
}

// modeCommand returns the control command that starts a halt, or ends it and restores
// the mode of the configuration.
func (p *policies) modeCommand() control.Command {
	return control.Command{Name: "mode", Args: 2, Run: func(_ context.Context, a *control.Answer, args []string) error {
		seconds, err := strconv.ParseUint(args[1], 10, 31)
		if err != nil {
			return fmt.Errorf("parse seconds %q: not a number", args[1])
		}
		h := halt{on: args[0] == rules.Observe.String()}
		switch {
		case !h.on && args[0] != control.PolicyMode:
			return fmt.Errorf("unknown mode %q; use %v or %s", args[0], rules.Observe, control.PolicyMode)
		case h.on && seconds > 0:
			h.until = time.Now().Add(time.Duration(seconds) * time.Second).Truncate(time.Second)
		}
		p.setHalt(h) // before writing to the disk, which may not answer
		if h.on {
			p.log.Warn("observing only, by the operator", p.halted(h)...)
		} else {
			p.log.Warn("mode of the configuration, by the operator", "mode", p.status().Mode)
		}
		if err := h.save(p.dir); err != nil {
			return fmt.Errorf("the mode has changed, but a restart will undo this: %w", err)
		}
		return a.JSON(p.status())
	}}
}
