package dnsbl

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"scanwatch/cmd/internal/control"
	"scanwatch/rules"
)

// conf is the configuration used by the tests.
const conf = `companion serve user nobody listen { 127.0.0.1, ::1 } allow 198.51.100.0/24
zone "bl.example.org" bans
zone "short.example.org" bans ttl 30s
zone "scanners.example.org" builtin scanners
zone "clouds.example.org" builtin clouds
zone "file.example.org" file "list"
zone "sub.bl.example.org" file "missing"
`

// parse parses a configuration's settings.
func parse(t testing.TB, dir, text string) rules.Settings {
	t.Helper()
	file := filepath.Join(dir, "scanwatch.conf")
	tree, err := rules.Parse(file, func(string) ([]byte, error) { return []byte(text), nil })
	if err == nil {
		_, _, err = rules.Compile(tree, rules.Options{})
	}
	if err != nil {
		t.Fatal(err)
	}
	return tree.Settings()
}

const content = "# test\n192.0.2.0/24\n203.0.113.7\n2001:db8:1::/48\n"

func server(t testing.TB, log io.Writer) *Server {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "list"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	set := parse(t, dir, conf)
	s, err := New(set.Companions[0], set.Zones, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	s.readFiles()
	return s
}

// banned returns the bans used by the tests.
func banned() []control.BanEntry {
	return []control.BanEntry{
		{Prefix: netip.MustParsePrefix("192.0.2.1/32"), Seconds: 100, Rule: "harvest", Session: "5a1f9c2e00c0ffee"},
		{Prefix: netip.MustParsePrefix("198.51.100.0/22"), Seconds: 7200, Rule: "by hand: \"\x1b[31m\n"},
		{Prefix: netip.MustParsePrefix("198.51.101.9/32"), Seconds: 10, Rule: "bot", Session: "00000000000000aa"},
		{Prefix: netip.MustParsePrefix("2001:db8::/64"), Seconds: 3600, Rule: "bot", Session: "00000000000000ab"},
		{Prefix: netip.MustParsePrefix("203.0.113.1/32"), Seconds: 3600, Rule: "bot", Session: "00000000000000ac", Spared: true},
	}
}

func ready(t testing.TB) *Server {
	t.Helper()
	s := server(t, io.Discard)
	apply(s, control.BanList{Full: true, Enforced: true}, banned()...)
	return s
}

func apply(s *Server, l control.BanList, entries ...control.BanEntry) int {
	n, _ := s.Apply(context.Background(), l, entries)
	return n
}

// ask returns a query for a name, using EDNS0 unless size is 0.
func ask(t testing.TB, name string, kind dnsmessage.Type, size int) []byte {
	t.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 0x1234, RecursionDesired: true})
	err := b.StartQuestions()
	if err == nil {
		err = b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET})
	}
	if size > 0 {
		var h dnsmessage.ResourceHeader
		_ = b.StartAdditionals()
		_ = h.SetEDNS0(size, dnsmessage.RCodeSuccess, true)
		_ = b.OPTResource(h, dnsmessage.OPTResource{})
	}
	out, wrong := b.Finish()
	if err != nil || wrong != nil {
		t.Fatal(err, wrong)
	}
	return out
}

var local = netip.MustParseAddrPort("127.0.0.1:4000")

