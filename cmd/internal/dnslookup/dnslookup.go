// Package dnslookup asks DNS lists (RFC 5782) about the running filter's clients. The package
// receives the questions over the companions' socket, and returns the answers.
//
// A listing counts only if the list's configured codes include all returned addresses. The answer
// is unknown if a list returns an error code, if a resolver invents addresses for missing names, or
// if a query fails.
package dnslookup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/dnslist"
	"scanwatch/internal/safego"
	"scanwatch/rules"
)

// Limits of pending questions. Each list has its own workers, so that a slow list does not delay
// the others.
const (
	workers    = 32   // per list
	maxJobs    = 256  // pending questions per list
	maxAnswers = 1024 // waiting to be sent to the filter
	maxBatch   = 128  // answers in one command
)

// The filter receives the status at least every noteInterval. Changes are detected every
// checkInterval.
const (
	noteInterval  = 10 * time.Second
	checkInterval = time.Second / 2
)

// Pauses between attempts to reach the filter.
const (
	firstReconnect = 500 * time.Millisecond
	lastReconnect  = 5 * time.Second
)

// A Service asks DNS lists.
type Service struct {
	runDir  string
	name    string // of the companion
	port    uint16
	log     *slog.Logger
	lists   map[string]*list // by ID
	order   []*list
	answers chan dnslist.Answer

	mu    sync.Mutex
	stale []string // names of lists that the filter defines differently
}

// New reads the keys and returns a service. A list whose key is unusable is disabled. If no
// resolvers are configured, New uses the system's.
func New(c *rules.Companion, lookups []*rules.Lookup, runDir string, log *slog.Logger) (*Service, error) {
	s := &Service{runDir: runDir, name: c.Name(), port: uint16(cmp.Or(c.Port, 53)), log: log, lists: map[string]*list{}, answers: make(chan dnslist.Answer, maxAnswers)}
	dns := &resolver{timeout: timeout}
	for _, a := range c.Resolvers {
		dns.servers = append(dns.servers, netip.AddrPortFrom(a, s.port))
	}
	if dns.servers == nil {
		var err error
		if dns.servers, err = systemServers(resolvConf, s.port); err != nil {
			return nil, err
		}
	}
	for _, l := range lookups {
		z, err := newList(l, dns, log, time.Now)
		if err != nil {
			log.Warn("list disabled", "lookup", z.Name, "zone", z.Zone, "because", err)
		}
		s.lists[z.id], s.order = z, append(s.order, z)
	}
	return s, nil
}

// Port returns the resolvers' port.
func (s *Service) Port() uint16 { return s.port }

// Run asks lists until ctx is done. If the connection to the filter fails, Run reconnects.
func (s *Service) Run(ctx context.Context) {
	for _, z := range s.order {
		if z.broken {
			continue
		}
		safego.Loop(s.log, "the test of a list", func() { z.run(ctx, func() { s.reply(ctx, dnslist.Answer{List: z.id, Cause: causeDisabled}) }) }, nil)
		for range workers {
			safego.Loop(s.log, "questions to lists", func() { s.work(ctx, z) }, nil)
		}
	}
	pause, logged := firstReconnect, ""
	for ctx.Err() == nil {
		worked, err := s.follow(ctx)
		if worked {
			pause, logged = firstReconnect, ""
		}
		if err != nil && ctx.Err() == nil && err.Error() != logged {
			logged = err.Error()
			s.log.Warn("no questions received", "companion", s.name, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, lastReconnect)
	}
}

func (s *Service) work(ctx context.Context, z *list) {
	for {
		select {
		case <-ctx.Done():
			return
		case a := <-z.jobs:
			s.reply(ctx, z.ask(ctx, a))
		}
	}
}

func (s *Service) reply(ctx context.Context, a dnslist.Answer) {
	select {
	case s.answers <- a:
	case <-ctx.Done():
	}
}

// follow exchanges questions and answers with the filter. It needs two connections, because a
// connection that waits for questions cannot send answers. worked reports whether the filter has
// responded.
func (s *Service) follow(ctx context.Context) (worked bool, err error) {
	questions, err := control.DialCompanion(s.runDir)
	if err != nil {
		return false, err
	}
	defer questions.Close()
	answers, err := control.DialCompanion(s.runDir)
	if err != nil {
		return false, err
	}
	defer answers.Close()
	if err := answers.Note(s.name, 0, 0, control.ErrStarting); err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { questions.Close(); answers.Close() })
	defer stop()
	ended := make(chan struct{})
	safego.Go(s.log, "answers to the filter", func() {
		defer close(ended)
		cancel(s.send(ctx, answers))
	})
	defer func() { cancel(nil); <-ended }()
	for {
		all, lists, err := control.Questions(questions, control.MaxWait)
		if err != nil {
			return worked, cmp.Or(context.Cause(ctx), err)
		}
		worked = true
		s.compare(lists)
		for _, q := range all {
			for _, id := range q.Lists {
				s.start(ctx, q.Addr, id)
			}
		}
	}
}

