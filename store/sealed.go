package store

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"net/netip"
	"os"
	"slices"
	"time"
)

// A sealed segment replaces a segment of rows. It stores the same sessions in the same order, but
// in blocks of columns. A sealed segment is never changed, only replaced as a whole. For the file
// format, see docs/sealed-days.md.

const (
	blockRows  = 4000    // maximum records of a block
	blockBytes = 2 << 20 // maximum bytes of a block's records before compression
	maxBlock   = 8 << 20 // maximum bytes of a block
	maxRead    = 16 << 20
	blockMagic = "SWB\x01" // the first bytes of a block, after the mark
	markSize   = 16        // bytes of the mark of a file
	indexHead  = 4 + KeySize + 4 + 8 + 8 + 4

	filterBits   = 8 // bits per value in a Bloom filter
	filterHashes = 5
)

var (
	bucketBlocks = []byte("blocks")
	bucketIndex  = []byte("index")
	keyMark      = "mark"   // the mark of the file and its CRC-32C
	keyBlocks    = "blocks" // the number of blocks
	castagnoli   = crc32.MakeTable(crc32.Castagnoli)
)

// A recordKey is a record's key: the end of the session, in microseconds since 1970,
// and its id.
type recordKey struct{ end, id uint64 }

func keyOf(b []byte) recordKey {
	return recordKey{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}

func (k recordKey) append(dst []byte) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(dst, k.end), k.id)
}

func (k recordKey) compare(o recordKey) int {
	return cmp.Or(cmp.Compare(k.end, o.end), cmp.Compare(k.id, o.id))
}

func (k recordKey) time() time.Time { return time.UnixMicro(int64(k.end)) }

func (r *Record) key() recordKey { return recordKey{uint64(r.End.UnixMicro()), r.ID} }

// A blockInfo is an entry in the block index.
type blockInfo struct {
	first, last recordKey
	records     uint32
	sessions    uint64 // number of sessions in all records
	messages    uint64 // messages accepted in these sessions
	crc         uint32 // CRC-32C of the block
	filter      []byte // see appendFilter

	// The following fields are not in the file.
	bare     bool  // the entry is lost: filter and crc are unknown
	at, size int64 // place of the block with the mark before it
	lost     error // the block cannot be read
}

// append appends the encoding of the entry.
func (b *blockInfo) append(dst []byte) []byte {
	from := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = b.last.append(dst)
	dst = binary.BigEndian.AppendUint32(dst, b.records)
	dst = binary.BigEndian.AppendUint64(dst, b.sessions)
	dst = binary.BigEndian.AppendUint64(dst, b.messages)
	dst = binary.BigEndian.AppendUint32(dst, b.crc)
	dst = append(dst, b.filter...)
	binary.BigEndian.PutUint32(dst[from:], b.checksum(dst[from+4:]))
	return dst
}

// checksum returns the CRC-32C of an entry. It covers the entry's key, and the value without its
// first four bytes, which store the checksum.
func (b *blockInfo) checksum(value []byte) uint32 {
	return crc32.Update(crc32.Checksum(b.first.append(nil), castagnoli), castagnoli, value)
}

// decode decodes an entry whose key is already in first.
func (b *blockInfo) decode(v []byte) error {
	if len(v) < indexHead || binary.BigEndian.Uint32(v) != b.checksum(v[4:]) {
		return damaged("index of block %s", b.name())
	}
	b.last = keyOf(v[4:])
	b.records = binary.BigEndian.Uint32(v[20:])
	b.sessions = binary.BigEndian.Uint64(v[24:])
	b.messages = binary.BigEndian.Uint64(v[32:])
	b.crc = binary.BigEndian.Uint32(v[40:])
	b.filter = v[indexHead:]
	return nil
}

// name returns the time at which the block's first session ended. This time identifies the block in
// errors.
func (b *blockInfo) name() string { return b.first.time().UTC().Format("2006-01-02T15:04:05.000000Z") }

