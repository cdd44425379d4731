//go:build unix

package owner

import (
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// lesser is the ID of a user without an account.
const lesser = 54321

// open returns a directory that belongs to root and that all users can access.
func open(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: root is needed to make directories of another user")
	}
	dir, err := os.MkdirTemp("", "owner")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	check(t, os.Chmod(dir, 0o755))
	return dir
}

func check(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// mkdir creates a directory with the given mode and owner.
func mkdir(t *testing.T, name string, mode os.FileMode, uid, gid int) string {
	t.Helper()
	check(t, os.Mkdir(name, 0o700), os.Chown(name, uid, gid), os.Chmod(name, mode))
	return name
}

// TestOf checks which user can replace files in a directory.
func TestOf(t *testing.T) {
	dir := open(t)
	theirs := mkdir(t, filepath.Join(dir, "theirs"), 0o750, lesser, lesser)
	inside := mkdir(t, filepath.Join(theirs, "inside"), 0o755, 0, 0)
	ours := mkdir(t, filepath.Join(dir, "ours"), 0o755, 0, 0)
	closed := mkdir(t, filepath.Join(dir, "closed"), 0o700, 0, 0)
	copied := mkdir(t, filepath.Join(closed, "copy"), 0o750, lesser, lesser)
	check(t, os.Symlink(theirs, filepath.Join(dir, "link")), os.Symlink("link", filepath.Join(dir, "again")),
		os.Symlink("../theirs", filepath.Join(closed, "out")), os.Symlink(theirs, filepath.Join(closed, "away")))
	foreign := filepath.Join(dir, "foreign")
	check(t, os.Symlink(ours, foreign), os.Lchown(foreign, lesser, lesser))
	for _, c := range []struct {
		dir, want string // directory that a user other than root can change, or an error
	}{
		{ours, ""},
		{ours + "/missing", ""},
		{theirs, theirs},
		{theirs + "/missing", theirs},
		{theirs + "/../ours", theirs}, // the user can replace a directory on the path
		{inside, theirs},
		{dir + "/link", theirs},
		{dir + "/again", theirs},
		{dir + "/again/inside", theirs},
		{copied, ""}, // no user other than root can access it
		{closed + "/out", theirs},
		{closed + "/away", theirs},
		{closed + "/../theirs", theirs},
		{foreign, "error: is a symbolic link that another user can change"},
		{mkdir(t, filepath.Join(dir, "world"), 0o777, 0, 0), "error: is world-writable; run chmod o-w"},
		{mkdir(t, filepath.Join(dir, "group"), 0o775, 0, lesser), "error: is group-writable"},
		{mkdir(t, filepath.Join(dir, "root"), 0o775, 0, 0), ""},
		{mkdir(t, filepath.Join(dir, "sticky"), 0o777|os.ModeSticky, 0, 0), ""},
	} {
		u, err := Of(c.dir)
		got := ""
		switch {
		case err != nil:
			got = "error: " + err.Error()
			if want, ok := strings.CutPrefix(c.want, "error: "); ok && strings.Contains(got, want) {
				continue
			}
		case u != nil:
			if got = u.Dir; u.ID != lesser || u.Group != lesser {
				t.Errorf("%s: %+v", c.dir, u)
			}
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.dir, got, c.want)
		}
	}
	t.Chdir(theirs)
	if u, err := Of("inside"); err != nil || u == nil || u.Dir != theirs {
		t.Errorf("relative: %v, %v", u, err)
	}
}

