package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/events"
	"scanwatch/store"
)

// TestProblems: what the filter says is wrong stands in the report, and so does
// a budget that is too small.
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
	for _, c := range []struct {
		name string
		s    control.Status
		want []string
	}{
		{"all is well", control.Status{Store: store.Status{Budget: 1 << 20}}, nil},
		{"everything is wrong", control.Status{
			Store:  store.Status{Budget: 10_000, Error: "no space left", Since: now},
			State:  store.StateStatus{Error: "read-only file system", Since: now},
			Events: &events.Status{Error: "no reader", Since: now},
			Config: control.Config{File: "/etc/scanwatch.conf", Problem: "it is broken", Notes: []string{"table <drop>: open /etc/drop: no such file"}},
		}, []string{
			"sessions cannot be written since 2026-11-02 12:00:00: no space left",
			"what is remembered cannot be written since 2026-11-02 12:00:00: read-only file system",
			"events cannot be written since 2026-11-02 12:00:00: no reader",
			"/etc/scanwatch.conf: it is broken",
			"table <drop>: open /etc/drop: no such file",
			"85 % of the disk budget is used with 5 days of sessions: the oldest will go before the 90 days of keep are over; see scanwatch stats",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			server, ended := &control.Server{Verbs: []control.Verb{control.StatusVerb(func() control.Status { return c.s })}}, make(chan bool)
			go func() { server.Run(ctx, dir, time.Second); close(ended) }()
			defer func() { stop(); <-ended }()
			var client *control.Client
			for { // go test's own limit ends this
				if client, err = control.Dial(dir); err == nil {
					break
				}
			}
			defer client.Close()
			e := program(new(bytes.Buffer))
			e.dir = dir
			if got := e.problems(client); !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// TestReplaceFile: a file is replaced whole or not at all, and nothing is left
// beside it.
func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "page.html")
	if err := os.WriteFile(name, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(name, link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, text string
		err        error
		want       string
	}{
		{name, "half", fmt.Errorf("disk full"), "old"},
		{name, "new", nil, "new"},
		{link, "through", nil, "through"},
	} {
		err := replaceFile(c.name, 0o640, func(w io.Writer) error {
			fmt.Fprint(w, c.text)
			return c.err
		})
		if (err != nil) != (c.err != nil) {
			t.Errorf("%s: %v", c.text, err)
		}
		got, err := os.ReadFile(c.name)
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %q, %v", c.text, got, err)
		}
	}
	if got, _ := os.ReadFile(name); string(got) != "new" {
		t.Errorf("what a link leads to has become %q", got)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("left are %v, %v", left, err)
	}
	if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}
