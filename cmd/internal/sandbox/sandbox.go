// Package sandbox takes from the process what the filter never needs, so that
// an error in it is worth little to a stranger: it cannot run programs, speak
// to the network, or touch other files than its own. What the operating system
// cannot take is left: a filter without a sandbox is better than no mail server.
package sandbox

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Paths are what the process goes on to use.
type Paths struct {
	// State is a directory of which everything is its own.
	State string
	// Events is a file, FIFO or socket, or empty. The file is renamed when it
	// is full, and each may be made anew by somebody else.
	Events string
	// Read are files that are read, also when somebody has replaced them.
	Read []string
	// Look are files that may appear, which is seen but not read.
	Look []string
}

// A Report tells what was taken.
type Report struct {
	By    []string // what of the operating system was used, nothing if nothing was
	Files bool     // other files cannot be opened
	Exec  bool     // programs cannot be run
	Net   bool     // only Unix sockets can be made
	TCP   bool     // TCP cannot be used, which is a part of Net
	IPC   bool     // processes outside cannot be signalled, nor abstract sockets of theirs be reached
	// Problems tell what should have worked, and did not.
	Problems []error

	granted []string // files, and directories with all that is below
}

// A Plan is what Enter leaves to the process.
type Plan struct{ grants []grant }

// grant is a file, or a directory with all that is below it.
type grant struct {
	use  use
	path string
}

// use is what is done with something that is granted.
type use uint8

const (
	useRead   use = iota // a file
	useEvents            // the events' file, FIFO or socket
	useState             // the state directory
)

// Prepare looks at the directories, and makes that of the state if it can: what
// does not exist cannot be granted. It waits for the disk.
func Prepare(p Paths) *Plan { return &Plan{p.grants()} }

// Enter takes everything but the plan from all threads of the process, as far as
// the operating system can. No thread may be waiting for a disk: there are systems
// where each thread has to do it itself, and the others stand still meanwhile.
func (p *Plan) Enter() *Report {
	r := new(Report)
	r.enter(p.grants)
	return r
}

// Attrs are r for a line of the log.
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

// Covers tells whether file, wherever it leads, can be read. One that cannot
// was named after the sandbox was closed.
func (r *Report) Covers(file string) bool {
	if r == nil || !r.Files {
		return true
	}
	return slices.ContainsFunc(r.granted, func(g string) bool { return within(g, file) }) &&
		slices.ContainsFunc(r.granted, func(g string) bool { return within(g, resolve(file)) })
}

func (r *Report) problem(err error) { r.Problems = append(r.Problems, err) }

// within tells whether file is dir or below it.
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

// resolve is where file leads; what does not exist yet leads to itself.
func resolve(file string) string {
	if real, err := filepath.EvalSymlinks(file); err == nil {
		return real
	}
	return file
}

// state returns the directory to grant for the state: itself, or as long as it
// neither exists nor can be made, the one in which it is to appear. That is not
// done for the root directory: there would be nothing left to take.
func (p Paths) state() string {
	_ = os.Mkdir(p.State, 0o750) // the store tells what is wrong with it
	if parent := filepath.Dir(absolute(p.State)); !isDir(p.State) && parent != "/" {
		return parent
	}
	return p.State
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
