// Package forget removes a person from a state directory, whether or not a filter is
// running.
package forget

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/owner"
	"scanwatch/cmd/internal/statedir"
	"scanwatch/filter/erase"
	"scanwatch/filter/memory"
	"scanwatch/internal/prefix"
	"scanwatch/internal/text"
	"scanwatch/store"
	"scanwatch/store/history"
)

// Options selects a person and configures the removal.
type Options struct {
	Dir      *statedir.Dir
	Who      erase.Subject
	Bans     bool                         // also remove active bans
	Program  string                       // program version for new files
	Progress func(n int, until time.Time) // called for each record that is read
}

// A Result describes the data stored about a person.
type Result struct {
	Who      erase.Subject
	Own      int            // sessions from addresses of the person
	Mentions int            // other sessions in which the person is named
	Days     int            // UTC days with such sessions
	Rows     map[string]int // rows in the state, by table
	Kept     []memory.Ban   // active bans that are kept
	// Missed lists the files that may still mention the person, with the reasons.
	Missed  []string
	Removed bool // false for a survey
}

// MarshalJSON returns the JSON object documented in scanwatch(8).
func (r *Result) MarshalJSON() ([]byte, error) {
	type ban struct {
		Prefix string    `json:"prefix"`
		Until  text.Time `json:"until"`
		Rule   string    `json:"rule"`
	}
	kept := []ban{}
	for i := range r.Kept {
		b := &r.Kept[i]
		kept = append(kept, ban{prefix.String(b.Prefix), text.At(b.Until), text.Escape(b.Rule)})
	}
	missed := []string{}
	for _, m := range r.Missed {
		missed = append(missed, text.Escape(m))
	}
	return json.Marshal(struct {
		Schema   int            `json:"schema"`
		Person   string         `json:"person"`
		Removed  bool           `json:"removed"`
		Sessions int            `json:"sessions"`
		Names    int            `json:"names"`
		Days     int            `json:"days"`
		State    map[string]int `json:"state"`
		Kept     []ban          `json:"kept_bans"`
		Missed   []string       `json:"missed"`
	}{text.Schema, r.Who.String(), r.Removed, r.Own, r.Mentions, r.Days, r.Rows, kept, missed})
}

// Empty reports whether no data is stored about the person.
func (r *Result) Empty() bool { return r.Own+r.Mentions+len(r.Rows)+len(r.Kept) == 0 }

// Survey returns the data that Remove would remove, without changing anything.
func Survey(o Options) (r Result, err error) {
	r = Result{Who: o.Who}
	if o.Who.Role(o.Dir.Limits().Delimiter) {
		return r, errors.New("this is a role account with a detail, and a role account does not identify a person")
	}
	key, err := control.HashKey(o.Dir.Path)
	if err != nil {
		return r, err
	}
	records, err := o.Dir.Open()
	if err != nil {
		return r, err
	}
	defer records.Close()
	eraser, days := erase.New(o.Who, key, o.Dir.Limits().Delimiter), map[int64]bool{}
	visit := func(rec *store.Record) error {
		o.Progress(rec.Many(), rec.End)
		if eraser.Edit(rec) == nil {
			return nil
		}
		days[rec.End.Unix()/(24*3600)] = true
		if eraser.Own(rec) {
			r.Own += rec.Many()
		} else {
			r.Mentions += rec.Many()
		}
		return nil
	}
	err = history.Walk(records, time.Time{}, time.Time{}, history.Visitor{Kinds: store.AllKinds, Session: visit, Sum: visit})
	if err != nil {
		return r, err
	}
	r.Days = len(days)
	for _, p := range records.Problems() {
		if !strings.Contains(p, ".damaged-") {
			r.Missed = append(r.Missed, p)
		}
	}
	erased, err := surveyState(o)
	r.Rows, r.Kept = erased.Rows, erased.Kept
	return r, errors.Join(err, r.missQuarantined(o.Dir.Path))
}

// missQuarantined adds quarantined files to Missed, because they are never changed.
func (r *Result) missQuarantined(dir string) error {
	names, err := store.Quarantined(dir)
	for _, name := range names {
		remedy := "remove it, or salvage its records with scanwatch fsck --repair first"
		if strings.HasSuffix(name, ".salvaged") || strings.HasPrefix(name, "state.db") {
			remedy = "remove it"
		}
		r.Missed = append(r.Missed, name+": quarantined as corrupt; "+remedy)
	}
	return err
}

// surveyState counts rows in a copy of the state.
func surveyState(o Options) (memory.Erased, error) {
	m, now := memory.New(), o.Dir.Now().UnixMicro()
	var rows []store.Entry
	err := o.Dir.State(memory.Buckets(), func(en store.Entry) error {
		rows = append(rows, store.Entry{Bucket: en.Bucket, Key: slices.Clone(en.Key), Value: slices.Clone(en.Value)})
		return nil
	})
	if err != nil {
		return memory.Erased{}, err
	}
	m.Recipients.Delimiter(o.Dir.Limits().Delimiter)
	m.Load(slices.Values(rows), now)
	return m.Erase(o.Who.Rows(o.Bans), now, true), nil
}

