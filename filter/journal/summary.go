package journal

import (
	"strconv"
	"time"

	"scanwatch/filter/track"
	"scanwatch/internal/smtp"
)

// A summary collects the outcomes of a session for its log line. A session matters, and
// has a line, if a rule or ban decided against it, a rule tagged it, or it has evidence of
// medium or high confidence.
type summary struct {
	evidence []byte // token:confidence, separated by commas
	tags     []byte // separated by commas
	org      string // of the client
	matters  bool

	// The session banned its source, in effect or observed. The line of the ban replaces the
	// line of the session.
	banned, observed bool

	// The most severe decision, an enforced one if there is one.
	decided  bool
	enforced bool
	decision smtp.Decision
	phase    smtp.Phase
	rule     string
	exempt   string
	score    int
	until    time.Time // end of the ban of a banned client
}

func (m *summary) finding(o *smtp.Outcome) {
	if len(m.evidence) > 0 {
		m.evidence = append(m.evidence, ',')
	}
	m.evidence = append(append(append(m.evidence, o.Evidence...), ':'), o.Confidence...)
	m.matters = m.matters || o.Confidence != "low"
	if m.org == "" {
		m.org = o.Org
	}
}

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

// ban reports whether a ban has a line. Further rules with the same ban have none.
func (m *summary) ban(o *smtp.Outcome) bool {
	if o.Exempt != "" {
		return true
	}
	told := m.banned || m.observed && !o.Enforced
	m.banned, m.observed = m.banned || o.Enforced, m.observed || !o.Enforced
	return !told
}

// begin prepares m for a new session. It reuses buffers.
func (m *summary) begin() { *m = summary{evidence: m.evidence[:0], tags: m.tags[:0]} }

// The lines that count repetitions of sessions of a source.
var (
	decidedAgain = repeated{"sessions", "rule", true}
	foundAgain   = repeated{"sessions", "evidence", false}
	taggedAgain  = repeated{"sessions", "tag", false}
)

// again returns the kind of the line and the word that repetitions have in common.
func (m *summary) again() (*repeated, string) {
	switch {
	case m.decided:
		return &decidedAgain, m.rule
	case len(m.evidence) > 0:
		return &foundAgain, string(m.evidence)
	}
	return &taggedAgain, string(m.tags)
}

// line appends the log line of an ended session.
func (m *summary) line(b []byte, s *track.Session) []byte {
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
	b = appendClient(b, s)
	return appendPair(b, "session", appendHex(nil, s.ID))
}

func (m *summary) appendEvidence(b []byte) []byte {
	return appendFilled(appendTokens(b, "evidence", m.evidence), "org", []byte(m.org))
}

// appendClient appends the names of the client.
func appendClient(b []byte, s *track.Session) []byte {
	b = appendFilled(b, "helo", s.Helo)
	b = appendFilled(b, "rdns", s.RDNS)
	return appendPair(b, "fcrdns", []byte(s.FCrDNS.String()))
}

// appendTokens appends ` key=value` for a value of our own words, which needs neither
// quotes nor a limit.
func appendTokens(b []byte, key string, value []byte) []byte {
	if len(value) == 0 {
		return b
	}
	return append(append(append(append(b, ' '), key...), '='), value...)
}
