package rules

import (
	"fmt"
	"math/bits"
	"strings"
)

// Phase is a point of a session at which a policy is asked: a question of
// smtpd that it may answer, or the end. smtpd's phases auth
// and data-line are left out for good: the first carries passwords, the second
// message text. Starttls is left out because a refused client goes on in the
// clear, and rset, noop and quit because refusing them helps nobody.
type Phase uint8

// The phases in the order of a session. Helo stands for HELO and EHLO.
const (
	Connect Phase = iota
	Helo
	MailFrom
	RcptTo
	Data
	Commit
	// End is no question of smtpd's: the session is over, nobody waits for an
	// answer, and a rule can only have effects.
	End
	numPhases
)

var phaseNames = [...]string{"connect", "helo", "mail-from", "rcpt-to", "data", "commit", "end"}

func (p Phase) String() string { return name(phaseNames[:], int(p)) }

// ParsePhase returns the phase of that name.
func ParsePhase(s string) (Phase, bool) {
	for p := Connect; p < numPhases; p++ {
		if phaseNames[p] == s {
			return p, true
		}
	}
	return numPhases, false
}

// PhaseSet is a set of phases.
type PhaseSet uint8

const (
	allPhases = PhaseSet(1<<numPhases - 1)
	// answerable are the phases in which smtpd waits for an answer.
	answerable = PhaseSet(1<<End - 1)
)

func phaseSet(phases ...Phase) (s PhaseSet) {
	for _, p := range phases {
		s |= 1 << p
	}
	return s
}

// from returns the answerable phases from p to the last.
func from(p Phase) PhaseSet { return answerable &^ (1<<p - 1) }

// Has tells whether p is in s.
func (s PhaseSet) Has(p Phase) bool { return s&(1<<p) != 0 }

// List returns the phases of s in the order of a session.
func (s PhaseSet) List() (list []Phase) {
	for p := Connect; p < numPhases; p++ {
		if s.Has(p) {
			list = append(list, p)
		}
	}
	return list
}

// last returns the latest phase of a set that is not empty.
func (s PhaseSet) last() Phase { return Phase(bits.Len8(uint8(s)) - 1) }

// String writes s as the language does: one word, or a list in braces.
func (s PhaseSet) String() string {
	var names []string
	for _, p := range s.List() {
		names = append(names, p.String())
	}
	if len(names) == 1 {
		return names[0]
	}
	return "{ " + strings.Join(names, ", ") + " }"
}

// Decision is a word of smtpd-filters(7) that answers a phase.
type Decision uint8

// The decisions, in the order of their severity.
const (
	Proceed Decision = iota
	Junk
	Reject
	Disconnect
)

var decisionNames = [...]string{"proceed", "junk", "reject", "disconnect"}

func (d Decision) String() string { return name(decisionNames[:], int(d)) }

// Mode tells whether a policy acts or only says what it would do.
type Mode uint8

// Observe is the default: it changes no reply.
const (
	Observe Mode = iota
	Enforce
)

var modeNames = [...]string{"observe", "enforce"}

func (m Mode) String() string { return name(modeNames[:], int(m)) }

// Privacy says how much of the people who write to each other is kept.
type Privacy uint8

// The ways. By default those who may exist are kept as hashes.
const (
	PrivacyDefault Privacy = iota
	PrivacyFull            // all in clear
	PrivacyStrict          // also domains of senders, recipients who do not exist, and users
)

var privacyNames = [...]string{"default", "full", "strict"}

func (p Privacy) String() string { return name(privacyNames[:], int(p)) }

// Detail says how much smtpd is asked to tell.
type Detail uint8

// The ways.
const (
	DetailFull Detail = iota // also each command and reply
	DetailLean               // only what came of them
)

// LeanMisses is the evidence of what is not told then.
const LeanMisses = TalksSSH | TalksHTTP | TalksTLS | TalksBinary | UnknownCommand | SyntaxError | HeloMissing | HeloChanged | HeloInvalid | HeloBareAddress |
	AuthUnsupported | EarlyTalker | Pipelining | Campaign | Abandoned

var detailNames = [...]string{"full", "lean"}

func (d Detail) String() string { return name(detailNames[:], int(d)) }

// Truth is the answer of a condition. The zero Truth is Unknown: a condition
// that could not be evaluated never matches, negated or not.
type Truth uint8

// The truths.
const (
	Unknown Truth = iota
	No
	Yes
)

var truthNames = [...]string{"could not tell", "no", "yes"}

func (t Truth) String() string { return name(truthNames[:], int(t)) }

// Not turns yes into no and no into yes; what is unknown stays unknown.
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

// FCrDNS is smtpd's word on the forward-confirmed reverse DNS of the source.
// The numbers are those of package store. Fail also means that there is no
// name, or that DNS is down.
type FCrDNS uint8

// DNSUnknown is the value before smtpd said anything.
const (
	DNSUnknown FCrDNS = iota
	DNSPass
	DNSFail
	DNSError
)

var fcrdnsNames = [...]string{"unknown", "pass", "fail", "error"}

func (s FCrDNS) String() string { return name(fcrdnsNames[:], int(s)) }

// Key says whose events a windowed count adds up.
type Key uint8

// The keys. BySrc is an IPv4 address or an IPv6 /64, ByPrefix a /24 or a /48.
const (
	BySession Key = iota // not in a window: the events of this session
	BySrc
	ByPrefix
	ByASN
	ByHelo
	ByUser
)

var keyNames = [...]string{"session", "src", "prefix", "asn", "helo", "user"}

func (k Key) String() string { return name(keyNames[:], int(k)) }

// ParseKey returns the key of that name.
func ParseKey(s string) (Key, bool) {
	i := index(keyNames[:], s)
	return Key(max(i, 0)), i >= 0
}

// keyPhase is the phase from which on a key is known.
var keyPhase = [...]Phase{BySession: Connect, BySrc: Connect, ByPrefix: Connect, ByASN: Connect, ByHelo: Helo, ByUser: MailFrom}

func name(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprintf("unknown(%d)", i)
}

// index returns the place of word in names, or -1.
func index(names []string, word string) int {
	for i, n := range names {
		if n == word {
			return i
		}
	}
	return -1
}
