package control

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"sync"
	"time"
)

// MaxFacts is the maximum length of the argument of SendSession in bytes.
const MaxFacts = maxLine - 100

// sourceSilence is the time after which a log is no longer read.
const sourceSilence = 30 * time.Second

// A Log is a log that scanwatch follow reads for a milter. The zero value is a log that is not
// read.
type Log struct {
	mu     sync.Mutex
	status SourceStatus
	heard  time.Time
}

// Status returns the status of the log, or nil if it was never read.
func (l *Log) Status() *SourceStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.heard.IsZero() {
		return nil
	}
	s := l.status
	if time.Since(l.heard) > sourceSilence {
		s.Problem = "no longer read: start the service of scanwatch follow --milter, see milter-scanwatch(8)"
	}
	return &s
}

func (l *Log) set(s SourceStatus) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status, l.heard = s, time.Now()
}

var errNotServing = errors.New("starting or stopping; try again")

// Commands returns the commands that scanwatch follow sends. alive is called for each status of a
// readable log, and session for the facts of each session. Both report whether the milter is serving
// clients.
func (l *Log) Commands(alive func() bool, session func(facts string) (bool, error)) []Command {
	return []Command{
		{"source", 1, func(_ context.Context, a *Answer, args []string) error {
			data, err := base64.RawURLEncoding.DecodeString(args[0])
			if err != nil {
				return err
			}
			var s SourceStatus
			if err := json.Unmarshal(data, &s); err != nil {
				return err
			}
			// The milter must not wait for facts from a log that was never readable.
			if reads := s.Problem == "" || s.Lines > 0; reads && !alive() {
				return errNotServing
			}
			l.set(s)
			return a.JSON(struct{}{})
		}},
		{"session", 1, func(_ context.Context, a *Answer, args []string) error {
			ok, err := session(args[0])
			if err == nil && !ok {
				err = errNotServing
			}
			if err != nil {
				return err
			}
			return a.JSON(struct{}{})
		}},
	}
}

// SendSource reports the status of the log that the client reads.
func SendSource(c *Client, s *SourceStatus) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return c.ask(nil, "source", base64.RawURLEncoding.EncodeToString(data))
}

// SendSession sends the facts of a session in the log, at most MaxFacts bytes.
func SendSession(c *Client, facts string) error { return c.ask(nil, "session", facts) }
