package text_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"scanwatch/internal/text"
	"scanwatch/tests/hostiletext"
)

func TestEscape(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"plain", "ylmf-pc", "ylmf-pc"},
		{"empty", "", ""},
		{"quotes stay", `a"b'c`, `a"b'c`},
		{"backslash", `a\b`, `a\\b`},
		{"text that looks escaped", `\x1b`, `\\x1b`},
		{"line ends", "a\r\n\tb", `a\r\n\tb`},
		{"escape sequence", "\x1b[31m", `\x1b[31m`},
		{"NUL and DEL", "\x00\x7f", `\x00\x7f`},
		{"C1 control", "\u009b31m", `\u009b31m`},
		{"invalid UTF-8", "\xff\xc3", `\xff\xc3`},
		{"a real replacement character", "\ufffd", "\ufffd"},
		{"direction", "\u202eabc\u2066", `\u202eabc\u2066`},
		{"zero width", "a\u200bb\ufeff", `a\u200bb\ufeff`},
		{"spaces other than U+0020", "\u00a0\u2028\u3000", `\u00a0\u2028\u3000`},
		{"fillers", "\u3164\ufe0f", `\u3164\ufe0f`},
		{"tag characters", "\U000e0041", `\U000e0041`},
		{"other languages", "Grüße, 世界", "Grüße, 世界"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := text.Escape(c.in)
			if got != c.want || text.Escape([]byte(c.in)) != got {
				t.Errorf("%q becomes %q, want %q", c.in, got, c.want)
			}
			if back, err := text.Unescape(got); err != nil || string(back) != c.in {
				t.Errorf("%q becomes %q again, %v", c.in, back, err)
			}
		})
	}
}

