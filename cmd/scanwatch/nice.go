package main

import (
	"os"
	"strconv"
	"syscall"
)

// niceness is that of verbs that go through the history.
const niceness = 10

// stepBack lets the mail server go first, where there is not enough for both.
// Linux has a priority for each thread; the ones to come have that of the
// thread that makes them. It is no fault if it does not work.
func stepBack() {
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
