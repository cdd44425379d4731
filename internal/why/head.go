package why

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/finding"
	"scanwatch/internal/prefix"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
)

// summarize fills in the state, the cause and the remedy.
func (a *Answer) summarize(zone *time.Location) {
	day := func(t time.Time) string { return t.In(zone).Format("2006-01-02 15:04 -0700") }
	if a.Logins != nil {
		a.summarizeUser(day)
		return
	}
	bans := a.banned()
	s, r := a.decision()
	a.Undo = "nothing to undo"
	if s != nil {
		s, r := a.origin(s, r)
		a.Cause = s.cause(r) + ", " + day(s.Start.Time)
		if h := a.host(s); h != nil && len(h.Remedies) > 0 {
			a.Undo = h.Remedies[0].Do + ", " + h.Remedies[0].Text
		}
	} else {
		a.Cause = a.byMailServer()
		if len(a.Hosts) > 0 && len(a.Hosts[0].Remedies) > 0 && strings.HasPrefix(a.Cause, exempted) {
			r := a.Hosts[0].Remedies[0]
			a.Undo = r.Do + ", " + r.Text
		}
	}
	switch {
	case len(bans) > 0:
		b := bans[0]
		a.State = fmt.Sprintf("%s is banned until %s", prefix.String(b.Prefix), day(b.Until))
		if a.observes() {
			a.State += ", but not rejected in observe mode"
		} else if a.waits(b) {
			a.State += ", but " + memory.NotEnforced
		} else if a.spares(b) {
			a.State += ", but exempt"
		}
		if n := len(bans) - 1; n > 0 {
			a.State += ", and " + text.Plural(n, "other host")
		}
		if s == nil || s.Session != b.Session && s.Start.Before(b.Since) { // the rejection is older than the ban
			a.Cause = a.banCause(b, day)
		}
		a.Undo = unban(a.command, b)
	case len(a.Hosts) > 0:
		a.State = "not banned"
		b := a.mainBan()
		if b != nil && !b.Expired {
			a.State += fmt.Sprintf(", but would be until %s %s", day(b.Until), a.lacking(b))
		} else if b != nil && s == nil {
			a.State += "; the last ban ended on " + day(b.Until)
		}
		if b != nil && s == nil {
			a.Cause = a.banCause(b, day)
			if !b.Expired {
				a.Undo = unban(a.command, b)
			}
		}
	}
	if a.Matched > 0 {
		a.State = join(a.State, a.counts())
	}
	if x := a.Apart; x != nil && x.Ban != nil && !x.Ban.Observe {
		a.State = join(a.State, "other hosts in "+x.Prefix.String()+" are banned")
	}
}

// mainBan returns the ban that State describes: an enforced ban, else an observed ban, else the first
// host's latest ban. mainBan returns nil if there is none.
func (a *Answer) mainBan() *Ban {
	if bans := a.banned(); len(bans) > 0 {
		return bans[0]
	}
	if b := a.observed(); b != nil {
		return b
	}
	if len(a.Hosts) > 0 && len(a.Hosts[0].Bans) > 0 {
		return &a.Hosts[0].Bans[0]
	}
	return nil
}

// unban returns the line that ends a ban. The line starts with the given command.
func unban(command string, b *Ban) string { return command + " unban " + prefix.String(b.Prefix) }

// observes reports whether the filter is in observe mode.
func (a *Answer) observes() bool { return a.Mode == rules.Observe.String() }

// waits reports whether an active ban is not enforced because another host
// imposed it.
func (a *Answer) waits(b *Ban) bool { return a.waiting && b.On() != "" }

// spares reports whether an active ban is not enforced because two conditions hold: another host
// imposed the ban, and the banned host is exempt.
func (a *Answer) spares(b *Ban) bool {
	return b.On() != "" && slices.ContainsFunc(a.Hosts, func(h *Host) bool {
		return b.Affects(h.Prefix) && slices.ContainsFunc(h.Exemptions, func(x Exemption) bool { return x.Holds && x.By != "known-senders" })
	})
}

// lacking returns the condition under which an observed ban would be enforced.
func (a *Answer) lacking(b *Ban) string {
	switch {
	case b.On() != "":
		return "without observe in the statement fleet"
	case a.observes():
		return "in enforce mode"
	}
	return "if its rule enforced it"
}

// observed returns an active ban that is not enforced, or nil.
func (a *Answer) observed() *Ban {
	for _, h := range a.Hosts {
		for i := range h.Bans {
			if b := &h.Bans[i]; !b.Expired && b.Observe && !b.Revoked {
				return b
			}
		}
	}
	return nil
}

