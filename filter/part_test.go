package filter_test

import (
	"fmt"
	"net/netip"
	"strings"
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
				filter.Part(p, 1+i, monday.UnixMicro(), smtp.EndingQuit)
				filter.Part(p, 1+i, monday.UnixMicro(), smtp.EndingQuit)
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

// TestPartBan checks that a ban by a rule about recipients takes effect when the client has
// disconnected, and that the later end of the session does not count as a second offence.
func TestPartBan(t *testing.T) {
	for _, c := range []struct {
		name, rule string
		how        smtp.Ending
		refused    bool // the client is banned before the end of the session is reported
		days       int  // length of the ban in the end
	}{
		{"ban", "rule harvest phase rcpt-to match evidence harvest ban { 1d, 2d }", smtp.EndingQuit, true, 1},
		{"two rules", "rule harvest phase rcpt-to match evidence harvest ban { 1d, 2d }\nrule harvest-end phase end match evidence harvest ban { 2d, 3d }", smtp.EndingQuit, true, 2},
		{"observed", "mode observe\nrule harvest phase rcpt-to match evidence harvest ban { 1d, 2d }", smtp.EndingQuit, false, 1},
		{"counted", "rule harvest phase rcpt-to match evidence harvest ban { 0s, 2d }", smtp.EndingQuit, false, 0},
		{"counted, then a ban", "rule harvest phase rcpt-to match evidence harvest ban { 0s, 2d }\nrule harvest-end phase end match evidence harvest ban { 1d, 2d }", smtp.EndingQuit, false, 1},
		{"unknown ending", "rule harvest phase rcpt-to match evidence harvest ban { 1d, 2d }", smtp.EndingUnknown, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			mode := "mode enforce\n"
			if strings.HasPrefix(c.rule, "mode") {
				mode = ""
			}
			p, records, event := partSite(t, mode+c.rule+"\n")
			src := netip.MustParseAddrPort("203.0.113.1:1025")
			at := monday.UnixMicro()
			event(smtp.Event{Kind: smtp.EventConnect, Session: 1, Src: src})
			event(smtp.Event{Kind: smtp.EventHelo, Session: 1, Verb: smtp.VerbEhlo, Name: []byte("x.example"), Result: smtp.ResultOK})
			event(smtp.Event{Kind: smtp.EventLine, Session: 1, Verb: smtp.VerbMail})
			event(smtp.Event{Kind: smtp.EventMail, Session: 1, Verb: smtp.VerbMail, Addr: []byte("a@b.example"), Result: smtp.ResultOK})
			for i := range 8 {
				addr := fmt.Appendf(nil, "g%d@example.org", i)
				event(smtp.Event{Kind: smtp.EventLine, Session: 1, Verb: smtp.VerbRcpt})
				p.Ask(&smtp.Event{Kind: smtp.EventRequest, Session: 1, Phase: smtp.PhaseRcptTo, Addr: addr, Time: at})
				event(smtp.Event{Kind: smtp.EventRcpt, Session: 1, Verb: smtp.VerbRcpt, Addr: addr, Result: smtp.ResultPermfail, Code: 550, Cause: smtp.CauseUser})
			}
			filter.Part(p, 1, at, c.how)
			connect := func(id uint64) bool {
				event(smtp.Event{Kind: smtp.EventConnect, Session: id, Src: src})
				defer event(smtp.Event{Kind: smtp.EventDisconnect, Session: id, Ending: smtp.EndingQuit})
				a := p.Ask(&smtp.Event{Kind: smtp.EventRequest, Session: id, Phase: smtp.PhaseConnect, Time: at})
				return strings.Contains(a.Text, "Banned")
			}
			if got := connect(2); got != c.refused {
				t.Errorf("refused %t, want %t", got, c.refused)
			}
			event(smtp.Event{Kind: smtp.EventDisconnect, Session: 1, Ending: c.how})
			var until time.Time
			for _, r := range *records {
				err := r.Steps(func(s *store.Step) bool {
					if s.Kind == store.KindBan && s.Until.After(until) {
						until = s.Until
					}
					return true
				})
				if err != nil {
					t.Error(err)
				}
			}
			if days := max(0, int(until.Sub(monday).Round(time.Hour).Hours()/24)); days != c.days {
				t.Errorf("banned for %d days, want %d", days, c.days)
			}
		})
	}
}