func TestQuote(t *testing.T) {
	for in, want := range map[string]string{
		"":                  `""`,
		`say "hi" C:\dir`:   `"say \"hi\" C:\\dir"`,
		"Ünlaut\x1b[0m\r\n": `"Ünlaut\x1b[0m\r\n"`,
	} {
		if got := text.Quote(in); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}

func TestASCII(t *testing.T) {
	if got := text.ASCII("by Jürgen\r\nand more", 14); got != "by J??rgen??an" {
		t.Errorf("got %q", got)
	}
}

func TestCell(t *testing.T) {
	for in, want := range map[string]string{"": "", "a=1": "a=1", "=1+1": "'=1+1", "  @SUM(A1)": "'  @SUM(A1)", "＝1": "'＝1", "\tx": "'\tx", "-1": "'-1"} {
		if got := text.Cell(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestNumbers(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{text.Plural(1, "session"), "1 session"},
		{text.Plural(0, "session"), "0 sessions"},
		{text.Plural(uint32(2), "session"), "2 sessions"},
		{text.Plural(2, "ban is", "bans are"), "2 bans are"},
		{text.Percent(1, 3, 1), "33.3%"},
		{text.Percent(1, 0, 2), "0%"},
		{text.Thousands(-1234567), "-1,234,567"},
		{text.Thousands(-123), "-123"},
		{text.Duration(90 * time.Second), "90s"},
		{text.Duration(14 * 24 * time.Hour), "14d"},
		{text.DurationWords(time.Hour), "1 hour"},
		{text.DurationWords(7 * 24 * time.Hour), "7 days"},
		{text.Size(512 << 20), "512M"},
		{text.Size(1 << 40), "1T"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
	if d, ok := text.ParseDuration("4w"); !ok || d != 28*24*time.Hour {
		t.Errorf("4w is %v, %v", d, ok)
	}
	if n, ok := text.ParseSize("16M"); !ok || n != 16<<20 {
		t.Errorf("16M is %v, %v", n, ok)
	}
	for _, s := range []string{"", "7", "d", "-1d", "1.5h", "7 d", "99999999999d", "4294967295w"} {
		if d, ok := text.ParseDuration(s); ok {
			t.Errorf("%q is %v", s, d)
		}
	}
}

func TestWrap(t *testing.T) {
	for _, c := range []struct {
		name, in, wrap, fold string
	}{
		{"short", "one two", "one two", "one two"},
		{"exact", "0123456789", "0123456789", "0123456789"},
		{"exact before a space", "0123 56789 next", "0123 56789\n  next", "0123 56789\n  next"},
		{"two lines", "one two three four five", "one two\n  three\n  four\n  five", "one two\n  three\n  four\n  five"},
		{"inner spaces stay", "a   b", "a   b", "a   b"},
		{"a long word", "0123456789ab next", "0123456789ab\n  next", "0123456789\n  ab next"},
		{"a long last word", "x 0123456789ab", "x\n  0123456789ab", "x 01234567\n  89ab"},
		{"its own lines", "one two\nthree four five", "one two\nthree four\n  five", "one two\nthree four\n  five"},
		{"wide characters", "世界世界 世界", "世界世界\n  世界", "世界世界\n  世界"},
		{"leading spaces", "    0123456789", "    0123456789", "    012345\n  6789"},
	} {
		if got := text.Wrap(c.in, 10, 2); got != c.wrap {
			t.Errorf("%s: Wrap: got %q, want %q", c.name, got, c.wrap)
		}
		if got := text.Fold(c.in, 10, 2); got != c.fold {
			t.Errorf("%s: Fold: got %q, want %q", c.name, got, c.fold)
		}
	}
}

// FuzzEscape checks that Escape is reversible and escapes all invisible
// characters, and that Fold, Cut and Pad never exceed the given number of
// columns.
func FuzzEscape(f *testing.F) {
	for _, hostile := range hostiletext.Texts() {
		f.Add([]byte(hostile.Text))
	}
	f.Add([]byte(`\xff\u202e\`))
	f.Add([]byte(strings.Repeat("x", 80) + " ")) // only the space does not fit
	f.Fuzz(func(t *testing.T, b []byte) {
		s := text.Escape(b)
		if back, err := text.Unescape(s); err != nil || !bytes.Equal(back, b) {
			t.Fatalf("%q becomes %q becomes %q, %v", b, s, back, err)
		}
		for _, r := range s {
			if r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x200b && r <= 0x200f || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
				t.Fatalf("%q keeps %q", s, r)
			}
		}
		for l := range strings.SplitSeq(text.Fold(s, 80, 10), "\n") {
			if text.Width(l) > 80 {
				t.Fatalf("%d columns: %q", text.Width(l), l)
			}
		}
		if got := strings.Join(strings.Fields(text.Wrap(s, 80, 10)), ""); got != strings.Join(strings.Fields(s), "") {
			t.Fatalf("%q becomes %q", s, got)
		}
		if c := text.Cut(s, 20); text.Width(c) > 20 {
			t.Fatalf("%q has %d columns", c, text.Width(c))
		}
		if c := text.Pad(s, 20); text.Width(c) != 20 {
			t.Fatalf("%q has %d columns", c, text.Width(c))
		}
	})
}

// TestOrdinal checks the endings of ordinal numbers.
func TestOrdinal(t *testing.T) {
	for n, want := range map[int]string{0: "0th", 1: "1st", 2: "2nd", 3: "3rd", 4: "4th", 11: "11th", 12: "12th", 13: "13th", 21: "21st", 111: "111th", 122: "122nd"} {
		if got := text.Ordinal(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// TestTable checks that columns are aligned even if they hold wide characters.
func TestTable(t *testing.T) {
	var b strings.Builder
	text.Table(&b, [][]string{{"A", "B", "C"}, {"日本", "x", "last"}, {"", "long", ""}})
	if want := "A     B     C\n日本  x     last\n      long  \n"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}

// TestStyleTable checks that a row's second line has no trailing spaces.
func TestStyleTable(t *testing.T) {
	var b strings.Builder
	text.Style{Columns: 20}.Table(&b, [][]string{{"A", "B", "C"}, {"long name", "words   ", "last   "}})
	if want := "A          B\nlong name  words\n             last\n"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
	b.Reset()
	text.Style{Columns: 30}.Table(&b, [][]string{{"A", "B"}, {"short", "words"}, {"a name that is too long", "more"}})
	if want := "A      B\nshort  words\na name that is too long  more\n"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}

// TestShort checks rounded durations and sizes.
func TestShort(t *testing.T) {
	const m, h, d = time.Minute, time.Hour, 24 * time.Hour
	for in, want := range map[time.Duration]string{0: "0s", 40 * time.Second: "40s", m: "1m", 59*m + 59*time.Second: "59m59s", h + 5*m: "1h5m", h + 30*time.Second: "1h",
		24*h - time.Second: "23h59m", 7*d - time.Second: "6d23h", 30 * d: "30d"} {
		if got := text.ShortDuration(in); got != want {
			t.Errorf("%v: %s, want %s", in, got, want)
		}
	}
	for in, want := range map[int64]string{0: "0", 1023: "1023", 1024: "1.0K", 2560: "2.5K", 10240: "10K", 290816: "284K", 512 << 20: "512M", 3 << 40: "3.0T"} {
		if got := text.ShortSize(in); got != want {
			t.Errorf("%d: %s, want %s", in, got, want)
		}
	}
}
