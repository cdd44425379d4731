// Package report renders recorded sessions as transcripts, JSON and CSV (View), and as
// summaries in text, HTML, JSON and metrics. The package does not open files: the
// caller provides the records and an io.Writer.
//
// Text from the network is hostile. Only the types View, Summary and Page are rendered,
// and they contain only text that has passed text.Escape.
//
// The page draws its own charts. The maintained chart libraries for Go (gonum/plot,
// go-analyze/charts) write SVG with fixed sizes and colours. Such charts do not fit on a phone,
// ignore the reader's colour scheme, and lack a title and description for screen readers.
// gosvgchart follows the colour scheme, but scales text with the width, and no other module imports
// it.
package report

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"scanwatch/internal/text"
	"scanwatch/store"
)

// Totals holds the totals for one class of sessions.
type Totals struct {
	Sessions int `json:"sessions"`
	Found    int `json:"found,omitempty"`   // sessions with a finding
	Refused  int `json:"refused,omitempty"` // sessions rejected by a rule or a ban
	// Observed is the number of additional sessions that a rule or a ban would have
	// rejected. For aggregates, Observed is a lower bound.
	Observed     int `json:"observed,omitempty"`
	Mails        int `json:"messages"`
	RcptOK       int `json:"rcpt_ok"`
	RcptPermfail int `json:"rcpt_permfail"`
	RcptTempfail int `json:"rcpt_tempfail"`
	AuthFail     int `json:"auth_fail"`
	AuthRefused  int `json:"auth_refused"`
}

func (t *Totals) add(r *store.Record) {
	c := &r.Counts
	t.Sessions += r.Many()
	t.Mails += int(c.Mails)
	t.RcptOK += int(c.RcptOK)
	t.RcptPermfail += int(c.RcptPermfail)
	t.RcptTempfail += int(c.RcptTempfail)
	t.AuthFail += int(c.AuthFail)
	t.AuthRefused += int(c.AuthRefused)
}

// A Summary is the report on a period. All text is printable. Lists are in descending
// order and may be truncated.
type Summary struct {
	// Command is the start of commands in text: scanwatch, and options if needed. If Command is empty,
	// it is scanwatch.
	Command string `json:"-"`

	Schema    int      `json:"schema"` // text.Schema
	Since     Time     `json:"since"`
	Until     Time     `json:"until"`
	Mode      string   `json:"mode,omitempty"`   // current mode: observe or enforce
	Policy    string   `json:"policy,omitempty"` // description of the current configuration
	Problems  []string `json:"problems"`
	Remote    Totals   `json:"remote"`    // unauthenticated clients; the lists contain only these
	Addresses int      `json:"addresses"` // number of addresses; all addresses of an IPv6 /64 count as one
	// AddressesError is the maximum error of Addresses in percent, with a probability
	// of 98 %. If the number is exact, AddressesError is 0.
	AddressesError int              `json:"addresses_error,omitempty"`
	Authenticated  Totals           `json:"authenticated"`
	Local          Totals           `json:"local"`
	Aggregated     int              `json:"aggregated"`          // sessions in aggregates
	Erased         int              `json:"erased,omitempty"`    // sessions whose address the operator has removed
	Unwritten      int              `json:"unwritten,omitempty"` // sessions in aggregates that the filter has not written yet
	NotKept        NotKept          `json:"not_kept"`
	Suspects       []SuspectRefusal `json:"possible_false_positives"` // rejections that may have affected legitimate mail
	SuspectHosts   SuspectHosts     `json:"possible_false_positive_hosts"`
	Timeline       []Span           `json:"timeline"`
	Hours          *Hours           `json:"-"` // nil if there are no sessions
	Rules          []Rule           `json:"rules"`
	Evidence       []Name           `json:"evidence"`
	Organisations  []Name           `json:"organisations"`
	Networks       []Network        `json:"networks"`
	Sources        []Source         `json:"sources"`
	Scanning       []Source         `json:"scanning"`   // sources with findings and without legitimate mail, the worst evidence first
	GoodMail       []Source         `json:"good_mail"`  // sources with accepted mail and without evidence of an attack
	Rejections     []Rejection      `json:"rejections"` // the latest ones
	ASNumbers      []Region         `json:"as_numbers,omitempty"`
	Countries      []Region         `json:"countries,omitempty"`
	Helo           []Name           `json:"helo"`
	Harvest        []Attempt        `json:"harvest"`
	Relay          []Attempt        `json:"relay"`
	Auth           []Source         `json:"auth"`
	Attacked       []AttackedUser   `json:"attacked_accounts"`
	More           map[string]int   `json:"more"`       // number of omitted lines by list
	NotListed      map[string]int   `json:"not_listed"` // items over the memory limits, which only the totals include
}

