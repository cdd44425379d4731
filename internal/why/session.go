package why

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"scanwatch/internal/finding"
	"scanwatch/internal/sketch"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
)

// A Session explains one session.
type Session struct {
	Session  string            `json:"session"`
	Start    text.Time         `json:"start"`
	End      text.Time         `json:"end"`
	Kinds    []string          `json:"as,omitempty"` // interpretations of the question that match the session
	Src      string            `json:"src,omitempty"`
	Local    bool              `json:"local,omitempty"`
	Erased   bool              `json:"erased,omitempty"` // the operator has removed the client's address and all names
	RDNS     string            `json:"rdns,omitempty"`
	FCrDNS   string            `json:"fcrdns"`
	Server   string            `json:"server,omitempty"`    // the mail server; empty: this host
	FrontEnd string            `json:"front_end,omitempty"` // empty: smtpd
	Helo     []string          `json:"helo,omitempty"`
	Summary  []string          `json:"summary"`
	Rules    []Rule            `json:"rules,omitempty"`
	Evidence []finding.Finding `json:"evidence,omitempty"`
	Omitted  uint32            `json:"omitted,omitempty"`  // steps that were not recorded
	Sessions uint32            `json:"sessions,omitempty"` // sessions in an aggregate
	Sources  int               `json:"sources,omitempty"`  // estimated number of hosts in an aggregate of several hosts
	Damage   string            `json:"damage,omitempty"`

	source netip.Prefix
	pass   *rules.Pass // statement of the current policy that matches the client, or nil
	lists  []listing
	scored bool // the current policy's scores include DNS lists
}

// A Rule is a rule's decision in a session.
type Rule struct {
	Rule      string `json:"rule"`
	Phases    string `json:"phases,omitempty"`
	Decision  string `json:"decision"`        // name of a smtp.Decision, or "ban"
	Enforced  bool   `json:"enforced"`        // false if the decision was only observed or the client is exempt
	Reply     string `json:"reply,omitempty"` // reply as sent to the client
	Until     string `json:"until,omitempty"` // end of the ban
	Exempt    string `json:"exempt,omitempty"`
	Times     int    `json:"times"`
	Text      string `json:"text,omitempty"`       // rule text at the time of the decision
	Now       string `json:"now,omitempty"`        // state of the rule in the current policy: "same", "changed", "gone" or "assumed"
	CountedBy string `json:"counted_by,omitempty"` // key by which sessions are counted
	// Unanswered lists the DNS lists that had not answered, separated by commas. If Unanswered is
	// set, the rejection is temporary, because an answer may match a pass statement that exempts
	// the client.
	Unanswered string `json:"unanswered,omitempty"`

	// BannedIn is the id of the session that led to this session's ban, or
	// "manual" if the operator imposed the ban. Kept reports whether that
	// session's record still exists.
	//
	// BannedOn is the name of the other host that imposed the ban and has that record.
	BannedIn string `json:"banned_in,omitempty"`
	BannedOn string `json:"banned_on,omitempty"`
	Kept     bool   `json:"kept,omitempty"`

	ref uint32 // reference to the rule text
	ban uint64 // id of BannedIn
}

// assumed is the value of Rule.Now if the decision was recorded without the rule's text. Rule.Text
// is then the text of the current rule with the same name.
const assumed = "assumed"

// manual is the value of Rule.BannedIn for a ban imposed by the operator.
const manual = "manual"

// A sessionReader describes a session's steps.
type sessionReader struct {
	*query
	*Session
	r        *store.Record
	asked    []string       // outcomes of the commands that match the question
	refused  string         // first recipient that smtpd rejected
	enforced map[string]int // by phase: the index in Rules of the latest enforced rule, plus 1
	facts    *rules.Facts   // facts so far; nil without a policy
	byFilter bool           // a filter rejected the recipient in the next step
}

// session describes the session that r records.
func (w *query) session(r *store.Record) *Session {
	s := &Session{Session: sessionID(r.ID), Start: text.At(r.Start), End: text.At(r.End), Local: r.Local, Erased: r.Erased,
		RDNS: text.Escape(r.RDNS), FCrDNS: r.FCrDNS.String(), Summary: []string{}, Omitted: r.Omitted, Sessions: r.Sessions, Server: text.Escape(r.Server), FrontEnd: text.Escape(r.FrontEnd)}
	if s.FrontEnd != "" {
		s.Summary = append(s.Summary, "reported "+store.ReportedBy(s.Server, s.FrontEnd))
	}
	if len(r.Sketch) > 0 {
		var all sketch.Sketch
		all.Merge(r.Sketch)
		s.Sources = min(all.Count(), int(r.Sessions))
	}
	if r.Src.IsValid() {
		s.Src, s.source = r.Src.Addr().String(), identity(r)
		if r.Counts.AuthPass == 0 && len(r.RDNS) == 0 && r.FCrDNS != smtp.FCrDNSUnknown {
			s.Evidence = append(s.Evidence, finding.Finding{Evidence: rules.RDNSMissing.String(), By: "dns"})
		} else if r.Counts.AuthPass == 0 && r.FCrDNS == smtp.FCrDNSFail && !smtp.MayBeCut(r.RDNS, r.FCrDNS) {
			s.Evidence = append(s.Evidence, finding.Finding{Evidence: rules.FCrDNSFail.String(), By: "dns", Proof: s.RDNS})
		}
	}
	sr := &sessionReader{query: w, Session: s, r: r, enforced: map[string]int{}}
	if w.Policy != nil && r.Src.IsValid() {
		s.scored = scoresListed(w.Policy)
		sr.facts = w.Facts(r)
		sr.findPass(smtp.PhaseConnect)
	}
	if err := r.Steps(sr.step); err != nil {
		s.Damage = text.Escape(err.Error())
	}
	sr.summarize()
	return s
}