// banCause describes a ban and, if its session is in the answer, the evidence.
func (a *Answer) banCause(b *Ban, day func(time.Time) string) string {
	if b.Manual || b.On() != "" {
		return b.cause()
	}
	var session *Session
	var rule *Rule
	for _, s := range slices.Concat(a.Sessions, a.Deciding) {
		if s.Session != b.Session || !b.Affects(s.source) || s.Start.After(b.Since) || session != nil && s.Start.Before(session.Start.Time) {
			continue
		}
		for i := range s.Rules {
			if r := &s.Rules[i]; r.Decision == "ban" && r.Rule == text.Escape(b.Rule) {
				session, rule = s, r
			}
		}
	}
	if session == nil {
		return b.cause()
	}
	return session.cause(rule) + ", " + day(session.Start.Time)
}

// cause states whether the operator or a rule imposed the ban, with the rule's name.
func (b *Ban) cause() string {
	line := "rule " + text.Escape(b.Rule+b.On())
	if b.Manual {
		line = "the operator" + text.Escape(b.On()+": "+b.Rule)
	}
	if b.Observe {
		line += " (observed only)"
	}
	return line
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}

// counts describes how many sessions were rejected.
func (a *Answer) counts() string {
	line := fmt.Sprintf("%d of %s rejected", a.Rejected, text.Plural(a.Matched, "session"))
	if a.Rejected == 0 {
		line = fmt.Sprintf("none of %s was rejected by a rule", text.Plural(a.Matched, "session"))
	}
	if a.Matched == 1 {
		line = "no rule rejected the session"
		if a.Rejected == 1 {
			line = "the session was rejected"
		}
	}
	if a.Observed > 0 {
		line += fmt.Sprintf(", %d would have been if enforced", a.Observed)
	}
	return line
}

// banned returns the active, enforced bans, at most one per host.
func (a *Answer) banned() (bans []*Ban) {
	for _, h := range a.Hosts {
		if i := slices.IndexFunc(h.Bans, func(b Ban) bool { return !b.Expired && !b.Observe && !b.Revoked }); i >= 0 {
			bans = append(bans, &h.Bans[i])
		}
	}
	return bans
}

// host returns the host of a session, or nil.
func (a *Answer) host(s *Session) *Host {
	for _, h := range a.Hosts {
		if h.Prefix == s.source {
			return h
		}
	}
	return nil
}

// decision returns the newest enforced rejection by a rule, with its session. Without an enforced
// rejection, decision returns the newest rejection that was only observed.
func (a *Answer) decision() (newest *Session, decision *Rule) {
	for _, s := range a.Sessions {
		for i := range s.Rules {
			switch r := &s.Rules[i]; {
			case !r.rejects() || r.Exempt != "":
			case r.Enforced:
				return s, r
			case newest == nil:
				newest, decision = s, r
			}
		}
	}
	return newest, decision
}

// origin returns the session and the decision that led to s's ban. If the
// origin is unknown, or if r is not a ban, origin returns s and r.
func (a *Answer) origin(s *Session, r *Rule) (*Session, *Rule) {
	for _, other := range slices.Concat(a.Sessions, a.Deciding) {
		if other.Session != r.BannedIn || other.source != s.source || other.Start.After(s.Start.Time) {
			continue
		}
		for i := range other.Rules {
			if o := &other.Rules[i]; o.Rule == r.Rule && o.Decision == "ban" {
				return other, o
			}
		}
	}
	return s, r
}

// findOrigin looks up the other host that imposed s's ban.
func (a *Answer) findOrigin(s *Session, r *Rule) {
	h := a.host(s)
	if r.BannedIn == "" || r.Kept || h == nil {
		return
	}
	for i := range h.Bans {
		b := &h.Bans[i]
		if b.On() != "" && b.Ban.Session == r.ban && text.Escape(b.Rule) == r.Rule {
			r.BannedOn = text.Escape(b.Origin)
			return
		}
	}
}

// rejects reports whether the decision rejects the client or a command.
func (r *Rule) rejects() bool {
	return r.Decision == smtp.Reject.String() || r.Decision == smtp.Disconnect.String()
}

