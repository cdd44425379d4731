//go:build linux

package main

// This file measures a real smtpd with one filter after another. The measurements are made in a
// second process, because entering a namespace restarts the program.

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"scanwatch/tests/internal/smtpd"
)

// A setting is an smtpd with or without a filter.
type setting struct {
	name    string
	filter  []smtpd.Filter
	prelude string // lines to add to smtpd.conf
}

// Names of the settings without scanwatch.
const (
	noFilter  = "no filter"
	nullSame  = "null, the same events"
	nullSmall = "null, the smallest useful set"
	ownList   = "smtpd's own regex list of 5,000"
)

// smallest is the smallest useful set of registrations. Its events report the source, the
// recipients and the result. Its request is enough for bans to take effect.
var smallest = []string{
	"report|smtp-in|link-connect", "report|smtp-in|link-identify", "report|smtp-in|link-auth", "report|smtp-in|link-disconnect",
	"report|smtp-in|tx-rcpt", "filter|smtp-in|connect",
}

func (b *bench) settings(registered map[string]bool) []setting {
	program := func(name, file string, args ...string) []smtpd.Filter {
		return []smtpd.Filter{{Name: "bench", Path: filepath.Join(b.dir, file), Args: args}}
	}
	return []setting{
		{name: noFilter},
		{name: nullSmall, filter: program(nullSmall, "null", smallest...)},
		{name: nullSame, filter: program(nullSame, "null", sortedKeys(registered)...)},
		{name: observe, filter: program(observe, "filter-scanwatch", "-s", smtpd.StateDir+"/kept", "-f", smtpd.StateDir+"/none.conf")},
		{name: on, filter: program(on, "filter-scanwatch", "-s", smtpd.StateDir+"/kept", "-f", smtpd.StateDir+"/prompt.conf")},
		{name: ownList, prelude: `table names file:` + smtpd.StateDir + `/regexes`,
			filter: []smtpd.Filter{{Name: "bench", Builtin: `phase connect match rdns regex <names> disconnect "550 No"`}}},
	}
}

// served is the result for a setting in one run.
type served struct {
	Sessions    int
	Took        time.Duration
	Total, Ours time.Duration // CPU time of all processes, and of the filter
}

// clients lists the addresses of concurrent clients. There are only a few, because smtpd queues at
// most five connections.
var clients = []string{"198.51.100.10", "198.51.100.11", "198.51.100.12", "198.51.100.13"}

// inside runs in the second process. It prints the result for each setting and run.
func (b *bench) inside() error {
	if err := smtpd.Enter(); err != nil {
		return err
	}
	v := smtpd.Newest()
	if err := smtpd.Check(v); err != nil {
		return err
	}
	registered, err := b.registrations()
	if err != nil {
		return err
	}
	found := map[string][]served{}
	for range b.pairs {
		for _, set := range b.settings(registered) {
			fmt.Fprintf(b.log, "smtpd with %s\n", set.name)
			n, err := b.serve(v, set)
			if err != nil {
				return fmt.Errorf("%s: %w", set.name, err)
			}
			found[set.name] = append(found[set.name], n)
		}
	}
	return json.NewEncoder(b.out).Encode(found)
}

