package control

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/filter/share"
	"scanwatch/internal/kv"
	"scanwatch/internal/text"
	"scanwatch/store"
)

// sharing returns a Sharing, and a client that may use all of its commands.
func sharing(t *testing.T, log *slog.Logger) (*Sharing, *Client) {
	t.Helper()
	s := &Sharing{Memory: memory.New(), Now: noon.UnixMicro, Log: log, Fingerprint: "a-b"}
	return s, connect(t, &Server{Commands: append(s.Commands(), s.OperatorCommands()[1:3]...), Log: log})
}

// connect returns a client of a server.
func connect(t *testing.T, server *Server) *Client {
	t.Helper()
	here, there := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.client(context.Background(), there, nil)
		there.Close()
	}()
	c, err := greet(here, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		<-done
	})
	return c
}

type noDisk struct{}

func (noDisk) Flush(context.Context) error { return nil }

func (noDisk) Snapshot() (*store.Snapshot, error) { return nil, errors.New("no disk") }

// TestUnbanOnOtherHosts checks that an unban reaches other hosts even if this host has only some of
// their bans, or none.
func TestUnbanOnOtherHosts(t *testing.T) {
	for _, tt := range []struct {
		prefix string
		within bool
		here   string // ban on this host
		sent   int
	}{
		{"192.0.2.1/32", false, "", 1},
		{"192.0.2.0/24", true, "", 2}, // of the network itself, and of the range
		{"192.0.2.0/24", true, "192.0.2.1/32", 3},
		{"2001:db8::1/128", false, "", 2},
	} {
		m := memory.New()
		m.UseKey([16]byte{1})
		m.Announce()
		if tt.here != "" {
			m.Bans.AddPrefix(netip.MustParsePrefix(tt.here), time.Hour, "x", noon.UnixMicro())
		}
		c := connect(t, &Server{Commands: MemoryCommands(m, noDisk{}, noon.UnixMicro, func() bool { return true }, func(memory.Ban) {}), Log: slog.New(slog.DiscardHandler)})
		if b, err := c.Unban(netip.MustParsePrefix(tt.prefix), tt.within); err != nil || b.Elsewhere != (tt.here == "") {
			t.Errorf("unban %+v: %+v, %v", tt, b, err)
		}
		if rows := m.Outgoing(1000, 0); len(rows) != tt.sent {
			t.Errorf("unban %+v: sent %v", tt, rows)
		}
	}
}

// bans returns bans on n clients, in the form in which another host sends them.
func bans(n int, revoked bool) (rows []memory.Foreign) {
	m := memory.New()
	m.Announce()
	for i := range n {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 32)
		m.Bans.AddPrefix(p, time.Hour, "x", noon.UnixMicro())
		if revoked {
			m.Bans.Revoke(p, false, noon.UnixMicro())
		}
	}
	for _, e := range m.Outgoing(1000, 0) {
		rows = append(rows, memory.Foreign{Entry: e, Origin: "mx2"})
	}
	return rows
}

