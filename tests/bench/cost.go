//go:build linux

package main

// This file measures the cost of startup, memory and disk space.

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"scanwatch/internal/smtp"

	"golang.org/x/sys/unix"

	"scanwatch/store"
)

// writeRows writes records of finished sessions until their files have the given total size in
// bytes. All days have the same number of records. The last session ends at end.
func writeRows(dir string, bytes int64, days int, end time.Time) (records int, err error) {
	const perRecord = 220 // approximate
	n := int(bytes / perRecord)
	apart := time.Duration(days) * 24 * time.Hour / time.Duration(n)
	now := end.Add(-apart * time.Duration(n))
	w := store.Open(dir, store.Options{Budget: 64 << 30, Keep: 10 * 365 * 24 * time.Hour, Now: func() time.Time { return now }})
	var steps, value []byte
	for i := range n {
		now = now.Add(apart)
		id := mixed(uint64(i))
		addr := netip.AddrFrom4([4]byte{198, 18, byte(id >> 8), byte(id)})
		r := &store.Record{
			ID: id, Start: now.Add(-1500 * time.Millisecond), End: now, Src: netip.AddrPortFrom(addr, uint16(id>>16)),
			Dst: netip.MustParseAddrPort("192.0.2.25:25"), RDNS: fmt.Appendf(nil, "mail%d.example.net", id&0xffff), FCrDNS: smtp.FCrDNSPass,
			Ending: smtp.EndingQuit, Counts: store.Counts{Commands: 5, Mails: 1, RcptOK: 1},
		}
		steps = store.AppendStep(steps[:0], &store.Step{Kind: store.KindHelo, Text: r.RDNS, Arg: []byte("EHLO"), Result: smtp.ResultOK, Code: 250}, 10*time.Millisecond)
		steps = store.AppendStep(steps, &store.Step{Kind: store.KindMail, Text: []byte("bounces@example.net"), Result: smtp.ResultOK, MsgID: uint32(id)}, time.Millisecond)
		steps = store.AppendStep(steps, &store.Step{Kind: store.KindRcpt, Text: []byte("user@example.org"), Result: smtp.ResultOK, Code: 250}, time.Millisecond)
		value = store.AppendRecord(value[:0], r, steps)
		w.Add(now, id, value)
		if i%5000 == 4999 {
			if err := w.Flush(context.Background()); err != nil {
				return 0, err
			}
		}
	}
	if err := w.Close(); err != nil {
		return 0, err
	}
	if d := w.Status().Dropped.Total(); d > 0 {
		return 0, fmt.Errorf("%d of %d records were dropped", d, n)
	}
	return n, nil
}

// cold evicts a directory's files from the page cache, which requires no privileges.
func cold(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	})
}

// costs measures startup with a long history, and reports on that history.
func (b *bench) costs() error {
	bytes := int64(2 << 30)
	if b.quick {
		bytes = 2 << 20
	}
	dir := filepath.Join(b.dir, "history")
	records, err := writeRows(dir, bytes, 60, time.Now().Add(-time.Hour))
	if err != nil {
		return err
	}
	disk := size(dir)
	fmt.Fprintf(b.out, "\nhistory: %d records, %.1f GB, %d bytes each\n", records, float64(disk)/1e9, disk/int64(records))

	var starts, anon []float64
	for range b.pairs {
		if err := cold(b.dir); err != nil {
			return err
		}
		c, err := start(on, filepath.Join(b.dir, "filter-scanwatch"), "-f", filepath.Join(b.dir, "on.conf"), "-s", dir)
		if err != nil {
			return err
		}
		starts = append(starts, c.ready.Seconds()*1e3)
		time.Sleep(b.settle)
		anon = append(anon, float64(c.memory("RssAnon"))/1e6)
		if err := c.stop(); err != nil {
			return err
		}
	}
	fmt.Fprintf(b.out, "exec to register|ready, cold: %.0f ms; then %.1f MB anonymous\n", median(starts), median(anon))
	b.goal("ms from exec to register|ready, cold, 2 GB of history, all tables", median(starts), 100)
	b.goal("MB anonymous with the tables loaded", median(anon), 40)
	return b.reading(dir, records)
}

// usage is the cost of a command.
type usage struct {
	wall, cpu time.Duration
	memory    int64 // peak in bytes
}

