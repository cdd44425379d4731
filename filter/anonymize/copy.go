package anonymize

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"scanwatch/filter/lookup"
	"scanwatch/store"
	"scanwatch/store/history"
)

// batch is the number of records per commit.
const batch = 5000

// CopyOptions are the options of Copy.
type CopyOptions struct {
	Key     []byte // key of KeySize bytes
	Lists   *lookup.Lists
	Program string                            // program version in new files
	Done    func(sessions int, end time.Time) // called after each record; may be nil
}

// Copied is the result of Copy.
type Copied struct {
	Sessions int // number of sessions, including sessions in aggregates
	Corrupt  int // number of records with a corrupt step, whose copies end before this step
}

// Copy writes an anonymized copy of the records to the output directory, with the rule texts to
// which verdicts refer. The directory must be empty or not exist. Only the directory's owner can
// access it. Copy sets r.Rules.
func Copy(r *store.Reader, out string, o CopyOptions) (c Copied, err error) {
	budget := int64(1 << 30)
	if segments, err := store.Segments(r.Dir); err == nil { // an error means that there are no records
		for _, s := range segments {
			budget += 2 * s.Size // sufficient for any copy
		}
	}
	if err := createDir(out); err != nil {
		return c, err
	}
	a := New(o.Key, o.Lists)
	var end atomic.Int64 // end of the latest session; w uses it as the current time and therefore stores each copy under the day of its record
	w := store.Open(out, store.Options{Budget: budget, Keep: 100 * 365 * 24 * time.Hour, Program: o.Program,
		Now: func() time.Time { return time.UnixMicro(end.Load()) }})
	defer func() { err = errors.Join(err, w.Close()) }()
	flush := func() error {
		if err := w.Flush(context.Background()); err != nil {
			return fmt.Errorf("write %s: %w", out, err)
		}
		return nil
	}
	rules := ruleCopies{writer: w, anonymizer: a, texts: map[uint32]string{}, refs: map[uint32]uint32{}}
	r.Rules = rules.texts
	records := 0
	var buf []byte
	visit := func(rec *store.Record) error {
		var err error
		if buf, err = a.Record(buf[:0], rec, rules.ref); err != nil {
			c.Corrupt++
		}
		end.Store(rec.End.UnixMicro())
		w.Add(rec.End, rec.ID, buf)
		c.Sessions += rec.Many()
		if o.Done != nil {
			o.Done(rec.Many(), rec.End)
		}
		if records++; records%batch == 0 { // flush, because the queue of w has a limited length
			return flush()
		}
		return nil
	}
	err = history.Walk(r, time.Time{}, time.Time{}, history.Visitor{Kinds: store.AllKinds, Session: visit, Sum: visit})
	if err = errors.Join(err, flush()); err != nil {
		return c, err
	}
	if n := w.Status().Dropped.Total(); n > 0 {
		return c, fmt.Errorf("write %s: %d sessions dropped: %s", out, n, w.Status().Dropped)
	}
	return c, nil
}

// createDir creates a directory that only its owner can access. createDir accepts an existing
// directory if the directory is empty.
func createDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("write %s: the directory is not empty; name a new one", dir)
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}

// ruleCopies writes the anonymized texts of rules.
type ruleCopies struct {
	writer     *store.Writer
	anonymizer *Anonymizer
	texts      map[uint32]string // maps a reference in the records to a rule text
	refs       map[uint32]uint32 // maps a reference in the records to the reference in the copy, or to 0 if there is no text
}

// ref returns the reference in the copy that corresponds to a reference in the records.
func (c *ruleCopies) ref(was uint32) uint32 {
	ref, ok := c.refs[was]
	if ok || was == 0 {
		return ref
	}
	if text := c.anonymizer.Rule(c.texts[was]); text != "" {
		ref = store.RuleRef(text)
		c.writer.Rules([]string{text})
	}
	c.refs[was] = ref
	return ref
}
