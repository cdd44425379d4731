package smtp

import "net/netip"

// Kind is the kind of an Event.
type Kind uint8

// The kinds of events. Kind, Time and Session are always set. The other fields are
// listed after the colon.
const (
	// EventConnect opens a session: Src, Dst, Local, RDNS, RDNSCut, FCrDNS. If a log lacks the start of
	// the session, Ending is EndingPartial.
	EventConnect Kind = iota
	// EventGreeting is the server's first reply: Code; for code 220 also Name, the
	// server's name.
	EventGreeting
	// EventLine is a line from the client: Verb, Text (redacted). An event with
	// the command's outcome follows.
	EventLine
	// EventReply is the complete reply to a line: Verb, Code, Cause.
	EventReply
	// EventHelo is a greeting from the client: Verb, Word, Name, Result, Rewritten. A failed
	// greeting also sets Text (redacted), Code, Reply, Cause.
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
	// EventRollback is a transaction that ended without a message.
	EventRollback
	// EventCommand is a failed command that is not reported by any other event: Verb,
	// Text (redacted), Code, Reply, Cause.
	EventCommand
	// EventInput is rejected input that is not a command: Code, Reply, Cause.
	EventInput
	// EventFilter is a decision by this or another filter: Name (the phase), Word (the
	// decision), Text (its parameter). A rejection also sets Cause to CauseFilter.
	EventFilter
	// EventTimeout means that the session has exceeded one of the server's timeouts.
	EventTimeout
	// EventQuit is an accepted QUIT.
	EventQuit
	// EventDisconnect closes a session: Ending.
	EventDisconnect
	// EventRequest is a request for an Answer: Phase, Waited. PhaseHelo also sets Name, and
	// PhaseMailFrom and PhaseRcptTo also set Addr. PhaseRcptTo also sets Refused and
	// Exists.
	EventRequest
	// EventListed is a DNS list's answer about the client: Name (the list), Text (the codes,
	// separated by commas), Word (the zone), Result (fail: listed in a block list; pass: listed in
	// an allowlist; ok: not listed).
	EventListed

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

// Cause is the reason why a command failed, judging by the server's reply.
type Cause uint8

// The causes of failure.
const (
	CauseNone        Cause = iota // no failure, or the cause is unknown
	CauseFilter                   // rejected by a filter, not by the server
	CauseSyntax                   // malformed argument
	CauseOrder                    // command out of order
	CauseUnsupported              // command not offered, such as AUTH on a listener without AUTH
	CauseUnknown                  // not an SMTP command
	CausePipelining               // the client did not wait for a reply
	CauseRecipient                // recipient that the server does not accept mail for
	CauseRelay                    // recipient in a domain that the server does not relay to, according to its reply
	CauseUser                     // recipient that does not exist in a domain of the server, according to its reply
)

// A Listing is a DNS list's answer about the client.
type Listing struct {
	Name   string // name of the list
	Listed bool
	Codes  string // separated by commas; empty if the client is not listed
}

// An Event reports something that happened in a session, or requests an Answer. Kind determines which
// fields are set. Strings and byte slices in an Event come from the network and may be hostile, but
// never contain a password. The strings and slices are valid only during the call. An Event must not
// be used concurrently.
type Event struct {
	Kind    Kind
	Time    int64 // microseconds since 1970
	Session uint64

	Src, Dst netip.AddrPort // Dst is the listener, possibly a wildcard address
	Local    bool           // the session uses the server's local socket
	RDNS     []byte         // name of Src (PTR); empty if there is none
	RDNSCut  bool           // the server has truncated RDNS
	FCrDNS   FCrDNS

	Phase   Phase
	Waited  bool // the request cannot wait: its Answer must be final
	Refused bool // the server itself has rejected the recipient, so a rule can only disconnect the client
	Exists  bool // the server itself has accepted the recipient; unset if it has not decided yet
	Verb    Verb
	Cause   Cause
	Result  Result
	Ending  Ending

	Name  []byte // host name or user name
	Addr  []byte // mailbox without brackets; empty for the null sender
	Text  []byte // redacted line
	Word  []byte // for EventHelo, the verb as sent; for EventFilter, the server's word for the decision
	Code  uint32 // SMTP reply code; 0 if unknown
	Reply []byte // reply text without the code
	MsgID uint32 // message id of the server

	Rewritten bool   // for EventHelo: a filter has replaced Name
	Size      uint64 // size of an accepted message in bytes
}
