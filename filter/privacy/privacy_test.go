package privacy_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"scanwatch/filter/privacy"
)

var key = bytes.Repeat([]byte{1}, 32)

func TestMailbox(t *testing.T) {
	h := privacy.New(key)
	word := func(s string) string { return string(h.Word(nil, []byte(s))) }
	john := word("john@example.org")
	for _, c := range []struct{ in, want, strict string }{
		{"", "", ""},
		{"john@example.org", john + "@example.org", john + "@" + word("example.org")},
		{"JOHN@Example.ORG", john + "@Example.ORG", john + "@" + word("example.org")},
		{"root", word("root"), word("root")},
		{"Postmaster@example.org", "Postmaster@example.org", "Postmaster@" + word("example.org")},
		{"@example.org", "@example.org", "@" + word("example.org")},
		{"john%victim.example@example.org", john + "%victim.example@example.org", ""},
		{"victim.example!john@example.org", "victim.example!" + john + "@example.org", ""},
		{"@relay.example,@b.example:john@example.org", "@relay.example,@b.example:" + john + "@example.org", ""},
		{`"john"@example.org`, word(`"john"@example.org`) + "@example.org", ""},
		{`"x@j.smith"@example.org`, word(`"x@example.org`) + "@" + word(`j.smith"@example.org`) + "@example.org", ""},
		{"first.last@example.org", word("first.last@example.org") + "@example.org", ""},
		{"a@b@example.org", word("a@example.org") + "@" + word("b@example.org") + "@example.org", ""},
	} {
		if got := string(h.Mailbox(nil, []byte(c.in), false)); got != c.want {
			t.Errorf("%s: got %s, want %s", c.in, got, c.want)
		}
		if got := string(h.Mailbox(nil, []byte(c.in), true)); c.strict != "" && got != c.strict {
			t.Errorf("%s, with its domain: got %s, want %s", c.in, got, c.strict)
		}
	}
	if other := privacy.New(bytes.Repeat([]byte{2}, 32)); string(other.Word(nil, []byte("x"))) == word("x") {
		t.Error("the key does not matter")
	}
	if word("john@example.org") == word("john@example.net") {
		t.Error("the domain does not matter")
	}
	if !privacy.IsHash([]byte(john)) || privacy.IsHash([]byte("hash:john")) {
		t.Errorf("%s is a hash, hash:john is none", john)
	}
}

func TestText(t *testing.T) {
	h := privacy.New(key)
	john := string(h.Word(nil, []byte("john@example.org"))) + "@example.org"
	quoted := string(h.Word(nil, []byte(`"john doe"@example.org`))) + "@example.org"
	for _, c := range []struct{ in, text, command string }{
		{in: "no address", text: "no address"},
		{in: "Invalid recipient: <john@example.org>", text: "Invalid recipient: <" + john + ">"},
		{in: "john@example.org, john@example.org;", text: john + ", " + john + ";"},
		{in: "RCPT TO:john@example.org", text: "RCPT TO:" + john, command: "RCPT TO:" + john},
		{in: `<"john doe"@example.org> x`, text: "<" + quoted + "> x"},
		{in: "MAIL FROM: <john@example.org> SIZE=1 AUTH=john@example.org", command: "MAIL FROM: <" + john + "> SIZE=1 AUTH=" + john},
		{in: "MAIL FROM:<john@example.org", command: "MAIL FROM:<" + john},
		{in: `RCPT TO:<"john doe"@example.org>`, command: "RCPT TO:<" + quoted + ">"},
		{in: "MAIL FROM:<>", text: "MAIL FROM:<>", command: "MAIL FROM:<>"},
		{in: "MAIL", text: "MAIL", command: "MAIL"},
		// The whole local part of a bounce address, and of a name with an apostrophe.
		{in: "for bounce-john.smith=example.com@example.org:", text: "for " + string(h.Word(nil, []byte("bounce-john.smith=example.com@example.org"))) + "@example.org:"},
		{in: "<john.o'brien@example.org>", text: "<" + string(h.Word(nil, []byte("john.o'brien@example.org"))) + "@example.org>"},
		{in: `"a\"b c"@example.org.`, text: string(h.Word(nil, []byte(`"a\"b c"@example.org`))) + "@example.org."},
		{in: "x john(work)@example.org", text: "x " + string(h.Word(nil, []byte("john(work)@example.org"))) + "@example.org"},
		// Commands that are wrong, or need no domain.
		{in: "VRFY john@example.org", command: "VRFY " + john},
		{in: "VRFY Postmaster", command: "VRFY Postmaster"},
		{in: "vrfy\tjohn", command: "vrfy\t" + string(h.Word(nil, []byte("john")))},
		{in: "RCPT TO <john@example.org> A:b", command: "RCPT TO <" + john + "> A:b"},
		{in: "RCPT to john@example.org SIZE=1", command: "RCPT to " + john + " SIZE=1"},
		{in: "RCPT john <john@example.org>", command: "RCPT " + string(h.Word(nil, []byte("john"))) + " <" + john + ">"},
		{in: "RCPT TO <@relay.example:john@example.org>", command: "RCPT TO <@relay.example:" + john + ">"},
		{in: "@", text: "@"},
	} {
		if got := string(h.Text(nil, []byte(c.in), false)); c.text != "" && got != c.text {
			t.Errorf("text %q: got %q, want %q", c.in, got, c.text)
		}
		if got := string(h.Command(nil, []byte(c.in), false)); c.command != "" && got != c.command {
			t.Errorf("command %q: got %q, want %q", c.in, got, c.command)
		}
	}
}

