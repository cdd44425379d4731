package forward

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"scanwatch/cmd/internal/fetch"
	"scanwatch/cmd/internal/output"
	"scanwatch/cmd/internal/owner"
	"scanwatch/filter/lookup/feed"
)

// Limits of a queue.
const (
	maxQueued = 1000
	maxBytes  = 64 << 20
	maxEntry  = 16 << 20

	smallEntry = 4 << 10 // larger than any batch without events
)

// A queue stores data in files, in the order in which the data were added. If the queue is full,
// the oldest entry is dropped. A queue may be used concurrently.
type queue struct {
	dir    string
	fresh  bool          // openQueue has created the directory
	wake   chan struct{} // receives a value after add
	unlock func()

	mu      sync.Mutex
	entries []entry
	bytes   int64
	last    int64
	missing uint64 // events lost since openQueue
	lost    losses
	counts  *os.File // contains lost
	unsaved error    // error of the latest write to counts
}

// Files of a queue other than its entries.
const (
	lockName   = ".lock"
	countsName = "lost" // losses that no batch contains
	nextName   = "next" // time of the next request
)

// losses holds the number of missing events, and the number of gaps in which an unknown number of
// events are missing.
type losses struct {
	events uint64
	gaps   uint64
}

func (l losses) plus(o losses) losses  { return losses{l.events + o.events, l.gaps + o.gaps} }
func (l losses) minus(o losses) losses { return losses{l.events - o.events, l.gaps - o.gaps} }

// countsFormat has a fixed length, so that a write succeeds even if the disk is full.
const countsFormat = "%020d %020d\n"

// lossesKey is the format of the keys of batches that contain losses. Earlier versions wrote only
// the number of gaps.
const lossesKey = "gaps%d.%d"

// key returns the key for a batch that contains losses.
func (l losses) key() string {
	if l == (losses{}) {
		return ""
	}
	return fmt.Sprintf(lossesKey, l.gaps, l.events)
}

// contains returns the losses contained in an entry's batch.
func (e *entry) contains() (l losses) {
	_, _ = fmt.Sscanf(e.key, lossesKey, &l.gaps, &l.events) // missing numbers remain 0
	return losses{min(l.events, e.weight), min(l.gaps, maxLost)}
}

// An entry is a file in a queue. The file's name consists of the entry's number, its weight and an
// optional key. The weight is the number of events.
type entry struct {
	name   string
	number int64
	weight uint64
	key    string
	bytes  int64
}

// openQueue opens the queue in a directory, and creates the directory if necessary. Only one
// process can open a queue.
func openQueue(dir string) (q *queue, err error) {
	err = os.Mkdir(dir, 0o700)
	fresh := err == nil
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("create the queue: %w", owner.Missing(filepath.Dir(dir), 0o700, "_swforward"))
	case err != nil && !errors.Is(err, fs.ErrExist):
		return nil, fmt.Errorf("create the queue: %w", err)
	}
	p, err := owner.Resolve(filepath.Join(dir, lockName))
	if err != nil {
		return nil, fmt.Errorf("open the queue: %w", err)
	}
	defer p.Close()
	unlock, err := p.Lock("another process of the companion is using the queue; stop it first")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			unlock()
		}
	}()
	q = &queue{dir: dir, fresh: fresh, wake: make(chan struct{}, 1), unlock: unlock}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open the queue: %w", err)
	}
	if err := q.openCounts(); err != nil {
		return nil, err
	}
	for _, f := range files {
		e, ok := parseEntry(f.Name())
		info, err := f.Info()
		switch {
		case f.Name() == lockName:
		case strings.HasPrefix(f.Name(), "."): // left by a killed process
			_ = os.Remove(filepath.Join(dir, f.Name()))
		case ok && err == nil && info.Mode().IsRegular():
			e.bytes = info.Size()
			q.entries = append(q.entries, e)
			q.bytes += e.bytes
			q.last = max(q.last, e.number)
		}
	}
	slices.SortFunc(q.entries, func(a, b entry) int { return cmp.Compare(a.number, b.number) })
	q.shrink()
	return q, nil
}

// openCounts opens the file that stores the losses. A corrupt file is ignored, because each start
// of the service counts as a gap anyway.
func (q *queue) openCounts() error {
	name := filepath.Join(q.dir, countsName)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return fmt.Errorf("open the queue: %w", err)
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return fmt.Errorf("open %s: is not a regular file", name)
	}
	if _, err := fmt.Fscanf(f, countsFormat, &q.lost.events, &q.lost.gaps); err != nil || q.lost.events > maxLost || q.lost.gaps > maxLost {
		q.lost = losses{}
	}
	q.counts = f
	q.change(losses{}, losses{}) // extends the file to its full length
	return nil
}

// maxLost is larger than any real number of losses, but small enough to prevent an overflow.
const maxLost = 1 << 60

// change adds and subtracts losses. The caller holds mu.
func (q *queue) change(more, less losses) {
	q.lost = q.lost.plus(more).minus(less)
	_, err := q.counts.WriteAt(fmt.Appendf(nil, countsFormat, q.lost.events, q.lost.gaps), 0)
	if err == nil {
		err = q.counts.Sync()
	}
	q.unsaved = err
}

// lose records losses.
func (q *queue) lose(more losses) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.missing += more.events
	if more != (losses{}) || q.unsaved != nil {
		q.change(more, losses{})
	}
}

// settle subtracts losses that are now contained in a queued batch or in the log.
func (q *queue) settle(less losses) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if less != (losses{}) {
		q.change(losses{}, less)
	}
}

