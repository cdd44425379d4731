package reports

import (
	"context"
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

// now is the time of these tests.
var now = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)

// TestProblems checks that a report contains the problems of the filter, and a problem
// if the budget is too small.
func TestProblems(t *testing.T) {
	dir, err := os.MkdirTemp("", "sw") // a short name for the socket
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
	lost := time.Now().UTC() // the filter reports only the day
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
			"the operator has stopped enforcement; scanwatch mode policy ends that",
		}},
		{"a loss long ago", control.Status{Store: store.Status{Budget: 1 << 20}, Lost: text.At(lost.AddDate(0, 0, -40))}, nil},
		{"everything is wrong", control.Status{
			Store:  store.Status{Budget: 10_000, Error: "no space left", Since: text.At(now)},
			State:  store.StateStatus{Error: "read-only file system", Since: text.At(now)},
			Config: control.Config{File: "/etc/scanwatch.conf", Problem: "it is broken", Notes: []string{"table <drop>: open /etc/drop: no such file"}},
		}, []string{
			"sessions cannot be written since 2026-11-02 12:00:00: no space left",
			"state.db cannot be written since 2026-11-02 12:00:00: read-only file system",
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
