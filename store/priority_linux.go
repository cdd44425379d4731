package store

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// lowPriority is the nice value of the sealing thread. A higher value could delay the
// filter's answers on a busy machine, because the garbage collector waits for this
// thread.
const lowPriority = 10

// runWithLowPriority locks the calling goroutine to a thread with a low priority, so
// that the filter's answers do not wait for a processor. On Linux, each thread has a
// separate priority. The thread ends with the goroutine, because it is never unlocked.
func runWithLowPriority() {
	runtime.LockOSThread()
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, lowPriority) // after an error, the thread keeps the normal priority
}
