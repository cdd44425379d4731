package selector

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"scanwatch/internal/smtp"
	"scanwatch/store"
)

var (
	zone = time.FixedZone("", 3600)
	now  = time.Date(2026, 11, 29, 15, 4, 5, 0, zone)
)

func TestParseTime(t *testing.T) {
	for text, want := range map[string]string{
		"now":                       "2026-11-29T15:04:05+01:00",
		"today":                     "2026-11-29T00:00:00+01:00",
		"yesterday":                 "2026-11-28T00:00:00+01:00",
		"2026-11-01":                "2026-11-01T00:00:00+01:00",
		"2026-11-01 12:00":          "2026-11-01T12:00:00+01:00",
		"2026-11-01 12:00:30":       "2026-11-01T12:00:30+01:00",
		"2026-11-01T12:00":          "2026-11-01T12:00:00+01:00",
		"2026-11-01T12:00:00Z":      "2026-11-01T12:00:00Z",
		"2026-11-01T12:00:00.5Z":    "2026-11-01T12:00:00.5Z",
		"2026-11-01T12:00:00-05:00": "2026-11-01T12:00:00-05:00",
		"0s":                        "2026-11-29T15:04:05+01:00",
		"90m":                       "2026-11-29T13:34:05+01:00",
		"1d12h":                     "2026-11-28T03:04:05+01:00",
		"2w":                        "2026-11-15T15:04:05+01:00",
		"1mo":                       "2026-10-29T15:04:05+01:00",
		"12mo":                      "2025-11-29T15:04:05+01:00",
		"1y":                        "2025-11-29T15:04:05+01:00",
		"1y2mo3w4d5h6m7s":           "2025-09-04T09:57:58+01:00",
		"100y":                      "1970-01-01T01:00:00+01:00",
		"1969-12-31":                "1970-01-01T01:00:00+01:00",
		"0001-01-01T00:00:00Z":      "1970-01-01T01:00:00+01:00",
		"9999-12-31T23:59:59Z":      "9999-12-31T23:59:59Z",
	} {
		got, err := ParseTime(text, now, zone)
		if err != nil || got.Format(time.RFC3339Nano) != want {
			t.Errorf("%q: %v, %v, want %s", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"":                      "not a time",
		"tomorrow":              "not a time",
		"5":                     "not a time",
		"d":                     "not a time",
		"-5m":                   "not a time",
		"1h1d":                  "not a time",
		"1d1d":                  "not a time",
		"1.5h":                  "not a time",
		"1D":                    "not a time",
		"2026-13-01":            "not a time",
		"101y":                  "longer than 100 years",
		"100y1d":                "longer than 100 years",
		"99999999d":             "longer than 100 years",
		"30000w":                "longer than 100 years",
		"99999999999999999999d": "longer than 100 years",
	} {
		if got, err := ParseTime(text, now, zone); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v, want %q", text, got, err, want)
		}
	}
}

// TestParseDay checks that a day starts at its first instant, even in Santiago, where the
// clock is set forward at midnight.
func TestParseDay(t *testing.T) {
	santiago, err := time.LoadLocation("America/Santiago")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 9, 6, 12, 0, 0, 0, santiago)
	for text, want := range map[string]string{
		"today": "2026-09-06T01:00:00-03:00", "yesterday": "2026-09-05T00:00:00-04:00", "2026-09-06": "2026-09-06T01:00:00-03:00",
	} {
		if got, err := ParseTime(text, now, santiago); err != nil || got.Format(time.RFC3339) != want {
			t.Errorf("%s: %v, %v, want %s", text, got, err, want)
		}
	}
}

