package rules

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// readyPolicy compiles a ready policy in enforce mode, with `.sender.example`
// as the shipped list of known senders.
func readyPolicy(t testing.TB, name string) *Policy {
	t.Helper()
	c, err := Parse(name, func(name string) ([]byte, error) { return ReadyPolicy(name) })
	if err != nil {
		t.Fatal(detail(nil, err))
	}
	p, warnings, err := Compile(c, Options{
		Load: func(s Source) (Table, error) { return set{name: "known.sender.example"}, nil },
	})
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%s does not check clean:\n%s", name, detail(warnings, err))
	}
	if p.Mode != Observe {
		t.Errorf("%s begins in mode %s", name, p.Mode)
	}
	return p.InMode(Enforce)
}

// windows counts over sessions.
type windows map[Evidence]int

func (w windows) Count(_ *Facts, e Evidence, _ time.Duration, _ Key) (int, bool) { return w[e], true }

func TestReadyPolicies(t *testing.T) {
	files, err := filepath.Glob("policies/*")
	if err != nil || len(files) != len(PolicyNames()) {
		t.Errorf("%d files for %d names: %v", len(files), len(PolicyNames()), err)
	}
	if _, err := ReadyPolicy("lax"); err == nil {
		t.Error("there is a policy lax")
	}
	harvest := func(n uint32) Facts {
		f := Facts{Phase: RcptTo, Helo: []byte("mx.example.com"), Evidence: UnknownRecipient, SeenGood: No, Window: windows{}}
		if n >= 5 {
			f.Evidence |= Harvest
		}
		f.Counts[UnknownRecipient.Index()] = n
		return f
	}
	relay := Facts{Phase: RcptTo, Evidence: RelayProbe}
	relay.Counts[RelayProbe.Index()] = 4
	tests := []struct {
		name                  string
		facts                 Facts
		open, standard, tight string // the rule that decides; "pass" for a pass statement
	}{
		{"an honest server", Facts{Phase: RcptTo, Helo: []byte("mx.example.com"), FCrDNS: DNSPass}, "", "", ""},
		{"a proven scanner", Facts{Phase: Connect, Evidence: Scanner, FCrDNS: DNSPass}, "", "scanner", "scanner"},
		{"a likely scanner", Facts{Phase: Connect, Weak: Scanner}, "", "", ""},
		{"a likely scanner writes", Facts{Phase: Data, Weak: Scanner}, "", "", ""},
		{"a bot", Facts{Phase: Helo, Helo: []byte("ylmf-pc"), Evidence: BotnetHelo}, "", "botnet", "botnet"},
		{"a bot that logged in is a user", Facts{Phase: MailFrom, Helo: []byte("ylmf-pc"), Evidence: BotnetHelo, Auth: true}, "", "", ""},
		{"our own address", Facts{Phase: RcptTo, Evidence: HeloOwnAddress}, "", "our-name", "our-name"},
		{"a browser", Facts{Phase: Helo, Evidence: TalksHTTP}, "", "no-smtp", "no-smtp"},
		{"a bad greeting", Facts{Phase: RcptTo, Evidence: HeloBareAddress, FCrDNS: DNSPass}, "", "", "greeting"},
		{"a bad greeting at the postmaster", Facts{Phase: RcptTo, Evidence: HeloBareAddress, RcptTo: []byte("Postmaster@example.org")}, "", "pass", "pass"},
		{"a greeting without a dot", Facts{Phase: RcptTo, Evidence: HeloUnqualified, FCrDNS: DNSPass}, "", "", ""},
		{"a greeting without a dot or a name", Facts{Phase: RcptTo, Evidence: HeloUnqualified, FCrDNS: DNSFail}, "", "", "nameless"},
		{"a forged greeting", Facts{Phase: RcptTo, Evidence: HeloForged}, "", "", "forged"},
		{"a cloud host with a name", Facts{Phase: RcptTo, Evidence: Cloud, FCrDNS: DNSPass}, "", "", ""},
		{"a cloud host without", Facts{Phase: RcptTo, Evidence: Cloud, FCrDNS: DNSFail}, "", "", "cloud"},
		{"a cloud host while DNS is down", Facts{Phase: RcptTo, Evidence: Cloud, FCrDNS: DNSError}, "", "", ""},
		{"a known sender in a cloud", Facts{Phase: RcptTo, Evidence: Cloud | HeloForged, RDNS: []byte("known.sender.example"), FCrDNS: DNSPass}, "", "pass", "pass"},
		{"somebody who says so", Facts{Phase: RcptTo, Evidence: Cloud, RDNS: []byte("known.sender.example"), FCrDNS: DNSFail}, "", "", "cloud"},
		{"a list with three typos", harvest(3), "", "", ""},
		{"five unknown recipients", harvest(5), "", "harvest", "harvest"},
		{"six unknown recipients of many", func() Facts { f := harvest(6); f.Evidence &^= Harvest; return f }(), "", "", ""},
		{"slowly", Facts{Phase: RcptTo, SeenGood: No, Evidence: UnknownRecipient, Window: windows{UnknownRecipient: 21}}, "", "slow-harvest", "slow-harvest"},
		{"slowly, by a neighbour", Facts{Phase: RcptTo, SeenGood: No, Window: windows{UnknownRecipient: 21}}, "", "", ""},
		{"slowly, of a known sender", Facts{Phase: RcptTo, SeenGood: Yes, Evidence: UnknownRecipient, Window: windows{UnknownRecipient: 21}}, "", "", ""},
		{"from a new network every time", Facts{Phase: RcptTo, SeenGood: No, Evidence: ProbedRecipient | Campaign}, "", "", "known-harvest"},
		{"one of them only", Facts{Phase: RcptTo, SeenGood: No, Evidence: ProbedRecipient}, "", "", ""},
		{"an early talker", Facts{Phase: MailFrom, Evidence: EarlyTalker}, "", "", "early"},
		{"many connections", func() Facts {
			f := Facts{Phase: Connect, SeenGood: No}
			f.Counts[Flood.Index()] = 31
			return f
		}(), "", "", "flood"},
		{"far too many connections", Facts{Phase: Connect, SeenGood: No, Evidence: Flood}, "", "flood", ""},
		{"far too many of a known sender", Facts{Phase: Connect, SeenGood: Yes, Evidence: Flood}, "", "", ""},
		{"a relay probe", relay, "", "", "relay"},
		{"odd in many ways", Facts{Phase: Data, Evidence: RDNSMissing | FCrDNSFail | Pipelining | Cloud}, "", "", "odd"},
		{"a local session", Facts{Phase: Connect, Evidence: Scanner, Local: true}, "", "", ""},
	}
	for _, name := range PolicyNames() {
		p := readyPolicy(t, name)
		for _, tt := range tests {
			f := tt.facts
			v := p.Eval(&f)
			got := ruleName(v.Act)
			if v.Pass != nil {
				got = "pass"
			}
			want := map[string]string{"open": tt.open, "standard": tt.standard, "tight": tt.tight}[name]
			if got != want {
				t.Errorf("%s, %s: decided by %q, want %q", name, tt.name, got, want)
			}
		}
	}
}

