package statedir

import (
	"os"
	"strconv"
	"syscall"
)

// niceness is the priority of commands that read the records.
const niceness = 10

// lowerPriority lowers the priority of this process below the priority of the mail
// server. On Linux each thread has its own priority, and new threads inherit it. Errors
// are ignored.
func lowerPriority() {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		_ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, niceness)
		return
	}
	for _, thread := range threads {
		if id, err := strconv.Atoi(thread.Name()); err == nil {
			_ = syscall.Setpriority(syscall.PRIO_PROCESS, id, niceness)
		}
	}
}