// NotKept counts the sessions on the report's days (UTC) whose records were removed or
// lost. The first day is ignored unless the period starts at midnight.
type NotKept struct {
	Sessions int `json:"sessions"`
	Mails    int `json:"messages"`
	Days     int `json:"days"` // number of days with such sessions
}

// A DayCount counts all sessions of a day, recorded or not.
type DayCount struct {
	Day             time.Time
	Sessions, Mails int
}

// Compare counts the sessions that have no record. Days before since are ignored. unwritten is the
// number of the last day's sessions that the filter has yet to write.
func (c *Collector) Compare(days []DayCount, since time.Time, unwritten int) (n NotKept) {
	for i, d := range days {
		if d.Day.Before(since) || !c.daysUntil.IsZero() && d.Day.After(c.daysUntil) { // outside the period, or the clock was wrong
			continue
		}
		kept := c.days.get(d.Day)
		if i == len(days)-1 {
			kept.Sessions += unwritten
		}
		if d.Sessions > kept.Sessions {
			n.Days++
			n.Sessions += d.Sessions - kept.Sessions
			n.Mails += max(d.Mails-kept.Mails, 0)
		}
	}
	return n
}

// A Rule counts the sessions in which a rule took effect. Sessions of banned clients
// count towards the rule that imposed the ban.
type Rule struct {
	Rule     string `json:"rule"`
	Enforced int    `json:"enforced"` // decisions in enforce mode
	Observed int    `json:"observed"` // decisions and bans in observe mode
	Bans     int    `json:"bans"`
	Exempt   int    `json:"exempt"` // bans and decisions that were withheld from exempt hosts
}

// A Name counts the sessions with a name, such as a greeting or an evidence token.
type Name struct {
	Name     string `json:"name"`
	Sessions int    `json:"sessions"`
	Evidence string `json:"evidence,omitempty"` // for an organisation: the evidence that first identified it
}

// A Source counts a source's sessions.
type Source struct {
	Address      string `json:"address"` // an address, or the /64 of several IPv6 addresses
	RDNS         string `json:"rdns,omitempty"`
	Organisation string `json:"organisation,omitempty"`
	Evidence     string `json:"evidence,omitempty"` // the source's worst evidence
	Logins       int    `json:"logins,omitempty"`   // sessions with a login, which are not in the other numbers
	Last         Time   `json:"last"`               // end of the last session
	Banned       Time   `json:"banned_until,omitzero"`
	Named        bool   `json:"-"` // an IPv6 host with a proven name
	Totals
}

// An Attempt counts a source's rejected recipients.
type Attempt struct {
	Address  string   `json:"address"` // address or /64, as in Source
	RDNS     string   `json:"rdns,omitempty"`
	Sessions int      `json:"sessions"` // an upper bound: a session may count for several domains
	Refused  int      `json:"refused"`
	Domains  []string `json:"domains"` // the first few
	domains  int
}

// Summary returns the report. The list of evidence is complete. top limits the length of each other
// list.
func (c *Collector) Summary(since, until time.Time, top int, problems []string) *Summary {
	s := &Summary{
		Schema: text.Schema,
		Since:  text.At(since), Until: text.At(until), Problems: append([]string{}, problems...),
		Remote: c.remote, Authenticated: c.authenticated, Local: c.local, Aggregated: c.aggregated, Erased: c.erased,
		More: map[string]int{}, NotListed: c.dropped, Timeline: c.timeline(since, until),
	}
	s.Evidence = s.sessionsOf("evidence", &c.evidence, len(c.evidence.list), nil)
	s.Organisations = s.sessionsOf("organisations", &c.orgs, top, &c.evidence)
	l := c.lists
	if l == nil {
		return s
	}
	clients := c.clients()
	s.Addresses, s.AddressesError = clients.count()
	s.Addresses = min(s.Addresses, c.remote.Sessions)
	more := map[string]int{}
	s.Suspects, more["possible_false_positives"], s.SuspectHosts = l.listSuspects(top)
	s.Networks, more["networks"] = clients.networks(top)
	s.Helo = s.sessionsOf("helo", &l.helo, top, nil)
	s.Rules, more["rules"] = l.rules.list(top)
	s.Sources, more["sources"] = clients.list(top, func(s *source) (int, int) { return int(s.sessions), int(s.found) })
	s.Scanning, more["scanning"] = clients.list(top, func(s *source) (int, int) {
		if s.good() {
			return 0, 0
		}
		return int(s.worst.rank), int(s.found)
	})
	s.GoodMail, more["good_mail"] = clients.list(top, func(s *source) (int, int) {
		if !s.good() {
			return 0, 0
		}
		return int(s.mails), int(s.sessions)
	})
	s.Rejections, more["rejections"] = l.latest.list(top)
	s.ASNumbers, s.Countries = regions(clients, c.locate, top, more)
	s.Hours = hours(c.quarters.all, since, until)
	s.Auth, more["auth"] = clients.list(top, func(s *source) (int, int) { return int(s.authFail) + int(s.authRefused), 0 })
	var further [2]int
	s.Harvest, s.Relay, further = l.attempts.list(top, clients)
	more["harvest"], more["relay"] = further[0], further[1]
	users := l.users.Summary(since, until, top, nil)
	s.Attacked, more["attacked_accounts"] = users.Attacked, users.More["attacked"]
	for list, n := range more {
		s.more(list, n)
	}
	return s
}

