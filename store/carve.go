package store

// This file finds blocks in a sealed segment that has corrupt pages. A client
// may send text that looks like a block. Each block is therefore preceded by
// its file's mark, which consists of 16 random bytes. The mark is chosen after
// the sessions have ended, so no client can send it.

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"

	"scanwatch/store/column"
)

func newMark() []byte {
	mark := make([]byte, markSize)
	_, _ = rand.Read(mark) // never fails
	return mark
}

// appendMark appends the value of keyMark.
func appendMark(dst, mark []byte) []byte {
	return binary.BigEndian.AppendUint32(append(dst, mark...), crc32.Checksum(mark, castagnoli))
}

// openMark returns the mark in the value of keyMark, or nil if the value is corrupt.
func openMark(v []byte) []byte {
	if len(v) != markSize+4 || binary.BigEndian.Uint32(v[markSize:]) != crc32.Checksum(v[:markSize], castagnoli) {
		return nil
	}
	return v[:markSize]
}

// carve searches the whole file for blocks, including unused pages, which
// can contain second copies of blocks.
func (s *sealedFile) carve() error {
	info, err := s.file.Stat()
	if err != nil {
		return err
	}
	if s.blocks = nil; s.mark == nil {
		if s.mark, err = s.findMark(info.Size()); err != nil || s.mark == nil {
			return err
		}
	}
	const window = 4 << 20
	begin := append(bytes.Clone(s.mark), blockMagic...)
	var r column.Reader
	var buf []byte
	for at := int64(0); at < info.Size(); at += window {
		buf, err = s.read(at, min(window+maxBlock, info.Size()-at), buf)
		if err != nil {
			return err
		}
		for from := 0; from < window; {
			i := bytes.Index(buf[from:], begin)
			if i < 0 || from+i >= window {
				break
			}
			from += i
			if r.Open(buf[from+markSize:]) == nil { // the block's size is unknown, but Open ignores the bytes after the block
				s.blocks = append(s.blocks, blockInfo{at: at + int64(from), size: int64(min(len(buf)-from, maxBlock)), bare: true})
			}
			from++
		}
	}
	return nil
}

// findMeta adds metadata that is unreachable from the page tree.
func (s *sealedFile) findMeta() error {
	info, err := s.file.Stat()
	if err != nil {
		return err
	}
	found, err := scanMeta(s.file, info.Size())
	if err != nil {
		return err
	}
	add := func(key string, value []byte) {
		if len(s.meta[key]) == 0 && len(value) > 0 {
			s.meta[key] = value
		}
	}
	for ref, text := range found.rules.text {
		add(ruleName(ref), []byte(text))
	}
	for r, n := range found.dropped {
		if n > 0 {
			add(keyDropped+Reasons[r], binary.BigEndian.AppendUint64(nil, n))
		}
	}
	if !found.doubt.IsZero() {
		add(string(keyDoubt), binary.BigEndian.AppendUint64(nil, uint64(found.doubt.UnixMicro())))
	}
	add(string(keyCreated), found.created)
	return nil
}

// findMark returns the most frequent mark in leaf pages, or nil if it finds none. findMark is
// called if the mark in the metadata is lost. Pages start at multiples of the page size and begin
// with the page's number. The number contains zero bytes, so a client's text cannot look like a
// page.
func (s *sealedFile) findMark(size int64) (mark []byte, err error) {
	pageSize, err := pageSizeOf(s.file, size)
	if err != nil {
		return nil, err
	}
	votes := make(map[string]int)
	page, head := make([]byte, pageSize), make([]byte, markSize+len(blockMagic))
	for id := int64(2); (id+1)*pageSize <= size; id++ {
		if _, err := s.file.ReadAt(page, id*pageSize); err != nil {
			return nil, err
		}
		if order.Uint64(page) != uint64(id) || order.Uint16(page[8:]) != flagLeaf {
			continue
		}
		n := min(int(order.Uint16(page[10:])), (len(page)-pageHeader)/pageElement)
		for i := range n {
			e := page[pageHeader+i*pageElement:]
			if order.Uint32(e) != 0 || order.Uint32(e[8:]) != KeySize {
				continue
			}
			at := id*pageSize + int64(pageHeader+i*pageElement) + int64(order.Uint32(e[4:])) + KeySize
			_, err := s.file.ReadAt(head, at)
			switch {
			case errors.Is(err, io.EOF):
			case err != nil:
				return nil, err
			case string(head[markSize:]) == blockMagic:
				votes[string(head[:markSize])]++
			}
		}
	}
	most := 0
	for m, n := range votes {
		if n > most {
			mark, most = []byte(m), n
		}
	}
	return mark, nil
}
