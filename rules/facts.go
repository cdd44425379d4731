package rules

import (
	"net/netip"
	"time"

	"scanwatch/internal/smtp"
)

// Facts holds the facts of a session that rules may check. Text is in the client's
// original form, and Eval does not change it. Eval stores results in Facts, so a Facts
// must not be used concurrently.
type Facts struct {
	Phase   smtp.Phase
	Now     time.Time
	Session uint64

	// Local is set for a session over smtpd's local socket, and Auth for an
	// authenticated user's session. Only rules with a condition on auth apply
	// to local and authenticated sessions.
	Local bool
	Auth  bool
	User  []byte // authenticated user; empty if unknown

	Src    netip.Addr     // IPv4-mapped addresses must be IPv4
	Dst    netip.AddrPort // listener address, possibly a wildcard
	RDNS   []byte         // reverse DNS name (PTR); empty if DNS returned none
	FCrDNS smtp.FCrDNS
	// RDNSCut reports whether smtpd may have truncated RDNS, because its length is the
	// maximum on this system (64 bytes on Linux). A truncated name proves nothing.
	RDNSCut bool
	Helo    []byte // argument of HELO or EHLO
	// MailFrom and RcptTo are addresses without brackets or parameters.
	// MailFrom is valid from the mail-from phase onwards and is empty for the
	// null sender. RcptTo is valid in the rcpt-to phase.
	MailFrom []byte
	RcptTo   []byte
	TLS      bool

	// Listings holds the answers of the DNS lists that have answered.
	Listings []smtp.Listing

	ASN      uint32
	ASNKnown bool   // if set, an ASN of 0 means that no AS announces the address
	Country  string // two capital letters; empty if unknown

	// Evidence holds the evidence with high or medium confidence, and Weak the evidence
	// with low confidence. Conditions on weak evidence are unknown, and weak
	// evidence adds only half of its points to a score.
	Evidence Evidence
	Weak     Evidence
	// Counts holds the number of times each token occurred in this session, by
	// Evidence.Index.
	Counts [64]uint32
	// Score is the sum of Verdict.Score in earlier phases.
	Score    int
	Standing Standing
	// Failed lists the user names of failed logins. The list may be incomplete.
	Failed [][]byte
	// RcptKnown reports whether RcptTo is known to exist. Counts of missing
	// recipients do not include a recipient that is known to exist.
	RcptKnown bool
	// RcptLocal reports whether RcptTo is in a local domain. It is unknown until a local
	// domain is known. Counts of relay probes do not affect a local recipient, and a
	// condition on a local part alone does not match a foreign one.
	RcptLocal Truth
	// Window, if set, counts events across sessions.
	Window Counter
	// Recorded reports whether mail addresses and user names come from a record, where
	// they may be hashed; see Settings.Privacy.
	Recorded bool

	listeners uint64 // listeners of the session
	total     int    // Score and the weights of the evidence
	hashed    bool   // the latest condition is unknown because of a hash
}

// A Counter returns counts of events across sessions.
type Counter interface {
	// Count returns the number of times e occurred within window, in all sessions that
	// have the same value of by as f. The current request is not counted. ok is false
	// if the number is unknown.
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
