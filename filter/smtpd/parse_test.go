package smtpd

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"
)

// FuzzLines checks that the reader returns the text between LFs as lines. The lengths of lines and
// the sizes of reads must not matter. A line that is too long must be truncated.
func FuzzLines(f *testing.F) {
	f.Add([]byte("one\ntwo\r\n\n\nlast"), uint16(1), uint32(0))
	f.Add([]byte("|\n\x00\xff\n"), uint16(3), uint32(maxLine-2))
	f.Add([]byte("a\nb\nc"), uint16(maxLine/256), uint32(2*maxLine))
	f.Fuzz(func(t *testing.T, in []byte, step uint16, long uint32) {
		// Extend one line to a chosen length, so that it reaches the limits.
		pad := bytes.Repeat([]byte("x"), int(long%(3*maxLine)))
		at := len(in) / 2
		in = append(append(append([]byte(nil), in[:at]...), pad...), in[at:]...)
		var want [][]byte
		for rest := in; ; {
			line, after, ok := bytes.Cut(rest, []byte{'\n'})
			if !ok {
				if len(line) >= maxLine {
					want = append(want, line[:maxLine]) // an answer needs only the fields at the start of the line
				}
				break
			}
			want, rest = append(want, line[:min(len(line), maxLine)]), after
		}
		l := newLines(stepReader{bytes.NewReader(in), 1 + int(step)})
		n := 0
		for {
			line, cut, ok := l.next()
			if !ok {
				if err := l.fill(); err == io.EOF {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				continue
			}
			if n >= len(want) || !bytes.Equal(line, want[n]) || cut && len(line) != maxLine {
				t.Fatalf("line %d is %.80q (%d bytes, cut %v), of %d", n, line, len(line), cut, len(want))
			}
			n++
		}
		if n != len(want) {
			t.Fatalf("%d lines, want %d", n, len(want))
		}
		if len(l.buf) != 2*maxLine {
			t.Errorf("the buffer has %d bytes", len(l.buf))
		}
	})
}

// A stepReader returns at most the given number of bytes from each read.
type stepReader struct {
	r io.Reader
	n int
}

func (s stepReader) Read(b []byte) (int, error) { return s.r.Read(b[:min(len(b), s.n)]) }

// line encodes ev as a line in the newest version of the protocol.
func (ev *Event) line() []byte {
	word, at := "report", ""
	if ev.request {
		word, at = "filter", fmt.Sprintf("|%016x", ev.Token)
	}
	direction := "smtp-in"
	if ev.Out {
		direction = "smtp-out"
	}
	b := fmt.Appendf(nil, "%s|%v|%d.%06d|%s|%s|%016x%s", word, Newest, ev.Time/1e6, ev.Time%1e6, direction, ev.name, ev.Session, at)
	for i := range ev.n {
		b = append(append(b, '|'), ev.fields[i]...)
	}
	return b
}

// FuzzParse checks that an event stays the same if it is encoded in the newest version of the
// protocol and parsed again.
func FuzzParse(f *testing.F) {
	seen := map[string]bool{}
	names, err := filepath.Glob("../../tests/streams/*/*.in")
	if err != nil || len(names) == 0 {
		f.Fatal("no streams", err)
	}
	for _, name := range names {
		in, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for line := range bytes.Lines(in) { // one line of each kind and version
			if p := bytes.SplitN(line, []byte("|"), 6); len(p) == 6 && !seen[string(p[0])+string(p[1])+string(p[4])] {
				seen[string(p[0])+string(p[1])+string(p[4])] = true
				f.Add(bytes.TrimSuffix(line, []byte("\n")))
			}
		}
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		var ev, again Event
		if bytes.IndexByte(line, '\n') >= 0 || ev.parse(line) != nil {
			return
		}
		_ = ev.String()
		said := ev.line()
		if err := again.parse(said); err != nil {
			t.Fatalf("%q became %q: %v", line, said, err)
		}
		if ev.String() != again.String() || ev.ID != again.ID || ev.Token != again.Token || ev.Time != again.Time || ev.Out != again.Out || ev.n != again.n {
			t.Errorf("%q became %q:\n%v\n%v", line, said, &ev, &again)
		}
	})
}

// TestReadErrors checks that lines before a read error are not lost.
func TestReadErrors(t *testing.T) {
	l := newLines(iotest.DataErrReader(bytes.NewReader([]byte("one\ntwo\n"))))
	if err := l.fill(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"one", "two"} {
		if line, _, ok := l.next(); !ok || string(line) != want {
			t.Errorf("got %q, %v", line, ok)
		}
	}
	if err := l.fill(); err != io.EOF {
		t.Errorf("got %v", err)
	}
}
