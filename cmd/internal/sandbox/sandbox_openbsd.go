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

// permissions are those of unveil(2).
var permissions = map[use]string{useRead: "r", useEvents: "rwc", useState: "rwc"}

// grants are single files: unveil(2) remembers a file by its name in its
// directory, so that it may be replaced, or appear.
func (p Paths) grants() []grant {
	all := []grant{{useState, p.state()}}
	if p.Events != "" {
		all = append(all, grant{useEvents, p.Events}, grant{useEvents, p.Events + ".1"})
	}
	for _, file := range slices.Concat(p.Read, p.Look) {
		all = append(all, grant{useRead, file})
		if real := resolve(file); real != file {
			all = append(all, grant{useRead, real})
		}
	}
	return all
}

func (r *Report) enter(grants []grant) {
	for _, g := range grants {
		switch err := unix.Unveil(g.path, permissions[g.use]); {
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
