package column

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// texts returns a column of the given texts.
func texts(all ...string) *Buffer {
	t := new(Buffer)
	for _, s := range all {
		t.End(append(t.Begin(), s...))
	}
	return t
}

// many returns the results of n calls to f.
func many[T any](n int, f func(i int) T) []T {
	all := make([]T, n)
	for i := range all {
		all[i] = f(i)
	}
	return all
}

func TestNumbers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		name   string
		values []uint64
		most   int // bytes of the block
	}{
		{"none", nil, 20},
		{"one", []uint64{math.MaxUint64}, 50},
		{"zeros", make([]uint64, 1000), 20},
		{"constant", many(1000, func(int) uint64 { return 1 << 60 }), 50},
		{"small", many(1000, func(i int) uint64 { return uint64(i % 3) }), 100},
		{"random", many(1000, func(int) uint64 { return r.Uint64() }), 8100},
		{"increasing", many(1000, func(i int) uint64 { return 1<<50 + uint64(i)*1_000_000 + r.Uint64N(256) }), 1100 + 1050},
		{"decreasing", many(1000, func(i int) uint64 { return 1<<50 - uint64(i)*7 }), 60},
		{"extremes", []uint64{0, math.MaxUint64, 1, math.MaxInt64, 1 << 63}, 150},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := NewWriter()
			w.Numbers("n", c.values)
			block := w.Finish(nil, len(c.values))
			if len(block) > c.most {
				t.Errorf("%d bytes, want at most %d", len(block), c.most)
			}
			var rd Reader
			var n Numbers
			if err := rd.Open(block); err != nil {
				t.Fatal(err)
			}
			if rd.Len() > 0 {
				if err := rd.Numbers(0, &n); err != nil {
					t.Fatal(err)
				}
			}
			if rd.Rows() != len(c.values) || rd.Len() == 1 && rd.Values(0) != len(c.values) {
				t.Errorf("%d rows", rd.Rows())
			}
			for i, want := range c.values {
				if got := n.At(i); got != want {
					t.Fatalf("value %d is %d, want %d", i, got, want)
				}
			}
		})
	}
}

func TestTexts(t *testing.T) {
	for _, c := range []struct {
		name string
		all  []string
		most int
	}{
		{"none", nil, 20},
		{"empty", make([]string, 1000), 20},
		{"one", []string{"\x00\xff"}, 50},
		{"the same", many(1000, func(int) string { return "mx.example.org" }), 60},
		{"few", many(1000, func(i int) string { return fmt.Sprintf("host%d.example.org", i*i%7) }), 200},
		{"different", many(1000, func(i int) string { return fmt.Sprintf("host%d.example.org", i) }), 2700},
		{"empty at the end", []string{"a", "", "b", "", ""}, 60},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := NewWriter()
			w.Texts("t", texts(c.all...))
			block := w.Finish(nil, len(c.all))
			if len(block) > c.most {
				t.Errorf("%d bytes, want at most %d", len(block), c.most)
			}
			var rd Reader
			var got Texts
			if err := rd.Open(block); err != nil {
				t.Fatal(err)
			}
			if rd.Len() > 0 {
				if err := rd.Texts(0, &got); err != nil {
					t.Fatal(err)
				}
			}
			for i, want := range c.all {
				if string(got.At(i)) != want {
					t.Fatalf("text %d is %q, want %q", i, got.At(i), want)
				}
			}
		})
	}
}

// sample returns a block of three columns.
func sample() []byte {
	w := NewWriter()
	w.Numbers("a", many(100, func(i int) uint64 { return uint64(i * i) }))
	w.Texts("b", texts(many(100, func(i int) string { return fmt.Sprint("text", i%9) })...))
	w.Texts("c", texts(many(70, func(i int) string { return fmt.Sprint("other", i) })...))
	return w.Finish(nil, 100)
}

// decode decodes all columns of a block and returns the number of corrupt
// columns.
func decode(block []byte) (columns, corrupt int, err error) {
	var r Reader
	if err := r.Open(block); err != nil {
		return 0, 0, err
	}
	for i := range r.Len() {
		var n Numbers
		var t Texts
		if r.Numbers(i, &n) != nil && r.Texts(i, &t) != nil {
			corrupt++
		}
	}
	return r.Len(), corrupt, nil
}

