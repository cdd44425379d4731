// Package statedir opens a state directory for commands, whether or not a filter is running. A
// running filter provides copies of its open files through the control socket.
package statedir

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"os"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/memory"
	"scanwatch/rules"
	"scanwatch/store"
)

// A Dir is a state directory.
type Dir struct {
	Path string
	// Settings holds the configured settings. Zero values mean the defaults.
	Settings rules.Settings
	Config   string // configuration file from which Settings were read; "" without one
	Now      func() time.Time
	Own      []netip.Addr // addresses of this machine
}

// Limits returns the settings, with defaults for the budget, retention and delimiter.
func (d *Dir) Limits() rules.Settings {
	s := d.Settings
	s.Budget, s.Keep = cmp.Or(s.Budget, rules.DefaultBudget), cmp.Or(s.Keep, rules.DefaultKeep)
	s.Delimiter = cmp.Or(s.Delimiter, '+')
	return s
}

// check returns an error with a remedy if the directory cannot be read.
func (d *Dir) check() error {
	_, err := os.ReadDir(d.Path)
	return Explain(err)
}

// Explain adds a remedy to an error from reading a state directory.
func Explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("read state directory: %w; become root or join the group of the directory", err)
	}
	return fmt.Errorf("read state directory: %w; specify another directory with -s", err)
}

// Records provides the sessions recorded in a state directory.
type Records struct {
	store.Reader
	// Client is the connection to the running filter, or nil.
	Client *control.Client
	// Down is the reason why Client is nil.
	Down error

	warn     func(string)
	problems []string
}

// Open opens the records. A running filter first writes its buffered sessions to disk.
// The caller must call Close.
func (d *Dir) Open() (*Records, error) {
	r, err := d.Written()
	if err == nil && r.Client != nil {
		if err := r.Client.Flush(); err != nil {
			r.problem("the latest sessions are missing: " + err.Error())
		}
	}
	return r, err
}

// Written opens the records that are already on disk. Sessions of the last few seconds and
// unfinished aggregates are missing. Unlike Open, Written does not make the filter write its
// aggregates, which save space only if they are written rarely. The caller must call Close.
func (d *Dir) Written() (*Records, error) {
	lowerPriority()
	if err := d.check(); err != nil {
		return nil, err
	}
	r := &Records{Reader: store.Reader{Dir: d.Path}}
	r.Problem = func(segment string, err error) { r.problem(fmt.Sprintf("%s: %v", segment, err)) }
	if r.Client, r.Down = control.Dial(d.Path); r.Down != nil {
		if !errors.Is(r.Down, control.ErrNotRunning) {
			r.problem(r.Down.Error())
		}
		return r, nil
	}
	r.Snapshot = func(w io.Writer, name string) error {
		// Use a new connection for each file, because the filter closes idle connections.
		c, err := control.Dial(d.Path)
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Snapshot(w, name)
	}
	return r, nil
}

// Close closes the connection to the filter, if any.
func (r *Records) Close() {
	if r.Client != nil {
		r.Client.Close()
	}
}

// Warn calls f for each problem encountered in reading the records, including earlier
// ones.
func (r *Records) Warn(f func(string)) {
	r.warn = f
	for _, p := range r.problems {
		f(p)
	}
}

// Problems returns the problems encountered in reading the records so far.
func (r *Records) Problems() []string { return r.problems }

func (r *Records) problem(text string) {
	r.problems = append(r.problems, text)
	if r.warn != nil {
		r.warn(text)
	}
}

// Incomplete returns an error if sessions are missing because files could not be read.
func (r *Records) Incomplete() error {
	if r.Unread == 0 {
		return nil
	}
	return fmt.Errorf("%d session files could not be read; their sessions are missing from the output", r.Unread)
}

