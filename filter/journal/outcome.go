package journal

import (
	"net/netip"
	"strconv"
	"time"

	"scanwatch/filter/events"
	"scanwatch/filter/track"
	"scanwatch/internal/smtp"
	"scanwatch/store"
)

// A writer holds functions for one kind of outcome. The functions create a step of the record, an
// event for watchers, and a log line. Other programs parse the log lines, so their first words and
// the order of their keys must not change. Each line ends with the session id.
type writer struct {
	step    func(*Journal, *smtp.Outcome, *store.Step)
	event   func(*smtp.Outcome, *events.Event)
	summary func(*summary, *smtp.Outcome) // nil for bans, which are logged in separate lines
	line    func([]byte, *track.Session, *smtp.Outcome) []byte

	repeated repeated
	what     func(*smtp.Outcome) string
}

// writers lists the writer for each kind of outcome.
var writers = [...]writer{
	smtp.OutcomeFinding: {findingStep, findingEvent, (*summary).finding, findingLine, repeated{"findings", "evidence", false},
		func(o *smtp.Outcome) string { return o.Evidence }},
	smtp.OutcomeVerdict: {verdictStep, verdictEvent, (*summary).verdict, verdictLine, repeated{"verdicts", "rule", true}, ruleOf},
	smtp.OutcomeReturn:  {returnStep, verdictEvent, (*summary).verdict, returnLine, repeated{"returns", "rule", true}, ruleOf},
	smtp.OutcomeTag: {tagStep, tagEvent, (*summary).tag, tagLine, repeated{"tags", "tag", false},
		func(o *smtp.Outcome) string { return o.Tag }},
	smtp.OutcomeBan: {banStep, banEvent, nil, banLine, repeated{"bans", "rule", true}, ruleOf},
}

// word returns s as bytes. The bytes are valid until the next outcome.
func (j *Journal) word(s string) []byte {
	at := len(j.words)
	j.words = append(j.words, s...)
	return j.words[at:len(j.words):len(j.words)]
}

func ruleOf(o *smtp.Outcome) string { return o.Rule }

// form returns why a decision or ban did not take effect, or "" if it did. Two lines with different
// forms are not repetitions.
func form(o *smtp.Outcome) string {
	switch {
	case o.Kind == smtp.OutcomeFinding, o.Kind == smtp.OutcomeTag:
		return ""
	case o.Kind == smtp.OutcomeBan && o.Exempt != "":
		return "exempt"
	}
	return formOf(o.Enforced, o.Exempt)
}

func formOf(enforced bool, exempt string) string {
	switch {
	case enforced:
		return ""
	case exempt != "":
		return "withheld"
	}
	return "observed"
}

func findingStep(j *Journal, o *smtp.Outcome, s *store.Step) {
	s.Kind, s.Text, s.Arg, s.Org = store.KindFinding, j.word(o.Evidence), o.Proof, j.word(o.Org)
	s.By, s.Match, s.Confidence = j.word(o.By), j.word(o.Match), j.word(o.Confidence)
}

func findingEvent(o *smtp.Outcome, e *events.Event) {
	e.Event, e.Evidence, e.Confidence, e.Org, e.By, e.Match, e.Proof = "finding", o.Evidence, o.Confidence, o.Org, o.By, o.Match, string(o.Proof)
	e.Reason = o.Exempt
}

func findingLine(b []byte, s *track.Session, o *smtp.Outcome) []byte {
	b = append(b, "finding"...)
	b = appendPair(b, "evidence", []byte(o.Evidence))
	b = appendPair(b, "src", source(s))
	b = appendPair(b, "confidence", []byte(o.Confidence))
	b = appendFilled(b, "org", []byte(o.Org))
	b = appendPair(b, "by", []byte(o.By))
	b = appendFilled(b, "match", []byte(o.Match))
	b = appendFilled(b, "proof", o.Proof)
	b = appendFilled(b, "rdns", s.RDNS)
	return appendPair(b, "fcrdns", []byte(s.FCrDNS.String()))
}

func verdictStep(j *Journal, o *smtp.Outcome, s *store.Step) {
	s.Kind, s.Text, s.Phase, s.Decision, s.Enforced, s.Rule = store.KindVerdict, j.word(o.Rule), o.Phase, o.Decision, o.Enforced, o.RuleRef
	s.Exempt = o.Exempt
}

