package report

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"scanwatch/internal/text"
	"scanwatch/store"
	"scanwatch/store/history"
)

const (
	maxScanners       = 2_000 // organisations; the shipped list has about 200
	maxScannerSources = 1_000 // distinct addresses of one organisation
	scannerExamples   = 5     // listed addresses
)

// An OptOut is a way to ask an organisation to stop scanning.
type OptOut struct {
	Org     string `json:"-"`
	Kind    string `json:"kind"` // mail, web, or page: a page that may help
	Contact string `json:"contact"`
	Source  string `json:"source"` // URL of the source
	Date    string `json:"date"`   // day on which the source was checked
	Note    string `json:"note,omitempty"`
}

// Scanners counts the sessions of known scanning organisations in bounded memory.
type Scanners struct {
	orgs    map[string]*scanner
	dropped int
}

type scanner struct {
	Scanner
	seen map[netip.Addr]time.Time // end of the last session
}

// NewScanners returns an empty Scanners.
func NewScanners() *Scanners { return &Scanners{orgs: map[string]*scanner{}} }

// Visitor returns a visitor that adds all records to c. The visitor returns an error for a record
// with corrupt steps.
func (c *Scanners) Visitor() history.Visitor {
	return history.Visitor{Kinds: store.KindsOf(store.KindFinding), Session: c.Add, Sum: c.Add}
}

// Add counts a session. r is not retained. Findings of low confidence are ignored,
// because any client can use an organisation's name.
func (c *Scanners) Add(r *store.Record) error {
	var last string // the last counted organisation of this session
	return r.Steps(func(s *store.Step) bool {
		if s.Kind != store.KindFinding || string(s.Text) != "scanner" || len(s.Org) == 0 || string(s.Confidence) == "low" || string(s.Org) == last {
			return true
		}
		last = string(s.Org)
		first := r.End
		if r.Sessions > 0 {
			first = r.Start.Add(time.Duration(s.First) * time.Microsecond)
		}
		o := c.orgs[last]
		if o == nil {
			if len(c.orgs) >= maxScanners {
				c.dropped++
				return true
			}
			o = &scanner{Scanner{Organisation: last, First: text.At(first), Last: text.At(r.End), Sources: []ScannerSource{}}, map[netip.Addr]time.Time{}}
			c.orgs[last] = o
		}
		o.Sessions += max(int(s.Times), 1)
		if first.Before(o.First.Time) {
			o.First.Time = first
		}
		if r.End.After(o.Last.Time) {
			o.Last.Time = r.End
		}
		if !r.Src.IsValid() {
			return true // an aggregate of many sources has no address
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

// A ScannerSummary is the report on scanning organisations, in descending order of
// sessions. All text is printable.
type ScannerSummary struct {
	Schema    int       `json:"schema"` // text.Schema
	Since     Time      `json:"since"`
	Until     Time      `json:"until"`
	Problems  []string  `json:"problems"`
	Scanners  []Scanner `json:"scanners"`
	NotListed int       `json:"not_listed,omitempty"` // sessions of organisations omitted because of the memory limit

	OptOut bool `json:"-"` // include the opt-outs
}

// A Scanner counts an organisation's sessions.
type Scanner struct {
	Organisation string          `json:"organisation"`
	Sessions     int             `json:"sessions"`
	Addresses    int             `json:"addresses"` // at most 1,000 are counted
	First        Time            `json:"first"`     // end of the first session
	Last         Time            `json:"last"`
	Sources      []ScannerSource `json:"sources"` // the latest ones
	OptOut       *OptOut         `json:"opt_out,omitempty"`
}

// A ScannerSource is one of a Scanner's addresses.
type ScannerSource struct {
	Address string `json:"address"`
	Last    Time   `json:"last"`
}

// Summary returns the report. contacts maps organisations to their opt-outs. If
// contacts is nil, the report lists no opt-outs.
func (c *Scanners) Summary(since, until time.Time, problems []string, contacts map[string]OptOut) *ScannerSummary {
	s := &ScannerSummary{Schema: text.Schema, Since: text.At(since), Until: text.At(until), Problems: append([]string{}, problems...), Scanners: []Scanner{}, NotListed: c.dropped, OptOut: contacts != nil}
	for org, o := range c.orgs {
		one := o.Scanner
		one.Organisation = text.Escape(org)
		one.Addresses = len(o.seen)
		if contact, ok := contacts[org]; ok {
			one.OptOut = &contact
		}
		for a, last := range o.seen {
			one.Sources = append(one.Sources, ScannerSource{a.String(), text.At(last)})
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

// JSON writes the summary as a JSON object.
func (s *ScannerSummary) JSON(w io.Writer) error {
	return text.JSON(w, s, "  ")
}

// letter is the template of a message to organisations without a known opt-out.
const letter = `Subject: Please do not scan our networks

To whom it may concern,

hosts of yours connected to our mail server [NAME OF THE SERVER]:

    [THE ADDRESSES AND TIMES ABOVE]

Please leave these networks, for which we are responsible, out of all your
scans, on every port, now and later:

    [YOUR NETWORKS, such as 192.0.2.0/24 and 2001:db8::/32]

Please let us know when this is done, and what you need from us to see that the
networks are ours. We answer on the address that whois has for them.

[YOUR NAME, YOUR SITE]
`

// Text writes the summary as text 80 columns wide, with times in zone.
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
	if s.NotListed > 0 {
		wrap(&b, fmt.Sprintf("Memory was full: %s of other organisations are not listed.", text.Plural(s.NotListed, "session")), 0)
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
			fmt.Fprintf(b, "      and from %s\n", text.Plural(n, "other address", "other addresses"))
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
			b.WriteString("\nOpt-out contacts\n")
			first = false
		}
		about(o)
		how := map[string]string{"mail": "write to ", "web": "see ", "page": "perhaps "}[o.OptOut.Kind]
		fmt.Fprintf(b, "      %s%s\n", how, o.OptOut.Contact) // one line for copying
		if o.OptOut.Note != "" {
			wrap(b, "      "+o.OptOut.Note, 6)
		}
		fmt.Fprintf(b, "      says %s (%s)\n", o.OptOut.Source, o.OptOut.Date)
	}
	if unknown > 0 {
		b.WriteString("\nNo opt-out is known; use the abuse contact of the address\n")
		for i := range s.Scanners {
			if o := &s.Scanners[i]; o.OptOut == nil {
				about(o)
				if len(o.Sources) > 0 { // an aggregate of many sources has no addresses
					fmt.Fprintf(b, "      whois %s | grep -i abuse\n", o.Sources[0].Address)
				}
			}
		}
	}
	b.WriteString("\nSuch a request is not binding and reveals your identity. A template:\n\n")
	b.WriteString(letter)
}
