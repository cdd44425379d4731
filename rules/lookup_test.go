package rules

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"scanwatch/internal/smtp"
)

const lookups = `companion lookup user _swlookup
lookup zen dnsbl "zen.example.org" codes { 127.0.0.2, 127.0.0.4/31 } ignore 127.0.0.10 hold 300ms
lookup white allowlist "list.example.net" codes 127.0.2.0/23 hold 100ms
lookup paid dnsbl "{key}.bl.example.org" codes 127.0.0.20 key "key" rate 5
`

// TestLookupStatements checks that a lookup statement stays the same when it is printed and parsed
// again.
func TestLookupStatements(t *testing.T) {
	text := lookups + `companion lookup user "4004" resolver { 127.0.0.1, ::1 } port 5353
lookup all allowlist "{key}.list.example.net" codes { 127.0.2.0/23, 127.0.9.1 } ignore { 127.0.4.0/22 } key "a b" rate 1000 hold 10ms
rule r phase helo match listed { zen, "white" } evidence { "listed", scanner } !listed paid score 5
score evidence listed -3
`
	c := mustParse(t, text)
	again := mustParse(t, c.String())
	if got, want := again.String(), c.String(); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	for _, want := range []string{
		`companion lookup user "_swlookup"`, `companion lookup user "4004" resolver { 127.0.0.1, ::1 } port 5353`,
		`lookup zen dnsbl "zen.example.org" codes { 127.0.0.2, 127.0.0.4/31 } ignore 127.0.0.10 hold 300ms`,
		`lookup all allowlist "{key}.list.example.net" codes { 127.0.2.0/23, 127.0.9.1 } ignore 127.0.4.0/22 key "a b" rate 1000 hold 10ms`,
		`listed { zen, white } evidence { listed, scanner } !listed paid score 5`,
	} {
		if !strings.Contains(c.String(), want) {
			t.Errorf("no %s in\n%s", want, c.String())
		}
	}
}

// TestListed checks that a condition on DNS lists is unknown until a list has answered. An unknown
// condition must neither reject nor exempt a client.
func TestListed(t *testing.T) {
	p := compile(t, lookups+`mode enforce
pass match listed white
rule zen phase mail-from match listed { zen, paid } reject "550 5.7.1 listed"
rule clean phase mail-from match !listed zen tag clean
rule points phase rcpt-to match score > 10 reject "550 5.7.1 points"
rule token phase data match evidence listed reject
score evidence listed 20
`)
	zen := smtp.Listing{Name: "zen", Listed: true, Codes: "127.0.0.2"}
	for _, tt := range []struct {
		name     string
		listings []smtp.Listing
		decision smtp.Decision
		tag      bool
		pass     bool
	}{
		{"no answer", nil, smtp.Proceed, false, false},
		{"not listed", []smtp.Listing{{Name: "zen"}, {Name: "white"}}, smtp.Proceed, true, false},
		{"listed", []smtp.Listing{zen}, smtp.Reject, false, false},
		{"listed in another list only", []smtp.Listing{{Name: "zen"}, {Name: "paid", Listed: true, Codes: "127.0.0.20"}}, smtp.Reject, false, false},
		{"allowed", []smtp.Listing{zen, {Name: "white", Listed: true, Codes: "127.0.3.2"}}, smtp.Proceed, false, true},
		{"a list that the policy does not have", []smtp.Listing{{Name: "other", Listed: true}}, smtp.Proceed, false, false},
	} {
		f := &Facts{Phase: smtp.PhaseMailFrom, Src: netip.MustParseAddr("192.0.2.1"), Standing: StandingNone, Listings: tt.listings}
		v := p.Eval(f)
		if v.Act.Decision != tt.decision || (v.Tags != 0) != tt.tag || (v.Pass != nil) != tt.pass {
			t.Errorf("%s: %+v", tt.name, v)
		}
	}
	f := &Facts{Phase: smtp.PhaseRcptTo, Standing: StandingNone, Evidence: Listed}
	if v := p.Eval(f); v.Act.Decision != smtp.Reject || v.Total != 20 {
		t.Errorf("points: %+v", v)
	}
	f = &Facts{Phase: smtp.PhaseMailFrom, Standing: StandingTrusted, Listings: []smtp.Listing{zen}}
	if v := p.Eval(f); v.Act.Decision != smtp.Proceed || v.Withheld.Rule == nil {
		t.Errorf("a trusted client: %+v", v)
	}
}

