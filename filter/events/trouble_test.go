package events

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// journal is a log that can be read while it is written.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

// wantOnce checks that one trouble of s, which it closes, was logged, and its end.
func (j *journal) wantOnce(t *testing.T, s *Stream, hint string) {
	t.Helper()
	s.Close(nil)
	text := j.String()
	if strings.Count(text, "cannot be written") != 1 || strings.Count(text, "written again") != 1 || !strings.Contains(text, hint) {
		t.Errorf("want a trouble with %q and its end, once each; the log:\n%s", hint, text)
	}
}

// socketDir is short: the name of a socket must fit in about 100 bytes.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ev")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// tally is what readers have seen.
type tally struct {
	events  uint64
	leftOut LeftOut
}

func (c *tally) add(t *testing.T, text []byte) {
	t.Helper()
	l := decode(t, text)
	if l.Event != "left-out" {
		c.events++
		return
	}
	r := LeftOut{Rate: l.Reasons["rate"], Full: l.Reasons["full"], Gone: l.Reasons["gone"]}
	if r.total() != l.Count || l.Count == 0 {
		t.Errorf("reasons do not add up: %s", text)
	}
	c.leftOut = c.leftOut.plus(r)
}

func (c *tally) total() uint64 { return c.events + c.leftOut.total() }

// readUntil reads lines until n events are accounted for.
func (c *tally) readUntil(t *testing.T, r io.Reader, n uint64) {
	t.Helper()
	in := bufio.NewReader(r)
	for c.total() < n {
		text, err := in.ReadBytes('\n')
		if err != nil {
			t.Fatalf("after %+v of %d: %q, %v", *c, n, text, err)
		}
		c.add(t, text)
	}
}

