package sandbox

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// promises is the pledge(2) argument of the filter. The reason for each promise is given in
// filter-scanwatch(8). With the promise "error", forbidden system calls fail. Otherwise the kernel
// would kill the process, and smtpd would exit.
const promises = "error stdio rpath wpath cpath fattr flock unix"

// servePromises is the pledge(2) argument for a process that only reads files, connects to a
// socket, and answers clients or asks servers.
const servePromises = "error stdio rpath unix inet"

// clientPromises is the pledge(2) argument for a process that changes files and sends requests to
// servers.
const clientPromises = "error stdio rpath wpath cpath fattr flock unix inet dns"

func (p Paths) grants() []grant { return p.unveils() }

func (r *Report) enter(p *Plan) {
	for _, g := range p.grants {
		switch err := unix.Unveil(g.path, permissions[g.use]); {
		case err == nil:
			r.granted = append(r.granted, g.path)
		case !errors.Is(err, unix.ENOENT): // the directory does not exist
			r.problem(fmt.Errorf("unveil %s: %w", g.path, err))
		}
	}
	if err := unix.UnveilBlock(); err != nil {
		r.problem(fmt.Errorf("unveil: %w", err))
	} else {
		r.By, r.Files = append(r.By, "unveil"), !p.readAll
	}
	promised := promises
	inet := p.serve || p.ask != 0
	switch {
	case p.readAll:
		promised = clientPromises
	case inet:
		promised = servePromises
	}
	if err := unix.PledgePromises(promised); err != nil {
		r.problem(fmt.Errorf("pledge %q: %w", promised, err))
		return
	}
	r.By = append(r.By, "pledge")
	r.Exec, r.IPC, r.TCP, r.Net = true, true, !inet, !inet
}
