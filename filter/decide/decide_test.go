package decide

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/detect"
	"scanwatch/filter/memory"
	"scanwatch/filter/track"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

const day = 24 * time.Hour

// now is the time of the sessions in microseconds since 1970.
const now = int64(1_795_000_000) * 1e6

// A bench is a Decider and the session of a client.
type bench struct {
	*testing.T
	d        Decider
	track    track.Session
	case_    detect.State
	state    State
	client   memory.Client
	outcomes []smtp.Outcome
}

// newBench returns a session from 192.0.2.1 with a policy. The files of the policy's tables are
// missing.
func newBench(t *testing.T, policy string) *bench {
	t.Helper()
	c, err := rules.Parse("test.conf", func(string) ([]byte, error) { return []byte(policy), nil })
	if err != nil {
		t.Fatal(err)
	}
	p, _, err := rules.Compile(c, rules.Options{Load: func(rules.Source) (rules.Table, error) { return nil, nil }})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{T: t, d: Decider{Memory: memory.New()}, client: memory.Client{Addr: netip.MustParseAddr("192.0.2.1")}}
	b.d.Use(p, nil)
	b.track.ID, b.track.Start, b.track.Src = 7, now, netip.AddrPortFrom(b.client.Addr, 4000)
	return b
}

func (b *bench) subject() Subject {
	return Subject{Session: &b.track, Case: &b.case_, State: &b.state, Client: &b.client, Live: 1}
}

// ask returns the answer to a request in the form "reject 550 5.7.1 no".
func (b *bench) ask(phase smtp.Phase, addr string) string {
	ev := smtp.Event{Kind: smtp.EventRequest, Time: now, Phase: phase, Addr: []byte(addr), Name: []byte("mail.example.net")}
	b.event(smtp.Event{Kind: smtp.EventLine})
	b.track.Apply(&ev)
	a, outcomes := b.d.Ask(b.subject(), &ev)
	b.outcomes = append(b.outcomes, outcomes...)
	return strings.TrimSuffix(strings.TrimSpace(a.Decision.String()+" "+a.Text), " [0000000000000007]")
}

// event applies an event that is not a request.
func (b *bench) event(ev smtp.Event) {
	b.track.Apply(&ev)
	b.d.Track(b.subject(), &ev)
}

// mail sends MAIL, which the server accepts.
func (b *bench) mail(addr string) string {
	a := b.ask(smtp.PhaseMailFrom, addr)
	b.event(smtp.Event{Kind: smtp.EventMail, Addr: []byte(addr), Result: smtp.ResultOK})
	return a
}

// rcpt sends RCPT, which the server accepts unless a rule rejects the recipient.
func (b *bench) rcpt(addr string) string {
	a := b.ask(smtp.PhaseRcptTo, addr)
	if a == "proceed" {
		b.event(smtp.Event{Kind: smtp.EventRcpt, Addr: []byte(addr), Result: smtp.ResultOK, Code: 250})
	}
	return a
}

// trust sets the client's standing.
func (b *bench) trust(level rules.Standing) {
	days := map[rules.Standing]int{rules.StandingKnown: 1, rules.StandingTrusted: 10}[level]
	for i := range days {
		b.d.Memory.Peers.Delivered(&b.client, memory.Delivery{Messages: 2, Senders: []string{"example.net"}}, now-(12*day).Microseconds()+(time.Duration(i)*day*10/9).Microseconds())
	}
	if got := b.d.Memory.Peers.Standing(&b.client, now).Level; got != level {
		b.Fatalf("standing %v, want %v", got, level)
	}
}

// told describes outcomes by their kind, rule, decision, enforcement and exemption.
func (b *bench) told() (list []string) {
	kinds := map[smtp.OutcomeKind]string{smtp.OutcomeVerdict: "verdict", smtp.OutcomeBan: "ban", smtp.OutcomeReturn: "return", smtp.OutcomeTag: "tag"}
	for _, o := range b.outcomes {
		s := kinds[o.Kind] + " " + o.Rule + o.Tag
		if o.Kind == smtp.OutcomeVerdict {
			s += " " + o.Decision.String()
		}
		if o.Enforced {
			s += " enforced"
		}
		if o.Exempt != "" {
			s += " exempt=" + o.Exempt
		}
		list = append(list, s)
	}
	return list
}

