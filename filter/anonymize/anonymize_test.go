package anonymize_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/anonymize"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/privacy"
	"scanwatch/filter/replay"
	"scanwatch/filter/session"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/tests/sim"
)

var key = bytes.Repeat([]byte{3}, anonymize.KeySize)

func builtin(t testing.TB) *lookup.Lists {
	t.Helper()
	lists, err := lookup.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	return lists
}

func TestAddr(t *testing.T) {
	a := anonymize.New(key, builtin(t))
	seen := make(map[netip.Addr]netip.Addr)
	nets := make(map[netip.Prefix]netip.Prefix)
	try := func(addr netip.Addr) {
		got := a.Addr(addr)
		if before, ok := seen[got]; ok && before != addr {
			t.Errorf("%v and %v both became %v", before, addr, got)
		}
		seen[got] = addr
		if got.IsPrivate() != addr.IsPrivate() || got.IsLoopback() != addr.IsLoopback() || got.IsLinkLocalUnicast() != addr.IsLinkLocalUnicast() || got.IsMulticast() != addr.IsMulticast() || got.Is4() != addr.Is4() {
			t.Errorf("%v became %v", addr, got)
		}
		bits := 24
		if addr.Is6() {
			bits = 48
		}
		was, _ := addr.Prefix(bits)
		is, _ := got.Prefix(bits)
		if before, ok := nets[was]; ok && before != is {
			t.Errorf("%v became %v and %v", was, before, is)
		}
		nets[was] = is
	}
	for _, s := range []string{"192.0.2.0", "10.1.2.0", "8.8.8.0", "172.16.0.0", "172.32.0.0", "192.168.1.0", "100.64.1.0", "169.254.7.0", "224.0.0.0", "255.255.255.0", "11.0.0.0", "126.255.255.0"} {
		b := netip.MustParseAddr(s).As4()
		for i := range 256 {
			b[3] = byte(i)
			try(netip.AddrFrom4(b))
		}
	}
	for _, s := range []string{"2001:db8::", "2a02:8109:9440::", "fd00:1:2::", "fe80::", "2002:c000:201::", "2606:4700::"} {
		b := netip.MustParseAddr(s).As16()
		for i := range 256 {
			b[7], b[15] = byte(i>>6), byte(i)
			try(netip.AddrFrom16(b))
		}
	}
	same := 0
	for a, b := range seen {
		if a == b {
			same++
		}
	}
	if same > 60 { // in 4,608, most of them in networks of 256
		t.Errorf("%d addresses stayed the same", same)
	}
	lists := builtin(t)
	for _, row := range lists.Rows() {
		if row.Kind == "cidr" {
			addr := netip.MustParsePrefix(row.Value).Addr()
			if got := a.Addr(addr); lists.Addr(got) != lists.Addr(addr) {
				t.Errorf("%v of %s became %v", addr, row.Org, got)
			}
		}
	}
}

