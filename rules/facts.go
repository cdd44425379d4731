package rules

import (
	"net/netip"
	"time"

	"scanwatch/internal/smtp"
)

// Facts contains the facts of a session that rules may check. Texts are as the client
// sent them, and Eval does not change them. Eval stores results in Facts, so a Facts
// must not be used concurrently.
type Facts struct {
	Phase   smtp.Phase
	Now     time.Time
	Session uint64

	// Local is set for a session over smtpd's local socket. Auth is set for a session
	// of an authenticated user. Only rules with a condition on auth apply to local and
	// authenticated sessions.
	Local bool
	Auth  bool
	User  []byte // authenticated user; empty if unknown

	Src    netip.Addr     // IPv4-mapped addresses must be IPv4
	Dst    netip.AddrPort // address of the listener, which may be a wildcard address
	RDNS   []byte         // reverse DNS name (PTR); empty if DNS returned no name
	FCrDNS smtp.FCrDNS
	// RDNSCut reports whether smtpd may have truncated RDNS. RDNS then has the maximum
	// length of the system (64 bytes on Linux). A truncated name proves nothing.
	RDNSCut bool
	Helo    []byte // argument of HELO or EHLO
	// MailFrom and RcptTo are addresses without brackets and parameters. MailFrom is
	// valid from phase mail-from, and is empty for the null sender. RcptTo is valid in
	// phase rcpt-to.
	MailFrom []byte
	RcptTo   []byte
	TLS      bool

	ASN      uint32
	ASNKnown bool   // an ASN of 0 then means that no AS announces the address
	Country  string // two capital letters; empty if unknown

	// Evidence contains the evidence with high or medium confidence. Weak contains the
	// evidence with low confidence. Conditions on weak evidence are unknown, and weak
	// evidence counts half in a score.
	Evidence Evidence
	Weak     Evidence
	// Counts contains the number of occurrences of each token in this session, indexed
	// by Evidence.Index.
	Counts [64]uint32
	// Score is the sum of Verdict.Score in the earlier phases.
	Score    int
	Standing Standing
	// Failed contains user names of failed logins, possibly not all.
	Failed [][]byte
	// RcptKnown reports whether RcptTo is known to exist. Counts of recipients do not
	// apply to a recipient that is known to exist.
	RcptKnown bool
	// Window counts events across sessions, and may be nil.
	Window Counter
	// Recorded reports whether mail addresses and user names come from a record. Names
	// from a record may be hashed; see Settings.Privacy.
	Recorded bool

	listeners uint64 // listeners of the session
	total     int    // Score and the weights of the evidence
	hashed    bool   // a hash made the latest condition unknown
}

// A Counter returns counts of events across sessions.
type Counter interface {
	// Count returns the number of occurrences of e within window. The count covers all
	// sessions in which the key by has the same value as in f. The current request does
	// not count. If the number is unknown, ok is false.
	Count(f *Facts, e Evidence, window time.Duration, by Key) (n int, ok bool)
}

// A Table is a set of addresses, names and AS numbers. Names are compared without
// regard to case. A suffix such as `.example.org` matches the domain and all names
// below it.
type Table interface {
	MatchAddr(netip.Addr) bool
	MatchName([]byte) bool
	MatchASN(uint32) bool
}
