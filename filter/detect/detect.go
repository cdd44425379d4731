// Package detect gathers evidence about a client. Each detector is a function of the
// facts of a session and one event, and reports findings. The variable detectors
// contains all of them. The package neither makes decisions nor writes output.
package detect

import (
	"slices"

	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/track"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

// A Finding is one piece of evidence with its proof.
type Finding struct {
	Evidence   rules.Evidence
	By         string // the source: rdns, cidr, asn, helo, command, reply, rcpt, auth, memory, pace, ending
	Proof      []byte // the client's own words; valid only during the call
	Org        string // the organisation, if known
	Match      string // the row or word that matched
	Confidence string // high, medium or low
	// Implied marks evidence that the facts of the session alone prove. It is neither
	// recorded nor logged as a finding.
	Implied bool
}

// Confidence levels. Evidence with low confidence alone proves nothing.
const (
	High   = "high"
	Medium = "medium"
	Low    = "low"
)

// State is the knowledge of the detectors about one session.
type State struct {
	Evidence rules.Evidence // with high or medium confidence
	Weak     rules.Evidence // with low confidence only
	Abused   bool           // the client behaved as no mail server does

	Relay       uint32 // recipients rejected because they are not local, or are source routes
	Unsupported uint32 // AUTH commands where AUTH is not offered

	Rcpt     RcptClass // of the latest EventRcpt
	Repeated bool      // the client has already requested the missing recipient
	Accepted mailboxes // accepted recipients
	Unknown  mailboxes // missing recipients of mail with a sender
	Bounced  mailboxes // missing recipients of bounces
	Held     mailboxes // recipients that a rule rejected because too many do not exist

	tx        mailboxes // missing recipients of this transaction
	sender    uint64    // of the latest missing recipient
	senders   bool      // missing recipients had different senders
	undecided bool      // a missing recipient may belong to a domain that is not local
	free      uint64    // probed mailbox that the client may request
}

// Mixed reports whether the client requested more existing mailboxes than missing ones,
// as newsletters and mailing lists with former members do. The count of missing
// mailboxes is then not an offence, but recipients are still rejected.
func (st *State) Mixed() bool { return st.Accepted.N > st.Unknown.N+st.Bounced.N }

// Hold counts a recipient that a rule rejected because too many do not exist. It
// reports whether the recipient adds to a flood: not in a session in which most
// recipients exist, such as that of a newsletter.
func (st *State) Hold(mailbox uint64) (flood bool) {
	st.Held.add(mailbox)
	return st.Held.N+st.Unknown.N+st.Bounced.N > st.Accepted.N
}

// Token returns the token of a single piece of evidence.
func (f *Finding) Token() string { return tokens[f.Evidence.Index()] }

// tokens holds the names of evidence by Evidence.Index.
var tokens = func() (names [64]string) {
	for _, t := range rules.Tokens {
		names[t.Evidence.Index()] = t.Name
	}
	return names
}()

// Has reports whether st has evidence beyond the facts in the header of the record.
func (st *State) Has() bool {
	return (st.Evidence|st.Weak)&^(rules.RDNSMissing|rules.FCrDNSFail) != 0
}

// Abuse is evidence of behaviour that no mail server shows. It is an offence unless its
// confidence is low.
const Abuse = rules.Scanner | rules.BotnetHelo | foreign | rules.Harvest | rules.RelayProbe | rules.AuthSpray

// CountedPerEvent is evidence that counters over sessions count at each event. All
// other evidence counts once per session. Evidence with low confidence is never
// counted.
const CountedPerEvent = rules.UnknownRecipient | rules.Backscatter | rules.RecipientFlood | rules.RelayProbe | rules.AuthFailure | rules.AuthUnsupported | rules.UnknownCommand

// Add adds the evidence of f to st. It reports false if st has that evidence
// already, with the same confidence or a higher one.
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

// A Case is the input of a detector. Its fields are read-only for detectors,
// except their own part of State.
type Case struct {
	*track.Session
	State  *State
	Event  *smtp.Event
	Client *memory.Client
	Site   *Site
	Lists  *lookup.Lists
	Memory *memory.Memory
	Live   uint32 // open sessions of the same source, this one included
	Spray  Spray  // of an EventAuth
	// Standing is the standing of the client.
	Standing rules.Standing

	Findings []Finding // so far
}

// Spray is the knowledge about the source and the user of a failed login.
type Spray struct {
	Match string // users or networks; empty if there is no spray
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

// A detector is a row of the tables clientDetectors, conductDetectors,
// recipientDetectors and accountDetectors, each in the file of its functions.
type detector struct {
	name     string
	on       kinds // the kinds of events
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

// byKind are the detectors for each kind of events.
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

// Wants reports whether Run does anything with events of a kind.
func Wants(kind smtp.Kind) bool { return observed&(1<<kind) != 0 || len(byKind[kind]) > 0 }

func (s sessions) include(authed bool) bool { return s == anySession || (s == authenticated) == authed }

// Run runs all detectors on c and appends their findings to c.Findings. Local sessions
// and friends give no evidence.
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