// TestShield checks the effect of rules on clients with each level of standing.
func TestShield(t *testing.T) {
	const none, known, trusted = rules.StandingNone, rules.StandingKnown, rules.StandingTrusted
	const list = `rule r phase rcpt-to match src 192.0.2.0/24 reject "550 5.7.1 no" ban 1d`
	const conduct = `rule r phase rcpt-to match evidence probed-recipient reject "550 5.7.1 no" ban 1d`
	const even = `rule r phase rcpt-to match src 192.0.2.0/24 even trusted reject "550 5.7.1 no" ban 1d`
	const envelope = `rule r phase rcpt-to match mail-from "joe@example.net" reject "550 5.7.1 no" ban 1d`
	for _, tt := range []struct {
		name     string
		rule     string
		evidence rules.Evidence
		standing rules.Standing
		answer   string
		told     []string
	}{
		{"list, no standing", list, 0, none, "reject 550 5.7.1 no", []string{"verdict r reject enforced", "ban r enforced"}},
		{"list, known", list, 0, known, "reject 550 5.7.1 no", []string{"verdict r reject enforced", "ban r enforced exempt=known"}},
		{"list, trusted", list, 0, trusted, "proceed", []string{"verdict r reject exempt=trusted"}},
		{"conduct, no standing", conduct, rules.ProbedRecipient, none, "reject 550 5.7.1 no", []string{"verdict r reject enforced", "ban r enforced"}},
		{"conduct, known", conduct, rules.ProbedRecipient, known, "reject 550 5.7.1 no", []string{"verdict r reject enforced", "ban r enforced exempt=known"}},
		{"conduct, trusted", conduct, rules.ProbedRecipient, trusted, "reject 450 4.7.1 no", []string{"verdict r reject enforced"}},
		{"even trusted, known", even, 0, known, "reject 550 5.7.1 no", []string{"verdict r reject enforced", "ban r enforced"}},
		{"even trusted, trusted", even, 0, trusted, "reject 550 5.7.1 no", []string{"verdict r reject enforced", "ban r enforced"}},
		{"envelope, trusted", envelope, 0, trusted, "reject 550 5.7.1 no", []string{"verdict r reject enforced", "ban r enforced exempt=trusted"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, "mode enforce\n"+tt.rule+"\n")
			b.case_.Evidence = tt.evidence
			if tt.standing > none {
				b.trust(tt.standing)
			}
			b.mail("joe@example.net")
			answer := b.rcpt("bob@example.org")
			if answer != tt.answer || !slices.Equal(b.told(), tt.told) {
				t.Errorf("answer %q, want %q; outcomes %q, want %q", answer, tt.answer, b.told(), tt.told)
			}
			if again := b.rcpt("carol@example.org"); again != tt.answer {
				t.Errorf("answer to another recipient: %q", again)
			}
			if want := tt.name != "list, trusted"; b.state.Offence != want {
				t.Errorf("offence %v", b.state.Offence)
			}
			_, banned := first(b.d.Memory.Bans.Banned(&b.client, now))
			if want := slices.Contains(tt.told, "ban r enforced"); banned != want {
				t.Errorf("banned %v", banned)
			}
		})
	}
}

// TestWithheldOnce checks that several withheld decisions by the same rule are reported only once,
// even if a later rule makes a decision.
func TestWithheldOnce(t *testing.T) {
	b := newBench(t, "mode enforce\nrule a phase rcpt-to match src 192.0.2.0/24 disconnect\nrule b phase rcpt-to match rcpt-to \"trap@\" reject \"550 5.7.1 trap\"\n")
	b.trust(rules.StandingTrusted)
	b.mail("joe@example.net")
	var answers []string
	for _, r := range []string{"bob@example.org", "trap@example.org", "bob@example.org"} {
		answers = append(answers, b.rcpt(r))
	}
	if !slices.Equal(answers, []string{"proceed", "reject 550 5.7.1 trap", "proceed"}) || !slices.Equal(b.told(), []string{"verdict a disconnect exempt=trusted", "verdict b reject enforced"}) {
		t.Errorf("answers %q, outcomes %q", answers, b.told())
	}
}

