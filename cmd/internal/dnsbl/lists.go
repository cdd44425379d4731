package dnsbl

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
	"unique"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/lookup"
	"scanwatch/filter/lookup/feed"
	"scanwatch/internal/prefix"
)

// bans holds the running filter's bans. If the filter stops, the bans remain in effect
// until they expire.
type bans struct {
	mu      sync.RWMutex
	table   *lookup.Prefixes[ban]
	changed time.Time
	ready   bool // all bans have been received
	started time.Time

	list uint32 // number of complete lists received; used only by apply
}

// A ban is a small struct, because there may be hundreds of thousands of them.
type ban struct {
	until   uint32 // seconds since started, which is unaffected by clock changes
	list    uint32 // number of the last complete list that includes this ban
	session uint64 // 0 for bans without a session
	rule    unique.Handle[string]
}

func newBans() *bans {
	now := time.Now()
	return &bans{table: new(lookup.Prefixes[ban]), changed: now, started: now}
}

// now returns the seconds since started.
func (b *bans) now() uint32 { return uint32(time.Since(b.started) / time.Second) }

func (b *bans) find(a netip.Addr, wantText bool) (entry, bool) {
	now := b.now()
	b.mu.RLock()
	defer b.mu.RUnlock()
	found, ok := b.table.Lookup(a)
	if !ok {
		return entry{}, false
	}
	// A host's ban may have expired while its network is still banned.
	if found.until <= now {
		if found, ok = b.activeNetwork(a, now); !ok {
			return entry{}, false
		}
	}
	e := entry{left: found.until - now}
	if wantText {
		e.text = found.reason()
	}
	return e, true
}

func (b *bans) activeNetwork(a netip.Addr, now uint32) (ban, bool) {
	for _, found := range b.table.Covering(a) {
		if found.until > now {
			return found, true
		}
	}
	return ban{}, false
}

// reason returns the rejection text for senders. If a ban has no session, its rule is the
// operator's reason.
func (b *ban) reason() string {
	if b.session != 0 {
		return fmt.Sprintf("Banned by rule %s, reference %016x", b.rule.Value(), b.session)
	}
	return "Banned: " + b.rule.Value()
}

func (b *bans) overlaps(p netip.Prefix) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	_, ok := b.table.Overlapping(p)
	return ok
}

func (b *bans) state() (time.Time, int, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.changed, b.table.Len(), b.ready
}

// apply applies a complete list of bans, or changes to the bans; see follow.Apply. A complete list
// is merged into the table, because a second table would take too much memory.
func (b *bans) apply(list control.BanList, entries []control.BanEntry) {
	if list.Full {
		b.list++
	}
	if !list.Enforced {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.table, b.ready, b.changed = new(lookup.Prefixes[ban]), true, time.Now()
		return
	}
	b.inSteps(len(entries), func(i int) { b.change(&entries[i]) })
	if !list.Full {
		return
	}
	var ended []netip.Prefix
	b.mu.RLock() // only apply writes, so a read lock suffices and no client waits
	for p, row := range b.table.All() {
		if row.list != b.list {
			ended = append(ended, p)
		}
	}
	b.mu.RUnlock()
	b.inSteps(len(ended), func(i int) { b.table.Delete(ended[i]) })
	b.mu.Lock()
	b.ready = true
	b.mu.Unlock()
}

// inSteps calls f for each number below n in several steps, so that clients never wait
// for more than one step.
func (b *bans) inSteps(n int, f func(int)) {
	const step = 64
	for i := 0; i < n; i += step {
		b.mu.Lock()
		for j := i; j < min(i+step, n); j++ {
			f(j)
		}
		b.changed = time.Now()
		b.mu.Unlock()
	}
}

func (b *bans) change(e *control.BanEntry) {
	if e.Seconds <= 0 || e.Spared {
		b.table.Delete(e.Prefix)
		return
	}
	session, _ := strconv.ParseUint(e.Session, 16, 64)
	until := b.now() + uint32(min(e.Seconds, 1<<30))
	b.table.Set(e.Prefix, ban{until, b.list, session, unique.Make(e.Rule)})
}

// builtin is a shipped list: the networks in the list and the networks of the listed AS
// numbers. Low-confidence rows are omitted.
type builtin struct {
	name   string
	lists  *lookup.Lists
	size   int
	loaded time.Time
}

func newBuiltin(name string, lists *lookup.Lists) *builtin {
	b := &builtin{name: name, lists: lists, loaded: time.Now()}
	for _, row := range lists.Rows() {
		if row.List == name && (row.Kind == "cidr" || row.Kind == "asn") && row.ConfidenceAt(b.loaded) != "low" {
			b.size++
		}
	}
	return b
}

