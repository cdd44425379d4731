package rules

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
)

// An action is a row in the table of actions. Decisions come first in the table, because a rule is
// written with its decision before its other actions.
type action struct {
	word, alias string
	args        string
	decision    bool
	phases      smtp.PhaseSet // phases in which the action is possible
	why         string        // why the action is impossible in other phases
	many        bool          // the action may occur several times in a rule
	parse       func(*line, *Rule) *Error
	has         func(*Rule) bool
	print       func(*Rule) string
}

// overAlready is the error for an action that is impossible in the end phase.
const overAlready = "the session has ended: only ban and tag are possible"

var actions = []action{
	{word: "proceed", alias: "pass", decision: true, phases: smtp.Answerable, why: overAlready,
		parse: decide(smtp.Proceed, false), has: decides(smtp.Proceed), print: printDecision},
	{word: "junk", decision: true, phases: smtp.Answerable &^ smtp.Phases(smtp.PhaseCommit), why: "smtpd exits on junk at commit; use junk at data",
		parse: decide(smtp.Junk, false), has: decides(smtp.Junk), print: printDecision},
	{word: "reject", args: `["text"]`, decision: true, phases: smtp.Answerable &^ smtp.Phases(smtp.PhaseConnect), why: "a client that is rejected at connect stays connected without a greeting; use disconnect",
		parse: decide(smtp.Reject, true), has: decides(smtp.Reject), print: printDecision},
	{word: "disconnect", args: `["text"]`, decision: true, phases: smtp.Answerable, why: overAlready,
		parse: decide(smtp.Disconnect, true), has: decides(smtp.Disconnect), print: printDecision},
	{word: "score", args: "number", phases: smtp.Answerable &^ smtp.Phases(smtp.PhaseCommit), why: "no rule can use the score after commit",
		parse: parseScore, has: func(r *Rule) bool { return r.Score != 0 },
		print: func(r *Rule) string { return "score " + strconv.Itoa(r.Score) }},
	{word: "delay", args: "duration", phases: smtp.Answerable, why: overAlready,
		parse: func(l *line, r *Rule) (err *Error) {
			r.Delay, err = l.duration("a delay", time.Second, maxDelay)
			return err
		},
		has:   func(r *Rule) bool { return r.Delay != 0 },
		print: func(r *Rule) string { return "delay " + text.Duration(r.Delay) }},
	{word: "tag", args: "word", phases: smtp.AllPhases, many: true,
		parse: parseTag, has: func(r *Rule) bool { return len(r.Tags) > 0 }, print: printTags},
	{word: "ban", args: "duration | { duration, ... }", phases: smtp.AllPhases,
		parse: parseBan, has: func(r *Rule) bool { return len(r.Ban) > 0 },
		print: func(r *Rule) string { return "ban " + braces(durations(r.Ban, text.Duration)) }},
}

// parseBan parses the durations of bans for consecutive offences. Only the first duration may be
// 0s. With 0s, the first offence is counted but leads to no ban.
func parseBan(l *line, r *Rule) *Error {
	return l.each(func() *Error {
		t := l.peek()
		least := time.Minute
		if len(r.Ban) == 0 && t.text == "0s" {
			least = 0
		}
		d, err := l.duration("a ban", least, MaxBan)
		switch {
		case err != nil:
			return err
		case len(r.Ban) == maxLadder:
			return l.errorf(t.pos, "", "a rule has at most %d bans", maxLadder)
		case len(r.Ban) > 0 && d < r.Ban[len(r.Ban)-1]:
			return l.errorf(t.pos, "", "a ban may not be shorter than the previous ban in the list")
		}
		r.Ban = append(r.Ban, d)
		return nil
	})
}

func durations(list []time.Duration, say func(time.Duration) string) (items []string) {
	for _, d := range list {
		items = append(items, say(d))
	}
	return items
}

// Ladder returns the durations of bans for consecutive offences of a host. The last duration also
// applies to all later offences. If the rule has only a duration d, the durations are d, 7d and
// 30d. No duration exceeds MaxBan.
func (r *Rule) Ladder() []time.Duration {
	if len(r.Ban) != 1 {
		return r.Ban
	}
	d := r.Ban[0]
	return []time.Duration{d, min(7*d, MaxBan), min(30*d, MaxBan)}
}

func actionByWord(t token) *action {
	if t.kind != wordToken {
		return nil
	}
	for i := range actions {
		if a := &actions[i]; a.word == t.text || a.alias != "" && a.alias == t.text {
			return a
		}
	}
	return nil
}

func decides(d smtp.Decision) func(*Rule) bool {
	return func(r *Rule) bool { return r.Decides && r.Decision == d }
}

func decide(d smtp.Decision, text bool) func(*line, *Rule) *Error {
	return func(l *line, r *Rule) *Error {
		word := l.toks[l.at-1]
		if r.Decides {
			return l.errorf(word.pos, "", "rule %s cannot %s and %s", r.Name, r.Decision, d)
		}
		r.Decides, r.Decision = true, d
		t := l.peek()
		if t.kind != stringToken {
			return nil
		}
		if !text {
			return l.errorf(t.pos, "only reject and disconnect take a reply text", "%s takes no text", d)
		}
		l.at++
		if wrong := checkText(t.text); wrong != "" {
			return l.errorf(t.pos, "write for example \"550 5.7.1 Rejected for this reason\"", "%s", wrong)
		}
		r.Text = t.text
		return nil
	}
}

