package forward

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"scanwatch/cmd/internal/output"
)

// The limits of a queue.
const (
	maxQueued = 1000
	maxBytes  = 64 << 20
	maxEntry  = 16 << 20

	smallEntry = 4 << 10 // more than a batch without events
)

// A queue contains data in files, in the order in which they were added. If it is full, the
// oldest entry is dropped. It is safe for concurrent use.
type queue struct {
	dir  string
	wake chan struct{} // has a value after add
	lock *os.File      // the directory, locked

	mu      sync.Mutex
	entries []entry
	bytes   int64
	last    int64
	dropped uint64 // weight of the dropped entries
	gaps    int    // dropped entries with the key gapKey
}

// gapKey is the key of batches that have gaps.
const gapKey = "gaps"

// An entry is a file in a queue. Its name contains its number, its weight, which is the
// number of the events in it, and its key unless that is empty.
type entry struct {
	name   string
	number int64
	weight uint64
	key    string
	bytes  int64
}

// openQueue opens the queue in a directory, and creates the directory if necessary. A
// process cannot open a queue that is open.
func openQueue(dir string) (*queue, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("create the queue: %w", err)
	}
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the queue: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lock %s: %w; another process of the companion uses the queue, stop it first", dir, err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("open the queue: %w", err)
	}
	q := &queue{dir: dir, wake: make(chan struct{}, 1), lock: lock}
	for _, f := range files {
		e, ok := parseEntry(f.Name())
		info, err := f.Info()
		switch {
		case strings.HasPrefix(f.Name(), "."): // of a process that was killed
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

// close unlocks the queue.
func (q *queue) close() { q.lock.Close() }

func parseEntry(name string) (e entry, ok bool) {
	number, weight, ok := strings.Cut(strings.TrimSuffix(name, ".json"), "-")
	weight, key, _ := strings.Cut(weight, "-")
	e = entry{name: name, key: key}
	var err1, err2 error
	e.number, err1 = strconv.ParseInt(number, 10, 64)
	e.weight, err2 = strconv.ParseUint(weight, 10, 63)
	return e, ok && err1 == nil && err2 == nil && strings.HasSuffix(name, ".json")
}

// add adds data with the given weight, and with a key unless it is empty. When it returns,
// the data are on the disk.
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

// room reports whether a small entry fits into the queue without loss of another.
func (q *queue) room() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.entries) < maxQueued && q.bytes < maxBytes-smallEntry
}

// keys returns the keys of the entries.
func (q *queue) keys() map[string]bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	keys := map[string]bool{}
	for _, e := range q.entries {
		keys[e.key] = true
	}
	return keys
}

// setNext stores the earliest time of the next request.
func (q *queue) setNext(at time.Time) error {
	return output.Replace(filepath.Join(q.dir, "next"), 0o600, func(w io.Writer) error {
		_, err := io.WriteString(w, at.UTC().Format(time.RFC3339Nano))
		return err
	})
}

// untilNext returns the time until the next request. It is 0 if the stored time is later
// than any that setNext stores, because the clock was wrong.
func (q *queue) untilNext(now time.Time) time.Duration {
	text, err := readFile(filepath.Join(q.dir, "next"))
	if err != nil {
		return 0
	}
	at, err := time.Parse(time.RFC3339Nano, string(text))
	if err != nil || at.After(now.Add(maxRetryAfter)) {
		return 0
	}
	return max(at.Sub(now), 0)
}

// shrink drops the oldest entries while the queue is too long.
func (q *queue) shrink() {
	for len(q.entries) > maxQueued || q.bytes > maxBytes && len(q.entries) > 1 {
		q.loseAt(0)
	}
}

func (q *queue) loseAt(i int) {
	q.dropped += q.entries[i].weight
	if q.entries[i].key == gapKey {
		q.gaps++
	}
	q.removeAt(i)
}

func (q *queue) removeAt(i int) {
	e := q.entries[i]
	_ = os.Remove(filepath.Join(q.dir, e.name)) // if this fails, the entry is sent again after a restart
	q.bytes -= e.bytes
	q.entries = slices.Delete(q.entries, i, i+1)
}

// first returns the oldest entry. It returns false if there is none.
func (q *queue) first() (e entry, data []byte, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.entries) > 0 {
		e = q.entries[0]
		data, err := readFile(filepath.Join(q.dir, e.name))
		if err == nil {
			return e, data, true
		}
		q.loseAt(0) // removed or unreadable
	}
	return entry{}, nil, false
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxEntry))
}

// remove removes an entry that was delivered or, if lost is set, can never be.
func (q *queue) remove(e entry, lost bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.IndexFunc(q.entries, func(o entry) bool { return o.number == e.number })
	if i < 0 {
		return // it has been dropped
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

// lost returns the weight of the entries that were dropped since the previous call, and the
// number of batches that had gaps.
func (q *queue) lost() (weight uint64, gaps int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	weight, gaps = q.dropped, q.gaps
	q.dropped, q.gaps = 0, 0
	return weight, gaps
}
