// Package hostiletext contains strings with which clients attack programs that display logs and
// reports. Such a string may control a terminal, forge a log line, run as a spreadsheet formula,
// break a format, or be invisible. The package also fills a state directory with these strings, and
// checks the output of programs.
//
// A new output format needs a row in the table of a test that calls [Store] and checks the output
// with [Terminal], [JSON] or [CSV].
package hostiletext

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A Text is a named piece of hostile text.
type Text struct{ Name, Text string }

// Forged is the start of a forged line.
const Forged = "FORGED"

// Texts returns all pieces of hostile text.
func Texts() []Text {
	return []Text{
		// The following strings control a terminal.
		{"window title", "\x1b]0;owned\x07"},
		{"clear and colour", "\x1b[2J\x1b[1;31mred"},
		{"clipboard", "\x1b]52;c;cm0gLXJmIC8=\x07"},
		{"hyperlink", "\x1b]8;;http://evil.example.net/\x1b\\mx.example.org\x1b]8;;\x1b\\"},
		{"answerback", "\x1bP$q\"p\x1b\\\x05\x1b[c"},
		{"C1 in UTF-8", "\u009b31m\u009d0;owned\u009c\u0090x\u009c"},
		{"C1 raw", "\x9b31m\x9d0;owned\x9c"},
		{"backspace", "evil\b\b\b\bgood\x7f"},
		{"carriage return", "evil\rgood"},
		{"shift out", "\x0e\x0f\x1bc"},
		{"nul", "a\x00b"},
		{"all controls", "\x01\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\x7f"},
		// The following strings forge log lines and replies.
		{"line feed", "x\n" + Forged + " level=ERROR msg=\"all is lost\""},
		{"line end", "x\r\n" + Forged + " finding evidence=scanner src=192.0.2.99 confidence=high"},
		{"line separators", "x\u2028" + Forged + "\u2029" + Forged + "\u0085" + Forged + "\v" + Forged + "\f"},
		{"mail header", "x\r\nBcc: victim@example.net\r\n\r\n" + Forged},
		{"key and value", "x src=192.0.2.99 evidence=scanner rule=none \"quoted\" 'single' =x"},
		{"filter answer", "x\nfilter-result|0000000000000001|0000000000000002|disconnect|550 " + Forged},
		{"pipes", "a|b||c|"},
		{"tab", "a\tb\tc"},
		// The following strings run in a spreadsheet.
		{"formula", "=cmd|' /C calc'!A0"},
		{"formula plus", "+1+cmd|' /C calc'!A0"},
		{"formula minus", "-1-cmd|' /C calc'!A0"},
		{"formula at", "@SUM(1+9)*cmd|' /C calc'!A0"},
		{"formula tab", "\t=cmd()"},
		{"formula return", "\r=cmd()"},
		{"formula feed", "\n=cmd()"},
		{"formula wide", "\uff1dcmd()"},
		{"formula blank", " =cmd()"},
		{"formula next cell", "a\",=cmd(),\"b"},
		{"formula next row", "a\"\r\n=cmd(),\"b"},
		{"separators", "a,b;c\td"},
		{"quotes", `"'` + "`" + `""''`},
		// The following strings are markup, shell commands or format directives.
		{"script", "<script>alert(1)</script>"},
		{"attribute", `"><img src=x onerror=alert(1)>`},
		{"entity", "&lt;b&gt;&#27;&amp;amp;"},
		{"url", "javascript:alert(1)//%0d%0a%1b%5b31m"},
		{"json", `"},{"event":"ban","src":"192.0.2.99"}`},
		{"json escape", `\u001b[31m\"\n\u0000\ud800`},
		{"go escape", `\x1b[31m\033[31m\e[31m\u202e`},
		{"vis", `\^[[31m\M-[31m\040`},
		{"backslash", `x\`},
		{"shell", "$(touch /tmp/x)`id`;id|id&id>x"},
		{"option", "--help"},
		{"path", "../../../../etc/passwd"},
		{"format", "%s%n%x%p%%%!d(MISSING)"},
		{"metric", "a\"} 1\n" + Forged + "{b=\"\\"},
		{"comment", "x # y */ -- <!-- ]]>"},
		// The following strings contain invisible characters.
		{"right to left", "\u202egnp.exe\u202c"},
		{"isolate", "\u2066x\u2067y\u2068z\u2069\u061c\u200e\u200f"},
		{"zero width", "a\u200bb\u200cc\u200dd\u2060e\ufefff\u180eg\u00adh"},
		{"fillers", "\u3164\u115f\u1160\uffa0\u034f\u17b4\u2800"},
		{"variation", "a\ufe0f\U000e0100b"},
		{"tags", "\U000e0001\U000e0041\U000e007f"},
		{"blanks", "\u00a0\u2003\u3000 x "},
		{"blank", " "},
		{"combining", "a" + strings.Repeat("\u0301", 200)},
		{"annotation", "\ufff9a\ufffab\ufffb"},
		{"private", "\ue000\U000f0000\U0010fffd"},
		{"unassigned", "\u0378\ufffe\uffff\U0001ffff"},
		{"replacement", "\ufffd"},
		{"look-alike", "\u0430pple.example"},
		{"wide", strings.Repeat("\u6f22", 100)},
		// The following bytes are not valid text.
		{"not UTF-8", "\xff\xfe\x80"},
		{"overlong", "\xc0\xaf\xe0\x80\x9b\xf0\x80\x80\x9b"},
		{"cut short", "x\xe2\x80"},
		{"surrogates", "\xed\xa0\xbd\xed\xb8\x80"},
		{"beyond", "\xf4\x90\x80\x80"},
		{"latin 1", "caf\xe9"},
		// The following strings are long.
		{"long", strings.Repeat("A", 2000)},
		{"long escapes", strings.Repeat("\x1b[31m", 400)},
		{"long in bytes", strings.Repeat("\xff", 2000)},
		{"long after a label", strings.Repeat("a.", 1000) + "\x1b]0;owned\x07"},
	}
}

// Terminal checks that out is safe for a terminal. The text must be UTF-8, and contain no control
// characters except line feed and tab. Direction marks, invisible characters and forged lines are
// errors.
func Terminal(out []byte) error {
	var errs []error
	for n, line := range bytes.Split(out, []byte("\n")) {
		for at, r := range string(line) {
			if what := wrong(r); what != "" || r == utf8.RuneError && !bytes.HasPrefix(line[at:], []byte("\ufffd")) {
				errs = append(errs, fmt.Errorf("line %d: %s %U: %.200q", n+1, what, r, line))
				break
			}
		}
		if bytes.HasPrefix(line, []byte(Forged)) {
			errs = append(errs, fmt.Errorf("line %d is forged: %.200q", n+1, line))
		}
	}
	return errors.Join(errs...)
}

func wrong(r rune) string {
	switch {
	case r == '\t':
		return ""
	case unicode.IsControl(r):
		return "control character"
	case unicode.In(r, unicode.Cf, unicode.Bidi_Control, unicode.Zl, unicode.Zp,
		unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point):
		return "invisible character"
	}
	return ""
}

// JSON checks that out is a sequence of JSON values, and that no string in them would be rejected
// by Terminal. each is called for every value.
func JSON(out []byte, each func(any)) error {
	if err := Terminal(out); err != nil {
		return err
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var v any
		if err := d.Decode(&v); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("JSON: %w", err)
		}
		if each != nil {
			each(v)
		}
	}
}

// CSV checks that out consists of comma-separated values with rows of equal length. No cell may be
// a spreadsheet formula.
func CSV(out []byte) error {
	if err := Terminal(out); err != nil {
		return err
	}
	rows, err := csv.NewReader(bytes.NewReader(out)).ReadAll()
	if err != nil {
		return fmt.Errorf("CSV: %w", err)
	}
	for _, row := range rows {
		for _, cell := range row {
			// Some programs ignore a space at the start of a cell.
			if r, _ := utf8.DecodeRuneInString(strings.TrimLeft(cell, " ")); strings.ContainsRune("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20", r) {
				return fmt.Errorf("a cell is a formula: %.100q", cell)
			}
		}
	}
	return nil
}