// A connection that the stream has made, with an end to reading should the test fail.
func accept(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	if err := l.(*net.UnixListener).SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func makeFIFO(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// joinReader opens a FIFO and waits for the writer, before which there would be
// nothing but its end.
func joinReader(t *testing.T, path string) *os.File {
	t.Helper()
	r, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return r
}

// openReader opens a FIFO without waiting for the writer.
func openReader(t *testing.T, path string) *os.File {
	t.Helper()
	r, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return r
}

// fillUp sends until the queue is full and the reader is known to take nothing.
func fillUp(t *testing.T, s *Stream) (n uint64) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for st := s.Status(); st.LeftOut.Full == 0 || st.Error == ""; st = s.Status() {
		if time.Now().After(deadline) {
			t.Fatalf("never full: %+v", st)
		}
		s.Send(numbered(int(n)))
		n++
	}
	return n
}

// tireless is a stream without a limit of the rate, and a small queue.
func tireless(log *journal) Options {
	return Options{Rate: 1 << 30, Burst: 1 << 30, Queue: 8 << 10, Log: log.logger()}
}

func TestReaderOfFIFOStalls(t *testing.T) {
	path := makeFIFO(t)
	r := openReader(t, path)
	var log journal
	s := open(path, tireless(&log), quick)
	defer s.Close(nil)
	n := fillUp(t, s)
	if st := s.Status(); st.Error != errStalled.Error() || st.Since.IsZero() {
		t.Errorf("while it stalls: %+v", st)
	}
	var seen tally
	seen.readUntil(t, r, n)
	until(t, s, "all well", func(st Status) bool { return st.Error == "" && st.Sent == seen.events && st.LeftOut == seen.leftOut })
	if seen.leftOut.Full == 0 || seen.leftOut.total() != seen.leftOut.Full {
		t.Errorf("left out: %+v, want only because the queue was full", seen.leftOut)
	}
	log.wantOnce(t, s, "see why the program that reads it hangs")
}

func TestNobodyReadsFIFO(t *testing.T) {
	path := makeFIFO(t)
	var log journal
	s := open(path, tireless(&log), quick)
	defer s.Close(nil)
	for i := range 5 {
		s.Send(numbered(i))
	}
	until(t, s, "given up", func(st Status) bool { return st.LeftOut.Gone == 5 && st.Error != "" })
	r := joinReader(t, path)
	var seen tally
	seen.readUntil(t, r, 5)
	if want := (tally{leftOut: LeftOut{Gone: 5}}); seen != want {
		t.Errorf("the reader is told %+v, want %+v", seen, want)
	}
	until(t, s, "all well", func(st Status) bool { return st.Error == "" })
	s.Send(numbered(5))
	seen.readUntil(t, r, 6)
	if seen.events != 1 {
		t.Errorf("then the reader got %d events, want 1", seen.events)
	}
	log.wantOnce(t, s, "start the program that reads it")
}

// The reader of a FIFO leaves while its pipe is full; the next one begins with a
// whole line.
func TestReaderOfFIFOIsReplaced(t *testing.T) {
	path := makeFIFO(t)
	var log journal
	first := openReader(t, path)
	s := open(path, tireless(&log), quick)
	defer s.Close(nil)
	n := fillUp(t, s)
	// Half a line is taken out: what is left in the pipe begins within one.
	if _, err := io.ReadFull(first, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	sent := s.Status().Sent
	first.Close()
	until(t, s, "reader missed", func(st Status) bool { return st.Error != "" && st.Error != errStalled.Error() })
	wantRest(t, s, joinReader(t, path), n, sent)
}

// wantRest ends a stream to which n events were sent, and checks that r, which
// has replaced a reader of the first sent ones, gets all others, whole.
func wantRest(t *testing.T, s *Stream, r io.Reader, n, sent uint64) {
	t.Helper()
	text := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(r) // what is missing is noticed below
		text <- b
	}()
	until(t, s, "all well", func(st Status) bool { return st.Error == "" })
	s.Close(nil)
	var seen tally
	for text := range bytes.Lines(<-text) {
		seen.add(t, text)
	}
	st := s.Status()
	if st.Sent+st.LeftOut.total() != n {
		t.Errorf("%+v does not add up to %d", st, n)
	}
	if seen.events != st.Sent-sent || seen.leftOut.total() == 0 {
		t.Errorf("the second reader saw %+v of %+v, the first was sent %d", seen, st, sent)
	}
}

// A reader that is replaced at once misses nothing that it has not been given.
func TestReaderOfStreamIsReplaced(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	l := listen(t, path)
	var log journal
	s := open(path, tireless(&log), quick)
	defer s.Close(nil)
	first := accept(t, l)
	n := fillUp(t, s)
	sent := s.Status().Sent
	// What was sent is in the socket; a line is broken where it was full.
	first.Close()
	wantRest(t, s, accept(t, l), n, sent)
	if st := s.Status(); st.LeftOut.Gone != 0 || st.Sent == sent {
		t.Errorf("%+v; what waited was to go to the second reader", st)
	}
	log.wantOnce(t, s, "see why")
}

// While the program that listens restarts, its place must not be taken by a file.
func TestListenerRestarts(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	l := listen(t, path)
	var log journal
	s := open(path, tireless(&log), quick)
	defer s.Close(nil)
	first := accept(t, l)
	l.Close() // removes the socket
	first.Close()
	s.Send(numbered(0))
	until(t, s, "listener missed", func(st Status) bool { return st.Error != "" && st.LeftOut.Gone == 1 })
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("something was made at the path: %v", err)
	}
	l = listen(t, path)
	var seen tally
	seen.readUntil(t, accept(t, l), 1)
	if want := (tally{leftOut: LeftOut{Gone: 1}}); seen != want {
		t.Errorf("the reader is told %+v, want %+v", seen, want)
	}
	until(t, s, "all well", func(st Status) bool { return st.Error == "" })
	log.wantOnce(t, s, "start the program that listens on it")
}

func TestReaderOfDatagramsStallsAndRestarts(t *testing.T) {
	path := filepath.Join(socketDir(t), "d")
	receive := func() *net.UnixConn {
		t.Helper()
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	read := func(conn *net.UnixConn, seen *tally, n uint64) {
		t.Helper()
		b := make([]byte, 64<<10)
		for seen.total() < n {
			length, err := conn.Read(b)
			if err != nil {
				t.Fatalf("after %+v of %d: %v", *seen, n, err)
			}
			if bytes.Count(b[:length], newline) != 1 {
				t.Fatalf("not one line in a datagram: %q", b[:length])
			}
			seen.add(t, b[:length])
		}
	}
	conn := receive()
	var log journal
	s := open(path, tireless(&log), quick)
	defer s.Close(nil)
	n := fillUp(t, s)
	var seen tally
	read(conn, &seen, n)
	until(t, s, "all well", func(st Status) bool { return st.Error == "" && st.Sent == seen.events && st.LeftOut == seen.leftOut })

	conn.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	s.Send(numbered(0))
	until(t, s, "listener missed", func(st Status) bool { return st.LeftOut.Gone == 1 })
	conn = receive()
	s.Send(numbered(1))
	read(conn, &seen, n+2)
}

// The longest line that a stranger can cause fits in a datagram.
func TestLongestLineFitsDatagram(t *testing.T) {
	path := filepath.Join(socketDir(t), "d")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s := open(path, Options{}, quick)
	defer s.Close(nil)
	until(t, s, "open", func(st Status) bool { return st.Kind == kindDatagram })
	long := numbered(0)
	hostile := strings.Repeat("\xff", 256)
	for _, v := range []*string{&long.Org, &long.By, &long.Match, &long.Rule, &long.Phase, &long.Decision, &long.Would, &long.Tag, &long.Prefix, &long.Reason} {
		*v = hostile
	}
	if got := len(appendEvent(nil, long)); got < 15000 || got > 32<<10 {
		t.Fatalf("the longest line has %d bytes; want about 15 kB", got)
	}
	s.Send(long)
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64<<10)
	n, err := conn.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	if l := decode(t, b[:n]); len([]rune(l.Reason)) != 256 {
		t.Errorf("reason of %d characters, want 256", len([]rune(l.Reason)))
	}
}

