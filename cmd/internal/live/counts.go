package live

import (
	"cmp"
	"math/bits"
	"strings"
	"time"

	"scanwatch/filter/detect"
	"scanwatch/rules"
)

// An activity counts sessions or events per minute for the last 60 minutes.
type activity struct {
	minutes [60]uint32
	at      int64 // the latest minute, counted from 1970
}

func (a *activity) add(t time.Time, n int) {
	at := max(t.Unix()/60, 0)
	a.until(at)
	if at > a.at-60 {
		a.minutes[at%60] += uint32(n)
	}
}

// until removes minutes older than an hour. If the clock was set back, nothing is
// removed.
func (a *activity) until(at int64) {
	for i := max(a.at+1, at-59); i <= at; i++ {
		a.minutes[i%60] = 0
	}
	a.at = max(a.at, at)
}

// merge adds b's counts.
func (a *activity) merge(b *activity) {
	a.until(b.at)
	for i := max(a.at-59, b.at-59, 0); i <= b.at; i++ {
		a.minutes[i%60] += b.minutes[i%60]
	}
}

// hour returns the total for the hour before now.
func (a *activity) hour(now time.Time) (n int) {
	a.until(now.Unix() / 60)
	for _, m := range a.minutes {
		n += int(m)
	}
	return n
}

// levels contains the characters of a sparkline. Each character represents twice as many events as
// the previous character. The scale is fixed, so that sparklines can be compared.
var levels = []rune(" ▁▂▃▄▅▆▇█")

// spark draws the hour before now as a sparkline of the given number of cells, oldest first. cells
// must divide 60.
func (a *activity) spark(now time.Time, cells int) string {
	a.until(now.Unix() / 60)
	line := make([]rune, cells)
	for i := range cells {
		n := uint32(0)
		for m := range int64(60 / cells) {
			n += a.minutes[(a.at+1+int64(i*60/cells)+m)%60]
		}
		line[i] = levels[min(bits.Len32(n), len(levels)-1)]
	}
	return string(line)
}

// counts holds totals for a source, for a network, or for all other sources together.
type counts struct {
	sessions, mails, findings int
	rejected, observed        int // decisions by rules, enforced or observed
	rate                      activity
	last                      time.Time
	evidence                  [3]rules.Evidence // evidence by confidence, highest first
	org                       string            // printable
}

func (c *counts) add(o *counts) {
	c.sessions, c.mails, c.findings = c.sessions+o.sessions, c.mails+o.mails, c.findings+o.findings
	c.rejected, c.observed = c.rejected+o.rejected, c.observed+o.observed
	c.rate.merge(&o.rate)
	c.seen(o.last)
	for i := range c.evidence {
		c.evidence[i] |= o.evidence[i]
	}
	c.org = cmp.Or(c.org, o.org)
}

func (c *counts) seen(t time.Time) {
	if c.last.Before(t) {
		c.last = t
	}
}

// part returns the evidence with the given rank. Rank 0 is the worst. Evidence is ranked by
// confidence. Within each level of confidence, behaviour that no mail server shows ranks before
// other evidence.
func (c *counts) part(rank int) rules.Evidence {
	if rank%2 == 0 {
		return c.evidence[rank/2] & detect.Abuse
	}
	return c.evidence[rank/2] &^ detect.Abuse
}

// ranks is the number of ranks.
const ranks = 2 * len(counts{}.evidence)

// rank returns the rank of the worst evidence, or ranks if there is none.
func (c *counts) rank() (rank int) {
	for rank < ranks && c.part(rank) == 0 {
		rank++
	}
	return rank
}

// worst lists the evidence, worst first.
func (c *counts) worst() string {
	var all []string
	var listed rules.Evidence
	for rank := range ranks {
		part := c.part(rank) &^ listed
		for _, t := range rules.Tokens {
			if part&t.Evidence != 0 {
				all = append(all, t.Name)
			}
		}
		listed |= part
	}
	return strings.Join(all, ", ")
}
