// Package smtp defines the events in an SMTP session, the mail server's
// requests, and the answers to them.
//
// A front end translates its mail server's protocol to the types of this package, and
// all other packages use only these types. Package smtp imports no other package of the
// program.
package smtp

import (
	"fmt"
	"math/bits"
	"strings"
	"time"
)

// Phase is a point in a session at which a policy is evaluated: a request from the mail
// server, or the end of the session.
type Phase uint8

// Phases, in session order. PhaseHelo covers HELO and EHLO.
const (
	PhaseConnect Phase = iota
	PhaseHelo
	PhaseMailFrom
	PhaseRcptTo
	PhaseData
	PhaseCommit
	// PhaseEnd is the end of the session. The mail server sends no request at this point, so a rule
	// can ban the client but cannot answer it.
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
	// AllPhases is the set of all phases.
	AllPhases = PhaseSet(1<<NumPhases - 1)
	// Answerable is the set of phases in which the mail server waits for an answer.
	Answerable = PhaseSet(1<<PhaseEnd - 1)
)

// Phases returns the set of the given phases.
func Phases(phases ...Phase) (s PhaseSet) {
	for _, p := range phases {
		s |= 1 << p
	}
	return s
}

// PhasesFrom returns the answerable phases, starting with p.
func PhasesFrom(p Phase) PhaseSet { return Answerable &^ (1<<p - 1) }

// Has reports whether p is in s.
func (s PhaseSet) Has(p Phase) bool { return s&(1<<p) != 0 }

// List returns the phases in s in session order.
func (s PhaseSet) List() (list []Phase) {
	for p := PhaseConnect; p < NumPhases; p++ {
		if s.Has(p) {
			list = append(list, p)
		}
	}
	return list
}

// Last returns the last phase in s, which must not be empty.
func (s PhaseSet) Last() Phase { return Phase(bits.Len8(uint8(s)) - 1) }

// String returns s as written in a policy: a word, or a list in braces.
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

// Decision is the answer to a mail server's request. The words for decisions come from
// smtpd-filters(7).
type Decision uint8

// The decisions, from least to most severe.
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

// An Answer answers a request. The zero Answer lets the session proceed.
type Answer struct {
	Decision Decision
	// Text is the reply to the client if the decision is Reject or Disconnect: a code
	// that begins with 4 or 5, a space, and a line of printable ASCII.
	Text string
	// Hold delays the answer. The front end limits the delay.
	Hold time.Duration
	// Wait, if positive, means that the answer depends on a fact that is still
	// unknown. The front end asks again when the fact becomes available, or
	// after this time, with Event.Waited set.
	Wait time.Duration
}

// Result is the outcome of a command.
type Result uint8

// The results. The numbers are stored on disk and must never be changed or reused.
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

// FCrDNS is the result of forward-confirmed reverse DNS. FCrDNS passes if the reverse DNS name
// (PTR) of an address resolves to the address. A failure is only weak evidence, because the name
// may be missing or a DNS server may be unavailable.
type FCrDNS uint8

// The FCrDNS results. The numbers are stored on disk and must never be changed or
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

// Ending is the way a session ended.
type Ending uint8

// The endings. The numbers are stored on disk and must never be changed or reused.
const (
	EndingUnknown  Ending = 0
	EndingQuit     Ending = 1 // the client sent QUIT
	EndingDropped  Ending = 2 // the client closed the connection
	EndingTimeout  Ending = 3 // the server timed out
	EndingRejected Ending = 4 // the server or a filter closed the connection
	EndingStopped  Ending = 5 // the server stopped while the session was open
	EndingClosed   Ending = 6 // the connection was closed, and it is unknown by which side
	EndingPartial  Ending = 7 // the session has ended, but the mail server's log shows only some of its commands
)

var endingNames = [...]string{"unknown", "quit", "dropped", "timeout", "rejected", "stopped", "closed", "partial"}

func (e Ending) String() string { return name(endingNames[:], int(e)) }

func name(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprintf("unknown(%d)", i)
}

// index returns the index of word in names, or -1 if word is empty or not
// in names.
func index(names []string, word string) int {
	for i, n := range names {
		if n == word && word != "" {
			return i
		}
	}
	return -1
}