func (b *bench) serve(v smtpd.Version, set setting) (n served, err error) {
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return n, err
	}
	defer os.RemoveAll(dir)
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(filepath.Join(dir, "state"), 0o755)); err != nil {
		return n, err
	}
	if err := configure(filepath.Join(dir, "state"), smtpd.StateDir); err != nil {
		return n, err
	}
	var hosts []smtpd.Host
	for i, addr := range clients {
		hosts = append(hosts, smtpd.Host{Addr: addr, Name: fmt.Sprintf("mail%d.example.net", i), Confirmed: true})
	}
	s, err := smtpd.Start(smtpd.Options{Version: v, Dir: dir, Filters: set.filter, Prelude: set.prelude, Hosts: hosts})
	if err != nil {
		return n, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	all := func(work func(i int) error) error {
		errs := make([]error, len(clients))
		var wait sync.WaitGroup
		for i := range clients {
			wait.Go(func() { errs[i] = work(i) })
		}
		wait.Wait()
		return errors.Join(errs...)
	}
	// Each client sends mail before the measurement. The client remains unknown, because only mail
	// from earlier days makes a client known.
	if err := all(func(i int) error {
		return visits(s, i, "MAIL FROM:<a@example.net>", "RCPT TO:<"+smtpd.Recipients[0]+"@"+smtpd.Domain+">", "DATA", "Subject: x\r\n\r\nHello.\r\n.")
	}); err != nil {
		return n, err
	}
	pids, err := s.PIDs()
	if err != nil {
		return n, err
	}
	own := map[int]bool{}
	if len(set.filter) > 0 && set.filter[0].Builtin == "" {
		filters, err := s.FilterPIDs()
		if err != nil {
			return n, err
		}
		for _, pid := range filters {
			own[pid] = true
		}
	}
	cpu := func() (total, filters time.Duration) {
		for _, pid := range pids {
			t := cpuOf(pid)
			if total += t; own[pid] {
				filters += t
			}
		}
		return total, filters
	}
	time.Sleep(b.settle) // wait for the message to be delivered
	total, filters := cpu()
	began := time.Now()
	counts := make([]int, len(clients))
	if err := all(func(i int) error {
		for counts[i] == 0 || time.Since(began) < b.span {
			if err := visits(s, i); err != nil {
				return err
			}
			counts[i]++
		}
		return nil
	}); err != nil {
		return n, err
	}
	n.Took = time.Since(began)
	n.Total, n.Ours = cpu()
	n.Total, n.Ours = n.Total-total, n.Ours-filters
	for _, c := range counts {
		n.Sessions += c
	}
	return n, nil
}

// visits plays sessions that send EHLO, the given commands and QUIT.
func visits(s *smtpd.Server, i int, commands ...string) error {
	c, err := s.Dial(clients[i], smtpd.PortMX)
	if err != nil {
		return err
	}
	defer c.Close()
	if reply, err := c.ReadReply(); err != nil || reply.Code != 220 {
		return fmt.Errorf("greeting: %v: %w", reply, err)
	}
	for _, command := range append(append([]string{fmt.Sprintf("EHLO mail%d.example.net", i)}, commands...), "QUIT") {
		if reply, err := c.Cmd(command); err != nil || reply.Code >= 400 {
			return fmt.Errorf("%.20q: %v: %w", command, reply, err)
		}
	}
	return nil
}

// real measures sessions on a real smtpd.
func (b *bench) real() error {
	if os.Geteuid() != 0 {
		fmt.Fprintln(b.log, "SKIP: real servers need root")
		if os.Getenv("SCANWATCH_NO_SKIP") == "1" {
			return errors.New("real servers need root")
		}
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "-inside", b.dir, "-pairs", fmt.Sprint(b.pairs), "-span", b.span.String())
	cmd.Stderr = b.log
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	found := map[string][]served{}
	if err := json.Unmarshal(out, &found); err != nil {
		return fmt.Errorf("%w: %.200q", err, out)
	}
	get := func(name string, value func(served) float64) float64 {
		var all []float64
		for _, n := range found[name] {
			all = append(all, value(n))
		}
		return median(all)
	}
	ratio := func(a, c string, value func(served) float64) float64 {
		var all []float64
		for i := range found[a] {
			all = append(all, value(found[a][i])/value(found[c][i]))
		}
		return median(all)
	}
	pace := func(n served) float64 { return float64(n.Sessions) / n.Took.Seconds() }
	total := func(n served) float64 { return n.Total.Seconds() * 1e6 / float64(n.Sessions) }
	filters := func(n served) float64 { return n.Ours.Seconds() * 1e6 / float64(n.Sessions) }

	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\nreal smtpd 7.9, EHLO+QUIT\tsessions/s\tCPU us/session\tof the filter\t")
	for _, set := range b.settings(nil) {
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.1f\t\n", set.name, get(set.name, pace), get(set.name, total), get(set.name, filters))
	}
	w.Flush()
	b.goalAtLeast("smtpd: sessions/s, on / null with the same events", ratio(on, nullSame, pace), 0.97)
	b.goal("smtpd: CPU of all, on / null with the same events", ratio(on, nullSame, total), 1.06)
	b.goalAtLeast("smtpd: sessions/s, on / its own regex list", ratio(on, ownList, pace), 20)
	b.goal("smtpd: the filter's part of all CPU", ratio(on, on, total)*get(on, filters)/get(on, total), 0.08)
	return nil
}

// regexes returns the names in the list as regular expressions for tables of smtpd.
func regexes() []byte {
	var b strings.Builder
	for n := range suffixes {
		fmt.Fprintf(&b, "\\.zone%d\\.example\\.com$\n", n)
	}
	return []byte(b.String())
}