// timed runs a command, writing its output to out, and returns its cost.
func timed(out io.Writer, args ...string) (u usage, err error) {
	cmd := exec.Command(args[0], args[1:]...)
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &stderr
	// Reset the peak of this process, because the peak of a child starts at the memory use of its
	// parent.
	debug.FreeOSMemory()
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
	began := time.Now()
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("%v: %w: %.500s", args, err, stderr.Bytes())
	}
	u.wall = time.Since(began)
	if s := cmd.ProcessState; s != nil {
		u.cpu, u.memory = s.UserTime()+s.SystemTime(), s.SysUsage().(*syscall.Rusage).Maxrss<<10
	}
	return u, err
}

func (b *bench) reading(dir string, records int) error {
	command := filepath.Join(b.dir, "scanwatch")
	report := []string{command, "-s", dir, "report", "--since", "90d"}
	var warm, coldTook, read []float64
	for range b.pairs {
		if err := cold(dir); err != nil {
			return err
		}
		t, err := timed(io.Discard, report...)
		if err != nil {
			return err
		}
		coldTook = append(coldTook, t.wall.Seconds())
		if t, err = timed(io.Discard, report...); err != nil {
			return err
		}
		warm = append(warm, t.wall.Seconds())
		if err := cold(dir); err != nil {
			return err
		}
		began := time.Now()
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, 1<<20))
			return err
		}); err != nil {
			return err
		}
		read = append(read, time.Since(began).Seconds())
	}
	rate := float64(records) / median(warm)
	fmt.Fprintf(b.out, "report: warm %.1f s (%.2f million records/s), cold %.1f s, reading the files %.1f s\n", median(warm), rate/1e6, median(coldTook), median(read))
	b.goalAtLeast("report, million records/s, warm", rate/1e6, 0.8)
	b.goal("report cold / (1.5 x reading the files + warm)", median(coldTook)/(1.5*median(read)+median(warm)), 1)
	if _, err := exec.LookPath("jq"); err != nil {
		if os.Getenv("SCANWATCH_NO_SKIP") == "1" {
			return err
		}
		fmt.Fprintln(b.log, "SKIP: jq is not installed")
		return nil
	}
	// For comparison, measure jq with a minimal filter on some of the same records as lines of
	// JSON.
	name := filepath.Join(b.dir, "part.json")
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = timed(&head{w: f, lines: 200_000}, command, "-s", dir, "dump", "--since", "3d")
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	n, err := countLines(name)
	if err != nil {
		return err
	}
	t, err := timed(io.Discard, "jq", "-r", ".src", name)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.out, "jq: %d records in %.1f s (%.2f million records/s)\n", n, t.wall.Seconds(), float64(n)/t.wall.Seconds()/1e6)
	b.goalAtLeast("report / jq on JSON lines, records/s", rate/(float64(n)/t.wall.Seconds()), 3)
	return os.Remove(name)
}

// A head copies a number of lines and discards the rest.
type head struct {
	w     io.Writer
	lines int
}

func (h *head) Write(p []byte) (int, error) {
	rest := p
	for h.lines > 0 {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			break
		}
		rest = rest[i+1:]
		h.lines--
	}
	whole := p[:len(p)-len(rest)]
	if h.lines > 0 {
		whole = p
	}
	if _, err := h.w.Write(whole); err != nil {
		return 0, err
	}
	return len(p), nil
}

func countLines(name string) (n int, err error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		n++
	}
	return n, lines.Err()
}

