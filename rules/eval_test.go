package rules

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"scanwatch/internal/smtp"
)

// set is a Table for tests.
type set struct {
	addr netip.Prefix
	name string
	as   uint32
}

func (s set) MatchAddr(a netip.Addr) bool { return s.addr.Contains(a) }
func (s set) MatchName(b []byte) bool     { return string(b) == s.name }
func (s set) MatchASN(n uint32) bool      { return s.as != 0 && n == s.as }

// counts is a Counter for tests.
type counts map[Window]int

func (c counts) Count(_ *Facts, e Evidence, w time.Duration, by Key) (int, bool) {
	n, ok := c[Window{e, w, by}]
	return n, ok
}

const prelude = `
table <inline> { 192.0.2.0/24, "mail.example.org", ".example.net", AS64496 }
table <loaded> { 203.0.113.1, file "/list" }
table <missing> { 203.0.113.1, file "/missing" }
table <shipped> builtin
table <local-domains> { }
listener mx port 25
listener submission port { 465, 587 } address 192.0.2.25
`

func compile(t testing.TB, src string) *Policy {
	t.Helper()
	c := mustParse(t, prelude+src)
	p, _, err := Compile(c, Options{Load: func(s Source) (Table, error) {
		switch {
		case s.File == "/list":
			return set{netip.MustParsePrefix("198.51.100.0/24"), "listed.example.com", 64497}, nil
		case s.Builtin && s.Table == "shipped":
			return set{name: "shipped.example.com"}, nil
		case s.File == "/missing":
			return nil, nil
		}
		return nil, errors.New("no such table")
	}})
	if err != nil {
		t.Fatalf("%s:\n%s", src, detail(nil, err))
	}
	return p
}

