package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"scanwatch/filter/events"
	"scanwatch/internal/prefix"
)

// anything is the argument with which watch selects all events.
const anything = "-"

// maxWatchers is the maximum number of clients that watch on one socket. Operators and
// companions have separate limits.
const maxWatchers = events.MaxWatchers / 2

var errWatched = errors.New("client disconnected")

// WatchCommand returns the command that sends an answer line and then f's events until
// the client disconnects.
func WatchCommand(f *events.Fan) Command {
	var watching atomic.Int32
	return Command{"watch", 2, func(ctx context.Context, a *Answer, args []string) error {
		defer watching.Add(-1)
		if watching.Add(1) > maxWatchers {
			return events.ErrWatchers
		}
		var c events.Choice
		if args[0] != anything {
			c.Evidence = args[0]
		}
		if args[1] != anything {
			p, _, err := prefix.Parse(args[1])
			if err != nil {
				return err
			}
			c.Src = p
		}
		w, err := f.Watch(c)
		if err != nil {
			return err
		}
		defer w.Close()
		if err := a.JSON(struct{}{}); err != nil {
			return err
		}
		ctx, leave := context.WithCancel(ctx)
		gone, err := a.whenGone(leave)
		if err != nil {
			return err
		}
		defer gone()
		var lines []byte
		for {
			if lines, err = w.Next(ctx, lines); err != nil {
				return errWatched
			}
			a.until = time.Now().Add(copyTimeout)
			if _, err := a.Write(lines); err != nil {
				return err
			}
		}
	}}
}

// whenGone calls leave when the client sends anything or closes its side. It removes the
// read deadline, because a watching client may be silent for days. The caller must call
// stop.
func (a *Answer) whenGone(leave func()) (stop func(), err error) {
	if err := a.conn.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() { // safe: only waits
		defer close(done)
		defer leave()
		var b [1]byte
		_, _ = a.conn.Read(b[:])
	}()
	return func() {
		_ = a.conn.SetReadDeadline(time.Unix(1, 0))
		<-done
	}, nil
}

// Watch calls started and then visit for each selected event. line is the event's line,
// including the newline. Watch returns when the filter stops, visit returns an error, or
// the client is closed.
func (c *Client) Watch(choice events.Choice, started func(), visit func(line []byte) error) error {
	evidence, src := anything, anything
	if choice.Evidence != "" {
		evidence = choice.Evidence
	}
	if choice.Src.IsValid() {
		src = choice.Src.String()
	}
	if err := c.ask(nil, "watch", evidence, src); err != nil {
		return err
	}
	if err := c.conn.SetReadDeadline(time.Time{}); err != nil { // events may be days apart
		return err
	}
	started()
	for {
		line, err := c.read()
		if errors.Is(err, io.EOF) {
			return errors.New("watch the filter: disconnected; the filter stopped, or this client was too slow")
		}
		if err != nil {
			return fmt.Errorf("watch the filter: %w", err)
		}
		if err := visit([]byte(line + "\n")); err != nil {
			return err
		}
	}
}
