// Package firewall keeps firewalls and files up to date with the filter's bans. A target
// is a set of functions for one kind of firewall or file, and a Keeper decides what to
// change. A Keeper only ever changes its own sets, table or file.
package firewall

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"slices"
	"time"
	"unique"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/follow"
	"scanwatch/internal/prefix"
	"scanwatch/internal/safego"
	"scanwatch/internal/text"
	"scanwatch/rules"
)

// defaultMax is the default maximum number of entries.
const defaultMax = 100_000

const (
	checkEvery   = 2 * time.Second // interval between checks for removed entries
	compareEvery = time.Minute     // minimum interval between comparisons of all entries
	compareShare = 100             // comparisons take at most 1/compareShare of the time

	// tolerance is the maximum difference between two end times that count as equal. The filter
	// sends whole seconds.
	tolerance = 3 * time.Second
)

// Limits on a Keeper's memory use. Above memoryLimit, garbage is collected more often. After a list
// of more than manyEntries, it is collected immediately.
const (
	memoryLimit = 48 << 20
	manyEntries = 10_000
)

// A Keeper keeps a target up to date with the bans. All times are measured from the
// Keeper's start, on a monotonic clock.
type Keeper struct {
	name   string
	target *target
	most   int
	log    *slog.Logger
	now    func() time.Duration

	received bool // bans reflects the filter's state
	bans     map[netip.Prefix]ban
	networks [2][129]int   // number of banned networks, by family and prefix length
	next     time.Duration // the earliest time at which a ban ends
	limited  bool          // there are more bans than most allows
	last     place         // last of the bans that are in effect, if limited

	have    map[netip.Prefix]time.Duration // the target's entries and their end times; nil if unknown
	touched map[netip.Prefix]struct{}      // entries that may differ from bans
	all     bool                           // all entries may differ

	checked  time.Duration // time of the latest check for removed entries
	compare  time.Duration // time of the next comparison of all entries
	changed  time.Duration // time of the latest change
	tried    time.Duration // time of the latest attempt
	failures int           // failures since the last success
	failed   error         // the latest failure; nil after a success
}

type ban struct {
	until  time.Duration
	reason unique.Handle[string]
}

// A place is a ban's position in the order of end times.
type place struct {
	until  time.Duration
	prefix netip.Prefix
}

// later is a comparison function that puts the bans with the latest end first.
func later(a, b place) int {
	return cmp.Or(cmp.Compare(b.until, a.until), a.prefix.Compare(b.prefix))
}

// Check returns an error for mistakes in a companion statement that the parser does not
// detect.
func Check(c *rules.Companion) error {
	_, err := openers[c.Target](c)
	return err
}

// New returns a Keeper for c's target.
func New(c *rules.Companion, log *slog.Logger) (*Keeper, error) {
	t, err := openers[c.Target](c)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	return newKeeper(c, t, log, func() time.Duration { return time.Since(start) }), nil
}

func newKeeper(c *rules.Companion, t *target, log *slog.Logger, now func() time.Duration) *Keeper {
	return &Keeper{name: c.Name(), target: t, most: cmp.Or(c.Max, defaultMax), log: log, now: now,
		bans: map[netip.Prefix]ban{}, touched: map[netip.Prefix]struct{}{}, next: forever}
}

// An update is a message from the follower. The result is sent to done.
type update struct {
	list    control.BanList
	entries []control.BanEntry
	done    chan<- result
}

type result struct {
	entries int
	err     error
}

