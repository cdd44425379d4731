package share

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/memory"
)

// peerRows returns a host's registers about clients that it knows.
func peerRows(name string, from, n int, now time.Time) []Row {
	m := memory.New()
	m.Announce()
	for i := range n {
		m.Peers.Delivered(&memory.Client{Addr: addr(from + i).Addr()}, memory.Delivery{Messages: 1}, now.AddDate(0, 0, -1).UnixMicro())
	}
	return New(name, DefaultLimits()).Own(m.Outgoing(1<<20, 0), now)
}

// replica returns a Replica of mx1 with the rows of other hosts.
func replica(t *testing.T, rows map[string][]Row) *Replica {
	t.Helper()
	r := New("mx1", DefaultLimits())
	for name, list := range rows {
		if err := r.Apply(name, list, noon); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// TestFairRoom checks that a host with many rows displaces no row of a host with few, even if it
// has rows about the same clients, and that the host with many is named.
func TestFairRoom(t *testing.T) {
	room := map[string]int{memory.PeersBucket: 50}
	check := func(what string, r *Replica) {
		t.Helper()
		if len(r.Rows("mx2")) != 10 || r.others[memory.PeersBucket] > 50 {
			t.Errorf("%s: %d of 10 rows of mx2, %d rows in total", what, len(r.Rows("mx2")), r.others[memory.PeersBucket])
		}
		for _, h := range r.Hosts() {
			if strings.HasPrefix(h.Problem, "all hosts together have more than 50 rows of table peers, and this host has the most; this host may refuse clients") != (h.Name == "mx9") {
				t.Errorf("%s, %s: problem %q", what, h.Name, h.Problem)
			}
		}
		known := 0
		m := memory.New()
		if _, err := m.Incoming(r.Changed(1000, noon), 0, noon.UnixMicro()); err != nil {
			t.Fatal(err)
		}
		for i := range 10 {
			if m.Peers.Excuse(&memory.Client{Addr: addr(i).Addr()}, noon.UnixMicro()) == "known" {
				known++
			}
		}
		if known != 10 {
			t.Errorf("%s: %d of 10 clients known", what, known)
		}
		if names := r.Missed(noon); len(names) != 0 {
			t.Errorf("%s: %v are read again without room", what, names)
		}
	}
	two, nine := peerRows("mx2", 0, 10, noon), peerRows("mx9", 0, 200, noon)
	r := replica(t, map[string][]Row{"mx2": two, "mx9": nine})
	Room(r, room, noon)
	check("room is known later", r)
	for _, order := range [][]string{{"mx2", "mx9"}, {"mx9", "mx2"}} {
		r := New("mx1", DefaultLimits())
		Room(r, room, noon)
		for _, name := range order {
			if err := r.Apply(name, map[string][]Row{"mx2": two, "mx9": nine}[name], noon); err != nil {
				t.Fatal(err)
			}
		}
		check(order[0]+" first", r)
	}
	r.Drop("mx9", noon)
	if n := r.others[memory.PeersBucket]; n != 10 {
		t.Errorf("%d rows after a drop", n)
	}
	if names := r.Missed(noon); len(names) != 1 {
		t.Errorf("%v are read again although there is room", names)
	}
}

// TestStandingFirst checks that bans reach the memory after the standing of their clients.
func TestStandingFirst(t *testing.T) {
	r := replica(t, map[string][]Row{"mx2": peerRows("mx2", 0, 50, noon), "mx3": banRows("mx3", 0, 50, time.Hour, noon)})
	bans := 0
	for range 20 {
		for _, f := range r.Changed(7, noon) {
			if f.Bucket == memory.BansBucket {
				bans++
			} else if bans > 0 {
				t.Fatal("a standing comes after a ban")
			}
		}
	}
	if bans != 50 {
		t.Errorf("%d bans", bans)
	}
}

// TestDropKeepsStanding checks that the standing on one host is sent again after another host
// with a later row about the same client was dropped, and that the memory has lost neither.
func TestDropKeepsStanding(t *testing.T) {
	client := &memory.Client{Addr: addr(1).Addr()}
	for _, later := range []string{"mx2", "mx9"} {
		m := memory.New()
		r := replica(t, map[string][]Row{"mx2": peerRows("mx2", 1, 1, noon), "mx9": peerRows("mx9", 1, 1, noon)})
		if err := r.Apply(later, peerRows(later, 1, 1, noon.Add(time.Minute)), noon); err != nil {
			t.Fatal(err)
		}
		pass := func() {
			t.Helper()
			if _, err := m.Incoming(r.Changed(100, noon), 0, noon.UnixMicro()); err != nil {
				t.Fatal(err)
			}
		}
		pass()
		r.Drop("mx9", noon)
		m.Disown("mx9")
		pass()
		if s := m.Peers.Standing(client, noon.UnixMicro()); s.Origin != "mx2" {
			t.Errorf("%s is later: %+v", later, s)
		}
		r.Drop("mx2", noon)
		m.Disown("mx2")
		pass()
		if s := m.Peers.Standing(client, noon.UnixMicro()); s.Origin != "" {
			t.Errorf("%s is later: %+v", later, s)
		}
	}
}

// TestStandingAhead checks that the standing on a host counts although its rows were written
// while the server's clock was ahead.
func TestStandingAhead(t *testing.T) {
	ahead := noon.Add(5 * time.Hour)
	r := replica(t, map[string][]Row{"mx2": peerRows("mx2", 1, 1, ahead), "mx3": banRows("mx3", 1, 1, time.Hour, ahead)})
	rows := r.Changed(100, noon)
	if len(rows) != 1 || rows[0].Bucket != memory.PeersBucket {
		t.Errorf("%+v", rows)
	}
	r = replica(t, map[string][]Row{"mx2": peerRows("mx2", 1, 1, noon.AddDate(0, 0, 3))})
	if rows := r.Changed(100, noon); len(rows) != 0 {
		t.Errorf("three days ahead: %+v", rows)
	}
}

// standing returns a memory that knows two groups of clients: regular clients, starting with
// addr(0), and clients that have sent a single message more recently, starting with addr(1000).
func standing(regular, once int) *memory.Memory {
	m := memory.New()
	deliver := func(p netip.Prefix, daysAgo int) {
		m.Peers.Delivered(&memory.Client{Addr: p.Addr()}, memory.Delivery{Messages: 1}, noon.AddDate(0, 0, -daysAgo).UnixMicro())
	}
	for day := range 8 {
		for i := range regular {
			deliver(addr(i), 30-day)
		}
	}
	for i := range once {
		deliver(addr(1000+i), 1)
	}
	m.Announce()
	return m
}

// knownOf returns the number of the n clients starting with addr(from) that a memory with the
// rows of r knows.
func knownOf(t *testing.T, r *Replica, from, n int) (known int) {
	t.Helper()
	m := memory.New()
	r.Resend()
	if _, err := m.Incoming(r.Changed(1<<20, noon), 0, noon.UnixMicro()); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if m.Peers.Excuse(&memory.Client{Addr: addr(from + i).Addr()}, noon.UnixMicro()) == "known" {
			known++
		}
	}
	return known
}

// TestCrowdedStanding checks that a host with too many known clients shares the regular ones, in
// any order of its rows, and that both sides report the others.
func TestCrowdedStanding(t *testing.T) {
	l := DefaultLimits()
	l.Clients = 50
	for range 5 { // the order of the rows is random
		sender, receiver := New("mx2", l), New("mx1", l)
		m := standing(40, 100)
		for range 2 { // all rows are sent again
			for {
				entries := m.Outgoing(10, 0)
				if len(entries) == 0 {
					break
				}
				if err := receiver.Apply("mx2", sender.Own(entries, noon), noon); err != nil {
					t.Fatal(err)
				}
			}
			for name, r := range map[string]*Replica{"the sender": New("mx9", l), "the receiver": receiver} {
				if name == "the sender" {
					if err := r.Apply("mx2", sender.Rows("mx2"), noon); err != nil {
						t.Fatal(err)
					}
				}
				if n := len(r.Rows("mx2")); n != 50 {
					t.Errorf("%s has %d rows", name, n)
				}
				if n := knownOf(t, r, 0, 40); n != 40 {
					t.Errorf("%s keeps %d of 40 regular clients", name, n)
				}
			}
			want := "at least 140 known clients, 90 of them not shared; other hosts may refuse these"
			if got := sender.Crowded(); !strings.HasPrefix(got, want) {
				t.Errorf("problem %q", got)
			}
			m.Announce()
		}
		if !sender.Retry(noon.Add(time.Hour)) || sender.Retry(noon.Add(2*time.Hour)) || sender.Crowded() != "" {
			t.Errorf("rows that the memory has lost: problem %q", sender.Crowded())
		}
	}
}

// TestCrowdedFleet checks that the host with the most rows loses its least useful ones: known
// clients after bans, and regular clients last.
func TestCrowdedFleet(t *testing.T) {
	unlimited := New("mx2", DefaultLimits())
	rows := unlimited.Own(standing(40, 100).Outgoing(1<<20, 0), noon)
	r := New("mx1", DefaultLimits())
	Room(r, map[string]int{memory.PeersBucket: 50}, noon)
	if err := r.Apply("mx2", rows, noon); err != nil {
		t.Fatal(err)
	}
	if n := knownOf(t, r, 0, 40); n != 40 {
		t.Errorf("full table: %d of 40 regular clients", n)
	}
	l := DefaultLimits()
	l.Total = 150
	r = New("mx1", l)
	for _, list := range [][]Row{banRows("mx2", 5000, 100, time.Hour, noon), rows} {
		if err := r.Apply("mx2", list, noon); err != nil {
			t.Fatal(err)
		}
	}
	if a, b := knownOf(t, r, 0, 40), knownOf(t, r, 1000, 100); a != 40 || b != 100 {
		t.Errorf("full replica: %d of 40 regular clients, %d of 100 others", a, b)
	}
}

// TestCrowdedCounts checks that omitted rows of the other tables are reported.
func TestCrowdedCounts(t *testing.T) {
	l := DefaultLimits()
	l.Rows = 3
	r := New("mx1", l)
	m := memory.New()
	m.Announce()
	c := &memory.Client{Addr: addr(1).Addr()}
	for i := range 5 {
		m.Recipients.Refused(c, []byte{byte('a' + i), '@', 'b'}, noon.UnixMicro())
	}
	r.Own(m.Outgoing(100, 0), noon)
	if got := r.Crowded(); !strings.HasPrefix(got, "at least 5 recipients, 2 of them not shared; ") {
		t.Errorf("problem %q", got)
	}
}
