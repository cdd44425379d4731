//go:build linux

package promises

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A call is a system call in a strace(1) trace.
type call struct {
	name, args, result string
}

var (
	complete   = regexp.MustCompile(`^(\d+) +(\w+)\((.*)\) += (.*)$`)
	unfinished = regexp.MustCompile(`^(\d+) +(\w+)\((.*) <unfinished \.\.\.>(?:\) += \?)?$`)
	resumed    = regexp.MustCompile(`^(\d+) +<\.\.\. \w+ resumed>(.*)\) += (.*)$`)
	quoted     = regexp.MustCompile(`"((?:[^"\\]|\\.)*)"`)
)

// parse returns the calls in a trace. The result of a call is empty if there is none, as for exit,
// or if the end of the process interrupted the call.
func parse(trace string) []call {
	var calls []call
	open := make(map[string]int) // indexes by thread
	for line := range strings.Lines(trace) {
		line = strings.TrimSuffix(line, "\n")
		if m := unfinished.FindStringSubmatch(line); m != nil {
			open[m[1]] = len(calls)
			calls = append(calls, call{m[2], m[3], ""})
		} else if m := complete.FindStringSubmatch(line); m != nil {
			calls = append(calls, call{m[2], m[3], m[4]})
		} else if m := resumed.FindStringSubmatch(line); m != nil {
			if i, ok := open[m[1]]; ok {
				calls[i].args += m[2]
				calls[i].result = m[3]
			}
		}
	}
	return calls
}

// strings returns the text arguments of a call.
func (c call) strings() []string {
	var all []string
	for _, m := range quoted.FindAllStringSubmatch(c.args, -1) {
		s, err := strconv.Unquote(m[0])
		if err != nil { // strace writes octal escapes with one digit
			s = m[1]
		}
		all = append(all, s)
	}
	return all
}

// arg returns argument number i. This argument must precede the first text or structure.
func (c call) arg(i int) string {
	args := strings.Split(c.args, ", ")
	if i >= len(args) {
		return ""
	}
	return strings.TrimSpace(args[i])
}

// absent means that the programs do not make this call on OpenBSD.
const absent = "absent"

// simple maps each Linux call to the promise that the corresponding OpenBSD call needs, according
// to pledge(2) and kern_pledge.c. If one of several promises is enough, the entry lists them all.
// Calls that tests/internal/smtpd does not trace need only stdio.
var simple = map[string]string{
	"clone":             "stdio", // a thread: __tfork
	"close":             "stdio",
	"dup":               "stdio",
	"dup3":              "stdio",
	"epoll_create1":     "stdio", // kqueue
	"epoll_ctl":         "stdio", // kevent
	"eventfd2":          "stdio", // kevent
	"exit":              "stdio",
	"exit_group":        "stdio",
	"fdatasync":         "stdio", // fsync
	"fstat":             "stdio",
	"fsync":             "stdio",
	"ftruncate":         "stdio",
	"getegid":           "stdio",
	"geteuid":           "stdio",
	"getgid":            "stdio",
	"getrandom":         "stdio", // arc4random_buf: getentropy
	"getrusage":         "stdio",
	"getsockopt":        "stdio",
	"getuid":            "stdio",
	"lseek":             "stdio",
	"mincore":           "stdio", // made by the Go runtime; mmap on OpenBSD
	"mprotect":          "stdio",
	"pipe2":             "stdio",
	"prlimit64":         "stdio", // getrlimit; setrlimit only at the start
	"recvfrom":          "stdio",
	"recvmsg":           "stdio",
	"restart_syscall":   "stdio", // continues an interrupted call
	"rt_sigaction":      "stdio",
	"rt_sigtimedwait":   "stdio",
	"sendmsg":           "stdio",
	"sendto":            "stdio",
	"shutdown":          "stdio",
	"sigaltstack":       "stdio",
	"umask":             "stdio",
	"writev":            "stdio",
	"faccessat":         "rpath",
	"faccessat2":        "rpath",
	"fstatfs":           "rpath",
	"getcwd":            "rpath",
	"getdents64":        "rpath",
	"newfstatat":        "rpath",
	"readlinkat":        "rpath",
	"statfs":            "rpath",
	"linkat":            "cpath",
	"mkdirat":           "cpath",
	"renameat":          "cpath",
	"renameat2":         "cpath",
	"symlinkat":         "cpath",
	"unlinkat":          "cpath",
	"fchmod":            "fattr",
	"fchmodat":          "fattr",
	"fchown":            "fattr", // to the process's own user and groups; others need chown
	"fchownat":          "fattr",
	"utimensat":         "fattr",
	"flock":             "flock",
	"accept4":           "unix inet",
	"bind":              "unix inet",
	"connect":           "unix inet",
	"getpeername":       "unix inet",
	"getsockname":       "unix inet",
	"listen":            "unix inet",
	"sched_getaffinity": absent, // made by the Go runtime; sysctl on OpenBSD
	"seccomp":           absent, // made by another thread while the sandbox starts
	"prctl":             absent,
	"setpriority":       absent, // store/priority_linux.go
	"timer_create":      absent, // made by the Go runtime's profiler
	"timer_settime":     absent,
	"timer_delete":      absent,
}

