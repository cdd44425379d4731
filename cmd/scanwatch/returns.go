package main

// The report about hosts that come back.

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/memory"
	"scanwatch/store"
	store_report "scanwatch/store/report"
)

// returns reports which hosts came back, in the sessions of a period.
func (e *env) returns(t period, asJSON bool) error {
	s, r, err := e.whoReturned(t)
	if err != nil {
		return err
	}
	if asJSON {
		err = s.JSON(e.out)
	} else {
		err = s.Text(e.out, e.zone)
	}
	return errors.Join(err, unread(r))
}

// whoReturned goes through the sessions of a period; a zero since stands for all.
func (e *env) whoReturned(t period) (*store_report.ReturnSummary, *store.Reader, error) {
	r, client, problems, err := e.reader()
	if err != nil {
		return nil, nil, err
	}
	if client != nil {
		defer client.Close()
	}
	problems = slices.DeleteFunc(problems, func(p string) bool { return strings.Contains(p, control.ErrNotRunning.Error()) }) // it need not
	r.Problem = func(segment string, err error) { problems = append(problems, segment+": "+err.Error()) }
	c := store_report.NewReturns(memory.Number)
	broken := 0
	until, err := e.each(r, t, func(rec *store.Record) {
		if c.Add(rec) != nil {
			broken++
		}
	})
	if err != nil {
		return nil, nil, err
	}
	if broken > 0 {
		problems = append(problems, fmt.Sprintf("%d sessions have damaged steps", broken))
	}
	if n := r.Dropped.Total(); n > 0 {
		problems = append(problems, fmt.Sprintf("%d sessions were dropped and are not in this report (%s)", n, r.Dropped))
	}
	return c.Summary(t.since, until, problems), r, nil
}