// unsettled returns the losses that no batch contains yet.
func (q *queue) unsettled() losses {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.lost
}

// lostEvents returns the number of events lost since openQueue.
func (q *queue) lostEvents() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.missing
}

// close unlocks the queue, and returns an error if the losses are not on disk.
func (q *queue) close() error {
	defer q.unlock()
	defer q.counts.Close()
	q.lose(losses{})
	return q.unsaved
}

func parseEntry(name string) (e entry, ok bool) {
	number, weight, ok := strings.Cut(strings.TrimSuffix(name, ".json"), "-")
	weight, key, _ := strings.Cut(weight, "-")
	e = entry{name: name, key: key}
	var err1, err2 error
	e.number, err1 = strconv.ParseInt(number, 10, 64)
	e.weight, err2 = strconv.ParseUint(weight, 10, 63)
	return e, ok && err1 == nil && err2 == nil && strings.HasSuffix(name, ".json")
}

// add adds data with the given weight. If key is not empty, the entry has that key. When add
// returns, the data are on disk.
func (q *queue) add(data []byte, weight uint64, key string, now time.Time) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	e := entry{number: max(q.last+1, now.UnixNano()), weight: weight, key: key, bytes: int64(len(data))}
	e.name = fmt.Sprintf("%d-%d.json", e.number, e.weight)
	if key != "" {
		e.name = fmt.Sprintf("%d-%d-%s.json", e.number, e.weight, key)
	}
	err := output.Replace(filepath.Join(q.dir, e.name), 0o600, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
	if err != nil {
		return err
	}
	q.last = e.number
	q.entries = append(q.entries, e)
	q.bytes += e.bytes
	q.shrink()
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return nil
}

// room reports whether a small entry fits without displacing another entry.
func (q *queue) room() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.entries) < maxQueued && q.bytes < maxBytes-smallEntry
}

// keys returns the entries' keys.
func (q *queue) keys() map[string]bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	keys := map[string]bool{}
	for _, e := range q.entries {
		keys[e.key] = true
	}
	return keys
}

// setNext stores the current time, and the time of the next request.
func (q *queue) setNext(now time.Time, pause time.Duration) error {
	return output.Replace(filepath.Join(q.dir, nextName), 0o600, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, now.UTC().Format(time.RFC3339Nano), now.Add(pause).UTC().Format(time.RFC3339Nano))
		return err
	})
}

// untilNext returns the time until the next request. The result is at most the stored pause,
// because the clock may have been wrong.
func (q *queue) untilNext(now time.Time) time.Duration {
	text, err := readFile(filepath.Join(q.dir, nextName))
	if err != nil {
		return 0
	}
	first, second, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	set, err1 := time.Parse(time.RFC3339Nano, first)
	at, err2 := time.Parse(time.RFC3339Nano, second)
	if err1 != nil || err2 != nil {
		return 0
	}
	return max(min(at.Sub(now), at.Sub(set), fetch.MaxRetryAfter), 0)
}

// shrink drops the oldest entries while the queue exceeds its limits.
func (q *queue) shrink() {
	for len(q.entries) > maxQueued || q.bytes > maxBytes && len(q.entries) > 1 {
		q.loseAt(0)
	}
}

// loseAt drops an entry, and counts its events as lost before it removes the file. If the process
// is killed in between, the events are counted although the entry remains. Events are never lost
// without being counted.
func (q *queue) loseAt(i int) {
	e := &q.entries[i]
	old := e.contains()
	q.missing += e.weight - old.events // the losses in the batch were counted when they occurred
	q.change(losses{e.weight, old.gaps}, losses{})
	q.removeAt(i)
}

func (q *queue) removeAt(i int) {
	e := q.entries[i]
	_ = os.Remove(filepath.Join(q.dir, e.name)) // on failure, a restart sends the entry again
	q.bytes -= e.bytes
	q.entries = slices.Delete(q.entries, i, i+1)
}

// removeReports removes the reports on the hosts for which selected returns true. If lost is set,
// the reports count as dropped.
func (q *queue) removeReports(selected func(netip.Addr) bool, lost bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := len(q.entries) - 1; i >= 0; i-- {
		a, err := netip.ParseAddr(q.entries[i].key)
		switch {
		case err != nil || !selected(a):
		case lost:
			q.loseAt(i)
		default:
			q.removeAt(i)
		}
	}
}

// path returns an entry's path.
func (q *queue) path(e entry) string { return filepath.Join(q.dir, e.name) }

// first returns the oldest entry, or false if there are no entries. If the error is not
// errRejected, the entry may be readable later.
func (q *queue) first() (e entry, data []byte, ok bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.entries) == 0 {
		return entry{}, nil, false, nil
	}
	e = q.entries[0]
	data, err = readFile(q.path(e))
	if err != nil && !slices.ContainsFunc(noResources, func(no syscall.Errno) bool { return errors.Is(err, no) }) {
		err = fmt.Errorf("%w: %w", errRejected, err)
	}
	return e, data, true, err
}

// noResources lists errors from open(2) after which a later attempt may succeed.
var noResources = []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM}

func readFile(name string) ([]byte, error) {
	f, err := feed.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxEntry))
}

// remove removes an entry that was delivered. If lost is set, the entry can never be delivered, and
// its events count as lost.
func (q *queue) remove(e entry, lost bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.IndexFunc(q.entries, func(o entry) bool { return o.number == e.number })
	if i < 0 {
		return // the entry has been dropped
	}
	if lost {
		q.loseAt(i)
	} else {
		q.removeAt(i)
	}
}

// length returns the number of entries.
func (q *queue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.entries)
}
