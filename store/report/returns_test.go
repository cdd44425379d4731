package report

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"scanwatch/internal/text"
	"scanwatch/store"
)

const day = 24 * time.Hour

// ipv4 assigns each host a number based on its IPv4 address.
func ipv4(a netip.Addr) uint64 {
	b := a.As4()
	return uint64(b[0])<<24 | uint64(b[1])<<16 | uint64(b[2])<<8 | uint64(b[3])
}

func host(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 25)
}

func finding(token, confidence string) store.Step {
	return store.Step{Kind: store.KindFinding, Text: []byte(token), Confidence: []byte(confidence)}
}

var (
	banStep      = store.Step{Kind: store.KindBan, Text: []byte("r"), Enforced: true}
	observedStep = store.Step{Kind: store.KindBan, Text: []byte("r")}
	sparedStep   = store.Step{Kind: store.KindBan, Text: []byte("r"), Exempt: "mail"}
)

// returning returns a hundred days of sessions. Of 100 banned hosts, 40 return after half an hour,
// 20 after six hours, and 4 after ten days. Another 100 hosts harvest and return every three days.
// Another 50 hosts first appeared yesterday. A few further hosts appeared too recently to be
// counted.
func returning(t testing.TB) (all []*store.Record, until time.Time) {
	from := noon.Add(-100 * day)
	add := func(i int, at time.Time, steps ...store.Step) {
		all = append(all, record(t, store.Record{ID: uint64(len(all)), Src: host(i), End: at, Start: at.Add(-time.Second)}, steps...))
	}
	for i := range 100 {
		at := from.Add(time.Duration(i) * time.Hour)
		add(i, at, finding("scanner", "high"), finding("cloud", "low"), banStep)
		switch {
		case i < 40:
			add(i, at.Add(30*time.Minute))
			add(i, at.Add(20*day), finding("scanner", "high"), banStep) // counts once
		case i < 60:
			add(i, at.Add(6*time.Hour))
		case i < 64:
			add(i, at.Add(10*day))
		}
	}
	for i := 100; i < 200; i++ {
		for at := from.Add(time.Duration(i) * time.Minute); at.Before(noon); at = at.Add(25 * day) {
			add(i, at, finding("harvest", "high"), observedStep)
		}
	}
	for i := 200; i < 250; i++ {
		at := noon.Add(-day - time.Duration(i)*time.Minute)
		add(i, at, finding("talks-http", "medium"))
		if i%2 == 0 {
			add(i, at.Add(2*time.Minute), finding("talks-http", "medium"))
		}
	}
	for i := 250; i < 255; i++ {
		add(i, noon.Add(-5*day), finding("x\x1b[31m\u202e"+fmt.Sprint(i%2), "high"), sparedStep)
	}
	add(300, noon.Add(-5*day), sparedStep, finding("cloud", "low")) // is not counted
	slices.SortStableFunc(all, func(a, b *store.Record) int { return a.End.Compare(b.End) })
	return all, noon
}

