package report

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"scanwatch/store"
)

// BenchmarkReportMillion reads a day of a million sessions from 50,000 addresses
// and counts them, as "scanwatch report" does.
func BenchmarkReportMillion(b *testing.B) {
	dir := b.TempDir()
	w := store.Open(dir, store.Options{Budget: 4 << 30, Now: func() time.Time { return noon }})
	const million = 1_000_000
	var value, steps []byte
	for i := range million {
		src := netip.AddrFrom4([4]byte{10, 0, byte(i % 50_000 >> 8), byte(i % 50_000)})
		r := store.Record{ID: uint64(i), Start: noon, End: noon.Add(time.Duration(i) * 40 * time.Millisecond), Src: netip.AddrPortFrom(src, 4711),
			Dst: netip.MustParseAddrPort("198.51.100.25:25"), RDNS: []byte("host.example.net"), Ending: store.EndingQuit, Counts: store.Counts{Commands: 5, RcptPermfail: 1}}
		steps = steps[:0]
		for _, s := range []store.Step{
			helo(fmt.Sprintf("host-%d.example.net", i%1000)), mail("someone@example.net"),
			rcpt(fmt.Sprintf("user%d@example.org", i), store.ResultPermfail, 550, "Invalid recipient"),
			{Kind: store.KindFinding, Text: []byte("unknown-recipient")}, {Kind: store.KindQuit},
		} {
			steps = store.AppendStep(steps, &s, time.Millisecond)
		}
		value = store.AppendRecord(value[:0], &r, steps)
		w.Add(r.End, r.ID, value)
		if i%10_000 == 0 {
			if err := w.Flush(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		c := NewCollector()
		r := &store.Reader{Dir: dir, Problem: func(s string, err error) { b.Error(s, err) }}
		if err := r.Each(time.Time{}, time.Time{}, c.Add); err != nil {
			b.Fatal(err)
		}
		if s := c.Summary(noon, noon, 10, nil); s.Remote.Sessions != million || s.Addresses != 50_000 {
			b.Fatalf("%+v", s.Remote)
		}
	}
	b.ReportMetric(float64(b.N)*million/b.Elapsed().Seconds(), "records/s")
}