func (s *sessionReader) step(st *store.Step) bool {
	s.learn(st)
	switch st.Kind {
	case store.KindHelo:
		if h := text.Escape(st.Text); !slices.Contains(s.Helo, h) && (h != "" || st.Times == 0 && !s.Erased) {
			s.Helo = append(s.Helo, h)
		}
	case store.KindReference:
		if s.q.matchStep(st) {
			s.add("session %s was rejected; its details are not recorded", sessionID(st.Session))
		}
	case store.KindAuth:
		s.login(st)
	case store.KindMail:
		s.command(st, "MAIL FROM")
	case store.KindRcpt:
		if s.r.Sessions > 0 {
			s.recipients(st)
			return true
		}
		s.command(st, "RCPT TO")
		if !s.byFilter && s.refused == "" && st.Result != smtp.ResultOK {
			s.refused = fmt.Sprintf("<%s>: %s", text.Escape(st.Text), outcome(st))
		}
		s.byFilter = false
	case store.KindFinding:
		s.Evidence = append(s.Evidence, finding.New(s.Lists, s.r, st))
	case store.KindListed:
		s.listed(st)
	case store.KindVerdict:
		s.verdict(st)
	case store.KindBan:
		s.rule(Rule{Rule: text.Escape(st.Text), Decision: "ban", Enforced: st.Enforced, Until: until(st), Exempt: text.Escape(st.Exempt), ref: st.Rule}, max(int(st.Times), 1))
	case store.KindFilter:
		s.filter(st)
	}
	return true
}

// command adds a command's outcome if the command matches the question.
func (s *sessionReader) command(st *store.Step, word string) {
	if len(s.asked) < 3 && s.q.matchStep(st) {
		s.asked = append(s.asked, fmt.Sprintf("%s:<%s>: %s", word, text.Escape(st.Text), outcome(st)))
	}
}

// login adds a login's outcome if the login matches the question.
func (s *sessionReader) login(st *store.Step) {
	if len(s.asked) >= 3 || !s.q.matchStep(st) {
		return
	}
	line := fmt.Sprintf("login %s: %s", text.Escape(st.Text), st.Result)
	if n := max(st.Count, uint32(st.Times)); n > 1 {
		line += fmt.Sprintf(", %d times", n)
	}
	s.asked = append(s.asked, line)
}

// recipients adds the number of requested recipients in a matching domain.
func (s *sessionReader) recipients(st *store.Step) {
	if s.q.matchStep(st) {
		s.asked = append(s.asked, fmt.Sprintf("RCPT TO:<%s>: %s for %s", text.Escape(st.Text), st.Result, text.Plural(st.Count, "recipient")))
	}
}

func (s *sessionReader) verdict(st *store.Step) {
	rule := Rule{Rule: text.Escape(st.Text), Phases: st.Phase.String(), Decision: st.Decision.String(), Enforced: st.Enforced, Exempt: text.Escape(st.Exempt), ref: st.Rule}
	if st.Banned {
		rule.ban, rule.BannedIn = st.Session, manual
		if st.Session != 0 {
			rule.BannedIn = sessionID(st.Session)
		}
	} else if st.Enforced && st.Decision >= smtp.Reject {
		rule.Unanswered = s.unanswered(st.Phase)
	}
	i := s.rule(rule, max(int(st.Times), 1))
	if rule.Enforced {
		s.enforced[rule.Phases] = i + 1
	}
}

// filter adds a rule's reply, or another filter's decision.
func (s *sessionReader) filter(st *store.Step) {
	s.byFilter = st.Phase == smtp.PhaseRcptTo && st.Decision >= smtp.Reject
	phase, decision := text.Escape(st.PhaseName()), text.Escape(st.DecisionName())
	switch i := s.enforced[phase]; {
	case decision == smtp.Proceed.String():
	case i > 0:
		s.Rules[i-1].Reply = cmp.Or(s.Rules[i-1].Reply, text.Escape(st.Reply))
	default:
		s.add("another filter decided at %s: %s", phase, strings.TrimSpace(decision+" "+text.Escape(st.Reply)))
	}
}

