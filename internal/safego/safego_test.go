package safego

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestRun checks that Run returns errors unchanged and turns panics into errors.
func TestRun(t *testing.T) {
	want := errors.New("no")
	if err := Run(func() error { return want }); err != want {
		t.Errorf("got %v, want %v", err, want)
	}
	var p *PanicError
	if err := Run(func() error { panic("oops") }); !errors.As(err, &p) || err.Error() != "bug: oops" || !bytes.Contains(p.Stack, []byte("safego_test.go")) {
		t.Errorf("got %v", err)
	}
}

// TestLoop checks that a function that panics is called again until it returns, and
// that the panic is logged once.
func TestLoop(t *testing.T) {
	var out bytes.Buffer
	calls, done := 0, make(chan struct{})
	loop(slog.New(slog.NewTextHandler(&out, nil)), "the work", func() {
		if calls++; calls < 3 {
			panic("oops")
		}
	}, func() { close(done) }, time.Nanosecond)
	<-done
	if calls != 3 {
		t.Errorf("%d calls, want 3", calls)
	}
	log := out.String()
	if strings.Count(log, "level=ERROR") != 1 || !strings.Contains(log, "panic in the work, restarting") || !strings.Contains(log, "safego_test.go") {
		t.Errorf("logged %q", log)
	}
}

// broken is a log writer that panics.
type broken struct{}

func (broken) Write([]byte) (int, error) { panic("log") }

// TestGo checks that a panic in the log does not end the process.
func TestGo(t *testing.T) {
	done := make(chan struct{})
	Go(slog.New(slog.NewTextHandler(broken{}, nil)), "x", func() { defer close(done); panic("oops") })
	<-done
	if err := once(nil, "x", "", func() { panic("oops") }); err == nil {
		t.Error("no error without a log")
	}
}
