package store

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"scanwatch/internal/smtp"
)

// TestRecordOnDisk checks that the encoding of records is stable, because old files are
// read for years.
func TestRecordOnDisk(t *testing.T) {
	_, got := sampleRecord(noon, 42)
	const want = "08e0c65b" + "1206c00002071267" + "1a06c63364190019" + // 1.5 s, 192.0.2.7:4711, 198.51.100.25:25
		"22107363616e2e6578616d706c652e6f7267" + "2801" + "3001" + // scan.example.org, pass, quit
		"420a04000100000100000000" + // 4 commands, 1 failed, 1 rejected permanently
		"7a190802" + "10904e" + "1a07796c6d662d7063" + "220445484c4f" + "2801" + "30fa01" + // EHLO ylmf-pc
		"7a180805" + "10e807" + "1a0d61406578616d706c652e6e6574" + "2801" + "4807" + // MAIL a@example.net
		"7a310806" + "10e807" + "1a126e6f626f6479406578616d706c652e6f7267" + "2802" + "30a604" + "3a11496e76616c696420726563697069656e74"
	if h := hex.EncodeToString(got); h != want {
		t.Errorf("encoded as\n%s, want\n%s", h, want)
	}
	if key, want := hex.EncodeToString(AppendKey(nil, noon, 42)), "00065f35c4cdf000000000000000002a"; key != want {
		t.Errorf("key %s, want %s", key, want)
	}
}

func TestRecordRoundTrip(t *testing.T) {
	end := noon.Add(123456 * time.Microsecond)
	long := bytes.Repeat([]byte("x"), MaxText+100)
	for _, c := range []struct {
		name  string
		rec   Record
		steps []Step
		since []time.Duration
	}{
		{name: "nothing known", rec: Record{ID: 1, Start: end, End: end}},
		{name: "local", rec: Record{ID: 2, Start: end.Add(-time.Second), End: end, Local: true, Ending: smtp.EndingDropped}},
		{name: "IPv6 and every count", rec: Record{ID: 1 << 63, Start: end.Add(-time.Hour), End: end,
			Src: netip.MustParseAddrPort("[2001:db8::1]:65535"), Dst: netip.MustParseAddrPort("[::]:25"),
			FCrDNS: smtp.FCrDNSError, Ending: smtp.EndingStopped, Omitted: 7, Sessions: 300, Found: 2,
			Sketch: bytes.Repeat([]byte{7}, MaxSketch), Server: []byte("mx.example.org"), FrontEnd: []byte("smtpd"), Origin: []byte("import"),
			Counts: Counts{1, 2, 3, 4, 5, 6, 7, 8, 1<<32 - 1, 10}}},
		{name: "every field of a step", rec: Record{ID: 3, Start: end, End: end},
			steps: []Step{{Kind: KindFinding, Text: []byte("scanner"), Arg: []byte("\x00\xff|"), Result: smtp.ResultOK, Code: 550,
				Reply: []byte("r"), Size: 1 << 40, MsgID: 0xffffffff, Org: []byte("o"), By: []byte("rdns"), Match: []byte("m"), Confidence: []byte("high"), Rule: 1, Times: 70_000, Count: 80_000, Most: 90_000,
				Phase: smtp.PhaseEnd, Decision: smtp.Disconnect, Enforced: true, Banned: true, Session: 1 << 63, Prefix: netip.MustParsePrefix("2001:db8::/64"),
				Until: time.Unix(1<<33, 0).UTC(), Exempt: "login"}},
			since: []time.Duration{time.Millisecond}},
		{name: "a ban of an IPv4 address", rec: Record{ID: 6, Start: end, End: end},
			steps: []Step{{Kind: KindBan, Prefix: netip.MustParsePrefix("192.0.2.1/32"), Until: time.Unix(maxUntil, 0).UTC()}}, since: []time.Duration{0}},
		{name: "the longest step, and times that add up", rec: Record{ID: 4, Start: end, End: end},
			steps: []Step{
				{Kind: KindQuit},
				{Kind: KindFinding, Text: long, Arg: long, Reply: long, Org: long, By: long, Match: long, Confidence: long, Size: 1<<64 - 1,
					Exempt: string(long[:maxExempt]), Session: 1<<64 - 1, Code: 1<<32 - 1, MsgID: 1<<32 - 1, Rule: 1<<32 - 1, Times: 1<<32 - 1, Count: 1<<32 - 1, Most: 1<<32 - 1, Until: time.Unix(maxUntil, 0).UTC()},
				{Kind: KindTimeout}},
			since: []time.Duration{5 * time.Second, 0, 300 * time.Second}},
		{name: "a step of 127 and one of 128 bytes", rec: Record{ID: 5, Start: end, End: end},
			steps: []Step{{Kind: KindCommand, Text: long[:123]}, {Kind: KindCommand, Text: long[:124]}},
			since: []time.Duration{0, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var steps []byte
			for i := range c.steps {
				steps = AppendStep(steps, &c.steps[i], c.since[i])
			}
			got, err := Decode(AppendKey(nil, c.rec.End, c.rec.ID), AppendRecord(nil, &c.rec, steps))
			if err != nil {
				t.Fatal(err)
			}
			i, at := 0, time.Duration(0)
			err = got.Steps(func(s *Step) bool {
				want := c.steps[i]
				at += c.since[i]
				want.At = at
				for _, f := range []*[]byte{&want.Text, &want.Arg, &want.Reply, &want.Org, &want.By, &want.Match, &want.Confidence} {
					*f = (*f)[:min(len(*f), MaxText)]
				}
				if !reflect.DeepEqual(*s, want) {
					t.Errorf("step %d: %+v, want %+v", i, *s, want)
				}
				i++
				return true
			})
			if err != nil || i != len(c.steps) {
				t.Errorf("%d steps, %v; want %d", i, err, len(c.steps))
			}
			got.steps = nil
			got.Start, got.End = got.Start.UTC(), got.End.UTC()
			if !reflect.DeepEqual(got, c.rec) {
				t.Errorf("got  %+v\nwant %+v", got, c.rec)
			}
		})
	}
}

