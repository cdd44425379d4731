package rules

import (
	"strings"
	"testing"
)

// TestTraps checks that Check warns of each bad line at its position, and does not warn of good
// lines. Each line is checked together with the first lines of its row.
func TestTraps(t *testing.T) {
	const tables = "listener mx port 25\nlistener out port { 465, 587 }\n"
	for _, c := range []struct {
		name      string
		first     string
		bad, good []string
	}{
		{"counted once per session", "", []string{
			"rule a phase mail-from match count syntax-error > 3 disconnect",
			"rule a phase mail-from match count helo-unqualified > 1 reject",
			"rule a phase rcpt-to match count harvest > 5 reject",
			"rule a phase mail-from match !count talks-http > 2 reject",
			"rule a phase end match count no-mail > 3 ban 1d",
		}, []string{
			"rule a phase mail-from match count unknown-command > 3 disconnect",
			"rule a phase mail-from match count helo-unqualified > 1 in 1d by src reject",
			"rule a phase rcpt-to match count harvest > 0 reject",
			"rule a phase connect match count flood > 30 disconnect",
		}},
		{"low confidence", "", []string{
			"rule a phase mail-from match count syntax-error > 3 in 1h reject",
			"rule a phase mail-from match evidence syntax-error reject",
		}, []string{
			"rule a phase mail-from match evidence { syntax-error, talks-http } reject",
			"rule a phase mail-from match helo x !evidence syntax-error reject",
		}},
		{"no user", "", []string{
			"rule a phase mail-from match count talks-http > 3 in 1h by user reject",
			"rule a phase mail-from match count scanner > 3 in 1h by user reject",
			"rule a phase rcpt-to match count unknown-recipient > 50 in 1d by user reject",
		}, []string{
			"rule a phase end match count auth-failure > 10 in 1h by user ban 1h",
			"rule a phase rcpt-to match auth count unknown-recipient > 50 in 1d by user reject",
		}},
		{"failed and logged in", "", []string{
			"rule a phase end match evidence auth-failure auth admin ban 1h",
			"rule a phase end match auth evidence { auth-failure, auth-unsupported } ban 1h",
			"rule a phase end match count auth-failure > 3 auth ban 1h",
		}, []string{
			"rule a phase end match count auth-failure > 10 in 1h by src ban 1h",
			"rule a phase end match auth count auth-failure > 10 in 1h by user tag odd",
			"rule a phase end match evidence auth-failure !auth ban 1h",
		}},
		{"lists that are not asked", "lookup bl dnsbl \"bl.example.org\" codes 127.0.0.2\ncompanion lookup user a\n", []string{
			"rule a phase mail-from match listed bl known reject",
			"rule a phase mail-from match trusted !listed bl reject",
		}, []string{
			"rule a phase mail-from match listed bl !known reject",
			"rule a phase mail-from match listed bl reject",
		}},
		{"contradictions", tables, []string{
			"rule a phase helo match src 192.0.2.1 !src 192.0.2.0/24 reject",
			"rule a phase helo match src 192.0.2.0/24 src 198.51.100.0/24 reject",
			"rule a phase helo match helo x helo y reject",
			"rule a phase rcpt-to match count relay-probe > 5 !count relay-probe > 3 reject",
			"rule a phase helo match evidence rdns-missing fcrdns reject",
			"rule a phase mail-from match fcrdns evidence fcrdns-fail reject",
			"rule a phase mail-from match rdns .example.net evidence rdns-missing fcrdns reject",
			"rule a phase mail-from match mail-from a@example.net mail-from b@example.net reject",
			"rule a phase mail-from match fcrdns pass fcrdns fail reject",
			"rule a on mx phase helo match helo x listener out reject",
			"rule a phase helo match helo mail.example.net !helo .example.net reject",
		}, []string{
			"rule a phase helo match src 192.0.2.0/24 !src 192.0.2.1 reject",
			"rule a phase helo match src 192.0.2.0/24 src 192.0.2.128/25 reject",
			"rule a phase helo match helo .example.net helo mail.example.net reject",
			"rule a phase helo match helo /x/ helo /y/ reject",
			"rule a phase rcpt-to match count relay-probe > 3 !count relay-probe > 5 reject",
			"rule a phase mail-from match mail-from a@ mail-from @example.net reject",
			"rule a phase helo match helo x listener { mx, out } reject",
		}},
		{"names of another form", "", []string{
			"rule a phase mail-from match rdns 192.0.2.1 fcrdns reject",
			"rule a phase mail-from match helo 192.0.2.0/24 reject",
			"rule a phase mail-from match mail-from \"<joe@example.net>\" reject",
			"rule a phase rcpt-to match rcpt-to 192.0.2.0/24 reject",
			"rule a phase mail-from match rdns \"joe@example.net\" fcrdns reject",
			"own-name .example.org",
			"own-name \"*.example.org\"",
			"own-name 192.0.2.1",
			"own-address 192.168.0.0/16",
			"own-address 127.0.0.1",
			"own-address 0.0.0.0/0",
			"table <local-domains> { \"postmaster@example.org\" }",
		}, []string{
			"rule a phase mail-from match helo 192.0.2.1 reject",
			"rule a phase mail-from match mail-from { \"<>\", \"joe@[192.0.2.1]\" } reject",
			"own-name mx.example.org",
			"own-address { 192.0.2.1, 2001:db8::/64 }",
			"table <local-domains> { \"example.org\", \".example.org\" }",
		}},
		{"tables of another kind", "asn \"f\"\ncountry \"f\"\n", []string{
			"table <friends> { mail.partner.example }",
			"table <local-domains> { 192.0.2.0/24 }",
			"table <t> { 192.0.2.0/24 }\nrule a phase mail-from match helo <t> reject",
			"table <t> { mail.x.example }\nrule a phase mail-from match src <t> reject",
			"table <t> { AS64496 }\nrule a phase mail-from match country <t> reject",
			"table <t> { DE }\nrule a phase mail-from match asn <t> reject",
			"table <t> { mail.example.de }\nrule a phase mail-from match country <t> reject",
			"table <t> { 192.0.2.0/24 }\nrule a phase rcpt-to match rcpt-to <t> reject",
			"table <t> { 192.0.2.0/24 }\nrule a phase mail-from match mail-from <t> auth reject",
			"table <t> { 192.0.2.1, mail.x.example }\npass from <t>",
			"table <t> { 192.0.2.1, AS64496 }\npass from <t>",
			"table <t> { 192.0.2.1 }\npass from <t>\nrule a phase mail-from match helo <t> auth reject",
		}, []string{
			"table <friends> { 192.0.2.7, 2001:db8::/32 }",
			"table <friends> { }",
			"table <t> { .x.example }\nrule a phase mail-from match helo <t> reject",
			"table <t> { DE, FR }\nrule a phase mail-from match country <t> reject",
			"table <t> { AS64496 }\nrule a phase mail-from match asn <t> reject",
			"table <t> { 192.0.2.1, mail.x.example }\npass from <t>\nrule a phase mail-from match helo <t> reject",
			"table <t> builtin\nrule a phase mail-from match src <t> reject",
			"table <friends> { mail.partner.example, 192.0.2.1 }\npass from <friends>\npass match rdns <friends> fcrdns",
		}},
		{"too wide", "", []string{
			"rule a phase connect match src 8.8.8.0/7 disconnect",
			"rule a phase connect match src 8.0.0.0/6 disconnect",
			"rule a phase connect match src 2600::/12 disconnect",
			"table <t> { 8.0.0.0/6 }\nrule a phase connect match src <t> disconnect",
			"rule a phase helo match helo \"*\" reject",
			"rule a phase helo match helo /.*/ reject",
			"pass match rdns /a?/ fcrdns",
		}, []string{
			"rule a phase connect match src 8.0.0.0/8 disconnect",
			"pass from { 10.0.0.0/8, fc00::/7 }",
			"rule a phase helo match helo \"*.example.org\" reject",
			"rule a phase helo match helo /^$/ reject",
			"rule a phase mail-from match mail-from \"*@example.org\" reject",
		}},
		{"countries", "country \"f\"\n", []string{
			"rule a phase mail-from match country { UK, DE } reject",
		}, []string{
			"rule a phase mail-from match country { GB, DE } reject",
		}},
		{"users before the login", tables, []string{
			"rule a phase connect match evidence rdns-missing disconnect",
			"rule a phase { connect, mail-from } match evidence rdns-missing disconnect",
			"rule a phase helo match !fcrdns reject",
			"rule a phase helo match fcrdns { fail, error } !seen-good reject",
			"rule a phase end match evidence rdns-missing ban 1h",
			"rule a phase helo match rdns /(dyn|dsl|pool)/ fcrdns reject",
			"rule a phase connect match rdns \"*.t-ipconnect.de\" fcrdns disconnect",
			"rule a phase connect match evidence { scanner, fcrdns-fail } disconnect",
			"score evidence rdns-missing 50\nrule a phase connect match score > 40 disconnect",
		}, []string{
			"rule a on mx phase connect match evidence rdns-missing disconnect",
			"rule a phase connect match listener mx evidence rdns-missing disconnect",
			"rule a phase mail-from match evidence rdns-missing reject",
			"rule a observe phase connect match evidence rdns-missing disconnect",
			"rule a phase connect match evidence rdns-missing delay 2s",
			"rule a phase connect match src 198.51.100.0/24 evidence rdns-missing disconnect",
			"rule a phase connect match evidence scanner disconnect",
			"rule a phase helo match helo x !fcrdns reject",
			"score evidence scanner 50\nrule a phase connect match score > 40 disconnect",
		}},
		{"pass without a proof", "", []string{
			"pass match mail-from boss@partner.example fcrdns",
			"pass match mail-from .partner.example",
			"pass match helo mail.partner.example",
			"pass match fcrdns",
			"pass match tls mail-from boss@partner.example",
			"pass match mail-from boss@partner.example !src 192.0.2.1",
		}, []string{
			"pass match mail-from boss@partner.example rdns .partner.example fcrdns",
			"pass match mail-from boss@partner.example src 192.0.2.1",
			"pass match rcpt-to postmaster@",
			"pass match mail-from boss@partner.example auth",
		}},
		{"a score that is too high", "score evidence scanner 50\nscore evidence cloud -10\n", []string{
			"rule a phase helo match score > 50 reject",
			"rule a phase data match score > 60 junk",
		}, []string{
			"rule a phase helo match score > 40 reject",
			"rule a phase helo match helo x score 20\nrule b phase mail-from match score > 60 reject",
		}},
		{"phases", "", []string{
			"rule a phase connect match helo x disconnect",
			"rule a phase connect match evidence talks-tls disconnect",
			"rule a phase connect match count talks-http > 3 in 1h by helo disconnect",
			"rule a phase helo match auth reject",
		}, nil},
	} {
		last := strings.Count(c.first, "\n")
		check := func(line string) (string, *Error) {
			p, err := parse(c.first + line + "\n")
			if err == nil {
				var w Errors
				if _, w, err = Compile(p, Options{}); err == nil {
					err = errorOf(w, last)
				}
			}
			var es Errors
			if err != nil {
				es = err.(Errors)
			}
			if len(es) == 0 {
				return "", nil
			}
			return es.Detail(), es[0]
		}
		for _, line := range c.bad {
			if text, e := check(line); e == nil || e.Line <= last {
				t.Errorf("%s: no warning about %q; %s", c.name, line, text)
			}
		}
		for _, line := range c.good {
			if text, e := check(line); e != nil {
				t.Errorf("%s: %q:\n%s", c.name, line, text)
			}
		}
	}
}

// errorOf returns the warnings about the lines that follow the line first.
func errorOf(all Errors, first int) error {
	var later Errors
	for _, e := range all {
		if e.Line > first {
			later = append(later, e)
		}
	}
	if len(later) == 0 {
		return nil
	}
	return later
}
