package stream

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"scanwatch/filter/serverlog"
	"scanwatch/store"
)

// importLogs imports files into a state directory.
func importLogs(t *testing.T, kind, dir string, names ...string) (LogResult, error) {
	t.Helper()
	k := serverlog.ByName(kind)
	logs, err := OpenLogs(names, k, strings.NewReader(""), now, time.UTC)
	if err != nil {
		return LogResult{}, err
	}
	return ImportLog(logs, LogOptions{Options: options(dir), Kind: k, Zone: time.UTC})
}

// TestImportLog checks an import for each kind of log. The records must contain the kind, and a
// second import must add nothing.
func TestImportLog(t *testing.T) {
	for _, kind := range serverlog.Kinds {
		dir := t.TempDir()
		var before int
		for i := range 2 {
			r, err := importLogs(t, kind.Name, dir, "../serverlog/testdata/"+kind.Name+".log")
			if err != nil || r.Sessions == 0 || r.Unknown > 0 {
				t.Fatalf("%s: %+v, %v", kind.Name, r, err)
			}
			if r.Known != i*r.Sessions {
				t.Errorf("%s: import %d: %d of %d sessions already recorded", kind.Name, i+1, r.Known, r.Sessions)
			}
			all := records(t, dir)
			if len(all) != r.Sessions || before > 0 && len(all) != before {
				t.Errorf("%s: %d records, %d sessions", kind.Name, len(all), r.Sessions)
			}
			before = len(all)
			for _, rec := range all {
				if string(rec.FrontEnd) != kind.Name {
					t.Errorf("%s: front end %q", kind.Name, rec.FrontEnd)
				}
			}
		}
	}
}

// TestAbsence checks that there is no evidence because of facts that the logs lack.
func TestAbsence(t *testing.T) {
	never := []string{"early-talker", "flood", "rdns-missing", "helo-missing"}
	for _, kind := range serverlog.Kinds {
		dir := t.TempDir()
		if _, err := importLogs(t, kind.Name, dir, "../serverlog/testdata/"+kind.Name+".log"); err != nil {
			t.Fatal(err)
		}
		for _, rec := range records(t, dir) {
			_ = rec.Steps(func(s *store.Step) bool {
				if s.Kind != store.KindFinding {
					return true
				}
				for _, evidence := range never {
					if string(s.Text) == evidence {
						t.Errorf("%s: %s", kind.Name, evidence)
					}
				}
				if partial := rec.Ending.String() == "partial"; partial && (string(s.Text) == "no-mail" || string(s.Text) == "abandoned") {
					t.Errorf("%s: %s in a partial session", kind.Name, s.Text)
				}
				return true
			})
		}
	}
}

// TestCompressed checks that a log may consist of several compressed files in any order.
func TestCompressed(t *testing.T) {
	text, err := os.ReadFile("../serverlog/testdata/postfix.log")
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(text, []byte("\n"))
	dir, files := t.TempDir(), t.TempDir()
	old, middle, newer := filepath.Join(files, "log.2.zst"), filepath.Join(files, "log.1.gz"), filepath.Join(files, "log")
	part := func(from, to int) []byte { return bytes.Join(lines[from:to], nil) }
	var z, g bytes.Buffer
	zw, err := zstd.NewWriter(&z)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = zw.Write(part(0, 20))
	_ = zw.Close()
	gw := gzip.NewWriter(&g)
	_, _ = gw.Write(part(20, 50))
	_ = gw.Close()
	for name, content := range map[string][]byte{old: z.Bytes(), middle: g.Bytes(), newer: part(50, len(lines))} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at := time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)
	for _, name := range []string{old, middle, newer} {
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
	}
	r, err := importLogs(t, "postfix", dir, newer, middle, old)
	whole, err2 := importLogs(t, "postfix", t.TempDir(), "../serverlog/testdata/postfix.log")
	if err != nil || err2 != nil || r.Sessions != whole.Sessions || r.Lines != whole.Lines {
		t.Errorf("%+v, want %+v: %v, %v", r, whole, err, err2)
	}
}

