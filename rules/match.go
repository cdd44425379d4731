package rules

import (
	"bytes"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"scanwatch/filter/privacy"
)

// A cond is a condition that is ready to be asked. Which fields are used
// depends on its row in the table of conditions.
type cond struct {
	not         bool
	first, last Phase
	match       func(*cond, *Facts) Truth
	tree        *Cond

	names     []pattern
	prefixes  []netip.Prefix
	as        []uint32
	tables    []Table // nil for one that is not there yet
	evidence  Evidence
	states    uint8 // of FCrDNS, one bit each
	listeners uint64
	over      int
	window    time.Duration
	by        Key
	memo      uint64 // the bit of Memo; 0: it is always asked
}

// eval returns the answer of c, negated if it has a `!`.
func (c *cond) eval(f *Facts) Truth {
	if f.Phase < c.first || f.Phase > c.last {
		return Unknown
	}
	t := c.remembered(f)
	if c.not {
		return t.Not()
	}
	return t
}

// remembered asks c, unless f remembers what it said.
func (c *cond) remembered(f *Facts) Truth {
	if c.memo == 0 || f.Memo == nil {
		return c.match(c, f)
	}
	m := f.Memo
	if m.known&c.memo == 0 {
		m.known |= c.memo
		switch c.match(c, f) {
		case Yes:
			m.yes |= c.memo
		case No:
			m.no |= c.memo
		}
	}
	switch {
	case m.yes&c.memo != 0:
		return Yes
	case m.no&c.memo != 0:
		return No
	}
	return Unknown
}

// part is the part of a mail address that a pattern looks at.
type part uint8

const (
	whole part = iota
	domainPart
	localPart
)

// A pattern is one name, suffix, glob or expression. Its text is lower case.
type pattern struct {
	part   part
	suffix bool // text begins with a dot: the domain and all below it
	glob   bool
	text   string
	re     *regexp.Regexp
}

