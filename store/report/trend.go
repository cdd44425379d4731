package report

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"scanwatch/store"
)

const (
	// quarter is the shortest stretch of time that sessions are counted in: days
	// of every time zone are made of it.
	quarter     = 15 * time.Minute
	maxQuarters = 60_000 // 625 days without a pause
	maxDoubts   = 50_000 // pairs of a host and a rule
	maxRefusals = 8      // rules that turned one session away
)

// spanSteps are the lengths of the stretches of a timeline, by the time that it
// is about: few enough of them to be seen as bars.
var spanSteps = [...]struct {
	upTo   time.Duration
	length time.Duration // less than a day
	days   int
}{
	{6 * time.Hour, quarter, 0},
	{4 * 24 * time.Hour, time.Hour, 0},
	{100 * 24 * time.Hour, 0, 1},
	{2 * 366 * 24 * time.Hour, 0, 7},
	{1<<63 - 1, 0, 28},
}

// A Span is a stretch of the time of a report: the sessions of other hosts that
// ended in it.
type Span struct {
	Start    Time `json:"start"`
	Sessions int  `json:"sessions"`
	Found    int  `json:"found"`   // with a finding
	Refused  int  `json:"refused"` // that a rule or a ban turned away
}

// A Network is a /24 of IPv4 or a /48 of IPv6 from which sessions came.
type Network struct {
	Prefix    string `json:"prefix"`
	Addresses int    `json:"addresses"`
	Sessions  int    `json:"sessions"`
	Found     int    `json:"found"`
}

// The reasons of a Doubt.
const (
	DoubtLogin = "somebody had logged in"
	DoubtMails = "other mail from it was accepted"
	DoubtClean = "its name leads back, and nothing sure speaks against it"
)

// A Doubt is a host that a rule or a ban turned away, or would have, although it
// may have had good mail.
type Doubt struct {
	Address  string `json:"address"`
	RDNS     string `json:"rdns,omitempty"`
	Rule     string `json:"rule"`
	Refused  int    `json:"refused"`  // sessions that were turned away
	Observed int    `json:"observed"` // sessions that would have been
	Mails    int    `json:"mails"`    // accepted from the host in the time of the report
	Sender   string `json:"sender,omitempty"`
	Why      string `json:"why"`     // one of the reasons above
	Session  string `json:"session"` // the last one, for scanwatch show and why
	Last     Time   `json:"last"`    // its end
}

type doubtKey struct {
	src  netip.Addr
	rule string
}

type doubt struct {
	refused, observed int
	login             bool
	clean             bool // no session was without a proven name or with a sure finding
	sender            string
	session           uint64
	last              time.Time
}

// refusal is a rule that turned sessions away, or would have. Of a record that is
// no sum both numbers may be 1.
type refusal struct {
	rule           []byte
	done, observed int
}

// refusals gathers what the steps of one record tell of its being refused.
type refusals struct {
	all    [maxRefusals]refusal
	n      int
	sure   bool // there is evidence of high confidence of what it did
	sender []byte
}

func (f *refusals) add(s *store.Step) {
	switch s.Kind {
	case store.KindMail:
		f.sender = s.Text
	case store.KindFinding:
		// That it left without mail is no wonder if it was refused, and many an
		// honest server greets badly.
		about := string(s.Text)
		f.sure = f.sure || string(s.Confidence) == "high" && about != "no-mail" && about != "abandoned" && !strings.HasPrefix(about, "helo-")
	case store.KindVerdict:
		if !bytes.HasPrefix(s.Reply, []byte("reject")) && !bytes.HasPrefix(s.Reply, []byte("disconnect")) {
			return
		}
		i := slices.IndexFunc(f.all[:f.n], func(r refusal) bool { return bytes.Equal(r.rule, s.Text) })
		if i < 0 {
			if f.n == len(f.all) {
				return
			}
			i = f.n
			f.all[i] = refusal{rule: s.Text}
			f.n++
		}
		to := &f.all[i].observed
		if s.Result == store.ResultOK {
			to = &f.all[i].done
		}
		*to = max(*to, int(s.Times), 1)
	}
}

// done is how many of the sessions were turned away.
func (f *refusals) done(sessions int) (n int) {
	for i := range f.all[:f.n] {
		n += f.all[i].done
	}
	return min(n, sessions)
}

