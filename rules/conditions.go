package rules

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
)

// A condition is a row in the table of conditions. To add a condition, write a match function in
// match.go and a fact function in fact.go. Tests check that the manual describes every condition.
type condition struct {
	word  string
	alias string // another spelling of word that is accepted but never written
	args  string // syntax of the arguments for the manual and for errors
	// from and to are the first and the last phase in which the condition's fact is known.
	from, to smtp.Phase
	parse    func(*line, *Cond) *Error
	over     bool // the condition compares a number with Cond.Over
	// changes reports whether the condition's fact may change during the session. A decision that
	// depends on a changing fact applies only in its phase.
	changes  bool
	envelope bool // names in the values are patterns for mail addresses
	match    func(*cond, *Facts) Truth
	fact     func(*Cond, *Facts) string // describes the condition's fact
	say      func(*Cond) string         // describes the condition; the text follows "a host that"
}

var conditions = []condition{
	{word: "src", args: "address", from: smtp.PhaseConnect, to: smtp.PhaseEnd, parse: needs("an address", addressValue),
		match: matchSrc, fact: factSrc, say: saySrc},
	{word: "listener", args: "name", from: smtp.PhaseConnect, to: smtp.PhaseEnd, parse: needs("a listener", listenerValue),
		match: matchListener, fact: factListener, say: sayValues("connects to", "connects to a listener in")},
	{word: "rdns", args: "name", from: smtp.PhaseConnect, to: smtp.PhaseEnd, parse: needs("a name", nameValue),
		match: matchRDNS, fact: factRDNS, say: sayValues("has the reverse DNS name", "has a reverse DNS name in")},
	{word: "fcrdns", args: "[pass | fail | error]", from: smtp.PhaseConnect, to: smtp.PhaseEnd, parse: parseFCrDNS,
		match: matchFCrDNS, fact: factFCrDNS, say: sayFCrDNS},
	{word: "asn", args: "number", from: smtp.PhaseConnect, to: smtp.PhaseEnd, parse: needs("an AS number", asValue),
		match: matchASN, fact: factASN, say: sayValues("is in the network", "is in a network in")},
	{word: "country", args: "code", from: smtp.PhaseConnect, to: smtp.PhaseEnd, parse: needs("a country", countryValue),
		match: matchCountry, fact: factCountry, say: sayValues("is in the country", "is in a country in")},
	{word: "evidence", args: "token", from: smtp.PhaseConnect, to: smtp.PhaseEnd, parse: parseEvidence,
		match: matchEvidence, fact: factEvidence, say: sayEvidence},
	{word: "listed", args: "name", from: smtp.PhaseConnect, to: smtp.PhaseEnd, parse: needs("a lookup", lookupValue),
		match: matchListed, fact: factListed, say: sayListed},
	{word: "score", args: "> number", from: smtp.PhaseConnect, to: smtp.PhaseEnd, parse: parseOver, over: true,
		match: matchScore, fact: factScore, say: sayScore},
	{word: "known", alias: "seen-good", from: smtp.PhaseConnect, to: smtp.PhaseEnd, parse: noArgs,
		match: matchStanding(StandingKnown), fact: factStanding, say: sayWord("sent mail that this server accepted on an earlier day")},
	{word: "trusted", from: smtp.PhaseConnect, to: smtp.PhaseEnd, parse: noArgs,
		match: matchStanding(StandingTrusted), fact: factStanding, say: sayWord("sent mail that this server accepted on many days")},
	{word: "count", args: "token > number [in duration [by src | prefix | domain | asn | helo | user | site]]", from: smtp.PhaseConnect, to: smtp.PhaseEnd, parse: parseCount, over: true,
		match: matchCount, fact: factCount, say: sayCount},
	{word: "helo", args: "name", from: smtp.PhaseHelo, to: smtp.PhaseEnd, parse: needs("a name", nameValue),
		match: matchHelo, fact: factHelo, say: sayValues("greets as", "greets with a name in")},
	{word: "mail-from", args: "address", from: smtp.PhaseMailFrom, to: smtp.PhaseCommit, parse: needs("a mail address", nameValue), changes: true, envelope: true,
		match: matchMailFrom, fact: factMailFrom, say: sayValues("sends mail from", "sends mail from an address in")},
	{word: "auth", args: "[user]", from: smtp.PhaseMailFrom, to: smtp.PhaseEnd, parse: parseAuth, changes: true,
		match: matchAuth, fact: factAuth, say: sayAuth},
	{word: "auth-failed", args: "user", from: smtp.PhaseMailFrom, to: smtp.PhaseEnd, parse: needs("a user name", nameValue), changes: true,
		match: matchFailed, fact: factFailed, say: sayValues("fails to log in as", "fails to log in as a user in")},
	{word: "tls", from: smtp.PhaseMailFrom, to: smtp.PhaseEnd, parse: noArgs, changes: true,
		match: matchTLS, fact: factTLS, say: sayWord("uses TLS")},
	{word: "rcpt-to", args: "address", from: smtp.PhaseRcptTo, to: smtp.PhaseRcptTo, parse: needs("a mail address", nameValue), changes: true, envelope: true,
		match: matchRcptTo, fact: factRcptTo, say: sayValues("sends mail to", "sends mail to an address in")},
}

