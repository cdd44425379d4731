package filter_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"scanwatch/filter/lookup"
	"scanwatch/rules"
)

// An allowTable is the shipped list of known senders. An allowTable implements a table of names.
type allowTable struct{ names lookup.Names[struct{}] }

func (a *allowTable) MatchAddr(netip.Addr) bool { return false }
func (a *allowTable) MatchASN(uint32) bool      { return false }
func (a *allowTable) MatchName(b []byte) bool {
	_, ok := a.names.LookupBytes(b)
	return ok
}

// TestAllowedSendersPass checks that no preset in enforce mode rejects a known sender in any phase.
// The sender's reverse DNS name or its greeting is in the shipped list. If only the greeting is in
// the list, the reverse DNS name is a generic one of a hosting provider.
func TestAllowedSendersPass(t *testing.T) {
	allow := new(allowTable)
	for _, row := range lists.Rows() {
		if row.List == lookup.KnownSenders && !strings.HasPrefix(row.Value, "/") {
			if err := allow.names.Add(row.Value, struct{}{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, name := range rules.PolicyNames() {
		text, err := rules.ReadyPolicy(name)
		if err != nil {
			t.Fatal(err)
		}
		tree, err := rules.Parse(name, func(string) ([]byte, error) { return text, nil })
		if err != nil {
			t.Fatal(err)
		}
		p, _, err := rules.Compile(tree, rules.Options{Load: func(rules.Source) (rules.Table, error) { return allow, nil }})
		if err != nil {
			t.Fatal(err)
		}
		p = p.InMode(rules.Enforce)
		rows := 0
		for _, row := range lists.Rows() {
			if row.List != lookup.KnownSenders || row.Kind != "rdns" && row.Kind != "helo" || strings.HasPrefix(row.Value, "/") {
				continue
			}
			rows++
			host := strings.TrimPrefix(row.Value, ".")
			if host != row.Value {
				host = "mail-1." + host
			}
			rdns := host
			if row.Kind == "helo" {
				rdns = "ec2-192-0-2-1.compute-1.amazonaws.com"
			}
			answers, _, log := script(t, p, "connect "+rdns+" pass", "ehlo "+host, "mail news@example.net",
				"rcpt alice@example.org", "rcpt bob@example.org", "data")
			for i, a := range answers {
				if a != "proceed" {
					t.Errorf("%s: line %d, %s (%s): answer %d is %q\n%s", name, row.Line, row.Org, host, i, a, strings.Join(log, "\n"))
					break
				}
			}
		}
		if rows < 70 {
			t.Errorf("%s: only %s tried", name, fmt.Sprint(rows, " rows"))
		}
	}
}
