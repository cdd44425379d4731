package main

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"scanwatch/filter/lookup/feed"
)

// A list that a reload refused, because it newly turns away hosts that did good lately,
// would be taken by a restart, at which nobody knows what was in use before: and smtpd
// is restarted at night, too, by those who did not read the log. So the names of its
// files are kept in the state directory, and what they hold by then is not used until a
// reload has looked at it. Until then rules that ask for it cannot tell, and let in.
//
// The lists themselves are not kept: they would be out of date, and be one more thing
// to find and to keep within the budget.

// refusedFile is the name of the file in the state directory.
const refusedFile = "refused"

const (
	maxRefused     = 1000 // files; there is no configuration of so many
	maxRefusedFile = 8 << 20
)

// readRefused reads which files were refused before the restart.
func readRefused(dir string) (files []string) {
	f, err := feed.Open(filepath.Join(dir, refusedFile))
	if err != nil {
		return nil
	}
	defer f.Close()
	if json.NewDecoder(io.LimitReader(f, maxRefusedFile)).Decode(&files) != nil || len(files) > maxRefused {
		return nil
	}
	return files
}

// refuse notes that files were refused, besides those that are; none: that all that is
// there was taken. The caller holds p.mu.
func (p *policies) refuse(files []string) {
	all := slices.Concat(p.refused, files)
	slices.Sort(all)
	if all = slices.Compact(all); len(files) == 0 {
		all = nil
	}
	if slices.Equal(all, p.refused) {
		return
	}
	p.refused = all
	if err := writeRefused(p.dir, all); err != nil {
		p.log.Error("what was refused cannot be noted: a restart of smtpd would take it", "error", err)
	}
}

// writeRefused writes files to the file in the state directory dir, or removes it.
func writeRefused(dir string, files []string) error {
	name := filepath.Join(dir, refusedFile)
	if len(files) == 0 {
		if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	text, err := json.Marshal(files)
	if err != nil {
		return err
	}
	next, err := os.CreateTemp(dir, refusedFile+"-*.new")
	if err != nil {
		return err
	}
	_, err = next.Write(append(text, '\n'))
	if err = errors.Join(err, next.Sync(), next.Close()); err == nil {
		err = os.Rename(next.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(next.Name()))
	}
	return nil
}