func printDecision(r *Rule) string {
	if r.Text == "" {
		return r.Decision.String()
	}
	return r.Decision.String() + " " + quote(r.Text)
}

// Effects returns the text of all actions of r except the decision.
func (r *Rule) Effects() string {
	var list []string
	for i := range actions {
		if a := &actions[i]; !a.decision && a.has(r) {
			list = append(list, a.print(r))
		}
	}
	return strings.Join(list, " ")
}

func parseScore(l *line, r *Rule) (err *Error) {
	t := l.peek()
	r.Score, err = l.number("the score", -maxScore, maxScore)
	if err == nil && r.Score == 0 {
		return l.errorf(t.pos, "", "a score of 0 has no effect")
	}
	return err
}

func parseTag(l *line, r *Rule) *Error {
	t := l.peek()
	tag, err := l.name("tag")
	if err == nil && slices.Index(r.Tags, tag) >= 0 {
		err = l.errorf(t.pos, "", "tag %s is a duplicate", tag)
	}
	r.Tags = append(r.Tags, tag)
	return err
}

func printTags(r *Rule) string {
	text := ""
	for _, t := range r.Tags {
		if text != "" {
			text += " "
		}
		text += "tag " + t
	}
	return text
}

// A Keyword describes a word in the policy language, for manuals and help.
type Keyword struct {
	Kind string // statement, condition, action, phase or key
	Word string
	Args string // syntax of the arguments; for a statement, of the whole statement
}

// Keywords returns all words of the policy language except the evidence tokens.
func Keywords() (list []Keyword) {
	for _, s := range statements {
		list = append(list, Keyword{"statement", s.word, s.syntax})
	}
	for i := range conditions {
		list = append(list, Keyword{"condition", conditions[i].word, conditions[i].args})
	}
	for i := range actions {
		list = append(list, Keyword{"action", actions[i].word, actions[i].args})
		if actions[i].alias != "" {
			list = append(list, Keyword{"action", actions[i].alias, actions[i].args})
		}
	}
	for _, p := range smtp.AllPhases.List() {
		list = append(list, Keyword{"phase", p.String(), ""})
	}
	for _, k := range keyNames[1:] {
		list = append(list, Keyword{"key", k, ""})
	}
	return list
}

// These are the default texts of replies. A disconnected client gets the code 554, which RFC 5321
// section 3.1 defines for rejected sessions.
const (
	rejectText     = "550 5.7.1 Refused by local policy"
	disconnectText = "554 5.7.1 Refused by local policy"
)

// answer returns the text of the reply.
func (r *Rule) answer() string {
	switch {
	case r.Text != "" || !r.Decides:
		return r.Text
	case r.Decision == smtp.Reject:
		return rejectText
	case r.Decision == smtp.Disconnect:
		return disconnectText
	}
	return ""
}

// sticky reports whether the decision of r applies to the rest of the session. A decision is sticky
// if the conditions of r depend only on facts that cannot change during the session. The client
// then cannot avoid the decision with another HELO or another transaction.
//
// Decisions about one sender or recipient apply only in their phase. A proceed decision is never
// sticky, because other phases have separate rules.
func (r *Rule) sticky() bool {
	if !r.Decides || r.Decision == smtp.Proceed || len(r.Conds) == 0 {
		return false
	}
	for _, c := range r.Conds {
		if conditionByWord(c.Word).changes || c.countsRecipients() {
			return false
		}
	}
	return true
}

// maxReply is the maximum length of a reply's text in a policy, in bytes. With the session id, the
// reply is then shorter than the 512 bytes that RFC 5321 section 4.5.3.1.5 allows.
const maxReply = 400

// checkText returns a description of the error in a reply's text, or "" if there is none. RFC 5321
// section 4.2 defines the code, and RFC 2034 section 4 the enhanced code.
func checkText(s string) string {
	if len(s) < 5 || s[0] != '4' && s[0] != '5' || s[1] < '0' || s[1] > '5' || s[2] < '0' || s[2] > '9' || s[3] != ' ' {
		return "a reply begins with a code 4dd or 5dd, a space and a text"
	}
	if len(s) > maxReply {
		return fmt.Sprintf("a reply may not exceed %d bytes", maxReply)
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return "a reply is one line of printable ASCII"
		}
	}
	if s[4] == ' ' || s[len(s)-1] == ' ' {
		return "a reply has one space after the code and none at the end"
	}
	if strings.Count(s, reference) > 1 {
		return "a reply may contain `" + reference + "` only once"
	}
	var class, subject, detail int
	if n, err := fmt.Sscanf(s[4:], "%d.%d.%d", &class, &subject, &detail); err == nil && n == 3 && class != int(s[0]-'0') {
		return fmt.Sprintf("code %s and enhanced code %d.%d.%d disagree", s[:3], class, subject, detail)
	}
	return ""
}
