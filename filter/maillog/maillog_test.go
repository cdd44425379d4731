package maillog

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var now = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// facts reads logs, and returns a line for each Delivery and each Sent.
func facts(t *testing.T, names []string, stdin io.Reader) (list []string, c Counts, err error) {
	t.Helper()
	logs, err := Open(names, stdin, now, time.UTC)
	if err != nil {
		return nil, c, err
	}
	when := func(at int64) string { return time.UnixMicro(at).UTC().Format(time.DateTime) }
	c, err = Read(logs, Options{
		Delivered: func(d *Delivery) {
			list = append(list, fmt.Sprintf("%s %s delivered %s %q %08x <%s> <%s>%s", when(d.Time), d.Server, d.Addr, d.Host, d.MsgID, d.Sender, d.Recipient, strings.Repeat(" rejected", d.Rejected)))
		},
		Sent: func(s *Sent) {
			list = append(list, fmt.Sprintf("%s %s sent %q %s", when(s.Time), s.Server, s.User, s.Domain))
		},
	})
	return list, c, err
}

// file writes a file with the given modification time.
func file(t *testing.T, name string, data []byte, modified time.Time) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := errors.Join(os.WriteFile(path, data, 0o600), os.Chtimes(path, modified, modified)); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRecorded checks the facts in logs of several smtpd versions.
func TestRecorded(t *testing.T) {
	names, _ := filepath.Glob("testdata/*.log")
	if len(names) != 4 {
		t.Fatalf("%d recorded logs", len(names))
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		list, c, err := facts(t, []string{file(t, "maillog", data, now)}, nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := fmt.Sprintf("%s\n%+v\n", strings.Join(list, "\n"), c)
		golden := strings.TrimSuffix(name, ".log") + ".golden"
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s:\n%s\nwant:\n%s", name, got, want)
		}
	}
}

// oneMessage is the log of a message. The lines of the message have no header.
const oneMessage = `0123456789abcdef smtp connected address=198.51.100.10 host=mail.example.net
0123456789abcdef smtp message msgid=905b8b96 size=175 nrcpt=1 proto=ESMTP
0123456789abcdef smtp envelope evpid=905b8b968a5f352a from=<joe@example.net> to=<alice@example.org>
0123456789abcdef smtp disconnected reason=quit
`

// headed adds header before each line.
func headed(lines, header string) string {
	var b strings.Builder
	for l := range strings.Lines(lines) {
		b.WriteString(header + l)
	}
	return b.String()
}

// TestHeaders checks the headers that syslog daemons and the journal write.
func TestHeaders(t *testing.T) {
	want := `delivered 198.51.100.10 "mail.example.net" 905b8b96 <joe@example.net> <alice@example.org>`
	for header, at := range map[string]string{
		"Nov 21 10:31:02 mx smtpd[4711]: ":                                                        "2026-11-21 10:31:02 mx ",
		"Nov 21 10:31:02.123456 mx smtpd[4711]: ":                                                 "2026-11-21 10:31:02 mx ",
		"Nov  1 10:31:02 mx smtpd: ":                                                              "2026-11-01 10:31:02 mx ",
		"Dec  1 10:31:02 mx smtpd[4711]: ":                                                        "2025-12-01 10:31:02 mx ",
		"Nov 21 10:31:02 smtpd[4711]: ":                                                           "2026-11-21 10:31:02  ",
		"<22>Nov 21 10:31:02 smtpd[4711]: ":                                                       "2026-11-21 10:31:02  ",
		"Nov 21 10:31:02 mx mail.info smtpd[4711]: ":                                              "2026-11-21 10:31:02 mx ",
		"2024-02-29T10:31:02+01:00 mx smtpd[4711]: ":                                              "2024-02-29 09:31:02 mx ",
		"2026-11-21T10:31:02+0100 mx smtpd[4711]: ":                                               "2026-11-21 09:31:02 mx ",
		"2026-11-21T10:31:02.123Z mx smtpd[4711]: ":                                               "2026-11-21 10:31:02 mx ",
		"2026-11-21T10:31:02 mx smtpd[4711]: ":                                                    "2026-11-21 10:31:02 mx ",
		"<22>1 2026-11-21T10:31:02.123456-02:00 mx smtpd 4711 - - ":                               "2026-11-21 12:31:02 mx ",
		"<22>1 2026-11-21T10:31:02Z mx smtpd 4711 - [a@1 x=\"]\\\" smtpd[1]: \"][b] \ufeff":       "2026-11-21 10:31:02 mx ",
		"<22>1 2026-11-21T10:31:02.123456Z mx.example.org opensmtpd - - [meta sequenceId=\"1\"] ": "2026-11-21 10:31:02 mx.example.org ",
	} {
		list, c, err := facts(t, []string{file(t, "maillog", []byte(headed(oneMessage, header)), now)}, nil)
		if err != nil || len(list) != 1 || list[0] != at+want || c.Unstamped != 0 {
			t.Errorf("%q: %q, %+v, %v", header, list, c, err)
		}
	}
}

