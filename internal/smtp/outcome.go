package smtp

import (
	"net/netip"
	"time"
)

// OutcomeKind is the kind of an Outcome.
type OutcomeKind uint8

// The kinds. The comments name the fields that are set in addition to Kind and Time.
const (
	// OutcomeFinding is a piece of evidence: Evidence, Confidence, By, Proof, Org,
	// Match.
	OutcomeFinding OutcomeKind = iota
	// OutcomeVerdict is the decision of a rule: Rule, RuleRef, Phase, Decision,
	// Enforced, Tokens, Score, Repeat, Exempt.
	OutcomeVerdict
	// OutcomeReturn is a connection of a banned client: Rule, Phase, Decision,
	// Enforced, Until, BanSession.
	OutcomeReturn
	// OutcomeTag is a tag of a rule: Tag, Phase.
	OutcomeTag
	// OutcomeBan is a ban of a rule: Rule, RuleRef, Prefix, Until, Times, Enforced,
	// Exempt.
	OutcomeBan
)

// An Outcome is a conclusion of detectors or the policy about a session. The journal
// writes it to the record, to the log and to watchers.
type Outcome struct {
	Kind OutcomeKind
	Time int64 // microseconds since 1970

	Evidence   string // token
	Confidence string // high, medium or low
	By         string // source of the evidence
	Proof      []byte // hostile text, valid only during the call
	Org        string
	Match      string // the row or word that matched

	Rule     string // name of the rule, or reason of a manual ban
	RuleRef  uint32 // reference of the rule's text; 0 if unknown
	Phase    Phase
	Decision Decision
	Enforced bool   // carried out; false in mode observe
	Tokens   string // all evidence of the session, separated by commas
	Score    int
	Repeat   bool // the same rule has already decided in this session: record only
	Tag      string

	Prefix     netip.Prefix
	Until      time.Time
	Times      int    // number of bans of this prefix so far
	BanSession uint64 // the session that caused the ban; 0 for a manual ban
	Exempt     string // reason for withholding the ban or rejection; empty if it was not withheld
}
