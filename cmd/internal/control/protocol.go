// Package control implements the protocol between a running filter and scanwatch(8).
// Operators use a Unix socket in the state directory. Access is controlled by the
// permissions of the socket and the directory. Companions use a socket in a separate
// directory without records. Each companion may use the commands of its role. Formatting
// output is left to the callers.
package control

// On connection, the server sends a greeting with the protocol version.
//
//	scanwatch-control 1
//
// The server then answers commands. A command is a line of at most 8192 bytes: a word and
// its arguments, separated by spaces. The answer is a line with a JSON object. If the
// command failed, the member "error" gives the reason. The answer to "snapshot" is
// {"segment":NAME,"size":N}, followed by the N bytes of the file. Either side may close
// the connection after an answer. The server also closes the connection after an
// incomplete answer, or if the client is too slow.
//
//	status            the filter's status
//	flush             writes all earlier records to disk
//	segments          the segments of session records, oldest first
//	snapshot SEGMENT  a consistent copy of the segment being written
//	days              the daily counters
//	reload HOW        reloads the configuration; HOW is careful or forced
//	state             a consistent copy of state.db
//	ban PREFIX SECONDS REASON
//	                  bans a host or network; REASON is escaped as in a URL
//	unban PREFIX HOW  revokes and returns the ban of PREFIX, or all bans within it;
//	                  HOW is exact or within
//	forget PERSON HOW removes a person from the state; PERSON is an address, a prefix, a
//	                  mailbox or a user, escaped as in a URL; HOW is keep-bans or bans
//	erase SEGMENT PERSON
//	                  removes a person from a segment of records
//	learn FACTS       adds facts from the mail log to the state, separated by commas:
//	                  TIME;ADDRESS;MESSAGES;SENDER, TIME;DOMAIN or TIME;;MAILBOX, see Fact
//	log WORD          sets the log level: brief or verbose
//	mode WORD SECONDS WORD observe stops enforcement for SECONDS, or until it is revoked
//	                  if SECONDS is 0; WORD policy restores the configured mode
//	source STATUS     sets the status of the log that is read for a milter: a SourceStatus
//	session FACTS     adds the facts of a session that has ended, read from the same log;
//	                  see milter.Logged. STATUS and FACTS are JSON in base64url. Only
//	                  milter-scanwatch offers source and session
//	watch EVIDENCE PREFIX
//	                  answers {}, and then with a line for each event with this
//	                  evidence token from this network, in the format of package
//	                  events; - selects all. It ends when the client sends anything
//	                  or closes its side. At most four clients of a socket may
//	                  watch. A slow client receives the number of missed events or is
//	                  disconnected.
//	bans GENERATION SECONDS
//	                  answers with the changes to the bans since the generation, or with
//	                  all bans. If nothing changes, the answer follows after SECONDS. It
//	                  is a BanList, a line for each BanEntry, and {"end":true,"entries":N}.
//	                  A companion that often asks for all bans has to wait for them
//	questions SECONDS returns {"questions":[{"src":ADDRESS,"lists":[LIST,...]},...]}: the
//	                  addresses about which the companion must ask DNS lists. If there
//	                  are no questions, the answer follows after SECONDS
//	facts FACTS       passes on answers to questions, separated by commas:
//	                  ADDRESS;LIST;CODES;SECONDS. CODES are separated by /. They are - if
//	                  the address is not listed, and ? with a cause if this is unknown.
//	                  Answers without a question are counted and have no effect
//	spared ADDRESS    reports whether an export would omit the host
//	fleet FINGERPRINT succeeds if the filter uses the fleet key with this fingerprint
//	rows SKEW HOW     returns the rows of the state that other hosts must receive:
//	                  {"entries":N,"more":BOOL,"drop":[HOST,...]} and N lines with a
//	                  bucket, a key and a value, see package memory. HOW is all or
//	                  changes. SKEW is the number of seconds that are added to times
//	foreign SKEW ROWS sets rows from other hosts, separated by commas:
//	                  TABLE;KEY;VALUE;HOST, with KEY and VALUE in base64url
//	partial SKEW ROWS is like foreign, but for rows from only some of the other hosts
//	imported LIST     sets the status of hosts whose files have been imported
//	hosts HOW LIST    sets the status of other hosts; HOW is first or more, LIST is a
//	                  JSON array, escaped as in a URL
//	drop HOST         waits until the companion has dropped another host's rows;
//	                  dropped HOST ROWS is the companion's answer
//	disown HOST       deletes the filter's rows from another host
//	note NAME ENTRIES ERROR
//	                  announces a companion and its latest result; ERROR begins with
//	                  - and is escaped as in a URL
//
// A user without a role receives the line "scanwatch-control denied: REASON" instead of a
// greeting.
//
// The number in the greeting is the protocol version.

