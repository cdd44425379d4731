package exportlist

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/memory"
	"scanwatch/rules"
	"scanwatch/store"
)

const day = 24 * time.Hour

// known describes the knowledge about hosts with accepted mail. The table of known
// hosts and the records are bounded: a host in neither has sent no mail only if one of
// them is complete.
type known struct {
	rows     int // in state.db
	records  int // of the selected period
	days     []memory.Day
	from     time.Time          // begin of the records that were read
	sessions map[int64]uint64   // sessions of these records, by day since 1970
	cut      map[time.Time]bool // days of records that lack steps
	// forgotten is the day of the latest mail of a host that is missing in the table;
	// zero if there is none. Lost is the day before which bans and all hosts are missing.
	forgotten, lost time.Time
	nameless        time.Time // end of the latest record of accepted mail without a source
}

// begin returns the first day that the filter has counted, or zero.
func (k *known) begin() (at time.Time) {
	for i := range k.days {
		if d := k.days[i].Day; at.IsZero() || d.Before(at) {
			at = d
		}
	}
	return at
}

// needsRecords reports whether the table lacks hosts with mail since recent.
func (k *known) needsRecords(recent time.Time) bool {
	begin := k.begin()
	return begin.IsZero() || begin.After(recent) || k.hasForgotten(recent)
}

func (k *known) hasForgotten(since time.Time) bool {
	return !k.forgotten.IsZero() && k.forgotten.Add(day).After(since)
}

// lostBans reports whether active bans may be missing.
func (k *known) lostBans(now time.Time) bool {
	return !k.lost.IsZero() && now.Before(k.lost.Add(day+rules.MaxBan))
}

// addNameless adds a record of many sources.
func (k *known) addNameless(rec *store.Record) {
	if rec.Counts.Mails > 0 && rec.End.After(k.nameless) {
		k.nameless = rec.End
	}
}

