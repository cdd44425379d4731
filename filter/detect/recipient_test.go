package detect

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/filter/track"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

const start = int64(1_795_000_000) * 1e6

// A bench is a session with its facts, and the detectors' state and memory. alice@example.org is
// known to exist.
type bench struct {
	track    track.Session
	state    State
	client   memory.Client
	site     Site
	memory   *memory.Memory
	standing rules.Standing
	at       int64
	found    []string // evidence, match and confidence of each finding
}

func newBench(m *memory.Memory) *bench {
	if m == nil {
		m = memory.New()
	}
	m.Domains.Learn([]byte("example.org"), start)
	m.Recipients.Accepted([]byte("alice@example.org"), start)
	b := &bench{memory: m, at: start, standing: rules.StandingNone, site: Site{Memory: m, Addrs: map[netip.Addr]bool{}}}
	b.from("192.0.2.1", "")
	return b
}

func (b *bench) from(addr, rdns string) {
	b.track.Src = netip.AddrPortFrom(netip.MustParseAddr(addr), 4000)
	b.client = memory.Client{Addr: b.track.Src.Addr(), Domain: memory.RegisteredDomain([]byte(rdns))}
}

// run runs the detectors on an event.
func (b *bench) run(ev smtp.Event) {
	b.at += int64(time.Millisecond / time.Microsecond)
	ev.Time = b.at
	b.track.Apply(&ev)
	b.client.Account, b.client.User = b.track.Authed, b.track.User
	c := Case{Session: &b.track, State: &b.state, Event: &ev, Client: &b.client, Site: &b.site, Memory: b.memory, Standing: b.standing}
	Run(&c)
	for i := range c.Findings {
		if f := &c.Findings[i]; b.state.Add(f) {
			b.found = append(b.found, f.Token()+" "+f.Match+" "+f.Confidence)
		}
	}
}

func (b *bench) login(user string) {
	b.run(smtp.Event{Kind: smtp.EventAuth, Name: []byte(user), Result: smtp.ResultPass})
}

func (b *bench) mail(sender string) {
	b.run(smtp.Event{Kind: smtp.EventMail, Addr: []byte(sender), Result: smtp.ResultOK})
}

// ask sends only the filter's request about a recipient.
func (b *bench) ask(rcpt string) {
	b.run(smtp.Event{Kind: smtp.EventRequest, Phase: smtp.PhaseRcptTo, Addr: []byte(rcpt)})
}

func (b *bench) rcpt(rcpt string, result smtp.Result, code uint32) {
	b.ask(rcpt)
	b.run(smtp.Event{Kind: smtp.EventRcpt, Addr: []byte(rcpt), Result: result, Code: code})
}

func (b *bench) missing(rcpt string) { b.rcpt(rcpt, smtp.ResultPermfail, 550) }

// many calls do with n different recipients.
func many(n int, do func(rcpt string)) {
	for i := range n {
		do(fmt.Sprintf("user%d@example.org", i))
	}
}

