package events

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// decode decodes a line with its newline. The test fails if the line contains unprintable
// characters, non-ASCII characters, unknown keys, or text after the JSON object.
func decode(t *testing.T, text []byte) object {
	t.Helper()
	body, ended := bytes.CutSuffix(text, []byte("\n"))
	if !ended {
		t.Fatalf("no newline at the end: %q", text)
	}
	for i, c := range body {
		if c < 0x20 || c > 0x7e {
			t.Fatalf("byte %d is %#02x in %q", i, c, text)
		}
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	var l object
	if err := d.Decode(&l); err != nil {
		t.Fatalf("decode %q: %v", text, err)
	}
	if d.More() {
		t.Fatalf("text after the object in %q", text)
	}
	return l
}

var noon = time.Date(2026, 1, 2, 12, 0, 0, 1234567, time.UTC)

func sample() *Event {
	return &Event{
		Event: "finding", Time: noon, Session: 0x7641df9771b4ed00, Src: netip.MustParseAddr("192.0.2.7"),
		Evidence: "scanner", Confidence: "certain", Org: "Example Survey", By: "rdns", Match: ".scan.example.org",
		Proof: "fcrdns", RDNS: []byte("host7.scan.example.org"), FCrDNS: "pass", Helo: []byte("probe.example.org"),
	}
}

// TestAppendEvent checks the keys and their order, and the format of addresses.
func TestAppendEvent(t *testing.T) {
	const head = `{"event":"ban","time":"2026-01-02T12:00:00.001234Z"`
	tests := []struct {
		name  string
		event Event
		want  string
	}{
		{"finding", *sample(), `{"event":"finding","time":"2026-01-02T12:00:00.001234Z","session":"7641df9771b4ed00","src":"192.0.2.7",` +
			`"evidence":"scanner","confidence":"certain","org":"Example Survey","by":"rdns","match":".scan.example.org",` +
			`"proof":"fcrdns","rdns":"host7.scan.example.org","fcrdns":"pass","helo":"probe.example.org"}`},
		{"verdict and the rest of the keys", Event{Event: "ban", Time: noon, Session: 1, Src: netip.MustParseAddr("2001:db8::1"),
			Rule: "r1", Phase: "helo", Decision: "reject", Would: "disconnect", Tag: "odd", Until: noon.Add(time.Hour),
			Prefix: "2001:db8::/64", Reason: "too often"},
			head + `,"session":"0000000000000001","src":"2001:db8::1","rule":"r1","phase":"helo","decision":"reject",` +
				`"would":"disconnect","tag":"odd","until":"2026-01-02T13:00:00.001234Z","prefix":"2001:db8::/64","reason":"too often"}`},
		{"local client", Event{Event: "ban", Time: noon, Session: 1}, head + `,"session":"0000000000000001","src":"local"}`},
		{"about no session", Event{Event: "ban", Time: noon}, head + `}`},
		{"mapped address", Event{Event: "ban", Time: noon, Src: netip.MustParseAddr("::ffff:192.0.2.1")}, head + `,"src":"192.0.2.1"}`},
		{"hostile zone", Event{Event: "ban", Time: noon, Src: netip.MustParseAddr("fe80::1").WithZone("\"\x1b")},
			head + `,"src":"fe80::1%\"\u001b"}`},
		{"other time zone", Event{Event: "ban", Time: noon.In(time.FixedZone("", 3600))}, head + `}`},
		{"hostile kind", Event{Event: "ban\n", Time: noon}, strings.Replace(head, "ban", `ban\n`, 1) + `}`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := appendEvent(nil, &test.event)
			if string(got) != test.want+"\n" {
				t.Errorf("got  %swant %s", got, test.want)
			}
			decode(t, got)
		})
	}
}

// TestAppendEventIsComplete checks that the line contains all fields of an Event.
func TestAppendEventIsComplete(t *testing.T) {
	var e Event
	v := reflect.ValueOf(&e).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Interface().(type) {
		case string:
			f.SetString(fmt.Sprintf("value%d", i))
		case []byte:
			f.SetBytes(fmt.Appendf(nil, "value%d", i))
		case time.Time:
			f.Set(reflect.ValueOf(noon.Truncate(time.Microsecond)))
		case uint64:
			f.SetUint(0x10)
		case bool:
			f.SetBool(true)
		case netip.Addr:
			f.Set(reflect.ValueOf(netip.MustParseAddr("192.0.2.1")))
		default:
			t.Fatalf("field %s has a type unknown to this test", v.Type().Field(i).Name)
		}
	}
	got := reflect.ValueOf(decode(t, appendEvent(nil, &e)))
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		want := v.Field(i).Interface()
		switch w := want.(type) {
		case []byte:
			want = string(w)
		case uint64:
			want = fmt.Sprintf("%016x", w)
		case netip.Addr:
			want = w.String()
		case time.Time:
			want = stamp(w)
		}
		field := got.FieldByName(name)
		if !field.IsValid() {
			t.Errorf("%s is missing in object", name)
		} else if field.Interface() != want {
			t.Errorf("%s is %v, want %v", name, field.Interface(), want)
		}
	}
}

// reason returns text escaped in the same way as in the line of an event.
func reason(text string) string {
	line := appendEvent(nil, &Event{Reason: text})
	_, line, _ = bytes.Cut(line, []byte(`"reason":"`))
	return string(bytes.TrimSuffix(line, []byte("\"}\n")))
}

