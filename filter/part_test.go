package filter_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
	"scanwatch/store"
)

// partSite returns a pipeline with a policy, its records, and a function that passes an event to
// the pipeline.
func partSite(t *testing.T, text string) (p *filter.Pipeline, records *[]*store.Record, event func(smtp.Event)) {
	t.Helper()
	records = new([]*store.Record)
	p = filter.New(filter.Options{
		Record: func(end time.Time, id uint64, value []byte) {
			r, err := store.Decode(store.AppendKey(nil, end, id), append([]byte(nil), value...))
			if err != nil {
				t.Error(err)
			}
			*records = append(*records, &r)
		},
		Log: func([]byte) {}, Lists: func() *lookup.Lists { return lists },
	})
	p.Use(&filter.Settings{Policy: policy(t, text)})
	at := monday.UnixMicro()
	return p, records, func(e smtp.Event) {
		at += 1000
		e.Time = at
		p.Event(&e)
	}
}

// TestPart checks that a session no longer counts as open after its client has disconnected.
func TestPart(t *testing.T) {
	p, _, event := partSite(t, "mode enforce\nrule flood phase connect match evidence flood disconnect \"421 4.7.0 Too many\"\n")
	src := netip.MustParseAddrPort("203.0.113.1:1025")
	for _, part := range []bool{true, false} {
		var a smtp.Answer
		for i := range uint64(60) {
			event(smtp.Event{Kind: smtp.EventConnect, Session: 1 + i, Src: src})
			a = p.Ask(&smtp.Event{Kind: smtp.EventRequest, Session: 1 + i, Phase: smtp.PhaseConnect, Time: monday.UnixMicro()})
			if part {
				filter.Part(p, 1+i)
				filter.Part(p, 1+i)
			}
		}
		if refused := a.Decision == smtp.Disconnect; refused == part {
			t.Errorf("parted %t: refused %t", part, refused)
		}
		for i := range uint64(60) {
			event(smtp.Event{Kind: smtp.EventDisconnect, Session: 1 + i, Ending: smtp.EndingQuit})
		}
		if p.Open() != 0 {
			t.Errorf("%d sessions are open", p.Open())
		}
	}
}

// TestLoginWithoutName checks logins for which a log contains no user. Such logins must not be
// treated as logins of one user from many networks.
func TestLoginWithoutName(t *testing.T) {
	_, records, event := partSite(t, "mode enforce\n")
	for i := range uint64(20) {
		event(smtp.Event{Kind: smtp.EventConnect, Session: 1 + i, Src: netip.MustParseAddrPort(fmt.Sprintf("198.51.%d.1:1025", i))})
		event(smtp.Event{Kind: smtp.EventAuth, Session: 1 + i, Result: smtp.ResultPass})
		event(smtp.Event{Kind: smtp.EventDisconnect, Session: 1 + i, Ending: smtp.EndingQuit})
	}
	for _, r := range *records {
		for _, f := range findings(t, r) {
			if f == rules.AccountAbuse.String() {
				t.Errorf("found %s", f)
			}
		}
	}
	if len(*records) != 20 {
		t.Errorf("%d records", len(*records))
	}
}
