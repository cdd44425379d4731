package exportlist

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/memory"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
)

const day = 24 * time.Hour

// A dayNumber is the number of a UTC day since 1970. A time.Time would be unsuitable as a
// map key, because equal times in different locations are different keys.
type dayNumber int64

func dayOf(t time.Time) dayNumber { return dayNumber(t.Unix() / int64(day/time.Second)) }

// start returns the start of the day.
func (d dayNumber) start() time.Time { return time.Unix(int64(d)*int64(day/time.Second), 0).UTC() }

func (d dayNumber) String() string { return d.start().Format(time.DateOnly) }

// known describes whether all hosts with accepted mail are known. Both the table of known hosts and
// the records are limited in size. If at least one of them is complete, a host that is in neither
// has sent no mail.
type known struct {
	rows     int // rows in state.db
	records  int // records in the selected period
	days     []memory.Day
	from     time.Time            // start of the records that were read
	sessions map[dayNumber]uint64 // number of sessions in the records, by day
	cut      map[dayNumber]bool   // days whose records lack steps
	// lossy is the set of days that may have lost records to a corrupt file.
	lossy     map[dayNumber]bool
	unwritten uint64 // aggregated sessions that the running filter has not yet written
	// forgotten is the day of the latest mail from any host that was evicted from the table. It is
	// zero if no host was evicted. lost is the day on which the state was lost; older hosts and
	// bans are missing.
	forgotten, lost time.Time
	nameless        time.Time // end of the latest record with accepted mail and without a source
}

// begin returns the first day on which the filter counted sessions, or zero.
func (k *known) begin() (at time.Time) {
	for i := range k.days {
		if d := k.days[i].Day; at.IsZero() || d.Before(at) {
			at = d
		}
	}
	return at
}

// needsRecords reports whether the table lacks hosts that sent mail since recent.
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

// addNameless adds a record that covers many sources.
func (k *known) addNameless(rec *store.Record) {
	if rec.Counts.Mails > 0 && !rec.Erased && rec.End.After(k.nameless) { // erased hosts are not exported, so their mail does not matter
		k.nameless = rec.End
	}
}

