package rules

import (
	"fmt"
	"io"
	"strings"
)

// phaseSays says when a phase is.
var phaseSays = [...]string{
	Connect:  "when it connects",
	Helo:     "when it greets",
	MailFrom: "when it names a sender",
	RcptTo:   "when it names a recipient",
	Data:     "before it sends a message",
	Commit:   "after it has sent a message",
	End:      "when it has left",
}

// decisionSays says what happens to "it".
var decisionSays = [...]string{
	Proceed:    "is let through",
	Junk:       "has its mail marked as junk",
	Reject:     "is refused",
	Disconnect: "is refused and disconnected",
}

// Describe writes in plain English what the policy does, for the people whose
// mail it is about: whom it never refuses, what it refuses and for how long,
// and how to complain.
func (p *Policy) Describe(w io.Writer) error {
	d := &describer{Policy: p}
	d.title("What this mail server refuses")
	var refusing, other, watched []*Rule
	for _, r := range p.Rules() {
		switch {
		case r.Observe:
			watched = append(watched, r)
		case r.Decides && r.Decision >= Reject || r.Ban > 0:
			refusing = append(refusing, r)
		default:
			other = append(other, r)
		}
	}
	switch {
	case p.Mode == Observe && len(p.rules) == 0:
		d.para("This server refuses nothing on the grounds of this policy. It only records who comes.")
	case p.Mode == Observe:
		d.para("This policy is on trial: for now it refuses nothing and only records what it would do. The rest of this text says what that is.")
	case len(refusing) == 0:
		d.para("This server refuses nothing on the grounds of this policy.")
	}

	d.title("Never refused")
	d.item("People who have logged in, and mail from this server itself." + d.exceptions())
	for i := range p.passes {
		s := p.passes[i].tree
		text := "Any host that " + sayConds(s.Conds)
		if s.On != "" {
			text += " (on " + d.listener(s.On) + ")"
		}
		d.item(text + "." + d.tables(s.Conds))
	}

	d.rules("Refused", refusing)
	d.rules("Treated otherwise, but not refused", other)
	d.rules("Only recorded", watched)
	d.points()

	if len(refusing) > 0 {
		d.title("For how long")
		d.durations(refusing)
		d.title("If your mail was refused by mistake")
		contact := "the postmaster of this site"
		if p.Contact != "" {
			contact = p.Contact
		}
		d.para("Every refusal ends with a reference of sixteen letters and digits, like [0123456789abcdef]. Send it to " + contact +
			", from another mail account or on another way if need be. With the reference the postmaster can see what happened and why, and can undo it.")
	}
	_, err := io.WriteString(w, strings.TrimPrefix(d.out.String(), "\n"))
	return err
}

type describer struct {
	*Policy
	out strings.Builder
}

func (d *describer) title(s string) {
	d.out.WriteString("\n" + s + "\n" + strings.Repeat("-", len(s)) + "\n")
}

const textWidth = 76

func (d *describer) para(s string) { d.wrap("", s) }
func (d *describer) item(s string) { d.wrap("- ", s) }

func (d *describer) wrap(lead, s string) { wrap(&d.out, lead, s) }

// wrap writes words in lines; the lines after the first stand below its text.
func wrap(out *strings.Builder, lead, s string) {
	line := lead
	for i, word := range strings.Fields(s) {
		switch {
		case i == 0:
			line += word
		case len(line)+1+len(word) > textWidth:
			out.WriteString(line + "\n")
			line = strings.Repeat(" ", len(lead)) + word
		default:
			line += " " + word
		}
	}
	out.WriteString(line + "\n")
}

func (d *describer) rules(title string, rules []*Rule) {
	if len(rules) == 0 {
		return
	}
	d.title(title)
	d.para("A host that")
	for _, r := range rules {
		d.item(d.rule(r))
	}
}