// TestConditions checks each condition with and without negation.
func TestConditions(t *testing.T) {
	base := Facts{
		Phase: smtp.PhaseRcptTo, Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddrPort("192.0.2.25:25"),
		RDNS: []byte("Mail.Example.ORG"), FCrDNS: smtp.FCrDNSPass, Helo: []byte("mail.example.org"),
		MailFrom: []byte("Joe@Lists.Example.org"), RcptTo: []byte("postmaster@example.org"),
		ASN: 64496, ASNKnown: true, Country: "DE",
		Evidence: Scanner | HeloOwnName, Weak: Cloud, Standing: StandingKnown,
		Window: counts{{Harvest, time.Hour, BySrc}: 6},
	}
	base.Counts[UnknownRecipient.Index()] = 6
	tests := []struct {
		cond   string
		change func(*Facts)
		want   Truth
	}{
		{"src 192.0.2.1", nil, Yes},
		{"src 192.0.2.2", nil, No},
		{"src { 198.51.100.1, 192.0.2.0/24 }", nil, Yes},
		{"src <inline>", nil, Yes},
		{"src <loaded>", nil, No},
		{"src <loaded>", func(f *Facts) { f.Src = netip.MustParseAddr("198.51.100.9") }, Yes},
		{"src <loaded>", func(f *Facts) { f.Src = netip.MustParseAddr("203.0.113.1") }, Yes},
		{"src <missing>", nil, Unknown},
		{"src <missing>", func(f *Facts) { f.Src = netip.MustParseAddr("203.0.113.1") }, Yes},
		{"src { <missing>, 192.0.2.1 }", nil, Yes},
		{"src 192.0.2.0/24", func(f *Facts) { f.Src = netip.MustParseAddr("::ffff:192.0.2.7") }, Yes},
		{"src 2001:db8::/32", func(f *Facts) { f.Src = netip.MustParseAddr("2001:db8::7") }, Yes},
		{"src 192.0.2.1", func(f *Facts) { f.Src = netip.Addr{} }, Unknown},

		{"listener mx", nil, Yes},
		{"listener submission", nil, No},
		{"listener { mx, submission }", nil, Yes},
		{"listener submission", func(f *Facts) { f.Dst = netip.MustParseAddrPort("192.0.2.25:587") }, Yes},
		{"listener submission", func(f *Facts) { f.Dst = netip.MustParseAddrPort("192.0.2.26:587") }, No},
		{"listener submission", func(f *Facts) { f.Dst = netip.MustParseAddrPort("0.0.0.0:587") }, No},
		{"listener mx", func(f *Facts) { f.Dst = netip.MustParseAddrPort("[::]:25") }, Yes},

		{`rdns "mail.example.org"`, nil, Yes},
		{`rdns "mail.example.org."`, nil, Yes},
		{`rdns "mail.example.org"`, func(f *Facts) { f.RDNS = []byte("mail.example.org.") }, Yes},
		{"rdns .example.org", nil, Yes},
		{"rdns .example.org", func(f *Facts) { f.RDNS = []byte("example.org") }, Yes},
		{"rdns .example.org", func(f *Facts) { f.RDNS = []byte("badexample.org") }, No},
		{"rdns .example.org", func(f *Facts) { f.RDNS = []byte("example.org.example.net") }, No},
		{"rdns *.org", nil, Yes},
		{"rdns m*l.*", nil, Yes},
		{"rdns m*x.*", nil, No},
		{`rdns /^mail\./`, nil, Yes},
		{`rdns /^MAIL\.EXAMPLE/`, nil, Yes},
		{"rdns <inline>", nil, Yes},
		{"rdns <inline>", func(f *Facts) { f.RDNS = []byte("a.b.EXAMPLE.net") }, Yes},
		{"rdns <inline>", func(f *Facts) { f.RDNS = []byte("example.com") }, No},
		{"rdns <shipped>", func(f *Facts) { f.RDNS = []byte("shipped.example.com.") }, Yes},
		{"rdns .example.org", func(f *Facts) { f.RDNS = nil }, Unknown},
		{"rdns .example.org", func(f *Facts) { f.RDNSCut = true }, Unknown},

		{"fcrdns", nil, Yes},
		{"fcrdns fail", nil, No},
		{"fcrdns { pass, fail }", func(f *Facts) { f.FCrDNS = smtp.FCrDNSFail }, Yes},
		{"fcrdns", func(f *Facts) { f.FCrDNS = smtp.FCrDNSFail }, No},
		{"fcrdns", func(f *Facts) { f.FCrDNS = smtp.FCrDNSError }, Unknown},
		{"fcrdns error", func(f *Facts) { f.FCrDNS = smtp.FCrDNSError }, Yes},
		{"fcrdns", func(f *Facts) { f.FCrDNS = smtp.FCrDNSUnknown }, Unknown},

		{"asn 64496", nil, Yes},
		{"asn { 64500, 64501 }", nil, No},
		{"asn <inline>", nil, Yes},
		{"asn <loaded>", func(f *Facts) { f.ASN = 64497 }, Yes},
		{"asn 64496", func(f *Facts) { f.ASN = 0 }, No},
		{"asn 64496", func(f *Facts) { f.ASNKnown = false }, Unknown},
		{"country de", nil, Yes},
		{"country { JP, US }", nil, No},
		{"country de", func(f *Facts) { f.Country = "" }, Unknown},

		{"evidence scanner", nil, Yes},
		{"evidence { harvest, scanner }", nil, Yes},
		{"evidence harvest", nil, No},
		{"evidence cloud", nil, Unknown},
		{"evidence { cloud, scanner }", nil, Yes},
		{"score > 99", func(f *Facts) { f.Score = 100 }, Yes},
		{"score > 100", func(f *Facts) { f.Score = 100 }, No},
		{"seen-good", nil, Yes},
		{"known", nil, Yes},
		{"trusted", nil, No},
		{"trusted", func(f *Facts) { f.Standing = StandingTrusted }, Yes},
		{"seen-good", func(f *Facts) { f.Standing = StandingNone }, No},
		{"seen-good", func(f *Facts) { f.Standing = StandingUnknown }, Unknown},
		{"auth-failed admin", nil, No},
		{"auth-failed { admin, test }", func(f *Facts) { f.Failed = [][]byte{[]byte("office"), []byte("Test")} }, Yes},
		{"auth-failed admin", func(f *Facts) { f.Failed = [][]byte{[]byte("office")} }, No},
		{"count unknown-recipient > 5", func(f *Facts) { f.Standing = StandingNone }, Yes},
		{"count unknown-recipient > 5", nil, No}, // the threshold is doubled for a known client
		{"count unknown-recipient > 5", func(f *Facts) { f.Standing, f.Phase, f.RcptKnown = StandingNone, smtp.PhaseRcptTo, true }, No},
		{"count unknown-recipient > 6", func(f *Facts) { f.Standing = StandingNone }, No},
		{"count harvest > 5 in 1h by src", func(f *Facts) { f.Standing = StandingNone }, Yes},
		{"count harvest > 5 in 1h by src", nil, No}, // the threshold is doubled for a known client
		{"count harvest > 5 in 1h by src", func(f *Facts) { f.Standing, f.Phase, f.RcptKnown = StandingNone, smtp.PhaseRcptTo, true }, No},
		{"count harvest > 6 in 1h by src", func(f *Facts) { f.Standing = StandingNone }, No},
		{"count harvest > 5 in 2h by src", nil, Unknown},
		{"count harvest > 5 in 1h by src", func(f *Facts) { f.Window = nil }, Unknown},

		{"helo mail.example.org", nil, Yes},
		{"helo ylmf-pc", func(f *Facts) { f.Helo = []byte("YLMF-PC") }, Yes},
		{"helo ylmf-pc", func(f *Facts) { f.Helo = []byte("ylmf-pc2") }, No},
		{"helo ylmf-pc", func(f *Facts) { f.Helo = nil }, Unknown},
		{`helo "[192.0.2.1]"`, func(f *Facts) { f.Helo = []byte("[192.0.2.1]") }, Yes},

		{"mail-from joe@lists.example.org", nil, Yes},
		{"mail-from lists.example.org", nil, Yes},
		{"mail-from @lists.example.org", nil, Yes},
		{"mail-from .example.org", nil, Yes},
		{"mail-from @.example.org", nil, Yes},
		{"mail-from example.org", nil, No},
		{"mail-from joe@", nil, Yes},
		{"mail-from jo@", nil, No},
		{"mail-from j*@*.org", nil, Yes},
		{"mail-from *.example.org", nil, Yes},
		{"mail-from /^joe@lists/", nil, Yes},
		{"mail-from <>", nil, No},
		{"mail-from <>", func(f *Facts) { f.MailFrom = nil }, Yes},
		{"mail-from *", func(f *Facts) { f.MailFrom = nil }, No},
		{"mail-from <inline>", func(f *Facts) { f.MailFrom = []byte("a@b.example.net") }, Yes},
		{"mail-from <missing>", nil, Unknown},
		{"mail-from example.org", func(f *Facts) { f.MailFrom = []byte("a@b@example.org") }, Yes},
		{"rcpt-to { postmaster@, abuse@ }", nil, Yes},
		{"rcpt-to postmaster@", func(f *Facts) { f.RcptTo = []byte("postmaster") }, Yes},
		{"rcpt-to abuse@", func(f *Facts) { f.RcptTo = []byte("Abuse+report@example.org") }, Yes},
		{"rcpt-to abuse@", func(f *Facts) { f.RcptTo = []byte("abuse-report@example.org") }, No},
		{"rcpt-to abuse@", func(f *Facts) { f.RcptTo = []byte("+abuse@example.org") }, No},
		{"rcpt-to abuse@example.org", func(f *Facts) { f.RcptTo = []byte("abuse+report@example.org") }, No},
		{"rcpt-to example.org", nil, Yes},

		{"auth", nil, No},
		{"auth", func(f *Facts) { f.Auth = true }, Yes},
		{"auth", func(f *Facts) { f.Local = true }, Yes},
		{"auth joe", func(f *Facts) { f.Auth, f.User = true, []byte("joe") }, Yes},
		{"auth joe", func(f *Facts) { f.Auth, f.User = true, []byte("sue") }, No},
		{"auth joe", func(f *Facts) { f.Local = true }, Unknown},
		{"tls", nil, No},
		{"tls", func(f *Facts) { f.TLS = true }, Yes},
		{"listed bl", nil, Unknown},
		{"listed bl", func(f *Facts) { f.Listings = []smtp.Listing{{Name: "bl"}} }, No},
		{"listed bl", func(f *Facts) { f.Listings = []smtp.Listing{{Name: "two", Listed: true}} }, Unknown},
		{"listed { bl, two }", func(f *Facts) { f.Listings = []smtp.Listing{{Name: "two", Listed: true}} }, Yes},
		{"listed { bl, two }", func(f *Facts) { f.Listings = []smtp.Listing{{Name: "two"}} }, Unknown},
		{"listed { bl, two }", func(f *Facts) { f.Listings = []smtp.Listing{{Name: "two"}, {Name: "bl"}} }, No},
		{"evidence listed", func(f *Facts) { f.Evidence = Listed }, Yes},
		{"evidence { listed, cloud }", nil, Unknown},
	}
	covered := map[string]bool{}
	for _, tt := range tests {
		covered[strings.Fields(tt.cond)[0]] = true
		for _, not := range []string{"", "!"} {
			f := base
			if tt.change != nil {
				tt.change(&f)
			}
			want := tt.want
			if not != "" {
				want = want.Not()
			}
			// The condition on auth is always false here. With a condition on auth, the rule also
			// applies to exempt sessions.
			p := compile(t, "asn \"x\"\ncountry \"x\"\nlookup bl dnsbl \"bl.example.org\" codes 127.0.0.2\nlookup two dnsbl \"bl.example.net\" codes 127.0.0.2\nrule r phase rcpt-to match "+not+tt.cond+" auth /^no such user$/ tag a")
			_, traces := p.Explain(&f)
			if got := traces[0].Conds[0].Answer; got != want {
				t.Errorf("%s%s: got %s, want %s; fact %s", not, tt.cond, got, want, traces[0].Conds[0].Fact)
			}
		}
	}
	for _, w := range conditionWords() {
		if !covered[w] {
			t.Errorf("condition %s is not tested", w)
		}
	}
}

