package export

import (
	"bufio"
	"encoding/csv"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"scanwatch/internal/text"
)

// AbuseIPDB accepts bulk reports. The comments in a report are public. A comment consists of a
// number and fixed sentences from this file. A comment never includes text from the network, a
// recipient, or a local name or address.

// reportAgain is the minimum interval that AbuseIPDB requires between two reports of an
// address.
const reportAgain = 15 * time.Minute

// maxReports is the maximum number of hosts in a report. AbuseIPDB rejects
// reports with more than 10,000 lines, including the heading.
const maxReports = 9_999

// reportUntil is the maximum age of a reported offence.
const reportUntil = 60 * 24 * time.Hour

// An offence maps an evidence token to AbuseIPDB categories.
type offence struct {
	evidence   string
	categories []int // 11 spam, 14 port scan, 15 hacking, 17 spoofing, 18 brute force, 20 exploited host
	words      string
	banned     bool // an offence only of banned hosts
}

// offences lists the tokens of rules.Tokens that are offences. Bad names, rejected messages and
// abandoned sessions are not offences. Account abuse is not an offence of the address. A failed
// login is an offence only if the host is banned, because a phone with an outdated password also
// causes failed logins.
var offences = []offence{
	{"scanner", []int{14}, "scans mail servers", false},
	{"botnet-helo", []int{20, 18}, "greets as a known attack tool does", false},
	{"helo-own-name", []int{17}, "greets with the name of the server that it connects to", false},
	{"helo-own-address", []int{17}, "greets with the address of the server that it connects to", false},
	{"helo-forged", []int{17}, "greets with a name that is not its own", false},
	{"talks-http", []int{14}, "speaks HTTP to a mail server", false},
	{"talks-ssh", []int{14}, "speaks SSH to a mail server", false},
	{"talks-tls", []int{14}, "speaks TLS where it was not offered", false},
	{"talks-binary", []int{14}, "sends binary data to a mail server", false},
	{"relay-probe", []int{15}, "tries to relay mail", false},
	{"harvest", []int{11, 15}, "guesses recipients", false},
	{"auth-failure", []int{18}, "fails to log in", true},
	{"auth-unsupported", []int{18}, "tries to log in where that is not offered", false},
	{"auth-spray", []int{18}, "tries passwords for many users", false},
	{"flood", []int{15}, "holds many simultaneous connections", false},
}

// offencesOf returns the categories and descriptions of e's offences.
func offencesOf(e *Entry) (categories []int, words []string) {
	return Offences(e.Evidence, e.Kind == Ban && !e.Listed)
}

// Offences returns AbuseIPDB's categories and the descriptions of the offences in the evidence
// against a host. The caller must not set banned for a ban that is based on a DNS list: the list
// may be wrong, and the host may be a phone with an outdated password.
func Offences(evidence []string, banned bool) (categories []int, words []string) {
	for i := range offences {
		o := &offences[i]
		if o.banned && !banned || !slices.Contains(evidence, o.evidence) {
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

// reportable reports whether e is a public host with an offence.
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

// abuse writes a line for each reportable host.
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
		_ = c.Write([]string{e.Host.String(), strings.Join(numbers, ","), utc(e.Last), text.Plural(e.Sessions, "SMTP session") + ": " + strings.Join(words, ", ")})
	}
	c.Flush()
}