// A fakeTarget answers as it is told to.
type fakeTarget struct {
	write func([]byte) (int, error)
}

func (f fakeTarget) Write(p []byte) (int, error) { return f.write(p) }
func (f fakeTarget) Close() error                { return nil }

// Answers of a datagram socket that Linux does not give, or not to lines as short
// as ours.
func TestDatagramIsRefused(t *testing.T) {
	refusals := 0
	tests := []struct {
		name   string
		refuse func(p []byte) error
		want   tally
	}{
		{"too long", func(p []byte) error {
			if bytes.Contains(p, []byte(`"1"`)) {
				return syscall.EMSGSIZE
			}
			return nil
		}, tally{events: 2, leftOut: LeftOut{Full: 1}}},
		{"every line is too long", func(p []byte) error { return syscall.EMSGSIZE }, tally{}},
		{"full for a while", func(p []byte) error {
			if refusals++; refusals < 3 {
				return syscall.ENOBUFS
			}
			return nil
		}, tally{events: 3}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var seen tally
			fake := fakeTarget{write: func(p []byte) (int, error) {
				if err := test.refuse(p); err != nil {
					return 0, err
				}
				seen.add(t, p)
				return len(p), nil
			}}
			s := newStream("fake", Options{}, quick)
			for i := range 3 {
				s.Send(numbered(i))
			}
			w := &writer{Stream: s, target: &target{kind: kindDatagram, chunk: chunkDatagram, WriteCloser: fake}}
			close(s.closing)
			w.run()
			if seen != test.want {
				t.Errorf("the reader saw %+v, want %+v", seen, test.want)
			}
			if st := s.Status(); st.Sent+st.LeftOut.total() != 3 || st.Sent != test.want.events {
				t.Errorf("%+v, want %d sent of 3", st, test.want.events)
			}
		})
	}
}

// A reader that leaves within a line has not got that line.
func TestBrokenLineIsWrittenAnew(t *testing.T) {
	tests := []struct {
		name  string
		taken float64 // lines that the first reader takes
		first int     // of the second
	}{
		{"nothing taken", 0, 0},
		{"half a line", 0.5, 0},
		{"a line", 1, 1},
		{"a line and a half", 1.5, 1},
		{"all but the newline", 2.99, 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "second")
			s := newStream(path, Options{}, quick)
			for i := range 3 {
				s.Send(numbered(i))
			}
			first := fakeTarget{write: func(p []byte) (int, error) {
				return int(test.taken * float64(len(p)) / 3), syscall.EPIPE
			}}
			w := &writer{Stream: s, target: &target{kind: kindFile, chunk: chunkFile, WriteCloser: first}}
			close(s.closing)
			w.run()
			got := linesOf(t, path)
			if len(got) != 3-test.first || got[0] != fmt.Sprintf("finding %d", test.first) {
				t.Errorf("the second reader got %q, want from %d on", got, test.first)
			}
			if st := s.Status(); st.Sent != 3 || st.LeftOut.total() != 0 {
				t.Errorf("%+v, want 3 sent", st)
			}
		})
	}
}

