package rules

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"scanwatch/internal/smtp"
)

// parse parses src as a file.
func parse(src string) (*Config, error) {
	return Parse("test.conf", func(name string) ([]byte, error) {
		if name != "test.conf" {
			return nil, fs.ErrNotExist
		}
		return []byte(src), nil
	})
}

func mustParse(t testing.TB, src string) *Config {
	t.Helper()
	c, err := parse(src)
	if err != nil {
		t.Fatalf("%s:\n%s", src, detail(nil, err))
	}
	return c
}

func TestParse(t *testing.T) {
	tests := []struct {
		name, src, want string // if want is empty, the canonical form is the same as src
	}{
		{"mode", "mode enforce", ""},
		{"store", `store "/var/db/scanwatch" keep 90d budget 512M`, ""},
		{"store in other units", `store "/s" budget 1024M keep 12w`, `store "/s" keep 84d budget 1G`},
		{"files", "asn \"/a.mmdb\"\ncountry \"/c.mmdb\"", ""},
		{"contact", `contact "postmaster@example.org or +1 555 0100"`, ""},
		{"own names", `own-name { mx.example.org "mail.example.org", }`, `own-name { "mx.example.org", "mail.example.org" }`},
		{"own address", `own-address 2001:DB8:0::1`, `own-address 2001:db8::1`},
		{"comments and blanks", "# one\n\n\tmode observe # two\n", "mode observe"},
		{"byte order mark, CR, no last newline", "\ufeffmode observe\r\nasn \"x\"", "mode observe\nasn \"x\""},
		{"a # in quotes is none", `contact "room #4"`, ""},
		{"a comment does not go on", "# one \\\nmode observe", "mode observe"},
		{"continuation", "mode \\\n  enforce", "mode enforce"},
		{"escapes", `contact "a \"b\" \\ c"`, ""},
		{"inline table", `table <t> { 192.0.2.1, 192.0.2.0/24, "a.example.org", ".b.example.org", "*.c", /^d/, AS64496 }`, ""},
		{"inline table, unquoted", `table <t> { as64496 .example.org 2001:db8::/32 }`, `table <t> { AS64496, ".example.org", 2001:db8::/32 }`},
		{"an address in an IPv6 one", `table <t> { ::ffff:192.0.2.1, ::ffff:192.0.2.0/120 }`, `table <t> { 192.0.2.1, 192.0.2.0/24 }`},
		{"table with file", `table <t> { 192.0.2.1, file "/etc/mail/friends" }`, ""},
		{"table of a file", `table <t> file "/drop.json" format spamhaus-drop`, ""},
		{"table with parameter", `table <t> file "/aws.json" format aws EC2`, `table <t> file "/aws.json" format aws "EC2"`},
		{"table with URL", `table <t> file "/x" format aws "service EC2" url "https://example.org/x?a=%Y-%m" key "k" every 6h`, ""},
		{"table with URL, without parameter", `table <t> file "/x" format plain url "https://example.org/x" every 60m key "k"`, `table <t> file "/x" format plain url "https://example.org/x" key "k" every 1h`},
		{"table with feeds", `table <t> { file "/x" feed spamhaus-drop4, file "/y" format plain feed spamhaus-drop6 every 7d }`, ""},
		{"databases with downloads", "asn \"/a\" feed dbip-asn every 7d\ncountry \"/c\" url \"https://example.org/%Y%m.mmdb\"", ""},
		{"forward to a URL", `companion forward user "_swforward" to url "https://example.org/x" format chat key "/k" header "/h" queue "/q" every 10m rate 5`, ""},
		{"forward to a URL in a file", `companion forward user _swforward to url "/etc/x" rate 5 format json`, `companion forward user "_swforward" to url "/etc/x" format json rate 5`},
		{"forward to others", "companion forward user \"a\" to syslog \"tls://logs.example.org:6514\"\ncompanion forward user \"a\" to syslog \"/dev/log\" every 1s\ncompanion forward user \"a\" to stdout\ncompanion forward user \"a\" to abuseipdb key \"/k\"", ""},
		{"empty table", "table <t> {}", "table <t> { }"},
		{"builtin table", "table <scanners> builtin", ""},
		{"listener", "listener mx port 25", ""},
		{"listener with all", "listener mx port { 25, 2525 } address { 192.0.2.1, 2001:db8::1 }", ""},
		{"pass from", "pass from { 192.0.2.1, <friends> }", ""},
		{"pass match src", "pass match src <friends>", "pass from <friends>"},
		{"pass on", "pass on mx match fcrdns rdns .example.org", `pass on mx match fcrdns pass rdns ".example.org"`},
		{"pass negated", "pass match !src 192.0.2.1", ""},
		{"rule with everything", `rule r observe on mx phase { connect, helo } match src <t> !fcrdns pass disconnect "550 5.7.1 No" score 5 delay 2s tag a tag b ban 7d`, ""},
		{"rule in another order", `rule r phase { helo, connect } delay 2s on mx ban 168h match !seen-good`, `rule r on mx phase { connect, helo } match !known delay 2s ban 7d`},
		{"ladder of bans", "rule r phase end match evidence harvest ban { 0s, 1h, 7d }", ""},
		{"even trusted", "rule r observe even trusted phase connect match src 192.0.2.1 disconnect", ""},
		{"standing", "rule r phase connect match known !trusted delay 1s", ""},
		{"failed users", `rule r phase end match auth-failed { admin, test } ban 1h`, `rule r phase end match auth-failed { "admin", "test" } ban 1h`},
		{"count by domain and site", "rule r phase rcpt-to match count unknown-recipient > 5 in 1h by site count unknown-recipient > 5 in 1h by domain reject", ""},
		{"pass is proceed", "rule r phase helo match fcrdns pass pass", "rule r phase helo match fcrdns pass proceed"},
		{"fcrdns alone is pass", "rule r phase helo match !fcrdns reject", "rule r phase helo match !fcrdns pass reject"},
		{"fcrdns list", "rule r phase helo match fcrdns { fail, error } reject", ""},
		{"match any", "rule r phase connect match any delay 1s", ""},
		{"score as condition and action", "rule r phase helo match score > 5 score -10", ""},
		{"score is an action", "rule r phase helo match helo x score 10", `rule r phase helo match helo "x" score 10`},
		{"auth", "rule r phase rcpt-to match auth reject", ""},
		{"auth with user names", "rule r phase rcpt-to match auth { joe, /^x/ } reject", `rule r phase rcpt-to match auth { "joe", /^x/ } reject`},
		{"tls and country", "rule r phase data match !tls country { de, JP } junk", `rule r phase data match !tls country { "DE", "JP" } junk`},
		{"asn", "rule r phase connect match asn { 64496, <bad> } disconnect", "rule r phase connect match asn { AS64496, <bad> } disconnect"},
		{"evidence list", "rule r phase helo match evidence { scanner, cloud } !evidence rdns-missing junk", ""},
		{"count", "rule r phase rcpt-to match count harvest > 5 disconnect", ""},
		{"count in a window", "rule r phase rcpt-to match count harvest > 5 in 60m disconnect", "rule r phase rcpt-to match count harvest > 5 in 1h by src disconnect"},
		{"count by", "rule r phase connect match count auth-failure > 10 in 1h by prefix disconnect", ""},
		{"null sender", "rule r phase mail-from match mail-from <> junk", `rule r phase mail-from match mail-from "<>" junk`},
		{"regex with slashes", `rule r phase helo match helo /^a\/b\\\/[.]\w$/ junk`, ""},
		{"listener condition", "rule r phase helo match !listener { mx, submission } helo x junk", `rule r phase helo match !listener { mx, submission } helo "x" junk`},
		{"weight", "score evidence helo-unqualified 20", ""},
		{"macro", "n = 192.0.2.1\npass from $n", "n = 192.0.2.1\npass from 192.0.2.1"},
		{"macro list", "n = { 192.0.2.1, 192.0.2.2 }\npass from { $n, 192.0.2.3 }", "n = { 192.0.2.1, 192.0.2.2 }\npass from { 192.0.2.1, 192.0.2.2, 192.0.2.3 }"},
		{"macro of a macro", "a = 25\nb = { $a 26 }\nlistener mx port $b", "a = 25\nb = { 25 26 }\nlistener mx port { 25, 26 }"},
		{"macro of text", `t = "550 5.7.1 No"` + "\nrule r phase helo match helo x reject $t", `t = "550 5.7.1 No"` + "\n" + `rule r phase helo match helo "x" reject "550 5.7.1 No"`},
		{"a macro is nothing inside quotes", `contact "$x"`, ""},
		{"quoted keyword as a name", `rule r phase helo match helo "reject" reject`, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := tt.want
			if want == "" {
				want = tt.src
			}
			c := mustParse(t, tt.src)
			if got := strings.TrimSuffix(c.String(), "\n"); got != want {
				t.Errorf("source %s\n got %s\nwant %s", tt.src, got, want)
			}
			roundTrip(t, c)
		})
	}
}

