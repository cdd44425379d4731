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
	Name string // as in test names
	Root string // the Debian suite, and the directory of the root
	TLS  bool   // can serve TLS, and with it AUTH
}

// Versions contains all versions. OpenSMTPD 6.8 fails every TLS handshake with OpenSSL 3
// of Debian 12. The build of Debian 11 works.
var Versions = []Version{
	{Name: "6.8", Root: "bookworm"},
	{Name: "6.8-tls", Root: "bullseye", TLS: true},
	{Name: "7.6", Root: "trixie", TLS: true},
	{Name: "7.9", Root: "sid", TLS: true},
}

// Newest returns the newest version.
func Newest() Version { return Versions[len(Versions)-1] }

// Matrix returns the versions for a test that the core scenario covers in part. With the
// build tag long, Matrix returns all versions, and otherwise the newest version.
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

func (v Version) dir() string { return filepath.Join(rootsDir(), v.Root) }

// Check returns an error if v cannot run, because the program is outside the namespace or
// the root of v is missing.
func Check(v Version) error {
	if !inside() {
		return errors.New("not in a separate namespace: call smtpd.Main or smtpd.Enter first (needs root)")
	}
	_, err := os.Stat(filepath.Join(v.dir(), "usr/sbin/smtpd"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no root for OpenSMTPD %s: run tests/roots.sh %s", v.Name, v.Root)
	}
	return err
}
