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
	"scanwatch/filter/smtpd"
	"scanwatch/internal/mailbox"
	"scanwatch/internal/sketch"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/tests/simulate"
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

// TestAddr checks the copy of an address. The copy of an address must be unique, differ from the
// original, be in the same network, and match the same row of the lists.
func TestAddr(t *testing.T) {
	lists := builtin(t)
	a := anonymize.New(key, lists)
	seen := make(map[netip.Addr]netip.Addr)
	try := func(addr netip.Addr) {
		got, bits := a.Addr(addr), 24
		if addr.Is6() {
			bits = 48
		}
		if before, ok := seen[got]; ok && before != addr {
			t.Errorf("%v and %v both became %v", before, addr, got)
		}
		seen[got] = addr
		if near, _ := addr.Prefix(bits); !near.Contains(got) || got == addr {
			t.Errorf("%v became %v", addr, got)
		}
	}
	for _, s := range []string{"192.0.2.0", "10.1.2.0", "8.8.8.0"} {
		b := netip.MustParseAddr(s).As4()
		for i := range 256 {
			b[3] = byte(i)
			try(netip.AddrFrom4(b))
		}
	}
	for _, s := range []string{"2001:db8::", "fd00:1:2::", "fe80::"} {
		b := netip.MustParseAddr(s).As16()
		for i := range 256 {
			b[7], b[15] = byte(i>>6), byte(i)
			try(netip.AddrFrom16(b))
		}
	}
	one, other := a.Addr(netip.MustParseAddr("2001:db8::1")), a.Addr(netip.MustParseAddr("2001:db8::2"))
	if net, _ := one.Prefix(64); !net.Contains(other) {
		t.Errorf("%v and %v are not in one /64", one, other)
	}
	for _, row := range lists.Rows() {
		if row.Kind == "cidr" {
			addr := netip.MustParsePrefix(row.Value).Addr()
			if got := a.Addr(addr); lists.Addr(got) != lists.Addr(addr) {
				t.Errorf("%v of %s became %v", addr, row.Org, got)
			}
		}
	}
	for _, s := range []string{"127.0.0.1", "::1", "0.0.0.0"} {
		if got := a.Addr(netip.MustParseAddr(s)).String(); got != s {
			t.Errorf("%s became %s", s, got)
		}
	}
}