func TestLikePassword(t *testing.T) {
	for _, name := range []string{"", "admin", "info", "Info", "ADMIN", "j.smith", "user01", "test123", "mail-admin", "no_reply", "J.Smith",
		"alice@example.org", "j.smith@mail.example.co.uk", "newsletter+list@example.com", `EXAMPLE\jsmith`, "hans.peter.muster", "root", "www-data",
		"administrator", "schwarz"} {
		if privacy.LikePassword([]byte(name)) {
			t.Errorf("%q is a name", name)
		}
	}
	for _, name := range []string{"Summer2024!", "summer2024", "P@ssw0rd", "p@ss.w0rd", "passw0rd", "qwErty", "12345678", "1234", "hunter-2-hunter-2-x", "Tr0ub4dor&3",
		"correcthorsebatterystaple", "correct horse", "xkjqwzpl", "S3cr3t", "secret!", "user@host", "a@b.c", "@example.org", "alice!@example.org", "geheim#1",
		"Ünlaut", "\x01\x02", "iloveYOU", "a1b2c3", "k9-Qz", strings.Repeat("a.", 20), "MyDogRex", `a\b\c`} {
		if !privacy.LikePassword([]byte(name)) {
			t.Errorf("%q may be a password", name)
		}
	}
}

// TestKey: whoever comes first makes the key, and all others have the same one.
func TestKey(t *testing.T) {
	dir := t.TempDir()
	if _, err := privacy.ReadKey(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read: %v", err)
	}
	var all sync.WaitGroup
	keys := make([][]byte, 20)
	for i := range keys {
		all.Go(func() {
			var err error
			if keys[i], err = privacy.SaveKey(dir, privacy.NewKey()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	have, err := privacy.ReadKey(dir)
	if err != nil || len(have) != 32 {
		t.Fatalf("%x, %v", have, err)
	}
	for _, k := range keys {
		if !bytes.Equal(k, have) {
			t.Errorf("got %x, want %x", k, have)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%v, %v", entries, err)
	}
	if info, err := entries[0].Info(); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	for _, n := range []int{0, 31, 33} {
		if err := os.WriteFile(filepath.Join(dir, privacy.KeyFile), make([]byte, n), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := privacy.SaveKey(dir, privacy.NewKey()); err == nil || !strings.Contains(err.Error(), "has not 32 bytes") {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// FuzzText: no local part is left in what Text and Command make of a line, and what
// is left between the addresses is as it was.
func FuzzText(f *testing.F) {
	f.Add([]byte("RCPT TO:<john.q.public@example.org> NOTIFY=NEVER"))
	f.Add([]byte(`MAIL FROM:<"a b"@c> x@y`))
	f.Add([]byte("@a,@b:c@d!e%f"))
	h := privacy.New(key)
	f.Fuzz(func(t *testing.T, line []byte) {
		const name = "very-secret-name"
		for _, in := range [][]byte{line, append([]byte(name+"@example.org "), line...), append(bytes.Clone(line), " <"+name+"@example.org>"...)} {
			if got := h.Text(nil, in, false); bytes.Contains(got, []byte(name)) && !bytes.Contains(line, []byte(name)) {
				t.Errorf("%q became %q", in, got)
			}
		}
		// In the middle of anything but an address that asks to be sent on, whose hosts stay.
		for i := range min(len(line), 20) {
			if bytes.Contains(line, []byte(name)) || bytes.ContainsAny(line, "%!@") {
				break
			}
			in := slices.Concat(line[:i], []byte(name+"@example.org"), line[i:])
			for _, got := range [][]byte{h.Text(nil, in, false), h.Command(nil, append([]byte("RCPT TO:"), in...), false), h.Command(nil, append([]byte("VRFY "), in...), true)} {
				if bytes.Contains(got, []byte(name)) {
					t.Errorf("%q became %q", in, got)
				}
			}
		}
		if bytes.IndexByte(line, '@') < 0 && !bytes.Equal(h.Text(nil, line, true), line) {
			t.Errorf("%q was changed", line)
		}
		h.Command(nil, line, true)
	})
}

func BenchmarkMailbox(b *testing.B) {
	h := privacy.New(key)
	addr, dst := []byte("first.last@mail.example.org"), make([]byte, 0, 300)
	b.ReportAllocs()
	for b.Loop() {
		dst = h.Mailbox(dst[:0], addr, false)
	}
}

func BenchmarkLikePassword(b *testing.B) {
	name := []byte("first.last@mail.example.org")
	b.ReportAllocs()
	for b.Loop() {
		privacy.LikePassword(name)
	}
}

func TestNoAllocation(t *testing.T) {
	h := privacy.New(key)
	addr, dst := []byte("first.last@mail.example.org"), make([]byte, 0, 300)
	if n := testing.AllocsPerRun(100, func() { dst = h.Command(h.Mailbox(dst[:0], addr, true), addr, true) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
