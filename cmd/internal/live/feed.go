package live

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/statedir"
	"scanwatch/filter/events"
	"scanwatch/filter/memory"
	"scanwatch/internal/safego"
	"scanwatch/internal/text"
	"scanwatch/store"
	"scanwatch/store/history"
)

// retry is the pause before reconnecting.
const retry = 2 * time.Second

// A Feed fills a View with the records in a state directory and the filter's events.
type Feed struct {
	Dir  *statedir.Dir
	View *View
}

// Run follows the filter until ctx is done, reconnecting whenever the filter stops. While
// no filter is running, Run only reads the records.
func (f *Feed) Run(ctx context.Context) {
	for ; ctx.Err() == nil; wait(ctx, retry) {
		err := safego.Run(func() error { return f.follow(ctx) })
		f.View.disconnected(fmt.Errorf("%w; connecting again every %v", err, retry), f.Dir.Mode())
		if f.View.unread() {
			f.reread(ctx, f.View.begin())
		}
	}
}

// wait waits for the given duration, or until ctx is done.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// follow adds the filter's events to the View until the connection is lost.
func (f *Feed) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watcher, err := control.Dial(f.Dir.Path)
	if err != nil {
		return err
	}
	defer watcher.Close()
	defer context.AfterFunc(ctx, func() { watcher.Close() })()
	begun := func() {
		go f.renew(ctx, f.View.begin())
		go func() {
			for ctx.Err() == nil {
				_ = safego.Run(func() error { return f.poll(ctx) }) // the watcher also notices when the filter stops
				wait(ctx, retry)
			}
		}()
	}
	return watcher.Watch(events.Choice{}, begun, func(line []byte) error {
		event, missing, err := events.Decode(line)
		if err == nil {
			f.View.event(&event, missing)
		}
		return err
	})
}

// poll requests the filter's status every second.
func (f *Feed) poll(ctx context.Context) error {
	c, err := control.Dial(f.Dir.Path)
	if err != nil {
		return err
	}
	defer c.Close()
	for ; ctx.Err() == nil; wait(ctx, time.Second) {
		s, err := c.Status()
		if err != nil {
			return err
		}
		f.View.connected(&s)
	}
	return nil
}

// settled is the time after which an ended session's record is on disk.
const settled = 10 * time.Second

// renew reads the records at first, and then reads new records every minute, because accepted
// sessions cause no events. It spends at most a hundredth of its time reading.
func (f *Feed) renew(ctx context.Context, begun time.Time) {
	from := f.reread(ctx, begun)
	for pause := time.Minute; ; {
		if wait(ctx, pause); ctx.Err() != nil {
			return
		}
		started, until := time.Now(), f.Dir.Now().Add(-settled)
		f.View.failed(safego.Run(func() error { return f.add(ctx, from, until) }))
		from, pause = until, max(time.Minute, 100*time.Since(started))
	}
}

// add adds the records from a period to the View, and updates the standing of all
// sources.
func (f *Feed) add(ctx context.Context, from, until time.Time) error {
	r, err := f.Dir.Written()
	if err != nil {
		return err
	}
	defer r.Close()
	if err := walk(ctx, r, from, until, f.View.record); err != nil {
		return err
	}
	m, err := f.state(until, func(memory.Ban) {}) // events report new bans
	if err == nil {
		f.View.remember(m)
	}
	return err
}

// walk calls visit for each record that ended in a period.
func walk(ctx context.Context, r *statedir.Records, from, until time.Time, visit func(*store.Record) error) error {
	each := func(rec *store.Record) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return visit(rec)
	}
	return history.Walk(r, from, until, history.Visitor{Kinds: store.KindsOf(store.KindFinding, store.KindVerdict, store.KindBan), Session: each, Sum: each})
}

// reread replaces the View's data with the records of the last hour and the state. It returns the
// end of that hour, the time of the call. Events that arrive during the call are queued.
func (f *Feed) reread(ctx context.Context, begun time.Time) (end time.Time) {
	end = f.Dir.Now()
	var d *data
	err := safego.Run(func() (err error) {
		d, err = f.read(ctx, begun, end)
		return err
	})
	f.View.finish(d, err)
	return end
}

// read returns the state and the records of the hour before end.
func (f *Feed) read(ctx context.Context, begun, end time.Time) (*data, error) {
	d := newData(f.View.zone, f.View.org, end.Add(-window))
	r, err := f.Dir.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if err := walk(ctx, r, d.since, end, func(rec *store.Record) error { return d.first(rec, begun) }); err != nil {
		return nil, err
	}
	for _, p := range r.Problems() {
		d.problems = append(d.problems, text.Escape(p))
	}
	if d.memory, err = f.state(end, d.addBan); err != nil {
		d.problems = append(d.problems, text.Escape(err.Error()))
	}
	return d, nil
}

// state returns a memory with the filter's state, which determines standing, and calls
// ban for each active ban.
func (f *Feed) state(now time.Time, ban func(memory.Ban)) (*memory.Memory, error) {
	var rows []store.Entry
	reader := memory.NewReader(now)
	err := f.Dir.State([]string{"clock", "secret", "peers", memory.BansBucket, memory.OthersBucket}, func(en store.Entry) error {
		reader.Clock(en)
		if en.Bucket != memory.BansBucket && en.Bucket != memory.OthersBucket {
			rows = append(rows, store.Entry{Bucket: en.Bucket, Key: slices.Clone(en.Key), Value: slices.Clone(en.Value)})
		} else if b, ok := reader.Ban(en.Key, en.Value); ok && !b.Expired(now) {
			ban(b)
		}
		return nil
	})
	m := memory.New()
	m.Load(slices.Values(rows), now.UnixMicro())
	return m, err
}

// Print writes the last hour's sources to w, in lines of at most width columns.
func (f *Feed) Print(ctx context.Context, w io.Writer, width int) error {
	d, err := f.read(ctx, f.View.begin(), f.Dir.Now())
	if err != nil {
		return err
	}
	f.View.finish(d, nil)
	if c, err := control.Dial(f.Dir.Path); err == nil {
		defer c.Close()
		s, err := c.Status()
		if err != nil {
			return err
		}
		f.View.connected(&s)
	} else {
		f.View.disconnected(err, f.Dir.Mode())
	}
	for _, line := range f.View.head(width) {
		for _, part := range line {
			fmt.Fprint(w, part.text)
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w)
	t := f.View.table(0, 0, width, "")
	widths := t.widths(width)
	print := func(text func(column int) string) {
		var line []string
		for i := range t.columns {
			line = append(line, t.columns[i].fit(text(i), widths[i]))
		}
		fmt.Fprintln(w, strings.TrimRight(strings.Join(line, " "), " "))
	}
	print(func(i int) string { return t.columns[i].title })
	for _, r := range t.rows {
		print(func(i int) string { return r.cells[i].text })
	}
	return nil
}
