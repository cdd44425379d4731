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
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"scanwatch/filter/events"
	"scanwatch/filter/memory"
	"scanwatch/internal/text"
	"scanwatch/store"
)

var noon = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// commands returns all commands, which operate on w and a new memory.
func commands(t testing.TB, dir string, w *store.Writer) []Command {
	m := memory.New()
	state := store.OpenState(dir, store.StateOptions{Buckets: memory.Buckets(), Changes: m.Changes, Rewrite: m.Rewrite})
	t.Cleanup(func() { state.Close() })
	list := append(StoreCommands(w), StatusCommand(func() Status {
		return Status{Program: "test", PID: os.Getpid(), Started: text.At(noon), Store: w.Status(), State: state.Status(), Memory: m.Status()}
	}))
	return append(list, MemoryCommands(m, state, noon.UnixMicro, func() bool { return false }, func(memory.Ban) {})...)
}

// TestBan checks banning, unbanning and copying the state over the socket.
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
	if b, err := c.Ban(host, 30*time.Minute, "shorter"); err != nil || !strings.Contains(b.Note, "replaces the ban by it is a test, 100% sure until 2026-11-01 13:00 UTC") {
		t.Errorf("a shorter ban: %+v, %v", b, err)
	}
	if err := c.State(io.Discard); err != nil { // State waits for the file
		t.Fatal(err)
	}
	read := func() (n int) {
		err := store.ReadState(dir, []string{"bans"}, c.State, func(e store.Entry) error {
			if b, ok := memory.NewReader(noon).Ban(e.Key, e.Value); !ok {
				t.Errorf("entry %x %x", e.Key, e.Value)
			} else if !b.Expired(noon) {
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
		t.Errorf("%d active bans in the copy, want 2", n)
	}
	if b, err := c.Unban(netip.MustParsePrefix("0.0.0.0/0"), true); err != nil || len(b.Bans) != 1 || b.Bans[0].Prefix != host {
		t.Errorf("unban: %+v, %v", b, err)
	}
	if b, err := c.Unban(netip.MustParsePrefix("2001:db8::/64"), false); err != nil || len(b.Bans) != 0 || !strings.Contains(b.Note, "2001:db8::/32") {
		t.Errorf("unban within a ban: %+v, %v", b, err)
	}
	if n := read(); n != 1 {
		t.Errorf("%d active bans, want 1", n)
	}
	if _, err := c.Ban(host, time.Hour, strings.Repeat("x", 300)); err == nil || !strings.Contains(err.Error(), "200 bytes") {
		t.Errorf("a long reason: %v", err)
	}
	if _, err := c.Ban(host, 0, "x"); err == nil {
		t.Error("ban of 0 seconds accepted")
	}
}

// TestLearn checks that facts are sent in batches, and that a batch with an invalid fact
// does not change the state.
func TestLearn(t *testing.T) {
	dir, _ := serve(t)
	c, err := Dial(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	at := noon.Add(-48 * time.Hour)
	facts := []Fact{{At: at.UnixMicro(), Domain: strings.Repeat("d", maxName)}}
	for i := range 300 {
		a := netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})
		if i >= 256 {
			a = netip.MustParseAddr(fmt.Sprintf("2001:db8:0:%x::1", i))
		}
		facts = append(facts, Fact{At: at.UnixMicro(), Addr: a, Messages: 2, Sender: "a b;,%\n" + strings.Repeat("é", 100)})
	}
	facts = append(facts, Fact{At: at.UnixMicro(), Mailbox: "a b;,%\n@example.org"})
	if err := errors.Join(c.Learn(nil), c.Learn(facts)); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "x;example.org", "0;example.org", "1;example.org", "9999999999999999;example.org", "9223372036854775807;example.org", "-9223372036854775808;x",
		"1793448000000000", "1793448000000000;", "1793448000000000;a;b", "1793448000000000;;", "1793448000000000;;" + strings.Repeat("m", MaxMailbox+1), "1793448000000000;192.0.2.1;0;x", "1793448000000000;192.0.2.1;1;x,", "1793448000000000;fe80::1%25a;1;x", "1793448000000000;%zz"} {
		if err := c.ask(nil, "learn", "1793448000000000;203.0.113.1;1;x,"+bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	if err := c.State(io.Discard); err != nil { // State waits for the file
		t.Fatal(err)
	}
	n := 0
	err = store.ReadState(dir, []string{"peers"}, c.State, func(e store.Entry) error {
		p, ok := memory.NewReader(noon).Peer(e.Key, e.Value)
		if ok {
			n++
		}
		if ok && (p.Messages != 2 || !p.LastMail.Equal(at.Truncate(24*time.Hour)) || p.Prefix.Addr() == netip.MustParseAddr("203.0.113.1")) {
			t.Errorf("%+v", p)
		}
		return nil
	})
	if err != nil || n != 300 {
		t.Errorf("%d hosts, %v", n, err)
	}
}

// TestApply checks the standing that facts give to hosts. A host that delivered mail becomes known
// by its address. A host with a proven name becomes known if users sent mail to its domain.
func TestApply(t *testing.T) {
	m := memory.New()
	m.Load(func(func(store.Entry) bool) {}, noon.UnixMicro())
	at, host := noon.Add(-48*time.Hour).UnixMicro(), netip.MustParseAddr("198.51.100.1")
	Apply(m, &Fact{At: at, Addr: host, Messages: 3, Sender: "mail.example.net"})
	Apply(m, &Fact{At: at, Domain: "lists.example.com"})
	Apply(m, &Fact{At: at, Mailbox: "Bob@example.org"})
	if !m.Recipients.Known([]byte("bob@example.org"), at) {
		t.Error("the mailbox is unknown")
	}
	for _, c := range []struct {
		client memory.Client
		by     string
	}{
		{memory.Client{Addr: host}, "host"},
		{memory.Client{Addr: netip.MustParseAddr("198.51.100.2")}, ""},
		{memory.Client{Addr: netip.MustParseAddr("198.51.100.2"), Domain: "example.net"}, ""}, // the name is not proven
		{memory.Client{Addr: netip.MustParseAddr("198.51.100.2"), Domain: "example.com"}, "correspondent"},
	} {
		if st := m.Peers.Standing(&c.client, noon.UnixMicro()); st.By != c.by {
			t.Errorf("%+v: %+v, want %q", c.client, st, c.by)
		}
	}
}

// serve starts a Writer with a server, and stops them after the test.
func serve(t *testing.T) (dir string, w *store.Writer) {
	t.Helper()
	// t.TempDir may return a path that is too long for a socket.
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
	s := &Server{Commands: commands(t, dir, w)}
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
	if err := r.Each(time.Time{}, time.Time{}, store.AllKinds, func(*store.Record) error { n++; return nil }); err != nil || n != 100 {
		t.Errorf("%d records through the snapshot, %v; want 100", n, err)
	}
	if err := c.Snapshot(io.Discard, "2026-10-31.db"); !errors.Is(err, store.ErrFinished) {
		t.Errorf("snapshot of a finished segment: %v", err)
	}
	if err := c.Flush(); err != nil {
		t.Errorf("after a failed command: %v", err)
	}
}

// TestProtocol checks that the protocol matches the manual.
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
		t.Fatalf("client %d is accepted", maxClients+1)
	}
}

