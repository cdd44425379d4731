package store

import (
	"encoding/binary"
	"time"

	"go.etcd.io/bbolt"
)

// A day may have lost records because a file of it was corrupt. The quarantined file
// does not prove that for long: it is removed if the budget needs its room, or by the
// operator. Another segment of the day therefore has the mark "loss", which lasts as
// long as the records of the day.

// markLoss stores that records of the day of the segment may have been lost.
func (s *segment) markLoss(at time.Time) error {
	return s.update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketMeta).Put(keyLoss, binary.BigEndian.AppendUint64(nil, uint64(at.UnixMicro())))
	})
}

// createLoss creates a sealed segment of a part with the mark, without records.
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
