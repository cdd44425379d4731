package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"scanwatch/internal/prefix"
	"scanwatch/internal/smtp"
)

// A trap is a valid statement that never matches, or that matches more clients than the operator
// wants. The functions in the following lists warn of traps.

// condTraps lists the functions that check a single condition.
var condTraps = []func(*checker, *Cond){countedOnce, lowOnly, noUser, misshapenValues, noCountry, tooWide}

// pairTraps lists the functions that check two conditions of a statement. Each function is called
// for all pairs in both orders.
var pairTraps = []func(*checker, *Cond, *Cond){failedAndLoggedIn, namelessAndNamed, excluded, listedAndKnown}

// perEvent lists the evidence that is counted at each event. All other evidence is counted once per
// session.
var perEvent = []string{"unknown-recipient", "backscatter", "recipient-flood", "relay-probe", "unknown-command", "auth-failure", "auth-unsupported", "flood"}

// alwaysLow lists the evidence that always has low confidence. Evidence in alwaysLow never matches
// a condition and is not counted.
var alwaysLow = []string{"syntax-error"}

// notOfUsers lists the evidence that is not about a user.
var notOfUsers = []string{"scanner", "cloud", "botnet-helo", "rdns-missing", "fcrdns-fail", "flood", "pipelining", "early-talker", "listed"}

func countedOnce(k *checker, c *Cond) {
	if c.Word != "count" || c.Window > 0 || c.Over < 1 || slices.Contains(perEvent, c.Values[0].Text) {
		return
	}
	e := c.Values[0].Text
	hint := fmt.Sprintf("use `evidence %s`, or count over sessions: count %s > %d in 1d", e, e, c.Over)
	if slices.Contains(alwaysLow, e) {
		hint = "use `score evidence " + e + " ...`"
	}
	k.warnf(c.Pos, hint, "this %s matches: evidence %s is counted only once per session", never(c), e)
}

// never returns the adverb for a warning about a condition that is always false: "never", or
// "always" if the condition is negated.
func never(c *Cond) string {
	if c.Not {
		return "always"
	}
	return "never"
}

func lowOnly(k *checker, c *Cond) {
	counts := c.Word == "count" && c.Window > 0
	if c.Not || !counts && c.Word != "evidence" || slices.ContainsFunc(c.Values, func(v Value) bool { return !slices.Contains(alwaysLow, v.Text) }) {
		return
	}
	k.warnf(c.Pos, "use `score evidence "+c.Values[0].Text+" ...`", "this never matches: evidence %s always has low confidence", c.Values[0].Text)
}

func noUser(k *checker, c *Cond) {
	if c.Word != "count" || c.By != ByUser {
		return
	}
	if e := c.Values[0].Text; slices.Contains(notOfUsers, e) || strings.HasPrefix(e, "helo-") || strings.HasPrefix(e, "talks-") {
		k.warnf(c.Pos, "count by src, or use `count auth-failure`", "this %s matches: evidence %s has no user", never(c), e)
	}
}

// ofFailures lists the evidence that is counted by user even if the user has not logged in.
var ofFailures = []string{"auth-failure", "auth-spray"}

// ofAccounts lists the evidence that is possible only after a login.
var ofAccounts = []string{"account-abuse"}

// needsAuth warns of a rule that checks users but has no condition on auth. A rule without this
// condition does not apply to authenticated sessions.
func needsAuth(k *checker, r *Rule) {
	if slices.ContainsFunc(r.Conds, func(c *Cond) bool { return c.Word == "auth" }) {
		return
	}
	for _, c := range r.Conds {
		account := c.Word == "evidence" || c.Word == "count"
		for _, v := range c.Values {
			account = account && slices.Contains(ofAccounts, v.Text)
		}
		if account || c.Word == "count" && c.By == ByUser && !slices.Contains(ofFailures, c.Values[0].Text) {
			k.warnf(c.Pos, "add the condition auth", "this %s matches: without auth the rule exempts users who have logged in", never(c))
		}
	}
}

// tooWide warns of a pattern that matches all names, and of a prefix that is wider than the network
// of any site or provider.
func tooWide(k *checker, c *Cond) {
	for _, v := range c.Values {
		switch {
		case v.Kind == PrefixValue:
			widePrefix(k, v)
		case (v.Kind == TextValue || v.Kind == RegexValue) && c.Word != "country":
			p := newPattern(v, false)
			if v.Kind == RegexValue || p.glob {
				if p.match([]byte("a1.b2.invalid")) && p.match([]byte("zz")) {
					k.warnf(v.Pos, "", "%s matches every name", v)
				}
			}
		}
	}
}

