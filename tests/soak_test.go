//go:build linux

package tests

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

	"scanwatch/tests/smtpd"
)

var (
	soakSessions = flag.Int("soak.sessions", 60_000, "sessions of TestSoak")
	soakSources  = flag.Int("soak.sources", 25_000, "strangers among the sources of TestSoak")
	soakBudget   = flag.Int64("soak.budget", 16<<20, "budget of TestSoak in bytes")
	soakDays     = flag.Float64("soak.days", 1.5, "simulated days that TestSoak takes")
)

// soakFlush is how many sessions come at full speed: so many records wait in
// memory at most, where there is room for more.
const soakFlush = 10_000

// A guest is what a session of the soak does. All of it follows from its number.
type guest struct {
	id    int
	src   string
	port  int
	helo  string
	mail  bool // delivers a message to one recipient
	login bool
	rcpts int  // recipients who do not exist
	http  bool // no SMTP
	auth  bool // AUTH where it is not offered
}

func guestOf(i, strangers int) guest {
	n := uint64(i)*0x9e3779b97f4a7c15 + 1
	n ^= n >> 29
	pick := func(of int) int { return int(n >> 8 % uint64(of)) }
	stranger := func() string {
		k := 20<<24 + pick(strangers)*7
		return fmt.Sprintf("%d.%d.%d.%d", k>>24, k>>16&255, k>>8&255, k&255)
	}
	g := guest{id: i + 1, port: 25}
	switch kind := i % 20; {
	case kind < 4:
		k := pick(5000)
		g.src, g.helo, g.mail = fmt.Sprintf("198.18.%d.%d", k>>8, k&255), fmt.Sprintf("mx%d.example.net", k), true
	case kind == 4:
		g.src, g.helo, g.mail, g.login, g.port = fmt.Sprintf("198.19.0.%d", pick(200)), "laptop.example.com", true, true, 587
	case kind < 9:
		g.src, g.helo, g.rcpts = stranger(), "h.example.com", 3
	case kind < 15:
		g.src, g.helo = stranger(), "scan.example.com"
	case kind < 17:
		g.src, g.helo, g.auth = stranger(), "ylmf-pc", true
	case kind == 17:
		g.src, g.http = stranger(), true
	default:
		g.src, g.helo = fmt.Sprintf("203.0.113.%d", pick(20)), "again.example.com"
	}
	return g
}

// figures is the independent count.
type figures struct{ sessions, mails, refused, logins int }

// stream writes what smtpd would say of g, who comes at a time in microseconds, and
// returns when the session ended and how many requests there were.
func (g *guest) stream(w *bufio.Writer, at int64, asked map[string]bool) (end int64, requests int) {
	report := func(format string, args ...any) {
		at += 20_000
		fmt.Fprintf(w, "report|0.7|%d.%06d|smtp-in|", at/1e6, at%1e6)
		fmt.Fprintf(w, format, args...)
		w.WriteByte('\n')
	}
	ask := func(phase, arg string) {
		if asked[phase] {
			requests++
			fmt.Fprintf(w, "filter|0.7|%d.%06d|smtp-in|%s|%016x|%016x|%s\n", at/1e6, at%1e6, phase, g.id, requests, arg)
		}
	}
	client := func(line string) { report("protocol-client|%016x|%s", g.id, line) }
	server := func(line string) { report("protocol-server|%016x|%s", g.id, line) }
	rdns, fcrdns := "<unknown>", "fail"
	if g.mail && !g.login {
		rdns, fcrdns = g.helo, "pass"
	}
	report("link-connect|%016x|%s|%s|%s:%d|192.0.2.25:%d", g.id, rdns, fcrdns, g.src, 1024+g.id%60000, g.port)
	ask("connect", rdns+"|"+g.src)
	server("220 mx.example.org ESMTP OpenSMTPD")
	if g.http {
		client("GET / HTTP/1.1")
		server("500 5.5.1 Invalid command: Command unrecognized")
		client("Host: mx.example.org")
		server("500 5.5.1 Invalid command: Command unrecognized")
		report("link-disconnect|%016x", g.id)
		return at, requests
	}
	client("EHLO " + g.helo)
	ask("ehlo", g.helo)
	report("link-identify|%016x|EHLO|%s", g.id, g.helo)
	server("250 mx.example.org Hello")
	if g.login {
		report("link-auth|%016x|pass|user%d", g.id, g.id%50)
	}
	if g.auth {
		client("AUTH LOGIN")
		server("503 5.5.1 Invalid command: Command not supported")
	}
	if g.mail || g.rcpts > 0 {
		client("MAIL FROM:<a@example.net>")
		ask("mail-from", "a@example.net")
		report("tx-begin|%016x|%08x", g.id, g.id)
		report("tx-mail|%016x|%08x|ok|a@example.net", g.id, g.id)
		server("250 2.0.0 Ok")
	}
	for i := range g.rcpts {
		rcpt := fmt.Sprintf("u%d.%d@example.org", g.id, i)
		client("RCPT TO:<" + rcpt + ">")
		ask("rcpt-to", rcpt)
		report("tx-rcpt|%016x|%08x|permfail|%s", g.id, g.id, rcpt)
		server("550 Invalid recipient: <" + rcpt + ">")
	}
	if g.mail {
		client("RCPT TO:<joe@example.org>")
		ask("rcpt-to", "joe@example.org")
		report("tx-rcpt|%016x|%08x|ok|joe@example.org", g.id, g.id)
		server("250 2.1.5 Destination address valid: Recipient ok")
		client("DATA")
		ask("data", "")
		report("tx-data|%016x|%08x|ok", g.id, g.id)
		server("354 Enter mail, end with \".\" on a line by itself")
		ask("commit", "")
		report("tx-commit|%016x|%08x|1234", g.id, g.id)
		server("250 2.0.0 Message accepted for delivery")
	}
	client("QUIT")
	ask("quit", "")
	server("221 2.0.0 Bye")
	report("link-disconnect|%016x", g.id)
	return at, requests
}

