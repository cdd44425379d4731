//go:build linux

package main

// This file describes and starts the filters that are compared.

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// A contestant is a filter, with the commands that build and start it.
type contestant struct {
	name  string
	build []string // build command; DIR is the directory for the programs, ROOT the repository
	args  []string // arguments; DIR is the directory of the programs, STATE a new directory
	told  bool     // args contain registrations
	slow  bool     // a session takes milliseconds
	fast  bool     // included in the tests at fixed rates
}

// Names of the filters in goals.
const (
	observe   = "scanwatch, no rules"
	on        = "scanwatch on"
	bare      = "scanwatch on, no lists"
	null      = "null, Go"
	framework = "OpenSMTPD-framework, empty"
	library   = "libopensmtpd, empty"
	perl      = "Perl, file per event"
)

// command is the program that prints the reports.
var command = goBuild("scanwatch", "scanwatch/cmd/scanwatch")

var contestants = []contestant{
	{name: observe, build: goBuild("filter-scanwatch", "scanwatch/cmd/filter-scanwatch"),
		args: []string{"DIR/filter-scanwatch", "-f", "DIR/none.conf", "-s", "STATE"}},
	{name: on, args: []string{"DIR/filter-scanwatch", "-f", "DIR/on.conf", "-s", "STATE"}, fast: true},
	{name: bare, args: []string{"DIR/filter-scanwatch", "-f", "DIR/bare.conf", "-s", "STATE"}},
	{name: null, build: goBuild("null", "scanwatch/tests/bench/null"), args: []string{"DIR/null"}, told: true, fast: true},
	{name: "null, C", build: []string{"cc", "-O2", "-o", "DIR/null-c", "tests/bench/c/null.c"}, args: []string{"DIR/null-c"}, told: true, fast: true},
	{name: framework, build: goBuild("framework", "scanwatch/tests/bench/framework"),
		args: []string{"DIR/framework"}, told: true, fast: true},
	{name: library, build: []string{"cc", "-O2", "-o", "DIR/libopensmtpd", "tests/bench/c/libopensmtpd.c", "-lopensmtpd"},
		args: []string{"DIR/libopensmtpd"}, told: true, fast: true},
	{name: perl, build: []string{"perl", "-c", "tests/bench/perl/logger.pl"},
		args: []string{"perl", "ROOT/tests/bench/perl/logger.pl", "STATE"}, told: true, slow: true},
}

func goBuild(program, path string) []string {
	return []string{"go", "build", "-trimpath", "-ldflags", "-s -w", "-o", "DIR/" + program, path}
}

// build builds the programs. If a contestant's tools are missing, build logs this and skips the
// contestant. If SCANWATCH_NO_SKIP is 1, this is an error instead.
func (b *bench) build() error {
	return b.buildAll(append([]contestant{{name: "scanwatch", build: command}}, contestants...))
}

func (b *bench) buildAll(list []contestant) error {
	for _, c := range list {
		if len(c.build) == 0 {
			continue
		}
		args := b.place(c.build, "")
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = b.root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			if args[0] == "go" || os.Getenv("SCANWATCH_NO_SKIP") == "1" {
				return fmt.Errorf("build %s: %w\n%s", c.name, err, out)
			}
			fmt.Fprintf(b.log, "SKIP: %s does not take part: %v: %.300s\n", c.name, err, out)
			b.missing[c.name] = true
		}
	}
	return nil
}

// place replaces the placeholders for directories in a command.
func (b *bench) place(args []string, state string) []string {
	args = slices.Clone(args)
	for i := range args {
		args[i] = strings.NewReplacer("ROOT", b.root, "DIR", b.dir, "STATE", state).Replace(args[i])
	}
	return args
}

func (b *bench) has(name string) bool { return !b.missing[name] }

func named(name string) contestant {
	for _, c := range contestants {
		if c.name == name {
			return c
		}
	}
	panic("no contestant " + name)
}

// A run is a running contestant with a separate state directory.
type run struct {
	*child
	state string
	b     *bench
}

// run starts a contestant. If its arguments are registrations, it receives registered.
func (b *bench) run(c contestant, registered map[string]bool) (*run, error) {
	state, err := os.MkdirTemp(b.dir, "state-")
	if err != nil {
		return nil, err
	}
	return b.runIn(c, state, registered)
}

// runIn starts a contestant in the given state directory.
func (b *bench) runIn(c contestant, state string, registered map[string]bool) (*run, error) {
	args := b.place(c.args, state)
	if c.told {
		args = append(args, sortedKeys(registered)...)
	}
	one, err := start(c.name, args...)
	if err != nil {
		return nil, err
	}
	if c.told && c.name != library { // the library does not support link-auth, which this test does not need
		for event := range registered {
			if !one.registered[event] {
				return nil, errors.Join(fmt.Errorf("%s does not register %s", c.name, event), one.stop())
			}
		}
	}
	return &run{child: one, state: state, b: b}, nil
}

func (r *run) end() error {
	return errors.Join(r.stop(), os.RemoveAll(r.state))
}

func sortedKeys(m map[string]bool) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// know delivers a message from every host on an earlier day, so that the filter knows all hosts.
// Otherwise, the greeting delay of two seconds for unknown hosts would dominate the measurement.
// The deliveries themselves are not measured and contain no requests.
func (r *run) know() error {
	if err := r.introduce(); err != nil {
		return err
	}
	return r.settled()
}

// introduce is like know, but does not wait until the filter is idle.
func (r *run) introduce() error {
	sessions := hosts
	if r.b.quick {
		sessions = 100 // the maximum
	}
	reports := map[string]bool{}
	for event := range r.registered {
		if strings.HasPrefix(event, "report|") {
			reports[event] = true
		}
	}
	s := recipe{mix: "delivery", registered: reports, open: 20, sessions: sessions,
		begin: time.Now().AddDate(0, 0, -2), apart: time.Microsecond}.make()
	_, _, err := r.full(s, 0)
	return err
}

// settled waits until the filter is idle. Deferred work, such as writing to disk, also counts as
// the filter's cost.
func (r *run) settled() error {
	const still = 300 * time.Millisecond
	wait := r.b.settle
	if !strings.HasPrefix(r.name, "scanwatch") {
		wait = 5 * time.Millisecond // allow for deferred work
	}
	for last := time.Duration(-1); ; {
		now := r.cpu()
		if now-last < still/1000 {
			return nil
		}
		last = now
		time.Sleep(wait)
	}
}
