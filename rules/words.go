package rules

import (
	"fmt"
	"slices"

	"scanwatch/internal/smtp"
)

// phaseWords lists the names of all phases in order.
var phaseWords = func() (names []string) {
	for _, p := range smtp.AllPhases.List() {
		names = append(names, p.String())
	}
	return names
}()

// Mode determines whether a policy's decisions are enforced.
type Mode uint8

// The modes of a policy. The default is Observe, in which decisions are recorded but not enforced.
const (
	Observe Mode = iota
	Enforce
)

var modeNames = [...]string{"observe", "enforce"}

func (m Mode) String() string { return name(modeNames[:], int(m)) }

// Log sets where and in how much detail the filter logs.
type Log struct {
	Syslog  bool // use syslog(3) instead of standard error
	Verbose bool // also log findings, decisions and progress
}

// Privacy determines how mailboxes appear in records, logs and events.
type Privacy uint8

// The privacy levels. User names that may be passwords are hashed at both levels.
const (
	PrivacyFull   Privacy = iota // nothing else is hashed
	PrivacyHashed                // the local part of each mailbox is replaced by a hash
)

var privacyNames = [...]string{"full", "hashed"}

func (p Privacy) String() string { return name(privacyNames[:], int(p)) }

// Standing is the trust that a client has earned with mail that was accepted. The zero Standing
// means that the standing is unknown, because the state is not loaded yet.
type Standing uint8

// The levels of standing.
const (
	StandingUnknown Standing = iota
	StandingNone
	StandingKnown   // ordinary mail was accepted on an earlier day, or users of this site write to the client's domain
	StandingTrusted // ten messages on seven days, and no offence in the last 30 days
)

var standingNames = [...]string{"unknown", "none", "known", "trusted"}

func (s Standing) String() string { return name(standingNames[:], int(s)) }

// AtLeast reports whether the standing s is least or higher.
func (s Standing) AtLeast(least Standing) Truth {
	if s == StandingUnknown {
		return Unknown
	}
	return truth(s >= least)
}

// Truth is the result of a condition. The zero Truth is Unknown, which means that the condition
// cannot be evaluated. Neither the condition nor its negation then matches.
type Truth uint8

// The possible results of a condition.
const (
	Unknown Truth = iota
	No
	Yes
)

var truthNames = [...]string{"unknown", "no", "yes"}

func (t Truth) String() string { return name(truthNames[:], int(t)) }

// Not swaps Yes and No. Unknown does not change.
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

// Key is a property of sessions for counting. Sessions with the same value of the property are
// counted together.
type Key uint8

// The keys for counting.
const (
	BySession Key = iota // only the current session is counted
	BySrc                // a host; see memory.Host
	ByPrefix             // a /24 or a /48, without hosts that have a proven name
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

// keyPhase contains the first phase in which each key is known.
var keyPhase = [...]smtp.Phase{BySession: smtp.PhaseConnect, BySrc: smtp.PhaseConnect, ByPrefix: smtp.PhaseConnect, ByDomain: smtp.PhaseConnect, BySite: smtp.PhaseConnect, ByASN: smtp.PhaseConnect, ByHelo: smtp.PhaseHelo, ByUser: smtp.PhaseMailFrom}

func name(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprintf("unknown(%d)", i)
}
