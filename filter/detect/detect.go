// Package detect gathers evidence against clients. A detector is a function that examines an event
// and the facts about its session, and reports findings. The variable detectors lists all
// detectors. The package neither makes decisions nor writes output.
package detect

import (
	"slices"

	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/track"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

// A Finding is one kind of evidence against a client, with the proof for it.
type Finding struct {
	Evidence   rules.Evidence
	By         string // source: rdns, cidr, asn, helo, command, reply, rcpt, auth, memory, pace, ending
	Proof      []byte // text from the client; valid only during the call
	Org        string // organisation, if known
	Match      string // row of a list, or word, that matched
	Confidence string // high, medium or low
	Mailbox    bool   // Proof is the address of a recipient, in any form
	// Implied is set if the evidence follows from facts that are in every record. A finding with
	// Implied is neither recorded nor logged.
	Implied bool
}

// Confidence levels. Evidence with low confidence proves nothing unless there is other evidence.
const (
	High   = "high"
	Medium = "medium"
	Low    = "low"
)

// State holds the evidence gathered in a session and the detectors' counts.
type State struct {
	Evidence rules.Evidence // evidence with high or medium confidence
	Weak     rules.Evidence // evidence with only low confidence
	Past     rules.Evidence // evidence about an earlier greeting that a later one has replaced; rules ignore it
	Abused   bool           // the client has behaved as mail servers never do

	Relay       uint32 // distinct recipients rejected because they are not local or have a source route
	Unsupported uint32 // AUTH commands on a listener without AUTH, except on a submission port

	Rcpt     RcptClass // class of the latest EventRcpt
	Repeated bool      // the latest missing or foreign recipient was requested before
	Missed   bool      // the latest recipient has the class RcptRoute, and is also a new missing recipient
	Accepted mailboxes // accepted recipients
	Unknown  mailboxes // missing recipients of mail with a sender address
	Bounced  mailboxes // missing recipients of bounces
	Names    mailboxes // names in rejected VRFY and EXPN commands
	Held     mailboxes // recipients that a rule rejected for the first time because too many do not exist
	Deferred mailboxes // recipients in Held, and retries of recipients that a rule has rejected
	Denied   uint32    // recipients in Unknown and Bounced that a rule has rejected as well
	Turned   bool      // a rule has rejected the latest request

	tx        mailboxes // missing recipients of this transaction
	unnamed   uint32    // accepted recipients of this transaction that a log does not name
	sender    uint64    // hash of the sender of the latest missing recipient
	senders   bool      // missing recipients had different senders
	undecided bool      // the domain of a missing recipient may not be local
	free      uint64    // probed mailbox that the client may request once without evidence
	early     []byte    // server's reply to input that was pipelined, before the finding
	first     bool      // this input was the first
}

// MostlyMissing reports whether most recipients of the session are missing, or were rejected by a
// rule.
func (st *State) MostlyMissing() bool { return Mostly(st.Unknown.N+st.Deferred.N, st.Accepted.N) }

// New returns the number of rejected recipients and names that the client requested for the first
// time. The retries of a mailing list contain no such recipients, but a harvest does.
func (st *State) New() uint32 { return st.Unknown.N + st.Bounced.N + st.Held.N + st.Relay + st.Names.N }

// Mostly reports whether missing mailboxes are as many as in a harvest, and at least three quarters
// of all mailboxes.
func Mostly(missing, existing uint32) bool {
	return missing >= harvestAll && 4*missing >= 3*(missing+existing)
}

// Hold counts a recipient that a rule rejected because too many recipients do not exist. again is
// set if a rule has rejected the recipient before. flood reports whether the rejected recipients
// count as a flood. The rejected recipients are not a flood if most recipients exist, as is usual
// for a newsletter.
func (st *State) Hold(mailbox uint64, again bool) (flood bool) {
	st.Deferred.add(mailbox)
	if again {
		return false
	}
	st.Held.add(mailbox)
	return st.flood()
}

// Deny counts a missing recipient that the server itself rejected before a rule did. The server's
// reply shows that the recipient is missing, so the recipient does not count in Held. flood is as for
// Hold.
func (st *State) Deny() (flood bool) {
	st.Denied++
	return st.flood()
}

func (st *State) flood() bool { return st.Held.N+st.Unknown.N+st.Bounced.N > st.Accepted.N }

// Token returns the evidence's name.
func (f *Finding) Token() string { return tokens[f.Evidence.Index()] }

// tokens holds the name of each kind of evidence. The index is Evidence.Index.
var tokens = func() (names [64]string) {
	for _, t := range rules.Tokens {
		names[t.Evidence.Index()] = t.Name
	}
	return names
}()

// Has reports whether st has any evidence other than a missing or unproven reverse DNS name. Every
// record's header already shows the name.
func (st *State) Has() bool {
	return (st.Evidence|st.Weak)&^(rules.RDNSMissing|rules.FCrDNSFail) != 0
}

// Abuse is the set of evidence that mail servers never cause. Evidence in Abuse is an offence if
// its confidence is medium or high.
const Abuse = rules.Scanner | rules.BotnetHelo | foreign | rules.Harvest | rules.RelayProbe | rules.AuthSpray

// CountedPerEvent is the set of evidence that is counted at each event. All other evidence is
// counted once per session. These counts cover all sessions of a client and do not include evidence
// with low confidence.
const CountedPerEvent = rules.UnknownRecipient | rules.Backscatter | rules.RecipientFlood | rules.RelayProbe | rules.AuthFailure | rules.AuthUnsupported | rules.UnknownCommand

// Current returns the evidence that rules may use.
func (st *State) Current() (evidence, weak rules.Evidence) {
	return st.Evidence &^ st.Past, st.Weak &^ st.Past
}

// Evidence about greetings. A client that has made a mistake in its greeting may correct it. A
// false name is corrected only by a proven one.
const (
	mistakes = rules.HeloMissing | rules.HeloUnqualified | rules.HeloBareAddress | rules.HeloLocalhost | rules.HeloWord | rules.HeloInvalid
	lies     = rules.HeloForged | rules.HeloOwnName | rules.HeloOwnAddress
)

// greeted updates the state after a new greeting, before the detectors examine it. The record keeps
// the evidence about earlier greetings.
func (st *State) greeted(c *Case) {
	if !c.greets() || !c.NewHelo {
		return
	}
	st.Past |= (st.Evidence | st.Weak) & mistakes
	if c.provenHelo() {
		st.Past |= (st.Evidence | st.Weak) & lies
	}
}

// Add adds the evidence of f to st. Add returns false if st already has this evidence with at least
// the same confidence.
func (st *State) Add(f *Finding) bool {
	st.Past &^= f.Evidence
	low := f.Confidence == Low
	if st.Evidence.Has(f.Evidence) || low && st.Weak.Has(f.Evidence) {
		return false
	}
	if low {
		st.Weak |= f.Evidence
		return true
	}
	st.Evidence |= f.Evidence
	st.Weak &^= f.Evidence
	st.Abused = st.Abused || f.Evidence&Abuse != 0
	return true
}

// A Case is the input of a detector. Each detector may change only its own fields in State.
type Case struct {
	*track.Session
	State  *State
	Event  *smtp.Event
	Client *memory.Client
	Site   *Site
	Lists  *lookup.Lists
	Memory *memory.Memory
	Live   uint32 // open sessions from the same source, including this one
	Spray  Spray  // set for an EventAuth
	// Standing is the client's standing.
	Standing rules.Standing

	Findings []Finding // findings that the current event has caused so far
}

// Spray describes the password spray to which a failed login belongs.
type Spray struct {
	Match string // "users", "networks" or "rate"; empty if there is no spray
	Sure  bool
}

func (c *Case) find(f Finding) { c.Findings = append(c.Findings, f) }

// kinds is a set of event kinds.
type kinds uint32

func on(list ...smtp.Kind) (k kinds) {
	for _, kind := range list {
		k |= 1 << kind
	}
	return k
}

// A detector is a row in one of the tables clientDetectors, conductDetectors, recipientDetectors
// and accountDetectors. Each table is in the same file as its detector functions.
type detector struct {
	name     string
	on       kinds // kinds of events that it handles
	run      func(*Case)
	sessions sessions
}

// sessions selects the sessions in which a detector runs.
type sessions uint8

const (
	unauthenticated sessions = iota
	authenticated
	anySession
)

// detectors lists all detectors in the order in which they run. The order affects only
// the order of the findings.
var detectors = slices.Concat(clientDetectors, conductDetectors, recipientDetectors, accountDetectors)

// byKind lists the detectors for each kind of event.
var byKind = func() (all [smtp.NumKinds][]*detector) {
	for i := range detectors {
		for kind := range all {
			if d := &detectors[i]; d.on&(1<<kind) != 0 {
				all[kind] = append(all[kind], d)
			}
		}
	}
	return all
}()

// Wants reports whether Run may have an effect for events of the given kind.
func Wants(kind smtp.Kind) bool { return observed&(1<<kind) != 0 || len(byKind[kind]) > 0 }

func (s sessions) include(authed bool) bool { return s == anySession || (s == authenticated) == authed }

// Run runs the detectors on c and appends their findings to c.Findings. Local sessions, and
// sessions of clients in the table "friends", never have findings.
func Run(c *Case) {
	if c.State.observe(c); c.Local || c.Friend || !c.Src.IsValid() {
		return
	}
	for _, d := range byKind[c.Event.Kind] {
		if d.sessions.include(c.Authed) {
			d.run(c)
		}
	}
}
