// This file holds the functions that parse statements.

package rules

import (
	"path/filepath"
	"slices"
	"strings"
	"time"

	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
)

func parseMode(l *line) (Statement, *Error) {
	i, err := l.word("a mode", modeNames[:])
	return &Setting{Pos: l.toks[0].pos, Word: "mode", Mode: Mode(i)}, err
}

func parsePrivacy(l *line) (Statement, *Error) {
	i, err := l.word("a privacy level", privacyNames[:])
	return &Setting{Pos: l.toks[0].pos, Word: "privacy", Privacy: Privacy(i)}, err
}

func parseLog(l *line) (Statement, *Error) {
	s := &Setting{Pos: l.toks[0].pos, Word: "log"}
	for {
		switch {
		case !s.Log.Syslog && l.accept("syslog"):
			s.Log.Syslog = true
			continue
		case !s.Log.Verbose && l.accept("verbose"):
			s.Log.Verbose = true
			continue
		case s.Log != Log{}:
			return s, nil
		}
		t := l.next()
		return nil, l.errorf(t.pos, didYouMean(t.text, []string{"syslog", "verbose"}), "expected syslog or verbose%s", insteadOf(t))
	}
}

// word parses one of the given words, and returns the word's index.
func (l *line) word(what string, words []string) (int, *Error) {
	t := l.next()
	i := slices.Index(words, t.text)
	if t.kind != wordToken || i < 0 {
		return 0, l.errorf(t.pos, didYouMean(t.text, words), "expected %s%s", what, insteadOf(t))
	}
	return i, nil
}

// MaxBan is the maximum duration of a ban.
const MaxBan = 366 * day

const (
	day       = 24 * time.Hour
	maxKeep   = 3660 * day
	maxLadder = 8
	minSize   = 16 << 20
	maxSize   = 1 << 50
	maxDelay  = time.Minute
)

