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
	"scanwatch/internal/mailbox"
)

var key = bytes.Repeat([]byte{1}, 32)

func TestMailbox(t *testing.T) {
	h := privacy.New(key)
	word := func(s string) string { return string(h.Word(nil, []byte(s))) }
	john := word("john@example.org")
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"john@example.org", john + "@example.org"},
		{"JOHN@Example.ORG", john + "@Example.ORG"},
		{"root", word("root")},
		{"Postmaster@example.org", "Postmaster@example.org"},
		{"@example.org", "@example.org"},
		{"john%victim.example@example.org", word("john%victim.example@example.org") + "@example.org"},
		{"@relay.example,@b.example:john@example.org", word("@relay.example,@b.example:john@example.org") + "@example.org"},
		{`"john"@example.org`, word(`"john"@example.org`) + "@example.org"},
		{`"x@j.smith"@example.org`, word(`"x@j.smith"@example.org`) + "@example.org"},
		{"@relay.example:john", word("@relay.example:john")},
		{"john@example.org <smith>", word("john@example.org <smith>")},
		{"x@example.org:john", word("x@example.org:john")},
		{"john@[IPv6:2001:db8::1]", word("john@[IPv6:2001:db8::1]") + "@[IPv6:2001:db8::1]"},
		{"a@b@example.org", word("a@b@example.org") + "@example.org"},
	} {
		if got := string(h.Mailbox(nil, []byte(c.in))); got != c.want {
			t.Errorf("%s: got %s, want %s", c.in, got, c.want)
		}
	}
	if other := privacy.New(bytes.Repeat([]byte{2}, 32)); string(other.Word(nil, []byte("x"))) == word("x") {
		t.Error("the key does not matter")
	}
	if word("john@example.org") == word("john@example.net") {
		t.Error("the domain does not matter")
	}
	if !mailbox.IsHash([]byte(john)) || mailbox.IsHash([]byte("hash:john")) || !mailbox.Hashed([]byte(john+"@example.org")) || mailbox.Hashed([]byte("john@example.org")) {
		t.Errorf("%s is a hash, hash:john is not", john)
	}
}