func (d *describer) rule(r *Rule) string {
	var when, does []string
	for _, p := range r.Phases.List() {
		when = append(when, phaseSays[p])
	}
	if r.Decides {
		does = append(does, decisionSays[r.Decision])
	}
	if r.Delay > 0 {
		does = append(does, "waits "+sayDuration(r.Delay)+" for an answer")
	}
	if r.Ban > 0 {
		does = append(does, "is turned away from then on for "+sayDuration(r.Ban))
	}
	if r.Score != 0 {
		does = append(does, fmt.Sprintf("gets %s", plural(r.Score, "point")))
	}
	if len(r.Tags) > 0 {
		does = append(does, "is noted as "+strings.Join(r.Tags, ", "))
	}
	text := sayConds(r.Conds) + ": it " + and(does) + " " + or(when)
	if r.On != "" {
		text += ", on " + d.listener(r.On)
	}
	text += "."
	if answer := r.answer(); answer != "" {
		text += ` The answer is "` + answer + `".`
	}
	return text + d.tables(r.Conds) + " (rule " + r.Name + ")"
}

// sayConds says conditions, going on from "a host that".
func sayConds(cs []*Cond) string {
	var yes, no []string
	for _, c := range cs {
		text := conditionByWord(c.Word).say(c)
		if c.Not {
			no = append(no, "it "+text)
		} else {
			yes = append(yes, text)
		}
	}
	text := and(yes)
	if len(yes) == 0 {
		text = "comes at all"
	}
	if len(no) > 0 {
		text += ", unless " + or(no)
	}
	return text
}

func and(items []string) string {
	if len(items) < 2 {
		return strings.Join(items, "")
	}
	return strings.Join(items[:len(items)-1], ", ") + " and " + items[len(items)-1]
}

// tables says what is behind the lists that conditions name.
func (d *describer) tables(cs []*Cond) string {
	text := ""
	for _, c := range cs {
		for _, v := range c.Values {
			if v.Kind == TableValue {
				text += d.table(v.Text)
			}
		}
	}
	return text
}

func (d *describer) table(name string) string {
	for _, s := range d.config.All() {
		t, ok := s.(*TableDecl)
		switch {
		case !ok || t.Name != name:
			continue
		case t.Builtin:
			return " The list `" + name + "` comes with the program."
		case len(t.Files) == 0 && len(t.Values) == 0:
			return " The list `" + name + "` is empty."
		case len(t.Files) == 0 && len(t.Values) <= 8:
			var items []string
			for _, v := range t.Values {
				items = append(items, sayValue(v))
			}
			return " The list `" + name + "`: " + strings.Join(items, ", ") + "."
		}
		return " The list `" + name + "` is kept by the postmaster."
	}
	return ""
}

func (d *describer) listener(name string) string {
	for _, l := range d.listeners {
		if l.Name == name {
			var ports []string
			for _, p := range l.Ports {
				ports = append(ports, fmt.Sprint(p))
			}
			return "port " + or(ports)
		}
	}
	return name
}

// exceptions names the rules that look at people who have logged in.
func (d *describer) exceptions() string {
	var names []string
	for _, r := range d.Rules() {
		if r.authed() {
			names = append(names, r.Name)
		}
	}
	if names == nil {
		return ""
	}
	return " Only the rules about logins touch them: " + strings.Join(names, ", ") + "."
}

// points says how many points each kind of evidence gives.
func (d *describer) points() {
	if len(d.weights) == 0 {
		return
	}
	d.title("Points")
	d.para("A host gets points if it")
	for _, s := range d.config.All() {
		if w, ok := s.(*Weight); ok {
			d.item(fmt.Sprintf("%s: %s", w.Token.Means, plural(w.Score, "point")))
		}
	}
	d.para("What is likely but not proven counts half.")
}

// durations says how long refusals hold.
func (d *describer) durations(rules []*Rule) {
	var sticky, once, temporary, bans bool
	for _, r := range rules {
		switch {
		case r.Ban > 0:
			bans = true
		case r.sticky():
			sticky = true
		default:
			once = true
		}
		temporary = temporary || strings.HasPrefix(r.answer(), "4")
	}
	if sticky {
		d.item("What a host is refused for what it is or does holds until it disconnects. It may come back at once, and is judged anew.")
	}
	if once {
		d.item("What is refused for one sender or recipient is refused for that one only.")
	}
	if bans {
		text := "Where a time is given above, the host is turned away for that time. It always ends by itself."
		if len(d.Escalate) > 0 {
			var times []string
			for _, n := range d.Escalate {
				times = append(times, fmt.Sprint(n))
			}
			text += " A host that has to be turned away again, and then again, is turned away " + strings.Join(times, ", then ") + " times as long."
		}
		d.item(text)
	}
	if temporary {
		d.item("An answer that begins with 4 is temporary: a mail server tries again later by itself.")
	}
}
