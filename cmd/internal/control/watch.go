package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"scanwatch/filter/events"
)

// anything stands for an argument of watch that chooses nothing.
const anything = "-"

var errWatched = errors.New("the watcher has left")

// WatchVerb streams events, as f gets them, until the client leaves. It
// answers at once, so that the client knows from when on it sees everything.
func WatchVerb(f *events.Fan) Verb {
	return Verb{"watch", 2, func(ctx context.Context, a *Answer, args []string) error {
		var c events.Choice
		if args[0] != anything {
			c.Evidence = args[0]
		}
		if args[1] != anything {
			p, err := netip.ParsePrefix(args[1])
			if err != nil {
				return err
			}
			c.Src = p.Masked()
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

// whenGone calls leave when the client closes its side, or says something. A
// client that only listens has no time limit. The caller must call stop.
func (a *Answer) whenGone(leave func()) (stop func(), err error) {
	if err := a.conn.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() { // contained: only waits
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

// Watch calls visit with the line of each event of the choice, newline included,
// until the filter ends, visit fails, or the client is closed. It calls begun
// when everything that happens from then on will be seen.
func (c *Client) Watch(what events.Choice, begun func(), visit func(line []byte) error) error {
	evidence, src := anything, anything
	if what.Evidence != "" {
		evidence = what.Evidence
	}
	if what.Src.IsValid() {
		src = what.Src.String()
	}
	if err := c.ask(nil, "watch", evidence, src); err != nil {
		return err
	}
	if err := c.conn.SetReadDeadline(time.Time{}); err != nil { // it may be quiet for days
		return err
	}
	begun()
	for {
		line, err := c.read()
		if errors.Is(err, io.EOF) {
			return errors.New("the filter has ended, or this was too slow for it")
		}
		if err != nil {
			return fmt.Errorf("watch the running filter: %w", err)
		}
		if err := visit([]byte(line + "\n")); err != nil {
			return err
		}
	}
}
