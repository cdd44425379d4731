package firewall

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"scanwatch/internal/text"
	"scanwatch/rules"
)

// A target is a firewall or file. Its functions are called from a single goroutine. A
// function may be nil if the target does not need it.
type target struct {
	// list returns the entries and their remaining times.
	list func(context.Context) (map[netip.Prefix]time.Duration, error)
	// change removes and adds entries. If change fails, the target's entries are unknown.
	change func(ctx context.Context, remove []netip.Prefix, add []entry) error
	// replace replaces all entries. Targets without list and change need it.
	replace func(ctx context.Context, all []entry) error
	// preview returns the lines that replace would remove and add.
	preview func(all []entry) (remove, add []string, err error)
	// intact reports whether no other program has removed entries since the last call. least
	// returns the minimum number of entries that the target should have.
	intact func(ctx context.Context, least func() int) (bool, error)

	ends     bool          // entries expire
	longest  time.Duration // maximum time until an entry expires; 0 for no limit
	disjoint bool          // networks must not be nested
	reasons  bool          // the target shows the reason for each entry
	pause    time.Duration // minimum time between changes
	retry    time.Duration // maximum time between attempts after an error
}

// forever is the time left for an entry that never expires.
const forever = time.Duration(1<<63 - 1)

// An entry is an address or network to block.
type entry struct {
	prefix  netip.Prefix
	left    time.Duration
	renewed bool   // the entry exists with a different end time
	reason  string // set only if the target shows it
}

// openers maps each kind of target, as named in the configuration, to the function that
// opens it.
var openers = map[string]func(*rules.Companion) (*target, error){
	"nftables": openNFTables,
	"ipset":    openIPSet,
	"pf":       openPF,
	"file":     openFile,
}

// A set is one of a firewall's sets.
type set struct {
	name string
	v6   bool
	nets bool // holds networks rather than hosts
}

// setsOf returns the sets whose names start with prefix.
func setsOf(prefix string) []set {
	return []set{{prefix + "4", false, false}, {prefix + "4net", false, true}, {prefix + "6", true, false}, {prefix + "6net", true, true}}
}

// takes reports whether p belongs in s.
func (s *set) takes(p netip.Prefix) bool {
	return p.Addr().Is6() == s.v6 && p.IsSingleIP() != s.nets
}

// plainName reports whether s is valid as the name of a set or table: at most the given
// number of letters, digits, underscores, hyphens and dots.
func plainName(s string, most int) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."
	return s != "" && s[0] != '-' && len(s) <= most && strings.Trim(s, letters) == ""
}

// Limits on programs.
const (
	maxRun    = 30 * time.Second
	maxOutput = 128 << 20
	maxQuoted = 200
)

// systemPath is the search path if PATH is not set.
const systemPath = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"

// program returns the path of a program. Relative names and search directories are
// rejected.
func program(name string) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	if strings.Contains(name, "/") {
		return "", fmt.Errorf("program %s: write its absolute path", name)
	}
	for _, dir := range filepath.SplitList(cmp.Or(os.Getenv("PATH"), systemPath)) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); filepath.IsAbs(dir) && err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("program %s: not found in PATH", name)
}

// run runs a program without a shell and returns its output.
func run(ctx context.Context, input io.Reader, words ...string) ([]byte, error) {
	path, err := program(words[0])
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, maxRun)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, words[1:]...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=" + cmp.Or(os.Getenv("PATH"), systemPath), "LC_ALL=C"}
	cmd.WaitDelay = time.Second
	var out, problem limited
	out.most, problem.most = maxOutput, maxQuoted
	cmd.Stdin, cmd.Stdout, cmd.Stderr = input, &out, &problem
	err = cmd.Run()
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("timeout after %s", text.Duration(maxRun))
	case err == nil && out.over:
		err = errors.New("too much output")
	}
	if err != nil {
		return nil, &runError{strings.Join(words, " "), text.ASCII(strings.Join(strings.Fields(problem.String()), " "), maxQuoted), err}
	}
	return out.Bytes(), nil
}

// A runError reports that a program failed.
type runError struct {
	command, output string
	err             error
}

func (e *runError) Error() string {
	if e.output == "" {
		return fmt.Sprintf("run %s: %v", e.command, e.err)
	}
	return fmt.Sprintf("run %s: %v: %q", e.command, e.err, e.output)
}

func (e *runError) Unwrap() error { return e.err }

// says reports whether err comes from a program that failed and whose output contains the string
// words.
func says(err error, words string) bool {
	var failed *runError
	return errors.As(err, &failed) && strings.Contains(failed.output, words)
}

// A limited buffer keeps only the first bytes.
type limited struct {
	bytes.Buffer
	most int
	over bool
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.most-l.Len())
	l.over = l.over || n < len(p)
	l.Buffer.Write(p[:n])
	return len(p), nil
}