// Run follows the filter's bans until ctx is done. When Run ends, the target keeps its entries, and
// the next run continues with them.
func (k *Keeper) Run(ctx context.Context, f *follow.Follower) {
	debug.SetMemoryLimit(memoryLimit)
	updates := make(chan update)
	ended := make(chan struct{})
	safego.Loop(k.log, "following the bans", func() {
		f.Run(ctx, func(ctx context.Context, list control.BanList, entries []control.BanEntry) (int, error) {
			done := make(chan result, 1)
			select {
			case updates <- update{list, entries, done}:
			case <-ctx.Done():
				return 0, ctx.Err()
			}
			select {
			case r := <-done:
				return r.entries, r.err
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		})
	}, func() { close(ended) })
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for ctx.Err() == nil {
		var u update
		select {
		case <-ctx.Done():
		case u = <-updates:
			k.take(u.list, u.entries)
			u.entries = nil // free a long list
			if k.changed > 0 {
				wait(ctx, k.changed+k.target.pause-k.now())
			}
		case <-tick.C:
		}
		r := result{err: cmp.Or(k.step(ctx), k.excess())}
		r.entries = len(k.have)
		if u.done != nil {
			u.done <- r
		}
		if u.list.Full && r.entries > manyEntries {
			debug.FreeOSMemory() // the list and the plan use twice as much memory as all other data
		}
	}
	<-ended
}

func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// take stores new and changed bans.
func (k *Keeper) take(list control.BanList, entries []control.BanEntry) {
	now := k.now()
	if list.Full || !list.Enforced {
		k.all = true
		current := make(map[netip.Prefix]struct{}, len(entries))
		for i := range entries {
			current[entries[i].Prefix] = struct{}{}
		}
		for p := range k.bans {
			if _, ok := current[p]; !ok || !list.Enforced {
				k.unban(p)
			}
		}
		k.received = true
	}
	if !list.Enforced {
		return
	}
	for i := range entries {
		e := &entries[i]
		if e.Seconds <= 0 || e.Spared || e.Prefix.Bits() <= 0 || e.Prefix != e.Prefix.Masked() {
			k.unban(e.Prefix)
			continue
		}
		b := ban{until: now + time.Duration(min(e.Seconds, maxSeconds))*time.Second}
		if k.target.reasons {
			b.reason = unique.Make(e.Rule)
		}
		k.ban(e.Prefix, b)
	}
}

// maxSeconds is the longest duration of a ban, far below the maximum of time.Duration.
const maxSeconds = 100 * 365 * 86400

func (k *Keeper) ban(p netip.Prefix, b ban) {
	old, ok := k.bans[p]
	if ok && b.reason == old.reason && (b.until-old.until).Abs() <= tolerance {
		return
	}
	k.bans[p] = b
	k.next = min(k.next, b.until)
	k.touch(p)
	if !ok {
		k.networks[family(p)][p.Bits()]++
	}
}

func (k *Keeper) unban(p netip.Prefix) {
	if _, ok := k.bans[p]; ok {
		delete(k.bans, p)
		k.networks[family(p)][p.Bits()]--
		k.touch(p)
	}
}

func family(p netip.Prefix) int { return p.Addr().BitLen() / 128 }

// touch marks the entries for p, and for networks within p, as possibly outdated.
func (k *Keeper) touch(p netip.Prefix) {
	if k.all {
		return
	}
	k.touched[p] = struct{}{}
	if !k.target.disjoint || p.IsSingleIP() {
		return
	}
	within := 0
	for bits := p.Bits() + 1; bits < p.Addr().BitLen(); bits++ {
		within += k.networks[family(p)][bits]
	}
	if within == 0 {
		return
	}
	for q := range k.bans {
		if q.Bits() > p.Bits() && !q.IsSingleIP() && p.Contains(q.Addr()) {
			k.touched[q] = struct{}{}
		}
	}
}

// expire removes bans that have ended.
func (k *Keeper) expire(now time.Duration) {
	if now < k.next {
		return
	}
	k.next = forever
	for p, b := range k.bans {
		if b.until <= now {
			k.unban(p)
		} else {
			k.next = min(k.next, b.until)
		}
	}
}

// If there are too many bans, limit keeps the ones that end last.
func (k *Keeper) limit() {
	if !k.all && len(k.touched) == 0 {
		return // the bans have not changed
	}
	before := k.limited
	k.limited = len(k.bans) > k.most
	if k.limited {
		if !before {
			k.log.Warn("too many bans, those that end first are not in effect", "companion", k.name, "bans", len(k.bans), "max", k.most)
		}
		order := make([]place, 0, len(k.bans))
		for p, b := range k.bans {
			order = append(order, place{b.until, p})
		}
		slices.SortFunc(order, later)
		k.last = order[k.most-1]
	}
	k.all = k.all || k.limited || before
}

// excess returns an error if there are more bans than the limit allows.
func (k *Keeper) excess() error {
	if !k.limited {
		return nil
	}
	return fmt.Errorf("%d of %d bans are in effect, those that end last; raise max", k.most, len(k.bans))
}

// within returns the ban on p, and whether the limit allows it.
func (k *Keeper) within(p netip.Prefix) (ban, bool) {
	b, ok := k.bans[p]
	return b, ok && (!k.limited || later(place{b.until, p}, k.last) <= 0)
}

// wanted returns the ban on p, and whether p must be in the target.
func (k *Keeper) wanted(p netip.Prefix) (ban, bool) {
	b, ok := k.within(p)
	if !ok || !k.target.disjoint || p.IsSingleIP() {
		return b, ok
	}
	for bits := range p.Bits() {
		if k.networks[family(p)][bits] == 0 {
			continue
		}
		if wide, err := p.Addr().Prefix(bits); err == nil {
			if _, covered := k.within(wide); covered {
				return b, false
			}
		}
	}
	return b, true
}

// plan returns the changes that bring the target up to date.
func (k *Keeper) plan(now time.Duration) (remove []netip.Prefix, add []entry) {
	visit := func(p netip.Prefix) {
		b, wanted := k.wanted(p)
		end, present := k.have[p]
		switch {
		case wanted && (!present || k.differs(end-now, b.until-now)):
			e := k.entry(p, b, now)
			e.renewed = present
			add = append(add, e)
		case !wanted && (present || !k.all && p.IsSingleIP()):
			// Remove hosts even if the target's list lacks them, because the list may have been
			// read while the kernel was resizing the set.
			remove = append(remove, p)
		}
	}
	if k.all {
		for p := range k.bans {
			visit(p)
		}
		for p := range k.have {
			if _, ok := k.bans[p]; !ok {
				visit(p)
			}
		}
	} else {
		for p := range k.touched {
			visit(p)
		}
	}
	slices.SortFunc(remove, netip.Prefix.Compare)
	slices.SortFunc(add, func(a, b entry) int { return a.prefix.Compare(b.prefix) })
	return remove, add
}

func (k *Keeper) entry(p netip.Prefix, b ban, now time.Duration) entry {
	e := entry{prefix: p, left: b.until - now}
	if k.target.longest > 0 {
		e.left = min(e.left, k.target.longest)
	}
	if k.target.reasons {
		e.reason = b.reason.Value()
	}
	return e
}

// differs reports whether an entry must be renewed because it would not expire together with its
// ban. If the ban lasts longer than the target's maximum timeout, the entry is renewed when half of
// the maximum has passed.
func (k *Keeper) differs(has, left time.Duration) bool {
	longest := k.target.longest
	switch {
	case !k.target.ends:
		return false
	case longest > 0 && left > longest:
		return has < longest/2 || has > longest
	}
	return (has - left).Abs() > tolerance
}

// step brings the target up to date. Until the first bans are received, nothing is
// changed.
func (k *Keeper) step(ctx context.Context) error {
	now := k.now()
	switch {
	case !k.received:
		return nil
	case k.failed != nil && now-k.tried < k.patience():
		return k.failed
	}
	k.tried = now
	err := k.apply(ctx, now)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		if k.failed == nil || err.Error() != k.failed.Error() {
			k.log.Warn("bans not in effect", "companion", k.name, "err", err)
		}
		k.failures++
		k.have = nil // unknown after a failure
	default:
		k.failures = 0
	}
	k.failed = err
	return err
}

