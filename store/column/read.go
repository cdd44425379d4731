package column

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// A Reader decodes the columns of a block and reuses its buffers for the
// next block. The zero value is ready to use.
type Reader struct {
	columns []entry
	left    int // bytes of memory that further columns may use
	rows    int
	planes  [8][]byte
	lengths Numbers
}

// An entry describes a column in a block's directory.
type entry struct {
	name   []byte
	typ    byte
	values int
	crc    uint32
	data   []byte
}

// decoder is safe for concurrent use and never writes more than fits into
// the destination.
var decoder = func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(MaxBytes),
		zstd.WithDecodeAllCapLimit(true), zstd.IgnoreChecksum(true))
	if err != nil {
		panic(err) // impossible: the options are constant
	}
	return d
}()

// Open checks and reads the directory of a block. The Reader refers to block until
// the next Open.
func (r *Reader) Open(block []byte) error {
	r.columns, r.left = r.columns[:0], MaxBytes
	rest, ok := strings.CutPrefix(string(block[:min(len(block), len(magic))]), magic)
	if !ok || rest != "" {
		return fmt.Errorf("%w: it does not start with %q", ErrCorrupt, magic)
	}
	p := parser{rest: block[len(magic):]}
	r.rows = int(p.uvarint(MaxValues))
	count := p.uvarint(uint64(len(block)))
	dir := parser{rest: p.bytes(p.uvarint(uint64(len(block))))}
	end := len(block) - len(p.rest)
	sum := p.bytes(4)
	if p.bad || crc32.Checksum(block[:end], castagnoli) != binary.LittleEndian.Uint32(sum) {
		return fmt.Errorf("%w: directory", ErrCorrupt)
	}
	for range count {
		e := entry{name: dir.bytes(dir.uvarint(maxName))}
		e.typ = dir.byte()
		e.values = int(dir.uvarint(MaxValues))
		size := dir.uvarint(uint64(len(block)))
		sum := dir.bytes(4)
		if dir.bad {
			return fmt.Errorf("%w: entry of the directory", ErrCorrupt)
		}
		e.crc = binary.LittleEndian.Uint32(sum)
		if e.data = p.bytes(size); p.bad {
			return fmt.Errorf("%w: column %q ends after the block", ErrCorrupt, e.name)
		}
		r.columns = append(r.columns, e)
	}
	return nil
}

// Rows returns the number of rows in the table.
func (r *Reader) Rows() int { return r.rows }

// Len returns the number of columns.
func (r *Reader) Len() int { return len(r.columns) }

// Name returns the name of column i.
func (r *Reader) Name(i int) []byte { return r.columns[i].name }

// Values returns the number of values in column i.
func (r *Reader) Values(i int) int { return r.columns[i].values }

// check returns an error if column i does not have the type typ or has a wrong checksum.
func (r *Reader) check(i int, typ byte) error {
	e := &r.columns[i]
	if e.typ != typ {
		return fmt.Errorf("%w: column %q has type %d; want %d", ErrCorrupt, e.name, e.typ, typ)
	}
	if crc32.Checksum(e.data, castagnoli) != e.crc {
		return fmt.Errorf("%w: checksum of column %q", ErrCorrupt, e.name)
	}
	return nil
}

// Numbers decodes column i into n.
func (r *Reader) Numbers(i int, n *Numbers) error {
	n.Reset()
	if err := r.check(i, typeNumbers); err != nil {
		return err
	}
	e := &r.columns[i]
	p := parser{rest: e.data}
	r.numbers(&p, e.values, n)
	return p.end(e.name)
}

// Texts decodes column i into t.
func (r *Reader) Texts(i int, t *Texts) error {
	t.Reset()
	if err := r.check(i, typeTexts); err != nil {
		return err
	}
	e := &r.columns[i]
	p := parser{rest: e.data}
	switch p.byte() {
	case textsPlain:
		r.texts(&p, e.values, t)
	case textsIndex:
		distinct := int(p.uvarint(uint64(e.values)))
		r.numbers(&p, e.values, &t.index)
		p.bad = p.bad || t.index.Max(e.values) >= uint64(distinct)
		t.indexed, t.values = true, e.values
		r.texts(&p, distinct, t)
	default:
		p.bad = true
	}
	if err := p.end(e.name); err != nil {
		t.Reset()
		return err
	}
	return nil
}

