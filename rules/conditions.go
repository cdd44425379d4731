package rules

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A condition is a row in the table of what a rule can look at. To add one,
// write its match function in a match file and its row here; the tests then
// ask for its words in the manual.
type condition struct {
	word string
	args string // what follows the word, for the manual and for errors
	// From and to are the phases between which the fact is known.
	from, to Phase
	parse    func(*line, *Cond) *Error
	over     bool // compares a number with Cond.Over
	// changes says that the fact can be another one later in the same
	// session, so that a decision built on it must not outlive the phase.
	changes bool
	// fixed says that the fact is the same in all phases of a session.
	fixed    bool
	envelope bool // its names are matched against mail addresses
	match    func(*cond, *Facts) Truth
	fact     func(*Cond, *Facts) string // the fact, to be shown to people
	say      func(*Cond) string         // in English, going on from "it"
}

// conditions is every condition there is.
var conditions = []condition{
	{word: "src", args: "address", from: Connect, to: End, parse: needs("an address", addressValue),
		fixed: true, match: matchSrc, fact: factSrc, say: saySrc},
	{word: "listener", args: "name", from: Connect, to: End, parse: needs("a listener", listenerValue),
		fixed: true, match: matchListener, fact: factListener, say: sayValues("comes in on", "")},
	{word: "rdns", args: "name", from: Connect, to: End, parse: needs("a name", nameValue),
		fixed: true, match: matchRDNS, fact: factRDNS, say: sayValues("has an address named", "in DNS")},
	{word: "fcrdns", args: "[pass | fail | error]", from: Connect, to: End, parse: parseFCrDNS,
		fixed: true, match: matchFCrDNS, fact: factFCrDNS, say: sayFCrDNS},
	{word: "asn", args: "number", from: Connect, to: End, parse: needs("an AS number", asValue),
		fixed: true, match: matchASN, fact: factASN, say: sayValues("is in the network", "")},
	{word: "country", args: "code", from: Connect, to: End, parse: needs("a country", countryValue),
		fixed: true, match: matchCountry, fact: factCountry, say: sayValues("is in the country", "")},
	{word: "evidence", args: "token", from: Connect, to: End, parse: needs("evidence", evidenceValue),
		match: matchEvidence, fact: factEvidence, say: sayEvidence},
	{word: "score", args: "> number", from: Connect, to: End, parse: parseOver, over: true,
		match: matchScore, fact: factScore, say: sayScore},
	{word: "seen-good", from: Connect, to: End, parse: noArgs,
		match: matchSeenGood, fact: factSeenGood, say: sayWord("sent us good mail before")},
	{word: "count", args: "token > number [in duration [by src | prefix | asn | helo | user]]", from: Connect, to: End, parse: parseCount, over: true,
		match: matchCount, fact: factCount, say: sayCount},
	{word: "helo", args: "name", from: Helo, to: End, parse: needs("a name", nameValue),
		match: matchHelo, fact: factHelo, say: sayValues("greets as", "")},
	{word: "mail-from", args: "address", from: MailFrom, to: Commit, parse: needs("a mail address", nameValue), changes: true, envelope: true,
		match: matchMailFrom, fact: factMailFrom, say: sayValues("sends mail from", "")},
	{word: "auth", args: "[user]", from: MailFrom, to: End, parse: parseAuth, changes: true,
		match: matchAuth, fact: factAuth, say: sayAuth},
	{word: "tls", from: MailFrom, to: End, parse: noArgs, changes: true,
		match: matchTLS, fact: factTLS, say: sayWord("uses TLS")},
	{word: "rcpt-to", args: "address", from: RcptTo, to: RcptTo, parse: needs("a mail address", nameValue), changes: true, envelope: true,
		match: matchRcptTo, fact: factRcptTo, say: sayValues("sends mail to", "")},
}

