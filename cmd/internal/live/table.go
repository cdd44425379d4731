package live

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"scanwatch/filter/lookup"
	"scanwatch/internal/prefix"
	"scanwatch/internal/text"
	"scanwatch/rules"
)

// A look is a style for text.
type look int

const (
	lookPlain look = iota
	lookStrong
	lookHeading
	lookReverse
	lookFaint
	lookGood
	lookWarning
	lookBad
)

// A cell is printable text with a style.
type cell struct {
	text string
	look look
}

// A column is as wide as its longest text, or has a fixed width. share is the part of the remaining
// width that the column also receives.
type column struct {
	title string
	width int
	share int
	right bool // align right
	tail  bool // truncate the start, because a name ends with its domain
}

// A key identifies a row across updates of the table.
type key struct {
	prefix netip.Prefix
	entry  uint64
}

// othersKey is the key of the row with the totals of all other sources. It is not zero, because the
// zero key selects the first row.
var othersKey = key{entry: 1}

type row struct {
	key   key
	cells []cell
}

// A table is the content of a section.
type table struct {
	columns []column
	rows    []row
	total   int // number of rows before filtering
}

// sections contains the sections in the order of their keys.
var sections = []struct {
	title string
	table func(*builder) table
}{
	{"Sources", (*builder).sources},
	{"Rejections", func(b *builder) table { return b.list(b.refused) }},
	{"Events", func(b *builder) table { return b.list(b.latest) }},
	{"Bans", (*builder).banned},
	{"Networks", (*builder).networks},
}

// orders contains the sort orders for sources and networks. Ties are ordered by address.
var orders = []struct {
	name  string
	order func(a, b *counts) int
}{
	{"last", func(a, b *counts) int { return b.last.Compare(a.last) }},
	{"evidence", func(a, b *counts) int {
		return cmp.Or(cmp.Compare(a.rank(), b.rank()), cmp.Compare(b.findings, a.findings))
	}},
	{"findings", func(a, b *counts) int { return cmp.Compare(b.findings, a.findings) }},
	{"rejections", func(a, b *counts) int {
		return cmp.Or(cmp.Compare(b.rejected, a.rejected), cmp.Compare(b.observed, a.observed))
	}},
	{"sessions", func(a, b *counts) int { return cmp.Compare(b.sessions, a.sessions) }},
	{"address", func(*counts, *counts) int { return 0 }},
}

// A builder builds a View's tables.
type builder struct {
	*data
	now   time.Time
	order int
	wide  bool // show more columns
	cells int  // width of a sparkline

	enforced lookup.Prefixes[bool] // active, enforced bans
}

// isBanned reports whether an enforced ban affects a source.
func (b *builder) isBanned(p netip.Prefix) bool {
	if _, ok := b.enforced.Overlapping(p); !ok {
		return false
	}
	if !p.IsSingleIP() || p.Addr().Is4() { // only a ban of an IPv6 network can exempt individual hosts
		return true
	}
	for _, ban := range b.data.bans {
		if !ban.Expired(b.now) && !ban.Observe && ban.Affects(p) {
			return true
		}
	}
	return false
}

// table returns the rows of a section that match filter.
func (v *View) table(section, order, width int, filter string) table {
	v.mu.Lock()
	defer v.mu.Unlock()
	b := &builder{data: v.data, now: v.now(), order: order, wide: width >= 110, cells: 6}
	if b.wide {
		b.cells = 20
	}
	for p, ban := range v.data.bans {
		if !ban.Expired(b.now) && !ban.Observe {
			b.enforced.Add(p, true)
		}
	}
	t := sections[section].table(b)
	t.total = len(t.rows)
	if filter != "" {
		t.rows = slices.DeleteFunc(t.rows, func(r row) bool { return !r.matches(filter) })
	}
	return t
}

// matches reports whether a row matches filter. If filter is a prefix, it must overlap
// the row's prefix. Otherwise, filter must occur in the row's text.
func (r *row) matches(filter string) bool {
	if p, _, err := prefix.Parse(filter); err == nil {
		return r.key.prefix.IsValid() && r.key.prefix.Overlaps(p)
	}
	filter = strings.ToLower(filter)
	return slices.ContainsFunc(r.cells, func(c cell) bool { return strings.Contains(strings.ToLower(c.text), filter) })
}

// number formats n in four columns.
func number(n int) cell {
	switch {
	case n < 10_000:
		return cell{text: strconv.Itoa(n)}
	case n < 1_000_000:
		return cell{text: strconv.Itoa(n/1000) + "k"}
	}
	return cell{text: strconv.Itoa(n/1_000_000) + "M"}
}

