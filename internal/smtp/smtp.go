// Package smtp defines the events of an SMTP session, the requests of a mail server,
// and the answers.
//
// A front end translates the protocol of its mail server to the types of this package.
// All other packages use only the types of package smtp. Package smtp imports no other
// package of the program.
package smtp

import (
	"fmt"
	"math/bits"
	"strings"
	"time"
)

// Phase is a point in a session at which a policy is evaluated. A phase is a request of
// the mail server, or the end of the session.
type Phase uint8

// The phases in the order of a session. PhaseHelo includes HELO and EHLO.
const (
	PhaseConnect Phase = iota
	PhaseHelo
	PhaseMailFrom
	PhaseRcptTo
	PhaseData
	PhaseCommit
	// PhaseEnd is the end of the session and not a request. A rule cannot answer the
	// client in PhaseEnd, but can ban it.
	PhaseEnd
	NumPhases
)

var phaseNames = [...]string{"connect", "helo", "mail-from", "rcpt-to", "data", "commit", "end"}

func (p Phase) String() string { return name(phaseNames[:], int(p)) }

// ParsePhase returns the phase with the given name.
func ParsePhase(s string) (Phase, bool) {
	i := index(phaseNames[:], s)
	return Phase(max(i, 0)), i >= 0
}

// PhaseSet is a set of phases.
type PhaseSet uint8

const (
	// AllPhases contains every phase.
	AllPhases = PhaseSet(1<<NumPhases - 1)
	// Answerable contains the phases in which the mail server waits for an answer.
	Answerable = PhaseSet(1<<PhaseEnd - 1)
)

// Phases returns the set of the given phases.
func Phases(phases ...Phase) (s PhaseSet) {
	for _, p := range phases {
		s |= 1 << p
	}
	return s
}

// PhasesFrom returns the answerable phases from p to the last phase.
func PhasesFrom(p Phase) PhaseSet { return Answerable &^ (1<<p - 1) }

// Has reports whether p is in s.
func (s PhaseSet) Has(p Phase) bool { return s&(1<<p) != 0 }

// List returns the phases of s in the order of a session.
func (s PhaseSet) List() (list []Phase) {
	for p := PhaseConnect; p < NumPhases; p++ {
		if s.Has(p) {
			list = append(list, p)
		}
	}
	return list
}

// Last returns the latest phase in s, which must not be empty.
func (s PhaseSet) Last() Phase { return Phase(bits.Len8(uint8(s)) - 1) }

// String returns s in the syntax of the policy language: a word, or a list in braces.
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

// Decision is the answer to a request of the mail server. The words for decisions are
// from smtpd-filters(7).
type Decision uint8

// The decisions in the order of their severity.
const (
	Proceed Decision = iota
	Junk
	Reject
	Disconnect
)

var decisionNames = [...]string{"proceed", "junk", "reject", "disconnect"}

func (d Decision) String() string { return name(decisionNames[:], int(d)) }

// ParseDecision returns the decision with the given name.
func ParseDecision(s string) (Decision, bool) {
	i := index(decisionNames[:], s)
	return Decision(max(i, 0)), i >= 0
}

// An Answer is the answer to a request. The zero Answer lets the session proceed.
type Answer struct {
	Decision Decision
	// Text is the reply to the client for Reject and Disconnect. The reply consists of
	// a code that begins with 4 or 5, a space, and a line of printable ASCII.
	Text string
	// Hold is a delay of the answer. The front end limits the delay.
	Hold time.Duration
}

// Result is the outcome of a command.
type Result uint8

// The results. The numbers are stored on disk, so a number must never change or be
// reused.
const (
	ResultNone     Result = 0
	ResultOK       Result = 1
	ResultPermfail Result = 2
	ResultTempfail Result = 3
	ResultPass     Result = 4 // result of a login
	ResultFail     Result = 5
	ResultError    Result = 6
)

var resultNames = [...]string{"", "ok", "permfail", "tempfail", "pass", "fail", "error"}

func (r Result) String() string { return name(resultNames[:], int(r)) }

// ParseResult returns the Result with the given name, or ResultNone.
func ParseResult(b []byte) Result { return Result(max(index(resultNames[:], string(b)), 0)) }

// FCrDNS is the result of forward-confirmed reverse DNS. FCrDNS passes if the reverse
// DNS name of an address (PTR) resolves to the address. A failure proves little,
// because a name may be missing or a DNS server may be unavailable.
type FCrDNS uint8

// The states. The numbers are stored on disk, so a number must never change or be
// reused.
const (
	FCrDNSUnknown FCrDNS = 0
	FCrDNSPass    FCrDNS = 1
	FCrDNSFail    FCrDNS = 2
	FCrDNSError   FCrDNS = 3
)

var fcrdnsNames = [...]string{"unknown", "pass", "fail", "error"}

func (f FCrDNS) String() string { return name(fcrdnsNames[:], int(f)) }

// ParseFCrDNS returns the FCrDNS with the given name, or FCrDNSUnknown.
func ParseFCrDNS(b []byte) FCrDNS { return FCrDNS(max(index(fcrdnsNames[:], string(b)), 0)) }

// MayBeCut reports whether a reverse DNS name may be truncated. On Linux, smtpd
// truncates names to 64 bytes, and a truncated name fails FCrDNS.
func MayBeCut(name []byte, f FCrDNS) bool { return len(name) == 64 && f != FCrDNSPass }

// Ending is the way in which a session ended.
type Ending uint8

// The endings. The numbers are stored on disk, so a number must never change or be
// reused.
const (
	EndingUnknown  Ending = 0
	EndingQuit     Ending = 1 // the client sent QUIT
	EndingDropped  Ending = 2 // the client closed the connection
	EndingTimeout  Ending = 3 // the server timed out
	EndingRejected Ending = 4 // the server or a filter closed the connection
	EndingStopped  Ending = 5 // the server stopped while the session was open
	EndingClosed   Ending = 6 // the connection was closed by an unknown side
)

var endingNames = [...]string{"unknown", "quit", "dropped", "timeout", "rejected", "stopped", "closed"}

func (e Ending) String() string { return name(endingNames[:], int(e)) }

func name(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprintf("unknown(%d)", i)
}

// index returns the index of word in names, or -1. The empty word has no index.
func index(names []string, word string) int {
	for i, n := range names {
		if n == word && word != "" {
			return i
		}
	}
	return -1
}
