//go:build audit

package sandbox

import (
	"golang.org/x/sys/unix"
)

// grants also writes the grants of OpenBSD to the process's trace: an access(2) call for
// each, of a file that does not exist. See tests/promises.
func (p Paths) grants() []grant {
	for _, g := range p.unveils() {
		_ = unix.Access("audit:"+permissions[g.use]+":"+absolute(g.path), unix.F_OK)
	}
	return p.directories()
}