// decisions returns the number of rejections, followed by the number of observed ones in
// parentheses.
func (c *counts) decisions() cell {
	n := number(c.rejected)
	switch {
	case c.rejected > 0:
		n.look = lookBad
	case c.observed > 0:
		n = number(c.observed)
		n.text, n.look = "("+n.text+")", lookWarning
	}
	return n
}

// proof returns the evidence in the colour of the worst evidence.
func (c *counts) proof() cell {
	return cell{cmp.Or(c.worst(), "-"), [ranks + 1]look{lookBad, lookWarning, lookWarning, lookWarning, lookPlain, lookPlain, lookFaint}[c.rank()]}
}

// columns returns the columns for sources or networks. The given columns precede them.
func (b *builder) columns(front ...column) []column {
	all := append(front, column{title: "SESS", width: 4, right: true})
	if b.wide {
		all = append(all, column{title: "MAIL", width: 4, right: true})
	}
	all = append(all, column{title: "FIND", width: 4, right: true}, column{title: "REJ", width: 5, right: true})
	if b.wide {
		all = append(all, column{title: "LAST", width: 8})
	}
	return append(all, column{title: "RATE/h", width: b.cells}, column{title: "EVIDENCE", share: 3})
}

// row returns a row's cells, in the order of columns.
func (b *builder) row(c *counts, front ...cell) []cell {
	all := append(front, number(c.sessions))
	if b.wide {
		all = append(all, number(c.mails))
	}
	all = append(all, number(c.findings), c.decisions())
	if b.wide {
		last := "-"
		if !c.last.IsZero() {
			last = c.last.In(b.zone).Format(time.TimeOnly)
		}
		all = append(all, cell{text: last})
	}
	return append(all, cell{c.rate.spark(b.now, b.cells), lookGood}, c.proof())
}

// address formats a source. On narrow screens, the prefix length of an IPv6 /64 is
// replaced with an ellipsis.
func (b *builder) address(p netip.Prefix) string {
	if s := prefix.String(p); b.wide || p.Bits() != 64 {
		return s
	}
	return p.Addr().String() + "…"
}

// banned reports whether a ban that overlaps p may be active.
func (v *View) banned(p netip.Prefix) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.data.moreBans > 0 || v.data.memory == nil { // some bans are unknown
		return true
	}
	for q, b := range v.data.bans {
		if (b.Affects(p) || p.Contains(q.Addr())) && !b.Expired(v.now()) {
			return true
		}
	}
	return false
}

// name returns the name of a row's source, or "".
func (v *View) name(k key) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s := v.data.sources[k.prefix]; s != nil {
		return s.label()
	}
	return ""
}

// label returns a source's name, or "".
func (s *source) label() string {
	if s.proven || s.name == "" {
		return s.name
	}
	return unproven + s.name
}

// unproven is shown before a name that does not pass FCrDNS.
const unproven = "?"

// host returns the cell with a source's name. s may be nil.
func (b *builder) host(s *source) cell {
	switch {
	case s == nil:
		return cell{"-", lookFaint}
	case s.name == "" && !b.wide && s.org != "":
		return cell{"(" + s.org + ")", lookFaint}
	case s.name == "":
		return cell{"-", lookFaint}
	case !s.proven:
		return cell{s.label(), lookFaint}
	}
	return cell{text: s.label()}
}

// state returns the cell with a source's ban or standing.
func (b *builder) state(s *source) cell {
	if b.isBanned(s.prefix) {
		return cell{"banned", lookBad}
	}
	level := cell{text: b.standing(s, b.now)}
	if level.text == rules.StandingKnown.String() || level.text == rules.StandingTrusted.String() {
		level.look = lookGood
	}
	return level
}

func (b *builder) sources() table {
	front := []column{{title: "SOURCE"}, {title: "NAME", share: 3, tail: true}}
	if b.wide {
		front = append(front, column{title: "ORGANISATION", share: 2})
	}
	t := table{columns: b.columns(append(front, column{title: "STANDING", width: 8})...)}
	all := make([]*source, 0, len(b.data.sources))
	for _, s := range b.data.sources {
		all = append(all, s)
	}
	slices.SortFunc(all, func(x, y *source) int {
		return cmp.Or(orders[b.order].order(&x.counts, &y.counts), x.prefix.Compare(y.prefix))
	})
	for _, s := range all {
		front := []cell{{text: b.address(s.prefix)}, b.host(s)}
		if b.wide {
			front = append(front, cell{text: cmp.Or(s.org, "-")})
		}
		t.rows = append(t.rows, row{key{prefix: s.prefix}, b.row(&s.counts, append(front, b.state(s))...)})
	}
	if b.others.sessions+b.evicted > 0 {
		front := []cell{{"others", lookFaint}, {fmt.Sprintf("%d evicted", b.evicted), lookFaint}}
		if b.wide {
			front = append(front, cell{text: "-"})
		}
		t.rows = append(t.rows, row{othersKey, b.row(&b.others, append(front, cell{text: "-"})...)})
	}
	return t
}

