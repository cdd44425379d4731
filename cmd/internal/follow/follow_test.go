package follow

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/memory"
	"scanwatch/rules"
)

// loaded is a control.State that has no file.
type loaded struct{ control.State }

func (loaded) Flush(context.Context) error { return nil }

// A filter answers a companion's commands.
type filter struct {
	bans       *memory.Bans
	companions *control.Companions
	dir        string
	stop       func()
}

func start(t *testing.T, dir string) *filter {
	t.Helper()
	f := &filter{bans: memory.New().Bans, dir: dir}
	// Root may use all commands, so the companion's user does not matter here.
	f.companions = control.NewCompanions([]*rules.Companion{{Role: rules.RoleServe, User: "4002"}})
	now := func() int64 { return time.Now().UnixMicro() }
	server := control.Server{Companions: f.companions, Commands: []control.Command{
		control.BansCommand(f.bans, loaded{}, now, func([]netip.Prefix) func(netip.Prefix) bool { return func(netip.Prefix) bool { return false } }, func() bool { return true }),
		f.companions.NoteCommand(),
	}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); server.Run(ctx, dir, 10*time.Millisecond) }()
	f.stop = func() { cancel(); <-done }
	return f
}

func (f *filter) ban(s string) {
	f.bans.AddPrefix(netip.MustParsePrefix(s), time.Hour, "x", time.Now().UnixMicro())
}

// A call records the arguments of a call to Apply.
type call struct {
	full bool
	list string // prefixes, with ! before those whose ban has ended
}

// TestRun checks that a follower receives all bans, and then changes to them. If the
// filter restarts with other bans, the follower must receive all bans again. An error
// from Apply must not end the connection.
func TestRun(t *testing.T) {
	dir, err := os.MkdirTemp("", "follow")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	calls, results := make(chan call), make(chan error)
	var log bytes.Buffer
	follower := &Follower{RunDir: dir, Name: "serve", Log: slog.New(slog.NewTextHandler(&log, nil))}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		follower.Run(ctx, func(_ context.Context, list control.BanList, entries []control.BanEntry) (int, error) {
			var words []string
			for _, e := range entries {
				mark := ""
				if e.Seconds == 0 {
					mark = "!"
				}
				words = append(words, mark+e.Prefix.String())
			}
			calls <- call{list.Full, strings.Join(words, " ")}
			return len(entries), <-results
		})
	}()
	expect := func(want call, result error) {
		t.Helper()
		// If a wait ends without a change, Apply is called without entries.
		for {
			got := <-calls
			if !got.full && got.list == "" && want.list != "" {
				results <- nil
				continue
			}
			if got != want {
				t.Errorf("call %+v, want %+v", got, want)
			}
			results <- result
			return
		}
	}
	f := start(t, dir)
	expect(call{true, ""}, nil)
	f.ban("192.0.2.1/32")
	expect(call{false, "192.0.2.1/32"}, nil)
	f.bans.Revoke(netip.MustParsePrefix("192.0.2.1/32"), false, time.Now().UnixMicro())
	expect(call{false, "!192.0.2.1/32"}, nil)
	f.ban("192.0.2.2/32")
	expect(call{false, "192.0.2.2/32"}, errors.New("the firewall does not answer"))
	f.ban("192.0.2.4/32")
	expect(call{false, "192.0.2.4/32"}, nil) // Apply keeps the earlier changes
	// The status shows the result shortly after the call. On failure, the time limit of
	// go test ends the loop.
	for s := f.companions.Status()[0]; s.Entries != 1 || s.Error != ""; s = f.companions.Status()[0] {
		time.Sleep(time.Millisecond)
	}
	f.stop()
	f = start(t, dir)
	f.ban("192.0.2.3/32")
	for { // the first list may be sent before the ban
		got := <-calls
		results <- nil
		if strings.Contains(got.list, "192.0.2.3/32") {
			break
		}
		if !got.full && got.list != "" {
			t.Errorf("after the restart: %+v", got)
		}
	}
	cancel()
	f.stop()
	for {
		select {
		case <-calls:
			results <- nil
			continue
		case <-done:
		}
		break
	}
	if !strings.Contains(log.String(), "bans followed again") {
		t.Errorf("the log lacks the end of the error: %s", log.String())
	}
	if strings.Contains(log.String(), "the firewall does not answer") {
		t.Errorf("an error that apply logs: %s", log.String())
	}
}
