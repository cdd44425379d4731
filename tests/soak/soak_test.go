//go:build linux

package soak

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/smtpd"
)

var (
	soakSessions = flag.Int("soak.sessions", 60_000, "sessions of TestSoak")
	soakSources  = flag.Int("soak.sources", 25_000, "unknown sources in TestSoak")
	soakBudget   = flag.Int64("soak.budget", 16<<20, "budget of TestSoak in bytes")
	soakDays     = flag.Float64("soak.days", 1.5, "simulated days in TestSoak")
)

// soakFlush is the number of sessions between flushes. At most soakFlush records are in the
// filter's memory.
const soakFlush = 10_000

// figures holds the test's own counts.
type figures struct{ sessions, mails, refused, logins int }

func (f *figures) add(n figures) {
	f.sessions += n.sessions
	f.mails += n.mails
	f.refused += n.refused
	f.logins += n.logins
}

// A size is the size of a load.
type size struct {
	sessions, sources int
	budget            int64
	days              float64
}

// TestSoak runs a very large number of sessions from many sources at full speed, and checks disk
// usage, memory usage and all counts.
func TestSoak(t *testing.T) { soak(t, size{*soakSessions, *soakSources, *soakBudget, *soakDays}) }

func soak(t *testing.T, load size) {
	dir := t.TempDir()
	conf := filepath.Join(t.TempDir(), "scanwatch.conf")
	policy := cli.Run(t, dir, "policy", "--print", "tight")
	config := fmt.Sprintf("store %q keep 400d budget %dK\n%s", dir, load.budget>>10, policy)
	if err := os.WriteFile(conf, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	p := filterproc.Start(t, "-f", conf)
	filterproc.Eventually(t, "the control socket", cli.Listens(dir))
	for _, phase := range []string{"connect", "ehlo", "mail-from", "rcpt-to"} {
		if !p.Asked[phase] {
			t.Fatalf("the program does not ask at %s: %v", phase, p.Asked)
		}
	}
	w := bufio.NewWriterSize(p.Server, 64<<10)
	const last = "|00000000ffffffff|00000000000000ff|" // a request without a session, which follows all other lines
	answers := make(chan int)
	go func() {
		for n := 0; ; n++ {
			line, err := p.Lines.ReadSlice('\n')
			if err != nil || bytes.Contains(line, []byte(last)) {
				answers <- n
				return
			}
			if !bytes.HasSuffix(line, []byte("|proceed\n")) {
				t.Errorf("in observe mode it answered %q", line)
			}
		}
	}()

	stop := make(chan struct{})
	watched := make(chan worst)
	go watch(t, p.Cmd.Process.Pid, dir, stop, watched)

	start := time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC)
	step := int64(load.days * 24 * 3600e6 / float64(load.sessions))
	days := map[string]*figures{}
	var total figures
	requests := 0
	began := time.Now()
	for i := range load.sessions {
		g := filterproc.GuestOf(i, load.sources)
		end, asked := g.Stream(w, start.UnixMicro()+int64(i)*step, p.Asked)
		requests += asked
		if i%soakFlush == 0 { // so that the buffer does not overflow
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			cli.Run(t, dir, "flush")
		}
		day := time.UnixMicro(end).UTC().Format(time.DateOnly)
		if days[day] == nil {
			days[day] = new(figures)
		}
		n := figures{sessions: 1, refused: g.Recipients}
		if g.Mail {
			n.mails = 1
		}
		if g.Login {
			n.logins = 1
		}
		days[day].add(n)
		total.add(n)
	}
	fmt.Fprintf(w, "filter|0.7|%d.000000|smtp-in|ehlo%sx\n", start.Add(time.Duration(load.sessions)*time.Duration(step)*time.Microsecond).Unix(), last)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if n := <-answers; n != requests {
		t.Errorf("%d answers to %d requests", n, requests)
	}
	took := time.Since(began)
	var status struct {
		Store struct {
			Dropped map[string]int
			Added   int
		}
	}
	cli.Decode(t, cli.Run(t, dir, "status", "--json"), &status)
	cli.Run(t, dir, "flush")
	running := tellings(t, dir, start)
	close(stop)
	most := <-watched
	log := p.End(0)
	cpu := p.Cmd.ProcessState.UserTime() + p.Cmd.ProcessState.SystemTime()
	stopped := tellings(t, dir, start)
	t.Logf("%d sessions from %d unknown sources in %v, %v of CPU: at most %d bytes on disk of %d, %d kB of anonymous memory; %d samples; %d records, dropped %v",
		load.sessions, load.sources, took.Round(time.Second), cpu.Round(time.Millisecond), most.disk, load.budget, most.memory, most.samples, status.Store.Added, status.Store.Dropped)
	if most.disk > load.budget || most.disk == 0 {
		t.Errorf("the budget of %d was used up to %d", load.budget, most.disk)
	}
	// The manual's memory limit covers tables, lists and two buffers of the store.
	if most.memory > 200<<10 {
		t.Errorf("%d kB of anonymous memory", most.memory)
	}
	if strings.Contains(log, "panic") || strings.Contains(log, "level=ERROR") {
		t.Errorf("logged %s", log)
	}

	for name, told := range map[string]*telling{"while it runs": running, "when it has stopped": stopped} {
		// Compare the counts by day.
		seen := 0
		for _, d := range told.stats.Counted {
			want := days[d.Day.Format(time.DateOnly)]
			if want == nil {
				t.Errorf("%s: no sessions on %v", name, d.Day)
				continue
			}
			seen++
			if got := (figures{d.Counters["sessions"], d.Counters["mails"], d.Counters["rcpt-permfail"], d.Counters["authenticated"]}); got != *want {
				t.Errorf("%s: %v was counted as %+v, want %+v", name, d.Day, got, *want)
			}
		}
		if seen != len(days) {
			t.Errorf("%s: %d days of %d", name, seen, len(days))
		}
		// The report must account for every session and message.
		r := &told.report
		if r.Unwritten > 0 && told == stopped {
			t.Errorf("%d sessions in aggregates were not written at the end", r.Unwritten)
		}
		if got := r.Remote.Sessions + r.Authenticated.Sessions + r.Local.Sessions + r.NotKept.Sessions + r.Unwritten; got != total.sessions {
			t.Errorf("%s: the report speaks of %d sessions, want %d", name, got, total.sessions)
		}
		if got := r.Remote.Messages + r.Authenticated.Messages + r.NotKept.Messages; got != total.mails {
			t.Errorf("%s: the report speaks of %d messages, want %d", name, got, total.mails)
		}
	}
	checkKept(t, dir, load, days, status.Store.Dropped)
}

