package sandbox

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// Access rights for directories. Old kernels support only some of them. No rights are granted for
// running programs, or for moving files between directories. The first kernels with Landlock always
// deny such moves.
const (
	readFiles landlock.AccessFSSet = ll.AccessFSReadFile
	// In the state directory, the filter creates the control socket and the sessions
	// directory.
	ownDir = readFiles | ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSMakeReg | ll.AccessFSRemoveFile | ll.AccessFSResolveUnix |
		ll.AccessFSReadDir | ll.AccessFSMakeDir | ll.AccessFSMakeSock
)

var rights = map[use]landlock.AccessFSSet{
	useRead: readFiles, useState: ownDir, useSocket: ll.AccessFSResolveUnix,
	useChange: ownDir, useAll: readFiles | ll.AccessFSReadDir,
	useRun: ll.AccessFSMakeSock | ll.AccessFSRemoveFile | ll.AccessFSResolveUnix,
}

// resolveUnix is the first Landlock version that restricts connections to sockets.
const resolveUnix = 9

// directories grants access to directories instead of files. A Landlock rule applies to an inode,
// so a rule for a file would be lost when an editor replaces the file.
func (p Paths) directories() []grant {
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
	for _, socket := range p.Connect {
		add(useSocket, filepath.Dir(resolve(socket)))
	}
	for _, dir := range p.Change {
		add(useChange, resolve(dir))
	}
	if p.ReadAll {
		add(useAll, "/")
	}
	return all
}

// Sockets that are already open remain usable.
func (r *Report) enter(p *Plan) {
	r.landlock(p)
	families := []uint32{unix.AF_UNIX}
	if p.ask != 0 {
		families = append(families, unix.AF_INET, unix.AF_INET6)
	}
	r.seccomp(families)
	if p.ask != 0 {
		r.TCP, r.Net = false, false
	}
}

func (r *Report) landlock(p *Plan) {
	abi, err := ll.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		return // the kernel does not support Landlock
	}
	var rules []landlock.Rule
	for _, g := range p.grants {
		if g.use == useSocket && abi < resolveUnix {
			continue
		}
		rules = append(rules, landlock.PathAccess(rights[g.use], g.path).IgnoreIfMissing())
		r.granted = append(r.granted, g.path)
	}
	config := landlock.V11.BestEffort()
	switch port := uint16(p.ask); p.ask {
	case AnyPort:
		err = errors.Join(config.RestrictPaths(rules...), config.RestrictScoped())
	case 0:
		err = config.Restrict(rules...)
	default: // UDP sockets get a port from the kernel
		err = config.Restrict(append(rules, landlock.ConnectTCP(port), landlock.ConnectSendUDP(port), landlock.BindUDP(0))...)
	}
	if err != nil {
		r.problem(err)
		return
	}
	r.By = append(r.By, fmt.Sprintf("landlock-%d", abi))
	r.Files, r.Exec, r.TCP = !p.readAll, true, abi >= 4
	errata, _ := ll.LandlockGetErrata()
	r.IPC = abi >= 6 && errata&2 != 0 // on earlier kernels, this right blocks signals between threads
}

// seccomp restricts system calls that do not concern files. Landlock alone does not close the
// network: it has restricted TCP since Linux 6.7, but not Multipath TCP and most other protocols. A
// program can select Multipath TCP with an argument of socket(2).
func (r *Report) seccomp(families []uint32) {
	arch, ok := auditArch[runtime.GOARCH]
	if !ok {
		return
	}
	program := denials(arch, families)
	// The TSYNC flag applies the filter to all threads.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		r.problem(fmt.Errorf("set no_new_privs: %w", err))
		return
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	// Without the SPEC_ALLOW flag, kernels before 5.16 slow down the whole process.
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, uintptr(unsafe.Pointer(&prog)))
	switch {
	case errno == unix.ENOSYS, errno == unix.EINVAL: // the kernel does not support seccomp filters
	case errno != 0:
		r.problem(fmt.Errorf("set a seccomp filter: %w", errno))
	case thread != 0:
		r.problem(fmt.Errorf("set a seccomp filter: thread %d has a different filter", thread))
	default:
		r.By = append(r.By, "seccomp")
		r.Exec, r.TCP, r.Net = true, true, true
	}
}

// auditArch lists the architectures that denials supports. All these architectures are
// 64-bit and little-endian, and have socket(2) as a separate system call.
var auditArch = map[string]uint32{
	"amd64":   unix.AUDIT_ARCH_X86_64,
	"arm64":   unix.AUDIT_ARCH_AARCH64,
	"riscv64": unix.AUDIT_ARCH_RISCV64,
}

// denials returns the program that seccomp(2) runs before each system call. It denies certain
// calls, and sockets of families that are not listed. It allows all other calls, because new
// versions of the Go runtime may use other calls.
func denials(arch uint32, families []uint32) []unix.SockFilter {
	const (
		number, audit, firstArg = 0, 4, 16 // offsets in struct seccomp_data

		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		least = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		end   = unix.BPF_RET | unix.BPF_K

		x32 = 0x40000000 // set in the alternative system call numbers of amd64
	)
	// Jumps are relative to the next instruction. The last instruction allows the call. The
	// instruction before it denies the call.
	n := uint8(len(families))
	program := []unix.SockFilter{
		{Code: load, K: audit},
		{Code: equal, K: arch, Jf: n + 7}, // deny calls made for a different architecture
		{Code: load, K: number},
		{Code: least, K: x32, Jt: n + 5},
		{Code: equal, K: unix.SYS_EXECVE, Jt: n + 4},
		{Code: equal, K: unix.SYS_EXECVEAT, Jt: n + 3},
		{Code: equal, K: unix.SYS_IO_URING_SETUP, Jt: n + 2}, // can create sockets without socket(2)
		{Code: equal, K: unix.SYS_SOCKET, Jf: n + 2},         // allow all other calls
		{Code: load, K: firstArg},
	}
	for i, family := range families {
		program = append(program, unix.SockFilter{Code: equal, K: family, Jt: n - uint8(i)})
	}
	return append(program,
		unix.SockFilter{Code: end, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EACCES)},
		unix.SockFilter{Code: end, K: unix.SECCOMP_RET_ALLOW})
}
