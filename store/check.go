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

// bbolt trusts its file: a flipped bit can make it follow a page to itself for
// ever, read outside of its mapping, or panic in the middle of a transaction
// with its locks held. checkFile therefore walks the pages once, with bounds,
// before bbolt may map the file. It reads through the file and not through a
// mapping, nearly in order, so that a cold file is also brought into memory at
// the speed of the disk.
//
// What it does not see is a changed byte inside of a value: bbolt has no
// checksums for data. Decode deals with those.
//
// The layout is bbolt's format version 2: pages of 16 bytes of header (id u64,
// flags u16, count u16, overflow u32) and elements of 16 bytes (branch: pos u32,
// ksize u32, pgid u64; leaf: flags u32, pos u32, ksize u32, vsize u32; pos counts
// from the element), in the byte order of the machine.
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

// damagedError tells that a segment's content is wrong, as opposed to a failed
// system call.
type damagedError struct{ what string }

func (e *damagedError) Error() string { return "damaged: " + e.what }

func damaged(format string, args ...any) error {
	return &damagedError{fmt.Sprintf(format, args...)}
}

type checker struct {
	f        *os.File
	pageSize int64
	pages    uint64 // high-water mark: pages from here on are not in use
	seen     []uint64
	window   []byte // what was read last, and where
	at       int64
}

// checkFile reports a damagedError if the bbolt file f cannot be used safely,
// or the error of a failed read.
func checkFile(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() == 0 {
		return damaged("the file is empty")
	}
	c := checker{f: f}
	root, freelist, err := c.meta(info.Size())
	if err != nil {
		return err
	}
	c.seen = make([]uint64, c.pages/64+1)
	if freelist != noFreelist {
		if err := c.freelist(freelist); err != nil {
			return err
		}
	}
	return c.tree(root, maxDepth, nil)
}

// meta chooses between the two meta pages as bbolt does.
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
	// The second page begins at the page size, which only a valid first one tells.
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
		return 0, 0, damaged("cut short: %d bytes, but %d pages of %d bytes are in use", size, c.pages, c.pageSize)
	}
	return root, freelist, nil
}

// page returns page id whole, its overflow pages included. The result is valid
// until the next call.
func (c *checker) page(id uint64) ([]byte, error) {
	head, err := c.read(id, 1)
	if err != nil {
		return nil, err
	}
	if got := order.Uint64(head); got != id {
		return nil, damaged("page %d says it is page %d", id, got)
	}
	n := 1 + uint64(order.Uint32(head[12:]))
	for i := id; i < min(id+n, c.pages); i++ {
		if c.seen[i/64]&(1<<(i%64)) != 0 {
			return nil, damaged("page %d is used twice", i)
		}
		c.seen[i/64] |= 1 << (i % 64)
	}
	if n == 1 {
		return head, nil
	}
	return c.read(id, n)
}

const windowSize = 256 << 10