// TestSoak lets very many sessions from very many sources through the program,
// at full speed, and looks at the disk and at the memory meanwhile. What the
// commands tell afterwards is compared with a count of its own.
func TestSoak(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(t.TempDir(), "scanwatch.conf")
	policy := command(t, dir, "policy", "--print", "tight")
	config := fmt.Sprintf("store %q keep 400d budget %dK\n%s", dir, *soakBudget>>10, policy)
	if err := os.WriteFile(conf, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	p := begin(t, "-f", conf)
	for _, phase := range []string{"connect", "ehlo", "mail-from", "rcpt-to"} {
		if !p.asked[phase] {
			t.Fatalf("the program does not ask at %s: %v", phase, p.asked)
		}
	}
	w := bufio.NewWriterSize(p.smtpd, 64<<10)
	const last = "|00000000ffffffff|00000000000000ff|" // a request of no session, when all were sent
	answers := make(chan int)
	go func() {
		for n := 0; ; n++ {
			line, err := p.lines.ReadSlice('\n')
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
	go watch(t, p.cmd.Process.Pid, dir, stop, watched)

	start := time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC)
	step := int64(*soakDays * 24 * 3600e6 / float64(*soakSessions))
	days := map[string]*figures{}
	var total figures
	requests := 0
	began := time.Now()
	for i := range *soakSessions {
		g := guestOf(i, *soakSources)
		end, asked := g.stream(w, start.UnixMicro()+int64(i)*step, p.asked)
		requests += asked
		if i%soakFlush == 0 { // no machine is that fast for days
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			command(t, dir, "flush")
		}
		day := time.UnixMicro(end).UTC().Format(time.DateOnly)
		if days[day] == nil {
			days[day] = new(figures)
		}
		for _, f := range []*figures{days[day], &total} {
			f.sessions++
			f.refused += g.rcpts
			if g.mail {
				f.mails++
			}
			if g.login {
				f.logins++
			}
		}
	}
	fmt.Fprintf(w, "filter|0.7|%d.000000|smtp-in|ehlo%sx\n", start.Add(time.Duration(*soakSessions)*time.Duration(step)*time.Microsecond).Unix(), last)
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
	decode(t, command(t, dir, "status", "--json"), &status)
	command(t, dir, "flush")
	running := tellings(t, dir, start)
	close(stop)
	most := <-watched
	log := p.end(0)
	cpu := p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
	stopped := tellings(t, dir, start)
	t.Logf("%d sessions from %d strangers in %v, %v of CPU: at most %d bytes on disk of %d, %d kB of anonymous memory; %d samples; %d records, dropped %v",
		*soakSessions, *soakSources, took.Round(time.Second), cpu.Round(time.Millisecond), most.disk, *soakBudget, most.memory, most.samples, status.Store.Added, status.Store.Dropped)
	if most.disk > *soakBudget || most.disk < *soakBudget/2 {
		t.Errorf("the budget of %d was used up to %d", *soakBudget, most.disk)
	}
	// What the manual says: tables, lists, and two buffers of the store.
	if most.memory > 160<<10 {
		t.Errorf("%d kB of anonymous memory", most.memory)
	}
	if strings.Contains(log, "panic") || strings.Contains(log, "level=ERROR") {
		t.Errorf("logged %s", log)
	}

	for name, told := range map[string]*telling{"while it runs": running, "when it has stopped": stopped} {
		// Days.
		seen := 0
		for _, d := range told.stats.Counted {
			want := days[d.Day.Format(time.DateOnly)]
			if want == nil {
				t.Errorf("%s: nothing came on %v", name, d.Day)
				continue
			}
			seen++
			if got := (figures{d.Figures["sessions"], d.Figures["mails"], d.Figures["rcpt-permfail"], d.Figures["authenticated"]}); got != *want {
				t.Errorf("%s: %v was counted as %+v, want %+v", name, d.Day, got, *want)
			}
		}
		if seen != len(days) {
			t.Errorf("%s: %d days of %d", name, seen, len(days))
		}
		// The report accounts for every session and message.
		r := &told.report
		if got := r.Remote.Sessions + r.Authenticated.Sessions + r.Local.Sessions + r.NotKept.Sessions; got != total.sessions {
			t.Errorf("%s: the report speaks of %d sessions, want %d", name, got, total.sessions)
		}
		if got := r.Remote.Mails + r.Authenticated.Mails + r.NotKept.Mails; got != total.mails {
			t.Errorf("%s: the report speaks of %d messages, want %d", name, got, total.mails)
		}
	}
	checkKept(t, dir, start, step, status.Store.Dropped)
}

// telling is what the commands tell.
type telling struct {
	stats struct {
		Counted []struct {
			Day     time.Time
			Figures map[string]int
		}
	}
	report struct {
		Remote, Authenticated, Local struct{ Sessions, Mails int }
		NotKept                      struct{ Sessions, Mails int } `json:"not_kept"`
	}
}

func tellings(t *testing.T, dir string, since time.Time) *telling {
	t.Helper()
	told := new(telling)
	decode(t, command(t, dir, "stats", "--json"), &told.stats)
	decode(t, command(t, dir, "report", "--json", "--since", since.Format(time.RFC3339)), &told.report)
	return told
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in %.200s", err, text)
	}
}

// checkKept compares each record with the guest whose session it is, and finds
// all messages since the oldest record.
func checkKept(t *testing.T, dir string, start time.Time, step int64, dropped map[string]int) {
	t.Helper()
	cmd := exec.Command(smtpd.Bin("scanwatch"), "-s", dir, "dump")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	whole, sums, mails, wrong := 0, 0, 0, 0
	oldest := *soakSessions
	lines := json.NewDecoder(out)
	for {
		var r struct {
			record
			Sessions int
		}
		if err := lines.Decode(&r); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if r.Sessions > 0 {
			sums++
			continue
		}
		whole++
		id, _ := strconv.ParseInt(r.Session, 16, 64)
		g := guestOf(int(id)-1, *soakSources)
		want := map[string]int{"rcpt_permfail": g.rcpts}
		if g.mail {
			want["mails"], want["rcpt_ok"] = 1, 1
			mails++
		}
		if g.login {
			want["auth_pass"] = 1
		}
		oldest = min(oldest, g.id-1)
		same := r.Src == g.src && (g.http || len(r.Helo) == 1 && r.Helo[0].Name == g.helo)
		for k, n := range want {
			same = same && r.Counts[k] == n
		}
		if !same {
			if wrong++; wrong < 5 {
				t.Errorf("session %d is recorded as %+v, but was %+v", id, r.record, g)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, d := range dropped {
		n += d
	}
	came := 0
	for i := oldest; i < *soakSessions; i++ {
		if g := guestOf(i, *soakSources); g.mail {
			came++
		}
	}
	t.Logf("kept: %d sessions as they were and %d sums, since session %d; %d messages of %d; %d records dropped", whole, sums, oldest, mails, came, n)
	if mails > came || mails < came-n || whole == 0 || sums == 0 {
		t.Errorf("%d messages are kept of %d, %d sessions and %d sums", mails, came, whole, sums)
	}
}

type worst struct {
	disk    int64
	memory  int // kB
	samples int
}

// watch looks every second, and at the end, at what the program takes.
func watch(t *testing.T, pid int, dir string, stop chan struct{}, done chan worst) {
	var w worst
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for last := false; ; {
		var size int64
		_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				if info, err := d.Info(); err == nil { // else it was removed meanwhile
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