func TestDialErrors(t *testing.T) {
	for _, c := range []struct {
		name, greet, want string
		running           bool
		frontEnd          string // content of the file, written by a process that has ended
	}{
		{name: "imported records", want: "the front end is not running; none has used this directory"},
		{name: "smtpd", frontEnd: "smtpd 12\n", want: "filter-scanwatch is not running; is smtpd up"},
		{name: "milter", frontEnd: "milter 12\n", want: "milter-scanwatch is not running; start its service, see milter-scanwatch(8)"},
		{name: "log", frontEnd: "postfix 12\n", want: "scanwatch follow postfix is not running; start its service, see scanwatch-servers(7)"},
		{name: "hostile name", frontEnd: "\x1b[2J 12\n", want: "none has used this directory"},
		{name: "another version", running: true, greet: "scanwatch-control 2\n", want: "update the older of the two"},
		{name: "something else", running: true, greet: "220 mx.example.org ESMTP\x1b\n", want: `"220 mx.example.org ESMTP\x1b"`},
		{name: "closed immediately", running: true, want: "too many clients"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "control")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			if err := os.WriteFile(filepath.Join(dir, frontEndFile), []byte(c.frontEnd), 0o600); err != nil {
				t.Fatal(err)
			}
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
				t.Errorf("%v: ErrNotRunning is wrong", err)
			}
		})
	}
}

