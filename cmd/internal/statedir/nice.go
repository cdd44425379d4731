package statedir

import (
	"os"
	"strconv"
	"syscall"
)

// niceness is the nice value for commands that read records.
const niceness = 10

// lowerPriority lowers the priority of the process below that of the mail server. On
// Linux, each thread has its own priority, which new threads inherit. Errors are ignored.
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
