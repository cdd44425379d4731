package rules

import (
	"bytes"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"scanwatch/internal/mailbox"
	"scanwatch/internal/smtp"
)

// A cond is a compiled condition. The row of a condition in the table of conditions determines
// which fields are used.
type cond struct {
	not         bool
	first, last smtp.Phase
	match       func(*cond, *Facts) Truth
	tree        *Cond

	names     []pattern
	prefixes  []netip.Prefix
	as        []uint32
	tables    []Table // tables of the condition; nil for a table that is not loaded
	delimiter byte    // character between a mailbox and its detail
	evidence  Evidence
	weak      bool  // evidence with low confidence is enough
	states    uint8 // set of FCrDNS results, one bit for each
	listeners uint64
	over      int
	window    time.Duration
	by        Key
}

// eval returns the result of c after negation.
func (c *cond) eval(f *Facts) Truth {
	if f.Phase < c.first || f.Phase > c.last {
		return Unknown
	}
	t := c.match(c, f)
	if c.not {
		return t.Not()
	}
	return t
}

// A part is the part of a mail address to which a pattern is compared.
type part uint8

const (
	whole part = iota
	domainPart
	localPart
)

// A pattern is a name, a suffix, a glob or a regular expression. The text of a pattern is in lower
// case.
type pattern struct {
	part   part
	suffix bool // text starts with a dot, and the pattern matches the domain and all names below it
	glob   bool
	text   string
	re     *regexp.Regexp
}

// newPattern returns the pattern for a value. If envelope is set, the pattern is for mail
// addresses, and a text without an @ is a domain.
func newPattern(v Value, envelope bool) pattern {
	if v.Kind == RegexValue {
		re, err := compileRegex(v.Text)
		if err != nil {
			re = regexp.MustCompile(`\z.`) // matches nothing; this never happens, because the parser has rejected invalid expressions
		}
		return pattern{re: re}
	}
	p := pattern{text: lower(v.Text)}
	switch {
	case !envelope || p.text == "<>":
	case strings.HasPrefix(p.text, "@"):
		p.part, p.text = domainPart, p.text[1:]
	case strings.HasSuffix(p.text, "@"):
		p.part, p.text = localPart, p.text[:len(p.text)-1]
	case !strings.Contains(p.text, "@"):
		p.part = domainPart
	}
	p.glob = strings.Contains(p.text, "*")
	p.suffix = !p.glob && strings.HasPrefix(p.text, ".") && p.part != localPart
	if len(p.text) > 1 && p.part != localPart {
		p.text = strings.TrimSuffix(p.text, ".")
	}
	return p
}

func (p pattern) match(b []byte) bool {
	switch {
	case p.re != nil:
		return p.re.Match(b)
	case p.glob:
		return matchGlob(p.text, b)
	case p.suffix:
		n := len(b) - len(p.text)
		return n >= 0 && equalFold(p.text, b[n:]) || n == -1 && equalFold(p.text[1:], b)
	}
	return equalFold(p.text, b)
}

// lower returns s with its ASCII letters in lower case.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		b[i] = lowerByte(c)
	}
	return string(b)
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// equalFold reports whether b equals text. Case is ignored. text must be in lower case.
func equalFold(text string, b []byte) bool {
	if len(text) != len(b) {
		return false
	}
	for i := range b {
		if lowerByte(b[i]) != text[i] {
			return false
		}
	}
	return true
}

// matchGlob reports whether b matches glob. In glob, `*` matches any number of bytes.
func matchGlob(glob string, b []byte) bool {
	g, i, star, mark := 0, 0, -1, 0
	for i < len(b) {
		switch {
		case g < len(glob) && glob[g] == '*':
			star, mark = g, i
			g++
		case g < len(glob) && glob[g] == lowerByte(b[i]):
			g++
			i++
		case star >= 0:
			mark++
			g, i = star+1, mark
		default:
			return false
		}
	}
	for g < len(glob) && glob[g] == '*' {
		g++
	}
	return g == len(glob)
}

