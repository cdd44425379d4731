package anonymize_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/anonymize"
	"scanwatch/filter/stream"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
	"scanwatch/store"
)

// TestCopy checks that a copy contains the same numbers of sessions, messages and findings.
// TestCopy also checks that Copy only writes to an empty directory.
func TestCopy(t *testing.T) {
	lists := builtin(t)
	from := t.TempDir()
	for _, name := range []string{"ehlo-delivery", "harvest-50-unknown", "relay-probe", "odd-addresses"} {
		in, err := os.ReadFile("../../tests/streams/7.9/" + name + ".in")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Import(bytes.NewReader(in), stream.Options{Dir: from, Budget: 1 << 30, Privacy: rules.PrivacyFull, Program: "test", Now: time.Now}); err != nil {
			t.Fatal(name, err)
		}
	}
	count := func(dir string) (all, messages, findings, unknown int) {
		r := store.Reader{Dir: dir}
		if err := r.Each(time.Time{}, time.Time{}, store.AllKinds, func(rec *store.Record) error {
			all += rec.Many()
			messages += int(rec.Counts.Mails)
			return rec.Steps(func(s *store.Step) bool {
				if s.Kind == store.KindFinding {
					findings++
				}
				if s.Kind == store.KindRcpt && s.Result == smtp.ResultPermfail {
					unknown++
				}
				return true
			})
		}); err != nil {
			t.Fatal(err)
		}
		return
	}
	out := filepath.Join(t.TempDir(), "copy")
	o := anonymize.CopyOptions{Key: key, Lists: lists, Program: "test"}
	c, err := anonymize.Copy(&store.Reader{Dir: from}, out, o)
	if err != nil || c.Corrupt != 0 {
		t.Fatal(c, err)
	}
	all, messages, findings, unknown := count(from)
	all2, messages2, findings2, unknown2 := count(out)
	if all == 0 || messages == 0 || findings == 0 || all != all2 || messages != messages2 || findings != findings2 || unknown != unknown2 || c.Sessions != all {
		t.Errorf("%d %d %d %d became %d %d %d %d, %+v", all, messages, findings, unknown, all2, messages2, findings2, unknown2, c)
	}
	if info, err := os.Stat(out); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := anonymize.Copy(&store.Reader{Dir: from}, out, o); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("second copy: %v", err)
	}
	empty := t.TempDir()
	if c, err := anonymize.Copy(&store.Reader{Dir: filepath.Join(empty, "nosuch")}, filepath.Join(empty, "copy"), o); err != nil || c.Sessions != 0 {
		t.Errorf("no records: %+v, %v", c, err)
	}
}