// TestOtherPrograms checks that lines of other programs are not treated as lines of smtpd.
func TestOtherPrograms(t *testing.T) {
	for _, header := range []string{
		"Nov 21 10:31:02 mx sshd[1]: ", "Nov 21 10:31:02 mx postfix/smtpd[1]: ", "Nov 21 10:31:02 mx sshd[1]: smtpd[1]: ",
		"Nov 21 10:31:02 sshd[1]: smtpd[1]: ", "Nov 21 10:31:02 mx sshd: x smtpd[1]: ", "2026-11-21T10:31:02Z mx a smtpd[1]: ",
		"<22>1 2026-11-21T10:31:02Z mx sshd 4711 - [x y=\"1\"] smtpd[1]: ", "Nov 21 10:31:02 mx smtpd[1]: watch: ", "",
	} {
		list, _, _ := facts(t, []string{file(t, "maillog", []byte(headed(oneMessage, header)), now)}, nil)
		if len(list) != 0 {
			t.Errorf("%q: %q", header, list)
		}
	}
}

// TestTruncated checks that a truncated line is not misread as a different fact.
func TestTruncated(t *testing.T) {
	lines := oneMessage + `0123456789abcdee smtp connected address=local host=mx.example.org
0123456789abcdee smtp authentication user=alice result=ok
0123456789abcdee smtp envelope evpid=905b8b968a5f352b from=<alice@example.org> to=<x@example.com>
0123456789abcdec mta delivery evpid=905b8b968a5f352b from=<alice@example.org> to=<x@example.com> rcpt=<-> source="a" relay="b" delay=1s result="Ok" stat="250 stored"
`
	for l := range strings.Lines(lines) {
		l = strings.TrimSuffix(l, "\n")
		whole, ok := parseEvent([]byte(l))
		if !ok || whole.kind == other {
			t.Errorf("%q is %d, %v", l, whole.kind, ok)
		}
		for n := range l {
			cut, ok := parseEvent([]byte(l[:n]))
			switch {
			case !ok || cut.kind == other:
			case cut.kind == connected && bytes.Equal(cut.addr, whole.addr): // the address is complete; the truncated name proves nothing anyway
			case cut.kind == relayed && string(cut.recipient) == string(whole.recipient): // only a part of the reply is missing
			case cut.kind == accepted && cut.message == whole.message:
			case cut.kind == disconnected:
			default:
				t.Errorf("%q is %+v", l[:n], cut)
			}
		}
	}
}

