package report

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/smtp"
	"scanwatch/store"
)

// foundStep returns a step with evidence.
func foundStep(evidence, confidence string) store.Step {
	return store.Step{Kind: store.KindFinding, Text: []byte(evidence), Confidence: []byte(confidence)}
}

// rejected returns a step in which a rule rejects.
func rejected(rule string, enforced bool) store.Step {
	return store.Step{Kind: store.KindVerdict, Text: []byte(rule), Phase: smtp.PhaseRcptTo, Decision: smtp.Reject, Enforced: enforced}
}

// A visit is a session from a host with a verified name.
type visit struct {
	src, rdns string
	ago       time.Duration
	steps     []store.Step
}

// suspects returns the summary of the visits in a period before noon.
func suspects(t *testing.T, period time.Duration, all []visit) *Summary {
	t.Helper()
	c := NewCollector(memory.Number)
	for i, v := range all {
		if v.ago > period {
			continue
		}
		r := record(t, store.Record{ID: uint64(i + 1), Src: netip.MustParseAddrPort(v.src + ":25"), RDNS: []byte(v.rdns), FCrDNS: smtp.FCrDNSPass, End: noon.Add(-v.ago)}, v.steps...)
		if err := c.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	return c.Summary(noon.Add(-period), noon, 10, nil)
}

// TestSuspects checks that a rejected mailing list is listed for every period. A scanner must never
// be listed.
func TestSuspects(t *testing.T) {
	const day = 24 * time.Hour
	all := []visit{
		{"192.0.2.1", "census1.shodan.io", 50 * day, []store.Step{foundStep("scanner", "medium"), rejected("scanner", true)}},
		{"192.0.2.1", "census1.shodan.io", 2 * time.Hour, []store.Step{foundStep("scanner", "medium"), rejected("scanner", true)}},
		// A club's list server was banned because it sent mail to former members.
		{"192.0.2.2", "lists.club.example", 50 * day, []store.Step{foundStep("unknown-recipient", "high"), foundStep("harvest", "high"), rejected("harvest", true)}},
		{"192.0.2.2", "lists.club.example", 40 * day, []store.Step{rejected("harvest", true)}},
		{"192.0.2.2", "lists.club.example", 2 * time.Hour, []store.Step{rejected("harvest", true)}},
		// These hosts have similar sessions but are not legitimate: a provider's customer, and a
		// client that does not behave like a mail server.
		{"192.0.2.3", "192-0-2-3.dyn.example.net", 50 * day, []store.Step{foundStep("harvest", "high"), rejected("harvest", true)}},
		{"192.0.2.3", "192-0-2-3.dyn.example.net", 40 * day, []store.Step{rejected("harvest", true)}},
		{"192.0.2.4", "mail.example.net", 50 * day, []store.Step{foundStep("relay-probe", "high"), rejected("relay", true)}},
		{"192.0.2.4", "mail.example.net", 40 * day, []store.Step{rejected("relay", true)}},
	}
	for _, c := range []struct {
		period time.Duration
		why    string
	}{{day, SuspectClean}, {60 * day, SuspectReturn}} {
		s := suspects(t, c.period, all)
		if len(s.Suspects) != 1 || s.Suspects[0].Address != "192.0.2.2" || s.Suspects[0].Why != c.why {
			t.Errorf("in %v: %+v", c.period, s.Suspects)
		}
	}
}

// TestSuspectHosts checks that a host counts once, even if several rules reject it, and
// that observed rejections are counted separately.
func TestSuspectHosts(t *testing.T) {
	observed := func(src string) visit {
		return visit{src, "a.example.net", time.Hour, []store.Step{rejected("one", false), rejected("two", false)}}
	}
	all := []visit{observed("192.0.2.1"), observed("192.0.2.2"), observed("192.0.2.3")}
	letter := func(s *Summary) string {
		var b strings.Builder
		if err := s.Mail(&b, time.UTC); err != nil {
			t.Fatal(err)
		}
		return strings.Join(strings.Fields(b.String()), " ")
	}
	s := suspects(t, time.Hour, all)
	if want := "possible false positives: 3 hosts observed, none rejected;"; len(s.Suspects) != 6 || !strings.Contains(letter(s), want) {
		t.Errorf("%d lines, %q is not in\n%s", len(s.Suspects), want, letter(s))
	}
	s = suspects(t, time.Hour, append(all, visit{"192.0.2.1", "a.example.net", time.Hour, []store.Step{rejected("two", true)}}))
	if want := "possible false positives: 1 host rejected, 2 only observed;"; !strings.Contains(letter(s), want) {
		t.Errorf("%q is not in\n%s", want, letter(s))
	}
	want := map[string]float64{"enforced": 1, "observed": 2}
	for _, m := range s.Metrics() {
		for _, x := range m.Samples {
			if m.Name == "scanwatch_last_day_possible_false_positives" && x.Value != want[x.Labels[1]] {
				t.Errorf("metric %v", x)
			}
		}
	}
}

// TestObservedList checks that an observed rejection of a mailing list with many former members is a
// possible false positive if the members received the message.
func TestObservedList(t *testing.T) {
	for _, tt := range []struct {
		rdns     string
		evidence string
		mails    uint32
		want     string
	}{
		{"lists.club.example", "harvest", 1, SuspectMixed}, {"lists.club.example", "harvest", 0, ""}, {"lists.club.example", "relay-probe", 1, ""},
		{"192-0-2-9.dyn.example.net", "harvest", 1, ""},
	} {
		c := NewCollector(memory.Number)
		r := record(t, store.Record{ID: 1, Src: netip.MustParseAddrPort("192.0.2.9:25"), RDNS: []byte(tt.rdns), FCrDNS: smtp.FCrDNSPass, End: noon,
			Counts: store.Counts{Mails: tt.mails, RcptOK: tt.mails}}, foundStep(tt.evidence, "high"), rejected("harvest", false))
		if err := c.Add(r); err != nil {
			t.Fatal(err)
		}
		why := ""
		for _, one := range c.Summary(noon.Add(-time.Hour), noon, 10, nil).Suspects {
			why = one.Why
		}
		if why != tt.want {
			t.Errorf("%+v: %q", tt, why)
		}
	}
}

// TestObservedMail checks that mail in another session indicates a false positive, but
// mail in the session that the rule would have rejected does not.
func TestObservedMail(t *testing.T) {
	for _, other := range []bool{false, true} {
		c := NewCollector(memory.Number)
		add := func(id uint64, steps ...store.Step) {
			t.Helper()
			r := record(t, store.Record{ID: id, Src: netip.MustParseAddrPort("192.0.2.9:25"), End: noon, Counts: store.Counts{Mails: 1, RcptOK: 1}}, steps...)
			if err := c.Add(r); err != nil {
				t.Fatal(err)
			}
		}
		add(1, foundStep("botnet-helo", "high"), rejected("botnet", false))
		if other {
			add(2)
		}
		s := c.Summary(noon.Add(-time.Hour), noon, 10, nil)
		if got := len(s.Suspects) == 1 && s.Suspects[0].Mails == 1; got != other || len(s.Suspects) > 1 {
			t.Errorf("with another session %v: %+v", other, s.Suspects)
		}
	}
}

// TestPatientHarvest checks that a host that tries one recipient in each session is
// listed as a harvester, unless it has accepted mail: it may be a mailing list with
// former members.
func TestPatientHarvest(t *testing.T) {
	for _, mails := range []uint32{0, 1} {
		c := NewCollector(memory.Number)
		add := func(src string, counts store.Counts, result smtp.Result) {
			t.Helper()
			r := record(t, store.Record{Src: netip.MustParseAddrPort(src + ":25"), End: noon, Counts: counts},
				store.Step{Kind: store.KindRcpt, Text: []byte("joe@example.org"), Result: result})
			if err := c.Add(r); err != nil {
				t.Fatal(err)
			}
		}
		add("192.0.2.1", store.Counts{Mails: 1, RcptOK: 1}, smtp.ResultOK)
		for i := range harvestSlow {
			add("192.0.2.9", store.Counts{Mails: mails * uint32(i%2), RcptPermfail: 1}, smtp.ResultPermfail)
		}
		s := c.Summary(noon.Add(-time.Hour), noon, 10, nil)
		if got := len(s.Harvest); got != 1-int(mails) {
			t.Errorf("with %d messages: %+v", mails, s.Harvest)
		}
	}
}

// TestSumsAreNoProblem checks that the mail summary reports lost sessions as a problem,
// but not complete aggregates.
func TestSumsAreNoProblem(t *testing.T) {
	for lost, want := range map[int]string{0: "No problems", 3: "1 problem;"} {
		s := &Summary{Aggregated: 6600, NotKept: NotKept{Sessions: lost, Days: 1}}
		var b strings.Builder
		if err := s.Mail(&b, time.UTC); err != nil || !strings.HasPrefix(b.String(), want) {
			t.Errorf("%d lost sessions: %v\n%s", lost, err, &b)
		}
	}
}
