package anonymize

import (
	"net/netip"
	"strings"

	"scanwatch/rules"
)

// Rule replaces what the text of a rule compares with, and its reply but for the
// codes. It returns "" if the text is no rule, or only the beginning of one.
func (a *Anonymizer) Rule(text string) string {
	if strings.ContainsAny(text, "\r\n") {
		return ""
	}
	c, err := rules.Parse("rule", func(string) ([]byte, error) { return []byte(text + "\n"), nil })
	if err != nil {
		return ""
	}
	for _, s := range c.All() {
		r, ok := s.(*rules.Rule)
		if !ok {
			return ""
		}
		if r.Text != "" {
			r.Text = string(reply([]byte(r.Text)))
		}
		for _, cond := range r.Conds {
			for i := range cond.Values {
				a.value(cond.Word, &cond.Values[i])
			}
		}
		return r.String()
	}
	return ""
}

func (a *Anonymizer) value(word string, v *rules.Value) {
	a.host = netip.Addr{}
	switch v.Kind {
	case rules.RegexValue:
		v.Text = "anonymized" // nobody knows what it is about
	case rules.PrefixValue:
		v.Prefix = a.Prefix(v.Prefix)
	case rules.TextValue:
		switch {
		case word == "country" || v.Text == "<>":
		case strings.Contains(v.Text, "@"):
			v.Text = string(a.Mailbox([]byte(v.Text)))
		default:
			v.Text = string(a.Name([]byte(v.Text)))
		}
	}
}
