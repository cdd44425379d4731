package journal

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"scanwatch/filter/track"
	"scanwatch/internal/sketch"
	"scanwatch/internal/smtp"
	"scanwatch/store"
	"scanwatch/tests/total"
)

var noon = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)

// A player passes ended sessions to a Journal and stores the resulting records.
type player struct {
	*Journal
	mu      sync.Mutex
	records []store.Record
	bytes   int64 // total size of the records
	id      uint64
}

func play(t testing.TB, budget int64) *player {
	p := &player{}
	p.Journal = New(Options{Log: func([]byte) {}, Record: func(end time.Time, id uint64, value []byte) {
		p.mu.Lock()
		defer p.mu.Unlock()
		r, err := store.Decode(store.AppendKey(nil, end, id), bytes.Clone(value))
		if err != nil {
			t.Error(err)
		}
		if len(value) > store.MaxValue {
			t.Errorf("a record of %d bytes", len(value))
		}
		p.records = append(p.records, r)
		p.bytes += int64(len(value)) + recordCost
	}})
	p.Limit(budget)
	return p
}

// end ends a session that lasted a second and has the given steps, and reports whether the session
// gets its own record.
func (p *player) end(src string, at time.Time, counts track.Counts, c Close, steps ...store.Step) bool {
	var st State
	for i := range steps {
		st.steps = store.AppendStep(st.steps, &steps[i], time.Millisecond)
	}
	return p.ended(src, at, counts, c, st.steps)
}

func (p *player) ended(src string, at time.Time, counts track.Counts, c Close, steps []byte) bool {
	p.id++
	c.At = at.UnixMicro()
	p.Tick(c.At)
	s := track.Session{ID: p.id, Src: netip.MustParseAddrPort(src), Start: c.At - 1e6, Counts: counts, RDNS: []byte("host.example.net"), FCrDNS: smtp.FCrDNSPass}
	return p.End(&s, &State{steps: steps}, c)
}

// written returns the aggregates that were written so far.
func (p *player) written() (all []*store.Record) {
	for i := range p.records {
		if p.records[i].Sessions > 0 {
			all = append(all, &p.records[i])
		}
	}
	return all
}

func stepsOf(t testing.TB, r *store.Record) (all []store.Step) {
	t.Helper()
	if err := r.Steps(func(s *store.Step) bool { all = append(all, *s); return true }); err != nil {
		t.Error(err)
	}
	return all
}

func finding(token, org, confidence string) store.Step {
	return store.Step{Kind: store.KindFinding, Text: []byte(token), Org: []byte(org), By: []byte("by " + confidence), Confidence: []byte(confidence)}
}

func rcpt(addr string, result smtp.Result) store.Step {
	return store.Step{Kind: store.KindRcpt, Text: []byte(addr), Result: result}
}

func helo(name string) store.Step {
	return store.Step{Kind: store.KindHelo, Text: []byte(name), Result: smtp.ResultOK}
}

var rejected = store.Step{Kind: store.KindVerdict, Text: []byte("r"), Phase: smtp.PhaseRcptTo, Decision: smtp.Reject, Enforced: true}

