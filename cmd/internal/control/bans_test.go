package control

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/text"
	"scanwatch/store"
)

// A slowState is a State whose Flush method calls the flush field.
type slowState struct{ flush func(context.Context) error }

func (s *slowState) Flush(ctx context.Context) error  { return s.flush(ctx) }
func (*slowState) Snapshot() (*store.Snapshot, error) { return nil, store.ErrFinished }

func yes() bool { return true }

func sparesNone([]netip.Prefix) func(netip.Prefix) bool {
	return func(netip.Prefix) bool { return false }
}

// bansOf runs the bans command, requesting all bans.
func bansOf(c Command) (answer string, err error) {
	here, there := net.Pipe()
	read := make(chan string)
	go func() {
		text, _ := io.ReadAll(there)
		read <- string(text)
	}()
	err = c.Run(context.Background(), &Answer{conn: here, until: time.Now().Add(time.Minute)}, []string{"0", "0"})
	here.Close()
	return <-read, err
}

// TestBansWithoutDisk checks that the bans command does not wait for changes to reach the
// disk. Before it sends the list, the command must still try to load the bans from disk.
func TestBansWithoutDisk(t *testing.T) {
	m := memory.New()
	m.Bans.AddPrefix(netip.MustParsePrefix("192.0.2.1/32"), time.Hour, "x", noon.UnixMicro())
	flushed := 0
	s := &slowState{func(context.Context) error { flushed++; return errors.New("disk full") }}
	c := BansCommand(m.Bans, s, noon.UnixMicro, sparesNone, yes)
	if out, err := bansOf(c); err != nil || flushed > 0 || !strings.Contains(out, "192.0.2.1") {
		t.Errorf("loaded: %q, %v, %d flushes", out, err, flushed)
	}
	m.Expect()
	if out, err := bansOf(c); err == nil || out != "" || !strings.Contains(err.Error(), "not loaded yet: disk full") {
		t.Errorf("not loaded: %q, %v", out, err)
	}
	s.flush = func(context.Context) error { m.Load(func(func(store.Entry) bool) {}, noon.UnixMicro()); return nil }
	if out, err := bansOf(c); err != nil || !strings.Contains(out, "192.0.2.1") {
		t.Errorf("after loading: %q, %v", out, err)
	}
}

// TestCompanionProblems checks that a companion that is not running is reported as a problem. In
// the first minute after the filter starts, no problem must be reported, because companions need
// time to connect.
func TestCompanionProblems(t *testing.T) {
	start := noon.Add(-silent)
	for _, c := range []struct {
		what        string
		companion   CompanionStatus
		early, late string
	}{
		{"never seen", CompanionStatus{}, "", "is not running"},
		{"starting", CompanionStatus{Seen: text.At(noon), Error: ErrStarting.Error()}, "", ": starting"},
		{"working", CompanionStatus{Seen: text.At(noon), Done: text.At(noon)}, "", ""},
		{"failing", CompanionStatus{Seen: text.At(noon), Error: "no such set"}, ": no such set", ": no such set"},
		{"unable", CompanionStatus{Problem: "no such user"}, ": no such user", ": no such user"},
		{"gone", CompanionStatus{Seen: text.At(start.Add(-time.Second))}, "is not running", "is not running"},
	} {
		s := Status{Started: text.At(start), Companions: []CompanionStatus{c.companion}}
		if got := strings.Join(s.CompanionProblems(noon), "\n"); !strings.Contains(got, c.late) || c.late == "" && got != "" {
			t.Errorf("%s: %q", c.what, got)
		}
		s.Started = text.At(start.Add(time.Second))
		if got := strings.Join(s.CompanionProblems(noon), "\n"); !strings.Contains(got, c.early) || c.early == "" && got != "" {
			t.Errorf("%s, early: %q", c.what, got)
		}
	}
}

// TestTurns checks that a companion that constantly requests all bans uses only a tenth of a
// processor. The companion's first few requests must not be delayed.
func TestTurns(t *testing.T) {
	var u turns
	var now, spent time.Duration
	lists := 0
	for now < time.Minute {
		if wait := u.wait(now); wait > 0 {
			now += wait
		}
		if lists++; lists <= 4 && now != spent {
			t.Errorf("list %d waits", lists)
		}
		now += time.Second / 2
		spent += time.Second / 2
		u.spend(now, time.Second/2)
	}
	if most := time.Minute/fullShare + 2*fullBurst; spent > most || spent < most/2 {
		t.Errorf("%s of a minute, at most %s", spent, most)
	}
	u.spend(now, time.Hour)
	if wait := u.wait(now); wait > MaxWait {
		t.Errorf("a wait of %s", wait)
	}
}
