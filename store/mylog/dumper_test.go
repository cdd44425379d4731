package mylog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// show prints a value so that two can be compared.
func show(v *Value) string {
	switch v.Kind {
	case Scalar:
		return fmt.Sprintf("%q", v.Text)
	case Opaque:
		return "<" + string(v.Text) + ">"
	case Array, Hash:
		var b strings.Builder
		for i := range v.Elems {
			if i > 0 {
				b.WriteString(" ")
			}
			if v.Kind == Hash {
				fmt.Fprintf(&b, "%s:", v.Keys[i])
			}
			b.WriteString(show(&v.Elems[i]))
		}
		if v.Kind == Hash {
			return "{" + b.String() + "}"
		}
		return "[" + b.String() + "]"
	}
	return "undef"
}

// TestLayouts reads one structure that Data::Dumper wrote in several layouts:
// Indent 2 (its own), 0, 3, 1 with Useqq, Useqq alone, Deepcopy without quoted
// keys.
func TestLayouts(t *testing.T) {
	const want = `{a:"1" b:["1" "-2.5" undef "it's \\ $5"] big:"12345678901" code:<sub { "DUMMY" }> ctl:"\n\t\x00\x1b\a1$x@y\"" ` +
		`glob:<*::STDOUT> o:{k:"1"} rr:"t" self:<$VAR1->{'b'}> sref:"s" top:<$VAR1> utf:"☺é"}`
	names, err := filepath.Glob("testdata/layout-*.txt")
	if err != nil || len(names) != 6 {
		t.Fatalf("%d layouts, want 6 (%v)", len(names), err)
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			values, err := Parse(text)
			if err != nil || len(values) != 1 {
				t.Fatalf("%d values, error %v", len(values), err)
			}
			got := strings.NewReplacer(`$VAR1->{"b"}`, `$VAR1->{'b'}`, `$VAR1->{b}`, `$VAR1->{'b'}`).Replace(show(&values[0]))
			if strings.HasSuffix(name, "layout-6.txt") { // Deepcopy writes it again
				got = strings.Replace(got, `self:["1" "-2.5" undef "it's \\ $5"]`, `self:<$VAR1->{'b'}>`, 1)
			}
			if got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestParse(t *testing.T) {
	for _, tc := range []struct{ name, text, want, err string }{
		{name: "several statements", text: "$VAR1 = 1;\n$VAR2 = 'x';", want: `"1" "x"`},
		{name: "lines before", text: "mail-from a@example.org\nrcpt-to $x = {\n$VAR1 = {};", want: `{}`},
		{name: "single quotes", text: `$v = 'a\'b\\c\d"';`, want: `"a'b\\c\\d\""`},
		{name: "double quotes", text: `$v = "\101\x41\x{41}\$\@\"\\'";`, want: `"AAA$@\"\\'"`},
		{name: "byte and character", text: `$v = ["\xe9", "\351", "\x{e9}", "\x{110000}"];`, want: `["\xe9" "\xe9" "é" "�"]`},
		{name: "numbers", text: `$v = [0, -1, 1.5, -1e-05, '007'];`, want: `["0" "-1" "1.5" "-1e-05" "007"]`},
		{name: "comma at the end", text: `$v = [1, {a => 1,},];`, want: `["1" {a:"1"}]`},
		{name: "bare keys", text: `$v = {-a => 1, b2 => 2, 3 => undef};`, want: `{-a:"1" b2:"2" 3:undef}`},
		{name: "class", text: `$v = bless( [1], 'A::B' );`, want: `["1"]`},
		{name: "class of a scalar", text: `$v = bless( do{\(my $o = ')')}, "A" );`, want: `<do{\(my $o = ')')}>`},
		{name: "reference with a quoted bracket", text: `$v = {a => $VAR1->{'}'}[0], b => 1};`, want: `{a:<$VAR1->{'}'}[0]> b:"1"}`},
		{name: "reference to a reference", text: `$v = \${$VAR1->{a}};`, want: `<${$VAR1->{a}}>`},
		{name: "comment", text: "$v = [ # one, ]\n 1 ];", want: `["1"]`},
		{name: "just deep enough", text: "$v = " + strings.Repeat("[", maxDepth) + "1" + strings.Repeat("]", maxDepth) + ";", want: strings.Repeat("[", maxDepth) + `"1"` + strings.Repeat("]", maxDepth)},
		{name: "too deep", text: "$v = " + strings.Repeat("[", maxDepth+2), err: "line 1, column 71: values are nested more than 64 deep"},
		{name: "too deep in references", text: "$v = " + strings.Repeat(`\`, maxDepth+2), err: "line 1, column 71: values are nested more than 64 deep"},
		{name: "too many values", text: "$v = [" + strings.Repeat("1,", maxNodes) + "];", err: fmt.Sprintf("line 1, column %d: more than 524288 values", 7+2*(maxNodes-1))},
		{name: "too large", text: strings.Repeat(" ", maxFile+1), err: "line 1, column 1: the text has more than 16777216 bytes"},
		{name: "empty", err: "line 1, column 1: no statement of Data::Dumper (`$VAR1 = ...;`) was found"},
		{name: "no statement", text: "a\nb\n", err: "line 3, column 1: no statement of Data::Dumper (`$VAR1 = ...;`) was found"},
		{name: "cut in a list", text: "$v = [\n  1,\n", err: "line 3, column 1: the text ends where a value is expected; is the file cut off?"},
		{name: "cut in a string", text: "$v = [\n  'ab", err: "line 2, column 3: the string that begins here has no end; is the file cut off?"},
		{name: "cut behind a backslash", text: `$v = 'a\`, err: "line 1, column 6: the string that begins here has no end; is the file cut off?"},
		{name: "cut behind a value", text: "$v = 1", err: "line 1, column 7: the text ends where `;` is expected; is the file cut off?"},
		{name: "cut in a reference", text: "$v = $VAR1->{", err: "line 1, column 14: the text ends where the end of a value is expected; is the file cut off?"},
		{name: "no name", text: "$ = 1;", err: "line 1, column 2: a variable's name is expected behind $"},
		{name: "no value", text: "$v = ;", err: "line 1, column 6: a value is expected, not ';'"},
		{name: "program", text: "$v = system('true');", err: "line 1, column 6: a value is expected, not 's'"},
		{name: "wrong bracket", text: "$v = [1};", err: "line 1, column 8: `,` or `]` is expected, not '}'"},
		{name: "no arrow", text: "$v = {a, 1};", err: "line 1, column 8: `=>` is expected, not ','"},
		{name: "no key", text: "$v = {[] => 1};", err: "line 1, column 7: a key is expected, not '['"},
		{name: "bad number", text: "$v = 1-2;", err: "line 1, column 6: a number is expected"},
		{name: "bad escape", text: `$v = "\N{U+263a}";`, err: `line 1, column 7: unknown escape \N`},
		{name: "bad character", text: `$v = "\x{xy}";`, err: `line 1, column 7: \x{...} holds no hexadecimal number`},
		{name: "open character", text: `$v = "\x{1234567890}";`, err: "line 1, column 7: `}` is missing behind \\x{"},
		{name: "class missing", text: `$v = bless( 1 );`, err: "line 1, column 15: `,` is expected, not ')'"},
		{name: "class is no string", text: `$v = bless( 1, 2 );`, err: "line 1, column 16: the name of a class is expected, not '2'"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			values, err := Parse([]byte(tc.text))
			if tc.err != "" {
				var syntax *SyntaxError
				if !errors.As(err, &syntax) || err.Error() != tc.err || values != nil {
					t.Errorf("error %v, want %v", err, tc.err)
				}
				return
			}
			var got []string
			for i := range values {
				got = append(got, show(&values[i]))
			}
			if err != nil || strings.Join(got, " ") != tc.want {
				t.Errorf("got %s, %v, want %s", got, err, tc.want)
			}
		})
	}
}

// write writes a value as Data::Dumper could have done.
func write(b []byte, v *Value) []byte {
	quote := func(text []byte) {
		b = append(b, '\'')
		for _, c := range text {
			if c == '\'' || c == '\\' {
				b = append(b, '\\')
			}
			b = append(b, c)
		}
		b = append(b, '\'')
	}
	switch v.Kind {
	case Undef:
		return append(b, "undef"...)
	case Scalar:
		quote(v.Text)
		return b
	case Opaque:
		return append(b, v.Text...)
	}
	b = append(b, map[Kind]byte{Array: '[', Hash: '{'}[v.Kind])
	for i := range v.Elems {
		if v.Kind == Hash {
			quote(v.Keys[i])
			b = append(b, "=>"...)
		}
		b = append(write(b, &v.Elems[i]), ',')
	}
	return append(b, map[Kind]byte{Array: ']', Hash: '}'}[v.Kind])
}

// FuzzParse checks that what was read can be written and read again, that an
// error names a place in the text, and that whatever comes of a text is lines
// that smtpd could have said, one event each.
func FuzzParse(f *testing.F) {
	names, err := filepath.Glob("testdata/history/*")
	if err != nil || len(names) == 0 {
		f.Fatal("no seeds", err)
	}
	layouts, _ := filepath.Glob("testdata/layout-*.txt")
	for _, name := range append(names, layouts...) {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		values, err := Parse(text)
		if err != nil {
			var e *SyntaxError
			if !errors.As(err, &e) || e.Line < 1 || e.Line > 1+bytes.Count(text, []byte("\n")) || e.Column < 1 || e.Column > len(text)+1 {
				t.Fatalf("error %v", err)
			}
			return
		}
		for i := range values {
			again, err := Parse(append(write([]byte("$VAR1 = "), &values[i]), ';'))
			if err != nil || len(again) != 1 || show(&again[0]) != show(&values[i]) {
				t.Fatalf("%s\nbecame %v, error %v", show(&values[i]), again, err)
			}
		}
		s, err := decode(values, nil)
		if err != nil {
			return
		}
		lines := bytes.Split(bytes.TrimSuffix(s.lines, []byte("\n")), []byte("\n"))
		if len(lines) != s.Events || !bytes.Contains(lines[0], []byte("|link-connect|")) {
			t.Fatalf("%d events, lines %q", s.Events, lines)
		}
		for _, line := range lines {
			if !bytes.HasPrefix(line, []byte("report|0.7|")) && !bytes.HasPrefix(line, []byte("filter|0.7|")) ||
				!bytes.Contains(line, fmt.Appendf(nil, "|%016x", s.ID)) || bytes.Contains(line, []byte("|auth|PLAIN")) {
				t.Fatalf("line %q", line)
			}
		}
	})
}