// TestRule checks which sessions get their own record. The manual describes the rules.
func TestRule(t *testing.T) {
	const budget = 1 << 20
	// fill ends sessions from new sources until their own records have used up the given share.
	fill := func(p *player, share int64, counts track.Counts, c Close) {
		t.Helper()
		before := p.bytes
		for n := 0; p.end(fmt.Sprintf("192.0.%d.%d:1", n>>8, n&255), noon, counts, c); n++ {
		}
		if used := p.bytes - before; used < budget/share-1000 || used > budget/share+1000 {
			t.Errorf("whole sessions have used %d bytes", used)
		}
	}
	mail, login := track.Counts{Mails: 1}, track.Counts{AuthPass: 1}
	p := play(t, budget)
	whole := func(want bool, what, src string, at time.Time, counts track.Counts, c Close) {
		t.Helper()
		if got := p.end(src, at, counts, c); got != want {
			t.Errorf("%s: whole is %v", what, got)
		}
	}
	for i := range 20 {
		whole(true, fmt.Sprint("session ", i), "198.51.100.1:1", noon.Add(time.Duration(i)*time.Second), track.Counts{}, Close{})
	}
	whole(false, "the 21st of an hour", "198.51.100.1:1", noon.Add(59*time.Minute), track.Counts{}, Close{})
	whole(true, "mail", "198.51.100.1:1", noon, mail, Close{})
	whole(true, "a ban", "198.51.100.1:1", noon, track.Counts{}, Close{Banned: true})
	whole(true, "a login", "198.51.100.1:1", noon, login, Close{})
	whole(true, "another source", "198.51.100.2:1", noon, track.Counts{}, Close{})
	whole(true, "the next hour", "198.51.100.1:1", noon.Add(time.Hour), track.Counts{}, Close{})
	for i := range 20 {
		whole(true, fmt.Sprint("address ", i, " of a /64"), fmt.Sprintf("[2001:db8::%x]:1", i), noon, track.Counts{}, Close{})
	}
	whole(false, "the 21st of a /64", "[2001:db8::ffff]:1", noon, track.Counts{}, Close{})

	p = play(t, budget)
	fill(p, firstShare, track.Counts{}, Close{})
	whole(false, "a new source after an eighth", "198.51.100.1:1", noon, track.Counts{}, Close{})
	whole(true, "mail", "198.51.100.1:1", noon, mail, Close{})
	fill(p, mailShare, mail, Close{Banned: true})
	whole(false, "mail after half of the budget", "198.51.100.1:1", noon, mail, Close{})
	whole(false, "a ban", "198.51.100.1:1", noon, track.Counts{}, Close{Banned: true})
	whole(true, "a login", "198.51.100.1:1", noon, login, Close{})
	whole(true, "the next day", "198.51.100.1:1", noon.Add(12*time.Hour), track.Counts{}, Close{})
	whole(true, "mail on the next day", "198.51.100.1:1", noon.Add(12*time.Hour), mail, Close{})

	p = play(t, 0)
	for i := range 100 {
		whole(true, fmt.Sprint("session ", i, " without a budget"), "198.51.100.1:1", noon, track.Counts{}, Close{})
	}
}

// flood ends so many sessions from a source that its next sessions are added to an aggregate.
func (p *player) flood(src string) {
	for range firstSessions {
		p.end(src, noon, track.Counts{}, Close{})
	}
	p.records = nil
}