// TestClasses checks the class of each reply to RCPT, and the evidence that it leads to.
func TestClasses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before func(b *bench)
		ev     smtp.Event
		class  RcptClass
		found  []string
	}{
		{"accepted", nil, smtp.Event{Addr: []byte("bob@example.org"), Result: smtp.ResultOK}, RcptAccepted, nil},
		{"accepted with a source route", nil, smtp.Event{Addr: []byte("bob%example.com@example.org"), Result: smtp.ResultOK}, RcptRouted, nil},
		{"rejected by a filter", nil, smtp.Event{Addr: []byte("bob@example.org"), Result: smtp.ResultPermfail, Code: 550, Cause: smtp.CauseFilter}, RcptNone, nil},
		{"malformed", nil, smtp.Event{Addr: []byte("b ob@example.org"), Result: smtp.ResultPermfail, Code: 501, Cause: smtp.CauseSyntax}, RcptSyntax, []string{"syntax-error  low"}},
		{"temporary", nil, smtp.Event{Addr: []byte("bob@example.org"), Result: smtp.ResultTempfail, Code: 451}, RcptUnclear, nil},
		{"out of order", nil, smtp.Event{Addr: []byte("bob@example.org"), Result: smtp.ResultPermfail, Code: 503, Cause: smtp.CauseOrder}, RcptUnclear, nil},
		{"accepted before", nil, smtp.Event{Addr: []byte("Alice+x@example.org"), Result: smtp.ResultPermfail, Code: 550}, RcptUnclear, nil},
		{"source route", nil, smtp.Event{Addr: []byte("@example.com:bob@example.org"), Result: smtp.ResultPermfail, Code: 550}, RcptRoute, []string{"relay-probe route high"}},
		{"bang path", nil, smtp.Event{Addr: []byte("host!bob"), Result: smtp.ResultPermfail, Code: 550}, RcptRoute, []string{"relay-probe route high"}},
		{"another domain", nil, smtp.Event{Addr: []byte("bob@example.com"), Result: smtp.ResultPermfail, Code: 550}, RcptForeign, []string{"relay-probe domain medium"}},
		{"an unknown user in another domain", nil, smtp.Event{Addr: []byte("bob@[192.0.2.25]"), Result: smtp.ResultPermfail, Code: 550, Cause: smtp.CauseUser}, RcptUnknown, []string{"unknown-recipient domain high"}},
		{"an unknown user with a source route", nil, smtp.Event{Addr: []byte("@example.com:bob@example.org"), Result: smtp.ResultPermfail, Code: 550, Cause: smtp.CauseUser}, RcptRoute, []string{"relay-probe route high"}},
		{"no such recipient", nil, smtp.Event{Addr: []byte("bob@example.org"), Result: smtp.ResultPermfail, Code: 550}, RcptUnknown, []string{"unknown-recipient domain high"}},
		{"without a reply", nil, smtp.Event{Addr: []byte("bob@example.org"), Result: smtp.ResultPermfail}, RcptUnknown, []string{"unknown-recipient domain medium"}},
		{"bounce", func(b *bench) { b.mail("") }, smtp.Event{Addr: []byte("bob@example.org"), Result: smtp.ResultPermfail, Code: 550}, RcptUnknown, []string{"backscatter domain high"}},
		{"without a transaction the sender is unknown", func(b *bench) { b.run(smtp.Event{Kind: smtp.EventRollback}) }, smtp.Event{Addr: []byte("bob@example.org"), Result: smtp.ResultPermfail, Code: 550}, RcptUnknown, []string{"unknown-recipient domain high"}},
		{"no local domain is known", func(b *bench) { b.site.Memory = memory.New(); b.memory = b.site.Memory }, smtp.Event{Addr: []byte("bob@example.org"), Result: smtp.ResultPermfail, Code: 550}, RcptUndecided, []string{"unknown-recipient undecided low"}},
		{"to itself, no local domain is known", func(b *bench) { b.site.Memory = memory.New(); b.memory = b.site.Memory }, smtp.Event{Addr: []byte("JOE@example.net"), Result: smtp.ResultPermfail, Code: 550}, RcptUndecided, []string{"relay-probe self medium"}},
		{"of a user", func(b *bench) { b.login("carol"); b.mail("carol@example.org") }, smtp.Event{Addr: []byte("bob@example.com"), Result: smtp.ResultPermfail, Code: 550}, RcptUnknown, []string{"unknown-recipient domain high"}},
		{"of a friend", func(b *bench) { b.track.Friend = true }, smtp.Event{Addr: []byte("bob@example.org"), Result: smtp.ResultPermfail, Code: 550}, RcptNone, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(nil)
			b.mail("joe@example.net")
			if tt.before != nil {
				tt.before(b)
			}
			tt.ev.Kind = smtp.EventRcpt
			b.run(tt.ev)
			if b.state.Rcpt != tt.class || !slices.Equal(b.found, tt.found) {
				t.Errorf("class %d, want %d; found %q, want %q", b.state.Rcpt, tt.class, b.found, tt.found)
			}
		})
	}
}

// TestRoutedHarvest checks that unknown mailboxes with a percent or bang path count as missing as well,
// and that accepted addresses that are not plain count as one mailbox.
func TestRoutedHarvest(t *testing.T) {
	for _, form := range []string{"g%d%%example.org@example.org", "example.org!g%d", "@x.example:g%d@example.org", "(+@)<g%d@example.org>"} {
		b := newBench(nil)
		b.mail("joe@example.net")
		for i := range 5 {
			for range 2 {
				b.run(smtp.Event{Kind: smtp.EventRcpt, Addr: fmt.Appendf(nil, form, i), Result: smtp.ResultPermfail, Code: 550, Cause: smtp.CauseUser})
			}
		}
		if b.state.Unknown.N != 5 || b.state.Relay != 5 || !slices.Contains(b.found, "harvest all high") {
			t.Errorf("%s: %d missing, %d foreign, found %q", form, b.state.Unknown.N, b.state.Relay, b.found)
		}
	}
	b := newBench(nil)
	b.mail("joe@example.net")
	for i := range 8 {
		b.run(smtp.Event{Kind: smtp.EventRcpt, Addr: fmt.Appendf(nil, "(%d)alice@example.org", i), Result: smtp.ResultOK})
	}
	if n := b.state.Accepted.N; n != 1 {
		t.Errorf("%d accepted mailboxes", n)
	}
}