func conditionByWord(word string) *condition {
	for i := range conditions {
		if c := &conditions[i]; c.word == word || c.alias != "" && c.alias == word {
			return &conditions[i]
		}
	}
	return nil
}

func conditionWords() []string {
	words := make([]string, len(conditions))
	for i := range conditions {
		words[i] = conditions[i].word
	}
	return words
}

const (
	maxScore  = 1000
	maxOver   = 1_000_000
	maxWindow = 90 * day
	// maxOverTime is the maximum threshold of a count over several sessions. The threshold is
	// limited because counts over several sessions are stored in a few bytes.
	maxOverTime = 50_000
)

func noArgs(*line, *Cond) *Error { return nil }

// needs returns a function that parses the arguments of a condition, which are one value or a list
// of values.
func needs(what string, value valueFunc) func(*line, *Cond) *Error {
	return func(l *line, c *Cond) (err *Error) {
		c.Values, err = l.values(what, value)
		return err
	}
}

// parseEvidence parses a token or a list of tokens. Some tokens, such as listed, are also the word
// of a condition.
func parseEvidence(l *line, c *Cond) *Error {
	return l.each(func() *Error {
		t := l.next()
		if !l.isValue(t) && (t.kind != wordToken || TokenByName(t.text) == nil) {
			hint := ""
			if t.kind == wordToken {
				hint = fmt.Sprintf("write \"%s\" in quotes to use it as a value", t.text)
			}
			return l.errorf(t.pos, hint, "expected evidence%s", insteadOf(t))
		}
		v, err := l.value(t, evidenceValue)
		c.Values = append(c.Values, v)
		return err
	})
}

// fcrdnsStates lists the possible arguments of the condition fcrdns.
var fcrdnsStates = []string{smtp.FCrDNSPass.String(), smtp.FCrDNSFail.String(), smtp.FCrDNSError.String()}

func parseFCrDNS(l *line, c *Cond) (err *Error) {
	// After fcrdns, `pass` is a result of FCrDNS. Elsewhere, `pass` is an action.
	if t := l.peek(); slices.Index(fcrdnsStates, t.text) < 0 && !t.is("{") {
		c.Values = []Value{{Pos: c.Pos, Kind: WordValue, Text: "pass"}}
		return nil
	}
	return l.each(func() *Error {
		t := l.peek()
		_, err := l.word("a state", fcrdnsStates)
		c.Values = append(c.Values, Value{Pos: t.pos, Kind: WordValue, Text: t.text})
		return err
	})
}

func parseAuth(l *line, c *Cond) (err *Error) {
	if t := l.peek(); t.is("{") || l.isValue(t) {
		c.Values, err = l.values("a user name", nameValue)
	}
	return err
}

func parseOver(l *line, c *Cond) (err *Error) {
	if err = l.expect(">"); err == nil {
		c.Over, err = l.number("the threshold", 0, maxOver)
	}
	return err
}

func parseCount(l *line, c *Cond) *Error {
	v, err := l.value(l.next(), evidenceValue)
	if err != nil {
		return err
	}
	c.Values = []Value{v}
	if err = parseOver(l, c); err != nil {
		return err
	}
	if by := l.peek(); by.is("by") {
		return l.errorf(by.pos, "write: in 1h by ...", "a count with `by` needs a window")
	}
	if !l.accept("in") {
		return nil
	}
	if c.Window, err = l.duration("the window", time.Minute, maxWindow); err != nil {
		return err
	}
	if c.Over > maxOverTime {
		return l.errorf(v.Pos, "", "the threshold of a count with `in` may not exceed %d", maxOverTime)
	}
	c.By = BySrc
	if l.accept("by") {
		i, err := l.word("a key of the count", keyNames[1:])
		c.By = Key(i + 1)
		return err
	}
	return nil
}

