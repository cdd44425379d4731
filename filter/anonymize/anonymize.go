// Package anonymize makes copies of records that can be published. The package replaces mailboxes,
// host names and the host parts of addresses with keyed hashes. Equal names get equal hashes.
//
// A copy leads to the same evidence as the original. The package therefore keeps public suffixes,
// the networks of addresses (/24 and /48), and all names and addresses in the shipped lists. The
// package also keeps reply codes, times, session ids, and the names of rules, tables, tags and
// listeners.
package anonymize

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"scanwatch/internal/sketch"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
	"scanwatch/store"
)

// Record appends the encoded anonymized copy of r to dst. refs maps a reference to a rule's text in
// r to the reference in the copy. If a step of r is corrupt, the copy ends before this step, and
// Record returns an error.
func (a *Anonymizer) Record(dst []byte, r *store.Record, refs func(uint32) uint32) ([]byte, error) {
	c := *r
	c.Src, c.Dst = a.addrPort(r.Src), a.addrPort(r.Dst)
	c.RDNS, c.Server, c.Origin = a.Name(r.RDNS), a.Name(r.Server), a.Name(r.Origin)
	c.Sketch = a.sketch(r.Sketch)
	a.steps = a.steps[:0]
	last := time.Duration(0)
	err := r.Steps(func(s *store.Step) bool {
		if further := r.Sessions > 0 && s.Kind == store.KindRcpt && string(s.Text) == "*"; !further {
			a.step(s, refs)
		}
		a.steps = store.AppendStep(a.steps, s, s.At-last)
		last = s.At
		return true
	})
	return store.AppendRecord(dst, &c, a.steps), err
}

// sketch returns a copy of a sketch that yields the same estimate. The key determines the order of
// the registers in the copy. Readers without the key cannot find out whether the sketch contains a
// certain address.
func (a *Anonymizer) sketch(registers []byte) []byte {
	if len(registers) != sketch.Size {
		return nil
	}
	mac := a.mac("sketch", nil)
	key, copied := int(binary.BigEndian.Uint16(mac[:])), make([]byte, sketch.Size)
	for i, r := range registers {
		copied[(i^key)%sketch.Size] = r
	}
	return copied
}

func (a *Anonymizer) addrPort(p netip.AddrPort) netip.AddrPort {
	if !p.IsValid() {
		return p
	}
	return netip.AddrPortFrom(a.Addr(p.Addr()), p.Port())
}

// step anonymizes the texts of a step.
func (a *Anonymizer) step(s *store.Step, refs func(uint32) uint32) {
	switch s.Kind {
	case store.KindHelo:
		s.Text, s.Reply = a.Name(s.Text), reply(s.Reply)
	case store.KindAuth:
		s.Text = a.user(s.Text)
	case store.KindMail, store.KindRcpt:
		s.Text, s.Reply = a.Mailbox(s.Text), reply(s.Reply)
	case store.KindCommand:
		s.Text, s.Reply = a.Line(s.Text), reply(s.Reply)
	case store.KindData, store.KindInput:
		s.Reply = reply(s.Reply)
	case store.KindFinding:
		s.Arg = a.proof(s)
		if string(s.Text) == rules.HeloChanged.String() {
			s.Match = a.Name(s.Match)
		}
	case store.KindVerdict:
		s.Rule = refs(s.Rule)
		if s.Banned && s.Session == 0 {
			s.Text = a.hashWords(s.Text) // the operator's reason for a manual ban
		}
	case store.KindBan:
		s.Rule = refs(s.Rule)
		s.Prefix = a.Prefix(s.Prefix)
	case store.KindFilter:
		s.Reply = a.parameter(s)
	}
}

// proof returns the anonymized proof of a finding.
func (a *Anonymizer) proof(s *store.Step) []byte {
	token := rules.TokenByName(string(s.Text))
	switch by := string(s.By); {
	case len(s.Arg) == 0, by == "asn", by == "dns": // an AS number, or the return codes of a DNS list
		return s.Arg
	case token != nil && token.Evidence&(rules.AuthFailure|rules.AuthSpray) != 0:
		return a.user(s.Arg)
	case by == "rcpt", by == "memory":
		return a.Mailbox(s.Arg)
	case by == "reply":
		return reply(s.Arg)
	case by == "command":
		return a.Line(s.Arg)
	case by == "helo":
		if word, name, ok := bytes.Cut(s.Arg, []byte{' '}); ok && (bytes.EqualFold(word, []byte("EHLO")) || bytes.EqualFold(word, []byte("HELO"))) {
			return append(append(bytes.Clone(word), ' '), a.Name(name)...)
		}
		return a.Name(s.Arg)
	}
	return a.hashWords(s.Arg)
}