// TestForm: what stays of a text.
func TestForm(t *testing.T) {
	a := anonymize.New(key, builtin(t))
	for _, c := range []struct{ in, want string }{
		{"mail.example.org", `^[a-z]{4}\.[a-z]{7}\.org$`},
		{"Mail1.Example.CO.UK", `^[A-Z][a-z]{3}[0-9]\.[A-Z][a-z]{6}\.CO\.UK$`},
		{"WIN-AB12CD34EF5", `^[A-Z]{3}-[A-Z]{2}[0-9]{2}[A-Z]{2}[0-9]{2}[A-Z]{2}[0-9]$`},
		{"ylmf-pc", `^ylmf-pc$`},
		{"localhost", `^localhost$`},
		{"[127.0.0.1]", `^\[127\.0\.0\.1\]$`},
		{"[192.0.2.7]", `^\[192\.0\.2\.[0-9]+\]$`},
		{"IPv6:2001:db8::7", `^IPv6:2001:db8:[0-9a-f:]+$`},
		{"ec2-198-51-100-7.compute-1.amazonaws.com", `^ec2-198-51-100-[0-9]+\.[a-z]{7}-[0-9]\.amazonaws\.com$`},
		{"google.com", `^google\.com$`},
		{"org", `^[a-z]{3}$`},
	} {
		if got := string(a.Name([]byte(c.in))); !regexp.MustCompile(c.want).MatchString(got) {
			t.Errorf("name %s became %s, want %s", c.in, got, c.want)
		}
	}
	for _, c := range []struct{ in, want string }{
		{"", "^$"},
		{"j.smith+list@example.org", `^[a-z]\.[a-z]{5}\+[a-z]{4}@[a-z]{7}\.org$`},
		{"Postmaster@example.org", `^Postmaster@[a-z]{7}\.org$`},
		{"hash:0123456789abcdef@example.org", `^hash:[0-9]{10}[a-z]{6}@[a-z]{7}\.org$`},
		{"user%victim.example@example.org", `^[a-z]{4}%[a-z]{6}\.example@[a-z]{7}\.org$`},
		{"@a.example,@b.example:user@example.org", `^@[a-z]\.example,@[a-z]\.example:[a-z]{4}@[a-z]{7}\.org$`},
	} {
		if got := string(a.Mailbox([]byte(c.in))); !regexp.MustCompile(c.want).MatchString(got) {
			t.Errorf("mailbox %s became %s, want %s", c.in, got, c.want)
		}
	}
	for _, c := range []struct{ in, want string }{
		{"MAIL FROM:<j.smith@example.org> SIZE=12345", `^MAIL FROM:<[a-z]\.[a-z]{5}@[a-z]{7}\.org> SIZE=[0-9]{5}$`},
		{"GET /index.html HTTP/1.1", `^GET /[a-z]{5}\.[a-z]{4} HTTP/[0-9]\.[0-9]$`},
		{"Host: www.example.org", `^Host: [a-z]{3}\.[a-z]{7}\.[a-z]{3}$`},
		{"hunter2 is it", `^[a-z]{6}[0-9] [a-z]{2} [a-z]{2}$`},
		{"AUTH LOGIN ********", `^AUTH LOGIN \*{8}$`},
	} {
		if got := string(a.Line([]byte(c.in))); !regexp.MustCompile(c.want).MatchString(got) {
			t.Errorf("line %s became %s, want %s", c.in, got, c.want)
		}
	}
	for _, c := range []struct{ in, want string }{
		{`rule r phase rcpt-to match src 192.0.2.0/24 helo "mail.example.org" rcpt-to "@example.org" reject "550 5.7.1 Call John on 555-1234"`,
			`^rule r phase rcpt-to match src 192\.0\.2\.0/24 helo "[a-z]{4}\.[a-z]{7}\.org" rcpt-to "@[a-z]{7}\.org" reject "550 5\.7\.1 \.\.\."$`},
		{`rule r phase helo match helo /john.*/ disconnect`, `^rule r phase helo match helo /anonymized/ disconnect$`},
		{`rule r phase helo match helo "jo`, `^$`},
	} {
		if got := a.Rule(c.in); !regexp.MustCompile(c.want).MatchString(got) {
			t.Errorf("rule %s became %s, want %s", c.in, got, c.want)
		}
	}
}

// TestWordsDiffer: different names become different ones, in the case that they had.
func TestWordsDiffer(t *testing.T) {
	a := anonymize.New(key, builtin(t))
	seen := make(map[string]string)
	for i := range 20_000 {
		in := fmt.Sprintf("u%d@example.org", i)
		got := string(a.Mailbox([]byte(in)))
		if seen[got] != "" {
			t.Fatalf("%s and %s both became %s", in, seen[got], got)
		}
		seen[got] = in
		if again := string(a.Mailbox([]byte(strings.ToUpper(in)))); !strings.EqualFold(again, got) {
			t.Fatalf("%s became %s, in capitals %s", in, got, again)
		}
	}
	if x, y := a.Name([]byte("mail.muster-firma.org")), a.Name([]byte("muster-firma.org")); !bytes.HasSuffix(x, append([]byte("."), y...)) {
		t.Errorf("%s is not below %s", x, y)
	}
}