// telling holds the output of stats and report.
type telling struct {
	stats struct {
		Counted []struct {
			Day      time.Time
			Counters map[string]int
		}
	}
	report struct {
		Remote, Authenticated, Local struct{ Sessions, Messages int }
		NotKept                      struct{ Sessions, Messages int } `json:"not_kept"`
		Unwritten                    int
	}
}

func tellings(t *testing.T, dir string, since time.Time) *telling {
	t.Helper()
	told := new(telling)
	cli.Decode(t, cli.Run(t, dir, "stats", "--json"), &told.stats)
	cli.Decode(t, cli.Run(t, dir, "report", "--json", "--since", since.Format(time.RFC3339)), &told.report)
	return told
}

// checkKept compares each record of a single session with that session. If all segments of a day
// exist, records and aggregates together must contain all sessions of the day.
func checkKept(t *testing.T, dir string, load size, days map[string]*figures, dropped map[string]int) {
	t.Helper()
	for reason, n := range dropped {
		if n > 0 {
			t.Errorf("%d records were dropped: %s", n, reason)
		}
	}
	cmd := exec.Command(smtpd.Bin("scanwatch"), "-s", dir, "dump")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	whole, sums, summed, common, wrong := 0, 0, 0, 0, 0
	kept := map[string]*figures{}
	lines := json.NewDecoder(out)
	for {
		var r struct {
			cli.Record
			End time.Time
		}
		if err := lines.Decode(&r); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		day := r.End.UTC().Format(time.DateOnly)
		if kept[day] == nil {
			kept[day] = new(figures)
		}
		kept[day].add(figures{max(r.Sum, 1), r.Counts["messages"], r.Counts["rcpt_permfail"], r.Counts["auth_pass"]})
		if r.Sum > 0 {
			sums++
			summed += r.Sum
			if r.Src == "" {
				common++
			}
			continue
		}
		whole++
		if g, same := same(&r.Record, load.sources); !same {
			if wrong++; wrong < 5 {
				t.Errorf("recorded %+v, but it was %+v", r.Record, g)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	complete := 0
	for day, want := range days {
		first := filepath.Join(dir, "sessions", day) // the name of the first part contains no number
		if !exists(first+".db") && !exists(first+".sealed.db") {
			continue // removed because the budget was exceeded
		}
		complete++
		if got := kept[day]; got == nil || *got != *want {
			t.Errorf("the records of %s are %+v, want %+v", day, got, want)
		}
	}
	t.Logf("kept: %d whole sessions and %d in %d aggregates, %d of these common; %d complete days of %d", whole, summed, sums, common, complete, len(days))
	if whole == 0 || sums == 0 || common == 0 || complete == 0 {
		t.Error("nothing was kept")
	}
}

func exists(name string) bool { _, err := os.Stat(name); return err == nil }

// same reports whether a record of a single session agrees with that session.
func same(r *cli.Record, sources int) (filterproc.Guest, bool) {
	id, _ := strconv.ParseInt(r.Session, 16, 64)
	g := filterproc.GuestOf(int(id)-1, sources)
	want := map[string]int{"rcpt_permfail": g.Recipients}
	if g.Mail {
		want["messages"], want["rcpt_ok"] = 1, 1
	}
	if g.Login {
		want["auth_pass"] = 1
	}
	ok := r.Src == g.Src && (g.HTTP || len(r.Helo) == 1 && r.Helo[0].Name == g.Helo)
	for k, n := range want {
		ok = ok && r.Counts[k] == n
	}
	return g, ok
}

type worst struct {
	disk    int64
	memory  int // kB
	samples int
}

// watch measures disk and memory ten times a second, and once at the end.
func watch(t *testing.T, pid int, dir string, stop chan struct{}, done chan worst) {
	var w worst
	tick := time.NewTicker(time.Second / 10)
	defer tick.Stop()
	for last := false; ; {
		var size int64
		_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				if info, err := d.Info(); err == nil { // on error, the file was removed
					size += info.Size()
				}
			}
			return nil
		})
		w.disk = max(w.disk, size)
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err == nil {
			_, rest, _ := strings.Cut(string(status), "RssAnon:")
			kB, _ := strconv.Atoi(strings.Fields(rest + " 0")[0])
			w.memory = max(w.memory, kB)
		}
		w.samples++
		if last {
			done <- w
			return
		}
		select {
		case <-tick.C:
		case <-stop:
			last = true
		}
	}
}
