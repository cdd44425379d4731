package journal

import (
	"strconv"
	"time"

	"scanwatch/filter/track"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

// A summary collects the outcomes of a session. The outcomes are logged in one line when the
// session ends. A session is logged if a rule or ban led to a decision, if a rule set a tag, or if
// there is evidence with at least medium confidence.
type summary struct {
	evidence []byte // token:confidence pairs, separated by commas
	tags     []byte // separated by commas
	org      string // organisation of the client
	listed   string // first DNS block list that contains the client, and the zone of the list
	proof    string // the first evidence with high confidence, or else the first with medium confidence
	high     bool   // proof has high confidence
	matters  bool

	// banned and observed report whether the session led to an enforced or an observed ban. The ban
	// is logged instead of the session.
	banned, observed bool

	// The following fields describe the most severe enforced decision. If no decision is enforced,
	// the fields describe the most severe observed decision.
	decided  bool
	enforced bool
	decision smtp.Decision
	phase    smtp.Phase
	rule     string
	exempt   string
	score    int
	until    time.Time // end of the client's ban
}

func (m *summary) finding(o *smtp.Outcome) {
	if len(m.evidence) > 0 {
		m.evidence = append(m.evidence, ',')
	}
	m.evidence = append(append(append(m.evidence, o.Evidence...), ':'), o.Confidence...)
	m.matters = m.matters || o.Confidence != "low"
	if high := o.Confidence == "high"; high && !m.high || m.proof == "" && o.Confidence != "low" {
		m.proof, m.high = o.Evidence, high
	}
	if m.org == "" {
		m.org = o.Org
	}
	if m.listed == "" && o.Evidence == listedToken {
		m.listed = o.Match
	}
}

var listedToken = rules.Listed.String()

func (m *summary) tag(o *smtp.Outcome) {
	if len(m.tags) > 0 {
		m.tags = append(m.tags, ',')
	}
	m.tags, m.matters = append(m.tags, o.Tag...), true
}

func (m *summary) verdict(o *smtp.Outcome) {
	m.matters = true
	if m.decided && (m.enforced && !o.Enforced || m.enforced == o.Enforced && m.decision >= o.Decision) {
		return
	}
	m.decided, m.enforced, m.decision, m.phase = true, o.Enforced, o.Decision, o.Phase
	m.rule, m.exempt, m.score, m.until = o.Rule, o.Exempt, o.Score, o.Until
}

// ban reports whether a ban must be logged. A session's first ban is logged, as is the first
// enforced ban after observed bans. A ban that is withheld from an exempt client is always logged.
func (m *summary) ban(o *smtp.Outcome) bool {
	if o.Exempt != "" {
		return true
	}
	told := m.banned || m.observed && !o.Enforced
	m.banned, m.observed = m.banned || o.Enforced, m.observed || !o.Enforced
	return !told
}

// begin prepares m for a new session, reusing buffers.
func (m *summary) begin() { *m = summary{evidence: m.evidence[:0], tags: m.tags[:0]} }

// These are the log lines with the number of further suspicious sessions from a source.
var (
	decidedAgain = repeated{"sessions", "rule", true}
	foundAgain   = repeated{"sessions", "evidence", false}
	taggedAgain  = repeated{"sessions", "tag", false}
)

// again returns the key that is the same for all repetitions of the line. Without a decision, the
// key contains only one kind of evidence, so that a client cannot cause a separate line for each
// combination of evidence.
func (m *summary) again() logKey {
	switch {
	case m.decided:
		return logKey{kind: &decidedAgain, what: m.rule, form: formOf(m.enforced, m.exempt)}
	case m.proof != "":
		return logKey{kind: &foundAgain, what: m.proof}
	}
	return logKey{kind: &taggedAgain, what: string(m.tags)}
}

// line appends the log line of an ended session to b.
func (m *summary) line(b []byte, s *track.Session, helo []byte) []byte {
	b = append(b, "session"...)
	key, decision := "decision", m.decision.String()
	if m.decided && !m.enforced {
		key = "would"
	}
	b = appendPair(b, key, []byte(decision))
	b = appendPair(b, "src", source(s))
	b = appendFilled(b, "rule", []byte(m.rule))
	if m.decided {
		b = appendPair(b, "phase", []byte(m.phase.String()))
	}
	b = appendFilled(b, "withheld", []byte(m.exempt))
	if !m.until.IsZero() {
		b = appendPair(b, "banned-until", m.until.AppendFormat(nil, time.RFC3339))
	}
	b = m.appendEvidence(b)
	b = appendTokens(b, "tag", m.tags)
	if m.score != 0 {
		b = appendPair(b, "score", strconv.AppendInt(nil, int64(m.score), 10))
	}
	if s.Counts.Mails > 0 {
		b = appendPair(b, "messages", strconv.AppendUint(nil, uint64(s.Counts.Mails), 10))
	}
	b = appendClient(b, s, helo)
	return appendPair(b, "session", appendHex(nil, s.ID))
}

func (m *summary) appendEvidence(b []byte) []byte {
	b = appendFilled(appendTokens(b, "evidence", m.evidence), "org", []byte(m.org))
	return appendFilled(b, "listed", []byte(m.listed))
}

// appendClient appends the client's names to b. helo is the greeting in its logged form.
func appendClient(b []byte, s *track.Session, helo []byte) []byte {
	b = appendFilled(b, "helo", helo)
	b = appendFilled(b, "rdns", s.RDNS)
	return appendPair(b, "fcrdns", []byte(s.FCrDNS.String()))
}

// appendTokens appends ` key=value`. The value consists of the filter's own words, so it needs
// neither quotes nor a length limit.
func appendTokens(b []byte, key string, value []byte) []byte {
	if len(value) == 0 {
		return b
	}
	return append(append(append(append(b, ' '), key...), '='), value...)
}
