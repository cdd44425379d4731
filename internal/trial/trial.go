// Package trial explains a policy's decisions on individual sessions. The
// sessions come from a script or a recorded stream and are replayed by package
// replay.
package trial

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/replay"
	"scanwatch/filter/smtpd"
	"scanwatch/internal/finding"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
)

// Options are the inputs of a trial.
type Options struct {
	Settings *filter.Settings // the policy
	Lists    *lookup.Lists
	Verbose  bool // include rules that do not match
	// Standing is the standing of a script's client: known, trusted or none.
	Standing rules.Standing
	// Done is called for each session that has ended. If Done returns an error, the
	// trial ends.
	Done func(*Session) error

	script *Script // nil for a stream
}

// A Session describes a replayed session and all decisions about it. All text
// is printable.
type Session struct {
	Session    string            `json:"session"`
	Mode       string            `json:"mode"`
	Src        string            `json:"src,omitempty"`
	Dst        string            `json:"dst,omitempty"`
	Local      bool              `json:"local,omitempty"`
	RDNS       string            `json:"rdns,omitempty"`
	FCrDNS     string            `json:"fcrdns"`
	ASN        *uint32           `json:"asn,omitempty"` // 0 if no AS announces the address
	Country    string            `json:"country,omitempty"`
	Standing   string            `json:"standing"`
	Phases     []*Request        `json:"phases"`
	Later      []finding.Finding `json:"later,omitempty"`       // findings after the last request
	NotReached []string          `json:"not_reached,omitempty"` // steps of a script that were not replayed
}

// A Request is a request and the policy's decision on it.
type Request struct {
	Phase      string            `json:"phase"`
	About      string            `json:"about,omitempty"`    // argument of the command
	Facts      []string          `json:"facts,omitempty"`    // facts that no other field of the session shows
	Findings   []finding.Finding `json:"findings,omitempty"` // findings since the previous request
	Evidence   []string          `json:"evidence,omitempty"` // evidence in the session so far
	Weak       []string          `json:"weak_evidence,omitempty"`
	Score      int               `json:"score"`
	Rules      []Rule            `json:"rules,omitempty"`
	Decision   string            `json:"decision"`
	Reply      string            `json:"reply,omitempty"`
	Delay      string            `json:"delay,omitempty"`
	Earlier    bool              `json:"decided_earlier,omitempty"` // an earlier decision applies to the whole session
	Would      string            `json:"would,omitempty"`           // decision in enforce mode; empty if the decision was enforced
	WouldReply string            `json:"would_reply,omitempty"`

	at time.Time
}

// A Rule shows how a policy statement was evaluated.
type Rule struct {
	Rule       string   `json:"rule"`
	Outcome    string   `json:"outcome"`
	Conditions []string `json:"conditions,omitempty"`
}

type trial struct {
	Options
	player *replay.Player
	live   map[uint64]*Session
	last   *Request             // latest request without an answer, or nil
	missed func(*store.Step)    // called for steps that were not replayed
	done   func(*Session) error // completes the session and calls Options.Done
	err    error
}

func newTrial(o Options) *trial {
	t := &trial{Options: o, live: make(map[uint64]*Session), done: o.Done}
	t.player = replay.New(replay.Options{
		Settings: o.Settings,
		Filter: filter.Options{
			Lists:  func() *lookup.Lists { return o.Lists },
			Trace:  t.trace,
			Memory: o.memory(),
			Record: t.recorded,
		},
		AskRefused: true,
		Answered:   t.answered,
		Skipped: func(s *store.Step) {
			if t.missed != nil {
				t.missed(s)
			}
		},
		Done: t.ended,
	})
	return t
}

// memory returns a state in which a script's client has the standing o.Standing.
func (o *Options) memory() *memory.Memory {
	m := memory.New()
	if o.Standing < rules.StandingKnown {
		return m
	}
	client := &memory.Client{Addr: o.script.src.Addr().Unmap()}
	if o.script.fcrdns == smtp.FCrDNSPass {
		client.Domain = memory.RegisteredDomain([]byte(o.script.rdns))
	}
	days := 1
	if o.Standing == rules.StandingTrusted {
		days = 12
	}
	for day := 1; day <= days; day++ {
		m.Peers.Delivered(client, memory.Delivery{Messages: 1, Senders: []string{client.Domain}}, scriptStart.AddDate(0, 0, day-days-1).UnixMicro())
	}
	return m
}

