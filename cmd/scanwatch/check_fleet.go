package main

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/fleetkey"
	"scanwatch/rules"
)

// A reader is a user who must be able to read a file.
type reader struct {
	name   string // name of the user or program
	uid    uint32
	groups []uint32
}

// newReader looks up a user's groups.
func newReader(name string, uid uint32) reader {
	r := reader{name: name, uid: uid}
	u, err := user.LookupId(strconv.Itoa(int(uid)))
	if err != nil {
		return r // a user ID without an account has no groups
	}
	ids, _ := u.GroupIds() // on error, use only the primary group
	for _, id := range append(ids, u.Gid) {
		if n, err := strconv.ParseUint(id, 10, 32); err == nil {
			r.groups = append(r.groups, uint32(n))
		}
	}
	return r
}

// may reports whether info grants r the permissions in what: a combination of 4 (read) and 1 (enter
// a directory).
func (r *reader) may(what os.FileMode, info os.FileInfo) bool {
	s, ok := info.Sys().(*syscall.Stat_t)
	mode := info.Mode().Perm()
	switch {
	case !ok || r.uid == 0:
		return true
	case s.Uid == r.uid:
		mode >>= 6
	case slices.Contains(r.groups, s.Gid):
		mode >>= 3
	}
	return mode&what == what
}

// problem returns why r cannot read a file, or "".
func (r *reader) problem(file string) string {
	const read, enter = 4, 1
	for at, what := file, os.FileMode(read); ; at, what = filepath.Dir(at), enter {
		if info, err := os.Stat(at); err == nil && !r.may(what, info) {
			if what == enter {
				return fmt.Sprintf("%s cannot enter %s; run chmod +x %s", r.name, at, at)
			}
			return fmt.Sprintf("%s cannot read %s", r.name, at)
		}
		if at == filepath.Dir(at) {
			return ""
		}
	}
}

// checkFleet prints the fleet statement with the key's fingerprint. It also warns about files that
// the filter or the share companion cannot read. filter is the user ID of the filter, or negative
// if unknown.
func checkFleet(e *env, p *rules.Policy, filter int, warn func(rules.Pos, string, ...any)) {
	f := p.Fleet
	if f == nil {
		return
	}
	var readers []reader
	if filter >= 0 {
		readers = append(readers, newReader("the user of the filter", uint32(filter)))
	}
	var share *rules.Companion
	var service *reader
	if i := slices.IndexFunc(p.Companions, func(c *rules.Companion) bool { return c.Role == rules.RoleShare }); i >= 0 {
		share = p.Companions[i]
		if uid, err := control.CompanionUser(share.User, filter); err == nil {
			one := newReader("the user "+share.User+" of companion share", uid)
			service, readers = &one, append(readers, one)
		}
	}
	key, err := fleetkey.Read(f.Key)
	if err != nil {
		warn(f.Pos, "fleet key: %v", err)
	} else {
		fmt.Fprintf(e.out, "%s, fingerprint %s\n", f, key.Fingerprint())
	}
	for i := range readers {
		if problem := readers[i].problem(f.Key); problem != "" && !errors.Is(err, os.ErrNotExist) {
			warn(f.Pos, "fleet key: %s; the file must belong to the user of companion share, and the filter's group must be able to read it: chmod 440", problem)
		}
	}
	if f.Observe {
		fmt.Fprintln(e.out, "bans by other hosts are observed, and not enforced")
	}
	if share == nil {
		return // scanwatch facts works without the companion
	}
	o := &share.Share
	if o.Password != "" {
		if _, err := fleetkey.ReadFile(o.Password); err != nil {
			warn(share.Pos, "password: %v; the file must have mode 400 and belong to the user of companion share", err)
		}
	}
	if service != nil { // otherwise, another warning names the wrong user
		for _, file := range []string{o.Password, o.CA} {
			if problem := service.problem(file); file != "" && problem != "" {
				warn(share.Pos, "%s", problem)
			}
		}
	}
	for _, s := range o.Servers {
		if isOpenToNetwork(s) {
			warn(share.Pos, "the password and all rows cross the network to %s unencrypted; use valkeys:// or a tunnel", s)
		}
	}
}

// isOpenToNetwork reports whether an unencrypted connection to a server leaves this host.
func isOpenToNetwork(server string) bool {
	u, err := url.Parse(server)
	if err != nil || filepath.IsAbs(server) || strings.HasSuffix(u.Scheme, "ss") || u.Scheme == "valkeys" {
		return false
	}
	a, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() != "localhost" && (err != nil || !a.IsLoopback())
}
