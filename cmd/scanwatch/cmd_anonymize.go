package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/output"
	"scanwatch/cmd/internal/owner"
	"scanwatch/filter/anonymize"
	"scanwatch/filter/lookup"
	"scanwatch/internal/text"
)

func newAnonymize(e *env) *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:   "anonymize [--key FILE] OUTDIR",
		Short: "Copy the records without addresses and names.",
		Long: "Write a copy of the records to OUTDIR, which must be empty or missing. Equal\n" +
			"names get equal hashes. The copy keeps public suffixes, /24 and /48 networks,\n" +
			"the names and addresses of the included lists, and the codes of replies. Check\n" +
			"the copy before you publish it. state.db is not copied.",
		Example: "  scanwatch anonymize /tmp/records\n  scanwatch anonymize --key secret.key /tmp/records",
		Args:    argsBetween(1, 1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(_ *cobra.Command, args []string) error { return runAnonymize(e, args[0], key) },
	}
	cmd.Flags().StringVar(&key, "key", "", "use the key in `FILE`, created if missing, so that several copies have equal hashes; keep the file secret")
	return cmd
}

func runAnonymize(e *env, out, keyFile string) error {
	key := make([]byte, anonymize.KeySize)
	_, _ = rand.Read(key) // never fails
	if keyFile != "" {
		var err error
		if key, err = anonymizeKey(keyFile, key); err != nil {
			return err
		}
	}
	lists, err := lookup.Builtin()
	if err != nil {
		return err
	}
	_, r, err := e.records()
	if err != nil {
		return err
	}
	defer r.Close()
	r.Warn(e.warn)
	if err := safeOutput(out); err != nil {
		return err
	}
	progress := e.progress()
	copied, err := anonymize.Copy(&r.Reader, out, anonymize.CopyOptions{Key: key, Lists: lists, Program: version,
		Done: func(_ int, end time.Time) { progress.Add(1, end) }})
	progress.Clear()
	if err != nil {
		return err
	}
	fmt.Fprintf(e.out, "%s in %s\n", text.Plural(copied.Sessions, "session"), text.Escape(out))
	if copied.Corrupt > 0 {
		fmt.Fprintf(e.err, "scanwatch: truncated %s, because the records are corrupt\n", text.Plural(copied.Corrupt, "session"))
	}
	return r.Incomplete()
}

// safeOutput returns an error if root would write to a directory that another user can replace. If
// the directory is missing, safeOutput creates it, before another user can create it.
func safeOutput(out string) error {
	for _, dir := range []string{filepath.Dir(out), out} {
		u, err := owner.Of(dir)
		switch {
		case err != nil:
			return fmt.Errorf("write %s: %w", out, err)
		case u != nil:
			return fmt.Errorf("write %s: %v could replace it; name a new directory that only root can replace", out, u)
		}
		_ = os.Mkdir(out, 0o700) // on error, Copy returns it
	}
	return nil
}

// anonymizeKey returns the key in file. If the file does not exist, anonymizeKey creates it with a
// new key.
func anonymizeKey(file string, fresh []byte) ([]byte, error) {
	f, err := owner.Open(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err := output.Replace(file, 0o600, func(w io.Writer) error { _, err := w.Write(fresh); return err })
		return fresh, err
	case err != nil:
		return nil, fmt.Errorf("read key: %w", err)
	}
	defer f.Close()
	key, err := io.ReadAll(io.LimitReader(f, anonymize.KeySize+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read key: %w", err)
	case len(key) != len(fresh):
		return nil, fmt.Errorf("read key: %s is not a key, which has %d bytes; name a new file to create a key", text.Escape(file), len(fresh))
	}
	return key, nil
}