// widePrefix warns of a prefix that is wider than the largest networks that registries allocate.
func widePrefix(k *checker, v Value) {
	widest := 8
	if v.Prefix.Addr().Is6() {
		widest = 19
	}
	if a := v.Prefix.Addr(); v.Prefix.Bits() > 0 && v.Prefix.Bits() < widest && !a.IsPrivate() {
		k.warnf(v.Pos, "write the networks that you mean", "%s is wider than /%d, the largest network that registries allocate", v.Prefix, widest)
	}
}

// retired maps country codes that are not in ISO 3166 to the codes that replace them.
var retired = map[string]string{"UK": "GB", "EL": "GR", "AN": "CW", "YU": "RS"}

func noCountry(k *checker, c *Cond) {
	for _, v := range c.Values {
		if code := retired[v.Text]; c.Word == "country" && code != "" {
			k.warnf(v.Pos, "write "+code, "this never matches: %s is not a code of ISO 3166", v.Text)
		}
	}
}

// misshapenValues warns of a value whose form the condition's fact never has.
func misshapenValues(k *checker, c *Cond) {
	for _, v := range c.Values {
		if why, hint := misshapen(c.Word, v); why != "" {
			k.warnf(v.Pos, hint, "this never matches: %s", why)
		}
	}
}

// A shape is a form of value that the facts of some conditions never have.
type shape struct {
	words     []string
	has       func(name string) bool
	why, hint string
}

var wrongShapes = []shape{
	{[]string{"rdns", "own-name", "local-domains"}, isAddress, "an address is not a name", "use src or own-address"},
	{[]string{"helo", "mail-from", "rcpt-to"}, isNetwork, "a network is not a name", "use src"},
	{[]string{"mail-from", "rcpt-to"}, func(s string) bool { return s != "<>" && strings.HasPrefix(s, "<") }, "addresses are compared without < and >", "write the address only"},
	{[]string{"rdns", "own-name", "local-domains"}, func(s string) bool { return strings.Contains(s, "@") }, "a mail address is not a host or domain", "write the part after the @"},
	{[]string{"own-name"}, func(s string) bool { return strings.HasPrefix(s, ".") || strings.Contains(s, "*") }, "own-name is one host name", "list the names: own-name { mx1.example.org, mx2.example.org }"},
}

func isAddress(s string) bool {
	_, _, err := prefix.Parse(s)
	return err == nil
}

func isNetwork(s string) bool { return strings.Contains(s, "/") && isAddress(s) }

// misshapen returns why a condition with the given word can never match v, and a hint. If the
// condition can match, both are empty.
func misshapen(word string, v Value) (why, hint string) {
	if v.Kind != TextValue {
		return "", ""
	}
	for _, s := range wrongShapes {
		if slices.Contains(s.words, word) && s.has(v.Text) {
			return s.why, s.hint
		}
	}
	return "", ""
}

// checkOwn checks the values of own-name and own-address.
func checkOwn(k *checker, s *Setting) {
	for _, v := range s.Values {
		if why, hint := misshapen(s.Word, v); why != "" {
			k.warnf(v.Pos, hint, "this never matches: %s", why)
		}
		if s.Word != "own-address" {
			continue
		}
		switch a := v.Prefix.Addr(); {
		case v.Prefix.Bits() < 8:
			k.warnf(v.Pos, "list the addresses of this server", "%s is not the network of one site", v.Prefix)
		case a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || carrierNAT.Contains(a):
			k.warnf(v.Pos, "list public addresses only", "this never matches: %s is private, so other hosts can have the same address", v.Prefix)
		}
	}
}

var carrierNAT = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598

// checkPairs calls the functions in pairTraps. checkPairs also warns of two conditions that require
// different values of the same fact.
func checkPairs(k *checker, cs []*Cond) {
	for i, a := range cs {
		for j, b := range cs {
			for _, trap := range pairTraps {
				if i != j {
					trap(k, a, b)
				}
			}
			if j < i && !a.Not && !b.Not && disjoint(a, b) {
				k.warnf(a.Pos, "", "this never matches: it contradicts `%s`", b)
			}
		}
	}
}