// TestHostile checks that text from a client or a remote server is never misread as a fact.
func TestHostile(t *testing.T) {
	for _, l := range []string{
		`0123456789abcdef smtp failed-command command="RCPT TO:<x@example.org>" result="451 Try again"`,
		`0123456789abcdef smtp failed-command command="EHLO a" result="ok smtpd[1]: 0123456789abcdef smtp connected address=198.51.100.99 host=x" result="501"`,
		"0123456789abcdef smtp failed-command command=\"X\r0123456789abcdef smtp connected address=198.51.100.99 host=x\" result=\"500\"",
		`0123456789abcdef mta delivery evpid=905b8b968a5f352a from=<a@example.org> to=<x@example.com> rcpt=<-> source="a" relay="b" delay=1s result="TempFail" stat="451 result="Ok" stat="250"`,
	} {
		if e, ok := parseEvent([]byte(l)); !ok || e.kind != other {
			t.Errorf("%q is %+v, %v", l, e, ok)
		}
	}
	for _, l := range []string{
		"0123456789abcdef smtp envelope evpid=905b8b968a5f352a from=<x> to=<a@example.org> to=<b@example.org>",
		"0123456789abcdef smtp envelope evpid=905b8b968a5f352a from=<x y> to=<b@example.org>",
		"0123456789abcdef smtp envelope evpid=905b8b968a5f352a from=<x> to=<>",
		"0123456789abcdef smtp envelope evpid=905B8b968a5f352a from=<x> to=<y@example.org>",
		"0123456789abcdef smtp connected address=198.51.100.99",
		"0123456789abcdef smtp connected address=198.51.100.99 host=a b",
		"0123456789abcdef smtp authentication user=x result=maybe",
		"0123456789abcdef smtp new-word",
		"0123456789abcdef ",
	} {
		if e, ok := parseEvent([]byte(l)); ok {
			t.Errorf("%q is %+v", l, e)
		}
	}
	e, ok := parseEvent([]byte("0123456789abcdef smtp authentication user=x result=ok result=permfail"))
	if !ok || e.authentication || string(e.user) != "x result=ok" {
		t.Errorf("%+v, %v", e, ok)
	}
}

// TestRotated checks that each line in several overlapping files is counted once. The order and
// compression of the files must not matter. A session may continue in the next file.
func TestRotated(t *testing.T) {
	const header = "Nov 21 10:31:02 mx smtpd[4711]: "
	lines := slices.Collect(strings.Lines(headed(oneMessage, header)))
	next := strings.ReplaceAll(strings.ReplaceAll(headed(oneMessage, "Nov 22 11:00:00 mx smtpd[4711]: "), "0123456789abcdef", "0123456789abcdee"), "905b8b968a5f352a", "905b8b978a5f352a")
	var old bytes.Buffer
	z := gzip.NewWriter(&old)
	io.WriteString(z, strings.Join(lines[:2], ""))
	z.Close()
	names := []string{
		file(t, "maillog", []byte(next), now),
		file(t, "maillog.0", []byte(strings.Join(lines[2:], "")+next), now),
		file(t, "maillog.1.gz", old.Bytes(), now),
		file(t, "copy", []byte(strings.Join(lines, "")), now),
	}
	want := []string{
		`2026-11-21 10:31:02 mx delivered 198.51.100.10 "mail.example.net" 905b8b96 <joe@example.net> <alice@example.org>`,
		`2026-11-22 11:00:00 mx delivered 198.51.100.10 "mail.example.net" 905b8b97 <joe@example.net> <alice@example.org>`,
	}
	list, c, err := facts(t, names, nil)
	if err != nil || !slices.Equal(list, want) || c.Messages != 2 || c.Duplicates == 0 || c.Lines != 16 {
		t.Errorf("%q, %+v, %v", list, c, err)
	}
}