// TestConditionsBeforeTheirPhase checks that a condition is unknown in phases in which its fact is
// not known yet. Only pass statements can have conditions whose facts are not known yet.
func TestConditionsBeforeTheirPhase(t *testing.T) {
	for _, cond := range []string{"helo x", "mail-from x", "rcpt-to x", "auth", "tls", "evidence helo-own-name", "count harvest > 0"} {
		for _, not := range []string{"", "!"} {
			p := compile(t, "pass match "+not+cond)
			_, traces := p.Explain(&Facts{Phase: smtp.PhaseConnect, Helo: []byte("x"), MailFrom: []byte("a@x"), RcptTo: []byte("a@x"), Auth: true, TLS: true, Evidence: HeloOwnName})
			if got := traces[0].Conds[0].Answer; got != Unknown {
				t.Errorf("%s%s at connect: %s", not, cond, got)
			}
		}
	}
	p := compile(t, "pass match rcpt-to x")
	if v := p.Eval(&Facts{Phase: smtp.PhaseData, RcptTo: []byte("a@x")}); v.Pass != nil {
		t.Error("rcpt-to is known at data")
	}
}

// ruleName returns the name of the rule that made the decision.
func ruleName(o Outcome) string {
	if o.Rule == nil {
		return ""
	}
	return o.Rule.Name
}

