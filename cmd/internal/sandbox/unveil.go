//go:build openbsd || audit

package sandbox

import "slices"

// permissions maps each use to the permissions for unveil(2).
var permissions = map[use]string{useRead: "r", useState: "rwc", useSocket: "rw", useRun: "rwc", useChange: "rwc", useAll: "r"}

// unveils grants access to individual files. The files may be replaced and need not exist, because
// unveil(2) identifies a file by its name in a directory.
func (p Paths) unveils() []grant {
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
	for _, socket := range p.Connect {
		all = append(all, grant{useSocket, resolve(socket)})
	}
	for _, dir := range p.Change {
		all = append(all, grant{useChange, resolve(dir)})
	}
	if p.ReadAll {
		all = append(all, grant{useAll, "/"})
	}
	return all
}