// trimDot removes the dot at the end of an absolute name.
func trimDot(b []byte) []byte {
	if len(b) > 1 && b[len(b)-1] == '.' {
		return b[:len(b)-1]
	}
	return b
}

// ask returns Yes if one of the tables matches, Unknown if a table is not loaded, and otherwise No.
func (c *cond) ask(match func(Table) bool) Truth {
	answer := No
	for _, t := range c.tables {
		switch {
		case t == nil:
			answer = Unknown
		case match(t):
			return Yes
		}
	}
	return answer
}

// matchAny reports whether one of the patterns matches b.
func matchAny(patterns []pattern, b []byte) bool {
	return slices.ContainsFunc(patterns, func(p pattern) bool { return p.match(b) })
}

func (c *cond) name(b []byte) Truth {
	if b = trimDot(b); matchAny(c.names, b) {
		return Yes
	}
	return c.ask(func(t Table) bool { return t.MatchName(b) })
}

// address compares the values of c with a mail address. A table may contain the address or its
// domain. If foreign is set, a value that consists of only a local part does not match.
func (c *cond) address(b []byte, foreign bool) Truth {
	local, domain := b, []byte(nil)
	if i := bytes.LastIndexByte(b, '@'); i >= 0 {
		local, domain = b[:i], trimDot(b[i+1:])
	}
	for i := range c.names {
		p := &c.names[i]
		if p.text == "<>" && len(b) == 0 {
			return Yes
		}
		if foreign && p.part == localPart {
			continue
		}
		what := b
		switch p.part {
		case domainPart:
			what = domain
		case localPart:
			what = local
		}
		// The null sender has no local part and no domain.
		if (p.part == whole || len(b) > 0) && p.match(what) {
			return Yes
		}
		if i := bytes.IndexByte(local, c.delimiter); i > 0 && p.part == localPart && p.match(local[:i]) {
			return Yes
		}
	}
	return c.ask(func(t Table) bool { return len(b) > 0 && (t.MatchName(b) || len(domain) > 0 && t.MatchName(domain)) })
}

func matchSrc(c *cond, f *Facts) Truth {
	if !f.Src.IsValid() {
		return Unknown
	}
	src := f.Src.Unmap()
	if slices.ContainsFunc(c.prefixes, func(p netip.Prefix) bool { return p.Contains(src) }) {
		return Yes
	}
	return c.ask(func(t Table) bool { return t.MatchAddr(src) })
}

func matchListener(c *cond, f *Facts) Truth { return truth(f.listeners&c.listeners != 0) }

func matchRDNS(c *cond, f *Facts) Truth {
	// If the name is empty, DNS may have failed. If the name is truncated, its domain may be
	// missing.
	if len(f.RDNS) == 0 || f.RDNSCut {
		return Unknown
	}
	return c.name(f.RDNS)
}

func matchFCrDNS(c *cond, f *Facts) Truth {
	has := c.states&(1<<f.FCrDNS) != 0
	if f.RDNSCut || f.FCrDNS == smtp.FCrDNSUnknown || f.FCrDNS == smtp.FCrDNSError && !has {
		return Unknown
	}
	return truth(has)
}

func matchASN(c *cond, f *Facts) Truth {
	if !f.ASNKnown {
		return Unknown
	}
	if slices.Contains(c.as, f.ASN) {
		return Yes
	}
	return c.ask(func(t Table) bool { return t.MatchASN(f.ASN) })
}

func matchCountry(c *cond, f *Facts) Truth {
	if f.Country == "" {
		return Unknown
	}
	if slices.ContainsFunc(c.names, func(p pattern) bool { return strings.EqualFold(p.text, f.Country) }) {
		return Yes
	}
	return c.ask(func(t Table) bool { return t.MatchName([]byte(f.Country)) })
}

func matchEvidence(c *cond, f *Facts) Truth {
	switch {
	case f.Evidence&c.evidence != 0:
		return Yes
	case f.Weak&c.evidence != 0:
		if c.weak {
			return Yes
		}
		return Unknown
	}
	return No
}

func matchScore(c *cond, f *Facts) Truth { return truth(f.total > c.over) }

