// Package rules implements the evidence tokens and the policy language of
// scanwatch.conf(5).
//
// Parse parses a file into a tree. Check finds errors and probable mistakes in the tree. Compile
// compiles the tree into a Policy. In each phase of a session, the Policy evaluates the Facts and
// returns a Verdict.
//
// The package does not depend on the protocol, the clock or the disk. Callers pass functions that
// read files. Facts contains counts and the results of lookups.
package rules

import (
	"math/bits"
	"strings"

	"scanwatch/internal/smtp"
)

// Evidence is a set of evidence tokens. Each token is one bit.
type Evidence uint64

// The names of the tokens are stable, because they appear in logs, rules, records and exports. The
// numbers may change, because they are used only within a process.
const (
	Scanner Evidence = 1 << iota
	Cloud
	BotnetHelo
	HeloMissing
	HeloUnqualified
	HeloBareAddress
	HeloOwnName
	HeloOwnAddress
	HeloForged
	HeloLocalhost
	HeloWord
	HeloInvalid
	HeloChanged
	RDNSMissing
	FCrDNSFail
	TalksHTTP
	TalksSSH
	TalksTLS
	TalksBinary
	UnknownCommand
	SyntaxError
	Pipelining
	EarlyTalker
	RelayProbe
	UnknownRecipient
	Harvest
	ProbedRecipient
	AuthFailure
	AuthUnsupported
	AuthSpray
	NoMail
	Abandoned
	Flood
	Backscatter
	RecipientFlood
	AccountAbuse
	Listed
)

// A Token describes a kind of evidence.
type Token struct {
	Evidence Evidence
	Name     string
	// Means describes the evidence. The text follows "a host that".
	Means string
	// From is the first phase in which the evidence is possible. From is smtp.PhaseConnect for
	// evidence from earlier sessions.
	From smtp.Phase
}

// Tokens lists all tokens. To add a token, add a constant and a row. The names and descriptions
// appear in the manual, in reports and in the policy language.
var Tokens = []Token{
	{Scanner, "scanner", "belongs to a known scanning organisation", smtp.PhaseConnect},
	{Cloud, "cloud", "is a rented host of a cloud provider", smtp.PhaseConnect},
	{BotnetHelo, "botnet-helo", "uses the greeting of a known botnet or attack tool", smtp.PhaseHelo},
	{HeloMissing, "helo-missing", "sends mail commands without a greeting, or an empty greeting", smtp.PhaseHelo},
	{HeloUnqualified, "helo-unqualified", "greets with a name without a dot", smtp.PhaseHelo},
	{HeloBareAddress, "helo-bare-address", "greets with an address without brackets", smtp.PhaseHelo},
	{HeloOwnName, "helo-own-name", "greets with the name of this server", smtp.PhaseHelo},
	{HeloOwnAddress, "helo-own-address", "greets with the address of this server", smtp.PhaseHelo},
	{HeloForged, "helo-forged", "greets with a forged name", smtp.PhaseHelo},
	{HeloLocalhost, "helo-localhost", "greets as localhost", smtp.PhaseHelo},
	{HeloWord, "helo-word", "greets with a generic word or a common computer name", smtp.PhaseHelo},
	{HeloInvalid, "helo-invalid", "greets with an invalid name", smtp.PhaseHelo},
	{HeloChanged, "helo-changed", "greets with different names in one session", smtp.PhaseHelo},
	{RDNSMissing, "rdns-missing", "has no reverse DNS name", smtp.PhaseConnect},
	{FCrDNSFail, "fcrdns-fail", "has a reverse DNS name that fails FCrDNS", smtp.PhaseConnect},
	{TalksHTTP, "talks-http", "speaks HTTP", smtp.PhaseHelo},
	{TalksSSH, "talks-ssh", "speaks SSH", smtp.PhaseHelo},
	{TalksTLS, "talks-tls", "speaks TLS where the server does not offer it", smtp.PhaseHelo},
	{TalksBinary, "talks-binary", "sends binary data", smtp.PhaseHelo},
	{UnknownCommand, "unknown-command", "sends unknown commands", smtp.PhaseHelo},
	{SyntaxError, "syntax-error", "sends commands with invalid arguments", smtp.PhaseHelo},
	{Pipelining, "pipelining", "sends commands without waiting for replies", smtp.PhaseHelo},
	{EarlyTalker, "early-talker", "speaks before the server's greeting", smtp.PhaseMailFrom},
	{RelayProbe, "relay-probe", "tries to relay to a domain that is not local", smtp.PhaseRcptTo},
	{UnknownRecipient, "unknown-recipient", "writes to a recipient that does not exist", smtp.PhaseRcptTo},
	{Harvest, "harvest", "tries many recipients that do not exist", smtp.PhaseRcptTo},
	{ProbedRecipient, "probed-recipient", "writes to a recipient that other hosts have probed", smtp.PhaseRcptTo},
	{AuthFailure, "auth-failure", "fails to log in", smtp.PhaseMailFrom},
	{AuthUnsupported, "auth-unsupported", "tries to log in where the server does not offer it", smtp.PhaseMailFrom},
	{AuthSpray, "auth-spray", "tries many users, or one user from many networks", smtp.PhaseMailFrom},
	{NoMail, "no-mail", "disconnects without sending mail", smtp.PhaseEnd},
	{Abandoned, "abandoned", "disconnects in the middle of a transaction", smtp.PhaseEnd},
	{Flood, "flood", "has too many concurrent sessions", smtp.PhaseConnect},
	{Backscatter, "backscatter", "sends bounces to recipients that do not exist", smtp.PhaseRcptTo},
	{RecipientFlood, "recipient-flood", "tries further recipients after many have been rejected", smtp.PhaseRcptTo},
	{AccountAbuse, "account-abuse", "uses an account that may be stolen", smtp.PhaseMailFrom},
	{Listed, "listed", "is in a DNS block list", smtp.PhaseConnect},
}

// conduct is the set of evidence about the behaviour of a client. All other evidence is about the
// client's name, address, AS or country.
const conduct = BotnetHelo | TalksHTTP | TalksSSH | TalksTLS | TalksBinary | UnknownCommand | SyntaxError | Pipelining | EarlyTalker |
	RelayProbe | UnknownRecipient | Harvest | ProbedRecipient | AuthFailure | AuthUnsupported | AuthSpray | NoMail | Abandoned |
	Flood | Backscatter | AccountAbuse | HeloChanged | RecipientFlood

// TokenByName returns the token with the given name, or nil.
func TokenByName(name string) *Token {
	for i := range Tokens {
		if Tokens[i].Name == name {
			return &Tokens[i]
		}
	}
	return nil
}

// Index returns the index of e in Facts.Counts. e must be a single token.
func (e Evidence) Index() int { return bits.TrailingZeros64(uint64(e)) & 63 }

// Has reports whether e contains all tokens in x.
func (e Evidence) Has(x Evidence) bool { return e&x == x }

// String returns the names of the tokens in e, separated by commas.
func (e Evidence) String() string {
	var names []string
	for _, t := range Tokens {
		if e.Has(t.Evidence) {
			names = append(names, t.Name)
		}
	}
	return strings.Join(names, ",")
}
