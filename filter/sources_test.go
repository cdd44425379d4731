package filter_test

import (
	"flag"
	"fmt"
	"io"
	"runtime"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/smtpd"
	"scanwatch/rules"
	"scanwatch/tests/simulate"
)

var sources = flag.Int("sources", 400_000, "different sources for TestManySources")

// strangers is a stream of short sessions. Each session has a new source and requests a recipient
// that does not exist.
type strangers struct {
	n, most int
	rest    []byte
	buf     []byte
}

func (e *strangers) Read(p []byte) (int, error) {
	if len(e.rest) == 0 {
		if e.n >= e.most {
			return 0, io.EOF
		}
		e.buf = e.buf[:0]
		for range 50 {
			i := e.n
			e.n++
			at := float64(1_795_219_327) + float64(i)/100
			line := func(format string, args ...any) {
				e.buf = fmt.Appendf(e.buf, "report|0.7|%.6f|smtp-in|"+format+"\n", append([]any{at}, args...)...)
			}
			line("link-connect|%016x||fail|%d.%d.%d.%d:1|192.0.2.25:25", i+1, 1+i>>24, i>>16&255, i>>8&255, i&255)
			line("protocol-server|%016x|220 mx.example.org", i+1)
			line("protocol-client|%016x|EHLO h%d.example.net", i+1, i)
			line("link-identify|%016x|EHLO|h%d.example.net", i+1, i)
			line("protocol-server|%016x|250 ok", i+1)
			line("protocol-client|%016x|MAIL FROM:<a@example.net>", i+1)
			line("protocol-server|%016x|250 ok", i+1)
			line("tx-mail|%016x|31f211ba|ok|a@example.net", i+1)
			line("protocol-client|%016x|RCPT TO:<u%d@example.org>", i+1, i)
			line("protocol-server|%016x|550 no", i+1)
			line("tx-rcpt|%016x|31f211ba|permfail|u%d@example.org", i+1, i)
			line("link-disconnect|%016x", i+1)
		}
		e.rest = e.buf
	}
	n := copy(p, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}

// TestManySources checks that the size of the state is limited even if every session has a new
// source. With -sources 5000000, the test measures the number in the manual.
func TestManySources(t *testing.T) {
	text, err := rules.ReadyPolicy("tight")
	if err != nil {
		t.Fatal(err)
	}
	p := policy(t, string(text))
	mem := memory.New()
	mem.Domains.Learn([]byte("example.org"), 1_795_219_327e6)
	table := simulate.NewFilter(filter.Options{
		Record: func(time.Time, uint64, []byte) {},
		Log:    func([]byte) {},
		Lists:  func() *lookup.Lists { return lists },
		Memory: mem,
	})
	table.Use(&filter.Settings{Policy: p})
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	play := func(from, to int) time.Duration {
		begin := time.Now()
		o := smtpd.Options{Reports: smtpd.Reports}
		if err := smtpd.Serve(&strangers{n: from, most: to}, io.Discard, table, o); err != nil {
			t.Fatal(err)
		}
		for len(mem.Changes(100_000)) > 0 { // the writer of state.db does the same
		}
		return time.Since(begin) / time.Duration(to-from)
	}
	play(0, 1000)
	before := heap()
	half := *sources / 2
	first := play(1000, half)
	second := play(half, *sources)
	after := heap()
	runtime.KeepAlive(table)
	t.Logf("%d sources: %d KiB more than for 1000; a session took %v in the first half, %v in the second", *sources, (int64(after)-int64(before))>>10, first, second)
	if after > before+48<<20 {
		t.Errorf("%d KiB more than 1000 sources take", (after-before)>>10)
	}
	for _, s := range mem.Status() {
		t.Logf("%-13s %6d of %6d, %d forgotten", s.Table, s.Rows, s.Limit, s.Evicted)
		if s.Rows > s.Limit {
			t.Errorf("%s: %d rows, the limit is %d", s.Table, s.Rows, s.Limit)
		}
	}
}