func failedAndLoggedIn(k *checker, failed, auth *Cond) {
	fails := failed.Word == "auth-failed"
	if failed.Word == "evidence" || failed.Word == "count" && failed.Window == 0 {
		fails = !slices.ContainsFunc(failed.Values, func(v Value) bool { return v.Text != "auth-failure" && v.Text != "auth-unsupported" })
	}
	if auth.Word != "auth" || auth.Not || failed.Not || !fails {
		return
	}
	hint := "`auth` is a user who has logged in; count failures instead: count auth-failure > 10 in 1h by user"
	if conditionByWord("auth-failed") != nil {
		hint = "`auth` is a user who has logged in; for a failed login use auth-failed"
	}
	k.warnf(auth.Pos, hint, "`%s` does not match failed logins", auth)
}

// namelessAndNamed warns of two conditions of which one requires a proven name and the other
// requires that there is none.
func namelessAndNamed(k *checker, nameless, named *Cond) {
	if nameless.Word != "evidence" || nameless.Not || len(nameless.Values) > 1 || named.Not {
		return
	}
	proven := named.Word == "fcrdns" && len(named.Values) == 1 && named.Values[0].Text == "pass"
	switch e := nameless.Values[0].Text; {
	case proven && (e == "rdns-missing" || e == "fcrdns-fail"), named.Word == "rdns" && e == "rdns-missing":
		k.warnf(nameless.Pos, "", "this never matches: it contradicts `%s`", named)
	}
}

// listedAndKnown warns of a condition on DNS lists together with a condition on standing, if DNS
// lists are not asked about clients with this standing.
func listedAndKnown(k *checker, listed, standing *Cond) {
	if listed.Word == "listed" && !standing.Not && slices.Contains([]string{"known", "trusted"}, standing.Word) {
		k.warnf(listed.Pos, "", "this never matches: DNS lists are only asked about clients that are not `%s`", standing)
	}
}

// excluded warns of a condition if a negated condition contradicts it.
func excluded(k *checker, a, not *Cond) {
	if a.Not || !not.Not || a.same(not) {
		return
	}
	positive := *not
	positive.Not = false
	if a.implies(&positive) {
		k.warnf(a.Pos, "", "this never matches: it contradicts `%s`", not)
	}
}

// disjoint reports whether no session can match both a and b. Two conditions are disjoint if their
// fact has a single value and they have no common value.
func disjoint(a, b *Cond) bool {
	if a.Word != b.Word || len(a.Values)*len(b.Values) == 0 || len(a.Values)*len(b.Values) > maxCompare {
		return false
	}
	for _, v := range a.Values {
		for _, x := range b.Values {
			if !v.single(a.Word) || !x.single(a.Word) || v.within(x) || x.within(v) {
				return false
			}
		}
	}
	return true
}

// single reports whether the fact of the condition word has a single value. A fact with a single
// value can match two values only if one of them includes the other.
func (v Value) single(word string) bool {
	switch word {
	case "src", "asn", "country", "fcrdns":
		return v.Kind != TableValue
	case "rdns", "helo":
		return v.Kind == TextValue && !strings.Contains(v.Text, "*")
	case "mail-from", "rcpt-to":
		local, domain, ok := strings.Cut(v.Text, "@")
		return v.Kind == TextValue && ok && local != "" && domain != "" && !strings.Contains(v.Text, "*")
	}
	return false
}

// chosen lists the conditions on facts that every client can choose.
var chosen = []string{"mail-from", "helo", "fcrdns", "tls"}

// unprovenPass warns of a pass statement that every client can match by choosing its sender or
// greeting.
func unprovenPass(k *checker, p *Pass) {
	var forged *Cond
	for _, c := range p.Conds {
		switch {
		case c.Not || c.Word == "listener":
		case slices.Contains(chosen, c.Word):
			if forged == nil {
				forged = c
			}
		default:
			return
		}
	}
	if forged != nil {
		k.warnf(forged.Pos, "add a proof: src, or rdns with fcrdns, as in rdns \".example.org\" fcrdns", "any client can choose `%s`: this exempts every client that does", forged)
	}
}

// beforeLogin is the set of phases in which a user cannot have logged in yet.
var beforeLogin = smtp.Phases(smtp.PhaseConnect, smtp.PhaseHelo)