// newPattern makes a pattern of a value. Envelope says that it is to be matched
// against mail addresses: what has no @ in it is a domain then.
func newPattern(v Value, envelope bool) pattern {
	if v.Kind == RegexValue {
		re, err := compileRegex(v.Text)
		if err != nil {
			re = regexp.MustCompile(`\z.`) // the parser has refused it: matches nothing
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

func (p *pattern) match(b []byte) bool {
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

// lower makes ASCII letters small and leaves all other bytes alone.
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

// equalFold compares b with text, which is lower case.
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

// matchGlob tells whether b is glob, in which `*` stands for any bytes.
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

// trimDot takes away the dot that ends a full name.
func trimDot(b []byte) []byte {
	if len(b) > 1 && b[len(b)-1] == '.' {
		return b[:len(b)-1]
	}
	return b
}

// ask asks the tables of c. One that is not there leaves the answer open.
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

func (c *cond) name(b []byte) Truth {
	b = trimDot(b)
	for i := range c.names {
		if c.names[i].match(b) {
			return Yes
		}
	}
	return c.ask(func(t Table) bool { return t.MatchName(b) })
}

// address asks for a mail address. A table may hold it, or its domain.
func (c *cond) address(b []byte) Truth {
	local, domain := b, []byte(nil)
	if i := bytes.LastIndexByte(b, '@'); i >= 0 {
		local, domain = b[:i], trimDot(b[i+1:])
	}
	for i := range c.names {
		p := &c.names[i]
		if p.text == "<>" && len(b) == 0 {
			return Yes
		}
		what := b
		switch p.part {
		case domainPart:
			what = domain
		case localPart:
			what = local
		}
		// The null sender has neither part.
		if (p.part == whole || len(b) > 0) && p.match(what) {
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
	for _, p := range c.prefixes {
		if p.Contains(src) {
			return Yes
		}
	}
	return c.ask(func(t Table) bool { return t.MatchAddr(src) })
}

func matchListener(c *cond, f *Facts) Truth { return truth(f.listeners&c.listeners != 0) }

func matchRDNS(c *cond, f *Facts) Truth {
	// No name may also be no answer from DNS, and a name that was cut has
	// lost the part that says whose it is.
	if len(f.RDNS) == 0 || f.RDNSCut {
		return Unknown
	}
	return c.name(f.RDNS)
}

func matchFCrDNS(c *cond, f *Facts) Truth {
	has := c.states&(1<<f.FCrDNS) != 0
	if f.FCrDNS == DNSUnknown || f.FCrDNS == DNSError && !has {
		return Unknown
	}
	return truth(has)
}

func matchASN(c *cond, f *Facts) Truth {
	if !f.ASNKnown {
		return Unknown
	}
	for _, n := range c.as {
		if n == f.ASN {
			return Yes
		}
	}
	return c.ask(func(t Table) bool { return t.MatchASN(f.ASN) })
}

func matchCountry(c *cond, f *Facts) Truth {
	if f.Country == "" {
		return Unknown
	}
	for i := range c.names {
		if strings.EqualFold(c.names[i].text, f.Country) {
			return Yes
		}
	}
	return c.ask(func(t Table) bool { return t.MatchName([]byte(f.Country)) })
}

func matchEvidence(c *cond, f *Facts) Truth {
	switch {
	case f.Evidence&c.evidence != 0:
		return Yes
	case f.Weak&c.evidence != 0:
		return Unknown
	}
	return No
}

func matchScore(c *cond, f *Facts) Truth { return truth(f.total > c.over) }

func matchSeenGood(_ *cond, f *Facts) Truth { return f.SeenGood }

func matchCount(c *cond, f *Facts) Truth {
	if c.window == 0 {
		return truth(int64(f.Counts[c.evidence.Index()]) > int64(c.over))
	}
	if f.Window == nil {
		return Unknown
	}
	n, ok := f.Window.Count(f, c.evidence, c.window, c.by)
	if !ok {
		return Unknown
	}
	return truth(n > c.over)
}

func matchHelo(c *cond, f *Facts) Truth {
	if len(f.Helo) == 0 {
		return Unknown
	}
	return c.name(f.Helo)
}

func matchMailFrom(c *cond, f *Facts) Truth { return c.recorded(f, f.MailFrom) }
func matchRcptTo(c *cond, f *Facts) Truth   { return c.recorded(f, f.RcptTo) }

// recorded asks for a mail address of which a record may have the hash only. What
// asks for its domain can tell all the same, and what asks for postmaster, who is
// never hashed.
func (c *cond) recorded(f *Facts, b []byte) Truth {
	answer := c.address(b)
	if answer != No || !f.Recorded || !privacy.HasHash(b) {
		return answer
	}
	local, domain, _ := bytes.Cut(b, []byte{'@'})
	if i := bytes.LastIndexByte(b, '@'); i >= 0 {
		local, domain = b[:i], b[i+1:]
	}
	hidden := len(c.tables) > 0
	for i := range c.names {
		hidden = hidden || c.names[i].hidden(local, domain)
	}
	if !hidden {
		return No
	}
	f.hashed = true
	return Unknown
}

// hidden tells whether a pattern that does not match an address with hashes in it
// may match what was hashed.
func (p *pattern) hidden(local, domain []byte) bool {
	if privacy.IsHash(domain) {
		return p.part != localPart || privacy.HasHash(local)
	}
	switch {
	case p.part == domainPart || !privacy.HasHash(local):
		return false
	case p.part == localPart:
		return !privacy.IsRole(p.text)
	case p.re != nil || p.glob:
		return true
	}
	name, of, _ := strings.Cut(p.text, "@")
	return !privacy.IsRole(name) && equalFold(of, trimDot(domain))
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
	if answer == No && f.Recorded && privacy.HasHash(f.User) {
		f.hashed = true
		return Unknown
	}
	return answer
}

func matchTLS(_ *cond, f *Facts) Truth { return truth(f.TLS) }
