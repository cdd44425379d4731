package report

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"scanwatch/store"
)

const (
	maxScanners       = 2_000 // organisations; the shipped list has some 200
	maxScannerSources = 1_000 // addresses that are counted one by one, of one of them
	scannerExamples   = 5     // addresses that are named
)

// An OptOut tells how to ask an organisation not to be scanned.
type OptOut struct {
	Org     string `json:"-"`
	Kind    string `json:"kind"` // mail, web, or page: one that may help
	Contact string `json:"contact"`
	Source  string `json:"source"` // the URL of who says so
	Date    string `json:"date"`   // when that was looked up
	Note    string `json:"note,omitempty"`
}

// Scanners counts the visits of known scanning organisations, in bounded memory.
type Scanners struct {
	orgs   map[string]*scanner
	missed int
}

type scanner struct {
	Scanner
	seen map[netip.Addr]time.Time // the end of the last session
}

// NewScanners returns an empty Scanners.
func NewScanners() *Scanners { return &Scanners{orgs: map[string]*scanner{}} }

// Add counts a session. Nothing refers to r afterwards. What only hints at an
// organisation is not counted: anybody can call himself after one.
func (c *Scanners) Add(r *store.Record) error {
	var last string // that was counted for this session
	return r.Steps(func(s *store.Step) bool {
		if s.Kind != store.KindFinding || string(s.Text) != "scanner" || len(s.Org) == 0 || string(s.Confidence) == "low" || string(s.Org) == last {
			return true
		}
		last = string(s.Org)
		o := c.orgs[last]
		if o == nil {
			if len(c.orgs) >= maxScanners {
				c.missed++
				return true
			}
			o = &scanner{Scanner{Organisation: last, First: Time{r.End}, Last: Time{r.End}}, map[netip.Addr]time.Time{}}
			c.orgs[last] = o
		}
		o.Sessions += max(int(s.Times), 1)
		if r.End.Before(o.First.Time) {
			o.First.Time = r.End
		}
		if r.End.After(o.Last.Time) {
			o.Last.Time = r.End
		}
		if seen, known := o.seen[r.Src.Addr()]; known || len(o.seen) < maxScannerSources {
			if r.End.After(seen) {
				seen = r.End
			}
			o.seen[r.Src.Addr()] = seen
		}
		return true
	})
}

// A ScannerSummary lists the scanning organisations that came, the busiest first.
// All texts are printable.
type ScannerSummary struct {
	Since    Time      `json:"since"`
	Until    Time      `json:"until"`
	Problems []string  `json:"problems"`
	Scanners []Scanner `json:"scanners"`
	Missed   int       `json:"not_listed,omitempty"` // sessions of organisations for which there was no memory

	OptOut bool `json:"-"` // tell how to ask not to be scanned
}

// A Scanner is an organisation that came.
type Scanner struct {
	Organisation string          `json:"organisation"`
	Sessions     int             `json:"sessions"`
	Addresses    int             `json:"addresses"` // at most 1,000 are counted
	First        Time            `json:"first"`     // end of the first session
	Last         Time            `json:"last"`
	Sources      []ScannerSource `json:"sources"` // the latest few
	OptOut       *OptOut         `json:"opt_out,omitempty"`
}

// A ScannerSource is an address of a Scanner.
type ScannerSource struct {
	Address string `json:"address"`
	Last    Time   `json:"last"`
}

// Summary makes the report of what was added. Contacts are ways to ask not to be
// scanned, by organisation; nil if nobody wants to know.
func (c *Scanners) Summary(since, until time.Time, problems []string, contacts map[string]OptOut) *ScannerSummary {
	s := &ScannerSummary{Since: Time{since}, Until: Time{until}, Problems: append([]string{}, problems...), Scanners: []Scanner{}, Missed: c.missed, OptOut: contacts != nil}
	for org, o := range c.orgs {
		one := o.Scanner
		one.Organisation = Printable([]byte(org))
		one.Addresses = len(o.seen)
		if contact, ok := contacts[org]; ok {
			one.OptOut = &contact
		}
		for a, last := range o.seen {
			one.Sources = append(one.Sources, ScannerSource{a.String(), Time{last}})
		}
		slices.SortFunc(one.Sources, func(a, b ScannerSource) int {
			return cmp.Or(b.Last.Compare(a.Last.Time), strings.Compare(a.Address, b.Address))
		})
		one.Sources = slices.Clone(one.Sources[:min(len(one.Sources), scannerExamples)])
		s.Scanners = append(s.Scanners, one)
	}
	slices.SortFunc(s.Scanners, func(a, b Scanner) int {
		return cmp.Or(cmp.Compare(b.Sessions, a.Sessions), strings.Compare(a.Organisation, b.Organisation))
	})
	return s
}

