package store

// This file finds records and metadata in the leaf pages of a corrupt file. The scan
// neither follows the tree nor trusts any number in a page, because a corrupt page must
// not hide intact pages.

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"slices"
	"time"
)

const (
	salvagePage = 4096    // page size if no page contains its own number
	salvageMost = 8 << 20 // maximum bytes of a page with its overflow pages
)

// scanned is the metadata found in a corrupt segment.
type scanned struct {
	dropped Dropped
	rules   ruleTexts
	created []byte    // the value of keyCreated
	doubt   time.Time // see markDoubt
}

// scan calls visit for each record of the day in the leaf pages of f. visit receives
// the value's readable part and the number of steps in that part. A record can occur
// twice, because scan ignores the tree. Records in unused pages are valid, because
// records never change. scan returns the readable metadata.
func scan(f *os.File, size int64, day time.Time, visit func(key, value []byte, steps int, whole bool) error) (scanned, error) {
	s := scanner{f: f, size: size, day: day, visit: visit}
	err := s.run()
	return s.meta, err
}

// scanMeta returns the readable metadata of a corrupt sealed segment.
func scanMeta(f *os.File, size int64) (scanned, error) {
	s := scanner{f: f, size: size}
	err := s.run()
	return s.meta, err
}

type scanner struct {
	f              *os.File
	size, pageSize int64
	day            time.Time
	visit          func(key, value []byte, steps int, whole bool) error // nil if only the metadata is needed
	meta           scanned
}

func (s *scanner) run() (err error) {
	s.meta.rules.text = make(map[uint32]string)
	if s.pageSize, err = pageSizeOf(s.f, s.size); err != nil {
		return err
	}
	page := make([]byte, s.pageSize)
	for id, n := int64(2), int64(1); (id+1)*s.pageSize <= s.size; id += n {
		n = 1
		if _, err := s.f.ReadAt(page, id*s.pageSize); errors.Is(err, io.EOF) {
			return nil // the file has become shorter
		} else if err != nil {
			return err
		}
		more := s.overflow(page, id)
		whole := page
		if more > 0 {
			whole = make([]byte, (1+more)*s.pageSize)
			if _, err := s.f.ReadAt(whole, id*s.pageSize); err != nil {
				return err
			}
		}
		if (order.Uint64(page) != uint64(id) || order.Uint16(page[8:]) != flagLeaf) && !s.isLeaf(whole) {
			continue
		}
		known, err := s.leaf(whole, true)
		if err != nil {
			return err
		}
		// Text in an overflow page could look like a page. However, if the current page
		// is unused, its former overflow pages may now be leaf pages. Therefore, skip
		// overflow pages only if all records of the current page are whole.
		if known && int64(order.Uint32(page[12:])) == more {
			n += more
		}
	}
	return nil
}

// overflow returns the number of overflow pages that the elements of page id need. The
// number in the page's header may be corrupt.
func (s *scanner) overflow(page []byte, id int64) (more int64) {
	for _, e := range elementsOf(page) {
		if end := int64(e.to); e.to > e.key && e.key-e.from <= maxMetaKey && end-int64(e.key) <= MaxValue && end <= salvageMost {
			more = max(more, (end-1)/s.pageSize)
		}
	}
	return min(more, s.size/s.pageSize-id-1)
}

// maxMetaKey is greater than the length of any key in a segment.
const maxMetaKey = 64

// isLeaf reports whether a page with a corrupt header is a leaf page of a
// segment. The elements of a leaf page are adjacent and have increasing keys
// that a segment can contain.
func (s *scanner) isLeaf(page []byte) bool {
	all := elementsOf(page)
	if len(all) == 0 {
		return false
	}
	at := pageHeader + len(all)*pageElement
	var last []byte
	for _, e := range all {
		if e.from != at || e.to > len(page) {
			return false
		}
		key := page[e.from:e.key]
		if bytes.Compare(key, last) <= 0 || !s.isRecord(&e, page) && !isMeta(key) {
			return false
		}
		at, last = e.to, key
	}
	return true
}

// knownKeys lists the names of buckets, and the metadata's keys or their prefixes.
var knownKeys = []string{string(bucketMeta), string(bucketSessions), string(bucketBlocks), string(bucketIndex),
	string(keySchema), string(keyCreated), string(keyProgram), string(keyDoubt), keyDropped, keyRule, keyMark, keyBlocks}

// isMeta reports whether a key starts with one of knownKeys. A record's key
// starts with a zero byte and therefore never matches.
func isMeta(key []byte) bool {
	return slices.ContainsFunc(knownKeys, func(k string) bool { return bytes.HasPrefix(key, []byte(k)) })
}

// isRecord reports whether an element of a page can be a record of the day.
func (s *scanner) isRecord(e *element, page []byte) bool {
	return s.visit != nil && e.flags == 0 && e.key-e.from == KeySize && e.to-e.key <= MaxValue && e.to <= len(page) &&
		belongs(utcDay(keyTime(page[e.from:])), s.day)
}

// An element describes a key and its value in a leaf page. from, key and to are offsets
// in the page.
type element struct {
	flags         uint32
	from, key, to int // start and end of the key, and end of the value; possibly outside the page
}

// elementsOf returns the elements of a leaf page. The element count in the header may be corrupt,
// so elementsOf also derives the count from the offset of the first key.
func elementsOf(page []byte) (all []element) {
	n, most := int(order.Uint16(page[10:])), (len(page)-pageHeader)/pageElement
	if most == 0 {
		return nil
	}
	if first := int(order.Uint32(page[pageHeader+4:])); first%pageElement == 0 && first/pageElement <= most {
		n = max(n, first/pageElement)
	}
	add := func(at int, n uint32) int { return int(min(int64(at)+int64(n), math.MaxInt32)) }
	for i := range min(n, most) {
		at := pageHeader + i*pageElement
		e := page[at:]
		from := add(at, order.Uint32(e[4:]))
		key := add(from, order.Uint32(e[8:]))
		all = append(all, element{order.Uint32(e), from, key, add(key, order.Uint32(e[12:]))})
	}
	return all
}

