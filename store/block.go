package store

import (
	"fmt"

	"scanwatch/store/column"
)

// A block holds decoded records. Their text aliases the encoded value and is valid until the next
// call of open.
type block struct {
	r     column.Reader
	head  table[Record]
	steps [numKinds]table[Step]
	at    [numKinds]column.Numbers // by kind: the codes of the gaps before the steps; see stepClock
	exact column.Numbers           // by record: the number of exact gaps
	rest  column.Numbers           // the remainders of all exact gaps
	rests int                      // number of remainders
	kinds column.Texts

	// If lenient is set, open accepts corrupt columns other than key columns. lossy reports whether
	// any column was corrupt. poor reports whether a corrupt column contained values of records
	// instead of steps. A lossy block lacks a field in all records, all steps of a kind, or exact
	// step times.
	lenient, lossy, poor bool
	inexact              bool // a column of step times is lost

	wanted Kinds
	place  place
	turn   int // incremented for each new cursor
}

// A place identifies a record's step and its position in the columns.
type place struct {
	row, step int
	next      [numKinds]uint32 // by kind: index of the next step
	rest      int              // number of remainders in earlier records
}

// openBlock decodes the columns of records and of steps of the given kinds.
func openBlock(value []byte, kinds Kinds) (*block, error) {
	b := new(block)
	if err := b.open(value, kinds); err != nil {
		return nil, err
	}
	return b, nil
}

// open decodes a block like openBlock, but reuses b's buffers.
func (b *block) open(value []byte, kinds Kinds) error {
	b.kinds.Reset()
	b.exact.Reset()
	b.rest.Reset()
	b.wanted, b.rests, b.place, b.turn = kinds, 0, place{}, b.turn+1
	b.lossy, b.poor, b.inexact = false, false, false
	b.head.reset(recordFields)
	for k := range b.steps {
		b.at[k].Reset()
		if kinds.Has(Kind(k)) {
			b.steps[k].reset(stepFields)
		} else {
			b.steps[k].reset(nil) // a table uses 12 kB of memory
		}
	}
	if err := b.r.Open(value); err != nil {
		return err
	}
	b.head.n = b.r.Rows()
	if kinds != 0 {
		if err := b.readKinds(); err != nil {
			if !b.lenient {
				return err
			}
			b.noSteps()
		}
	}
	for i := range b.r.Len() {
		id, ok := columnIDs[string(b.r.Name(i))]
		if !ok {
			continue // a column added by a newer version
		}
		kinds = b.wanted
		var err error
		switch {
		case id.kind == headColumn:
			err = b.head.decode(&b.r, i, id)
		case kinds == 0 || id.role == roleKinds:
		case id.role == roleRest:
			b.rests = b.r.Values(i)
			err = b.r.Numbers(i, &b.rest)
		case id.role == roleExact:
			if err = b.r.Numbers(i, &b.exact); err == nil {
				err = checkValues(&b.r, i, b.r.Rows())
			}
		case id.role == roleAt:
			if err = b.r.Numbers(i, &b.at[id.kind]); err == nil {
				err = checkValues(&b.r, i, b.steps[id.kind].n)
			}
		case kinds.Has(Kind(id.kind)):
			err = b.steps[id.kind].decode(&b.r, i, id)
		}
		if err != nil && (!b.lenient || !b.lose(id)) {
			return err
		}
	}
	if b.inexact { // without all codes, remainders could be added to the wrong gaps
		b.exact.Reset()
		b.rest.Reset()
		b.rests = 0
	}
	if b.exact.Max(b.r.Rows()) > exactGaps {
		return fmt.Errorf("%w: too many exact gaps", column.ErrCorrupt)
	}
	if err := b.head.finish(); err != nil {
		return err
	}
	for k := range b.steps {
		if err := b.steps[k].finish(); err != nil {
			return err
		}
		for c := range b.steps[k].bases {
			b.steps[k].bases[c].Kind = Kind(k)
		}
	}
	return nil
}