func TestDescribe(t *testing.T) {
	show := func(t *testing.T, name string, p *Policy) {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			if err := p.Describe(&b); err != nil {
				t.Fatal(err)
			}
			for _, line := range strings.Split(b.String(), "\n") {
				if runeCount(line) > 80 {
					t.Errorf("%d columns: %s", runeCount(line), line)
				}
			}
			golden(t, "testdata/describe/"+name+".golden", b.String())
		})
	}
	for _, name := range PolicyNames() {
		show(t, name, readyPolicy(t, name))
	}
	b, err := os.ReadFile("testdata/describe/all.conf")
	if err != nil {
		t.Fatal(err)
	}
	show(t, "all", compile(t, string(b)))
	show(t, "observe", readyPolicy(t, "tight").InMode(Observe))
}

// TestTokens checks that every token has what the language and people need.
func TestTokens(t *testing.T) {
	seen := map[string]bool{}
	for i, tok := range Tokens {
		if tok.Evidence.Index() != i || seen[tok.Name] || tok.Means == "" || TokenByName(tok.Name) != &Tokens[i] || tok.Evidence.String() != tok.Name {
			t.Errorf("token %d: %+v", i, tok)
		}
		seen[tok.Name] = true
	}
	if TokenByName("none") != nil {
		t.Error("there is a token none")
	}
}