func TestStepsStopsWhenAsked(t *testing.T) {
	_, v := sampleRecord(noon, 1)
	r, err := Decode(AppendKey(nil, noon, 1), v)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := r.Steps(func(*Step) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("%d steps, %v; want 1", n, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	key := AppendKey(nil, noon, 1)
	for _, c := range []struct {
		name  string
		key   []byte
		value string
	}{
		{"a short key", key[:15], ""},
		{"a long key", append(key[:16:16], 0), ""},
		{"a tag cut short", key, "80"},
		{"a field cut short", key, "2205"},
		{"an address of five bytes", key, "12050102030405"},
		{"a count cut short", key, "420180"},
		{"field number 0", key, "0000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, err := hex.DecodeString(c.value)
			if err != nil {
				t.Fatal(err)
			}
			if r, err := Decode(c.key, v); err == nil {
				t.Errorf("decoded as %+v", r)
			}
		})
	}
}

func TestUnknownFieldsAreSkipped(t *testing.T) {
	v, _ := hex.DecodeString("a00601" + "a1060102030405060708" + "a20603616263" + "a50601020304" + "3001" + "4202" + "0102")
	r, err := Decode(AppendKey(nil, noon, 1), v)
	if err != nil || r.Ending != smtp.EndingQuit || r.Counts.Unknown != 2 || r.Counts.Failed != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestNames(t *testing.T) {
	for r := smtp.ResultOK; r <= smtp.ResultError; r++ {
		if got := smtp.ParseResult([]byte(r.String())); got != r {
			t.Errorf("result %v is parsed as %v", r, got)
		}
	}
	for f := smtp.FCrDNSUnknown; f <= smtp.FCrDNSError; f++ {
		if got := smtp.ParseFCrDNS([]byte(f.String())); got != f {
			t.Errorf("fcrdns %v is parsed as %v", f, got)
		}
	}
	if got := smtp.ParseResult(nil); got != smtp.ResultNone {
		t.Errorf("no result is parsed as %v", got)
	}
	if got := smtp.Ending(200).String(); got != "unknown(200)" {
		t.Errorf("an unknown ending is named %q", got)
	}
}

// TestProtoFile checks that record.proto, which documents the format for other
// programs, agrees with the code.
func TestProtoFile(t *testing.T) {
	text, err := os.ReadFile("record.proto")
	if err != nil {
		t.Fatal(err)
	}
	field := regexp.MustCompile(`(?m)^  (?:repeated )?\w+ (\w+) = (\d+);`)
	_, rest, _ := strings.Cut(string(text), "message Session {")
	session, rest, _ := strings.Cut(rest, "message Step {")
	step, rest, _ := strings.Cut(rest, "enum ")
	for _, c := range []struct {
		name, text string
		want       map[string]int
	}{
		{"Session", session, map[string]int{"duration": recDuration, "src": recSrc, "dst": recDst, "rdns": recRDNS, "fcrdns": recFCrDNS,
			"ending": recEnding, "local": recLocal, "counts": recCounts, "omitted": recOmitted, "sessions": recSessions, "found": recFound,
			"rejected": recRejected, "last_start": recLastStart, "erased": recErased,
			"sketch": recSketch, "server": recServer, "front_end": recFrontEnd, "origin": recOrigin, "steps": recSteps}},
		{"Step", step, map[string]int{"kind": stepKind, "at": stepAt, "text": stepText, "arg": stepArg, "result": stepResult, "code": stepCode,
			"reply": stepReply, "size": stepSize, "msgid": stepMsgID, "org": stepOrg, "by": stepBy, "match": stepMatch, "confidence": stepConfidence, "rule": stepRule, "times": stepTimes,
			"phase": stepPhase, "decision": stepDecision, "enforced": stepEnforced, "banned": stepBanned, "session": stepSession, "prefix": stepPrefix,
			"until": stepUntil, "exempt": stepExempt, "count": stepCount, "most": stepMost, "first": stepFirst}},
	} {
		got := map[string]int{}
		for _, m := range field.FindAllStringSubmatch(c.text, -1) {
			var n int
			fmt.Sscan(m[2], &n)
			got[m[1]] = n
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s has %v, the code %v", c.name, got, c.want)
		}
	}
	value := regexp.MustCompile(`(?m)^  ([A-Z]+)_(\w+) = (\d+);`)
	seen := map[string]int{}
	for _, m := range value.FindAllStringSubmatch(rest, -1) {
		var n uint8
		fmt.Sscan(m[3], &n)
		seen[m[1]]++
		name := strings.ReplaceAll(strings.ToLower(m[2]), "_", "-")
		var got string
		switch m[1] {
		case "FCRDNS":
			got = smtp.FCrDNS(n).String()
		case "ENDING":
			got = smtp.Ending(n).String()
		case "RESULT":
			if got = smtp.Result(n).String(); n == 0 {
				got = "none"
			}
		case "DECISION":
			got = smtp.Decision(n).String()
		case "PHASE":
			if got = smtp.Phase(n).String(); n == uint8(smtp.NumPhases) {
				got = "other"
			}
		default:
			continue
		}
		if got != name {
			t.Errorf("%s_%s is %q in the code", m[1], m[2], got)
		}
	}
	named := func(name func(n uint8) string) (n int) {
		for ; !strings.HasPrefix(name(uint8(n)), "unknown("); n++ {
		}
		return n
	}
	want := map[string]int{
		"FCRDNS":   named(func(n uint8) string { return smtp.FCrDNS(n).String() }),
		"ENDING":   named(func(n uint8) string { return smtp.Ending(n).String() }),
		"RESULT":   named(func(n uint8) string { return smtp.Result(n).String() }),
		"DECISION": named(func(n uint8) string { return smtp.Decision(n).String() }),
		"PHASE":    named(func(n uint8) string { return smtp.Phase(n).String() }) + 1,
		"KIND":     int(KindListed) + 1,
	}
	if !reflect.DeepEqual(seen, want) {
		t.Errorf("enumerations have %v values, the code %v", seen, want)
	}
}

// FuzzDecode checks that Steps and Cursor can read every record that Decode accepts.
// Encoding and decoding must not change an accepted record.
func FuzzDecode(f *testing.F) {
	_, v := sampleRecord(noon, 42)
	f.Add(AppendKey(nil, noon, 42), v)
	f.Add(AppendKey(nil, time.Unix(0, 0), 0), []byte{})
	f.Fuzz(func(t *testing.T, key, value []byte) {
		r, err := Decode(key, value)
		if err != nil {
			return
		}
		var steps []byte
		var all []string
		at := time.Duration(0)
		if err := r.Steps(func(s *Step) bool {
			if s.At < at {
				t.Fatalf("step at %v comes after one at %v", s.At, at)
			}
			steps = AppendStep(steps, s, s.At-at)
			at = s.At
			for _, f := range []*[]byte{&s.Text, &s.Arg, &s.Reply, &s.Org, &s.By, &s.Match, &s.Confidence} {
				*f = (*f)[:min(len(*f), MaxText)]
			}
			all = append(all, fmt.Sprintf("%+v", *s))
			return true
		}); err != nil {
			return
		}
		if r.End.Sub(r.Start) < 0 {
			t.Fatalf("ends before it starts: %+v", r)
		}
		again, err := Decode(key, AppendRecord(nil, &r, steps))
		if err != nil {
			t.Fatalf("the encoding of a decoded record cannot be decoded: %v", err)
		}
		i := 0
		if err := again.Steps(func(s *Step) bool {
			if got := fmt.Sprintf("%+v", *s); got != all[i] {
				t.Fatalf("step %d is %s, was %s", i, got, all[i])
			}
			i++
			return true
		}); err != nil || i != len(all) {
			t.Fatalf("%d of %d steps: %v", i, len(all), err)
		}
		for _, f := range []*[]byte{&r.RDNS, &r.Server, &r.FrontEnd, &r.Origin, &r.Sketch} {
			most := MaxText
			if f == &r.Sketch {
				most = MaxSketch
			}
			if *f = (*f)[:min(len(*f), most)]; len(*f) == 0 {
				*f = nil
			}
		}
		r.steps, again.steps = nil, nil
		if !reflect.DeepEqual(r, again) {
			t.Fatalf("was %+v\nis  %+v", r, again)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	_, v := sampleRecord(noon, 42)
	key := AppendKey(nil, noon, 42)
	b.ReportAllocs()
	for b.Loop() {
		r, err := Decode(key, v)
		if err != nil {
			b.Fatal(err)
		}
		if err := r.Steps(func(*Step) bool { return true }); err != nil {
			b.Fatal(err)
		}
	}
}
