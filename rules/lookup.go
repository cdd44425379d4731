package rules

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"scanwatch/internal/prefix"
	"scanwatch/internal/smtp"
)

// Lookup is the statement `lookup name dnsbl | allowlist "zone" codes ...`. The statement declares
// a DNS list (RFC 5782) that the lookup companion queries.
type Lookup struct {
	Pos
	Name  string
	Allow bool   // the list is an allowlist: a listing is a reason to exempt a client, not evidence
	Zone  string // name of the zone; may contain KeyMark instead of one label
	// Codes lists the return codes that mean that a host is listed. A return code is an address in
	// the list's answer. Ignore lists other codes that the list may return. The codes in Ignore
	// have no meaning here.
	Codes, Ignore []netip.Prefix
	Key           string        // file with the label that replaces KeyMark; empty if there is no key
	Rate          int           // maximum average number of questions per second; 0 for the default
	Hold          time.Duration // maximum time that a request waits for an answer; 0 to not wait
}

// KeyMark represents the key in the name of a zone. The companion replaces it, so the configuration
// does not contain the key.
const KeyMark = "{key}"

const (
	// MaxLookups is the maximum number of DNS lists. Each list is asked about every unknown client.
	MaxLookups    = 8
	maxLookupRate = 1000
	minHold       = 10 * time.Millisecond
	// MaxHold is the maximum value of Lookup.Hold.
	MaxHold = 400 * time.Millisecond
)

var (
	lookupKinds = []string{"dnsbl", "allowlist"}
	loopback4   = netip.MustParsePrefix("127.0.0.0/8")
	// errorCodes contains the codes that report an error. For example, the list does not answer
	// public resolvers.
	errorCodes = netip.MustParsePrefix("127.255.255.0/24")
	notListed  = netip.MustParseAddr("127.0.0.1") // RFC 5782 section 5
)

func parseLookup(l *line) (Statement, *Error) {
	s := &Lookup{Pos: l.toks[0].pos}
	var err *Error
	if s.Name, err = l.name("lookup"); err != nil {
		return nil, err
	}
	i, err := l.word("a kind of list", lookupKinds)
	if err != nil {
		return nil, err
	}
	s.Allow = i == 1
	if err = s.parseZone(l); err != nil {
		return nil, err
	}
	if err = l.expect("codes"); err == nil {
		s.Codes, err = parseCodes(l)
	}
	for l.at < len(l.toks) && err == nil {
		t := l.next()
		switch {
		case t.is("ignore") && s.Ignore == nil:
			s.Ignore, err = parseCodes(l)
		case t.is("key") && s.Key == "":
			s.Key, err = l.text("a file name")
		case t.is("rate") && s.Rate == 0:
			s.Rate, err = l.number("the rate", 1, maxLookupRate)
		case t.is("hold") && s.Hold == 0:
			s.Hold, err = parseHold(l)
		default:
			return nil, l.errorf(t.pos, "", "unexpected `%s`", t)
		}
	}
	if err != nil {
		return nil, err
	}
	if marked := strings.Contains(s.Zone, KeyMark); marked != (s.Key != "") {
		hint := "write for example: \"" + KeyMark + ".bl.example.org\""
		if marked {
			hint = "add: key \"/path/to/file\""
		}
		return nil, l.errorf(s.Pos, hint, "the zone contains %s if, and only if, the list has a key", KeyMark)
	}
	return s, nil
}

func (s *Lookup) parseZone(l *line) (err *Error) {
	t := l.peek()
	if s.Zone, err = l.text("a domain name"); err != nil {
		return err
	}
	s.Zone = strings.ToLower(strings.TrimSuffix(s.Zone, "."))
	if name := strings.Replace(s.Zone, KeyMark, "key", 1); !isZoneName(name) {
		return l.errorf(t.pos, "write for example: \"bl.example.org\"", "%q is not a domain name", s.Zone)
	}
	return nil
}

