package main

// The report about hosts that come back.

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/memory"
	"scanwatch/store"
	store_report "scanwatch/store/report"
)

// returns reports which hosts came back, in sessions that ended at since or later.
func (e *env) returns(since time.Time, asJSON bool) error {
	r, client, problems, err := e.reader()
	if err != nil {
		return err
	}
	if client != nil {
		defer client.Close()
	}
	problems = slices.DeleteFunc(problems, func(p string) bool { return strings.Contains(p, control.ErrNotRunning.Error()) }) // it need not
	r.Problem = func(segment string, err error) { problems = append(problems, segment+": "+err.Error()) }
	c := store_report.NewReturns(memory.Number)
	broken, until := 0, e.now()
	err = each(r, since, func(rec *store.Record) error {
		if rec.End.After(until) {
			until = rec.End
		}
		if c.Add(rec) != nil {
			broken++
		}
		return nil
	})
	if err != nil {
		return err
	}
	if broken > 0 {
		problems = append(problems, fmt.Sprintf("%d sessions have damaged steps", broken))
	}
	if n := r.Dropped.Total(); n > 0 {
		problems = append(problems, fmt.Sprintf("%d sessions were dropped and are not in this report (%s)", n, r.Dropped))
	}
	s := c.Summary(since, until, problems)
	if asJSON {
		err = s.JSON(e.out)
	} else {
		err = s.Text(e.out, e.zone)
	}
	return errors.Join(err, unread(r))
}
