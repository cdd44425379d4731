package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/user"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"scanwatch/internal/text"
	"scanwatch/rules"
)

// DefaultRunDir is the directory for the companions' socket. Companions run as users that must be
// able to enter this directory, but not the state directory. The operating system's package creates
// the directory, because the filter does not run as root. On OpenBSD, /var/run is unsuitable: it is
// emptied at each boot, and the package's scripts could recreate the directory only after smtpd has
// started.
func DefaultRunDir() string {
	if runtime.GOOS == "linux" {
		return "/run/scanwatch"
	}
	return "/var/db/scanwatch-run"
}

// commandsOf lists the commands that each role may use in addition to note. Root and the
// user that the filter runs as may use all commands.
var commandsOf = map[rules.Role][]string{
	rules.RoleSync:  {"bans"},
	rules.RoleServe: {"bans"},
	// The companion's answers have an effect only if the filter has asked the question.
	rules.RoleLookup: {"questions", "facts"},

	rules.RoleForward: {"watch", "spared"},
	rules.RoleShare:   {"fleet", "rows", "foreign", "hosts", "dropped", "disown", "complete"},
}

// Companions is the set of configured companions and their state. The zero value is an
// empty set.
type Companions struct {
	mu    sync.Mutex
	list  []*companion
	spent map[uint32]*turns // by user
}

type companion struct {
	CompanionStatus
	uid   uint32
	known bool // uid is valid
}

// CompanionStatus describes a companion.
type CompanionStatus struct {
	Name string     `json:"name"`
	Role rules.Role `json:"role"`
	User string     `json:"user"`
	// Problem is the reason why the companion cannot connect.
	Problem string `json:"problem,omitempty"`
	// Seen is the time of the latest command, and Done the time of the latest success.
	Seen    text.Time `json:"seen,omitzero"`
	Done    text.Time `json:"done,omitzero"`
	Entries int       `json:"entries"` // bans that the companion has put into effect
	// Lost is the number of events since the service started that the destination will never
	// receive.
	Lost  uint64 `json:"lost,omitempty"`
	Error string `json:"error,omitempty"`
}

// silent is the time without commands after which a companion is considered stopped. A
// companion sends a command at least every MaxWait.
const silent = 3 * MaxWait

// Running reports whether the companion has sent a command recently.
func (c *CompanionStatus) Running(now time.Time) bool { return now.Sub(c.Seen.Time) < silent }

// ErrStarting is the result that a companion announces until its first success or error.
var ErrStarting = errors.New("starting")

// ErrNoResult is the result that a companion announces if there has been neither a success
// nor an error since its previous note. In that case, the status still shows the time of the
// latest success.
var ErrNoResult = errors.New("no result")

// noResult represents ErrNoResult in the arguments of the note command.
const noResult = "+"

// CompanionProblems returns the companions' problems. Shortly after the filter has
// started, missing companions are not reported, because they need time to connect.
func (s *Status) CompanionProblems(now time.Time) (all []string) {
	early := now.Sub(s.Started.Time) < silent
	for i := range s.Companions {
		switch c := &s.Companions[i]; {
		case c.Problem != "":
			all = append(all, fmt.Sprintf("companion %s: %s", c.Name, c.Problem))
		case early && (c.Seen.IsZero() || c.Error == ErrStarting.Error()):
		case !c.Running(now):
			all = append(all, fmt.Sprintf("companion %s is not running; start its service as the user %s", c.Name, c.User))
		case c.Error != "":
			all = append(all, fmt.Sprintf("companion %s: %s", c.Name, c.Error))
		}
	}
	return all
}

// NewCompanions looks up the users that the companions run as. It must be called before
// the filter enters its sandbox.
func NewCompanions(list []*rules.Companion) *Companions {
	c := DisabledCompanions(list, "")
	for _, one := range c.list {
		uid, err := CompanionUser(one.User, os.Geteuid())
		if err != nil {
			one.Problem = err.Error()
		} else {
			one.uid, one.known = uid, true
		}
	}
	return c
}

// CompanionUser returns the user ID for a companion's user. Root and the user that the
// filter runs as are not allowed, because they may use all commands.
func CompanionUser(name string, filter int) (uint32, error) {
	uid, err := lookupUser(name)
	if err == nil && (uid == 0 || int(uid) == filter) {
		err = fmt.Errorf("user %s may use all commands; give the companion a separate user", name)
	}
	return uid, err
}

