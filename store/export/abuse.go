package export

import (
	"bufio"
	"encoding/csv"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The bulk report of AbuseIPDB. Its comments go to the public: they are put
// together from the sentences below and a number, and hold nothing that came
// over the network. So there are no recipients, and neither names nor addresses
// of ours in them.

// reportAgain is how long AbuseIPDB wants no second report of an address.
const reportAgain = 15 * time.Minute

// mostReports is how many hosts one report may be about: it has 10,000 lines, with
// the heading, or is refused whole.
const mostReports = 9_999

// reportUntil is how old what is reported may be.
const reportUntil = 60 * 24 * time.Hour

// An offence is a kind of evidence as AbuseIPDB has it.
type offence struct {
	evidence   string
	categories []int  // 11 spam, 14 port scan, 15 hacking, 17 spoofing, 18 brute force, 20 exploited host
	words      string // nothing: it is no offence alone
	banned     bool   // it is one only of who is banned
}

// offences holds every token of rules.Tokens. A host without a name, or with a
// bad one, is no abuser, and neither is one who was refused, or left. Nor is the
// telephone with an old password, unless a rule or the operator has had enough.
var offences = []offence{
	{"scanner", []int{14}, "scans mail servers", false},
	{"cloud", nil, "", false},
	{"botnet-helo", []int{20, 18}, "greets as a known attack tool does", false},
	{"helo-missing", nil, "", false},
	{"helo-unqualified", nil, "", false},
	{"helo-bare-address", nil, "", false},
	{"helo-own-name", []int{17}, "greets with the name of the server it talks to", false},
	{"helo-own-address", []int{17}, "greets with the address of the server it talks to", false},
	{"helo-forged", []int{17}, "greets with a name that is not its own", false},
	{"helo-localhost", nil, "", false},
	{"helo-invalid", nil, "", false},
	{"helo-changed", nil, "", false},
	{"rdns-missing", nil, "", false},
	{"fcrdns-fail", nil, "", false},
	{"talks-http", []int{14}, "speaks HTTP to a mail server", false},
	{"talks-ssh", []int{14}, "speaks SSH to a mail server", false},
	{"talks-tls", []int{14}, "speaks TLS where it was not offered", false},
	{"talks-binary", []int{14}, "sends binary data to a mail server", false},
	{"unknown-command", nil, "", false},
	{"syntax-error", nil, "", false},
	{"pipelining", nil, "", false},
	{"early-talker", nil, "", false},
	{"relay-probe", []int{15}, "tries to relay mail", false},
	{"unknown-recipient", nil, "", false},
	{"harvest", []int{11, 15}, "guesses recipients", false},
	{"probed-recipient", nil, "", false},
	{"auth-failure", []int{18}, "fails to log in", true},
	{"auth-unsupported", []int{18}, "tries to log in where that is not offered", false},
	{"auth-spray", []int{18}, "tries passwords for many users", false},
	{"no-mail", nil, "", false},
	{"abandoned", nil, "", false},
	{"flood", []int{15}, "holds many connections at once", false},
	{"campaign", nil, "", false},
}

// offencesOf lists what e is reported for.
func offencesOf(e *Entry) (categories []int, words []string) {
	for i := range offences {
		o := &offences[i]
		if o.words == "" || o.banned && e.Kind != Ban || !slices.Contains(e.Evidence, o.evidence) {
			continue
		}
		words = append(words, o.words)
		for _, c := range o.categories {
			if !slices.Contains(categories, c) {
				categories = append(categories, c)
			}
		}
	}
	return categories, words
}

// reportable tells whether e is a host of the internet that was seen to do something AbuseIPDB
// has a category for.
func reportable(e *Entry) bool {
	_, words := offencesOf(e)
	source := netip.PrefixFrom(e.Prefix.Addr(), 32)
	if e.Prefix.Addr().Is6() {
		source = netip.PrefixFrom(e.Prefix.Addr(), 64)
	}
	public := e.Host.IsGlobalUnicast() && !e.Host.IsPrivate()
	return len(words) > 0 && e.Prefix == source && public && !e.Last.IsZero()
}

func writeAbuse(w *bufio.Writer, l *List) { abuse(w, l.Entries, l.Made) }

func changeAbuse(w *bufio.Writer, c *Changes) { abuse(w, c.Add, c.Made) }

// abuse writes one line a host.
func abuse(w *bufio.Writer, entries []Entry, made time.Time) {
	c := csv.NewWriter(w)
	_ = c.Write([]string{"IP", "Categories", "ReportDate", "Comment"})
	for i := range entries {
		e := &entries[i]
		if made.Sub(e.Last) > reportUntil {
			continue
		}
		categories, words := offencesOf(e)
		numbers := make([]string, len(categories))
		for j, n := range categories {
			numbers[j] = strconv.Itoa(n)
		}
		sessions := " SMTP sessions: "
		if e.Sessions == 1 {
			sessions = " SMTP session: "
		}
		_ = c.Write([]string{e.Host.String(), strings.Join(numbers, ","), utc(e.Last), strconv.Itoa(e.Sessions) + sessions + strings.Join(words, ", ")})
	}
	c.Flush()
}