// parseCodes parses return codes, which are addresses or networks.
func parseCodes(l *line) ([]netip.Prefix, *Error) {
	start := l.peek().pos
	list, err := l.prefixes("a code")
	for _, p := range list {
		switch {
		case err != nil:
		case !loopback4.Overlaps(p) || p.Bits() < loopback4.Bits():
			err = l.errorf(start, "codes are in 127.0.0.0/8", "%s is not a code", prefix.String(p))
		case p.Overlaps(errorCodes):
			err = l.errorf(start, "list the codes that mean that a host is listed", "codes in %s report errors", errorCodes)
		case p.Contains(notListed):
			err = l.errorf(start, "list the codes that mean that a host is listed", "no list returns %s for a listed host", notListed)
		}
	}
	return list, err
}

// parseHold parses a duration with the unit ms.
func parseHold(l *line) (time.Duration, *Error) {
	t := l.next()
	digits, ok := strings.CutSuffix(t.text, "ms")
	n, err := strconv.Atoi(digits)
	d := time.Duration(n) * time.Millisecond
	if t.kind != wordToken || !ok || err != nil || d < minHold || d > MaxHold {
		return 0, l.errorf(t.pos, "write for example: hold 400ms", "expected a duration from %dms to %dms%s", minHold.Milliseconds(), MaxHold.Milliseconds(), insteadOf(t))
	}
	return d, nil
}

// ID returns the name of the list and a hash of its definition. The filter and the companion may
// have read different configurations. With the ID, an answer is not used for a different definition
// of the list.
func (s *Lookup) ID() string {
	definition := *s
	definition.Rate, definition.Hold = 0, 0
	sum := sha256.Sum256([]byte(definition.String()))
	return s.Name + "@" + hex.EncodeToString(sum[:4])
}

func (s *Lookup) String() string {
	kind := lookupKinds[0]
	if s.Allow {
		kind = lookupKinds[1]
	}
	text := "lookup " + s.Name + " " + kind + " " + quote(s.Zone) + " codes " + codeList(s.Codes)
	if s.Ignore != nil {
		text += " ignore " + codeList(s.Ignore)
	}
	if s.Key != "" {
		text += " key " + quote(s.Key)
	}
	if s.Rate > 0 {
		text += " rate " + strconv.Itoa(s.Rate)
	}
	if s.Hold > 0 {
		text += " hold " + strconv.FormatInt(s.Hold.Milliseconds(), 10) + "ms"
	}
	return text
}

// codeList formats return codes as a list in the policy language.
func codeList(list []netip.Prefix) string {
	items := make([]string, len(list))
	for i, p := range list {
		items[i] = Value{Kind: PrefixValue, Prefix: p}.String()
	}
	return braces(items)
}

// Judge reports whether an answer means that a host is listed. known is false if one of its
// addresses is not a code of the list. The answer must then be ignored, because it may report an
// error, or come from a resolver that replaces negative answers.
func (s *Lookup) Judge(answer []netip.Addr) (listed, known bool) {
	in := func(list []netip.Prefix, a netip.Addr) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	for _, a := range answer {
		switch {
		case in(s.Codes, a):
			listed = true
		case !in(s.Ignore, a):
			return false, false
		}
	}
	return listed, true
}

// IsCode reports whether a is in the network of return codes and reports no error.
func IsCode(a netip.Addr) bool {
	return loopback4.Contains(a) && !errorCodes.Contains(a) && a != notListed
}

// Question returns the name that must be queried to ask the list in zone about an address (RFC 5782
// sections 2.1 and 2.4). An IPv4-mapped IPv6 address is treated as an IPv6 address.
func Question(a netip.Addr, zone string) string {
	var b strings.Builder
	ip := a.AsSlice()
	for i := len(ip) - 1; i >= 0; i-- {
		if a.Is4() {
			b.WriteString(strconv.Itoa(int(ip[i])) + ".")
			continue
		}
		b.WriteString(strconv.FormatUint(uint64(ip[i]&15), 16) + "." + strconv.FormatUint(uint64(ip[i]>>4), 16) + ".")
	}
	return b.String() + zone
}