// space measures how much disk space and memory sessions use.
func (b *bench) space() error {
	registered, err := b.registrations()
	if err != nil {
		return err
	}
	n := 100_000
	if b.quick {
		n = 100
	}
	r, err := b.run(named(on), nil)
	if err != nil {
		return err
	}
	s := recipe{mix: "mix", registered: without(registered, "filter|smtp-in|connect"), open: 20, sessions: n, begin: time.Now(), apart: time.Millisecond}.make()
	if _, _, err := r.full(s, 0); err != nil {
		return err
	}
	if err := r.stop(); err != nil {
		return err
	}
	sessions := size(filepath.Join(r.state, "sessions"))
	fmt.Fprintf(b.out, "\ndisk: %d bytes per session of the mix, of %d\n", sessions/int64(n), n)
	b.goal("bytes on disk per session of the mix", float64(sessions)/float64(n), 300)
	if err := os.RemoveAll(r.state); err != nil {
		return err
	}

	// Compare 1,000 sources with five million sources.
	var anon []float64
	for _, sources := range []int{1000, 5_000_000} {
		r, err := b.run(named(on), nil)
		if err != nil {
			return err
		}
		chunk, rounds := 100_000, 50
		if b.quick {
			chunk, rounds = 100, 5
		}
		for i := range rounds {
			first := i * chunk
			if sources == 1000 {
				first = 0
			}
			s := recipe{mix: "visit", registered: without(registered, "filter|smtp-in|connect"), open: 20, sessions: chunk, first: first,
				sources: sources, begin: time.Now(), apart: time.Microsecond}.make()
			if _, _, err := r.full(s, 0); err != nil {
				return err
			}
		}
		if err := r.settled(); err != nil {
			return err
		}
		anon = append(anon, float64(r.memory("RssAnon"))/1e6)
		if err := r.end(); err != nil {
			return err
		}
	}
	fmt.Fprintf(b.out, "memory: %.1f MB anonymous after 5 million sessions of 1,000 sources, %.1f MB of 5 million\n", anon[0], anon[1])
	b.goal("MB more with 5 million sources than with 1,000", anon[1]-anon[0], 48)

	if b.quick {
		return nil
	}
	// A benchmark measures the heap size of an open session from inside the process.
	cmd := exec.Command("go", "test", "-run", "^$", "-bench", "OpenSessions", "-benchtime", "3x", "./filter")
	cmd.Dir = b.root
	out, err := cmd.CombinedOutput()
	m := regexp.MustCompile(`([0-9.]+) B/session`).FindSubmatch(out)
	if err != nil || m == nil {
		return fmt.Errorf("bytes of an open session: %w: %s", err, out)
	}
	bytes, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.out, "memory: %.0f bytes per open session in a transaction\n", bytes)
	b.goal("bytes of memory per open session", bytes, 1024)
	return nil
}

func without(m map[string]bool, key string) map[string]bool {
	c := map[string]bool{}
	for k := range m {
		c[k] = k != key
	}
	return c
}

// dropping measures response times while the filter removes an expired day with 200,000 sessions.
func (b *bench) dropping() error {
	n, span := int64(200_000), max(b.span, time.Second)
	if b.quick {
		n = 100
	}
	var slowest, usual []float64
	for range b.pairs {
		for _, old := range []bool{true, false} {
			r, err := b.droppingRun(old, n, span)
			if err != nil {
				return err
			}
			if old {
				slowest = append(slowest, r)
			} else {
				usual = append(usual, r)
			}
		}
	}
	fmt.Fprintf(b.out, "\ndropping a day of %d sessions at the start: slowest answer %.1f ms, without %.1f ms\n", n, median(slowest), median(usual))
	b.goal("ms of the slowest answer while a day is dropped", median(slowest), 100)
	return nil
}

func (b *bench) droppingRun(old bool, n int64, span time.Duration) (slowest float64, err error) {
	dir, err := os.MkdirTemp(b.dir, "drop-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if old {
		if _, err := writeRows(dir, n*220, 1, time.Now().Add(-95*24*time.Hour).Truncate(24*time.Hour)); err != nil {
			return 0, err
		}
	}
	// Write a recent record, because the filter does not trust a clock that is months
	// ahead of all records.
	if _, err := writeRows(dir, 220*100, 1, time.Now().Add(-time.Hour)); err != nil {
		return 0, err
	}
	before := size(dir)
	c, err := start(on, filepath.Join(b.dir, "filter-scanwatch"), "-f", filepath.Join(b.dir, "on.conf"), "-s", dir)
	if err != nil {
		return 0, err
	}
	const rate = 2000
	// Omit connect requests, because the policy delays them for unknown clients.
	s := recipe{mix: "mix", registered: without(c.registered, "filter|smtp-in|connect"), open: 50, sessions: 1 << 20,
		requests: max(int(span.Seconds()*rate), 100), begin: time.Now(), apart: time.Second / rate}.make()
	took, err := c.offered(s, rate)
	if err != nil {
		return 0, err
	}
	if err := c.stop(); err != nil {
		return 0, err
	}
	if old && size(dir) >= before && !b.quick {
		return 0, fmt.Errorf("the old day is still there: %d bytes, %d before", size(dir), before)
	}
	return took[len(took)-1].Seconds() * 1e3, nil
}