// A disk that is full ends a write within a line, as does the limit of the size
// of files, which needs no disk of its own. That is a limit of the process, so the
// test runs in one for itself.
func TestFileCannotGrow(t *testing.T) {
	const alone = "EVENTS_TEST_ALONE"
	if os.Getenv(alone) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFileCannotGrow$", "-test.v")
		cmd.Env = append(os.Environ(), alone+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("--- PASS: TestFileCannotGrow")) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	setLimit := func(limit syscall.Rlimit) {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
			t.Fatal(err)
		}
	}
	defer setLimit(before)

	line := int64(len(appendEvent(nil, &Event{Event: "finding", Time: noon, Proof: "1"})))
	path := filepath.Join(t.TempDir(), "events")
	var log journal
	o := tireless(&log)
	o.MaxFile = 1 << 30
	limited := before
	limited.Cur = uint64(2*line + line/2) // 2 lines and a half
	setLimit(limited)
	s := open(path, o, quick)
	defer s.Close(nil)
	for range 5 {
		s.Send(&Event{Event: "finding", Time: noon, Proof: "1"})
	}
	until(t, s, "trouble", func(st Status) bool { return st.Error != "" && st.Sent == 2 && st.LeftOut.Gone == 3 })
	if fi, err := os.Stat(path); err != nil || fi.Size() != 2*line {
		t.Errorf("the file is not cut after the second line: %v, %v", fi.Size(), err)
	}
	setLimit(before)
	until(t, s, "all well", func(st Status) bool { return st.Error == "" })
	s.Send(&Event{Event: "finding", Time: noon, Proof: "1"})
	s.Close(nil)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var seen tally
	seen.readUntil(t, bytes.NewReader(b), 6)
	if want := (tally{events: 3, leftOut: LeftOut{Gone: 3}}); seen != want {
		t.Errorf("the file has %+v, want %+v:\n%s", seen, want, b)
	}
	log.wantOnce(t, s, "raise the limit of the size of files")
}

func TestFileIsAppendedTo(t *testing.T) {
	tests := []struct {
		name, before, want string
	}{
		{"missing", "", ""},
		{"whole line", "{}\n", "{}\n"},
		{"broken line", "{}\n{\"event\":\"fi", "{}\n{\"event\":\"fi\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "events")
			if test.before != "" {
				if err := os.WriteFile(path, []byte(test.before), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s := Open(path, Options{})
			e := sample()
			s.Send(e)
			s.Close(nil)
			got, err := os.ReadFile(path)
			if want := test.want + string(appendEvent(nil, e)); err != nil || string(got) != want {
				t.Errorf("got  %q\nwant %q, %v", got, want, err)
			}
			if fi, err := os.Stat(path); err != nil || test.before == "" && fi.Mode().Perm()&^0o640 != 0 {
				t.Errorf("mode %v, %v; want at most 0640", fi.Mode(), err)
			}
		})
	}
}

// A file never gets larger than it may, and one former file is kept.
func TestFileIsRotated(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "events")
	s := open(path, Options{MaxFile: 300}, quick)
	for i := range 50 {
		s.Send(numbered(i))
	}
	s.Close(nil)
	if st := s.Status(); st.Sent != 50 || st.Error != "" {
		t.Errorf("%+v", st)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Fatalf("%v, %v; want events and events.1", entries, err)
	}
	for _, e := range entries {
		if fi, err := e.Info(); err != nil || fi.Size() > 300 || fi.Size() == 0 {
			t.Errorf("%s has %d bytes, %v", e.Name(), fi.Size(), err)
		}
	}
	lines := append(linesOf(t, path+".1"), linesOf(t, path)...)
	for i, got := range lines {
		if want := fmt.Sprintf("finding %d", 50-len(lines)+i); got != want {
			t.Errorf("line %d is %q, want %q", i, got, want)
		}
	}
}

// If the former file cannot be replaced, nothing is written beyond the limit.
func TestFileCannotBeRotated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events")
	if err := os.MkdirAll(filepath.Join(path+".1", "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	var log journal
	s := open(path, Options{MaxFile: 300, Log: log.logger()}, quick)
	for i := range 50 {
		s.Send(numbered(i))
	}
	until(t, s, "given up", func(st Status) bool { return st.LeftOut.Gone > 0 })
	s.Close(nil)
	if text := log.String(); !strings.Contains(text, "begin a new file") {
		t.Errorf("the log does not tell why:\n%s", text)
	}
	if fi, err := os.Stat(path); err != nil || fi.Size() > 300 {
		t.Errorf("%d bytes, %v; want 300 at most", fi.Size(), err)
	}
	if st := s.Status(); st.Sent+st.LeftOut.Gone != 50 {
		t.Errorf("%+v does not add up to 50", st)
	}
}

func TestFileIsTakenAway(t *testing.T) {
	tests := []struct {
		name string
		take func(path string) error
	}{
		{"removed", os.Remove},
		{"renamed", func(path string) error { return os.Rename(path, path+".0") }},
		{"renamed and made anew", func(path string) error {
			if err := os.Rename(path, path+".0"); err != nil {
				return err
			}
			return os.WriteFile(path, nil, 0o600)
		}},
		{"emptied", func(path string) error { return os.Truncate(path, 0) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "events")
			var log journal
			s := open(path, tireless(&log), quick)
			s.Send(numbered(0))
			until(t, s, "written", func(st Status) bool { return st.Sent == 1 })
			if err := test.take(path); err != nil {
				t.Fatal(err)
			}
			s.Send(numbered(1))
			s.Close(nil)
			if got := linesOf(t, path); len(got) != 1 || got[0] != "finding 1" {
				t.Errorf("the new file has %q", got)
			}
			if text := log.String(); text != "" {
				t.Errorf("that is no trouble, but was logged:\n%s", text)
			}
		})
	}
}

