package sharing

import (
	"crypto/subtle"
	"encoding/binary"
	"errors"

	"scanwatch/cmd/internal/fleetkey"
	"scanwatch/filter/share"
)

// A message is a list of rows of a host, after its authentication code and the run of the
// companion that has sent it. Numbers are varints.
//
//	code (32 bytes)
//	run
//	number of rows
//	rows: bucket, key and value, each after its length, stamp, seen

const codeSize = 32

// maxMessage is the maximum size of a message in bytes.
const maxMessage = 1 << 20

var (
	errWrongKey = errors.New("authenticated with another fleet key")
	errInvalid  = errors.New("invalid message")
)

func encode(key fleetkey.Key, host string, run uint64, rows []share.Row) []byte {
	b := make([]byte, codeSize, codeSize+64*len(rows))
	b = binary.AppendUvarint(b, run)
	b = binary.AppendUvarint(b, uint64(len(rows)))
	for i := range rows {
		r := &rows[i]
		for _, s := range [...]string{r.Bucket, r.Key, r.Value} {
			b = binary.AppendUvarint(b, uint64(len(s)))
			b = append(b, s...)
		}
		b = binary.AppendUvarint(b, uint64(r.Stamp))
		b = binary.AppendUvarint(b, uint64(r.Seen))
	}
	sum := key.Sum(fleetkey.PurposeBatch, []byte(host), b[codeSize:])
	copy(b, sum[:])
	return b
}

func decode(key fleetkey.Key, host string, b []byte) (run uint64, rows []share.Row, err error) {
	if len(b) < codeSize || len(b) > maxMessage {
		return 0, nil, errInvalid
	}
	sum := key.Sum(fleetkey.PurposeBatch, []byte(host), b[codeSize:])
	if subtle.ConstantTimeCompare(sum[:], b[:codeSize]) != 1 {
		return 0, nil, errWrongKey
	}
	r := reader{b: b[codeSize:]}
	run = r.number()
	n := r.number()
	if n > uint64(len(r.b)) { // a row has several bytes
		return 0, nil, errInvalid
	}
	rows = make([]share.Row, 0, n)
	for range n {
		rows = append(rows, share.Row{Bucket: r.text(), Key: r.text(), Value: r.text(), Stamp: share.Stamp(r.number()), Seen: share.Stamp(r.number())})
	}
	if r.failed || len(r.b) > 0 {
		return 0, nil, errInvalid
	}
	return run, rows, nil
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