// openFlags maps flags of openat to promises.
var openFlags = []struct{ flag, promise string }{
	{"O_CREAT", "cpath"}, {"O_WRONLY", "wpath"}, {"O_RDWR", "wpath"}, {"O_TRUNC", "wpath"}, {"O_RDONLY", "rpath"}, {"O_RDWR", "rpath"},
}

// families maps address families to promises.
var families = map[string]string{"AF_UNIX": "unix", "AF_INET": "inet", "AF_INET6": "inet"}

// sockopts maps options of setsockopt to promises, like pledge_sockopt in
// kern_pledge.c.
var sockopts = map[string]string{
	"SOL_SOCKET SO_RCVBUF": "stdio", "SOL_SOCKET SO_SNDBUF": "unix inet", "SOL_SOCKET SO_REUSEADDR": "unix inet",
	"SOL_SOCKET SO_BROADCAST": "unix inet", "SOL_SOCKET SO_KEEPALIVE": "unix inet",
	"SOL_TCP TCP_NODELAY": "inet", "SOL_IPV6 IPV6_V6ONLY": "inet",
	// OpenBSD has no such options.
	"SOL_TCP TCP_KEEPIDLE": absent, "SOL_TCP TCP_KEEPINTVL": absent, "SOL_TCP TCP_KEEPCNT": absent,
}

// promises returns the promises that a call needs. Each element is a list of promises, and one of
// them is enough. ok is false for an unknown call.
func (c call) promises() (needs []string, ok bool) {
	need := ""
	switch c.name {
	case "openat":
		flags := strings.Split(c.arg(2), "|")
		for _, f := range openFlags {
			for _, flag := range flags {
				if flag == f.flag {
					needs = append(needs, f.promise)
				}
			}
		}
		return needs, len(needs) > 0
	case "socket":
		need = families[c.arg(0)]
	case "setsockopt":
		need = sockopts[c.arg(1)+" "+c.arg(2)]
	case "fcntl":
		switch command := c.arg(1); command {
		case "F_GETFL", "F_SETFL", "F_GETFD", "F_SETFD", "F_DUPFD_CLOEXEC":
			need = "stdio"
		case "F_SETLK", "F_SETLKW", "F_GETLK", "F_OFD_SETLK":
			need = "flock"
		}
	case "clone":
		if strings.Contains(c.args, "CLONE_THREAD") {
			need = "stdio"
		}
	default:
		need = simple[c.name]
	}
	if need == absent {
		return nil, true
	}
	return []string{need}, need != ""
}

// access maps calls with file names to the unveil(2) permission that each of these names needs.
var access = map[string]string{
	"faccessat": "r", "faccessat2": "r", "newfstatat": "r", "readlinkat": "r", "statfs": "r",
	"linkat": "rc", "mkdirat": "c", "renameat": "cc", "renameat2": "cc", "unlinkat": "c", "symlinkat": "-c",
	"fchmodat": "w", "fchownat": "w", "utimensat": "w",
}

// permissions returns the permissions that an openat call needs.
func (c call) permissions() string {
	var need string
	for _, flag := range strings.Split(c.arg(2), "|") {
		switch flag {
		case "O_RDONLY":
			need += "r"
		case "O_WRONLY":
			need += "w"
		case "O_RDWR":
			need += "rw"
		case "O_CREAT":
			need += "c"
		}
	}
	return need
}

// TestParse checks calls that strace prints in two parts, and calls that the end of the process
// interrupted. strace aligns the results with spaces.
func TestParse(t *testing.T) {
	got := parse(`7 fcntl(12</x>, F_GETFL <unfinished ...>)   = ?
8 fcntl(12</x>, F_GETFL <unfinished ...>) = ?
7 read(3, <unfinished ...>
8 close(3)      = 0
7 <... read resumed>"a", 1) = 1
`)
	want := []call{{"fcntl", "12</x>, F_GETFL", ""}, {"fcntl", "12</x>, F_GETFL", ""}, {"read", `3,"a", 1`, "1"}, {"close", "3", "0"}}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
