package store

import (
	"encoding/binary"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"scanwatch/internal/smtp"
	"scanwatch/store/column"
)

var updateDoc = flag.Bool("update-doc", false, "rewrite the example of docs/sealed-days.md")

const docFile = "../docs/sealed-days.md"

// docRecords returns the records of the example in docs/sealed-days.md.
func docRecords(t *testing.T) []Record {
	ms := time.Millisecond
	mail := Record{ID: 0x2a, Start: noon.Add(-800 * ms), End: noon, Src: netip.MustParseAddrPort("192.0.2.7:4711"), Dst: netip.MustParseAddrPort("198.51.100.25:25"),
		RDNS: []byte("a.example"), FCrDNS: smtp.FCrDNSPass, Ending: smtp.EndingQuit, Counts: Counts{Commands: 4, Mails: 1, RcptOK: 1}}
	scan := Record{ID: 0x2b, Start: noon.Add(900 * ms), End: noon.Add(1000 * ms), Src: netip.MustParseAddrPort("203.0.113.9:6000"), Dst: mail.Dst,
		Ending: smtp.EndingDropped, Counts: Counts{Commands: 1}}
	return []Record{
		encoded(t, mail, Step{Kind: KindHelo, At: 20 * ms, Text: []byte("a.example"), Arg: []byte("EHLO"), Result: smtp.ResultOK},
			Step{Kind: KindMail, At: 45 * ms, Text: []byte("b@a.example"), Result: smtp.ResultOK, MsgID: 0x1d},
			Step{Kind: KindRcpt, At: 70 * ms, Text: []byte("c@example.org"), Result: smtp.ResultOK}, Step{Kind: KindCommit, At: 790 * ms, Size: 4850}),
		encoded(t, scan, Step{Kind: KindHelo, At: 33 * ms, Text: []byte("User"), Arg: []byte("EHLO"), Result: smtp.ResultOK},
			Step{Kind: KindFinding, At: 33 * ms, Text: []byte("helo-word"), Arg: []byte("User"), By: []byte("helo"), Confidence: []byte("low")}),
	}
}

// dump returns an annotated hex dump of a block. It decodes the header without
// using package column.
func dump(t *testing.T, value []byte) string {
	t.Helper()
	var r column.Reader
	if err := r.Open(value); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	rest := value
	line := func(n int, format string, args ...any) {
		note := fmt.Sprintf(format, args...)
		for n > 0 {
			part := rest[:min(n, 16)]
			fmt.Fprintf(&b, "%-48s%s\n", fmt.Sprintf("% x", part), note)
			rest, n, note = rest[len(part):], n-len(part), ""
		}
	}
	number := func() (v uint64, n int) { return binary.Uvarint(rest) }
	line(4, "magic, version 1")
	rows, n := number()
	line(n, "%d rows", rows)
	columns, n := number()
	line(n, "%d columns", columns)
	size, n := number()
	line(n, "directory of %d bytes", size)
	sizes := make([]int, columns)
	for i := range sizes {
		name, n := number()
		at := n + int(name) + 1
		values, n := binary.Uvarint(rest[at:])
		bytes, m := binary.Uvarint(rest[at+n:])
		sizes[i] = int(bytes)
		line(at+n+m+4, "%q: %s, %d values, %d bytes, CRC", rest[at-1-int(name):at-1], []string{1: "numbers", 2: "texts"}[rest[at-1]], values, bytes)
	}
	line(4, "CRC of all bytes before")
	for i, size := range sizes {
		line(size, "%s = %s", r.Name(i), strings.Join(shown(t, &r, i), ", "))
	}
	if len(rest) > 0 {
		t.Errorf("%d bytes follow the last column", len(rest))
	}
	return b.String()
}

// shown returns a column's values as text.
func shown(t *testing.T, r *column.Reader, i int) (all []string) {
	t.Helper()
	var n column.Numbers
	var texts column.Texts
	if r.Numbers(i, &n) == nil {
		for j := range r.Values(i) {
			all = append(all, fmt.Sprint(n.At(j)))
		}
		return all
	}
	if err := r.Texts(i, &texts); err != nil {
		t.Fatal(err)
	}
	for j := range r.Values(i) {
		text := fmt.Sprintf("%q", texts.At(j))
		if strings.Contains(text, `\x`) {
			text = fmt.Sprintf("%x", texts.At(j))
		}
		all = append(all, text)
	}
	return all
}

// TestSealedDaysDoc checks that the example in docs/sealed-days.md is the
// encoder's output. The document must name every column and every kind of step.
func TestSealedDaysDoc(t *testing.T) {
	content, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	doc := string(content)
	const begin, end = "<!-- example -->\n```\n", "```\n"
	before, rest, ok := strings.Cut(doc, begin)
	got, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatal("no example")
	}
	want := dump(t, sealed(t, docRecords(t)...))
	if *updateDoc {
		if err := os.WriteFile(docFile, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if got != want {
		t.Errorf("the example is\n%s\nwant\n%s", got, want)
	}
	names := []string{columnKinds, columnExact, columnRest, columnAt, columnClass}
	for i := range recordFields {
		names = append(names, recordFields[i].name)
	}
	for i := range stepFields {
		names = append(names, stepFields[i].name)
	}
	for k := KindGreeting; k <= KindReference; k++ {
		names = append(names, kindNames[k])
	}
	for _, name := range names {
		if !strings.Contains(doc, "`"+name+"`") {
			t.Errorf("the document does not describe %s", name)
		}
	}
}