func TestEval(t *testing.T) {
	tests := []struct {
		name, src  string
		facts      Facts
		act, would string // decision, and rule that made it
		pass       bool
		score      int
		total      int
		tags       string
	}{
		{name: "nothing matches", src: "mode enforce\nrule a phase helo match helo x reject", facts: Facts{Phase: smtp.PhaseHelo, Helo: []byte("y")}},
		{name: "first decision wins", src: "mode enforce\nrule a phase helo match helo x reject\nrule b phase helo match helo x disconnect",
			facts: Facts{Phase: smtp.PhaseHelo, Helo: []byte("x")}, act: "reject a"},
		{name: "proceed ends it", src: "mode enforce\nrule a phase helo match helo x proceed\nrule b phase helo match helo x disconnect",
			facts: Facts{Phase: smtp.PhaseHelo, Helo: []byte("x")}, act: "proceed a"},
		{name: "all conditions", src: "mode enforce\nrule a phase helo match helo x !fcrdns reject",
			facts: Facts{Phase: smtp.PhaseHelo, Helo: []byte("x"), FCrDNS: smtp.FCrDNSPass}},
		{name: "unknown does not match", src: "mode enforce\nrule a phase helo match !fcrdns reject",
			facts: Facts{Phase: smtp.PhaseHelo, FCrDNS: smtp.FCrDNSError}},
		{name: "other phase", src: "mode enforce\nrule a phase { helo, data } match helo x reject",
			facts: Facts{Phase: smtp.PhaseMailFrom, Helo: []byte("x")}},
		{name: "other listener", src: "mode enforce\nrule a on submission phase helo match helo x reject",
			facts: Facts{Phase: smtp.PhaseHelo, Helo: []byte("x"), Dst: netip.MustParseAddrPort("192.0.2.25:25")}},
		{name: "this listener", src: "mode enforce\nrule a on mx phase helo match helo x reject",
			facts: Facts{Phase: smtp.PhaseHelo, Helo: []byte("x"), Dst: netip.MustParseAddrPort("192.0.2.25:25")}, act: "reject a"},
		{name: "observe is the default", src: "rule a phase helo match helo x reject",
			facts: Facts{Phase: smtp.PhaseHelo, Helo: []byte("x")}, would: "reject a"},
		{name: "observed rule", src: "mode enforce\nrule a observe phase helo match helo x reject\nrule b phase helo match helo x junk",
			facts: Facts{Phase: smtp.PhaseHelo, Helo: []byte("x")}, act: "junk b", would: "reject a"},
		{name: "observed rule after a rule that makes the decision", src: "mode enforce\nrule b phase helo match helo x junk\nrule a observe phase helo match helo x reject",
			facts: Facts{Phase: smtp.PhaseHelo, Helo: []byte("x")}, act: "junk b"},
		{name: "in observe mode the enforced rule is shown", src: "rule a observe phase helo match helo x reject\nrule b phase helo match helo x junk",
			facts: Facts{Phase: smtp.PhaseHelo, Helo: []byte("x")}, would: "junk b"},
		{name: "in observe mode an observed rule alone", src: "rule a observe phase helo match helo x reject\nrule b phase helo match helo x tag t",
			facts: Facts{Phase: smtp.PhaseHelo, Helo: []byte("x")}, would: "reject a", tags: "t"},
		{name: "pass wins from behind", src: "mode enforce\nrule a phase helo match helo x reject\npass from 192.0.2.1",
			facts: Facts{Phase: smtp.PhaseHelo, Helo: []byte("x"), Src: netip.MustParseAddr("192.0.2.1")}, pass: true},
		{name: "pass on a listener", src: "mode enforce\nrule a phase helo match helo x reject\npass on submission from 192.0.2.1",
			facts: Facts{Phase: smtp.PhaseHelo, Helo: []byte("x"), Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddrPort("192.0.2.25:25")}, act: "reject a"},
		{name: "pass keeps effects away", src: "mode enforce\nrule a phase helo match helo x delay 1s ban 1h score 5 tag t\npass from 192.0.2.1",
			facts: Facts{Phase: smtp.PhaseHelo, Helo: []byte("x"), Src: netip.MustParseAddr("192.0.2.1")}, pass: true},
		{name: "authenticated sessions are exempt", src: "mode enforce\nrule a phase rcpt-to match helo x reject",
			facts: Facts{Phase: smtp.PhaseRcptTo, Helo: []byte("x"), Auth: true}},
		{name: "local sessions are exempt", src: "mode enforce\nrule a phase rcpt-to match helo x reject",
			facts: Facts{Phase: smtp.PhaseRcptTo, Helo: []byte("x"), Local: true}},
		{name: "unless a rule says auth", src: "mode enforce\nrule a phase rcpt-to match helo x auth reject",
			facts: Facts{Phase: smtp.PhaseRcptTo, Helo: []byte("x"), Auth: true}, act: "reject a"},
		{name: "scores add up for later rules", src: "mode enforce\nscore evidence scanner 20\nscore evidence cloud 15\nrule a phase helo match helo x score 10 tag t1\nrule b phase helo match helo x score 5 tag t2\nrule c phase helo match score > 41 reject",
			facts: Facts{Phase: smtp.PhaseHelo, Helo: []byte("x"), Evidence: Scanner, Weak: Cloud}, act: "reject c", score: 15, total: 42, tags: "t1,t2"},
		{name: "scores before the rule do not count yet", src: "mode enforce\nrule c phase helo match score > 9 reject\nrule a phase helo match helo x score 10",
			facts: Facts{Phase: smtp.PhaseHelo, Helo: []byte("x")}, score: 10, total: 10},
		{name: "scores of observed rules do not count", src: "mode enforce\nrule a observe phase helo match helo x score 10 tag t\nrule c phase helo match score > 9 reject",
			facts: Facts{Phase: smtp.PhaseHelo, Helo: []byte("x")}},
		{name: "scores of earlier phases", src: "mode enforce\nrule a phase helo match helo x score -20\nrule c phase helo match score > 9 reject",
			facts: Facts{Phase: smtp.PhaseHelo, Helo: []byte("x"), Score: 30}, act: "reject c", score: -20, total: 10},
		{name: "a phase that is none", src: "mode enforce\nrule a phase helo match helo x reject", facts: Facts{Phase: smtp.NumPhases, Helo: []byte("x")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := compile(t, tt.src)
			f := tt.facts
			v := p.Eval(&f)
			show := func(o Outcome) string {
				if o.Rule == nil {
					return ""
				}
				return o.Decision.String() + " " + o.Rule.Name
			}
			got := fmt.Sprintf("act %q would %q pass %v score %d total %d tags %s", show(v.Act), show(v.Would), v.Pass != nil, v.Score, v.Total, strings.Join(p.TagNames(v.Tags), ","))
			want := fmt.Sprintf("act %q would %q pass %v score %d total %d tags %s", tt.act, tt.would, tt.pass, tt.score, tt.total, tt.tags)
			if got != want {
				t.Errorf("\n got %s\nwant %s", got, want)
			}
			if v.Act.Rule == nil && v.Act.Decision != smtp.Proceed {
				t.Errorf("decision %s without a rule", v.Act.Decision)
			}
			// A second evaluation and Explain must have the same result.
			if again := p.Eval(&f); !reflect.DeepEqual(v, again) {
				t.Errorf("again: %+v, was %+v", again, v)
			}
			explained, traces := p.Explain(&f)
			if !reflect.DeepEqual(v, explained) {
				t.Errorf("explained: %+v, was %+v", explained, v)
			}
			for _, tr := range traces {
				if r, ok := tr.Statement.(*Rule); ok && tr.Decided != (r == v.Act.Rule || r == v.Would.Rule) {
					t.Errorf("%s: decided %v", r.Name, tr.Decided)
				}
			}
		})
	}
}

