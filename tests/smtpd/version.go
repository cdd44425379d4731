//go:build linux

package smtpd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// A Version is one OpenSMTPD the tests run.
type Version struct {
	Name string // as in test names
	Root string // the Debian suite it comes from, and the root's folder
	TLS  bool   // can serve TLS, and with it AUTH
}

// Versions are all there are.
//
// Debian 12 builds 6.8 with OpenSSL 3, under which that version fails every
// handshake; Debian 11's build of the same release does not.
var Versions = []Version{
	{Name: "6.8", Root: "bookworm"},
	{Name: "6.8-tls", Root: "bullseye", TLS: true},
	{Name: "7.6", Root: "trixie", TLS: true},
	{Name: "7.9", Root: "sid", TLS: true},
}

// rootsDir is the folder of all roots.
func rootsDir() string {
	if dir := os.Getenv("SCANWATCH_ROOTS"); dir != "" {
		return dir
	}
	return "/var/cache/scanwatch-tests"
}

func (v Version) dir() string { return filepath.Join(rootsDir(), v.Root) }

// Check reports why v cannot be run: outside of the namespace, or no root.
func Check(v Version) error {
	if !inside() {
		return errors.New("not in a namespace of its own: call smtpd.Main or smtpd.Enter first (needs root)")
	}
	_, err := os.Stat(filepath.Join(v.dir(), "usr/sbin/smtpd"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no root for OpenSMTPD %s: run tests/roots.sh %s", v.Name, v.Root)
	}
	return err
}