// TestWaitingPass checks decisions while a pass statement depends on a DNS list that has not
// answered. Only decisions because of other DNS lists must be temporary.
func TestWaitingPass(t *testing.T) {
	p := compile(t, lookups+`mode enforce
pass match listed white fcrdns
rule harm phase { helo, mail-from, rcpt-to, data } match evidence scanner ban 2d
rule zen phase mail-from match listed zen reject "550 5.7.1 listed" ban 1d
rule points phase rcpt-to match score > 10 reject "550 5.7.1 points"
rule token phase data match evidence listed disconnect "550 5.7.1 token"
rule src phase helo match src 192.0.2.1 reject "550 5.7.1 src"
score evidence listed 20
score evidence rdns-missing 20
`)
	zen, absent := smtp.Listing{Name: "zen", Listed: true, Codes: "127.0.0.2"}, smtp.Listing{Name: "white"}
	for _, tt := range []struct {
		name     string
		phase    smtp.Phase
		listings []smtp.Listing
		evidence Evidence
		fcrdns   smtp.FCrDNS
		text     string
		ban      string
	}{
		{"no answer", smtp.PhaseMailFrom, []smtp.Listing{zen}, Listed, smtp.FCrDNSPass, "450 4.7.1 listed", ""},
		{"not allowed", smtp.PhaseMailFrom, []smtp.Listing{zen, absent}, Listed, smtp.FCrDNSPass, "550 5.7.1 listed", "zen"},
		{"another condition fails", smtp.PhaseMailFrom, []smtp.Listing{zen}, Listed, smtp.FCrDNSFail, "550 5.7.1 listed", "zen"},
		{"ban of another rule", smtp.PhaseMailFrom, []smtp.Listing{zen}, Listed | Scanner, smtp.FCrDNSPass, "450 4.7.1 listed", "harm"},
		{"points", smtp.PhaseRcptTo, []smtp.Listing{zen}, Listed, smtp.FCrDNSPass, "450 4.7.1 points", ""},
		{"points without a listing", smtp.PhaseRcptTo, nil, RDNSMissing, smtp.FCrDNSPass, "550 5.7.1 points", ""},
		{"evidence", smtp.PhaseData, []smtp.Listing{zen}, Listed, smtp.FCrDNSPass, "421 4.7.1 token", ""},
		{"address", smtp.PhaseHelo, []smtp.Listing{zen}, Listed, smtp.FCrDNSPass, "550 5.7.1 src", ""},
	} {
		f := &Facts{Phase: tt.phase, Src: netip.MustParseAddr("192.0.2.1"), Standing: StandingNone, Listings: tt.listings, Evidence: tt.evidence, FCrDNS: tt.fcrdns}
		v := p.Eval(f)
		ban := ""
		if v.Act.BanRule != nil {
			ban = v.Act.BanRule.Name
		}
		if v.Act.Text != tt.text || ban != tt.ban {
			t.Errorf("%s: %q, ban %q", tt.name, v.Act.Text, ban)
		}
	}
}