func TestParseSpan(t *testing.T) {
	for text, want := range map[string]time.Duration{"90m": 90 * time.Minute, "1d12h": 36 * time.Hour, "1mo": 720 * time.Hour, "1y": 8760 * time.Hour} {
		if got, err := ParseSpan(text); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{"yesterday": "not a span", "1000y": "longer than"} {
		if _, err := ParseSpan(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// parse parses flags and returns the selector.
func parse(t *testing.T, args ...string) (*Selector, error) {
	t.Helper()
	s := new(Selector)
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	s.Register(fs, Sessions|Limit|JSON, Clock{func() time.Time { return now }, zone})
	return s, fs.Parse(args)
}

func TestFlagErrors(t *testing.T) {
	for args, want := range map[string]string{
		"--since=soon":        "not a time; use 90m",
		"--src=example.org":   "is not an address or prefix",
		"--src=192.0.2.1,x":   "is not an address or prefix",
		"--evidence=scaner":   `no such evidence "scaner"`,
		"--evidence=scanner,": `no such evidence ""`,
		"--rule=":             "empty name",
		"--listener=smtp":     "not a listener",
		"--listener=:0":       "not a listener",
		"--listener=65536":    "not a listener",
		"--limit=0":           "not a number of at least 1",
		"--limit=many":        "not a number of at least 1",
	} {
		if _, err := parse(t, args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

func TestCheck(t *testing.T) {
	for args, want := range map[string]string{
		"--since=1d --until=1h":   "",
		"--until=1h":              "",
		"--since=1h --until=2h":   "--until is not after --since",
		"--since=1h --until=1h":   "--until is not after --since",
		"--since=100y --until=1d": "",
	} {
		s, err := parse(t, strings.Fields(args)...)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if err := s.Check(); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
	}
}

// TestMatch checks each flag and combinations of flags. The sessions are a brute-force attack on
// alice on port 587, a scanner on port 25, and a session over the local socket.
func TestMatch(t *testing.T) {
	record := func(src, dst string, steps ...store.Step) *store.Record {
		var b []byte
		for i := range steps {
			b = store.AppendStep(b, &steps[i], 0)
		}
		r := &store.Record{End: now, Local: src == ""}
		if src != "" {
			r.Src, r.Dst = netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
		}
		got, err := store.Decode(store.AppendKey(nil, now, 1), store.AppendRecord(nil, r, b))
		if err != nil {
			t.Fatal(err)
		}
		return &got
	}
	step := func(kind store.Kind, text string) store.Step { return store.Step{Kind: kind, Text: []byte(text)} }
	records := map[string]*store.Record{
		"login": record("192.0.2.1:1", "198.51.100.25:587", step(store.KindHelo, "PC.example.net"),
			store.Step{Kind: store.KindAuth, Text: []byte("alice"), Result: smtp.ResultFail}, step(store.KindFinding, "auth-failure"), step(store.KindBan, "guess")),
		"scan":  record("[2001:db8::7]:1", "[2001:db8::25]:25", step(store.KindHelo, "x"), step(store.KindFinding, "scanner"), step(store.KindVerdict, "scanners")),
		"local": record("", ""),
	}
	for args, want := range map[string]string{
		"":                                     "local login scan",
		"--src 192.0.2.1":                      "login",
		"--src 192.0.2.0/24,2001:db8::/32":     "login scan",
		"--src 192.0.2.0/24 --src 2001:db8::7": "login scan",
		"--src ::ffff:192.0.2.1":               "login",
		"--evidence scanner":                   "scan",
		"--evidence scanner,auth-failure":      "login scan",
		"--evidence any":                       "login scan",
		"--evidence harvest":                   "",
		"--rule guess":                         "login",
		"--rule guess,scanners":                "login scan",
		"--rule Guess":                         "",
		"--user alice":                         "login",
		"--user bob":                           "",
		"--helo pc.example.NET":                "login",
		"--helo .example.net":                  "login",
		"--helo .net --helo x":                 "login scan",
		"--listener 587":                       "login",
		"--listener :587":                      "login",
		"--listener 25,587":                    "login scan",
		"--listener 198.51.100.25":             "login",
		"--listener 198.51.100.25:25":          "",
		"--listener [2001:db8::25]:25":         "scan",
		"--listener 2001:db8::25":              "scan",
		"--src 192.0.2.1 --evidence scanner":   "",
		"--user alice --evidence any --rule guess --helo .example.net --listener 587 --src 192.0.2.1": "login",
		"--user alice --evidence any --rule scanners":                                                 "",
	} {
		s, err := parse(t, strings.Fields(args)...)
		if err != nil {
			t.Errorf("%s: %v", args, err)
			continue
		}
		var got []string
		for name, r := range records {
			if s.Match(r) {
				got = append(got, name)
			}
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want || s.Narrow() != (args != "") {
			t.Errorf("%s: %v, want %s", args, got, want)
		}
	}
}

// TestHasPrefix checks that selecting an address also selects a ban on its network.
func TestHasPrefix(t *testing.T) {
	s, err := parse(t, "--src", "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]bool{"192.0.2.0/24": true, "192.0.2.1/32": true, "192.0.3.0/24": false, "2001:db8::/32": false} {
		if s.HasPrefix(netip.MustParsePrefix(p)) != want {
			t.Errorf("%s: not %v", p, want)
		}
	}
}

func TestCompleteList(t *testing.T) {
	complete := CompleteList(func() []string { return []string{"harvest", "helo-missing", "scanner"} })
	for text, want := range map[string]string{
		"":                 "harvest helo-missing scanner",
		"h":                "harvest helo-missing",
		"scanner,h":        "scanner,harvest scanner,helo-missing",
		"harvest,scanner,": "harvest,scanner,helo-missing",
		"x":                "",
	} {
		got, _ := complete(nil, nil, text)
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %v, want %s", text, got, want)
		}
	}
}
