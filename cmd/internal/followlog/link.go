package followlog

import (
	"context"
	"log/slog"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/milter"
)

const (
	aliveEvery = 5 * time.Second // interval at which the milter receives the status
	retryEvery = time.Second     // interval between attempts to reach the milter
)

// A link sends the facts in the log to the milter that uses a state directory. While the milter is
// not running, the link waits, and the log is not read.
type link struct {
	dir    string
	log    *slog.Logger
	ctx    context.Context // done when the command must end
	client *control.Client // nil while there is no connection
	failed string          // latest error that was logged
	sent   time.Time       // time at which the milter last received the status
	// portless is set if the latest session in the log has no client port. warned is set once this
	// has been logged.
	portless, warned bool
	unsent           bool // the command ended before a session could be sent
}

// ServeMilter sends the facts in the log to the milter of the state directory, until SIGTERM or the
// end of standard input.
func (f *Front) ServeMilter() {
	f.link = &link{dir: f.dir, log: f.log}
	f.serve(&milter.Collector{Send: f.link.send})
	f.link.close()
}

func (k *link) close() {
	if k.client != nil {
		k.client.Close()
	}
	k.client = nil
}

// send sends a session, as soon as the milter is running.
func (k *link) send(l *milter.Logged) {
	if k.portless = l.Src.Port() == 0; k.portless && !k.warned {
		k.warned = true
		k.log.Warn("log has no client ports, its facts cannot be added to the sessions of the milter", "hint", portsHint)
	}
	facts, err := l.Encode(control.MaxFacts)
	for err == nil && !k.try(func(c *control.Client) error { return control.SendSession(c, facts) }) {
		select {
		case <-k.ctx.Done():
			k.unsent = true
			return
		case <-time.After(retryEvery):
		}
	}
}

const portsHint = "add smtpd_client_port_logging = yes to main.cf, and run postfix reload"

// alive sends the status of the log from time to time.
func (k *link) alive(s control.SourceStatus) {
	if time.Since(k.sent) < aliveEvery {
		return
	}
	k.sent = time.Now()
	if s.Problem == "" && k.portless {
		s.Problem = "no client ports; " + portsHint
	}
	k.try(func(c *control.Client) error { return control.SendSource(c, &s) })
}

// try sends a command, and reports success. A new error is logged.
func (k *link) try(command func(*control.Client) error) bool {
	var err error
	if k.client == nil {
		k.client, err = control.DialAsOwner(k.dir)
	}
	if err == nil {
		err = command(k.client)
	}
	if err == nil {
		k.failed = ""
		return true
	}
	k.close()
	if err.Error() != k.failed {
		k.failed = err.Error()
		k.log.Warn("milter not reached, trying again", "err", err)
	}
	return false
}
