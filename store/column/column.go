// Package column encodes tables of named columns as blocks of bytes. Each
// column consists of numbers or texts, is compressed separately, and has its
// own checksum. A reader decodes only the columns that it needs, and skips
// unknown columns.
//
// docs/sealed-days.md describes the encoding.
package column

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/bits"
	"slices"

	"github.com/klauspost/compress/zstd"
)

// Limits of a block. A block that exceeds a limit is corrupt.
const (
	MaxValues = 1 << 20  // values of a column
	MaxBytes  = 64 << 20 // memory of the decoded columns
	maxName   = 64       // bytes of a name
)

// magic starts each block. The last byte of magic is the encoding's version.
const magic = "SWB\x01"

// Types of columns.
const (
	typeNumbers = 1
	typeTexts   = 2
)

// Encodings of a run of bytes.
const (
	modeConst  = 0 // one byte, repeated
	modeStored = 1 // the bytes, uncompressed
	modeZstd   = 2 // one Zstandard frame
)

// Encodings of columns.
const (
	numbersPlain = 0 // each value minus the lowest value
	numbersDelta = 1 // each difference from the previous value, minus the lowest difference
	textsPlain   = 0 // each value
	textsIndex   = 1 // the distinct values, followed by the index of each value in them
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A Buffer is a column of texts that has not been encoded yet. The zero value
// is empty.
type Buffer struct {
	data []byte
	ends []uint32 // the end of each text in data
}

// Reset removes all texts.
func (b *Buffer) Reset() { b.data, b.ends = b.data[:0], b.ends[:0] }

// Begin returns a slice to which the caller appends the next text. The caller passes the
// extended slice to End.
func (b *Buffer) Begin() []byte { return b.data }

// End ends a text. data is the result of Begin with the text appended.
func (b *Buffer) End(data []byte) {
	b.data = data
	b.ends = append(b.ends, uint32(len(data)))
}

// Add adds a text.
func (b *Buffer) Add(text []byte) { b.End(append(b.data, text...)) }

// Pad adds empty texts until there are n texts.
func (b *Buffer) Pad(n int) {
	for len(b.ends) < n {
		b.ends = append(b.ends, uint32(len(b.data)))
	}
}

// Len returns the number of texts.
func (b *Buffer) Len() int { return len(b.ends) }

// Bytes returns the total length of the texts in bytes.
func (b *Buffer) Bytes() int { return len(b.data) }

// At returns text i.
func (b *Buffer) At(i int) []byte {
	from := uint32(0)
	if i > 0 {
		from = b.ends[i-1]
	}
	return b.data[from:b.ends[i]]
}

// Texts is a decoded column of texts. The zero value is a column of empty texts.
type Texts struct {
	words   [][]byte // all values, or only the distinct values if indexed is set
	indexed bool
	index   Numbers // index in words of each value, if indexed is set
	values  int
	data    []byte
}

// Reset removes all texts.
func (t *Texts) Reset() { t.words, t.data, t.indexed = t.words[:0], t.data[:0], false }

// At returns text i, which aliases the column.
func (t *Texts) At(i int) []byte {
	if t.indexed {
		i = int(t.index.At(i))
	}
	if i < len(t.words) {
		return t.words[i]
	}
	return nil
}

// Count calls visit for each text. If the column is indexed, Count calls visit once for each
// distinct text, with the number of occurrences.
func (t *Texts) Count(visit func(text []byte, times int)) {
	if !t.indexed {
		for _, w := range t.words {
			visit(w, 1)
		}
		return
	}
	times := make([]int, len(t.words))
	for i := range t.values {
		times[t.index.At(i)]++
	}
	for i, n := range times {
		visit(t.words[i], n)
	}
}

// Numbers is a decoded column of numbers. The zero value is a column of zeros.
type Numbers struct {
	low   uint64   // the lowest value
	width int      // bytes per value in memory, which determine the field in use
	one   []uint8  // width 1: each value minus low
	four  []uint32 // width 4: each value minus low
	eight []uint64 // width 8: each value minus low
}

// Reset sets all numbers to 0.
func (n *Numbers) Reset() { n.low, n.width = 0, 0 }

// At returns number i.
func (n *Numbers) At(i int) uint64 {
	switch n.width {
	case 0:
		return n.low
	case 1:
		return n.low + uint64(n.one[i])
	case 4:
		return n.low + uint64(n.four[i])
	}
	return n.low + n.eight[i]
}

// Max returns the largest number in the column, whose length is values.
func (n *Numbers) Max(values int) uint64 {
	switch {
	case n.width == 0 || values == 0:
		return n.low
	case n.width == 1:
		return n.low + uint64(slices.Max(n.one))
	case n.width == 4:
		return n.low + uint64(slices.Max(n.four))
	}
	most := uint64(0)
	for _, v := range n.eight {
		most = max(most, n.low+v)
	}
	return most
}

// A Writer encodes blocks.
type Writer struct {
	zstd    *zstd.Encoder
	count   int
	dir     []byte
	data    []byte
	plane   []byte
	numbers []uint64
	packed  []byte
	deltas  []uint64
	words   Dictionary
}

// NewWriter returns a Writer.
func NewWriter() *Writer {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true),
		zstd.WithSingleSegment(true), zstd.WithWindowSize(1<<20), zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		panic(err) // impossible: the options are constant
	}
	return &Writer{zstd: z}
}