// doubt notes the refusals of a record.
func (c *Collector) doubt(r *store.Record) {
	f := &c.refused
	for _, one := range f.all[:f.n] {
		d := c.doubts[doubtKey{r.Src.Addr(), string(one.rule)}]
		if d == nil {
			if len(c.doubts) >= maxDoubts {
				c.missed["refusals"]++
				continue
			}
			d = &doubt{clean: true}
			c.doubts[doubtKey{r.Src.Addr(), string(one.rule)}] = d
		}
		d.refused += one.done
		if one.done == 0 || r.Sessions > 0 {
			d.observed += one.observed
		}
		d.login = d.login || r.Counts.AuthPass > 0
		d.clean = d.clean && !f.sure && r.FCrDNS == store.FCrDNSPass && r.Counts.AuthFail+r.Counts.AuthRefused == 0
		if !r.End.Before(d.last) {
			d.last, d.session = r.End, r.ID
			if len(f.sender) > 0 {
				d.sender = string(f.sender[:min(len(f.sender), 255)])
			}
		}
	}
	c.refused = refusals{} // it refers to the record
}

// listDoubts returns what may have been good mail.
func (c *Collector) listDoubts() (all []*Doubt) {
	for key, d := range c.doubts {
		one := &Doubt{Address: key.src.String(), Rule: Printable([]byte(key.rule)), Refused: d.refused, Observed: d.observed,
			Sender: Printable([]byte(d.sender)), Session: fmt.Sprintf("%016x", d.session), Last: Time{d.last}}
		sure := false
		if src := c.sources[key.src]; src != nil {
			one.RDNS, one.Mails, sure = src.RDNS, src.Mails, src.sure
		}
		switch {
		case d.login:
			one.Why = DoubtLogin
		case one.Mails > 0:
			one.Why = DoubtMails
		case d.clean && !sure:
			one.Why = DoubtClean
		default:
			continue
		}
		all = append(all, one)
	}
	return all
}

// compareDoubts puts first what was carried out, and then what is surest.
func compareDoubts(a, b *Doubt) int {
	rank := func(d *Doubt) int { return slices.Index([]string{DoubtLogin, DoubtMails, DoubtClean}, d.Why) }
	return cmp.Or(cmp.Compare(min(b.Refused, 1), min(a.Refused, 1)), cmp.Compare(rank(a), rank(b)),
		cmp.Compare(b.Refused, a.Refused), cmp.Compare(b.Observed, a.Observed), cmp.Compare(a.Address, b.Address), cmp.Compare(a.Rule, b.Rule))
}

// span counts sessions of another host in the quarter of an hour of their end.
func (c *Collector) span(end time.Time, s Span) {
	at := end.Unix() / int64(quarter/time.Second)
	q := c.quarters[at]
	if q == nil {
		if len(c.quarters) >= maxQuarters {
			c.missed["times"]++
			return
		}
		q = &Span{}
		c.quarters[at] = q
	}
	q.Sessions, q.Found, q.Refused = q.Sessions+s.Sessions, q.Found+s.Found, q.Refused+s.Refused
}

// timeline divides the time from since to until into stretches of one length;
// days begin at midnight where since is. What lies before the first session is
// left out if that is years.
func (c *Collector) timeline(since, until time.Time) []Span {
	spans := []Span{}
	if len(c.quarters) == 0 {
		return spans
	}
	var times []int64
	for at := range c.quarters {
		times = append(times, at)
	}
	slices.Sort(times)
	first := time.Unix(times[0]*int64(quarter/time.Second), 0).In(since.Location())
	if since.IsZero() || first.Sub(since) > 100*24*time.Hour {
		since = first
	}
	total, step := until.Sub(since), 0
	for spanSteps[step].upTo < total {
		step++
	}
	length, days := spanSteps[step].length, spanSteps[step].days
	start := since.Truncate(max(length, quarter))
	if days > 0 {
		start = time.Date(since.Year(), since.Month(), since.Day(), 0, 0, 0, 0, since.Location())
	}
	for start.Before(until) || len(times) > 0 {
		next := start.Add(length).AddDate(0, 0, days)
		s := Span{Start: Time{start}}
		for len(times) > 0 && times[0]*int64(quarter/time.Second) < next.Unix() {
			q := c.quarters[times[0]]
			s.Sessions, s.Found, s.Refused = s.Sessions+q.Sessions, s.Found+q.Found, s.Refused+q.Refused
			times = times[1:]
		}
		spans = append(spans, s)
		start = next
	}
	return spans
}

// networks adds up the sources of each network.
func (c *Collector) networks() []*Network {
	found := make(map[netip.Prefix]*Network)
	var all []*Network
	for addr, src := range c.sources {
		p := networkOf(addr)
		n := found[p]
		if n == nil {
			n = &Network{Prefix: p.String()}
			found[p] = n
			all = append(all, n)
		}
		n.Addresses++
		n.Sessions += src.Sessions
		n.Found += src.Found
	}
	return all
}

// networkOf is what one site has most often.
func networkOf(a netip.Addr) netip.Prefix {
	bits := 24
	if a = a.Unmap().WithZone(""); a.Is6() {
		bits = 48
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // no address at all
	}
	return p
}