func (c *checker) read(id, n uint64) ([]byte, error) {
	if id < 2 || id >= c.pages || n > c.pages-id {
		return nil, damaged("page %d (%d long) is outside of the file's %d pages", id, n, c.pages)
	}
	from, size := int64(id)*c.pageSize, int64(n)*c.pageSize
	if from >= c.at && from+size <= c.at+int64(len(c.window)) {
		return c.window[from-c.at:][:size], nil
	}
	want := min(max(size, windowSize), int64(c.pages)*c.pageSize-from)
	if int64(cap(c.window)) < want {
		c.window = make([]byte, want)
	}
	c.window, c.at = c.window[:want], from
	if _, err := c.f.ReadAt(c.window, from); err != nil {
		c.window = c.window[:0]
		if errors.Is(err, io.EOF) {
			return nil, damaged("cut short in page %d", id)
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
	if order.Uint16(p[8:]) != flagFreelist {
		return damaged("page %d is no list of free pages", id)
	}
	n, ids := uint64(order.Uint16(p[10:])), p[pageHeader:]
	if n == 0xFFFF {
		n, ids = order.Uint64(ids), ids[8:]
	}
	if n > uint64(len(ids)/8) {
		return damaged("page %d lists %d free pages, more than fit", id, n)
	}
	for i := range n {
		free := order.Uint64(ids[i*8:])
		if free < 2 || free >= c.pages {
			return damaged("free page %d is outside of the file's %d pages", free, c.pages)
		}
		if c.seen[free/64]&(1<<(free%64)) != 0 {
			return damaged("free page %d is in use or listed twice", free)
		}
		c.seen[free/64] |= 1 << (free % 64)
	}
	return nil
}

// tree checks the page and everything below it. Its keys must be greater than
// or equal to least.
func (c *checker) tree(id uint64, depth int, least []byte) error {
	if depth == 0 {
		return damaged("page %d lies too deep", id)
	}
	p, err := c.page(id)
	if err != nil {
		return err
	}
	switch flags := order.Uint16(p[8:]); flags {
	case flagLeaf:
		return c.leaf(p, id, depth, least)
	case flagBranch:
		return c.branch(p, id, depth, least)
	default:
		return damaged("page %d is of kind %#x where data should be", id, flags)
	}
}

func (c *checker) branch(p []byte, id uint64, depth int, least []byte) error {
	n := int(order.Uint16(p[10:]))
	if n == 0 || pageHeader+n*pageElement > len(p) {
		return damaged("page %d has %d elements", id, n)
	}
	// The page's buffer is reused while its children are read.
	type child struct {
		id  uint64
		key []byte
	}
	children := make([]child, n)
	for i := range children {
		e := pageHeader + i*pageElement
		pos, ksize := uint64(order.Uint32(p[e:])), uint64(order.Uint32(p[e+4:]))
		if ksize == 0 || uint64(e)+pos+ksize > uint64(len(p)) {
			return damaged("page %d, element %d: key lies outside of the page", id, i)
		}
		key := p[uint64(e)+pos:][:ksize]
		if bytes.Compare(key, least) < 0 {
			return damaged("page %d, element %d: key out of order", id, i)
		}
		children[i] = child{order.Uint64(p[e+8:]), bytes.Clone(key)}
		least = children[i].key
	}
	for _, k := range children {
		if err := c.tree(k.id, depth-1, k.key); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) leaf(p []byte, id uint64, depth int, least []byte) error {
	n := int(order.Uint16(p[10:]))
	if pageHeader+n*pageElement > len(p) {
		return damaged("page %d has %d elements", id, n)
	}
	var roots []uint64
	for i := range n {
		e := pageHeader + i*pageElement
		flags, pos := order.Uint32(p[e:]), uint64(order.Uint32(p[e+4:]))
		ksize, vsize := uint64(order.Uint32(p[e+8:])), uint64(order.Uint32(p[e+12:]))
		if ksize == 0 || uint64(e)+pos+ksize+vsize > uint64(len(p)) {
			return damaged("page %d, element %d: data lies outside of the page", id, i)
		}
		data := p[uint64(e)+pos:][:ksize+vsize]
		if o := bytes.Compare(data[:ksize], least); o < 0 || o == 0 && i > 0 {
			return damaged("page %d, element %d: key out of order", id, i)
		}
		least = data[:ksize]
		switch flags {
		case 0:
		case leafBucket:
			value := data[ksize:]
			if len(value) < bucketHeader {
				return damaged("page %d, element %d: bucket of %d bytes", id, i, len(value))
			}
			root := order.Uint64(value)
			if root != 0 {
				roots = append(roots, root)
			} else if err := c.inline(value[bucketHeader:], id, depth); err != nil {
				return err
			}
		default:
			return damaged("page %d, element %d: kind %#x", id, i, flags)
		}
	}
	for _, root := range roots {
		if err := c.tree(root, depth-1, nil); err != nil {
			return err
		}
	}
	return nil
}

// inline checks a bucket so small that its only page lies in its parent's.
func (c *checker) inline(p []byte, id uint64, depth int) error {
	if len(p) < pageHeader || order.Uint16(p[8:]) != flagLeaf || depth == 1 {
		return damaged("page %d: bucket without a page", id)
	}
	return c.leaf(p, id, depth-1, nil)
}