func conditionByWord(word string) *condition {
	for i := range conditions {
		if conditions[i].word == word {
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
	// maxOverTime bounds counts over several sessions, which are kept in a
	// few bytes.
	maxOverTime = 50_000
)

func noArgs(*line, *Cond) *Error { return nil }

// needs parses one value or a list of them.
func needs(what string, value valueFunc) func(*line, *Cond) *Error {
	return func(l *line, c *Cond) (err *Error) {
		c.Values, err = l.values(what, value)
		return err
	}
}

func parseFCrDNS(l *line, c *Cond) (err *Error) {
	// `pass` stands for the action, too: behind fcrdns it is the state.
	if t := l.peek(); index(fcrdnsNames[1:], t.text) < 0 && !t.is("{") {
		c.Values = []Value{{Pos: c.Pos, Kind: WordValue, Text: "pass"}}
		return nil
	}
	return l.each(func() *Error {
		t := l.next()
		if t.kind != wordToken || index(fcrdnsNames[1:], t.text) < 0 {
			return l.errorf(t.pos, didYouMean(t.text, fcrdnsNames[1:]), "expected a state%s", insteadOf(t))
		}
		c.Values = append(c.Values, Value{Pos: t.pos, Kind: WordValue, Text: t.text})
		return nil
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
		c.Over, err = l.number("the limit", 0, maxOver)
	}
	return err
}

func parseCount(l *line, c *Cond) *Error {
	t := l.next()
	v, wrong := evidenceValue(t)
	if wrong != "" {
		msg, hint, _ := strings.Cut(wrong, "\n")
		return l.errorf(t.pos, hint, "%s", msg)
	}
	v.Pos = t.pos
	c.Values = []Value{v}
	if err := parseOver(l, c); err != nil {
		return err
	}
	if by := l.peek(); by.is("by") {
		return l.errorf(by.pos, "write: in 1h by ...", "a count by somebody needs the time it looks back")
	}
	if !l.accept("in") {
		return nil
	}
	var err *Error
	if c.Window, err = l.duration("the time to look back", time.Minute, maxWindow); err != nil {
		return err
	}
	if c.Over > maxOverTime {
		return l.errorf(v.Pos, "", "over several sessions no more than %d are counted", maxOverTime)
	}
	c.By = BySrc
	if l.accept("by") {
		key := l.next()
		i := index(keyNames[1:], key.text)
		if key.kind != wordToken || i < 0 {
			return l.errorf(key.pos, didYouMean(key.text, keyNames[1:]), "expected whose events to count%s", insteadOf(key))
		}
		c.By = Key(i + 1)
	}
	return nil
}

// span returns the phases at which c can be answered: all facts it needs are
// known. A list of evidence is known when one of it can be there, its negation
// when all of it can.
func (c *Cond) span() (first, last Phase) {
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

// sayWord says a condition without values.
func sayWord(text string) func(*Cond) string { return func(*Cond) string { return text } }

// sayValues says a condition with values.
func sayValues(before, after string) func(*Cond) string {
	return func(c *Cond) string {
		text := before + " " + sayList(c.Values)
		if after != "" {
			text += " " + after
		}
		return text
	}
}

func sayList(values []Value) string {
	items := make([]string, len(values))
	for i, v := range values {
		items[i] = sayValue(v)
	}
	return or(items)
}

func sayValue(v Value) string {
	switch {
	case v.Kind == TableValue:
		return "one of the list `" + v.Text + "`"
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
			"pass":  "has a name in DNS that leads back to its address",
			"fail":  "has no name in DNS that leads back to its address",
			"error": "has a name in DNS that could not be checked",
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

func sayScore(c *Cond) string { return fmt.Sprintf("has more than %s", plural(c.Over, "point")) }

func sayCount(c *Cond) string {
	if c.Window == 0 && c.Values[0].Text == Flood.String() {
		return "holds more than " + plural(c.Over, "session") + " at once"
	}
	text := "more than " + plural(c.Over, "time") + " " + TokenByName(c.Values[0].Text).Means
	if c.Window == 0 {
		return text + " (in one session)"
	}
	who := map[Key]string{
		BySrc:    "from one address",
		ByPrefix: "from one network",
		ByASN:    "from one provider",
		ByHelo:   "under one greeting",
		ByUser:   "for one user",
	}[c.By]
	return text + " (within " + sayDuration(c.Window) + ", " + who + ")"
}

func sayAuth(c *Cond) string {
	if len(c.Values) == 0 {
		return "has logged in"
	}
	return "has logged in as " + sayList(c.Values)
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return strconv.Itoa(n) + " " + word + "s"
}

func sayDuration(d time.Duration) string {
	n, u := inUnits(int64(d), timeUnits[1:])
	return plural(int(n), u.word)
}
