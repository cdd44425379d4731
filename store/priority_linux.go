package store

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// lowPriority is the nice value of the thread that seals. A higher value could delay
// answers on a busy machine, because the garbage collector also waits for this thread.
const lowPriority = 10

// runWithLowPriority locks the calling goroutine to a thread with a low priority,
// so that answers do not wait for a processor. The thread ends with the goroutine, because
// the goroutine does not unlock it. On Linux each thread has its own priority.
func runWithLowPriority() {
	runtime.LockOSThread()
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, lowPriority) // after an error, it has the normal priority
}