// texts decodes texts into t.
func (r *Reader) texts(p *parser, values int, t *Texts) {
	r.numbers(p, values, &r.lengths)
	size := p.uvarint(MaxBytes)
	if !r.take(p, int(size)+24*values) {
		return
	}
	t.data = r.run(p, int(size), t.data)
	t.words = slices.Grow(t.words[:0], values)[:values]
	rest := t.data
	for i := range values {
		n := r.lengths.At(i)
		if n > uint64(len(rest)) {
			p.bad = true
			return
		}
		if t.words[i] = nil; n > 0 {
			t.words[i], rest = rest[:n:n], rest[n:]
		}
	}
	p.bad = p.bad || len(rest) > 0
}

// numbers decodes numbers into n.
func (r *Reader) numbers(p *parser, values int, n *Numbers) {
	n.Reset()
	mode := p.byte()
	first := uint64(0)
	if mode == numbersDelta {
		first = p.uvarint(math.MaxUint64)
	}
	low, width := p.uvarint(math.MaxUint64), int(p.byte())
	if p.bad = p.bad || mode > numbersDelta || width > 8; p.bad {
		return
	}
	n.low = low
	switch {
	case mode == numbersDelta || width > 4:
		n.width = 8
	case width > 1:
		n.width = 4
	default:
		n.width = width
	}
	if !r.take(p, (n.width+width)*values) {
		n.Reset()
		return
	}
	var planes [8][]byte
	for i := range width {
		plane := &r.planes[i]
		if n.width == 1 {
			plane = &n.one
		}
		*plane = r.run(p, values, *plane)
		planes[i] = *plane
	}
	if p.bad {
		n.Reset()
		return
	}
	switch n.width {
	case 4:
		n.four = slices.Grow(n.four[:0], values)[:values]
		merge(n.four, planes[:width])
	case 8:
		n.eight = slices.Grow(n.eight[:0], values)[:values]
		merge(n.eight, planes[:width])
	}
	if mode == numbersDelta {
		n.low = first
		sum(n.eight, low)
	}
}

// merge combines bytes into numbers. The first plane contains the lowest byte of each number, the
// second plane contains the next byte, and so on.
func merge[N uint32 | uint64](v []N, planes [][]byte) {
	if len(planes) == 0 {
		clear(v)
		return
	}
	for i, c := range planes[0][:len(v)] {
		v[i] = N(c)
	}
	for i := 1; i < len(planes); i++ {
		shift := 8 * i % 64
		for i, c := range planes[i][:len(v)] {
			v[i] |= N(c) << shift
		}
	}
}

// sum replaces differences with their running totals. Each difference is stored minus low, the
// lowest difference. The first number is always 0.
func sum(v []uint64, low uint64) {
	total := uint64(0)
	for i := range v {
		if i > 0 {
			total += v[i] + low
		}
		v[i] = total
	}
}

// run decodes size bytes into dst.
func (r *Reader) run(p *parser, size int, dst []byte) []byte {
	dst = slices.Grow(dst[:0], size)
	switch p.byte() {
	case modeConst:
		c := p.byte()
		dst = dst[:size]
		for i := range dst {
			dst[i] = c
		}
	case modeStored:
		dst = append(dst, p.bytes(uint64(size))...)
	case modeZstd:
		out, err := decoder.DecodeAll(p.bytes(p.uvarint(math.MaxInt32)), dst[:0:size])
		if p.bad = p.bad || err != nil || len(out) != size; !p.bad {
			dst = append(dst, out...) // out is in dst, unless the decoder had to grow it
		}
	default:
		p.bad = true
	}
	p.bad = p.bad || len(dst) != size
	return dst
}

// take reserves memory for decoded columns.
func (r *Reader) take(p *parser, bytes int) bool {
	r.left -= bytes
	p.bad = p.bad || r.left < 0
	return !p.bad
}

// A parser reads fields from bytes. After an error, bad is set and all results are
// empty.
type parser struct {
	rest []byte
	bad  bool
}

func (p *parser) uvarint(most uint64) uint64 {
	v, n := binary.Uvarint(p.rest)
	if n <= 0 || v > most {
		p.bad = true
	}
	if p.bad {
		return 0
	}
	p.rest = p.rest[n:]
	return v
}

func (p *parser) bytes(n uint64) []byte {
	if n > uint64(len(p.rest)) {
		p.bad = true
	}
	if p.bad {
		return nil
	}
	b := p.rest[:n:n]
	p.rest = p.rest[n:]
	return b
}

func (p *parser) byte() byte {
	b := p.bytes(1)
	if p.bad {
		return 0
	}
	return b[0]
}

// end returns an error if the parser has found corruption or has not read all bytes.
func (p *parser) end(name []byte) error {
	if p.bad || len(p.rest) > 0 {
		return fmt.Errorf("%w: column %q", ErrCorrupt, name)
	}
	return nil
}