// TestDamage changes each byte of a block. A change in a column's data must affect only
// that column.
func TestDamage(t *testing.T) {
	block := sample()
	if n, bad, err := decode(block); n != 3 || bad != 0 || err != nil {
		t.Fatalf("%d columns, %d corrupt, %v", n, bad, err)
	}
	one := 0
	for i := range block {
		damaged := bytes.Clone(block)
		damaged[i] ^= 0x10
		n, bad, err := decode(damaged)
		switch {
		case errors.Is(err, ErrCorrupt):
		case err == nil && n == 3 && bad == 1:
			one++
		default:
			t.Errorf("byte %d: %d columns, %d corrupt, %v", i, n, bad, err)
		}
	}
	if one < len(block)/2 {
		t.Errorf("%d of %d bytes damage one column", one, len(block))
	}
	for i := range block {
		if _, _, err := decode(block[:i]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes: %v", i, err)
		}
	}
}

// TestMemory checks that decoding a hostile block never allocates more memory
// than MaxBytes.
func TestMemory(t *testing.T) {
	w := NewWriter()
	v := many(MaxValues, func(i int) uint64 { return uint64(i&1) << 56 })
	for i := range 5 {
		w.Numbers(fmt.Sprint(i), v)
	}
	block := w.Finish(nil, MaxValues)
	var r Reader
	if err := r.Open(block); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		var n Numbers
		if err := r.Numbers(i, &n); (err == nil) != (i < 4) {
			t.Errorf("column %d of 16 MB: %v", i, err)
		}
	}
}

// TestReuse checks that reused buffers do not carry a block's data over to the next
// block.
func TestReuse(t *testing.T) {
	w := NewWriter()
	var r Reader
	var n Numbers
	var all Texts
	for i := range 20 {
		rows := (i*7)%5 + 1
		w.Numbers("n", many(rows, func(j int) uint64 { return uint64(i + j + 1) }))
		w.Texts("t", texts(many(rows, func(j int) string { return fmt.Sprint(i, j/(i%2+1)) })...))
		if err := r.Open(w.Finish(nil, rows)); err != nil || r.Len() != 2 || r.Rows() != rows {
			t.Fatal(err, r.Len(), r.Rows())
		}
		if err := errors.Join(r.Numbers(0, &n), r.Texts(1, &all)); err != nil {
			t.Fatal(err)
		}
		for j := range rows {
			if n.At(j) != uint64(i+j+1) || string(all.At(j)) != fmt.Sprint(i, j/(i%2+1)) {
				t.Errorf("block %d, row %d: %d %q", i, j, n.At(j), all.At(j))
			}
		}
	}
}

// readAll reads every value of the columns that can be decoded.
func readAll(block []byte) {
	var r Reader
	if r.Open(block) != nil {
		return
	}
	for i := range r.Len() {
		var n Numbers
		if r.Numbers(i, &n) == nil {
			for j := range r.Values(i) {
				n.At(j)
			}
		}
		var all Texts
		if r.Texts(i, &all) == nil {
			for j := range r.Values(i) {
				all.At(j)
			}
		}
	}
}

// FuzzReader checks that decoding arbitrary bytes either succeeds or returns an error.
func FuzzReader(f *testing.F) {
	f.Add(sample())
	f.Add([]byte(magic))
	f.Fuzz(func(_ *testing.T, block []byte) { readAll(block) })
}

// FuzzColumn is like FuzzReader, but changes the data of only one column and
// corrects the checksums.
func FuzzColumn(f *testing.F) {
	var r Reader
	if err := r.Open(sample()); err != nil {
		f.Fatal(err)
	}
	for _, e := range r.columns {
		f.Add(e.typ, uint16(e.values), e.data)
	}
	f.Fuzz(func(_ *testing.T, typ byte, values uint16, data []byte) {
		w := NewWriter()
		w.data = data
		w.entry("c", typ, int(values), 0)
		readAll(w.Finish(nil, int(values)))
	})
}
