package events

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// quick is a background that is patient for moments only.
var quick = timing{write: 5 * time.Millisecond, stall: 50 * time.Millisecond, tell: time.Millisecond, retryMin: time.Millisecond, retryMax: 5 * time.Millisecond}

func numbered(n int) *Event { return &Event{Event: "finding", Proof: fmt.Sprint(n)} }

// until asks the status until it is as it should be; go test's limit ends this.
func until(t *testing.T, s *Stream, what string, ok func(Status) bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok(s.Status()) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: never; %+v", what, s.Status())
		}
		runtime.Gosched()
	}
}

func linesOf(t *testing.T, file string) (lines []string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if e, _, err := Decode([]byte(line)); err != nil || !strings.HasSuffix(line, "\n") {
			t.Errorf("%q: %v", line, err)
		} else {
			lines = append(lines, e.Event+" "+e.Proof)
		}
	}
	return lines
}

func TestStreamToFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events")
	s := open(file, Options{MaxFile: 1000}, quick)
	for i := range 10 {
		s.Send(numbered(i))
		until(t, s, "written", func(st Status) bool { return st.Sent == uint64(i+1) })
	}
	// logrotate takes it away.
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	s.Send(numbered(10))
	s.Close(nil)
	if got := linesOf(t, file); len(got) == 0 || got[len(got)-1] != "finding 10" {
		t.Errorf("the new file has %q", got)
	}
	all := len(linesOf(t, file)) + len(linesOf(t, file+".away"))
	if old, err := os.Stat(file + ".1"); err == nil {
		all += len(linesOf(t, file+".1"))
		if old.Size() > 1000 {
			t.Errorf("a file of %d bytes", old.Size())
		}
	}
	if all != 11 {
		t.Errorf("%d lines, want 11", all)
	}
	s.Send(numbered(11))
	if st := s.Status(); st.LeftOut.Gone != 1 {
		t.Errorf("after the end: %+v", st)
	}
}

// TestStreamToFIFO: without a reader events are counted; one that comes gets
// whole lines and is told what it missed; one that leaves does no harm.
func TestStreamToFIFO(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(fifo, Options{}, quick)
	defer s.Close(nil)
	for i := 0; s.Status().LeftOut.Gone == 0; i++ { // until it has given up waiting
		s.Send(numbered(i))
	}
	for range 2 {
		r, err := os.OpenFile(fifo, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(r)
		for told := false; !told; {
			s.Send(numbered(0))
			if s.Status().Sent == 0 && s.Status().Error != "" {
				continue
			}
			line, err := in.ReadString('\n')
			if err != nil {
				continue // it has not come back yet
			}
			e, n, err := Decode([]byte(line))
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			told = e.Event == "left-out" && n > 0 || e.Event == "finding"
		}
		r.Close()
		// The next reader must not find the rest of a line that this one has begun.
		gone := s.Status().LeftOut.Gone
		until(t, s, "reader missed", func(st Status) bool {
			s.Send(numbered(0))
			return st.LeftOut.Gone > gone
		})
	}
}

func TestStreamToSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "ev") // names of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	t.Run("stream", func(t *testing.T) {
		path := filepath.Join(dir, "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		s := open(path, Options{}, quick)
		defer s.Close(nil)
		s.Send(numbered(1))
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, `"proof":"1"`) {
			t.Errorf("%q, %v", line, err)
		}
		if kind := s.Status().Kind; kind != kindStream {
			t.Errorf("kind %q", kind)
		}
	})
	t.Run("datagram", func(t *testing.T) {
		path := filepath.Join(dir, "d")
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		s := open(path, Options{}, quick)
		defer s.Close(nil)
		for i := range 3 {
			s.Send(numbered(i))
		}
		b := make([]byte, 4096)
		for i := range 3 {
			n, err := conn.Read(b)
			if e, _, bad := Decode(b[:n]); err != nil || bad != nil || e.Proof != fmt.Sprint(i) {
				t.Errorf("%q, %v, %v", b[:n], err, bad)
			}
		}
	})
}

// TestStreamLimits: what comes too fast is counted and told, by the clock that
// was handed in.
func TestStreamLimits(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events")
	var seconds atomic.Int64 // the background asks for the time, too
	s := open(file, Options{Rate: 2, Burst: 3, Now: func() time.Time { return time.Unix(seconds.Load(), 0) }}, quick)
	for i := range 10 {
		s.Send(numbered(i))
	}
	if st := s.Status(); st.LeftOut.Rate != 7 {
		t.Errorf("%+v", st)
	}
	seconds.Add(1)
	for i := range 3 {
		s.Send(numbered(10 + i))
	}
	s.Close(nil)
	if st := s.Status(); st.LeftOut.Rate != 8 || st.Sent != 5 {
		t.Errorf("%+v", st)
	}
	missing := uint64(0)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		_, n, err := Decode([]byte(line))
		if err != nil {
			t.Errorf("%q: %v", line, err)
		}
		missing += n
	}
	if missing != 8 {
		t.Errorf("the stream tells of %d that were left out, want 8:\n%s", missing, b)
	}
}

func TestStreamRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(dir, "target"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "link"), dir, "/dev/null", filepath.Join(dir, "no", "file")} {
		s := open(path, Options{}, quick)
		s.Send(numbered(1))
		until(t, s, path+" is refused", func(st Status) bool { return st.Error != "" })
		s.Close(nil)
		if st := s.Status(); st.Sent != 0 {
			t.Errorf("%s: %+v", path, st)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "target")); err == nil {
		t.Error("a link was followed")
	}
}
