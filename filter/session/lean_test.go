package session_test

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/session"
	"scanwatch/rules"
	"scanwatch/store"
)

// guessed are the streams in which recipients are refused for another reason than
// that nobody is called so, which is not told: by a filter (as in the phase tests,
// the rewritten and the reported ones), because the address is wrong, or because
// smtpd books wrong input on the last recipient. There they are found unknown.
var guessed = map[string]bool{
	"disconnect-550-each-phase": true, "reject-550-each-phase": true, "report-decision": true, "rewrite": true, "smtp-out": true,
	"odd-addresses": true, "relay-probe": true,
	"pipelined": true, "stale-tx-rcpt-reports": true,
}

// TestLean takes from every recorded stream what smtpd tells with lean detail, and
// compares the records with those of the whole stream: what came of a session is
// the same, and so is the evidence, but for what cannot be seen.
func TestLean(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(streams, "*", "*.in"))
	if err != nil || len(dirs) < 100 {
		t.Fatal(len(dirs), err)
	}
	told := map[string]bool{"link-greeting": true} // nobody looks at it
	for _, id := range session.LeanReports {
		told[id.String()] = true
	}
	differ := map[string]bool{}
	for _, path := range dirs {
		in, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		whole := playDetail(t, in, false)
		var lean bytes.Buffer
		for line := range bytes.Lines(in) {
			f := bytes.SplitN(line, []byte{'|'}, 6)
			if len(f) < 6 || string(f[0]) != "report" || told[string(f[4])] {
				lean.Write(line)
			}
		}
		parts := playDetail(t, lean.Bytes(), true)
		name := strings.TrimSuffix(filepath.Base(path), ".in")
		if len(whole) != len(parts) {
			t.Errorf("%s: %d records, of %d sessions", name, len(parts), len(whole))
			continue
		}
		for i, w := range whole {
			l := parts[i]
			got, want := outcomes(t, l, guessed[name]), outcomes(t, w, guessed[name])
			if got != want {
				t.Errorf("%s, session %d:\n%s\nwith everything told:\n%s", path, i, got, want)
			}
			if outcomes(t, l, false) != outcomes(t, w, false) {
				differ[name] = true
			}
		}
	}
	for name := range guessed {
		if !differ[name] {
			t.Errorf("%s is the same with lean detail, and need not be in the list", name)
		}
	}
}

// outcomes tells what has to be the same in both; without what is found of
// recipients, if that is guessed.
func outcomes(t *testing.T, r *store.Record, guessed bool) string {
	var helo, evidence []string
	skip := rules.LeanMisses
	c := r.Counts
	if guessed {
		skip |= rules.UnknownRecipient | rules.Harvest
		c.RcptPermfail = 0
	}
	err := r.Steps(func(s *store.Step) bool {
		switch s.Kind {
		case store.KindHelo:
			if s.Result == store.ResultOK {
				helo = append(helo, fmt.Sprintf("%s %q", s.Arg, s.Text))
			}
		case store.KindFinding:
			token := rules.TokenByName(string(s.Text))
			if (token == nil || token.Evidence&skip == 0) && string(s.By) != "command" {
				evidence = append(evidence, fmt.Sprintf("%s %s", s.Text, s.By))
			}
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(evidence)
	evidence = slices.Compact(evidence)
	return fmt.Sprintf("%v %q %v local %v, mails %d, rcpt %d %d %d, auth %d %d, %q, %q", r.Src, r.RDNS, r.FCrDNS, r.Local,
		c.Mails, c.RcptOK, c.RcptPermfail, c.RcptTempfail, c.AuthPass, c.AuthFail, helo, evidence)
}

// playDetail plays a stream to a new Table.
func playDetail(t *testing.T, in []byte, lean bool) (records []*store.Record) {
	t.Helper()
	table := session.NewTable(session.Options{
		Record: func(end time.Time, id uint64, value []byte) {
			r, err := store.Decode(store.AppendKey(nil, end, id), bytes.Clone(value))
			if err != nil {
				t.Errorf("record: %v", err)
			}
			records = append(records, &r)
		},
		Log:      func([]byte) {},
		Lists:    func() *lookup.Lists { return lists },
		OwnAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.25")},
	})
	if lean {
		table.Lean()
	}
	if err := filter.Serve(bytes.NewReader(in), io.Discard, table, filter.Options{}); err != nil {
		t.Fatal(err)
	}
	table.Stop()
	slices.SortStableFunc(records, func(a, b *store.Record) int { return a.Start.Compare(b.Start) })
	return records
}
