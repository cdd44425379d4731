package store

import (
	"encoding/binary"
	"time"
)

// A buffer holds encoded records. Each record consists of its key, the length of its
// value (uint32, big-endian) and its value. A buffer never grows beyond its initial
// capacity.
type buffer struct {
	data []byte
	n    int // number of records
}

const recordHead = KeySize + 4

// add appends a record, or returns false if the buffer is full.
func (b *buffer) add(end time.Time, id uint64, value []byte) bool {
	if len(b.data)+recordHead+len(value) > cap(b.data) {
		return false
	}
	b.data = AppendKey(b.data, end, id)
	b.data = binary.BigEndian.AppendUint32(b.data, uint32(len(value)))
	b.data = append(b.data, value...)
	b.n++
	return true
}

func (b *buffer) reset() { b.data, b.n = b.data[:0], 0 }

// nextRecord splits data after the first record. The results alias data.
func nextRecord(data []byte) (key, value, rest []byte) {
	n := recordHead + int(binary.BigEndian.Uint32(data[KeySize:]))
	return data[:KeySize:KeySize], data[recordHead:n:n], data[n:]
}

func keyTime(key []byte) time.Time {
	return time.UnixMicro(int64(binary.BigEndian.Uint64(key)))
}
