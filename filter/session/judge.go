package session

import (
	"bytes"
	"net/netip"
	"slices"
	"strconv"

	"scanwatch/filter/lookup"
	"scanwatch/rules"
	"scanwatch/store"
)

// finding is one piece of evidence with what proves it.
type finding struct {
	evidence   rules.Evidence
	by         string // what gave it away: rdns, cidr, helo, command, reply, rcpt, auth
	proof      []byte // the client's words
	org        string
	match      string // the row or word that matched
	confidence string // high, medium or low
}

// found tells whether there is evidence against s that is recorded as a
// finding, and not only in the header.
func (s *Session) found() bool {
	return (s.Evidence|s.Weak)&^(rules.RDNSMissing|rules.FCrDNSFail) != 0
}

// exempt sessions are our own: no evidence is gathered against them.
func (t *Table) exempt(s *Session) bool { return s.Local || s.Authed || !s.Src.IsValid() }

// shipped returns the shipped lists; only the first call may have to wait.
func (t *Table) shipped() *lookup.Lists {
	if t.lists == nil {
		t.lists = t.options.Lists()
	}
	return t.lists
}

// judgeConnect looks at the address and its name.
func (t *Table) judgeConnect(s *Session) {
	s.here = t.here(s)
	if t.exempt(s) {
		return
	}
	switch {
	case len(s.RDNS) == 0:
		s.Evidence |= rules.RDNSMissing // the record's header proves it
	case s.FCrDNS == store.FCrDNSFail:
		s.Evidence |= rules.FCrDNSFail
	}
	if row := t.shipped().Addr(s.Src.Addr()); row != nil {
		t.findRow(s, s.start, row, "cidr", nil, row.Confidence)
	}
	var scanner, cloud, allow *lookup.Row
	if len(s.RDNS) > 0 && len(s.RDNS) < cutRDNS {
		scanner, cloud, allow = t.shipped().RDNS(s.RDNS)
	}
	excused := allow != nil && s.FCrDNS == store.FCrDNSPass
	if scanner != nil && !excused {
		t.findRow(s, s.start, scanner, "rdns", nil, s.proven(scanner.Confidence))
	}
	if cloud != nil && !excused {
		t.findRow(s, s.start, cloud, "rdns", nil, s.proven(cloud.Confidence))
	}
	t.place(s)
	t.remember(s)
	if s.placed {
		scanner, cloud = t.shipped().ASN(s.asn)
		var proof []byte
		if scanner != nil || cloud != nil {
			proof = strconv.AppendUint([]byte("AS"), uint64(s.asn), 10)
		}
		if scanner != nil && !excused {
			t.findRow(s, s.start, scanner, "asn", proof, scanner.Confidence)
		}
		if cloud != nil && !excused {
			t.findRow(s, s.start, cloud, "asn", proof, cloud.Confidence)
		}
	}
}

// place looks up AS number and country, if the operator supplies the files.
func (t *Table) place(s *Session) {
	if t.settings == nil {
		return
	}
	if t.settings.ASN != nil {
		var o lookup.Origin
		o, s.placed = t.settings.ASN.Lookup(s.Src.Addr())
		s.asn, s.country = o.ASN, o.Country
	}
	if t.settings.Country != nil {
		if o, ok := t.settings.Country.Lookup(s.Src.Addr()); ok {
			s.country = o.Country
		}
	}
}

// cutRDNS: smtpd cuts reverse DNS names at 64 bytes on Linux, so that the end
// of a name that long may stand in the middle of the real one.
const cutRDNS = 64

// proven lowers the confidence of what a reverse DNS name says, unless the
// name leads back to the address: anybody can name his address as he likes.
func (s *Session) proven(confidence string) string {
	if s.FCrDNS != store.FCrDNSPass {
		return "low"
	}
	return confidence
}