// verdictEvent fills in the event for a verdict. verdictEvent also sets Until if a banned client
// has connected.
func verdictEvent(o *smtp.Outcome, e *events.Event) {
	e.Event, e.Rule, e.Phase, e.Until, e.Reason = "verdict", o.Rule, o.Phase.String(), o.Until, o.Exempt
	if o.Enforced {
		e.Decision = o.Decision.String()
	} else {
		e.Would = o.Decision.String()
	}
}

// appendDecision appends the decision to b. The key shows whether the decision is enforced.
func appendDecision(b []byte, o *smtp.Outcome) []byte {
	key := "would"
	if o.Enforced {
		key = "decision"
	}
	return appendPair(b, key, []byte(o.Decision.String()))
}

func verdictLine(b []byte, s *track.Session, o *smtp.Outcome) []byte {
	b = appendDecision(append(b, "verdict"...), o)
	b = appendPair(b, "src", source(s))
	b = appendPair(b, "rule", []byte(o.Rule))
	b = appendPair(b, "phase", []byte(o.Phase.String()))
	b = appendFilled(b, "withheld", []byte(o.Exempt))
	b = appendFilled(b, "evidence", []byte(o.Tokens))
	if o.Score != 0 {
		b = appendPair(b, "score", strconv.AppendInt(nil, int64(o.Score), 10))
	}
	b = appendFilled(b, "helo", o.Helo)
	return appendFilled(b, "rdns", s.RDNS)
}

func returnStep(j *Journal, o *smtp.Outcome, s *store.Step) {
	verdictStep(j, o, s)
	s.Banned, s.Session = true, o.BanSession
}

func returnLine(b []byte, s *track.Session, o *smtp.Outcome) []byte {
	b = appendDecision(append(b, "verdict"...), o)
	b = appendPair(b, "src", source(s))
	b = appendPair(b, "rule", []byte(o.Rule))
	b = appendPair(b, "phase", []byte(o.Phase.String()))
	b = appendPair(b, "banned-until", o.Until.AppendFormat(nil, time.RFC3339))
	b = appendFilled(b, "withheld", []byte(o.Exempt))
	return appendFilled(b, "origin", []byte(o.Origin))
}

func tagStep(j *Journal, o *smtp.Outcome, s *store.Step) {
	s.Kind, s.Text, s.Phase = store.KindTag, j.word(o.Tag), o.Phase
}

func tagEvent(o *smtp.Outcome, e *events.Event) {
	e.Event, e.Phase, e.Tag = "tag", o.Phase.String(), o.Tag
}

func tagLine(b []byte, s *track.Session, o *smtp.Outcome) []byte {
	b = append(b, "tagged"...)
	b = appendPair(b, "tag", []byte(o.Tag))
	b = appendPair(b, "src", source(s))
	return appendPair(b, "phase", []byte(o.Phase.String()))
}

func banStep(j *Journal, o *smtp.Outcome, s *store.Step) {
	s.Kind, s.Text, s.Prefix, s.Until, s.Rule = store.KindBan, j.word(o.Rule), o.Prefix, o.Until, o.RuleRef
	s.Exempt, s.Enforced = o.Exempt, o.Enforced && o.Exempt == ""
}

func banEvent(o *smtp.Outcome, e *events.Event) {
	e.Event, e.Rule, e.Prefix, e.Until, e.Reason = "ban", o.Rule, o.Prefix.String(), o.Until, o.Exempt
	e.Listed = o.Listed
	switch {
	case o.Exempt != "":
		e.Event = "exempt"
	case !o.Enforced:
		e.Would = "ban"
	}
}

func banLine(b []byte, s *track.Session, o *smtp.Outcome) []byte {
	word := "banned"
	switch {
	case o.Exempt != "":
		word = "exempt"
	case !o.Enforced:
		word = "observed-ban"
	}
	b = append(b, word...)
	b = appendPair(b, "src", source(s))
	b = appendPair(b, "rule", []byte(o.Rule))
	if o.Exempt != "" {
		b = appendPair(b, "reason", []byte(o.Exempt))
	} else {
		b = appendPair(b, "prefix", []byte(o.Prefix.String()))
		b = appendPair(b, "until", o.Until.AppendFormat(nil, time.RFC3339))
		b = appendPair(b, "times", strconv.AppendInt(nil, int64(o.Times), 10))
	}
	return b
}

// source returns the client's address as it appears in the log.
func source(s *track.Session) []byte {
	if s.Local {
		return []byte("local")
	}
	return addrText(s.Src.Addr())
}

func addrText(a netip.Addr) []byte { return a.AppendTo(nil) }