// Numbers adds a column of numbers. A column of zeros uses no space.
func (w *Writer) Numbers(name string, v []uint64) {
	zero := true
	for _, n := range v {
		zero = zero && n == 0
	}
	if zero {
		return
	}
	from := len(w.data)
	w.putNumbers(v)
	w.entry(name, typeNumbers, len(v), from)
}

// Texts adds a column of texts. A column of empty texts uses no space.
func (w *Writer) Texts(name string, t *Buffer) {
	if len(t.data) == 0 {
		return
	}
	from := len(w.data)
	w.words.Reset()
	w.numbers = w.numbers[:0]
	for i := range t.ends {
		w.numbers = append(w.numbers, uint64(w.words.Add(t.At(i))))
	}
	if w.words.Len() <= len(t.ends)*3/4 {
		w.data = append(w.data, textsIndex)
		w.data = binary.AppendUvarint(w.data, uint64(w.words.Len()))
		w.putNumbers(w.numbers)
		w.putTexts(&w.words.words)
	} else {
		w.data = append(w.data, textsPlain)
		w.putTexts(t)
	}
	w.entry(name, typeTexts, len(t.ends), from)
}

// Finish appends the block to dst and resets the Writer. rows is the number of rows in
// the table.
func (w *Writer) Finish(dst []byte, rows int) []byte {
	from := len(dst)
	dst = append(dst, magic...)
	dst = binary.AppendUvarint(dst, uint64(rows))
	dst = binary.AppendUvarint(dst, uint64(w.count))
	dst = binary.AppendUvarint(dst, uint64(len(w.dir)))
	dst = append(dst, w.dir...)
	dst = binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[from:], castagnoli))
	dst = append(dst, w.data...)
	w.count, w.dir, w.data = 0, w.dir[:0], w.data[:0]
	return dst
}

// entry adds a column to the directory. from is the offset at which the column's data starts.
func (w *Writer) entry(name string, typ byte, values, from int) {
	w.count++
	w.dir = append(binary.AppendUvarint(w.dir, uint64(len(name))), name...)
	w.dir = append(w.dir, typ)
	w.dir = binary.AppendUvarint(w.dir, uint64(values))
	w.dir = binary.AppendUvarint(w.dir, uint64(len(w.data)-from))
	w.dir = binary.LittleEndian.AppendUint32(w.dir, crc32.Checksum(w.data[from:], castagnoli))
}

// putTexts appends the lengths and the bytes of t.
func (w *Writer) putTexts(t *Buffer) {
	w.numbers = w.numbers[:0]
	for i := range t.ends {
		w.numbers = append(w.numbers, uint64(len(t.At(i))))
	}
	w.putNumbers(w.numbers)
	w.data = binary.AppendUvarint(w.data, uint64(len(t.data)))
	w.putRun(t.data)
}

// putNumbers appends the encoding, the first value if differences are stored, the lowest value, and
// the width in bytes. One run follows for each byte of the width. The first run contains the lowest
// byte of each value.
func (w *Writer) putNumbers(v []uint64) {
	low, width := span(v)
	if len(v) > 1 && width > 1 {
		w.deltas = append(w.deltas[:0], 0)
		for i := 1; i < len(v); i++ {
			w.deltas = append(w.deltas, v[i]-v[i-1])
		}
		if low, dwidth := signedSpan(w.deltas[1:]); dwidth < width {
			w.deltas[0] = low
			w.data = append(w.data, numbersDelta)
			w.data = binary.AppendUvarint(w.data, v[0])
			w.putPlanes(w.deltas, low, dwidth)
			return
		}
	}
	w.data = append(w.data, numbersPlain)
	w.putPlanes(v, low, width)
}

func (w *Writer) putPlanes(v []uint64, low uint64, width int) {
	w.data = binary.AppendUvarint(w.data, low)
	w.data = append(w.data, byte(width))
	for p := range width {
		w.plane = w.plane[:0]
		for _, n := range v {
			w.plane = append(w.plane, byte((n-low)>>(8*p)))
		}
		w.putRun(w.plane)
	}
}

// putRun appends a run of bytes in the shortest encoding.
func (w *Writer) putRun(b []byte) {
	same := true
	for _, c := range b {
		same = same && c == b[0]
	}
	if same && len(b) > 0 {
		w.data = append(w.data, modeConst, b[0])
		return
	}
	w.packed = w.packed[:0]
	if len(b) > 32 {
		w.packed = w.zstd.EncodeAll(b, w.packed)
	}
	if len(b) > 32 && len(w.packed) < len(b)-len(b)/16 {
		w.data = binary.AppendUvarint(append(w.data, modeZstd), uint64(len(w.packed)))
		w.data = append(w.data, w.packed...)
		return
	}
	w.data = append(append(w.data, modeStored), b...)
}

// span returns the lowest value and the width in bytes of the difference
// between the largest and lowest values.
func span(v []uint64) (low uint64, width int) {
	if len(v) == 0 {
		return 0, 0
	}
	low, high := v[0], v[0]
	for _, n := range v {
		low, high = min(low, n), max(high, n)
	}
	return low, (bits.Len64(high-low) + 7) / 8
}

// signedSpan is like span, but for signed values.
func signedSpan(v []uint64) (low uint64, width int) {
	least, most := int64(v[0]), int64(v[0])
	for _, n := range v {
		least, most = min(least, int64(n)), max(most, int64(n))
	}
	return uint64(least), (bits.Len64(uint64(most)-uint64(least)) + 7) / 8
}

// ErrCorrupt is returned for a block or column that was not written by a Writer
// or has since been changed.
var ErrCorrupt = errors.New("corrupt block")
