package sandbox

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// promises are those of pledge(2); filter-scanwatch(8) has the reasons. With
// "error" a call that nobody thought of fails: without, it would end the process
// and with it the mail server.
const promises = "error stdio rpath wpath cpath fattr flock unix"

func (r *Report) enter(p Paths) {
	type grant struct{ path, permissions string }
	grants := []grant{{p.state(), "rwc"}}
	if p.Events != "" {
		grants = append(grants, grant{p.Events, "rwc"}, grant{p.Events + ".1", "rwc"})
	}
	for _, file := range slices.Concat(p.Read, p.Look) {
		grants = append(grants, grant{file, "r"})
		if real := resolve(file); real != file {
			grants = append(grants, grant{real, "r"})
		}
	}
	// A file is remembered by its name in its directory, so that it may be
	// replaced, or appear.
	for _, g := range grants {
		switch err := unix.Unveil(g.path, g.permissions); {
		case err == nil:
			r.granted = append(r.granted, g.path)
		case !errors.Is(err, unix.ENOENT): // its directory is missing
			r.problem(fmt.Errorf("unveil %s: %w", g.path, err))
		}
	}
	if err := unix.UnveilBlock(); err != nil {
		r.problem(fmt.Errorf("unveil: %w", err))
	} else {
		r.By, r.Files = append(r.By, "unveil"), true
	}
	if err := unix.PledgePromises(promises); err != nil {
		r.problem(fmt.Errorf("pledge %q: %w", promises, err))
		return
	}
	r.By = append(r.By, "pledge")
	r.Exec, r.TCP, r.Net, r.IPC = true, true, true, true
}
