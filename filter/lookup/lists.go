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
	"time"

	"scanwatch/internal/hostname"
	"scanwatch/internal/prefix"
)

// The shipped lists hold facts from public sources. Each row names its source.
var (
	//go:embed intel/scanners.tsv
	scannersTSV string
	//go:embed intel/clouds.tsv
	cloudsTSV string
	//go:embed intel/botnet-helo.tsv
	botnetHeloTSV string
	//go:embed intel/known-senders.tsv
	knownSendersTSV string
)

// These are the names of the shipped lists in Row.List.
const (
	Scanners     = "scanners"      // organisations that scan the internet
	Clouds       = "clouds"        // hosting providers
	BotnetHelo   = "botnet-helo"   // greetings of bots, tools and misconfigured clients
	KnownSenders = "known-senders" // senders that are known to be legitimate, even if their name or network is suspicious
)

// The code uses the following evidence tokens. All other tokens occur only in the lists, so a list
// may use new tokens without a change to the code.
const (
	scanner    = "scanner"
	cloud      = "cloud"
	botnetHelo = "botnet-helo"
	heloForged = "helo-forged"
	relayProbe = "relay-probe"
	heloWord   = "helo-word"
)

// A Row is a fact from a shipped list.
type Row struct {
	List     string // Scanners, Clouds, BotnetHelo or KnownSenders
	Line     int    // line number; line 1 is the header
	Org      string // organisation, tool or class of clients
	Category string // commercial, academic, cloud, botnet, tester, legit-sender ...
	// Class is the kind of client that the row matches: scanner, scanner-mail (a scanning
	// organisation's mail host), verifier, tester, tool, word, example, forged, hoster, access,
	// massmailer, provider, sender, private, default or client.
	Class string
	Kind  string // cidr, asn, rdns, helo or useragent-or-command
	Value string // text to match
	// Evidence is the evidence token for clients that the row matches. If Evidence is empty, a
	// match alone proves nothing, because the row also matches legitimate hosts, or because the
	// meaning of the match depends on other facts.
	Evidence   string
	Confidence string // high, medium or low, as of Date; see ConfidenceAt
	Date       string // date of the newest source for the fact, such as 2006-01-02
	Source     string // source of the fact
	Note       string // caveat; may be empty

	expires time.Time // when the row expires; zero for never
}

// rentedDays is the lifetime in days of a row about a single rented address. Hosting providers
// often give an address to another customer within days.
const rentedDays = 90

// Rented reports whether the row is about one or two addresses in the network of a hosting
// provider. If a scanning organisation publishes a network as its own, the network is not rented.
func (r *Row) Rented() bool { return !r.expires.IsZero() }

// IsPattern reports whether the row's value is a regular expression.
func (r *Row) IsPattern() bool {
	_, pattern := rowPattern(r)
	return pattern
}

// ConfidenceAt returns the row's confidence at time t. A row about a rented address has low
// confidence after 90 days.
func (r *Row) ConfidenceAt(t time.Time) string {
	if r.Rented() && t.After(r.expires) {
		return "low"
	}
	return r.Confidence
}

// Lists holds the shipped lists. The lists and their rows are read-only.
//
// If several rows match, the best one is returned. Rows are compared by evidence, then by the
// length of the match, then by how specific they are, then by confidence. A row without evidence is
// the last choice. A row about an organisation is better than a row about a tool.
type Lists struct {
	rows     []*Row // all rows in the order of the files
	prefixes Prefixes[*Row]

	scannerASN, cloudASN           map[uint32]*Row
	scannerName, cloudName, allows greetings
	scannerHelo, botHelo           greetings
	allowHelo, words               greetings
	lines                          *Patterns[*Row]
}

// Builtin parses the shipped lists in a few milliseconds. Builtin returns an error only if the
// embedded lists are invalid.
func Builtin() (*Lists, error) {
	var rows []*Row
	for _, list := range []struct{ name, file, text string }{
		{Scanners, "scanners.tsv", scannersTSV},
		{Clouds, "clouds.tsv", cloudsTSV},
		{BotnetHelo, "botnet-helo.tsv", botnetHeloTSV},
		{KnownSenders, "known-senders.tsv", knownSendersTSV},
	} {
		more, err := parseRows(list.name, list.text)
		if err != nil {
			return nil, fmt.Errorf("%s:%w", list.file, err)
		}
		rows = append(rows, more...)
	}
	return newLists(rows)
}

// Rows returns all rows in the order of the files.
func (l *Lists) Rows() []*Row { return l.rows }

// Addr returns the row about a scanner whose prefix contains addr, or nil.
func (l *Lists) Addr(addr netip.Addr) *Row {
	row, _ := l.prefixes.Lookup(addr)
	return row
}

// ASN returns the rows about a scanner and about a hosting provider with the given AS number.
// Either may be nil.
func (l *Lists) ASN(number uint32) (scanner, cloud *Row) {
	return l.scannerASN[number], l.cloudASN[number]
}