// Play replays a scripted session.
func Play(s *Script, o Options) error {
	o.script = s
	t := newTrial(o)
	var missed []string
	t.missed = func(step *store.Step) {
		if flag := s.flag(step); flag != "" {
			missed = append(missed, flag)
		}
	}
	t.done = func(s *Session) error {
		s.NotReached = missed
		return o.Done(s)
	}
	r, err := s.record()
	if err != nil {
		return err
	}
	t.player.Add(*r)
	t.player.Close()
	return t.err
}

// PlayStream records and replays the sessions in an smtpd-filters(7)
// stream.
func PlayStream(in io.Reader, o Options) error {
	t := newTrial(o)
	recorder := filter.New(filter.Options{
		Log:   func([]byte) {},
		Lists: func() *lookup.Lists { return o.Lists },
		Record: func(end time.Time, id uint64, value []byte) {
			r, err := store.Decode(store.AppendKey(nil, end, id), value)
			if err != nil {
				t.fail(id, err)
				return
			}
			t.player.Add(r.Clone())
		},
	})
	front := smtpd.NewFrontEnd(recorder)
	if err := smtpd.Serve(in, io.Discard, front, smtpd.Options{}); err != nil {
		return err
	}
	front.Stop()
	recorder.Stop()
	t.player.Close()
	return t.err
}

func (t *trial) fail(id uint64, err error) {
	if t.err == nil {
		t.err = fmt.Errorf("session %016x: %w", id, err)
	}
}

func (t *trial) session(id uint64) *Session {
	s := t.live[id]
	if s == nil {
		s = &Session{Session: fmt.Sprintf("%016x", id), Mode: t.Settings.Policy.Mode.String(), Phases: []*Request{}}
		t.live[id] = s
	}
	return s
}

// trace adds a request with the results of all statements.
func (t *trial) trace(p *rules.Policy, f *rules.Facts, a smtp.Answer) {
	s := t.session(f.Session)
	v, traces := p.Explain(f)
	r := &Request{Phase: f.Phase.String(), About: about(f), Facts: facts(f), Score: v.Total, at: f.Now}
	if f.ASNKnown {
		asn := f.ASN
		s.ASN = &asn
	}
	s.Country, s.Standing = text.Escape(f.Country), f.Standing.String()
	if f.Evidence != 0 {
		r.Evidence = strings.Split(f.Evidence.String(), ",")
	}
	if f.Weak != 0 {
		r.Weak = strings.Split(f.Weak.String(), ",")
	}
	if v.Would.Rule != nil {
		r.Would = v.Would.Decision.String()
		if v.Would.Decision >= smtp.Reject {
			r.WouldReply = rules.Reply(v.Would.Text, f.Session)
		}
	}
	r.Earlier = a.Decision != smtp.Proceed && v.Act.Rule == nil
	for i := range traces {
		rule, show := t.rule(&traces[i], f.Phase)
		if r, isRule := traces[i].Statement.(*rules.Rule); isRule && v.Waiting && traces[i].Decided && len(r.Ban) > 0 && v.Act.BanRule != r && v.Would.BanRule != r {
			rule.Outcome = "decides, but the ban is withheld: an allowlist has not answered"
		}
		if show {
			r.Rules = append(r.Rules, rule)
		}
	}
	if f.Phase == smtp.PhaseEnd && len(r.Rules) == 0 {
		return
	}
	s.Phases = append(s.Phases, r)
	if f.Phase != smtp.PhaseEnd { // no answer is possible at the end of a session
		t.last = r
	}
}

// answered completes a request with its answer.
func (t *trial) answered(id uint64, phase smtp.Phase, a smtp.Answer) {
	r := t.last
	t.last = nil
	if r == nil && a.Decision == smtp.Proceed {
		return // a pass statement exempts the message, so no policy was evaluated
	}
	if r == nil { // the client is banned, so no policy was evaluated
		s := t.session(id)
		r = &Request{Phase: phase.String(), Facts: []string{"banned by an earlier session"}}
		s.Phases = append(s.Phases, r)
	}
	r.Decision, r.Reply = a.Decision.String(), a.Text
	if a.Hold > 0 {
		r.Delay = a.Hold.String()
	}
}

