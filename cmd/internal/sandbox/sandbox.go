// Package sandbox drops privileges that the filter or a companion does not need, to limit the
// damage from vulnerabilities. In the sandbox, the process cannot run programs, use the network or
// access other programs' files. If the operating system does not support a restriction, the process
// runs without it, because mail must still be accepted.
package sandbox

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Paths lists the files that the process may access in the sandbox.
type Paths struct {
	// State is the state directory, or empty if the process does not need it.
	State string
	// Read lists the files that the filter reads. If such a file is replaced, the filter can read
	// the new file.
	Read []string
	// Look lists files that the filter does not read. The filter must only notice when they are
	// created.
	Look []string
	// Log is the socket of syslogd(8), or empty if the process does not need it.
	Log string
	// Run is the directory for the companions' socket, or empty if there are no
	// companions.
	Run string
	// Connect lists the sockets of other processes to which the process connects.
	Connect []string
	// Change lists directories in which the process changes files, provided that they exist.
	Change []string
	// ReadAll is set if the process may read all files, such as resolv.conf and the system's
	// certificates.
	ReadAll bool
	// Serve is set if the process answers clients on Internet sockets that it opened
	// before Enter.
	Serve bool
	// AskPort is the port of servers to which the process connects over UDP and TCP; 0 for none, or
	// AnyPort.
	AskPort int
}

// AnyPort is the value of Paths.AskPort that allows all ports.
const AnyPort = -1

// A Report describes the active restrictions.
type Report struct {
	By    []string // mechanisms of the operating system that are in use
	Files bool     // other files are inaccessible
	Exec  bool     // no programs can be run
	Net   bool     // only Unix sockets can be created
	TCP   bool     // TCP is unavailable; may be true even if Net is false
	IPC   bool     // other processes cannot be signalled or reached through abstract sockets
	// Problems lists errors of mechanisms that the operating system should support.
	Problems []error

	granted []string // accessible files and directories; a directory includes its contents
}

// A Plan lists the files that remain accessible after Enter.
type Plan struct {
	grants  []grant
	readAll bool
	serve   bool
	ask     int
}

// A grant is an accessible file or directory. A directory includes its contents.
type grant struct {
	use  use
	path string
}

// A use is the purpose of a grant.
type use uint8

const (
	useRead   use = iota // a file
	useState             // the state directory
	useSocket            // a socket of another process, such as syslogd's
	useRun               // the directory of a socket created by the filter
	useChange            // a directory in which the process changes files
	useAll               // the root directory, for reading only
)

// Prepare resolves the paths. It tries to create the state directory, because access can be granted
// only to an existing directory. Prepare may block on the disk.
func Prepare(p Paths) *Plan { return &Plan{p.grants(), p.ReadAll, p.Serve, p.AskPort} }

// Client restricts a process that sends requests to servers. The process can change files only in
// the given directories, connect only to the given sockets, and run no programs.
func Client(dirs, sockets []string) *Report {
	return Prepare(Paths{Change: dirs, ReadAll: true, Connect: sockets, AskPort: AnyPort}).Enter()
}

// Enter restricts all threads of the process to the plan, as far as the operating system supports
// this. No thread may be waiting for a disk during the call, because on some systems all threads
// must enter the sandbox together.
func (p *Plan) Enter() *Report {
	r := new(Report)
	r.enter(p)
	return r
}

// Attrs returns log attributes that describe the restrictions.
func (r *Report) Attrs() []any {
	word := func(b bool) string {
		if b {
			return "yes"
		}
		return "no"
	}
	by := strings.Join(r.By, ",")
	if by == "" {
		by = "none"
	}
	return []any{
		slog.String("by", by), slog.String("files", word(r.Files)), slog.String("exec", word(r.Exec)),
		slog.String("tcp", word(r.TCP)), slog.String("net", word(r.Net)), slog.String("ipc", word(r.IPC)),
	}
}

// Covers reports whether the sandbox allows reading file, after following symbolic links. It
// returns false for a file that was added to the configuration after Enter.
func (r *Report) Covers(file string) bool {
	if r == nil || !r.Files {
		return true
	}
	return slices.ContainsFunc(r.granted, func(g string) bool { return within(g, file) }) &&
		slices.ContainsFunc(r.granted, func(g string) bool { return within(g, resolve(file)) })
}

func (r *Report) problem(err error) { r.Problems = append(r.Problems, err) }

// within reports whether file is dir or a file below it.
func within(dir, file string) bool {
	rel, err := filepath.Rel(absolute(dir), absolute(file))
	return err == nil && filepath.IsLocal(rel)
}

func absolute(file string) string {
	if abs, err := filepath.Abs(file); err == nil {
		return abs
	}
	return file
}

// resolve returns file with symbolic links resolved. If the file does not exist, resolve returns
// file unchanged.
func resolve(file string) string {
	if real, err := filepath.EvalSymlinks(file); err == nil {
		return real
	}
	return file
}

// state returns the directory that must be accessible for the state: State, or its parent directory
// if State does not exist and cannot be created. The root directory is never granted, because it
// contains all files.
func (p Paths) state() string {
	_ = os.Mkdir(p.State, 0o750) // the store logs the error
	if parent := filepath.Dir(absolute(p.State)); !isDir(p.State) && parent != "/" {
		return parent
	}
	return p.State
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
