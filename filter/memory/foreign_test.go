package memory

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"scanwatch/rules"
)

// knownOn returns rows with which host grants a standing to clients.
func knownOn(host string, clients ...*Client) []Foreign {
	m := sharing()
	for _, c := range clients {
		m.Peers.Delivered(c, Delivery{Messages: 1, Senders: []string{"sender.example"}}, at(-9*day))
		m.Peers.Delivered(c, Delivery{Messages: 1, Senders: []string{"sender.example"}}, at(-8*day))
	}
	var list []Foreign
	for _, e := range m.Outgoing(1<<20, 0) {
		list = append(list, Foreign{Entry: e, Origin: host})
	}
	return list
}

// partial returns the rows as if they came from a file.
func partial(list []Foreign) []Foreign {
	list = slices.Clone(list)
	for i := range list {
		list[i].Partial = true
	}
	return list
}

// checkOn checks on which other host a client is known.
func checkOn(t *testing.T, m *Memory, what string, c *Client, on string) {
	t.Helper()
	want := rules.StandingKnown
	if on == "" {
		want = rules.StandingNone
	}
	if s := m.Peers.Standing(c, at(0)); s.Level != want || s.Origin != on {
		t.Errorf("%s: %v on %q, want %v on %q", what, s.Level, s.Origin, want, on)
	}
}

// TestStandingOnDisk checks that the standing on other hosts is complete after a restart, and
// follows later changes of it.
func TestStandingOnDisk(t *testing.T) {
	byServer, byDomain, byFile, gone := who("192.0.2.1"), named("192.0.2.2", "mx.sender.example"), who("192.0.2.3"), who("192.0.2.4")
	d, m := disk{}, New()
	m.UseKey([16]byte{})
	m.UseName("mx1")
	restart := func(name string, key byte) {
		t.Helper()
		d.take(m)
		m = New()
		m.Expect()
		m.UseKey([16]byte{key})
		m.UseName(name)
		if !m.Bans.Waiting() {
			t.Error("bans by other hosts do not wait for the state")
		}
		d.load(m, at(0))
		d.take(m)
	}
	restart("mx1", 0)
	incoming(t, m, 0, knownOn("mx2", byServer, byDomain, gone)...)
	incoming(t, m, 0, partial(knownOn("mx3", byFile))...)
	if restart("mx1", 0); !m.Bans.Waiting() {
		t.Error("not all rows had arrived")
	}
	for range 2 {
		m.Complete()
		if restart("mx1", 0); m.Bans.Waiting() {
			t.Error("bans wait although the standing is on disk")
		}
		checkOn(t, m, "after a restart", byServer, "mx2")
		checkOn(t, m, "after a restart", &Client{Addr: netip.MustParseAddr("192.0.2.99"), Domain: byDomain.Domain}, "mx2")
		checkOn(t, m, "after a restart", byFile, "mx3")
		m.Rewrite()
		clear(d)
	}
	deletion := knownOn("mx2", gone)
	for i := range deletion {
		if deletion[i].Value = nil; len(deletion[i].Key) != 17 {
			t.Fatal(deletion[i].Key)
		}
	}
	incoming(t, m, 0, deletion...)
	restart("mx1", 0)
	checkOn(t, m, "deleted", gone, "")
	checkOn(t, m, "another row deleted", byServer, "mx2")
	m.Disown("mx2")
	restart("mx1", 0)
	checkOn(t, m, "dropped", byServer, "")
	checkOn(t, m, "another host dropped", byFile, "mx3")
	restart("mx3", 0)
	checkOn(t, m, "a copy of the state has the name of the other host", byFile, "")
	incoming(t, m, 0, knownOn("mx2", byServer, byDomain)...)
	if restart("mx3", 1); !m.Bans.Waiting() {
		t.Error("bans do not wait although the key has changed")
	}
	checkOn(t, m, "another key", byServer, "mx2")
	checkOn(t, m, "another key", &Client{Addr: netip.MustParseAddr("192.0.2.99"), Domain: byDomain.Domain}, "")
	d.take(m)
	late := New()
	if d.load(late, at(500*day)); len(late.Peers.rows.foreign.rows) != 0 {
		t.Error("expired rows are loaded")
	}
}

// TestSourcesAreSeparate checks that neither the server nor another file removes the
// standing in a file.
func TestSourcesAreSeparate(t *testing.T) {
	c := who("192.0.2.1")
	m := sharing()
	two, nine := partial(knownOn("mx2", c)), knownOn("mx9", c)
	none := slices.Clone(nine)
	for i := range none {
		none[i].Value = nil
	}
	incoming(t, m, 0, two...)
	incoming(t, m, 0, nine...)
	incoming(t, m, 0, partial(nine)...)
	incoming(t, m, 0, none...)
	checkOn(t, m, "the server has deleted its row", c, "mx2")
	m.Disown("mx9")
	checkOn(t, m, "mx9 is dropped", c, "mx2")
	m.Disown("mx2")
	checkOn(t, m, "mx2 is dropped", c, "")
}

// TestFairShare checks that a host displaces no row of a host with fewer rows, regardless of
// the order of arrival.
func TestFairShare(t *testing.T) {
	clients := func(from, n int) (list []*Client) {
		for i := range n {
			list = append(list, who(fmt.Sprintf("198.51.%d.%d", (from+i)/250, (from+i)%250)))
		}
		return list
	}
	few, many := clients(0, 10), clients(0, 120)
	for _, order := range [][]string{{"mx2", "mx9"}, {"mx9", "mx2"}, {"mx9", "mx2", "mx8", "mx9"}} {
		m := sharing()
		m.Limit(1)
		if room := m.Room(); len(room) != 4 || room[peersBucket] != 50 {
			t.Fatal(room)
		}
		for _, host := range order {
			rows := map[string][]Foreign{
				"mx2": knownOn("mx2", few...), "mx8": knownOn("mx8", clients(120, 120)...), "mx9": partial(knownOn("mx9", many...)),
			}[host]
			incoming(t, m, 0, rows...)
		}
		for _, c := range few {
			if s := m.Peers.Standing(c, at(0)); s.Level != rules.StandingKnown {
				t.Errorf("%v: %+v", order, s)
			}
		}
		displaced := m.Displaced()
		if displaced["mx9"] == 0 || displaced["mx2"] != 0 || m.Origins()["mx2"] != 10 || foreignRows(m) != 50 {
			t.Error(order, displaced, m.Origins())
		}
	}
	if n := len(sharing().Displaced()); n != 0 {
		t.Errorf("%d hosts", n)
	}
}