// TestParseTree checks the fields of the tree. Tests that print the tree may not notice wrong
// fields.
func TestParseTree(t *testing.T) {
	c := mustParse(t, `rule r observe on mx phase { helo, data } match !count harvest > 5 in 1h by asn evidence cloud reject "450 4.7.1 x" ban 1d`)
	r := c.Statements[0].(*Rule)
	strip(c)
	want := &Rule{Name: "r", Observe: true, On: "mx", Phases: smtp.Phases(smtp.PhaseHelo, smtp.PhaseData),
		Conds: []*Cond{
			{Not: true, Word: "count", Values: []Value{{Kind: WordValue, Text: "harvest"}}, Over: 5, Window: 60 * 60 * 1e9, By: ByASN},
			{Word: "evidence", Values: []Value{{Kind: WordValue, Text: "cloud"}}},
		},
		Decides: true, Decision: smtp.Reject, Text: "450 4.7.1 x", Ban: []time.Duration{day}}
	if !reflect.DeepEqual(r, want) {
		t.Errorf("got %+v\nwant %+v", r, want)
	}
}

func TestInclude(t *testing.T) {
	files := map[string]string{
		"/etc/scanwatch.conf":       "mode observe\ninclude \"rules/a.conf\"\npass from <friends>\n",
		"/etc/rules/a.conf":         "include \"b.conf\"\nmx = 25\n",
		"/etc/rules/b.conf":         "include \"/srv/tables.conf\"\n",
		"/srv/tables.conf":          "table <friends> { 192.0.2.1 }\n",
		"/etc/deep.conf":            "include \"deep/0.conf\"\n",
		"/etc/wide.conf":            strings.Repeat("include \"empty.conf\"\n", maxFiles+5),
		"/etc/empty.conf":           "",
		"/etc/broken-in-table.conf": "include \"broken-table.conf\"\n",
		"/etc/broken-table.conf":    "pass from <nobody>\n",
	}
	for i := range maxDepth + 2 {
		files[fmt.Sprintf("/etc/deep/%d.conf", i)] = fmt.Sprintf("include \"%d.conf\"\n", i+1)
	}
	read := func(name string) ([]byte, error) {
		if s, ok := files[filepath.ToSlash(name)]; ok {
			return []byte(s), nil
		}
		return nil, fs.ErrNotExist
	}
	c, err := Parse("/etc/scanwatch.conf", read)
	if err != nil {
		t.Fatal(detail(nil, err))
	}
	if got := c.String(); got != files["/etc/scanwatch.conf"] {
		t.Errorf("got %s", got)
	}
	var all []string
	for file, s := range c.All() {
		all = append(all, file.File+": "+s.String())
	}
	want := []string{
		"/etc/scanwatch.conf: mode observe",
		`/etc/scanwatch.conf: include "rules/a.conf"`,
		`/etc/rules/a.conf: include "b.conf"`,
		`/etc/rules/b.conf: include "/srv/tables.conf"`,
		"/srv/tables.conf: table <friends> { 192.0.2.1 }",
		"/etc/rules/a.conf: mx = 25",
		"/etc/scanwatch.conf: pass from <friends>",
	}
	if !reflect.DeepEqual(all, want) {
		t.Errorf("got %q\nwant %q", all, want)
	}
	for _, tt := range []struct{ file, want string }{
		{"/etc/deep.conf", "too many files"},
		{"/etc/wide.conf", "too many files"},
		{"/etc/none.conf", "/etc/none.conf:1:1: cannot read /etc/none.conf: file does not exist"},
	} {
		_, err := Parse(tt.file, read)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %s", tt.file, err, tt.want)
		}
	}
	c, err = Parse("/etc/broken-in-table.conf", read)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Check(Options{})
	if want := "/etc/broken-table.conf:1:11: unknown table <nobody>"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestErrorsAs(t *testing.T) {
	_, err := parse("mode x\nmode y\n")
	var all Errors
	var one *Error
	if !errors.As(err, &all) || len(all) != 2 || !errors.As(err, &one) || one.Line != 1 {
		t.Errorf("got %#v", err)
	}
}

