package memory

import (
	"fmt"
	"testing"
	"time"

	"scanwatch/rules"
)

// delivered returns the state of a host that has received mail with the given senders
// from c.
func delivered(c *Client, senders ...string) *Memory {
	m := sharing()
	for i := range max(len(senders), 1) {
		one := *c
		one.Helo = fmt.Appendf(nil, "h%d.example", i)
		m.Peers.Delivered(&one, Delivery{Messages: 1, Senders: senders[min(i, len(senders)):]}, at(time.Duration(i-9)*day))
	}
	return m
}

// TestStandingIsNotTakenAway checks that no host's row takes away the standing that
// another host's row grants.
func TestStandingIsNotTakenAway(t *testing.T) {
	many := []string{"a.example", "b.example", "c.example", "d.example", "e.example"}
	client := func(addr string) *Client { return named(addr, "mx.sender.example") }
	for _, tt := range []struct {
		name     string
		good     *Memory
		evil     *Memory
		together rules.Standing
		alone    rules.Standing // with the rows of evil only
		many     bool           // the same
	}{
		{"an address that many share", delivered(who("192.0.2.1"), "sender.example"), delivered(who("192.0.2.1"), many...), rules.StandingKnown, rules.StandingNone, true},
		{"a domain that many share", delivered(client("192.0.2.7"), "sender.example"), delivered(client("192.0.2.8"), append(many, "sender.example")...), rules.StandingKnown, rules.StandingNone, false},
		{"some senders each", delivered(client("192.0.2.7"), "sender.example", "a.example", "b.example"), delivered(client("192.0.2.8"), "sender.example", "c.example", "d.example"), rules.StandingKnown, rules.StandingKnown, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			good, evil := from(tt.good, "mx2"), from(tt.evil, "mx9")
			check := func(how string, want rules.Standing, many bool, list ...Foreign) {
				t.Helper()
				m := sharing()
				incoming(t, m, 0, list...)
				if s := m.Peers.Standing(client("192.0.2.1"), at(0)); s.Level != want || s.Many != many {
					t.Errorf("%s: %+v", how, s)
				}
			}
			check("alone", tt.alone, tt.many, evil...)
			for _, order := range [][][]Foreign{{good, evil}, {evil, good}} {
				var partial, together []Foreign
				rows := map[string][][]byte{}
				for _, f := range append(append([]Foreign{}, order[0]...), order[1]...) {
					rows[string(f.Key)] = append(rows[string(f.Key)], f.Value)
					f.Partial = true
					partial = append(partial, f)
				}
				for _, f := range append(append([]Foreign{}, order[0]...), order[1]...) {
					f.Value = NewMerger().Combine(f.Bucket, f.Key, rows[string(f.Key)], at(0)/1e6)
					f.Value = NewMerger().Combine(f.Bucket, f.Key, [][]byte{f.Value, f.Value}, at(0)/1e6)
					together = append(together, f)
				}
				check("files", tt.together, false, partial...)
				check("server", tt.together, false, together...)
			}
		})
	}
}

// TestStandingScore checks the order in which hosts that know too many clients share them, and
// that a row without effect on other hosts has no score.
func TestStandingScore(t *testing.T) {
	today := dayOf(uint32(at(0) / 1e6))
	score := func(kind peerKind, p peer) int64 {
		s := newShared()
		rows := newPeers(s).rows
		return StandingScore(rows.key(peerKey{Host{lo: 1}, kind}), rows.value(p))
	}
	order := []int64{
		score(peerHost, peer{first: today - 399, good: today - 399, messages: 1, days: 1}),
		score(peerLogin, peer{login: today, bad: today, days: 5}),
		score(peerHost, peer{first: today - 1, good: today, messages: 1, days: 1}),
		score(peerHost, peer{first: today - 90, good: today - 20, messages: 2, days: 2}),
		score(peerDomain, peer{wrote: today - 30}),
		score(peerHost, peer{first: today - 90, good: today, messages: 50, days: 50}),
	}
	for i := range order {
		if order[i] <= 0 || i > 0 && order[i] <= order[i-1] {
			t.Errorf("row %d: %v", i, order)
		}
	}
	for name, n := range map[string]int64{
		"an offence":          score(peerHost, peer{bad: today, messages: 1}),
		"a provider's domain": score(peerDomain, peer{good: today, messages: 9, days: 9, senders: [manySenders]uint16{1, 2, 3, 4}}),
		"an invalid row":      StandingScore([]byte("x"), nil),
	} {
		if n != 0 {
			t.Errorf("%s has the score %d", name, n)
		}
	}
}

// TestOffencesAreNotSent checks that a host does not send the row of a client that has only
// offences, because there may be many more of these than known clients.
func TestOffencesAreNotSent(t *testing.T) {
	m := sharing()
	c := who("192.0.2.1")
	m.Peers.Misbehaved(c, at(0))
	for _, f := range from(m, "mx2") {
		if f.Bucket == peersBucket && len(f.Value) > 0 {
			t.Errorf("%+v", f)
		}
	}
	m.Peers.Delivered(c, Delivery{Messages: 1}, at(0))
	if list := from(m, "mx2"); len(list) != 1 || len(list[0].Value) == 0 {
		t.Errorf("after a delivery: %+v", list)
	}
}
