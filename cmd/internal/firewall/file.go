package firewall

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"scanwatch/cmd/internal/output"
	"scanwatch/filter/lookup/feed"
	"scanwatch/rules"
	"scanwatch/store/export"
)

// A file is an export that is kept up to date, with the command that loads it.
type file struct {
	name    string
	format  *export.Format
	reload  []string
	written fs.FileInfo // state after the last write; nil before the first
}

// fileMode is the mode of new files, which programs that run as other users must be able
// to read.
const fileMode = 0o644

// openFile returns the target for `to file "name" format word`.
func openFile(c *rules.Companion) (*target, error) {
	f := &file{name: c.Argument, format: export.FormatByName(c.Format), reload: c.Reload}
	switch {
	case !filepath.IsAbs(f.name):
		return nil, fmt.Errorf("target file %q: must be an absolute path", f.name)
	case f.format == nil || !f.format.Replaces():
		return nil, fmt.Errorf("target file %q: %s is not a format of a file that replaces the previous one; one of %s", f.name, c.Format, strings.Join(fileFormats(), ", "))
	}
	return &target{replace: f.replace, preview: f.preview, intact: f.intact, ends: true, reasons: true, pause: 2 * time.Second, retry: time.Minute}, nil
}

// Problems returns the programs and directories that c's target needs and this host
// lacks.
func Problems(c *rules.Companion) (all []string) {
	if c.Target != "file" {
		return nil
	}
	if info, err := os.Stat(filepath.Dir(c.Argument)); err != nil {
		all = append(all, fmt.Sprintf("directory of the file: %v", err))
	} else if !info.IsDir() {
		all = append(all, filepath.Dir(c.Argument)+" is not a directory")
	}
	if len(c.Reload) > 0 {
		path, err := program(c.Reload[0])
		if err == nil {
			_, err = os.Stat(path)
		}
		if err != nil {
			all = append(all, fmt.Sprintf("reload command: %v", err))
		}
	}
	return all
}

func fileFormats() (names []string) {
	for _, f := range export.Formats() {
		if f.Replaces() {
			names = append(names, f.Name)
		}
	}
	return names
}

func (f *file) write(w io.Writer, all []entry) error {
	now := time.Now().UTC()
	list := &export.List{Made: now, Entries: make([]export.Entry, 0, len(all))}
	for _, e := range all {
		list.Entries = append(list.Entries, export.Entry{Prefix: e.prefix, Kind: export.Ban, Confidence: "high", Reason: e.reason, Expires: now.Add(e.left).Truncate(time.Second)})
	}
	list.Sort()
	_, err := f.format.Write(w, list)
	return err
}

func (f *file) replace(ctx context.Context, all []entry) error {
	f.written = nil
	if err := output.Replace(f.name, fileMode, func(w io.Writer) error { return f.write(w, all) }); err != nil {
		return err
	}
	if f.reload != nil {
		if _, err := run(ctx, nil, f.reload...); err != nil {
			return err
		}
	}
	var err error
	f.written, err = os.Stat(f.name)
	return err
}

// intact reports whether the file is unchanged since it was last written.
func (f *file) intact(context.Context, func() int) (bool, error) {
	info, err := os.Stat(f.name)
	return err == nil && f.written != nil && os.SameFile(info, f.written) && info.ModTime().Equal(f.written.ModTime()) && info.Size() == f.written.Size(), nil
}

// readFile reads a regular file.
func readFile(name string) ([]byte, error) {
	f, err := feed.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// preview returns the lines that would be removed from and added to the file.
func (f *file) preview(all []entry) (remove, add []string, err error) {
	var b bytes.Buffer
	if err := f.write(&b, all); err != nil {
		return nil, nil, err
	}
	old, err := readFile(f.name)
	if err != nil && !os.IsNotExist(err) {
		return nil, nil, err
	}
	before, after := linesOf(old), linesOf(b.Bytes())
	for _, line := range after {
		if _, ok := slices.BinarySearch(before, line); !ok {
			add = append(add, line)
		}
	}
	for _, line := range before {
		if _, ok := slices.BinarySearch(after, line); !ok {
			remove = append(remove, line)
		}
	}
	return remove, add, nil
}

func linesOf(b []byte) (lines []string) {
	for line := range bytes.Lines(b) {
		lines = append(lines, strings.TrimSuffix(string(line), "\n"))
	}
	slices.Sort(lines)
	return lines
}
