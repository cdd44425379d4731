//go:build audit

package sandbox

import (
	"golang.org/x/sys/unix"
)

// grants also writes OpenBSD's grants to the trace of the process: it calls access(2) for each
// grant, with the name of a file that does not exist. See tests/promises.
func (p Paths) grants() []grant {
	for _, g := range p.unveils() {
		_ = unix.Access("audit:"+permissions[g.use]+":"+absolute(g.path), unix.F_OK)
	}
	return p.directories()
}
