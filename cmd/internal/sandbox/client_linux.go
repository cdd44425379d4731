package sandbox

import (
	"fmt"
	"path/filepath"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// Client restricts a process that sends requests to servers: it can change files in the
// given directories only, connect to the given sockets only, and run no programs. It can read
// files of the system, such as the configuration of the resolver.
func Client(dirs, sockets []string) *Report {
	r := new(Report)
	abi, err := ll.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		return r // not supported by the kernel
	}
	rules := []landlock.Rule{landlock.PathAccess(readFiles|ll.AccessFSReadDir, "/")}
	for _, dir := range dirs {
		rules = append(rules, landlock.PathAccess(ownDir, resolve(dir)).IgnoreIfMissing())
	}
	for _, socket := range sockets {
		if abi >= resolveUnix {
			rules = append(rules, landlock.PathAccess(rights[useSocket], filepath.Dir(resolve(socket))).IgnoreIfMissing())
		}
	}
	if err := landlock.V11.BestEffort().RestrictPaths(rules...); err != nil {
		r.problem(err)
		return r
	}
	r.By, r.Exec = append(r.By, fmt.Sprintf("landlock-%d", abi)), true
	return r
}
