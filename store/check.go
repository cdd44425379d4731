package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// bbolt trusts its file. A flipped bit can cause an endless loop over a page, a read outside its
// mapping, or a panic in a transaction with locks held. checkFile therefore checks all pages before
// bbolt maps the file. checkFile reads the file nearly in order, so an uncached file is read at
// disk speed.
//
// checkFile does not detect changed bytes in values, because bbolt has no checksums for data.
// Decode detects corrupt values.
//
// The layout is version 2 of bbolt's format, in the machine's byte order. A
// page header is 16 bytes: id u64, flags u16, count u16, overflow u32. An
// element is 16 bytes. A branch element is pos u32, ksize u32, pgid u64. A
// leaf element is flags u32, pos u32, ksize u32, vsize u32. pos is the key's
// offset from the start of the element.
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHeader  = 16
	pageElement = 16

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagMeta     = 0x04
	flagFreelist = 0x10

	leafBucket   = 0x01
	bucketHeader = 16 // root pgid u64, sequence u64

	noFreelist = ^uint64(0)
	maxDepth   = 32
)

var order = binary.NativeEndian

// A damagedError is caused by the content of a file, not by a failed system call.
type damagedError struct{ what string }

func (e *damagedError) Error() string { return "corrupt: " + e.what }

func damaged(format string, args ...any) error {
	return &damagedError{fmt.Sprintf(format, args...)}
}

type checker struct {
	f        *os.File
	pageSize int64
	pages    uint64 // high-water mark: the number of the first unused page
	seen     []uint64
	window   []byte // the block that was read last
	at       int64

	// If visit is set, it is called with the location of each value, and the checker
	// does not read values. If bad is set, it is called with each corruption error, and
	// the check continues.
	visit  func(bucket, key []byte, at, size int64)
	bad    func(error)
	bucket []byte // the name of the current bucket
}

// checkFile returns a damagedError if bbolt cannot safely use f, or the error if a read
// fails.
func checkFile(f *os.File) error {
	c := checker{f: f}
	root, freelist, err := c.open()
	if err != nil {
		return err
	}
	if freelist != noFreelist {
		if err := c.freelist(freelist); err != nil {
			return err
		}
	}
	return c.tree(root, maxDepth, nil)
}

// walkFile calls visit for each value in a bbolt file, without reading the value. visit receives
// the bucket, the key, and the value's offset and size. walkFile calls bad for corrupt pages and
// elements. walkFile returns an error if a read fails.
func walkFile(f *os.File, visit func(bucket, key []byte, at, size int64), bad func(error)) error {
	c := checker{f: f, visit: visit, bad: bad}
	root, _, err := c.open()
	if err == nil {
		err = c.tree(root, maxDepth, nil)
	}
	if isDamaged(err) {
		bad(err)
		return nil
	}
	return err
}

func (c *checker) open() (root, freelist uint64, err error) {
	info, err := c.f.Stat()
	if err != nil {
		return 0, 0, err
	}
	if info.Size() == 0 {
		return 0, 0, damaged("the file is empty")
	}
	if root, freelist, err = c.meta(info.Size()); err == nil {
		c.seen = make([]uint64, c.pages/64+1)
	}
	return root, freelist, err
}

// tolerate passes a corruption error to bad and returns nil. If bad is nil, or for any
// other error, tolerate returns err.
func (c *checker) tolerate(err error) error {
	if c.bad != nil && isDamaged(err) {
		c.bad(err)
		return nil
	}
	return err
}

// meta selects one of the two meta pages as bbolt does.
func (c *checker) meta(size int64) (root, freelist uint64, err error) {
	var best uint64
	found := false
	try := func(at int64) error {
		var b [80]byte
		if _, err := c.f.ReadAt(b[:], at); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		m := b[pageHeader:]
		h := fnv.New64a()
		h.Write(m[:56])
		txid := order.Uint64(m[48:])
		if order.Uint16(b[8:])&flagMeta == 0 || order.Uint32(m) != boltMagic || order.Uint32(m[4:]) != boltVersion ||
			order.Uint64(m[56:]) != h.Sum64() || found && txid <= best {
			return nil
		}
		best, found = txid, true
		c.pageSize = int64(order.Uint32(m[8:]))
		root, freelist, c.pages = order.Uint64(m[16:]), order.Uint64(m[32:]), order.Uint64(m[40:])
		return nil
	}
	// The second meta page starts one page size after the first. Only a valid first meta page
	// contains the page size.
	if err := try(0); err != nil {
		return 0, 0, err
	}
	if found {
		err = try(c.pageSize)
	} else {
		for at := int64(1024); at <= 1<<16 && !found && err == nil; at *= 2 {
			err = try(at)
		}
	}
	switch {
	case err != nil:
		return 0, 0, err
	case !found:
		return 0, 0, damaged("neither meta page is valid")
	case c.pageSize < 1024 || c.pageSize > 1<<24 || c.pageSize&(c.pageSize-1) != 0:
		return 0, 0, damaged("page size %d", c.pageSize)
	case c.pages > uint64(size/c.pageSize):
		return 0, 0, damaged("truncated: %d bytes, but %d pages of %d bytes are in use", size, c.pages, c.pageSize)
	}
	return root, freelist, nil
}

