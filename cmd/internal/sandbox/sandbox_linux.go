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

// These are rights below a directory. Old kernels support only some of the rights. No
// right allows the execution of programs. Moving files between directories is also
// denied, because the first kernels with Landlock cannot grant it.
const (
	readFiles landlock.AccessFSSet = ll.AccessFSReadFile
	// In the state directory, the filter creates the control socket and the directory of
	// sessions.
	ownDir = readFiles | ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSMakeReg | ll.AccessFSRemoveFile | ll.AccessFSResolveUnix |
		ll.AccessFSReadDir | ll.AccessFSMakeDir | ll.AccessFSMakeSock
)

var rights = map[use]landlock.AccessFSSet{
	useRead: readFiles, useState: ownDir, useSocket: ll.AccessFSResolveUnix,
	useRun: ll.AccessFSMakeSock | ll.AccessFSRemoveFile | ll.AccessFSResolveUnix,
}

// resolveUnix is the first version of Landlock that restricts connections to sockets.
const resolveUnix = 9

// grants returns directories instead of files. A Landlock rule applies to an inode. A
// rule for a file would not apply after an editor has replaced the file.
func (p Paths) grants() []grant {
	var all []grant
	add := func(use use, dir string) {
		if isDir(dir) { // these rights exist only for directories
			all = append(all, grant{use, dir})
		}
	}
	if p.State != "" {
		add(useState, p.state())
	}
	for _, file := range p.Read {
		add(useRead, filepath.Dir(file))
		if real := resolve(file); filepath.Dir(real) != filepath.Dir(file) {
			add(useRead, filepath.Dir(real))
		}
	}
	if p.Run != "" {
		add(useRun, p.Run)
	}
	if p.Log != "" {
		add(useSocket, filepath.Dir(resolve(p.Log)))
	}
	if p.Connect != "" {
		add(useSocket, filepath.Dir(p.Connect))
	}
	return all
}

// Sockets that are already open remain usable.
func (r *Report) enter(p *Plan) {
	r.landlock(p.grants)
	r.seccomp()
}

func (r *Report) landlock(grants []grant) {
	abi, err := ll.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		return // not supported by the kernel
	}
	var rules []landlock.Rule
	for _, g := range grants {
		if g.use == useSocket && abi < resolveUnix {
			continue
		}
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
	r.IPC = abi >= 6 && errata&2 != 0 // only on kernels on which it does not block signals between threads
}

// seccomp restricts system calls other than file access. seccomp is also needed for the
// network. Landlock restricts TCP since Linux 6.7, but not most other protocols. Landlock
// also does not restrict Multipath TCP, which only needs another argument of socket(2).
func (r *Report) seccomp() {
	arch, ok := auditArch[runtime.GOARCH]
	if !ok {
		return
	}
	program := denials(arch)
	// The flag TSYNC applies the filter to all threads.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		r.problem(fmt.Errorf("set no_new_privs: %w", err))
		return
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	// Without the flag SPEC_ALLOW, a kernel before 5.16 slows down the whole process.
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, uintptr(unsafe.Pointer(&prog)))
	switch {
	case errno == unix.ENOSYS, errno == unix.EINVAL: // not supported by the kernel
	case errno != 0:
		r.problem(fmt.Errorf("set a seccomp filter: %w", errno))
	case thread != 0:
		r.problem(fmt.Errorf("set a seccomp filter: thread %d has a different filter", thread))
	default:
		r.By = append(r.By, "seccomp")
		r.Exec, r.TCP, r.Net = true, true, true
	}
}

// auditArch contains the architectures that denials supports. All are 64-bit and
// little-endian, and have a separate system call for socket(2).
var auditArch = map[string]uint32{
	"amd64":   unix.AUDIT_ARCH_X86_64,
	"arm64":   unix.AUDIT_ARCH_AARCH64,
	"riscv64": unix.AUDIT_ARCH_RISCV64,
}

// denials returns the program that seccomp(2) runs before each system call. The program
// denies a list of calls and allows all other calls. An allowlist would break the Go
// runtime, which uses different calls in each version.
func denials(arch uint32) []unix.SockFilter {
	const (
		number, audit, firstArg = 0, 4, 16 // offsets in struct seccomp_data

		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		least = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		end   = unix.BPF_RET | unix.BPF_K

		x32 = 0x40000000 // other numbers for the same calls on amd64
	)
	// Jumps are relative to the next instruction. The last instruction denies.
	return []unix.SockFilter{
		{Code: load, K: audit},
		{Code: equal, K: arch, Jf: 9}, // deny a call of another architecture
		{Code: load, K: number},
		{Code: least, K: x32, Jt: 7},
		{Code: equal, K: unix.SYS_EXECVE, Jt: 6},
		{Code: equal, K: unix.SYS_EXECVEAT, Jt: 5},
		{Code: equal, K: unix.SYS_IO_URING_SETUP, Jt: 4}, // can create sockets without socket(2)
		{Code: equal, K: unix.SYS_SOCKET, Jf: 2},         // allow anything else
		{Code: load, K: firstArg},
		{Code: equal, K: unix.AF_UNIX, Jf: 1}, // deny other families
		{Code: end, K: unix.SECCOMP_RET_ALLOW},
		{Code: end, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EACCES)},
	}
}
