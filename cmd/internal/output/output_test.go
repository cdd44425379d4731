package output

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"scanwatch/cmd/internal/owner"
)

// TestReplace checks that a file is replaced completely or not at all, and that no
// temporary file remains.
func TestReplace(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "page.html")
	if err := os.WriteFile(name, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(name, link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, text string
		err        error
		want       string
	}{
		{name, "half", fmt.Errorf("disk full"), "old"},
		{name, "new", nil, "new"},
		{link, "through", nil, "through"},
	} {
		err := Replace(c.name, 0o640, func(w io.Writer) error {
			fmt.Fprint(w, c.text)
			return c.err
		})
		if (err != nil) != (c.err != nil) {
			t.Errorf("%s: %v", c.text, err)
		}
		got, err := os.ReadFile(c.name)
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %q, %v", c.text, got, err)
		}
	}
	if got, _ := os.ReadFile(name); string(got) != "through" {
		t.Errorf("the target of a link has become %q", got)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("the directory has %v, %v", left, err)
	}
	if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// TestReplaceKeeps checks that the new file keeps the old file's owner, group and mode. If the name
// is a link, its target must be replaced. Root must not follow a link of another user.
func TestReplaceKeeps(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: root is needed to give files to another user")
	}
	const lesser = 54321
	dir, err := os.MkdirTemp("", "output")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	check := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	page, theirs := filepath.Join(dir, "page.html"), filepath.Join(dir, "theirs")
	mine := filepath.Join(theirs, "mine")
	check(os.Chmod(dir, 0o755), os.WriteFile(page, []byte("old"), 0o600), os.Chown(page, 0, lesser), os.Chmod(page, 0o640),
		os.Mkdir(theirs, 0o755), os.WriteFile(mine, []byte("old"), 0o640), os.Chown(mine, lesser, lesser+1),
		os.Symlink("page.html", filepath.Join(dir, "link")), os.Symlink("../page.html", filepath.Join(theirs, "link")),
		os.Symlink("new.html", filepath.Join(dir, "dangling")), os.Chown(theirs, lesser, lesser))
	text := func(w io.Writer) error { _, err := io.WriteString(w, "new"); return err }
	is := func(name string, uid, gid uint32, mode os.FileMode, want string) {
		t.Helper()
		info, err := os.Lstat(name)
		check(err)
		s := info.Sys().(*syscall.Stat_t)
		got, err := os.ReadFile(name)
		check(err)
		if s.Uid != uid || s.Gid != gid || info.Mode() != mode || string(got) != want {
			t.Errorf("%s: %d:%d %v %q, want %d:%d %v %q", name, s.Uid, s.Gid, info.Mode(), got, uid, gid, mode, want)
		}
	}
	check(Replace(filepath.Join(dir, "link"), 0o644, text), Replace(mine, 0o644, text), Replace(filepath.Join(dir, "dangling"), 0o644, text))
	is(page, 0, lesser, 0o640, "new")
	is(mine, lesser, lesser+1, 0o640, "new")
	is(filepath.Join(dir, "new.html"), 0, 0, 0o644, "new")
	for _, link := range []string{"link", "dangling"} {
		if info, err := os.Lstat(filepath.Join(dir, link)); err != nil || info.Mode().Type() != os.ModeSymlink {
			t.Errorf("%s is no longer a link: %v", link, err)
		}
	}
	// Root must not follow this link, because the directory's owner may have created it.
	check(os.WriteFile(page, []byte("old"), 0o640))
	err = Replace(filepath.Join(theirs, "link"), 0o644, text)
	if err == nil || !strings.Contains(err.Error(), "root does not follow") {
		t.Errorf("%v", err)
	}
	is(page, 0, lesser, 0o640, "old")
	// The user cannot give the new file the group of root's file, so the file must not be replaced.
	own := filepath.Join(theirs, "own")
	check(os.WriteFile(own, []byte("old"), 0o640))
	err = owner.Do(theirs, func() error { return Replace(own, 0o644, text) })
	if err == nil || !strings.Contains(err.Error(), "keep the owner 0 and group 0: operation not permitted; remove the file, or run this as root") {
		t.Errorf("%v", err)
	}
	is(own, 0, 0, 0o640, "old")
	if left, _ := filepath.Glob(filepath.Join(theirs, ".*")); len(left) > 0 {
		t.Errorf("files left: %v", left)
	}
}

// TestTo checks that standard output receives either the complete output or nothing.
func TestTo(t *testing.T) {
	for _, name := range []string{"", "-", "/dev/stdout"} {
		for _, failure := range []error{nil, errors.New("broken")} {
			var out bytes.Buffer
			err := To(&out, name, 0o644, func(w io.Writer) error {
				_, _ = io.WriteString(w, "text")
				return failure
			})
			if want := map[bool]string{true: "text"}[failure == nil]; !errors.Is(err, failure) || out.String() != want {
				t.Errorf("%q: %q, %v", name, out.String(), err)
			}
		}
	}
	if _, err := os.Lstat("-"); err == nil {
		t.Error("a file - was made")
	}
}
