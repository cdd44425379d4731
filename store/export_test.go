package store

// These let tests in package store_test, which import the filter, use blocks.

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

// ReadBlocks calls f for each record of blocks.
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
