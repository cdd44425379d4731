package sharing

import (
	"crypto/subtle"
	"encoding/binary"
	"errors"

	"scanwatch/cmd/internal/fleetkey"
	"scanwatch/filter/share"
)

// A message is a list of a host's rows. Numbers are varints.
//
//	authentication code (32 bytes)
//	run: a random number of the companion that has sent the message
//	number of the message in this run, from 1; 0 in a snapshot
//	number of rows, at most rowsPerMessage
//	rows: bucket, key and value, each after its length, and stamp

type message struct {
	run, number uint64
	rows        []share.Row
}

const codeSize = 32

// maxMessage is the maximum size of a message in bytes.
const maxMessage = 1 << 20

var (
	errWrongKey = errors.New("authenticated with a different fleet key")
	errInvalid  = errors.New("invalid message")
)

func encode(key fleetkey.Key, host string, m *message) []byte {
	b := make([]byte, codeSize, codeSize+64*len(m.rows))
	for _, n := range [...]uint64{m.run, m.number, uint64(len(m.rows))} {
		b = binary.AppendUvarint(b, n)
	}
	for i := range m.rows {
		r := &m.rows[i]
		for _, s := range [...]string{r.Bucket, r.Key, r.Value} {
			b = binary.AppendUvarint(b, uint64(len(s)))
			b = append(b, s...)
		}
		b = binary.AppendUvarint(b, uint64(r.Stamp))
	}
	sum := key.Sum(fleetkey.PurposeBatch, []byte(host), b[codeSize:])
	copy(b, sum[:])
	return b
}

func decode(key fleetkey.Key, host string, b []byte) (m message, err error) {
	if len(b) < codeSize || len(b) > maxMessage {
		return m, errInvalid
	}
	sum := key.Sum(fleetkey.PurposeBatch, []byte(host), b[codeSize:])
	if subtle.ConstantTimeCompare(sum[:], b[:codeSize]) != 1 {
		return m, errWrongKey
	}
	r := reader{b: b[codeSize:]}
	m.run, m.number = r.number(), r.number()
	n := r.number()
	if n > rowsPerMessage { // a row needs many times the memory of its encoding
		return m, errInvalid
	}
	m.rows = make([]share.Row, 0, n)
	for range n {
		m.rows = append(m.rows, share.Row{Bucket: r.text(), Key: r.text(), Value: r.text(), Stamp: share.Stamp(r.number())})
	}
	if r.failed || len(r.b) > 0 {
		return m, errInvalid
	}
	return m, nil
}

// A reader reads varints and strings.
type reader struct {
	b      []byte
	failed bool
}

func (r *reader) number() uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 {
		r.failed, r.b = true, nil
		return 0
	}
	r.b = r.b[size:]
	return n
}

func (r *reader) text() string {
	n := r.number()
	if n > uint64(len(r.b)) {
		r.failed, r.b = true, nil
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}