// lose discards the values of a corrupt column. lose returns false for a key column, because a
// block is useless without its keys.
func (b *block) lose(id columnID) bool {
	b.lossy = true
	switch {
	case id.kind == headColumn && id.role != roleIndex && (id.field == fieldEnd || id.field == fieldID):
		return false
	case id.kind == headColumn:
		b.head.lose(id)
		b.poor = true
	case id.role == roleExact, id.role == roleRest, id.role == roleAt:
		b.inexact = true
		if id.role == roleAt {
			b.at[id.kind].Reset()
		}
	default:
		t := &b.steps[id.kind]
		n := t.n
		t.reset(stepFields)
		b.wanted, t.n = b.wanted&^KindsOf(Kind(id.kind)), n
	}
	return true
}

// noSteps removes all steps. If the column of kinds is corrupt, no step can be read.
func (b *block) noSteps() {
	b.lossy, b.wanted = true, 0
	b.kinds.Reset()
	for k := range b.steps {
		b.steps[k].n = 0
	}
}

// readableSteps returns the number of a record's steps. Steps of lost kinds are not counted.
func (b *block) readableSteps(row int) (n int) {
	for _, k := range b.kinds.At(row) {
		if b.wanted.Has(Kind(k)) {
			n++
		}
	}
	return n
}

func checkValues(r *column.Reader, i, n int) error {
	if r.Values(i) != n {
		return fmt.Errorf("%w: column %q has %d values; want %d", column.ErrCorrupt, r.Name(i), r.Values(i), n)
	}
	return nil
}

// readKinds decodes and counts the kinds of all steps.
func (b *block) readKinds() error {
	for i := range b.r.Len() {
		if string(b.r.Name(i)) != columnKinds {
			continue
		}
		if err := checkValues(&b.r, i, b.r.Rows()); err != nil {
			return err
		}
		if err := b.r.Texts(i, &b.kinds); err != nil {
			return err
		}
	}
	total, bad := uint64(0), false
	b.kinds.Count(func(list []byte, times int) {
		total += uint64(len(list)) * uint64(times)
		for _, k := range list {
			bad = bad || k >= numKinds
			b.steps[k%numKinds].n += times
		}
	})
	if bad || total > column.MaxValues {
		return fmt.Errorf("%w: unknown kind of step or too many steps", column.ErrCorrupt)
	}
	return nil
}

// rows returns the number of records.
func (b *block) rows() int { return b.r.Rows() }

// key returns the end of record i, in microseconds since 1970, and its id.
func (b *block) key(i int) (end, id uint64) {
	return b.head.value(fieldEnd, i), b.head.value(fieldID, i)
}

// record reads record i into r. r is valid until the next call of open.
func (b *block) record(i int, r *Record) {
	step := r.step
	b.head.get(i, r)
	r.block, r.row, r.skip, r.step = b, i, ^b.wanted, step
}

// seek finds the position of a record's step. seek is fast if steps are read in order.
func (b *block) seek(row, step int) {
	p := &b.place
	if p.row > row || p.row == row && p.step > step {
		*p = place{}
	}
	for p.row < row || p.step < step {
		kinds := b.kinds.At(p.row)
		if p.step < len(kinds) {
			p.next[kinds[p.step]%numKinds]++
			p.step++
			continue
		}
		p.rest += int(b.exact.At(p.row))
		p.row, p.step = p.row+1, 0
	}
}

// wants reports whether the caller needs steps of any of the given kinds.
func (b *block) wants(kinds []byte) bool {
	for _, k := range kinds {
		if b.wanted.Has(Kind(k)) {
			return true
		}
	}
	return false
}

// A blockCursor iterates over a record's steps in a block.
type blockCursor struct {
	b     *block
	kinds []byte // kinds of the record's steps
	row   int
	step  int // index of the next step
	turn  int // value of b.turn when this cursor last used b; if b.turn differs, another cursor has used b
	clock stepClock
}

func (b *block) cursor(row int) blockCursor {
	return blockCursor{b: b, kinds: b.kinds.At(row), row: row}
}

// next reads the next step into s, or returns false at the end.
func (c *blockCursor) next(s *Step) bool {
	b := c.b
	if !b.wants(c.kinds[c.step:]) {
		return false
	}
	if c.turn != b.turn || c.turn == 0 {
		b.turn++
		c.turn = b.turn
		b.seek(c.row, c.step)
	}
	for c.step < len(c.kinds) {
		k := c.kinds[c.step] % numKinds
		n := int(b.place.next[k])
		b.place.next[k]++
		c.step++
		b.place.step = c.step
		code, rest := b.at[k].At(n), uint64(0)
		if i := b.place.rest + c.clock.gaps; c.clock.exact(code) && i < b.rests {
			rest = b.rest.At(i)
		}
		at := c.clock.decode(code, rest)
		if b.wanted.Has(Kind(k)) {
			b.steps[k].get(n, s)
			s.At = at
			return true
		}
	}
	return false
}