// judgeHelo looks at the greeting of the client. It has seen it already if smtpd
// asked before it told.
func (t *Table) judgeHelo(s *Session, at int64) {
	if t.exempt(s) || s.judged {
		return
	}
	s.judged = true
	// A mail client of one of our users says whatever its computer is called.
	here := s.here
	anyName := here || s.submission()
	bot, scanner, _ := t.shipped().Helo(s.Helo)
	// A name that DNS proves is neither forged nor somebody else's.
	proven := s.FCrDNS == store.FCrDNSPass && len(s.RDNS) < cutRDNS && bytes.EqualFold(s.RDNS, s.Helo)
	for _, row := range [...]*lookup.Row{bot, scanner} {
		if row != nil && proven && row.Evidence == "helo-forged" {
			continue
		}
		if row != nil && (!anyName || row.Evidence == "botnet-helo" || row.Evidence == "scanner") {
			t.findRow(s, at, row, "helo", s.Helo, row.Confidence)
		}
	}
	if here {
		return
	}
	if !anyName && !proven && t.forged(s.Helo) {
		t.find(s, at, finding{evidence: rules.HeloForged, by: "helo", proof: s.Helo, match: "local domain", confidence: "medium"})
	}
	if !proven && t.ownName(s.Helo) {
		t.find(s, at, finding{evidence: rules.HeloOwnName, by: "helo", proof: s.Helo, confidence: "high"})
	}
	if a, ok := heloAddr(s.Helo); ok && (t.ownAddr(a) || a == s.Dst.Addr()) {
		t.find(s, at, finding{evidence: rules.HeloOwnAddress, by: "helo", proof: s.Helo, confidence: "high"})
	}
}

// forged tells whether a stranger greets with the bare name of a domain whose
// mail comes here.
func (t *Table) forged(name []byte) bool {
	local, _ := t.localDomain(name)
	return local && !t.ownName(name)
}

// here tells whether the client is of our own house: this host, or a network
// that the internet does not reach (RFC 1918, RFC 4193, link-local). What these
// call themselves is their owner's affair.
func (t *Table) here(s *Session) bool {
	a := s.Src.Addr()
	return t.ownAddr(a) || a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast()
}

// ownAddr tells whether a is this host's, or one that the operator says is.
func (t *Table) ownAddr(a netip.Addr) bool {
	if t.own[a] {
		return true
	}
	if t.settings != nil {
		for _, p := range t.settings.Policy.OwnAddresses {
			if p.Contains(a) {
				return true
			}
		}
	}
	return false
}

// ownName tells whether name is what smtpd greets with, the name of the site,
// or one that the operator says is ours.
func (t *Table) ownName(name []byte) bool {
	if len(name) == 0 {
		return false
	}
	if bytes.EqualFold(name, t.name) || bytes.EqualFold(name, t.admd) {
		return true
	}
	if t.settings != nil {
		for _, own := range t.settings.Policy.OwnNames {
			if isFold(name, own) {
				return true
			}
		}
	}
	return false
}

// localDomain tells whether mail for domain is ours. sure says that the
// operator has named all domains, so that no is no.
func (t *Table) localDomain(domain []byte) (local, sure bool) {
	if t.settings != nil {
		if table := t.settings.Policy.Table("local-domains"); table != nil {
			return table.MatchName(domain), true
		}
	}
	return t.memory.Local(domain), false
}

// submission tells whether the session came to a port for mail clients of
// our users, which greet with whatever their computer is called.
func (s *Session) submission() bool { return s.Dst.Port() == 465 || s.Dst.Port() == 587 }

