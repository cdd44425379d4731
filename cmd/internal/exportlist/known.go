package exportlist

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/memory"
	"scanwatch/store"
)

const day = 24 * time.Hour

// known describes the knowledge about hosts with accepted mail. The table of known
// hosts and the records are bounded: a host in neither has sent no mail only if one of
// them is complete.
type known struct {
	rows    int // in state.db
	records int // of the selected period
	days    []memory.Day
	// forgotten is the day of the latest mail of a host that is missing from the table;
	// zero if there is none. lost means that hosts of all earlier days are missing.
	forgotten time.Time
	lost      bool
	nameless  time.Time // end of the latest record of accepted mail without a source
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
	return b.checkForgotten(recent)
}

// checkFilter returns an error if the running filter exempts hosts that are unknown
// here, because it uses another configuration file or previous content of a table.
func (b *builder) checkFilter(c *control.Client) error {
	s, err := c.Status()
	if err != nil {
		return err
	}
	if b.Policy == nil {
		if s.Config.File != "" {
			return fmt.Errorf("the exempt hosts are unknown: the filter uses the configuration %s; name it with -f", s.Config.File)
		}
		return nil
	}
	for _, name := range s.Config.Kept {
		if b.Policy.Policy.PassesUseTable(name) {
			return fmt.Errorf("the exempt hosts are unknown: the filter keeps the previous content of the table <%s>; see scanwatch status", name)
		}
	}
	return nil
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
// neither in the table nor in the records. The filter accepts hosts with evidence but
// without a ban, so exporting them requires proof that they have sent no mail.
func (b *builder) checkForgotten(recent time.Time) error {
	k := &b.known
	if !k.hasForgotten(recent) {
		return nil
	}
	from := recent
	if begin := k.begin(); !k.lost && begin.After(recent) {
		from = begin // the filter did not run earlier
	}
	all, err := store.Segments(b.Dir.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	complete, hole := b.now, k.nameless.After(from) && k.nameless.Before(k.forgotten.Add(day))
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
	return fmt.Errorf("the hosts with mail since %s are not all known: their table was full, and the records have gaps or begin later; "+
		"raise the budget or keep of store, or export bans only", from.Format(time.DateOnly))
}
