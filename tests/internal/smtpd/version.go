//go:build linux

package smtpd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// A Version is a version of OpenSMTPD.
type Version struct {
	Name string // name of the version in test names
	Root string // Debian suite, and name of the root's directory
	TLS  bool   // supports TLS, and therefore AUTH
}

// Versions lists all versions. OpenSMTPD 6.8 fails every TLS handshake with Debian 12's
// OpenSSL 3, but the build from Debian 11 works.
var Versions = []Version{
	{Name: "6.8", Root: "bookworm"},
	{Name: "6.8-tls", Root: "bullseye", TLS: true},
	{Name: "7.6", Root: "trixie", TLS: true},
	{Name: "7.9", Root: "sid", TLS: true},
}

// Newest returns the newest version.
func Newest() Version { return Versions[len(Versions)-1] }

// Matrix returns the versions for a test that the core scenario partly covers: all versions with
// the build tag long, and otherwise only the newest.
func Matrix() []Version {
	if Long {
		return Versions
	}
	return []Version{Newest()}
}

// rootsDir returns the directory of all roots.
func rootsDir() string {
	if dir := os.Getenv("SCANWATCH_ROOTS"); dir != "" {
		return dir
	}
	return "/var/cache/scanwatch-tests"
}

func (v Version) dir() string { return RootDir(v.Root) }

// RootDir returns the directory of a root; see tests/roots.sh.
func RootDir(root string) string { return filepath.Join(rootsDir(), root) }

// Check returns an error if v cannot run, because the program is outside the namespace or v's root
// is missing.
func Check(v Version) error {
	if !inside() {
		return errors.New("not in a separate namespace: call smtpd.Main or smtpd.Enter first (needs root)")
	}
	_, err := os.Stat(filepath.Join(v.dir(), "usr/sbin/smtpd"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no root directory for OpenSMTPD %s: run tests/roots.sh %s", v.Name, v.Root)
	}
	return err
}
