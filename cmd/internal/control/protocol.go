// Package control is the conversation between the running filter and the
// operator's command, over a Unix socket in the state directory. Who may talk
// is decided by the permissions of the file. It renders nothing.
package control

// The protocol. The server greets with a line
//
//	scanwatch-control 1
//
// and then answers commands, one a line of at most 1024 bytes: a verb and its
// arguments, divided by blanks. Each answer is one line with a JSON object. One
// with the member "error" tells that the command failed, and why. The verb
// snapshot answers {"segment":NAME,"size":N}, and then N bytes: the file.
// Either side may close the connection after an answer; the server does so
// when it cannot finish one, or when the client is slow.
//
//	status            how the filter's store is doing
//	flush             returns when all that was recorded before is on disk
//	segments          the files of recorded sessions, oldest first
//	snapshot SEGMENT  a consistent copy of the one that is being written
//	days              what was counted by the day
//	reload HOW        loads the configuration again: HOW is careful or forced
//	state             a copy of state.db, with all that is remembered
//	ban PREFIX SECONDS REASON
//	                  bans a host or network; REASON is escaped as in a URL
//	unban PREFIX      ends every ban within it, and tells which
//	log WORD          changes how much the filter logs: brief or verbose
//	watch EVIDENCE PREFIX
//	                  answers {}, and then a line for each event of that token of
//	                  evidence and from that network, as package events has them,
//	                  until the client closes its side or sends anything; - chooses
//	                  all. At most four clients may watch; one that is slow is told
//	                  what it missed, or cut off.
//
// A greeting with another number is another protocol.

import (
	"path/filepath"
	"time"

	"scanwatch/filter/events"
	"scanwatch/filter/memory"
	"scanwatch/store"
)

const (
	greeting = "scanwatch-control 1"
	maxLine  = 1024 // of a command

	maxClients   = 8
	idleTimeout  = 30 * time.Second // for the next command
	writeTimeout = 10 * time.Second // for one write
	copyTimeout  = 2 * time.Minute  // for a whole answer
)

// How reload is asked for.
const (
	Careful = "careful"
	Forced  = "forced"
)

// SocketPath is the name of the socket in the state directory dir.
func SocketPath(dir string) string { return filepath.Join(dir, "control.sock") }

// Status is the answer to "status".
type Status struct {
	Program string       `json:"program"` // version
	PID     int          `json:"pid"`
	Started time.Time    `json:"started"`
	Log     string       `json:"log"` // how much is logged: brief or verbose
	Live    Live         `json:"live"`
	Config  Config       `json:"config"`
	Store   store.Status `json:"store"`
	// State tells of the file of what is remembered across sessions, and
	// Memory how full its tables are.
	State  store.StateStatus `json:"state"`
	Memory []memory.Status   `json:"memory"`
	Events *events.Status    `json:"events,omitempty"` // of the file that the configuration names
	// Sandbox tells what is taken from the filter, in the words of its log.
	Sandbox string `json:"sandbox,omitempty"`
}

// Live tells what the filter has in hand.
type Live struct {
	Sessions int64 `json:"sessions"` // that are open
	Held     int64 `json:"held"`     // answers that wait for their time
}

// Banned is the answer to "ban" and "unban".
type Banned struct {
	Bans []memory.Ban `json:"bans"` // as they are now
	Note string       `json:"note,omitempty"`
}

// Config tells which configuration is in use.
type Config struct {
	File  string `json:"file"` // empty: there is none
	Mode  string `json:"mode"`
	Rules int    `json:"rules"`
	// Problem tells why the file is not, or not wholly, in use.
	Problem string `json:"problem,omitempty"`
	// Notes tell what of its tables and databases could not be read, or not
	// wholly; the first few.
	Notes []string `json:"notes,omitempty"`
}

type errorAnswer struct {
	Error    string `json:"error"`
	Finished bool   `json:"finished,omitempty"` // snapshot: read the file instead
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