// TestLateAllowlist checks the warning about a pass statement with a DNS list for which no request
// waits.
func TestLateAllowlist(t *testing.T) {
	const pass = "pass match listed white\n"
	slow := strings.Replace(lookups, " hold 100ms", "", 1)
	for _, tt := range []struct {
		text  string
		warns bool
	}{
		{lookups + pass, false},
		{slow + pass, true},
		{slow + "pass match !listed white\n", false},
		{slow + "rule r phase mail-from match listed white tag white\n", false},
		{"companion lookup user _swlookup\nlookup white allowlist \"list.example.net\" codes 127.0.2.0/23\n" + pass, false},
	} {
		_, warnings, err := Compile(mustParse(t, tt.text+"rule zen phase mail-from match evidence listed reject\n"), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(warnings.Error(), "are rejected temporarily if a block list answers first"); got != tt.warns {
			t.Errorf("%s: %v", tt.text, warnings)
		}
	}
}

// TestAwaits checks that a request waits for a DNS list only if the answer may change what the
// policy does with the client.
func TestAwaits(t *testing.T) {
	const policy = lookups + `mode enforce
listener other port 2525
pass match listed white fcrdns
rule early phase connect match src 192.0.2.0/24 disconnect
rule zen phase helo on mx match listed zen fcrdns fail reject
rule not phase helo on other match !listed zen reject
rule points phase mail-from match score > 10 reject
rule first phase rcpt-to match src 198.51.100.1 reject
rule add phase rcpt-to match listed paid score 6
rule sum phase rcpt-to match score > 30 reject
rule seen phase data match evidence { listed, scanner } reject
rule often phase data match count listed > 2 in 1h reject
rule watch observe phase commit match listed { zen, paid } reject
score evidence listed 20
score evidence rdns-missing 6
`
	p := compile(t, policy)
	const zen, white, paid = 1, 2, 4
	for _, tt := range []struct {
		name    string
		phase   smtp.Phase
		facts   Facts
		missing ListSet
		decided bool
		want    ListSet
	}{
		{"a rule without lists, and an allowlist", smtp.PhaseConnect, Facts{Src: netip.MustParseAddr("192.0.2.1"), FCrDNS: smtp.FCrDNSPass}, 7, false, white},
		{"another address", smtp.PhaseConnect, Facts{FCrDNS: smtp.FCrDNSPass}, 7, false, 0},
		{"an allowlist whose statement cannot match", smtp.PhaseConnect, Facts{Src: netip.MustParseAddr("192.0.2.1"), FCrDNS: smtp.FCrDNSFail}, 7, false, 0},
		{"a decision of an earlier phase", smtp.PhaseCommit, Facts{FCrDNS: smtp.FCrDNSPass}, 7, true, white},
		{"the other condition matches", smtp.PhaseHelo, Facts{FCrDNS: smtp.FCrDNSFail}, 7, false, zen},
		{"the other condition does not match", smtp.PhaseHelo, Facts{FCrDNS: smtp.FCrDNSPass}, 7, false, 0},
		{"another listener", smtp.PhaseHelo, Facts{FCrDNS: smtp.FCrDNSFail, Dst: netip.MustParseAddrPort("203.0.113.1:2525")}, 7, false, zen},
		{"no listener", smtp.PhaseHelo, Facts{FCrDNS: smtp.FCrDNSFail, Dst: netip.MustParseAddrPort("203.0.113.1:465")}, 7, false, 0},
		{"a list with an answer", smtp.PhaseHelo, Facts{FCrDNS: smtp.FCrDNSFail, Listings: []smtp.Listing{{Name: "zen"}}}, white | paid, false, 0},
		{"an unknown list that no answer is expected of", smtp.PhaseHelo, Facts{FCrDNS: smtp.FCrDNSFail}, white | paid, false, 0},
		{"a user", smtp.PhaseHelo, Facts{FCrDNS: smtp.FCrDNSFail, Auth: true}, 7, false, 0},
		{"points", smtp.PhaseMailFrom, Facts{}, 7, false, zen | paid},
		{"points, and an allowlist", smtp.PhaseMailFrom, Facts{FCrDNS: smtp.FCrDNSPass}, 7, false, 7},
		{"enough points", smtp.PhaseMailFrom, Facts{Score: 11}, 7, false, 0},
		{"points for a listing", smtp.PhaseMailFrom, Facts{Evidence: Listed}, 7, false, 0},
		{"too few points", smtp.PhaseRcptTo, Facts{}, zen, false, 0},
		{"points of a rule", smtp.PhaseRcptTo, Facts{Evidence: RDNSMissing}, 7, false, zen | paid},
		{"points of a rule only", smtp.PhaseRcptTo, Facts{}, paid, false, paid},
		{"after a decision", smtp.PhaseRcptTo, Facts{Src: netip.MustParseAddr("198.51.100.1"), Evidence: RDNSMissing}, 7, false, 0},
		{"evidence", smtp.PhaseData, Facts{}, 7, false, zen | paid},
		{"other evidence", smtp.PhaseData, Facts{Evidence: Scanner}, 7, false, 0},
		{"a count", smtp.PhaseData, Facts{Evidence: Listed, Window: fixed(2)}, 7, false, 0},
		{"an observed rule", smtp.PhaseCommit, Facts{}, 7, false, 0},
	} {
		f := tt.facts
		if f.Phase, f.Standing = tt.phase, StandingNone; !f.Dst.IsValid() {
			f.Dst = netip.MustParseAddrPort("203.0.113.1:25")
		}
		before := f
		if got := Awaits(p, &f, tt.missing, tt.decided); got != tt.want {
			t.Errorf("%s: %b, want %b", tt.name, got, tt.want)
		}
		if f.Evidence != before.Evidence || f.Counts != before.Counts {
			t.Errorf("%s: the facts have changed", tt.name)
		}
	}
	f := &Facts{Phase: smtp.PhaseHelo, FCrDNS: smtp.FCrDNSFail, Standing: StandingNone, Dst: netip.MustParseAddrPort("203.0.113.1:25")}
	if got := Awaits(p.InMode(Observe), f, 7, false); got != 0 {
		t.Errorf("observe mode: %b", got)
	}
	count := compile(t, lookups+"mode enforce\nrule often phase data match count listed > 2 in 1h reject\n")
	for n, want := range map[int]ListSet{1: 0, 2: zen | paid, 3: 0} {
		if got := Awaits(count, &Facts{Phase: smtp.PhaseData, Standing: StandingNone, Window: fixed(n)}, 7, false); got != want {
			t.Errorf("count of %d: %b", n, got)
		}
	}
}

// TestAwaitsComplete compares Awaits with the effects of all possible answers. A request must wait
// for a DNS list if its answer may change the effect of the policy.
func TestAwaitsComplete(t *testing.T) {
	p := compile(t, lookups+`mode enforce
pass match listed white fcrdns
pass match !listed paid src 198.51.100.1
rule zen phase helo match listed zen fcrdns fail reject
rule both phase helo match listed { zen, paid } !listed white evidence scanner disconnect
rule add phase mail-from match listed paid score 6
rule less phase mail-from match listed zen score -20
rule points phase mail-from match score > 20 reject
rule few phase mail-from match !score > 5 tag few
rule first phase rcpt-to match src 198.51.100.1 reject
rule sum phase rcpt-to match score > 30 reject ban 1h
rule none phase data match !evidence { listed, scanner } reject
rule once phase commit match count listed > 0 delay 1s
score evidence listed 20
score evidence scanner 6
`)
	effect := func(f Facts, listed ListSet) string {
		f.Listings = nil
		for i, l := range p.Lookups {
			in := listed&(1<<i) != 0
			f.Listings = append(f.Listings, smtp.Listing{Name: l.Name, Listed: in})
			if in && !l.Allow {
				f.Evidence |= Listed
				f.Counts[Listed.Index()] = 1
			}
		}
		v := p.Eval(&f)
		rule, ban := "", ""
		if v.Act.Rule != nil {
			rule = v.Act.Rule.Name
		}
		if v.Act.BanRule != nil {
			ban = v.Act.BanRule.Name
		}
		return fmt.Sprint(rule, ban, v.Act.Text, v.Act.Delay, v.Tags, v.Score)
	}
	matters, waits := 0, 0
	for phase := range smtp.NumPhases {
		for _, src := range []string{"192.0.2.1", "198.51.100.1"} {
			for _, fcrdns := range []smtp.FCrDNS{smtp.FCrDNSPass, smtp.FCrDNSFail} {
				for _, evidence := range []Evidence{0, Scanner} {
					for _, score := range []int{0, 5, 12, 40} {
						for missing := range ListSet(8) {
							f := Facts{Phase: phase, Src: netip.MustParseAddr(src), FCrDNS: fcrdns, Evidence: evidence, Score: score, Standing: StandingNone}
							for i, l := range p.Lookups {
								if missing&(1<<i) == 0 {
									f.Listings = append(f.Listings, smtp.Listing{Name: l.Name})
								}
							}
							g := f
							needed := Awaits(p, &g, missing, false)
							for list := ListSet(1); list < 8; list <<= 1 {
								if missing&list == 0 {
									continue
								}
								changes := false
								for others := range ListSet(8) {
									if others&^missing == 0 && others&list == 0 && effect(f, others) != effect(f, others|list) {
										changes = true
									}
								}
								if changes {
									matters++
								}
								if needed&list != 0 {
									waits++
								}
								// If other lists contain the client, this list's answer may not
								// matter.
								if changes && needed&list == 0 {
									t.Fatalf("%+v, missing %b: %b does not contain %b", f, missing, needed, list)
								}
							}
						}
					}
				}
			}
		}
	}
	if matters == 0 || waits > 3*matters {
		t.Errorf("%d answers matter, requests wait for %d", matters, waits)
	}
	t.Logf("%d answers matter, requests wait for %d", matters, waits)
}

// fixed is a Counter that returns the same count for each evidence.
type fixed int

func (n fixed) Count(*Facts, Evidence, time.Duration, Key) (int, bool) { return int(n), true }

// TestJudge checks that a host is listed only if all addresses in the answer are codes of the list.
func TestJudge(t *testing.T) {
	l := compile(t, lookups).Lookups[0]
	for _, tt := range []struct {
		answer        []string
		listed, known bool
	}{
		{nil, false, true},
		{[]string{"127.0.0.2"}, true, true},
		{[]string{"127.0.0.4", "127.0.0.5", "127.0.0.10"}, true, true},
		{[]string{"127.0.0.10"}, false, true},
		{[]string{"127.0.0.3"}, false, false},
		{[]string{"127.0.0.2", "127.0.0.3"}, false, false},
		{[]string{"127.255.255.254"}, false, false},
		{[]string{"127.0.0.1"}, false, false},
		{[]string{"192.0.2.80"}, false, false},
		{[]string{"127.0.0.2", "192.0.2.80"}, false, false},
	} {
		var answer []netip.Addr
		for _, s := range tt.answer {
			answer = append(answer, netip.MustParseAddr(s))
		}
		if listed, known := l.Judge(answer); listed != tt.listed || known != tt.known {
			t.Errorf("%v: %v, %v", tt.answer, listed, known)
		}
	}
}

// TestListDescribe checks that the description for senders contains the zone of a DNS list.
func TestListDescribe(t *testing.T) {
	p := compile(t, lookups+"pass match listed white\nrule zen phase mail-from match listed zen reject\n")
	var b strings.Builder
	if err := p.Describe(&b); err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(strings.Fields(b.String()), " "); !strings.Contains(text, "is in the DNS list `zen`: it is rejected") ||
		!strings.Contains(text, "is in the DNS list `white`. The DNS list `white` is list.example.net. If the list has not answered, rules about DNS lists reject the host only temporarily.") || !strings.Contains(text, "The DNS list `zen` is zen.example.org.") {
		t.Error(text)
	}
}

// TestListPrivacy checks that the description for users contains the DNS lists that are queried.
func TestListPrivacy(t *testing.T) {
	var b strings.Builder
	if err := compile(t, lookups).DescribePrivacy(&b, nil); err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(strings.Fields(b.String()), " "); !strings.Contains(text, "stores the answers: zen.example.org, list.example.net, bl.example.org.") {
		t.Error(text)
	}
}

// TestQuestions compares the names that are queried with the examples in RFC 5782.
func TestQuestions(t *testing.T) {
	for a, want := range map[string]string{
		"192.0.2.99":                "99.2.0.192.bad.example.com",
		"::ffff:127.0.0.1":          "1.0.0.0.0.0.f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.bad.example.com",
		"2001:db8:1:2:3:4:567:89ab": "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.bad.example.com",
	} {
		if got := Question(netip.MustParseAddr(a), "bad.example.com"); got != want {
			t.Errorf("%s: %s, want %s", a, got, want)
		}
	}
}
