// Package sketch estimates the number of distinct items in a stream, using 4,096 bytes.
// The algorithm is HyperLogLog; its standard error is 1.6%.
package sketch

import (
	"math"
	"math/bits"
)

const (
	indexBits = 12
	rankBits  = 64 - indexBits

	// Size is the number of registers and the length of an encoded Sketch in
	// bytes.
	Size = 1 << indexBits
)

// Each byte of a Sketch is a register. The zero Sketch is empty.
type Sketch [Size]byte

// Add adds an item. The upper 12 bits of the item's hash select a register. The item's rank is the
// position of the first 1 in the remaining bits. The register stores the highest rank of the items
// added to it.
func (s *Sketch) Add(item uint64) {
	h := hash(item)
	r := &s[h>>rankBits]
	*r = max(*r, byte(bits.LeadingZeros64(h<<indexBits|1<<(indexBits-1)))+1)
}

// Merge adds the items in another Sketch, given by its registers. Merge does
// nothing if the length of registers is not Size.
func (s *Sketch) Merge(registers []byte) {
	if len(registers) != Size {
		return
	}
	for i, r := range registers {
		s[i] = max(s[i], min(r, rankBits+1))
	}
}

// Count returns the estimated number of distinct items. The estimator is from Ertl, New cardinality
// estimation algorithms for HyperLogLog sketches (2017), section 4. This estimator needs no
// correction for small numbers.
func (s *Sketch) Count() int {
	var n [rankBits + 2]int // registers by rank
	for _, r := range s {
		n[min(r, rankBits+1)]++
	}
	z := Size * tau(1-float64(n[rankBits+1])/Size)
	for k := rankBits; k > 0; k-- {
		z = (z + float64(n[k])) / 2
	}
	z += Size * sigma(float64(n[0])/Size)
	return int(min(math.Round(Size/(2*math.Ln2)*Size/z), math.MaxInt32)) // z is 0 if all registers are full
}

// sigma corrects for empty registers.
func sigma(x float64) float64 {
	if x == 1 {
		return math.Inf(1)
	}
	z := x
	for y, last := 1.0, 0.0; z != last; y *= 2 {
		x *= x
		last = z
		z += x * y
	}
	return z
}

// tau corrects for full registers.
func tau(x float64) float64 {
	if x == 0 || x == 1 {
		return 0
	}
	z := 1 - x
	for y, last := 0.5, 0.0; z != last; y /= 2 {
		x = math.Sqrt(x)
		last = z
		z -= (1 - x) * (1 - x) * y
	}
	return z / 3
}

// hash is the finalizer of SplitMix64. The hash has no key, because sketches from different filters
// and days are merged. A client with very many addresses can therefore inflate the estimate. Code
// that reads a sketch must limit the estimate to the number of sessions.
func hash(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
