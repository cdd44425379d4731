// Package sandbox drops privileges that the filter or a companion does not need. A
// sandbox limits the effect of vulnerabilities. In the sandbox, the process cannot run
// programs, use the network, or access files of other programs. Restrictions that the
// operating system does not support are omitted, because a filter without a sandbox is
// better than no mail server.
package sandbox

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Paths contains the files that the process can access in the sandbox.
type Paths struct {
	// State is the state directory, or empty if the process does not need it.
	State string
	// Read contains files that the filter reads. If a file is replaced, the filter can
	// also read the replacement.
	Read []string
	// Look contains files whose creation the filter must detect, but that the filter does
	// not read.
	Look []string
	// Log is the socket of syslogd(8), or empty if the process does not need it.
	Log string
	// Run is the directory of the companions' socket, or empty without companions.
	Run string
	// Connect is the socket of another process, or empty if the process does not need
	// one.
	Connect string
	// Serve is set if the process answers clients on Internet sockets that it opened
	// before Enter.
	Serve bool
}

// A Report describes the active restrictions.
type Report struct {
	By    []string // mechanisms of the operating system; empty for none
	Files bool     // other files are inaccessible
	Exec  bool     // programs cannot be run
	Net   bool     // only Unix sockets can be created
	TCP   bool     // TCP is unavailable; may be true even if Net is false
	IPC   bool     // other processes cannot be signalled, or reached by abstract sockets
	// Problems contains the errors of mechanisms that the operating system supports.
	Problems []error

	granted []string // accessible files, and directories with their contents
}

// A Plan contains the files that are accessible after Enter.
type Plan struct {
	grants []grant
	serve  bool
}

// A grant is an accessible file, or a directory with its contents.
type grant struct {
	use  use
	path string
}

// use is the purpose of a grant.
type use uint8

const (
	useRead   use = iota // a file
	useState             // the state directory
	useSocket            // a socket of another process, such as syslogd
	useRun               // the directory of a socket that the filter creates
)

// Prepare resolves the paths. Prepare creates the state directory if possible, because
// only an existing directory can be granted. Prepare may wait for the disk.
func Prepare(p Paths) *Plan { return &Plan{p.grants(), p.Serve} }

// Enter restricts all threads of the process to the plan, as far as the operating system
// supports this. No thread may wait for a disk during the call, because on some systems
// all threads must enter together.
func (p *Plan) Enter() *Report {
	r := new(Report)
	r.enter(p)
	return r
}

// Attrs returns the attributes for a log line.
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

// Covers reports whether the sandbox allows reading file, after symbolic links are
// resolved. Covers returns false for a file that was configured after Enter.
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

// resolve returns the target of file, or file if it does not exist.
func resolve(file string) string {
	if real, err := filepath.EvalSymlinks(file); err == nil {
		return real
	}
	return file
}

// state returns the directory that is granted for the state. If State does not exist and
// cannot be created, the result is its parent. The root directory is never granted,
// because it contains all files.
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
