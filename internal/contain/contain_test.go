package contain

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	want := errors.New("no")
	if err := Run(func() error { return want }); err != want {
		t.Errorf("got %v, want %v", err, want)
	}
	var p *PanicError
	if err := Run(func() error { panic("oops") }); !errors.As(err, &p) || err.Error() != "bug: oops" || !bytes.Contains(p.Stack, []byte("contain_test.go")) {
		t.Errorf("got %v", err)
	}
}

// TestLoop: what panics is begun again until it returns, and logged once.
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
	if strings.Count(log, "level=ERROR") != 1 || !strings.Contains(log, "the work failed badly") || !strings.Contains(log, "contain_test.go") {
		t.Errorf("logged %q", log)
	}
}

// broken is a log that panics.
type broken struct{}

func (broken) Write([]byte) (int, error) { panic("log") }

func TestGo(t *testing.T) {
	done := make(chan struct{})
	Go(slog.New(slog.NewTextHandler(broken{}, nil)), "x", func() { defer close(done); panic("oops") })
	<-done
	if err := once(nil, "x", "", func() { panic("oops") }); err == nil {
		t.Error("no error without a log")
	}
}
