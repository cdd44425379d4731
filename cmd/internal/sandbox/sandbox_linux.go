package sandbox

import (
	"fmt"
	"path/filepath"
	"runtime"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// What may be done below a directory; to run a program is nowhere among it. A
// right that the kernel does not know yet is left out. Nothing is moved from one
// directory to another: that right cannot be had from the first kernels with
// Landlock at all.
const (
	readFiles landlock.AccessFSSet = ll.AccessFSReadFile
	// A full file is renamed over the one before. A socket is asked for its
	// connection.
	ownFile = readFiles | ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSMakeReg | ll.AccessFSRemoveFile | ll.AccessFSResolveUnix
	// The control socket is made here, and the directory of sessions.
	ownDir = ownFile | ll.AccessFSReadDir | ll.AccessFSMakeDir | ll.AccessFSMakeSock
)

var rights = map[use]landlock.AccessFSSet{useRead: readFiles, useEvents: ownFile, useState: ownDir}

// grants are directories and not files, because a rule holds for what it was made
// for: it would not know the file that an editor puts in the place of another.
func (p Paths) grants() []grant {
	var all []grant
	add := func(use use, dir string) {
		if isDir(dir) { // what is not there, or a file, cannot have these rights
			all = append(all, grant{use, dir})
		}
	}
	add(useState, p.state())
	if p.Events != "" {
		add(useEvents, filepath.Dir(p.Events))
	}
	for _, file := range p.Read {
		add(useRead, filepath.Dir(file))
		if real := resolve(file); filepath.Dir(real) != filepath.Dir(file) {
			add(useRead, filepath.Dir(real))
		}
	}
	return all
}

func (r *Report) enter(grants []grant) {
	r.landlock(grants)
	r.seccomp()
}

func (r *Report) landlock(grants []grant) {
	abi, err := ll.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		return // the kernel has none
	}
	var rules []landlock.Rule
	for _, g := range grants {
		rules = append(rules, landlock.PathAccess(rights[g.use], g.path).IgnoreIfMissing())
		r.granted = append(r.granted, g.path)
	}
	if err := landlock.V11.BestEffort().Restrict(rules...); err != nil {
		r.problem(err)
		return
	}
	r.By = append(r.By, fmt.Sprintf("landlock-%d", abi))
	r.Files, r.Exec, r.TCP = true, true, abi >= 4
	errata, _ := ll.LandlockGetErrata()
	r.IPC = abi >= 6 && errata&2 != 0 // where it would stop a thread's signals to another, it is not used
}

// seccomp takes what is no matter of files. Landlock knows TCP only since Linux
// 6.7, and neither Multipath TCP, which needs but another number to socket(2), nor
// most of the other protocols.
func (r *Report) seccomp() {
	arch, ok := auditArch[runtime.GOARCH]
	if !ok {
		return
	}
	program := denials(arch)
	// Threads are set by the flag TSYNC, this one included.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		r.problem(fmt.Errorf("set no_new_privs: %w", err))
		return
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	// Without SPEC_ALLOW kernels before 5.16 slow the whole process down.
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, uintptr(unsafe.Pointer(&prog)))
	switch {
	case errno == unix.ENOSYS, errno == unix.EINVAL: // the kernel has none
	case errno != 0:
		r.problem(fmt.Errorf("set a seccomp filter: %w", errno))
	case thread != 0:
		r.problem(fmt.Errorf("set a seccomp filter: thread %d has another one", thread))
	default:
		r.By = append(r.By, "seccomp")
		r.Exec, r.TCP, r.Net = true, true, true
	}
}

// auditArch has the architectures whose system calls are known to be as below:
// 64 bits, the low half of an argument first, and socket(2) a call of its own.
var auditArch = map[string]uint32{
	"amd64":   unix.AUDIT_ARCH_X86_64,
	"arm64":   unix.AUDIT_ARCH_AARCH64,
	"riscv64": unix.AUDIT_ARCH_RISCV64,
}

// denials is the program that seccomp(2) runs before each system call. It fails
// what it knows and lets everything else pass: what Go's runtime calls changes
// with its version, and nothing of it may fail.
func denials(arch uint32) []unix.SockFilter {
	const (
		number, audit, firstArg = 0, 4, 16 // in struct seccomp_data

		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		least = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		end   = unix.BPF_RET | unix.BPF_K

		x32 = 0x40000000 // other numbers for the same calls, on amd64
	)
	// Jumps count the instructions between; deny is the last one.
	return []unix.SockFilter{
		{Code: load, K: audit},
		{Code: equal, K: arch, Jf: 9}, // a call by the rules of another architecture: deny
		{Code: load, K: number},
		{Code: least, K: x32, Jt: 7},
		{Code: equal, K: unix.SYS_EXECVE, Jt: 6},
		{Code: equal, K: unix.SYS_EXECVEAT, Jt: 5},
		{Code: equal, K: unix.SYS_IO_URING_SETUP, Jt: 4}, // makes sockets unseen
		{Code: equal, K: unix.SYS_SOCKET, Jf: 2},         // anything else: allow
		{Code: load, K: firstArg},
		{Code: equal, K: unix.AF_UNIX, Jf: 1}, // another family: deny
		{Code: end, K: unix.SECCOMP_RET_ALLOW},
		{Code: end, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EACCES)},
	}
}
