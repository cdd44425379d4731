package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/privacy"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
	"scanwatch/store"
)

var now = time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)

func options(dir string) Options {
	return Options{Dir: dir, Budget: 64 << 20, Privacy: rules.PrivacyFull, Program: "test", Now: func() time.Time { return now }}
}

// records returns the records in a state directory. The oldest come first.
func records(t *testing.T, dir string) (all []store.Record) {
	t.Helper()
	r := store.Reader{Dir: dir}
	if err := r.Each(time.Time{}, time.Time{}, store.AllKinds, func(rec *store.Record) error {
		all = append(all, *rec)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

const (
	handshake = "config|smtpd-version|7.9.0\nconfig|protocol|0.7\nconfig|ready\n"
	connect   = "report|0.7|1795219320.000001|smtp-in|link-connect|00000000000000%02x|mail.example.net|pass|192.0.2.1:4711|198.51.100.1:25\n"
	helo      = "report|0.7|1795219321.000001|smtp-in|link-identify|00000000000000%02x|EHLO|mail.example.net\n"
)

// TestSplit checks how a stream is split into runs. TestSplit also checks which lines are skipped
// and which errors are returned.
func TestSplit(t *testing.T) {
	a, b := fmt.Sprintf(connect, 1), fmt.Sprintf(connect, 2)
	secret := "filter|0.7|1795219322.000001|smtp-in|auth|0000000000000001|0000000000000002|PLAIN c2VjcmV0\n"
	for _, c := range []struct {
		name, in string
		runs     []string
		skipped  int
		first    string
		err      string
	}{
		{name: "one run", in: handshake + a + b, runs: []string{handshake + a + b}},
		{name: "two runs", in: handshake + a + handshake + b, runs: []string{handshake + a, handshake + b}},
		{name: "begins in the middle", in: a + handshake + b, runs: []string{a, handshake + b}},
		{name: "handshake alone", in: handshake, runs: []string{handshake}},
		{name: "foreign line", in: handshake + "x\n" + a, runs: []string{handshake + a}, skipped: 1, first: `line 4: not a line of smtpd: "x"`},
		{name: "incomplete line", in: handshake + a + b[:20], runs: []string{handshake + a}, skipped: 1, first: `line 5: incomplete: "report|0.7|179521932"`},
		{name: "long line", in: handshake + "report|0.7|1.0|smtp-in|protocol-client|" + strings.Repeat("x", maxLine) + "\n" + a, runs: []string{handshake + a},
			skipped: 1, first: "line 4: longer than 131072 bytes"},
		{name: "password", in: handshake + a + secret + b, runs: []string{handshake + a + b}},
		{name: "empty", in: "", err: "no lines"},
		{name: "a log", in: strings.Repeat("Nov 29 12:00:00 mx smtpd[1]: x\n", 1000), skipped: maxLead, first: `line 1: `,
			err: `line 1: not a line of smtpd: "Nov 29 12:00:00 mx smtpd[1]: x"; expected the lines that smtpd sends to a filter`},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, read := range []bool{true, false} { // run may return early
				var runs []string
				counts, err := Split(strings.NewReader(c.in), func(run io.Reader) error {
					if !read {
						runs = append(runs, "")
						return nil
					}
					lines, err := io.ReadAll(run)
					runs = append(runs, string(lines))
					return err
				})
				if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
					t.Errorf("error %v, want %q", err, c.err)
				}
				if read && !slices.Equal(runs, c.runs) || len(runs) != len(c.runs) {
					t.Errorf("got %q, want %q", runs, c.runs)
				}
				if counts.Runs != len(c.runs) || counts.Skipped != c.skipped || c.first != "" && !strings.Contains(counts.First.Error(), c.first) {
					t.Errorf("%+v", counts)
				}
			}
		})
	}
}

// TestSplitErrors checks that errors from the input and from run are returned.
func TestSplitErrors(t *testing.T) {
	broken := errors.New("broken")
	if _, err := Split(io.MultiReader(strings.NewReader(handshake), &failing{broken}), func(run io.Reader) error {
		_, err := io.ReadAll(run)
		return err
	}); !errors.Is(err, broken) {
		t.Errorf("input: %v", err)
	}
	if _, err := Split(strings.NewReader(handshake), func(io.Reader) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("run: %v", err)
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

// TestImport checks that sessions with the same id in two runs are recorded separately. A second
// import must add nothing.
func TestImport(t *testing.T) {
	dir := t.TempDir()
	in := handshake + fmt.Sprintf(connect+helo, 1, 1) +
		strings.ReplaceAll(handshake+fmt.Sprintf(connect+helo+"report|0.7|1795219329.000006|smtp-in|link-disconnect|%016x\n", 1, 1, 1), "|1795219", "|1795229")
	done := 0
	o := options(dir)
	o.Done = func(time.Time) { done++ }
	for range 2 {
		r, err := Import(strings.NewReader(in), o)
		if err != nil || r.Runs != 2 || r.Sessions != 2 || r.Oldest.Unix() != 1795219321 || r.Newest.Unix() != 1795229329 {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	all := records(t, dir)
	if len(all) != 2 || all[0].Ending != smtp.EndingUnknown || all[1].Ending == smtp.EndingUnknown {
		t.Errorf("%d records: %+v", len(all), all)
	}
	if done != 4 {
		t.Errorf("Done was called %d times", done)
	}
	if _, err := privacy.ReadKey(dir); err != nil {
		t.Error(err)
	}
}

// TestImportRecorded checks that each recorded stream leads to one record per session.
func TestImportRecorded(t *testing.T) {
	names, err := filepath.Glob("../../tests/streams/*/*.in")
	if err != nil || len(names) < 160 {
		t.Fatalf("%d streams, %v", len(names), err)
	}
	if testing.Short() {
		names = names[:10]
	}
	for _, name := range names {
		in, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Count(in, []byte("|smtp-in|link-connect|"))
		dir := t.TempDir()
		r, err := Import(bytes.NewReader(in), options(dir))
		if want == 0 {
			if err == nil {
				t.Errorf("%s: no error without a session", name)
			}
			continue
		}
		if err != nil || r.Sessions != want || r.Skipped != 0 || len(records(t, dir)) != want {
			t.Errorf("%s: %d sessions, want %d: %v, %v", name, r.Sessions, want, r.First, err)
		}
	}
}

// TestImportRefuses checks that the records do not change if Import returns an error.
func TestImportRefuses(t *testing.T) {
	in := func() io.Reader { return strings.NewReader(handshake + fmt.Sprintf(connect, 1)) }
	dir := t.TempDir()
	w := store.Open(dir, store.Options{Budget: 64 << 20, Keep: keepAll, Program: "test"})
	if err := w.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := Import(in(), options(dir)); !errors.Is(err, store.ErrInUse) {
		t.Errorf("in use: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := privacy.ReadKey(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("key: %v", err)
	}
	if _, err := Import(in(), options(filepath.Join(dir, "nosuch"))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if _, err := Import(strings.NewReader(handshake), options(dir)); err == nil || !strings.Contains(err.Error(), "no session") {
		t.Errorf("no session: %v", err)
	}
	if n := len(records(t, dir)); n != 0 {
		t.Errorf("%d records", n)
	}
}