// TestBalanceOfUnknown checks that a mailing list with missing members is not banned if a server defers
// its known members, as greylisting does, or if a log does not show the names of its members. It also
// checks that neither hides a harvest by a client that requests the same member in each session.
func TestBalanceOfUnknown(t *testing.T) {
	deferred := smtp.Event{Kind: smtp.EventRcpt, Verb: smtp.VerbRcpt, Result: smtp.ResultTempfail, Code: 450, Cause: smtp.CauseFilter}
	unnamed := smtp.Event{Kind: smtp.EventRcpt, Verb: smtp.VerbRcpt, Result: smtp.ResultOK}
	for _, c := range []struct {
		name   string
		member func(i int) smtp.Event
		// absent is the number of missing recipients in each session. If it is 0, every twelfth
		// session has one instead of the member.
		absent  int
		message bool // the session contains a message
		banned  bool
	}{
		{"greylisted list", func(i int) smtp.Event { e := deferred; e.Addr = fmt.Appendf(nil, "u%d@example.org", i); return e }, 0, true, false},
		{"list without names", func(int) smtp.Event { return unnamed }, 0, true, false},
		{"greylisted harvest", func(int) smtp.Event { e := deferred; e.Addr = []byte("u1@example.org"); return e }, 4, true, true},
		{"greylisted harvest of unknown names", func(i int) smtp.Event { e := deferred; e.Addr = fmt.Appendf(nil, "w%d@example.org", i); return e }, 1, true, true},
		{"harvest without names", func(int) smtp.Event { return unnamed }, 4, true, true},
		{"harvest without names or messages", func(int) smtp.Event { return unnamed }, 1, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, _, event := partSite(t, "mode enforce\nrule unknown phase end match count unknown-recipient > 5 in 1h by src ban { 10m, 1h, 1d }\n"+
				"rule asked phase rcpt-to match count unknown-recipient > 5 in 1h by src ban { 10m, 1h, 1d }\n")
			id := uint64(0)
			play := func(src string, rcpts ...smtp.Event) (banned bool) {
				id++
				on := func(e smtp.Event) { e.Session = id; event(e) }
				on(smtp.Event{Kind: smtp.EventConnect, Src: netip.MustParseAddrPort(src + ":1025")})
				a := p.Ask(&smtp.Event{Kind: smtp.EventRequest, Session: id, Phase: smtp.PhaseConnect, Time: monday.UnixMicro()})
				on(smtp.Event{Kind: smtp.EventHelo, Verb: smtp.VerbEhlo, Name: []byte("lists.example"), Result: smtp.ResultOK})
				on(smtp.Event{Kind: smtp.EventMail, Verb: smtp.VerbMail, Addr: []byte("list@lists.example"), Result: smtp.ResultOK})
				for _, e := range rcpts {
					p.Ask(&smtp.Event{Kind: smtp.EventRequest, Session: id, Phase: smtp.PhaseRcptTo, Addr: e.Addr, Time: monday.UnixMicro()})
					on(e)
				}
				if c.message {
					on(smtp.Event{Kind: smtp.EventData, Verb: smtp.VerbData, Result: smtp.ResultOK})
					on(smtp.Event{Kind: smtp.EventCommit})
				}
				on(smtp.Event{Kind: smtp.EventDisconnect, Ending: smtp.EndingQuit})
				return a.Decision >= smtp.Reject
			}
			for i := range 120 { // the server accepts mail to all members
				play("198.51.100.1", smtp.Event{Kind: smtp.EventRcpt, Verb: smtp.VerbRcpt, Addr: fmt.Appendf(nil, "u%d@example.org", i), Result: smtp.ResultOK})
			}
			missing, banned := 0, false
			guess := func() smtp.Event {
				missing++
				return smtp.Event{Kind: smtp.EventRcpt, Verb: smtp.VerbRcpt, Addr: fmt.Appendf(nil, "gone%d@example.org", missing), Result: smtp.ResultPermfail, Code: 550, Cause: smtp.CauseUser}
			}
			for i := 0; i < 120 && !banned; i++ {
				rcpts := []smtp.Event{c.member(i)}
				for range c.absent {
					rcpts = append(rcpts, guess())
				}
				if c.absent == 0 && i%12 == 6 {
					rcpts = []smtp.Event{guess()}
				}
				banned = play("203.0.113.1", rcpts...)
			}
			if banned != c.banned {
				t.Errorf("banned %t after %d missing recipients", banned, missing)
			}
		})
	}
}