func TestEffects(t *testing.T) {
	src := `mode %s
rule a phase helo match helo x delay 2s ban 1h
rule b phase helo match helo x delay 5s
rule c phase helo match helo x ban 7d
rule d phase helo match helo x reject "450 4.7.1 Wait"
rule e phase helo match helo x ban 30d`
	for _, mode := range []string{"enforce", "observe"} {
		v := compile(t, fmt.Sprintf(src, mode)).Eval(&Facts{Phase: smtp.PhaseHelo, Helo: []byte("x")})
		done, none := v.Act, v.Would
		if mode == "observe" {
			done, none = none, done
		}
		if !none.Empty() || none.Decision != smtp.Proceed {
			t.Errorf("%s: both act and would: %+v", mode, v)
		}
		if done.Delay != 5*time.Second || done.Ban[0] != 7*day || done.BanRule.Name != "c" || done.Text != "450 4.7.1 Wait" || ruleName(done) != "d" {
			t.Errorf("%s: %+v", mode, done)
		}
	}
}

// TestSticky checks which decisions apply to the rest of the session.
func TestSticky(t *testing.T) {
	tests := []struct {
		rule string
		want bool
	}{
		{"phase rcpt-to match rcpt-to a@example.org reject", false},
		{"phase rcpt-to match rcpt-to a@example.org src 192.0.2.1 reject", false},
		{"phase rcpt-to match !rcpt-to example.org helo x reject", false},
		{"phase rcpt-to match mail-from a@example.org reject", false},
		{"phase rcpt-to match !auth reject", false},
		{"phase mail-from match !tls reject", false},
		{"phase helo match helo x reject", true},
		{"phase rcpt-to match helo x reject", true},
		{"phase rcpt-to match src 192.0.2.1 junk", true},
		{"phase rcpt-to match evidence harvest disconnect", true},
		{"phase rcpt-to match count unknown-recipient > 5 reject", false},
		{"phase rcpt-to match count unknown-recipient > 5 in 1h by prefix reject", false},
		{"phase mail-from match count auth-failure > 5 in 1h by src reject", true},
		{"phase connect match !seen-good disconnect", true},
		{"phase data match score > 5 junk", true},
		{"phase helo match helo x proceed", false},
		{"phase helo match helo x score 4", false},
		{"phase data match any junk", false},
	}
	for _, tt := range tests {
		p := compile(t, "rule r "+tt.rule)
		if got := p.rules[0].sticky; got != tt.want {
			t.Errorf("%s: sticky is %v, want %v", tt.rule, got, tt.want)
		}
	}
	p := compile(t, "mode enforce\nrule r phase helo match helo x reject")
	if v := p.Eval(&Facts{Phase: smtp.PhaseHelo, Helo: []byte("x")}); !v.Act.Sticky {
		t.Error("the outcome is not sticky")
	}
}

