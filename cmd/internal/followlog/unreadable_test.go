package followlog

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/serverlog"
)

// TestUnreadable checks that the milter's status shows a log that does not exist, as on a host
// without a syslog daemon.
func TestUnreadable(t *testing.T) {
	dir, err := os.MkdirTemp("", "sw") // a path short enough for the socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	var log control.Log
	waits := false
	ctx, stop := context.WithCancel(t.Context())
	server, ended := &control.Server{Commands: log.Commands(func() bool { waits = true; return true }, nil)}, make(chan bool)
	go func() { server.Run(ctx, dir, time.Second); close(ended) }()
	defer func() { stop(); <-ended }()
	for { // until the server is listening; the time limit of go test ends the loop
		if c, err := control.Dial(dir); err == nil {
			c.Close()
			break
		}
	}
	f := Front{Kind: serverlog.ByName("postfix"), File: filepath.Join(dir, "mail.log")}
	if f.Open(dir, slog.New(slog.DiscardHandler)) == nil {
		t.Fatal("a log that does not exist is open")
	}
	f.ReportFailure()
	if s := log.Status(); s == nil || !strings.Contains(s.Problem, "mail.log: no such file or directory; without a syslog daemon, read the journal, see milter-scanwatch(8)") || waits {
		t.Errorf("status %+v, the milter waits for the log: %t", s, waits)
	}
}