// TestSticky checks that a decision about the client applies in its phase and in all later ones,
// but not in earlier phases of the next transaction.
func TestSticky(t *testing.T) {
	const no = "reject 550 5.7.1 no"
	b := newBench(t, "mode enforce\npass match rcpt-to \"postmaster@\"\nrule r phase rcpt-to match evidence helo-own-name reject \"550 5.7.1 no\"\n")
	b.case_.Evidence = rules.HeloOwnName
	got := []string{b.ask(smtp.PhaseHelo, ""), b.mail("joe@example.net"), b.rcpt("bob@example.org")}
	b.case_.Evidence = 0
	got = append(got, b.rcpt("carol@example.org"), b.ask(smtp.PhaseData, ""))
	b.event(smtp.Event{Kind: smtp.EventRollback})
	got = append(got, b.mail("joe@example.net"), b.rcpt("postmaster@example.org"), b.ask(smtp.PhaseData, ""))
	if want := []string{"proceed", "proceed", no, no, no, "proceed", "proceed", "proceed"}; !slices.Equal(got, want) {
		t.Errorf("answers %q, want %q", got, want)
	}
	b.track.Authed = true
	if a := b.rcpt("bob@example.org"); a != "proceed" {
		t.Errorf("after a login: %q", a)
	}
	b = newBench(t, "mode enforce\nrule r phase rcpt-to match count unknown-recipient > 2 reject \"450 4.7.1 no\"\n")
	b.case_.Unknown.N = 3
	b.mail("joe@example.net")
	b.d.Memory.Recipients.Accepted([]byte("alice@example.org"), now)
	if a, c := b.rcpt("bob@example.org"), b.rcpt("Alice+x@example.org"); a != "reject 450 4.7.1 no" || c != "proceed" || !b.state.Refused {
		t.Errorf("a count rejects a recipient: %q, one that is known: %q", a, c)
	}
}

// TestPass checks that a pass statement exempts only the recipient that it matches. If a pass
// statement matches all recipients, it exempts the message as well.
func TestPass(t *testing.T) {
	const policy = "mode enforce\npass match rcpt-to \"postmaster@\"\nrule r phase rcpt-to match rcpt-to \"trap@\" reject \"550 5.7.1 no\"\nrule d phase { data, commit } match mail-from \"joe@example.net\" reject \"550 5.7.1 content\"\n"
	const no = "reject 550 5.7.1 content"
	for _, tt := range []struct {
		name  string
		rcpts []string
		data  string
	}{
		{"postmaster only", []string{"postmaster@example.org"}, "proceed"},
		{"another one only", []string{"bob@example.org"}, no},
		{"both", []string{"postmaster@example.org", "bob@example.org"}, no},
		{"both, in another order", []string{"bob@example.org", "postmaster@example.org"}, no},
		{"the other one was rejected", []string{"postmaster@example.org", "trap@example.org"}, "proceed"},
	} {
		b := newBench(t, policy)
		b.mail("joe@example.net")
		for _, r := range tt.rcpts {
			want := "proceed"
			if r == "trap@example.org" {
				want = "reject 550 5.7.1 no"
			}
			if a := b.rcpt(r); a != want {
				t.Errorf("%s: %s: %q", tt.name, r, a)
			}
			if passed := strings.HasPrefix(r, "postmaster"); b.state.Passed() != passed {
				t.Errorf("%s: %s: passed %v", tt.name, r, !passed)
			}
		}
		if d, c := b.ask(smtp.PhaseData, ""), b.ask(smtp.PhaseCommit, ""); d != tt.data || c != tt.data {
			t.Errorf("%s: data %q, commit %q, want %q", tt.name, d, c, tt.data)
		}
		b.event(smtp.Event{Kind: smtp.EventRollback})
		b.mail("joe@example.net")
		b.rcpt("bob@example.org")
		if d := b.ask(smtp.PhaseData, ""); d != no {
			t.Errorf("%s: the next message: %q", tt.name, d)
		}
	}
}

