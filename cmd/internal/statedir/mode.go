package statedir

import (
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/rules"
)

// A Mode describes whether the filter observes or enforces, and why.
type Mode struct {
	Word    string    // observe or enforce; empty if unknown
	Policy  string    // configured mode; empty if unknown
	Halted  bool      // the operator has stopped enforcement
	Until   time.Time // end of the halt; zero if only the operator ends it
	Running bool      // reported by a running filter
	// Waiting is set if bans by other hosts are not enforced yet; see memory.Bans.Waiting.
	Waiting bool
}

// Mode returns the running filter's mode. If no filter is running, Mode returns the mode
// in which a filter would start. Unless the operator has stopped enforcement, the result
// is the configured mode.
func (d *Dir) Mode() Mode {
	if client, err := control.Dial(d.Path); err == nil {
		defer client.Close()
		if s, err := client.Status(); err == nil {
			m := ModeOf(&s.Config)
			m.Waiting = s.Bans.Waiting > 0
			return m
		}
	}
	var m Mode
	if d.Config != "" {
		m.Word = d.Settings.Mode.String()
		m.Policy = m.Word
	}
	if h, _ := control.ReadHalt(d.Path); h.Active(d.Now()) { // on error, the filter also observes
		m.Word, m.Halted, m.Until = rules.Observe.String(), true, h.Until
	}
	return m
}

// ModeOf returns the mode of a running filter from its configuration.
func ModeOf(c *control.Config) Mode {
	m := Mode{Word: c.Mode, Policy: c.Mode, Running: true}
	if h := c.Halted; h != nil {
		m.Policy, m.Halted, m.Until = h.Mode, true, h.Until.Time
	}
	return m
}

// Observes reports whether the filter only observes.
func (m *Mode) Observes() bool { return m.Word == rules.Observe.String() }

// String describes the mode, with times in zone, or returns "" if the mode is unknown.
func (m *Mode) String(zone *time.Location) string {
	switch {
	case m.Word == "":
		return ""
	case !m.Halted:
		return m.Word
	}
	s := m.Word + ", by the operator"
	if !m.Until.IsZero() {
		s += " until " + m.Until.In(zone).Format("2006-01-02 15:04 -0700")
	}
	if m.Policy != "" && m.Policy != m.Word {
		s += "; the mode of the configuration is " + m.Policy
	}
	return s
}
