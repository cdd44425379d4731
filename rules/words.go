package rules

import (
	"fmt"
	"slices"

	"scanwatch/internal/smtp"
)

// phaseWords contains the names of all phases.
var phaseWords = func() (names []string) {
	for _, p := range smtp.AllPhases.List() {
		names = append(names, p.String())
	}
	return names
}()

// Mode is the mode of a policy: whether it changes replies.
type Mode uint8

// The modes. Observe is the default and changes no reply.
const (
	Observe Mode = iota
	Enforce
)

var modeNames = [...]string{"observe", "enforce"}

func (m Mode) String() string { return name(modeNames[:], int(m)) }

// Log is the destination and the level of the log.
type Log struct {
	Syslog  bool // syslog(3), not standard error
	Verbose bool // each finding and decision, and progress
}

// Privacy is the form of mailboxes in records, logs and events.
type Privacy uint8

// The levels. At both, user names that may be passwords are hashed.
const (
	PrivacyFull   Privacy = iota // unhashed
	PrivacyHashed                // with a hash as the local part
)

var privacyNames = [...]string{"full", "hashed"}

func (p Privacy) String() string { return name(privacyNames[:], int(p)) }

// Standing is the reputation of a client, earned by accepted mail. The zero Standing is
// unknown, because the state has not been read since the start.
type Standing uint8

// The standings.
const (
	StandingUnknown Standing = iota
	StandingNone
	StandingKnown   // ordinary mail was accepted on an earlier day, or users of the site write to its domain
	StandingTrusted // ten messages on seven days, without an offence in the last 30 days
)

var standingNames = [...]string{"unknown", "none", "known", "trusted"}

func (s Standing) String() string { return name(standingNames[:], int(s)) }

// AtLeast reports whether s is least or better.
func (s Standing) AtLeast(least Standing) Truth {
	if s == StandingUnknown {
		return Unknown
	}
	return truth(s >= least)
}

// Truth is the answer of a condition. The zero Truth is Unknown. A condition that
// cannot be evaluated does not match, negated or not.
type Truth uint8

// The truths.
const (
	Unknown Truth = iota
	No
	Yes
)

var truthNames = [...]string{"unknown", "no", "yes"}

func (t Truth) String() string { return name(truthNames[:], int(t)) }

// Not exchanges yes and no. Unknown remains unknown.
func (t Truth) Not() Truth {
	switch t {
	case Yes:
		return No
	case No:
		return Yes
	}
	return Unknown
}

func truth(b bool) Truth {
	if b {
		return Yes
	}
	return No
}

// Key is the key of a windowed count: the events of all sessions with the same
// key count together.
type Key uint8

// The keys.
const (
	BySession Key = iota // without a window: the events of this session
	BySrc                // one host: see memory.Host
	ByPrefix             // a /24 or a /48, without hosts with their own proven name
	ByDomain             // the registered domain of the proven name
	ByASN
	ByHelo
	ByUser
	BySite // all clients together
)

var keyNames = [...]string{"session", "src", "prefix", "domain", "asn", "helo", "user", "site"}

func (k Key) String() string { return name(keyNames[:], int(k)) }

// ParseKey returns the key with the given name.
func ParseKey(s string) (Key, bool) {
	i := slices.Index(keyNames[:], s)
	return Key(max(i, 0)), i >= 0
}

// keyPhase is the first phase in which a key is known.
var keyPhase = [...]smtp.Phase{BySession: smtp.PhaseConnect, BySrc: smtp.PhaseConnect, ByPrefix: smtp.PhaseConnect, ByDomain: smtp.PhaseConnect, BySite: smtp.PhaseConnect, ByASN: smtp.PhaseConnect, ByHelo: smtp.PhaseHelo, ByUser: smtp.PhaseMailFrom}

func name(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprintf("unknown(%d)", i)
}