// RDNS returns the rows that match a reverse DNS name. Each row may be nil. A match proves nothing
// unless the name passes FCrDNS, because the owner of an address can publish any name.
func (l *Lists) RDNS(name []byte) (scanner, cloud, allow *Row) {
	name = bytes.TrimSuffix(name, []byte("."))
	scanner, cloud, allow = l.scannerName.find(name), l.cloudName.find(name), l.allows.find(name)
	if l.ScannerMail(name) {
		scanner = nil
	}
	return scanner, cloud, allow
}

// ScannerMail reports whether name is the name of a scanning organisation's mail host. Such a host
// sends the organisation's mail, for example reports about scans.
func (l *Lists) ScannerMail(name []byte) bool {
	row := l.scannerName.find(bytes.TrimSuffix(name, []byte(".")))
	return row != nil && (row.Class == "scanner-mail" || row.Class == "scanner" && hostname.ForMail(name))
}

// Word returns the row about a greeting that many computers use, or nil. A greeting of this kind is
// a popular name, the default name of a system, or a name reserved for examples. The greeting shows
// that the client's name was never configured, which is also true of some legitimate clients.
func (l *Lists) Word(name []byte) *Row {
	return l.words.find(bytes.TrimSuffix(name, []byte(".")))
}

// Helo returns the rows that match a greeting. bot is a row about a bot, a misconfigured client or
// a forged name. scanner is a row about an organisation or tool that tests servers. allow is a row
// about a known sender. Each row may be nil.
//
// A client can greet with any name. The row allow therefore rules out only the evidence that the
// client is a rented host. If the name is forged, allow is nil.
//
// The name of a tool also matches with a private suffix, such as .local, which the tool's computer
// may have added.
//
// If the client has sent a greeting without a name, name is empty. Helo must not be called for a
// client that has not sent HELO or EHLO.
func (l *Lists) Helo(name []byte) (bot, scanner, allow *Row) {
	name = bytes.TrimSuffix(name, []byte("."))
	bot = l.botHelo.find(name)
	if scanner = l.scannerHelo.find(name); scanner != nil && l.ScannerMail(name) {
		scanner = nil
	}
	if computer := withoutPrivateSuffix(name); computer != nil {
		bot, scanner = l.botHelo.tool(computer, bot), l.scannerHelo.tool(computer, scanner)
	}
	allow = l.allowHelo.find(name)
	if bot != nil && bot.Evidence == heloForged {
		// .google.com is a legitimate greeting, but google.com alone is not.
		allow = nil
	}
	return bot, scanner, allow
}

// privateSuffixes lists the endings that systems append to the name of a computer without a domain.
var privateSuffixes = [...]string{".local", ".lan", ".localdomain", ".home", ".internal"}

// PrivateName reports whether a greeting is a computer's name with a private suffix, such as .local.
func PrivateName(name []byte) bool {
	return withoutPrivateSuffix(bytes.TrimSuffix(name, []byte("."))) != nil
}

// withoutPrivateSuffix returns a computer's name without its private suffix, or nil if the name has
// no such suffix or more than two labels.
func withoutPrivateSuffix(name []byte) []byte {
	i := bytes.IndexByte(name, '.')
	if i <= 0 || !slices.ContainsFunc(privateSuffixes[:], func(s string) bool { return strings.EqualFold(s, string(name[i:])) }) {
		return nil
	}
	return name[:i]
}

// Line returns the row that matches a line from a client, or nil. A row without evidence only
// describes the line.
func (l *Lists) Line(line []byte) *Row {
	row, _ := l.lines.Match(bytes.TrimLeft(line, " \t"))
	return row
}

// greetings holds the rows for one result of Lists.Helo, Lists.RDNS or Lists.Word.
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

