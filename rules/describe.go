package rules

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
)

var phaseSays = [...]string{
	smtp.PhaseConnect:  "when it connects",
	smtp.PhaseHelo:     "when it greets",
	smtp.PhaseMailFrom: "when it names a sender",
	smtp.PhaseRcptTo:   "when it names a recipient",
	smtp.PhaseData:     "before it sends a message",
	smtp.PhaseCommit:   "after it has sent a message",
	smtp.PhaseEnd:      "after it has disconnected",
}

// decisionSays describes each decision. The text follows "a host that".
var decisionSays = [...]string{
	smtp.Proceed:    "is accepted",
	smtp.Junk:       "has its messages marked as junk",
	smtp.Reject:     "is rejected",
	smtp.Disconnect: "is rejected and disconnected",
}

// Describe writes an explanation of the policy in plain English for senders of mail. Describe lists
// the exempt clients, the reasons for rejections and their durations, and the contact.
func (p *Policy) Describe(w io.Writer) error {
	d := &describer{Policy: p}
	d.title("Mail that this server rejects")
	var refusing, other, watched []*Rule
	for _, r := range p.Rules() {
		switch {
		case r.Observe:
			watched = append(watched, r)
		case r.Decides && r.Decision >= smtp.Reject || len(r.Ban) > 0:
			refusing = append(refusing, r)
		default:
			other = append(other, r)
		}
	}
	switch {
	case p.Mode == Observe && len(p.rules) == 0:
		d.para("This policy rejects nothing. The server only records sessions.")
	case p.Mode == Observe:
		d.para("This policy is on trial: it rejects nothing and only records its decisions. The rest of this text describes these decisions.")
	case len(refusing) == 0:
		d.para("This policy rejects nothing.")
	}

	d.title("Never rejected")
	d.item("Users who have logged in, and mail from this server itself." + d.exceptions())
	for i := range p.passes {
		s := p.passes[i].tree
		item := "Any host that " + sayConds(s.Conds)
		if s.On != "" {
			item += " (on " + d.listener(s.On) + ")"
		}
		item += "." + d.tables(s.Conds)
		if slices.ContainsFunc(s.Conds, func(c *Cond) bool { return c.Word == "listed" }) {
			item += " If the list has not answered, rules about DNS lists reject the host only temporarily."
		}
		d.item(item)
	}
	if len(refusing) > 0 {
		except := "for failed logins"
		for _, r := range refusing {
			if r.EvenTrusted && len(r.Ban) > 0 {
				except += " or by the rule " + r.Name
			}
		}
		d.para("Hosts that sent mail on an earlier day, which this server accepted, are not banned, except " + except + ". Hosts that did so on many days are exempt from rules about lists, names, places and points, and rules about their behaviour reject them only temporarily. Rules that count unknown recipients do not reject a recipient that has received mail before.")
	}

	d.rules("Rejected", refusing)
	d.rules("Treated differently, but not rejected", other)
	d.rules("Only recorded", watched)
	d.points()

	if len(refusing) > 0 {
		d.title("Duration")
		d.durations(refusing)
		if f := p.Fleet; f != nil && !f.Observe {
			d.para("A ban by another mail server of this site also applies here, for at most " + text.DurationWords(f.LongestBan()) + ".")
		}
		d.title("If the server rejected your mail by mistake")
		contact := "the postmaster of this site"
		if p.Contact != "" {
			contact = p.Contact
		}
		d.para("Most rejections end with a reference of sixteen letters and digits, such as [0123456789abcdef]. Send it to " + contact +
			", from another mail account or by other means if necessary. With the reference, the postmaster can find the reason and revoke the rejection.")
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

const columns = 76

func (d *describer) para(s string) { wrap(&d.out, "", s) }
func (d *describer) item(s string) { wrap(&d.out, "- ", s) }

// wrap writes lead and s. Further lines are aligned with the start of s.
func wrap(out *strings.Builder, lead, s string) {
	out.WriteString(text.Wrap(lead+strings.Join(strings.Fields(s), " "), columns, len(lead)) + "\n")
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

// DescribeRule returns a description of a rule. The text follows "A host that".
func (p *Policy) DescribeRule(r *Rule) string { return (&describer{Policy: p}).rule(r) }

func (d *describer) rule(r *Rule) string {
	var when, does []string
	for _, p := range r.Phases.List() {
		when = append(when, phaseSays[p])
	}
	if r.Decides {
		does = append(does, decisionSays[r.Decision])
	}
	if r.Delay > 0 {
		does = append(does, "waits "+text.DurationWords(r.Delay)+" for a reply")
	}
	if len(r.Ban) > 0 {
		bans := r.Ladder()
		verb := "is banned for "
		if bans[0] == 0 {
			bans, verb = bans[1:], "is banned from the second offence on, for "
		}
		does = append(does, verb+strings.Join(durations(bans, text.DurationWords), ", then for "))
	}
	if r.Score != 0 {
		does = append(does, "gets "+text.Plural(r.Score, "point"))
	}
	if len(r.Tags) > 0 {
		does = append(does, "is tagged as "+strings.Join(r.Tags, ", "))
	}
	s := sayConds(r.Conds) + ": it " + and(does) + " " + or(when)
	if r.On != "" {
		s += ", on " + d.listener(r.On)
	}
	s += "."
	if answer := r.answer(); answer != "" {
		s += ` The reply is "` + answer + `".`
	}
	return s + d.tables(r.Conds) + " (rule " + r.Name + ")"
}

// sayConds returns a description of conditions. The text follows "A host that".
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
		text = "connects"
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

// tables returns a description of the tables that conditions use.
func (d *describer) tables(cs []*Cond) string {
	text := ""
	for _, c := range cs {
		for _, v := range c.Values {
			switch {
			case v.Kind == TableValue:
				text += d.table(v.Text)
			case c.Word == "listed":
				text += d.dnsList(v.Text)
			}
		}
	}
	return text
}

// dnsList returns the zone of a DNS list, so that senders can contact the list's operator.
func (d *describer) dnsList(name string) string {
	for _, l := range d.Lookups {
		if l.Name == name {
			return " The DNS list `" + name + "` is " + l.Zone + "."
		}
	}
	return ""
}

func (d *describer) table(name string) string {
	for _, s := range d.config.All() {
		t, ok := s.(*TableDecl)
		switch {
		case !ok || t.Name != name:
			continue
		case t.Builtin:
			return " The list `" + name + "` is part of the program."
		case len(t.Files) == 0 && len(t.Values) == 0:
			return " The list `" + name + "` is empty."
		case len(t.Files) == 0 && len(t.Values) <= 8:
			var items []string
			for _, v := range t.Values {
				items = append(items, sayValue(v))
			}
			return " The list `" + name + "`: " + strings.Join(items, ", ") + "."
		}
		return " The postmaster maintains the list `" + name + "`."
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

// exceptions returns a sentence about the rules that apply to authenticated users.
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
	return " Only rules about logins apply to them: " + strings.Join(names, ", ") + "."
}

// points writes how many points each kind of evidence adds to the score.
func (d *describer) points() {
	if len(d.weights) == 0 {
		return
	}
	d.title("Points")
	d.para("A host gets points if it")
	for _, s := range d.config.All() {
		if w, ok := s.(*Weight); ok {
			d.item(w.Token.Means + ": " + text.Plural(w.Score, "point"))
		}
	}
	d.para("Evidence that is likely but not proven counts half.")
}

// durations writes for how long rejections last.
func (d *describer) durations(rules []*Rule) {
	var sticky, once, temporary, bans bool
	for _, r := range rules {
		switch {
		case len(r.Ban) > 0:
			bans = true
		case r.sticky():
			sticky = true
		default:
			once = true
		}
		temporary = temporary || strings.HasPrefix(r.answer(), "4")
	}
	if sticky {
		d.item("If a host is rejected for its properties or its behaviour, the rejection ends when it disconnects. It may reconnect immediately, and the policy is applied again.")
	}
	if once {
		d.item("If a message is rejected for its sender or for a recipient, only this sender or recipient is rejected.")
	}
	if bans {
		d.item("If a rule has a duration, the host is banned for that time. Every ban ends automatically. A ban that follows within a day, or within four times the length of the previous ban, is longer.")
	}
	if temporary {
		d.item("A reply that begins with 4 is temporary: a mail server retries later automatically.")
	}
}