// about returns the argument of the command described by f.
func about(f *rules.Facts) string {
	switch f.Phase {
	case smtp.PhaseHelo:
		return text.Escape(f.Helo)
	case smtp.PhaseMailFrom:
		return "<" + text.Escape(f.MailFrom) + ">"
	case smtp.PhaseRcptTo:
		return "<" + text.Escape(f.RcptTo) + ">"
	}
	return ""
}

// facts returns the facts that change during a session.
func facts(f *rules.Facts) (list []string) {
	if f.Auth {
		list = append(list, "authenticated: only rules with auth apply")
	}
	if f.Local {
		list = append(list, "local: no rule applies")
	}
	if f.TLS {
		list = append(list, "TLS")
	}
	return list
}

// effects appends a rule's effects to outcome.
func effects(outcome string, r *rules.Rule) string {
	if r != nil && r.Effects() != "" {
		outcome += ": " + r.Effects()
	}
	return outcome
}

// rule returns the result of a statement. show reports whether the output includes the
// result.
func (t *trial) rule(tr *rules.Trace, phase smtp.Phase) (rule Rule, show bool) {
	r, isRule := tr.Statement.(*rules.Rule)
	rule.Rule = "pass"
	if isRule {
		rule.Rule = "rule " + r.Name
	}
	if tr.Skipped != "" {
		rule.Outcome = "skipped: " + tr.Skipped
		return rule, t.Verbose
	}
	no, unknown := false, false
	for _, c := range tr.Conds {
		rule.Conditions = append(rule.Conditions, fmt.Sprintf("%s (%s): %v", c.Cond, c.Fact, c.Answer))
		no = no || c.Answer == rules.No
		unknown = unknown || c.Answer == rules.Unknown
	}
	switch {
	case tr.Withheld:
		rule.Outcome = "withheld: the client is trusted"
	case tr.Decided && r != nil && len(r.Ban) > 0 && !r.EvenTrusted && t.Standing >= rules.StandingKnown:
		rule.Outcome = "decides, but the ban is withheld: the client is " + t.Standing.String()
	case tr.Decided:
		rule.Outcome = effects("decides", r)
	case tr.Matched:
		rule.Outcome = effects("matches", r)
	case unknown && !no:
		rule.Outcome = "unknown"
		// Pass statements are evaluated even before the facts that they need are known. A pass
		// statement that does not match is shown only at rcpt-to, when all facts are known.
		return rule, t.Verbose || isRule || phase == smtp.PhaseRcptTo
	default:
		rule.Outcome = "does not match"
		return rule, t.Verbose
	}
	return rule, true
}

// recorded handles the record of a replayed session.
func (t *trial) recorded(end time.Time, id uint64, value []byte) {
	s := t.session(id)
	r, err := store.Decode(store.AppendKey(nil, end, id), value)
	if err != nil {
		t.fail(id, err)
		return
	}
	s.Local, s.RDNS, s.FCrDNS = r.Local, text.Escape(r.RDNS), r.FCrDNS.String()
	if r.Src.IsValid() {
		s.Src = r.Src.Addr().String()
	}
	if r.Dst.IsValid() {
		s.Dst = r.Dst.String()
	}
	err = r.Steps(func(st *store.Step) bool {
		if st.Kind == store.KindFinding {
			s.place(finding.New(t.Lists, &r, st), r.Start.Add(st.At))
		}
		return true
	})
	if err != nil {
		t.fail(id, err)
	}
}

// place adds a finding to the first request whose evidence includes it. The finding's time does not
// identify the request. For example, a finding about a reply has the time of one request but
// belongs to the next request.
func (s *Session) place(f finding.Finding, at time.Time) {
	for _, r := range s.Phases {
		if !r.at.Before(at) && (slices.Contains(r.Evidence, f.Evidence) || slices.Contains(r.Weak, f.Evidence)) {
			r.Findings = append(r.Findings, f)
			return
		}
	}
	s.Later = append(s.Later, f)
}

// ended passes an ended session to Options.Done.
func (t *trial) ended(o *replay.Outcome) {
	s := t.session(o.Record.ID)
	delete(t.live, o.Record.ID)
	if t.err == nil {
		t.err = t.done(s)
	}
}