// TestHarvest checks how many missing recipients are a harvest.
func TestHarvest(t *testing.T) {
	for _, tt := range []struct {
		name string
		run  func(b *bench)
		want string // match and confidence of the finding; empty for none
	}{
		{"four", func(b *bench) { many(4, b.missing) }, ""},
		{"five", func(b *bench) { many(5, b.missing) }, "all high"},
		{"five in one session, each from another sender", func(b *bench) {
			many(5, func(rcpt string) { b.mail("s" + rcpt); b.missing(rcpt) })
		}, ""},
		{"one, again and again", func(b *bench) {
			for i := range 20 {
				b.missing(fmt.Sprintf("Bob+%d@example.org", i))
			}
		}, ""},
		{"five of an existing mailbox", func(b *bench) {
			for i := range 5 {
				b.missing(fmt.Sprintf("alice+%d@example.org", i))
			}
		}, ""},
		{"five temporary failures", func(b *bench) { many(5, func(r string) { b.rcpt(r, smtp.ResultTempfail, 451) }) }, ""},
		{"nine, of a known client", func(b *bench) { b.standing = rules.StandingKnown; many(9, b.missing) }, ""},
		{"ten, of a known client", func(b *bench) { b.standing = rules.StandingKnown; many(10, b.missing) }, "all high"},
		{"ten, of a trusted client", func(b *bench) { b.standing = rules.StandingTrusted; many(10, b.missing) }, "all high"},
		{"nine and an accepted one", func(b *bench) { b.rcpt("alice@example.org", smtp.ResultOK, 250); many(9, b.missing) }, ""},
		{"ten and an accepted one", func(b *bench) { b.rcpt("alice@example.org", smtp.ResultOK, 250); many(10, b.missing) }, "share high"},
		{"ten and three accepted", func(b *bench) { accept(b, 3); many(10, b.missing) }, "share high"},
		{"ten and four accepted", func(b *bench) { accept(b, 4); many(10, b.missing) }, ""},
		{"an accepted one repeated", func(b *bench) {
			many(10, func(r string) { b.rcpt("alice@example.org", smtp.ResultOK, 250); b.missing(r) })
		}, "share high"},
		{"nineteen of a known client and an accepted one", func(b *bench) { b.standing = rules.StandingKnown; accept(b, 1); many(19, b.missing) }, ""},
		{"twenty of a known client and an accepted one", func(b *bench) { b.standing = rules.StandingKnown; accept(b, 1); many(20, b.missing) }, "share high"},
		{"five, and five that a rule held", func(b *bench) {
			accept(b, 1)
			many(5, b.missing)
			for i := range 5 {
				b.state.Hold(uint64(i+1), false)
			}
			b.ask("next@example.org")
		}, "share low"},
		{"retries of five that a rule held", func(b *bench) {
			many(5, func(r string) { b.memory.Recipients.Held(&b.client, []byte(r), b.at); b.missing(r) })
		}, ""},
		{"retries of five that a rule held, and five more", func(b *bench) {
			many(5, func(r string) { b.memory.Recipients.Held(&b.client, []byte(r), b.at) })
			many(10, b.missing)
		}, "all high"},
		{"two in a bounce", func(b *bench) { b.mail(""); many(2, b.missing) }, ""},
		{"three in a bounce", func(b *bench) { b.mail(""); many(3, b.missing) }, "null-sender high"},
		{"many bounces with one recipient", func(b *bench) { many(30, func(r string) { b.mail(""); b.missing(r) }) }, ""},
		{"five where no local domain is known", func(b *bench) { b.site.Memory = memory.New(); b.memory = b.site.Memory; many(5, b.missing) }, "undecided medium"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(nil)
			b.mail("joe@example.net")
			tt.run(b)
			i := slices.IndexFunc(b.found, func(f string) bool { return len(f) > 8 && f[:8] == "harvest " })
			switch {
			case tt.want == "" && i >= 0, tt.want != "" && (i < 0 || b.found[i] != "harvest "+tt.want):
				t.Errorf("found %q, want %q", b.found, tt.want)
			}
		})
	}
}

func accept(b *bench, n int) {
	for i := range n {
		b.rcpt(fmt.Sprintf("real%d@example.org", i), smtp.ResultOK, 250)
	}
}

