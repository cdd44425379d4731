//go:build linux

package main

import (
	"fmt"
	"text/tabwriter"
	"time"
)

// numbers holds a contestant's results for a mix, one per run.
type numbers struct {
	lines   float64   // lines per session
	session []float64 // microseconds of CPU time
	events  []float64 // lines per second
	memory  []float64 // peak in bytes
}

// allMixes lists the mixes of sessions that are played at full speed.
var allMixes = []string{"mix", "delivery", "scan", "attacks", "harvest-50", "harvest-500"}

// speed measures all contestants at full speed.
func (b *bench) speed() error {
	found := map[string]map[string]*numbers{} // by mix and contestant
	registered, err := b.registrations()
	if err != nil {
		return err
	}
	for _, mix := range b.mixes {
		found[mix] = map[string]*numbers{}
		streams := map[string]*stream{}
		for range b.pairs {
			for _, c := range contestants {
				if !b.has(c.name) || c.slow && mix == "harvest-500" {
					continue
				}
				if err := b.fullSpeed(c, mix, registered, streams, found[mix]); err != nil {
					return err
				}
			}
		}
		w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(w, "\nfull speed, %s\tlines/session\tus/line\tus/session\tlines/s\tpeak MB\t\n", mix)
		for _, c := range contestants {
			if n := found[mix][c.name]; n != nil {
				us := median(n.session)
				fmt.Fprintf(w, "%s\t%.1f\t%.3f\t%.2f\t%.3g\t%.1f\t\n", c.name, n.lines, us/n.lines, us, median(n.events), median(n.memory)/1e6)
			}
		}
		w.Flush()
	}
	// ratio adds a goal for the median ratio of consecutive runs. If the mix or the other
	// contestant was skipped, ratio adds no goal.
	ratio := func(goal func(string, float64, float64), what, mix, a, c string, limit float64) {
		x, y := found[mix][a], found[mix][c]
		if x == nil || y == nil {
			return
		}
		var all []float64
		for i := range x.session {
			all = append(all, x.session[i]/y.session[i])
		}
		goal("CPU per session, "+what, median(all), limit)
	}
	ratio(b.goal, "mix: on / null in Go", "mix", on, null, 10)
	ratio(b.goal, "EHLO+QUIT: on / null in Go", "scan", on, null, 10)
	ratio(b.goal, "mix: on / empty on OpenSMTPD-framework", "mix", on, framework, 1./4)
	ratio(b.goal, "mix: on / empty on libopensmtpd", "mix", on, library, 1./3)
	ratio(b.goalAtLeast, "mix: file per event / on", "mix", perl, on, 400)
	ratio(b.goalAtLeast, "50 recipients: file per event / on", "harvest-50", perl, on, 2000)
	if long, short := found["harvest-500"][on], found["harvest-50"][on]; long != nil && short != nil {
		b.goal("CPU of a 500-recipient session / of a 50-recipient one", median(long.session)/median(short.session), 11)
	}
	if with, without := found["mix"][on], found["mix"][bare]; with != nil && without != nil {
		b.goal("us per session (mix) that 5,000 suffixes and 100,000 prefixes add", median(with.session)-median(without.session), 0.5)
	}
	return nil
}

// registrations returns the registrations of scanwatch with the configuration "on". All other
// filters use the same registrations.
func (b *bench) registrations() (map[string]bool, error) {
	r, err := b.run(named(on), nil)
	if err != nil {
		return nil, err
	}
	return r.registered, r.end()
}

func (b *bench) fullSpeed(c contestant, mix string, registered map[string]bool, streams map[string]*stream, found map[string]*numbers) error {
	r, err := b.run(c, registered)
	if err != nil {
		return err
	}
	sessions := map[string]int{"harvest-50": 2000, "harvest-500": 200}[mix]
	if sessions == 0 {
		sessions = 20_000
	}
	if c.slow {
		sessions /= 100
	}
	if b.quick {
		sessions = 30
	}
	key := fmt.Sprint(sessions, sortedKeys(r.registered))
	s := streams[key]
	if s == nil {
		s = recipe{mix: mix, registered: r.registered, open: 20, sessions: sessions, begin: time.Now(), apart: time.Microsecond}.make()
		streams[key] = s
	}
	if !c.slow {
		if err := r.know(); err != nil {
			return err
		}
	}
	before := r.cpu()
	rounds, took, err := r.full(s, b.span)
	if err != nil {
		return err
	}
	if err := r.settled(); err != nil {
		return err
	}
	cpu := r.cpu() - before
	n := found[c.name]
	if n == nil {
		n = &numbers{lines: float64(s.lines) / float64(s.sessions)}
		found[c.name] = n
	}
	all := float64(rounds) * float64(s.sessions)
	n.session = append(n.session, cpu.Seconds()*1e6/all)
	n.events = append(n.events, float64(rounds)*float64(s.lines)/took.Seconds())
	n.memory = append(n.memory, float64(r.memory("VmHWM")))
	return r.end()
}
