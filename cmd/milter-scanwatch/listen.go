package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"scanwatch/cmd/internal/control"
)

// listen opens the milter's socket, such as unix:/run/scanwatch/milter.sock or inet:127.0.0.1:9900.
// If a group is given by name or number, it may connect to the Unix socket.
func listen(socket, group string) (net.Listener, error) {
	network, address, _ := strings.Cut(socket, ":")
	switch network {
	case "unix":
		return listenUnix(address, group)
	case "inet":
		if group != "" {
			return nil, errors.New("-g is for Unix sockets only")
		}
		if _, _, err := net.SplitHostPort(address); err == nil {
			return net.Listen("tcp", address)
		}
	}
	return nil, fmt.Errorf("socket %q is neither unix:PATH nor inet:ADDRESS:PORT", socket)
}

func listenUnix(path, group string) (_ net.Listener, err error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("socket %q is not an absolute path", path)
	}
	gid := -1
	if group != "" {
		if gid, err = groupID(group); err != nil {
			return nil, err
		}
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	dir := filepath.Dir(path)
	if dir == control.DefaultRunDir() { // on a temporary file system, the directory is lost at each boot
		_ = os.Mkdir(dir, 0o755)
	}
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("directory of the socket: %w; correct -l, or create the directory as in milter-scanwatch(8)", err)
	}
	// Set the mode with the umask instead of chmod, because the directory's owner could replace the
	// socket with a link, and chmod would follow the link.
	umask := 0o177
	if gid >= 0 {
		umask = 0o117
	}
	umask = syscall.Umask(umask)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	syscall.Umask(umask)
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the sandbox does not allow removal
	if gid >= 0 {
		if err := os.Lchown(path, -1, gid); err != nil {
			l.Close()
			return nil, err
		}
	}
	return l, nil
}

// excludes reports whether a user other than root, such as Postfix's, cannot connect to the socket,
// because no group was given and this process has another user. A nil user is not excluded.
func excludes(socket, group string, u *user.User) bool {
	return u != nil && group == "" && strings.HasPrefix(socket, "unix:") && u.Uid != strconv.Itoa(os.Getuid())
}

// removeStale removes a socket on which no process is listening.
func removeStale(path string) error {
	if info, err := os.Lstat(path); err != nil || info.Mode().Type() != fs.ModeSocket {
		return nil // for any other kind of file, Listen returns the error
	}
	c, err := net.Dial("unix", path)
	switch {
	case err == nil:
		c.Close()
		return fmt.Errorf("another process is listening on %s", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	}
	return nil // Listen returns the error
}

func groupID(group string) (int, error) {
	if id, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(id), nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}
