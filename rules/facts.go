package rules

import (
	"net/netip"
	"time"

	"scanwatch/internal/smtp"
)

// Facts holds the facts about a session that rules may use. Texts are in the form in which the
// client has sent them, and Eval does not change them. Eval stores results in Facts, so a Facts
// must not be used concurrently.
type Facts struct {
	Phase   smtp.Phase
	Now     time.Time
	Session uint64

	// Local is set if the session uses smtpd's local socket. Auth is set if a user has logged in.
	// In both cases, only rules with a condition on auth apply.
	Local bool
	Auth  bool
	User  []byte // authenticated user; empty if unknown

	Src    netip.Addr     // an IPv4-mapped address must be converted to IPv4
	Dst    netip.AddrPort // address of the listener, which may be a wildcard
	RDNS   []byte         // reverse DNS name (PTR); empty if there is none
	FCrDNS smtp.FCrDNS
	// RDNSCut reports whether smtpd may have truncated RDNS. A name may be truncated if its length
	// is the maximum on this system (64 bytes on Linux). A truncated name proves nothing.
	RDNSCut bool
	Helo    []byte // argument of HELO or EHLO
	// MailFrom and RcptTo are addresses without angle brackets and parameters. MailFrom is known
	// from the mail-from phase onwards. MailFrom is empty for the null sender. RcptTo is known only
	// in the rcpt-to phase.
	MailFrom []byte
	RcptTo   []byte
	TLS      bool

	// Listings holds the answers of all DNS lists that have answered.
	Listings []smtp.Listing

	ASN      uint32
	ASNKnown bool   // if set and ASN is 0, no AS announces the address
	Country  string // two capital letters; empty if unknown

	// Evidence is the evidence with high or medium confidence, and Weak is the evidence with low
	// confidence. For weak evidence, the result of a condition is unknown, and only half of the
	// points are added to the score.
	Evidence Evidence
	Weak     Evidence
	// Counts holds how often each token has occurred in this session. The index is Evidence.Index.
	Counts [64]uint32
	// Score is the sum of Verdict.Score of the earlier phases.
	Score    int
	Standing Standing
	// Failed lists user names in failed logins. Some may be missing.
	Failed [][]byte
	// RcptKnown reports whether RcptTo is known to exist. For a recipient that is known to exist,
	// conditions that count missing recipients do not match.
	RcptKnown bool
	// RcptLocal reports whether the domain of RcptTo is local. The result is unknown until a local
	// domain is known. For a local recipient, counts of relay probes do not match. For a foreign
	// recipient, a pattern that consists of a local part alone does not match.
	RcptLocal Truth
	// Window, if set, returns counts over several sessions.
	Window Counter
	// Recorded reports whether mail addresses and user names come from a stored record. Addresses
	// and names in a record may be hashed; see Settings.Privacy.
	Recorded bool

	listeners uint64 // listeners to which the session belongs
	total     int    // Score plus the points for evidence
	hashed    bool   // the result of the latest condition is unknown because of a hash
}

// A Counter returns counts of events over several sessions.
type Counter interface {
	// Count returns how often the evidence e has occurred within window. Count counts all sessions
	// that have the same value of the key by as f. The current request is not counted. ok is false
	// if the number is unknown.
	Count(f *Facts, e Evidence, window time.Duration, by Key) (n int, ok bool)
}

// A Table is a set of addresses, names and AS numbers. The case of names is ignored. A suffix such
// as `.example.org` matches the domain and all names below it.
type Table interface {
	MatchAddr(netip.Addr) bool
	MatchName([]byte) bool
	MatchASN(uint32) bool
}