// TestUnsurePass checks that rejections are temporary and no client is banned while the table of a
// pass statement is not loaded.
func TestUnsurePass(t *testing.T) {
	const policy = "mode enforce\ntable <friends> file \"/nonexistent\"\n%\nrule r phase rcpt-to match src 192.0.2.0/24 disconnect \"554 5.7.1 no\" ban 1d\nrule j phase data match mail-from \"joe@example.net\" junk\n"
	for _, tt := range []struct {
		name, pass   string
		answer, data string
		told         []string
	}{
		{"it may match", "pass from <friends>", "disconnect 421 4.7.1 no", "proceed", []string{"verdict r disconnect enforced"}},
		{"it cannot match", "pass match src <friends> mail-from \"jane@example.net\"", "disconnect 554 5.7.1 no", "junk", []string{"verdict r disconnect enforced", "ban r enforced"}},
	} {
		b := newBench(t, strings.Replace(policy, "%", tt.pass, 1))
		b.mail("joe@example.net")
		if a := b.rcpt("bob@example.org"); a != tt.answer || !slices.Equal(b.told(), tt.told) {
			t.Errorf("%s: %q, want %q; outcomes %q", tt.name, a, tt.answer, b.told())
		}
		b.state = State{}
		if a := b.ask(smtp.PhaseData, ""); a != tt.data {
			t.Errorf("%s: data: %q, want %q", tt.name, a, tt.data)
		}
	}
	for _, manual := range []bool{false, true} {
		b := newBench(t, strings.Replace(policy, "%", "pass from <friends>", 1))
		if manual {
			b.d.Memory.Bans.AddPrefix(netip.PrefixFrom(b.client.Addr, 32), 30*day, "enough", now)
		} else {
			b.d.Memory.Bans.Add(&b.client, memory.BanRequest{Ladder: []time.Duration{30 * day}, Rule: "r"}, now)
		}
		b.d.Remember(b.subject())
		if a := b.ask(smtp.PhaseConnect, ""); !strings.HasPrefix(a, "disconnect 421 4.7.1 Banned until") {
			t.Errorf("a ban, manual %v: %q", manual, a)
		}
	}
}

// TestEnd checks that a count over earlier sessions leads to a ban only if this session adds to the
// count.
func TestEnd(t *testing.T) {
	const policy = "mode enforce\nrule guess phase end match count auth-failure > 5 in 1h by src ban 1h\n"
	for _, tt := range []struct {
		name   string
		fails  uint32
		before int
		told   []string
	}{
		{"a colleague who only greets", 0, 20, nil},
		{"one more failure", 1, 20, []string{"ban guess enforced"}},
		{"a first failure", 1, 1, nil},
	} {
		b := newBench(t, policy)
		for range tt.before {
			b.d.Memory.Counters.Add(&b.client, rules.AuthFailure, now)
		}
		b.track.Counts.AuthFail = tt.fails
		b.outcomes = b.d.End(b.subject(), now)
		if !slices.Equal(b.told(), tt.told) || b.state.Offence != (tt.told != nil) {
			t.Errorf("%s: outcomes %q, want %q", tt.name, b.told(), tt.told)
		}
	}
}

// TestCountAtEnd checks rules that count recipients at the end of the session. Such a rule must ban
// the client only if the server has accepted no recipient.
func TestCountAtEnd(t *testing.T) {
	const policy = "mode enforce\nrule unknown phase end match count unknown-recipient > 5 in 1h by src ban 1h\n"
	for accepted, want := range map[uint32][]string{0: {"ban unknown enforced"}, 1: nil} {
		b := newBench(t, policy)
		for range 20 {
			b.d.Memory.Counters.Add(&b.client, rules.UnknownRecipient, now)
		}
		b.track.Counts.RcptPermfail, b.case_.Unknown.N, b.case_.Accepted.N = 1, 1, accepted
		b.outcomes = b.d.End(b.subject(), now)
		if !slices.Equal(b.told(), want) {
			t.Errorf("%d accepted: outcomes %q, want %q", accepted, b.told(), want)
		}
	}
}

