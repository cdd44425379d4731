package report

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"scanwatch/internal/hostname"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/store"
)

// maxRefusals is the maximum number of rejecting rules that are counted in one session.
const maxRefusals = 8

// Reasons for a SuspectRefusal, strongest first.
const (
	SuspectLogin    = "the client had authenticated"
	SuspectMessages = "other messages from it were accepted"
	SuspectClean    = "it passes FCrDNS and has no high-confidence evidence"
	SuspectMixed    = "it passes FCrDNS, and a message in the session was accepted"
	SuspectReturn   = "it passes FCrDNS and returned, as a mailing list does"
)

var suspectReasons = []string{SuspectLogin, SuspectMessages, SuspectClean, SuspectMixed, SuspectReturn}

// A SuspectRefusal is a possible false positive: a rule or ban rejected, or would have
// rejected, a host that may have sent legitimate mail.
type SuspectRefusal struct {
	Address  string `json:"address"`
	RDNS     string `json:"rdns,omitempty"`
	Rule     string `json:"rule"`
	Refused  int    `json:"refused"`  // rejected sessions
	Observed int    `json:"observed"` // sessions that would have been rejected
	Mails    int    `json:"messages"` // accepted from the host in other sessions of the period
	Sender   string `json:"sender,omitempty"`
	Why      string `json:"why"`     // one of the reasons above
	Session  string `json:"session"` // id of the last session, for scanwatch show and why
	Last     Time   `json:"last"`    // end of that session
}

// SuspectHosts counts the hosts in the untruncated list of possible false positives.
type SuspectHosts struct {
	Refused  int `json:"rejected"`
	Observed int `json:"observed"` // hosts with only observed rejections
}

// String describes the hosts in a line of text, or returns "" if there are
// no hosts.
func (h SuspectHosts) String() string {
	switch {
	case h.Observed == 0 && h.Refused == 0:
		return ""
	case h.Observed == 0:
		return text.Plural(h.Refused, "host") + " rejected"
	case h.Refused == 0:
		return text.Plural(h.Observed, "host") + " observed, none rejected"
	}
	return fmt.Sprintf("%s rejected, %d only observed", text.Plural(h.Refused, "host"), h.Observed)
}

type suspectKey struct {
	src  address
	rule uint32 // number of the rule in lists.rules
}

func (k suspectKey) hash() uint64 { return mix(k.src.hash(), uint64(k.rule)) }

type suspect struct {
	refused, observed int
	mails             int // accepted in the observed sessions
	login             bool
	mixed             bool // the host had an observed session with accepted mail, and with high-confidence evidence only about recipients
	unclean           bool // the host had a session with high-confidence evidence, failed logins, or no verified name
	proven            bool // the host had a session with a verified name but no such evidence
	sender            string
	session           uint64
	last              int64 // microseconds since 1970
}

// A refusal counts the sessions of a record that a rule rejected or would have
// rejected.
type refusal struct {
	rule               []byte
	enforced, observed int
}

// refusal adds a rejection in the current record to the counts.
func (c *Collector) refusal(s *store.Step) {
	if s.Decision < smtp.Reject || s.Exempt != "" {
		return
	}
	n := &c.now
	i := slices.IndexFunc(n.refusals[:n.rules], func(r refusal) bool { return bytes.Equal(r.rule, s.Text) })
	if i < 0 {
		if n.rules == len(n.refusals) {
			return
		}
		i = n.rules
		n.refusals[i] = refusal{rule: s.Text}
		n.rules++
	}
	to := &n.refusals[i].observed
	if s.Enforced {
		to = &n.refusals[i].enforced
	}
	if n.sum { // the rule's other tallies belong to other sessions
		*to += times(s)
	} else {
		*to = 1
	}
	if s.Enforced || !n.rejection.enforced {
		n.rejection = decision{s.Text, s.Phase, s.Enforced, 0}
		if s.Banned {
			n.rejection.cause = s.Session
		}
	}
}

// observed returns the number of sessions in the record that a rule would have rejected in enforce
// mode. Rejected sessions are not counted. For an aggregate, the number is a lower bound, because
// several rules may apply to the same sessions.
func (n *current) observed() (most int) {
	for i := range n.refusals[:n.rules] {
		most = max(most, n.refusals[i].observed)
	}
	return min(most, n.Many()-n.refused())
}

// refused returns the number of rejected sessions in the record.
func (n *current) refused() int {
	if n.sum {
		return int(n.Rejected)
	}
	for i := range n.refusals[:n.rules] {
		if n.refusals[i].enforced > 0 {
			return 1
		}
	}
	return 0
}

// addSuspects adds the rejections of the current record to the possible false positives.
func (c *Collector) addSuspects() {
	n := &c.now
	if !n.Src.IsValid() {
		return
	}
	verified := n.FCrDNS == smtp.FCrDNSPass && !n.certain && n.Counts.AuthFail+n.Counts.AuthRefused == 0
	for _, one := range n.refusals[:n.rules] {
		rule, ok := c.lists.rules.find(one.rule)
		if !ok {
			continue
		}
		i, ok := c.lists.suspects.find(suspectKey{addressOf(n.Src.Addr()), rule})
		if !ok {
			c.dropped["refusals"]++
			continue
		}
		d := &c.lists.suspects.at(i).V
		d.refused += one.enforced
		if one.enforced == 0 || n.sum {
			d.observed += one.observed
		}
		if one.enforced == 0 { // an enforced rejection would have prevented these messages
			d.mails += int(n.Counts.Mails)
			d.mixed = d.mixed || n.FCrDNS == smtp.FCrDNSPass && n.Counts.Mails > 0 && n.certain && !n.abuse
		}
		d.login = d.login || n.Counts.AuthPass > 0
		d.unclean, d.proven = d.unclean || !verified, d.proven || verified
		if end := n.End.UnixMicro(); end >= d.last {
			d.last, d.session = end, n.ID
			if n.reference != 0 {
				d.session = n.reference
			}
			if len(n.sender) > 0 && d.sender != string(n.sender) {
				d.sender = string(n.sender[:min(len(n.sender), 255)])
			}
		}
	}
}