// listing returns the answer of the DNS list with the given name, or nil.
func (f *Facts) listing(name string) *smtp.Listing {
	for i := range f.Listings {
		if f.Listings[i].Name == name {
			return &f.Listings[i]
		}
	}
	return nil
}

// isListed reports whether a DNS list contains the client.
func (f *Facts) isListed() bool {
	return slices.ContainsFunc(f.Listings, func(l smtp.Listing) bool { return l.Listed })
}

// scoresListed reports whether the score changes if a DNS list contains the client.
func scoresListed(p *Policy) bool {
	return slices.ContainsFunc(p.weights, func(w weight) bool { return w.evidence == Listed })
}

// RestsOn reports whether r can match because the DNS list with the given name contains the client.
func (p *Policy) RestsOn(r *Rule, list string) bool {
	blocks := slices.ContainsFunc(p.Lookups, func(l *Lookup) bool { return l.Name == list && !l.Allow })
	return blocks && r.Has(Listed) || slices.ContainsFunc(r.Conds, func(c *Cond) bool {
		switch c.Word {
		case "listed":
			return !c.Not && slices.ContainsFunc(c.Values, func(v Value) bool { return v.Text == list })
		case "score":
			return blocks && scoresListed(p)
		}
		return false
	})
}

// matchListed returns Yes if one of the condition's DNS lists contains the client, Unknown if a
// list has not answered, and otherwise No.
func matchListed(c *cond, f *Facts) Truth {
	answer := No
	for _, v := range c.tree.Values {
		switch l := f.listing(v.Text); {
		case l == nil:
			answer = Unknown
		case l.Listed:
			return Yes
		}
	}
	return answer
}

func factListed(c *Cond, f *Facts) string {
	var items []string
	for _, v := range c.Values {
		switch l := f.listing(v.Text); {
		case l == nil:
			items = append(items, v.Text+": no answer")
		case l.Listed:
			items = append(items, v.Text+": "+quoteFact([]byte(l.Codes)))
		default:
			items = append(items, v.Text+": not listed")
		}
	}
	return strings.Join(items, "; ")
}

func sayListed(c *Cond) string {
	var items []string
	for _, v := range c.Values {
		items = append(items, "`"+v.Text+"`")
	}
	return "is in the DNS list " + or(items)
}

// checkLookups checks lookup statements and conditions on DNS lists.
func checkLookups(k *checker) {
	if len(k.lookups) > MaxLookups {
		k.errorf(k.lookups[MaxLookups].Pos, "", "more than %d lookups", MaxLookups)
	}
	asks := slices.IndexFunc(k.companions, func(c *Companion) bool { return c.Role == RoleLookup })
	switch {
	case asks < 0 && len(k.lookups) > 0:
		k.warnf(k.lookups[0].Pos, "add: companion lookup user name", "no companion asks this list")
	case asks >= 0 && len(k.lookups) == 0:
		k.warnf(k.companions[asks].Pos, "add for example: lookup bl dnsbl \"bl.example.org\" codes 127.0.0.2", "there is no list to ask")
	}
	evidence := slices.ContainsFunc(k.weights, func(w *Weight) bool { return w.Token.Evidence == Listed }) ||
		slices.ContainsFunc(k.rules, func(r *Rule) bool { return r.Has(Listed) })
	for _, l := range k.lookups {
		if !k.listed[l.Name].used && (l.Allow || !evidence) {
			k.warnf(l.Pos, "", "lookup %s is never used", l.Name)
		}
		for _, p := range l.Ignore {
			if slices.ContainsFunc(l.Codes, func(c netip.Prefix) bool { return c.Bits() <= p.Bits() && c.Contains(p.Addr()) }) {
				k.warnf(l.Pos, "remove it from `codes` or from `ignore`", "the code %s that lookup %s ignores is also covered by `codes`", prefix.String(p), l.Name)
			}
		}
	}
	for _, r := range k.rules {
		beforeAnswers(k, r)
	}
}