func (b *builtin) find(a netip.Addr, wantText bool) (e entry, ok bool) {
	var row *lookup.Row
	number, known := lookup.ShippedASN(a)
	scanner, cloud := b.lists.ASN(number)
	switch {
	case b.name == lookup.Scanners:
		if row = b.lists.Addr(a); row == nil && known {
			row = scanner
		}
	case known:
		row = cloud
	}
	if row == nil || row.ConfidenceAt(time.Now()) == "low" {
		return e, false
	}
	if wantText {
		e.text = fmt.Sprintf("%s, %s of the list %s, %s", row.Org, row.Value, row.List, row.Date)
	}
	return e, true
}

// overlaps always returns true, because the AS number table cannot be searched by
// network.
func (b *builtin) overlaps(netip.Prefix) bool { return true }

func (b *builtin) state() (time.Time, int, bool) { return b.loaded, b.size, true }

// A fileList holds the addresses in a file. If a new version of the file is unusable, the previous
// entries remain in effect. To empty the list, reduce the file to a comment. A completely empty
// file is considered unusable, because its entries may have been lost.
type fileList struct {
	path string
	log  *slog.Logger

	mu      sync.RWMutex
	table   *lookup.Prefixes[struct{}] // nil until the file is first loaded
	changed time.Time
	info    fs.FileInfo // latest version, even if unusable
	problem error       // problem with the latest version, if any
}

func (f *fileList) find(a netip.Addr, wantText bool) (e entry, ok bool) {
	table := f.current()
	if table == nil {
		return e, false
	}
	if !wantText {
		_, ok = table.Lookup(a)
		return e, ok
	}
	p, _, ok := table.LookupPrefix(a)
	e.text = prefix.String(p) + " in " + filepath.Base(f.path)
	return e, ok
}

func (f *fileList) current() *lookup.Prefixes[struct{}] {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.table
}

func (f *fileList) overlaps(p netip.Prefix) bool {
	table := f.current()
	if table == nil {
		return false
	}
	_, ok := table.Overlapping(p)
	return ok
}

func (f *fileList) state() (time.Time, int, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.table == nil {
		return f.changed, 0, false
	}
	return f.changed, f.table.Len(), true
}

// read rereads the file if it has changed.
func (f *fileList) read() {
	info, err := os.Stat(f.path)
	if err == nil && f.problem == nil && f.info != nil && os.SameFile(info, f.info) && info.Size() == f.info.Size() && info.ModTime().Equal(f.info.ModTime()) {
		return // after an error, always retry: permissions may have changed
	}
	var table *lookup.Prefixes[struct{}]
	if err == nil {
		table, err = f.load()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.info = info
	if err != nil {
		if f.problem == nil || f.problem.Error() != err.Error() {
			f.unusable(err)
		}
		f.problem = err
		return
	}
	f.table, f.problem, f.changed = table, nil, time.Now()
	f.log.Info("zone file loaded", "file", f.path, "entries", table.Len())
}

// unusable logs why the file is unusable.
func (f *fileList) unusable(err error) {
	attrs := []any{"file", f.path, "err", err}
	if f.table == nil {
		f.log.Warn("zone file unusable, zone not served", attrs...)
		return
	}
	f.log.Warn("zone file unusable, keeping its previous entries", attrs...)
}

var errNoAddresses = errors.New("the file has no addresses; if this is intended, write a comment in it")

func (f *fileList) load() (*lookup.Prefixes[struct{}], error) {
	file, err := feed.Open(f.path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	r, err := feed.Parse(file, "")
	old := f.current()
	switch {
	case errors.Is(err, feed.ErrEmpty) && r != nil && r.Notice != "":
		return new(lookup.Prefixes[struct{}]), nil // only comments
	case errors.Is(err, feed.ErrEmpty) && old == nil:
		f.log.Warn("zone file has no entries", "file", f.path)
		return new(lookup.Prefixes[struct{}]), nil
	case errors.Is(err, feed.ErrEmpty):
		return nil, errNoAddresses
	case err != nil:
		return nil, err
	case len(r.Prefixes) == 0:
		return nil, errNoAddresses
	}
	if n := r.Refused.Total + len(r.Names) + len(r.ASNs); n > 0 {
		first := "a name or an AS number"
		if r.Refused.Total > 0 {
			first = r.Refused.First[0].String()
		}
		f.log.Warn("zone file has unusable entries", "file", f.path, "entries", strconv.Itoa(n), "first", first)
	}
	table := new(lookup.Prefixes[struct{}])
	for _, p := range r.Prefixes {
		table.Add(p, struct{}{})
	}
	return table, nil
}
