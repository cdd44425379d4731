package report

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/smtp"
	"scanwatch/store"
	"scanwatch/store/history"
)

const million = 1_000_000

// generated returns record i of a million records from 50,000 addresses.
func generated(i int) (r store.Record, steps []byte) {
	src := netip.AddrFrom4([4]byte{10, 0, byte(i % 50_000 >> 8), byte(i % 50_000)})
	r = store.Record{ID: uint64(i), Start: noon, End: noon.Add(time.Duration(i) * 40 * time.Millisecond), Src: netip.AddrPortFrom(src, 4711),
		Dst: netip.MustParseAddrPort("198.51.100.25:25"), RDNS: []byte("host.example.net"), Ending: smtp.EndingQuit, Counts: store.Counts{Commands: 5, RcptPermfail: 1}}
	for _, s := range []store.Step{
		helo(fmt.Sprintf("host-%d.example.net", i%1000)), mail("someone@example.net"),
		rcpt(fmt.Sprintf("user%d@example.org", i), smtp.ResultPermfail, 550, "Invalid recipient"),
		{Kind: store.KindFinding, Text: []byte("unknown-recipient")}, {Kind: store.KindQuit},
	} {
		steps = store.AppendStep(steps, &s, time.Millisecond)
	}
	return r, steps
}

// BenchmarkReportMillion measures reading and counting a day with a million sessions,
// as "scanwatch report" does.
func BenchmarkReportMillion(b *testing.B) {
	dir := b.TempDir()
	w := store.Open(dir, store.Options{Budget: 4 << 30, Now: func() time.Time { return noon }})
	var value []byte
	for i := range million {
		r, steps := generated(i)
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
	benchmark(b, &store.Reader{Dir: dir, Problem: func(s string, err error) { b.Error(s, err) }})
}

type records []store.Record

func (all records) Each(_, _ time.Time, _ store.Kinds, f func(*store.Record) error) error {
	for i := range all {
		if err := f(&all[i]); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkCollect measures counting records that are already decoded.
func BenchmarkCollect(b *testing.B) {
	all := make(records, 0, million)
	for i := range million {
		r, steps := generated(i)
		d, err := store.Decode(store.AppendKey(nil, r.End, r.ID), store.AppendRecord(nil, &r, steps))
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, d)
	}
	benchmark(b, all)
}

// benchmark counts a million records.
func benchmark(b *testing.B, r history.Records) {
	for _, c := range []struct {
		name string
		new  func() *Collector
	}{{"totals", NewTotals}, {"full", func() *Collector { return NewCollector(memory.Number) }}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c := c.new()
				if err := history.Walk(r, time.Time{}, time.Time{}, c.Visitor()); err != nil {
					b.Fatal(err)
				}
				if s := c.Summary(noon, noon, 10, nil); s.Remote.Sessions != million {
					b.Fatalf("%+v", s.Remote)
				}
			}
			b.ReportMetric(float64(b.N)*million/b.Elapsed().Seconds(), "records/s")
		})
	}
}

// BenchmarkMemory reports the memory used for three million records, with as many
// sources, names and rejections as the limits allow.
func BenchmarkMemory(b *testing.B) {
	var steps []byte
	for b.Loop() {
		c := NewCollector(memory.Number)
		for i := range 3 * million {
			src := netip.AddrFrom4([4]byte{byte(i >> 20), byte(i >> 12), byte(i >> 4), byte(i << 4)})
			r := store.Record{ID: uint64(i), End: noon.Add(time.Duration(i) * time.Second), Src: netip.AddrPortFrom(src, 4711), RDNS: fmt.Appendf(nil, "host-%d.customers.example.net", i), FCrDNS: smtp.FCrDNSPass}
			steps = steps[:0]
			for _, s := range []store.Step{helo(fmt.Sprintf("host-%d.example.net", i)), mail(fmt.Sprintf("someone-%d@example.net", i)),
				rejected("rule", true), rcpt(fmt.Sprintf("user%d@example-%d.org", i, i%60_000), smtp.ResultPermfail, 550, "")} {
				steps = store.AppendStep(steps, &s, time.Millisecond)
			}
			d, err := store.Decode(store.AppendKey(nil, r.End, r.ID), store.AppendRecord(nil, &r, steps))
			if err == nil {
				err = c.Add(&d)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		s := c.Summary(noon, noon, 10, nil)
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		b.ReportMetric(float64(m.HeapAlloc)/1e6, "MB")
		b.ReportMetric(float64(s.Addresses), "addresses")
		runtime.KeepAlive(c)
	}
}
