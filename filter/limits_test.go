package filter_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/smtpd"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/tests/simulate"
)

func event(at int, rest string) string {
	return fmt.Sprintf("report|0.7|1795219327.%06d|smtp-in|%s\n", at, rest)
}

// TestLongSession checks that all commands of a very long session are counted. The session must use
// only a limited amount of memory and disk space.
func TestLongSession(t *testing.T) {
	const n = 20_000
	var in strings.Builder
	in.WriteString(event(0, "link-connect|00000000000000aa|x.example.net|pass|192.0.2.1:1|192.0.2.25:25"))
	in.WriteString(event(1, "protocol-server|00000000000000aa|220 mx.example.org ESMTP OpenSMTPD"))
	for i := range n {
		in.WriteString(event(i, fmt.Sprintf("protocol-client|00000000000000aa|RCPT TO:<user%d@example.org>", i)))
		in.WriteString(event(i, "protocol-server|00000000000000aa|550 Invalid recipient"))
		in.WriteString(event(i, fmt.Sprintf("tx-rcpt|00000000000000aa|31f211ba|permfail|user%d@example.org", i)))
		in.WriteString(event(i, "protocol-client|00000000000000aa|BOGUS "+strings.Repeat("x", 100)))
		in.WriteString(event(i, "protocol-server|00000000000000aa|500 5.5.1 Invalid command: Command unrecognized"))
	}
	in.WriteString(event(999999, "link-disconnect|00000000000000aa"))
	records, log := play(t, []byte(in.String()))
	if len(records) != 1 {
		t.Fatalf("%d records", len(records))
	}
	r := records[0]
	if r.Counts.RcptPermfail != n || r.Counts.Unknown != n || r.Counts.Failed != 2*n {
		t.Errorf("counts: %+v, want %d of each", r.Counts, n)
	}
	kept, size, examples := 0, 0, 0
	if err := r.Steps(func(s *store.Step) bool {
		kept++
		size += len(s.Text) + len(s.Reply)
		if s.Kind == store.KindCommand {
			examples++
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if kept < 1000 || size > 80<<10 {
		t.Errorf("%d steps with %d bytes of text kept", kept, size)
	}
	if examples == 0 || examples > 20 {
		t.Errorf("%d examples of unknown commands kept", examples)
	}
	if r.Omitted == 0 {
		t.Error("the record has no omitted steps")
	}
	if len(log) > 5 {
		t.Errorf("one session logged %d lines: %q", len(log), log[:5])
	}
}

// TestFloodOfFindings checks that a scan from many hosts does not fill the mail log. The number of
// sessions that are not logged must be logged.
func TestFloodOfFindings(t *testing.T) {
	var in strings.Builder
	for i := range 3000 {
		id := fmt.Sprintf("%016x", i)
		in.WriteString(event(i*100, fmt.Sprintf("link-connect|%s|scan-01.shadowserver.org|pass|198.18.%d.%d:1|192.0.2.25:25", id, i/256, i%256)))
		in.WriteString(event(i*100, "link-identify|"+id+"|EHLO|x.scans.example"))
		in.WriteString(event(i*100, "link-disconnect|"+id))
	}
	in.WriteString(strings.ReplaceAll(event(0, "link-connect|00000000000000aa|scan-01.shadowserver.org|pass|192.0.2.1:1|192.0.2.25:25"), "1795219327", "1795219330"))
	records, log := play(t, []byte(in.String()))
	if len(records) != 3001 {
		t.Errorf("%d records", len(records))
	}
	if len(log) < 100 || len(log) > 300 {
		t.Errorf("%d log lines", len(log))
	}
	told := 0
	for _, line := range log {
		n := 1
		if rest, ok := strings.CutPrefix(line, "sessions unlogged="); ok {
			n, _ = strconv.Atoi(rest)
		}
		told += n
	}
	if want := 3001; told != want { // the last session is still open when smtpd stops
		t.Errorf("%d lines report %d sessions, want %d", len(log), told, want)
	}
}

// TestOneSourceAgain checks that identical sessions from a source are logged once in ten minutes.
// After that, the number of repetitions is logged.
func TestOneSourceAgain(t *testing.T) {
	var in strings.Builder
	for i := range 3000 {
		id := fmt.Sprintf("%016x", i)
		in.WriteString(event(i*100, "link-connect|"+id+"|scan-01.shadowserver.org|pass|192.0.2.1:1|192.0.2.25:25"))
		in.WriteString(event(i*100, "link-disconnect|"+id))
	}
	late := strings.NewReplacer("1795219327", "1795219928") // ten minutes later
	in.WriteString(late.Replace(event(0, "link-connect|00000000000000aa|scan-01.shadowserver.org|pass|192.0.2.1:1|192.0.2.25:25")))
	in.WriteString(late.Replace(event(0, "link-disconnect|00000000000000aa")))
	_, log := play(t, []byte(in.String()))
	for i, want := range []string{
		"session decision=proceed src=192.0.2.1 evidence=scanner:high,no-mail:high ",
		"sessions evidence=scanner src=192.0.2.1 more=2999 within=10m",
		"session decision=proceed src=192.0.2.1 evidence=scanner:high,no-mail:high ",
	} {
		if i >= len(log) || !strings.HasPrefix(log[i], want) {
			t.Fatalf("got\n%s\nwant line %d to begin with %q", strings.Join(log, "\n"), i+1, want)
		}
	}
	if len(log) != 3 {
		t.Errorf("more lines than that:\n%s", strings.Join(log, "\n"))
	}
}

// FuzzFold checks that no order or content of events causes a panic or leaves a session open. Each
// request must be answered once, and each session must lead to one readable record. The policy is
// in enforce mode.
func FuzzFold(f *testing.F) {
	for seed := range uint64(4) {
		f.Add(seed, uint16(200))
	}
	words := []string{"", "x", "ok", "permfail", "tempfail", "pass", "fail", "EHLO ylmf-pc", "HELO", "AUTH LOGIN", "YWRtaW4=", "MAIL FROM:<>",
		"RCPT TO:<a@example.org>", "a@example.org", "DATA", ".", "QUIT", "RSET", "220 mx.example.org ESMTP", "250 ok", "250-ok", "334 x", "535 no",
		"354 go", "421 bye", "500 5.5.1 Invalid command: Pipelining not supported", "550 no", "reject", "disconnect", "proceed", "connect",
		"31f211ba", "192.0.2.1:25", "[2001:db8::1]:25", "unix:/var/run/smtpd.sock", "scan-01.shadowserver.org", "\x16\x03\x01", "SSH-2.0-Go", "a|b|c",
		strings.Repeat("z", 3000)}
	text, err := rules.ReadyPolicy("tight")
	if err != nil {
		f.Fatal(err)
	}
	tight := policy(f, string(text)).InMode(rules.Enforce)
	f.Fuzz(func(t *testing.T, seed uint64, n uint16) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		pick := func() string { return words[rnd.IntN(len(words))] }
		var in strings.Builder
		begun, requests := 0, 0
		live := map[int]bool{}
		for i := range min(int(n), 2000) {
			id := rnd.IntN(5)
			name := smtpd.ID(1 + rnd.IntN(int(smtpd.PhaseCommit)))
			word := "report"
			fields := ""
			if name.IsPhase() {
				word, fields = "filter", "|0123456789abcdef"
				requests++
			}
			switch name {
			case smtpd.LinkConnect:
				begun++
				live[id] = true
			case smtpd.LinkDisconnect:
				delete(live, id)
			}
			for range rnd.IntN(5) {
				fields += "|" + pick()
			}
			fmt.Fprintf(&in, "%s|0.7|17952193%02d.%06d|smtp-in|%v|%016x%s\n", word, rnd.IntN(100), i, name, id, fields)
		}
		var records []*store.Record
		table := newBench(func(end time.Time, id uint64, value []byte) {
			r, err := store.Decode(store.AppendKey(nil, end, id), bytes.Clone(value))
			if err != nil {
				t.Error(err)
			}
			records = append(records, &r)
		})
		table.Use(&filter.Settings{Policy: tight})
		var out bytes.Buffer
		if err := smtpd.Serve(strings.NewReader(in.String()), &out, table, smtpd.Options{Log: func(s string) { t.Error(s) }}); err != nil {
			t.Fatal(err)
		}
		table.Stop()
		if n := bytes.Count(out.Bytes(), []byte{'\n'}); n != requests {
			t.Errorf("%d answers to %d requests", n, requests)
		}
		if sessions := table.Open(); len(records) != begun || sessions != 0 {
			t.Errorf("%d records of %d sessions, %d are still open", len(records), begun, sessions)
		}
		render(t, records)
	})
}

func newBench(record func(time.Time, uint64, []byte)) *simulate.Filter {
	return simulate.NewFilter(filter.Options{Record: record, Log: func([]byte) {}, Lists: func() *lookup.Lists { return lists }})
}

// BenchmarkFold measures how long it takes to read, process and encode a session.
func BenchmarkFold(b *testing.B) {
	for _, name := range []string{"ehlo-delivery", "harvest-50-unknown", "concurrent-200"} {
		b.Run(name, func(b *testing.B) {
			raw, err := os.ReadFile(filepath.Join(streams, "7.9", name+".in"))
			if err != nil {
				b.Fatal(err)
			}
			// Keep only the reports that the filter registers.
			var in []byte
			for line := range bytes.Lines(raw) {
				for _, id := range smtpd.Reports {
					if bytes.Contains(line, []byte("|smtp-in|"+id.String()+"|")) && bytes.HasPrefix(line, []byte("report")) {
						in = append(in, line...)
					}
				}
			}
			size, records := 0, 0
			table := newBench(func(_ time.Time, _ uint64, v []byte) { size += len(v); records++ })
			b.ReportAllocs()
			b.ResetTimer()
			if err := smtpd.Serve(&endless{in: in, n: b.N}, io.Discard, table, smtpd.Options{}); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(records), "ns/session")
			b.ReportMetric(float64(size)/float64(records), "B/record")
		})
	}
}

// An endless is a reader that repeats in n times without copying it.
type endless struct {
	in    []byte
	at, n int
}

func (e *endless) Read(b []byte) (int, error) {
	if e.n == 0 {
		return 0, io.EOF
	}
	n := copy(b, e.in[e.at:])
	if e.at += n; e.at == len(e.in) {
		e.at = 0
		e.n--
	}
	return n, nil
}
