package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/privacy"
	"scanwatch/filter/smtpd"
	"scanwatch/rules"
	"scanwatch/store"
)

// keepAll is the retention period during an import. Old records are deleted only when the filter
// starts with its configured retention period.
const keepAll = 100 * 365 * 24 * time.Hour

// batch is the number of records per commit.
const batch = 1000

// Options are the options of Import.
type Options struct {
	Dir     string        // state directory, which must exist
	Budget  int64         // disk budget of the state directory in bytes
	Privacy rules.Privacy // privacy level of the records
	Program string        // program version in new files
	Now     func() time.Time
	Done    func(end time.Time) // called after each record; may be nil
}

// A Result describes an import.
type Result struct {
	Counts
	Sessions       int       // sessions in the input
	Known          int       // sessions that were already recorded
	Oldest, Newest time.Time // ends of the oldest and newest sessions; zero if there are none
}

// Import records the sessions of a stream in a state directory. If a session is still open when
// smtpd ends, the session's ending is unknown. If the same stream is imported again, nothing
// changes.
//
// If a filter uses the state directory, Import returns store.ErrInUse and changes nothing. A stream
// without sessions is an error.
func Import(in io.Reader, o Options) (r Result, err error) {
	err = record(o, "", &r, func(pipeline *filter.Pipeline) error {
		r.Counts, err = Split(in, func(run io.Reader) error { return play(run, pipeline) })
		return err
	})
	if err == nil && r.Sessions == 0 {
		return r, errors.New("read stream: no sessions found; a session begins with the report link-connect")
	}
	return r, err
}

// record opens the store and calls play. record records the sessions that play passes to the
// pipeline.
func record(o Options, frontEnd string, r *Result, play func(*filter.Pipeline) error) (err error) {
	if _, err := os.Stat(o.Dir); err != nil {
		return err
	}
	w := store.Open(o.Dir, store.Options{Budget: o.Budget, Keep: keepAll, Program: o.Program, Now: o.Now})
	if err := w.Flush(context.Background()); err != nil {
		return errors.Join(err, w.Close())
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	flush := func() error { return w.Flush(context.Background()) }
	recorded := newKnown(o.Dir, w, flush)
	var failed error
	pipeline, err := newPipeline(o, frontEnd, func(end time.Time, id uint64, value []byte) {
		if r.Sessions++; r.Sessions%batch == 0 {
			_ = flush() // if this Flush fails, the final one returns the error
		}
		switch again, err := recorded.add(end, id); {
		case err != nil:
			failed = err
		case again:
			r.Known++
		default:
			w.Add(end, id, value)
		}
		if r.Oldest.IsZero() || end.Before(r.Oldest) {
			r.Oldest = end
		}
		if end.After(r.Newest) {
			r.Newest = end
		}
		if o.Done != nil {
			o.Done(end)
		}
	})
	if err != nil {
		return err
	}
	if err := play(pipeline); err != nil {
		return err
	}
	if err := errors.Join(failed, flush()); err != nil {
		return err
	}
	if n := w.Status().Dropped.Total(); n > 0 {
		return fmt.Errorf("write records: %d sessions dropped: %s", n, w.Status().Dropped)
	}
	return nil
}

// play passes the events of one run of smtpd to the pipeline.
func play(run io.Reader, pipeline *filter.Pipeline) error {
	front := smtpd.NewFrontEnd(pipeline)
	if err := smtpd.Serve(run, io.Discard, front, smtpd.Options{}); err != nil {
		return err
	}
	front.Stop()
	pipeline.Leave()
	return nil
}

// newPipeline returns a pipeline that records events but has no rules and no memory.
func newPipeline(o Options, frontEnd string, record func(end time.Time, id uint64, value []byte)) (*filter.Pipeline, error) {
	lists, err := lookup.Builtin()
	if err != nil {
		return nil, err
	}
	policy, err := emptyPolicy(o.Privacy)
	if err != nil {
		return nil, err
	}
	key, err := privacy.SaveKey(o.Dir, privacy.NewKey())
	if err != nil {
		return nil, err
	}
	hasher := privacy.New(key)
	pipeline := filter.New(filter.Options{
		Record: record, FrontEnd: frontEnd,
		Log:    func([]byte) {},
		Lists:  func() *lookup.Lists { return lists },
		Hasher: func() *privacy.Hasher { return hasher },
	})
	pipeline.Use(&filter.Settings{Policy: policy})
	return pipeline, nil
}

// emptyPolicy returns a policy without rules. With this policy, the filter only collects evidence.
func emptyPolicy(how rules.Privacy) (*rules.Policy, error) {
	c, err := rules.Parse("empty", func(string) ([]byte, error) { return []byte("privacy " + how.String() + "\n"), nil })
	if err != nil {
		return nil, err
	}
	p, _, err := rules.Compile(c, rules.Options{})
	return p, err
}
