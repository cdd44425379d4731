//go:build linux

package count

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
)

// config is the filter's configuration. It contains rules that ban, an observed rule, and the local
// domains. Clients are rejected at further connections during their ban.
const config = `mode enforce
store %q keep 400d budget %dM
table <local-domains> { example.org }
rule tool phase helo match evidence botnet-helo disconnect "554 5.7.1 No" ban { 1h, 6h }
rule http phase end match evidence talks-http ban { 30m, 30m }
rule watched observe phase rcpt-to match evidence relay-probe reject "550 5.7.1 No"
`

// flushEvery is the number of sessions between flushes. The filter's buffer must have space for all
// of them.
const flushEvery = 10_000

// A run is a filter that reads a world's lines.
type run struct {
	t       *testing.T
	dir     string
	conf    string
	world   *world
	tracker *tracker
	ledger  *ledger
	all     []*session // that have ended
	program *filterproc.Program
	w       *bufio.Writer
	synced  chan struct{} // receives a value for the answer to each mark
	gone    chan struct{} // closed when the filter has closed its output
}

func newRun(t *testing.T, w *world, budget int) *run {
	t.Helper()
	r := &run{t: t, dir: t.TempDir(), world: w, tracker: newTracker(), ledger: newLedger()}
	r.conf = filepath.Join(t.TempDir(), "scanwatch.conf")
	if err := os.WriteFile(r.conf, fmt.Appendf(nil, config, r.dir, budget), 0o644); err != nil {
		t.Fatal(err)
	}
	r.start()
	return r
}

// start starts the filter and waits until it has read its state.
func (r *run) start() {
	r.t.Helper()
	r.program = filterproc.Start(r.t, "-f", r.conf)
	r.world.asked = r.program.Asked
	for _, phase := range []string{"connect", "ehlo", "rcpt-to"} {
		if !r.world.asked[phase] {
			r.t.Fatalf("the filter does not ask at %s: %v", phase, r.world.asked)
		}
	}
	r.w = bufio.NewWriterSize(r.program.Server, 64<<10)
	r.synced, r.gone = make(chan struct{}, 1), make(chan struct{})
	go answers(r.t, r.program.Lines, r.synced, r.gone)
	filterproc.Eventually(r.t, "reading the state", cli.Flushes(r.dir))
}

// mark is the session id of requests that mark a place in the stream.
const mark = "00000000ffffffff"

// answers checks that the filter answers disconnect if, and only if, the token of the request is
// odd.
func answers(t *testing.T, lines *bufio.Reader, synced, gone chan struct{}) {
	defer close(gone)
	wrong := 0
	for {
		l, err := lines.ReadSlice('\n')
		if err != nil {
			return
		}
		f := bytes.SplitN(bytes.TrimSuffix(l, []byte("\n")), []byte("|"), 4)
		if len(f) == 4 && string(f[1]) == mark {
			synced <- struct{}{}
			continue
		}
		odd := len(f) == 4 && strings.IndexByte("13579bdf", f[2][len(f[2])-1]) >= 0
		if len(f) != 4 || string(f[0]) != "filter-result" || odd != bytes.HasPrefix(f[3], []byte("disconnect|")) || !odd && string(f[3]) != "proceed" {
			if wrong++; wrong < 5 {
				t.Errorf("answer %q, want disconnect: %v", l, odd)
			}
		}
	}
}

// write writes a line. It adds the fields that all lines share.
func (r *run) write(l *line) {
	stream := "report"
	if l.ask {
		stream = "filter"
	}
	fmt.Fprintf(r.w, "%s|0.7|%d.%06d|smtp-in|%s\n", stream, l.at/1e6, l.at%1e6, l.text)
}

// play plays all lines of the sessions that start before the given time.
func (r *run) play(until time.Time) {
	r.t.Helper()
	for {
		if len(r.world.open) == 0 && (len(r.world.visits) == 0 || r.world.visits[0].at >= until.UnixMicro()) {
			return
		}
		l, ok := r.world.next()
		if !ok {
			return
		}
		r.write(&l)
		r.ledger.clock(l.at)
		if s := r.tracker.line(&l); s != nil {
			r.ended(s)
			if len(r.all)%flushEvery == 0 {
				r.flush()
			}
		}
	}
}