// Remove removes the person. If a filter is running, the filter removes the person itself, so that
// its memory and files stay consistent. Each file is replaced atomically, so Remove can be repeated
// after an error. The result contains the same numbers as the result of Survey.
func Remove(o Options) (Result, error) {
	r, err := Survey(o)
	if err != nil {
		return r, err
	}
	r.Missed, r.Removed = nil, true
	client, err := control.Dial(o.Dir.Path)
	switch {
	case err == nil:
		client.Close()
		err = r.byFilter(o)
	case errors.Is(err, control.ErrNotRunning):
		err = owner.Do(o.Dir.Path, func() error { return r.withoutFilter(o) })
	}
	return r, errors.Join(err, r.missQuarantined(o.Dir.Path))
}

// missed adds a file to Missed because it could not be changed.
func (r *Result) missed(name string, err error) {
	if err != nil {
		r.Missed = append(r.Missed, fmt.Sprintf("%s: %v", name, err))
	}
}

// byFilter asks the running filter to remove the person. A new connection is made for each file,
// because the filter closes idle connections.
func (r *Result) byFilter(o Options) error {
	ask := func(f func(*control.Client) error) error {
		c, err := control.Dial(o.Dir.Path)
		if err != nil {
			return err
		}
		defer c.Close()
		return f(c)
	}
	err := ask(func(c *control.Client) error {
		a, err := c.Forget(o.Who, o.Bans)
		if err != nil {
			return err
		}
		r.Rows, r.Kept = a.Rows, a.Kept
		if a.Problem != "" {
			r.Missed = append(r.Missed, a.Problem)
		}
		return c.Flush() // creates the segment for the latest records
	})
	if err != nil {
		return err
	}
	all, err := store.Segments(o.Dir.Path)
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.Quarantined {
			continue
		}
		err := ask(func(c *control.Client) error {
			_, err := c.Erase(s.Name, o.Who)
			return err
		})
		if errors.Is(err, control.ErrNotRunning) {
			return fmt.Errorf("the filter has stopped, and the records are incomplete; run this again: %w", err)
		}
		r.missed("sessions/"+s.Name, err)
	}
	return nil
}

// withoutFilter removes the person from the files when no filter is running.
func (r *Result) withoutFilter(o Options) error {
	key, err := control.HashKey(o.Dir.Path)
	if err != nil {
		return err
	}
	i, err := o.Dir.Inspector()
	if err != nil {
		return err
	}
	set := o.Dir.Limits()
	i.Budget = set.Budget
	edit := erase.New(o.Who, key, set.Delimiter).Edit
	if err := i.Rewrite(o.Program, o.Dir.Now(), edit, func(f *store.Rewritten) { r.missed(f.Name, f.Err) }); err != nil {
		if errors.Is(err, store.ErrInUse) {
			return fmt.Errorf("nothing was removed: %w; if a filter is starting, run this again", err)
		}
		return err
	}
	if !store.HasState(o.Dir.Path) {
		return nil
	}
	m, file, err := o.Dir.OpenState(o.Program)
	if err != nil {
		return err
	}
	m.Recipients.Delimiter(set.Delimiter)
	erased := m.Erase(o.Who.Rows(o.Bans), m.Now(o.Dir.Now().UnixMicro()), false)
	r.Rows, r.Kept = erased.Rows, erased.Kept
	if err := file.Flush(context.Background()); err != nil {
		return errors.Join(err, file.Close())
	}
	if err := file.Compact(context.Background()); err != nil {
		r.Missed = append(r.Missed, err.Error())
	}
	return file.Close()
}

// Text prints the result.
func (r *Result) Text(w io.Writer, zone *time.Location) {
	line := func(heading, format string, args ...any) {
		fmt.Fprintln(w, text.Wrap(fmt.Sprintf("%-10s", heading)+fmt.Sprintf(format, args...), 80, 10))
	}
	if r.Empty() {
		line("person", "nothing is stored about %s", r.Who)
	} else {
		line("person", "%s", r.Who)
	}
	if r.Own > 0 {
		source := "address"
		if p := r.Who.Prefix(); p != memory.Source(p.Addr()) {
			source = "network"
		}
		line("sessions", "%s from this %s, which lose their address, names and text, but keep times, counts, findings and decisions", text.Plural(r.Own, "session"), source)
	}
	if r.Mentions > 0 {
		line("names", "%s with the name, which is replaced by %s", text.Plural(r.Mentions, "session"), erase.Marker)
	}
	if r.Days > 0 {
		line("days", "%d", r.Days)
	}
	for _, table := range slices.Sorted(maps.Keys(r.Rows)) {
		line("state", "%s of %s", text.Plural(r.Rows[table], "row"), table)
	}
	if r.Rows[memory.KnownClients] > 0 {
		line("standing", "known clients become unknown clients, whose mail rules can delay or reject")
	}
	for i := range r.Kept {
		b := &r.Kept[i]
		line("kept", "the ban of %s until %s, by %s, for the security of the server; --bans removes it", prefix.String(b.Prefix),
			b.Until.In(zone).Format("2006-01-02 15:04 -0700"), text.Escape(b.Rule))
	}
	for _, m := range r.Missed {
		line("missed", "%s", text.Escape(m))
	}
	line("elsewhere", "backups, exports and other copies of the records, lists in firewalls, the mail log, the configuration, and other hosts may still name the person")
	switch {
	case r.Empty():
	case r.Removed:
		fmt.Fprintln(w, "removed; sessions that are still open are recorded later")
	default:
		fmt.Fprintln(w, "nothing was removed; --yes removes these data")
	}
}
