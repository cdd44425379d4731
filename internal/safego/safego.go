// Package safego recovers panics.
//
// A panic in any goroutine ends the whole process, and smtpd shuts down when a filter
// exits. The filter therefore starts its goroutines through this package.
//
// The package imports no other package of the program.
package safego

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"
)

// A PanicError is a recovered panic.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("bug: %v", e.Value) }

// Stack returns a log attribute with a PanicError's stack. For any other error,
// the attribute is empty, and log handlers omit it.
func Stack(err error) slog.Attr {
	var p *PanicError
	if errors.As(err, &p) {
		return slog.String("stack", string(p.Stack))
	}
	return slog.Attr{}
}

// Run calls f. If f panics, Run returns a *PanicError.
func Run(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &PanicError{p, debug.Stack()}
		}
	}()
	return f()
}

// Go calls f in a new goroutine. If f panics, the panic is logged and the goroutine ends. name is a
// noun phrase that identifies f in the log.
func Go(log *slog.Logger, name string, f func()) {
	go func() { _ = once(log, name, "not restarted", f) }()
}

// Limits on the pause after a panic, which doubles with each further panic.
const (
	pauseFirst = time.Second
	pauseLast  = 30 * time.Second
)

// Loop calls f in a new goroutine and calls it again after each panic. When f
// returns, done is called unless done is nil. Only the first panic is logged.
func Loop(log *slog.Logger, name string, f, done func()) { loop(log, name, f, done, pauseFirst) }

func loop(log *slog.Logger, name string, f, done func(), pause time.Duration) {
	go func() {
		if done != nil {
			defer done()
		}
		for once(log, name, "restarting", f) != nil {
			log = nil
			time.Sleep(pause)
			pause = min(2*pause, pauseLast)
		}
	}()
}

// once calls f and logs a panic. The log may be nil.
func once(log *slog.Logger, name, consequence string, f func()) error {
	err := Run(func() error { f(); return nil })
	if p, ok := err.(*PanicError); ok && log != nil {
		// The log handler may also panic.
		_ = Run(func() error {
			log.Error("panic in "+name+", "+consequence, "err", p, "stack", string(p.Stack))
			return nil
		})
	}
	return err
}
