// Package detect gathers evidence on a client. A detector is a function that reports
// findings, given the facts of a session and one event. The variable detectors contains
// all detectors. The package neither makes decisions nor writes output.
package detect

import (
	"slices"

	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/track"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

// A Finding is evidence of one kind, with its proof.
type Finding struct {
	Evidence   rules.Evidence
	By         string // source: rdns, cidr, asn, helo, command, reply, rcpt, auth, memory, pace, ending
	Proof      []byte // text of the client; valid only during the call
	Org        string // organisation, if known
	Match      string // row or word that matched
	Confidence string // high, medium or low
	// Implied is set if the evidence follows from facts that every record contains. An
	// implied finding is neither recorded nor logged.
	Implied bool
}

// Confidence levels. Evidence with low confidence proves nothing alone.
const (
	High   = "high"
	Medium = "medium"
	Low    = "low"
)

// State contains the evidence of one session, and the counts of the detectors.
type State struct {
	Evidence rules.Evidence // high or medium confidence
	Weak     rules.Evidence // only low confidence
	Abused   bool           // the client has shown behaviour that no mail server shows

	Relay       uint32 // recipients that were rejected because they are not local or have a source route
	Unsupported uint32 // AUTH commands on a listener without AUTH

	Rcpt     RcptClass // class of the latest EventRcpt
	Repeated bool      // the client had requested the latest missing recipient before
	Accepted mailboxes // accepted recipients
	Unknown  mailboxes // missing recipients of mail with a sender
	Bounced  mailboxes // missing recipients of bounces
	Held     mailboxes // recipients that a rule rejected because too many do not exist

	tx        mailboxes // missing recipients of this transaction
	sender    uint64    // hash of the sender of the latest missing recipient
	senders   bool      // missing recipients had different senders
	undecided bool      // a missing recipient may belong to a domain that is not local
	free      uint64    // probed mailbox that the client may request without evidence
}

// Mixed reports whether most of the mailboxes that the client requested exist. In a
// session with mostly existing mailboxes, missing mailboxes are not an offence.
// Newsletters and mailing lists with former members have missing mailboxes. Rules may
// still reject the missing recipients.
func (st *State) Mixed() bool { return st.Accepted.N > st.Unknown.N+st.Bounced.N }

// Hold counts a recipient that a rule rejected because too many recipients do not
// exist. flood reports whether the recipient adds to a flood. A session whose
// recipients mostly exist, as in the delivery of a newsletter, is not a flood.
func (st *State) Hold(mailbox uint64) (flood bool) {
	st.Held.add(mailbox)
	return st.Held.N+st.Unknown.N+st.Bounced.N > st.Accepted.N
}

// Token returns the name of the evidence.
func (f *Finding) Token() string { return tokens[f.Evidence.Index()] }

// tokens contains the names of evidence, indexed by Evidence.Index.
var tokens = func() (names [64]string) {
	for _, t := range rules.Tokens {
		names[t.Evidence.Index()] = t.Name
	}
	return names
}()

// Has reports whether st has evidence other than a missing or unproven reverse DNS
// name. The header of the record contains the facts about the name.
func (st *State) Has() bool {
	return (st.Evidence|st.Weak)&^(rules.RDNSMissing|rules.FCrDNSFail) != 0
}

// Abuse is evidence of behaviour that no mail server shows. Abuse with medium or high
// confidence is an offence.
const Abuse = rules.Scanner | rules.BotnetHelo | foreign | rules.Harvest | rules.RelayProbe | rules.AuthSpray

// CountedPerEvent is the evidence that counters across sessions count at each event.
// Other evidence counts once per session. Evidence with low confidence is never
// counted.
const CountedPerEvent = rules.UnknownRecipient | rules.Backscatter | rules.RecipientFlood | rules.RelayProbe | rules.AuthFailure | rules.AuthUnsupported | rules.UnknownCommand

// Add adds the evidence of f to st. Add returns false if st has the evidence with the
// same or a higher confidence.
func (st *State) Add(f *Finding) bool {
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

// A Case is the input of a detector. A detector may only change its own fields of
// State.
type Case struct {
	*track.Session
	State  *State
	Event  *smtp.Event
	Client *memory.Client
	Site   *Site
	Lists  *lookup.Lists
	Memory *memory.Memory
	Live   uint32 // open sessions of the same source, including this session
	Spray  Spray  // result for an EventAuth
	// Standing is the standing of the client.
	Standing rules.Standing

	Findings []Finding // findings of the current event so far
}

// Spray describes the password spray of a failed login.
type Spray struct {
	Match string // "users" or "networks"; empty for no spray
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

// A detector is a row of the table clientDetectors, conductDetectors,
// recipientDetectors or accountDetectors. Each table is in the file of its functions.
type detector struct {
	name     string
	on       kinds // kinds of events
	run      func(*Case)
	sessions sessions
}

// sessions is the kind of sessions for which a detector runs.
type sessions uint8

const (
	unauthenticated sessions = iota
	authenticated
	anySession
)

// detectors contains all detectors in the order in which they run for an event. The
// order determines only the order of the findings.
var detectors = slices.Concat(clientDetectors, conductDetectors, recipientDetectors, accountDetectors)

// byKind contains the detectors for each kind of event.
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

// Wants reports whether Run has an effect for events of a kind.
func Wants(kind smtp.Kind) bool { return observed&(1<<kind) != 0 || len(byKind[kind]) > 0 }

func (s sessions) include(authed bool) bool { return s == anySession || (s == authenticated) == authed }

// Run runs the detectors on c and appends their findings to c.Findings. Local sessions
// and friends have no findings.
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
