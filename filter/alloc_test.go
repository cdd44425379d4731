//go:build !race

// The race detector also allocates memory.

package filter_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/smtpd"
	"scanwatch/rules"
	"scanwatch/tests/simulate"
)

// allocations returns the number of memory allocations for the lines in in. The real reader, parser
// and pipeline process the lines with the preset "tight" in enforce mode. Allocations for setup and
// for growing tables are not counted.
func allocations(t *testing.T, in []byte, record func(time.Time, uint64, []byte)) float64 {
	t.Helper()
	text, err := rules.ReadyPolicy("tight")
	if err != nil {
		t.Fatal(err)
	}
	p := policy(t, string(text)).InMode(rules.Enforce)
	table := simulate.NewFilter(filter.Options{
		Record: record, Log: func([]byte) {}, Lists: func() *lookup.Lists { return lists },
		Memory: memory.New(), Budget: 512 << 20, OwnAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.25")},
	})

	table.Use(&filter.Settings{Policy: p})
	phases := smtpd.Requests(filter.Phases(p))
	var mine []byte // lines that the filter has registered
	for line := range bytes.Lines(in) {
		fields := strings.SplitN(string(line), "|", 6)
		for _, id := range slices.Concat(smtpd.Reports, phases) {
			if len(fields) > 5 && fields[3] == "smtp-in" && fields[4] == id.String() && (fields[0] == "filter") == slices.Contains(phases, id) {
				mine = append(mine, line...)
			}
		}
	}
	if len(mine) == 0 {
		t.Fatal("nothing to do")
	}
	serve := func(n int) float64 {
		return testing.AllocsPerRun(1, func() {
			if err := smtpd.Serve(&endless{in: mine, n: n}, discard{}, table, smtpd.Options{Reports: smtpd.Reports, Phases: phases, Log: func(s string) { t.Error(s) }}); err != nil {
				t.Fatal(err)
			}
		})
	}
	const some, more = 1, 3
	serve(more) // this fills tables and buffers
	few := serve(some)
	return (serve(more) - few) / (more - some)
}

// TestEventsAllocateNothing checks that a new session causes only a few memory allocations. All
// further lines of the session, and their answers, must cause none.
func TestEventsAllocateNothing(t *testing.T) {
	const perSession = 20 // includes the domains of the client and of its sender, which determine the standing
	// Each element contains the lines of one event. A line that starts with "?" is a request, and
	// any other line is a report. Each # is replaced by a number.
	for _, c := range []struct {
		name   string
		events []string
	}{
		{"commands", []string{"protocol-client|NOOP", "protocol-server|250 2.0.0 Ok"}},
		{"unknown commands", []string{"protocol-client|XYZZY a|b", "protocol-server|500 5.5.1 Invalid command: Command unrecognized"}},
		{"greetings", []string{"protocol-client|EHLO mail.example.net", "?ehlo|mail.example.net", "link-identify|EHLO|mail.example.net", "protocol-server|250-mx.example.org Hello", "protocol-server|250 HELP"}},
		{"messages", []string{
			"protocol-client|MAIL FROM:<a@example.net>", "?mail-from|a@example.net", "tx-mail|31f211ba|ok|a@example.net", "protocol-server|250 2.0.0 Ok",
			"protocol-client|RCPT TO:<alice@example.org>", "?rcpt-to|alice@example.org", "tx-rcpt|31f211ba|ok|alice@example.org", "protocol-server|250 2.1.5 Recipient ok",
			"protocol-client|DATA", "?data|", "tx-data|31f211ba|ok", "protocol-server|354 Go", "?commit|", "tx-commit|31f211ba|1000", "protocol-server|250 2.0.0 Message accepted",
		}},
		{"transactions given up", []string{"protocol-client|MAIL FROM:<a@example.net>", "?mail-from|a@example.net", "tx-mail|31f211ba|ok|a@example.net", "protocol-server|250 Ok", "protocol-client|RSET", "tx-rollback|31f211ba", "protocol-server|250 Reset"}},
		{"unknown recipients", []string{"protocol-client|RCPT TO:<nobody@example.org>", "?rcpt-to|nobody@example.org", "tx-rcpt|31f211ba|permfail|nobody@example.org", "protocol-server|550 Invalid recipient: <nobody@example.org>"}},
		{"unknown recipients, all others", []string{"protocol-client|RCPT TO:<nobody#@example.org>", "?rcpt-to|nobody#@example.org", "tx-rcpt|31f211ba|permfail|nobody#@example.org", "protocol-server|550 Invalid recipient: <nobody#@example.org>"}},
		{"logins", []string{"protocol-client|AUTH PLAIN AGEAYg==", "link-auth|alice|fail", "protocol-server|535 Authentication failed"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			session := func(n int) []byte {
				var b bytes.Buffer
				at := 0
				add := func(line string) {
					at++
					word, token := "report", ""
					if request, ok := strings.CutPrefix(line, "?"); ok {
						word, token, line = "filter", "|00000000000000ff", request
					}
					event, args, _ := strings.Cut(line, "|")
					if args != "" {
						args = "|" + args
					}
					fmt.Fprintf(&b, "%s|0.7|1795219327.%06d|smtp-in|%s|00000000000000aa%s%s\n", word, at, event, token, args)
				}
				add("link-connect|mail.example.net|pass|198.51.100.7:4000|192.0.2.25:25")
				add("protocol-server|220 mx.example.org ESMTP OpenSMTPD")
				add("protocol-client|EHLO mail.example.net")
				add("?ehlo|mail.example.net")
				add("link-identify|EHLO|mail.example.net")
				for i := range n {
					for _, e := range c.events {
						add(strings.ReplaceAll(e, "#", fmt.Sprint(i)))
					}
				}
				add("link-disconnect")
				return b.Bytes()
			}
			none := func(time.Time, uint64, []byte) {}
			// The records of the long sessions have reached their maximum size. Tables of the
			// memory grow at random times, so the minimum of three measurements is used.
			short := allocations(t, session(4), none)
			for range 2 {
				short = min(short, allocations(t, session(4), none))
			}
			if short > perSession {
				t.Errorf("a short session allocates %.1f times", short)
			}
			long, longer := allocations(t, session(4000), none), allocations(t, session(5000), none)
			if longer > long+50 { // tables may grow, but one allocation per line would be 1,000 more
				t.Errorf("with 4,000 of them a session allocates %.1f times, with 5,000 %.1f", long, longer)
			}
			t.Logf("%.1f and %.1f", long, longer)
		})
	}
}