// State calls visit for each row in the given buckets of state.db. A missing state.db is
// not an error.
func (d *Dir) State(buckets []string, visit func(store.Entry) error) error {
	if err := d.check(); err != nil {
		return err
	}
	live := func(w io.Writer) error {
		client, err := control.Dial(d.Path)
		if err != nil {
			return err
		}
		defer client.Close()
		return client.State(w)
	}
	err := store.ReadState(d.Path, buckets, live, visit)
	if errors.Is(err, os.ErrNotExist) && d.flush() == nil {
		err = store.ReadState(d.Path, buckets, live, visit)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// ErrNoState is returned if state.db is missing from a directory that a filter has used.
var ErrNoState = errors.New("state.db is missing: all bans, standing and counters are lost or were never copied here; restore the file " +
	"from a backup while the filter is stopped, or " + control.LossRemedy)

// CheckState returns ErrNoState if state.db is missing from a directory that a filter has
// used.
func (d *Dir) CheckState() error {
	if !store.StateMissing(d.Path) {
		return nil
	}
	if d.flush() == nil { // if so, a filter that has just started has now written state.db
		return nil
	}
	return ErrNoState
}

// Loss describes a missing or recently lost state.db and the remedy, or returns "". The status of a
// running filter also reports a recent loss.
func (d *Dir) Loss() string {
	if err := d.CheckState(); err != nil {
		return err.Error()
	}
	rows, lost := memory.NewReader(d.Now()), time.Time{}
	err := d.State([]string{"clock", "peers"}, func(en store.Entry) error {
		if at, ok := rows.Lost(en); ok {
			lost = at
		}
		rows.Clock(en)
		return nil
	})
	if err != nil {
		return "" // other checks report corrupt files
	}
	return control.StateLost(lost, d.Now())
}

// OpenState opens state.db unless a filter is running. A filter that is started later
// waits for the file, so the caller must close the State.
func (d *Dir) OpenState(program string) (*memory.Memory, *store.State, error) {
	m, now := memory.New(), d.Now()
	limit := min(d.Limits().Budget/2, memory.AllBytes) // the same limit as in the filter
	m.Limit(limit)
	m.Follow()
	m.Tick(now.UnixMicro())
	if store.Used(d.Path) {
		m.Expect()
	}
	file := store.OpenState(d.Path, store.StateOptions{
		Buckets: memory.Buckets(), MaxSize: limit, Program: program,
		Load: func(rows iter.Seq[store.Entry]) {
			m.Load(rows, store.ReferenceTime(d.Path, now).UnixMicro())
		},
		Changes: m.Changes, Rewrite: m.Rewrite,
	})
	if err := file.Flush(context.Background()); err != nil {
		if errors.Is(err, store.ErrInUse) {
			err = fmt.Errorf("%w; try again, or stop the filter first", err)
		}
		return nil, nil, errors.Join(err, file.Close())
	}
	return m, file, nil
}

// Memory returns a copy of the state, including the latest changes of a running filter.
func (d *Dir) Memory() (*memory.Memory, error) {
	m := memory.New()
	now := d.Now().UnixMicro()
	m.Follow()
	m.Tick(now)
	var failed error
	m.Load(func(yield func(store.Entry) bool) {
		done := errors.New("")
		failed = d.State(memory.Buckets(), func(e store.Entry) error {
			if !yield(e) {
				return done
			}
			return nil
		})
		if failed == done {
			failed = nil
		}
	}, now)
	return m, failed
}

// Begin creates state.db in a directory that no filter has used. A filter that found imported
// records without a state.db would report that state.db was lost.
func (d *Dir) Begin(program string) error {
	if store.Used(d.Path) {
		return nil
	}
	m := memory.New()
	f := store.OpenState(d.Path, store.StateOptions{Buckets: memory.Buckets(), Program: program, Changes: m.Changes, Rewrite: m.Rewrite})
	return errors.Join(f.Flush(context.Background()), f.Close())
}

// flush asks a running filter to write its state to disk. A filter that has just started may have
// bans, but no state.db yet.
func (d *Dir) flush() error {
	client, err := control.Dial(d.Path)
	if err != nil {
		return err
	}
	defer client.Close()
	return client.Flush()
}

// Bans returns the bans accepted by want.
func (d *Dir) Bans(want func(*memory.Ban) bool) (list []memory.Ban, err error) {
	rows := memory.NewReader(d.Now())
	err = d.State([]string{"clock", memory.BansBucket, memory.OthersBucket}, func(en store.Entry) error {
		if rows.Clock(en) {
			return nil
		}
		if b, ok := rows.Ban(en.Key, en.Value); ok && want(&b) {
			list = append(list, b)
		}
		return nil
	})
	return list, err
}

// Days returns the daily counters, oldest first.
func (d *Dir) Days() (list []memory.Day, err error) {
	if client, err := control.Dial(d.Path); err == nil {
		defer client.Close()
		return client.Days()
	}
	err = d.State([]string{"days"}, func(en store.Entry) error {
		if day, ok := memory.ReadDay(en.Key, en.Value); ok {
			list = append(list, day)
		}
		return nil
	})
	return list, err
}

// Inspector returns an Inspector for the directory. If a filter is running, the Inspector
// checks copies of the files that the filter has open.
func (d *Dir) Inspector() (*store.Inspector, error) {
	lowerPriority()
	if err := d.check(); err != nil {
		return nil, err
	}
	ask := func(f func(*control.Client) error) error {
		// Use a new connection for each file, because the filter closes idle connections.
		client, err := control.Dial(d.Path)
		if err != nil {
			return fmt.Errorf("%w: %w", store.ErrInUse, err)
		}
		defer client.Close()
		return f(client)
	}
	return &store.Inspector{
		Dir:    d.Path,
		Tables: memory.Buckets(),
		Snapshot: func(w io.Writer, name string) error {
			return ask(func(c *control.Client) error { return c.Snapshot(w, name) })
		},
		State: func(w io.Writer) error { return ask(func(c *control.Client) error { return c.State(w) }) },
	}, nil
}
