package smtp

import "net/netip"

// Kind is the kind of an Event.
type Kind uint8

// The kinds of events. After the colon, each comment lists the fields that are set in
// addition to Kind, Time and Session.
const (
	// EventConnect opens a session: Src, Dst, Local, RDNS, RDNSCut, FCrDNS.
	EventConnect Kind = iota
	// EventGreeting is the first reply of the server: Code and, for code 220, Name (the
	// name of the server).
	EventGreeting
	// EventLine is one line that the client sent: Verb, Text (redacted). It precedes
	// the event with the outcome of the command.
	EventLine
	// EventReply is the complete reply to a line: Verb, Code, Cause.
	EventReply
	// EventHelo is a greeting of the client: Verb, Word, Name, Result, Rewritten; if it
	// failed, also Text (the redacted line), Code, Reply, Cause.
	EventHelo
	// EventTLS is a TLS handshake: Text (version:cipher:bits).
	EventTLS
	// EventAuth is a login attempt: Name (the user), Result (pass, fail or error).
	EventAuth
	// EventMail is the outcome of MAIL: Addr, Result, Code, Reply, Cause, MsgID.
	EventMail
	// EventRcpt is the outcome of RCPT: Addr, Result, Code, Reply, Cause.
	EventRcpt
	// EventData is the outcome of DATA or of the end of the message: Result, Code,
	// Reply, Cause.
	EventData
	// EventCommit is an accepted message: Size.
	EventCommit
	// EventRollback is a transaction that ended without a message.
	EventRollback
	// EventCommand is a failed command that no other event reports: Verb, Text
	// (redacted), Code, Reply, Cause.
	EventCommand
	// EventInput is input that the server rejected although it is not a command: Code,
	// Reply, Cause.
	EventInput
	// EventFilter is the decision of this or another filter: Name (the phase), Word
	// (the decision), Text (its parameter), Cause (CauseFilter if it rejects).
	EventFilter
	// EventTimeout means that the session has exceeded a timeout of the server.
	EventTimeout
	// EventQuit is an accepted QUIT.
	EventQuit
	// EventDisconnect closes a session: Ending.
	EventDisconnect
	// EventRequest is a request for an Answer: Phase, Waited, and Name (for PhaseHelo)
	// or Addr (for PhaseMailFrom and PhaseRcptTo).
	EventRequest
	// EventListed is the answer of a DNS list about the client: Name (the list), Text
	// (the codes, separated by commas), Word (the zone), Result (fail: listed in a block
	// list; pass: listed in an allowlist; ok: not listed).
	EventListed

	NumKinds = iota
)

// Verb is the command of an EventLine.
type Verb uint8

// The verbs. VerbUnknown is a line that is not a known command.
const (
	VerbUnknown Verb = iota
	VerbHelo
	VerbEhlo
	VerbMail
	VerbRcpt
	VerbData
	VerbRset
	VerbNoop
	VerbQuit
	VerbStartTLS
	VerbAuth
	VerbNames    // another command with a mailbox: VRFY, EXPN, SEND, SOML, SAML
	VerbOther    // any other SMTP command
	VerbDot      // the end of message text; not a command
	VerbExchange // a line of an AUTH exchange; not a command
)

// Cause is the reason why a command failed, as far as the server's reply shows it.
type Cause uint8

// The causes.
const (
	CauseNone        Cause = iota // no failure, or cause unknown
	CauseFilter                   // a filter, and not the server, rejected the command
	CauseSyntax                   // malformed argument
	CauseOrder                    // command out of order
	CauseUnsupported              // command not offered here, such as AUTH on a listener that does not offer it
	CauseUnknown                  // not a command of SMTP
	CausePipelining               // the client did not wait for a reply
	CauseRecipient                // the server does not accept mail for this recipient
)

// A Listing is the answer of a DNS list about the client.
type Listing struct {
	Name   string // of the list
	Listed bool
	Codes  string // separated by commas; empty if the client is not listed
}

// An Event is an event of a session, or a request about a session. Kind determines
// which fields are set. Texts come from the network and may be hostile. They are valid
// only during the call, and never contain a password. An Event belongs to one
// goroutine.
type Event struct {
	Kind    Kind
	Time    int64 // microseconds since 1970
	Session uint64

	Src, Dst netip.AddrPort // Dst is the listener, which may have a wildcard address
	Local    bool           // over the server's local socket
	RDNS     []byte         // name of Src (PTR); empty if there is none
	RDNSCut  bool           // the server has truncated RDNS
	FCrDNS   FCrDNS

	Phase  Phase
	Waited bool // the request cannot wait: its Answer must be final
	Verb   Verb
	Cause  Cause
	Result Result
	Ending Ending

	Name  []byte // a host name or user name
	Addr  []byte // a mailbox without brackets; empty for the null sender
	Text  []byte // a redacted line
	Word  []byte // for EventHelo, the verb as sent; for EventFilter, the server's word for the decision
	Code  uint32 // SMTP reply code; 0 if unknown
	Reply []byte // text of the reply without the code
	MsgID uint32 // the server's message id

	Rewritten bool   // for EventHelo, a filter has replaced Name
	Size      uint64 // size of an accepted message in bytes
}
