package store

import (
	"encoding/binary"
	"os"
)

// Tests that import the filter are in package store_test. The functions exported in
// this file give them access to blocks.

// Seal encodes records as blocks of at most 4,000 records or 2 MB.
func Seal(all []Record) (blocks [][]byte) {
	e := newBlockEncoder()
	for i := range all {
		e.add(&all[i])
		if e.rows() == 4000 || e.bytes() >= 2<<20 || i == len(all)-1 {
			blocks = append(blocks, e.finish(nil))
		}
	}
	return blocks
}

// SealFile writes records as a sealed segment and returns its size.
func SealFile(dir string, all []Record) (int64, error) {
	d, err := openDirectory(dir)
	if err != nil {
		return 0, err
	}
	defer d.root.Close()
	w, err := createSealed(d, Segment{Name: "2026-11-01.db", Day: all[0].End, Part: 1}, nil, sealing{limit: 4 << 30, now: all[0].End})
	if err != nil {
		return 0, err
	}
	for i := range all {
		if _, err := w.add(&all[i]); err != nil {
			return 0, err
		}
	}
	return w.finish()
}

// ReadFile calls f for each record in a directory's only sealed segment.
func ReadFile(dir string, kinds Kinds, f func(*Record) error) error {
	d, err := openDirectory(dir)
	if err != nil {
		return err
	}
	defer d.root.Close()
	segments, err := d.segments()
	if err != nil {
		return err
	}
	s, err := openSealed(d, segments[0])
	if err != nil {
		return err
	}
	defer s.close()
	var b decodedBlock
	for i := range s.blocks {
		if err := s.load(&s.blocks[i], &b, kinds); err != nil {
			return err
		}
		if err := b.each(f); err != nil {
			return err
		}
	}
	return nil
}

// A PlainFile stores a sealed segment without bbolt. The file consists of all
// blocks, the index with the key and position of each block, and the number of
// index entries.
type PlainFile struct{ Name string }

// Write writes records and returns the file's size.
func (p PlainFile) Write(all []Record) (int64, error) {
	f, err := os.Create(p.Name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	w := sealWriter{encoder: newBlockEncoder()}
	var index []byte
	at := int64(0)
	for i := range all {
		if _, err := w.add(&all[i]); err != nil {
			return 0, err
		}
		if i == len(all)-1 {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
		for _, b := range w.blocks {
			if _, err := f.Write(b.value); err != nil {
				return 0, err
			}
			entry := b.append(b.first.append(nil))
			for _, n := range []int64{int64(len(entry)), at, int64(len(b.value))} {
				index = binary.BigEndian.AppendUint64(index, uint64(n))
			}
			index = append(index, entry...)
			at += int64(len(b.value))
		}
		w.blocks, w.size = w.blocks[:0], 0
	}
	index = binary.BigEndian.AppendUint64(index, uint64(at))
	if _, err := f.Write(index); err != nil {
		return 0, err
	}
	return at + int64(len(index)), f.Sync()
}

// Read calls f for each record.
func (p PlainFile) Read(kinds Kinds, f func(*Record) error) error {
	file, err := os.Open(p.Name)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	s := sealedFile{file: file}
	tail, err := s.read(info.Size()-8, 8, nil)
	if err != nil {
		return err
	}
	from := int64(binary.BigEndian.Uint64(tail))
	index, err := s.read(from, info.Size()-8-from, nil)
	if err != nil {
		return err
	}
	var b decodedBlock
	for len(index) > 0 {
		number := func(i int) int64 { return int64(binary.BigEndian.Uint64(index[8*i:])) }
		entry := index[24 : 24+number(0)]
		block := blockInfo{first: keyOf(entry), at: number(1), size: number(2)}
		index = index[24+number(0):]
		if err := block.decode(entry[KeySize:]); err != nil {
			return err
		}
		if err := s.load(&block, &b, kinds); err != nil {
			return err
		}
		if err := b.each(f); err != nil {
			return err
		}
	}
	return nil
}

// ReadBlocks calls f for each record in blocks.
func ReadBlocks(blocks [][]byte, kinds Kinds, f func(*Record) error) error {
	var b block
	var r Record
	var s Step
	r.step = &s
	for _, value := range blocks {
		if err := b.open(value, kinds); err != nil {
			return err
		}
		for i := range b.rows() {
			b.record(i, &r)
			if err := f(&r); err != nil {
				return err
			}
		}
	}
	return nil
}
