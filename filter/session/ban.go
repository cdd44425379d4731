package session

import (
	"time"

	"scanwatch/filter/memory"
	"scanwatch/rules"
	"scanwatch/store"
)

// sentence carries out the bans that rules ask for, or tells who would be
// banned.
func (t *Table) sentence(s *Session, at int64, v *rules.Verdict) {
	t.banish(s, at, &v.Act, &s.banned, false)
	t.banish(s, at, &v.Would, &s.wouldBan, true)
}

// banish bans the source of s, once for each rule in a row. Who must not be
// banned is spared, and that is told: a rule that would ban such hosts is one
// to look at.
func (t *Table) banish(s *Session, at int64, o *rules.Outcome, last **rules.Rule, observe bool) {
	if o.BanRule == nil || *last == o.BanRule || !s.Src.IsValid() {
		return
	}
	*last = o.BanRule
	step := store.Step{Kind: store.KindBan, Text: []byte(o.BanRule.Name), Arg: []byte(memory.Source(s.Src.Addr()).String()), Rule: t.refs[o.BanRule]}
	if observe {
		step.By = []byte("observe")
	}
	var b memory.Ban
	spared := t.spared(s, at)
	if spared == "" {
		b = t.memory.Ban(s.Src.Addr(), memory.Sentence{For: o.Ban, Rule: o.BanRule.Name, Session: s.ID, Observe: observe}, at)
		step.Reply = b.Until.AppendFormat(nil, time.RFC3339)
		if !observe {
			step.Result = store.ResultOK
		}
	} else {
		step.Match = []byte(spared)
	}
	t.step(s, at, &step)
	if t.options.Event != nil {
		e := t.eventOf(s, "ban", at)
		e.Rule, e.Prefix, e.Until, e.Reason = o.BanRule.Name, string(step.Arg), b.Until, spared
		switch {
		case spared != "":
			e.Event = "spared"
		case observe:
			e.Event, e.Would = "ban", "ban"
		}
		t.options.Event(e)
	}
	if t.tell(s, logBan, o.BanRule.Name, at) {
		t.logBan(s, o.BanRule.Name, &b, observe, spared)
	}
}

// spared tells why s must not be banned: "" if nothing speaks for it.
func (t *Table) spared(s *Session, at int64) string {
	a := s.Src.Addr()
	friends := t.settings.Policy.Table("friends")
	switch {
	case s.Authed:
		return "login"
	case s.here:
		return "local"
	case friends != nil && friends.MatchAddr(a):
		return "friend"
	}
	return t.memory.Spared(t.whois(s), at)
}

// turnAway records that s came while it was banned, and tells whether it has to
// go: not in observe mode, not if the ban was only observed, and not if s has
// become one of those who are spared.
func (t *Table) turnAway(s *Session, at int64) (enforced bool) {
	b := s.ban
	enforced = t.settings.Policy.Mode == rules.Enforce && !b.Observe && (b.Manual || t.spared(s, at) == "")
	step := store.Step{Kind: store.KindVerdict, Text: []byte(b.Rule), Arg: []byte(rules.Connect.String()), Reply: []byte(rules.Disconnect.String()), By: []byte("ban")}
	if enforced {
		step.Result = store.ResultOK
	}
	if b.Session != 0 {
		step.Match = appendHex(nil, b.Session)
	}
	t.step(s, at, &step)
	t.sendVerdict(s, at, rules.Connect, b.Rule, rules.Disconnect, enforced, b.Until)
	if t.tell(s, logBanned, b.Rule, at) {
		t.logBanned(s, b, enforced)
	}
	return enforced
}

// shortBan is how long a ban may last to be answered with a temporary code: an
// honest server tries again until its end, for RFC 5321 section 4.5.4.1 asks
// for four to five days. With a longer one its sender had better know at once.
const shortBan = 48 * time.Hour

// banText is the answer for a banned host. The reference leads to the session
// that it was banned for.
func banText(b *memory.Ban, id uint64) string {
	code := "554 5.7.1"
	if b.Until.Sub(b.Since) <= shortBan {
		code = "421 4.7.1"
	}
	if b.Session != 0 {
		id = b.Session
	}
	return rules.Reply(code+" Turned away until "+b.Until.Format("2006-01-02 15:04")+" UTC ("+printable(b.Rule)+")", id)
}

// printable keeps an operator's reason within what a reply may hold.
func printable(s string) string {
	b := []byte(cut([]byte(s), 100))
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}