// TestEscape checks how hostile text is escaped.
func TestEscape(t *testing.T) {
	tests := []struct {
		name, value, want string
	}{
		{"plain", "a b~", "a b~"},
		{"quote and backslash", `"\`, `\"\\`},
		{"markup stays", "<a href='x'>&", "<a href='x'>&"},
		{"control", "\x00\t\r\n\x1b[31m", `\u0000\t\r\n\u001b[31m`},
		{"delete", "\x7f", `\u007f`},
		{"C1", "\u0085\u009b", `\u0085\u009b`},
		{"letters", "müller", `m\u00fcller`},
		{"beyond the first plane", "😀", `\ud83d\ude00`},
		{"last character", "\U0010ffff", `\udbff\udfff`},
		{"bidi", "\u202a\u202e\u2066\u2069\u200e\u200f\u061c", `\u202a\u202e\u2066\u2069\u200e\u200f\u061c`},
		{"line separators", "\u2028\u2029", `\u2028\u2029`},
		{"invalid bytes", "\xff\xc3(\x80", `\ufffd\ufffd(\ufffd`},
		{"surrogate in UTF-8", "\xed\xa0\x80", `\ufffd\ufffd\ufffd`},
		{"overlong", "\xc0\xaf", `\ufffd\ufffd`},
		{"cut short at the end", "\xf0\x9f\x98", `\ufffd\ufffd\ufffd`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := reason(test.value); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// TestLongValuesAreTruncated checks that truncation does not split a character.
func TestLongValuesAreTruncated(t *testing.T) {
	a := strings.Repeat("a", 300)
	tests := []struct {
		name, value, want string
	}{
		{"fits", a[:256], a[:256]},
		{"one more", a[:257], a[:256]},
		{"character ends at the limit", a[:252] + "😀" + a, a[:252] + `\ud83d\ude00`},
		{"character would end after it", a[:253] + "😀" + a, a[:253]},
		{"character begins one byte before it", a[:255] + "ü" + a, a[:255]},
		{"only continuations", strings.Repeat("\x80", 300), strings.Repeat(`\ufffd`, 256)},
		{"broken character across it", a[:255] + "\xf0\x9f" + a, a[:255] + `\ufffd`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := reason(test.value); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// TestTimesAreRFC3339 checks that a time outside the range of RFC 3339 is replaced by the first or
// last time in the range.
func TestTimesAreRFC3339(t *testing.T) {
	tests := []struct {
		name string
		time time.Time
		want string
	}{
		{"zero", time.Time{}, "0001-01-01T00:00:00.000000Z"},
		{"too early", time.Date(-5, 1, 1, 0, 0, 0, 0, time.UTC), "0000-01-01T00:00:00.000000Z"},
		{"too late", time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC), "9999-12-31T23:59:59.999999Z"},
		{"too late only in UTC", time.Date(9999, 12, 31, 23, 59, 59, 0, time.FixedZone("", -3600)), "9999-12-31T23:59:59.999999Z"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			o := decode(t, appendEvent(nil, &Event{Event: "x", Time: test.time}))
			if got, _ := o.Time.MarshalText(); string(got) != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// readable returns the value that is expected after encoding and decoding. In the expected value,
// invalid bytes are replaced, and long text is truncated between two characters.
func readable(value string) string {
	var kept []rune
	for i := 0; i < len(value); {
		r, n := utf8.DecodeRuneInString(value[i:])
		if i+n > maxValue {
			break
		}
		kept = append(kept, r)
		i += n
	}
	return string(kept)
}

// FuzzEvent checks the lines of events that contain hostile text.
func FuzzEvent(f *testing.F) {
	f.Add("host.example.org", []byte("mail.example.org"), uint64(1), []byte{192, 0, 2, 1}, "", int64(1767355200))
	f.Fuzz(func(t *testing.T, text string, network []byte, session uint64, src []byte, zone string, seconds int64) {
		addr, _ := netip.AddrFromSlice(src)
		if addr.Is6() {
			addr = addr.WithZone(zone)
		}
		e := Event{
			Event: text, Time: time.Unix(seconds, 999).UTC(), Session: session, Src: addr,
			Match: text, RDNS: network, Helo: network, Reason: text, Until: time.Unix(seconds, 0),
		}
		got := decode(t, appendEvent(nil, &e))
		for _, v := range []struct{ name, got, want string }{
			{"event", got.Event, readable(text)},
			{"match", got.Match, readable(text)},
			{"rdns", got.RDNS, readable(string(network))},
			{"helo", got.Helo, readable(string(network))},
			{"reason", got.Reason, readable(text)},
		} {
			if v.got != v.want {
				t.Errorf("%s is %q, want %q", v.name, v.got, v.want)
			}
		}
		if session != 0 && got.Session != fmt.Sprintf("%016x", session) {
			t.Errorf("session is %s, want %016x", got.Session, session)
		}
		if year := e.Time.Year(); year >= 0 && year <= 9999 && !time.Time(got.Time).Equal(e.Time.Truncate(time.Microsecond)) {
			t.Errorf("time is %v, want %v", got.Time, e.Time)
		}
		if addr.IsValid() && addr.Zone() == "" && got.Src != addr.Unmap().String() {
			t.Errorf("src is %s, want %s", got.Src, addr.Unmap())
		}
	})
}

func BenchmarkAppendEvent(b *testing.B) {
	hostile := sample()
	hostile.Helo = bytes.Repeat([]byte("\u202e\xff"), 64)
	for _, bench := range []struct {
		name  string
		event *Event
	}{
		{"usual", sample()},
		{"hostile", hostile},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			var buf []byte
			for b.Loop() {
				buf = appendEvent(buf[:0], bench.event)
			}
			b.SetBytes(int64(len(buf)))
		})
	}
}