// TestHosts checks that the status names the hosts known from the companion, from imported
// files, and from rows in the state.
func TestHosts(t *testing.T) {
	s, c := sharing(t, slog.New(slog.DiscardHandler))
	check := func(what, want string) {
		t.Helper()
		var got []string
		for _, h := range s.Hosts() {
			got = append(got, fmt.Sprint(h.Name, " ", h.Rows, " ", h.By))
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	check("nothing", "")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(SendPartial(c, bans(3, false)))
	check("rows from the disk", "mx2 3 ")
	must(SendImported(c, []share.HostStatus{{Name: "mx2", Rows: 99}, {Name: "mx3"}, {Name: "\x1b"}}))
	check("files", "mx2 3 file, mx3 0 file")
	must(SendHosts(c, []share.HostStatus{{Name: "mx2", Rows: 5, By: share.ByServer}, {Name: "mx4", By: share.ByServer}}))
	check("companion", "mx2 5 server, mx4 0 server, mx3 0 file")
	must(DisownAll(c, []string{"mx3"}))
	check("after mx3 is ignored", "mx2 5 server, mx4 0 server")
}

// TestUnbannedByOthers checks that the filter logs unbans by other hosts once, all in one line.
func TestUnbannedByOthers(t *testing.T) {
	var log bytes.Buffer
	_, c := sharing(t, slog.New(slog.NewTextHandler(&log, nil)))
	for _, rows := range [][]memory.Foreign{bans(20, false), bans(20, true), bans(20, true)} {
		if err := SendForeign(c, 0, rows); err != nil {
			t.Fatal(err)
		}
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `msg="unbanned by other hosts" bans=20 prefixes=192.0.2.`) ||
		!strings.Contains(got, "hosts=mx2") || strings.Count(got, "192.0.2.") != maxLogged {
		t.Errorf("%s", got)
	}
}

// TestInvalidRow checks that the filter accepts all other rows if one row is invalid.
func TestInvalidRow(t *testing.T) {
	var log bytes.Buffer
	s, c := sharing(t, slog.New(slog.NewTextHandler(&log, nil)))
	rows := bans(3, false)
	rows[1].Key, rows[1].Value = []byte("x"), nil
	if err := SendForeign(c, 0, rows); err != nil {
		t.Fatal(err)
	}
	if n := s.Memory.Bans.Count(noon.UnixMicro()).Active; n != 2 || !strings.Contains(log.String(), "invalid row from another host, skipped") {
		t.Errorf("%d of 2 valid bans: %s", n, log.String())
	}
}

// TestForeignBeforeLoad checks that rows are rejected until the state on disk is loaded, so that
// the companion sends them again.
func TestForeignBeforeLoad(t *testing.T) {
	s, c := sharing(t, slog.New(slog.DiscardHandler))
	s.Memory.Expect()
	if err := SendForeign(c, 0, bans(1, false)); err == nil || !strings.Contains(err.Error(), memory.ErrNotLoaded.Error()) {
		t.Errorf("before the rows on disk: %v", err)
	}
	s.Memory.Load(func(func(kv.Entry) bool) {}, noon.UnixMicro())
	if err := SendForeign(c, 0, bans(1, false)); err != nil {
		t.Error(err)
	}
}

// TestFleetProblems checks that the status lists a fleet's problems, except problems that
// the companion has already announced.
func TestFleetProblems(t *testing.T) {
	s := Status{
		Started: text.At(noon), Fleet: &FleetStatus{Problem: "no key"}, Companions: []CompanionStatus{{Error: "host mx2: wrong key"}},
		Hosts: []share.HostStatus{{Name: "mx2", Problem: "wrong key"}, {Name: "mx3"}, {Name: "mx4", Problem: "too many rows"}},
	}
	if got := strings.Join(s.FleetProblems(), "\n"); got != "fleet: no key\nhost mx4: too many rows" {
		t.Error(got)
	}
	for i := range 50 {
		s.Hosts = append(s.Hosts, share.HostStatus{Name: fmt.Sprint("h", i), Problem: "x"})
	}
	if got := s.FleetProblems(); len(got) != maxNamedHosts+1 || got[maxNamedHosts] != "42 more hosts have problems; see scanwatch status" {
		t.Error(got)
	}
}

// TestImportedIsBounded checks that only a limited number of hosts are kept.
func TestImportedIsBounded(t *testing.T) {
	s, c := sharing(t, slog.New(slog.DiscardHandler))
	var list []share.HostStatus
	for i := range maxHosts + 5 {
		list = append(list, share.HostStatus{Name: fmt.Sprint("h", i)})
	}
	if err := SendImported(c, list); err != nil || len(s.Hosts()) != maxHosts {
		t.Error(len(s.Hosts()), err)
	}
}

// TestFailedDrop checks that a drop changes nothing if the companion does not answer. If it
// answers, only the dropped host's rows must be deleted.
func TestFailedDrop(t *testing.T) {
	s, c := sharing(t, slog.New(slog.DiscardHandler))
	s.Companion = true
	if err := cmp.Or(SendForeign(c, 0, bans(3, false)), SendImported(c, []share.HostStatus{{Name: "mx2"}, {Name: "mx3"}})); err != nil {
		t.Fatal(err)
	}
	s.Name = "mx1"
	if err := s.drop(t.Context(), &Answer{}, []string{"mx1"}); err == nil || !strings.Contains(err.Error(), "is this host; run the command on the other hosts") {
		t.Error(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.drop(gone, &Answer{}, []string{"mx2"}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if n := s.Memory.Origins()["mx2"]; n != 3 || len(s.Hosts()) != 2 || len(s.pending()) != 0 {
		t.Errorf("%d rows, hosts %+v", n, s.Hosts())
	}
	operator := connect(t, &Server{Commands: s.OperatorCommands(), Log: s.Log})
	answer := make(chan error)
	go func() {
		d, err := Drop(operator, "mx2")
		if err == nil && d.Rows != 3 {
			err = fmt.Errorf("%d rows", d.Rows)
		}
		answer <- err
	}()
	var list RowList
	for len(list.Drop) == 0 { // as the companion does
		var err error
		if list, _, err = Rows(c, 0, false); err != nil {
			t.Fatal(err)
		}
	}
	d, err := Disown(c, list.Drop[0])
	if err == nil {
		err = SendDropped(c, d.Host, d.Rows)
	}
	if err = cmp.Or(err, <-answer); err != nil || s.Memory.Origins()["mx2"] != 0 {
		t.Error(err, s.Memory.Origins())
	}
}

// TestComplete checks when bans by other hosts take effect, and the limits that the companion
// receives.
func TestComplete(t *testing.T) {
	s, c := sharing(t, slog.New(slog.DiscardHandler))
	check := func(what string, waiting bool) {
		t.Helper()
		l, err := Fleet(c, "a-b")
		if err != nil || l.Waiting != waiting || l.Room[memory.PeersBucket] == 0 {
			t.Errorf("%s: %+v, %v", what, l, err)
		}
	}
	check("start", true)
	if err := cmp.Or(SendPartial(c, bans(1, false)), SendImported(c, []share.HostStatus{{Name: "mx2"}})); err != nil {
		t.Fatal(err)
	}
	check("an import", true)
	if err := SendComplete(c); err != nil {
		t.Fatal(err)
	}
	check("all rows of the server", false)
	stored := s.Memory.Changes(1000)
	s.Memory = memory.New()
	s.Memory.Load(slices.Values(stored), noon.UnixMicro())
	c = connect(t, &Server{Commands: s.Commands(), Log: s.Log})
	check("a restart", false)
}
