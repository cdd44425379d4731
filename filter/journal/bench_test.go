package journal

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"scanwatch/filter/track"
	"scanwatch/internal/smtp"
	"scanwatch/store"
)

// harvestSteps returns the encoded steps of a session with 10 recipients.
func harvestSteps(helo string) (b []byte) {
	all := []store.Step{
		{Kind: store.KindGreeting},
		{Kind: store.KindHelo, Text: []byte(helo), Arg: []byte("EHLO"), Result: smtp.ResultOK},
		{Kind: store.KindFinding, Text: []byte("helo-unqualified"), Arg: []byte(helo), By: []byte("helo"), Confidence: []byte("medium")},
		{Kind: store.KindMail, Text: []byte("alice1@example.com"), Result: smtp.ResultOK, MsgID: 0x12345678},
	}
	for i := range 10 {
		all = append(all, store.Step{Kind: store.KindRcpt, Text: fmt.Appendf(nil, "user%d@example.org", i), Result: smtp.ResultPermfail, Code: 550})
		if i == 4 {
			all = append(all, store.Step{Kind: store.KindFinding, Text: []byte("harvest"), Arg: []byte("user4@example.org"), By: []byte("rcpt"), Confidence: []byte("high")},
				store.Step{Kind: store.KindVerdict, Text: []byte("harvest"), Phase: smtp.PhaseRcptTo, Decision: smtp.Reject, Enforced: true, Rule: 77})
		}
	}
	all = append(all, store.Step{Kind: store.KindRollback}, store.Step{Kind: store.KindQuit})
	for i := range all {
		b = store.AppendStep(b, &all[i], 7*time.Millisecond)
	}
	return b
}

// BenchmarkSum measures how long it takes to add an ended session to an aggregate.
func BenchmarkSum(b *testing.B) {
	j := New(Options{Record: func(time.Time, uint64, []byte) {}, Log: func([]byte) {}})
	j.Limit(1 << 50)
	start := time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC).UnixMicro()
	s := track.Session{Src: netip.MustParseAddrPort("198.51.100.7:2525"), Start: start, Counts: track.Counts{Commands: 14, RcptPermfail: 10}}
	st := State{steps: harvestSteps("ylmfpc")}
	b.ReportAllocs()
	for b.Loop() {
		s.ID++
		if s.ID == 1<<20 {
			j.Flush(start, false)
		}
		j.End(&s, &st, Close{At: start + int64(s.ID%1000), Found: true, Refused: true})
	}
}