func TestLimits(t *testing.T) {
	tests := []struct{ name, src, want string }{
		{"a big file", strings.Repeat("#", maxFile+1), "a configuration file may not exceed 1048576 bytes"},
		{"a long line", "table <t> { " + strings.Repeat("x ", maxTokens+1) + "}", "the line has more than"},
		{"a macro bomb", bomb(), "too long after macro expansion"},
		{"many errors", strings.Repeat("x\n", 1000), "is not a statement"},
		{"deep braces", "x = " + strings.Repeat("{", 19000), "this macro has no value"},
		{"many tags", tags(), "more than 64 different tags"},
		{"many listeners", listeners(), "more than 64 listeners"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := parse(tt.src)
			if err == nil {
				_, err = c.Check(Options{})
			}
			var es Errors
			if !errors.As(err, &es) || !strings.Contains(es.Error(), tt.want) {
				t.Fatalf("got %.300v, want %s", err, tt.want)
			}
			if len(es) > maxErrors {
				t.Errorf("%d errors", len(es))
			}
		})
	}
}

// bomb returns macros of which each contains the previous one twice.
func bomb() string {
	s := "a0 = { x, x }\n"
	for i := range 30 {
		s += fmt.Sprintf("a%d = { $a%d, $a%d }\n", i+1, i, i)
	}
	return s
}

