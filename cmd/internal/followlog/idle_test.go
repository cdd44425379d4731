package followlog

import (
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/serverlog"
	"scanwatch/internal/smtp"
)

// A counter counts ended sessions.
type counter struct{ ended int }

func (*counter) Site(string) {}
func (c *counter) Event(e *smtp.Event) {
	if e.Kind == smtp.EventDisconnect {
		c.ended++
	}
}
func (*counter) Ask(*smtp.Event) smtp.Answer { return smtp.Answer{} }

// TestIdle checks that the clock of an idle log advances with this host's clock. A KumoMTA session
// then ends a minute after its latest record.
func TestIdle(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	add(t, name, "")
	f := &Front{Kind: serverlog.ByName("kumomta"), File: name, Zone: time.UTC}
	f.tail.name = name
	if err := f.tail.open(nil); err != nil {
		t.Fatal(err)
	}
	defer f.tail.file.Close()
	var c counter
	f.begin(&c)
	add(t, name, `{"type":"Rejection","id":"","sender":"","recipient":"","response":{"code":501,"content":"Syntax error","command":"XYZZY"},"peer_address":{"name":"x.example","addr":"203.0.113.201"},"timestamp":1795200000,"session_id":"a"}`+"\n")
	now := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	for i := range 4 * 59 { // four times a second
		if _, err := f.advance(now.Add(time.Duration(i) * time.Second / 4)); err != nil {
			t.Fatal(err)
		}
	}
	if c.ended != 0 || f.last != 1795200000e6 {
		t.Errorf("%d sessions have ended within a minute; the latest line is of %s", c.ended, time.UnixMicro(f.last))
	}
	for i := range 3 {
		if _, err := f.advance(now.Add(time.Minute + time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if c.ended != 1 {
		t.Errorf("%d sessions have ended after a minute", c.ended)
	}
}

// TestSkew checks that a log in another time zone is reported. Lines that were written while the log
// was not followed may be old.
func TestSkew(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	line := func(at string) string { return "Dec  1 " + at + " mx postfix/smtpd[1]: warning: x\n" }
	add(t, name, line("08:00:00"))
	var log bytes.Buffer
	f := &Front{Kind: serverlog.ByName("postfix"), File: name, Zone: time.UTC, log: slog.New(slog.NewTextHandler(&log, nil))}
	f.tail.name = name
	if err := f.tail.open(&Position{}); err != nil {
		t.Fatal(err)
	}
	defer f.tail.file.Close()
	f.begin(&counter{})
	now := time.Date(2026, 12, 1, 10, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		line     string
		problems int // that have been logged
		now      bool
	}{
		{"", 0, false},              // read late
		{line("08:01:00"), 1, true}, // UTC, while the zone is two hours ahead
		{line("08:02:00"), 1, true},
		{line("09:59:00"), 1, false},
	} {
		if c.line != "" {
			add(t, name, c.line)
		}
		_, err := f.advance(now)
		f.report(err)
		logged := strings.Count(log.String(), "level=WARN")
		if shown := strings.Contains(f.status().Problem, zoneHint); err != nil || logged != c.problems || shown != c.now {
			t.Errorf("%q: %d problems %q, %v", c.line, logged, f.status().Problem, err)
		}
	}
}

// TestSkewOfPipe checks that a line in a pipe is compared with the clock only after a pause, because
// the other lines may come from a file.
func TestSkewOfPipe(t *testing.T) {
	old := []byte(time.Now().Add(-2*time.Hour).UTC().Format(time.RFC3339) + " mx postfix/smtpd[1]: warning: x\n")
	for _, pause := range []time.Duration{0, 2 * time.Second} {
		f := &Front{Kind: serverlog.ByName("postfix"), File: "-", Zone: time.UTC, log: slog.New(slog.DiscardHandler)}
		f.begin(&counter{})
		f.fed = f.fed.Add(-pause)
		lines := make(chan []byte, 1)
		lines <- old
		close(lines)
		f.consume(t.Context(), lines, nil)
		if f.skewed != (pause > 0) {
			t.Errorf("after a pause of %v: %t", pause, f.skewed)
		}
	}
}

// TestForeignLog checks that the log of another kind of server is reported.
func TestForeignLog(t *testing.T) {
	text := readFile(t, "../../../filter/serverlog/testdata/postfix.log")
	for kind, want := range map[string]bool{"exim": true, "sendmail": true, "postfix": false} {
		name := filepath.Join(t.TempDir(), "log")
		add(t, name, strings.Repeat(text, 10))
		var log bytes.Buffer
		f := &Front{Kind: serverlog.ByName(kind), File: name, Zone: time.UTC, log: slog.New(slog.NewTextHandler(&log, nil))}
		f.tail.name = name
		if err := f.tail.open(&Position{}); err != nil {
			t.Fatal(err)
		}
		defer f.tail.file.Close()
		f.begin(&counter{})
		for range 2 {
			_, err := f.advance(time.Now())
			f.report(err)
		}
		logged := strings.Count(log.String(), "log not understood")
		if shown := strings.Contains(f.status().Problem, "no sessions of "+kind); shown != want || logged > 1 || (logged == 1) != want {
			t.Errorf("%s: %d warnings, %q", kind, logged, f.status().Problem)
		}
	}
}

// A stopper stops the program at its first event.
type stopper struct {
	counter
	stop func()
}

func (s *stopper) Event(*smtp.Event) { s.stop() }

// TestPipeStop checks that a pipe is no longer read when the program stops while it handles a line.
func TestPipeStop(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	const session = "Nov 29 07:43:00 mx postfix/smtpd[302]: connect from x.example[203.0.113.22]\n" +
		"Nov 29 07:43:00 mx postfix/smtpd[302]: disconnect from x.example[203.0.113.22] ehlo=1 quit=1 commands=2\n"
	f := &Front{Kind: serverlog.ByName("postfix"), Stdin: strings.NewReader(strings.Repeat(session, 10)), Zone: time.UTC, log: slog.New(slog.DiscardHandler)}
	f.begin(&stopper{stop: stop})
	f.pipe(ctx) // must return
}
