package text_test

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"scanwatch/internal/text"
	"scanwatch/tests/hostiletext"
)

// through returns a Writer's output for input in the given pieces.
func through(t testing.TB, pieces ...[]byte) string {
	t.Helper()
	var out bytes.Buffer
	w := text.NewWriter(&out)
	for _, p := range pieces {
		if n, err := w.Write(p); n != len(p) || err != nil {
			t.Errorf("Write of %d bytes: %d, %v", len(p), n, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	return out.String()
}

func TestWriter(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"plain\ttext\n", "plain\ttext\n"},
		{`back\slash`, `back\slash`},
		{"caf\u00e9 \u6f22", "caf\u00e9 \u6f22"},
		{"\x1b[31m", `\u001b[31m`},
		{"a\rb\x00c\x7f", `a\u000db\u0000c\u007f`},
		{"\u009b\u202e\u200b\ufeff\ufe0f", `\u009b\u202e\u200b\ufeff\ufe0f`},
		{"x\U000e0041y", `x\udb40\udc41y`},
		{"\ufffd", "\ufffd"},
		{"caf\xe9!", `caf\xe9!`},
		{"\xe2\x80", `\xe2\x80`},
		{"\xf0\x9f", `\xf0\x9f`},
	} {
		if got := through(t, []byte(c.in)); got != c.want {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
	}
}

// TestWriterStyled checks that a styled Writer keeps only the sequences of a Style, regardless of how
// they are split.
func TestWriterStyled(t *testing.T) {
	in := text.Style{Colour: true}.Title("Title") + text.Style{Colour: true}.Alarm("é") + "\x1b[2J\x1b[32m\x1b\x1b[1m\x1b[0"
	want := "\x1b[1mTitle\x1b[0m\x1b[31mé\x1b[0m" + `\u001b[2J\u001b[32m\u001b` + "\x1b[1m" + `\x1b\x5b\x30`
	for i := range in {
		var out bytes.Buffer
		w := text.NewWriter(&out)
		w.Styled = true
		for _, p := range []string{in[:i], in[i:]} {
			if _, err := io.WriteString(w, p); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil || out.String() != want {
			t.Errorf("split at %d: got %q, %v", i, out.String(), err)
		}
	}
}

// FuzzWriter checks that the output is safe, does not depend on how the input
// is split, and keeps the meaning of escaped JSON.
func FuzzWriter(f *testing.F) {
	for _, hostile := range hostiletext.Texts() {
		f.Add([]byte(hostile.Text), uint8(3), uint8(1))
	}
	f.Fuzz(func(t *testing.T, in []byte, a, b uint8) {
		whole := through(t, in)
		i := min(int(a), len(in))
		j := min(i+int(b), len(in))
		if got := through(t, in[:i], in[i:j], in[j:]); got != whole {
			t.Errorf("%q in pieces: got %q, want %q", in, got, whole)
		}
		if err := hostiletext.Terminal([]byte(strings.ReplaceAll(whole, hostiletext.Forged, ""))); err != nil {
			t.Error(err)
		}
		encoded, err := json.Marshal(string(in))
		if err != nil {
			t.Fatal(err)
		}
		var want, got string
		if err := json.Unmarshal(encoded, &want); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(through(t, encoded)), &got); err != nil || got != want {
			t.Errorf("JSON %s: got %q, %v", encoded, got, err)
		}
	})
}

func BenchmarkWriter(b *testing.B) {
	line := []byte(strings.Repeat(`{"session":"00000000000000b1","helo":"mail.example.net"}`+"\n", 1000))
	w := text.NewWriter(io.Discard)
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	for b.Loop() {
		_, _ = w.Write(line)
	}
}

// TestCloseWithoutRest checks that Close does not touch a blocked underlying writer if there are no
// remaining bytes.
func TestCloseWithoutRest(t *testing.T) {
	r, to := io.Pipe() // a pipe that no goroutine reads
	defer r.Close()
	if err := text.NewWriter(to).Close(); err != nil {
		t.Error(err)
	}
}