// patience returns the time between attempts, which doubles with each failure.
func (k *Keeper) patience() time.Duration {
	return min(time.Second<<min(k.failures-1, 10), k.target.retry)
}

func (k *Keeper) apply(ctx context.Context, now time.Duration) error {
	k.expire(now)
	k.limit()
	fresh, err := k.read(ctx, now)
	if err != nil {
		return err
	}
	remove, add := k.plan(now)
	switch {
	case k.target.replace != nil && (fresh || len(remove)+len(add) > 0):
		err = k.target.replace(ctx, k.content(now))
	case k.target.replace == nil && len(remove)+len(add) > 0:
		err = k.target.change(ctx, remove, add)
	}
	if err != nil {
		return err
	}
	if len(remove)+len(add) > 0 {
		k.changed = k.now()
	}
	for _, p := range remove {
		delete(k.have, p)
	}
	for _, e := range add {
		k.have[e.prefix] = now + e.left
	}
	k.all = false
	clear(k.touched)
	if fresh {
		k.log.Info("bans in effect", "companion", k.name, "entries", len(k.have), "added", len(add), "removed", len(remove))
	}
	return nil
}

// If the entries are unknown, or another program has removed some of them, read lists the target's
// entries and returns true. Otherwise, read lists the entries only from time to time.
func (k *Keeper) read(ctx context.Context, now time.Duration) (fresh bool, err error) {
	if k.have != nil && now-k.checked < checkEvery {
		return false, nil
	}
	k.checked = now
	if k.target.intact != nil {
		intact, err := k.target.intact(ctx, func() int { return k.lasting(now + 2*tolerance) })
		if err != nil {
			return false, err
		}
		if !intact {
			k.have = nil
		}
	}
	fresh = k.have == nil
	switch {
	case !fresh && (k.target.list == nil || now < k.compare):
		return false, nil
	case k.target.list == nil:
		k.have = map[netip.Prefix]time.Duration{}
	default:
		if k.have, err = k.target.list(ctx); err != nil {
			return false, err
		}
		for p, left := range k.have {
			if left != forever {
				k.have[p] = now + left
			}
		}
	}
	k.all = true
	k.compare = k.now() + max(compareEvery, compareShare*(k.now()-now)) // the limit on comparisons; see compareShare
	return fresh, nil
}

