package detect

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/track"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
	"scanwatch/tests/senders"
)

var update = flag.Bool("update", false, "rewrite the golden file")

// accuses is the evidence about the identity of a client.
const accuses = rules.Scanner | rules.BotnetHelo | rules.HeloOwnName | rules.HeloOwnAddress | rules.HeloForged

// TestLegitimateSenders checks five variants of each legitimate sender with all shipped lists.
// There must be no evidence with high confidence. If the sender's name is proven, the confidence of
// all evidence must be low. testdata/senders.golden contains the rows that match.
func TestLegitimateSenders(t *testing.T) {
	lists := builtin(t)
	var report strings.Builder
	forms := 0
	for _, form := range senders.All() {
		forms++
		variants := 0
		for s := range form.Variants() {
			variants++
			for _, f := range sweep(lists, &s) {
				if f.Evidence&accuses != 0 && (f.Confidence == High || f.Confidence == Medium && s.FCrDNS == "pass") {
					t.Errorf("%s: %s with %s confidence, by %s %q of %s", &s, f.Token(), f.Confidence, f.By, f.Match, f.Org)
				}
				if variants == 1 && !f.Implied { // the sender is the same as in the table
					fmt.Fprintf(&report, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Line, s.RDNS, s.Helo, f.Token(), f.Confidence, f.By, f.Match)
				}
			}
		}
	}
	if forms < 200 {
		t.Errorf("only %d forms", forms)
	}
	const golden = "testdata/senders.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(report.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || report.String() != string(want) {
		t.Errorf("matches are (%v; rewrite with -update)\n%s", err, report.String())
	}
}

// sweep returns the findings for a sender that connects to port 25 and greets. The time is a
// hundred days after the newest row was added.
func sweep(lists *lookup.Lists, s *senders.Sender) []Finding {
	session := new(track.Session)
	c := &Case{Session: session, State: new(State), Site: site(), Lists: lists, Client: new(memory.Client)}
	c.Memory = c.Site.Memory
	newest := slices.MaxFunc(lists.Rows(), func(a, b *lookup.Row) int { return strings.Compare(a.Date, b.Date) })
	date, _ := time.Parse(time.DateOnly, newest.Date)
	at := date.AddDate(0, 0, 100).UnixMicro()
	fcrdns := smtp.ParseFCrDNS([]byte(s.FCrDNS))
	for _, ev := range []smtp.Event{
		{Kind: smtp.EventConnect, Time: at, Src: netip.AddrPortFrom(s.Addr, 4000), Dst: netip.MustParseAddrPort("192.0.2.25:25"),
			RDNS: []byte(s.RDNS), FCrDNS: fcrdns, RDNSCut: smtp.MayBeCut([]byte(s.RDNS), fcrdns)},
		{Kind: smtp.EventHelo, Time: at, Result: smtp.ResultOK, Name: []byte(s.Helo)},
	} {
		session.Apply(&ev)
		session.ASN, session.ASNKnown = lookup.ShippedASN(s.Addr)
		c.Event = &ev
		Run(c)
	}
	return c.Findings
}