// TestToleratedPipelining checks that a log's pipelining warnings cause a ban only if the server accepts
// no mail and defers no recipients in these sessions.
func TestToleratedPipelining(t *testing.T) {
	for _, c := range []struct {
		accepted bool
		rcpt     smtp.Result
		banned   bool
	}{
		{true, smtp.ResultOK, false},
		{false, smtp.ResultOK, true},
		{false, smtp.ResultTempfail, false},
		{false, smtp.ResultPermfail, true},
	} {
		p, _, event := partSite(t, "mode enforce\nrule one-write phase end match count pipelining > 2 in 1h by src ban { 10m, 30m }\n")
		banned := false
		for id := range uint64(5) {
			on := func(e smtp.Event) { e.Session = id; event(e) }
			on(smtp.Event{Kind: smtp.EventConnect, Src: netip.MustParseAddrPort("203.0.113.1:1025")})
			banned = p.Ask(&smtp.Event{Kind: smtp.EventRequest, Session: id, Phase: smtp.PhaseConnect, Time: monday.UnixMicro()}).Decision >= smtp.Reject
			on(smtp.Event{Kind: smtp.EventInput, Cause: smtp.CausePipelining})
			on(smtp.Event{Kind: smtp.EventMail, Verb: smtp.VerbMail, Addr: []byte("a@example.net"), Result: smtp.ResultOK})
			on(smtp.Event{Kind: smtp.EventRcpt, Verb: smtp.VerbRcpt, Addr: []byte("b@example.org"), Result: c.rcpt})
			if c.accepted {
				on(smtp.Event{Kind: smtp.EventCommit, Result: smtp.ResultOK})
			}
			on(smtp.Event{Kind: smtp.EventDisconnect, Ending: smtp.EndingQuit})
		}
		if banned != c.banned {
			t.Errorf("mail accepted %t, recipient %v: banned %t", c.accepted, c.rcpt, banned)
		}
	}
}

// TestKnownAfterHarvest checks that a harvest is banned although a rule has rejected a request for a
// known mailbox after it.
func TestKnownAfterHarvest(t *testing.T) {
	p, _, event := partSite(t, "mode enforce\nrule harvest phase rcpt-to match evidence harvest disconnect \"421 4.7.0 Too many\" ban { 1d, 2d }\n")
	visit := func(id uint64, src string, recipients ...string) (rejected bool) {
		on := func(e smtp.Event) { e.Session = id; event(e) }
		on(smtp.Event{Kind: smtp.EventConnect, Src: netip.MustParseAddrPort(src + ":1025")})
		rejected = p.Ask(&smtp.Event{Kind: smtp.EventRequest, Session: id, Phase: smtp.PhaseConnect, Time: monday.UnixMicro()}).Decision >= smtp.Reject
		on(smtp.Event{Kind: smtp.EventMail, Verb: smtp.VerbMail, Addr: []byte("a@example.net"), Result: smtp.ResultOK})
		for _, r := range recipients {
			a := p.Ask(&smtp.Event{Kind: smtp.EventRequest, Session: id, Phase: smtp.PhaseRcptTo, Addr: []byte(r), Time: monday.UnixMicro()})
			e := smtp.Event{Kind: smtp.EventRcpt, Verb: smtp.VerbRcpt, Addr: []byte(r), Result: smtp.ResultOK}
			switch {
			case a.Decision >= smtp.Reject:
				e.Result, e.Code, e.Cause = smtp.ResultTempfail, 421, smtp.CauseFilter
			case r != "known@example.org":
				e.Result, e.Code, e.Cause = smtp.ResultPermfail, 550, smtp.CauseUser
			}
			on(e)
		}
		on(smtp.Event{Kind: smtp.EventDisconnect, Ending: smtp.EndingQuit})
		return rejected
	}
	visit(1, "198.51.100.1", "known@example.org")
	visit(2, "203.0.113.1", "a1@example.org", "a2@example.org", "a3@example.org", "a4@example.org", "a5@example.org", "known@example.org")
	if !visit(3, "203.0.113.1") {
		t.Error("not banned")
	}
}
