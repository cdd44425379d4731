//go:build linux

package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"text/tabwriter"
	"time"
)

// rates measures response times at fixed request rates.
func (b *bench) rates() error {
	registered, err := b.registrations()
	if err != nil {
		return err
	}
	type result struct {
		cpu []float64                   // microseconds per request
		at  map[float64][]time.Duration // by quantile
	}
	quantiles := []float64{.5, .99, .999, 1}
	for _, rate := range []int{2000, 10_000} {
		found := map[string]*result{}
		measure := func(title string, c contestant, report bool) error {
			r, err := b.run(c, registered)
			if err != nil {
				return err
			}
			if err := r.know(); err != nil {
				return err
			}
			requests := max(int(float64(rate)*b.span.Seconds()), 100)
			s := recipe{mix: "mix", registered: r.registered, open: 50, sessions: requests, requests: requests,
				begin: time.Now(), apart: time.Second / time.Duration(rate)}.make()
			stop := make(chan struct{})
			reading := make(chan error, 1)
			if report {
				go func() { reading <- b.readers(r.state, stop) }()
			} else {
				reading <- nil
			}
			before := r.cpu()
			took, err := r.offered(s, rate)
			close(stop)
			if err != nil {
				return err
			}
			if err := <-reading; err != nil {
				return err
			}
			n := found[title]
			if n == nil {
				n = &result{at: map[float64][]time.Duration{}}
				found[title] = n
			}
			if err := r.settled(); err != nil {
				return err
			}
			n.cpu = append(n.cpu, (r.cpu()-before).Seconds()*1e6/float64(len(s.cuts)))
			for _, q := range quantiles {
				n.at[q] = append(n.at[q], quantile(took, q))
			}
			return r.end()
		}
		const reported = on + ", reports run"
		for range b.pairs {
			for _, c := range contestants {
				if !c.fast || !b.has(c.name) {
					continue
				}
				if err := measure(c.name, c, false); err != nil {
					return err
				}
			}
			if err := measure(reported, named(on), true); err != nil {
				return err
			}
		}
		w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(w, "\n%d requests/s, mix\tus/request\tp50 us\tp99 us\tp99.9 us\tmax us\t\n", rate)
		for _, title := range append(names(), reported) {
			n := found[title]
			if n == nil {
				continue
			}
			fmt.Fprintf(w, "%s\t%.1f", title, median(n.cpu))
			for _, q := range quantiles {
				fmt.Fprintf(w, "\t%d", median(n.at[q]).Microseconds())
			}
			fmt.Fprintln(w, "\t")
		}
		w.Flush()
		ratio := func(get func(*result, int) float64) float64 {
			var all []float64
			for i := range b.pairs {
				all = append(all, get(found[on], i)/get(found[null], i))
			}
			return median(all)
		}
		at := func(q float64) func(*result, int) float64 {
			return func(n *result, i int) float64 { return n.at[q][i].Seconds() }
		}
		what := fmt.Sprintf("%d requests/s: ", rate)
		b.goal(what+"CPU per request, on / null", ratio(func(n *result, i int) float64 { return n.cpu[i] }), 1.15)
		b.goal(what+"p50, on / null", ratio(at(.5)), 1.15)
		b.goal(what+"p99, on / null", ratio(at(.99)), 2)
		b.goal(what+"p99.9 in ms", median(found[on].at[.999]).Seconds()*1e3, 5)
		b.goal(what+"p99.9 in ms while reports run", median(found[reported].at[.999]).Seconds()*1e3, 5)
	}
	return nil
}

func names() (all []string) {
	for _, c := range contestants {
		all = append(all, c.name)
	}
	return all
}

// readers runs reports until the stop channel is closed.
func (b *bench) readers(state string, stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if out, err := exec.Command(filepath.Join(b.dir, "scanwatch"), "-s", state, "report").CombinedOutput(); err != nil {
			return fmt.Errorf("report: %w: %.500s", err, out)
		}
	}
}
