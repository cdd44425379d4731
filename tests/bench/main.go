//go:build linux

// Bench measures the cost of the filter, and of other filters with the same input. It prints the
// tables that README.md in this directory explains.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// A bench is a run of the program.
type bench struct {
	root    string // directory of the repository
	dir     string // directory for programs, configurations and state
	log     io.Writer
	out     io.Writer
	missing map[string]bool

	quick  bool
	mixes  []string      // mixes to play at full speed
	pairs  int           // runs of each contestant, in alternation
	span   time.Duration // length of a run
	settle time.Duration

	goals []goal
}

func main() {
	quick := flag.Bool("quick", false, "check in seconds that everything works; the numbers are meaningless")
	pairs := flag.Int("pairs", 5, "number of alternating measurements; medians are printed")
	span := flag.Duration("span", 2*time.Second, "duration of one measurement")
	parts := flag.String("parts", "", "only these: "+strings.Join(partNames(), ","))
	mixes := flag.String("mixes", strings.Join(allMixes, ","), "mixes at full speed")
	only := flag.String("only", "", "measure only these contestants, named as in the tables and separated by ;")
	inside := flag.String("inside", "", "used by the program itself")
	flag.Parse()
	b := &bench{mixes: strings.Split(*mixes, ","), log: os.Stderr, out: os.Stdout, missing: map[string]bool{}, quick: *quick, pairs: *pairs, span: *span, settle: 1200 * time.Millisecond}
	if *only != "" {
		for _, c := range contestants {
			b.missing[c.name] = !slices.Contains(strings.Split(*only, ";"), c.name)
		}
	}
	if *quick {
		b.hurry()
	}
	var err error
	if b.dir = *inside; b.dir != "" {
		err = b.inside()
	} else {
		err = b.all(*parts)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// hurry shortens all measurements as much as possible, to test only the program itself.
func (b *bench) hurry() {
	b.quick, b.pairs, b.span, b.settle = true, 1, 0, time.Millisecond
}

// A part is a group of measurements.
type part struct {
	name string
	run  func(*bench) error
}

var parts = []part{
	{"speed", (*bench).speed},
	{"rates", (*bench).rates},
	{"space", (*bench).space},
	{"dropping", (*bench).dropping},
	{"costs", (*bench).costs},
	{"history", (*bench).history},
	{"sealing", (*bench).sealing},
	{"lookups", (*bench).lookups},
	{"sharing", (*bench).sharing},
	{"milters", (*bench).milters},
	{"smtpd", (*bench).real},
}

func partNames() (names []string) {
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

func (b *bench) all(only string) error {
	var err error
	if b.root, err = root(); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	fmt.Fprintln(b.log, "building")
	if err := b.build(); err != nil {
		return err
	}
	if err := configure(b.dir, b.dir); err != nil {
		return err
	}
	b.conditions()
	for _, p := range parts {
		if only != "" && !slices.Contains(strings.Split(only, ","), p.name) {
			continue
		}
		fmt.Fprintf(b.log, "%s\n", p.name)
		if err := p.run(b); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	b.printGoals()
	return nil
}

// root returns the directory that contains go.mod.
func root() (string, error) {
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, e := os.Stat(filepath.Join(dir, "go.mod")); e == nil {
			return dir, nil
		}
		dir = filepath.Dir(dir)
	}
	return "", fmt.Errorf("run this in the repository: %w", err)
}

// conditions prints the environment in which the measurements are made.
func (b *bench) conditions() {
	var u unix.Utsname
	_ = unix.Uname(&u)
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Fprintf(b.out, "%s, Linux %s, %d cores, %s, load %s; medians of %d\n", time.Now().UTC().Format("2006-01-02 15:04 MST"),
		unix.ByteSliceToString(u.Release[:]), runtime.NumCPU(), runtime.Version(), strings.Join(strings.Fields(string(load))[:3], " "), b.pairs)
	if nice, err := unix.Getpriority(unix.PRIO_PROCESS, 0); os.Geteuid() == 0 && err == nil && nice == 20 {
		// Raise the priority to reduce interference from other processes. New threads and processes
		// inherit the priority. If the caller has used nice(1), do not change the priority. The
		// system call returns 20 for the default priority.
		threads, _ := os.ReadDir("/proc/self/task")
		for _, t := range threads {
			if tid, err := strconv.Atoi(t.Name()); err == nil {
				_ = unix.Setpriority(unix.PRIO_PROCESS, tid, -20)
			}
		}
	}
}

// A goal is a limit that a measurement must meet.
type goal struct {
	what  string
	limit float64
	least bool // limit is a minimum, not a maximum
	got   float64
}

func (b *bench) goal(what string, got, most float64) {
	b.goals = append(b.goals, goal{what: what, limit: most, got: got})
}

func (b *bench) goalAtLeast(what string, got, least float64) {
	b.goals = append(b.goals, goal{what: what, limit: least, got: got, least: true})
}

func (b *bench) printGoals() {
	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\ngoal\tlimit\tmeasured\t")
	for _, g := range b.goals {
		sign, verdict := "<=", "PASS"
		if g.least {
			sign = ">="
		}
		if g.got > g.limit != g.least && g.got != g.limit {
			verdict = "miss"
		}
		fmt.Fprintf(w, "%s\t%s %.3g\t%.3g\t%s\n", g.what, sign, g.limit, g.got, verdict)
	}
	w.Flush()
}

// median returns the median of v.
func median[T int64 | float64 | time.Duration](v []T) T {
	if len(v) == 0 {
		return 0
	}
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}
