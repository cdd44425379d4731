package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// A directory is an open directory. The store opens, renames and removes files relative to the
// descriptor of their directory. With paths, the directory's owner could replace a path element
// with a link, and thus redirect operations by root.
type directory struct {
	root *os.Root
	path string // path to show in messages
}

// openDirectory opens a directory. The last element of the path may be a symbolic link
// created by the operator.
func openDirectory(path string) (*directory, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return &directory{root, path}, nil
}

// openSessions opens the directory of sessions in a state directory.
func openSessions(dir string) (*directory, error) {
	state, err := openDirectory(dir)
	if err != nil {
		return nil, err
	}
	defer state.root.Close()
	return state.sub(sessionsDir)
}

// name returns a file's path for messages.
func (d *directory) name(file string) string { return filepath.Join(d.path, file) }

// failed returns the error of an operation on a file, with the file's full path.
func (d *directory) failed(op, file string, err error) error {
	var inner error
	if inner = errors.Unwrap(err); inner == nil {
		inner = err
	}
	return &fs.PathError{Op: op, Path: d.name(file), Err: inner}
}

// sub opens a directory in d. sub returns an error for a symbolic link.
func (d *directory) sub(name string) (*directory, error) {
	path := d.name(name)
	named, err := d.root.Lstat(name)
	switch {
	case err != nil:
		return nil, d.failed("open", name, err)
	case named.Mode().Type() == fs.ModeSymlink:
		return nil, fmt.Errorf("open %s: is a symbolic link, which is refused; name the directory itself with store or -s", path)
	case !named.IsDir():
		return nil, fmt.Errorf("open %s: is not a directory", path)
	}
	root, err := d.root.OpenRoot(name)
	if err != nil {
		return nil, d.failed("open", name, err)
	}
	if opened, err := root.Stat("."); err != nil || !os.SameFile(named, opened) {
		root.Close()
		return nil, fmt.Errorf("open %s: replaced in the meantime", path)
	}
	return &directory{root, path}, nil
}

// open opens a regular file. open returns an error for any other type of file, including a symbolic
// link. A link created during the call can lead only to a file in d.
func (d *directory) open(name string, flag int) (*os.File, error) {
	path := d.name(name)
	if info, err := d.root.Lstat(name); err == nil && info.Mode().Type() == fs.ModeSymlink {
		return nil, fmt.Errorf("open %s: is a symbolic link, which is refused", path)
	}
	f, err := d.root.OpenFile(name, flag|syscall.O_NONBLOCK, 0o640)
	if err != nil {
		return nil, d.failed("open", name, err)
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("open %s: is not a regular file", path)
	}
	return f, nil
}

// create creates a file with a temporary name, replacing any file that a crash has
// left. The file belongs to the directory's owner, because the filter runs as that
// user.
func (d *directory) create(name string) (*os.File, error) {
	if err := d.remove(name); err != nil {
		return nil, err
	}
	f, err := d.open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return nil, err
	}
	if err := d.own(f); err != nil {
		f.Close()
		_ = d.remove(name)
		return nil, err
	}
	return f, nil
}

// remove removes a file. A missing file is not an error.
func (d *directory) remove(name string) error {
	if err := d.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d.failed("remove", name, err)
	}
	return nil
}

// rename renames a file, replacing any existing file with the new name.
func (d *directory) rename(from, to string) error {
	if err := d.root.Rename(from, to); err != nil {
		return d.failed("rename", from, err)
	}
	return nil
}

// own changes the owner of a file created by root to the directory's owner.
func (d *directory) own(f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := d.root.Stat(".")
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return f.Chown(int(owner.Uid), int(owner.Gid))
}

// lock opens the directory and locks it.
func (d *directory) lock() (*os.File, error) {
	f, err := d.root.Open(".")
	if err != nil {
		return nil, err
	}
	if err := lockExclusive(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", d.path, err)
	}
	return f, nil
}

// sync writes the directory entries to disk.
func (d *directory) sync() error {
	f, err := d.root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) { // some file systems do not support it
		return err
	}
	return nil
}

// files returns the regular files in d, sorted by name.
func (d *directory) files() ([]fs.FileInfo, error) {
	all, err := d.entries()
	return slices.DeleteFunc(all, func(info fs.FileInfo) bool { return !info.Mode().IsRegular() }), err
}

// entries returns everything in d except directories, sorted by name. If a segment was replaced by
// a link or a pipe, the result includes it, so that the reader's call of open returns an error.
func (d *directory) entries() ([]fs.FileInfo, error) {
	f, err := d.root.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var all []fs.FileInfo
	for _, name := range names {
		info, err := d.root.Lstat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist): // the file has just been removed
		case err != nil:
			return nil, err
		case !info.IsDir():
			all = append(all, info)
		}
	}
	return all, nil
}

// segments returns the segments in d, oldest first.
func (d *directory) segments() ([]Segment, error) {
	files, err := d.files()
	return segmentsOf(files), err
}

// stableSegments returns the segments in d. The result is complete even while a Writer replaces
// segments of rows with sealed segments. A single directory listing could miss both files of a day.
func (d *directory) stableSegments() (all []Segment, err error) {
	for i := range 10 {
		last := all
		files, err := d.entries()
		if err != nil {
			return nil, err
		}
		all = segmentsOf(files)
		if i > 0 && slices.EqualFunc(last, all, func(a, b Segment) bool { return a.Name == b.Name }) {
			break
		}
	}
	return all, nil
}

// current returns all segments except segments of rows that a sealed segment has replaced.
func current(all []Segment) []Segment {
	sealed := make(map[string]bool)
	for _, s := range all {
		sealed[s.Name] = s.Sealed && !s.Quarantined
	}
	return slices.DeleteFunc(slices.Clone(all), func(s Segment) bool { return !s.Sealed && !s.Quarantined && sealed[sealedName(s)] })
}

// segmentsOf returns the segments among files, oldest first.
func segmentsOf(files []fs.FileInfo) (all []Segment) {
	for _, f := range files {
		if s, ok := parseSegment(f.Name()); ok {
			s.Size = f.Size()
			all = append(all, s)
		}
	}
	slices.SortFunc(all, compareSegments)
	return all
}

// removeTemporary removes the temporary files of a crashed filter or of an interrupted repair.
func (d *directory) removeTemporary() error {
	files, err := d.files()
	for _, f := range files {
		if err == nil && strings.HasSuffix(f.Name(), newSuffix) {
			err = d.remove(f.Name())
		}
	}
	return err
}
