package column

import "hash/maphash"

// A Dictionary numbers a column's distinct texts in the order in which they are
// added. Adding a text again allocates no memory. The zero value is empty.
type Dictionary struct {
	words Buffer
	slots []uint32 // hash table: number of a word, plus 1
	seed  maphash.Seed
}

// Reset removes all texts.
func (d *Dictionary) Reset() {
	d.words.Reset()
	clear(d.slots)
}

// Len returns the number of distinct texts.
func (d *Dictionary) Len() int { return d.words.Len() }

// Add returns the number of a text.
func (d *Dictionary) Add(text []byte) uint32 {
	if 2*d.Len() >= len(d.slots) {
		d.grow()
	}
	slot := d.find(text)
	if *slot == 0 {
		d.words.Add(text)
		*slot = uint32(d.Len())
	}
	return *slot - 1
}

// find returns the slot of a text, which contains 0 if the text is new.
func (d *Dictionary) find(text []byte) *uint32 {
	mask := len(d.slots) - 1
	for i := int(maphash.Bytes(d.seed, text)) & mask; ; i = (i + 1) & mask {
		slot := &d.slots[i]
		if *slot == 0 || string(d.words.At(int(*slot-1))) == string(text) {
			return slot
		}
	}
}

func (d *Dictionary) grow() {
	if d.slots == nil {
		d.seed = maphash.MakeSeed()
	}
	d.slots = make([]uint32, max(64, 2*len(d.slots)))
	for i := range d.Len() {
		*d.find(d.words.At(i)) = uint32(i + 1)
	}
}