// sessionsOf returns the names in descending order of their sessions. top limits the length of the
// list. If n holds organisations, evidence holds the evidence tokens; otherwise, evidence is nil.
func (s *Summary) sessionsOf(list string, n *names, top int, evidence *names) []Name {
	order := make([]uint32, len(n.list))
	for i := range order {
		order[i] = uint32(i)
	}
	order, more := first(order, top, func(x, y uint32) int {
		a, b := &n.list[x], &n.list[y]
		return cmp.Or(cmp.Compare(b.sessions, a.sessions), bytes.Compare(n.text(int(x)), n.text(int(y))))
	})
	s.more(list, more)
	all := []Name{}
	for _, i := range order {
		e := &n.list[i]
		one := Name{Name: text.Escape(n.text(int(i))), Sessions: int(e.sessions)}
		if evidence != nil && e.extra > 0 {
			one.Evidence = text.Escape(evidence.text(int(e.extra - 1)))
		}
		all = append(all, one)
	}
	return all
}

func (s *Summary) more(list string, n int) {
	if n > 0 {
		s.More[list] = n
	}
}

// JSON writes the summary as a JSON object.
func (s *Summary) JSON(w io.Writer) error {
	return text.JSON(w, s, "  ")
}

// addressCount returns the number of addresses as text, or exact if the
// number is exact.
func (s *Summary) addressCount(exact string) string {
	if s.AddressesError == 0 {
		return exact
	}
	return fmt.Sprintf("about %s addresses (within %d %%)", text.Thousands(s.about()), s.AddressesError)
}

// about returns the number of addresses, rounded to three digits.
func (s *Summary) about() int {
	unit := 1
	for n := s.Addresses; n >= 1000; n /= 10 {
		unit *= 10
	}
	return (s.Addresses + unit/2) / unit * unit
}

// The following texts explain two of the report's lists.
const (
	harvestText = "Hosts with %d or more unknown recipients in one session, or %d without accepted mail, in domains with recipients accepted from other hosts."
	relayText   = "Rejected recipients in domains without a recipient accepted from other hosts. The owners of these addresses are victims, not culprits."
)

// notes returns sentences about sessions that have no separate record.
func (s *Summary) notes() (all []string) {
	if s.Aggregated > 0 {
		all = append(all, text.Plural(s.Aggregated, "session of a flood is", "sessions of floods are")+" in aggregates, with exact counts.")
	}
	if s.Erased > 0 {
		all = append(all, text.Plural(s.Erased, "session is", "sessions are")+" from erased addresses, which the lists of hosts and networks omit.")
	}
	if s.Unwritten > 0 {
		all = append(all, text.Plural(s.Unwritten, "session is", "sessions are")+" in aggregates of this hour, which the filter has not yet written.")
	}
	if s.NotKept.Sessions > 0 {
		all = append(all, s.NotKept.text())
	}
	return all
}

// text describes the number of sessions without a record.
func (k *NotKept) text() string {
	return fmt.Sprintf("%s of %s, with %s, have no records and are only counted; see scanwatch stats.",
		text.Plural(k.Sessions, "session"), text.Plural(k.Days, "day"), text.Plural(k.Mails, "message"))
}

// wrap writes s in lines of at most 80 columns, indenting all lines after
// the first.
func wrap(b *strings.Builder, s string, indent int) { wrapTo(b, s, indent, 80) }

func wrapTo(b *strings.Builder, s string, indent, columns int) {
	b.WriteString(text.Fold(s, columns, indent))
	b.WriteByte('\n')
}

func row(b *strings.Builder, s string) { rowTo(b, s, 80) }

func rowTo(b *strings.Builder, s string, columns int) {
	b.WriteString(text.Cut(strings.TrimRight(s, " "), columns))
	b.WriteByte('\n')
}

// addressWidth returns the column width for the given addresses.
func addressWidth[T any](all []T, address func(*T) string) int {
	w := len("address")
	for i := range all {
		w = max(w, len(address(&all[i])))
	}
	return w
}
