// Package rules holds what scanwatch may conclude about a host: the evidence
// tokens, and the policy language that speaks them, scanwatch.conf(5).
//
// Parse makes a tree of a file, Check finds what is wrong with it, and Compile
// makes a Policy, which turns Facts into a Verdict at each phase. The package
// knows no protocol, no clock and no disk: files are read through functions
// that are handed in, and what was counted or looked up comes in the Facts.
package rules

import (
	"math/bits"
	"strings"
)

// Evidence is a set of evidence tokens, one bit each.
type Evidence uint64

// The tokens. Their names are stable: logs, rules, records and exports use
// them. Their numbers are not, and never leave the process.
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
	Campaign
)

// A Token describes one kind of evidence.
type Token struct {
	Evidence Evidence
	Name     string
	// Means tells people what it says about a host. It goes on from "it".
	Means string
	// From is the phase from which on the evidence can be there. What can
	// come from the memory of other sessions is there from the start.
	From Phase
}

// Tokens lists every kind of evidence there is. The manual, the report and
// the policy language take names and meanings from here.
var Tokens = []Token{
	{Scanner, "scanner", "belongs to a known scanning organisation", Connect},
	{Cloud, "cloud", "is a rented host of a cloud provider", Connect},
	{BotnetHelo, "botnet-helo", "greets as a known botnet or attack tool does", Helo},
	{HeloMissing, "helo-missing", "went on without a greeting, or with an empty one", Helo},
	{HeloUnqualified, "helo-unqualified", "greets with a name that has no dot", Helo},
	{HeloBareAddress, "helo-bare-address", "greets with an address without brackets", Helo},
	{HeloOwnName, "helo-own-name", "greets with our own name", Helo},
	{HeloOwnAddress, "helo-own-address", "greets with our own address", Helo},
	{HeloForged, "helo-forged", "greets with a name it cannot have", Helo},
	{HeloLocalhost, "helo-localhost", "greets as localhost", Helo},
	{HeloInvalid, "helo-invalid", "greets with something that is no name", Helo},
	{HeloChanged, "helo-changed", "greets with different names in one session", Helo},
	{RDNSMissing, "rdns-missing", "has an address without a name", Connect},
	{FCrDNSFail, "fcrdns-fail", "has a name that does not lead back to its address", Connect},
	{TalksHTTP, "talks-http", "speaks HTTP", Helo},
	{TalksSSH, "talks-ssh", "speaks SSH", Helo},
	{TalksTLS, "talks-tls", "speaks TLS where it was not offered", Helo},
	{TalksBinary, "talks-binary", "sends bytes that are no text", Helo},
	{UnknownCommand, "unknown-command", "sends commands SMTP does not have", Helo},
	{SyntaxError, "syntax-error", "sends commands with broken arguments", Helo},
	{Pipelining, "pipelining", "sends commands without waiting for answers", Helo},
	{EarlyTalker, "early-talker", "speaks before it was greeted", MailFrom},
	{RelayProbe, "relay-probe", "tries to send to a domain that is not ours", RcptTo},
	{UnknownRecipient, "unknown-recipient", "writes to somebody who does not exist here", RcptTo},
	{Harvest, "harvest", "tries many recipients who do not exist here", RcptTo},
	{ProbedRecipient, "probed-recipient", "writes to an address others have probed", RcptTo},
	{AuthFailure, "auth-failure", "failed to log in", MailFrom},
	{AuthUnsupported, "auth-unsupported", "tries to log in where that is not offered", MailFrom},
	{AuthSpray, "auth-spray", "tries many users, or comes from many networks for one", Connect},
	{NoMail, "no-mail", "came, looked and left", End},
	{Abandoned, "abandoned", "left in the middle of a transaction", End},
	{Flood, "flood", "holds too many sessions at once", Connect},
	{Campaign, "campaign", "behaves as hosts of other networks did that guessed or probed", RcptTo},
}

// TokenByName finds a token; it returns nil if there is none of that name.
func TokenByName(name string) *Token {
	for i := range Tokens {
		if Tokens[i].Name == name {
			return &Tokens[i]
		}
	}
	return nil
}

// Index returns the place of a single piece of evidence in Facts.Counts.
func (e Evidence) Index() int { return bits.TrailingZeros64(uint64(e)) & 63 }

// Has tells whether e contains all of x.
func (e Evidence) Has(x Evidence) bool { return e&x == x }

// String lists the tokens of e, divided by commas.
func (e Evidence) String() string {
	var names []string
	for _, t := range Tokens {
		if e.Has(t.Evidence) {
			names = append(names, t.Name)
		}
	}
	return strings.Join(names, ",")
}