func TestReturns(t *testing.T) {
	all, until := returning(t)
	c := NewReturns(ipv4)
	for _, r := range all {
		if err := c.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	for name, s := range map[string]*ReturnSummary{
		"returns":       c.Summary(time.Time{}, until, []string{"a problem"}),
		"returns-empty": NewReturns(ipv4).Summary(noon.Add(-day), noon, nil),
	} {
		var plain, json bytes.Buffer
		if err := s.Text(&plain, zone); err != nil {
			t.Fatal(err)
		}
		if err := s.JSON(&json); err != nil {
			t.Fatal(err)
		}
		golden(t, name, plain.Bytes())
		golden(t, name+"-json", json.Bytes())
		for line := range bytes.Lines(plain.Bytes()) {
			if n := text.Width(string(bytes.TrimRight(line, "\n"))); n > 80 {
				t.Errorf("%d columns: %s", n, line)
			}
		}
	}
}

// TestReturnsAtTheSameTime checks that a session that was already open at the time of
// the finding is not a return, and that all addresses of a source count as one host.
func TestReturnsAtTheSameTime(t *testing.T) {
	c := NewReturns(func(netip.Addr) uint64 { return 1 })
	add := func(start, end time.Duration, steps ...store.Step) {
		_ = c.Add(record(t, store.Record{Src: host(int(end)), Start: noon.Add(start), End: noon.Add(end)}, steps...))
	}
	add(0, time.Minute, finding("scanner", "high"))
	add(0, 2*time.Hour)
	if n := c.Summary(time.Time{}, noon.Add(day), nil).Rows[0].Within[1].Returned; n != 0 {
		t.Errorf("%d returned", n)
	}
	add(50*time.Minute, 3*time.Hour)
	add(30*time.Minute, 4*time.Hour)
	if got := c.entries[0].after; got != 29*time.Minute {
		t.Errorf("returned after %v", got)
	}
}

func TestReturnsAreBounded(t *testing.T) {
	c := NewReturns(ipv4)
	c.limit = 10
	for i := range 100 {
		_ = c.Add(record(t, store.Record{Src: host(i)}, finding("scanner", "high")))
	}
	s := c.Summary(time.Time{}, noon, nil)
	if len(c.hosts) != 5 || s.Rows[0].Hosts != 5 || s.NotFollowed != 190 {
		t.Errorf("%d hosts, %+v", len(c.hosts), s)
	}
	c = NewReturns(ipv4)
	for i := range 1000 {
		_ = c.Add(record(t, store.Record{Src: host(i)}, finding(fmt.Sprint(i), "high")))
	}
	if len(c.classes) != maxClasses || c.dropped != 1000-(maxClasses-classFound-1) {
		t.Errorf("%d rows, %d missed", len(c.classes), c.dropped)
	}
}

// TestReturnsAgreeWithPairs compares the numbers with the result of directly comparing
// all pairs of sessions.
func TestReturnsAgreeWithPairs(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var all []*store.Record
	for range 3000 {
		end := noon.Add(-time.Duration(rnd.Int64N(int64(60 * day))))
		var steps []store.Step
		if rnd.IntN(4) == 0 {
			steps = append(steps, finding("scanner", "high"))
		}
		all = append(all, record(t, store.Record{Src: host(rnd.IntN(400)), Start: end.Add(-time.Duration(rnd.Int64N(int64(time.Hour)))), End: end}, steps...))
	}
	slices.SortFunc(all, func(a, b *store.Record) int { return a.End.Compare(b.End) })
	c := NewReturns(ipv4)
	for _, r := range all {
		_ = c.Add(r)
	}
	var want [len(returnSteps)]ReturnWithin
	hosts := 0
	for i := range 400 {
		var first time.Time
		for _, r := range all {
			if r.Src == host(i) && first.IsZero() {
				_ = r.Steps(func(*store.Step) bool { first = r.End; return false })
			}
		}
		if first.IsZero() {
			continue
		}
		hosts++
		for w, step := range returnSteps {
			want[w].Within = step.name
			if noon.Sub(first) < step.time {
				continue
			}
			want[w].Watched++
			if slices.ContainsFunc(all, func(r *store.Record) bool {
				return r.Src == host(i) && r.End.After(first) && r.Start.After(first) && r.Start.Sub(first) <= step.time
			}) {
				want[w].Returned++
			}
		}
	}
	got := c.Summary(time.Time{}, noon, nil).Rows[0]
	if got.Hosts != hosts || !slices.Equal(got.Within, want[:]) {
		t.Errorf("%d hosts %v, want %d %v", got.Hosts, got.Within, hosts, want)
	}
}

// TestReturnsOfSums checks that a host counts as returning within an aggregate if one
// of the aggregate's sessions started after the first session with the finding. That
// first session also determines how long the host was observed.
func TestReturnsOfSums(t *testing.T) {
	at := func(minutes int) time.Time { return noon.Add(time.Duration(minutes) * time.Minute) }
	micros := func(minutes int) uint64 { return uint64(minutes) * 60e6 }
	// sum returns an aggregate of sessions from minute 10 to 50, one of
	// which has a finding.
	sum := func(lastStart, first int, confidence string) *store.Record {
		s := finding("harvest", confidence)
		s.Times, s.First = 1, micros(first-10)
		return record(t, store.Record{Src: host(1), Start: at(10), End: at(50), Sessions: 30, LastStart: micros(lastStart - 10)}, s)
	}
	whole := func(start, end int, steps ...store.Step) *store.Record {
		return record(t, store.Record{Src: host(1), Start: at(start), End: at(end)}, steps...)
	}
	found := finding("harvest", "high")
	for name, c := range map[string]struct {
		records           []*store.Record
		until             int
		watched, returned int
	}{
		"a later session of the aggregate":     {[]*store.Record{sum(45, 20, "high")}, 85, 1, 1},
		"only concurrent sessions":             {[]*store.Record{sum(19, 20, "high")}, 85, 1, 0},
		"watched since the first":              {[]*store.Record{sum(45, 30, "high")}, 85, 0, 0},
		"found before the aggregate":           {[]*store.Record{whole(0, 5, found), sum(45, 20, "high")}, 85, 1, 1},
		"found during the aggregate":           {[]*store.Record{whole(12, 15, found), sum(45, 20, "high")}, 85, 1, 1},
		"concurrent with the aggregate":        {[]*store.Record{whole(12, 46, found), sum(45, 48, "low")}, 120, 1, 0},
		"a record after the first":             {[]*store.Record{whole(30, 35, found), sum(12, 20, "high")}, 80, 1, 0},
		"an aggregate of low confidence":       {[]*store.Record{sum(45, 20, "low")}, 85, 0, 0},
		"returned an hour after the aggregate": {[]*store.Record{sum(19, 20, "high"), whole(75, 76)}, 85, 1, 1},
		"not within an hour of it":             {[]*store.Record{sum(19, 20, "high"), whole(81, 82)}, 85, 1, 0},
	} {
		all := NewReturns(ipv4)
		for _, r := range c.records {
			if err := all.Add(r); err != nil {
				t.Fatal(err)
			}
		}
		got := ReturnWithin{"1h", 0, 0}
		for _, row := range all.Summary(time.Time{}, at(c.until), nil).Rows {
			if row.Of == "harvest" {
				got = row.Within[0]
			}
		}
		if want := (ReturnWithin{"1h", c.watched, c.returned}); got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}

// TestReturnsWithoutHost checks that the findings in an aggregate of many sources are
// counted as skipped, because their hosts are unknown.
func TestReturnsWithoutHost(t *testing.T) {
	c := NewReturns(ipv4)
	if err := c.Add(sum(t, "", store.Record{Sessions: 9}, tally(finding("harvest", "high"), 4, 0, 0), tally(finding("cloud", "low"), 3, 0, 0), tally(banStep, 2, 0, 0))); err != nil {
		t.Fatal(err)
	}
	if s := c.Summary(time.Time{}, noon, nil); s.NotFollowed != 6 || len(s.Rows) > 0 {
		t.Errorf("%d findings are not followed, rows %+v", s.NotFollowed, s.Rows)
	}
}

func BenchmarkReturns(b *testing.B) {
	all, _ := returning(b)
	b.ReportAllocs()
	for b.Loop() {
		c := NewReturns(ipv4)
		for _, r := range all {
			_ = c.Add(r)
		}
	}
	b.ReportMetric(float64(b.N*len(all))/b.Elapsed().Seconds(), "records/s")
}
