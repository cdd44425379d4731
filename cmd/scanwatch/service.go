package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/owner"
	"scanwatch/cmd/internal/sandbox"
	"scanwatch/rules"
)

// A service is a companion of the filter with its settings.
type service struct {
	*rules.Companion
	set    rules.Settings
	runDir string // directory of the filter's socket
	log    *slog.Logger
}

// newService returns the companion with the given role. If there are several, args contains the name of
// one of them.
func newService(e *env, role rules.Role, args []string) (*service, error) {
	file, err := e.chosen(nil)
	if err != nil {
		return nil, err
	}
	tree, err := rules.Parse(file, os.ReadFile)
	if err != nil {
		return nil, err
	}
	s := &service{set: tree.Settings(), log: serviceLog(e.err)}
	s.runDir = cmp.Or(s.set.RunDir, control.DefaultRunDir())
	var all []string
	found := 0
	for _, c := range s.set.Companions {
		if c.Role != role {
			continue
		}
		name := strings.TrimPrefix(c.Name(), string(role)+" ")
		all = append(all, name)
		if len(args) == 0 || slices.Contains([]string{c.Target, c.Argument, name, strings.TrimPrefix(name, c.Target+" ")}, args[0]) {
			s.Companion = c
			found++
		}
	}
	switch {
	case len(all) == 0:
		return nil, fmt.Errorf("%s has no statement companion %s; see scanwatch.conf(5)", file, role)
	case found == 0:
		return nil, usage("%s %q: no such companion in %s; it has: %s", role, args[0], file, strings.Join(all, ", "))
	case found > 1:
		return nil, usage("%s: several companions in %s, select one: %s", role, file, strings.Join(all, ", "))
	case s.missing() != "":
		return nil, fmt.Errorf("%s has no statement %s; see scanwatch.conf(5)", file, s.missing())
	}
	return s, nil
}

// missing returns the statement without which the companion has nothing to do, if it is missing.
func (s *service) missing() string {
	switch {
	case s.Role == rules.RoleServe && len(s.set.Zones) == 0:
		return "zone"
	case s.Role == rules.RoleLookup && len(s.set.Lookups) == 0:
		return "lookup"
	case s.Role == rules.RoleShare && s.set.Fleet == nil:
		return "fleet"
	}
	return ""
}

// socket returns the path of the filter's socket. Its directory must exist, because a sandbox cannot
// grant access to it later.
func (s *service) socket() (string, error) {
	if _, err := os.Stat(s.runDir); err != nil {
		return "", fmt.Errorf("directory of the filter's socket: %w; create it, owned by the filter's user, and restart smtpd, or correct rundir; with a milter or a log, see Bans in scanwatch-servers(7)", err)
	}
	return control.SocketPath(s.runDir), nil
}

// untilTerminated returns a context that ends with SIGINT or SIGTERM.
func untilTerminated() (ctx context.Context, stop context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
}

// serviceLog returns a logger for a service. The logger writes no timestamps, because the service
// manager adds them.
func serviceLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey && len(groups) == 0 {
			return slog.Attr{}
		}
		return a
	}}))
}

// become changes the user of a service that root has started.
func become(name string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup(name)
	if _, number := strconv.Atoi(name); err != nil && number == nil {
		u, err = &user.User{Uid: name, Gid: name}, nil
	}
	if err != nil {
		return fmt.Errorf("user of the companion: %w; create the user as in COMPANIONS of scanwatch(8)", err)
	}
	id, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	group, err := strconv.Atoi(u.Gid)
	if err != nil {
		return err
	}
	return (&owner.User{ID: id, Group: group}).Become()
}

// confine enters the sandbox for a service and logs the restrictions.
func confine(log *slog.Logger, paths sandbox.Paths) {
	enter(log, sandbox.Prepare(paths).Enter())
}

// enter logs the restrictions of a sandbox.
func enter(log *slog.Logger, report *sandbox.Report) {
	for _, err := range report.Problems {
		log.Warn("sandbox incomplete", "err", err)
	}
	log.Info("sandbox", report.Attrs()...)
}