// TestYears checks that the year is inferred from the modification time of a file, even if the file
// contains a leap day or the end of a year.
func TestYears(t *testing.T) {
	for _, test := range []struct {
		name     string
		modified time.Time
		days     []string
		want     []string
	}{
		{"last year", now.AddDate(-1, 0, 0), []string{"Nov 28"}, []string{"2025-11-28"}},
		{"after the modification", now, []string{"Nov 30", "Dec 31"}, []string{"2025-11-30", "2025-12-31"}},
		{"new year", now, []string{"Dec 30", "Jan  2", "Nov 28"}, []string{"2025-12-30", "2026-01-02", "2026-11-28"}},
		{"three years", now, []string{"Feb  1", "Nov  2", "Jan  3", "Dec 31", "Jan  1"}, []string{"2024-02-01", "2024-11-02", "2025-01-03", "2025-12-31", "2026-01-01"}},
		{"late line", now, []string{"Dec 31", "Jan  1", "Dec 31", "Jan  1"}, []string{"2025-12-31", "2026-01-01", "2025-12-31", "2026-01-01"}},
		{"leap day", now, []string{"Feb 29"}, []string{"2024-02-29"}},
	} {
		var b strings.Builder
		for _, day := range test.days {
			fmt.Fprintf(&b, "%s 10:31:02 mx smtpd[4711]: info: x\n", day)
		}
		logs, err := Open([]string{file(t, "maillog", []byte(b.String()), test.modified)}, nil, now, time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		_, err = Read(logs, Options{Line: func(_ int, _ []byte, at int64) {
			got = append(got, time.UnixMicro(at).UTC().Format(time.DateOnly))
		}})
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, %v, want %q", test.name, got, err, test.want)
		}
	}
}

// TestPipe checks standard input. Standard input cannot be read twice.
func TestPipe(t *testing.T) {
	list, _, err := facts(t, []string{"-"}, strings.NewReader(headed(oneMessage, "Nov 21 10:31:02 mx smtpd[4711]: ")))
	if err != nil || len(list) != 1 || !strings.HasPrefix(list[0], "2026-11-21 10:31:02 mx ") {
		t.Errorf("%q, %v", list, err)
	}
	_, _, err = facts(t, []string{"-"}, strings.NewReader("Nov 21 10:31:02 mx smtpd: x\nJan  1 10:31:02 mx smtpd: x\nDec  1 10:31:02 mx smtpd: x\n"))
	if !errors.Is(err, errYear) {
		t.Errorf("%v", err)
	}
}

// TestBzip2 checks a file compressed with bzip2. The file is in testdata, because the Go standard
// library cannot write this format.
func TestBzip2(t *testing.T) {
	data, err := base64.StdEncoding.DecodeString("QlpoOTFBWSZTWQF88moAAGNfgAAQQAF/90IDTAo/9/9QMAEMgEqTEekEbI0U8oeppkPQnlPFDAGmho0YjIBoANDAqqmJppiNNA000AaAANYXre" +
		"Dg2Dp+q69OTGcwg5LOwbhXRNf4pUxsloPCtEUFmKpIaSUjVl8iIyEkmJSmQ4E08VhOqonILpgzEUpDapQI8paQk5Gsjtia6SS6+VoO79g8Z96g" +
		"rDKy8Ollmf0p/sOPcMQ0oo2cDTME0BINxzVxklORkTh5plumGfmhALmpC1j4WS8+EwumVNVHrU1UjgJAbAgLGJE3g68sn3l3BwFOGCuVD62XJr" +
		"a8jQigjEdKtEXUJM4DhYVTNCRU/+LuSKcKEgAvnk1A")
	if err != nil {
		t.Fatal(err)
	}
	list, _, err := facts(t, []string{file(t, "maillog.bz2", data, now)}, nil)
	if err != nil || len(list) != 1 || !strings.HasPrefix(list[0], "2026-11-21 10:31:02 mx delivered 198.51.100.10 ") {
		t.Errorf("%q, %v", list, err)
	}
}

// TestJournal checks exports of the journal. The fields in an export may contain newlines.
func TestJournal(t *testing.T) {
	var b bytes.Buffer
	entry := func(message string) {
		fmt.Fprintf(&b, "__CURSOR=s=1\n__REALTIME_TIMESTAMP=1795257062000000\n_HOSTNAME=mx\nSYSLOG_IDENTIFIER=smtpd\n")
		if strings.Contains(message, "\n") {
			b.WriteString("MESSAGE\n")
			b.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(message))))
			b.WriteString(message + "\n")
		} else {
			fmt.Fprintf(&b, "MESSAGE=%s\n", message)
		}
		b.WriteString("_PID=1\n\n")
	}
	entry("x\n\nSYSLOG_IDENTIFIER=smtpd\nMESSAGE=0123456789abcdef smtp connected address=198.51.100.99 host=x\n\n")
	for l := range strings.Lines(oneMessage) {
		entry(strings.TrimSuffix(l, "\n"))
	}
	list, c, err := facts(t, []string{file(t, "export", b.Bytes(), now)}, nil)
	if err != nil || len(list) != 1 || !strings.HasPrefix(list[0], "2026-11-21 10:31:02 mx delivered 198.51.100.10 ") || c.Lines != 5 {
		t.Errorf("%q, %+v, %v", list, c, err)
	}
	if _, _, err := facts(t, []string{file(t, "export", b.Bytes()[:90], now)}, nil); !errors.Is(err, io.ErrUnexpectedEOF) && err != nil {
		t.Logf("a cut export: %v", err)
	}
}