// words describes a response by its code, followed by its records in order.
func words(t testing.TB, packet []byte) string {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(packet); err != nil {
		t.Fatalf("%v in %x", err, packet)
	}
	if !m.Response || m.RecursionAvailable {
		t.Errorf("flags %+v", m.Header)
	}
	var b strings.Builder
	b.WriteString(strings.TrimPrefix(m.RCode.String(), "RCode"))
	for _, flag := range []struct {
		on   bool
		name string
	}{{m.Authoritative, "aa"}, {m.Truncated, "tc"}} {
		if flag.on {
			b.WriteString(" " + flag.name)
		}
	}
	for _, r := range slices.Concat(m.Answers, m.Authorities) {
		fmt.Fprintf(&b, "; %s %d ", r.Header.Name, r.Header.TTL)
		switch body := r.Body.(type) {
		case *dnsmessage.AResource:
			fmt.Fprintf(&b, "A %v", netip.AddrFrom4(body.A))
		case *dnsmessage.AAAAResource:
			fmt.Fprintf(&b, "AAAA %v", netip.AddrFrom16(body.AAAA))
		case *dnsmessage.TXTResource:
			fmt.Fprintf(&b, "TXT %q", body.TXT)
		case *dnsmessage.NSResource:
			fmt.Fprintf(&b, "NS %v", body.NS)
		case *dnsmessage.SOAResource:
			fmt.Fprintf(&b, "SOA %v %v %d", body.NS, body.MBox, body.MinTTL)
		default:
			fmt.Fprintf(&b, "%T", body)
		}
	}
	return b.String()
}

func query1(t testing.TB, s *Server, name string, kind dnsmessage.Type) string {
	t.Helper()
	return words(t, s.answer(nil, ask(t, name, kind, 0), local, false))
}

// reversed returns the query name for an address, or for the leading parts of an address.
func reversed(a string) string {
	addr := netip.MustParseAddr(a)
	var labels []string
	for _, b := range addr.AsSlice() {
		if addr.Is4() {
			labels = append(labels, fmt.Sprint(b))
		} else {
			labels = append(labels, fmt.Sprintf("%x", b>>4), fmt.Sprintf("%x", b&15))
		}
	}
	slices.Reverse(labels)
	return strings.Join(labels, ".")
}

const (
	kindA    = dnsmessage.TypeA
	kindTXT  = dnsmessage.TypeTXT
	kindAAAA = dnsmessage.TypeAAAA
)