// cause describes a decision and its evidence.
func (s *Session) cause(r *Rule) string {
	line := "rule " + r.Rule
	switch {
	case r.BannedIn == manual:
		line = "the operator's ban" + r.on() + " (" + r.Rule + ")"
	case r.BannedIn != "":
		line = "the ban by rule " + r.Rule + r.on() + " in session " + r.BannedIn
	}
	switch {
	case r.Exempt != "":
		line += " (withheld: " + r.Exempt + ")"
	case !r.Enforced:
		line += " (observed only)"
	}
	if r.Phases != "" {
		line += " at " + r.Phases
	}
	if r.BannedIn == "" {
		line += s.because(r)
	}
	if r.Unanswered != "" {
		line += "; " + r.late()
	}
	return line
}

// on returns the name of the other host that imposed the ban, as in " on mx1". If this host imposed
// the ban, on returns "".
func (r *Rule) on() string {
	if r.BannedOn == "" {
		return ""
	}
	return " on " + r.BannedOn
}

// because returns the evidence and the DNS lists' answers that the rule's conditions refer to.
func (s *Session) because(r *Rule) string {
	if named := s.named(r); named != nil {
		return " for " + strings.Join(named, ", ")
	}
	for i := range s.Evidence {
		e := &s.Evidence[i]
		if !strings.Contains(r.Text, e.Evidence) || s.otherList(r, e) {
			continue
		}
		if name, zone := e.DNSList(); name != "" {
			return fmt.Sprintf(" for listed in %s (%s) as %s", name, zone, e.Proof)
		}
		return strings.TrimRight(" for "+e.Evidence+" "+e.Proof, " ")
	}
	if scores := s.scores(r); scores != nil {
		return " with " + strings.Join(scores, ", ")
	}
	return ""
}

// otherList reports whether e is about a DNS list that the rule does not name. otherList returns
// false unless another finding of the session is about a list that the rule names.
func (s *Session) otherList(r *Rule, e *finding.Finding) bool {
	named := func(f finding.Finding) bool {
		name, _ := f.DNSList()
		return name != "" && slices.Contains(words(r.Text), name)
	}
	name, _ := e.DNSList()
	return name != "" && !named(*e) && slices.ContainsFunc(s.Evidence, named)
}

// byMailServer describes the newest rejection by the mail server itself.
func (a *Answer) byMailServer() string {
	for _, s := range a.Sessions {
		for _, line := range s.Summary {
			if strings.Contains(line, byServer) {
				return store.MailServer(s.FrontEnd) + ", not a rule: " + line
			}
		}
	}
	for _, s := range a.Sessions {
		for _, line := range s.Summary {
			if strings.HasPrefix(line, exempted) {
				return line
			}
		}
	}
	return "no rule matched"
}

// head writes the answer's first lines.
func (p *printer) head(a *Answer) {
	for _, line := range []struct{ name, text string }{{"State:", a.State}, {"Cause:", a.Cause}, {"Undo:", a.Undo}, {"Mode:", a.mode}} {
		if line.text == "" {
			continue
		}
		p.wrap(7, "%-7s%s", line.name, line.text)
	}
	fmt.Fprintln(p.w)
}

// similar groups sessions that differ only in times and numbers.
func similar(list []*Session) (groups []*group) {
	seen := map[string]*group{}
	for _, s := range list {
		key := s.shape()
		if g := seen[key]; g != nil {
			g.others = append(g.others, s)
			continue
		}
		g := &group{Session: s}
		seen[key], groups = g, append(groups, g)
	}
	return groups
}

type group struct {
	*Session
	others []*Session
}

// shape returns a text that is identical for similar sessions.
func (s *Session) shape() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s %q %v %v", s.Src, s.RDNS, s.FCrDNS, s.Helo, s.Sessions > 0, s.Damage != "")
	for i := range s.Rules {
		r := &s.Rules[i]
		fmt.Fprintf(&b, "|%s %s %s %v %s %s", r.Rule, r.Phases, r.Decision, r.Enforced, r.BannedIn, r.Text)
	}
	for i := range s.Evidence {
		fmt.Fprintf(&b, "|%s", s.Evidence[i].Evidence)
	}
	if len(s.Rules) == 0 {
		fmt.Fprintf(&b, "|%q", s.Summary)
	}
	return b.String()
}

// maxIDs is the maximum number of ids printed for similar sessions.
const maxIDs = 3

// similar writes the ids of all sessions in g except the first.
func (p *printer) similar(g *group) {
	n := len(g.others)
	if n == 0 {
		return
	}
	var ids []string
	for _, s := range g.others[:min(n, maxIDs)] {
		ids = append(ids, s.Session)
	}
	more := ""
	if n > maxIDs {
		more = " and others"
	}
	p.line("similar", "%s since %s: %s%s", text.Plural(n, "session"), p.time(g.others[n-1].Start.Time), strings.Join(ids, " "), more)
}
