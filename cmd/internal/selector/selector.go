// Package selector provides the flags that select recorded sessions. A flag has the same
// name, syntax and meaning in all commands.
package selector

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"scanwatch/filter/privacy"
	"scanwatch/internal/prefix"
	"scanwatch/rules"
	"scanwatch/store"
)

// Flags is a set of selector flags, such as --since and --src.
type Flags uint16

// Selector flags.
const (
	Since Flags = 1 << iota
	Until
	Src
	Evidence
	Rule
	User
	Helo
	Listener
	Limit
	JSON

	// Period selects sessions by when they ended.
	Period = Since | Until
	// Sessions selects sessions by any of their properties.
	Sessions = Period | Src | Evidence | Rule | User | Helo | Listener
)

// AnyEvidence selects all evidence tokens.
const AnyEvidence = "any"

// A Selector holds the values of the flags. The zero value selects all sessions.
type Selector struct {
	Since, Until time.Time // zero if unset
	Src          []netip.Prefix
	Evidence     []string // tokens; empty if Any is set
	Any          bool     // sessions with a finding of any kind
	Rules        []string
	Users        []string
	Helos        []string // lower case
	Listeners    []Endpoint
	Limit        int
	JSON         bool
}

// An Endpoint is a listener: an address, a port, or both.
type Endpoint struct {
	Addr netip.Addr // invalid: any
	Port uint16     // 0: any
}

// A Clock returns the current time and the time zone. Periods such as 7d end at the current time.
type Clock struct {
	Now  func() time.Time
	Zone *time.Location
}

// Register defines the flags in fs, storing their values in s.
func (s *Selector) Register(fs *pflag.FlagSet, flags Flags, clock Clock) {
	point := func(to *time.Time) func(string) error {
		return func(text string) (err error) {
			*to, err = ParseTime(text, clock.Now(), clock.Zone)
			return err
		}
	}
	for _, f := range []struct {
		flag  Flags
		name  string
		usage string
		set   func(string) error
	}{
		{Since, "since", "select sessions that ended at `WHEN` or later", point(&s.Since)},
		{Until, "until", "select sessions that ended before `WHEN`", point(&s.Until)},
		{Src, "src", "select clients in `PREFIX,...`", list(s.addSrc)},
		{Evidence, "evidence", "select sessions with the evidence `TOKEN,...`; any matches all evidence", list(s.addEvidence)},
		{Rule, "rule", "select sessions on which one of the rules `NAME,...` acted", list(s.addRule)},
		{User, "user", "select sessions that tried to log in as `NAME`", s.addUser},
		{Helo, "helo", "select sessions with the greeting `NAME`; .example.org matches all names below it", s.addHelo},
		{Listener, "listener", "select sessions of `ADDRESS:PORT`, :PORT or ADDRESS", list(s.addListener)},
		{Limit, "limit", "print at most `N` entries", s.setLimit},
	} {
		if flags&f.flag != 0 {
			fs.Var(&value{set: f.set}, f.name, f.usage)
		}
	}
	if flags&JSON != 0 {
		fs.BoolVar(&s.JSON, "json", false, "print JSON")
	}
}

// A value is a pflag.Value that stores a flag's text and passes it to set.
type value struct {
	text string
	set  func(string) error
}

func (v *value) String() string { return v.text }
func (v *value) Type() string   { return "" }
func (v *value) Set(text string) error {
	v.text = text
	return v.set(text)
}

// list calls add for each element of a comma-separated list.
func list(add func(string) error) func(string) error {
	return func(text string) error {
		for element := range strings.SplitSeq(text, ",") {
			if err := add(element); err != nil {
				return err
			}
		}
		return nil
	}
}

func (s *Selector) addSrc(text string) error {
	p, _, err := prefix.Parse(text)
	if err == nil {
		s.Src = append(s.Src, p)
	}
	return err
}

func (s *Selector) addEvidence(text string) error {
	if text == AnyEvidence {
		s.Any = true
		return nil
	}
	t := rules.TokenByName(text)
	if t == nil {
		return fmt.Errorf("no such evidence %q; see scanwatch.conf(5)", text)
	}
	s.Evidence = append(s.Evidence, text)
	return nil
}

func (s *Selector) addRule(text string) error {
	if text == "" {
		return errors.New("empty name")
	}
	s.Rules = append(s.Rules, text)
	return nil
}

func (s *Selector) addUser(text string) error {
	s.Users = append(s.Users, text)
	return nil
}

// HashUsers sets the hash key, so that users are also found in records that contain only a hash of
// the name.
func (s *Selector) HashUsers(key []byte) {
	if key == nil {
		return
	}
	h := privacy.New(key)
	for _, name := range slices.Clone(s.Users) {
		s.Users = append(s.Users, string(h.Word(nil, []byte(name))), string(h.Mailbox(nil, []byte(name))))
	}
}

// hasUser reports whether s selects a user, ignoring case.
func (s *Selector) hasUser(name []byte) bool {
	return slices.ContainsFunc(s.Users, func(u string) bool { return bytes.EqualFold(name, []byte(u)) })
}

