// Package history reads the recorded sessions. An aggregate represents many sessions.
// All readers of records use Walk, so that they cannot ignore aggregates by mistake.
package history

import (
	"errors"
	"io/fs"
	"time"

	"scanwatch/store"
)

// Records provides recorded sessions in the order in which they ended. A store.Reader
// implements Records.
type Records interface {
	Each(since, until time.Time, kinds store.Kinds, f func(*store.Record) error) error
}

// A Visitor reads records. Session and Sum are required. A record and its text are
// valid until Session or Sum returns.
type Visitor struct {
	// Kinds is the set of step kinds that Session and Sum need. Records may
	// also have steps of other kinds, which other visitors need.
	Kinds store.Kinds
	// Session is called for each record of a single session.
	Session func(*store.Record) error
	// Sum is called for each aggregate. An aggregate holds the totals and
	// tallies of many sessions. If its Src is invalid, the aggregate covers
	// many sources.
	Sum func(*store.Record) error
}

// ErrStop ends a walk without an error.
var ErrStop = errors.New("stop")

// In one pass, Walk calls all visitors for each record of a session that ended in the period. The
// period includes since and excludes until. A zero time means no limit. Walk returns the first
// error returned by a visitor. If the directory has no records, Walk returns nil.
func Walk(r Records, since, until time.Time, all ...Visitor) error {
	for i := range all {
		if all[i].Session == nil || all[i].Sum == nil {
			panic("history: a visitor without Session or Sum")
		}
	}
	epoch := time.Unix(0, 0)
	if since.Before(epoch) {
		since = time.Time{} // the keys of records start in 1970
	}
	if !until.IsZero() && until.Before(epoch) {
		return nil
	}
	var kinds store.Kinds
	for i := range all {
		kinds |= all[i].Kinds
	}
	var failed error
	err := r.Each(since, until, kinds, func(rec *store.Record) error {
		for i := range all {
			visit := all[i].Session
			if rec.Sessions > 0 {
				visit = all[i].Sum
			}
			if failed = visit(rec); failed != nil {
				return failed
			}
		}
		return nil
	})
	switch {
	case errors.Is(failed, ErrStop):
		return nil
	case failed == nil && errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
}
