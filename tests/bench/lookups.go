//go:build linux

package main

// This file measures response times while a companion asks a DNS list about clients.

import (
	"bytes"
	"encoding/json"
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

	"golang.org/x/net/dns/dnsmessage"
)

// lookupUser is the user ID of the companion. This user needs no account.
const lookupUser = 4004

// lookups measures response times at a fixed rate. Runs with a DNS list alternate with runs without
// a list. No request waits for the list's answers.
func (b *bench) lookups() error {
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer server.Close()
	go answerQueries(server)
	prompt, err := os.ReadFile(filepath.Join(b.dir, "prompt.conf"))
	if err != nil {
		return err
	}
	runDir := filepath.Join(b.dir, "run")
	statements := fmt.Sprintf("rundir %q\ncompanion lookup user %d resolver 127.0.0.1 port %d\nlookup bl dnsbl \"bl.example.org\" codes 127.0.0.2\n",
		runDir, lookupUser, server.LocalAddr().(*net.UDPAddr).Port)
	for _, dir := range []string{b.dir, runDir} {
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chmod(dir, 0o755)); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(b.dir, "lookups.conf"), append([]byte(statements), prompt...), 0o644); err != nil {
		return err
	}
	const rate = 2000
	parts := []struct {
		what, conf string
		p50, p99   []float64
		asked      uint64
	}{{what: "with a DNS list", conf: "lookups.conf"}, {what: "without", conf: "prompt.conf"}}
	for range b.pairs {
		for i := range parts {
			p := &parts[i]
			took, asked, err := b.lookupRun(p.conf, rate)
			if err != nil {
				return fmt.Errorf("%s: %w", p.what, err)
			}
			p.p50, p.p99 = append(p.p50, quantile(took, .5).Seconds()*1e6), append(p.p99, quantile(took, .99).Seconds()*1e6)
			p.asked += asked
		}
	}
	fmt.Fprintf(b.out, "\n%d requests/s of unknown clients\n", rate)
	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tp50 us\tp99 us\tquestions\t")
	var ratios []float64
	for _, p := range parts {
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%d\t\n", p.what, median(p.p50), median(p.p99), p.asked)
	}
	w.Flush()
	for i := range parts[0].p99 {
		ratios = append(ratios, parts[0].p99[i]/parts[1].p99[i])
	}
	b.goal("p99 of answers, with a DNS list / without", median(ratios), 1.2)
	return nil
}

// lookupRun measures a run with the given configuration, and returns the response times and the
// number of questions about clients.
func (b *bench) lookupRun(conf string, rate int) (took []time.Duration, asked uint64, err error) {
	r, err := b.run(contestant{name: on, args: []string{"DIR/filter-scanwatch", "-f", "DIR/" + conf, "-s", "STATE"}}, nil)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, r.end()) }()
	var companion *exec.Cmd
	if conf == "lookups.conf" {
		companion = exec.Command(filepath.Join(b.dir, "scanwatch"), "lookup", "-f", filepath.Join(b.dir, conf))
		companion.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: lookupUser, Gid: lookupUser}}
		if err := companion.Start(); err != nil {
			return nil, 0, err
		}
		defer func() {
			_ = companion.Process.Kill()
			_ = companion.Wait()
		}()
		if err := b.lookupReady(r.state); err != nil {
			return nil, 0, err
		}
	}
	if err := r.settled(); err != nil {
		return nil, 0, err
	}
	requests := max(int(float64(rate)*b.span.Seconds()), 100)
	s := recipe{mix: "mix", registered: r.registered, open: 50, sessions: requests, requests: requests,
		begin: time.Now(), apart: time.Second / time.Duration(rate)}.make()
	s.data = bytes.ReplaceAll(s.data, []byte("198.18."), []byte("45.118.")) // the companion does not ask lists about reserved addresses
	if took, err = r.offered(s, rate); err != nil {
		return nil, 0, err
	}
	if companion != nil {
		status, err := b.lookupStatus(r.state)
		if err != nil {
			return nil, 0, err
		}
		if asked = status.Lookups[0].Asked; asked == 0 {
			return nil, 0, errors.New("the list was not asked")
		}
	}
	return took, asked, nil
}

type lookupStatus struct {
	Companions []struct{ Entries int }
	Lookups    []struct{ Asked uint64 }
}

func (b *bench) lookupStatus(state string) (s lookupStatus, err error) {
	out, err := exec.Command(filepath.Join(b.dir, "scanwatch"), "-s", state, "status", "--json").Output()
	if len(out) > 0 { // the status may show unrelated problems, such as a missing backup
		err = json.Unmarshal(out, &s)
	}
	return s, err
}

// lookupReady waits until the companion is using its DNS list.
func (b *bench) lookupReady(state string) error {
	for range 1000 {
		if s, err := b.lookupStatus(state); err == nil && len(s.Companions) == 1 && s.Companions[0].Entries == 1 {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return errors.New("the companion is not using its list")
}

// answerQueries is the DNS list's name server. The test address and one host in ten are listed.
func answerQueries(server net.PacketConn) {
	packet := make([]byte, 1500)
	for {
		n, from, err := server.ReadFrom(packet)
		if err != nil {
			return
		}
		var query dnsmessage.Message
		if query.Unpack(packet[:n]) != nil || len(query.Questions) == 0 {
			continue
		}
		q := query.Questions[0]
		name := q.Name.String()
		answer := dnsmessage.Message{Header: dnsmessage.Header{ID: query.ID, Response: true, Authoritative: true, RCode: dnsmessage.RCodeNameError}, Questions: query.Questions}
		if strings.HasPrefix(name, "2.0.0.127.") || strings.HasPrefix(name, "7") {
			answer.RCode = dnsmessage.RCodeSuccess
			answer.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 300}, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 2}}}}
		}
		if out, err := answer.Pack(); err == nil {
			_, _ = server.WriteTo(out, from)
		}
	}
}