func matchStanding(least Standing) func(*cond, *Facts) Truth {
	return func(_ *cond, f *Facts) Truth { return f.Standing.AtLeast(least) }
}

// ofRecipients is the evidence that is counted by recipients.
const ofRecipients = UnknownRecipient | Backscatter | RelayProbe | ProbedRecipient | Harvest

// spares reports whether a count of e does not match the current recipient. Counts of missing
// recipients must not affect mail to existing mailboxes. Counts of foreign recipients must not
// affect mail to local mailboxes.
func (f *Facts) spares(e Evidence) bool {
	return f.Phase == smtp.PhaseRcptTo && (f.RcptKnown && e&ofRecipients != 0 || f.RcptLocal == Yes && e == RelayProbe)
}

func matchCount(c *cond, f *Facts) Truth {
	if f.spares(c.evidence) {
		return No
	}
	// For a known client, the threshold is doubled.
	over := c.over
	if f.Standing >= StandingKnown && c.evidence&(ofRecipients|RecipientFlood) != 0 {
		over *= 2
	}
	if c.window == 0 {
		return truth(int64(f.Counts[c.evidence.Index()]) > int64(over))
	}
	if f.Window == nil {
		return Unknown
	}
	n, ok := f.Window.Count(f, c.evidence, c.window, c.by)
	if !ok {
		return Unknown
	}
	return truth(n > over)
}

func matchHelo(c *cond, f *Facts) Truth {
	if len(f.Helo) == 0 {
		return Unknown
	}
	return c.name(f.Helo)
}

func matchMailFrom(c *cond, f *Facts) Truth { return c.recorded(f, f.MailFrom, false) }

// A local part without a domain, such as postmaster@, means a local mailbox. If postmaster@ matched
// foreign addresses, a pass statement for the postmaster would also exempt relay probes.
func matchRcptTo(c *cond, f *Facts) Truth { return c.recorded(f, f.RcptTo, f.RcptLocal == No) }

// recorded compares the values of c with a mail address whose local part may be hashed. Domains and
// role accounts are never hashed, so conditions on them can still be evaluated. For foreign, see
// address.
func (c *cond) recorded(f *Facts, b []byte, foreign bool) Truth {
	answer := c.address(b, foreign)
	if answer != No || !f.Recorded || !mailbox.Hashed(b) {
		return answer
	}
	_, domain, _ := bytes.Cut(b, []byte{'@'})
	if len(c.tables) == 0 && !slices.ContainsFunc(c.names, func(p pattern) bool { return p.hidden(domain) }) {
		return No
	}
	f.hashed = true
	return Unknown
}

// hidden reports whether p may match the original of a hashed address in domain. hidden ignores
// that a role account with a detail is hashed, which is rare, because all conditions on role
// accounts would be unknown.
func (p pattern) hidden(domain []byte) bool {
	switch {
	case p.part == domainPart:
		return false
	case p.part == localPart:
		return !mailbox.IsRole(p.text)
	case p.re != nil || p.glob:
		return true
	}
	local, of, _ := strings.Cut(p.text, "@")
	return !mailbox.IsRole(local) && equalFold(of, trimDot(domain))
}

func matchAuth(c *cond, f *Facts) Truth {
	switch {
	case !f.Auth && !f.Local:
		return No
	case len(c.tree.Values) == 0:
		return Yes
	case len(f.User) == 0:
		return Unknown
	}
	answer := c.name(f.User)
	if answer == No && f.Recorded && mailbox.Hashed(f.User) {
		f.hashed = true
		return Unknown
	}
	return answer
}

// matchFailed compares the values of c with the user names in failed logins.
func matchFailed(c *cond, f *Facts) Truth {
	answer := No
	for _, u := range f.Failed {
		switch t := c.name(u); {
		case t == Yes:
			return Yes
		case t == Unknown || f.Recorded && mailbox.Hashed(u):
			answer = Unknown
		}
	}
	return answer
}

func matchTLS(_ *cond, f *Facts) Truth { return truth(f.TLS) }