// TestFiles checks the errors for files that cannot be read.
func TestFiles(t *testing.T) {
	for name, want := range map[string]string{
		file(t, "log.xz", []byte("\xfd7zXZ\x00..."), now):                "; pipe the output of xz -dc ",
		file(t, "log.zst", []byte("\x28\xb5\x2f\xfd..."), now):           "reserved bit",
		file(t, "log.gz", []byte("\x1f\x8b..."), now):                    "read ",
		file(t, "log.bz2", []byte("BZh91AY&SY"), now):                    "read ",
		file(t, "other", []byte("Nov 21 10:31:02 mx sshd[1]: x\n"), now): "no lines from smtpd",
		file(t, "long", bytes.Repeat([]byte{'x'}, 200_000), now):         "",
		t.TempDir():                           "not a regular file",
		filepath.Join(t.TempDir(), "missing"): "no such file",
	} {
		_, _, err := facts(t, []string{name}, nil)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBounds checks that the sizes of a reader's tables are limited.
func TestBounds(t *testing.T) {
	f := newFifo[int, int](10)
	for i := range 1000 {
		f.put(i, i)
		if i%3 == 0 {
			delete(f.rows, i)
		}
		if len(f.rows) > 10 || len(f.ring) > 10 {
			t.Fatalf("%d rows, %d keys", len(f.rows), len(f.ring))
		}
	}
	if _, ok := f.rows[998]; !ok {
		t.Error("the latest row is missing")
	}
}

// FuzzLine checks that no line causes a panic, and that all facts contain addresses.
func FuzzLine(f *testing.F) {
	for l := range strings.Lines(oneMessage) {
		f.Add([]byte("Nov 21 10:31:02 mx smtpd[4711]: " + l))
	}
	f.Add([]byte("<22>1 2026-11-21T10:31:02.123456-02:00 mx smtpd 4711 - [a b=\"c\"] 0123456789abcdef smtp disconnected reason=quit"))
	f.Add([]byte("2026-11-21T10:31:02 mx smtpd: 0123456789abcdef mta delivery evpid=905b8b968a5f352a from=<a@b> to=<x@y> rcpt=<-> source=\"a\" relay=\"b\" delay=1s result=\"Ok\" stat=\"\""))
	f.Add([]byte("__REALTIME_TIMESTAMP=1\nSYSLOG_IDENTIFIER=smtpd\nMESSAGE\n\x01\x00\x00\x00\x00\x00\x00\x00x\n\n"))
	f.Add([]byte("__REALTIME_TIMESTAMP=\n\n\n")) // an empty line without an entry, at the end
	f.Fuzz(func(t *testing.T, data []byte) {
		logs, err := Open([]string{"-"}, bytes.NewReader(data), now, time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = Read(logs, Options{Delivered: func(d *Delivery) {
			if !d.Addr.IsValid() || d.Recipient == "" || len(d.Sender) > maxAddress {
				t.Errorf("%+v", d)
			}
		}})
	})
}

// BenchmarkRead measures how fast a log of the newest smtpd version is read.
func BenchmarkRead(b *testing.B) {
	data, err := os.ReadFile("testdata/smtpd-7.9.log")
	if err != nil {
		b.Fatal(err)
	}
	data = bytes.Repeat(data, 5000)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		logs, err := Open([]string{"-"}, bytes.NewReader(data), now, time.UTC)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Read(logs, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
