package sandbox

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// clientPromises are the promises of a process that sends requests to servers.
const clientPromises = "error stdio rpath wpath cpath fattr flock unix inet dns"

// Client restricts a process that sends requests to servers: it can change files in the
// given directories only, connect to the given sockets only, and run no programs. It can read
// files of the system, such as the configuration of the resolver.
func Client(dirs, sockets []string) *Report {
	r := new(Report)
	unveil := func(path, permissions string) {
		if err := unix.Unveil(path, permissions); err != nil {
			r.problem(fmt.Errorf("unveil %s: %w", path, err))
		}
	}
	unveil("/", "r")
	for _, dir := range dirs {
		unveil(resolve(dir), "rwc")
	}
	for _, socket := range sockets {
		unveil(resolve(socket), "rw")
	}
	if err := unix.UnveilBlock(); err != nil {
		r.problem(fmt.Errorf("unveil: %w", err))
	} else {
		r.By = append(r.By, "unveil")
	}
	if err := unix.PledgePromises(clientPromises); err != nil {
		r.problem(fmt.Errorf("pledge %q: %w", clientPromises, err))
		return r
	}
	r.By, r.Exec, r.IPC = append(r.By, "pledge"), true, true
	return r
}