// RunDirProblem returns the reason why dir is unsafe for the companions' socket, or "". filter is
// the ID of the user that the filter runs as, or -1 if the user is unknown. state is the state
// directory. If another user can create or replace the socket, that user can make companions unban
// hosts. In a sticky directory, that user could create the socket before the filter starts.
func RunDirProblem(dir, state string, filter int) string {
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return fmt.Sprintf("%v; create it, owned by the filter's user, and restart smtpd; with a milter or a log, set rundir, see Bans in scanwatch-servers(7)", err)
	case !info.IsDir():
		return dir + " is not a directory"
	case info.Mode()&0o022 != 0:
		return fmt.Sprintf("other users can write to %s; run chmod go-w %s and restart smtpd", dir, dir)
	case info.Mode()&0o001 == 0:
		return fmt.Sprintf("the users of companions cannot enter %s; run chmod go+x %s and restart smtpd", dir, dir)
	}
	if s, err := os.Stat(state); err == nil && os.SameFile(info, s) {
		return fmt.Sprintf("%s is the state directory, which companions must not enter; change rundir", dir)
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid != 0 && filter >= 0 && int(s.Uid) != filter {
		if _, err := os.Stat(SocketPath(dir)); err == nil {
			return fmt.Sprintf("%s belongs to user %d and to another front end; set rundir to a separate directory and restart smtpd", dir, s.Uid)
		}
		return fmt.Sprintf("%s belongs to user %d; set rundir to a separate directory if another front end uses it, else run chown %d %s, and restart smtpd", dir, s.Uid, filter, dir)
	}
	return ""
}

// DisabledCompanions returns companions that cannot connect because of the given problem.
func DisabledCompanions(list []*rules.Companion, problem string) *Companions {
	c := new(Companions)
	for _, r := range list {
		c.list = append(c.list, &companion{CompanionStatus: CompanionStatus{Name: r.Name(), Role: r.Role, User: r.User, Problem: problem}})
	}
	return c
}

func lookupUser(name string) (uint32, error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n), nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, fmt.Errorf("user %s of a companion: %w; restart smtpd when the user exists", name, err)
	}
	n, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(n), err
}

// Status returns the status of all companions.
func (c *Companions) Status() (list []CompanionStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, one := range c.list {
		list = append(list, one.CompanionStatus)
	}
	return list
}

// Problems returns the reasons why companions cannot connect.
func (c *Companions) Problems() (list []string) {
	for _, s := range c.Status() {
		if s.Problem != "" {
			list = append(list, s.Problem)
		}
	}
	return list
}

// A peer is a client of the companions' socket.
type peer struct {
	uid   uint32
	all   bool   // may use all commands
	name  string // the companion's name, as announced by the client
	turns *turns // nil without a limit
}

// turns holds the limit on the filter's work on expensive ban lists for the companions of one user.
// The limit is needed because this work slows down mail. Complete lists and lists with networks are
// expensive. A user may spend fullBurst immediately, and in the long run 1/fullShare of the time.
type turns struct {
	mu   sync.Mutex
	free time.Duration // time since started at which the user may again spend all of fullBurst
}

const (
	fullShare = 10
	fullBurst = 2 * time.Second
)

// wait returns the time until the next list is allowed.
func (t *turns) wait(now time.Duration) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return min(t.free-now-fullShare*fullBurst, MaxWait) // companions wait longer than MaxWait
}

// spend records how long a list took to send. At most fullBurst is counted, so that slow
// readers are not penalised.
func (t *turns) spend(now, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.free = max(t.free, now) + fullShare*min(took, fullBurst)
}

// turn waits until p may request the next list. The caller must call done after sending
// the list.
func (p *peer) turn(ctx context.Context) (done func(), err error) {
	if p == nil || p.turns == nil {
		return func() {}, nil
	}
	if wait := p.turns.wait(time.Since(started)); wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	start := time.Since(started)
	return func() {
		now := time.Since(started)
		p.turns.spend(now, now-start)
	}, nil
}

// started is the reference point for durations.
var started = time.Now()