// leaf visits the elements of a leaf page and of its inline buckets. whole reports
// whether the page contains only whole records.
func (s *scanner) leaf(page []byte, outer bool) (whole bool, err error) {
	all := elementsOf(page)
	whole = len(all) > 0
	for i := range all {
		e := &all[i]
		if e.flags == leafBucket && outer && e.to <= len(page) && e.to-e.key >= bucketHeader+pageHeader && order.Uint64(page[e.key:]) == 0 {
			if _, err := s.leaf(page[e.key+bucketHeader:e.to], false); err != nil {
				return false, err
			}
			whole = false
			continue
		}
		if e.flags == 0 && e.to <= len(page) && isMeta(page[e.from:e.key]) {
			if err := s.metadata(page[e.from:e.key], page[e.key:e.to]); err != nil {
				return false, err
			}
			whole = false
			continue
		}
		complete, err := s.record(all, i, page)
		if err != nil {
			return false, err
		}
		whole = whole && complete
	}
	return whole, nil
}

// record visits record i of a page. If the element is corrupt, record uses the bytes
// between the adjacent records. A record whose key is out of order is ignored, because
// the key is corrupt.
func (s *scanner) record(all []element, i int, page []byte) (whole bool, err error) {
	if s.visit == nil {
		return false, nil
	}
	between := element{from: pageHeader + len(all)*pageElement, to: all[i].to}
	if i > 0 {
		between.from = all[i-1].to
	}
	if i < len(all)-1 {
		between.to = all[i+1].from
	}
	between.key = between.from + KeySize
	var key, best []byte
	steps := 0
	for _, e := range []element{all[i], between} {
		if e.to < e.key || !s.isRecord(&e, page) || s.misplaced(all, i, &e, page) {
			continue
		}
		part, n, complete, err := readableSteps(page[e.from:e.key], page[e.key:e.to])
		if err != nil || key != nil && n <= steps && !complete {
			continue
		}
		if key, best, steps, whole = page[e.from:e.key], part, n, complete; whole {
			break
		}
	}
	if key == nil {
		return false, nil
	}
	return whole, s.visit(key, best, steps, whole)
}

// misplaced reports whether the key of e is out of order, although the keys before and
// after element i are in order.
func (s *scanner) misplaced(all []element, i int, e *element, page []byte) bool {
	if i == 0 || i == len(all)-1 || !s.isRecord(&all[i-1], page) || !s.isRecord(&all[i+1], page) {
		return false
	}
	last, key, next := keyOf(page[all[i-1].from:]), keyOf(page[e.from:]), keyOf(page[all[i+1].from:])
	return last.compare(next) < 0 && (key.compare(last) <= 0 || key.compare(next) >= 0)
}

// metadata stores an element of the meta bucket.
func (s *scanner) metadata(key, value []byte) error {
	switch {
	case bytes.Equal(key, keySchema) && len(value) == 2:
		switch n := binary.BigEndian.Uint16(value); {
		case s.visit == nil: // sealed segment: the schema is already known
		case n < schema:
			return ErrOlder
		case n > schema:
			return ErrNewer
		}
	case bytes.Equal(key, keyCreated) && len(value) == 8:
		s.meta.created = bytes.Clone(value)
	case bytes.Equal(key, keyDoubt) && len(value) == 8:
		s.meta.doubt = time.UnixMicro(int64(binary.BigEndian.Uint64(value)))
	case len(value) == 8 && bytes.HasPrefix(key, []byte(keyDropped)):
		for r := range s.meta.dropped {
			if string(key) == keyDropped+Reasons[r] { // keep the highest value, because the counter never decreases
				s.meta.dropped[r] = max(s.meta.dropped[r], binary.BigEndian.Uint64(value))
			}
		}
	default:
		rules := &s.meta.rules
		ref, ok := ruleKey(key)
		if ok && len(value) <= 2*maxRuleText && rules.bytes+len(value) <= 8*maxRuleTexts && rules.text[ref] == "" {
			rules.text[ref] = string(value)
			rules.bytes += len(value)
		}
	}
	return nil
}

// pageSizeOf returns the page size of a corrupt file. If both meta pages are corrupt, it returns
// the size for which most pages contain their own number.
func pageSizeOf(f *os.File, size int64) (int64, error) {
	const least, most = 1024, 1 << 16
	c := checker{f: f}
	if _, _, err := c.meta(size); err != nil && !isDamaged(err) {
		return 0, err
	}
	if c.pageSize >= least && c.pageSize <= most && c.pageSize&(c.pageSize-1) == 0 {
		return c.pageSize, nil
	}
	votes := map[int64]int{salvagePage: 1}
	window := make([]byte, 1<<20)
	for from := int64(0); from < size; from += int64(len(window)) {
		n, err := f.ReadAt(window, from)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		for i := 0; i+pageHeader <= n; i += least {
			at, id := from+int64(i), order.Uint64(window[i:])
			for p := int64(least); p <= most && at%p == 0; p *= 2 {
				if id >= 2 && id == uint64(at/p) {
					votes[p]++
				}
			}
		}
	}
	best := int64(salvagePage)
	for p := int64(least); p <= most; p *= 2 {
		if votes[p] > votes[best] {
			best = p
		}
	}
	return best, nil
}
