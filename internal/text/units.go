package text

import (
	"strconv"
	"time"
)

// A unit is a unit of time or size and its letter.
type unit struct {
	letter byte
	n      int64
	word   string
}

// Units, largest first.
var (
	timeUnits = []unit{
		{'w', int64(7 * 24 * time.Hour), "week"},
		{'d', int64(24 * time.Hour), "day"},
		{'h', int64(time.Hour), "hour"},
		{'m', int64(time.Minute), "minute"},
		{'s', int64(time.Second), "second"},
	}
	sizeUnits = []unit{{'T', 1 << 40, ""}, {'G', 1 << 30, ""}, {'M', 1 << 20, ""}, {'K', 1 << 10, ""}}
)

// ParseDuration parses a number followed by s, m, h, d or w, such as 30s or 7d.
func ParseDuration(s string) (time.Duration, bool) {
	n, ok := parseUnits(s, timeUnits)
	return time.Duration(n), ok
}

// ParseSize parses a number of bytes followed by K, M, G or T.
func ParseSize(s string) (int64, bool) { return parseUnits(s, sizeUnits) }

func parseUnits(s string, units []unit) (int64, bool) {
	if len(s) < 2 {
		return 0, false
	}
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
	if err != nil {
		return 0, false
	}
	for _, u := range units {
		if s[len(s)-1] == u.letter && int64(n) <= (1<<63-1)/u.n {
			return int64(n) * u.n, true
		}
	}
	return 0, false
}

// Duration returns d, which must be a whole number of seconds, in a form
// that ParseDuration accepts. Duration uses the largest unit that leaves no
// remainder, but never weeks.
func Duration(d time.Duration) string {
	if d == 0 {
		return "0s"
	}
	n, u := inUnits(int64(d), timeUnits[1:])
	return strconv.FormatInt(n, 10) + string(u.letter)
}

// DurationWords is like Duration, but spells out the unit: "7 days".
func DurationWords(d time.Duration) string {
	n, u := inUnits(int64(d), timeUnits[1:])
	return Plural(n, u.word)
}

// ShortDuration returns d rounded down to its two largest units: 6d23h, 1h5m, 40s.
func ShortDuration(d time.Duration) string {
	units := timeUnits[1:]
	for i, u := range units {
		n := int64(d) / u.n
		if n == 0 {
			continue
		}
		s := strconv.FormatInt(n, 10) + string(u.letter)
		if i+1 == len(units) {
			return s
		}
		if rest := int64(d) % u.n / units[i+1].n; rest > 0 {
			s += strconv.FormatInt(rest, 10) + string(units[i+1].letter)
		}
		return s
	}
	return "0s"
}

// ShortSize returns n bytes rounded, in the largest unit that n reaches: 700,
// 2.5K, 12M.
func ShortSize(n int64) string {
	for _, u := range sizeUnits {
		switch {
		case n >= 10*u.n:
			return strconv.FormatInt((n+u.n/2)/u.n, 10) + string(u.letter)
		case n >= u.n:
			return strconv.FormatFloat(float64(n)/float64(u.n), 'f', 1, 64) + string(u.letter)
		}
	}
	return strconv.FormatInt(n, 10)
}

// Size returns n bytes, which must be a whole number of KiB, in a form that
// ParseSize accepts. Size uses the largest unit that leaves no remainder.
func Size(n int64) string {
	n, u := inUnits(n, sizeUnits)
	return strconv.FormatInt(n, 10) + string(u.letter)
}

func inUnits(n int64, units []unit) (int64, unit) {
	for _, u := range units {
		if n%u.n == 0 {
			return n / u.n, u
		}
	}
	last := units[len(units)-1]
	return n / last.n, last
}