// count adds a record to the totals.
func (b *blockInfo) count(r *Record) {
	if b.records == 0 {
		b.first = r.key()
	}
	b.last = r.key()
	b.records++
	b.sessions += uint64(r.Many())
	b.messages += uint64(r.Counts.Mails)
}

// appendHashes appends the hashes of the values by which readers select r: its id, its
// source, and the ids to which an aggregate refers.
func appendHashes(dst []uint64, r *Record) []uint64 {
	dst = append(dst, hashID(r.ID))
	if r.Sessions > 0 {
		_ = r.Steps(func(s *Step) bool {
			if s.Kind == KindReference {
				dst = append(dst, hashID(s.Session))
			}
			return true
		})
	}
	if r.Src.IsValid() {
		for _, n := range sourceBits(r.Src.Addr()) {
			dst = append(dst, hashSource(r.Src.Addr(), n))
		}
	}
	return dst
}

// sourceBits returns the lengths of the prefixes of a that a Bloom filter contains.
func sourceBits(a netip.Addr) []int {
	if a.Unmap().Is4() {
		return []int{32, 24}
	}
	return []int{64}
}

func hashID(id uint64) uint64 { return mix(id) }

// hashSource returns the hash of the first n bits of a.
func hashSource(a netip.Addr, n int) uint64 {
	p, _ := a.Unmap().Prefix(n)
	ip := p.Addr().As16()
	return mix(mix(mix(binary.BigEndian.Uint64(ip[:])+uint64(n)) + binary.BigEndian.Uint64(ip[8:])))
}

// mix is the finalizer of SplitMix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// appendFilter appends a Bloom filter of the sorted hashes. If a hash is not in the
// filter, the block does not contain the value. The false positive rate is 2 %.
func appendFilter(dst []byte, hashes []uint64) []byte {
	slices.Sort(hashes)
	hashes = slices.Compact(hashes)
	from := len(dst)
	dst = append(dst, make([]byte, (len(hashes)*filterBits+7)/8)...)
	for _, h := range hashes {
		for i := range filterHashes {
			n := filterBit(h, i, len(dst)-from)
			dst[from+n/8] |= 1 << (n % 8)
		}
	}
	return dst
}

// filterBit returns the position of a hash's ith bit in a Bloom filter.
func filterBit(h uint64, i, size int) int {
	n, _ := bits.Mul64(h+uint64(i)*(bits.RotateLeft64(h, 32)|1), uint64(size)*8)
	return int(n)
}

// may reports whether the block may contain a value with this hash.
func (b *blockInfo) may(h uint64) bool {
	if b.bare {
		return true
	}
	for i := range filterHashes {
		if len(b.filter) == 0 {
			return false
		}
		if n := filterBit(h, i, len(b.filter)); b.filter[n/8]&(1<<(n%8)) == 0 {
			return false
		}
	}
	return true
}

// maySource reports whether the block may contain a session from a source in p.
func (b *blockInfo) maySource(p netip.Prefix) bool {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	for _, n := range sourceBits(p.Addr()) {
		if p.Bits() >= n {
			return b.may(hashSource(p.Addr(), n))
		}
	}
	return true // wider than the prefixes in the filter
}

// A sealedFile is an open sealed segment.
type sealedFile struct {
	Segment
	file   *os.File
	meta   metadata
	mark   []byte      // precedes each block
	blocks []blockInfo // oldest first
	broken error       // the first error in the structure of the file, or nil
}

