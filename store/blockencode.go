package store

import (
	"math/bits"

	"scanwatch/store/column"
)

// A blockEncoder encodes records as a block.
type blockEncoder struct {
	w     *column.Writer
	n     int
	size  int
	head  columns[Record]
	steps [numKinds]columns[Step]
	kinds column.Buffer
	at    [numKinds][]uint64 // by kind: codes of the gaps before the steps
	exact []uint64           // by record: the number of exact gaps
	rest  []uint64           // remainders of exact gaps
	step  Step
	list  []byte // kinds of the current record's steps
	join  joiner
}

func newBlockEncoder() *blockEncoder {
	e := &blockEncoder{w: column.NewWriter(), head: columns[Record]{fields: recordFields}}
	for k := range e.steps {
		e.steps[k].fields = stepFields
	}
	return e
}

// rows returns the number of records since the last call to finish.
func (e *blockEncoder) rows() int { return e.n }

// bytes returns the approximate size of the records before compression.
func (e *blockEncoder) bytes() int { return e.size }

// add adds a record with all its decodable steps.
func (e *blockEncoder) add(r *Record) {
	e.n++
	e.size += e.head.add(r)
	e.list = e.list[:0]
	var times stepClock
	gaps := uint64(0)
	for c, s := r.Cursor(), &e.step; c.Next(s); {
		k := min(s.Kind, numKinds-1)
		e.list = append(e.list, byte(k))
		e.size += e.steps[k].add(s)
		code, rest, exact := times.encode(s.At)
		e.at[k] = append(e.at[k], code)
		if exact {
			e.rest = append(e.rest, rest)
			gaps++
		}
	}
	e.exact = append(e.exact, gaps)
	e.kinds.End(append(e.kinds.Begin(), e.list...))
	e.size += 4 * len(e.list)
}

// finish appends the block to dst and empties the encoder.
func (e *blockEncoder) finish(dst []byte) []byte {
	e.head.flush(e.w, &e.join, &headNames)
	e.w.Texts(columnKinds, &e.kinds)
	e.kinds.Reset()
	for k := range e.steps {
		if len(e.at[k]) > 0 {
			e.w.Numbers(stepNames[k].at, e.at[k])
			e.at[k] = e.at[k][:0]
			e.steps[k].flush(e.w, &e.join, &stepNames[k])
		}
	}
	e.w.Numbers(columnExact, e.exact)
	e.w.Numbers(columnRest, e.rest)
	e.exact, e.rest = e.exact[:0], e.rest[:0]
	dst = e.w.Finish(dst, e.n)
	e.n, e.size = 0, 0
	return dst
}

// columns holds the values of all fields of the records or of one kind of
// step.
type columns[T any] struct {
	fields []field[T]
	n      int      // number of values of each field
	all    []values // by field
}

// values holds the values of a field, either numbers or texts. Trailing zero or empty
// values may be missing.
type values struct {
	numbers []uint64
	texts   column.Buffer
}

// add adds the values of t and returns their approximate size.
func (c *columns[T]) add(t *T) (size int) {
	if c.all == nil {
		c.all = make([]values, len(c.fields))
	}
	for i := range c.fields {
		f, v := &c.fields[i], &c.all[i]
		if f.num == nil {
			data := f.text(v.texts.Begin(), t)
			if n := len(data) - v.texts.Bytes(); n > 0 {
				v.texts.Pad(c.n)
				v.texts.End(data)
				size += n
			}
		} else if n := f.num(t); n != 0 {
			v.numbers = append(pad(v.numbers, c.n), n)
			size += (bits.Len64(n) + 7) / 8
		}
	}
	c.n++
	return size
}

// flush writes the columns and discards all values. Fields with few combinations of values are
// stored as classes; see joiner.
func (c *columns[T]) flush(w *column.Writer, j *joiner, names *columnNames) {
	j.reset(c.n)
	joined := j.joined[:0]
	for i := range c.all {
		f, v := &c.fields[i], &c.all[i]
		switch {
		case len(v.numbers) == 0 && v.texts.Len() == 0:
			continue
		case f.num == nil:
			v.texts.Pad(c.n)
		default:
			v.numbers = pad(v.numbers, c.n)
		}
		if !f.own && j.add(v) {
			joined = append(joined, i)
			continue
		}
		w.Numbers(names.each[i], v.numbers)
		w.Texts(names.each[i], &v.texts)
	}
	for _, i := range joined {
		j.values.reset()
		for _, at := range j.first {
			if c.fields[i].num == nil {
				j.values.texts.Add(c.all[i].texts.At(int(at)))
			} else {
				j.values.numbers = append(j.values.numbers, c.all[i].numbers[at])
			}
		}
		w.Numbers(names.class[i], j.values.numbers)
		w.Texts(names.class[i], &j.values.texts)
	}
	j.joined = joined
	w.Numbers(names.index, j.index)
	for i := range c.all {
		c.all[i].reset()
	}
	c.n = 0
}

func (v *values) reset() {
	v.numbers = v.numbers[:0]
	v.texts.Reset()
}

// pad appends zeros up to n numbers.
func pad(v []uint64, n int) []uint64 {
	for len(v) < n {
		v = append(v, 0)
	}
	return v
}

// maxClasses is the maximum number of classes.
const maxClasses = 256

// A joiner divides rows into classes. All rows of a class have the same values in all
// added fields.
type joiner struct {
	index []uint64 // by row: its class
	first []uint32 // by class: its first row
	limit int

	joined  []int
	values  values
	ids     []uint32 // by row: number of the distinct value in the field to add
	next    []uint64
	begin   []uint32
	pairs   []uint32
	words   column.Dictionary
	numbers map[uint64]uint32
}

// reset starts again with n rows in a single class.
func (j *joiner) reset(n int) {
	j.index = append(j.index[:0], make([]uint64, n)...)
	j.first = append(j.first[:0], 0)
	j.limit = min(maxClasses, max(16, n/16))
	if j.numbers == nil {
		j.numbers = make(map[uint64]uint32)
	}
}

// add subdivides the classes by the values of a field. If there would be too many
// classes, add returns false and changes nothing.
func (j *joiner) add(v *values) bool {
	distinct := j.identify(v)
	if distinct > j.limit {
		return false
	}
	j.pairs = append(j.pairs[:0], make([]uint32, len(j.first)*distinct)...)
	j.next, j.begin = j.next[:0], j.begin[:0]
	for i, id := range j.ids {
		class := &j.pairs[int(j.index[i])*distinct+int(id)]
		if *class == 0 {
			if len(j.begin) == j.limit {
				return false
			}
			j.begin = append(j.begin, uint32(i))
			*class = uint32(len(j.begin))
		}
		j.next = append(j.next, uint64(*class-1))
	}
	j.index, j.next = j.next, j.index
	j.first, j.begin = j.begin, j.first
	return true
}

// identify assigns a number to each distinct value in v. identify stops when there are more
// distinct values than the limit.
func (j *joiner) identify(v *values) (distinct int) {
	j.ids = j.ids[:0]
	j.words.Reset()
	clear(j.numbers)
	for i := range v.texts.Len() {
		j.ids = append(j.ids, j.words.Add(v.texts.At(i)))
		if j.words.Len() > j.limit {
			return j.words.Len()
		}
	}
	for _, n := range v.numbers {
		id, ok := j.numbers[n]
		if !ok {
			if id = uint32(len(j.numbers)); int(id) == j.limit {
				return j.limit + 1
			}
			j.numbers[n] = id
		}
		j.ids = append(j.ids, id)
	}
	return j.words.Len() + len(j.numbers)
}