// TestForm checks which parts of texts are kept.
func TestForm(t *testing.T) {
	a := anonymize.New(key, builtin(t))
	const w = "[a-p]{15}" // form of a hash
	for _, c := range []struct {
		what     string
		copy     func([]byte) []byte
		in, want string
	}{
		{"name", a.Name, "mail.muster-firma.org", `^` + w + `\.` + w + `\.org$`},
		{"name", a.Name, "Mail1.Muster.CO.UK", `^` + w + `\.` + w + `\.CO\.UK$`},
		{"name", a.Name, "WIN-AB12CD34EF5", `^WIN-[A-Z]{2}[0-9]{2}[A-Z]{2}[0-9]{2}[A-Z]{2}[0-9]$`},
		{"name", a.Name, "Muster7", "^[A-Z][a-z]{5}[0-9]$"},
		{"name", a.Name, "ylmf-pc", `^ylmf-pc$`},
		{"name", a.Name, "localhost", `^localhost$`},
		{"name", a.Name, "[127.0.0.1]", `^\[127\.0\.0\.1\]$`},
		{"name", a.Name, "[192.0.2.7]", `^\[192\.0\.2\.[0-9]+\]$`},
		{"name", a.Name, "192.0.2.7", `^192\.0\.2\.[0-9]+$`},
		{"name", a.Name, "IPv6:2001:db8::7", `^IPv6:2001:db8:0?:[0-9a-f:]+$`},
		{"name", a.Name, "ec2-198-51-100-7.compute-1.amazonaws.com", `^[a-z]{2}[0-9]-[0-9]{3}-[0-9]{2}-[0-9]{3}-[0-9]\.[a-z0-9-]+\.amazonaws\.com$`},
		{"name", a.Name, "pppoe-192-0-2-7.dyn.kunde.org", `^pppoe-[0-9]{3}-[0-9]-[0-9]-[0-9]\.dyn\.` + w + `\.org$`},
		{"name", a.Name, "google.com", `^google\.com$`},
		{"mailbox", a.Mailbox, "", "^$"},
		{"mailbox", a.Mailbox, "j.smith+list@kunde.org", `^` + w + `\+` + w + `@` + w + `\.org$`},
		{"mailbox", a.Mailbox, "abuse+list@kunde.org", `^abuse\+` + w + `@` + w + `\.org$`},
		{"mailbox", a.Mailbox, "abuse.smith+list@kunde.org", `^` + w + `\+` + w + `@` + w + `\.org$`},
		{"mailbox", a.Mailbox, "Postmaster@kunde.org", `^Postmaster@` + w + `\.org$`},
		{"mailbox", a.Mailbox, "hash:0123456789abcdef@kunde.org", `^hash:[0-9a-f]{16}@` + w + `\.org$`},
		{"mailbox", a.Mailbox, "user%victim.example@kunde.org", `^` + w + `%` + w + `\.example@` + w + `\.org$`},
		{"mailbox", a.Mailbox, "@a.example,@b.example:user@kunde.org", `^@` + w + `\.example,@` + w + `\.example:` + w + `@` + w + `\.org$`},
		{"line", a.Line, "MAIL FROM:<j.smith@kunde.org> SIZE=12345", `^MAIL FROM:<` + w + `@` + w + `\.org> SIZE=[0-9]{5}$`},
		{"line", a.Line, "GET /index.html HTTP/1.1", `^GET /[a-z]{5}\.[a-z]{4} HTTP/[0-9]\.[0-9]$`},
		{"line", a.Line, "AUTH LOGIN ********", `^AUTH LOGIN \*{8}$`},
		{"line", a.Line, "MGLNDD_198.51.100.1_25", `^MGLNDD_[0-9]{3}\.[0-9]{2}\.[0-9]{3}\.[0-9]_[0-9]{2}$`},
	} {
		if got := string(c.copy([]byte(c.in))); !regexp.MustCompile(c.want).MatchString(got) || got == c.in && strings.ContainsAny(c.want, "{") && c.in != "AUTH LOGIN ********" {
			t.Errorf("%s %q became %q, want %s", c.what, c.in, got, c.want)
		}
	}
	for _, c := range []struct{ in, want string }{
		{`rule r phase rcpt-to match src 192.0.2.7 helo "mail.kunde.org" rcpt-to "@kunde.org" reject "550 5.7.1 Call John on 555-1234"`,
			`^rule r phase rcpt-to match src 192\.0\.2\.[0-9]+ helo "` + w + `\.` + w + `\.org" rcpt-to "@` + w + `\.org" reject "550 5\.7\.1 \.\.\."$`},
		{`rule r phase helo match helo /john.*/ disconnect`, `^rule r phase helo match helo /anonymized/ disconnect$`},
		{`rule r phase helo match helo "jo`, `^$`},
		{`mode enforce`, `^$`},
	} {
		if got := a.Rule(c.in); !regexp.MustCompile(c.want).MatchString(got) {
			t.Errorf("rule %s became %s, want %s", c.in, got, c.want)
		}
	}
}

