// Package control implements the protocol between the running filter and scanwatch(8).
// Operators use a Unix socket in the state directory. The permissions of the socket and
// of the directory control their access. Companions use a socket in a directory without
// records. Each companion may use the commands of its role. Package control does not
// format output.
package control

// The server greets with the version of the protocol.
//
//	scanwatch-control 1
//
// The server then answers commands. A command is a line of at most 1024 bytes. The line
// contains a word and arguments, separated by spaces. The answer is a line with a JSON
// object. If the command failed, the member "error" of the object contains the reason.
// The command snapshot answers {"segment":NAME,"size":N}, followed by the N bytes of the
// file. Either side may close the connection after an answer. The server also closes the
// connection after an incomplete answer, or if the client is too slow.
//
//	status            the status of the filter
//	flush             writes all earlier records to the disk
//	segments          the segments of session records, oldest first
//	snapshot SEGMENT  a consistent copy of the segment that is being written
//	days              the counters by day
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
//	                  TIME;ADDRESS;MESSAGES;SENDER or TIME;DOMAIN, see Fact
//	log WORD          sets the log level: brief or verbose
//	mode WORD SECONDS observes only for this time, or until revoked if it is 0, if
//	                  WORD is observe; WORD policy is the mode of the configuration
//	watch EVIDENCE PREFIX
//	                  answers {}, and then with a line for each event with this
//	                  evidence token from this network, in the format of package
//	                  events; - selects all. It ends when the client sends anything
//	                  or closes its side. At most four clients of a socket may
//	                  watch. A slow client receives the number of missed events or is
//	                  disconnected.
//	bans GENERATION SECONDS
//	                  answers the changes of the bans since the generation, or all
//	                  bans, after at most SECONDS without a change: see BanList. A line
//	                  for each BanEntry follows, and then {"end":true,"entries":N}.
//	                  A companion that often asks for all bans waits for them
//	spared ADDRESS    answers whether an export would omit the host
//	note NAME ENTRIES ERROR
//	                  announces a companion and its latest result; ERROR begins with
//	                  - and is escaped as in a URL
//
// A user without a role receives the line "scanwatch-control denied: REASON" instead of
// the greeting.
//
// The number in the greeting is the version of the protocol.

import (
	"path/filepath"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/text"
	"scanwatch/store"
)

const (
	greeting = "scanwatch-control 1"
	maxLine  = 1024 // length of a command in bytes

	refusal = "scanwatch-control denied: "

	maxClients     = 8                // operators
	maxOfCompanion = 2                // connections of a user by companion
	refusalTime    = time.Second      // to report that a client has no role
	idleTimeout    = 30 * time.Second // between commands
	writeTimeout   = 10 * time.Second // for one write
	copyTimeout    = 2 * time.Minute  // for a complete answer
)

// These are the arguments of the command unban.
const (
	Exact  = "exact"
	Within = "within"
)

// These are the arguments of the command reload.
const (
	Careful = "careful"
	Forced  = "forced"
)

// PolicyMode is the argument of the command mode that restores the mode of the
// configuration.
const PolicyMode = "policy"

// SocketPath returns the path of the socket in the directory dir.
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
	// State is the status of state.db. Memory contains the status of each table in
	// state.db.
	State  store.StateStatus `json:"state"`
	Memory []memory.Status   `json:"memory"`
	Bans   memory.BanCount   `json:"bans"`
	// Standing contains the numbers of known and trusted hosts.
	Standing memory.Summary `json:"standing"`
	// Lost is the last day on which state.db was lost, and with it all bans and standing.
	Lost text.Time `json:"state_lost,omitzero"`
	// Companions is the status of the companions in the configuration.
	Companions []CompanionStatus `json:"companions,omitempty"`
	// Sandbox describes the restrictions of the sandbox in the words of the log.
	Sandbox string `json:"sandbox,omitempty"`
}

// lostShown is the time for which a loss of state.db is reported. After this time, most
// of the lost bans would have expired.
const lostShown = 30 * 24 * time.Hour

// LossRemedy is the remedy for a loss of state.db.
const LossRemedy = "restore standing with scanwatch import smtpd-log --again; see LOSS OF STATE in scanwatch(8)"

// StateLost describes a recent loss of state.db and the remedy. Without a recent loss,
// StateLost returns "".
func (s *Status) StateLost(now time.Time) string { return StateLost(s.Lost.Time, now) }

// StateLost describes the loss of state.db on the day lost, and the remedy. If lost is
// zero or long ago, StateLost returns "".
func StateLost(lost, now time.Time) string {
	if now.Sub(lost) >= lostShown {
		return ""
	}
	return "state.db was lost on " + lost.Format(time.DateOnly) + ": earlier bans and standing are missing; " + LossRemedy
}

// Live describes the current load of the filter.
type Live struct {
	Sessions int64 `json:"sessions"` // open sessions
	Delayed  int64 `json:"delayed"`  // delayed replies
	Summed   int64 `json:"summed"`   // ended sessions in aggregates that are not yet written
}

// Banned is the answer to "ban" and "unban".
type Banned struct {
	Bans []memory.Ban `json:"bans"` // the new ban, or the revoked bans
	Note string       `json:"note,omitempty"`
}

// Config describes the active configuration.
type Config struct {
	File string `json:"file"` // empty without a file
	Mode string `json:"mode"`
	// Halted is set if the operator has stopped enforcement.
	Halted *Halted `json:"halted,omitempty"`
	Rules  int     `json:"rules"`
	// Problem is the reason why the filter does not use the current content of the file,
	// or not all of it.
	Problem string `json:"problem,omitempty"`
	// Notes contains the first few problems of tables and databases in the configuration.
	Notes []string `json:"notes,omitempty"`
	// Kept contains the tables that keep their previous entries because their files
	// cannot be used.
	Kept []string `json:"kept,omitempty"`
	// Digest is the result of config.Config.Digest, a hash of the files and of the tables
	// that exempt hosts.
	Digest string `json:"digest,omitempty"`
}

// Halted describes a halt, which is a command of the operator to observe only.
type Halted struct {
	Mode  string    `json:"mode"`           // of the configuration
	Until text.Time `json:"until,omitzero"` // end of the halt; zero if only the operator ends it
}

type errorAnswer struct {
	Error    string `json:"error"`
	Finished bool   `json:"finished,omitempty"` // set by snapshot if the filter no longer writes the file, so that the client can read it
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