// JSON writes the summary as one object.
func (s *ScannerSummary) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(s)
}

// letter is what may be sent to those of whom no better way is known.
const letter = `Subject: Please do not scan our networks

To whom it may concern,

hosts of yours connected to our mail server [NAME OF THE SERVER]:

    [THE ADDRESSES AND TIMES ABOVE]

Please leave these networks, for which we are responsible, out of all your
scans, on every port, now and later:

    [YOUR NETWORKS, such as 192.0.2.0/24 and 2001:db8::/32]

Please tell us when this is done, and what you need from us to see that the
networks are ours. We answer on the address that whois has for them.

[YOUR NAME, YOUR SITE]
`

// Text writes the summary for people, 80 columns wide, with times in zone.
func (s *ScannerSummary) Text(w io.Writer, zone *time.Location) error {
	var b strings.Builder
	const layout = "2006-01-02 15:04"
	fmt.Fprintf(&b, "Known scanning organisations, from %s to %s\n", s.Since.In(zone).Format(layout), s.Until.In(zone).Format(layout+" -0700"))
	for _, p := range s.Problems {
		wrap(&b, "  ! "+p, 4)
	}
	if len(s.Scanners) == 0 {
		b.WriteString("\nNone came.\n")
		_, err := io.WriteString(w, b.String())
		return err
	}
	b.WriteString("\n  sessions addresses  last             organisation\n")
	for i := range s.Scanners {
		o := &s.Scanners[i]
		row(&b, fmt.Sprintf("  %8d %9d  %s %s", o.Sessions, o.Addresses, o.Last.In(zone).Format(layout), o.Organisation))
	}
	if s.Missed > 0 {
		wrap(&b, fmt.Sprintf("Memory was full: %s of other organisations are not listed.", plural(s.Missed, "session", "sessions")), 0)
	}
	if s.OptOut {
		s.optOut(&b, zone)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (s *ScannerSummary) optOut(b *strings.Builder, zone *time.Location) {
	about := func(o *Scanner) {
		row(b, "  "+o.Organisation)
		for _, src := range o.Sources {
			fmt.Fprintf(b, "      from %s, last on %s\n", src.Address, src.Last.In(zone).Format("2006-01-02 15:04 -0700"))
		}
		if n := o.Addresses - len(o.Sources); n > 0 {
			fmt.Fprintf(b, "      and from %s\n", plural(n, "other address", "other addresses"))
		}
	}
	unknown := 0
	first := true
	for i := range s.Scanners {
		o := &s.Scanners[i]
		if o.OptOut == nil {
			unknown++
			continue
		}
		if first {
			b.WriteString("\nHow to ask not to be scanned\n")
			first = false
		}
		about(o)
		how := map[string]string{"mail": "write to ", "web": "see ", "page": "perhaps "}[o.OptOut.Kind]
		fmt.Fprintf(b, "      %s%s\n", how, o.OptOut.Contact) // in one piece, to be copied
		if o.OptOut.Note != "" {
			wrap(b, "      "+o.OptOut.Note, 6)
		}
		fmt.Fprintf(b, "      says %s (%s)\n", o.OptOut.Source, o.OptOut.Date)
	}
	if unknown > 0 {
		b.WriteString("\nNo way to ask is known of these; try the abuse contact of the address\n")
		for i := range s.Scanners {
			if o := &s.Scanners[i]; o.OptOut == nil {
				about(o)
				fmt.Fprintf(b, "      whois %s | grep -i abuse\n", o.Sources[0].Address)
			}
		}
	}
	b.WriteString("\nNobody has to honour such a request, and it tells them who you are. A letter,\nto be filled in:\n\n")
	b.WriteString(letter)
}