// networks returns the totals for each IPv4 /24 and IPv6 /48.
func (b *builder) networks() table {
	t := table{columns: b.columns(column{title: "NETWORK"}, column{title: "ORGANISATION", share: 2}, column{title: "HOSTS", width: 5, right: true})}
	type network struct {
		counts
		prefix netip.Prefix
		hosts  int
	}
	byPrefix := map[netip.Prefix]*network{}
	var all []*network
	for _, s := range b.data.sources {
		length := 24
		if s.prefix.Addr().Is6() {
			length = 48
		}
		p, _ := s.prefix.Addr().Prefix(length)
		n := byPrefix[p]
		if n == nil {
			n = &network{prefix: p}
			byPrefix[p], all = n, append(all, n)
		}
		n.add(&s.counts)
		n.org = min(cmp.Or(n.org, s.org), cmp.Or(s.org, n.org)) // the result does not depend on the order of the sources
		n.hosts++
	}
	slices.SortFunc(all, func(x, y *network) int {
		return cmp.Or(orders[b.order].order(&x.counts, &y.counts), x.prefix.Compare(y.prefix))
	})
	for _, n := range all {
		t.rows = append(t.rows, row{key{prefix: n.prefix}, b.row(&n.counts, cell{text: n.prefix.String()}, cell{text: cmp.Or(n.org, "-")}, number(n.hosts))})
	}
	return t
}

// wordLooks maps kinds of events to looks.
var wordLooks = map[string]look{"ban": lookBad, "verdict": lookWarning, "unban": lookGood}

// list returns the events of l, newest first.
func (b *builder) list(l list) table {
	t := table{columns: []column{{title: "TIME", width: 8}, {title: "EVENT", width: 7}, {title: "SOURCE"}}}
	if b.wide {
		t.columns = append(t.columns, column{title: "NAME", share: 2, tail: true})
	}
	t.columns = append(t.columns, column{title: "DETAILS", share: 5})
	l = slices.Clone(l)
	slices.SortFunc(l, func(x, y entry) int { return cmp.Or(y.at.Compare(x.at), cmp.Compare(y.number, x.number)) })
	for _, e := range l {
		where := e.place
		if e.prefix.IsValid() {
			where = b.address(e.prefix)
		}
		cells := []cell{{text: e.at.In(b.zone).Format(time.TimeOnly)}, {e.word, wordLooks[e.word]}, {text: where}}
		if b.wide {
			cells = append(cells, b.host(b.data.sources[e.prefix]))
		}
		details := e.text
		if e.times > 1 {
			details += fmt.Sprintf(", %d times", e.times)
		}
		t.rows = append(t.rows, row{key{e.prefix, e.number}, append(cells, cell{text: details})})
	}
	return t
}

// banned returns the active bans, newest first.
func (b *builder) banned() table {
	t := table{columns: []column{{title: "SOURCE"}, {title: "LEFT", width: 7}, {title: "SINCE", width: 11}, {title: "NAME", share: 3, tail: true}, {title: "RULE", share: 3}}}
	for p, ban := range b.bans {
		if ban.Expired(b.now) {
			continue
		}
		rule := cell{text: shown(ban.Rule+ban.On(), 64)}
		if ban.Manual {
			rule.text = shown("operator"+ban.On()+": "+ban.Rule, 76)
		}
		if ban.Observe {
			rule = cell{"(observed) " + rule.text, lookFaint}
		}
		t.rows = append(t.rows, row{key{prefix: p}, []cell{{text: prefix.String(p)}, {text: text.ShortDuration(ban.Until.Sub(b.now))},
			{text: ban.Since.In(b.zone).Format("01-02 15:04")}, b.host(b.data.sources[p]), rule}})
	}
	slices.SortFunc(t.rows, func(x, y row) int {
		return cmp.Or(b.bans[y.key.prefix].Since.Compare(b.bans[x.key.prefix].Since), x.key.prefix.Compare(y.key.prefix))
	})
	if b.moreBans > 0 {
		t.rows = append(t.rows, row{othersKey, []cell{{"others", lookFaint}, {}, {}, {fmt.Sprintf("%d bans", b.moreBans), lookFaint}, {text: "see scanwatch bans"}}})
	}
	return t
}

