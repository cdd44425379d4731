package smtp

import (
	"net/netip"
	"time"
)

// OutcomeKind is the kind of an Outcome.
type OutcomeKind uint8

// The kinds of outcomes. Kind and Time are set for every kind. The comment on a kind
// lists the other fields after the colon.
const (
	// OutcomeFinding is a finding: Evidence, Confidence, By, Proof, Org, Match.
	OutcomeFinding OutcomeKind = iota
	// OutcomeVerdict is the decision of a rule: Rule, RuleRef, Phase, Decision,
	// Enforced, Tokens, Score, Repeat, Exempt.
	OutcomeVerdict
	// OutcomeReturn is a connection of a banned client: Rule, Phase, Decision,
	// Enforced, Until, BanSession.
	OutcomeReturn
	// OutcomeTag is a tag that a rule sets: Tag, Phase.
	OutcomeTag
	// OutcomeBan is a ban by a rule: Rule, RuleRef, Prefix, Until, Times, Enforced,
	// Exempt.
	OutcomeBan
)

// An Outcome is a conclusion of detectors or the policy about a session. The journal
// writes an Outcome to the record, to the log and to watchers.
type Outcome struct {
	Kind OutcomeKind
	Time int64 // microseconds since 1970

	Evidence   string // evidence token
	Confidence string // high, medium or low
	By         string // source of the evidence
	Proof      []byte // hostile text, valid only during the call
	Org        string
	Match      string // row or word that matched

	Rule     string // name of the rule, or reason of a manual ban
	RuleRef  uint32 // reference of the rule's text in the records; 0 if unknown
	Phase    Phase
	Decision Decision
	Enforced bool   // the decision took effect; false in mode observe
	Tokens   string // all evidence of the session, separated by commas
	Score    int
	Repeat   bool // repeated decision of the same rule in the session, which is recorded but not logged
	Tag      string

	Prefix     netip.Prefix
	Until      time.Time
	Times      int    // number of bans of this prefix so far
	BanSession uint64 // session that caused the ban; 0 for a manual ban
	Exempt     string // reason for the exemption from the ban or rejection; empty for no exemption
}