// A page is a bbolt page with its overflow pages, or the page of an inline bucket.
type page struct {
	id   uint64
	data []byte // valid until the next call of page; may lack overflow pages
	at   int64  // place in the file
	size uint64 // bytes, with overflow pages
}

func (p *page) flags() uint16 { return order.Uint16(p.data[8:]) }
func (p *page) count() uint64 { return uint64(order.Uint16(p.data[10:])) }

// page returns the page with the given id. If visit is set, page does not read overflow pages.
func (c *checker) page(id uint64) (page, error) {
	head, err := c.read(id, 1)
	if err != nil {
		return page{}, err
	}
	if got := order.Uint64(head); got != id {
		return page{}, damaged("page %d has the number %d", id, got)
	}
	n := 1 + uint64(order.Uint32(head[12:]))
	if n > c.pages-id {
		return page{}, damaged("page %d (%d long) is outside the file's %d pages", id, n, c.pages)
	}
	for i := id; i < id+n; i++ {
		if c.seen[i/64]&(1<<(i%64)) != 0 {
			return page{}, damaged("page %d is used twice", i)
		}
		c.seen[i/64] |= 1 << (i % 64)
	}
	if n > 1 && c.visit == nil {
		head, err = c.read(id, n)
	}
	return page{id: id, data: head, at: int64(id) * c.pageSize, size: n * uint64(c.pageSize)}, err
}

// bytes returns n bytes of a page. The caller has checked that the page is long enough.
func (c *checker) bytes(p *page, from, n uint64) ([]byte, error) {
	if from+n <= uint64(len(p.data)) {
		return p.data[from:][:n:n], nil
	}
	b := make([]byte, n)
	if _, err := c.f.ReadAt(b, p.at+int64(from)); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, damaged("truncated in page %d", p.id)
		}
		return nil, err
	}
	return b, nil
}

const windowSize = 256 << 10

func (c *checker) read(id, n uint64) ([]byte, error) {
	if id < 2 || id >= c.pages || n > c.pages-id {
		return nil, damaged("page %d (%d long) is outside the file's %d pages", id, n, c.pages)
	}
	from, size := int64(id)*c.pageSize, int64(n)*c.pageSize
	if from >= c.at && from+size <= c.at+int64(len(c.window)) {
		return c.window[from-c.at:][:size], nil
	}
	ahead := int64(windowSize)
	if c.visit != nil {
		ahead = 0 // only a small part of the file is read
	}
	want := min(max(size, ahead), int64(c.pages)*c.pageSize-from)
	if int64(cap(c.window)) < want {
		c.window = make([]byte, want)
	}
	c.window, c.at = c.window[:want], from
	if _, err := c.f.ReadAt(c.window, from); err != nil {
		c.window = c.window[:0]
		if errors.Is(err, io.EOF) {
			return nil, damaged("truncated in page %d", id)
		}
		return nil, err
	}
	return c.window[:size], nil
}

func (c *checker) freelist(id uint64) error {
	p, err := c.page(id)
	if err != nil {
		return err
	}
	if p.flags() != flagFreelist {
		return damaged("page %d is not a list of free pages", id)
	}
	n, ids := p.count(), p.data[pageHeader:]
	if n == 0xFFFF {
		n, ids = order.Uint64(ids), ids[8:]
	}
	if n > uint64(len(ids)/8) {
		return damaged("page %d lists %d free pages, more than fit", id, n)
	}
	for i := range n {
		free := order.Uint64(ids[i*8:])
		if free < 2 || free >= c.pages {
			return damaged("free page %d is outside the file's %d pages", free, c.pages)
		}
		if c.seen[free/64]&(1<<(free%64)) != 0 {
			return damaged("free page %d is in use or listed twice", free)
		}
		c.seen[free/64] |= 1 << (free % 64)
	}
	return nil
}