func TestPhasesAndNeeds(t *testing.T) {
	for _, tt := range []struct {
		src  string
		want smtp.PhaseSet
	}{
		{"", 0},
		{"pass from 192.0.2.1", 0},
		{"rule r phase connect match src 192.0.2.1 disconnect", smtp.Phases(smtp.PhaseConnect)},
		{"rule r phase rcpt-to match rcpt-to a@ reject", smtp.Phases(smtp.PhaseRcptTo)},
		{"rule r phase rcpt-to match helo x reject", smtp.PhasesFrom(smtp.PhaseRcptTo)},
		{"rule r phase connect match src 192.0.2.1 junk", smtp.Answerable},
		{"rule r phase end match evidence no-mail ban 1d", smtp.Phases(smtp.PhaseEnd)},
	} {
		if got := compile(t, tt.src).Phases(); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.src, got, tt.want)
		}
	}
	n := compile(t, "asn \"x\"\npass match asn 64496\nscore evidence cloud 3\nrule r phase rcpt-to match evidence scanner count harvest > 3 in 1h by asn seen-good tag a").Needs()
	want := Needs{ASN: true, Standing: true, Evidence: Scanner | Cloud | Harvest, Windows: []Window{{Harvest, time.Hour, ByASN}}}
	if !reflect.DeepEqual(n, want) {
		t.Errorf("got %+v, want %+v", n, want)
	}
}

