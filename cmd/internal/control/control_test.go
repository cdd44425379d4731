package control

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"scanwatch/filter/events"
	"scanwatch/filter/memory"
	"scanwatch/store"
)

var noon = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// verbs are all there are, about w and a memory of their own.
func verbs(t testing.TB, dir string, w *store.Writer) []Verb {
	m := memory.New()
	state := store.OpenState(dir, store.StateOptions{Buckets: memory.Buckets(), Changes: m.Changes, Rewrite: m.Rewrite})
	t.Cleanup(func() { state.Close() })
	list := append(StoreVerbs(w), StatusVerb(func() Status {
		return Status{Program: "test", PID: os.Getpid(), Started: noon, Store: w.Status(), State: state.Status(), Memory: m.Status()}
	}))
	return append(list, MemoryVerbs(m, state, noon.UnixMicro, func() bool { return false }, func(string, memory.Ban) {})...)
}

// TestBan bans and lifts through the socket, and reads a copy of the state.
func TestBan(t *testing.T) {
	dir, _ := serve(t)
	c, err := Dial(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	host, net := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::/32")
	for _, p := range []netip.Prefix{host, net} {
		b, err := c.Ban(p, time.Hour, "it is a test, 100% sure")
		if err != nil || len(b.Bans) != 1 || b.Bans[0].Prefix != p || b.Bans[0].Rule != "it is a test, 100% sure" || !b.Bans[0].Until.Equal(noon.Add(time.Hour)) || b.Note == "" {
			t.Errorf("ban %s: %+v, %v", p, b, err)
		}
	}
	if err := c.State(io.Discard); err != nil { // so that the file is there
		t.Fatal(err)
	}
	read := func() (n int) {
		err := store.ReadState(dir, []string{"bans"}, c.State, func(e store.Entry) error {
			if b, ok := memory.ReadBan(e.Key, e.Value); !ok {
				t.Errorf("entry %x %x", e.Key, e.Value)
			} else if !b.Over(noon) {
				n++
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		return n
	}
	if n := read(); n != 2 {
		t.Errorf("%d bans hold in the copy, want 2", n)
	}
	if b, err := c.Unban(netip.MustParsePrefix("0.0.0.0/0")); err != nil || len(b.Bans) != 1 || b.Bans[0].Prefix != host {
		t.Errorf("unban: %+v, %v", b, err)
	}
	if b, err := c.Unban(netip.MustParsePrefix("2001:db8::/64")); err != nil || len(b.Bans) != 0 || !strings.Contains(b.Note, "2001:db8::/32") {
		t.Errorf("unban within a ban: %+v, %v", b, err)
	}
	if n := read(); n != 1 {
		t.Errorf("%d bans hold, want 1", n)
	}
	if _, err := c.Ban(host, time.Hour, strings.Repeat("x", 300)); err == nil || !strings.Contains(err.Error(), "200 bytes") {
		t.Errorf("a long reason: %v", err)
	}
	if _, err := c.Ban(host, 0, "x"); err == nil {
		t.Error("banned for no time")
	}
}

// serve starts a writer and its server; both end with the test.
func serve(t *testing.T) (dir string, w *store.Writer) {
	t.Helper()
	// Not t.TempDir, whose name may be too long for a socket.
	dir, err := os.MkdirTemp("", "control")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w = store.Open(dir, store.Options{Now: func() time.Time { return noon }})
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Verbs: verbs(t, dir, w)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		<-done
		w.Close()
	})
	return dir, w
}

func add(w *store.Writer, id uint64) {
	end := noon.Add(time.Duration(id) * time.Millisecond)
	w.Add(end, id, store.AppendRecord(nil, &store.Record{ID: id, Start: noon, End: end}, nil))
}

func dial(t *testing.T, dir string) *Client {
	t.Helper()
	c, err := Dial(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestConversation(t *testing.T) {
	dir, w := serve(t)
	for id := range uint64(100) {
		add(w, id)
	}
	c := dial(t, dir)
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	s, err := c.Status()
	if err != nil {
		t.Fatal(err)
	}
	if s.Program != "test" || s.PID != os.Getpid() || !s.Started.Equal(noon) || s.Store.Committed != 100 || s.Store.Segment != "2026-11-01.db" {
		t.Errorf("status %+v", s)
	}
	all, err := c.Segments()
	if err != nil || len(all) != 1 || all[0].Name != "2026-11-01.db" || all[0].Part != 1 || !all[0].Day.Equal(noon.Truncate(24*time.Hour)) {
		t.Errorf("segments %+v, %v", all, err)
	}
	n := 0
	r := &store.Reader{Dir: dir, Snapshot: c.Snapshot, Problem: func(s string, err error) { t.Error(s, err) }}
	if err := r.Each(time.Time{}, time.Time{}, func(*store.Record) error { n++; return nil }); err != nil || n != 100 {
		t.Errorf("%d records through the snapshot, %v; want 100", n, err)
	}
	if err := c.Snapshot(io.Discard, "2026-10-31.db"); !errors.Is(err, store.ErrFinished) {
		t.Errorf("snapshot of a finished segment: %v", err)
	}
	if err := c.Flush(); err != nil {
		t.Errorf("after a failed command: %v", err)
	}
}

// What is on the wire, as the manual has it.
func TestProtocol(t *testing.T) {
	dir, w := serve(t)
	add(w, 1)
	if err := w.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", SocketPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	line := func() string {
		s, err := in.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSuffix(s, "\n")
	}
	if got := line(); got != "scanwatch-control 1" {
		t.Fatalf("greeting %q", got)
	}
	for _, c := range []struct{ send, want string }{
		{"flush", `{}`},
		{"  flush \r", `{}`},
		{"", `{"error":"no command"}`},
		{"sing", `{"error":"unknown command \"sing\""}`},
		{"snapshot", `{"error":"snapshot takes 1 arguments, not 0"}`},
		{"flush now", `{"error":"flush takes 0 arguments, not 1"}`},
		{"snapshot ../../etc/passwd", `{"error":"copy \"../../etc/passwd\": no segment of this name is being written; read the file","finished":true}`},
	} {
		fmt.Fprintf(conn, "%s\n", c.send)
		if got := line(); got != c.want {
			t.Errorf("%q is answered %s, want %s", c.send, got, c.want)
		}
	}
	fmt.Fprintf(conn, "snapshot 2026-11-01.db\n")
	var size int64
	if _, err := fmt.Sscanf(line(), `{"segment":"2026-11-01.db","size":%d}`, &size); err != nil || size < 4096 {
		t.Fatalf("size %d, %v", size, err)
	}
	if n, err := io.CopyN(io.Discard, in, size); err != nil {
		t.Fatalf("%d of %d bytes: %v", n, size, err)
	}
	fmt.Fprintf(conn, "flush\n")
	if got := line(); got != "{}" {
		t.Errorf("after the snapshot: %s", got)
	}
	fmt.Fprintf(conn, "%s\n", strings.Repeat("x", 2*maxLine))
	if s, err := in.ReadString('\n'); err == nil {
		t.Errorf("a line that is too long is answered %q", s)
	}
}

func TestTooManyClients(t *testing.T) {
	dir, _ := serve(t)
	for range maxClients {
		dial(t, dir)
	}
	if c, err := Dial(dir); err == nil {
		c.Close()
		t.Fatalf("client %d is let in", maxClients+1)
	}
}

func TestDialErrors(t *testing.T) {
	for _, c := range []struct {
		name, greet, want string
		running           bool
	}{
		{name: "nobody", want: "filter-scanwatch is not running"},
		{name: "another version", running: true, greet: "scanwatch-control 2\n", want: "update the older of the two"},
		{name: "something else", running: true, greet: "220 mx.example.org ESMTP\x1b\n", want: `"220 mx.example.org ESMTP\x1b"`},
		{name: "closed at once", running: true, want: "no place for another client"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "control")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			if c.running {
				l, err := net.Listen("unix", SocketPath(dir))
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				go func() {
					if conn, err := l.Accept(); err == nil {
						io.WriteString(conn, c.greet)
						conn.Close()
					}
				}()
			}
			client, err := Dial(dir)
			if err == nil {
				client.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want %q in it", err, c.want)
			}
			if errors.Is(err, ErrNotRunning) == c.running {
				t.Errorf("%v: is it running?", err)
			}
		})
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := SocketPath(dir)
	t.Run("a file is left alone", func(t *testing.T) {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(dir); err == nil || !strings.Contains(err.Error(), "is no socket") {
			t.Errorf("%v", err)
		}
		os.Remove(path)
	})
	t.Run("a symbolic link is left alone", func(t *testing.T) {
		target := filepath.Join(dir, "target")
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(dir); err == nil || !strings.Contains(err.Error(), "is no socket") {
			t.Errorf("%v", err)
		}
		os.Remove(path)
	})
	t.Run("a stale socket is replaced", func(t *testing.T) {
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		l.Close()
		l, err = Listen(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
			t.Errorf("mode %v, %v; want 0660", info.Mode(), err)
		}
		if _, err := Listen(dir); !errors.Is(err, ErrRunning) {
			t.Errorf("a second one: %v", err)
		}
	})
}

// A client that does not read must not be waited for: its connection is ended by
// the deadline, which the test moves into the past.
func TestSlowClientIsCut(t *testing.T) {
	server, client := net.Pipe()
	defer client.Close()
	a := &Answer{conn: server, until: time.Now().Add(-time.Second)}
	if _, err := a.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// A bug in a verb is an error to who asked, and logged with its stack.
func TestPanicInAVerb(t *testing.T) {
	var log bytes.Buffer
	s := &Server{Verbs: []Verb{{Name: "boom", Run: func(context.Context, *Answer, []string) error { panic("boom") }}}, Log: slog.New(slog.NewTextHandler(&log, nil))}
	server, client := net.Pipe()
	defer client.Close()
	done := make(chan struct{})
	go func() { defer close(done); s.client(context.Background(), server); server.Close() }()
	in := bufio.NewReader(client)
	if _, err := in.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		io.WriteString(client, "boom\n")
		if line, err := in.ReadString('\n'); err != nil || line != `{"error":"bug: boom"}`+"\n" {
			t.Errorf("%q, %v", line, err)
		}
	}
	client.Close()
	<-done
	if !strings.Contains(log.String(), "control_test.go") {
		t.Errorf("logged %q", log.String())
	}
}

// Run makes the socket again when somebody has removed it, and takes it away at
// the end.
func TestRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s := &Server{Verbs: []Verb{{Name: "ping", Run: func(_ context.Context, a *Answer, _ []string) error { return a.JSON("pong") }}}}
	go func() { defer close(done); s.Run(ctx, dir, time.Millisecond) }()
	reach := func() {
		t.Helper()
		// The test's own time limit ends this if it never works.
		for {
			if c, err := Dial(dir); err == nil {
				c.Close()
				return
			}
		}
	}
	if err := os.Mkdir(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	reach()
	if err := os.Remove(SocketPath(dir)); err != nil {
		t.Fatal(err)
	}
	reach()
	cancel()
	<-done
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestWatch: more watchers than there is room for are refused, one that leaves
// makes room, and everything that was sent after the answer comes.
func TestWatch(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	var fan events.Fan
	server := &Server{Verbs: []Verb{WatchVerb(&fan)}}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() { defer close(served); server.Serve(ctx, l) }()
	defer func() { cancel(); <-served }()
	open := func() *Client {
		conn, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c := &Client{conn: conn, in: bufio.NewReader(conn)}
		if line, err := c.line(); err != nil || line != greeting {
			t.Fatal(line, err)
		}
		return c
	}
	watch := func(c *Client) error { return c.ask(nil, "watch", "-", "192.0.2.0/24") }
	var all []*Client
	for range events.MaxWatchers {
		c := open()
		defer c.Close()
		if err := watch(c); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	fifth := open()
	defer fifth.Close()
	if err := watch(fifth); err == nil || !strings.Contains(err.Error(), events.ErrWatchers.Error()) {
		t.Errorf("one too many: %v", err)
	}
	all[0].Close()
	for watch(fifth) != nil { // until its leaving is noticed; go test's limit ends this
	}
	if _, err := io.WriteString(all[1].conn, "x"); err != nil {
		t.Fatal(err)
	}
	if line, err := all[1].read(); !errors.Is(err, io.EOF) {
		t.Errorf("a watcher that said something gets %q, %v; want the end", line, err)
	}
	for _, src := range []string{"192.0.2.1", "198.51.100.1", "192.0.2.3"} {
		fan.Send(&events.Event{Event: "finding", Session: 1, Src: netip.MustParseAddr(src), Evidence: "scanner"})
	}
	for _, c := range append(all[2:], fifth) {
		for _, want := range []string{"192.0.2.1", "192.0.2.3"} {
			line, err := c.read()
			if e, _, bad := events.Decode([]byte(line)); err != nil || bad != nil || e.Src.String() != want {
				t.Errorf("%q, %v; want an event of %s", line, err, want)
			}
		}
	}
	if err := open().ask(nil, "watch", "-", "nonsense"); err == nil {
		t.Error("watches nonsense")
	}
}

// A watcher has no time limit while it only listens.
func TestWatcherHasNoReadDeadline(t *testing.T) {
	server, client := net.Pipe()
	defer client.Close()
	if err := server.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	var left atomic.Bool
	stop, err := (&Answer{conn: server}).whenGone(func() { left.Store(true) })
	if err != nil {
		t.Fatal(err)
	}
	// A pipe hands over a byte only to who reads, and fails if that has ended.
	if _, err := client.Write([]byte("x")); err != nil {
		t.Errorf("nobody listens for its leaving: %v", err)
	}
	stop()
	if !left.Load() {
		t.Error("its leaving is not noticed")
	}
}

func TestLog(t *testing.T) {
	var out bytes.Buffer
	level := new(slog.LevelVar)
	level.Set(slog.LevelWarn)
	v := LogVerb(level, slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level})))
	for _, c := range []struct {
		word string
		ok   bool
		want slog.Level
	}{
		{"verbose", true, slog.LevelInfo},
		{"nonsense", false, slog.LevelInfo},
		{"brief", true, slog.LevelWarn},
	} {
		server, client := net.Pipe()
		go io.Copy(io.Discard, client)
		err := v.Run(context.Background(), &Answer{conn: server, until: time.Now().Add(copyTimeout)}, []string{c.word})
		server.Close()
		client.Close()
		if (err == nil) != c.ok || level.Level() != c.want || strings.Contains(out.String(), "log="+c.word) != c.ok {
			t.Errorf("%s: %v, level %s, log %q", c.word, err, level.Level(), out.String())
		}
		if c.ok && LevelWord(level.Level()) != c.word {
			t.Errorf("%s is called %s", c.word, LevelWord(level.Level()))
		}
	}
}

func FuzzCommand(f *testing.F) {
	for _, s := range []string{"ban 192.0.2.0/24 60 a+b", "ban x y z", "unban ::/0", "unban 192.0.2.1", "state", "status", "flush", "snapshot 2026-11-01.db", "snapshot  a b", "\x00", ""} {
		f.Add(s)
	}
	dir := f.TempDir()
	w := store.Open(dir, store.Options{})
	f.Cleanup(func() { w.Close() })
	s := &Server{Verbs: verbs(f, dir, w)}
	f.Fuzz(func(t *testing.T, command string) {
		server, client := net.Pipe()
		var out bytes.Buffer
		done := make(chan struct{})
		go func() { defer close(done); io.Copy(&out, client) }()
		a := &Answer{conn: server, until: time.Now().Add(copyTimeout)}
		err := s.run(context.Background(), a, strings.Fields(command))
		server.Close()
		<-done
		client.Close()
		if err == nil && strings.TrimSpace(command) == "state" {
			return // a copy of the file follows
		}
		if (err == nil) != strings.HasSuffix(out.String(), "\n") {
			t.Fatalf("%q: %v, %q", command, err, out.String())
		}
	})
}
