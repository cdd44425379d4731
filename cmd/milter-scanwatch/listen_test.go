package main

import (
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestMistypedDirectory checks that the directory of a socket is not created, and that the error names
// a remedy.
func TestMistypedDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "scanwach")
	l, err := listen("unix:"+dir+"/milter.sock", "")
	if err == nil || !strings.Contains(err.Error(), "scanwach: no such file or directory; correct -l, or create the directory") {
		t.Errorf("%v, %v", l, err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the directory was created")
	}
}

// TestExcluded checks when Postfix cannot connect to the socket.
func TestExcluded(t *testing.T) {
	other, self := &user.User{Uid: "54321"}, &user.User{Uid: strconv.Itoa(os.Getuid())}
	if !excludes("unix:/x", "", other) {
		t.Error("another user can connect")
	}
	if excludes("unix:/x", "postfix", other) || excludes("inet:127.0.0.1:1", "", other) || excludes("unix:/x", "", self) || excludes("unix:/x", "", nil) {
		t.Error("a user is excluded wrongly")
	}
}