func TestSettings(t *testing.T) {
	got := mustParse(t, "").Settings()
	if want := (Settings{Mode: Observe, Keep: 90 * day, Budget: 512 << 20, Delimiter: '+'}); !reflect.DeepEqual(got, want) {
		t.Errorf("defaults: got %+v, want %+v", got, want)
	}
	got = mustParse(t, `mode enforce
store "/s" keep 7d budget 64M
asn "/a"
country "/c"
contact "+1 555 0100"
delimiter "-"
log syslog verbose
gateway 192.0.2.9
own-name { a.example.org, b.example.org }
own-name c.example.org
own-address { 192.0.2.1, 2001:db8::/64 }`).Settings()
	want := Settings{Mode: Enforce, Store: "/s", Keep: 7 * day, Budget: 64 << 20, ASN: "/a", Country: "/c", Contact: "+1 555 0100", Delimiter: '-', Log: Log{Syslog: true, Verbose: true}, Gateways: []netip.Prefix{netip.MustParsePrefix("192.0.2.9/32")},
		OwnNames:     []string{"a.example.org", "b.example.org", "c.example.org"},
		OwnAddresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::/64")}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestLoad(t *testing.T) {
	c := mustParse(t, "table <a> file \"/x\" format aws \"EC2\"\npass from <a>\n")
	_, _, err := Compile(c, Options{Load: func(s Source) (Table, error) {
		if want := (Source{Table: "a", File: "/x", Format: "aws", Param: "EC2", Exempts: true, Pos: Pos{"test.conf", 1, 11}}); s != want {
			t.Errorf("got %+v, want %+v", s, want)
		}
		return nil, errors.New("it looks like HTML")
	}})
	if want := "test.conf:1:11: table <a>: it looks like HTML"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	p, _, err := Compile(c, Options{})
	if err != nil || p.Table("a") == nil || p.Table("a").MatchAddr(netip.MustParseAddr("192.0.2.1")) || p.Table("b") != nil {
		t.Errorf("a table that is not loaded: %v", err)
	}
}

func TestReply(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"550 5.7.1 No", "550 5.7.1 No [00000000000000ff]"},
		{"550 5.7.1 No (see $session)", "550 5.7.1 No (see 00000000000000ff)"},
		{"", ""},
	} {
		if got := Reply(tt.text, 255); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
	longest := "550 " + strings.Repeat("x", maxReply-12) + reference
	if checkText(longest) != "" || len(Reply(longest, 1)) > 500 || len(Reply(strings.Repeat("x", maxReply), 1)) > 500 {
		t.Error("a reply that passes the check is longer than the filter sends")
	}
	for _, text := range []string{rejectText, disconnectText} {
		if wrong := checkText(text); wrong != "" {
			t.Errorf("%s: %s", text, wrong)
		}
	}
}

