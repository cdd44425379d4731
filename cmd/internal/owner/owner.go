// Package owner lets root work safely in directories that belong to other users.
//
// A directory's owner can replace files, directories and links in it at any time, so root must not
// use paths there. The package offers two solutions. Do and Become act with the owner's rights, so
// the operating system denies any access that the owner does not have. Resolve opens a file's
// directory once, and never follows a link of another user. In a process without root's rights, all
// functions simply perform the operation.
package owner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// A User is a user who can replace files in a directory.
type User struct {
	ID, Group int
	Dir       string // topmost directory on the path that the user can change
}

func (u *User) String() string { return fmt.Sprintf("uid %d, the owner of %s", u.ID, u.Dir) }

// userOf returns the user other than root who can replace files in the directory, or nil. If
// several users can replace files and the sticky bit does not protect the files, userOf returns an
// error.
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

// onlyRoot reports whether only root can access the contents of the directory.
func onlyRoot(info fs.FileInfo) bool {
	uid, gid := ids(info)
	return uid == 0 && info.Mode()&0o001 == 0 && (info.Mode()&0o010 == 0 || gid == 0)
}

func ids(info fs.FileInfo) (uid, gid int) {
	s := info.Sys().(*syscall.Stat_t) // Sys returns this type on all supported systems
	return int(s.Uid), int(s.Gid)
}

// groupOf returns a user's primary group. If the user has no account, the result is other. In a
// container, users may have no accounts.
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

// Of returns the user other than root who can replace dir or files in dir, or nil. Directories
// below a directory that only root can access are safe.
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

// Do calls f with the rights of the user who can replace files in dir. The rights of the whole
// process change during the call, so goroutines that f starts must not use files after f returns.
// If Of returns no user, f is called without a change of rights.
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

// DoFile calls f with the rights of the user who can replace a file's target. The file need not
// exist. If another user can change a link on the path, DoFile follows the link without root's
// rights, and calls f with the rights of the directory's user.
func DoFile(name string, f func() error) error {
	if os.Geteuid() != 0 {
		return f()
	}
	w, err := walk(name, false)
	if err != nil {
		return Do(filepath.Dir(name), f)
	}
	w.close()
	if w.user == nil {
		return f()
	}
	return w.user.do(f)
}

func (u *User) do(f func() error) (err error) {
	groups, err := syscall.Getgroups()
	if err != nil {
		return err
	}
	group := syscall.Getegid()
	defer func() {
		// If root's rights cannot be restored, the command fails.
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
	// The user may not be able to access root's temporary directory.
	os.Unsetenv("TMPDIR")
	if err = f(); errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w (as %v)", err, u)
	}
	return err
}

// Become permanently replaces root's rights with u's.
func (u *User) Become() error {
	for _, err := range []error{syscall.Setgroups([]int{u.Group}), syscall.Setgid(u.Group), syscall.Setuid(u.ID)} {
		if err != nil {
			return fmt.Errorf("become %v: %w", u, err)
		}
	}
	return nil
}

// Missing returns the error for a missing directory. The directory must belong to this process's
// user, or to the named user if root runs the process. The error contains the command that creates
// the directory.
func Missing(dir string, mode fs.FileMode, name string) error {
	if uid := os.Geteuid(); uid != 0 {
		name = strconv.Itoa(uid)
		if u, err := user.LookupId(name); err == nil {
			name = u.Username
		}
	}
	return fmt.Errorf("directory %s does not exist; as root: install -d -o %s -m %o %[1]s", dir, name, mode)
}
