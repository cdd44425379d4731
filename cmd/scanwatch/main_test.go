package main

import (
	"strings"
	"testing"
)

func TestFold(t *testing.T) {
	long := strings.Repeat("x", 30)
	for _, c := range []struct{ text, want string }{
		{"", ""},
		{"short enough", "short enough"},
		{"one two three four five", "one two three four\n    five"},
		{"one two three four five six seven eight", "one two three four\n    five six seven\n    eight"},
		{"line\none two three four five", "line\none two three four\n    five"},
		{"read " + long + " again", "read\n    " + long + "\n    again"},
		{long, long},
	} {
		if got := fold(c.text, 20, 4); got != c.want {
			t.Errorf("fold(%q) = %q, want %q", c.text, got, c.want)
		}
	}
}