// TestAnswers checks the answers to queries for all kinds of names.
func TestAnswers(t *testing.T) {
	const (
		soa    = "bl.example.org. 60 SOA ns.bl.example.org. hostmaster.bl.example.org. 60"
		no     = "NameError aa; " + soa
		nodata = "Success aa; " + soa
	)
	synctest.Test(t, func(t *testing.T) {
		s := ready(t)
		for _, c := range []struct {
			name string
			kind dnsmessage.Type
			want string
		}{
			{"1.2.0.192.bl.example.org.", kindA, "Success aa; 1.2.0.192.bl.example.org. 100 A 127.0.0.2"},
			{"1.2.0.192.bl.example.org.", kindTXT, `Success aa; 1.2.0.192.bl.example.org. 100 TXT ["Banned by rule harvest, reference 5a1f9c2e00c0ffee"]`},
			{"1.2.0.192.short.example.org.", kindA, "Success aa; 1.2.0.192.short.example.org. 30 A 127.0.0.2"},
			{"1.2.0.192.bl.example.org.", dnsmessage.TypeALL, "Success aa; 1.2.0.192.bl.example.org. 100 A 127.0.0.2"},
			{"1.2.0.192.bl.example.org.", kindAAAA, nodata},
			{"1.2.0.192.bl.example.org.", dnsmessage.TypeMX, nodata},
			{"9.101.51.198.bl.example.org.", kindA, "Success aa; 9.101.51.198.bl.example.org. 10 A 127.0.0.2"},
			{"8.101.51.198.bl.example.org.", kindA, "Success aa; 8.101.51.198.bl.example.org. 300 A 127.0.0.2"},
			{"8.101.51.198.bl.example.org.", kindTXT, `Success aa; 8.101.51.198.bl.example.org. 300 TXT ["Banned: by hand: \"?[31m?"]`},
			{reversed("2001:db8::77") + ".bl.example.org.", kindA, "Success aa; " + reversed("2001:db8::77") + ".bl.example.org. 300 A 127.0.0.2"},
			{reversed("2001:db8:0:1::77") + ".bl.example.org.", kindA, no},
			{strings.ToUpper(reversed("2001:db8::ab")) + ".BL.example.ORG.", kindA, "Success aa; " + strings.ToUpper(reversed("2001:db8::ab")) + ".BL.example.ORG. 300 A 127.0.0.2"},
			{"2.2.0.192.bl.example.org.", kindA, no},
			{"1.113.0.203.bl.example.org.", kindA, no}, // exempt

			// The following names are the test addresses.
			{"2.0.0.127.bl.example.org.", kindA, "Success aa; 2.0.0.127.bl.example.org. 300 A 127.0.0.2"},
			{"2.0.0.127.bl.example.org.", kindTXT, `Success aa; 2.0.0.127.bl.example.org. 300 TXT ["Test entry of this list"]`},
			{"1.0.0.127.bl.example.org.", kindA, no},
			{"2.0.0.127.file.example.org.", kindA, "Success aa; 2.0.0.127.file.example.org. 300 A 127.0.0.5"},
			{reversed("::7f00:2") + ".bl.example.org.", kindA, no},
			{"2.0.0.0.0.0.f.7.f.f.f.f" + strings.Repeat(".0", 20) + ".bl.example.org.", kindA, "Success aa; 2.0.0.0.0.0.f.7.f.f.f.f" + strings.Repeat(".0", 20) + ".bl.example.org. 300 A 127.0.0.2"},
			{"1.0.0.0.0.0.f.7.f.f.f.f" + strings.Repeat(".0", 20) + ".bl.example.org.", kindA, no},

			// A name above a listed address exists.
			{"2.0.192.bl.example.org.", kindA, nodata},
			{"192.bl.example.org.", kindA, nodata},
			{"3.0.192.bl.example.org.", kindA, no},
			{"0.0.127.bl.example.org.", kindA, nodata},
			{"51.198.bl.example.org.", kindTXT, nodata},
			{"1.0.0.2.bl.example.org.", kindA, nodata}, // the name of 2.0.0.1, or above 2001::/16
			{"0.bl.example.org.", kindA, nodata},       // above the IPv6 test address
			{"8.b.d.0.1.0.0.2.bl.example.org.", kindA, nodata},
			{"9.b.d.0.1.0.0.2.bl.example.org.", kindA, no},
			{"f.f.f.f" + strings.Repeat(".0", 20) + ".bl.example.org.", kindA, nodata},
			{"1.0.0.c.f.f.f.f" + strings.Repeat(".0", 20) + ".bl.example.org.", kindA, no},
			{"0.0.c.f.f.f.f" + strings.Repeat(".0", 20) + ".bl.example.org.", kindA, nodata}, // above ::ffff:192.0.2.1

			// The following names do not represent addresses.
			{"x.bl.example.org.", kindA, no},
			{"01.2.0.192.bl.example.org.", kindA, no},
			{"256.2.0.192.bl.example.org.", kindA, no},
			{"1.1.2.0.192.bl.example.org.", kindA, no},
			{strings.Repeat("0.", 33) + "bl.example.org.", kindA, no},

			// The following queries are for the zone's own name.
			{"bl.example.org.", dnsmessage.TypeSOA, "Success aa; bl.example.org. 300 SOA ns.bl.example.org. hostmaster.bl.example.org. 60"},
			{"bl.example.org.", dnsmessage.TypeALL, "Success aa; bl.example.org. 300 SOA ns.bl.example.org. hostmaster.bl.example.org. 60"},
			{"bl.example.org.", dnsmessage.TypeNS, "Success aa; bl.example.org. 300 NS ns.bl.example.org."},
			{"bl.example.org.", kindA, nodata},
			{"ns.bl.example.org.", kindA, "Success aa; ns.bl.example.org. 300 A 127.0.0.1"},
			{"ns.bl.example.org.", kindAAAA, "Success aa; ns.bl.example.org. 300 AAAA ::1"},
			{"ns.bl.example.org.", kindTXT, nodata},

			// The following names are in lists other than the bans.
			{"9.2.0.192.file.example.org.", kindTXT, `Success aa; 9.2.0.192.file.example.org. 300 TXT ["192.0.2.0/24 in list"]`},
			{"7.113.0.203.file.example.org.", kindTXT, `Success aa; 7.113.0.203.file.example.org. 300 TXT ["203.0.113.7 in list"]`},
			{reversed("2001:db8:1:2::3") + ".file.example.org.", kindTXT, "Success aa; " + reversed("2001:db8:1:2::3") + `.file.example.org. 300 TXT ["2001:db8:1::/48 in list"]`},
			{"131.135.6.71.scanners.example.org.", kindA, "Success aa; 131.135.6.71.scanners.example.org. 300 A 127.0.0.3"},
			{"1.2.0.192.scanners.example.org.", kindA, "NameError aa; scanners.example.org. 60 SOA ns.scanners.example.org. hostmaster.scanners.example.org. 60"},

			// The following names are outside all zones.
			{"example.org.", kindA, "Refused"},
			{".", dnsmessage.TypeNS, "Refused"},
			{"1.2.0.192.xbl.example.org.", kindA, "Refused"},
			{"bl.example.org.", dnsmessage.TypeAXFR, "Refused"},
			{"bl.example.org.", 251, "Refused"},
			{"1.2.0.192.sub.bl.example.org.", kindA, "ServerFailure"}, // the zone's file is missing
		} {
			if got := query1(t, s, c.name, c.kind); got != c.want {
				t.Errorf("%s %v:\n %s, want\n %s", c.name, c.kind, got, c.want)
			}
		}
	})
}