func TestText(t *testing.T) {
	h := privacy.New(key)
	word := func(s string) string { return string(h.Word(nil, []byte(s))) }
	john := word("john@example.org") + "@example.org"
	quoted := word(`"john doe"@example.org`) + "@example.org"
	for _, c := range []struct{ in, want string }{
		{"no address", "no address"},
		{"Invalid recipient: <john@example.org>", "Invalid recipient: <" + john + ">"},
		{"<john>: try again", "<" + word("john") + ">: try again"},
		{"Mail not accepted, send it later", "Mail not accepted, send it later"},
		{"Send it later, john@example.org", "Send it later, " + john},
		{"a <b c> </d> <> <", "a <b c> </d> <> <"},
		{"john@example.org, john@example.org;", john + ", " + john + ";"},
		{"RCPT TO:john@example.org", "RCPT TO:" + john},
		{`<"john doe"@example.org> x`, "<" + quoted + "> x"},
		{"MAIL FROM: <john@example.org> SIZE=1 AUTH=john@example.org", "MAIL FROM: <" + john + "> SIZE=1 AUTH=" + john},
		{"MAIL FROM:<john@example.org", "MAIL FROM:<" + john},
		{`RCPT TO:<"john doe"@example.org>`, "RCPT TO:<" + quoted + ">"},
		{"MAIL FROM:<>", "MAIL FROM:<>"},
		{"MAIL", "MAIL"},
		{"EHLO mail.example.org", "EHLO mail.example.org"},
		// The whole local part must be hashed, even if it is a bounce address or contains an
		// apostrophe.
		{"for bounce-john.smith=example.com@example.org:", "for " + word("bounce-john.smith=example.com@example.org") + "@example.org:"},
		{"<john.o'brien@example.org>", "<" + word("john.o'brien@example.org") + "@example.org>"},
		{`"a\"b c"@example.org.`, word(`"a\"b c"@example.org`) + "@example.org."},
		{"x john(work)@example.org", "x " + word("john(work)@example.org") + "@example.org"},
		// These commands are invalid or lack a domain.
		{"VRFY john@example.org", "VRFY " + john},
		{"VRFY Postmaster", "VRFY Postmaster"},
		{"vrfy\tjohn", "vrfy\t" + word("john")},
		{" EXPN john", " EXPN " + word("john")},
		{"RCPT TO <john@example.org> A:b", "RCPT TO <" + john + "> A:b"},
		{"RCPT to john@example.org SIZE=1", "RCPT to " + john + " SIZE=1"},
		{"RCPT john <john@example.org>", "RCPT " + word("john") + " <" + john + ">"},
		{"RCPT TO <@relay.example:john@example.org>", "RCPT TO <" + word("@relay.example:john@example.org") + "@example.org>"},
		{"@", "@"},
	} {
		if got := string(h.Text(nil, []byte(c.in))); got != c.want {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
	}
}

func TestLikePassword(t *testing.T) {
	for _, name := range []string{"", "admin", "info", "Info", "ADMIN", "j.smith", "user01", "test12", "sales", "mail-admin", "no_reply", "J.Smith",
		"alice@example.org", "j.smith@mail.example.co.uk", "newsletter+list@example.com", `EXAMPLE\jsmith`, "hans.peter.muster", "root", "www-data",
		"administrator", "schwarz"} {
		if privacy.LikePassword([]byte(name)) {
			t.Errorf("%q is a name", name)
		}
	}
	for _, name := range []string{"Summer2024!", "monkey123", "monkey", "Sunshine1", "test123", "dragon.12", "j.monkey@example.org", "summer2024", "P@ssw0rd", "p@ss.w0rd", "passw0rd", "qwErty", "12345678", "1234", "hunter-2-hunter-2-x", "Tr0ub4dor&3",
		"correcthorsebatterystaple", "correct horse", "xkjqwzpl", "S3cr3t", "secret!", "user@host", "a@b.c", "@example.org", "alice!@example.org", "geheim#1",
		"Ünlaut", "\x01\x02", "iloveYOU", "a1b2c3", "k9-Qz", strings.Repeat("a.", 20), "MyDogRex", `a\b\c`} {
		if !privacy.LikePassword([]byte(name)) {
			t.Errorf("%q may be a password", name)
		}
	}
}

// TestKey checks that all concurrent processes use the key of the first process.
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
		if _, err := privacy.SaveKey(dir, privacy.NewKey()); err == nil || !strings.Contains(err.Error(), "is not a key of 32 bytes") {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// FuzzText checks that Text leaves no local part unhashed. Text without mailboxes must not change.
func FuzzText(f *testing.F) {
	f.Add([]byte("RCPT TO:<john.q.public@example.org> NOTIFY=NEVER"))
	f.Add([]byte(`MAIL FROM:<"a b"@c> x@y`))
	f.Add([]byte("@a,@b:c@d!e%f"))
	h := privacy.New(key)
	f.Fuzz(func(t *testing.T, line []byte) {
		const name = "very-secret-name"
		for _, in := range [][]byte{line, append([]byte(name+"@example.org "), line...), append(bytes.Clone(line), " <"+name+"@example.org>"...)} {
			if got := h.Text(nil, in); bytes.Contains(got, []byte(name)) && !bytes.Contains(line, []byte(name)) {
				t.Errorf("%q became %q", in, got)
			}
		}
		// Insert the name into a line without an @.
		for i := range min(len(line), 20) {
			if bytes.Contains(line, []byte(name)) || bytes.ContainsAny(line, "@") {
				break
			}
			in := slices.Concat(line[:i], []byte(name+"@example.org"), line[i:])
			for _, got := range [][]byte{h.Text(nil, in), h.Text(nil, append([]byte("RCPT TO:"), in...)), h.Text(nil, append([]byte("VRFY "), in...))} {
				if bytes.Contains(got, []byte(name)) {
					t.Errorf("%q became %q", in, got)
				}
			}
		}
		if plain := append([]byte("x "), line...); !bytes.ContainsAny(line, "@<") && !bytes.Equal(h.Text(nil, plain), plain) {
			t.Errorf("%q was changed", plain)
		}
	})
}

func BenchmarkMailbox(b *testing.B) {
	h := privacy.New(key)
	addr, dst := []byte("first.last@mail.example.org"), make([]byte, 0, 300)
	b.ReportAllocs()
	for b.Loop() {
		dst = h.Mailbox(dst[:0], addr)
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
	if n := testing.AllocsPerRun(100, func() { dst = h.Text(h.Mailbox(dst[:0], addr), addr) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
