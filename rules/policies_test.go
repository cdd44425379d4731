package rules

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/internal/smtp"
)

// readyPolicy compiles a preset in enforce mode. The preset's list of known senders contains only
// `.sender.example`.
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

// A window is a Counter with one count over several sessions. All other counts are 0.
type window struct {
	evidence Evidence
	by       Key
	n        int
}

func (w window) Count(_ *Facts, e Evidence, _ time.Duration, by Key) (int, bool) {
	if e == w.evidence && by == w.by {
		return w.n, true
	}
	return 0, true
}

func TestReadyPolicies(t *testing.T) {
	files, err := filepath.Glob("policies/*")
	if err != nil || len(files) != len(PolicyNames()) {
		t.Errorf("%d files for %d names: %v", len(files), len(PolicyNames()), err)
	}
	if _, err := ReadyPolicy("lax"); err == nil {
		t.Error("there is a policy lax")
	}
	// asks returns the facts for a RCPT TO from an unknown client. The evidence was counted n times
	// before.
	asks := func(dns smtp.FCrDNS, e Evidence, by Key, n int) Facts {
		f := Facts{Phase: smtp.PhaseRcptTo, Helo: []byte("mx.example.com"), FCrDNS: dns, Standing: StandingNone, Window: window{e, by, n}}
		f.Counts[e.Index()] = uint32(n)
		return f
	}
	with := func(f Facts, change func(*Facts)) Facts { change(&f); return f }
	ends := func(e Evidence, n int) Facts {
		return Facts{Phase: smtp.PhaseEnd, Standing: StandingNone, Evidence: e, Window: window{e, BySrc, n}}
	}
	const pass, fail = smtp.FCrDNSPass, smtp.FCrDNSFail
	tests := []struct {
		name                  string
		facts                 Facts
		open, standard, tight string // rule that makes the decision, or "pass" for a pass statement
	}{
		{"a legitimate server", Facts{Phase: smtp.PhaseRcptTo, Helo: []byte("mx.example.com"), FCrDNS: smtp.FCrDNSPass}, "", "", ""},
		{"a proven scanner", Facts{Phase: smtp.PhaseConnect, Evidence: Scanner, FCrDNS: smtp.FCrDNSPass}, "", "scanner", "scanner"},
		{"a likely scanner", Facts{Phase: smtp.PhaseConnect, Weak: Scanner}, "", "", ""},
		{"a likely scanner writes", Facts{Phase: smtp.PhaseData, Weak: Scanner}, "", "", ""},
		{"a bot", Facts{Phase: smtp.PhaseHelo, Helo: []byte("ylmf-pc"), Evidence: BotnetHelo}, "", "botnet", "botnet"},
		{"a bot that logged in is a user", Facts{Phase: smtp.PhaseMailFrom, Helo: []byte("ylmf-pc"), Evidence: BotnetHelo, Auth: true}, "", "", ""},
		{"our own address", Facts{Phase: smtp.PhaseRcptTo, Evidence: HeloOwnAddress}, "", "our-address", "our-address"},
		{"our own name and another proven one", Facts{Phase: smtp.PhaseRcptTo, Evidence: HeloOwnName, FCrDNS: pass}, "", "our-name", "our-name"},
		{"our own name without another", Facts{Phase: smtp.PhaseRcptTo, Evidence: HeloOwnName, FCrDNS: fail}, "", "our-name-nameless", "our-name-nameless"},
		{"our own name while DNS is down", Facts{Phase: smtp.PhaseRcptTo, Evidence: HeloOwnName, FCrDNS: smtp.FCrDNSError}, "", "our-name-nameless", "our-name-nameless"},
		{"a browser", Facts{Phase: smtp.PhaseHelo, Evidence: TalksHTTP}, "", "no-smtp", "no-smtp"},
		{"a bad greeting", Facts{Phase: smtp.PhaseRcptTo, Evidence: HeloBareAddress, FCrDNS: smtp.FCrDNSPass}, "", "", "greeting"},
		{"a bad greeting at the postmaster", Facts{Phase: smtp.PhaseRcptTo, Evidence: HeloBareAddress, RcptTo: []byte("Postmaster@example.org")}, "", "pass", "pass"},
		{"a greeting without a dot", Facts{Phase: smtp.PhaseRcptTo, Evidence: HeloUnqualified, FCrDNS: smtp.FCrDNSPass}, "", "", ""},
		{"a greeting without a dot or a name", Facts{Phase: smtp.PhaseRcptTo, Evidence: HeloUnqualified, FCrDNS: smtp.FCrDNSFail}, "", "", "nameless"},
		{"a forged greeting", Facts{Phase: smtp.PhaseRcptTo, Evidence: HeloForged, FCrDNS: pass}, "", "", "forged"},
		{"a forged greeting without a name", Facts{Phase: smtp.PhaseRcptTo, Evidence: HeloForged, FCrDNS: fail}, "", "", "forged-nameless"},
		{"a bad greeting of a trusted client", Facts{Phase: smtp.PhaseRcptTo, Evidence: HeloBareAddress | HeloForged, Standing: StandingTrusted}, "", "", ""},
		{"a cloud host with a name", Facts{Phase: smtp.PhaseRcptTo, Evidence: Cloud, FCrDNS: smtp.FCrDNSPass}, "", "", ""},
		{"a cloud host without", Facts{Phase: smtp.PhaseRcptTo, Evidence: Cloud, FCrDNS: smtp.FCrDNSFail}, "", "", "cloud"},
		{"a cloud name that fails FCrDNS", Facts{Phase: smtp.PhaseRcptTo, Weak: Cloud, FCrDNS: fail}, "", "", "cloud"},
		{"a name that may be cut", Facts{Phase: smtp.PhaseRcptTo, Evidence: Cloud, FCrDNS: fail, RDNSCut: true}, "", "", ""},
		{"a cloud host while DNS is down", Facts{Phase: smtp.PhaseRcptTo, Evidence: Cloud, FCrDNS: smtp.FCrDNSError}, "", "", ""},
		{"a known sender in a cloud", Facts{Phase: smtp.PhaseRcptTo, Evidence: Cloud | HeloForged, RDNS: []byte("known.sender.example"), FCrDNS: smtp.FCrDNSPass}, "", "pass", "pass"},
		{"a forged name of a known sender", Facts{Phase: smtp.PhaseRcptTo, Evidence: Cloud, RDNS: []byte("known.sender.example"), FCrDNS: smtp.FCrDNSFail}, "", "", "cloud"},
		{"a list with five typos", asks(pass, UnknownRecipient, BySrc, 5), "", "", ""},
		{"six unknown recipients", asks(pass, UnknownRecipient, BySrc, 6), "", "unknown-named", "unknown-named"},
		{"five, without a name", asks(fail, UnknownRecipient, BySrc, 5), "", "unknown", "unknown"},
		{"six, of a known client", with(asks(pass, UnknownRecipient, BySrc, 6), func(f *Facts) { f.Standing = StandingKnown }), "", "", ""},
		{"twelve, of a known client", with(asks(pass, UnknownRecipient, BySrc, 12), func(f *Facts) { f.Standing = StandingKnown }), "", "unknown-named", "unknown-named"},
		{"many, but this one exists", with(asks(fail, UnknownRecipient, BySrc, 50), func(f *Facts) { f.RcptKnown = true }), "", "", ""},
		{"a harvest", Facts{Phase: smtp.PhaseRcptTo, Evidence: Harvest}, "", "harvest", "harvest"},
		{"a network", asks(fail, UnknownRecipient, ByPrefix, 21), "", "unknown-network", "unknown-network"},
		{"a domain", asks(pass, UnknownRecipient, ByDomain, 41), "", "unknown-domain", "unknown-domain"},
		{"bounces", asks(pass, Backscatter, BySrc, 40), "", "", ""},
		{"bounces without a name", asks(fail, Backscatter, BySrc, 16), "", "bounces", "bounces"},
		{"third question in a siege", with(asks(fail, UnknownRecipient, BySite, 21), func(f *Facts) { f.Counts[UnknownRecipient.Index()] = 2 }), "", "", ""},
		{"fourth question in a siege", with(asks(fail, UnknownRecipient, BySite, 21), func(f *Facts) { f.Counts[UnknownRecipient.Index()] = 3 }), "", "siege", "siege"},
		{"fourth question with a name", with(asks(pass, UnknownRecipient, BySite, 21), func(f *Facts) { f.Counts[UnknownRecipient.Index()] = 3 }), "", "", ""},
		{"an early talker", Facts{Phase: smtp.PhaseMailFrom, Evidence: EarlyTalker}, "", "", ""},
		{"many connections", func() Facts {
			f := Facts{Phase: smtp.PhaseConnect, Standing: StandingNone}
			f.Counts[Flood.Index()] = 31
			return f
		}(), "", "", "flood"},
		{"far too many connections", Facts{Phase: smtp.PhaseConnect, Standing: StandingNone, Evidence: Flood}, "", "flood", ""},
		{"far too many of a known sender", Facts{Phase: smtp.PhaseConnect, Standing: StandingKnown, Evidence: Flood}, "", "", ""},
		{"before the state is read", Facts{Phase: smtp.PhaseConnect, Evidence: Flood}, "", "", ""},
		{"four relay probes", asks(fail, RelayProbe, BySrc, 4), "", "", "relay"},
		{"ten relay probes", asks(fail, RelayProbe, BySrc, 10), "", "relay", "relay"},
		{"ten relay probes, but this recipient is local", with(asks(fail, RelayProbe, BySrc, 10), func(f *Facts) { f.RcptLocal = Yes }), "", "", ""},
		{"a bad greeting at a foreign postmaster", Facts{Phase: smtp.PhaseRcptTo, Evidence: HeloOwnAddress, RcptTo: []byte("postmaster@example.net"), RcptLocal: No}, "", "our-address", "our-address"},
		{"guesses", ends(AuthFailure, 21), "", "guess", "guess"},
		{"a few guesses", ends(AuthFailure, 10), "", "", ""},
		{"AUTH attempts where AUTH is not offered", ends(AuthUnsupported, 4), "", "", "blind-login"},
		{"a fast guesser", Facts{Phase: smtp.PhaseEnd, Evidence: EarlyTalker | AuthUnsupported, Window: window{}}, "", "fast-guess", "fast-guess"},
		{"a request in one write, three times", ends(Pipelining, 3), "", "one-write", "one-write"},
		{"a browser, at the end", Facts{Phase: smtp.PhaseEnd, Evidence: TalksHTTP}, "", "no-smtp-end", "no-smtp-end"},
		{"odd in many ways", Facts{Phase: smtp.PhaseData, Evidence: RDNSMissing | FCrDNSFail | Pipelining | Cloud}, "", "", "odd"},
		{"a local session", Facts{Phase: smtp.PhaseConnect, Evidence: Scanner, Local: true}, "", "", ""},
	}
	for _, name := range PolicyNames() {
		p := readyPolicy(t, name)
		for _, tt := range tests {
			f := tt.facts
			v := p.Eval(&f)
			got := ruleName(v.Act)
			if f.Phase == smtp.PhaseEnd && v.Act.BanRule != nil {
				got = v.Act.BanRule.Name
			}
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

// TestBanLengths checks which rules of the presets impose bans of more than two days. A host with a
// long ban gets a permanent code. Bans by other rules must be shorter, because the host may share
// its address with a mail server, which must not give up before the ban ends.
func TestBanLengths(t *testing.T) {
	permanent := map[string]string{
		"scanner": "the address is published, or the name is proven",
		"botnet":  "only attack tools use the greeting",
	}
	for _, name := range PolicyNames() {
		found := 0
		for _, r := range readyPolicy(t, name).Rules() {
			if len(r.Ban) == 0 {
				continue
			}
			long := slices.Max(r.Ladder()) > 48*time.Hour
			if long != (permanent[r.Name] != "") {
				t.Errorf("%s: rule %s bans for up to %v", name, r.Name, slices.Max(r.Ladder()))
			}
			if long {
				found++
			}
		}
		if found != len(permanent) && name != "open" {
			t.Errorf("%s: %d rules with long bans, want %d", name, found, len(permanent))
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

func TestDescribePrivacy(t *testing.T) {
	kept := []Retention{{"bans, after their end", 90 * day}, {"failed logins, as hashes", day}}
	for name, conf := range map[string]string{
		"full":      "mode observe\n",
		"served":    "companion serve user _swserve listen 192.0.2.25\nzone \"bl.example.org\" bans\n",
		"forwarded": "companion forward user a to stdout\ncompanion forward user a to abuseipdb key \"/k\"\n",
		"receivers": "companion lookup user a\nlookup bl dnsbl \"{key}.bl.example.org\" codes 127.0.0.2 key \"/k\"\nrule r phase helo match listed bl reject\n" +
			"companion forward user a to url \"https://ntfy.example.net/x\" format text\ncompanion forward user a to url \"/etc/url\"\ncompanion forward user a to syslog \"tls://logs.example.org\"\n",
		"hashed": "privacy hashed\nstore \"/s\" keep 7d\ncontact \"it@example.org\"\n",
		"fleet":  "fleet \"mx1\" key \"/k\"\n",
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			if err := compile(t, conf).DescribePrivacy(&b, kept); err != nil {
				t.Fatal(err)
			}
			golden(t, "testdata/privacy/"+name+".golden", b.String())
		})
	}
}

// TestTokens checks that each token has a unique name, a description and the right index.
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

func TestOnly(t *testing.T) {
	p := readyPolicy(t, "standard")
	only := p.Only("harvest")
	if n := len(only.Rules()); n != 1 || len(p.Rules()) < 5 || only.Phases() != smtp.PhasesFrom(smtp.PhaseRcptTo)&^smtp.PhasesFrom(smtp.PhaseData) {
		t.Errorf("%d rules of %d, in phases %v", n, len(p.Rules()), only.Phases().List())
	}
	if p.Only("nobody") != nil {
		t.Error("a policy of no rules")
	}
}