// beforeAnswers warns of a rule that is evaluated before most answers of its DNS lists arrive. Most
// answers arrive too late if no request waits for them.
func beforeAnswers(k *checker, r *Rule) {
	phases := r.Phases.List()
	if len(phases) == 0 || phases[len(phases)-1] >= smtp.PhaseMailFrom {
		return
	}
	scored := slices.ContainsFunc(k.weights, func(w *Weight) bool { return w.Token.Evidence == Listed })
	for _, l := range k.lookups {
		i := slices.IndexFunc(r.Conds, func(c *Cond) bool {
			switch c.Word {
			case "listed":
				return slices.ContainsFunc(c.Values, func(v Value) bool { return v.Text == l.Name })
			case "score":
				return scored && !l.Allow
			case "evidence", "count":
				return !l.Allow && c.Window == 0 && slices.ContainsFunc(c.Values, func(v Value) bool { return TokenByName(v.Text).Evidence == Listed })
			}
			return false
		})
		if i >= 0 && l.Hold == 0 {
			k.warnf(r.Conds[i].Pos, "add to lookup "+l.Name+": hold 400ms", "rule %s is usually evaluated before the list %s has answered", r.Name, l.Name)
		}
	}
}

// usesLookup checks a condition on DNS lists. usesLookup warns if clients on a block list are
// exempt, because a listing there is not a reason to exempt a client.
func usesLookup(k *checker, c *Cond, ofRule bool) {
	for _, v := range c.Values {
		l := k.listed[v.Text]
		if l == nil {
			hint := didYouMean(v.Text, slices.Sorted(maps.Keys(k.listed)))
			if hint == "" {
				kind := ` dnsbl "bl.example.org"`
				if ofRule == c.Not { // the condition exempts listed clients
					kind = ` allowlist "list.example.org"`
				}
				hint = "declare it: lookup " + v.Text + kind + " codes 127.0.0.2"
			}
			k.errorf(v.Pos, hint, "unknown lookup %s", v.Text)
			continue
		}
		l.used = true
		if !ofRule && !c.Not && !l.allow {
			k.warnf(v.Pos, "use the condition in a rule", "this exempts clients that are listed in the block list %s", v.Text)
		}
		if !ofRule && !c.Not && l.allow && !l.hold && slices.ContainsFunc(k.lookups, func(l *Lookup) bool { return !l.Allow }) {
			k.warnf(v.Pos, "add to lookup "+v.Text+": hold 400ms", "clients in the allowlist %s are rejected temporarily if a block list answers first", v.Text)
		}
	}
}

// A declaredLookup is a DNS list that a lookup statement declares.
type declaredLookup struct {
	allow, hold, used bool
}

// accuses warns of a rule that rejects or bans clients because an allowlist contains them.
func accuses(k *checker, r *Rule) {
	if !r.bans() && (!r.Decides || r.Decision < smtp.Reject) {
		return
	}
	for _, c := range r.Conds {
		if c.Word != "listed" || c.Not {
			continue
		}
		for _, v := range c.Values {
			if l := k.listed[v.Text]; l != nil && l.allow {
				k.warnf(v.Pos, "use `pass match listed "+v.Text+"`", "rule %s rejects clients that are listed in the allowlist %s", r.Name, v.Text)
			}
		}
	}
}

// A ListSet is a set of DNS lists. Each list in Policy.Lookups has one bit.
type ListSet uint8