// TestZoneBelow checks that a name between two zones exists. Otherwise, resolvers that
// query one label at a time would not find the lower zone.
func TestZoneBelow(t *testing.T) {
	set := parse(t, t.TempDir(), `companion serve user nobody listen 127.0.0.1
zone "example.org" bans
zone "bl.sub.example.org" bans
`)
	s, err := New(set.Companions[0], set.Zones, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	apply(s, control.BanList{Full: true, Enforced: true}, banned()...)
	for name, want := range map[string]string{
		"sub.example.org.":              "Success aa; example.org. 60 SOA",
		"SUB.example.org.":              "Success aa; example.org. 60 SOA",
		"bl.sub.example.org.":           "Success aa; bl.sub.example.org. 60 SOA",
		"2.0.0.127.BL.sub.example.org.": "Success aa; 2.0.0.127.BL.sub.example.org. 300 A 127.0.0.2",
		"other.example.org.":            "NameError aa; example.org. 60 SOA",
		"l.sub.example.org.":            "NameError aa; example.org. 60 SOA",
		"xsub.example.org.":             "NameError aa; example.org. 60 SOA",
	} {
		if got := query1(t, s, name, kindA); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// TestClouds checks that the zone of hosting providers includes the networks of the listed AS
// numbers.
func TestClouds(t *testing.T) {
	s := ready(t)
	got := query1(t, s, reversed("51.68.1.1")+".clouds.example.org.", kindTXT) // an OVH address
	if !strings.Contains(got, "AS16276") || !strings.Contains(got, "list clouds") {
		t.Error(got)
	}
}

// TestUpdates checks how the zone reacts to changed bans, expiry and the mode.
func TestUpdates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := server(t, io.Discard)
		check := func(name, want string) {
			t.Helper()
			got, _, _ := strings.Cut(query1(t, s, name+".bl.example.org.", kindA), ";")
			if strings.TrimSpace(got) != want {
				t.Errorf("%s: %s, want %s", name, got, want)
			}
		}
		check("1.2.0.192", "ServerFailure") // with an empty zone, every address would appear to be unlisted
		check("2.0.0.127", "ServerFailure")
		on := control.BanList{Enforced: true}
		apply(s, control.BanList{Full: true, Enforced: true}, banned()...)
		check("1.2.0.192", "Success aa")
		check("1.113.0.203", "NameError aa")

		apply(s, on, control.BanEntry{Prefix: netip.MustParsePrefix("192.0.2.1/32")}, control.BanEntry{Prefix: netip.MustParsePrefix("203.0.113.1/32"), Seconds: 60})
		check("1.2.0.192", "NameError aa")
		check("1.113.0.203", "Success aa")
		apply(s, on, control.BanEntry{Prefix: netip.MustParsePrefix("203.0.113.1/32"), Seconds: 60, Spared: true})
		check("1.113.0.203", "NameError aa")

		time.Sleep(9500 * time.Millisecond)
		if got := query1(t, s, "9.101.51.198.bl.example.org.", kindA); !strings.Contains(got, " 1 A ") {
			t.Errorf("half a second before the end: %s", got)
		}
		time.Sleep(time.Second)
		if got := query1(t, s, "9.101.51.198.bl.example.org.", kindA); !strings.Contains(got, " 300 A ") {
			t.Errorf("after the ban of the host, in a banned network: %s", got)
		}
		time.Sleep(2 * time.Hour)
		check("9.101.51.198", "NameError aa")

		apply(s, control.BanList{Full: true, Enforced: true}, banned()...)
		check("1.2.0.192", "Success aa")
		apply(s, control.BanList{Full: true, Enforced: true}, banned()[1:]...)
		check("1.2.0.192", "NameError aa")
		check("9.101.51.198", "Success aa")
		apply(s, control.BanList{Full: true}) // observe mode
		check("9.101.51.198", "NameError aa")
		check("2.0.0.127", "Success aa")
	})
}

