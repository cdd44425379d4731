package lookup

import (
	"bytes"
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// The shipped lists: facts gathered from public sources, which every row names.
var (
	//go:embed intel/scanners.tsv
	scannersTSV string
	//go:embed intel/clouds.tsv
	cloudsTSV string
	//go:embed intel/botnet-helo.tsv
	botnetHeloTSV string
	//go:embed intel/allow-examples.tsv
	allowTSV string
)

// The names of the shipped lists, as in Row.List.
const (
	Scanners   = "scanners"    // who scans the internet
	Clouds     = "clouds"      // who rents out hosts
	BotnetHelo = "botnet-helo" // what bots, tools and broken clients say
	Allow      = "allow"       // who sends honest mail from places that look bad
)

// A Row is one fact of a shipped list.
type Row struct {
	List       string // Scanners, Clouds, BotnetHelo or Allow
	Line       int    // in the list, from 1, the header line included
	Org        string // the organisation, tool or kind of client
	Category   string // commercial, academic, cloud, botnet, tester, legit-sender ...
	Kind       string // cidr, asn, rdns, helo or useragent-or-command
	Value      string // what is matched
	Confidence string // high, medium or low
	Source     string // who says so
	Note       string // what to mind; may be empty

	// Evidence is the token of the evidence that a match is. It is empty where a
	// match proves nothing by itself: honest hosts match as well, or whether it
	// means anything depends on more than the text.
	Evidence string
}

// Lists are the shipped lists, ready to be asked. They do not change; any
// number of goroutines may ask. Rows are shared: do not write to them.
//
// Where rows overlap, the most telling one answers: evidence before none, the
// longest match, the better confidence, the named organisation before the
// general rule.
type Lists struct {
	rows     []*Row // in the order of the files
	prefixes Prefixes[*Row]

	scannerASN, cloudASN           map[uint32]*Row
	scannerName, cloudName, allows Names[*Row]
	scannerHelo, botHelo           greetings
	allowHelo                      greetings
	lines                          *Patterns[*Row]
}

// Builtin reads the shipped lists. It takes a few milliseconds; an error means
// that the program was built from broken lists.
func Builtin() (*Lists, error) {
	var rows []*Row
	for _, list := range []struct{ name, file, text string }{
		{Scanners, "scanners.tsv", scannersTSV},
		{Clouds, "clouds.tsv", cloudsTSV},
		{BotnetHelo, "botnet-helo.tsv", botnetHeloTSV},
		{Allow, "allow-examples.tsv", allowTSV},
	} {
		more, err := parseRows(list.name, list.text)
		if err != nil {
			return nil, fmt.Errorf("%s:%w", list.file, err)
		}
		rows = append(rows, more...)
	}
	return newLists(rows)
}

// Rows returns every row, in the order of the files.
func (l *Lists) Rows() []*Row { return l.rows }

// Addr finds the scanner whose prefix covers addr, or nil.
func (l *Lists) Addr(addr netip.Addr) *Row {
	row, _ := l.prefixes.Lookup(addr)
	return row
}

// ASN finds whose an autonomous system is: a scanner's, a cloud's, or neither.
func (l *Lists) ASN(number uint32) (scanner, cloud *Row) {
	return l.scannerASN[number], l.cloudASN[number]
}

// RDNS finds whose a host is by its name. The three answers are independent and
// each is nil when nothing is known. The name proves nothing until it is
// confirmed by a forward lookup: anybody can give his address any name.
func (l *Lists) RDNS(name []byte) (scanner, cloud, allow *Row) {
	scanner, _ = l.scannerName.LookupBytes(name)
	cloud, _ = l.cloudName.LookupBytes(name)
	allow, _ = l.allows.LookupBytes(name)
	return scanner, cloud, allow
}

// Helo finds what a greeting betrays. bot is the row of a bot, of a broken
// client or of a forged name; scanner that of an organisation or tool that
// tests others; allow that of an honest sender behind a cloud's name. The
// answers are independent, each is nil when nothing is known, and anybody can
// greet with any name: allow excuses a cloud, and nothing else. A forged name is
// never allowed.
//
// An empty name is a greeting without one; do not ask when there was none.
func (l *Lists) Helo(name []byte) (bot, scanner, allow *Row) {
	name = bytes.TrimSuffix(name, []byte("."))
	bot = l.botHelo.find(name)
	scanner = l.scannerHelo.find(name)
	allow = l.allowHelo.find(name)
	if bot != nil && bot.Evidence == heloForged {
		// .google.com is an honest greeting, google.com alone is not.
		allow = nil
	}
	return bot, scanner, allow
}

// Line finds what one line sent by a client betrays, or nil. A row without
// evidence (Row.Evidence) is no more than a remark.
func (l *Lists) Line(line []byte) *Row {
	row, _ := l.lines.Match(bytes.TrimLeft(line, " \t"))
	return row
}

// greetings are the rows of kind helo that answer one question.
type greetings struct {
	names    Names[*Row]
	patterns *Patterns[*Row]
}

func (g *greetings) find(name []byte) *Row {
	named, _ := g.names.LookupBytes(name)
	if named != nil && strength(named) == strongest {
		return named
	}
	matched, _ := g.patterns.Match(name)
	if named == nil || matched != nil && strength(matched) < strength(named) {
		return matched
	}
	return named
}

func newLists(rows []*Row) (*Lists, error) {
	l := &Lists{
		rows:       rows,
		scannerASN: make(map[uint32]*Row),
		cloudASN:   make(map[uint32]*Row),
	}
	ordered := slices.Clone(rows)
	slices.SortStableFunc(ordered, compareRows)

	var lines []Pattern[*Row]
	heloPatterns := make(map[*greetings][]Pattern[*Row])
	for _, row := range ordered {
		var err error
		switch row.Kind {
		case "cidr":
			err = l.addPrefix(row)
		case "asn":
			err = l.addASN(row)
		case "rdns":
			err = l.addName(row)
		case "helo":
			to := l.greetingsFor(row)
			if expr, ok := rowPattern(row); ok {
				heloPatterns[to] = append(heloPatterns[to], Pattern[*Row]{Expr: "(?i)" + expr, Value: row})
			} else {
				err = to.names.Add(row.Value, row)
			}
		case "useragent-or-command":
			expr, ok := rowPattern(row)
			if !ok {
				err = errors.New("a useragent-or-command is to be a pattern between slashes")
			}
			lines = append(lines, Pattern[*Row]{Expr: expr, Value: row})
		default:
			err = fmt.Errorf("unknown kind %q", row.Kind)
		}
		if err != nil {
			return nil, fmt.Errorf("list %s, line %d: %w", row.List, row.Line, err)
		}
	}

	var err error
	for to, list := range heloPatterns {
		if to.patterns, err = NewPatterns(list); err != nil {
			return nil, fmt.Errorf("greetings of the lists: %w", err)
		}
	}
	if l.lines, err = NewPatterns(lines); err != nil {
		return nil, fmt.Errorf("lines of the lists: %w", err)
	}
	return l, nil
}

// rowPattern returns the expression of a value in slashes.
func rowPattern(row *Row) (expr string, ok bool) {
	expr, ok = strings.CutPrefix(row.Value, "/")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(expr, "/")
}

func (l *Lists) addPrefix(row *Row) error {
	prefix, err := netip.ParsePrefix(row.Value)
	if err != nil {
		return err
	}
	if row.List != Scanners {
		return fmt.Errorf("prefixes are for the list %s", Scanners)
	}
	l.prefixes.Add(prefix, row)
	return nil
}

func (l *Lists) addASN(row *Row) error {
	tables := map[string]map[uint32]*Row{Scanners: l.scannerASN, Clouds: l.cloudASN}
	table, ok := tables[row.List]
	if !ok {
		return fmt.Errorf("AS numbers are for the lists %s and %s", Scanners, Clouds)
	}
	digits, _ := strings.CutPrefix(row.Value, "AS")
	number, err := strconv.ParseUint(digits, 10, 32)
	if err != nil {
		return fmt.Errorf("AS number %q: %w", row.Value, err)
	}
	if _, there := table[uint32(number)]; !there {
		table[uint32(number)] = row
	}
	return nil
}

func (l *Lists) addName(row *Row) error {
	tables := map[string]*Names[*Row]{Scanners: &l.scannerName, Clouds: &l.cloudName, Allow: &l.allows}
	table, ok := tables[row.List]
	if !ok {
		return fmt.Errorf("names are for the lists %s, %s and %s", Scanners, Clouds, Allow)
	}
	return table.Add(row.Value, row)
}

func (l *Lists) greetingsFor(row *Row) *greetings {
	switch {
	case row.List == Allow:
		return &l.allowHelo
	case row.Evidence == scanner:
		return &l.scannerHelo
	}
	return &l.botHelo
}

// compareRows puts the more telling row first: the one that is to answer where
// two match alike.
func compareRows(a, b *Row) int {
	return cmp.Or(
		cmp.Compare(strength(a), strength(b)),
		cmp.Compare(generality(a), generality(b)),
		cmp.Compare(confidences[b.Confidence], confidences[a.Confidence]),
		// Of equal rows the list made for the subject has the better name for it.
		cmp.Compare(abroad(a), abroad(b)),
	)
}

var confidences = map[string]int{"low": 1, "medium": 2, "high": 3}

const strongest = 0

// strength orders what a match proves: who it is, what he does, nothing.
func strength(row *Row) int {
	switch row.Evidence {
	case "":
		return strongest + 2
	case scanner, cloud, botnetHelo:
		return strongest
	}
	return strongest + 1
}

// generality orders who is meant: an organisation before a tool that many use.
func generality(row *Row) int {
	switch row.Category {
	case "unknown", "scanner-tool":
		return 1
	}
	return 0
}

func abroad(row *Row) int {
	if row.Evidence != listEvidence[row.List] {
		return 1
	}
	return 0
}

// parseRows reads a list: a header line, then seven columns divided by tabs,
// without quoting.
func parseRows(list, text string) ([]*Row, error) {
	const header = "org\tcategory\tkind\tvalue\tconfidence\tsource\tnote"
	first, text, _ := strings.Cut(text, "\n")
	if first != header {
		return nil, fmt.Errorf("1: the header is not %q", header)
	}
	rows := make([]Row, 0, strings.Count(text, "\n")+1)
	pointers := make([]*Row, 0, cap(rows))
	for number := 2; text != ""; number++ {
		var line string
		line, text, _ = strings.Cut(text, "\n")
		row := Row{List: list, Line: number}
		columns := []*string{
			&row.Org, &row.Category, &row.Kind, &row.Value, &row.Confidence, &row.Source, &row.Note,
		}
		if n := strings.Count(line, "\t") + 1; n != len(columns) {
			return nil, fmt.Errorf("%d: %d columns instead of %d", number, n, len(columns))
		}
		for _, column := range columns {
			*column, line, _ = strings.Cut(line, "\t")
		}
		if confidences[row.Confidence] == 0 {
			return nil, fmt.Errorf("%d: confidence %q is none of high, medium and low", number, row.Confidence)
		}
		row.Evidence = evidenceOf(&row)
		rows = append(rows, row)
		pointers = append(pointers, &rows[len(rows)-1])
	}
	return pointers, nil
}