// lasting returns the number of entries that end after the given time.
func (k *Keeper) lasting(after time.Duration) (n int) {
	for _, end := range k.have {
		if end > after {
			n++
		}
	}
	return n
}

// content returns all entries that the target must have.
func (k *Keeper) content(now time.Duration) []entry {
	all := make([]entry, 0, len(k.bans))
	for p := range k.bans {
		if b, ok := k.wanted(p); ok {
			all = append(all, k.entry(p, b, now))
		}
	}
	return all
}

// Preview prints the changes that the target needs for the given bans without making
// them.
func (k *Keeper) Preview(ctx context.Context, w io.Writer, list control.BanList, entries []control.BanEntry) error {
	now := k.now()
	k.take(list, entries)
	k.limit()
	if k.target.preview != nil {
		remove, add, err := k.target.preview(k.content(now))
		if err != nil {
			return err
		}
		for _, line := range remove {
			fmt.Fprintln(w, "-"+text.Escape(line))
		}
		for _, line := range add {
			fmt.Fprintln(w, "+"+text.Escape(line))
		}
		return nil
	}
	if _, err := k.read(ctx, now); err != nil {
		return err
	}
	remove, add := k.plan(now)
	for _, p := range remove {
		fmt.Fprintf(w, "remove %s\n", prefix.String(p))
	}
	for _, e := range add {
		verb := "add"
		if e.renewed {
			verb = "change"
		}
		fmt.Fprintf(w, "%s %s for %s\n", verb, prefix.String(e.prefix), text.ShortDuration(e.left))
	}
	fmt.Fprintf(w, "%s in the target, %d to remove, %d to add or change\n", text.Plural(len(k.have), "entry", "entries"), len(remove), len(add))
	return nil
}