// TestReturn checks which banned clients are disconnected when they connect again.
func TestReturn(t *testing.T) {
	rule := func(b *bench) {
		b.d.Memory.Bans.Add(&b.client, memory.BanRequest{Ladder: []time.Duration{day}, Rule: "r", Session: 9}, now)
	}
	manual := func(b *bench) { b.d.Memory.Bans.AddPrefix(netip.PrefixFrom(b.client.Addr, 32), day, "r", now) }
	early := func(b *bench) {
		other := memory.New()
		other.Announce()
		other.Bans.AddPrefix(netip.PrefixFrom(b.client.Addr, 32), day, "r", now)
		if _, err := b.d.Memory.Incoming([]memory.Foreign{{Entry: other.Outgoing(1, 0)[0], Origin: "mx1"}}, 0, now); err != nil {
			t.Fatal(err)
		}
	}
	foreign := func(b *bench) {
		early(b)
		b.d.Memory.Bans.HaveStanding()
	}
	for _, tt := range []struct {
		name   string
		mode   string
		ban    func(b *bench)
		change func(b *bench)
		answer bool
		told   string
	}{
		{"ban", "enforce", rule, func(*bench) {}, true, "return r enforced"},
		{"observe mode", "observe", rule, func(*bench) {}, false, "return r"},
		{"known since", "enforce", rule, func(b *bench) { b.trust(rules.StandingKnown) }, false, "return r exempt=known"},
		{"known since, a rule even for trusted clients", "enforce\nrule r even trusted phase connect match src 203.0.113.9 disconnect ban 1d", rule, func(b *bench) { b.trust(rules.StandingKnown) }, true, "return r enforced"},
		{"a login since", "enforce", rule, func(b *bench) {
			c := b.client
			c.User = []byte("carol")
			b.d.Memory.Logins.Succeeded(&c, now)
		}, false, "return r exempt=login"},
		{"a gateway since", "enforce", rule, func(b *bench) { b.track.Gateway = true }, false, "return r exempt=gateway"},
		{"another host's ban", "enforce", foreign, func(*bench) {}, true, "return r enforced"},
		{"another host's ban of a known client", "enforce", foreign, func(b *bench) { b.trust(rules.StandingKnown) }, false, "return r exempt=known"},
		{"another host's ban before the known clients are read", "enforce", foreign, func(b *bench) { b.d.Memory.Expect() }, false, "return r exempt=waiting"},
		{"another host's ban before the standing on other hosts has arrived", "enforce", early, func(*bench) {}, false, "return r exempt=waiting"},
		{"another host's ban in observe mode", "observe", foreign, func(*bench) {}, false, "return r"},
		{"another host's ban that includes an address of this host", "enforce", foreign, func(b *bench) {
			b.d.Own = func(p netip.Prefix) bool { return p.Contains(b.client.Addr) }
		}, false, "return r exempt=own-address"},
		{"another host's ban that includes the address of the listener", "enforce", foreign, func(b *bench) { b.track.Dst = netip.AddrPortFrom(b.client.Addr, 25) }, false, "return r exempt=own-address"},
		{"manual ban of an own address", "enforce", manual, func(b *bench) { b.d.Own = func(netip.Prefix) bool { return true } }, true, "return r enforced"},
		{"manual ban of a gateway", "enforce", manual, func(b *bench) { b.track.Gateway = true }, true, "return r enforced"},
	} {
		b := newBench(t, "mode "+tt.mode+"\n")
		tt.ban(b)
		tt.change(b)
		b.d.Remember(b.subject())
		if a := b.ask(smtp.PhaseConnect, ""); strings.HasPrefix(a, "disconnect 421 4.7.1 Banned until") != tt.answer || !slices.Equal(b.told(), []string{tt.told}) {
			t.Errorf("%s: %q, %q", tt.name, a, b.told())
		}
		// A ban by another host must not be in firewalls until it has been enforced here.
		ban, _ := b.d.Memory.Bans.Enforced(netip.PrefixFrom(b.client.Addr, 32), now)
		if in := ban.Origin == "" || tt.answer; ban.Firewall.IsZero() == in {
			t.Errorf("%s: in firewalls: %t, want %t", tt.name, !in, in)
		}
	}
}

// peers returns rows of another host. According to the rows, the other host has accepted mail from
// the client. If a domain is given, the mail came from another client in this domain.
func (b *bench) peers(domain string) (rows []memory.Foreign) {
	other := memory.New()
	other.Announce()
	other.UseKey(b.d.Memory.Key())
	c, sender := b.client, "example.net"
	if domain != "" {
		c.Addr, c.Domain, sender = netip.MustParseAddr("198.51.100.77"), domain, domain
	}
	other.Peers.Delivered(&c, memory.Delivery{Messages: 1, Senders: []string{sender}}, now-(2*day).Microseconds())
	for _, e := range other.Outgoing(10, 0) {
		rows = append(rows, memory.Foreign{Entry: e, Origin: "mx2"})
	}
	return rows
}

