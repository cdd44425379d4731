package store

import (
	"math/bits"
	"time"
)

// exactGaps is the number of gaps in a session that are stored exactly. A gap is the time between
// two steps.
const exactGaps = 5

// A stepClock encodes or decodes a session's step times.
//
// A code represents the gap between two steps. There are 16 codes for each power of
// two, and code 0 means no gap. A remainder makes each of the first exactGaps
// gaps exact, and later gaps are rounded by at most 1/16. A decoded time is
// never later than the true time.
type stepClock struct {
	gaps  int
	at    uint64 // time of the last step, as the decoder calculates it
	truly uint64 // exact time of the last step
}

// exact reports whether a gap with the given code has a remainder.
func (t *stepClock) exact(code uint64) bool { return code != 0 && t.gaps < exactGaps }

// decode returns the time of the next step.
func (t *stepClock) decode(code, rest uint64) time.Duration {
	if code != 0 {
		t.gaps++
		t.at = min(t.at+gapOf(code)+rest, maxMicros)
	}
	return time.Duration(t.at) * time.Microsecond
}

// encode returns the code of the gap before the next step, and the remainder of an exact
// gap.
func (t *stepClock) encode(at time.Duration) (code, rest uint64, exact bool) {
	truly := min(uint64(max(at, 0).Microseconds()), maxMicros)
	if truly <= t.truly {
		return 0, 0, false
	}
	gap, behind := truly-t.truly, t.truly-t.at
	code = gapCode(gap + behind)
	if exact = t.exact(code); exact {
		rest = gap - gapOf(code)
	} else if gap <= behind { // catching up would make this short gap look long
		if code = gapCode(gap); gapOf(code) < gap {
			code++
		}
	}
	t.truly = truly
	t.decode(code, rest)
	return code, rest, exact
}

// maxMicros is the maximum time of a step in microseconds.
const maxMicros = 1 << 40

// gapCode returns the code of a gap. The code consists of the gap's five highest bits and their
// position.
func gapCode(gap uint64) uint64 {
	if gap < 16 {
		return gap
	}
	shift := uint64(bits.Len64(gap) - 5)
	return shift<<4 + gap>>shift
}

// gapOf returns the shortest gap with the given code.
func gapOf(code uint64) uint64 {
	if code < 32 {
		return code
	}
	shift := code>>4 - 1
	if shift > 40 {
		return maxMicros
	}
	return (16 + code&15) << shift
}
