package store

import (
	"encoding/binary"
	"time"
)

// A buffer holds records one after another: key, length of the value (uint32,
// big-endian), value. It never grows beyond the capacity it was made with.
type buffer struct {
	data []byte
	n    int // records
}

const recordHead = KeySize + 4

// add appends a record, unless there is no room for it.
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

// nextRecord takes the first record off data. The results alias data.
func nextRecord(data []byte) (key, value, rest []byte) {
	n := recordHead + int(binary.BigEndian.Uint32(data[KeySize:]))
	return data[:KeySize:KeySize], data[recordHead:n:n], data[n:]
}

func keyTime(key []byte) time.Time {
	return time.UnixMicro(int64(binary.BigEndian.Uint64(key)))
}