// TestFile checks that a file is reread when it changes. An invalid or empty file must
// not replace the entries.
func TestFile(t *testing.T) {
	var log strings.Builder
	s := server(t, &log)
	path := s.Files()[0]
	listed := func(addr, want string) {
		t.Helper()
		got, _, _ := strings.Cut(query1(t, s, reversed(addr)+".file.example.org.", kindA), " ")
		if got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		s.readFiles()
		s.readFiles()
	}
	listed("192.0.2.9", "Success")
	if err := s.problem(); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("problem %v", err)
	}
	if err := os.WriteFile(s.Files()[1], []byte("198.51.100.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.readFiles()
	if err := s.problem(); err != nil {
		t.Error(err)
	}
	for _, broken := range []string{"", " \n", "<html>\n", "\x00\x01", "example.net\n", "10.0.0.0/8\n"} {
		write(broken)
		listed("192.0.2.9", "Success")
		if s.problem() == nil {
			t.Errorf("%q: no problem", broken)
		}
	}
	os.Remove(path)
	s.readFiles()
	listed("192.0.2.9", "Success")
	write("203.0.113.7\n")
	listed("192.0.2.9", "NameError")
	listed("203.0.113.7", "Success")
	if s.problem() != nil {
		t.Error(s.problem())
	}
	write("# nothing\n")
	listed("203.0.113.7", "NameError")
	if s.problem() != nil {
		t.Errorf("a file with only a comment: %v", s.problem())
	}
	// Simulate a change of permissions, which changes neither the file's size nor its modification
	// time.
	s.files[0].problem = fs.ErrPermission
	s.readFiles()
	if s.problem() != nil {
		t.Errorf("after new permissions: %v", s.problem())
	}
	if n := strings.Count(log.String(), "keeping its previous entries"); n == 0 || n > 8 {
		t.Errorf("%d warnings in\n%s", n, log.String())
	}
	if n := apply(s, control.BanList{Full: true, Enforced: true}, banned()[:1]...); n < 500 {
		t.Errorf("%d entries", n)
	}
}

// TestCheck checks that Check rejects an unusable file.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	zones := parse(t, dir, "companion serve user nobody listen 127.0.0.1\nzone \"bl.example.org\" bans\nzone \"file.example.org\" file \"list\"\n").Zones
	if err := Check(zones); err == nil || !strings.Contains(err.Error(), "scanwatch.conf:3") || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a missing file: %v", err)
	}
	for text, want := range map[string]bool{content: true, "# none yet\n": true, "<html>": false, "example.net\n": false} {
		if err := os.WriteFile(filepath.Join(dir, "list"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Check(zones); (err == nil) != want {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestHostile checks the responses to packets that are not valid queries.
func TestHostile(t *testing.T) {
	s := ready(t)
	good := ask(t, "1.2.0.192.bl.example.org.", kindA, 0)
	change := func(f func(b []byte) []byte) []byte { return f(slices.Clone(good)) }
	opt := []byte{0, 0, 41, 2, 0, 0, 0, 0, 0, 0, 0}
	withOPT := func(b []byte, opts ...[]byte) []byte {
		b[11] = byte(len(opts))
		return append(b, slices.Concat(opts...)...)
	}
	for _, c := range []struct {
		name   string
		packet []byte
		want   string // "" for no response
	}{
		{"empty", nil, ""},
		{"short", good[:11], ""},
		{"a response", change(func(b []byte) []byte { b[2] |= 0x80; return b }), ""},
		{"only a header", change(func(b []byte) []byte { b[5] = 0; return b[:12] }), "FormatError"},
		{"header without its question", good[:12], "FormatError"},
		{"notify", change(func(b []byte) []byte { b[2] |= 4 << 3; return b }), "NotImplemented"},
		{"update", change(func(b []byte) []byte { b[2] |= 5 << 3; return b }), "NotImplemented"},
		{"opcode 15", change(func(b []byte) []byte { b[2] |= 15 << 3; return b }), "NotImplemented"},
		{"two questions", change(func(b []byte) []byte { b[5] = 2; return append(b, b[12:]...) }), "FormatError"},
		{"an answer", change(func(b []byte) []byte { b[7] = 1; return b }), "FormatError"},
		{"an authority", change(func(b []byte) []byte { b[9] = 1; return b }), "FormatError"},
		{"an additional record that is missing", change(func(b []byte) []byte { b[11] = 1; return b }), "FormatError"},
		{"without the class", good[:len(good)-2], "FormatError"},
		{"a compressed question", change(func(b []byte) []byte { b[12] = 0xc0; return b }), "FormatError"},
		{"a long label", change(func(b []byte) []byte { b[12] = 64; return b }), "FormatError"},
		{"a label past the end", change(func(b []byte) []byte { b[12] = 63; return b }), "FormatError"},
		{"a long name", append(slices.Clone(good[:12]), append([]byte(strings.Repeat("\x01a", 128)), 0, 0, 1, 0, 1)...), "FormatError"},
		{"the longest name", append(slices.Clone(good[:12]), append([]byte(strings.Repeat("\x01a", 127)), 0, 0, 1, 0, 1)...), "Refused"},
		{"class CH", change(func(b []byte) []byte { b[len(b)-1] = 3; return b }), "Refused"},
		{"any class", change(func(b []byte) []byte { b[len(b)-1] = 255; return b }), "Success aa; 1.2.0.192.bl.example.org. 100 A 127.0.0.2"},
		{"bytes after the question", append(slices.Clone(good), 1, 2, 3), "Success aa; 1.2.0.192.bl.example.org. 100 A 127.0.0.2"},
		{"two OPT", withOPT(slices.Clone(good), opt, opt), "FormatError"},
		{"OPT with a name", withOPT(slices.Clone(good), append([]byte{1, 'a'}, opt...)), "FormatError"},
		{"OPT with a pointer", withOPT(slices.Clone(good), append([]byte{0xc0, 12}, opt[1:]...)), "FormatError"},
		{"OPT with too few data", withOPT(slices.Clone(good), []byte{0, 0, 41, 2, 0, 0, 0, 0, 0, 0, 9}), "FormatError"},
	} {
		got := s.answer(nil, c.packet, local, false)
		if c.want == "" {
			if got != nil {
				t.Errorf("%s: answered with %x", c.name, got)
			}
			continue
		}
		if got == nil {
			t.Errorf("%s: no answer", c.name)
		} else if got := words(t, got); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	if out := s.answer(nil, good, netip.MustParseAddrPort("127.0.0.1:0"), false); out != nil {
		t.Error("an answer to port 0")
	}
}

// TestEDNS checks EDNS0 versions, flags and sizes.
func TestEDNS(t *testing.T) {
	s := ready(t)
	parse := func(packet []byte) (h dnsmessage.ResourceHeader, m dnsmessage.Message) {
		t.Helper()
		if err := m.Unpack(s.answer(nil, packet, local, false)); err != nil || len(m.Additionals) != 1 {
			t.Fatal(err, m.Additionals)
		}
		return m.Additionals[0].Header, m
	}
	h, m := parse(ask(t, "1.2.0.192.bl.example.org.", kindTXT, 4096))
	if h.Class != maxUDP || !h.DNSSECAllowed() || len(m.Answers) != 1 || m.ID != 0x1234 || !m.RecursionDesired {
		t.Errorf("%+v %+v", h, m)
	}
	packet := ask(t, "1.2.0.192.bl.example.org.", kindA, 512)
	packet[len(packet)-5] = 1 // the EDNS0 version
	if h, m = parse(packet); h.ExtendedRCode(m.RCode) != 16 || len(m.Answers) != 0 {
		t.Errorf("version 1: %v, %+v", h.ExtendedRCode(m.RCode), m)
	}
	if h, m = parse(ask(t, "1.2.0.192.other.example.", kindA, 512)); m.RCode != dnsmessage.RCodeRefused {
		t.Errorf("refused: %+v", m)
	}
}

// TestTruncation checks that a response too long for UDP is truncated, and that the TCP
// response is complete.
func TestTruncation(t *testing.T) {
	q, _, _ := parseQuery(ask(t, "1.2.0.192.bl.example.org.", kindTXT, 0))
	for _, tcp := range []bool{false, true} {
		r := q.begin(nil, noError, true)
		for range 10 {
			r.record(answers, headerSize, typeTXT, 1, func(b []byte) []byte { return append(append(b, 100), make([]byte, 100)...) })
		}
		got := words(t, r.end(tcp))
		if tcp && strings.Count(got, "TXT") != 10 || !tcp && got != "Success aa tc" {
			t.Errorf("TCP %v: %s", tcp, got)
		}
	}
}

// TestClients checks which clients receive answers, and how many.
func TestClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ready(t)
		packet := ask(t, "1.2.0.192.bl.example.org.", kindTXT, 0)
		count := func(addr string, n int) map[string]int {
			got := map[string]int{}
			for i := range n {
				client := netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(1000+i%1000))
				out := s.answer(nil, packet, client, false)
				if out == nil {
					got["none"]++
					continue
				}
				what, _, _ := strings.Cut(words(t, out), ";")
				if got[what]++; what != "Success aa" && len(out) > len(packet) {
					t.Errorf("%s: %d bytes for %d", what, len(out), len(packet))
				}
			}
			return got
		}
		for _, c := range []struct {
			addr string
			n    int
			want map[string]int
		}{
			{"127.0.0.1", 5000, map[string]int{"Success aa": 5000}},
			{"::ffff:127.0.0.1", 10, map[string]int{"Success aa": 10}},
			{"198.51.100.7", 2000, map[string]int{"Success aa": 1000, "Success tc": 1000}},
			{"198.51.100.99", 100, map[string]int{"Success tc": 100}}, // in the same network as the previous client
			{"192.0.2.1", 100, map[string]int{"Refused": 5, "none": 95}},
			{"2001:db8::1", 100, map[string]int{"Refused": 5, "none": 95}},
			{"2001:db8::ff:0:0:1", 10, map[string]int{"none": 10}}, // in the same /56 as the previous client
		} {
			if got := count(c.addr, c.n); fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("%s: %v, want %v", c.addr, got, c.want)
			}
		}
		time.Sleep(time.Second)
		if got := count("198.51.100.7", 600); got["Success aa"] != 500 {
			t.Errorf("after a second: %v", got)
		}
		if out := s.answer(nil, packet, netip.MustParseAddrPort("198.51.100.7:1000"), true); words(t, out)[:10] != "Success aa" {
			t.Error("no answer over TCP")
		}
	})
}

