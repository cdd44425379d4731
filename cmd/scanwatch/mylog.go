package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/privacy"
	"scanwatch/filter/session"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/store/mylog"
)

// importMylog takes over the history of the Perl filter that logs every HELO
// and RCPT to a file: its files become the lines that smtpd sent, and these go
// the way of all lines.
func (e *env) importMylog(dir string) error {
	if client, err := control.Dial(e.dir); err == nil {
		client.Close()
		return fmt.Errorf("import into %s: filter-scanwatch is running; stop smtpd first, or import into a new directory (-s) and look at it there", e.dir)
	}
	if info, err := os.Stat(dir); err != nil {
		return fmt.Errorf("import: %w", err)
	} else if !info.IsDir() {
		return fmt.Errorf("import: %s is no directory", dir)
	}
	home, err := os.Stat(e.dir)
	if err != nil {
		return dirError(err)
	}
	lists, err := lookup.Builtin()
	if err != nil {
		return err
	}
	policy, err := emptyPolicy(e.storeSettings().Privacy)
	if err != nil {
		return err
	}
	set := e.storeSettings()
	key, err := privacy.SaveKey(e.dir, privacy.NewKey())
	if err != nil {
		return fmt.Errorf("import into %s: %w", e.dir, err)
	}
	if err := giveFile(filepath.Join(e.dir, privacy.KeyFile), home); err != nil {
		return err
	}
	hasher := privacy.New(key)
	clock := e.now()
	w := store.Open(e.dir, store.Options{Budget: set.Budget, Keep: 100 * 365 * 24 * time.Hour, Program: version, Now: func() time.Time { return e.now() }})
	defer w.Close()
	if err := w.Flush(context.Background()); err != nil {
		return fmt.Errorf("import into %s: %w", e.dir, err)
	}
	recorded := 0
	table := session.NewTable(session.Options{
		Record: func(end time.Time, id uint64, value []byte) {
			recorded++
			w.Add(end, id, value)
			if recorded%1000 == 0 { // so that nothing is dropped
				_ = w.Flush(context.Background()) // the last one tells
			}
		},
		Log:    func([]byte) {},
		Lists:  func() *lookup.Lists { return lists },
		Hasher: func() *privacy.Hasher { return hasher },
	})
	table.Use(&session.Settings{Policy: policy})
	var lines bytes.Buffer
	report, err := mylog.Read(os.DirFS(dir), func(s *mylog.Session) error {
		lines.Reset()
		if err := mylog.Lines(&lines, s); err != nil {
			return err
		}
		if err := filter.Serve(&lines, io.Discard, table, filter.Options{}); err != nil {
			return err
		}
		table.Leave()
		return nil
	}, e.progress("files read"))
	if err != nil {
		return fmt.Errorf("read %s: %w", dir, err)
	}
	if err := w.Flush(context.Background()); err != nil {
		return fmt.Errorf("import into %s: %w", e.dir, err)
	}
	if n := w.Status().Dropped.Total(); n > 0 {
		err = fmt.Errorf("%d sessions could not be written", n)
	}
	err = errors.Join(err, w.Close(), giveTo(filepath.Join(e.dir, "sessions"), home))
	for _, skip := range report.Skips {
		fmt.Fprintf(e.err, "scanwatch: skipped %s: %v\n", printable([]byte(skip.Name)), skip.Reason)
	}
	if n := report.Skipped - len(report.Skips); n > 0 {
		fmt.Fprintf(e.err, "scanwatch: and %d more\n", n)
	}
	fmt.Fprintf(e.out, "files     %d read, %d skipped, %d with other names left alone\n", report.Files-report.Skipped, report.Skipped, report.Others)
	fmt.Fprintf(e.out, "sessions  %d, of %d only the greeting is known\n", recorded, report.StateOnly)
	if recorded > 0 {
		fmt.Fprintf(e.out, "from      %s\nto        %s\n", report.Oldest.In(e.zone).Format(time.DateTime), report.Newest.In(e.zone).Format(time.DateTime))
	}
	if keep := clock.Add(-set.Keep); !report.Oldest.IsZero() && report.Oldest.Before(keep) {
		fmt.Fprintf(e.err, "scanwatch: the filter removes what is older than %s; to keep all, write `store ... keep` with a longer time before it is started\n", keep.In(e.zone).Format(time.DateOnly))
	}
	return err
}

// emptyPolicy has no rules: it makes greetings be looked at, and decides nothing.
func emptyPolicy(how rules.Privacy) (*rules.Policy, error) {
	c, err := rules.Parse("empty", func(string) ([]byte, error) { return []byte("privacy " + how.String() + "\n"), nil })
	if err != nil {
		return nil, err
	}
	p, _, err := rules.Compile(c, rules.Options{})
	return p, err
}

// storeSettings are those of the configuration, or the defaults.
func (e *env) storeSettings() rules.Settings {
	if name := e.find(e.file); name != "" {
		if tree, err := rules.Parse(name, os.ReadFile); err == nil {
			return tree.Settings()
		}
	}
	return rules.Settings{Keep: rules.DefaultKeep, Budget: rules.DefaultBudget}
}

// giveTo makes the owner of a directory the owner of the files below: who
// runs this may be root, and the filter is not.
func giveTo(dir string, owner os.FileInfo) error {
	to, ok := owner.Sys().(*syscall.Stat_t)
	if os.Geteuid() != 0 || !ok {
		return nil
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range append(files, dir) {
		err = errors.Join(err, os.Lchown(f, int(to.Uid), int(to.Gid)))
	}
	return err
}

// giveFile is giveTo for one file.
func giveFile(name string, owner os.FileInfo) error {
	if to, ok := owner.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		return os.Lchown(name, int(to.Uid), int(to.Gid))
	}
	return nil
}

// progress tells on a terminal how far a long work is; elsewhere it is nil.
func (e *env) progress(what string) func(done, total int) {
	f, ok := e.terminal.(*os.File)
	if !ok {
		return nil
	}
	if info, err := f.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return nil
	}
	var told time.Time
	return func(done, total int) {
		if now := time.Now(); now.Sub(told) > 200*time.Millisecond || done == total {
			told = now
			fmt.Fprintf(f, "\r%3d %% of %d %s", done*100/max(total, 1), total, what)
			if done == total {
				fmt.Fprintln(f)
			}
		}
	}
}
