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
	Key     []byte // KeySize bytes
	Lists   *lookup.Lists
	Program string                            // version for new files
	Done    func(sessions int, end time.Time) // called after each record; may be nil
}

// Copied is the result of Copy.
type Copied struct {
	Sessions int // includes the sessions in aggregates
	Corrupt  int // records whose copies end before a corrupt step
}

// Copy writes an anonymized copy of the records to the output directory, which must be
// empty or not exist. The directory is accessible only to its owner. The texts of rules
// that verdicts refer to are copied as well. Copy sets r.Rules.
func Copy(r *store.Reader, out string, o CopyOptions) (c Copied, err error) {
	budget := int64(1 << 30)
	if segments, err := store.Segments(r.Dir); err == nil { // an error means no records
		for _, s := range segments {
			budget += 2 * s.Size // sufficient for any copy
		}
	}
	if err := createDir(out); err != nil {
		return c, err
	}
	a := New(o.Key, o.Lists)
	var end atomic.Int64 // end of the latest session, and the clock of the writer, so that copies are stored under the days of the records
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
		if records++; records%batch == 0 { // flush, because the queue of w is bounded
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

// createDir creates a directory that only its owner can access. An existing empty
// directory is also accepted.
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
	texts      map[uint32]string // maps a reference in the records to the text
	refs       map[uint32]uint32 // maps a reference in the records to the reference in the copy; 0 without a text
}

// ref returns the copy's reference for a rule text, given its reference in the records.
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