func (r *run) ended(s *session) {
	s.facts = r.world.facts[s.id]
	delete(r.world.facts, s.id)
	r.all = append(r.all, s)
	r.ledger.add(s)
}

// sync waits until the filter has read all lines.
func (r *run) sync() {
	r.t.Helper()
	fmt.Fprintf(r.w, "filter|0.7|%d.%06d|smtp-in|ehlo|%s|00000000000000ff|x\n", r.tracker.now/1e6, r.tracker.now%1e6, mark)
	if err := r.w.Flush(); err != nil {
		r.t.Fatal(err)
	}
	select {
	case <-r.synced:
	case <-r.gone:
		r.t.Fatalf("the filter has ended\n%s", r.program.Stderr.String())
	}
}

// flush asks the filter to write all records, including this hour's aggregates. It waits until
// finished segments are sealed, because a loaded machine seals more slowly than the sessions
// arrive. The budget then removes segments that are waiting.
func (r *run) flush() {
	r.t.Helper()
	r.sync()
	cli.Run(r.t, r.dir, "flush")
	r.ledger.flush()
	filterproc.Eventually(r.t, "sealing", func() bool { return r.storeStatus().Sealing == "" })
}

// A storeStatus is the part of scanwatch status that describes the store.
type storeStatus struct {
	Sealing   string
	SealError string `json:"seal_error"`
	Dropped   map[string]int
}

func (r *run) storeStatus() storeStatus {
	r.t.Helper()
	var s struct{ Store storeStatus }
	cli.Decode(r.t, cli.Run(r.t, r.dir, "status", "--json"), &s)
	return s.Store
}

// stop ends the filter as smtpd does, so that the filter records the open sessions.
func (r *run) stop() {
	r.t.Helper()
	r.sync()
	// Shut the socket down first, because a pending read would delay closing it.
	if err := syscall.Shutdown(int(r.program.Server.Fd()), syscall.SHUT_WR); err != nil {
		r.t.Fatal(err)
	}
	<-r.gone
	r.clean(r.program.End(0))
	for _, s := range r.tracker.stop() {
		r.ended(s)
	}
	r.ledger.restart()
}

// kill kills the filter after a flush. The open sessions are lost.
func (r *run) kill() {
	r.t.Helper()
	r.flush()
	if err := r.program.Cmd.Process.Kill(); err != nil {
		r.t.Fatal(err)
	}
	<-r.gone
	_ = r.program.Cmd.Wait()
	r.tracker.kill()
	r.ledger.restart()
}

// clean fails if the filter has logged an error.
func (r *run) clean(log string) {
	r.t.Helper()
	for text := range strings.Lines(log) {
		if strings.Contains(text, "level=ERROR") || strings.Contains(text, "panic") {
			r.t.Errorf("logged %s", text)
		}
	}
}

// sealed waits until all parts of the first days are sealed. If the machine's clock is ahead of the
// stream, a new filter may also seal the current day of the stream. That day then continues in
// another part.
func (r *run) sealed(days int) {
	r.t.Helper()
	filterproc.Eventually(r.t, fmt.Sprintf("%d sealed days", days), func() bool {
		s := r.storeStatus()
		for reason, n := range s.Dropped {
			if n > 0 {
				r.t.Fatalf("%d records were dropped: %s", n, reason)
			}
		}
		if s.SealError != "" {
			r.t.Fatal(s.SealError)
		}
		if s.Sealing != "" {
			return false
		}
		for n := range days {
			rows, sealed := r.segments(n)
			if rows > 0 || sealed == 0 {
				return false
			}
		}
		return true
	})
}

// segments returns how many of a day's segments are open, and how many are sealed.
func (r *run) segments(day int) (rows, sealed int) {
	r.t.Helper()
	files, err := filepath.Glob(filepath.Join(r.dir, "sessions", begin.AddDate(0, 0, day).Format(time.DateOnly)+"*.db"))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, ".sealed.db") {
			sealed++
		} else {
			rows++
		}
	}
	return rows, sealed
}
