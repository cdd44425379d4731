package main

// The verbs that read recorded sessions.

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/memory"
	"scanwatch/rules"
	"scanwatch/store"
	store_report "scanwatch/store/report"
)

const dumpHelp = sinceHelp + `

  --since WHEN      only sessions that ended then or later; default all
  --src PREFIX      only those of clients in a network, or of one address
  --evidence TOKEN  only those that were found with it
  --csv             comma-separated values with a heading`

const sinceHelp = `WHEN is a time span before now (90m, 24h, 7d, 2w), a day in your time zone
(2026-11-01), or a moment (2026-11-01T12:00:00Z).`

// since parses WHEN.
func (e *env) since(when string) (time.Time, error) { return e.moment("since", when) }

// moment parses the WHEN of a flag.
func (e *env) moment(name, when string) (time.Time, error) {
	if t, err := time.ParseInLocation(time.DateOnly, when, e.zone); err == nil {
		return t, nil
	}
	if t, err := time.Parse(time.RFC3339, when); err == nil {
		return t, nil
	}
	if d, err := span(when); err == nil {
		return e.now().Add(-d), nil
	}
	return time.Time{}, usage("--%s %q: neither a time span, nor a day, nor a moment\n%s", name, when, sinceHelp)
}

// span parses a duration, which may be given in days or weeks.
func span(s string) (time.Duration, error) {
	for unit, length := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		if n, ok := strings.CutSuffix(s, unit); ok {
			days, err := strconv.ParseUint(n, 10, 32)
			if err != nil || days > 36500 {
				return 0, errors.New("not a number of days")
			}
			return time.Duration(days) * length, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err == nil && d < 0 {
		err = errors.New("negative")
	}
	return d, err
}

// dirError says what to do about a state directory that cannot be read.
func dirError(err error) error {
	hint := "name another with -s"
	if errors.Is(err, os.ErrPermission) {
		hint = "run this as root, or join the group of the directory"
	}
	return fmt.Errorf("read the state directory (%s): %w", hint, err)
}

// reader returns a reader of the state directory, and what is wrong with it so
// far. Segments that the filter is writing come through its socket.
func (e *env) reader() (*store.Reader, *control.Client, []string, error) {
	stepBack()
	// A directory that cannot be read is an error even if the filter has not
	// recorded anything yet.
	if _, err := os.ReadDir(e.dir); err != nil {
		return nil, nil, nil, dirError(err)
	}
	r := &store.Reader{Dir: e.dir}
	client, err := control.Dial(e.dir)
	if err != nil {
		return r, nil, []string{err.Error()}, nil
	}
	r.Snapshot = func(w io.Writer, name string) error {
		// Asked anew: the filter cuts off who is silent while reading the rest.
		c, err := control.Dial(e.dir)
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Snapshot(w, name)
	}
	// What waits in the filter's memory belongs to the picture.
	if err := client.Flush(); err != nil {
		return r, client, []string{"what came in last is missing: " + err.Error()}, nil
	}
	return r, client, nil, nil
}

// each goes through the records. Not to have any is no error.
func each(r *store.Reader, since time.Time, f func(*store.Record) error) error {
	return eachUntil(r, since, time.Time{}, f)
}

// eachUntil leaves out those that ended at until or later; a zero time is no limit.
func eachUntil(r *store.Reader, since, until time.Time, f func(*store.Record) error) error {
	err := r.Each(since, until, f)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// days returns what was counted by the day, the oldest first.
func (e *env) days() (list []memory.Day, err error) {
	if client, err := control.Dial(e.dir); err == nil {
		defer client.Close()
		return client.Days()
	}
	err = e.state([]string{"days"}, func(en store.Entry) error {
		if d, ok := memory.ReadDay(en.Key, en.Value); ok {
			list = append(list, d)
		}
		return nil
	})
	return list, err
}

// unread is the error for files that could not be read at all: what is printed
// is not the whole then.
func unread(r *store.Reader) error {
	if r.Unread == 0 {
		return nil
	}
	return fmt.Errorf("%d files of sessions could not be read, and are missing in this", r.Unread)
}

// warn makes problems of reading appear on stderr, for verbs whose output is
// for programs.
func (e *env) warn(r *store.Reader, problems []string) {
	for _, p := range problems {
		if !strings.Contains(p, control.ErrNotRunning.Error()) { // it need not run
			fmt.Fprintf(e.err, "scanwatch: %s\n", p)
		}
	}
	r.Problem = func(segment string, err error) { fmt.Fprintf(e.err, "scanwatch: %s: %v\n", segment, err) }
}

func dump(e *env, args []string) error {
	when := e.flags.String("since", "", "")
	src := e.flags.String("src", "", "")
	evidence := e.flags.String("evidence", "", "")
	asCSV := e.flags.Bool("csv", false, "")
	if _, err := e.parse(args, 0, 0); err != nil {
		return err
	}
	var since time.Time
	var err error
	if *when != "" {
		if since, err = e.since(*when); err != nil {
			return err
		}
	}
	if *evidence != "" && rules.TokenByName(*evidence) == nil {
		return usage("--evidence %q: there is no such token; the manual scanwatch.conf(5) lists them", *evidence)
	}
	var prefix netip.Prefix
	if *src != "" {
		if prefix, err = parsePrefix(*src); err != nil {
			return usage("--src %q: no address or prefix, such as 192.0.2.1 or 2001:db8::/32", *src)
		}
	}
	r, client, problems, err := e.reader()
	if err != nil {
		return err
	}
	if client != nil {
		defer client.Close()
	}
	e.warn(r, problems)
	write, end := store_report.Lines(e.out), func() error { return nil }
	if *asCSV {
		write, end = store_report.CSV(e.out)
	}
	err = each(r, since, func(rec *store.Record) error {
		if prefix.IsValid() && !prefix.Contains(rec.Src.Addr().Unmap()) {
			return nil
		}
		v := store_report.NewView(rec)
		if *evidence != "" && !v.HasEvidence(*evidence) {
			return nil
		}
		return write(v)
	})
	if err != nil {
		return err
	}
	return errors.Join(end(), unread(r))
}

func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err
}

func show(e *env, args []string) error {
	asJSON := e.flags.Bool("json", false, "")
	args, err := e.parse(args, 1, 1)
	if err != nil {
		return err
	}
	id, err := strconv.ParseUint(args[0], 16, 64)
	if err != nil || len(args[0]) != 16 {
		return usage("show %q: no session id, which has 16 hexadecimal digits", args[0])
	}
	r, client, problems, err := e.reader()
	if err != nil {
		return err
	}
	if client != nil {
		defer client.Close()
	}
	e.warn(r, problems)
	found, err := r.Find(id)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(found) == 0 {
		if err := unread(r); err != nil {
			return err
		}
		return fmt.Errorf("session %016x is not recorded in %s; it may be going on still, or have been removed for its age or the budget", id, e.dir)
	}
	write := store_report.Lines(e.out)
	for i := range found {
		v := store_report.NewView(&found[i])
		if !*asJSON {
			if i > 0 {
				fmt.Fprintln(e.out)
			}
			err = store_report.Show(e.out, v, e.zone)
		} else {
			err = write(v)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