// widths returns the column widths for a terminal of the given width.
func (t *table) widths(width int) []int {
	all := make([]int, len(t.columns))
	shares := 0
	width -= len(all) - 1 // spaces between columns
	for i, c := range t.columns {
		all[i] = c.width
		if shares += c.share; c.width == 0 && c.share == 0 {
			all[i] = text.Width(c.title)
			for _, r := range t.rows {
				all[i] = max(all[i], text.Width(r.cells[i].text))
			}
		}
		width -= all[i]
	}
	for i, c := range t.columns {
		if c.share > 0 {
			all[i] = max(width, 0) * c.share / shares
			width, shares = width-all[i], shares-c.share
		}
	}
	return all
}

// fit truncates or pads s to the column's width.
func (c *column) fit(s string, width int) string {
	switch w := text.Width(s); {
	case width < 1:
		return ""
	case c.right && w < width:
		return strings.Repeat(" ", width-w) + s
	case c.tail && w > width:
		s, unproven := strings.CutPrefix(s, unproven)
		mark := "…"
		if unproven {
			mark = "?…"
		}
		for r := []rune(s); ; r = r[1:] {
			if text.Width(mark+string(r)) <= width || len(r) == 0 {
				return text.Pad(mark+string(r), width)
			}
		}
	}
	return text.Pad(s, width)
}

// head returns the lines shown above the table.
func (v *View) head(width int) (lines [][]cell) {
	v.mu.Lock()
	defer v.mu.Unlock()
	d, now := v.data, v.now()
	title := []cell{{"scanwatch top", lookStrong}, {text: "  " + now.In(v.zone).Format(time.TimeOnly) + "  "}}
	switch s := v.status; {
	case s != nil:
		title = append(title, cell{text: fmt.Sprintf("mode %s, %s", cmp.Or(shown(s.Config.Mode, 16), "observe"), text.Plural(s.Config.Rules, "rule"))})
		title = append(title, cell{"  live", lookGood})
	case v.down == "":
		title = append(title, cell{"connecting", lookWarning})
	default:
		if v.mode != "" {
			title = append(title, cell{text: "mode " + v.mode + "  "})
		}
		title = append(title, cell{"not connected, only records", lookWarning})
	}
	title = append(title, cell{text: ", since " + d.since.In(v.zone).Format("15:04")})
	if v.reading && d.memory == nil {
		title = append(title, cell{"  reading the records", lookWarning})
	}
	lines = append(lines, title)
	for _, p := range v.problems() {
		for line := range strings.SplitSeq(text.Fold("PROBLEM   "+p, max(width, 20), 10), "\n") {
			lines = append(lines, []cell{{line, lookBad}})
		}
	}
	cells := 30
	if width >= 110 {
		cells = 60
	}
	line := func(name string, a *activity, more string) {
		more = fmt.Sprintf(" %d/h%s", a.hour(now), more)
		for i := len(more); i > 0 && 10+cells+len(more) > width; i = strings.LastIndexByte(more, ',') {
			more = more[:i]
		}
		lines = append(lines, []cell{{text: fmt.Sprintf("%-9s ", name)}, {a.spark(now, cells), lookGood}, {text: more}})
	}
	open, active := "", 0
	if s := v.status; s != nil {
		open = fmt.Sprintf(", %d open, %s", s.Live.Sessions, delayed(s))
	}
	for _, b := range d.bans {
		if !b.Expired(now) && !b.Observe {
			active++
		}
	}
	line("sessions", &d.sessions, open)
	line("findings", &d.findings, d.frequent())
	both := d.rejected
	both.merge(&d.observed)
	more := ", " + text.Plural(active, "ban")
	if n := d.observed.hour(now); n > 0 {
		more = fmt.Sprintf(", %d of them observed%s", n, more)
	}
	line("rejected", &both, more)
	return lines
}

// frequent lists the most frequent evidence.
func (d *data) frequent() (line string) {
	all := slices.Clone(rules.Tokens)
	slices.SortStableFunc(all, func(a, b rules.Token) int { return d.kinds[b.Evidence.Index()] - d.kinds[a.Evidence.Index()] })
	for _, t := range all[:6] {
		if n := d.kinds[t.Evidence.Index()]; n > 0 {
			line += fmt.Sprintf(", %s %d", t.Name, n)
		}
	}
	return line
}

// problems returns at most four problems, to leave room for the tables.
func (v *View) problems() (all []string) {
	if v.down != "" {
		all = append(all, v.down)
	}
	if v.missed > 0 {
		all = append(all, fmt.Sprintf("%d events are missing: too many to show", v.missed))
	}
	all = append(all, v.data.problems...)
	if v.status != nil {
		all = append(all, Problems(v.status, v.zone)...)
	}
	if len(all) > 4 {
		all = append(all[:3], fmt.Sprintf("and %d more; see scanwatch status", len(all)-3))
	}
	return all
}
