package main

// The report about scanning organisations.

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/lookup"
	"scanwatch/store"
	store_report "scanwatch/store/report"
)

// scanners reports which organisations came, in the sessions of a
// period, and how to ask them to stay away.
func (e *env) scanners(t period, optOut, asJSON bool) error {
	var contacts map[string]store_report.OptOut
	if optOut {
		all, err := lookup.OptOuts()
		if err != nil {
			return err
		}
		contacts = make(map[string]store_report.OptOut)
		for org, o := range all {
			contacts[org] = store_report.OptOut(o)
		}
	}
	r, client, problems, err := e.reader()
	if err != nil {
		return err
	}
	if client != nil {
		defer client.Close()
	}
	problems = slices.DeleteFunc(problems, func(p string) bool { return strings.Contains(p, control.ErrNotRunning.Error()) }) // it need not
	r.Problem = func(segment string, err error) { problems = append(problems, segment+": "+err.Error()) }
	c := store_report.NewScanners()
	broken := 0
	until, err := e.each(r, t, func(rec *store.Record) {
		if c.Add(rec) != nil {
			broken++
		}
	})
	if err != nil {
		return err
	}
	if broken > 0 {
		problems = append(problems, fmt.Sprintf("%d sessions have damaged steps", broken))
	}
	s := c.Summary(t.since, until, problems, contacts)
	if asJSON {
		err = s.JSON(e.out)
	} else {
		err = s.Text(e.out, e.zone)
	}
	return errors.Join(err, unread(r))
}
