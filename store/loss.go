package store

import (
	"encoding/binary"
	"time"

	"go.etcd.io/bbolt"
)

// A corrupt file may have lost records from its day. The quarantined file is not lasting proof of
// the loss, because the operator may remove it, and the filter may remove it to stay within the
// budget. Another segment of the day is therefore marked with "loss", a mark that expires only with
// the day's records.

// markLoss marks a segment's day as one that may have lost records.
func (s *segment) markLoss(at time.Time) error {
	return s.update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketMeta).Put(keyLoss, binary.BigEndian.AppendUint64(nil, uint64(at.UnixMicro())))
	})
}

// createLoss creates a sealed segment that has the mark "loss" and no records.
func createLoss(d *directory, part Segment, o sealing) error {
	w, err := createSealed(d, part, nil, o)
	if err != nil {
		return err
	}
	if err := w.out.markLoss(o.now); err != nil {
		w.abort(err)
		return sealError(err)
	}
	_, err = w.finish()
	return sealError(err)
}