// TestSizes checks that no response is much longer than its query, which would make the
// server useful for amplification attacks.
func TestSizes(t *testing.T) {
	s := ready(t)
	long := control.BanEntry{Prefix: netip.MustParsePrefix("192.0.2.77/32"), Seconds: 60, Rule: strings.Repeat("long ", 100)}
	apply(s, control.BanList{Enforced: true}, long)
	for _, name := range []string{"", "77.2.0.192.", "2.0.0.127.", "ns.", "x."} {
		for kind := dnsmessage.Type(1); kind < 260; kind++ {
			for _, size := range []int{0, 4096} {
				packet := ask(t, name+"bl.example.org.", kind, size)
				if out := s.answer(nil, packet, local, false); len(out) > len(packet)+180 {
					t.Errorf("%s %v: %d bytes for %d", name, kind, len(out), len(packet))
				}
			}
		}
	}
}

// FuzzAnswer checks that the server sends either no response or a valid response that
// repeats the question.
func FuzzAnswer(f *testing.F) {
	s := ready(f)
	for _, name := range []string{"1.2.0.192.bl.example.org.", "bl.example.org.", "192.bl.example.org.", "other.example."} {
		f.Add(ask(f, name, kindA, 0), false)
		f.Add(ask(f, name, kindTXT, 1232), true)
		f.Add(ask(f, name, dnsmessage.TypeSOA, 1), false)
	}
	f.Fuzz(func(t *testing.T, packet []byte, tcp bool) {
		before := slices.Clone(packet)
		out := s.answer(make([]byte, 0, maxUDP), packet, local, tcp)
		if !slices.Equal(packet, before) {
			t.Error("the query was changed")
		}
		if out == nil {
			if len(packet) >= headerSize && packet[2]&0x80 == 0 {
				t.Error("no response to a query")
			}
			return
		}
		if len(out) > len(packet)+180 || !tcp && len(out) > maxUDP {
			t.Errorf("%d bytes for %d", len(out), len(packet))
		}
		if out[0] != packet[0] || out[1] != packet[1] || out[2]&0x80 == 0 {
			t.Errorf("header %x for %x", out[:4], packet[:4])
		}
		var p dnsmessage.Parser
		if _, err := p.Start(out); err != nil {
			t.Fatal(err)
		}
		if n := binary.BigEndian.Uint16(out[4:]); n == 1 {
			end := len(out) - headerSize
			if end > len(packet)-headerSize {
				end = len(packet) - headerSize
			}
			var q query
			if rest := q.readQuestion(packet[headerSize:]); rest == nil || !slices.Equal(out[headerSize:headerSize+len(q.question)], q.question) || end < len(q.question) {
				t.Errorf("question %x for %x", out, packet)
			}
		}
		// Package dnsmessage cannot parse a label that contains a dot.
		if err := p.SkipAllQuestions(); err != nil {
			return
		}
		for _, skip := range []func() error{p.SkipAllAnswers, p.SkipAllAuthorities, p.SkipAllAdditionals} {
			if err := skip(); err != nil {
				t.Fatalf("%v in %x", err, out)
			}
		}
	})
}