// until returns the end of a ban, or "" if the ban was withheld.
func until(s *store.Step) string {
	if s.Until.IsZero() {
		return ""
	}
	return s.Until.UTC().Format(text.TimeLayout)
}

// exempted is printed before a pass statement if no rule acted on the client.
const exempted = "no rule applied; the current policy has "

// byServer is printed before the mail server's name and its reply to the first rejected recipient.
const byServer = "; first by "

// summarize writes the summary.
func (s *sessionReader) summarize() {
	c := &s.r.Counts
	for _, line := range s.asked {
		s.add("%s", line)
	}
	if n := c.RcptPermfail + c.RcptTempfail; n > 0 {
		first := ""
		if s.refused != "" {
			first = byServer + store.MailServer(s.FrontEnd) + ": " + s.refused
		}
		s.add("%d of %d recipients rejected or deferred%s", n, n+c.RcptOK, first)
	}
	if n := c.AuthFail + c.AuthRefused; n > 0 {
		s.add("%s failed or rejected", text.Plural(n, "login"))
	}
	if c.AuthPass > 0 {
		s.add("authenticated: only rules with auth apply")
	}
	if c.Mails > 0 {
		s.add("%s accepted for %s", text.Plural(c.Mails, "message"), text.Plural(c.RcptOK, "recipient"))
	}
	switch {
	case len(s.Rules) > 0:
	case s.pass != nil:
		s.add("%s", exempted+text.Escape(s.pass.String()))
	default:
		s.add("no rule matched")
	}
	if s.r.Sessions == 0 {
		s.add("%s", strings.Replace(endings[s.r.Ending], "smtpd", store.MailServer(s.FrontEnd), 1))
	}
}

// unknownName is the value of Session.FCrDNS if the server did not report whether the client has a
// name.
var unknownName = smtp.FCrDNSUnknown.String()

// endings describes how a session with smtpd ended.
var endings = map[smtp.Ending]string{
	smtp.EndingUnknown:  "the end of the session is unknown",
	smtp.EndingQuit:     "the client sent QUIT",
	smtp.EndingDropped:  "the client closed the connection",
	smtp.EndingTimeout:  "smtpd timed out",
	smtp.EndingRejected: "smtpd or a filter closed the connection",
	smtp.EndingStopped:  "smtpd stopped",
	smtp.EndingClosed:   "the connection was closed; which side closed it is unknown",
	smtp.EndingPartial:  "the session has ended; the log shows only some of its commands",
}

// add adds a line to the summary unless it is a duplicate.
func (s *Session) add(format string, args ...any) {
	if line := fmt.Sprintf(format, args...); line != "" && !slices.Contains(s.Summary, line) {
		s.Summary = append(s.Summary, line)
	}
}

// outcome returns a command's result and reply.
func outcome(s *store.Step) string {
	result := s.Result.String()
	if s.Code != 0 {
		result += fmt.Sprintf(" %d %s", s.Code, text.Escape(s.Reply))
	}
	return strings.TrimSpace(result)
}

// rule adds a decision that was made the given number of times. If the session
// already has the same decision, only its count is increased.
func (s *Session) rule(rule Rule, times int) int {
	for i := range s.Rules {
		have := s.Rules[i]
		have.Times, have.Reply, have.Phases = 0, "", rule.Phases
		if have == rule {
			if phases := &s.Rules[i].Phases; !slices.Contains(strings.Split(*phases, ", "), rule.Phases) {
				*phases += ", " + rule.Phases
			}
			s.Rules[i].Times += times
			return i
		}
	}
	rule.Times = times
	s.Rules = append(s.Rules, rule)
	return len(s.Rules) - 1
}

// counted matches a rule's condition that counts across sessions.
var counted = regexp.MustCompile(` count [^ ]+ > [0-9]+ in [0-9]+[a-z] by ([a-z]+)`)

// addText adds a rule's text at the time of its decision and compares it with
// the current policy. If no text was recorded, the current text is added.
func (w *query) addText(rule *Rule) {
	defer func() {
		if !rule.dependsOnLists(w.Policy) {
			rule.Unanswered = ""
		}
	}()
	now, exists := w.now[rule.Rule]
	then := w.texts[rule.ref]
	if !strings.HasPrefix(then, "rule "+rule.Rule+" ") { // no text was recorded, or a different text has the same reference
		if rule.BannedIn != manual && exists {
			rule.Now, rule.Text = assumed, text.Escape(now)
		}
		return
	}
	rule.Text = text.Escape(then)
	if m := counted.FindStringSubmatch(then); m != nil {
		rule.CountedBy = m[1]
	}
	switch {
	case w.Policy == nil:
	case !exists:
		rule.Now = "gone"
	case store.RuleRef(now) == rule.ref:
		rule.Now = "same"
	default:
		rule.Now = "changed"
	}
}