// checkComplete returns an error if the list may lack entries or include hosts that must not be
// blocked. With an empty list, firewalls would unblock all hosts.
func (b *builder) checkComplete(recent time.Time) error {
	k := &b.known
	switch {
	case b.Bans && k.rows == 0:
		return fmt.Errorf("%s has no bans: state.db is missing or empty; name a different directory with -s, or start the filter once", b.Dir.Path)
	case b.Bans && k.lostBans(b.now) && k.lost.After(b.AcceptLoss):
		day := k.lost.Format(time.DateOnly)
		return fmt.Errorf("state.db was lost or is incomplete since %s, and earlier bans are missing; to export the others, add --accept-loss %s", day, day)
	case !b.Found:
		// The filter itself has rejected these hosts, perhaps because of another host's ban, even
		// if it no longer knows about their mail.
		return nil
	case k.records == 0 && k.rows == 0:
		return fmt.Errorf("%s has no sessions; name a different directory with -s", b.Dir.Path)
	}
	if n := b.recorded(); k.records == 0 && n > 0 {
		return fmt.Errorf("%d sessions of this period were recorded and are missing", n)
	}
	all, err := store.Segments(b.Dir.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return b.checkGaps(recent, all)
}

// checkGaps returns an error if the list needs records that are missing. The records of the
// selected period are always needed. Earlier records are needed if the table lacks hosts that sent
// mail. A host that delivered mail must not be listed, and evidence alone does not prove that the
// filter would reject it.
func (b *builder) checkGaps(recent time.Time, all []store.Segment) error {
	k, from := &b.known, b.unknownSince(recent)
	var period, mail []gap
	for _, g := range b.refused(k.gaps(all, b.now)) {
		at, end, s := g.day.start(), g.day.start().Add(day), b.Selector
		switch {
		case !g.counted && end.After(s.Since) && (s.Until.IsZero() || at.Before(s.Until)):
			period = append(period, g)
		case !from.IsZero() && end.After(from) && !at.After(k.forgotten.Add(day)):
			mail = append(mail, g)
		}
	}
	why := "their table was full"
	if !k.lost.IsZero() {
		why = "state.db was lost or is incomplete"
	}
	why = fmt.Sprintf("the hosts with mail since %s are not all known: %s, and ", from.Format(time.DateOnly), why)
	switch {
	case !from.IsZero() && b.beginLater(all, from):
		return fmt.Errorf("%sthe records have gaps or begin later; raise the budget or keep of store, or export bans only", why)
	case len(mail) > 0:
		list := append(mail, period...)
		slices.SortFunc(list, func(a, b gap) int { return cmp.Compare(a.day, b.day) })
		return gapError(why, list, "")
	case len(period) > 0:
		later := ""
		if next := (period[len(period)-1].day + 1).start(); next.Before(b.now) {
			later = "export later ones with --since " + next.Format(time.RFC3339) + ", "
		}
		return gapError("", period, later)
	}
	return nil
}

// beginLater reports whether the records are known to lack hosts that sent mail since
// from.
func (b *builder) beginLater(all []store.Segment, from time.Time) bool {
	k := &b.known
	if k.nameless.After(from) && k.nameless.Before(k.forgotten.Add(day)) {
		return true
	}
	i := slices.IndexFunc(all, func(s store.Segment) bool { return !s.Quarantined }) // the oldest usable segment
	if i < 0 {
		return true
	}
	first := all[i].Day
	if all[i].Part > 1 {
		first = first.Add(day) // earlier parts of the day may have been removed
	}
	return first.After(from)
}

// unknownSince returns the start of the period in which the table lacks hosts with mail. If no host
// with mail since recent is missing, the result is zero.
func (b *builder) unknownSince(recent time.Time) time.Time {
	k := &b.known
	if !k.hasForgotten(recent) {
		return time.Time{}
	}
	if begin := k.begin(); k.lost.IsZero() && begin.After(recent) && !begin.After(k.forgotten) {
		return begin // no host is missing: the filter did not run earlier, and no imported mail was dropped
	}
	return recent
}

// refused returns the gaps that the operator has not accepted.
func (b *builder) refused(gaps []gap) []gap {
	accepted := 0
	gaps = slices.DeleteFunc(gaps, func(g gap) bool {
		if g.day.start().After(b.AcceptLoss) {
			return false
		}
		if !g.counted {
			accepted++
		}
		return true
	})
	if accepted > 0 {
		b.Warn(fmt.Sprintf("records of %s until %s are incomplete, as --accept-loss permits: hosts with mail in these records may be listed",
			text.Plural(accepted, "day"), b.AcceptLoss.Format(time.DateOnly)))
	}
	return gaps
}

// A gap is a day with incomplete records.
type gap struct {
	day dayNumber
	why string // a format string with one %s
	// counted is set if the records contain all counted sessions. Even then, a host's mail may be
	// missing, because a crash can also lose the latest counts.
	counted bool
}

// Values of gap.why.
const (
	gapGone      = "sessions of %s were recorded and are missing"
	gapRepair    = "a corrupt file may have lost sessions or findings of %s"
	gapUncounted = "%s has no file, and state.db, which counted its sessions, was lost"
)

// maxGaps is the maximum number of days that an error lists.
const maxGaps = 10

// gapError returns an error that lists gaps by UTC day, with the remedies. gaps must be in order
// and not empty.
func gapError(before string, gaps []gap, later string) error {
	first, last := gaps[0], gaps[len(gaps)-1].day
	why := before + fmt.Sprintf(first.why, first.day)
	if len(gaps) > 1 {
		why += "; others are"
		for i, g := range gaps[1:] {
			if i == maxGaps {
				why += fmt.Sprintf(" and %s until %s", text.Plural(len(gaps)-1-i, "more day"), last)
				break
			}
			why += " " + g.day.String()
		}
	}
	return fmt.Errorf("%s; see scanwatch fsck, %sor accept the loss with --accept-loss %s", why, later, last)
}

// gaps returns the days with incomplete records, oldest first. Days before the oldest file have
// expired and are not gaps. A day is a gap if a repair lost steps of its records, because the steps
// may have been findings. A day without records is a gap if its sessions were counted, or if its
// counters were lost. A crash loses the last sessions and up to an hour of aggregates. A day with
// missing sessions is therefore a gap only if less than half of its sessions remain, or if one of
// its files is missing or was corrupt.
func (k *known) gaps(all []store.Segment, now time.Time) (list []gap) {
	if len(all) == 0 {
		return nil
	}
	files := partsOf(all)
	first := dayOf(all[0].Day)
	if all[0].Part > 1 && !k.lossy[first] {
		first++ // earlier parts of the day may have expired
	}
	counted := map[dayNumber]uint64{}
	for i := range k.days {
		d := &k.days[i]
		counted[dayOf(d.Day)] = d.Of(memory.DayWhole) + d.Of(memory.DaySummed)
	}
	today := dayOf(now)
	for at := max(first, dayOf(k.from)); at <= today; at++ {
		n, known := counted[at]
		if at >= today-1 {
			n -= min(n, k.unwritten)
		}
		found := k.sessions[at]
		corrupt := k.lossy[at] || files[at].incomplete()
		switch {
		case 2*found < n, corrupt && known && found < n:
			list = append(list, gap{day: at, why: gapGone})
		case corrupt && (!known || k.cut[at]):
			list = append(list, gap{day: at, why: gapRepair})
		case corrupt:
			list = append(list, gap{day: at, why: gapRepair, counted: true})
		case !known && len(files[at].parts) == 0 && !k.lost.IsZero() && at <= dayOf(k.lost):
			list = append(list, gap{day: at, why: gapUncounted})
		}
	}
	return list
}

// dayFiles describes a day's files.
type dayFiles struct {
	parts       map[int]bool
	last        int
	quarantined bool
}

// incomplete reports whether a file is quarantined or missing. A missing file leaves a gap in the
// part numbers.
func (f dayFiles) incomplete() bool { return f.quarantined || len(f.parts) < f.last }

// partsOf returns the files of each day.
func partsOf(all []store.Segment) map[dayNumber]dayFiles {
	days := map[dayNumber]dayFiles{}
	for i := range all {
		s := &all[i]
		f := days[dayOf(s.Day)]
		if f.parts == nil {
			f.parts = map[int]bool{}
		}
		f.parts[s.Part] = true
		f.last, f.quarantined = max(f.last, s.Part), f.quarantined || s.Quarantined
		days[dayOf(s.Day)] = f
	}
	return days
}

// checkFilter returns an error if the running filter exempts other hosts than this export, because
// its configuration or a table's contents differ.
func (b *builder) checkFilter(s *control.Status) error {
	switch {
	case s.Config.File == "":
		return nil // the configuration exempts no hosts
	case b.Policy == nil || !sameFile(s.Config.File, b.Policy.File):
		return fmt.Errorf("the exempt hosts are unknown: the filter uses the configuration %s; name it with -f", s.Config.File)
	}
	for _, name := range s.Config.Kept {
		if b.Policy.Policy.PassesUseTable(name) {
			return fmt.Errorf("the exempt hosts are unknown: the filter keeps the previous content of the table <%s>; see scanwatch status", name)
		}
	}
	if s.Config.Digest != b.Policy.Digest() {
		return fmt.Errorf("the exempt hosts are unknown: the running filter uses a different version of %s or of its tables; "+
			"see scanwatch check, and load it with scanwatch reload", b.Policy.File)
	}
	return nil
}

// Halted reports whether the operator has stopped enforcement with scanwatch mode observe. An error
// means that the filter is running but did not answer.
func Halted(dir string) (bool, error) {
	c, err := control.Dial(dir)
	switch {
	case errors.Is(err, control.ErrNotRunning):
		return false, nil
	case err != nil:
		return false, err
	}
	defer c.Close()
	s, err := c.Status()
	return err == nil && s.Config.Halted != nil, err
}

func sameFile(a, b string) bool {
	if a == b {
		return true
	}
	first, errA := os.Stat(a)
	second, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(first, second)
}

// recorded returns the number of sessions recorded on the period's whole days.
func (b *builder) recorded() (n uint64) {
	s := b.Selector
	for i := range b.known.days {
		if d := &b.known.days[i]; !d.Day.Before(s.Since) && (s.Until.IsZero() || d.Day.Add(day).Before(s.Until)) {
			n += d.Of(memory.DayWhole) + d.Of(memory.DaySummed)
		}
	}
	return n
}