func TestReason(t *testing.T) {
	p := compile(t, "mode enforce\nscore evidence scanner 7\nrule a phase helo match helo /^e/ !fcrdns score > 5 evidence { scanner, cloud } reject")
	f := Facts{Phase: smtp.PhaseHelo, Helo: []byte("evil\x1b[2J\"\xff" + strings.Repeat("x", 300)), FCrDNS: smtp.FCrDNSFail, Evidence: Scanner}
	v := p.Eval(&f)
	if v.Act.Rule == nil {
		t.Fatal("the rule does not match")
	}
	want := `helo /^e/ ("evil\x1b[2J\"\xff` + strings.Repeat("x", 90) + `"...), !fcrdns pass (fail), score > 5 (7), evidence { scanner, cloud } (scanner)`
	if got := v.Act.Rule.Reason(&f); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestExplain(t *testing.T) {
	p := compile(t, `mode enforce
pass from <inline>
rule first phase helo match helo x !fcrdns reject
rule unknown phase helo match asn 64496 reject
rule submit on submission phase helo match helo x reject
rule watched observe phase helo match helo x disconnect
rule last phase helo match helo x disconnect
rule after phase helo match helo x reject`)
	_, traces := p.Explain(&Facts{Phase: smtp.PhaseHelo, Helo: []byte("x"), FCrDNS: smtp.FCrDNSPass, Src: netip.MustParseAddr("198.51.100.1"), Dst: netip.MustParseAddrPort("198.51.100.2:25")})
	var got []string
	for _, tr := range traces {
		line := tr.Statement.String()
		if r, ok := tr.Statement.(*Rule); ok {
			line = r.Name
		}
		for _, c := range tr.Conds {
			line += fmt.Sprintf("; %s: %s (%s)", c.Cond, c.Answer, c.Fact)
		}
		got = append(got, fmt.Sprintf("%s; matched %v, decided %v %s", line, tr.Matched, tr.Decided, tr.Skipped))
	}
	want := []string{
		"pass from <inline>; src <inline>: no (198.51.100.1); matched false, decided false ",
		`first; helo "x": yes ("x"); !fcrdns pass: no (pass); matched false, decided false `,
		"unknown; asn AS64496: unknown (not looked up); matched false, decided false ",
		`submit; helo "x": yes ("x"); matched false, decided false another listener`,
		`watched; helo "x": yes ("x"); matched true, decided true `,
		`last; helo "x": yes ("x"); matched true, decided true `,
		`after; helo "x": yes ("x"); matched false, decided false an earlier rule decided`,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestFactsAreSafe checks that hostile text is escaped in all facts.
func TestFactsAreSafe(t *testing.T) {
	bad := []byte("a\x1b]0;x\a\r\n\xff\u202e<b>|")
	f := Facts{Phase: smtp.PhaseRcptTo, RDNS: bad, Helo: bad, MailFrom: bad, RcptTo: bad, User: bad, Auth: true, Failed: [][]byte{bad}, Country: string(bad),
		Listings: []smtp.Listing{{Name: "bl", Listed: true, Codes: string(bad)}}}
	p := compile(t, "asn \"x\"\ncountry \"x\"\nlookup bl dnsbl \"bl.example.org\" codes 127.0.0.2\npass match src 192.0.2.1 listener mx rdns x fcrdns asn 1 country de evidence scanner listed bl score > 1 known trusted auth-failed x count harvest > 1 helo x mail-from x auth tls rcpt-to x")
	_, traces := p.Explain(&f)
	if len(traces[0].Conds) != len(conditions) {
		t.Errorf("%d conditions of %d", len(traces[0].Conds), len(conditions))
	}
	for _, c := range traces[0].Conds {
		for _, r := range c.Fact {
			if r < ' ' || r > '~' {
				t.Errorf("%s: %q", c.Cond.Word, c.Fact)
				break
			}
		}
	}
}

// policy200 returns a policy with 200 rules that make no decision.
func policy200(t testing.TB) *Policy {
	var b strings.Builder
	b.WriteString("mode enforce\nasn \"x\"\nscore evidence helo-unqualified 20\npass from <inline>\n")
	for i := range 200 {
		cond := [...]string{
			"evidence { scanner, cloud } !fcrdns",
			fmt.Sprintf("helo \"host-%d.example.com\"", i),
			fmt.Sprintf("src { 198.51.100.%d, 2001:db8:%x::/48 }", i, i),
			"fcrdns " + fmt.Sprintf("rdns \".net-%d.example.com\"", i),
			"count unknown-recipient > 5 evidence harvest",
			fmt.Sprintf("asn %d", 64496+i),
			fmt.Sprintf("rcpt-to \"trap-%d@example.org\"", i),
			fmt.Sprintf("score > %d", 50+i),
		}[i%8]
		fmt.Fprintf(&b, "rule r%d on mx phase rcpt-to match %s reject\n", i, cond)
	}
	return compile(t, b.String())
}

func facts200() *Facts {
	return &Facts{Phase: smtp.PhaseRcptTo, Src: netip.MustParseAddr("198.51.100.1"), Dst: netip.MustParseAddrPort("0.0.0.0:25"),
		RDNS: []byte("mail-out-17.example.net"), FCrDNS: smtp.FCrDNSPass, Helo: []byte("mail-out-17.example.net"),
		MailFrom: []byte("joe@example.net"), RcptTo: []byte("sue@example.org"), ASN: 65000, ASNKnown: true, Evidence: HeloChanged}
}

func TestEvalDoesNotAllocate(t *testing.T) {
	p, f := policy200(t), facts200()
	if v := p.Eval(f); v.Act.Rule != nil || v.Pass != nil {
		t.Fatalf("a rule matches: %+v", v)
	}
	if n := testing.AllocsPerRun(100, func() { p.Eval(f) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	q := compile(t, "mode enforce\nrule a phase rcpt-to match rdns { <loaded>, /^mail-out-[0-9]+/, \"m*.example.net\" } fcrdns reject")
	if n := testing.AllocsPerRun(100, func() { q.Eval(f) }); n != 0 {
		t.Errorf("%v allocations with tables and expressions", n)
	}
}

func BenchmarkEval200(b *testing.B) {
	p, f := policy200(b), facts200()
	b.ReportAllocs()
	for b.Loop() {
		p.Eval(f)
	}
}

func BenchmarkEvalStandard(b *testing.B) {
	p, f := readyPolicy(b, "standard"), facts200()
	b.ReportAllocs()
	for b.Loop() {
		p.Eval(f)
	}
}

func BenchmarkParse200(b *testing.B) {
	src := policy200(b).String()
	b.ReportAllocs()
	for b.Loop() {
		c, err := parse(src)
		if err != nil {
			b.Fatal(err)
		}
		if _, _, err := Compile(c, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
