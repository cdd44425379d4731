package reports

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/selector"
	"scanwatch/cmd/internal/statedir"
	"scanwatch/internal/text"
	"scanwatch/store"
)

// now is the current time in tests.
var now = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)

// TestProblems checks that a report lists the filter's problems, including a disk budget
// that is too small.
func TestProblems(t *testing.T) {
	dir, err := os.MkdirTemp("", "sw") // a path short enough for the socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Mkdir(filepath.Join(dir, "sessions"), 0o755); err != nil {
		t.Fatal(err)
	}
	segment := filepath.Join(dir, "sessions", now.AddDate(0, 0, -5).Format("2006-01-02")+".db")
	if err := os.WriteFile(segment, make([]byte, 8500), 0o644); err != nil {
		t.Fatal(err)
	}
	lost := time.Now().UTC() // the filter stores only the day
	for _, c := range []struct {
		name string
		s    control.Status
		want []string
	}{
		{"all is well", control.Status{Store: store.Status{Budget: 1 << 20}}, nil},
		{"a lost state, and enforcement is stopped", control.Status{Store: store.Status{Budget: 1 << 20},
			Lost: text.At(lost), Config: control.Config{Halted: &control.Halted{Mode: "enforce"}},
		}, []string{
			"state.db was lost on " + lost.Format(time.DateOnly) + ": earlier bans and standing are missing; " + control.LossRemedy,
			"the operator has stopped enforcement; scanwatch mode policy resumes it",
		}},
		{"a companion is not running", control.Status{Store: store.Status{Budget: 1 << 20}, Started: text.At(now),
			Companions: []control.CompanionStatus{{Name: "serve", User: "_swserve"}},
		}, []string{"companion serve is not running; start its service as the user _swserve"}},
		{"a loss long ago", control.Status{Store: store.Status{Budget: 1 << 20}, Lost: text.At(lost.AddDate(0, 0, -40))}, nil},
		{"a configuration was created", control.Status{Store: store.Status{Budget: 1 << 20}, Config: control.Config{Problem: "restart smtpd"}}, []string{"configuration: restart smtpd"}},
		{"a log is unreadable", control.Status{Store: store.Status{Budget: 1 << 20}, Source: &control.SourceStatus{Problem: "no such file"}}, []string{"log of the mail server: no such file"}},
		{"everything is wrong", control.Status{
			Store:  store.Status{Budget: 10_000, Error: "no space left", Since: text.At(now)},
			State:  store.StateStatus{Error: "read-only file system", Since: text.At(now)},
			Config: control.Config{File: "/etc/scanwatch.conf", Problem: "it is broken", Notes: []string{"table <drop>: open /etc/drop: no such file"}},
		}, []string{
			"sessions have not been written since 2026-11-02 12:00:00: no space left",
			"state.db has not been written since 2026-11-02 12:00:00: read-only file system",
			"/etc/scanwatch.conf: it is broken",
			"table <drop>: open /etc/drop: no such file",
			"85% of the disk budget is used by only 5 days; the retention of 90 days cannot be met; see scanwatch stats",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			server, ended := &control.Server{Commands: []control.Command{control.StatusCommand(func() control.Status { return c.s })}}, make(chan bool)
			go func() { server.Run(ctx, dir, time.Second); close(ended) }()
			defer func() { stop(); <-ended }()
			var client *control.Client
			for { // the time limit of go test ends the loop
				if client, err = control.Dial(dir); err == nil {
					break
				}
			}
			defer client.Close()
			s := Source{Dir: &statedir.Dir{Path: dir, Now: func() time.Time { return now }}, Selector: new(selector.Selector), Zone: time.UTC}
			if got := s.problems(client); !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// TestFuture checks reports after a session was recorded with a clock that was years ahead. The
// session must not extend the period of later reports, because every ban would then appear to have
// ended.
func TestFuture(t *testing.T) {
	dir := t.TempDir()
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	for i, end := range []time.Time{now.Add(-time.Hour), now.Add(time.Hour), now.AddDate(10, 0, 0)} {
		r := store.Record{ID: uint64(i), Start: end, End: end, Src: netip.MustParseAddrPort("192.0.2.1:25")}
		b := store.AppendStep(nil, &store.Step{Kind: store.KindFinding, Text: []byte("no-mail"), Confidence: []byte("high")}, 0)
		w.Add(end, r.ID, store.AppendRecord(nil, &r, b))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	ban(t, dir, map[string]bool{"192.0.2.1": false})
	for _, c := range []struct {
		until    time.Time
		end      time.Time
		sessions int
	}{
		{time.Time{}, now.Add(time.Hour), 2}, // the clock was set back by an hour
		{now.AddDate(20, 0, 0), now.AddDate(10, 0, 0), 3},
	} {
		s := Source{Dir: &statedir.Dir{Path: dir, Now: func() time.Time { return now }}, Selector: &selector.Selector{Since: now.AddDate(0, 0, -1), Until: c.until}, Zone: time.UTC}
		got, incomplete, err := s.Summary(10, false)
		if err != nil || incomplete != nil {
			t.Fatal(err, incomplete)
		}
		if !got.Until.Equal(c.end) || got.Remote.Sessions != c.sessions || len(got.Scanning) != 1 {
			t.Errorf("until %v: %d sessions until %v, %d hosts", c.until, got.Remote.Sessions, got.Until, len(got.Scanning))
		}
		if future := strings.Contains(strings.Join(got.Problems, "\n"), "1 session is dated in the future"); future != c.until.IsZero() {
			t.Errorf("until %v: problems %q", c.until, got.Problems)
		}
		if c.until.IsZero() && got.Scanning[0].Banned.IsZero() {
			t.Error("the ban is missing")
		}
	}
}
