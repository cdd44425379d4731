package rules

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// An action is a row in the table of what a rule can do. Decisions come first,
// because they are written first.
type action struct {
	word, alias string
	args        string
	decision    bool
	phases      PhaseSet // where it is possible
	why         string   // why not elsewhere
	many        bool     // may stand in one rule more than once
	parse       func(*line, *Rule) *Error
	has         func(*Rule) bool
	print       func(*Rule) string
}

// overAlready is why most actions are not possible at the end of a session.
const overAlready = "the session is over: only ban and tag are left"

// actions is everything a rule can do.
var actions = []action{
	{word: "proceed", alias: "pass", decision: true, phases: answerable, why: overAlready,
		parse: decide(Proceed, false), has: decides(Proceed), print: printDecision},
	{word: "junk", decision: true, phases: answerable &^ phaseSet(Commit), why: "smtpd ends itself when it is told to junk a message at commit; junk at data",
		parse: decide(Junk, false), has: decides(Junk), print: printDecision},
	{word: "reject", args: `["text"]`, decision: true, phases: answerable &^ phaseSet(Connect), why: "a client that is rejected at connect stays connected without a greeting; use disconnect",
		parse: decide(Reject, true), has: decides(Reject), print: printDecision},
	{word: "disconnect", args: `["text"]`, decision: true, phases: answerable, why: overAlready,
		parse: decide(Disconnect, true), has: decides(Disconnect), print: printDecision},
	{word: "score", args: "number", phases: answerable &^ phaseSet(Commit), why: "nothing looks at the score after commit",
		parse: parseScore, has: func(r *Rule) bool { return r.Score != 0 },
		print: func(r *Rule) string { return "score " + strconv.Itoa(r.Score) }},
	{word: "delay", args: "duration", phases: answerable, why: overAlready,
		parse: func(l *line, r *Rule) (err *Error) {
			r.Delay, err = l.duration("a delay", time.Second, maxDelay)
			return err
		},
		has:   func(r *Rule) bool { return r.Delay != 0 },
		print: func(r *Rule) string { return "delay " + duration(r.Delay) }},
	{word: "tag", args: "word", phases: allPhases, many: true,
		parse: parseTag, has: func(r *Rule) bool { return len(r.Tags) > 0 }, print: printTags},
	{word: "ban", args: "duration", phases: allPhases,
		parse: func(l *line, r *Rule) (err *Error) {
			r.Ban, err = l.duration("a ban", time.Minute, maxBan)
			return err
		},
		has:   func(r *Rule) bool { return r.Ban != 0 },
		print: func(r *Rule) string { return "ban " + duration(r.Ban) }},
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

func decides(d Decision) func(*Rule) bool {
	return func(r *Rule) bool { return r.Decides && r.Decision == d }
}

func decide(d Decision, text bool) func(*line, *Rule) *Error {
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
			return l.errorf(t.pos, "only reject and disconnect answer with a text", "%s takes no text", d)
		}
		l.at++
		if wrong := checkText(t.text); wrong != "" {
			return l.errorf(t.pos, "write for example \"550 5.7.1 Why it is refused\"", "%s", wrong)
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

// Effects are what r does besides deciding, as it is written: delay, tag, ban ...
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
		return l.errorf(t.pos, "", "a score of 0 changes nothing")
	}
	return err
}

func parseTag(l *line, r *Rule) *Error {
	t := l.peek()
	tag, err := l.name("tag")
	if err == nil && index(r.Tags, tag) >= 0 {
		err = l.errorf(t.pos, "", "tag %s stands here for the second time", tag)
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

// A Keyword is a word of the language, for manuals and help.
type Keyword struct {
	Kind string // statement, condition, action, phase, key
	Word string
	Args string // what follows it; for a statement its whole syntax
}

// Keywords lists every word of the language except the evidence tokens.
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
	for _, p := range allPhases.List() {
		list = append(list, Keyword{"phase", p.String(), ""})
	}
	for _, k := range keyNames[1:] {
		list = append(list, Keyword{"key", k, ""})
	}
	return list
}

// Texts that go to a client whose rule has none. RFC 5321 section 3.1 keeps 554
// for the greeting; a disconnect ends all, as 554 does there.
const (
	rejectText     = "550 5.7.1 Refused by local policy"
	disconnectText = "554 5.7.1 Refused by local policy"
)

// answer is the text the client gets.
func (r *Rule) answer() string {
	switch {
	case r.Text != "" || !r.Decides:
		return r.Text
	case r.Decision == Reject:
		return rejectText
	case r.Decision == Disconnect:
		return disconnectText
	}
	return ""
}

// sticky tells whether the decision of r holds for the rest of the session. It
// does if nothing it was built on can change in the session: repeating HELO or
// opening another transaction must not wash clean. A decision about one sender
// or recipient, or about a client that has not logged in yet, ends with its
// phase; so does proceed, since other phases have rules of their own.
func (r *Rule) sticky() bool {
	if !r.Decides || r.Decision == Proceed || len(r.Conds) == 0 {
		return false
	}
	for _, c := range r.Conds {
		if conditionByWord(c.Word).changes {
			return false
		}
	}
	return true
}

// maxReply is the longest reply text in a policy, in bytes. With the reference
// it stays below the 512 bytes of RFC 5321 section 4.5.3.1.5.
const maxReply = 400

// checkText tells what is wrong with a reply text. RFC 5321 section 4.2 gives
// the form of the code, RFC 2034 section 4 that of the enhanced one.
func checkText(s string) string {
	if len(s) < 5 || s[0] != '4' && s[0] != '5' || s[1] < '0' || s[1] > '5' || s[2] < '0' || s[2] > '9' || s[3] != ' ' {
		return "a reply begins with a code 4dd or 5dd, a blank and a text"
	}
	if len(s) > maxReply {
		return fmt.Sprintf("a reply has at most %d bytes", maxReply)
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return "a reply is one line of printable ASCII"
		}
	}
	if s[4] == ' ' || s[len(s)-1] == ' ' {
		return "a reply has one blank behind the code and none at the end"
	}
	if strings.Count(s, reference) > 1 {
		return "a reply has `" + reference + "` only once"
	}
	var class, subject, detail int
	if n, err := fmt.Sscanf(s[4:], "%d.%d.%d", &class, &subject, &detail); err == nil && n == 3 && class != int(s[0]-'0') {
		return fmt.Sprintf("code %s and enhanced code %d.%d.%d disagree", s[:3], class, subject, detail)
	}
	return ""
}