// bannedBy returns a row in which another host has banned p.
func bannedBy(origin string, p netip.Prefix, length time.Duration) memory.Foreign {
	other := memory.New()
	other.Announce()
	other.Bans.AddPrefix(p, length, "r", now)
	return memory.Foreign{Entry: other.Outgoing(1, 0)[0], Origin: origin}
}

func (b *bench) receive(rows ...memory.Foreign) {
	b.Helper()
	if _, err := b.d.Memory.Incoming(rows, 0, now); err != nil {
		b.Fatal(err)
	}
}

// TestOwnBan checks a client that is banned by this host and exempt from a longer ban by another
// host. The client must still be disconnected because of the first ban.
func TestOwnBan(t *testing.T) {
	const policy = "mode enforce\nrule guess phase end match count auth-failure > 5 in 1h by src ban 1h\nrule harvest phase end match count harvest > 5 in 1h by src ban 1h\n"
	rule := func(name string) func(*bench) {
		return func(b *bench) {
			b.d.Memory.Bans.Add(&b.client, memory.BanRequest{Ladder: []time.Duration{time.Hour}, Rule: name}, now)
		}
	}
	manual := func(b *bench) {
		b.d.Memory.Bans.AddPrefix(netip.PrefixFrom(b.client.Addr, 32), time.Hour, "enough", now)
	}
	network := func(b *bench) {
		b.d.Memory.Bans.AddPrefix(netip.MustParsePrefix("192.0.2.0/24"), time.Hour, "enough", now)
	}
	elsewhere := func(b *bench) { b.receive(b.peers("")...); b.d.Memory.Bans.HaveStanding() }
	for _, tt := range []struct {
		name   string
		ban    func(*bench)
		change func(*bench)
	}{
		{"a brute-force ban, known on another host", rule("guess"), elsewhere},
		{"a harvest ban, known on another host", rule("harvest"), elsewhere},
		{"a ban by a former rule, known on another host", rule("former"), elsewhere},
		{"a manual ban, known on another host", manual, elsewhere},
		{"a manual ban of the network, known on another host", network, elsewhere},
		{"a brute-force ban, known here", rule("guess"), func(b *bench) { b.trust(rules.StandingKnown); b.d.Memory.Bans.HaveStanding() }},
		{"a manual ban, known here", manual, func(b *bench) { b.trust(rules.StandingKnown); b.d.Memory.Bans.HaveStanding() }},
		{"before the standing has arrived", rule("harvest"), func(*bench) {}},
		{"an own address in the other host's ban", rule("harvest"), func(b *bench) {
			b.d.Memory.Bans.HaveStanding()
			b.d.Own = func(netip.Prefix) bool { return true }
		}},
	} {
		for _, foreign := range []string{"192.0.2.1/32", "192.0.2.0/24"} {
			for _, first := range []bool{false, true} {
				b := newBench(t, policy)
				p := netip.MustParsePrefix(foreign)
				row := bannedBy("mx3", p, 10*day)
				if first {
					b.receive(row)
				}
				tt.ban(b)
				b.receive(row)
				tt.change(b)
				b.d.Remember(b.subject())
				if a := b.ask(smtp.PhaseConnect, ""); !strings.HasPrefix(a, "disconnect 421 4.7.1 Banned until") {
					t.Errorf("%s, ban of %s on mx3: %q", tt.name, foreign, a)
				}
				if o := b.outcomes[0]; !o.Enforced || o.Origin != "" {
					t.Errorf("%s, ban of %s on mx3: %+v", tt.name, foreign, o)
				}
				// Firewalls must contain the ban of this host.
				in := 0
				b.d.Memory.Bans.Each(func(ban memory.Ban) {
					if e, ok := b.d.Memory.Bans.Enforced(ban.Prefix, now); ok && e.Origin == "" && e.Firewall.UnixMicro() == now+time.Hour.Microseconds() {
						in++
					}
				})
				if in == 0 {
					t.Errorf("%s, ban of %s on mx3: this host's ban is not in firewalls", tt.name, foreign)
				}
			}
		}
	}
}