// reason returns the reason why d's host may be legitimate, or "". A host with evidence of scanning
// is not legitimate, even if the confidence is not high. A mailing list that keeps returning after
// a ban has such a reason even if the period includes the evidence that led to the ban.
func (d *suspect) reason(src *source, rdns []byte) string {
	switch {
	case d.login:
		return SuspectLogin
	case src != nil && int(src.mails) > d.mails:
		return SuspectMessages
	case src != nil && src.abuse:
		return ""
	case !d.unclean && (src == nil || !src.certain):
		return SuspectClean
	case d.mixed && !hostname.Generic(rdns):
		return SuspectMixed
	case d.proven && d.refused+d.observed > 1 && !hostname.Generic(rdns):
		return SuspectReturn
	}
	return ""
}

// listSuspects returns the possible false positives, the number of omitted entries, and the number
// of hosts.
func (l *lists) listSuspects(top int) (list []SuspectRefusal, more int, hosts SuspectHosts) {
	type listed struct {
		suspect uint32
		reason  uint8 // index in suspectReasons
	}
	t, sources := &l.suspects, &l.sources
	all := make([]listed, 0, t.n)
	for i := range t.n {
		e := t.at(i)
		src := sources.lookup(e.key.src)
		var rdns []byte
		if src != nil {
			rdns = sources.rdns.get(src.rdns)
		}
		if reason := e.V.reason(src, rdns); reason != "" {
			all = append(all, listed{i, uint8(slices.Index(suspectReasons, reason))})
		}
	}
	slices.SortFunc(all, func(x, y listed) int { return bytes.Compare(t.at(x.suspect).key.src[:], t.at(y.suspect).key.src[:]) })
	for i, refused := 0, false; i < len(all); i++ {
		e := t.at(all[i].suspect)
		refused = refused || e.V.refused > 0
		if i+1 < len(all) && t.at(all[i+1].suspect).key.src == e.key.src {
			continue // the next entry is about the same host
		}
		if refused {
			hosts.Refused++
		} else {
			hosts.Observed++
		}
		refused = false
	}
	all, more = first(all, top, func(x, y listed) int {
		a, b := t.at(x.suspect), t.at(y.suspect)
		return cmp.Or(cmp.Compare(min(b.V.refused, 1), min(a.V.refused, 1)), cmp.Compare(x.reason, y.reason), cmp.Compare(b.V.refused, a.V.refused),
			cmp.Compare(b.V.observed, a.V.observed), bytes.Compare(a.key.src[:], b.key.src[:]), strings.Compare(l.rules.all[a.key.rule].Rule.Rule, l.rules.all[b.key.rule].Rule.Rule))
	})
	list = []SuspectRefusal{}
	for _, x := range all {
		e := t.at(x.suspect)
		d := &e.V
		one := SuspectRefusal{Address: e.key.src.addr().String(), Rule: l.rules.all[e.key.rule].Rule.Rule, Refused: d.refused, Observed: d.observed, Why: suspectReasons[x.reason],
			Sender: text.Escape(d.sender), Session: fmt.Sprintf("%016x", d.session), Last: text.At(time.UnixMicro(d.last))}
		if src := sources.lookup(e.key.src); src != nil {
			one.RDNS, one.Mails = text.Escape(sources.rdns.get(src.rdns)), int(src.mails)-d.mails
		}
		list = append(list, one)
	}
	return list, more, hosts
}

// rule holds the number of sessions with each effect of a rule.
type rule struct {
	Rule
	numbers [ruleEffects]uint32
	last    [ruleEffects]uint32 // the record that last increased each number
}

// Effects of a rule.
const (
	ruleEnforced = iota
	ruleObserved
	ruleBans
	ruleExempt
	ruleEffects
)

type ruleList struct {
	numbers map[string]uint32
	all     []rule
}

// find returns the number of a rule, or false if there are too many rules.
func (l *ruleList) find(name []byte) (uint32, bool) {
	i, ok := l.numbers[string(name)]
	if !ok && len(l.all) < maxRules {
		i, ok = uint32(len(l.all)), true
		l.numbers[string(name)] = i
		l.all = append(l.all, rule{Rule: Rule{Rule: text.Escape(name)}})
	}
	return i, ok
}

// countRule counts an effect of a rule.
func (c *Collector) countRule(s *store.Step, effect int) {
	i, ok := c.lists.rules.find(s.Text)
	if !ok {
		c.dropped["rules"] += times(s)
		return
	}
	r := &c.lists.rules.all[i]
	c.count(&r.numbers[effect], &r.last[effect], s)
}

// list returns the rules and the number of omitted rules. top limits the length of the list.
func (l *ruleList) list(top int) (list []Rule, more int) {
	list = []Rule{}
	for i := range l.all {
		r := l.all[i]
		n := &r.numbers
		r.Enforced, r.Observed, r.Bans, r.Exempt = int(n[ruleEnforced]), int(n[ruleObserved]), int(n[ruleBans]), int(n[ruleExempt])
		if r.Enforced+r.Observed+r.Bans+r.Exempt > 0 {
			list = append(list, r.Rule)
		}
	}
	return first(list, top, func(a, b Rule) int {
		return cmp.Or(cmp.Compare(b.Enforced, a.Enforced), cmp.Compare(b.Observed, a.Observed), cmp.Compare(a.Rule, b.Rule))
	})
}