func (s *Selector) addHelo(text string) error {
	s.Helos = append(s.Helos, strings.ToLower(text))
	return nil
}

func (s *Selector) addListener(text string) error {
	e, err := parseEndpoint(text)
	if err == nil {
		s.Listeners = append(s.Listeners, e)
	}
	return err
}

// parseEndpoint parses 587, :587, 192.0.2.25, 192.0.2.25:587 and [2001:db8::25]:587.
func parseEndpoint(text string) (Endpoint, error) {
	if p, err := netip.ParseAddrPort(text); err == nil {
		return Endpoint{p.Addr().Unmap().WithZone(""), p.Port()}, nil
	}
	if a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]")); err == nil {
		return Endpoint{Addr: a.Unmap().WithZone("")}, nil
	}
	if n, err := strconv.ParseUint(strings.TrimPrefix(text, ":"), 10, 16); err == nil && n > 0 {
		return Endpoint{Port: uint16(n)}, nil
	}
	return Endpoint{}, errors.New("not a listener such as 587, :587, 192.0.2.25 or 192.0.2.25:587")
}

func (s *Selector) setLimit(text string) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return errors.New("not a number of at least 1")
	}
	s.Limit = n
	return nil
}

// Check returns an error if the period is empty.
func (s *Selector) Check() error {
	if !s.Until.IsZero() && !s.Since.Before(s.Until) {
		return errors.New("--until is not after --since")
	}
	return nil
}

// Narrow reports whether s selects by any property other than time.
func (s *Selector) Narrow() bool { return len(s.Src) > 0 || len(s.Listeners) > 0 || s.steps() }

// steps reports whether s selects by session steps.
func (s *Selector) steps() bool {
	return s.Any || len(s.Evidence) > 0 || len(s.Rules) > 0 || len(s.Users) > 0 || len(s.Helos) > 0
}

// Kinds returns the kinds of steps that Match must see.
func (s *Selector) Kinds() (kinds store.Kinds) {
	for _, k := range []struct {
		used  bool
		kinds store.Kinds
	}{
		{s.Any || len(s.Evidence) > 0, store.KindsOf(store.KindFinding)},
		{len(s.Rules) > 0, store.KindsOf(store.KindVerdict, store.KindBan)},
		{len(s.Users) > 0, store.KindsOf(store.KindAuth)},
		{len(s.Helos) > 0, store.KindsOf(store.KindHelo)},
	} {
		if k.used {
			kinds |= k.kinds
		}
	}
	return kinds
}

// Match reports whether r matches all flags in s except the period. An aggregate matches if any of
// its sessions may match.
func (s *Selector) Match(r *store.Record) bool {
	if len(s.Src) > 0 && !s.HasSrc(r.Src.Addr()) {
		return false
	}
	if len(s.Listeners) > 0 && !slices.ContainsFunc(s.Listeners, func(e Endpoint) bool { return e.has(r.Dst) }) {
		return false
	}
	if !s.steps() {
		return true
	}
	evidence, rule := !s.Any && len(s.Evidence) == 0, len(s.Rules) == 0
	user, helo := len(s.Users) == 0, len(s.Helos) == 0
	_ = r.Steps(func(step *store.Step) bool { // steps before a corrupt step are still valid
		switch step.Kind {
		case store.KindFinding:
			evidence = evidence || s.HasEvidence(step.Text)
		case store.KindVerdict, store.KindBan:
			rule = rule || s.HasRule(step.Text)
		case store.KindAuth:
			user = user || s.hasUser(step.Text)
		case store.KindHelo:
			helo = helo || s.hasHelo(step.Text)
		}
		return !(evidence && rule && user && helo)
	})
	return evidence && rule && user && helo
}

// HasSrc reports whether s selects clients with the address a.
func (s *Selector) HasSrc(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return len(s.Src) == 0 || slices.ContainsFunc(s.Src, func(p netip.Prefix) bool { return p.Contains(a) })
}

// HasPrefix reports whether s selects any address in p.
func (s *Selector) HasPrefix(p netip.Prefix) bool {
	return len(s.Src) == 0 || slices.ContainsFunc(s.Src, p.Overlaps)
}

// HasEvidence reports whether s selects findings with a token.
func (s *Selector) HasEvidence(token []byte) bool {
	if s.Any || len(s.Evidence) == 0 {
		return true
	}
	return slices.ContainsFunc(s.Evidence, func(t string) bool { return t == string(token) })
}

// HasRule reports whether s selects sessions affected by a rule.
func (s *Selector) HasRule(name []byte) bool {
	return len(s.Rules) == 0 || slices.ContainsFunc(s.Rules, func(n string) bool { return n == string(name) })
}

func (s *Selector) hasHelo(name []byte) bool {
	name = bytes.ToLower(name)
	return slices.ContainsFunc(s.Helos, func(h string) bool {
		return string(name) == h || strings.HasPrefix(h, ".") && bytes.HasSuffix(name, []byte(h))
	})
}

func (e Endpoint) has(dst netip.AddrPort) bool {
	return dst.IsValid() && (e.Port == 0 || e.Port == dst.Port()) && (!e.Addr.IsValid() || e.Addr == dst.Addr().Unmap().WithZone(""))
}
