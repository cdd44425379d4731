package output

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"syscall"

	"scanwatch/cmd/internal/owner"
)

// Replace atomically replaces a file. If write fails, the file remains unchanged. The new
// file keeps the old file's owner, group and mode, or has the given mode if there is no
// old file. If name is a symbolic link, its target is replaced.
func Replace(name string, mode os.FileMode, write func(io.Writer) error) error {
	p, err := owner.Resolve(name)
	if err == nil {
		err = replace(p, mode, write)
		p.Close()
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func replace(p *owner.Place, mode os.FileMode, write func(io.Writer) error) (err error) {
	old, err := p.Regular()
	switch {
	case err == nil:
		mode = old.Mode().Perm()
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	// The file can be renamed only if it is in the same directory. Its temporary name starts with a
	// dot, so that Prometheus collectors of *.prom files ignore it.
	temp := fmt.Sprintf(".%s.%016x", p.Name, rand.Uint64())
	f, err := p.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if path := new(fs.PathError); errors.As(err, &path) {
		return fmt.Errorf("create a file in %s: %w", p.Root.Name(), path.Err) // the error must not contain the random name
	}
	defer func() {
		if err != nil {
			f.Close()
			_ = p.Remove(temp)
		}
	}()
	w := bufio.NewWriter(f)
	for _, do := range []func() error{
		func() error { return write(w) }, w.Flush, func() error { return keepOwner(f, old) },
		func() error { return f.Chmod(mode) }, f.Sync, f.Close,
		func() error { return p.Rename(temp, p.Name) },
	} {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

// keepOwner copies the owner and group of the old file to the new file. With a different group,
// other users might be able to read the file. old is nil if there is no old file.
func keepOwner(f *os.File, old fs.FileInfo) error {
	if old == nil {
		return nil
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	was, now := old.Sys().(*syscall.Stat_t), info.Sys().(*syscall.Stat_t)
	if was.Uid == now.Uid && was.Gid == now.Gid {
		return nil
	}
	if err := f.Chown(int(was.Uid), int(was.Gid)); err != nil {
		return fmt.Errorf("keep the owner %d and group %d: %w; remove the file, or run this as root", was.Uid, was.Gid, errors.Unwrap(err))
	}
	return nil
}

// Stdout is the name of standard output in options that take a file name.
const Stdout = "-"

// IsStdout reports whether a file name in an option means standard output.
func IsStdout(name string) bool { return name == "" || name == Stdout || name == "/dev/stdout" }

// To replaces a file, or writes to stdout if name is empty, "-" or /dev/stdout. On some systems,
// /dev/stdout is a link, and its target must not be replaced. If write fails, nothing is written.
func To(stdout io.Writer, name string, mode os.FileMode, write func(io.Writer) error) error {
	if !IsStdout(name) {
		return Replace(name, mode, write)
	}
	var b bytes.Buffer
	if err := write(&b); err != nil {
		return err
	}
	_, err := b.WriteTo(stdout)
	return err
}