// TestOwnBanOverridesExemption checks that each ban of a client is evaluated. An exemption from the
// longest ban must not end the others.
func TestOwnBanOverridesExemption(t *testing.T) {
	b := newBench(t, "mode enforce\n")
	b.trust(rules.StandingKnown)
	b.d.Memory.Bans.Add(&b.client, memory.BanRequest{Ladder: []time.Duration{10 * day}, Rule: "harvest"}, now)
	b.d.Memory.Bans.AddPrefix(netip.MustParsePrefix("192.0.2.0/24"), time.Hour, "enough", now)
	b.d.Remember(b.subject())
	if a := b.ask(smtp.PhaseConnect, ""); !strings.Contains(a, "(enough)") {
		t.Errorf("%q", a)
	}
}

// TestFirewall checks how long firewalls contain another host's ban after a rejection. Firewalls
// contain the ban for a day, or until an exempt client connects from the address.
func TestFirewall(t *testing.T) {
	connect := func(b *bench, name string, result smtp.FCrDNS) string {
		b.state, b.client.Domain = State{}, ""
		b.track.RDNS, b.track.FCrDNS = []byte(name), result
		if result == smtp.FCrDNSPass {
			b.client.Domain = "sender.example"
		}
		b.d.Remember(b.subject())
		return b.ask(smtp.PhaseConnect, "")
	}
	for _, tt := range []struct{ name, policy, host string }{
		{"known on another host", "", "mx7.sender.example"},
		{"matched by a pass statement", "pass match rdns \"*.passed.example\" fcrdns pass\n", "mx.passed.example"},
	} {
		b := newBench(t, "mode enforce\n"+tt.policy)
		p := netip.PrefixFrom(b.client.Addr, 32)
		ends := func() time.Duration {
			ban, ok := b.d.Memory.Bans.Enforced(p, now)
			if !ok || ban.Firewall.IsZero() {
				return 0
			}
			return time.Duration(ban.Firewall.UnixMicro()-now) * time.Microsecond
		}
		b.receive(append(b.peers("sender.example"), bannedBy("mx3", p, 10*day))...)
		b.d.Memory.Bans.HaveStanding()
		for _, step := range []struct {
			host     string
			fcrdns   smtp.FCrDNS
			rejected bool
			firewall time.Duration
		}{
			{tt.host, smtp.FCrDNSPass, false, 0},
			{"", smtp.FCrDNSError, true, 0},
			{"", smtp.FCrDNSFail, true, day},
			{tt.host, smtp.FCrDNSPass, false, 0},
			{"", smtp.FCrDNSFail, true, day},
		} {
			if a := connect(b, step.host, step.fcrdns); strings.HasPrefix(a, "disconnect") != step.rejected || ends() != step.firewall {
				t.Errorf("%s, host %q, FCrDNS %v: %q, in firewalls for %v", tt.name, step.host, step.fcrdns, a, ends())
			}
		}
	}
	// A /64 may contain exempt hosts, so a ban of a /64 is not added to firewalls.
	b := newBench(t, "mode enforce\n")
	b.client.Addr = netip.MustParseAddr("2001:db8::1")
	b.track.Src = netip.AddrPortFrom(b.client.Addr, 4000)
	p := netip.MustParsePrefix("2001:db8::/64")
	b.receive(bannedBy("mx3", p, 10*day))
	b.d.Memory.Bans.HaveStanding()
	if a := connect(b, "", smtp.FCrDNSFail); !strings.HasPrefix(a, "disconnect") {
		t.Errorf("an unknown client in the /64: %q", a)
	}
	if ban, ok := b.d.Memory.Bans.Enforced(p, now); !ok || !ban.Firewall.IsZero() {
		t.Errorf("the /64 is in firewalls: %+v", ban)
	}
}