// TestSum checks all fields of an aggregate.
func TestSum(t *testing.T) {
	p := play(t, 1<<30)
	const src = "198.51.100.1:25"
	p.flood(src)
	reject, withheld, observed := rejected, rejected, rejected
	withheld.Exempt, withheld.Enforced = "trusted", false
	observed.Enforced = false
	first := noon.Add(time.Second)
	p.end(src, first, track.Counts{Commands: 5, RcptOK: 1, RcptPermfail: 4}, Close{Found: true, Refused: true},
		helo("one"), helo("one"), helo("two"), finding("harvest", "", "low"), finding("scanner", "Org", "medium"), reject, reject, withheld,
		rcpt("a@Example.ORG", smtp.ResultPermfail), rcpt("b@example.org", smtp.ResultPermfail), rcpt("c@example.org", smtp.ResultOK), rcpt("d@example.org", smtp.ResultTempfail),
		rcpt("local", smtp.ResultPermfail), rcpt("local@", smtp.ResultPermfail),
		store.Step{Kind: store.KindFilter, Phase: smtp.PhaseRcptTo, Decision: smtp.Reject}, rcpt("e@example.org", smtp.ResultPermfail))
	last := noon.Add(2 * time.Second)
	p.end(src, last, track.Counts{Commands: 5, RcptPermfail: 1, AuthFail: 3}, Close{Ending: smtp.EndingQuit},
		helo("one"), finding("harvest", "", "high"), observed, rcpt("f@example.org", smtp.ResultPermfail),
		store.Step{Kind: store.KindAuth, Text: []byte("alice"), Result: smtp.ResultFail}, store.Step{Kind: store.KindAuth, Text: []byte("alice"), Result: smtp.ResultFail},
		store.Step{Kind: store.KindAuth, Text: []byte("bob"), Result: smtp.ResultFail},
		store.Step{Kind: store.KindBan, Text: []byte("r"), Exempt: "login"})
	if n := p.Sums().Unwritten(); n != 2 {
		t.Errorf("%d sessions are unwritten, want 2", n)
	}
	p.Flush(0, false)
	if len(p.records) != 1 || p.Sums().Unwritten() != 0 {
		t.Fatalf("%d records, %d unwritten", len(p.records), p.Sums().Unwritten())
	}
	r := p.records[0]
	var got []string
	for _, s := range stepsOf(t, &r) {
		text := fmt.Sprintf("%d %s/%s/%s/%s enforced=%v exempt=%s session=%d times=%d count=%d most=%d",
			s.Kind, s.Text, s.Result, s.By, s.Org, s.Enforced, s.Exempt, s.Session, s.Times, s.Count, s.Most)
		if s.First > 0 {
			text += fmt.Sprint(" first=", s.First)
		}
		got = append(got, text)
	}
	slices.Sort(got)
	want := []string{
		"14 harvest//by high/ enforced=false exempt= session=0 times=2 count=0 most=0 first=2000000", // the finding in the other session has low confidence
		"14 scanner//by medium/Org enforced=false exempt= session=0 times=1 count=0 most=0 first=1000000",
		"15 r/// enforced=false exempt= session=0 times=1 count=0 most=0",
		"15 r/// enforced=false exempt=trusted session=0 times=1 count=0 most=0",
		"15 r/// enforced=true exempt= session=0 times=1 count=0 most=0",
		"18 r/// enforced=false exempt=login session=0 times=1 count=0 most=0 first=2000000",
		"19 /// enforced=false exempt= session=21 times=0 count=0 most=0",
		"2 one/// enforced=false exempt= session=0 times=2 count=0 most=0",
		"2 two/// enforced=false exempt= session=0 times=1 count=0 most=0",
		"4 alice/fail// enforced=false exempt= session=0 times=1 count=2 most=2",
		"4 bob/fail// enforced=false exempt= session=0 times=1 count=1 most=1",
		"6 /permfail// enforced=false exempt= session=0 times=1 count=2 most=2",
		"6 @example.org/ok// enforced=false exempt= session=0 times=1 count=1 most=1",
		"6 @example.org/permfail// enforced=false exempt= session=0 times=2 count=3 most=2",
	}
	if !slices.Equal(got, want) {
		t.Errorf("steps\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	wantCounts := store.Counts{Commands: 10, RcptOK: 1, RcptPermfail: 5, AuthFail: 3}
	if r.ID != 22 || !r.End.Equal(last) || !r.Start.Equal(first.Add(-time.Second)) || r.Src != netip.MustParseAddrPort("198.51.100.1:0") || r.Ending != smtp.EndingQuit ||
		string(r.RDNS) != "host.example.net" || r.FCrDNS != smtp.FCrDNSPass || r.Sessions != 2 || r.Found != 1 || r.Rejected != 1 || r.LastStart != 1e6 || r.Counts != wantCounts || r.Sketch != nil {
		t.Errorf("%+v", r)
	}
}

// TestOncePerSession checks that an evidence token counts a session only once. A later finding in
// the session with a different organisation and a higher confidence must not count the session
// again.
func TestOncePerSession(t *testing.T) {
	p := play(t, 1<<30)
	const src = "198.51.100.1:25"
	p.flood(src)
	for range 3 {
		p.end(src, noon, track.Counts{}, Close{}, finding("scanner", "", "low"), finding("scanner", "One", "high"))
	}
	p.end(src, noon, track.Counts{}, Close{}, finding("scanner", "Two", "high"))
	p.Flush(0, false)
	got := map[string]uint32{}
	for _, s := range stepsOf(t, &p.records[0]) {
		got[string(s.Org)] = s.Times
	}
	if want := map[string]uint32{"One": 3, "Two": 1}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestNameless checks that a greeting without a name is not counted as a further name.
func TestNameless(t *testing.T) {
	p := play(t, 512<<20)
	for range firstSessions + 3 {
		p.end("192.0.2.1:1", noon, track.Counts{}, Close{}, store.Step{Kind: store.KindHelo, Result: smtp.ResultPermfail})
	}
	p.Flush(noon.UnixMicro(), false)
	for _, r := range p.written() {
		if steps := stepsOf(t, r); r.Sessions != 3 || len(steps) > 0 {
			t.Errorf("%d sessions, tallies %+v", r.Sessions, steps)
		}
	}
}

// TestFullTallies checks that the number of names in an aggregate is limited. All further names are
// counted together. The counts of evidence and rules must remain exact.
func TestFullTallies(t *testing.T) {
	p := play(t, 1<<30)
	const src, n = "198.51.100.1:25", 40
	p.flood(src)
	hostile := strings.Repeat("\x00\xff\n%s", 700)
	for i := range n {
		s := fmt.Sprint(i)
		verdict := rejected
		verdict.Text = []byte("rule " + s)
		p.end(src, noon, track.Counts{}, Close{}, helo(s+hostile), rcpt("a@"+s+hostile, smtp.ResultPermfail), rcpt("a@"+s+hostile, smtp.ResultPermfail),
			store.Step{Kind: store.KindAuth, Text: []byte(s + hostile), Result: smtp.ResultFail},
			finding("token "+s, "", "high"), finding("scanner", s+hostile, hostile), verdict)
	}
	p.Flush(0, false)
	if len(p.records) != 1 {
		t.Fatalf("%d records", len(p.records))
	}
	type total struct{ n, times, count int }
	got, rest := map[store.Kind]total{}, map[string]uint32{}
	for _, s := range stepsOf(t, &p.records[0]) {
		x := got[s.Kind]
		x.n++
		x.times += int(s.Times)
		x.count += int(s.Count)
		got[s.Kind] = x
		if len(s.Text) > maxSumText || len(s.Org) > maxSumText || len(s.Confidence) > maxSumText {
			t.Errorf("a text of %d bytes", len(s.Text))
		}
		if len(s.Text) < 2 {
			rest[fmt.Sprint(s.Kind, string(s.Text))] += s.Times
		}
		if string(s.Text) == "scanner" && len(s.Org) == 0 {
			rest["scanner"] += s.Times
		}
	}
	want := map[store.Kind]total{
		store.KindHelo: {9, n, 0}, store.KindAuth: {9, n, n}, store.KindRcpt: {17, n, 2 * n},
		store.KindVerdict: {n, n, 0}, store.KindFinding: {n + 8 + 1, 2 * n, 0},
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if want := map[string]uint32{"2": 32, "4": 32, "6*": 24, "scanner": 32}; !maps.Equal(rest, want) {
		t.Errorf("rest %v, want %v", rest, want)
	}
}

// TestIDs checks that aggregates contain the ids of all sessions that were rejected or led to a
// ban, until the share for ids is used up.
func TestIDs(t *testing.T) {
	const src, n = "198.51.100.1:25", 1800
	p := play(t, 1<<30)
	p.flood(src)
	first := p.id + 1
	for i := range uint64(n) {
		p.end(src, noon.Add(time.Duration(i)*time.Second), track.Counts{}, Close{Refused: i%2 == 0})
	}
	p.Flush(0, false)
	ids, sessions := map[uint64]bool{}, uint32(0)
	for _, r := range p.written() {
		sessions += r.Sessions
		some := 0
		for _, s := range stepsOf(t, r) {
			if s.Kind == store.KindReference {
				some++
				if ids[s.Session] || s.Session%2 != first%2 {
					t.Errorf("id %d", s.Session)
				}
				ids[s.Session] = true
			}
		}
		if some > maxIDs {
			t.Errorf("an aggregate with %d ids", some)
		}
	}
	if len(p.records) != 2 || sessions != n || len(ids) != n/2 {
		t.Errorf("%d records of %d sessions, %d ids", len(p.records), sessions, len(ids))
	}

	const budget = 1 << 20
	p = play(t, budget)
	p.flood(src)
	p.bytes = 0
	for range 100_000 {
		p.end(src, noon, track.Counts{}, Close{Refused: true}, rejected)
	}
	p.Flush(0, false)
	sessions = 0
	for i := range p.records {
		sessions += p.records[i].Sessions
	}
	if p.bytes > budget/idShare+1000 || p.bytes < budget/idShare/2 || sessions != 100_000 {
		t.Errorf("%d bytes of aggregates of %d sessions", p.bytes, sessions)
	}
}

// TestIDsOfManySources checks that the aggregates of many sources do not use up the share for ids.
func TestIDsOfManySources(t *testing.T) {
	const n, budget = 30_000, 16 << 20
	p := play(t, budget)
	p.onlySums(noon)
	for i := range n {
		p.end(fmt.Sprintf("11.%d.%d.%d:1", i>>16, i>>8&255, i&255), noon.Add(time.Duration(i)*time.Hour/n/2), track.Counts{}, Close{Refused: true}, rejected)
	}
	p.Flush(0, false)
	ids, sums := 0, 0
	for _, r := range p.written() {
		sums++
		for _, s := range stepsOf(t, r) {
			if s.Kind == store.KindReference {
				ids++
			}
		}
	}
	if ids < n || budget/idShare/idCost < n {
		t.Errorf("%d ids of %d sessions in %d aggregates", ids, n, sums)
	}
}

// TestCommonSum checks that all sources beyond the limit share one aggregate. The counts in the
// common aggregate must be exact, and the number of sources must be estimated.
func TestCommonSum(t *testing.T) {
	const sources, each = 15_000, 3
	p := play(t, 1<<40)
	p.onlySums(noon)
	evidence := finding("scanner", "Org", "high")
	for i := range sources * each {
		n := i % sources
		p.end(fmt.Sprintf("11.0.%d.%d:1", n>>8, n&255), noon, track.Counts{RcptPermfail: 1}, Close{Found: true, Refused: true}, evidence, rejected)
	}
	p.Flush(0, false)
	own, sessions, times, ids := 0, 0, 0, map[uint64]bool{}
	var all sketch.Sketch
	for _, r := range p.written() {
		sessions += r.Many()
		if r.Src.IsValid() {
			own++
			if r.Sketch != nil || r.Sessions != each {
				t.Errorf("%v has an aggregate of %d sessions and a sketch of %d bytes", r.Src, r.Sessions, len(r.Sketch))
			}
		} else {
			all.Merge(r.Sketch)
			if len(r.Sketch) != sketch.Size || r.Local || len(r.RDNS) > 0 || r.Counts.RcptPermfail != r.Sessions || r.Found != r.Sessions {
				t.Errorf("common aggregate %+v", r)
			}
		}
		for _, s := range stepsOf(t, r) {
			switch s.Kind {
			case store.KindReference:
				ids[s.Session] = true
			case store.KindFinding:
				times += int(s.Times)
			}
		}
	}
	if own != maxSums || sessions != sources*each || times != sessions || len(ids) != sessions {
		t.Errorf("%d aggregates of sources, %d sessions, %d with the finding, %d ids", own, sessions, times, len(ids))
	}
	if n := all.Count(); n < (sources-maxSums)*95/100 || n > (sources-maxSums)*105/100 {
		t.Errorf("an estimate of %d sources, want %d", n, sources-maxSums)
	}
}

// onlySums marks the share for the first sessions of sources as used up on the given day.
func (p *player) onlySums(day time.Time) {
	p.Tick(day.UnixMicro())
	p.Sums().firsts = math.MaxInt64
}

// TestShareOfSums checks that aggregates use at most 1/16 of the budget and one common aggregate
// per hour. The sources and texts in the flood are always new.
func TestShareOfSums(t *testing.T) {
	for _, budget := range []int64{16 << 20, 256 << 20} {
		const hours, perHour = 6, 10_000
		p := play(t, budget)
		p.onlySums(noon)
		sessions := 0
		for i := range hours * perHour {
			s := fmt.Sprint(i)
			at := noon.Add(time.Duration(i) * time.Hour / perHour)
			p.end(fmt.Sprintf("11.%d.%d.%d:1", i>>16, i>>8&255, i&255), at, track.Counts{}, Close{Refused: true},
				helo(s), rcpt("a@"+s, smtp.ResultPermfail), rcpt("b@"+s, smtp.ResultOK), finding("scanner", s, "high"), rejected)
		}
		p.Flush(0, false)
		for _, r := range p.written() {
			sessions += r.Many()
		}
		t.Logf("budget %d: %d bytes of a share of %d in %d records", budget, p.bytes, budget/sumShare, len(p.records))
		if sessions != hours*perHour || p.bytes > budget/sumShare+hours*10_000 || p.bytes < budget/sumShare/4 {
			t.Errorf("budget %d: %d sessions, %d bytes", budget, sessions, p.bytes)
		}
	}
}

// TestMemoryOfSums checks how much memory the largest possible aggregates need.
func TestMemoryOfSums(t *testing.T) {
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	n := 0
	j := New(Options{Record: func(time.Time, uint64, []byte) { n++ }, Log: func([]byte) {}})
	j.Limit(1 << 50)
	long := strings.Repeat("x", 300)
	most := int64(0)
	var st State
	for i := range 100_000 {
		source := i / 2
		if i%2 != 0 { // add many sessions to some aggregates
			source = i % 7001
		}
		st.steps = st.steps[:0]
		for _, s := range []store.Step{helo(fmt.Sprint(i, long)), rcpt(fmt.Sprint("a@", i, long), smtp.ResultPermfail), finding(fmt.Sprint(i%60), fmt.Sprint(i, long), long),
			{Kind: store.KindAuth, Text: fmt.Append(nil, i, long), Result: smtp.ResultFail}, {Kind: store.KindVerdict, Text: fmt.Append(nil, i%300, long), Decision: smtp.Reject, Enforced: true}} {
			st.steps = store.AppendStep(st.steps, &s, 0)
		}
		s := track.Session{ID: uint64(i), Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{11, 0, byte(source >> 8), byte(source)}), 1), RDNS: fmt.Append(nil, i, long)}
		j.sums.firsts = 0
		j.sums.payer(&store.Record{Src: s.Src, End: noon}, new(Close))
		j.sums.firsts = math.MaxInt64
		j.End(&s, &st, Close{At: noon.UnixMicro(), Refused: true})
		if i%10_000 == 9_999 {
			most = max(most, heap()-before)
		}
	}
	t.Logf("at most %d bytes of heap, %d aggregates, %d counted sources and %d bytes by the journal's own count; %d records",
		most, len(j.sums.queue), len(j.sums.first), j.sums.cost.memory, n)
	if most > 16<<20 || j.sums.cost.memory > maxHeld {
		t.Errorf("%d bytes of heap, %d by its own count", most, j.sums.cost.memory)
	}
	runtime.KeepAlive(j)
}

// TestEndOfHour checks that after an hour has ended, each event causes a few of the hour's
// aggregates to be written. All sessions in an aggregate must be from the same hour.
func TestEndOfHour(t *testing.T) {
	p := play(t, 1<<40)
	const sources = 100
	at := noon.Add(11*time.Hour + 50*time.Minute)
	p.onlySums(at)
	for i := range 2 * sources {
		p.end(fmt.Sprintf("11.0.0.%d:1", i%sources), at, track.Counts{}, Close{})
	}
	p.Tick(at.Add(9 * time.Minute).UnixMicro())
	if len(p.records) != 0 {
		t.Fatalf("%d records within the hour", len(p.records))
	}
	next := at.Add(10 * time.Minute).UnixMicro()
	for i := 1; len(p.records) < sources; i++ {
		p.Tick(next)
		if len(p.records) != min(i*writesPerTick, sources) {
			t.Fatalf("%d records after %d events", len(p.records), i)
		}
	}
	for i := range p.records {
		if r := &p.records[i]; r.Sessions != 2 || !r.End.Equal(at) {
			t.Errorf("%+v", r)
		}
	}
	// If the clock is set back, the hour also ends.
	p.onlySums(time.UnixMicro(next))
	p.end("11.0.0.1:1", time.UnixMicro(next), track.Counts{}, Close{})
	p.Tick(at.UnixMicro())
	if len(p.records) != sources+1 {
		t.Errorf("%d records after the clock was set back", len(p.records))
	}
}

// TestFlush checks that Flush writes aggregates of the current hour until a quarter of their share
// is used. TestFlush also checks that concurrent calls write each session exactly once.
func TestFlush(t *testing.T) {
	const src = "198.51.100.1:1"
	p := play(t, 1<<40)
	p.flood(src)
	p.end(src, noon, track.Counts{}, Close{})
	p.Sums().Flush()
	if len(p.records) != 1 || p.records[0].Sessions != 1 {
		t.Fatalf("%d records after a flush", len(p.records))
	}
	p.Sums().used = 1<<40/earlyShare + 1
	p.end(src, noon, track.Counts{}, Close{})
	if p.Sums().Flush(); len(p.records) != 1 {
		t.Error("the aggregate was written early although aggregates had used their part")
	}

	const n = 20_000
	p = play(t, 1<<40)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range n / 100 {
			p.Sums().Flush()
		}
	}()
	for i := range n {
		p.end(fmt.Sprintf("11.0.0.%d:1", i%100), noon.Add(time.Duration(i)*time.Second), track.Counts{}, Close{Refused: true}, rejected)
	}
	<-done
	p.Flush(0, false)
	seen, sessions := map[uint64]bool{}, 0
	for i := range p.records {
		r := &p.records[i]
		sessions += r.Many()
		ids := []uint64{r.ID}
		if r.Sessions > 0 {
			ids = nil
		}
		for _, s := range stepsOf(t, r) {
			if s.Kind == store.KindReference {
				ids = append(ids, s.Session)
			}
		}
		for _, id := range ids {
			if seen[id] {
				t.Errorf("session %d is recorded twice", id)
			}
			seen[id] = true
		}
	}
	if sessions != n || len(seen) != n || p.Sums().Unwritten() != 0 {
		t.Errorf("%d sessions, %d ids, %d unwritten", sessions, len(seen), p.Sums().Unwritten())
	}
}

// TestSumOfNetwork checks that the source of an aggregate with several addresses is their /64.
func TestSumOfNetwork(t *testing.T) {
	for _, c := range []struct {
		srcs []string
		want string
	}{
		{[]string{"[2001:db8::7]:1", "[2001:db8::7]:2"}, "[2001:db8::7]:0"},
		{[]string{"[2001:db8::7]:1", "[2001:db8::8]:2", "[2001:db8::8]:2"}, "[2001:db8::]:0"},
	} {
		p := play(t, 1<<40)
		p.flood("[2001:db8::1]:25")
		for _, src := range c.srcs {
			p.end(src, noon, track.Counts{}, Close{})
		}
		p.Flush(0, false)
		if len(p.records) != 1 || p.records[0].Src.String() != c.want {
			t.Errorf("%v: %+v", c.srcs, p.records)
		}
	}
}

// TestStepsOfManySessions compares aggregates of random sessions with counts that are made
// independently.
func TestStepsOfManySessions(t *testing.T) {
	random := newRandom(7)
	refused := map[uint64]bool{}
	p, all := play(t, 1<<40), play(t, 0)
	p.onlySums(noon)
	for i := range 10_000 {
		src := fmt.Sprintf("11.0.0.%d:1", random.IntN(30))
		steps := random.steps()
		c := Close{Refused: random.IntN(3) == 0, Found: slices.ContainsFunc(steps, func(s store.Step) bool { return s.Kind == store.KindFinding })}
		counts := track.Counts{Commands: uint32(random.IntN(9)), RcptOK: uint32(random.IntN(9)), AuthFail: uint32(random.IntN(3))}
		at := noon.Add(time.Duration(i) * time.Second)
		p.end(src, at, counts, c, steps...)
		all.end(src, at, counts, c, steps...)
		refused[all.id] = c.Refused
	}
	p.Flush(0, false)
	got, want := map[string]int{}, map[string]int{}
	rejected := func(id uint64) bool { return refused[id] }
	for i := range p.records {
		if err := total.Add(got, &p.records[i], rejected); err != nil {
			t.Error(err)
		}
	}
	for i := range all.records {
		if err := total.Add(want, &all.records[i], rejected); err != nil {
			t.Error(err)
		}
	}
	if !reflect.DeepEqual(got, want) {
		for k, n := range want {
			if got[k] != n {
				t.Errorf("%s: %d, want %d", k, got[k], n)
			}
		}
		for k, n := range got {
			if _, ok := want[k]; !ok {
				t.Errorf("%s: %d, want none", k, n)
			}
		}
	}
}