// checkComplete returns an error if the list could lack entries or contain hosts that
// must not be blocked. An empty list would end all bans at the consumers.
func (b *builder) checkComplete(recent time.Time) error {
	k := &b.known
	switch {
	case b.Bans && k.rows == 0:
		return fmt.Errorf("%s has no bans: state.db is missing or empty; name another directory with -s, or start the filter once", b.Dir.Path)
	case b.Bans && k.lostBans(b.now) && k.lost.After(b.AcceptLoss):
		day := k.lost.Format(time.DateOnly)
		return fmt.Errorf("state.db was lost or is incomplete since %s, and earlier bans are missing; to export the others, add --accept-loss %s", day, day)
	case !b.Found:
		// The filter itself rejects these hosts, whether or not it still knows their
		// mail.
		return nil
	case k.records == 0 && k.rows == 0:
		return fmt.Errorf("%s has no sessions; name another directory with -s", b.Dir.Path)
	}
	if n := b.recorded(); k.records == 0 && n > 0 {
		return fmt.Errorf("%d sessions of this period were recorded and are gone", n)
	}
	all, err := store.Segments(b.Dir.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	gaps := k.gaps(all, b.now)
	for _, g := range gaps {
		if s := b.Selector; g.Add(day).After(s.Since) && (s.Until.IsZero() || g.Before(s.Until)) {
			return fmt.Errorf("sessions of %s were recorded and are gone; see scanwatch fsck, or export later ones with --since %s",
				g.Format(time.DateOnly), g.Add(day).Format(time.DateOnly))
		}
	}
	return b.checkForgotten(recent, all, gaps)
}

// gaps returns the finished days whose records are not complete, oldest first. Steps
// that are missing after a repair can be findings. A day without records has a gap if sessions were counted. A crash loses the last sessions
// and the sums of an hour, so that less than half of the sessions is a gap, or any
// missing session if a file of the day was corrupt. Days before the oldest file have
// expired.
func (k *known) gaps(all []store.Segment, now time.Time) (list []time.Time) {
	corrupt := map[time.Time]bool{}
	for i := range all {
		corrupt[all[i].Day] = corrupt[all[i].Day] || all[i].Quarantined
	}
	if len(all) == 0 {
		return nil
	}
	first := all[0].Day
	if all[0].Part > 1 {
		first = first.Add(day) // earlier parts of the day may have expired
	}
	if k.from.After(first) {
		first = k.from
	}
	counted := map[time.Time]uint64{}
	for i := range k.days {
		d := &k.days[i]
		counted[d.Day] = d.Of(memory.DayWhole) + d.Of(memory.DaySummed)
	}
	for at := first.Truncate(day); at.Before(now.Add(-day)); at = at.Add(day) {
		n, known := counted[at]
		found := k.sessions[at.Unix()/int64(day/time.Second)]
		switch {
		case at.Before(first):
		case 2*found < n, corrupt[at] && (!known || found < n || k.cut[at]):
			list = append(list, at)
		}
	}
	return list
}

// checkFilter returns an error if the running filter exempts hosts that are unknown
// here, because it uses another configuration file or previous content of a table.
func (b *builder) checkFilter(c *control.Client) error {
	s, err := c.Status()
	if err != nil {
		return err
	}
	if s.Config.Halted != nil {
		b.Warn("the filter only observes by scanwatch mode observe; the list still has all hosts")
	}
	switch {
	case s.Config.File == "":
		return nil // exempts no host
	case b.Policy == nil || !sameFile(s.Config.File, b.Policy.File):
		return fmt.Errorf("the exempt hosts are unknown: the filter uses the configuration %s; name it with -f", s.Config.File)
	}
	for _, name := range s.Config.Kept {
		if b.Policy.Policy.PassesUseTable(name) {
			return fmt.Errorf("the exempt hosts are unknown: the filter keeps the previous content of the table <%s>; see scanwatch status", name)
		}
	}
	return nil
}

func sameFile(a, b string) bool {
	if a == b {
		return true
	}
	first, errA := os.Stat(a)
	second, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(first, second)
}

// recorded returns the number of recorded sessions on the whole days of the period.
func (b *builder) recorded() (n uint64) {
	s := b.Selector
	for i := range b.known.days {
		if d := &b.known.days[i]; !d.Day.Before(s.Since) && (s.Until.IsZero() || d.Day.Add(day).Before(s.Until)) {
			n += d.Of(memory.DayWhole) + d.Of(memory.DaySummed)
		}
	}
	return n
}

// checkForgotten returns an error if a host with accepted mail since recent may be
// neither in the table nor in the records. Evidence without a ban accuses a host that
// the filter accepts: it needs the proof that the host has sent no mail.
func (b *builder) checkForgotten(recent time.Time, all []store.Segment, gaps []time.Time) error {
	k := &b.known
	if !k.hasForgotten(recent) {
		return nil
	}
	from := recent
	if begin := k.begin(); k.lost.IsZero() && begin.After(recent) && !begin.After(k.forgotten) {
		from = begin // there was no filter before, and no imported mail is forgotten
	}
	complete, hole := b.now, k.nameless.After(from) && k.nameless.Before(k.forgotten.Add(day))
	hole = hole || slices.ContainsFunc(gaps, func(g time.Time) bool { return g.Add(day).After(from) && !g.After(k.forgotten) })
	for i := len(all) - 1; i >= 0; i-- { // the newest first
		s := &all[i]
		first := s.Day
		if s.Part > 1 {
			first = first.Add(day) // earlier parts of the day may have been removed
		}
		switch {
		case !s.Quarantined:
			complete = first
		case !s.Day.Before(from.Add(-day)) && !s.Day.After(k.forgotten):
			hole = true
		}
	}
	if !hole && !complete.After(from) {
		return nil
	}
	why := "their table was full"
	if !k.lost.IsZero() {
		why = "state.db was lost or is incomplete"
	}
	return fmt.Errorf("the hosts with mail since %s are not all known: %s, and the records have gaps or begin later; "+
		"raise the budget or keep of store, or export bans only", from.Format(time.DateOnly), why)
}
