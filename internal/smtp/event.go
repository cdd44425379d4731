package smtp

import "net/netip"

// Kind is the kind of an Event.
type Kind uint8

// The kinds of events. Kind, Time and Session are set for every kind. The comment on a
// kind lists the other fields after the colon.
const (
	// EventConnect opens a session: Src, Dst, Local, RDNS, RDNSCut, FCrDNS.
	EventConnect Kind = iota
	// EventGreeting is the first reply of the server: Code; for code 220 also Name, the
	// name of the server.
	EventGreeting
	// EventLine is a line of the client: Verb, Text (redacted). The event with the
	// outcome of the command follows.
	EventLine
	// EventReply is the complete reply to a line: Verb, Code, Cause.
	EventReply
	// EventHelo is a greeting of the client: Verb, Word, Name, Result, Rewritten. A
	// failed greeting also sets Text (redacted), Code, Reply, Cause.
	EventHelo
	// EventTLS is a TLS handshake: Text (version:cipher:bits).
	EventTLS
	// EventAuth is a login attempt: Name (the user), Result (pass, fail or error).
	EventAuth
	// EventMail is the outcome of MAIL: Addr, Result, Code, Reply, Cause, MsgID.
	EventMail
	// EventRcpt is the outcome of RCPT: Addr, Result, Code, Reply, Cause.
	EventRcpt
	// EventData is the outcome of DATA or of a message: Result, Code, Reply, Cause.
	EventData
	// EventCommit is an accepted message: Size.
	EventCommit
	// EventRollback is the end of a transaction without a message.
	EventRollback
	// EventCommand is a failed command that no other event reports: Verb, Text
	// (redacted), Code, Reply, Cause.
	EventCommand
	// EventInput is rejected input that is not a command: Code, Reply, Cause.
	EventInput
	// EventFilter is the decision of this or another filter: Name (the phase), Word
	// (the decision), Text (its parameter). A rejection also sets Cause to CauseFilter.
	EventFilter
	// EventTimeout means that the session has exceeded a timeout of the server.
	EventTimeout
	// EventQuit is an accepted QUIT.
	EventQuit
	// EventDisconnect closes a session: Ending.
	EventDisconnect
	// EventRequest is a request for an Answer: Phase. The request of PhaseHelo also
	// sets Name, and the requests of PhaseMailFrom and PhaseRcptTo also set Addr.
	EventRequest

	NumKinds = iota
)

// Verb is the command of an EventLine.
type Verb uint8

// The verbs. VerbUnknown is a line without a known command.
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
	VerbDot      // end of message text; not a command
	VerbExchange // line of an AUTH exchange; not a command
)

// Cause is the cause of a failed command according to the server's reply.
type Cause uint8

// The causes.
const (
	CauseNone        Cause = iota // no failure, or an unknown cause
	CauseFilter                   // rejected by a filter, and not by the server
	CauseSyntax                   // malformed argument
	CauseOrder                    // command out of order
	CauseUnsupported              // command not offered, such as AUTH on a listener without AUTH
	CauseUnknown                  // not an SMTP command
	CausePipelining               // the client did not wait for a reply
	CauseRecipient                // recipient for which the server does not accept mail
)

// An Event is an event of a session, or a request about a session. Kind determines the
// fields that are set. Texts come from the network, may be hostile, and never contain a
// password. Texts are valid only during the call. An Event must not be used
// concurrently.
type Event struct {
	Kind    Kind
	Time    int64 // microseconds since 1970
	Session uint64

	Src, Dst netip.AddrPort // Dst is the listener, possibly with a wildcard address
	Local    bool           // the session uses the server's local socket
	RDNS     []byte         // name of Src (PTR); empty for no name
	RDNSCut  bool           // the server has truncated RDNS
	FCrDNS   FCrDNS

	Phase  Phase
	Verb   Verb
	Cause  Cause
	Result Result
	Ending Ending

	Name  []byte // host name or user name
	Addr  []byte // mailbox without brackets; empty for the null sender
	Text  []byte // redacted line
	Word  []byte // for EventHelo, the verb as sent; for EventFilter, the server's word for the decision
	Code  uint32 // SMTP reply code; 0 if unknown
	Reply []byte // text of the reply without the code
	MsgID uint32 // message id of the server

	Rewritten bool   // for EventHelo: a filter has replaced Name
	Size      uint64 // size of an accepted message in bytes
}
