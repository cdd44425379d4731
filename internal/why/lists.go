package why

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
)

// A listing is a DNS list's answer in a session.
type listing struct {
	name, zone, codes string // printable
	listed            bool
}

func (l *listing) String() string {
	if !l.listed {
		return fmt.Sprintf("not listed in %s (%s)", l.name, l.zone)
	}
	return fmt.Sprintf("listed in %s (%s) as %s", l.name, l.zone, l.codes)
}

// listed adds a DNS list's answer.
func (s *sessionReader) listed(st *store.Step) {
	zone := strings.TrimPrefix(string(st.Match), rules.KeyMark+".")
	l := listing{text.Escape(st.Text), text.Escape(zone), text.Escape(st.Arg), st.Result != smtp.ResultOK}
	if st.Result == smtp.ResultPass { // a listing in a block list is evidence
		s.add("in the allowlist %s (%s): %s", l.name, l.zone, l.codes)
	}
	if len(s.lists) >= rules.MaxLookups {
		return
	}
	s.lists = append(s.lists, l)
	if s.facts != nil {
		s.facts.Listings = append(s.facts.Listings, smtp.Listing{Name: string(st.Text), Listed: l.listed, Codes: string(st.Arg)})
		s.findPass(smtp.PhaseConnect)
	}
}

// learn adds the facts from a step. A pass statement about a DNS list may have further conditions,
// which need such facts.
func (s *sessionReader) learn(st *store.Step) {
	if s.facts == nil {
		return
	}
	switch st.Kind {
	case store.KindHelo:
		s.facts.Helo = slices.Clone(st.Text)
		s.findPass(smtp.PhaseHelo)
	case store.KindMail:
		s.facts.MailFrom = slices.Clone(st.Text)
		s.findPass(smtp.PhaseMailFrom)
	case store.KindRcpt:
		s.facts.RcptTo = slices.Clone(st.Text)
		s.findPass(smtp.PhaseRcptTo)
	}
}

// findPass looks for the current policy's pass statement that matches in a phase. After the connect
// phase, it considers only statements on DNS lists, because other statements may exempt only one
// message.
func (s *sessionReader) findPass(phase smtp.Phase) {
	if s.pass != nil {
		return
	}
	s.facts.Phase = phase
	if pass := s.Policy.Eval(s.facts).Pass; pass != nil && (phase == smtp.PhaseConnect || onLists(pass)) {
		s.pass = pass
	}
}

// onLists reports whether a pass statement has a condition on a DNS list.
func onLists(p *rules.Pass) bool {
	return slices.ContainsFunc(p.Conds, func(c *rules.Cond) bool { return c.Word == "listed" })
}

// unanswered returns the DNS lists whose answers could exempt the client but had not arrived when a
// decision was made. The names are separated by commas.
func (s *sessionReader) unanswered(phase smtp.Phase) string {
	if s.facts == nil {
		return ""
	}
	s.facts.Phase = phase
	if !s.Policy.Eval(s.facts).Waiting {
		return ""
	}
	var names []string
	for _, t := range s.Policy.Answers(s.facts) {
		if _, ok := t.Statement.(*rules.Pass); !ok || slices.ContainsFunc(t.Conds, func(c rules.CondTrace) bool { return c.Answer == rules.No }) {
			continue
		}
		for _, c := range t.Conds {
			if c.Cond.Word != "listed" || c.Answer != rules.Unknown {
				continue
			}
			for _, v := range c.Cond.Values {
				known := slices.ContainsFunc(s.facts.Listings, func(l smtp.Listing) bool { return l.Name == v.Text })
				if !known && !slices.Contains(names, v.Text) {
					names = append(names, v.Text)
				}
			}
		}
	}
	return strings.Join(names, ", ")
}

// words splits a rule's text into words.
func words(ruleText string) []string {
	return strings.FieldsFunc(ruleText, func(r rune) bool { return strings.ContainsRune(" !,{}\n", r) })
}

// scoresListed reports whether a policy's scores include listings in DNS lists.
func scoresListed(p *rules.Policy) bool {
	return p != nil && strings.Contains(p.String(), "score evidence listed ")
}