// TestObservedOffence checks that a ban is recorded but not enforced in observe mode. The same
// applies to rules marked observe.
func TestObservedOffence(t *testing.T) {
	for _, policy := range []string{"mode observe\nrule r phase rcpt-to match src 192.0.2.0/24 reject ban 1d\n", "mode enforce\nrule r observe phase rcpt-to match src 192.0.2.0/24 reject ban 1d\n"} {
		b := newBench(t, policy)
		b.mail("joe@example.net")
		if a := b.rcpt("bob@example.org"); a != "proceed" || !slices.Equal(b.told(), []string{"verdict r reject", "ban r"}) {
			t.Errorf("%s: %q, %q", policy, a, b.told())
		}
		if ban, ok := first(b.d.Memory.Bans.Banned(&b.client, now)); !ok || !ban.Observe {
			t.Errorf("%s: %+v", policy, ban)
		}
	}
}

// TestLateBan checks that a rule that counts recipients bans a client only at the end of the
// session. If a recipient was accepted, the client is banned only for repeated sessions with mostly
// missing recipients.
func TestLateBan(t *testing.T) {
	const policy = "rule unknown phase rcpt-to match count unknown-recipient > 4 in 1h by src reject \"450 4.7.1 no\" ban { 0s, 1h }\n"
	for _, tt := range []struct {
		name              string
		mode              string
		missing, accepted uint32
		earlier           int // number of earlier offences
		standing          rules.Standing
		told              []string
		offence           bool
	}{
		{"nothing but missing ones", "enforce", 5, 0, 0, 0, nil, true},
		{"for the second time", "enforce", 5, 0, 1, 0, []string{"ban unknown enforced"}, true},
		{"as many that exist", "enforce", 5, 5, 1, 0, nil, true},
		{"one that exists", "enforce", 5, 1, 1, 0, nil, true},
		{"one that exists, for the third time", "enforce", 5, 1, 2, 0, nil, true},
		{"one that exists, for the fourth time", "enforce", 5, 1, 3, 0, []string{"ban unknown enforced"}, true},
		{"one that exists, four that are missing", "enforce", 4, 1, 3, 0, nil, true},
		{"more than a quarter exist", "enforce", 5, 2, 3, 0, nil, true},
		{"a quarter exist", "enforce", 6, 2, 3, 0, []string{"ban unknown enforced"}, true},
		{"as many that exist, of a trusted client", "enforce", 5, 5, 1, rules.StandingTrusted, nil, true},
		{"a mailing list", "enforce", 5, 6, 1, 0, nil, false},
		{"observe mode", "observe", 5, 0, 1, 0, []string{"ban unknown"}, true},
		{"a trusted client", "enforce", 5, 0, 0, rules.StandingTrusted, nil, true},
		{"a mailing list of a trusted client", "enforce", 5, 6, 0, rules.StandingTrusted, nil, false},
		{"a trusted client in observe mode", "observe", 5, 0, 0, rules.StandingTrusted, nil, true},
		{"a mailing list in observe mode", "observe", 5, 6, 1, 0, nil, false},
	} {
		b := newBench(t, "mode "+tt.mode+"\n"+policy)
		if tt.standing > 0 {
			b.trust(tt.standing)
		}
		for range 50 {
			b.d.Memory.Counters.Add(&b.client, rules.UnknownRecipient, now)
		}
		for range tt.earlier {
			b.d.Memory.Bans.Add(&b.client, memory.BanRequest{Ladder: []time.Duration{0}, Rule: "unknown", Observe: tt.mode == "observe"}, now)
		}
		b.mail("joe@example.net")
		if a, want := b.rcpt("bob@example.org"), map[string]string{"enforce": "reject 450 4.7.1 no", "observe": "proceed"}[tt.mode]; a != want {
			t.Errorf("%s: %q", tt.name, a)
		}
		if _, banned := first(b.d.Memory.Bans.Banned(&b.client, now)); banned || b.state.Offence {
			t.Errorf("%s: banned before the end", tt.name)
		}
		b.case_.Unknown.N, b.case_.Accepted.N = tt.missing, tt.accepted
		b.outcomes = b.d.End(b.subject(), now)
		if !slices.Equal(b.told(), tt.told) || b.state.Offence != tt.offence {
			t.Errorf("%s: outcomes %q, want %q; offence %v", tt.name, b.told(), tt.told, b.state.Offence)
		}
	}
}

// first returns the first ban in the list. ok is false if there is none.
func first(list []memory.Ban) (b memory.Ban, ok bool) {
	if len(list) == 0 {
		return b, false
	}
	return list[0], true
}
