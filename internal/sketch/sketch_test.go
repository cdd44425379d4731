package sketch

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestError checks the estimate's error for random items and for consecutive
// addresses.
func TestError(t *testing.T) {
	const runs = 40
	for _, n := range []int{0, 1, 2, 100, 1_000, 10_000, 20_000, 100_000, 2_000_000} {
		var square, worst, sum float64
		for run := range runs {
			random := rand.New(rand.NewPCG(uint64(n), uint64(run)))
			base := random.Uint64() >> 32
			var s Sketch
			for i := range n {
				if item := base + uint64(i); run%2 == 0 {
					s.Add(item)
				} else {
					s.Add(random.Uint64())
				}
			}
			e := float64(s.Count()-n) / max(float64(n), 1)
			square += e * e
			sum += e
			worst = max(worst, math.Abs(e))
		}
		rms, bias := math.Sqrt(square/runs), sum/runs
		t.Logf("%8d items: error %.2f %%, at most %.2f %%, bias %+.2f %%", n, 100*rms, 100*worst, 100*bias)
		if rms > 0.02 || worst > 0.06 || math.Abs(bias) > 0.01 || n <= 2 && worst > 0 {
			t.Errorf("%d items: error %.4f, at most %.4f, bias %+.4f", n, rms, worst, bias)
		}
	}
}

// TestMerge checks that a merged sketch equals a sketch of all items, and that repeated
// items count once.
func TestMerge(t *testing.T) {
	var a, b, both Sketch
	for i := range uint64(30_000) {
		both.Add(i)
		both.Add(i)
		if i < 20_000 {
			a.Add(i)
		}
		if i >= 10_000 {
			b.Add(i)
		}
	}
	a.Merge(b[:])
	if a != both {
		t.Error("the merged sketch differs")
	}
	a.Merge(b[:Size-1])
	a.Merge(nil)
	if a != both {
		t.Error("a truncated sketch was merged")
	}
}

// TestHostile checks that Count returns a valid number for any registers.
func TestHostile(t *testing.T) {
	for _, r := range []byte{0, 1, rankBits, rankBits + 1, 255} {
		var s, from Sketch
		for i := range from {
			from[i] = r
		}
		s.Merge(from[:])
		if n, m := s.Count(), from.Count(); n < 0 || m < 0 || r == 0 && n != 0 {
			t.Errorf("registers of %d: %d and %d items", r, n, m)
		}
	}
}

func BenchmarkAdd(b *testing.B) {
	var s Sketch
	i := uint64(0)
	for b.Loop() {
		s.Add(i)
		i++
	}
}