// TestWordsDiffer checks that different names have different copies, unless they differ only in
// case.
func TestWordsDiffer(t *testing.T) {
	a := anonymize.New(key, builtin(t))
	seen := make(map[string]string)
	for i := range 20_000 {
		in := fmt.Sprintf("u%d@kunde.org", i)
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

// options returns options for a pipeline that appends its records to a slice.
func options(t testing.TB, lists *lookup.Lists, to *[]*store.Record) filter.Options {
	m := memory.New()
	m.Load(slices.Values([]store.Entry{{Bucket: "secret", Key: []byte("hash"), Value: []byte("0123456789abcdef")}}), simulate.Midnight.UnixMicro())
	return filter.Options{
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

// policy returns a preset in enforce mode. No local domains are known.
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

// play replays records under a policy, and returns the evidence and decisions for each record.
func play(t testing.TB, lists *lookup.Lists, p *rules.Policy, records []*store.Record) []string {
	var back []*store.Record
	told := make(map[string]string)
	player := replay.New(replay.Options{
		Settings: &filter.Settings{Policy: p},
		Filter:   options(t, lists, &back),
		Done: func(o *replay.Outcome) {
			told[name(o.Record)] = fmt.Sprintf("refused by %q, lost %d, junked %d, login %v, spared %v", o.Refusal.Rule, len(o.Lost), o.Junked, o.Login, o.Resumed)
		},
	})
	for _, r := range records {
		player.Add(*r)
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

// copyOf returns anonymized copies of records, and their encodings.
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

// streams calls each with the records of every recorded stream.
func streams(t testing.TB, lists *lookup.Lists, each func(name string, in []byte, records []*store.Record)) {
	names, err := filepath.Glob("../../tests/streams/*/*.in")
	if more := os.Getenv("SCANWATCH_STREAMS"); more != "" { // for example, streams that an operator has recorded
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
		// The lists contain the domains for examples, so these are replaced by others.
		in = []byte(strings.NewReplacer("example.org", "muster-firma.org", "example.net", "kunde-nebenan.net", "example.com", "sonst-wer.com",
			"foreign.example", "opfer-haus.example", "sink.example", "senke-haus.example").Replace(string(in)))
		var records []*store.Record
		table := simulate.NewFilter(options(t, lists, &records))
		p := policy(t, "open", "privacy full\n")
		table.Use(&filter.Settings{Policy: p})
		if err := smtpd.Serve(bytes.NewReader(in), new(bytes.Buffer), table, smtpd.Options{}); err != nil {
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

// TestNothingLeft checks that the copies contain no address, name or mailbox from the streams,
// except names in the lists.
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
				// In a record, the length of an address precedes its 4 or 16 bytes.
				ip := r.Src.Addr().AsSlice()
				if bytes.Contains(all, append([]byte{2<<3 | 2, byte(len(ip) + 2)}, bytes.ToLower(ip)...)) {
					t.Errorf("%s: the bytes of %v are in the copy", stream, r.Src)
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
				continue // too short for a name, or a number in a reply
			}
			local, _, _ := strings.Cut(o, "@")
			if mailbox.IsRole(local) || known(o) {
				continue
			}
			looked++
			found := bytes.Contains(all, []byte(o))
			if label, _, _ := strings.Cut(o, "."); found && len(label) < 3 { // a very short text may equal the end of a hash by chance
				found = regexp.MustCompile(`[^a-p]` + regexp.QuoteMeta(o)).Match(all)
			}
			if found {
				t.Errorf("%s: %q is in the copy", stream, o)
			}
		}
	})
	if looked < 500 {
		t.Errorf("only %d names checked", looked)
	}
}

// TestSum checks the copy of an aggregate. The copy must not contain the network of a ban or the
// operator's reason for a manual ban.
func TestSum(t *testing.T) {
	a := anonymize.New(key, builtin(t))
	var sources sketch.Sketch
	for i := range uint64(2000) {
		sources.Add(i)
	}
	prefix := netip.MustParsePrefix("198.51.100.7/32")
	var steps []byte
	for _, s := range []store.Step{
		{Kind: store.KindRcpt, Text: []byte("@muster-firma.org"), Result: smtp.ResultPermfail, Times: 2, Count: 3, Most: 2},
		{Kind: store.KindRcpt, Text: []byte("*"), Result: smtp.ResultPermfail, Times: 1, Count: 1, Most: 1},
		{Kind: store.KindHelo, Times: 3}, {Kind: store.KindAuth, Result: smtp.ResultFail, Times: 1, Count: 1},
		{Kind: store.KindBan, Text: []byte("rule"), Prefix: prefix, Enforced: true, Times: 1},
		{Kind: store.KindVerdict, Text: []byte("Frau Muster"), Banned: true, Enforced: true, Decision: smtp.Disconnect, Times: 1},
		{Kind: store.KindVerdict, Text: []byte("rule"), Banned: true, Session: 7, Enforced: true, Decision: smtp.Disconnect, Times: 1},
		{Kind: store.KindReference, Session: 77},
	} {
		steps = store.AppendStep(steps, &s, 0)
	}
	end := time.Unix(1795219327, 0)
	r := store.Record{ID: 7, Start: end, End: end, Sessions: 3, Sketch: sources[:], Server: []byte("mx.muster-firma.org"), Origin: []byte("mx2.muster-firma.org")}
	original := decode(t, end, 7, store.AppendRecord(nil, &r, steps))
	copies, values := copyOf(t, a, []*store.Record{original})
	if bytes.Contains(values[0], []byte("muster")) || bytes.Contains(values[0], []byte("Muster")) || bytes.Contains(values[0], prefix.Addr().AsSlice()) {
		t.Errorf("a name or an address is in the copy %q", values[0])
	}
	got := copies[0]
	var copied sketch.Sketch
	copied.Merge(got.Sketch)
	if copied == sources || copied.Count() != sources.Count() || got.Sessions != 3 {
		t.Errorf("an estimate of %d sources, want %d", copied.Count(), sources.Count())
	}
	var texts []string
	if err := got.Steps(func(s *store.Step) bool {
		texts = append(texts, fmt.Sprintf("%d %s %d %d %d %d", s.Kind, s.Text, s.Times, s.Count, s.Most, s.Session))
		return true
	}); err != nil {
		t.Error(err)
	}
	domain := a.Mailbox([]byte("x@muster-firma.org"))
	domain = domain[bytes.IndexByte(domain, '@'):]
	want := []string{"6 " + string(domain) + " 2 3 2 0", "6 * 1 1 1 0", "2  3 0 0 0", "4  1 1 0 0", "18 rule 1 0 0 0", texts[5], "15 rule 1 0 0 7", "19  0 0 0 77"}
	if !slices.Equal(texts, want) {
		t.Errorf("%q, want %q", texts, want)
	}
}

// TestKnownByPart checks that if a part of a text matches a list, only this part is kept.
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

// TestSameStreams checks that copies of streams lead to the same evidence and decisions as the
// originals.
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

// TestSameDay does the same as TestSameStreams with a simulated day of attacks.
func TestSameDay(t *testing.T) {
	lists := builtin(t)
	var records []*store.Record
	o := options(t, lists, &records)
	hasher := privacy.New(key)
	o.Hasher = func() *privacy.Hasher { return hasher }
	table := simulate.NewFilter(o)
	p := policy(t, "open", "")
	table.Use(&filter.Settings{Policy: p})
	day := simulate.Merge(simulate.Day(1, 2000), simulate.Merge(
		simulate.Harvest(simulate.Attack{Start: simulate.Midnight.Add(time.Hour), Every: 3 * time.Minute, Sessions: 200, Each: 9}),
		simulate.Guess(simulate.Attack{Start: simulate.Midnight.Add(2 * time.Hour), Every: time.Minute, Sessions: 200, Each: 12}),
	))
	if _, err := simulate.Play(table, smtpd.Requests(filter.Phases(p)), day); err != nil {
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

// FuzzName checks that copies of a name are always the same and match the same rows of the lists as
// the name.
func FuzzName(f *testing.F) {
	lists := builtin(f)
	for _, s := range []string{"mail.example.org", "WIN-AB12", "192-0-2-1.dyn.example.net", "a.b.co.uk", "x..y.", "\xc3\xa4.example", "[IPv6:::1]",
		"X.", "x..", "localhost.", "mail.example.com.", "diretorias1.", ".", "host-1.dyn.example.net."} {
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
		for i, pair := range [2][4]*lookup.Row{} {
			was, is := pair, pair
			if i == 0 {
				was[0], was[1], was[2] = lists.RDNS(in)
				is[0], is[1], is[2] = lists.RDNS(out)
			} else {
				was[0], was[1], was[2] = lists.Helo(in)
				is[0], is[1], is[2] = lists.Helo(out)
				was[3], is[3] = lists.Word(in), lists.Word(out)
			}
			if was != is && in[0] != '[' {
				t.Errorf("%q became %q, which matches other rows", in, out)
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
	table := simulate.NewFilter(options(b, lists, &records))
	p := policy(b, "open", "")
	table.Use(&filter.Settings{Policy: p})
	if _, err := simulate.Play(table, smtpd.Requests(filter.Phases(p)), simulate.Day(1, 2000)); err != nil {
		b.Fatal(err)
	}
	a := anonymize.New(key, lists)
	var buf []byte
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		buf, _ = a.Record(buf[:0], records[i%len(records)], func(n uint32) uint32 { return n })
	}
}