// parameter returns the anonymized parameter of another filter's decision.
func (a *Anonymizer) parameter(s *store.Step) []byte {
	switch phase := string(s.Arg); {
	case string(s.Text) != "rewrite":
		return reply(s.Reply)
	case phase == "mail-from", phase == "rcpt-to":
		return a.Mailbox(s.Reply)
	case phase == "helo", phase == "ehlo":
		return a.Name(s.Reply)
	}
	return a.Line(s.Reply)
}

// replyCodes matches a reply code and an enhanced status code.
var replyCodes = regexp.MustCompile(`^([245][0-9][0-9][ -]?)?([245]\.[0-9]{1,3}\.[0-9]{1,3} ?)?`)

// pipelining is the only reply text that counts as evidence.
const pipelining = "Pipelining not supported"

// reply returns the codes of a reply. reply omits the text, which may contain names.
func reply(text []byte) []byte {
	if len(text) == 0 {
		return nil
	}
	rest := "..."
	if bytes.Contains(text, []byte(pipelining)) {
		rest = pipelining
	}
	return append(bytes.Clone(replyCodes.Find(text)), rest...)
}

// Rule returns an anonymized copy of a rule. The text of the rule's reply is omitted. If text is
// not a complete rule, Rule returns "".
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
			break
		}
		if r.Text != "" {
			r.Text = string(reply([]byte(r.Text)))
		}
		for _, cond := range r.Conds {
			for i := range cond.Values {
				a.value(cond.Word, &cond.Values[i])
			}
		}
		return r.String() // always a single line
	}
	return ""
}

func (a *Anonymizer) value(word string, v *rules.Value) {
	switch {
	case v.Kind == rules.RegexValue:
		v.Text = "anonymized" // the text may contain names
	case v.Kind == rules.PrefixValue:
		v.Prefix = a.Prefix(v.Prefix)
	case v.Kind != rules.TextValue || word == "country" || v.Text == "<>":
	case strings.Contains(v.Text, "@"):
		v.Text = string(a.Mailbox([]byte(v.Text)))
	default:
		v.Text = string(a.Name([]byte(v.Text)))
	}
}

// Line anonymizes a command or other input from a client. Line keeps the first word and protocol
// keywords, and replaces addresses in MAIL and RCPT in the same way as Mailbox. The copy matches
// the same rows of the lists and leads to the same evidence as the original.
func (a *Anonymizer) Line(line []byte) []byte {
	row, language := a.lists.Line(line), smtp.Sniff(line)
	same := func(copied []byte) bool { return a.lists.Line(copied) == row && smtp.Sniff(copied) == language }
	verb := verbs.Find(line)
	if addr := address.FindSubmatchIndex(line); addr != nil {
		copied := append(line[:4:4], a.shape(line[4:addr[2]], line)...)
		copied = append(copied, a.Mailbox(line[addr[2]:addr[3]])...)
		if copied = append(copied, a.shape(line[addr[3]:], line)...); same(copied) {
			return copied
		}
	}
	if copied := append(bytes.Clone(verb), a.shape(line[len(verb):], line)...); same(copied) {
		return copied
	}
	if row != nil { // the row contains the name of a tool, for example
		if at := a.pattern(row.Value).FindIndex(line); at != nil {
			copied := append(a.hashWords(line[:at[0]]), line[at[0]:at[1]]...)
			if copied = append(copied, a.hashWords(line[at[1]:])...); same(copied) {
				return copied
			}
		}
	}
	return append(bytes.Clone(verb), a.hashWords(line[len(verb):])...)
}

var (
	verbs   = regexp.MustCompile(`^[A-Za-z-]{1,16}(?:[ \t:\r/]|$)`)
	address = regexp.MustCompile(`^(?i:MAIL|RCPT)[^:]*:[ <]*([^ >]*)`)
)

// pattern returns the compiled regular expression in a row of a list.
func (a *Anonymizer) pattern(value string) *regexp.Regexp {
	re := a.patterns[value]
	if re == nil {
		re = regexp.MustCompile(strings.TrimSuffix(strings.TrimPrefix(value, "/"), "/")) // cannot panic, because package lookup has already compiled the pattern
		a.patterns[value] = re
	}
	return re
}