// start queues a question. The answer is unknown if too many questions are pending, or if the
// filter's definition of the list differs.
func (s *Service) start(ctx context.Context, a netip.Addr, id string) {
	z := s.lists[id]
	if z == nil || z.broken {
		s.reply(ctx, dnslist.Answer{Addr: a, List: id, Cause: causeDisabled})
		return
	}
	select {
	case z.jobs <- a:
	default:
		s.reply(ctx, dnslist.Answer{Addr: a, List: id, Cause: causeLost})
	}
}

// compare finds the lists that the filter and this service define differently. ids contains the IDs
// of the filter's lists.
func (s *Service) compare(ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stale = nil
	for _, id := range ids {
		if s.lists[id] == nil {
			name, _, _ := strings.Cut(id, "@")
			s.stale = append(s.stale, name)
		}
	}
}

// send sends answers and the status to the filter until ctx is done.
func (s *Service) send(ctx context.Context, c *control.Client) error {
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	var noted string
	var at time.Time
	for {
		used, problem := s.status()
		if now := fmt.Sprint(used, problem); now != noted || time.Since(at) >= noteInterval {
			noted, at = now, time.Now()
			if !s.fresh() && problem == nil {
				problem = control.ErrNoResult
			}
			if err := c.Note(s.name, used, 0, problem); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case a := <-s.answers:
			if _, err := control.SendFacts(c, s.batch(a)); err != nil {
				return err
			}
		}
	}
}

// fresh reports whether a resolver has answered since the previous call.
func (s *Service) fresh() (answered bool) {
	for _, z := range s.order {
		answered = z.fresh() || answered
	}
	return answered
}

// batch returns a and all other answers that are ready.
func (s *Service) batch(a dnslist.Answer) []dnslist.Answer {
	all := []dnslist.Answer{a}
	for len(all) < maxBatch {
		select {
		case a := <-s.answers:
			all = append(all, a)
		default:
			return all
		}
	}
	return all
}

// status returns the number of lists in use. problem describes unused lists and resolvers.
func (s *Service) status() (used int, problem error) {
	var problems []string
	s.mu.Lock()
	if len(s.stale) > 0 {
		problems = append(problems, "the filter's configuration has changed: "+strings.Join(s.stale, ", ")+"; restart the service of companion "+s.name)
	}
	s.mu.Unlock()
	for _, z := range s.order {
		switch err := z.state(); {
		case err == nil:
			used++
			if err := z.unused(); err != nil {
				problems = append(problems, err.Error())
			}
		case errors.Is(err, errUntested):
			problem = control.ErrStarting
		default:
			problems = append(problems, err.Error())
		}
	}
	if problems != nil {
		problem = errors.New(strings.Join(problems, "; "))
	}
	return used, problem
}