// span returns the first and the last phase in which the fact of c is known. A list of evidence is
// known as soon as one of its tokens is possible. A negated list is known only when all its tokens
// are possible.
func (c *Cond) span() (first, last smtp.Phase) {
	row := conditionByWord(c.Word)
	first, last = row.from, row.to
	switch c.Word {
	case "evidence":
		first = TokenByName(c.Values[0].Text).From
		for _, v := range c.Values[1:] {
			if from := TokenByName(v.Text).From; c.Not {
				first = max(first, from)
			} else {
				first = min(first, from)
			}
		}
	case "count":
		if c.Window == 0 {
			first = TokenByName(c.Values[0].Text).From
		} else {
			first = keyPhase[c.By]
		}
	}
	return first, last
}

// sayWord returns a function that describes a condition that has no values.
func sayWord(text string) func(*Cond) string { return func(*Cond) string { return text } }

// sayValues returns a function that describes a condition with values. The text before precedes the
// values, and the text listed precedes a table.
func sayValues(before, listed string) func(*Cond) string {
	return func(c *Cond) string {
		var items, all []string
		for _, v := range c.Values {
			if v.Kind == TableValue {
				all = append(all, listed+" the list `"+v.Text+"`")
			} else {
				items = append(items, sayValue(v))
			}
		}
		if len(items) > 0 {
			all = append([]string{before + " " + or(items)}, all...)
		}
		return or(all)
	}
}

func sayValue(v Value) string {
	switch {
	case v.Kind == RegexValue:
		return "anything that matches " + slash(v.Text)
	case v.Kind == TextValue && v.Text == "<>":
		return "the null sender <>"
	case v.Kind == TextValue && len(v.Text) > 1 && v.Text[0] == '.':
		return v.Text[1:] + " or a name below it"
	case v.Kind == TextValue && len(v.Text) > 1 && v.Text[len(v.Text)-1] == '@':
		return v.Text[:len(v.Text)-1] + " at any domain"
	case v.Kind == TextValue:
		return v.Text
	}
	return v.String()
}

func or(items []string) string {
	if len(items) < 2 {
		return strings.Join(items, "")
	}
	return strings.Join(items[:len(items)-1], ", ") + " or " + items[len(items)-1]
}

func saySrc(c *Cond) string {
	items := make([]string, len(c.Values))
	for i, v := range c.Values {
		switch {
		case v.Kind == TableValue:
			items[i] = "an address of the list `" + v.Text + "`"
		case v.Prefix.IsSingleIP():
			items[i] = "the address " + v.String()
		default:
			items[i] = "an address in " + v.String()
		}
	}
	return "has " + or(items)
}

func sayFCrDNS(c *Cond) string {
	var items []string
	for _, v := range c.Values {
		items = append(items, map[string]string{
			"pass":  "passes FCrDNS",
			"fail":  "does not pass FCrDNS",
			"error": "has a reverse DNS name that DNS could not confirm",
		}[v.Text])
	}
	return or(items)
}

func sayEvidence(c *Cond) string {
	var items []string
	for _, v := range c.Values {
		items = append(items, TokenByName(v.Text).Means)
	}
	return or(items)
}

func sayScore(c *Cond) string { return "has more than " + text.Plural(c.Over, "point") }

// recipientsSay describes the recipients that a count includes.
var recipientsSay = map[Evidence]string{
	UnknownRecipient: "writes to more than %d recipients that do not exist",
	Backscatter:      "sends bounces to more than %d recipients that do not exist",
	RecipientFlood:   "asks for more than %d further recipients after many were rejected",
	RelayProbe:       "tries to relay to more than %d recipients that are not local",
}

func sayCount(c *Cond) string {
	if c.Window == 0 && c.Values[0].Text == Flood.String() {
		return "has more than " + text.Plural(c.Over, "concurrent session")
	}
	s := TokenByName(c.Values[0].Text).Means + " more than " + text.Plural(c.Over, "time")
	if format := recipientsSay[TokenByName(c.Values[0].Text).Evidence]; format != "" {
		s = fmt.Sprintf(format, c.Over)
	}
	if c.Window == 0 {
		return s + " (in one session)"
	}
	by := map[Key]string{
		BySrc:    "from one address",
		ByPrefix: "from one network",
		ByDomain: "from one domain",
		BySite:   "from all clients together",
		ByASN:    "from one AS",
		ByHelo:   "under one greeting",
		ByUser:   "for one user",
	}[c.By]
	return s + " (within " + text.DurationWords(c.Window) + ", " + by + ")"
}

func sayAuth(c *Cond) string {
	if len(c.Values) == 0 {
		return "has logged in"
	}
	return sayValues("has logged in as", "has logged in as a user in")(c)
}