import (
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"scanwatch/filter/dnslist"
	"scanwatch/filter/memory"
	"scanwatch/filter/share"
	"scanwatch/internal/text"
	"scanwatch/store"
)

const (
	greeting = "scanwatch-control 1"
	maxLine  = 8192 // length of a command line in bytes

	refusal = "scanwatch-control denied: "

	maxClients     = 8                // operators
	maxOfCompanion = 2                // connections of a user, per companion
	refusalTime    = time.Second      // for sending the reason for a refusal
	idleTimeout    = 30 * time.Second // between commands
	writeTimeout   = 10 * time.Second // for one write
	copyTimeout    = 2 * time.Minute  // for a complete answer
)

// Arguments of the unban command.
const (
	Exact  = "exact"
	Within = "within"
)

// Arguments of the reload command.
const (
	Careful = "careful"
	Forced  = "forced"
)

// PolicyMode is the argument of the mode command that restores the configured mode.
const PolicyMode = "policy"

// SocketPath returns the path of the socket in dir.
func SocketPath(dir string) string { return filepath.Join(dir, "control.sock") }

// Status is the answer to "status".
type Status struct {
	Program string       `json:"program"` // version
	PID     int          `json:"pid"`
	Started text.Time    `json:"started"`
	Log     string       `json:"log"` // level: brief or verbose
	Live    Live         `json:"live"`
	Config  Config       `json:"config"`
	Store   store.Status `json:"store"`
	// State is the status of state.db, and Memory the status of each of its tables.
	State  store.StateStatus `json:"state"`
	Memory []memory.Status   `json:"memory"`
	Bans   memory.BanCount   `json:"bans"`
	// Standing counts the known and trusted hosts.
	Standing memory.Summary `json:"standing"`
	// Lost is the last day on which state.db was lost, along with all bans and standing.
	Lost text.Time `json:"state_lost,omitzero"`
	// Companions is the status of the configured companions.
	Companions []CompanionStatus `json:"companions,omitempty"`
	// Lookups is the status of the DNS lists in the configuration.
	Lookups []dnslist.ListStatus `json:"lookups,omitempty"`
	// Fleet is the name of this host and the fleet's key. It is nil without a fleet statement.
	Fleet *FleetStatus `json:"fleet,omitempty"`
	// Hosts is the status of the other hosts that share their state.
	Hosts []share.HostStatus `json:"hosts,omitempty"`
	// Source is the status of the log that scanwatch follow reads, possibly for a milter. It is nil
	// if no log is read.
	Source *SourceStatus `json:"source,omitempty"`
	// Sandbox describes the active restrictions in the same words as the log.
	Sandbox string `json:"sandbox,omitempty"`
}

// A SourceStatus describes the log that scanwatch follow reads.
type SourceStatus struct {
	Kind      string    `json:"kind"`
	File      string    `json:"file"`
	Position  int64     `json:"position"` // bytes read
	Behind    int64     `json:"behind"`   // bytes not read yet
	Last      text.Time `json:"last,omitzero"`
	Lines     int       `json:"lines"`
	Unknown   int       `json:"not_understood"`
	TooLong   int       `json:"too_long"`
	Sessions  int       `json:"sessions"`
	Rotations int       `json:"rotations"`
	// Samples holds the first lines that were not understood, quoted.
	Samples []string `json:"samples,omitempty"`
	Problem string   `json:"problem,omitempty"`
}

// lostShown is the time for which a loss of state.db is reported. After that time, most
// of the lost bans would have expired.
const lostShown = 30 * 24 * time.Hour