// TestDo checks that the process has the owner's rights during the call and root's rights
// afterwards.
func TestDo(t *testing.T) {
	dir := open(t)
	theirs := mkdir(t, filepath.Join(dir, "theirs"), 0o750, lesser, lesser)
	secret := filepath.Join(dir, "secret")
	check(t, os.WriteFile(secret, []byte("secret"), 0o600))
	made := filepath.Join(theirs, "made")
	err := Do(theirs, func() error {
		if _, err := os.ReadFile(secret); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("read a file of root: %v", err)
		}
		groups, err := os.Getgroups()
		if err != nil || len(groups) != 1 || groups[0] != lesser {
			t.Errorf("groups %v, %v", groups, err)
		}
		if err := Do(dir, func() error { return os.WriteFile(made, nil, 0o600) }); err != nil {
			t.Error(err)
		}
		return os.WriteFile(secret, nil, 0o600)
	})
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "(as uid 54321, the owner of "+theirs+")") {
		t.Errorf("%v", err)
	}
	info, err := os.Stat(made)
	check(t, err)
	if s := info.Sys().(*syscall.Stat_t); s.Uid != lesser || s.Gid != lesser {
		t.Errorf("the file belongs to %d:%d", s.Uid, s.Gid)
	}
	if text, err := os.ReadFile(secret); err != nil || string(text) != "secret" {
		t.Errorf("not root again: %q, %v", text, err)
	}
	if err := Do(dir, func() error { return os.WriteFile(secret, nil, 0o600) }); err != nil {
		t.Errorf("in a directory of root: %v", err)
	}
}

// TestDoFile checks which user's rights apply to a file reached through links.
func TestDoFile(t *testing.T) {
	dir := open(t)
	theirs := mkdir(t, filepath.Join(dir, "theirs"), 0o755, lesser, lesser)
	check(t, os.Symlink("theirs/file", dir+"/link"), os.Symlink(dir+"/link", dir+"/again"), os.Symlink(dir+"/file", theirs+"/back"),
		os.Symlink(theirs+"/back", dir+"/there"))
	for name, want := range map[string]int{
		dir + "/file":       0,
		theirs + "/file":    lesser,
		dir + "/link":       lesser, // the target does not exist
		dir + "/again":      lesser,
		theirs + "/back":    lesser, // a link that root does not follow
		dir + "/there":      0,      // Resolve refuses it
		theirs + "/no/file": lesser,
	} {
		got := -1
		if err := DoFile(name, func() error { got = os.Geteuid(); return nil }); err != nil || got != want {
			t.Errorf("%s: user %d, %v; want %d", name, got, err, want)
		}
		if os.Geteuid() != 0 {
			t.Fatal("not root again")
		}
	}
	check(t, os.WriteFile(theirs+"/file", nil, 0o644))
	if err := DoFile(dir+"/link", func() error { return os.WriteFile(dir+"/made", nil, 0o600) }); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("write as the owner: %v", err)
	}
}

// TestOpen checks that root follows only root's links, and reads only regular files.
func TestOpen(t *testing.T) {
	dir := open(t)
	theirs := mkdir(t, filepath.Join(dir, "theirs"), 0o755, lesser, lesser)
	file := filepath.Join(dir, "file")
	check(t, os.WriteFile(file, []byte("text"), 0o600), os.Symlink("file", filepath.Join(dir, "link")),
		os.Symlink(file, filepath.Join(theirs, "link")), syscall.Mkfifo(filepath.Join(theirs, "fifo"), 0o666),
		os.WriteFile(filepath.Join(theirs, "file"), []byte("text"), 0o600),
		os.Symlink("loop", filepath.Join(dir, "loop")), os.Symlink(dir, filepath.Join(theirs, "up")))
	for name, want := range map[string]string{
		file:                "",
		dir + "/link":       "",
		theirs + "/file":    "",
		theirs + "/link":    "which root does not follow; name its target",
		theirs + "/fifo":    "not a regular file",
		theirs + "/up/file": "which root does not follow; name its target",
		dir + "/loop":       "too many levels of symbolic links",
		dir + "/none":       "open " + dir + "/none: no such file or directory",
		dir + "/none/file":  "open " + dir + "/none: no such file or directory",
		dir:                 dir + ": exists and is not a regular file",
	} {
		f, err := Open(name)
		if err == nil {
			f.Close()
		}
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}

// TestMissing checks that the error names the user who must own the directory.
func TestMissing(t *testing.T) {
	name := "_swupdate"
	if os.Geteuid() != 0 {
		u, err := user.Current()
		if err != nil {
			t.Fatal(err)
		}
		name = u.Username
	}
	if err := Missing("/a/b", 0o755, "_swupdate"); err.Error() != "directory /a/b does not exist; as root: install -d -o "+name+" -m 755 /a/b" {
		t.Error(err)
	}
}
