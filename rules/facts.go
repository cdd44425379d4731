package rules

import (
	"net/netip"
	"time"

	"scanwatch/internal/smtp"
)

// Facts contains all facts that a rule may check. The caller may use one Facts for a
// whole session. Texts are as the client sent them, and Eval does not change them.
// Facts belongs to one goroutine, because Eval stores results in it.
type Facts struct {
	Phase   smtp.Phase
	Now     time.Time
	Session uint64

	// Local is set for a session over smtpd's local socket, and Auth for a session of
	// an authenticated user. Only rules with a condition on auth apply to such
	// sessions.
	Local bool
	Auth  bool
	User  []byte // the authenticated user; empty if unknown

	Src    netip.Addr     // IPv4-mapped addresses must be IPv4
	Dst    netip.AddrPort // address of the listener, which may be a wildcard address
	RDNS   []byte         // reverse DNS name (PTR); empty if there is no name or DNS did not answer
	FCrDNS smtp.FCrDNS
	// RDNSCut reports whether smtpd may have truncated RDNS, because the name has the
	// maximum length of the system (64 bytes on Linux). Such a name proves nothing.
	RDNSCut bool
	Helo    []byte // argument of HELO or EHLO
	// MailFrom and RcptTo have no brackets and parameters. MailFrom is valid from phase
	// mail-from and is empty for the null sender. RcptTo is valid in phase rcpt-to.
	MailFrom []byte
	RcptTo   []byte
	TLS      bool

	// Listings contains the answers of DNS lists. A list that is missing has not
	// answered.
	Listings []smtp.Listing

	ASN      uint32
	ASNKnown bool   // ASN is known; it is 0 if no AS announces the address
	Country  string // two capital letters; empty if unknown

	// Evidence contains the evidence with high or medium confidence. Weak contains the
	// evidence with low confidence: conditions on it are unknown, and it counts half in
	// a score.
	Evidence Evidence
	Weak     Evidence
	// Counts contains the number of occurrences of each kind of evidence in this
	// session, by Evidence.Index.
	Counts [64]uint32
	// Score is the sum of Verdict.Score in the earlier phases.
	Score    int
	Standing Standing
	// Failed contains user names of failed logins; the list may be incomplete.
	Failed [][]byte
	// RcptKnown reports whether RcptTo is known to exist. Counts do not apply to such a
	// recipient.
	RcptKnown bool
	// Window counts events across sessions. It may be nil.
	Window Counter
	// Recorded reports whether mail addresses and user names come from a record, and
	// may therefore be hashed; see Settings.Privacy.
	Recorded bool

	listeners uint64 // the listeners of the session
	total     int    // Score and the weights of the evidence
	hashed    bool   // the latest condition was unknown because of a hash
}

// A Counter returns counts of events across sessions.
type Counter interface {
	// Count returns the number of occurrences of e within window, in all sessions for
	// which the key by has the same value as for f. It excludes the current request. It
	// returns false if the number is unknown.
	Count(f *Facts, e Evidence, window time.Duration, by Key) (n int, ok bool)
}

// A Table is a set of addresses, names and AS numbers. Names are compared
// case-insensitively. A suffix such as `.example.org` matches the domain and all
// names below it.
type Table interface {
	MatchAddr(netip.Addr) bool
	MatchName([]byte) bool
	MatchASN(uint32) bool
}