func parseStore(l *line) (Statement, *Error) {
	s := &Setting{Pos: l.toks[0].pos, Word: "store"}
	var err *Error
	if s.Text, err = l.text("a directory"); err != nil {
		return nil, err
	}
	for {
		switch {
		case s.Keep == 0 && l.accept("keep"):
			s.Keep, err = l.duration("the retention", day, maxKeep)
		case s.Budget == 0 && l.accept("budget"):
			s.Budget, err = l.size("the budget")
		default:
			return s, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func (l *line) size(what string) (int64, *Error) {
	t := l.next()
	n, ok := text.ParseSize(t.text)
	if t.kind != wordToken || !ok {
		return 0, l.errorf(t.pos, "a size is a number with K, M, G or T: 256M", "expected %s, a size%s", what, insteadOf(t))
	}
	if n < minSize || n > maxSize {
		return 0, l.errorf(t.pos, "", "%s must be from %s to %s", what, text.Size(minSize), text.Size(maxSize))
	}
	return n, nil
}

func parseText(l *line) (Statement, *Error) {
	s := &Setting{Pos: l.toks[0].pos, Word: l.toks[0].text}
	what := "a file name"
	switch s.Word {
	case "contact":
		what = "a text"
	case "rundir":
		what = "a directory"
	}
	var err *Error
	at := l.peek()
	if s.Text, err = l.text(what); err == nil && s.Word == "rundir" && !strings.HasPrefix(s.Text, "/") {
		err = l.errorf(at.pos, "write for example: rundir \"/run/scanwatch\"", "the directory %q is not absolute", s.Text)
	}
	return s, err
}

// parseDelimiter parses the character between a mailbox and its detail (RFC 5233).
func parseDelimiter(l *line) (Statement, *Error) {
	t := l.peek()
	text, err := l.text("a character")
	if err == nil && (len(text) != 1 || text[0] <= ' ' || text[0] > '~' || text == "@") {
		err = l.errorf(t.pos, "write: delimiter \"+\"", "a delimiter is one printable ASCII character other than @")
	}
	return &Setting{Pos: l.toks[0].pos, Word: "delimiter", Text: text}, err
}

func parseOwn(value valueFunc) func(*line) (Statement, *Error) {
	return func(l *line) (Statement, *Error) {
		s := &Setting{Pos: l.toks[0].pos, Word: l.toks[0].text}
		values, err := l.values("value", value)
		if err != nil {
			return nil, err
		}
		for _, v := range values {
			if v.Kind == TableValue || v.Kind == RegexValue {
				return nil, l.errorf(v.Pos, "list the names or addresses", "%s cannot contain tables or regular expressions", s.Word)
			}
		}
		s.Values = values
		return s, nil
	}
}

func parseTable(l *line) (Statement, *Error) {
	nameTok := l.next()
	if nameTok.kind != tableToken {
		return nil, l.errorf(nameTok.pos, "", "expected a table <name>%s", insteadOf(nameTok))
	}
	t := &TableDecl{Pos: l.toks[0].pos, Name: nameTok.text}
	switch open := l.peek(); {
	case l.accept("builtin"):
		t.Builtin = true
		return t, nil
	case open.is("file"):
		return t, l.file(t)
	case !open.is("{"):
		return nil, l.errorf(open.pos, "", "expected `builtin`, `file` or a list%s", insteadOf(open))
	case l.at+1 < len(l.toks) && l.toks[l.at+1].is("}"):
		// The list may be empty, because operators may add entries later.
		l.at += 2
		t.Inline = true
		return t, nil
	}
	t.Inline = true
	return t, l.each(func() *Error {
		if l.peek().is("file") {
			return l.file(t)
		}
		v, err := l.values("a value", tableValue)
		t.Values = append(t.Values, v...)
		return err
	})
}

// file parses one file of a table: `file "path" [format name ["parameter"]]`, optionally followed
// by a Download.
func (l *line) file(t *TableDecl) *Error {
	f := File{Pos: l.peek().pos}
	err := l.expect("file")
	if err == nil {
		f.Path, err = l.text("a file name")
	}
	if err == nil && l.accept("format") {
		f.Format, err = l.name("format")
		if next := l.peek(); err == nil && (next.kind == stringToken || next.kind == wordToken && !slices.Contains(afterFormat, next.text)) {
			f.Param = l.next().text
			if f.Param == "" {
				return l.errorf(next.pos, "", "the parameter may not be empty")
			}
		}
	}
	at := l.peek()
	if err == nil {
		f.Download, err = l.download()
	}
	if err == nil && f.URL != "" && f.Format == "" {
		// The format of a downloaded file must be specified. If the format were detected, an error
		// message from the server could be read as a list.
		err = l.errorf(at.pos, "put the format before the URL, for example: format addresses", "a downloaded file needs a format")
	}
	t.Files = append(t.Files, f)
	return err
}

// afterFormat lists the words that may follow the name of a format and are not its parameter.
var afterFormat = append([]string{"file"}, downloadWords...)

func parseListener(l *line) (Statement, *Error) {
	ls := &Listener{Pos: l.toks[0].pos}
	var err *Error
	if ls.Name, err = l.name("listener"); err != nil {
		return nil, err
	}
	if err = l.expect("port"); err != nil {
		return nil, err
	}
	err = l.each(func() *Error {
		n, err := l.number("a port", 1, 65535)
		ls.Ports = append(ls.Ports, uint16(n))
		return err
	})
	if err != nil || !l.accept("address") {
		return ls, err
	}
	values, err := l.values("an address", addressValue)
	for _, v := range values {
		if v.Kind == TableValue || !v.Prefix.IsSingleIP() {
			return nil, l.errorf(v.Pos, "", "a listener has addresses, not prefixes")
		}
		ls.Addresses = append(ls.Addresses, v.Prefix.Addr())
	}
	return ls, err
}

func parsePass(l *line) (Statement, *Error) {
	p := &Pass{Pos: l.toks[0].pos}
	var err *Error
	if l.accept("on") {
		if p.On, err = l.name("listener"); err != nil {
			return nil, err
		}
	}
	start := l.peek()
	if l.accept("from") {
		c := &Cond{Pos: start.pos, Word: "src"}
		c.Values, err = l.values("an address", addressValue)
		p.Conds = []*Cond{c}
		return p, err
	}
	if err = l.expect("match"); err != nil {
		return nil, err
	}
	p.Conds, err = l.conditions()
	return p, err
}

func parseWeight(l *line) (Statement, *Error) {
	if err := l.expect("evidence"); err != nil {
		return nil, err
	}
	v, err := l.value(l.next(), evidenceValue)
	if err != nil {
		return nil, err
	}
	w := &Weight{Pos: l.toks[0].pos, Token: TokenByName(v.Text)}
	w.Score, err = l.number("the score", -maxScore, maxScore)
	return w, err
}

func parseInclude(l *line) (Statement, *Error) {
	inc := &Include{Pos: l.toks[0].pos}
	var err *Error
	if inc.Path, err = l.text("a file name"); err != nil {
		return nil, err
	}
	if err = l.done(); err != nil {
		return nil, err
	}
	path := inc.Path
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(l.lexer.file), path)
	}
	inc.Config = l.parser.file(path, l)
	return inc, nil
}

// parseRule parses the conditions and actions of a rule. Conditions and actions may be in any
// order. Rule.String writes them in the order that the manual uses.
func parseRule(l *line) (Statement, *Error) {
	r := &Rule{Pos: l.toks[0].pos}
	var err *Error
	if r.Name, err = l.name("rule"); err != nil {
		return nil, err
	}
	matched := false
	for l.at < len(l.toks) && err == nil {
		t := l.next()
		twice := false
		switch {
		case t.is("observe"):
			twice, r.Observe = r.Observe, true
		case t.is("even"):
			twice, r.EvenTrusted = r.EvenTrusted, true
			err = l.expect("trusted")
		case t.is("on"):
			twice = r.On != ""
			r.On, err = l.name("listener")
		case t.is("phase"):
			twice = r.Phases != 0
			r.Phases, err = l.phases()
		case t.is("match"):
			twice, matched = matched, true
			r.Conds, err = l.conditions()
		default:
			a := actionByWord(t)
			if a == nil {
				return nil, l.unknownPart(t)
			}
			twice = a.has(r) && !a.many
			r.actions = append(r.actions, t)
			err = a.parse(l, r)
		}
		if twice {
			return nil, l.errorf(t.pos, "", "`%s` is a duplicate", t)
		}
	}
	switch {
	case err != nil:
		return nil, err
	case r.Phases == 0:
		return nil, l.errorf(l.end(), didYouMean("", phaseWords), "rule %s has no phase", r.Name)
	case !matched:
		return nil, l.errorf(l.end(), "write `match any` if the rule is for all clients", "rule %s has no match", r.Name)
	}
	return r, nil
}

func (l *line) phases() (set smtp.PhaseSet, err *Error) {
	err = l.each(func() *Error {
		t := l.next()
		p, ok := smtp.ParsePhase(t.text)
		if t.kind != wordToken || !ok {
			hint := didYouMean(t.text, phaseWords)
			switch t.text {
			case "ehlo":
				hint = "phase helo covers both HELO and EHLO"
			case "auth", "data-line":
				hint = "the filter never checks passwords or message text"
			case "starttls", "rset", "noop", "quit":
				hint = "smtpd allows no decision there; " + hint
			}
			return l.errorf(t.pos, hint, "expected a phase%s", insteadOf(t))
		}
		if set.Has(p) {
			return l.errorf(t.pos, "", "phase %s is a duplicate", p)
		}
		set |= smtp.Phases(p)
		return nil
	})
	return set, err
}

// conditions parses `any`, or a list of conditions.
func (l *line) conditions() (cs []*Cond, err *Error) {
	if l.accept("any") {
		return nil, nil
	}
	for l.at < len(l.toks) {
		start := l.at
		c := &Cond{Pos: l.peek().pos}
		c.Not = l.accept("!")
		t := l.next()
		row := conditionByWord(t.text)
		if t.kind != wordToken {
			row = nil
		}
		// `score > 100` is a condition. `score 10` is an action.
		if row != nil && row.word == "score" && !l.peek().is(">") && !c.Not {
			row = nil
		}
		switch {
		case row != nil:
			c.Word = row.word
			if err = row.parse(l, c); err != nil {
				return nil, err
			}
			cs = append(cs, c)
			continue
		case c.Not:
			return nil, l.errorf(t.pos, didYouMean(t.text, conditionWords()), "expected a condition after `!`%s", insteadOf(t))
		}
		l.at = start
		break // the actions follow
	}
	if len(cs) == 0 {
		t := l.peek()
		return nil, l.errorf(t.pos, didYouMean(t.text, append(conditionWords(), "any")), "expected a condition%s", insteadOf(t))
	}
	return cs, nil
}

// unknownPart returns the error for a word that is not a condition or an action.
func (l *line) unknownPart(t token) *Error {
	words := []string{"observe", "even", "on", "phase", "match"}
	for i := range actions {
		words = append(words, actions[i].word)
	}
	if conditionByWord(t.text) != nil || t.is("!") {
		return l.errorf(t.pos, "all conditions follow `match` together", "unexpected `%s`", t)
	}
	// If no condition is similar to the word, the hint would be a long list of all conditions, so
	// it is omitted.
	if hint := didYouMean(t.text, conditionWords()); strings.HasPrefix(hint, "did") {
		return l.errorf(t.pos, hint, "`%s` is neither an action nor a condition", t)
	}
	return l.errorf(t.pos, didYouMean(t.text, words), "`%s` is neither an action nor a condition", t)
}