// LossRemedy is the remedy for a loss of state.db.
const LossRemedy = "restore standing with scanwatch import smtpd-log --again; see LOSS OF STATE in scanwatch(8)"

// StateLost describes a recent loss of state.db and its remedy. Without a recent loss,
// the result is "".
func (s *Status) StateLost(now time.Time) string { return StateLost(s.Lost.Time, now) }

// StateLost describes the loss of state.db on the day lost, and its remedy. If lost is
// zero or long ago, the result is "".
func StateLost(lost, now time.Time) string {
	if now.Sub(lost) >= lostShown {
		return ""
	}
	return "state.db was lost on " + lost.Format(time.DateOnly) + ": earlier bans and standing are missing; " + LossRemedy
}

// Live describes the filter's current load.
type Live struct {
	Sessions int64 `json:"sessions"` // open sessions
	Delayed  int64 `json:"delayed"`  // delayed replies
	Summed   int64 `json:"summed"`   // ended sessions in aggregates that are not yet written
}

// FleetStatus describes this host as a member of a fleet.
type FleetStatus struct {
	Name    string `json:"name"`
	Key     string `json:"key,omitempty"`     // fingerprint
	Problem string `json:"problem,omitempty"` // reason why this host cannot share rows
	// Observe is set if bans by other hosts are not enforced, and Ignore lists the hosts
	// whose rows are not used.
	Observe bool     `json:"observe,omitempty"`
	Ignore  []string `json:"ignore,omitempty"`
}

// maxNamedHosts is the maximum number of hosts that FleetProblems names.
const maxNamedHosts = 10

// FleetProblems returns this host's problems as a member of a fleet, and the problems of the other
// hosts that the companion does not already report.
func (s *Status) FleetProblems() (all []string) {
	if s.Fleet != nil && s.Fleet.Problem != "" {
		all = append(all, "fleet: "+s.Fleet.Problem)
	}
	more := 0
	for i := range s.Hosts {
		problem := fmt.Sprintf("host %s: %s", s.Hosts[i].Name, s.Hosts[i].Problem)
		switch {
		case s.Hosts[i].Problem == "" || slices.ContainsFunc(s.Companions, func(c CompanionStatus) bool { return c.Error == problem }):
		case len(all) == maxNamedHosts:
			more++
		default:
			all = append(all, problem)
		}
	}
	if more > 0 {
		all = append(all, fmt.Sprintf("%d more hosts have problems; see scanwatch status", more))
	}
	return all
}

// Banned is the answer to "ban" and "unban".
type Banned struct {
	Bans []memory.Ban `json:"bans"` // the new ban, or the revoked bans
	Note string       `json:"note,omitempty"`
	// Elsewhere is set if this host has no ban on the prefix, but other hosts must end their bans.
	Elsewhere bool `json:"elsewhere,omitempty"`
}

// Config describes the active configuration.
type Config struct {
	File string `json:"file"` // empty without a file
	Mode string `json:"mode"`
	// Halted is set if the operator has stopped enforcement.
	Halted *Halted `json:"halted,omitempty"`
	Rules  int     `json:"rules"`
	// Problem is the reason why the filter does not use the current configuration file,
	// or uses only part of it.
	Problem string `json:"problem,omitempty"`
	// Notes lists the first few problems with configured tables and databases.
	Notes []string `json:"notes,omitempty"`
	// Kept lists the tables that keep their previous entries because their files cannot
	// be used.
	Kept []string `json:"kept,omitempty"`
	// Digest is the result of config.Config.Digest, a hash of the configuration files and
	// the tables that exempt hosts.
	Digest string `json:"digest,omitempty"`
}

// Halted describes a halt, an operator's command to observe only.
type Halted struct {
	Mode  string    `json:"mode"`           // configured mode
	Until text.Time `json:"until,omitzero"` // end of the halt; zero if only the operator ends it
}

type errorAnswer struct {
	Error    string `json:"error"`
	Finished bool   `json:"finished,omitempty"` // the segment is complete; the client must read its file
}

type snapshotAnswer struct {
	Segment string `json:"segment"`
	Size    int64  `json:"size"`
}

type daysAnswer struct {
	Days []memory.Day `json:"days"`
}

type segmentsAnswer struct {
	Segments []store.Segment `json:"segments"`
}
