package smtpd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// EnvTrace is the name of an environment variable that contains a directory for traces. If it is
// set, the programs of [Bin] run under strace(1), which writes the system calls of each process to
// a file in that directory. See tests/promises.
const EnvTrace = "SCANWATCH_TRACE"

// untraced lists frequent system calls that every process may use. Tracing these would make the
// programs several times slower.
const untraced = "!read,write,futex,epoll_pwait,nanosleep,madvise,mmap,munmap,rt_sigprocmask,rt_sigreturn,sched_yield,tgkill,getpid,gettid,pread64,pwrite64"

// trace replaces each program in the directory with a script that runs the program under strace.
// The program keeps its process ID and receives its signals.
func trace(programs, traces string) error {
	entries, err := os.ReadDir(programs)
	if err != nil {
		return err
	}
	for _, e := range entries {
		script := filepath.Join(programs, e.Name())
		program := filepath.Join(programs, "traced", e.Name())
		text := fmt.Sprintf("#!/bin/sh\nexec strace -D -f -qq -y -e trace='%s' -e signal=none -o '%s'/$$.%s '%s' \"$@\"\n",
			untraced, traces, e.Name(), program)
		err := errors.Join(os.MkdirAll(filepath.Dir(program), 0o755), os.Rename(script, program), os.WriteFile(script, []byte(text), 0o755))
		if err != nil {
			return err
		}
	}
	return nil
}
