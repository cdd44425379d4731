package live

import (
	"net/netip"
	"testing"

	"scanwatch/cmd/internal/selector"
	"scanwatch/filter/events"
)

// TestChoice checks the selection by lists of tokens and by prefixes. Later decisions in a selected
// session must also be selected.
func TestChoice(t *testing.T) {
	from := func(e events.Event, src string) events.Event { e.Src = netip.MustParseAddr(src); return e }
	finding := func(evidence string, session uint64) events.Event {
		return events.Event{Event: "finding", Evidence: evidence, Session: session}
	}
	s := &selector.Selector{Evidence: []string{"scanner", "harvest"}}
	c := NewChoice(s)
	if c.Server != (events.Choice{}) {
		t.Errorf("the filter selects %v", c.Server)
	}
	for i, step := range []struct {
		event events.Event
		want  bool
	}{
		{events.Event{Event: "verdict", Session: 1}, false},
		{finding("helo-missing", 1), false},
		{finding("scanner", 1), true},
		{events.Event{Event: "verdict", Session: 1}, true},
		{events.Event{Event: "verdict", Session: 2}, false},
		{finding("harvest", 2), true},
		{events.Event{Event: "ban"}, false},
	} {
		if c.Wants(&step.event) != step.want {
			t.Errorf("event %d: not %v", i, step.want)
		}
	}
	one := NewChoice(&selector.Selector{Evidence: []string{"scanner"}, Src: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	if one.Server.Evidence != "scanner" || one.Server.Src.String() != "192.0.2.0/24" || !one.Wants(&events.Event{}) {
		t.Errorf("the filter selects %v", one.Server)
	}
	two := NewChoice(&selector.Selector{Src: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}})
	for src, want := range map[string]bool{"192.0.2.1": true, "2001:db8::1": true, "198.51.100.1": false} {
		if e := from(events.Event{}, src); two.Wants(&e) != want {
			t.Errorf("%s: not %v", src, want)
		}
	}
	if !two.Wants(&events.Event{Event: "ban", Prefix: "192.0.0.0/16"}) || two.Wants(&events.Event{Event: "ban", Prefix: "10.0.0.0/8"}) {
		t.Error("bans of networks")
	}
}
