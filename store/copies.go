package store

import (
	"math"
	"slices"
)

// An otherCopy describes the second file if a day is salvaged from two files. If there is only one
// file, the *otherCopy is nil.
type otherCopy struct {
	keys  []recordKey // sorted keys of the file's readable records
	steps []int32     // by record: number of readable steps, or wholeCopy; nil if all records are intact
	whole []blockInfo // key ranges of the intact blocks in a sealed segment
}

const (
	wholeCopy = math.MaxInt32
	poorCopy  = -1 // columns of the record itself, not of its steps, are lost
)

// copiesIn describes the readable records of a corrupt sealed segment.
func copiesIn(d *directory, s Segment) (*otherCopy, error) {
	o := new(otherCopy)
	in, err := openSealed(d, s)
	if isDamaged(err) {
		return o, nil
	}
	if err != nil {
		return nil, err
	}
	defer in.close()
	var b decodedBlock
	for i := range in.blocks {
		info := &in.blocks[i]
		b.lenient = false
		err := in.check(info, &b)
		if err == nil {
			o.whole = append(o.whole, blockInfo{first: b.keys[0], last: b.keys[len(b.keys)-1]})
		} else if isDamaged(err) {
			b.lenient = true
			err = in.load(info, &b, AllKinds)
		}
		if isDamaged(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for row, key := range b.keys {
			if n := len(o.keys); n == 0 || key.compare(o.keys[n-1]) > 0 { // like the salvage, ignore a key that is not greater than the previous one
				o.keys, o.steps = append(o.keys, key), append(o.steps, b.quality(row))
			}
		}
	}
	return o, nil
}

// quality returns the number of a record's readable steps, as stored in
// otherCopy.steps.
func (b *block) quality(row int) int32 {
	switch {
	case !b.lossy:
		return wholeCopy
	case b.poor:
		return poorCopy
	}
	return int32(b.readableSteps(row))
}

func (o *otherCopy) empty() bool { return o == nil || len(o.keys) == 0 }

// has reports whether the other file has at least as many readable steps of the record.
func (o *otherCopy) has(key recordKey, steps int32) bool {
	if o == nil {
		return false
	}
	i, ok := slices.BinarySearchFunc(o.keys, key, recordKey.compare)
	return ok && (o.steps == nil || o.steps[i] >= steps)
}

// excludes reports whether the other file proves that a record's key is corrupt. The proof is an
// intact block whose range includes the key, but which has no record with this key.
func (o *otherCopy) excludes(key recordKey) bool {
	if o == nil {
		return false
	}
	if _, ok := slices.BinarySearchFunc(o.keys, key, recordKey.compare); ok {
		return false
	}
	return slices.ContainsFunc(o.whole, func(b blockInfo) bool { return b.first.compare(key) < 0 && key.compare(b.last) < 0 })
}

// overlaps reports whether the other file has a record whose key is within a
// block's range.
func (o *otherCopy) overlaps(b *blockInfo) bool {
	if o == nil {
		return false
	}
	i, ok := slices.BinarySearchFunc(o.keys, b.first, recordKey.compare)
	return ok || i < len(o.keys) && o.keys[i].compare(b.last) <= 0
}