// heloAddr reads an address, bare or as a literal (RFC 5321 section 4.1.3).
func heloAddr(b []byte) (netip.Addr, bool) {
	if n := len(b); n > 1 && b[0] == '[' && b[n-1] == ']' {
		b = b[1 : n-1]
	}
	if hasPrefixFold(b, "IPV6:") {
		b = b[5:]
	}
	if len(b) == 0 || len(b) > 45 || b[0] != ':' && (b[0] < '0' || b[0] > '9') && bytes.IndexByte(b, ':') < 0 {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(string(b))
	return a.Unmap().WithZone(""), err == nil
}

// judgeCommand looks at a command that smtpd refused. Proof is its line as it may
// be kept.
func (t *Table) judgeCommand(s *Session, proof []byte) {
	c := &s.cmd
	if t.exempt(s) || c.filtered {
		return
	}
	switch c.verb {
	case verbAuth:
		if c.code == 503 || c.code == 504 {
			s.unsupported++
			t.memory.Note(t.whois(s), rules.AuthUnsupported, c.at)
			t.find(s, c.at, finding{evidence: rules.AuthUnsupported, by: "command", proof: proof, confidence: "high"})
		}
	case verbHelo, verbEhlo:
		// smtpd takes only what may be a host name or an address literal.
		if c.code == 501 && !s.here && !s.submission() {
			t.find(s, c.at, finding{evidence: refusedGreeting(c.line), by: "helo", proof: proof, confidence: "medium"})
		}
	case verbMail, verbRcpt:
		switch {
		case c.code == 503 && !s.saidHelo:
			t.find(s, c.at, finding{evidence: rules.HeloMissing, by: "command", proof: proof, confidence: "medium"})
		case c.code == 501 || c.code == 553:
			t.find(s, c.at, finding{evidence: rules.SyntaxError, by: "command", proof: proof, confidence: "low"})
		}
	case verbUnknown:
		if string(c.line) == stars {
			return // a line of a refused AUTH, or a password
		}
		if row := t.shipped().Line(c.line); row != nil && row.Evidence == "scanner" {
			t.findRow(s, c.at, row, "command", proof, row.Confidence)
		}
		t.memory.Note(t.whois(s), rules.UnknownCommand, c.at)
		evidence := language(c.line)
		if evidence == rules.UnknownCommand && (s.Evidence|s.Weak)&foreign != 0 {
			return // the rest of what it says in that language
		}
		t.find(s, c.at, finding{evidence: evidence, by: "command", proof: proof, confidence: "high"})
	}
}

// refusedGreeting tells what is wrong with a greeting that smtpd refused.
func refusedGreeting(line []byte) rules.Evidence {
	_, name := cutWord(line)
	if len(name) == 0 {
		return rules.HeloMissing
	}
	if _, ok := heloAddr(name); ok && name[0] != '[' {
		return rules.HeloBareAddress // IPv6; smtpd takes bare IPv4
	}
	return rules.HeloInvalid
}

// languages tells what protocol a line belongs to; the first that fits.
var languages = []struct {
	evidence rules.Evidence
	is       func(line []byte) bool
}{
	{rules.TalksSSH, func(l []byte) bool { return bytes.HasPrefix(l, []byte("SSH-")) }},
	{rules.TalksHTTP, isHTTP},
	// The type and the major version of a TLS record, RFC 8446 section 5.1.
	{rules.TalksTLS, func(l []byte) bool { return bytes.HasPrefix(l, []byte{0x16, 0x03}) }},
	{rules.TalksBinary, func(l []byte) bool { return bytes.ContainsFunc(l, isBinary) }},
}

// foreign are the languages that are not SMTP.
const foreign = rules.TalksSSH | rules.TalksHTTP | rules.TalksTLS | rules.TalksBinary

func language(line []byte) rules.Evidence {
	for _, l := range languages {
		if l.is(line) {
			return l.evidence
		}
	}
	return rules.UnknownCommand
}

// isHTTP recognises a request line (RFC 9112 section 3) of HTTP and of its
// relatives.
func isHTTP(line []byte) bool {
	return bytes.Contains(line, []byte(" HTTP/")) || bytes.Contains(line, []byte(" RTSP/"))
}

func isBinary(r rune) bool { return r < ' ' && r != '\t' && r != '\r' || r == 0x7f || r == '\uFFFD' }

// judgeInput looks at smtpd's complaint about input that was no command.
func (t *Table) judgeInput(s *Session, reply []byte, at int64) {
	if !t.exempt(s) && bytes.Contains(reply, []byte("Pipelining not supported")) {
		match := ""
		if s.Counts.Commands == 0 {
			match = "first" // HTTP, TLS or SSH in one piece, or a whole script: nobody who speaks SMTP
			s.abused = true
		}
		t.find(s, at, finding{evidence: rules.Pipelining, by: "reply", proof: reply, match: match, confidence: "high"})
	}
}

func (t *Table) judgeAuth(s *Session, user []byte, r store.Result, at int64) {
	switch {
	case s.Local || !s.Src.IsValid():
	case r == store.ResultPass:
		t.memory.LoggedIn(t.whois(s), at)
	case r == store.ResultFail && !s.Authed:
		spray, sure := t.memory.LoginFailed(t.whois(s), at)
		t.find(s, at, finding{evidence: rules.AuthFailure, by: "auth", proof: user, confidence: "high"})
		if spray != "" {
			// A user who is attacked from everywhere, or whose neighbour
			// attacks, mistypes like anybody.
			confidence := "low"
			if sure {
				confidence = "high"
			}
			t.find(s, at, finding{evidence: rules.AuthSpray, by: "memory", proof: user, match: spray, confidence: confidence})
		}
	}
}

// accepted counts a recipient, but not one that was accepted lately: to name one
// who exists again and again must not hide guesses.
func (s *Session) accepted(addr []byte) {
	h := uint16(1)
	for _, c := range addr {
		h = h*31 + uint16(c|0x20)
	}
	if !slices.Contains(s.okSeen[:], h) {
		s.okSeen[s.okNext%uint8(len(s.okSeen))] = h
		s.okNext++
		s.okDistinct++
	}
}

// judgeRcpt looks at the outcome of a RCPT. A refused address in a foreign
// domain is an attempt to relay, one in a domain of ours a stranger's guess.
// The forged recipient of such an attempt is a victim, never a culprit. Shown is
// the address as it may be kept.
func (t *Table) judgeRcpt(s *Session, addr, shown []byte, r store.Result, code uint32, at int64) {
	if t.exempt(s) {
		return
	}
	domain, odd := domainOf(addr)
	local, sure := t.localDomain(domain)
	switch {
	case r == store.ResultOK:
		s.accepted(addr)
		// Hosts of ours, and friends, may send anywhere.
		if !odd && !s.here && !s.cmd.passed {
			t.memory.Learn(domain, at)
			t.memory.Accepted(addr, at)
		}
	case code == 501 || code == 553:
		t.find(s, at, finding{evidence: rules.SyntaxError, by: "rcpt", proof: shown, confidence: "low"})
	case r != store.ResultPermfail || code == 503:
		// later, or out of order: nothing is known of the recipient
	case odd:
		s.probes++
		t.memory.Note(t.whois(s), rules.RelayProbe, at)
		t.find(s, at, finding{evidence: rules.RelayProbe, by: "rcpt", proof: shown, match: "route", confidence: "high"})
	case len(domain) > 0 && !local && (sure || t.memory.KnowsDomains()):
		confidence := "low" // a domain of ours may be new
		if sure {
			confidence = "high"
			s.probes++
			t.memory.Note(t.whois(s), rules.RelayProbe, at)
		}
		t.find(s, at, finding{evidence: rules.RelayProbe, by: "rcpt", proof: shown, match: "domain", confidence: confidence})
	default:
		t.judgeUnknown(s, addr, shown, code, local, at)
	}
}

// judgeUnknown looks at a recipient who does not exist here, or may as well be
// one of an attempt to relay.
func (t *Table) judgeUnknown(s *Session, addr, shown []byte, code uint32, local bool, at int64) {
	match, confidence := "undecided", "low"
	if !local {
		s.undecided++
	} else {
		s.unknown++
		s.tx.unknown++
		match, confidence = "domain", told(code)
		// Bounces go to senders that were forged, and old lists have
		// members who left: neither adds up to guessing.
		if len(s.tx.sender) > 0 && s.unknown > s.okDistinct {
			t.memory.Note(t.whois(s), rules.UnknownRecipient, at)
		}
	}
	t.find(s, at, finding{evidence: rules.UnknownRecipient, by: "rcpt", proof: shown, match: match, confidence: confidence})
	t.judgeProbed(s, addr, at)
	if s.Counts.RcptOK == 0 && len(s.tx.sender) > 0 && !t.seenGood(s, at) {
		// Somebody who knows others here, or wrote before, has an old
		// list, and bounces go to senders that were forged: they do not
		// guess.
		t.memory.Refused(t.whois(s), addr, at)
	}
	if s.Evidence.Has(rules.Harvest) {
		return // and nothing more to say
	}
	if how, confidence := t.harvest(s, at); how != "" {
		if confidence == "high" {
			confidence = told(code)
		}
		t.find(s, at, finding{evidence: rules.Harvest, by: "rcpt", proof: shown, match: how, confidence: confidence})
	}
}

// told is how sure it is that a recipient was refused because nobody is called so:
// without smtpd's reply it may as well be a filter that did not like him.
func told(code uint32) string {
	if code == 0 {
		return "medium"
	}
	return "high"
}

// The numbers of refused recipients in one session from which on it may be
// called a harvest.
const (
	harvestAt   = 5  // of a stranger, so that the sixth is cut
	harvestGood = 10 // of a host that sent much good mail before
	harvestNull = 3  // in one transaction of the null sender
)

// harvest tells how a session shows that it guesses recipients.
//
// Their number alone does not: a list of five thousand has fifty who left. So
// more must have been refused than accepted, and twice as many of a host whose
// mail is known. Nor does speed: every mail server is fast. The null sender's
// mail has one recipient (RFC 5321 section 4.5.5), so three who do not exist
// in one transaction are enough; several transactions are a server that bounces
// mail with forged senders.
func (t *Table) harvest(s *Session, at int64) (how, confidence string) {
	least := uint32(harvestAt)
	if t.memory.Trusted(t.whois(s), at) {
		least = harvestGood
	}
	switch {
	case s.unknown >= least && s.unknown > s.okDistinct:
		return "share", "high"
	case s.tx.open && len(s.tx.sender) == 0 && s.tx.unknown >= harvestNull:
		return "null-sender", "high"
	case s.unknown+s.undecided >= least && s.unknown+s.undecided > s.okDistinct:
		// No recipient was ever accepted here, so that it may as well be
		// attempts to relay. Neither is what mail servers do.
		return "undecided", "medium"
	}
	return "", ""
}

// judgeProbed recognises a recipient that hosts of other networks asked for,
// and that never existed.
func (t *Table) judgeProbed(s *Session, addr []byte, at int64) {
	if t.exempt(s) || (s.Evidence | s.Weak).Has(rules.ProbedRecipient) || !t.memory.Probed(t.whois(s), addr, at) {
		return
	}
	t.find(s, at, finding{evidence: rules.ProbedRecipient, by: "memory", proof: t.shownRcpt(addr, false, at), confidence: "medium"})
}

// domainOf returns the domain of a recipient. odd tells that the address asks
// to be sent on: a source route, or the percent or bang form (RFC 5321
// sections 3.6.1 and 4.1.1.3, appendix C).
func domainOf(addr []byte) (domain []byte, odd bool) {
	i := bytes.LastIndexByte(addr, '@')
	if i < 0 {
		return nil, bytes.IndexByte(addr, '!') > 0
	}
	local := addr[:i]
	odd = bytes.HasPrefix(addr, []byte{'@'}) || bytes.ContainsAny(local, "%!@")
	return addr[i+1:], odd
}

func (t *Table) findRow(s *Session, at int64, row *lookup.Row, by string, proof []byte, confidence string) {
	token := rules.TokenByName(row.Evidence)
	if token == nil {
		return // too weak to count as evidence
	}
	f := finding{evidence: token.Evidence, by: by, proof: proof, match: row.Value, confidence: confidence}
	if f.evidence&(rules.Scanner|rules.Cloud|rules.BotnetHelo) != 0 {
		f.org = row.Org // elsewhere the column says what the row is about
	}
	t.find(s, at, f)
}

// find notes a finding: once per session and kind of evidence, and once more
// if the confidence rises from low.
func (t *Table) find(s *Session, at int64, f finding) {
	low := f.confidence == "low"
	if s.Evidence.Has(f.evidence) || low && s.Weak.Has(f.evidence) {
		return
	}
	if low {
		s.Weak |= f.evidence
	} else {
		s.Evidence |= f.evidence
		s.Weak &^= f.evidence
		s.abused = s.abused || f.evidence&Abuse != 0
		if f.evidence&eachTime == 0 {
			t.memory.Note(t.whois(s), f.evidence, at)
		}
	}
	token := f.evidence.String()
	t.step(s, at, &store.Step{
		Kind: store.KindFinding, Text: []byte(token), Arg: f.proof, Org: []byte(f.org),
		By: []byte(f.by), Match: []byte(f.match), Confidence: []byte(f.confidence),
	})
	if t.options.Event != nil {
		e := t.eventOf(s, "finding", at)
		e.Evidence, e.Confidence, e.Org, e.By, e.Match, e.Proof = token, f.confidence, f.org, f.by, f.match, string(f.proof)
		t.options.Event(e)
	}
	if t.tell(s, logFinding, token, at) {
		t.logFinding(s, token, &f)
	}
}

// eachTime is the evidence that is counted over sessions each time it comes up;
// all other counts once in a session. What has low confidence never counts.
const eachTime = rules.UnknownRecipient | rules.RelayProbe | rules.AuthFailure | rules.AuthUnsupported | rules.UnknownCommand

// Abuse is the evidence of what no mail server does: who gives it has no good
// name left, unless it has low confidence.
const Abuse = rules.Scanner | rules.BotnetHelo | foreign | rules.Harvest | rules.RelayProbe | rules.AuthSpray | rules.Campaign

// Language is what a refused line of a client is evidence of by itself, 0 if it may
// be a secret and is not looked at.
func Language(line []byte) rules.Evidence {
	shown, _, secret := redact(nil, line, false, false)
	if secret || string(shown) == stars {
		return 0
	}
	return language(shown)
}
