package rules

import (
	"net/netip"
	"time"
)

// Facts is all that a rule may look at. The caller fills it and may keep it for
// the whole session; text is as the client sent it and only read. A Facts
// belongs to one goroutine, because Eval keeps notes in it.
type Facts struct {
	Phase   Phase
	Now     time.Time
	Session uint64

	// Local is a session over smtpd's local socket, Auth one that has logged
	// in. No rule touches them unless it has an auth condition.
	Local bool
	Auth  bool
	User  []byte // who logged in; empty if that is not known

	Src    netip.Addr     // not an IPv4 address inside an IPv6 one
	Dst    netip.AddrPort // the listener's address, which may be the wildcard
	RDNS   []byte         // reverse DNS name; empty if there is none, or no answer
	FCrDNS FCrDNS
	// RDNSCut says that RDNS is as long as the system's host names can be
	// (64 bytes on Linux): smtpd has cut off its end, and it proves nothing.
	RDNSCut bool
	Helo    []byte // HELO or EHLO identity
	// MailFrom and RcptTo are without brackets and options; the null sender
	// is empty. They count from the phase on that asks for them; RcptTo only
	// in that phase.
	MailFrom []byte
	RcptTo   []byte
	TLS      bool

	ASN      uint32
	ASNKnown bool   // ASN was looked up, and is 0 if the address has none
	Country  string // two capitals; empty if that is not known

	// Evidence is what is proven, with high or medium confidence; Weak is
	// what only has low confidence, or is not decided yet. A condition
	// cannot tell about weak evidence; a score counts half of it.
	Evidence Evidence
	Weak     Evidence
	// Counts says how often each kind of evidence was seen in this session,
	// by Evidence.Index.
	Counts [64]uint32
	// Score is what rules have added so far: the sum of Verdict.Score.
	Score    int
	SeenGood Truth // mail from here was accepted before
	// Window counts over sessions; nil if nothing does.
	Window Counter
	// Recorded says that addresses and user names come from a record, where
	// hashes may stand for them; see Settings.Privacy.
	Recorded bool
	// Memo, if not nil, spares asking again what is the same in all of a
	// session. It belongs to one session and one policy.
	Memo *Memo

	listeners uint64 // those the session came in on
	total     int    // Score and the weights of the evidence
	hashed    bool   // the last condition could not tell because of a hash
}

// A Memo remembers the answers of up to 64 conditions that look for the same thing
// in the same lists in all phases of a session, a bit for each.
type Memo struct{ known, yes, no uint64 }

// A Counter knows how often something happened over many sessions.
type Counter interface {
	// Count returns how often e was seen within window, for the key by of
	// f, not counting f's own present request. It returns false if it
	// cannot tell.
	Count(f *Facts, e Evidence, window time.Duration, by Key) (n int, ok bool)
}

// A Table is a set of addresses, names and AS numbers. Names are matched blind
// to case, a suffix such as `.example.org` for the domain and all below it.
type Table interface {
	MatchAddr(netip.Addr) bool
	MatchName([]byte) bool
	MatchASN(uint32) bool
}