// openSealed opens a sealed segment and reads its index. Blocks are read only
// if index entries are lost.
func openSealed(d *directory, info Segment) (*sealedFile, error) {
	file, err := d.open(info.Name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	s := &sealedFile{Segment: info, file: file, meta: make(metadata)}
	if err := s.open(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *sealedFile) close() { s.file.Close() }

func (s *sealedFile) open() error {
	entries := make(map[recordKey][]byte)
	var failed error
	err := walkFile(s.file, func(bucket, key []byte, at, size int64) {
		if bytes.Equal(bucket, bucketBlocks) && len(key) == KeySize {
			s.blocks = append(s.blocks, blockInfo{first: keyOf(key), at: at, size: size})
			return
		}
		v, err := s.read(at, size, nil)
		switch {
		case isDamaged(err):
			s.damage(err)
		case err != nil:
			failed = err
		case bytes.Equal(bucket, bucketMeta):
			s.meta[string(key)] = v
		case bytes.Equal(bucket, bucketIndex) && len(key) == KeySize:
			entries[keyOf(key)] = v
		}
	}, s.damage)
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	if v := s.meta[string(keySchema)]; len(v) == 2 {
		if err := knownSchema(int(binary.BigEndian.Uint16(v)), sealedSchema); err != nil {
			return err
		}
	} else {
		s.damage(damaged("no schema version"))
	}
	if s.mark = openMark(s.meta[keyMark]); s.mark == nil {
		s.damage(damaged("the mark of the file is lost"))
	}
	if v := s.meta[keyBlocks]; len(v) != 4 || int(binary.BigEndian.Uint32(v)) != len(s.blocks) {
		s.damage(damaged("the list of blocks is incomplete"))
	}
	if s.broken != nil {
		if err := s.findMeta(); err != nil {
			return err
		}
		if err := s.carve(); err != nil {
			return err
		}
		if len(s.blocks) == 0 {
			return s.broken
		}
	}
	return s.match(entries)
}

// damage stores the first error in the file's structure.
func (s *sealedFile) damage(err error) {
	if s.broken == nil {
		s.broken = err
	}
}

// read reads size bytes into buf. at is the offset in the file.
func (s *sealedFile) read(at, size int64, buf []byte) ([]byte, error) {
	if size > maxRead {
		return nil, damaged("value of %d bytes, more than %d", size, maxRead)
	}
	if int64(cap(buf)) < size {
		buf = make([]byte, size)
	}
	buf = buf[:size]
	if _, err := s.file.ReadAt(buf, at); errors.Is(err, io.EOF) {
		return nil, damaged("truncated at %d", at)
	} else if err != nil {
		return nil, err
	}
	return buf, nil
}

// match assigns the index entries to the blocks. If a block has no entry, match reads the block to
// obtain its keys.
func (s *sealedFile) match(entries map[recordKey][]byte) error {
	var b decodedBlock
	for i := range s.blocks {
		info := &s.blocks[i]
		if !info.bare {
			err := info.decode(entries[info.first])
			delete(entries, info.first)
			if err == nil {
				continue
			}
			s.damage(err)
			*info = blockInfo{first: info.first, last: info.first, at: info.at, size: info.size, bare: true}
		}
		if err := s.load(info, &b, 0); err != nil {
			if !isDamaged(err) {
				return err
			}
			info.lost = err
			continue
		}
		*info = blockInfo{at: info.at, size: info.size, bare: true}
		_ = b.each(func(r *Record) error { info.count(r); return nil })
		if !belongs(utcDay(info.first.time()), s.Day) || !belongs(utcDay(info.last.time()), s.Day) {
			*info = blockInfo{lost: damaged("block of another day")}
		}
	}
	// The index still contains keys of blocks that carve has not found.
	s.blocks = slices.DeleteFunc(s.blocks, func(b blockInfo) bool { return b.lost != nil && b.first == recordKey{} })
	s.sort()
	s.blocks = slices.CompactFunc(s.blocks, func(a, b blockInfo) bool { return a.first == b.first })
	var missing []blockInfo
	for key, v := range entries {
		info := blockInfo{first: key}
		if !s.has(key) && info.decode(v) == nil {
			info.lost = damaged("block %s is missing", info.name())
			missing = append(missing, info)
		}
	}
	s.blocks = append(s.blocks, missing...)
	s.sort()
	return nil
}

func (s *sealedFile) sort() {
	slices.SortStableFunc(s.blocks, func(a, b blockInfo) int { return a.first.compare(b.first) })
}

func (s *sealedFile) has(key recordKey) bool {
	_, ok := slices.BinarySearchFunc(s.blocks, key, func(b blockInfo, k recordKey) int { return b.first.compare(k) })
	return ok
}

// A decodedBlock is a block in memory with its buffers.
type decodedBlock struct {
	block
	keys []recordKey // keys of the records
	buf  []byte      // the mark and the block
}

func (b *decodedBlock) value() []byte { return b.buf[markSize:] }

// search returns the index of the first record whose key is not less than key.
func (b *decodedBlock) search(key recordKey) int {
	i, _ := slices.BinarySearchFunc(b.keys, key, recordKey.compare)
	return i
}

// load reads and decodes a block.
func (s *sealedFile) load(info *blockInfo, b *decodedBlock, kinds Kinds) (err error) {
	if info.lost != nil {
		return info.lost
	}
	if b.buf, err = s.read(info.at, info.size, b.buf); err != nil {
		return err
	}
	if len(s.mark) != markSize || !bytes.HasPrefix(b.buf, s.mark) {
		return damaged("block %s: not of this file", info.name())
	}
	return b.decode(b.value(), info, kinds)
}

// decode decodes a block and compares it with its index entry.
func (b *decodedBlock) decode(value []byte, info *blockInfo, kinds Kinds) error {
	if err := b.open(value, kinds); err != nil {
		return damaged("block %s of %d records: %v", info.name(), info.records, err)
	}
	b.keys = b.appendKeys(b.keys[:0])
	switch n := len(b.keys); {
	case n == 0 || !slices.IsSortedFunc(b.keys, recordKey.compare):
		return damaged("block %s: records out of order", info.name())
	case !info.bare && (b.keys[0] != info.first || b.keys[n-1] != info.last || uint32(n) != info.records):
		return damaged("block %s: records differ from the index", info.name())
	}
	return nil
}

// appendKeys appends the records' keys.
func (b *block) appendKeys(dst []recordKey) []recordKey {
	for row := range b.rows() {
		end, id := b.key(row)
		dst = append(dst, recordKey{end, id})
	}
	return dst
}

// each calls f with each block's number and records. each verifies all checksums and returns the
// first error from a block or from f.
func (s *sealedFile) each(f func(i int, b *decodedBlock) error) error {
	var b decodedBlock
	for i := range s.blocks {
		if err := s.check(&s.blocks[i], &b); err != nil {
			return err
		}
		if err := f(i, &b); err != nil {
			return err
		}
	}
	return nil
}

// check loads a block and verifies its checksum and index entry.
func (s *sealedFile) check(info *blockInfo, b *decodedBlock) error {
	if err := s.load(info, b, AllKinds); err != nil || info.bare {
		return err
	}
	if crc32.Checksum(b.value(), castagnoli) != info.crc {
		return damaged("block %s: checksum", info.name())
	}
	var sum blockInfo
	var hashes []uint64
	err := b.each(func(r *Record) error {
		sum.count(r)
		hashes = appendHashes(hashes, r)
		return nil
	})
	missing := slices.ContainsFunc(hashes, func(h uint64) bool { return !info.may(h) })
	if err == nil && (missing || sum.sessions != info.sessions || sum.messages != info.messages) {
		err = damaged("block %s: totals differ from the index", info.name())
	}
	return err
}

// each calls f for each record.
func (b *decodedBlock) each(f func(*Record) error) error {
	r := Record{step: new(Step)}
	for i := range b.rows() {
		b.record(i, &r)
		if err := f(&r); err != nil {
			return err
		}
	}
	return nil
}

// lastKey returns the last key in the file.
func (s *sealedFile) lastKey() (last recordKey) {
	for i := range s.blocks {
		if b := &s.blocks[i]; b.last.compare(last) > 0 {
			last = b.last
		}
	}
	return last
}

// knownSchema returns an error if a file's schema n differs from the schema that this
// program reads.
func knownSchema(n, known int) error {
	switch {
	case n > known:
		return fmt.Errorf("schema %d, this program knows up to %d: %w", n, known, ErrNewer)
	case n < known:
		return fmt.Errorf("schema %d, this program reads %d: %w", n, known, ErrOlder)
	}
	return nil
}