// dependsOnLists reports whether a rule may match because of a DNS list.
func (r *Rule) dependsOnLists(p *rules.Policy) bool {
	all := words(r.Text)
	return slices.Contains(all, "listed") || slices.Contains(all, "score") && scoresListed(p)
}

// named returns the answers of the DNS lists that a rule names.
func (s *Session) named(r *Rule) (all []string) {
	w := words(r.Text)
	for i := range s.lists {
		if l := &s.lists[i]; slices.Contains(w, "listed") && slices.Contains(w, l.name) {
			all = append(all, l.String())
		}
	}
	return all
}

// scores returns the listings that add to a rule's score.
func (s *Session) scores(r *Rule) (all []string) {
	for i := range s.lists {
		if l := &s.lists[i]; s.scored && l.listed && slices.Contains(words(r.Text), "score") {
			all = append(all, l.String())
		}
	}
	return all
}

// late describes the effect of DNS lists that did not answer in time.
func (r *Rule) late() string {
	return r.Unanswered + " not answered in time, so the rejection is temporary"
}

// remedy adds a remedy to h unless h already has it.
func (h *Host) remedy(do, format string, args ...any) {
	r := Remedy{do, fmt.Sprintf(format, args...)}
	if !slices.Contains(h.Remedies, r) {
		h.Remedies = append(h.Remedies, r)
	}
}

// sessionsOf returns h's sessions in the answer.
func (a *Answer) sessionsOf(h *Host) (all []*Session) {
	for _, s := range slices.Concat(a.Sessions, a.Deciding) {
		if s.source == h.Prefix {
			all = append(all, s)
		}
	}
	return all
}

// An adviser adds remedies for decisions about a host that depended on DNS
// lists.
type adviser struct {
	*Host
	sessions []*Session // sessions of the host
	policy   *rules.Policy
	file     string // name of the policy's file
	command  string // Options.Command
}

func newAdviser(w *query, h *Host) *adviser {
	return &adviser{h, w.answer.sessionsOf(h), w.Policy, w.File, w.Command}
}

// late adds remedies for decisions that were temporary because a list did not answer in time.
func (a *adviser) late() {
	for _, s := range a.sessions {
		for i := range s.Rules {
			names := strings.Split(s.Rules[i].Unanswered, ", ")
			for _, l := range a.policy.Lookups {
				switch {
				case !slices.Contains(names, l.Name):
				case l.Hold < rules.MaxHold:
					a.remedy(fmt.Sprintf("lookup %s ... hold %dms", l.Name, rules.MaxHold.Milliseconds()), "in %s: add hold, so that clients wait for the answer", a.where(l.Pos))
				default:
					a.remedy(a.command+" status", "shows why lookup %s is not answering in time", l.Name)
				}
			}
		}
	}
}

// listed adds the remedy for decisions based on a listing.
func (a *adviser) listed() {
	for _, s := range a.sessions {
		if !slices.ContainsFunc(s.Rules, func(r Rule) bool { return r.dependsOnLists(a.policy) }) {
			continue
		}
		for i := range s.Evidence {
			if name, zone := s.Evidence[i].DNSList(); name != "" {
				a.remedy("ask the operator of "+zone+" to remove "+s.Src, "rules apply to the client while the list %s contains it", name)
			}
		}
	}
}

// where returns a statement's file and line.
func (a *adviser) where(p rules.Pos) string {
	return fmt.Sprintf("%s, line %d", text.Escape(cmp.Or(p.File, a.file)), p.Line)
}

// exempt handles a client that no rule has rejected. exempt adds an exemption that depends on a DNS
// list, and the remedy for it.
func (a *adviser) exempt() {
	if a.newest == nil || a.newest.pass == nil || !onLists(a.newest.pass) {
		return
	}
	a.exemptByPass(a.newest.pass)
	a.remedy("remove "+text.Escape(a.newest.pass.String()), "in %s: rules then apply to the client", a.where(a.newest.pass.Pos))
}

// exemptByPass adds the exemption granted by the matching pass statement p.
func (h *Host) exemptByPass(p *rules.Pass) {
	h.exempt("pass", true, "a pass statement matches: %s", text.Escape(p.String()))
}
