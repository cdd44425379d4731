package sandbox

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// promises is the argument to pledge(2). The reason for each promise is given in
// filter-scanwatch(8). With the promise "error", forbidden system calls fail. Otherwise
// the kernel would kill the process, and smtpd would exit.
const promises = "error stdio rpath wpath cpath fattr flock unix"

// servePromises is the argument to pledge(2) for a process that only reads files,
// connects to a socket and answers clients.
const servePromises = "error stdio rpath unix inet"

// permissions maps each use to the permissions for unveil(2).
var permissions = map[use]string{useRead: "r", useState: "rwc", useSocket: "rw", useRun: "rwc"}

// grants returns individual files. The files may be replaced and need not exist, because
// unveil(2) identifies a file by its name in a directory.
func (p Paths) grants() []grant {
	var all []grant
	if p.State != "" {
		all = append(all, grant{useState, p.state()})
	}
	for _, file := range slices.Concat(p.Read, p.Look) {
		all = append(all, grant{useRead, file})
		if real := resolve(file); real != file {
			all = append(all, grant{useRead, real})
		}
	}
	if p.Run != "" {
		all = append(all, grant{useRun, p.Run})
	}
	if p.Log != "" {
		all = append(all, grant{useSocket, p.Log})
	}
	if p.Connect != "" {
		all = append(all, grant{useSocket, p.Connect})
	}
	return all
}

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
		r.By, r.Files = append(r.By, "unveil"), true
	}
	promised := promises
	if p.serve {
		promised = servePromises
	}
	if err := unix.PledgePromises(promised); err != nil {
		r.problem(fmt.Errorf("pledge %q: %w", promised, err))
		return
	}
	r.By = append(r.By, "pledge")
	r.Exec, r.IPC, r.TCP, r.Net = true, true, !p.serve, !p.serve
}
