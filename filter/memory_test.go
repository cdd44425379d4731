package filter_test

import (
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/smtpd"
)

// BenchmarkOpenSessions measures the memory used by a session with an open transaction.
func BenchmarkOpenSessions(b *testing.B) {
	const n = 20_000
	var in strings.Builder
	for i := range n {
		id := fmt.Sprintf("%016x", i)
		for _, line := range []string{
			"link-connect|" + id + "|mail.example.net|pass|192.0.2.1:1|192.0.2.25:25",
			"protocol-server|" + id + "|220 mx.example.org ESMTP OpenSMTPD",
			"protocol-client|" + id + "|EHLO mail.example.net",
			"link-identify|" + id + "|EHLO|mail.example.net",
			"protocol-server|" + id + "|250 ok",
			"protocol-client|" + id + "|MAIL FROM:<bob@example.net>",
			"protocol-server|" + id + "|250 ok",
			"tx-mail|" + id + "|00000001|ok|bob@example.net",
			"protocol-client|" + id + "|RCPT TO:<alice@example.org>",
			"protocol-server|" + id + "|250 ok",
			"tx-rcpt|" + id + "|00000001|ok|alice@example.org",
		} {
			in.WriteString(event(1, line))
		}
	}
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for b.Loop() {
		stream := strings.NewReader(in.String())
		table := newBench(func(time.Time, uint64, []byte) {})
		before := heap()
		if err := smtpd.Serve(stream, io.Discard, table, smtpd.Options{}); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(heap()-before)/float64(table.Open()), "B/session")
		runtime.KeepAlive(stream)
	}
}