// tree checks a page and all pages below it. A key that is less than least is corrupt.
func (c *checker) tree(id uint64, depth int, least []byte) error {
	if depth == 0 {
		return damaged("page %d is too deep", id)
	}
	p, err := c.page(id)
	if err != nil {
		return err
	}
	switch flags := p.flags(); flags {
	case flagLeaf:
		return c.leaf(&p, depth, least)
	case flagBranch:
		return c.branch(&p, depth, least)
	default:
		return damaged("page %d is of kind %#x where data should be", id, flags)
	}
}

func (c *checker) elements(p *page) ([]byte, error) {
	n := p.count() * pageElement
	if pageHeader+n > p.size {
		return nil, damaged("page %d has %d elements", p.id, p.count())
	}
	return c.bytes(p, pageHeader, n)
}

func (c *checker) branch(p *page, depth int, least []byte) error {
	all, err := c.elements(p)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return damaged("page %d has no elements", p.id)
	}
	// Copy the child elements first, because reading the children overwrites the
	// parent's buffer.
	type child struct {
		id  uint64
		key []byte
	}
	var children []child
	for i := 0; i < len(all); i += pageElement {
		e := all[i:]
		from, ksize := uint64(pageHeader+i)+uint64(order.Uint32(e)), uint64(order.Uint32(e[4:]))
		if ksize == 0 || from+ksize > p.size {
			return damaged("page %d, element %d: key is outside the page", p.id, i/pageElement)
		}
		key, err := c.bytes(p, from, ksize)
		if err != nil {
			return err
		}
		if bytes.Compare(key, least) < 0 {
			return damaged("page %d, element %d: key out of order", p.id, i/pageElement)
		}
		children = append(children, child{order.Uint64(e[8:]), bytes.Clone(key)})
		least = children[len(children)-1].key
	}
	for _, k := range children {
		if err := c.tolerate(c.tree(k.id, depth-1, k.key)); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) leaf(p *page, depth int, least []byte) error {
	all, err := c.elements(p)
	if err != nil {
		return err
	}
	type child struct {
		id   uint64
		name []byte
	}
	var buckets []child
	for i := 0; i < len(all); i += pageElement {
		key, root, err := c.element(p, i, all[i:], depth, least)
		if err := c.tolerate(err); err != nil {
			return err
		}
		if root != 0 {
			buckets = append(buckets, child{root, bytes.Clone(key)})
		}
		if key != nil {
			least = key
		}
	}
	defer func(name []byte) { c.bucket = name }(c.bucket)
	for _, b := range buckets {
		c.bucket = b.name
		if err := c.tolerate(c.tree(b.id, depth-1, nil)); err != nil {
			return err
		}
	}
	return nil
}

// element checks the leaf element e at offset i and returns its key. For a bucket that is not
// inline, element also returns the root page.
func (c *checker) element(p *page, i int, e []byte, depth int, least []byte) (key []byte, root uint64, err error) {
	flags, from := order.Uint32(e), uint64(pageHeader+i)+uint64(order.Uint32(e[4:]))
	ksize, vsize := uint64(order.Uint32(e[8:])), uint64(order.Uint32(e[12:]))
	if ksize == 0 || from+ksize+vsize > p.size {
		return nil, 0, damaged("page %d, element %d: data is outside the page", p.id, i/pageElement)
	}
	if key, err = c.bytes(p, from, ksize); err != nil {
		return nil, 0, err
	}
	if o := bytes.Compare(key, least); o < 0 || o == 0 && i > 0 {
		return nil, 0, damaged("page %d, element %d: key out of order", p.id, i/pageElement)
	}
	at := from + ksize
	switch {
	case flags == 0 && c.visit != nil:
		c.visit(c.bucket, key, p.at+int64(at), int64(vsize))
	case flags == 0:
	case flags != leafBucket:
		return key, 0, damaged("page %d, element %d: kind %#x", p.id, i/pageElement, flags)
	case vsize < bucketHeader:
		return key, 0, damaged("page %d, element %d: bucket of %d bytes", p.id, i/pageElement, vsize)
	default:
		value, err := c.bytes(p, at, vsize)
		if err != nil {
			return key, 0, err
		}
		if root := order.Uint64(value); root != 0 {
			return key, root, nil
		}
		inline := page{id: p.id, data: value[bucketHeader:], at: p.at + int64(at) + bucketHeader, size: vsize - bucketHeader}
		return key, 0, c.inline(&inline, key, depth)
	}
	return key, 0, nil
}

// inline checks a bucket that is stored in its parent bucket's page.
func (c *checker) inline(p *page, name []byte, depth int) error {
	if p.size < pageHeader || p.flags() != flagLeaf || depth == 1 {
		return damaged("page %d: bucket without a page", p.id)
	}
	defer func(name []byte) { c.bucket = name }(c.bucket)
	c.bucket = name
	return c.leaf(p, depth-1, nil)
}