// Awaits returns the DNS lists whose answers may change what p decides about f in phase f.Phase.
// missing contains the lists that have not answered.
//
// A missing answer matters only if all other conditions of its statement match. The statement must
// be a rule, or a pass statement that would exempt the client from a decision. decided must be set
// if an earlier decision applies unless a pass statement matches.
func Awaits(p *Policy, f *Facts, missing ListSet, decided bool) (needed ListSet) {
	if missing == 0 || p.Mode == Observe || f.Phase >= smtp.NumPhases {
		return 0
	}
	prepare(p, f)
	q := query{p: p, f: f, missing: missing, low: f.total, high: f.total}
	for i, l := range p.Lookups {
		if !l.Allow {
			q.evidence |= missing & (1 << i)
		}
	}
	if q.evidence != 0 && !f.Evidence.Has(Listed) {
		for _, w := range p.weights {
			if w.evidence == Listed {
				q.add(w.score, q.evidence)
			}
		}
	}
	var exempt ListSet // missing lists of pass statements that may match
	for i := range p.passes {
		if s := &p.passes[i]; on(s.listeners, f) {
			may, lists := q.all(s.conds)
			if may && lists == 0 {
				return 0
			}
			exempt |= lists
		}
	}
	for _, i := range p.phases[f.Phase] {
		r := &p.rules[i]
		if r.tree.Observe || (f.Auth || f.Local) && !r.auth || !on(r.listeners, f) {
			continue
		}
		may, lists := q.all(r.conds)
		if !may {
			continue
		}
		q.add(r.tree.Score, lists)
		needed |= lists
		if decided = true; lists == 0 && r.tree.Decides {
			break
		}
	}
	if decided {
		needed |= exempt
	}
	return needed
}

// A query evaluates conditions although some DNS lists have not answered.
type query struct {
	p        *Policy
	f        *Facts
	missing  ListSet
	evidence ListSet // missing block lists, whose listings would be evidence
	// The final score is between low and high. The score depends on the answers of the lists in
	// scored.
	low, high int
	scored    ListSet
}

// add adds points to the score. If lists is not empty, the points depend on the answers of these
// lists.
func (q *query) add(points int, lists ListSet) {
	if lists == 0 || points < 0 {
		q.low += points
	}
	if lists == 0 || points > 0 {
		q.high += points
	}
	if points != 0 {
		q.scored |= lists
	}
}

// all reports whether all conditions may match. lists contains the missing lists on which the
// result depends.
func (q *query) all(conds []cond) (may bool, lists ListSet) {
	for i := range conds {
		answer, of := q.eval(&conds[i])
		if answer != Yes && of == 0 {
			return false, 0
		}
		lists |= of
	}
	return true, lists
}

// eval evaluates a condition, and returns the missing lists on which the result depends.
func (q *query) eval(c *cond) (Truth, ListSet) {
	answer := c.eval(q.f)
	switch {
	case c.tree.Word == "score":
		if (q.low > c.over) != (q.high > c.over) {
			return Unknown, q.scored
		}
		if answer = truth(q.low > c.over); c.not {
			answer = answer.Not()
		}
	case c.tree.Word == "listed" && answer == Unknown:
		return Unknown, listsOf(q.p, c) & q.missing
	case c.evidence&Listed != 0 && q.evidence != 0 && q.ifListed(c) != answer:
		return Unknown, q.evidence
	}
	return answer, 0
}

// ifListed evaluates a condition on evidence as if a DNS list contained the client.
func (q *query) ifListed(c *cond) Truth {
	if c.window > 0 {
		one := *c
		one.over-- // as if the count were higher by one
		c = &one
	}
	evidence, n := q.f.Evidence, &q.f.Counts[Listed.Index()]
	before := *n
	q.f.Evidence, *n = evidence|Listed, max(before, 1)
	answer := c.eval(q.f)
	q.f.Evidence, *n = evidence, before
	return answer
}

// listsOf returns the DNS lists in a condition.
func listsOf(p *Policy, c *cond) (set ListSet) {
	for i, l := range p.Lookups {
		if slices.ContainsFunc(c.tree.Values, func(v Value) bool { return v.Text == l.Name }) {
			set |= 1 << i
		}
	}
	return set
}
