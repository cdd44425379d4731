package main

// The verb anonymize: a copy of the records that can be shown to others.

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"scanwatch/filter/anonymize"
	"scanwatch/filter/lookup"
	"scanwatch/store"
)

const anonymizeHelp = `Writes a copy of the records to OUTDIR, which must not exist or be empty.
Addresses, names, mailboxes and user names are replaced, the same one always by
the same; addresses of one /24 (IPv6: /48) stay together, private ones stay
private. What the shipped lists know stays: names of scanners and clouds,
greetings of bots. Of replies only the codes stay. Look at the copy before you
give it away. report, dump, show, why and backtest work on it (-s OUTDIR). What
is remembered in state.db, bans among it, is not copied.

  --key FILE  replace as with this key before; the file is made if there is
              none. Who has it can find out whether an address that he tries is
              in the copy. Without it each run has a key of its own, which is
              forgotten.`

func anonymizeVerb(e *env, args []string) error {
	keyFile := e.flags.String("key", "", "")
	args, err := e.parse(args, 1, 1)
	if err != nil {
		return err
	}
	out := args[0]
	key := make([]byte, anonymize.KeySize)
	_, _ = rand.Read(key) // never fails
	if *keyFile != "" {
		if key, err = anonymizeKey(*keyFile, key); err != nil {
			return err
		}
	}
	lists, err := lookup.Builtin()
	if err != nil {
		return err
	}
	r, client, problems, err := e.reader()
	if err != nil {
		return err
	}
	if client != nil {
		defer client.Close()
	}
	budget := int64(1 << 30)
	if segments, err := store.Segments(e.dir); err == nil { // without any there is nothing to copy
		for _, s := range segments {
			budget += 2 * s.Size // more than a copy takes
		}
	}
	if err := emptyDir(out); err != nil {
		return err
	}
	e.warn(r, problems)

	a := anonymize.New(key, lists)
	var end atomic.Int64 // of the session that is written: the copy's days are those of the records
	w := store.Open(out, store.Options{Budget: budget, Keep: 100 * 365 * 24 * time.Hour, Program: version, Now: func() time.Time { return time.UnixMicro(end.Load()) }})
	defer w.Close()
	rules := ruleCopies{writer: w, anonymizer: a, texts: map[uint32]string{}, refs: map[uint32]uint32{}}
	r.Rules = rules.texts
	progress := newProgress(e)
	records, sessions, damaged := 0, 0, 0
	var buf []byte
	flush := func() error {
		if err := w.Flush(context.Background()); err != nil {
			return fmt.Errorf("write %s: %w", out, err)
		}
		return nil
	}
	err = each(r, time.Time{}, func(rec *store.Record) error {
		var err error
		if buf, err = a.Record(buf[:0], rec, rules.ref); err != nil {
			damaged++ // the steps before are kept
		}
		end.Store(rec.End.UnixMicro())
		w.Add(rec.End, rec.ID, buf)
		records++
		sessions += rec.Many()
		progress.tell(1, rec.End)
		if records%copied == 0 { // so that nothing is dropped
			return flush()
		}
		return nil
	})
	progress.clear()
	if err = errors.Join(err, flush(), w.Close()); err != nil {
		return err
	}
	if n := w.Status().Dropped.Total(); n > 0 {
		return fmt.Errorf("%d sessions could not be written to %s", n, out)
	}
	fmt.Fprintf(e.out, "%s in %s\n", count(sessions, "session"), printable([]byte(out)))
	if damaged > 0 {
		fmt.Fprintf(e.err, "scanwatch: of %s the end is missing, because it is damaged\n", count(damaged, "session"))
	}
	return unread(r)
}

// copied is how many records are written at a time.
const copied = 5000

// anonymizeKey reads a key, or makes fresh the one of the file.
func anonymizeKey(file string, fresh []byte) ([]byte, error) {
	key, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, fmt.Errorf("make a key: %w", err)
		}
		_, err = f.Write(fresh)
		return fresh, errors.Join(err, f.Close())
	case err != nil:
		return nil, fmt.Errorf("read the key: %w", err)
	case len(key) != len(fresh):
		return nil, fmt.Errorf("read the key: %s has %d bytes and not %d; a file that does not exist is made", printable([]byte(file)), len(key), len(fresh))
	}
	return key, nil
}

// emptyDir makes a directory that only its owner can enter, or takes an empty one.
func emptyDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("%s is not empty; name a directory that does not exist yet", printable([]byte(dir)))
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}

// ruleCopies gives the copy the texts of rules that its verdicts refer to.
type ruleCopies struct {
	writer     *store.Writer
	anonymizer *anonymize.Anonymizer
	texts      map[uint32]string // of the records
	refs       map[uint32]uint32 // in the copy, 0 if there is no text
}

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
