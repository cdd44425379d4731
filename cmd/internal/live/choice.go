package live

import (
	"net/netip"

	"scanwatch/cmd/internal/selector"
	"scanwatch/filter/events"
)

// keptSessions is the number of recent sessions with selected evidence that a Choice stores. Later
// decisions in these sessions are also selected. The filter stores the same number.
const keptSessions = 64

// A Choice selects events. The filter can select events only by one token and one prefix, so the
// Choice applies all other criteria.
type Choice struct {
	// Server is the selection made by the filter.
	Server   events.Choice
	selector *selector.Selector
	sessions [keptSessions]uint64 // ring of sessions with selected evidence
	next     int
}

// NewChoice returns a Choice for the flags --evidence and --src.
func NewChoice(s *selector.Selector) *Choice {
	c := &Choice{selector: s}
	if len(s.Evidence) == 1 && !s.Any {
		c.Server.Evidence = s.Evidence[0]
	}
	if len(s.Src) == 1 {
		c.Server.Src = s.Src[0]
	}
	return c
}

// Wants reports whether the flags select an event. A decision is selected if an earlier
// finding in its session was selected.
func (c *Choice) Wants(e *events.Event) bool {
	s := c.selector
	if len(s.Src) > 1 {
		p, err := netip.ParsePrefix(e.Prefix)
		if !(e.Src.IsValid() && s.HasSrc(e.Src)) && !(err == nil && s.HasPrefix(p)) {
			return false
		}
	}
	if !s.Any && len(s.Evidence) < 2 {
		return true
	}
	if e.Event == "finding" {
		if !s.HasEvidence([]byte(e.Evidence)) {
			return false
		}
		c.sessions[c.next%keptSessions] = e.Session
		c.next++
		return true
	}
	for _, id := range c.sessions {
		if id != 0 && id == e.Session {
			return true
		}
	}
	return false
}
