package smtp

import (
	"net/netip"
	"time"
)

// OutcomeKind is the kind of an Outcome.
type OutcomeKind uint8

// The kinds of outcomes. After the colon, each comment lists the fields that are set in
// addition to Kind and Time.
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
// writes it to the record, to the log and to watchers.
type Outcome struct {
	Kind OutcomeKind
	Time int64 // microseconds since 1970

	Evidence   string // evidence token
	Confidence string // high, medium or low
	By         string // source of the evidence
	Proof      []byte // hostile text, valid only during the call
	Org        string
	Match      string // the row or word that matched

	Rule     string // name of the rule, or reason of a manual ban
	RuleRef  uint32 // reference of the rule's text in the records; 0 if unknown
	Phase    Phase
	Decision Decision
	Enforced bool   // the decision was carried out; false in mode observe
	Tokens   string // all evidence of the session, separated by commas
	Score    int
	Repeat   bool // the same rule has already made this decision in this session, so it is recorded but not logged
	Tag      string

	Prefix     netip.Prefix
	Until      time.Time
	Times      int    // number of bans of this prefix so far
	BanSession uint64 // the session that caused the ban; 0 for a manual ban
	Exempt     string // reason why the ban or rejection was withheld; empty if it was not withheld
}
