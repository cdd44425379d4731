//go:build linux

package promises

import (
	"debug/elf"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// imports maps each libc function that the programs import on OpenBSD to the promise that the
// function's system calls need. There are no other system calls, because OpenBSD accepts system
// calls only from libc.
var imports = map[string]string{
	"__errno": "stdio", "__thrsleep": "stdio", "__thrwakeup": "stdio", "arc4random_buf": "stdio", "clock_gettime": "stdio",
	"close": "stdio", "dup": "stdio", "dup2": "stdio", "dup3": "stdio", "exit": "stdio", "fchdir": "stdio", "fcntl": "stdio",
	"fstat": "stdio", "fsync": "stdio", "ftruncate": "stdio", "getegid": "stdio", "geteuid": "stdio", "getgid": "stdio",
	"getgroups": "stdio", "getpid": "stdio", "getrlimit": "stdio", "getsockopt": "stdio", "getthrid": "stdio",
	"getuid": "stdio", "ioctl": "stdio", "issetugid": "stdio", "kevent": "stdio", "kill": "stdio", "kqueue": "stdio",
	"lseek": "stdio", "madvise": "stdio", "mmap": "stdio", "msync": "stdio", "munmap": "stdio", "pipe2": "stdio",
	"pledge": "stdio", "pread": "stdio", "pthread_attr_destroy": "stdio", "pthread_attr_getstacksize": "stdio",
	"pthread_attr_init": "stdio", "pthread_attr_setdetachstate": "stdio", "pthread_create": "stdio",
	"pthread_sigmask": "stdio", "pwrite": "stdio", "read": "stdio", "recvfrom": "stdio", "recvmsg": "stdio",
	"sched_yield": "stdio", "sendmsg": "stdio", "sendto": "stdio", "setsockopt": "stdio", "shutdown": "stdio",
	"sigaction": "stdio", "sigaltstack": "stdio", "sysctl": "stdio", "thrkill": "stdio", "umask": "stdio",
	"usleep": "stdio", "wait4": "stdio", "write": "stdio", "writev": "stdio",
	"chdir": "rpath", "faccessat": "rpath", "fstatat": "rpath", "getcwd": "rpath", "getdents": "rpath", "lstat": "rpath",
	"open": "rpath", "openat": "rpath", "readlink": "rpath", "readlinkat": "rpath", "stat": "rpath",
	"link": "cpath", "linkat": "cpath", "mkdir": "cpath", "mkdirat": "cpath", "rename": "cpath", "renameat": "cpath",
	"rmdir": "cpath", "symlinkat": "cpath", "unlink": "cpath", "unlinkat": "cpath",
	"chmod": "fattr", "fchmod": "fattr", "fchmodat": "fattr", "fchown": "fattr", "fchownat": "fattr", "utimensat": "fattr",
	"flock":   "flock",
	"accept4": "unix", "bind": "unix", "connect": "unix", "getpeername": "unix", "getsockname": "unix", "listen": "unix",
	"socket": "unix",
}

// outside lists, by program, the functions that no process calls inside its sandbox, with the
// reasons. TestPromises checks the calls.
var outside = map[string]map[string]string{
	"filter-scanwatch": {
		"execve": "the runtime's package syscall", "setrlimit": "the start of the runtime", "unveil": "before pledge",
		"setuid": "gives up root", "setgid": "gives up root", "setgroups": "gives up root",
		"mlock": "an option of bbolt", "munlock": "an option of bbolt",
		"seteuid": "works as the owner before the sandbox", "setegid": "works as the owner before the sandbox",
	},
	"milter-scanwatch": {
		"lchown": "the milter's socket, before the sandbox",
	},
	"scanwatch": {
		"fork": "commands without a sandbox run programs", "setpgid": "with fork", "setsid": "with fork", "ptrace": "with fork",
		"chroot": "with fork", "setpriority": "reports, without a sandbox",
	},
}

// TestImports checks that the programs import only known functions from OpenBSD's libc.
func TestImports(t *testing.T) {
	dir := t.TempDir()
	have := promised(t)["promises"]
	used := make(map[string]bool)
	for _, program := range slices.Sorted(maps.Keys(outside)) {
		file := filepath.Join(dir, program)
		cmd := exec.Command("go", "build", "-o", file, "../../cmd/"+program)
		cmd.Env = append(os.Environ(), "GOOS=openbsd", "GOARCH=amd64", "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
		f, err := elf.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		symbols, err := f.ImportedSymbols()
		if err != nil || len(symbols) < 50 {
			t.Fatalf("%s imports %d functions, %v", program, len(symbols), err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		for _, s := range symbols {
			used[s.Name] = true
			_, common := outside["filter-scanwatch"][s.Name]
			_, own := outside[program][s.Name]
			if promise := imports[s.Name]; !common && !own && !slices.Contains(have, promise) {
				t.Errorf("%s imports %s, which needs the promise %q", program, s.Name, promise)
			}
			if simple[s.Name] == absent && program != "scanwatch" {
				t.Errorf("%s imports %s, a call that should be absent on OpenBSD", program, s.Name)
			}
		}
	}
	for name := range imports {
		if !used[name] {
			t.Errorf("no program imports %s", name)
		}
	}
	for program, names := range outside {
		for name := range names {
			if !used[name] {
				t.Errorf("%s does not import %s", program, name)
			}
		}
	}
}