// TestRestart checks that errors name the program that the operator must restart.
func TestRestart(t *testing.T) {
	for program, want := range map[string]string{"": "restart smtpd after a change", "milter-scanwatch": "restart milter-scanwatch after a change"} {
		dir := t.TempDir()
		l, err := Listen(dir)
		if err != nil {
			t.Fatal(err)
		}
		s := Server{Program: program, Commands: []Command{{"flush", 0, func(context.Context, *Answer, []string) error {
			return errors.New("no; restart smtpd after a change")
		}}}}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go s.Serve(ctx, l)
		c, err := Dial(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Flush(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", program, err)
		}
	}
}

// TestClaim checks that a state directory has only one front end at a time, and that
// the front end's name remains after it ends.
func TestClaim(t *testing.T) {
	dir := t.TempDir()
	if f := LatestFrontEnd(dir); f != (FrontEnd{}) {
		t.Errorf("unused directory: %+v", f)
	}
	for _, name := range []string{"postfix", "smtpd"} { // the second name is shorter
		lock, err := Claim(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Claim(dir, "milter"); !errors.Is(err, ErrHeld) {
			t.Errorf("a second front end: %v", err)
		}
		if f := Holder(dir); f != (FrontEnd{name, os.Getpid()}) {
			t.Errorf("%s: %+v", name, f)
		}
		lock.Close()
		if f := LatestFrontEnd(dir); f.Name != name {
			t.Errorf("after %s: %+v", name, f)
		}
	}
	if err := os.Remove(filepath.Join(dir, frontEndFile)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, frontEndFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Claim(dir, "milter"); err == nil || errors.Is(err, ErrHeld) {
		t.Errorf("a link: %v", err)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := SocketPath(dir)
	t.Run("a file remains", func(t *testing.T) {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(dir); err == nil || !strings.Contains(err.Error(), "is not a socket") {
			t.Errorf("%v", err)
		}
		os.Remove(path)
	})
	t.Run("a symbolic link remains", func(t *testing.T) {
		target := filepath.Join(dir, "target")
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(dir); err == nil || !strings.Contains(err.Error(), "is not a socket") {
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

// TestSlowClientIsCut checks that a write fails at the deadline if the client does not read. The
// test sets a deadline in the past.
func TestSlowClientIsCut(t *testing.T) {
	server, client := net.Pipe()
	defer client.Close()
	a := &Answer{conn: server, until: time.Now().Add(-time.Second)}
	if _, err := a.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// TestPanicInACommand checks that the client receives an error if a command panics, and that the
// stack trace is logged.
func TestPanicInACommand(t *testing.T) {
	var log bytes.Buffer
	s := &Server{Commands: []Command{{Name: "boom", Run: func(context.Context, *Answer, []string) error { panic("boom") }}}, Log: slog.New(slog.NewTextHandler(&log, nil))}
	server, client := net.Pipe()
	defer client.Close()
	done := make(chan struct{})
	go func() { defer close(done); s.client(context.Background(), server, nil); server.Close() }()
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

// TestRun checks that Run recreates the socket if another process removes it, and that
// Run itself removes it at the end.
func TestRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s := &Server{Commands: []Command{{Name: "ping", Run: func(_ context.Context, a *Answer, _ []string) error { return a.JSON("pong") }}}}
	go func() { defer close(done); s.Run(ctx, dir, time.Millisecond) }()
	reach := func() {
		t.Helper()
		// On failure, the time limit of go test ends the loop.
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
		t.Errorf("files left: %v, %v", left, err)
	}
}

// TestWatch checks that watchers over the limit are rejected, and that a watcher no longer counts
// after it has disconnected. A watcher must receive every event that follows its answer.
func TestWatch(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	var fan events.Fan
	server := &Server{Commands: []Command{WatchCommand(&fan)}}
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
	for range maxWatchers {
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
	for watch(fifth) != nil { // until the server notices the disconnect; the time limit of go test ends the loop
	}
	if _, err := io.WriteString(all[1].conn, "x"); err != nil {
		t.Fatal(err)
	}
	if line, err := all[1].read(); !errors.Is(err, io.EOF) {
		t.Errorf("a watcher that sent a byte receives %q, %v; want EOF", line, err)
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
	if err := open().ask(nil, "watch", "-", "invalid"); err == nil {
		t.Error("invalid prefix accepted")
	}
}

// TestWatcherHasNoReadDeadline checks that a silent watcher is not disconnected.
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
	// Write fails if the server no longer reads from the watcher.
	if _, err := client.Write([]byte("x")); err != nil {
		t.Errorf("the server does not read: %v", err)
	}
	stop()
	if !left.Load() {
		t.Error("the disconnect is not noticed")
	}
}

func TestLog(t *testing.T) {
	var out bytes.Buffer
	level := new(slog.LevelVar)
	level.Set(slog.LevelWarn)
	v := LogCommand(level, slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level})))
	for _, c := range []struct {
		word string
		ok   bool
		want slog.Level
	}{
		{"verbose", true, slog.LevelInfo},
		{"invalid", false, slog.LevelInfo},
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
			t.Errorf("level %s has the word %s", c.word, LevelWord(level.Level()))
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
	s := &Server{Commands: commands(f, dir, w)}
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
			return // the copy of the file follows
		}
		if (err == nil) != strings.HasSuffix(out.String(), "\n") {
			t.Fatalf("%q: %v, %q", command, err, out.String())
		}
	})
}

// A failingState is a State whose file cannot be written.
type failingState struct{ State }

func (failingState) Flush(context.Context) error { return syscall.ENOSPC }

// TestUnsavedBan checks that "ban" and "unban" answer with a note if the state cannot be
// written.
func TestUnsavedBan(t *testing.T) {
	m := memory.New()
	list := MemoryCommands(m, failingState{}, noon.UnixMicro, func() bool { return true }, func(memory.Ban) {})
	for _, args := range [][]string{{"ban", "192.0.2.1", "3600", "x"}, {"unban", "192.0.2.1", Exact}} {
		i := slices.IndexFunc(list, func(c Command) bool { return c.Name == args[0] })
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			if err := list[i].Run(t.Context(), &Answer{conn: server, until: time.Now().Add(time.Minute)}, args[1:]); err != nil {
				t.Error(err)
			}
		}()
		b, _ := io.ReadAll(client)
		if !bytes.Contains(b, []byte("lost when the filter stops")) || !bytes.Contains(b, []byte(syscall.ENOSPC.Error())) {
			t.Errorf("%v: %s", args, b)
		}
	}
}
