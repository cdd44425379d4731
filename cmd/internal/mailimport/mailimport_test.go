package mailimport

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/statedir"
	"scanwatch/filter/maillog"
	"scanwatch/filter/memory"
	"scanwatch/store"
)

// now is the current time in tests.
var now = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func directory(t *testing.T) *statedir.Dir {
	return &statedir.Dir{Path: t.TempDir(), Now: func() time.Time { return now }}
}

// options returns the options for importing text.
func options(d *statedir.Dir, text string) Options {
	return Options{Dir: d, Program: "test", Files: []string{"-"}, Stdin: strings.NewReader(text), Zone: time.UTC, Warn: func(string) {}}
}

// mail returns the log lines for a message.
func mail(day, server, addr string, id int, from, to string) string {
	head := fmt.Sprintf("%sT10:00:00Z %s smtpd[1]: %016x ", day, server, id)
	return head + "smtp connected address=" + addr + " host=mail.example.net\n" +
		head + fmt.Sprintf("smtp envelope evpid=%08x00000001 from=<%s> to=<%s>\n", id, from, to) +
		head + fmt.Sprintf("smtp envelope evpid=%08x00000002 from=<%s> to=<%s>\n", id, from, "bob@example.org")
}

// run imports text and returns the result.
func run(t *testing.T, o Options) Result {
	t.Helper()
	r, err := Import(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// peers returns the number of messages from each known-good host.
func peers(t *testing.T, d *statedir.Dir) map[string]int {
	t.Helper()
	list := map[string]int{}
	err := d.State([]string{"peers"}, func(e store.Entry) error {
		if p, ok := memory.NewReader(now).Peer(e.Key, e.Value); ok {
			list[p.Prefix.Addr().String()] = p.Messages
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestImport checks which mail improves a host's standing. Importing the same lines again
// must add nothing.
func TestImport(t *testing.T) {
	d := directory(t)
	log := mail("2025-10-01", "mx", "198.51.100.9", 9, "joe@example.net", "alice@example.org") + // too old
		mail("2026-11-20", "mx", "198.51.100.1", 1, "joe@example.net", "alice@example.org") +
		mail("2026-11-20", "mx", "198.51.100.1", 2, "joe@example.net", "alice@example.org") +
		mail("2026-11-21", "mx", "198.51.100.1", 3, "joe@EXAMPLE.net", "postmaster@example.org") + // only the mail to bob counts
		mail("2026-11-21", "mx", "[2001:db8::1]", 4, "six@example.net", "alice@example.org") +
		mail("2026-11-21", "mx", "198.51.100.2", 5, "", "alice@example.org") +
		mail("2026-11-21", "mx", "192.168.1.1", 6, "a@example.net", "alice@example.org") +
		mail("2026-11-21", "mx", "100.64.0.1", 7, "a@example.net", "alice@example.org") +
		mail("2026-11-21", "mx", "203.0.113.1", 8, "a@example.net", "alice@example.org") // own address
	o := options(d, log)
	o.Own = []netip.Addr{netip.MustParseAddr("203.0.113.1")}
	o.DryRun = true
	dry := run(t, o)
	if files, _ := os.ReadDir(d.Path); len(files) != 0 || dry.Delivered != 4 || dry.Hosts != 2 {
		t.Errorf("a dry run made %v; %+v", files, dry)
	}
	o = options(d, log)
	o.Own = []netip.Addr{netip.MustParseAddr("203.0.113.1")}
	r := run(t, o)
	var ignored []string
	for _, i := range r.Ignored {
		ignored = append(ignored, fmt.Sprint(i.Number, " ", i.Reason))
	}
	if got, want := strings.Join(ignored, "; "), "2 without a sender; 1 to a role account such as postmaster; 6 from this host or a private network; 2 older than 400 days"; got != want {
		t.Errorf("ignored %s", got)
	}
	want := "map[198.51.100.1:3 2001:db8::1:1]"
	if got := fmt.Sprint(peers(t, d)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	again := run(t, options(d, log))
	if got := fmt.Sprint(peers(t, d)); got != want || again.Delivered != 0 {
		t.Errorf("after the second import: %s, %+v", got, again)
	}
	for _, n := range []int{4, 5} {
		harvest := mail("2026-11-24", fmt.Sprint("mx", n), "198.51.100.4", 20+n, "x@example.net", "alice@example.org")
		first, rest, _ := strings.Cut(harvest, "\n")
		head, _, _ := strings.Cut(first, "connected")
		line := head + "failed-command command=\"RCPT TO:<x@example.org>\" result=\"550 Invalid recipient: <x@example.org>\"\n"
		o := options(d, first+"\n"+strings.Repeat(line, n)+rest)
		o.DryRun = true
		if r := run(t, o); r.Delivered != uint64(5-n) {
			t.Errorf("%d rejected recipients: %+v", n, r)
		}
	}
	// Another import must count new lines, including lines from another server.
	more := log + mail("2026-11-22", "mx", "198.51.100.1", 10, "joe@example.net", "alice@example.org") +
		mail("2026-11-20", "mx2", "198.51.100.3", 11, "joe@example.net", "alice@example.org")
	if r := run(t, options(d, more)); r.Delivered != 2 {
		t.Errorf("%+v", r)
	}
	if got := fmt.Sprint(peers(t, d)); got != "map[198.51.100.1:4 198.51.100.3:1 2001:db8::1:1]" {
		t.Error(got)
	}
	o = options(d, log)
	o.Again = true
	run(t, o)
	if got := peers(t, d)["198.51.100.1"]; got != 7 {
		t.Errorf("%d messages after --again", got)
	}
	var b bytes.Buffer
	r.Text(&b, time.UTC)
	if !strings.Contains(b.String(), "delivered  4 from 2 hosts\n") {
		t.Error(b.String())
	}
}

// TestRecorded checks that mail that the filter has already counted is ignored.
func TestRecorded(t *testing.T) {
	d := directory(t)
	w := store.Open(d.Path, store.Options{Now: d.Now, Program: "test"})
	first := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	w.Add(first.Add(time.Minute), 1, store.AppendRecord(nil, &store.Record{Start: first, End: first.Add(time.Minute)}, nil))
	if err := errors.Join(w.Flush(t.Context()), w.Close()); err != nil {
		t.Fatal(err)
	}
	r := run(t, options(d, mail("2026-11-20", "mx", "198.51.100.1", 1, "joe@example.net", "a@example.org")+mail("2026-11-21", "mx", "198.51.100.2", 2, "joe@example.net", "a@example.org")))
	if r.Delivered != 1 || !r.Recorded.Equal(first) || len(r.Ignored) != 1 || r.Ignored[0] != (Ignored{"recorded by the filter", 2}) {
		t.Errorf("%+v", r)
	}
}

// TestInUse checks that a state file that another process uses is left unchanged.
func TestInUse(t *testing.T) {
	d := directory(t)
	file := store.OpenState(d.Path, store.StateOptions{})
	defer file.Close()
	if err := file.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := Import(options(d, mail("2026-11-20", "mx", "198.51.100.1", 1, "joe@example.net", "a@example.org")))
	if !errors.Is(err, store.ErrInUse) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(d.Path, PeriodsFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a failed import left periods: %v", err)
	}
}

// TestMailboxes checks that the filter knows the mailboxes for which mail was accepted, even if the
// mail does not improve the standing of its host.
func TestMailboxes(t *testing.T) {
	d := directory(t)
	run(t, options(d, mail("2026-11-20", "mx", "198.51.100.1", 1, "joe@example.net", "Alice+x@example.org")+
		mail("2026-11-21", "mx", "198.51.100.2", 2, "", "carol@example.org")+
		mail("2025-10-01", "mx", "198.51.100.9", 3, "joe@example.net", "old@example.org")+
		mail("2026-11-21", "mx", "192.168.1.1", 4, "a@example.net", "remote@example.com")))
	state, file, err := d.OpenState("test")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var got []string
	for _, rcpt := range []string{"alice@example.org", "bob@example.org", "carol@example.org", "dave@example.org", "old@example.org", "remote@example.com"} {
		if state.Recipients.Known([]byte(rcpt), now.UnixMicro()) {
			got = append(got, rcpt)
		}
	}
	if want := "[alice@example.org bob@example.org carol@example.org]"; fmt.Sprint(got) != want {
		t.Errorf("known mailboxes %s, want %s", got, want)
	}
}

// TestFacts checks that the facts of a large log are merged by day, host and sender. The facts must
// reach the sink in chronological order.
func TestFacts(t *testing.T) {
	var log strings.Builder
	for i := range 1000 {
		log.WriteString(mail(fmt.Sprintf("2026-11-%02d", 1+i/100), "mx", fmt.Sprintf("198.51.100.%d", i%2), i+1, fmt.Sprintf("a@d%d.example", i%4), "a@example.org"))
	}
	log.WriteString("2026-11-20T10:00:00Z mx smtpd[1]: f0000000000000ff smtp connected address=local host=mx\n" +
		"2026-11-20T10:00:00Z mx smtpd[1]: f0000000000000ff smtp envelope evpid=f000000000000001 from=<alice@example.org> to=<x@Friend.example>\n" +
		"2026-11-20T10:00:05Z mx smtpd[1]: f0000000000000fe mta delivery evpid=f000000000000001 from=<alice@example.org> to=<x@Friend.example> rcpt=<-> source=\"a\" relay=\"b\" delay=5s result=\"Ok\" stat=\"250\"\n")
	d := directory(t)
	m := importer{o: options(d, log.String()), now: now, facts: map[factKey]control.Fact{}, hosts: map[netip.Addr]struct{}{}, domains: map[string]struct{}{}, users: map[string]struct{}{}}
	var got []control.Fact
	m.sink = func(f []control.Fact) error { got = append(got, f...); return nil }
	logs, err := maillog.Open(m.o.Files, m.o.Stdin, now, time.UTC)
	if err := errors.Join(err, m.readAll(logs)); err != nil {
		t.Fatal(err)
	}
	if len(got) != 10*4+3 || got[42].Domain != "friend.example" || got[0].Messages != 25 {
		t.Errorf("%d facts: %+v", len(got), got)
	}
	for i := range got[1:] {
		if got[i].At > got[i+1].At {
			t.Errorf("fact %d is newer than the next one", i)
		}
	}
}

// TestPeriods checks that periods are merged and stored, and that their number is
// limited.
func TestPeriods(t *testing.T) {
	dir := t.TempDir()
	p := periods{}
	p.add("mx", 10, 20)
	p.add("mx", 30, 40)
	p.add("mx", 15, 25)
	if err := p.save(dir, fileHosts{{0, "a b\n%"}: {1, 2}, {1, "mx"}: {40, 50}, {2, ""}: {5, 5}}); err != nil {
		t.Fatal(err)
	}
	got, err := readPeriods(dir)
	if err != nil || fmt.Sprint(got) != "map[:[{5 5}] a b\n%:[{1 2}] mx:[{10 25} {30 50}]]" {
		t.Errorf("%v, %v", got, err)
	}
	if !got.covers("mx", 10) || !got.covers("mx", 25) || got.covers("mx", 26) || got.covers("mx2", 10) {
		t.Error(got)
	}
	if err := os.WriteFile(filepath.Join(dir, PeriodsFile), []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readPeriods(dir); err == nil || !strings.Contains(err.Error(), "--again") {
		t.Errorf("%v", err)
	}
	file := filepath.Join(dir, PeriodsFile)
	if err := errors.Join(os.Remove(file), syscall.Mkfifo(file, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := readPeriods(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a FIFO: %v", err)
	}
}