// options are those of a table whose records are appended to to.
func options(t testing.TB, lists *lookup.Lists, to *[]*store.Record) session.Options {
	m := memory.New()
	m.Load(slices.Values([]store.Entry{{Bucket: "secret", Key: []byte("hash"), Value: []byte("0123456789abcdef")}}), sim.Midnight.UnixMicro())
	return session.Options{
		Memory: m,
		Lists:  func() *lookup.Lists { return lists },
		Log:    func([]byte) {},
		Record: func(end time.Time, id uint64, value []byte) { *to = append(*to, decode(t, end, id, value)) },
	}
}

func decode(t testing.TB, end time.Time, id uint64, value []byte) *store.Record {
	r, err := store.Decode(store.AppendKey(nil, end, id), bytes.Clone(value))
	if err != nil {
		t.Fatal(err)
	}
	return &r
}

// policy is a ready one, in which no domain is known to be ours.
func policy(t testing.TB, name, lines string) *rules.Policy {
	t.Helper()
	text, err := rules.ReadyPolicy(name)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := rules.Parse(name, func(string) ([]byte, error) { return append([]byte(lines), text...), nil })
	if err != nil {
		t.Fatal(err)
	}
	p, _, err := rules.Compile(tree, rules.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return p.InMode(rules.Enforce)
}

// play plays records to a policy, and returns what was found and decided in each.
func play(t testing.TB, lists *lookup.Lists, p *rules.Policy, records []*store.Record) []string {
	var back []*store.Record
	told := make(map[string]string)
	player := replay.New(replay.Options{
		Settings: &session.Settings{Policy: p},
		Table:    options(t, lists, &back),
		Done: func(o *replay.Outcome) {
			told[name(o.Record)] = fmt.Sprintf("refused by %q, lost %d, junked %d, login %v, spared %v", o.Refusal.Rule, len(o.Lost), o.Junked, o.Login, o.Spared)
		},
	})
	for _, r := range records {
		player.Add(r)
	}
	player.Close()
	var all []string
	for _, r := range back {
		s := name(r) + ": " + told[name(r)]
		_ = r.Steps(func(st *store.Step) bool {
			if st.Kind >= store.KindFinding {
				s += fmt.Sprintf(" %d %s %s", st.Kind, st.Text, st.Confidence)
			}
			return true
		})
		all = append(all, s)
	}
	slices.Sort(all)
	return all
}

func name(r *store.Record) string { return fmt.Sprintf("%016x %d", r.ID, r.Start.UnixMicro()) }

// copyOf anonymizes records.
func copyOf(t testing.TB, a *anonymize.Anonymizer, records []*store.Record) (all []*store.Record, values [][]byte) {
	for _, r := range records {
		value, err := a.Record(nil, r, func(n uint32) uint32 { return n })
		if err != nil {
			t.Error(err)
		}
		values = append(values, value)
		all = append(all, decode(t, r.End, r.ID, value))
	}
	return all, values
}

// streams are the recorded ones, as records.
func streams(t testing.TB, lists *lookup.Lists, each func(name string, in []byte, records []*store.Record)) {
	names, err := filepath.Glob("../../tests/streams/*/*.in")
	if more := os.Getenv("SCANWATCH_STREAMS"); more != "" { // of a site, say
		var others []string
		others, err = filepath.Glob(more)
		names = append(names, others...)
	}
	if err != nil || len(names) < 160 {
		t.Fatalf("%d streams, %v", len(names), err)
	}
	for _, name := range names {
		in, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		// The lists know the names that examples have.
		in = []byte(strings.NewReplacer("example.org", "muster-firma.org", "example.net", "kunde-nebenan.net", "example.com", "sonst-wer.com",
			"foreign.example", "opfer-haus.example", "sink.example", "senke-haus.example").Replace(string(in)))
		var records []*store.Record
		table := session.NewTable(options(t, lists, &records))
		p := policy(t, "open", "privacy full\n")
		table.Use(&session.Settings{Policy: p})
		if err := filter.Serve(bytes.NewReader(in), new(bytes.Buffer), table, filter.Options{}); err != nil {
			t.Fatal(name, err)
		}
		table.Stop()
		each(name, in, records)
	}
}

var (
	mailboxes = regexp.MustCompile(`[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+`)
	hostNames = regexp.MustCompile(`[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+`)
)

// TestNothingLeft: no address, name or mailbox of the recorded streams is in the bytes
// of the copy, except for those that the lists know.
func TestNothingLeft(t *testing.T) {
	lists := builtin(t)
	a := anonymize.New(key, lists)
	known := func(s string) bool {
		for _, row := range lists.Rows() {
			value := strings.ToLower(strings.TrimLeft(row.Value, ".*"))
			if value != "" && (s == value || strings.HasSuffix(s, "."+value)) {
				return true
			}
		}
		return false
	}
	looked := 0
	streams(t, lists, func(stream string, in []byte, records []*store.Record) {
		_, values := copyOf(t, a, records)
		all := bytes.ToLower(bytes.Join(values, nil))
		var originals []string
		add := func(text []byte) {
			for _, re := range []*regexp.Regexp{mailboxes, hostNames} {
				for _, m := range re.FindAll(text, -1) {
					originals = append(originals, strings.ToLower(string(m)))
				}
			}
		}
		for _, r := range records {
			add(r.RDNS)
			if r.Src.IsValid() && !r.Src.Addr().IsLoopback() {
				originals = append(originals, r.Src.Addr().String())
				// In the record it is four or sixteen bytes, behind their number.
				ip := r.Src.Addr().AsSlice()
				if bytes.Contains(all, append([]byte{2<<3 | 2, byte(len(ip) + 2)}, bytes.ToLower(ip)...)) {
					t.Errorf("%s: %v is there in bytes", stream, r.Src)
				}
			}
			_ = r.Steps(func(s *store.Step) bool {
				switch s.Kind {
				case store.KindHelo, store.KindMail, store.KindRcpt, store.KindAuth, store.KindCommand:
					add(s.Text)
					if s.Kind != store.KindCommand && len(s.Text) >= 6 && s.Kind != store.KindHelo {
						originals = append(originals, strings.ToLower(string(s.Text)))
					}
				case store.KindFinding:
					add(s.Arg)
				}
				add(s.Reply)
				return true
			})
		}
		slices.Sort(originals)
		for _, o := range slices.Compact(originals) {
			if len(o) < 6 || !strings.ContainsAny(o, "abcdefghijklmnopqrstuvwxyz") && !strings.Contains(o, "192.0.2.") {
				continue // too short to be anybody's, numbers of replies
			}
			local, _, _ := strings.Cut(o, "@")
			if privacy.IsRole(local) || known(o) {
				continue
			}
			looked++
			if bytes.Contains(all, []byte(o)) {
				t.Errorf("%s: %q is in the copy", stream, o)
			}
		}
	})
	if looked < 500 {
		t.Errorf("%d names were looked for", looked)
	}
}

// TestKnownByPart: of what the lists know only the part stays that they know it by.
func TestKnownByPart(t *testing.T) {
	lists := builtin(t)
	a := anonymize.New(key, lists)
	person := regexp.MustCompile(`(?i)john|smith|2001:db8`)
	for _, name := range []string{"johnsmith.bc.googleusercontent.com", "mail.johnsmith.bc.googleusercontent.com", "JOHNSMITH.compute-1.amazonaws.com", "mail-johnsmith.google.com"} {
		got := a.Name([]byte(name))
		scanner, cloud, allow := lists.RDNS([]byte(name))
		if s, c, l := lists.RDNS(got); person.Match(got) || s != scanner || c != cloud || l != allow {
			t.Errorf("%s became %s", name, got)
		}
	}
	for _, line := range []string{
		"User-Agent: Expanse, a Palo Alto Networks company, wants mail.johnsmith.example, 2001:db8::25, john.smith@example.org",
		"Mozilla/5.0 (compatible; CensysInspect/1.1) to mail.johnsmith.example", "john smith masscan/1.3",
	} {
		got := a.Line([]byte(line))
		if lists.Line(got) != lists.Line([]byte(line)) || lists.Line(got) == nil || person.Match(got) {
			t.Errorf("%s became %s", line, got)
		}
	}
}

// TestSameStreams: the copy of each stream comes out as the stream does.
func TestSameStreams(t *testing.T) {
	lists := builtin(t)
	a := anonymize.New(key, lists)
	p := policy(t, "tight", "")
	streams(t, lists, func(stream string, _ []byte, records []*store.Record) {
		others, _ := copyOf(t, a, records)
		compare(t, stream, play(t, lists, p, records), play(t, lists, p, others))
	})
}

func compare(t *testing.T, what string, want, got []string) {
	t.Helper()
	differ := 0
	for i := range max(len(want), len(got)) {
		if i >= len(want) || i >= len(got) || want[i] != got[i] {
			if differ++; differ <= 3 && i < len(want) && i < len(got) {
				t.Errorf("%s: got\n\t%s\nwant\n\t%s", what, got[i], want[i])
			}
		}
	}
	if differ > 0 {
		t.Errorf("%s: %d of %d sessions differ", what, differ, len(want))
	}
}

// TestSameDay: so does that of a busy day.
func TestSameDay(t *testing.T) {
	lists := builtin(t)
	var records []*store.Record
	o := options(t, lists, &records)
	hasher := privacy.New(key)
	o.Hasher = func() *privacy.Hasher { return hasher }
	table := session.NewTable(o)
	p := policy(t, "open", "")
	table.Use(&session.Settings{Policy: p})
	day := sim.Merge(sim.Day(1, 2000), sim.Merge(
		sim.Harvest(sim.Attack{Start: sim.Midnight.Add(time.Hour), Every: 3 * time.Minute, Sessions: 200, Each: 9}),
		sim.Guess(sim.Attack{Start: sim.Midnight.Add(2 * time.Hour), Every: time.Minute, Sessions: 200, Each: 12}),
	))
	if _, err := sim.Play(table, session.Phases(p), day); err != nil {
		t.Fatal(err)
	}
	table.Stop()
	slices.SortStableFunc(records, func(a, b *store.Record) int { return a.End.Compare(b.End) })
	others, _ := copyOf(t, anonymize.New(key, lists), records)
	for _, ready := range []string{"standard", "tight"} {
		p := policy(t, ready, "")
		compare(t, ready, play(t, lists, p, records), play(t, lists, p, others))
	}
}

// FuzzName: a name of the same form, of which the lists know the same.
func FuzzName(f *testing.F) {
	lists := builtin(f)
	for _, s := range []string{"mail.example.org", "WIN-AB12", "192-0-2-1.dyn.example.net", "a.b.co.uk", "x..y.", "\xc3\xa4.example", "[IPv6:::1]"} {
		f.Add([]byte(s))
	}
	a := anonymize.New(key, lists)
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 255 {
			return
		}
		out := a.Name(bytes.Clone(in))
		again := a.Name(bytes.Clone(in))
		if !bytes.Equal(out, again) {
			t.Errorf("%q became %q and %q", in, out, again)
		}
		for i, pair := range [2][3]*lookup.Row{} {
			was, is := pair, pair
			if i == 0 {
				was[0], was[1], was[2] = lists.RDNS(in)
				is[0], is[1], is[2] = lists.RDNS(out)
			} else {
				was[0], was[1], was[2] = lists.Helo(in)
				is[0], is[1], is[2] = lists.Helo(out)
			}
			if was != is && in[0] != '[' {
				t.Errorf("%q became %q, which the lists know otherwise", in, out)
			}
		}
		a.Mailbox(in)
		a.Line(in)
		a.Rule(string(in))
	})
}

func BenchmarkRecord(b *testing.B) {
	lists := builtin(b)
	var records []*store.Record
	table := session.NewTable(options(b, lists, &records))
	p := policy(b, "open", "")
	table.Use(&session.Settings{Policy: p})
	if _, err := sim.Play(table, session.Phases(p), sim.Day(1, 2000)); err != nil {
		b.Fatal(err)
	}
	a := anonymize.New(key, lists)
	var buf []byte
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		buf, _ = a.Record(buf[:0], records[i%len(records)], func(n uint32) uint32 { return n })
	}
}
