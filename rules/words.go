package rules

import (
	"fmt"
	"slices"

	"scanwatch/internal/smtp"
)

// phaseWords lists the names of all phases.
var phaseWords = func() (names []string) {
	for _, p := range smtp.AllPhases.List() {
		names = append(names, p.String())
	}
	return names
}()

// Mode determines whether a policy's decisions are enforced.
type Mode uint8

// The modes. In Observe, the default, decisions are recorded but not enforced.
const (
	Observe Mode = iota
	Enforce
)

var modeNames = [...]string{"observe", "enforce"}

func (m Mode) String() string { return name(modeNames[:], int(m)) }

// Log sets the log's destination and level.
type Log struct {
	Syslog  bool // log to syslog(3) instead of standard error
	Verbose bool // also log findings, decisions and progress
}

// Privacy determines how mailboxes appear in records, logs and events.
type Privacy uint8

// Privacy levels. User names that may be passwords are hashed at both levels.
const (
	PrivacyFull   Privacy = iota // unhashed
	PrivacyHashed                // a hash replaces the local part
)

var privacyNames = [...]string{"full", "hashed"}

func (p Privacy) String() string { return name(privacyNames[:], int(p)) }

// Standing is the degree of trust that a client has earned with its accepted
// mail. The zero Standing means that the standing is unknown, because the state
// is not loaded yet.
type Standing uint8

// Levels of standing.
const (
	StandingUnknown Standing = iota
	StandingNone
	StandingKnown   // ordinary mail was accepted on an earlier day, or users of the site write to its domain
	StandingTrusted // ten messages on seven days, and no offence in the last 30 days
)

var standingNames = [...]string{"unknown", "none", "known", "trusted"}

func (s Standing) String() string { return name(standingNames[:], int(s)) }

// AtLeast reports whether the standing s is at least as high as least.
func (s Standing) AtLeast(least Standing) Truth {
	if s == StandingUnknown {
		return Unknown
	}
	return truth(s >= least)
}

// Truth is the result of a condition. The zero Truth is Unknown: the condition
// cannot be evaluated, and neither it nor its negation matches.
type Truth uint8

// The results of a condition.
const (
	Unknown Truth = iota
	No
	Yes
)

var truthNames = [...]string{"unknown", "no", "yes"}

func (t Truth) String() string { return name(truthNames[:], int(t)) }

// Not swaps Yes and No. Unknown stays Unknown.
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

// Key is the property by which a count groups sessions: sessions with the
// same value are counted together.
type Key uint8

// Keys for counting.
const (
	BySession Key = iota // only the current session
	BySrc                // a host; see memory.Host
	ByPrefix             // a /24 or a /48, without hosts that have their own proven name
	ByDomain             // registered domain of the proven name
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

// keyPhase lists the first phase in which each key is known.
var keyPhase = [...]smtp.Phase{BySession: smtp.PhaseConnect, BySrc: smtp.PhaseConnect, ByPrefix: smtp.PhaseConnect, ByDomain: smtp.PhaseConnect, BySite: smtp.PhaseConnect, ByASN: smtp.PhaseConnect, ByHelo: smtp.PhaseHelo, ByUser: smtp.PhaseMailFrom}

func name(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprintf("unknown(%d)", i)
}