// Close does not wait for a reader longer than it is told to.
func TestCloseStopsWaiting(t *testing.T) {
	path := makeFIFO(t)
	openReader(t, path)
	var log journal
	s := open(path, tireless(&log), quick)
	n := fillUp(t, s)
	stop := make(chan struct{})
	close(stop)
	s.Close(stop)
	s.Close(stop) // twice does no harm
	<-s.done
	if st := s.Status(); st.Sent+st.LeftOut.total() != n {
		t.Errorf("%+v does not add up to %d", st, n)
	}
}

// What a reader finds in a FIFO ends with a whole line, however full that was.
func TestFIFOHoldsWholeLines(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("SKIPPED, NOT TESTED: elsewhere PIPE_BUF may be less than chunkFIFO")
	}
	path := makeFIFO(t)
	r := openReader(t, path)
	var log journal
	o := tireless(&log)
	o.Queue = 1 << 20
	s := newStream(path, o, quick)
	for i := range 5000 {
		s.Send(numbered(i))
	}
	s.begin()
	until(t, s, "full", func(st Status) bool { return st.Error == errStalled.Error() })
	stop := make(chan struct{})
	close(stop)
	s.Close(stop)
	<-s.done
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var seen tally
	for line := range bytes.Lines(text) {
		seen.add(t, line)
	}
	if st := s.Status(); seen.events != st.Sent || st.LeftOut.Gone != 5000-st.Sent {
		t.Errorf("%d lines are in the pipe; %+v", seen.events, st)
	}
}

// Many send while a reader comes and goes: each event is counted once.
func TestManySend(t *testing.T) {
	const senders, each = 8, 500
	path := filepath.Join(socketDir(t), "s")
	l := listen(t, path)
	var log journal
	s := open(path, tireless(&log), quick)
	var wait sync.WaitGroup
	for range senders {
		wait.Go(func() {
			for i := range each {
				s.Send(numbered(i))
				s.Status()
			}
		})
	}
	for range 3 {
		conn := accept(t, l)
		if text, err := bufio.NewReader(conn).ReadBytes('\n'); err == nil {
			decode(t, text)
		}
		conn.Close()
		s.Send(numbered(0))
	}
	l.Close()
	wait.Wait()
	s.Close(nil)
	if st := s.Status(); st.Sent+st.LeftOut.total() != senders*each+3 {
		t.Errorf("%+v does not add up to %d", st, senders*each+3)
	}
}

func TestWholeLines(t *testing.T) {
	tests := []struct {
		name, lines string
		limit, want int
	}{
		{"nothing", "", 10, 0},
		{"fits", "a\nb\n", 4, 4},
		{"last does not fit", "a\nb\nccc\n", 6, 4},
		{"ends at the limit", "aa\nbb\n", 3, 3},
		{"first is longer", "aaaa\nb\n", 3, 5},
		{"one at a time", "a\nb\n", 1, 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := wholeLines([]byte(test.lines), test.limit); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
}

// BenchmarkSend is what a session pays for an event.
func BenchmarkSend(b *testing.B) {
	for _, bench := range []struct {
		name string
		rate int
	}{
		{"written", 1 << 30},
		{"too fast", 1},
	} {
		b.Run(bench.name, func(b *testing.B) {
			s := Open(filepath.Join(b.TempDir(), "events"), Options{Rate: bench.rate, Burst: bench.rate})
			defer s.Close(nil)
			e := sample()
			b.ReportAllocs()
			for b.Loop() {
				s.Send(e)
			}
		})
	}
}