// TestCut checks that the lines of an incomplete compressed file are imported.
func TestCut(t *testing.T) {
	var log bytes.Buffer
	for i := range 2000 {
		fmt.Fprintf(&log, "2026-11-29 07:50:03 H=(x) [203.0.113.%d]:%d F=<a@b.example> rejected RCPT <x%d@example.org>: Unrouteable address\n", i%250, i+1024, i*i*7919)
	}
	for _, compress := range []func(io.Writer) io.WriteCloser{
		func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) },
		func(w io.Writer) io.WriteCloser {
			z, err := zstd.NewWriter(w, zstd.WithWindowSize(1<<12))
			if err != nil {
				t.Fatal(err)
			}
			return z
		},
	} {
		var b bytes.Buffer
		w := compress(&b)
		_, err := w.Write(log.Bytes())
		name := filepath.Join(t.TempDir(), "log")
		if err := errors.Join(err, w.Close(), os.WriteFile(name, b.Bytes()[:b.Len()-100], 0o600)); err != nil {
			t.Fatal(err)
		}
		r, err := importLogs(t, "exim", t.TempDir(), name)
		if err != nil || len(r.Cut) != 1 || r.Cut[0] != name || r.Sessions < 100 || r.Unknown > 0 {
			t.Errorf("%+v, %v", r, err)
		}
	}
}

// TestImportLogRefuses checks the errors of ImportLog.
func TestImportLogRefuses(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(name, []byte("Nov 29 07:40:00 mx sshd[1]: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := importLogs(t, "postfix", t.TempDir(), name); err == nil || !strings.Contains(err.Error(), "read "+name+": no sessions of postfix found in 1 lines") {
		t.Error(err)
	}
	_, err := importLogs(t, "icewarp", t.TempDir(), name)
	if want := name + ":1: Nov 29 07:40:00 mx sshd[1]: x"; err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("%v, want %s at the end", err, want)
	}
	if _, err := importLogs(t, "kumomta", t.TempDir(), filepath.Join(t.TempDir(), "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if err := os.WriteFile(name, []byte("Nov 29 07:40:00 mx postfix/smtpd[1]: a new line\n"+fmt.Sprintf("%0*d\n", 70_000, 1)+"Nov 29 07:40:00 mx postfix/smtpd[1]: connect from unknown[203.0.113.1]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := importLogs(t, "postfix", t.TempDir(), name)
	if err != nil || r.Unknown != 1 || len(r.Samples) != 1 || !strings.HasPrefix(r.Samples[0], name+":1: ") || r.TooLong != 1 || r.Sessions != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestUndated checks the dates of lines in the log of IceWarp. The date comes from the server's
// greeting, or else from the file's name, or else from the file's modification time. The use of the
// modification time must be reported.
func TestUndated(t *testing.T) {
	text, err := os.ReadFile("../serverlog/testdata/icewarp.log")
	if err != nil {
		t.Fatal(err)
	}
	bare := bytes.ReplaceAll(text, []byte("; Fri, 13 Feb 2026 16:14:"), []byte(" ready "))
	if bytes.Equal(bare, text) {
		t.Fatal("no dates in the greetings")
	}
	for _, tt := range []struct {
		name    string
		text    []byte
		day     string
		undated bool
	}{
		{"s20260210-00.log", text, "2026-02-13", false},
		{"s20260210-00.log", bare, "2026-02-10", false},
		{"s120260210-01.log", bare, "2026-02-10", false},
		{"smtp-2026-02-10.log.1", bare, "2026-02-10", false},
		{"s20261310-00.log", bare, "2026-02-20", true},
		{"smtp.log", bare, "2026-02-20", true},
		{"smtp.log", text, "2026-02-13", false},
	} {
		dir, name := t.TempDir(), filepath.Join(t.TempDir(), tt.name)
		if err := os.WriteFile(name, tt.text, 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Date(2026, 2, 20, 23, 0, 0, 0, time.UTC)
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
		r, err := importLogs(t, "icewarp", dir, name)
		if err != nil || r.Sessions != 2 || r.Undated != tt.undated {
			t.Errorf("%s: %+v, %v", tt.name, r, err)
		}
		for _, rec := range records(t, dir) {
			if day := rec.Start.UTC().Format(time.DateOnly); day != tt.day {
				t.Errorf("%s: a session on %s, want %s", tt.name, day, tt.day)
			}
		}
	}
}