func tags() string {
	s := ""
	for i := range maxTags + 1 {
		s += fmt.Sprintf("rule r%d phase helo match helo \"x%d\" tag t%d\n", i, i, i)
	}
	return s
}

func listeners() string {
	s := ""
	for i := range maxListeners + 1 {
		s += fmt.Sprintf("listener l%d port %d\n", i, i+1)
	}
	return s
}

// strip removes fields that the canonical form does not contain. The removed fields are the
// positions and the fields that the checker uses.
func strip(c *Config) {
	c.lexer = nil
	for _, s := range c.Statements {
		switch s := s.(type) {
		case *Rule:
			s.actions = nil
		case *Macro:
			s.used = false
		}
		stripPos(reflect.ValueOf(s))
	}
}

func stripPos(v reflect.Value) {
	if p, ok := v.Interface().(Pos); ok && v.CanSet() {
		_ = p
		v.SetZero()
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() && v.Type() != reflect.TypeFor[*Token]() && v.Type() != reflect.TypeFor[*Config]() {
			stripPos(v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			stripPos(v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() && v.Field(i).CanSet() {
				stripPos(v.Field(i))
			}
		}
	}
}

// roundTrip checks that a printed tree is the same when it is parsed again.
func roundTrip(t *testing.T, c *Config) {
	t.Helper()
	text := c.String()
	again, err := parse(text)
	if err != nil {
		t.Fatalf("the printed form does not parse:\n%s\n%s", text, detail(nil, err))
	}
	if got := again.String(); got != text {
		t.Fatalf("printed again:\n%s\nwas:\n%s", got, text)
	}
	strip(c)
	strip(again)
	if !reflect.DeepEqual(c.Statements, again.Statements) {
		t.Fatalf("another tree for:\n%s", text)
	}
}

// FuzzRoundTrip checks that any file has printable errors or a canonical form. The canonical form
// must be parsed to the same tree with the same warnings.
func FuzzRoundTrip(f *testing.F) {
	for _, dir := range []string{"policies/*.conf", "testdata/broken/*.conf"} {
		files, err := filepath.Glob(dir)
		if err != nil || len(files) == 0 {
			f.Fatalf("%s: %v", dir, err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(string(b))
		}
	}
	f.Fuzz(func(t *testing.T, src string) {
		c, err := parse(src)
		if err != nil {
			var es Errors
			if !errors.As(err, &es) || es.Detail() == "" {
				t.Fatalf("%q: %v", src, err)
			}
			return
		}
		p, w, err := Compile(c, Options{})
		if err == nil {
			for phase := smtp.PhaseConnect; phase < smtp.NumPhases; phase++ {
				p.Explain(&Facts{Phase: phase, Helo: []byte("x.example.org")})
			}
			if err := p.Describe(new(strings.Builder)); err != nil {
				t.Fatal(err)
			}
		}
		again, err2 := parse(c.String())
		if err2 != nil {
			t.Fatalf("%q: %v", c.String(), err2)
		}
		// The canonical form contains no macros, so the warning about an unused macro may be
		// missing.
		_, w2, err2 := Compile(again, Options{})
		if (err == nil) != (err2 == nil) || len(w2) < len(w) {
			t.Fatalf("%q\nfound %s\nafter printing %s", src, detail(w, err), detail(w2, err2))
		}
		roundTrip(t, c)
	})
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"helo", "helo", 0}, {"hello", "helo", 1}, {"hleo", "helo", 1}, {"rcptto", "rcpt-to", 1}, {"", "abc", 3}, {"ca", "abc", 3}} {
		if got := distance(tt.a, tt.b); got != tt.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

// TestParseStore checks that the store statement can be read from a configuration that contains
// errors.
func TestParseStore(t *testing.T) {
	for text, want := range map[string]Settings{
		"store \"/tmp/x\" keep 30d\nrule bad\n": {Store: "/tmp/x", Keep: 30 * day},
		"nonsense {\nstore \"/tmp/x\"\n":        {Store: "/tmp/x"},
		"store \"\nmode enforce\n":              {},
		"mode maybe\n":                          {},
	} {
		got := ParseStore("test.conf", func(string) ([]byte, error) { return []byte(text), nil })
		if got.Store != want.Store || want.Keep > 0 && got.Keep != want.Keep {
			t.Errorf("%q: %+v", text, got)
		}
	}
}
