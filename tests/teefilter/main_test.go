package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestInject(t *testing.T) {
	long := strings.Repeat("x", 200_000)
	for _, test := range []struct {
		name, in, want string
	}{
		{"plain", "register|report|smtp-in|link-connect\nregister|ready\nrest",
			"register|report|smtp-in|link-connect\nregister|filter|smtp-in|connect\nregister|filter|smtp-in|quit\nregister|ready\nrest"},
		{"own phase", "register|filter|smtp-in|quit\nregister|ready\n",
			"register|filter|smtp-in|quit\nregister|filter|smtp-in|connect\nregister|ready\n"},
		{"ready only once", "register|ready\nregister|ready\n",
			"register|filter|smtp-in|connect\nregister|filter|smtp-in|quit\nregister|ready\nregister|ready\n"},
		{"never ready", "register|report|smtp-in|*\n", "register|report|smtp-in|*\n"},
		{"line end missing", "register|ready", "register|ready"},
		{"CR is not ready", "register|ready\r\n", "register|ready\r\n"},
		{"long line", long + "\nregister|ready\n" + long,
			long + "\nregister|filter|smtp-in|connect\nregister|filter|smtp-in|quit\nregister|ready\n" + long},
		{"nothing", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := inject(&out, iotest.OneByteReader(strings.NewReader(test.in)), []string{"connect", "quit"}); err != nil {
				t.Fatal(err)
			}
			if out.String() != test.want {
				t.Errorf("input %.200q\ngot  %.200q\nwant %.200q", test.in, out.String(), test.want)
			}
		})
	}
}

// FuzzInject checks that inject only adds lines to the filter's output.
func FuzzInject(f *testing.F) {
	f.Add("register|filter|smtp-in|connect\nregister|ready\nfilter-result|1|2|proceed\n")
	f.Add("register|ready\n")
	f.Add("\nregister|ready\r\n\x00register|ready\n")
	f.Fuzz(func(t *testing.T, in string) {
		var out bytes.Buffer
		if err := inject(&out, strings.NewReader(in), []string{"x-added"}); err != nil {
			t.Fatal(err)
		}
		const added = "register|filter|smtp-in|x-added\n"
		want := in
		if head, tail, ok := cutReady(in); ok && !strings.Contains("\n"+head, "\n"+added) {
			want = head + added + tail
		}
		if out.String() != want {
			t.Errorf("input %q\ngot  %q\nwant %q", in, out.String(), want)
		}
	})
}

func cutReady(s string) (head, tail string, ok bool) {
	const ready = "register|ready\n"
	if strings.HasPrefix(s, ready) {
		return "", s, true
	}
	i := strings.Index(s, "\n"+ready)
	if i < 0 {
		return s, "", false
	}
	return s[:i+1], s[i+1:], true
}

func TestRun(t *testing.T) {
	for _, test := range []struct {
		name, script, in string
		status           int
		out              string
	}{
		{"passes both ways", "echo 'register|ready'; cat", "a\r\n\x00\xff\n" + strings.Repeat("y", 150_000), 0,
			"register|filter|smtp-in|quit\nregister|ready\na\r\n\x00\xff\n" + strings.Repeat("y", 150_000)},
		{"status", "exit 3", "", 3, ""},
		{"signal", "kill -9 $$", "", 137, ""},
		{"does not read", "echo 'register|ready'", strings.Repeat("z", 1_000_000), 0,
			"register|filter|smtp-in|quit\nregister|ready\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			var out bytes.Buffer
			status, err := run([]string{"/bin/sh", "-c", test.script}, strings.NewReader(test.in), &out, dir, "", 0, []string{"quit"})
			if err != nil {
				t.Fatal(err)
			}
			if status != test.status {
				t.Errorf("status %d, want %d", status, test.status)
			}
			if out.String() != test.out {
				t.Errorf("got %.200q, want %.200q", out.String(), test.out)
			}
			kept, err := os.ReadFile(filepath.Join(dir, "stream.out"))
			if err != nil || string(kept) != test.out {
				t.Errorf("stream.out: %.200q, %v", kept, err)
			}
		})
	}
	if _, err := run([]string{"/nonexistent"}, strings.NewReader(""), new(bytes.Buffer), "", "", 0, nil); err == nil {
		t.Error("a filter that does not exist ran")
	}
}

// TestRunEndsWithFilter checks that teefilter ends when the filter ends, even if smtpd sends
// nothing.
func TestRunEndsWithFilter(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	status, err := run([]string{"/bin/sh", "-c", "exit 5"}, r, new(bytes.Buffer), "", "", 0, nil)
	if err != nil || status != 5 {
		t.Errorf("status %d, %v, want 5", status, err)
	}
}

// TestCalendar checks that each connection advances the timestamps of all later lines.
func TestCalendar(t *testing.T) {
	var out bytes.Buffer
	in := "config|ready\n" +
		"report|0.7|1000.000001|smtp-in|link-connect|01|a|pass|x|y\n" +
		"filter|0.7|1001.000002|smtp-in|connect|01|02|a|x\n" +
		"report|0.7|1002.000003|smtp-in|link-connect|03|a|pass|x|y\n" +
		"report|0.7|1002.000004|smtp-in|protocol-client|01|report|0.7|1.1|smtp-in|link-connect|\n"
	want := "config|ready\n" +
		"report|0.7|1060.000001|smtp-in|link-connect|01|a|pass|x|y\n" +
		"filter|0.7|1061.000002|smtp-in|connect|01|02|a|x\n" +
		"report|0.7|1122.000003|smtp-in|link-connect|03|a|pass|x|y\n" +
		"report|0.7|1122.000004|smtp-in|protocol-client|01|report|0.7|1.1|smtp-in|link-connect|\n"
	c := &calendar{to: &out, apart: time.Minute}
	for len(in) > 0 { // in pieces
		n := min(7, len(in))
		if _, err := c.Write([]byte(in[:n])); err != nil {
			t.Fatal(err)
		}
		in = in[n:]
	}
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}
