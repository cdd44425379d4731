//go:build linux

package main

// This file measures response times and memory use while days are being sealed.

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"text/tabwriter"
	"time"

	"scanwatch/store"
)

// A sealingRun is the result of a run. During the run, the filter is sealing days, or all days are
// already sealed.
type sealingRun struct {
	p50, p99, p999 time.Duration
	memory         int64 // bytes, anonymous
	resident       int64 // bytes, including file pages
}

// sealing measures response times at a fixed rate. Runs while the filter is sealing days alternate
// with runs in which all days are already sealed. The filter also knows 100,000 other sources.
func (b *bench) sealing() error {
	days, daily, rate, sources := 3, 300_000, 2000, 100_000
	if b.quick {
		days, daily, sources = 2, 1000, 1000
	}
	open := filepath.Join(b.dir, "open")
	p, one, err := newPast(open, days, daily)
	if err != nil {
		return err
	}
	if err := p.add(one, 0, days); err != nil {
		return err
	}
	sealed := filepath.Join(b.dir, "sealed")
	if err := os.CopyFS(sealed, os.DirFS(open)); err != nil {
		return err
	}
	if _, err := store.SealDays(sealed, "bench", p.until.Add(24*time.Hour)); err != nil {
		return err
	}
	registered, err := b.registrations()
	if err != nil {
		return err
	}
	parts := []struct {
		what, dir string
		busy      bool
		runs      []*sealingRun
	}{{what: "while sealing", dir: open, busy: true}, {what: "sealed", dir: sealed}}
	for range b.pairs {
		for i := range parts {
			p := &parts[i]
			one, err := b.sealingRun(p.dir, p.busy, rate, sources, registered)
			if err != nil {
				return fmt.Errorf("%s: %w", p.what, err)
			}
			p.runs = append(p.runs, one)
		}
	}
	fmt.Fprintf(b.out, "\n%d requests/s, mix, %d days of %d sessions, %d more sources\n", rate, days, daily, sources)
	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tp50 us\tp99 us\tp99.9 us\tMB anonymous\tMB resident\t")
	of := func(runs []*sealingRun, get func(*sealingRun) float64) float64 {
		var all []float64
		for _, r := range runs {
			all = append(all, get(r))
		}
		return median(all)
	}
	us := func(get func(*sealingRun) time.Duration) func(*sealingRun) float64 {
		return func(r *sealingRun) float64 { return get(r).Seconds() * 1e6 }
	}
	p99 := us(func(r *sealingRun) time.Duration { return r.p99 })
	memory := func(r *sealingRun) float64 { return float64(r.memory) / 1e6 }
	for _, p := range parts {
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.0f\t%.1f\t%.1f\t\n", p.what, of(p.runs, us(func(r *sealingRun) time.Duration { return r.p50 })), of(p.runs, p99),
			of(p.runs, us(func(r *sealingRun) time.Duration { return r.p999 })), of(p.runs, memory), of(p.runs, func(r *sealingRun) float64 { return float64(r.resident) / 1e6 }))
	}
	w.Flush()
	var ratios []float64
	for i, r := range parts[0].runs {
		ratios = append(ratios, p99(r)/p99(parts[1].runs[i]))
	}
	b.goal("p99 of answers while days are sealed / sealed", median(ratios), 1.2)
	b.goal("MB of memory while days are sealed, 100,000 sources", of(parts[0].runs, memory), 64)
	return nil
}

// sealingRun measures a run with a copy of the state directory. If busy is set, sealing must last
// for the whole measurement. Only a quick measurement may take longer than sealing.
func (b *bench) sealingRun(dir string, busy bool, rate, sources int, registered map[string]bool) (*sealingRun, error) {
	state, err := os.MkdirTemp(b.dir, "state-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(state)
	if err := os.CopyFS(state, os.DirFS(dir)); err != nil {
		return nil, err
	}
	r, err := b.runIn(named(on), state, registered)
	if err != nil {
		return nil, err
	}
	if err := r.introduce(); err != nil {
		return nil, err
	}
	visits := recipe{mix: "visit", registered: r.registered, open: 50, sessions: sources, begin: time.Now(), apart: time.Microsecond}.make()
	if _, _, err := r.full(visits, 0); err != nil {
		return nil, err
	}
	if !busy {
		if err := r.settled(); err != nil {
			return nil, err
		}
	}
	requests := max(int(float64(rate)*b.span.Seconds()), 100)
	s := recipe{mix: "mix", registered: r.registered, open: 50, sessions: requests, requests: requests,
		begin: time.Now(), apart: time.Second / time.Duration(rate)}.make()
	took, err := r.offered(s, rate)
	if err != nil {
		return nil, err
	}
	one := &sealingRun{p50: quantile(took, .5), p99: quantile(took, .99), p999: quantile(took, .999), memory: r.memory("RssAnon"), resident: r.memory("VmRSS")}
	name, err := b.beingSealed(state)
	if err == nil && (name != "") != busy && !b.quick {
		err = fmt.Errorf("the segment that is being sealed is %q", name)
	}
	return one, errors.Join(err, r.stop())
}

// beingSealed returns the name of the segment that the running filter is sealing.
func (b *bench) beingSealed(state string) (string, error) {
	out, err := exec.Command(filepath.Join(b.dir, "scanwatch"), "-s", state, "status", "--json").Output()
	if err != nil {
		return "", fmt.Errorf("status: %w", err)
	}
	var status struct {
		Store struct{ Sealing string }
	}
	err = json.Unmarshal(out, &status)
	return status.Store.Sealing, err
}
