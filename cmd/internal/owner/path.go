package owner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// maxLinks is the maximum number of links followed on a path.
const maxLinks = 40

// A Place is a file name in an open directory.
type Place struct {
	*os.Root
	Name string
}

// Resolve opens the directory of a file. The file need not exist. If path is a link, Resolve
// follows it, and Name is the name of the link's target. Root does not follow links that another
// user has created or can replace.
func Resolve(path string) (*Place, error) {
	if os.Geteuid() != 0 {
		return resolve(path)
	}
	w, err := walk(path, false)
	if err != nil {
		return nil, err
	}
	if w.name == "" {
		w.close()
		return nil, fmt.Errorf("open %s: is a directory", path)
	}
	dir := w.top()
	w.dirs = w.dirs[:len(w.dirs)-1]
	w.close()
	return &Place{dir, w.name}, nil
}

// resolve implements Resolve for processes that do not run as root. It needs no checks, because the
// system enforces the user's rights.
func resolve(path string) (*Place, error) {
	for range maxLinks {
		target, err := os.Readlink(path)
		if err != nil { // not a link
			dir, err := os.OpenRoot(filepath.Dir(path))
			if err != nil {
				return nil, err
			}
			return &Place{dir, filepath.Base(path)}, nil
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		path = target
	}
	return nil, &fs.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
}

// A walker follows a path from the root directory.
type walker struct {
	dirs   []*os.Root // directories opened so far
	name   string     // last element of the path; empty if it is a directory in dirs
	rest   []string   // elements that remain to be followed
	links  int
	user   *User // user other than root who can change a directory on the path
	closed int   // number of dirs up to the last directory that only root can access; 0 without such a directory
}

// walk follows a path. If enter is set and the last element is a directory, walk also enters that
// directory.
func walk(path string, enter bool) (w *walker, err error) {
	if !filepath.IsAbs(path) {
		here, err := os.Getwd()
		if err != nil {
			return nil, err
		}
		path = here + "/" + path
	}
	top, err := os.OpenRoot("/")
	if err != nil {
		return nil, err
	}
	w = &walker{dirs: []*os.Root{top}, rest: split(path)}
	err = w.look()
	for err == nil && len(w.rest) > 0 {
		err = w.step(enter)
	}
	if err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// split returns the elements of a path, including "..", because the preceding element may
// be a link.
func split(path string) (list []string) {
	for _, name := range strings.Split(path, "/") {
		if name != "" && name != "." {
			list = append(list, name)
		}
	}
	return list
}

func (w *walker) top() *os.Root { return w.dirs[len(w.dirs)-1] }

func (w *walker) close() {
	for _, d := range w.dirs {
		d.Close()
	}
}

// back removes all directories after the first n.
func (w *walker) back(n int) {
	for _, d := range w.dirs[n:] {
		d.Close()
	}
	w.dirs = w.dirs[:n]
	if n < w.closed {
		w.closed = 0
	}
}

// look stores the user who can change the last directory.
func (w *walker) look() error {
	info, err := w.top().Stat(".")
	if err != nil || w.closed > 0 || w.user != nil {
		return err
	}
	if w.user, err = userOf(w.top().Name(), info); err != nil {
		return err
	}
	if w.user == nil && onlyRoot(info) {
		w.closed = len(w.dirs)
	}
	return nil
}

// step follows one element of the path.
func (w *walker) step(enter bool) error {
	name, dir := w.rest[0], w.top()
	w.rest = w.rest[1:]
	last := len(w.rest) == 0
	if name == ".." {
		w.back(max(len(w.dirs)-1, 1))
		return nil
	}
	info, err := dir.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && last:
		w.name = name
		return nil
	case err != nil:
		return place(err, dir, name)
	case info.Mode().Type() == fs.ModeSymlink:
		return w.follow(name, info)
	case last && (!enter || !info.IsDir()):
		w.name = name
		return nil
	}
	next, err := dir.OpenRoot(name)
	if err != nil {
		return place(err, dir, name)
	}
	w.dirs = append(w.dirs, next)
	// The element may have been replaced by a link since Lstat.
	if now, err := next.Stat("."); err != nil || !os.SameFile(info, now) {
		return errors.Join(err, replaced(dir, name))
	}
	return w.look()
}

// follow follows a link, unless a user other than root can have created it or can replace it.
func (w *walker) follow(name string, info fs.FileInfo) error {
	dir := w.top()
	path := filepath.Join(dir.Name(), name)
	if w.links++; w.links > maxLinks {
		return &fs.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
	}
	if uid, _ := ids(info); w.user != nil || uid != 0 && w.closed == 0 {
		return fmt.Errorf("open %s: is a symbolic link that another user can change, which root does not follow; name its target", path)
	}
	target, err := dir.Readlink(name)
	if err != nil {
		return place(err, dir, name)
	}
	if filepath.IsAbs(target) {
		w.back(1)
	}
	w.rest = append(split(target), w.rest...)
	return nil
}

// place adds the directory's path to an error about one of its files.
func place(err error, dir *os.Root, name string) error {
	if p := new(fs.PathError); errors.As(err, &p) {
		return &fs.PathError{Op: "open", Path: filepath.Join(dir.Name(), name), Err: p.Err}
	}
	return err
}

func replaced(dir *os.Root, name string) error {
	return fmt.Errorf("open %s: was replaced while it was opened; try again", filepath.Join(dir.Name(), name))
}

// Regular returns information on the file, or an error if the file is not regular. The
// error is fs.ErrNotExist if there is no file.
func (p *Place) Regular() (fs.FileInfo, error) {
	info, err := p.Lstat(p.Name)
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("exists and is not a regular file")
	}
	return info, err
}

// Path returns the path of the file.
func (p *Place) Path() string { return filepath.Join(p.Root.Name(), p.Name) }

// Lock locks the file until unlock is called, and creates the file if necessary. Only the file's
// user can open it, because any user who can open a file can lock it. If another process has locked
// the file, the error contains busy, which is a remedy.
func (p *Place) Lock(busy string) (unlock func(), err error) {
	file, err := p.OpenFile(p.Name, os.O_RDWR|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		if wrapped := new(fs.PathError); errors.As(err, &wrapped) {
			err = wrapped.Err // leave out the relative path
		}
		return nil, fmt.Errorf("open lock %s: %w; if it exists, it may belong to another user: remove it", p.Path(), err)
	}
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if uid, _ := ids(info); !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 || uid != os.Geteuid() {
		return nil, fmt.Errorf("%s: other users can lock it; remove it", p.Path())
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("lock %s: %w; %s", p.Path(), err, busy)
	}
	return func() { file.Close() }, nil
}

// Open resolves path like Resolve and opens the regular file for reading.
func Open(path string) (*os.File, error) {
	p, err := Resolve(path)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	was, err := p.Regular()
	if errors.As(err, new(*fs.PathError)) {
		return nil, place(err, p.Root, p.Name)
	} else if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	f, err := p.OpenFile(p.Name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if now, err := f.Stat(); err != nil || !os.SameFile(was, now) {
		f.Close()
		return nil, errors.Join(err, replaced(p.Root, p.Name))
	}
	return f, nil
}
