// Package contain keeps a bug in the background from ending the process: Go
// ends all of it when one goroutine panics, and smtpd ends when a filter does.
// Every goroutine of the filter is begun here, or has a reason not to.
package contain

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"
)

// A PanicError is what a panic has become.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("bug: %v", e.Value) }

// Stack is for a log line about err: where the panic was, if err is one.
func Stack(err error) slog.Attr {
	var p *PanicError
	if errors.As(err, &p) {
		return slog.String("stack", string(p.Stack))
	}
	return slog.Attr{} // which handlers leave out
}

// Run calls f. If f panics, the error is a *PanicError.
func Run(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &PanicError{p, debug.Stack()}
		}
	}()
	return f()
}

// Go calls f in a goroutine of its own. If f panics, that is logged, and what f
// was for is over.
func Go(log *slog.Logger, what string, f func()) {
	go func() { _ = once(log, what, "it is not begun again", f) }()
}

// The pause after a panic; doubled each time.
const (
	pauseFirst = time.Second
	pauseLast  = 30 * time.Second
)

// Loop calls f in a goroutine of its own until it returns, again when it has
// panicked, and then done, which may be nil. The first panic is logged.
func Loop(log *slog.Logger, what string, f, done func()) { loop(log, what, f, done, pauseFirst) }

func loop(log *slog.Logger, what string, f, done func(), pause time.Duration) {
	go func() {
		if done != nil {
			defer done()
		}
		for once(log, what, "it begins again", f) != nil {
			log = nil
			time.Sleep(pause)
			pause = min(2*pause, pauseLast)
		}
	}()
}

// once calls f and logs its panic, with the stack, unless log is nil.
func once(log *slog.Logger, what, then string, f func()) error {
	err := Run(func() error { f(); return nil })
	if p, ok := err.(*PanicError); ok && log != nil {
		// A logger that panics, too, must not undo what this is for.
		_ = Run(func() error {
			log.Error(what+" failed badly, "+then, "err", p, "stack", string(p.Stack))
			return nil
		})
	}
	return err
}