// peerOf identifies the user that a client runs as, or returns an error if the user has
// no role.
func (c *Companions) peerOf(conn net.Conn) (*peer, error) {
	raw, ok := conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	control, err := raw.SyscallConn()
	if err != nil {
		return nil, err
	}
	var uid uint32
	var failed error
	if err := control.Control(func(fd uintptr) { uid, failed = peerUID(int(fd)) }); err != nil || failed != nil {
		return nil, cmp.Or(err, failed)
	}
	p := &peer{uid: uid, all: uid == 0 || int(uid) == os.Geteuid()}
	if !p.all && !slices.ContainsFunc(c.list, func(one *companion) bool { return one.known && one.uid == uid }) {
		return nil, fmt.Errorf("user %d has no role; see companion in scanwatch.conf(5), and restart smtpd after a change", uid)
	}
	if !p.all {
		p.turns = c.turnsOf(uid)
	}
	return p, nil
}

func (c *Companions) turnsOf(uid uint32) *turns {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spent == nil {
		c.spent = map[uint32]*turns{}
	}
	if c.spent[uid] == nil {
		c.spent[uid] = new(turns)
	}
	return c.spent[uid]
}

// most returns the maximum number of connections for a user, who may run several
// companions.
func (c *Companions) most(uid uint32) int {
	n := 0
	for _, one := range c.list {
		if one.known && one.uid == uid {
			n++
		}
	}
	return max(n, 1) * maxOfCompanion
}

// allows reports whether p may use a command.
func (c *Companions) allows(p *peer, command string) bool {
	if p == nil || p.all {
		return true
	}
	return slices.ContainsFunc(c.list, func(one *companion) bool {
		return one.known && one.uid == p.uid && (command == "note" || slices.Contains(commandsOf[one.Role], command))
	})
}

// heard records that a companion is running.
func (c *Companions) heard(p *peer, now time.Time) {
	if p == nil || p.name == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, one := range c.list {
		if one.Name == p.name {
			one.Seen = text.At(now)
		}
	}
}

// maxNote is the maximum length of a companion's error in bytes.
const maxNote = 300

// NoteCommand returns the note command. A companion uses it to announce its name and its latest
// result, which the status shows.
func (c *Companions) NoteCommand() Command {
	return Command{"note", 4, func(_ context.Context, a *Answer, args []string) error {
		name, err := url.QueryUnescape(args[0])
		if err != nil {
			return errors.New("parse name: not URL-escaped")
		}
		entries, err := strconv.ParseUint(args[1], 10, 31)
		if err != nil {
			return fmt.Errorf("parse entries %q: not a number", args[1])
		}
		lost, err := strconv.ParseUint(args[2], 10, 64)
		if err != nil {
			return fmt.Errorf("parse lost events %q: not a number", args[2])
		}
		problem, err := url.QueryUnescape(strings.TrimPrefix(strings.TrimPrefix(args[3], noResult), "-"))
		if err != nil || len(problem) > maxNote {
			return fmt.Errorf("parse error: longer than %d bytes or not URL-escaped", maxNote)
		}
		if err := c.note(a.peer, name, int(entries), lost, problem, args[3] != noResult, time.Now()); err != nil {
			return err
		}
		return a.JSON(struct{}{})
	}}
}

func (c *Companions) note(p *peer, name string, entries int, lost uint64, problem string, result bool, now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.list, func(one *companion) bool {
		return one.Name == name && (p == nil || p.all || one.known && one.uid == p.uid)
	})
	if i < 0 {
		return fmt.Errorf("no companion %q in the filter's configuration", name)
	}
	if p != nil {
		p.name = name
	}
	one := c.list[i]
	one.Seen, one.Entries, one.Lost, one.Error = text.At(now), entries, lost, problem
	if problem == "" && result {
		one.Done = text.At(now)
	}
	return nil
}

// Note announces a companion and its latest result. lost is the number of events that will never
// reach the destination. problem is nil after a success, and ErrNoResult if there is no new result.
func (c *Client) Note(name string, entries int, lost uint64, problem error) error {
	words := "-"
	if problem == ErrNoResult {
		words = noResult
	} else if problem != nil {
		words += url.QueryEscape(text.ASCII(problem.Error(), maxNote))
	}
	return c.ask(nil, "note", url.QueryEscape(name), strconv.Itoa(entries), strconv.FormatUint(lost, 10), words)
}