// homely lists examples of reverse DNS names of home connections.
var homely = []string{"p5dd0a1b2.dip0.t-ipconnect.de", "dsl-192-0-2-7.pool.isp.invalid", "dynamic-192-0-2-7.dyn.isp.invalid", "192-0-2-7.cable.dhcp.isp.invalid"}

// usersHave maps conditions to functions. A function reports whether a condition probably matches
// users, who connect from home and mobile networks.
var usersHave = map[string]func(*checker, *Cond) bool{
	"evidence": func(_ *checker, c *Cond) bool {
		return slices.ContainsFunc(c.Values, func(v Value) bool { return v.Text == "rdns-missing" || v.Text == "fcrdns-fail" })
	},
	"fcrdns": func(_ *checker, c *Cond) bool {
		return c.Not == slices.ContainsFunc(c.Values, func(v Value) bool { return v.Text == "pass" })
	},
	"rdns": func(_ *checker, c *Cond) bool {
		return slices.ContainsFunc(c.Values, func(v Value) bool {
			return v.Kind != TableValue && slices.ContainsFunc(homely, func(name string) bool { return newPattern(v, false).match([]byte(name)) })
		})
	},
	"score": func(k *checker, c *Cond) bool {
		return slices.ContainsFunc(k.weights, func(w *Weight) bool {
			return w.Score > c.Over && (w.Token.Evidence == RDNSMissing || w.Token.Evidence == FCrDNSFail)
		})
	},
}

// hitsUsers warns of a rule that rejects mail programs of users before they can log in.
func hitsUsers(k *checker, r *Rule) {
	early := r.Phases
	if !r.bans() {
		early &= beforeLogin
	} else {
		early &= beforeLogin | smtp.Phases(smtp.PhaseEnd)
	}
	if r.Observe || r.On != "" || early == 0 || !r.bans() && !(r.Decides && r.Decision >= smtp.Reject) {
		return
	}
	var cause *Cond
	for _, c := range r.Conds {
		has := usersHave[c.Word]
		switch {
		case c.Word == "listener" || c.Word == "auth":
			return
		case has != nil && (!c.Not || c.Word == "fcrdns") && has(k, c):
			cause = c
		case !c.Not && c.Word != "fcrdns":
			return // another condition limits the rule to certain clients
		}
	}
	if cause != nil {
		k.warnf(cause.Pos, "add `on` with a listener on port 25, or use phase mail-from: users have logged in by then",
			"rule %s also rejects users before they log in: `%s` is usual for home connections", r.Name, cause)
	}
}

// bans reports whether r bans clients.
func (r *Rule) bans() bool { return actionByWord(token{text: "ban"}).has(r) }

// elsewhere warns of a condition on a listener if the statement applies only to a different
// listener.
func elsewhere(k *checker, on string, cs []*Cond) {
	mine := k.listens[on]
	for _, c := range cs {
		if c.Word != "listener" || c.Not || mine == nil {
			continue
		}
		if !slices.ContainsFunc(c.Values, func(v Value) bool { return k.listens[v.Text] == nil || k.listens[v.Text].overlaps(mine) }) {
			k.warnf(c.Pos, "remove it, or `on "+on+"`", "this never matches: listener %s has different ports or addresses", on)
		}
	}
}

// overlaps reports whether a session can belong to both listeners.
func (l *Listener) overlaps(x *Listener) bool {
	port := func(p uint16) bool { return slices.Contains(x.Ports, p) }
	addr := func(a netip.Addr) bool { return slices.Contains(x.Addresses, a) }
	return slices.ContainsFunc(l.Ports, port) && (len(l.Addresses) == 0 || len(x.Addresses) == 0 || slices.ContainsFunc(l.Addresses, addr))
}

// tooHigh warns of a condition on a score that is higher than any possible score.
func tooHigh(k *checker) {
	most := 0
	for _, w := range k.weights {
		most += max(w.Score, 0)
	}
	for _, r := range k.rules {
		most += max(r.Score, 0) * len(r.Phases.List())
	}
	for _, r := range k.rules {
		for _, c := range r.Conds {
			if c.Word == "score" && most > 0 && c.Over >= most {
				k.warnf(c.Pos, "", "this %s matches: the maximum score is %d", never(c), most)
			}
		}
	}
}
