//go:build linux

package main

// This file measures response times while hosts share their state.

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// shareUser is the user ID of the companions. This user needs no account.
const shareUser = 4005

// peerRate is the number of requests per second to the other host.
const peerRate = 500

// sharing measures response times at a fixed rate in three situations: on a host that shares its
// state with another host under load, on the same host while the Valkey server is stopped, and on a
// host that shares nothing.
func (b *bench) sharing() error {
	prompt, err := os.ReadFile(filepath.Join(b.dir, "prompt.conf"))
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	key := filepath.Join(b.dir, "fleet.key")
	if out, err := exec.Command(filepath.Join(b.dir, "scanwatch"), "key", key).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	for _, host := range []string{"mx1", "mx2"} {
		runDir := filepath.Join(b.dir, host)
		for _, dir := range []string{b.dir, runDir} {
			if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chmod(dir, 0o755)); err != nil {
				return err
			}
		}
		statements := fmt.Sprintf("rundir %q\nfleet %q key %q\ncompanion share user %d to \"valkey://127.0.0.1:%d\"\n", runDir, host, key, shareUser, port)
		if err := os.WriteFile(filepath.Join(b.dir, host+".conf"), append([]byte(statements), prompt...), 0o644); err != nil {
			return err
		}
	}
	const rate = 2000
	parts := []struct {
		what          string
		share, paused bool
		p50, p99      []float64
	}{{what: "shared", share: true}, {what: "shared, server stopped", share: true, paused: true}, {what: "alone"}}
	for range b.pairs {
		for i := range parts {
			p := &parts[i]
			took, err := b.sharingRun(rate, port, p.share, p.paused)
			if err != nil {
				return fmt.Errorf("%s: %w", p.what, err)
			}
			p.p50, p.p99 = append(p.p50, quantile(took, .5).Seconds()*1e6), append(p.p99, quantile(took, .99).Seconds()*1e6)
		}
	}
	fmt.Fprintf(b.out, "\n%d requests/s of unknown clients; %d to the other host\n", rate, peerRate)
	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tp50 us\tp99 us\t")
	for _, p := range parts {
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t\n", p.what, median(p.p50), median(p.p99))
	}
	w.Flush()
	for _, p := range parts[:2] {
		var ratios []float64
		for i := range p.p99 {
			ratios = append(ratios, p.p99[i]/parts[2].p99[i])
		}
		b.goal("p99 of answers, "+p.what+" / alone", median(ratios), 1.2)
	}
	return nil
}

// sharingRun measures a run with an empty Valkey server. The load of the other host is the same in
// every run.
func (b *bench) sharingRun(rate, port int, share, paused bool) (took []time.Duration, err error) {
	server := exec.Command("redis-server", "--bind", "127.0.0.1", "--port", fmt.Sprint(port), "--save", "", "--appendonly", "no", "--dir", "/tmp")
	if err := server.Start(); err != nil {
		return nil, err
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	var hosts []*run
	for _, host := range []string{"mx1", "mx2"} {
		r, err := b.run(contestant{name: on, args: []string{"DIR/filter-scanwatch", "-f", "DIR/" + host + ".conf", "-s", "STATE"}}, nil)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, r.end()) }()
		hosts = append(hosts, r)
		// Wait before the companion starts, because it wakes the filter every second, and the
		// filter would never appear to be idle.
		if err := r.settled(); err != nil {
			return nil, err
		}
		if !share {
			continue
		}
		companion := exec.Command(filepath.Join(b.dir, "scanwatch"), "share", "-f", filepath.Join(b.dir, host+".conf"))
		if err := companion.Start(); err != nil {
			return nil, err
		}
		defer func() {
			_ = companion.Process.Kill()
			_ = companion.Wait()
		}()
		if err := b.shares(r.state); err != nil {
			return nil, err
		}
	}
	load := func(r *run, rate int) ([]time.Duration, error) {
		requests := max(int(float64(rate)*b.span.Seconds()), 100)
		s := recipe{mix: "mix", registered: r.registered, open: 50, sessions: requests, requests: requests,
			begin: time.Now(), apart: time.Second / time.Duration(rate)}.make()
		return r.offered(s, rate)
	}
	if paused {
		if err := server.Process.Signal(syscall.SIGSTOP); err != nil {
			return nil, err
		}
	}
	other := make(chan error, 1)
	go func() {
		_, err := load(hosts[1], peerRate)
		other <- err
	}()
	took, err = load(hosts[0], rate)
	return took, errors.Join(err, <-other)
}

// shares waits until the companion has exchanged rows.
func (b *bench) shares(state string) error {
	for range 1000 {
		out, _ := exec.Command(filepath.Join(b.dir, "scanwatch"), "-s", state, "status").Output() // the command may fail because of other problems
		if strings.Contains(string(out), "companion share: running") {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return errors.New("the companion is not sharing the state")
}
