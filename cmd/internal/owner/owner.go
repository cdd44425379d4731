// Package owner allows root to work in directories of other users.
//
// The owner of a directory can replace files, directories and links in it at any time.
// Root must therefore not use paths in such a directory. There are two solutions. Do and
// Become act with the rights of the owner, so that the system denies all other
// operations. Resolve opens the directory of a file once and never follows a link of
// another user. In a process that does not run as root, all functions of this package
// only perform the operation.
package owner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// A User is a user who can replace files in a directory.
type User struct {
	ID, Group int
	Dir       string // the first directory of the path that the user can change
}

func (u *User) String() string { return fmt.Sprintf("uid %d, the owner of %s", u.ID, u.Dir) }

// userOf returns the user other than root who can replace files in the directory, or nil.
// A directory that several users can change is an error if the sticky bit does not
// protect its entries.
func userOf(name string, info fs.FileInfo) (*User, error) {
	uid, gid := ids(info)
	mode := info.Mode()
	switch {
	case uid != 0:
		return &User{ID: uid, Group: groupOf(uid, gid), Dir: name}, nil
	case mode&fs.ModeSticky != 0:
		return nil, nil
	case mode&0o002 != 0:
		return nil, fmt.Errorf("%s is world-writable; run chmod o-w", name)
	case mode&0o020 != 0 && gid != 0:
		return nil, fmt.Errorf("%s is group-writable; run chmod g-w, or change its owner to a user", name)
	}
	return nil, nil
}

// onlyRoot reports whether only root can reach the content of the directory.
func onlyRoot(info fs.FileInfo) bool {
	uid, gid := ids(info)
	return uid == 0 && info.Mode()&0o001 == 0 && (info.Mode()&0o010 == 0 || gid == 0)
}

func ids(info fs.FileInfo) (uid, gid int) {
	s := info.Sys().(*syscall.Stat_t) // Sys returns this type on all supported systems
	return int(s.Uid), int(s.Gid)
}

// groupOf returns the group of a user. For a user without an account, which is possible
// in a container, groupOf returns other.
func groupOf(uid, other int) int {
	account, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return other
	}
	gid, err := strconv.Atoi(account.Gid)
	if err != nil {
		return other
	}
	return gid
}

// Of returns the user other than root who can replace dir or files in dir, or nil. Files
// below a directory that only root can reach are safe.
func Of(dir string) (*User, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	w, err := walk(dir, true)
	if err != nil {
		return nil, err
	}
	w.close()
	return w.user, nil
}

// Do calls f with the rights of the user who can replace files in dir. During the call,
// the whole process has the rights of that user. Goroutines that f starts must not use
// files after f returns. If Of returns no user, f runs with unchanged rights.
func Do(dir string, f func() error) error {
	u, err := Of(dir)
	switch {
	case err != nil:
		return err
	case u == nil:
		return f()
	}
	return u.do(f)
}

func (u *User) do(f func() error) (err error) {
	groups, err := syscall.Getgroups()
	if err != nil {
		return err
	}
	group := syscall.Getegid()
	defer func() {
		// If the rights of root cannot be restored, later operations of the command also
		// fail.
		if back := errors.Join(syscall.Seteuid(0), syscall.Setegid(group), syscall.Setgroups(groups)); back != nil {
			err = errors.Join(err, fmt.Errorf("become root again: %w", back))
		}
	}()
	for _, set := range []func() error{
		func() error { return syscall.Setgroups([]int{u.Group}) },
		func() error { return syscall.Setegid(u.Group) },
		func() error { return syscall.Seteuid(u.ID) },
	} {
		if err := set(); err != nil {
			return fmt.Errorf("act as %v: %w", u, err)
		}
	}
	// Unset TMPDIR, because the user may have no access to root's temporary directory.
	os.Unsetenv("TMPDIR")
	if err = f(); errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w (as %v)", err, u)
	}
	return err
}

// Become permanently replaces the rights of root with the rights of u.
func (u *User) Become() error {
	for _, err := range []error{syscall.Setgroups([]int{u.Group}), syscall.Setgid(u.Group), syscall.Setuid(u.ID)} {
		if err != nil {
			return fmt.Errorf("become %v: %w", u, err)
		}
	}
	return nil
}