// tool returns the row about a tool with exactly the given name, or otherwise the row found so far.
func (g *greetings) tool(name []byte, found *Row) *Row {
	if found != nil && strength(found) == strongest {
		return found
	}
	if row, _ := g.names.LookupBytes(name); row != nil && row.Class == "tool" && strength(row) == strongest {
		return row
	}
	return found
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
	namePatterns := make(map[*greetings][]Pattern[*Row])
	for _, row := range ordered {
		var err error
		switch row.Kind {
		case "cidr":
			err = l.addPrefix(row)
		case "asn":
			err = l.addASN(row)
		case "rdns", "helo":
			var to *greetings
			if to, err = l.namesFor(row); err != nil {
				break
			}
			if expr, ok := rowPattern(row); ok {
				namePatterns[to] = append(namePatterns[to], Pattern[*Row]{Expr: "(?i)" + expr, Value: row})
			} else {
				err = to.names.Add(row.Value, row)
			}
		case "useragent-or-command":
			expr, ok := rowPattern(row)
			if !ok {
				err = errors.New("a useragent-or-command must be a pattern between slashes")
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
	for to, list := range namePatterns {
		if to.patterns, err = NewPatterns(list); err != nil {
			return nil, fmt.Errorf("names of the lists: %w", err)
		}
	}
	for _, row := range rows {
		l.age(row)
	}
	if l.lines, err = NewPatterns(lines); err != nil {
		return nil, fmt.Errorf("lines of the lists: %w", err)
	}
	return l, nil
}

// rowPattern returns the regular expression if the row's value is one between slashes.
func rowPattern(row *Row) (expr string, ok bool) {
	expr, ok = strings.CutPrefix(row.Value, "/")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(expr, "/")
}

func (l *Lists) addPrefix(row *Row) error {
	p, _, err := prefix.Parse(row.Value)
	if err != nil {
		return err
	}
	if row.List != Scanners {
		return fmt.Errorf("only the list %s may contain prefixes", Scanners)
	}
	l.prefixes.Add(p, row)
	return nil
}

func (l *Lists) addASN(row *Row) error {
	tables := map[string]map[uint32]*Row{Scanners: l.scannerASN, Clouds: l.cloudASN}
	table, ok := tables[row.List]
	if !ok {
		return fmt.Errorf("only the lists %s and %s may contain AS numbers", Scanners, Clouds)
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

// age fills in row.expires, the time at which a row about a rented address expires.
func (l *Lists) age(row *Row) {
	if row.Kind != "cidr" {
		return
	}
	p, _, err := prefix.Parse(row.Value)
	if err != nil || p.Bits() < p.Addr().BitLen()-1 {
		return
	}
	if number, ok := ShippedASN(p.Addr()); ok && l.cloudASN[number] != nil {
		date, _ := time.Parse(time.DateOnly, row.Date) // parseRows has validated the date
		row.expires = date.AddDate(0, 0, rentedDays)
	}
}

// namesFor returns the table that must contain a row of kind rdns or helo.
func (l *Lists) namesFor(row *Row) (*greetings, error) {
	if row.Kind == "rdns" {
		tables := map[string]*greetings{Scanners: &l.scannerName, Clouds: &l.cloudName, KnownSenders: &l.allows}
		if table, ok := tables[row.List]; ok {
			return table, nil
		}
		return nil, fmt.Errorf("only the lists %s, %s and %s may contain names", Scanners, Clouds, KnownSenders)
	}
	switch {
	case row.List == KnownSenders:
		return &l.allowHelo, nil
	case row.Evidence == scanner:
		return &l.scannerHelo, nil
	case row.Evidence == heloWord:
		return &l.words, nil
	}
	return &l.botHelo, nil
}

// compareRows compares two rows. The better row comes first.
func compareRows(a, b *Row) int {
	return cmp.Or(
		cmp.Compare(strength(a), strength(b)),
		cmp.Compare(generality(a), generality(b)),
		cmp.Compare(confidences[b.Confidence], confidences[a.Confidence]),
		// A name may be in two lists. The row with the main evidence of its list comes first,
		// because its text describes the name better.
		cmp.Compare(foreign(a), foreign(b)),
	)
}

var confidences = map[string]int{"low": 1, "medium": 2, "high": 3}

const strongest = 0

// strength ranks rows by evidence. Evidence about the identity of a client comes first, then
// evidence about the form of its commands. Rows without evidence come last.
func strength(row *Row) int {
	switch {
	case row.Evidence == "":
		return strongest + 2
	case row.Evidence == relayProbe, strings.HasPrefix(row.Evidence, "helo-"), strings.HasPrefix(row.Evidence, "talks-"):
		return strongest + 1
	}
	return strongest
}

// generality ranks rows about organisations before rows about widely used tools.
func generality(row *Row) int {
	switch row.Category {
	case "unknown", "scanner-tool":
		return 1
	}
	return 0
}

// subjects maps each list to its main evidence token.
var subjects = map[string]string{Scanners: scanner, Clouds: cloud, BotnetHelo: botnetHelo}

// foreign ranks rows with the main evidence of their list before other rows.
func foreign(row *Row) int {
	if row.Evidence != subjects[row.List] {
		return 1
	}
	return 0
}

// parseRows parses a list with a header line and ten tab-separated, unquoted columns.
func parseRows(list, text string) ([]*Row, error) {
	const header = "org\tcategory\tclass\tkind\tvalue\tevidence\tconfidence\tdate\tsource\tnote"
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
			&row.Org, &row.Category, &row.Class, &row.Kind, &row.Value, &row.Evidence, &row.Confidence, &row.Date, &row.Source, &row.Note,
		}
		if n := strings.Count(line, "\t") + 1; n != len(columns) {
			return nil, fmt.Errorf("%d: %d columns instead of %d", number, n, len(columns))
		}
		for _, column := range columns {
			*column, line, _ = strings.Cut(line, "\t")
		}
		if confidences[row.Confidence] == 0 {
			return nil, fmt.Errorf("%d: confidence %q is not high, medium or low", number, row.Confidence)
		}
		if _, err := time.Parse(time.DateOnly, row.Date); err != nil {
			return nil, fmt.Errorf("%d: %w", number, err)
		}
		rows = append(rows, row)
		pointers = append(pointers, &rows[len(rows)-1])
	}
	return pointers, nil
}
