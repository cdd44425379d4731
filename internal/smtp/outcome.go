package smtp

import (
	"net/netip"
	"time"
)

// OutcomeKind is the kind of an Outcome.
type OutcomeKind uint8

// The kinds of outcomes. Kind and Time are always set. The other fields are listed
// after the colon.
const (
	// OutcomeFinding is a finding: Evidence, Confidence, By, Proof, Mailbox, Org, Match.
	OutcomeFinding OutcomeKind = iota
	// OutcomeVerdict is a rule's decision: Rule, RuleRef, Phase, Decision, Enforced,
	// Tokens, Score, Repeat, Exempt.
	OutcomeVerdict
	// OutcomeReturn is a connection from a banned client: Rule, Phase, Decision,
	// Enforced, Until, BanSession, Origin, Exempt.
	OutcomeReturn
	// OutcomeTag is a tag set by a rule: Tag, Phase.
	OutcomeTag
	// OutcomeBan is a ban by a rule: Rule, RuleRef, Prefix, Until, Times, Enforced,
	// Exempt.
	OutcomeBan
)

// An Outcome is a conclusion that detectors or the policy have drawn about a session.
// The journal records and logs it, and passes it to watchers.
type Outcome struct {
	Kind OutcomeKind
	Time int64 // microseconds since 1970

	Evidence   string // evidence token
	Confidence string // high, medium or low
	By         string // source of the evidence
	Proof      []byte // hostile text, valid only during the call
	Mailbox    bool   // Proof is the address of a recipient, in any form
	Org        string
	Match      string // row or word that matched
	Helo       []byte // greeting as logged; set by the journal

	Rule     string // name of the rule, or the reason for a manual ban
	RuleRef  uint32 // reference to the rule's text in the records; 0 if unknown
	Phase    Phase
	Decision Decision
	Enforced bool   // the decision took effect; always false in observe mode
	Tokens   string // all evidence in the session, separated by commas
	Score    int
	Repeat   bool // the rule made the same decision earlier in the session; a repeated decision is recorded but not logged
	Tag      string

	Prefix     netip.Prefix
	Until      time.Time
	Times      int    // number of bans of this prefix so far
	BanSession uint64 // session that led to the ban; 0 for a manual ban
	Origin     string // other host that imposed the ban
	Listed     bool   // the ban is based on a DNS list's answer
	Exempt     string // why the ban or rejection does not apply, or why exports omit the client
}
