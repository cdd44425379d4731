package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"scanwatch/store"
)

// visits returns sessions from known organisations and from clients that only
// use an organisation's name.
func visits(t *testing.T) *Scanners {
	t.Helper()
	c := NewScanners()
	add := func(src string, ago time.Duration, org, confidence string) {
		end := noon.Add(-ago)
		err := c.Add(record(t, store.Record{ID: 1, Src: netip.AddrPortFrom(netip.MustParseAddr(src), 1), End: end},
			store.Step{Kind: store.KindFinding, Text: []byte("scanner"), Org: []byte(org), Confidence: []byte(confidence), By: []byte("cidr")},
			store.Step{Kind: store.KindFinding, Text: []byte("scanner"), Org: []byte(org), Confidence: []byte(confidence), By: []byte("helo")},
			store.Step{Kind: store.KindFinding, Text: []byte("cloud"), Org: []byte("Example Cloud"), Confidence: []byte("high")}))
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 7 {
		add(fmt.Sprintf("192.0.2.%d", i), time.Duration(7-i)*time.Hour, "Mapper", "high")
	}
	add("2001:db8::1", time.Hour, "Surveyor", "medium")
	add("2001:db8::1", 2*time.Hour, "Surveyor", "medium")
	add("203.0.113.1", time.Hour, "Pager", "high")
	add("198.51.100.1", time.Minute, "Nobody's "+hostile, "high")
	add("198.51.100.2", time.Minute, "Pretender", "low")
	return c
}

var contacts = map[string]OptOut{
	"Mapper":   {"Mapper", "mail", "optout@scan.example", "https://list.example/a", "2026-11-01", ""},
	"Surveyor": {"Surveyor", "web", "https://survey.example/optout", "https://list.example/b", "2026-11-01", "send the prefix, and how to verify that it is yours, and when you saw them, and all the rest"},
	"Pager":    {"Pager", "page", "https://pager.example/", "https://list.example/c", "2026-11-01", ""},
	"Absent":   {"Absent", "mail", "never@absent.example", "https://list.example/d", "2026-11-01", ""},
}

func TestScanners(t *testing.T) {
	for _, c := range []struct {
		name string
		s    *ScannerSummary
	}{
		{"scanners", visits(t).Summary(noon.Add(-24*time.Hour), noon, []string{"2026-11-01.db: damaged"}, nil)},
		{"scanners-optout", visits(t).Summary(noon.Add(-24*time.Hour), noon, nil, contacts)},
		{"scanners-none", NewScanners().Summary(noon.Add(-24*time.Hour), noon, nil, contacts)},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := c.s.Text(&b, zone); err != nil {
				t.Fatal(err)
			}
			golden(t, c.name, b.Bytes())
			checkText(t, b.String())
			for _, never := range []string{"Pretender", "Example Cloud", "Absent"} {
				if strings.Contains(b.String(), never) {
					t.Errorf("%s is listed", never)
				}
			}
			b.Reset()
			if err := c.s.JSON(&b); err != nil {
				t.Fatal(err)
			}
			checkNoRaw(t, b.Bytes())
			var back ScannerSummary
			if err := json.Unmarshal(b.Bytes(), &back); err == nil && len(back.Scanners) != len(c.s.Scanners) {
				t.Errorf("%d organisations in JSON, want %d", len(back.Scanners), len(c.s.Scanners))
			}
		})
	}
}

func TestScannersAreBounded(t *testing.T) {
	c := NewScanners()
	visit := func(i int, org string) {
		a := netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})
		b := store.AppendStep(nil, &store.Step{Kind: store.KindFinding, Text: []byte("scanner"), Org: []byte(org), Confidence: []byte("high")}, 0)
		r, err := store.Decode(store.AppendKey(nil, noon, 1), store.AppendRecord(nil, &store.Record{Src: netip.AddrPortFrom(a, 1), Start: noon, End: noon}, b))
		if err == nil {
			err = c.Add(&r)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range maxScannerSources + 10 {
		visit(i, "one")
	}
	for i := range maxScanners + 10 {
		visit(0, fmt.Sprint("org ", i))
	}
	s := c.Summary(noon, noon, nil, nil)
	if len(s.Scanners) != maxScanners || s.NotListed != 11 || s.Scanners[0].Addresses != maxScannerSources || s.Scanners[0].Sessions != maxScannerSources+10 || len(s.Scanners[0].Sources) != scannerExamples {
		t.Errorf("%d organisations, %d missed, the first %+v", len(s.Scanners), s.NotListed, s.Scanners[0])
	}
}

// TestScannersOfSums checks that an aggregate of many sources adds sessions but
// no addresses.
func TestScannersOfSums(t *testing.T) {
	c := NewScanners()
	finding := foundStep("scanner", "high")
	finding.Org, finding.First = []byte("Example Scans"), 60e6
	if err := c.Add(sum(t, "", store.Record{Sessions: 7}, tally(finding, 5, 0, 0))); err != nil {
		t.Fatal(err)
	}
	s := c.Summary(noon, noon, nil, map[string]OptOut{})
	if len(s.Scanners) != 1 || s.Scanners[0].Sessions != 5 || s.Scanners[0].Addresses != 0 || len(s.Scanners[0].Sources) != 0 {
		t.Fatalf("%+v", s.Scanners)
	}
	if got, want := s.Scanners[0].First, noon.Add(-59*time.Minute); !got.Equal(want) {
		t.Errorf("first at %v, want %v", got, want)
	}
	var b strings.Builder
	if err := s.Text(&b, time.UTC); err != nil || !strings.Contains(b.String(), "Example Scans") || strings.Contains(b.String(), "    whois") {
		t.Errorf("%v\n%s", err, b.String())
	}
}
