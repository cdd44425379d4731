// Package backtest replays recorded sessions through a policy. The result lists the accepted mail
// and the logins that the policy would have rejected, and compares the policy with the running one.
package backtest

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/replay"
	"scanwatch/internal/mailbox"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/store/history"
)

// Options are the inputs of Run.
type Options struct {
	Name  string           // name of the tested policy
	Rule  string           // only this rule is tested; empty for all rules
	Test  *filter.Settings // tested policy
	Notes []string         // why further conditions cannot be evaluated
	// Running, if set, is the policy to compare with. File names the policy's file.
	Running  *filter.Settings
	File     string
	Lists    *lookup.Lists
	OwnAddrs []netip.Addr // addresses of the recorded host
	Reader   *store.Reader
	Since    time.Time // report only sessions that ended at this time or later
	// Match reports whether the report includes a session. If Match is nil, all
	// sessions are included.
	Match func(*store.Record) bool
	// Progress is called after each batch with the number of sessions in the
	// batch and the end of its last session.
	Progress func(sessions int, at time.Time)
}

// Unknown conditions are counted in one out of every sampleOf sessions.
const sampleOf = 16

// batchSize is the number of records replayed before the results are compared.
const batchSize = 500

// A run replays the records through one policy.
type run struct {
	player  *replay.Player
	options replay.Options
	ended   []ending // results of the current batch
}

// An ending describes how a session ended in a run.
type ending struct {
	seq  uint64
	rule string // first rule that rejected the session
	// reported reports whether the report includes the session.
	reported bool
}

func newRun(s *filter.Settings, o *Options) *run {
	return &run{options: replay.Options{
		Settings: s,
		Filter:   filter.Options{Lists: func() *lookup.Lists { return o.Lists }, OwnAddrs: o.OwnAddrs},
	}}
}

// Run replays all records of o.Reader. When Run returns, o.Reader.Unread is the number
// of unreadable files.
func Run(o Options) (*Result, error) {
	c := newCollector(&o)
	test := newRun(o.Test, &o)
	test.options.Filter.Trace = c.trace
	runs := []*run{test}
	if o.Running != nil {
		c.result.Against = &Difference{File: o.File, Mode: o.Running.Policy.Mode.String(), Only: map[string]int{}, Gone: map[string]int{}}
		runs = append(runs, newRun(o.Running, &o))
	}
	for i, r := range runs {
		r.options.Done = func(out *replay.Outcome) {
			r.ended = append(r.ended, ending{out.Seq, out.Refusal.Rule, c.reports(out.Record)})
			if i == 0 {
				c.add(out)
			}
		}
		r.player = replay.New(r.options)
	}
	if err := c.play(runs); err != nil {
		return nil, err
	}
	c.result.Dropped = o.Reader.Dropped.Total()
	c.result.Late = test.player.Late()
	return c.finish(), nil
}

// play replays the records in batches. The next batch is read while the current
// one is being replayed.
func (c *collector) play(runs []*run) error {
	batches, done := make(chan []store.Record), make(chan struct{})
	go func() {
		defer close(done)
		for batch := range batches {
			c.playBatch(runs, batch, false)
		}
		c.playBatch(runs, nil, true)
	}()
	var batch, played []store.Record
	sum := func(r *store.Record) error {
		c.learn(r)
		c.result.Sums.add(r)
		return nil
	}
	session := func(r *store.Record) error {
		c.learn(r)
		if batch = append(batch, r.Clone()); len(batch) == batchSize {
			batches <- batch
			batch, played = played[:0], batch
			c.o.Progress(batchSize, r.End)
		}
		return nil
	}
	err := history.Walk(c.o.Reader, time.Time{}, time.Time{}, history.Visitor{Kinds: store.AllKinds, Session: session, Sum: sum})
	batches <- batch
	close(batches)
	<-done
	return err
}

// playBatch replays a batch through all policies in parallel.
func (c *collector) playBatch(runs []*run, batch []store.Record, last bool) {
	var wg sync.WaitGroup
	for _, r := range runs {
		wg.Go(func() {
			for i := range batch {
				r.player.Add(batch[i])
			}
			if last {
				r.player.Close()
			}
		})
	}
	wg.Wait()
	c.compare(runs)
}

// compare counts the sessions that end differently in the two runs. The runs may finish a session
// in different batches, so compare keeps the first ending until the other run's ending is known.
func (c *collector) compare(runs []*run) {
	d := c.result.Against
	if d == nil {
		runs[0].ended = runs[0].ended[:0]
		return
	}
	for i, r := range runs {
		for _, x := range r.ended {
			y, ok := c.waiting[x.seq]
			if !ok {
				c.waiting[x.seq] = x
				continue
			}
			delete(c.waiting, x.seq)
			tested, running := x, y
			if i != 0 {
				tested, running = y, x
			}
			if x.reported {
				d.add(tested.rule, running.rule)
			}
		}
		r.ended = r.ended[:0]
	}
}

// reports reports whether the report includes a session.
func (c *collector) reports(r *store.Record) bool {
	return !r.End.Before(c.o.Since) && (c.o.Match == nil || c.o.Match(r))
}

// trace determines the number of unknown conditions in a sample of all sessions. Sessions with
// hashed mailboxes are always counted.
func (c *collector) trace(policy *rules.Policy, f *rules.Facts, _ smtp.Answer) {
	sampled := f.Session*0x9e3779b97f4a7c15>>60 == 0 // session ids are not evenly distributed, so multiply them first
	hashed := c.names && (mailbox.Hashed(f.MailFrom) || mailbox.Hashed(f.RcptTo) || mailbox.Hashed(f.User))
	if !sampled && !hashed {
		return
	}
	traces := policy.Answers(f)
	for i := range traces {
		c.addUnknown(&traces[i], sampled)
	}
}

// addUnknown counts the unknown conditions that kept a statement from matching. A
// condition on low-confidence evidence does not count as unknown.
func (c *collector) addUnknown(t *rules.Trace, sampled bool) {
	name := "pass"
	r, isRule := t.Statement.(*rules.Rule)
	if isRule {
		name = r.Name
	}
	if t.Skipped != "" || slices.ContainsFunc(t.Conds, func(c rules.CondTrace) bool { return c.Answer == rules.No }) {
		return
	}
	for _, cond := range t.Conds {
		switch u := (unknownKey{name, cond.Cond}); {
		case cond.Answer != rules.Unknown:
		case cond.Hashed:
			c.hashed[u]++
		case sampled && isRule && cond.Cond.Word != "evidence":
			c.unknown[u]++
		}
	}
}

// notEvaluated lists the policy's conditions that cannot be evaluated from
// records.
func notEvaluated(s *filter.Settings, notes []string) []string {
	list := []string{}
	n := s.Policy.Needs()
	if n.ASN && s.ASN == nil {
		list = append(list, "asn: the configuration has no database of AS numbers")
	}
	if n.Country && s.Country == nil && s.ASN == nil {
		list = append(list, "country: the configuration has no country database")
	}
	for _, note := range notes {
		list = append(list, text.Escape(note))
	}
	if n.Standing {
		list = append(list, "known: no client is known at the start of the history")
	}
	var longest time.Duration
	for _, w := range n.Windows {
		longest = max(longest, w.Window)
	}
	if longest > 0 {
		list = append(list, fmt.Sprintf("count: counters are zero at the start of the history; the longest window is %s", text.Duration(longest)))
	}
	if slices.ContainsFunc(s.Policy.Rules(), func(r *rules.Rule) bool { return r.Delay > 0 }) {
		list = append(list, "delay: records do not show which clients would have disconnected")
	}
	return list
}