// TestAccountAbuse checks the evidence for stolen accounts.
func TestAccountAbuse(t *testing.T) {
	for _, tt := range []struct {
		name string
		run  func(b *bench)
		want string // match of the finding; empty for none
	}{
		{"seven networks", func(b *bench) { networks(b, 7) }, ""},
		{"eight networks", func(b *bench) { networks(b, 8) }, "networks"},
		{"seven senders", func(b *bench) { b.login("carol"); addresses(b, 7, "example.com") }, ""},
		{"eight senders", func(b *bench) { b.login("carol"); addresses(b, 8, "example.com") }, "senders"},
		{"eight senders in a local domain", func(b *bench) { b.login("carol"); addresses(b, 8, "example.org") }, ""},
		{"eight senders without a login", func(b *bench) { addresses(b, 8, "example.com") }, ""},
		{"one sender often", func(b *bench) {
			b.login("carol")
			for range 20 {
				b.mail("Carol@example.org")
			}
		}, ""},
		{"nine missing recipients", func(b *bench) { b.login("carol"); b.mail("carol@example.org"); accept(b, 9); many(9, b.missing) }, ""},
		{"ten missing recipients", func(b *bench) { b.login("carol"); b.mail("carol@example.org"); accept(b, 9); many(10, b.missing) }, "recipients that do not exist"},
		{"500 recipients", func(b *bench) { b.login("carol"); b.mail("carol@example.org"); accept(b, 500) }, ""},
		{"501 recipients", func(b *bench) { b.login("carol"); b.mail("carol@example.org"); accept(b, 501) }, "recipients"},
		{"one recipient 400 times", func(b *bench) {
			b.login("carol")
			for range 400 {
				b.mail("carol@example.org")
				b.rcpt("alice@example.org", smtp.ResultOK, 250)
			}
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(nil)
			tt.run(b)
			want := []string{"account-abuse " + tt.want + " medium"}
			got := slices.DeleteFunc(slices.Clone(b.found), func(f string) bool { return len(f) < 8 || f[:8] != "account-" })
			if tt.want == "" {
				want = nil
			}
			if !slices.Equal(got, want) {
				t.Errorf("found %q, want %q", b.found, want)
			}
		})
	}
}

// networks logs in from n networks with a separate session for each. After the call, b contains the
// last session.
func networks(b *bench, n int) {
	for i := range n {
		b.track, b.state = track.Session{}, State{}
		b.from(fmt.Sprintf("198.18.%d.1", i), "")
		b.login("carol")
	}
}

func addresses(b *bench, n int, domain string) {
	for i := range n {
		b.mail(fmt.Sprintf("s%d@%s", i, domain))
	}
}

// TestProbedRecipient checks which clients may request a missing mailbox that hosts in other
// networks have requested before.
func TestProbedRecipient(t *testing.T) {
	const probed = "probed-recipient  medium"
	for _, tt := range []struct {
		name string
		run  func(b *bench)
		want bool
	}{
		{"a client without a proven name", func(b *bench) { b.ask("new@example.org") }, true},
		{"a subaddress", func(b *bench) { b.ask("New+x@example.org") }, true},
		{"another mailbox", func(b *bench) { b.missing("other@example.org") }, false},
		{"a client with a proven name", func(b *bench) { b.from("192.0.2.1", "mx.example.net"); b.missing("new@example.org") }, false},
		{"a client with a proven name, for another one too", func(b *bench) {
			b.from("192.0.2.1", "mx.example.net")
			b.missing("other@example.org")
			b.missing("new@example.org")
		}, true},
		{"for a second probed one", func(b *bench) {
			b.from("192.0.2.1", "mx.example.net")
			b.missing("new@example.org")
			b.missing("new2@example.org")
		}, true},
		{"a second time in the session", func(b *bench) {
			b.from("192.0.2.1", "mx.example.net")
			b.missing("new@example.org")
			b.missing("New@example.org")
		}, false},
		{"a second time in another session", func(b *bench) {
			b.from("192.0.2.1", "mx.example.net")
			b.missing("new@example.org")
			b.state = State{}
			b.missing("new@example.org")
		}, true},
		{"a client with a name that a provider derived", func(b *bench) { b.from("192.0.2.1", "static.1-2-3-4.clients.example.net"); b.ask("new@example.org") }, true},
		{"a user", func(b *bench) { b.login("carol"); b.mail("carol@example.org"); b.ask("new@example.org") }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := memory.New()
			for i := range 3 {
				for _, r := range []string{"new@example.org", "new2@example.org"} {
					m.Recipients.Refused(&memory.Client{Addr: netip.AddrFrom4([4]byte{198, 18, byte(i), 1})}, []byte(r), start)
				}
			}
			b := newBench(m)
			b.mail("joe@example.net")
			tt.run(b)
			if got := slices.Contains(b.found, probed); got != tt.want {
				t.Errorf("found %q, want %v", b.found, tt.want)
			}
		})
	}
}