// A table holds the decoded columns of the records or of one kind of step. Rows with equal values
// in some fields form a class, which stores these values only once.
type table[T any] struct {
	fields []field[T]
	n      int            // number of rows
	index  column.Numbers // by row: its class
	bases  []T            // by class: a row with the values that all rows of the class share
	own    []own[T]       // fields that are stored for each row

	each, class []decoded // by field: the columns with a value for each row or for each class
	classless   bool      // the column with the rows' classes is corrupt
	classes     int       // number of classes; 0 if no column has values for classes
}

// decoded is a decoded column of numbers or of texts.
type decoded struct {
	exists  bool
	numbers column.Numbers
	texts   column.Texts
}

// own is a field that is stored for each row.
type own[T any] struct {
	setNum  func(*T, uint64)
	setText func(*T, []byte)
	numbers *column.Numbers
	texts   *column.Texts
}

func newOwn[T any](f *field[T], d *decoded) own[T] {
	return own[T]{f.setNum, f.setText, &d.numbers, &d.texts}
}

// set stores the value of row i in the record or step.
func (o *own[T]) set(i int, to *T) {
	if o.setText != nil {
		o.setText(to, o.texts.At(i))
	} else {
		o.setNum(to, o.numbers.At(i))
	}
}

// reset removes all columns.
func (t *table[T]) reset(fields []field[T]) {
	if t.fields == nil {
		t.fields, t.each, t.class = fields, make([]decoded, len(fields)), make([]decoded, len(fields))
	}
	for i := range t.fields {
		t.each[i].exists, t.class[i].exists = false, false
	}
	t.index.Reset()
	t.classless = false
	t.n, t.classes, t.own, t.bases = 0, 0, t.own[:0], append(t.bases[:0], *new(T))
}

func (t *table[T]) decode(r *column.Reader, i int, id columnID) error {
	d, want := &t.each[id.field], t.n
	switch id.role {
	case roleIndex:
		if err := r.Numbers(i, &t.index); err != nil {
			return err
		}
		return checkValues(r, i, want)
	case roleClass:
		if d = &t.class[id.field]; t.classes == 0 {
			t.classes = min(r.Values(i), maxClasses)
		}
		want = t.classes
	}
	d.exists = true
	if err := checkValues(r, i, want); err != nil {
		return err
	}
	if t.fields[id.field].num == nil {
		return r.Texts(i, &d.texts)
	}
	return r.Numbers(i, &d.numbers)
}

func (t *table[T]) lose(id columnID) {
	switch id.role {
	case roleIndex:
		t.index.Reset()
		t.classless = true
	case roleClass:
		t.class[id.field].exists = false
	default:
		t.each[id.field].exists = false
	}
}

// finish prepares the table for get after all columns have been decoded.
func (t *table[T]) finish() error {
	for range t.classes - 1 {
		t.bases = append(t.bases, t.bases[0])
	}
	if t.index.Max(t.n) >= uint64(len(t.bases)) {
		return fmt.Errorf("%w: no such class", column.ErrCorrupt)
	}
	for i := range t.fields {
		if t.class[i].exists && !t.classless {
			o := newOwn(&t.fields[i], &t.class[i])
			for c := range t.bases {
				o.set(c, &t.bases[c])
			}
		}
		if t.each[i].exists {
			t.own = append(t.own, newOwn(&t.fields[i], &t.each[i]))
		}
	}
	return nil
}

// value returns the number in row i of a field that is never part of a class.
func (t *table[T]) value(field, i int) uint64 {
	if !t.each[field].exists {
		return 0
	}
	return t.each[field].numbers.At(i)
}

// get stores the values of row i in *to.
func (t *table[T]) get(i int, to *T) {
	*to = t.bases[t.index.At(i)]
	for j := range t.own {
		t.own[j].set(i, to)
	}
}
