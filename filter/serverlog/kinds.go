// Package serverlog is the front end for the logs of mail servers. The package parses the lines of
// a log and reports the events of each session after the session has ended.
//
// Evidence against a client must be certain, but evidence in its favour need not be. Each session
// is therefore reported as a whole, and accepted recipients come before rejected ones. A command
// that is missing from the log is not evidence. Kinds lists the facts that each kind of log lacks.
// All kinds lack the following facts:
//
//   - how many sessions a client has open at the same time
//   - the time between a reply and the next command
//   - text that the server has shortened or replaced
package serverlog

import (
	"scanwatch/filter/maillog"
	"scanwatch/internal/smtp"
)

// A Kind is a kind of log.
type Kind struct {
	Name  string
	Short string // short description of the log and its server
	// Unknown lists the facts that the log does not contain.
	Unknown []string
	// Tried reports whether the parser was tested with logs that the server has written. If Tried
	// is not set, the parser was written from the published description of the format.
	Tried bool
	// Syslog reports whether the lines have a syslog prefix.
	Syslog bool
	// idle is the time in microseconds after which a session without further lines is considered
	// ended.
	idle int64
	// quiet is the ending of a session that is considered ended because it was idle. The ending is
	// unknown if the log normally shows how a session ends.
	quiet smtp.Ending

	make func(*table) parser
}

const (
	second = int64(1_000_000)
	minute = 60 * second
)

// A parser parses the lines of one kind of log.
type parser interface {
	line(*maillog.Line) verdict
}

// A verdict is the result of parsing a line.
type verdict uint8

const (
	foreign verdict = iota // a line from another program
	used
	unknown
)

// Kinds lists all kinds.
var Kinds = []*Kind{
	{
		Name: "postfix", Short: "the mail log of Postfix", Tried: true, Syslog: true, idle: 60 * minute, make: newPostfix,
		Unknown: []string{
			"the greeting of a client whose commands were all accepted",
			"why the server refused AUTH without checking a password",
			"the client's name in DNS if it is not confirmed, unless Postfix warns about it",
			"recipients that were accepted for a message that was never sent",
		},
	},
	{
		Name: "sendmail", Short: "the mail log of Sendmail", Tried: true, Syslog: true, idle: 2 * minute, quiet: smtp.EndingPartial, make: newSendmail,
		Unknown: []string{
			"the client's greeting",
			"unknown commands, unless a milter receives them",
			"with a LogLevel below 10, connections without a message or an error",
			"how most sessions ended",
		},
	},
	{
		Name: "exim", Short: "mainlog of Exim", Tried: true, idle: 10 * minute, quiet: smtp.EndingPartial, make: newExim,
		Unknown: []string{
			"how a session ended, and the client's commands, unless Exim logs smtp_connection and smtp_no_mail",
			"the user of some failed logins",
		},
	},
	{
		Name: "kumomta", Short: "JSON lines of KumoMTA", idle: 1 * minute, quiet: smtp.EndingPartial, make: newKumo,
		Unknown: []string{
			"connections without a message or an error",
			"how a session ended",
			"the client's name in DNS",
		},
	},
	{Name: "icewarp", Short: "the SMTP log of IceWarp", idle: 60 * minute, make: newTranscript(icewarp), Unknown: transcriptUnknown},
	{Name: "mdaemon", Short: "the SMTP log of MDaemon", idle: 60 * minute, make: newTranscript(mdaemon), Unknown: transcriptUnknown},
	{Name: "postal", Short: "the SMTP log of Postal", idle: 60 * minute, make: newTranscript(postal), Unknown: transcriptUnknown},
	{
		Name: "domino", Short: "the console log of HCL Domino", idle: 10 * minute, quiet: smtp.EndingPartial, make: newDomino,
		Unknown: []string{
			"all commands, senders and recipients, except failed logins and rejected relaying",
			"the client's greeting and name in DNS",
		},
	},
}

var transcriptUnknown = []string{"the client's name in DNS", "message text"}

// ByName returns the kind with the given name, or nil.
func ByName(name string) *Kind {
	for _, k := range Kinds {
		if k.Name == name {
			return k
		}
	}
	return nil
}
