package rules

import (
	"net/netip"
	"time"

	"scanwatch/internal/smtp"
)

// Facts contains all facts that a rule may check. The caller may keep it for a whole
// session. Texts are in the client's original form, and Eval does not change them.
// Facts belongs to one goroutine, because Eval stores results in it.
type Facts struct {
	Phase   smtp.Phase
	Now     time.Time
	Session uint64

	// Local is a session over smtpd's local socket, Auth a session of an
	// authenticated user. Only rules with an auth condition apply to them.
	Local bool
	Auth  bool
	User  []byte // the authenticated user; empty if unknown

	Src    netip.Addr     // unmapped
	Dst    netip.AddrPort // the listener's address, possibly unspecified
	RDNS   []byte         // reverse DNS name (PTR); empty without a name or an answer
	FCrDNS smtp.FCrDNS
	// RDNSCut reports whether smtpd may have truncated RDNS: its length is the maximum
	// of the system (64 bytes on Linux), and it proves nothing.
	RDNSCut bool
	Helo    []byte // HELO or EHLO identity
	// MailFrom and RcptTo have no brackets and parameters. MailFrom is valid from phase
	// mail-from and is empty for the null sender. RcptTo is valid in phase rcpt-to.
	MailFrom []byte
	RcptTo   []byte
	TLS      bool

	ASN      uint32
	ASNKnown bool   // ASN was looked up; it is 0 if no AS announces the address
	Country  string // two capital letters; empty if unknown

	// Evidence has high or medium confidence. Weak has only low confidence, or is
	// undecided: conditions on it are unknown, and it counts half in a score.
	Evidence Evidence
	Weak     Evidence
	// Counts is the number of times of each evidence in this session, by
	// Evidence.Index.
	Counts [64]uint32
	// Score is the sum of Verdict.Score of the earlier phases.
	Score    int
	Standing Standing
	// Failed contains some of the users that failed to log in.
	Failed [][]byte
	// RcptKnown reports whether RcptTo is known to exist, so that no count applies to
	// it.
	RcptKnown bool
	// Window counts over sessions. It may be nil.
	Window Counter
	// Recorded reports whether addresses and user names come from a record and
	// may be hashes; see Settings.Privacy.
	Recorded bool

	listeners uint64 // the listeners of the session
	total     int    // Score and the weights of the evidence
	hashed    bool   // the last condition was unknown because of a hash
}

// A Counter counts events over many sessions.
type Counter interface {
	// Count returns the number of times of e within window under the key by of
	// f, without f's own present request. It returns false if the number is
	// unknown.
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
