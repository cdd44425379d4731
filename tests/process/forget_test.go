//go:build linux

package process

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
)

// TestForget checks that a running filter in its sandbox removes a person from the state, from
// aggregates in memory and from today's records. Afterwards the filter must continue to record.
func TestForget(t *testing.T) {
	const person, other = "203.0.113.7", "198.51.100.9"
	dir, conf := t.TempDir(), filepath.Join(t.TempDir(), "scanwatch.conf")
	if err := os.WriteFile(conf, []byte("mode enforce\nprivacy hashed\nrule flood phase connect match src 203.0.113.0/24 disconnect \"550 5.7.1 No\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := filterproc.Start(t, "-f", conf, "-s", dir)
	filterproc.Eventually(t, "the filter answers", cli.Listens(dir))
	n := 0
	for range 32 {
		p.Come(&n, person, false)
	}
	p.Come(&n, other, false)
	filterproc.Eventually(t, "the end of the last session", func() bool {
		var s struct{ Live struct{ Summed int } }
		cli.Decode(t, cli.Run(t, dir, "status", "--json"), &s)
		return s.Live.Summed == 12
	})
	if out := cli.Run(t, dir, "-f", conf, "forget", person); !strings.Contains(out, "32 sessions from this address") {
		t.Errorf("dry run: %s", out)
	}
	if out := cli.Run(t, dir, "-f", conf, "forget", "--yes", person); !strings.Contains(out, "\nremoved; ") || strings.Contains(out, "missed") {
		t.Errorf("%s", out)
	}
	for range 3 {
		p.Come(&n, other, false)
	}
	sessions, erased := 0, 0
	for _, r := range cli.Dump(t, dir) {
		sessions += max(r.Sum, 1)
	}
	erased = strings.Count(cli.Run(t, dir, "dump"), `"erased":true`)
	if sessions < 33 || erased != 21 {
		t.Errorf("%d sessions, %d records without a source", sessions, erased)
	}
	log := p.End(0)
	if strings.Contains(log, "ERROR") {
		t.Errorf("log: %s", log)
	}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(name)
		if bytes.Contains(b, []byte(person)) || bytes.Contains(b, []byte{203, 0, 113, 7}) {
			t.Errorf("%s has the address", name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if out := cli.Run(t, dir, "dump"); strings.Count(out, other) < 4 {
		t.Errorf("the sessions after it: %s", out)
	}
}
