package detect

// This file holds the detectors that examine the client's address and names.

import (
	"bytes"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"scanwatch/filter/lookup"
	"scanwatch/internal/hostname"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
)

var clientDetectors = []detector{
	{"reverse DNS", on(smtp.EventConnect), reverseDNS, unauthenticated},
	{"listed address", on(smtp.EventConnect), listedAddress, unauthenticated},
	{"listed name", on(smtp.EventConnect), listedName, unauthenticated},
	{"flood", on(smtp.EventConnect), flood, unauthenticated},
	{"listed AS", on(smtp.EventConnect), listedAS, unauthenticated},
	{"DNS block list", on(smtp.EventListed), blockListed, unauthenticated},
	{"changed greeting", on(smtp.EventHelo, smtp.EventRequest), changedGreeting, unauthenticated},
	{"listed greeting", on(smtp.EventHelo, smtp.EventRequest), listedGreeting, unauthenticated},
	{"forged greeting", on(smtp.EventHelo, smtp.EventRequest), forgedGreeting, unauthenticated},
	{"rejected greeting", on(smtp.EventHelo), rejectedGreeting, unauthenticated},
}

// reverseDNS reports a client without a reverse DNS name, or with a name that fails FCrDNS. smtpd
// truncates long names. A truncated name always fails FCrDNS, so this failure is not reported. If
// the server has reported neither a name nor an FCrDNS result, the client may have a name, so
// nothing is reported.
func reverseDNS(c *Case) {
	switch {
	case c.nameUnreported():
	case len(c.RDNS) == 0:
		c.find(Finding{Evidence: rules.RDNSMissing, Confidence: High, Implied: true})
	case c.FCrDNS == smtp.FCrDNSFail && !c.RDNSCut:
		c.find(Finding{Evidence: rules.FCrDNSFail, Confidence: High, Implied: true})
	}
}

// nameUnreported reports whether the server has not reported if the client has a reverse DNS name.
// Some logs do not contain reverse DNS names.
func (c *Case) nameUnreported() bool { return len(c.RDNS) == 0 && c.FCrDNS == smtp.FCrDNSUnknown }

// listedAddress reports a client whose address is in the shipped lists. A name that passes FCrDNS
// takes precedence over the address. If the proven name belongs to a scanner, listedName reports
// the scanner instead. If the proven name shows that the rented address has a different customer
// now, the confidence is low.
func listedAddress(c *Case) {
	row := c.Lists.Addr(c.Src.Addr())
	if row == nil {
		return
	}
	confidence := row.ConfidenceAt(time.UnixMicro(c.Event.Time))
	if proven := c.ProvenName(); len(proven) > 0 {
		scanner, _, exempt := c.names()
		switch {
		case exempt || scanner != nil && scanner.Confidence != Low:
			return
		case scanner == nil && row.Rented() && !hostname.Generic(proven):
			confidence = Low
		}
	}
	c.findRow(row, "cidr", nil, confidence)
}

// listedName reports a client whose reverse DNS name is in the shipped lists. The owner of an
// address can publish any name, so the confidence is low unless the name passes FCrDNS. A truncated
// name is ignored, because its last label may be incomplete. A hosting provider's name shows that
// the host is rented, but not who rents it, so the confidence is low.
func listedName(c *Case) {
	scanner, cloud, exempt := c.names()
	if exempt {
		return
	}
	confidence := ""
	if c.FCrDNS != smtp.FCrDNSPass {
		confidence = Low
	}
	c.findRow(scanner, "rdns", nil, confidence)
	c.findRow(cloud, "rdns", nil, Low)
}

// names returns the rows of the lists that match the reverse DNS name. exempt reports whether the
// name is proven and belongs to a listed legitimate sender or to a mail host of a scanning
// organisation.
func (c *Case) names() (scanner, cloud *lookup.Row, exempt bool) {
	if len(c.RDNS) == 0 || c.RDNSCut {
		return nil, nil, false
	}
	scanner, cloud, allow := c.Lists.RDNS(c.RDNS)
	return scanner, cloud, c.FCrDNS == smtp.FCrDNSPass && (allow != nil || c.Lists.ScannerMail(c.RDNS))
}

// listedAS reports a client whose AS number is in the shipped lists. Providers of rented hosts may
// also run mail servers. A truncated name does not show whether the client is such a server, so
// clients with truncated names are ignored.
func listedAS(c *Case) {
	if !c.ASNKnown || c.RDNSCut {
		return
	}
	scanner, cloud := c.Lists.ASN(c.ASN)
	if scanner == nil && cloud == nil {
		return
	}
	if _, _, exempt := c.names(); exempt {
		return
	}
	proof := strconv.AppendUint([]byte("AS"), uint64(c.ASN), 10)
	c.findRow(scanner, "asn", proof, "")
	c.findRow(cloud, "asn", proof, "")
}

// blockListed reports that a DNS block list contains the client. DNS answers can be forged, so the
// confidence is never high.
func blockListed(c *Case) {
	if c.Event.Result == smtp.ResultFail {
		c.find(Finding{Evidence: rules.Listed, By: "dns", Proof: c.Event.Text, Match: string(c.Event.Name) + " " + string(c.Event.Word), Confidence: Medium})
	}
}

// findRow reports a row of a list that matches the client. If confidence is not empty, it replaces
// the row's confidence.
func (c *Case) findRow(row *lookup.Row, by string, proof []byte, confidence string) {
	if row == nil {
		return
	}
	token := rules.TokenByName(row.Evidence)
	if token == nil {
		return // a row without an evidence token is only used together with others
	}
	f := Finding{Evidence: token.Evidence, By: by, Proof: proof, Match: row.Value, Confidence: row.Confidence}
	if confidence != "" {
		f.Confidence = confidence
	}
	switch {
	case row.Class == "tester":
		f.Confidence = Low // the postmaster may have started the test
	case c.Submission && (by == "cidr" || by == "asn"):
		f.Confidence = Low // users also log in from listed networks
	}
	if f.Evidence&(rules.Scanner|rules.Cloud|rules.BotnetHelo) != 0 {
		f.Org = row.Org // other lists use this column for something else
	}
	c.find(f)
}

// FloodAt is the maximum number of sessions that a source may have open without being reported as a
// flood. Postfix opens fewer than 25 connections to one destination.
const FloodAt = 50

// flood reports a source with too many open sessions.
func flood(c *Case) {
	if c.Live > FloodAt {
		c.find(Finding{Evidence: rules.Flood, By: "memory", Confidence: Medium})
	}
}

// changedGreeting reports a client that greets again with a different name.
func changedGreeting(c *Case) {
	if c.greets() && c.NewHelo && len(c.PrevHelo) > 0 {
		c.find(Finding{Evidence: rules.HeloChanged, By: "helo", Proof: c.Helo, Match: string(c.PrevHelo), Confidence: Medium})
	}
}

// greets reports whether the event is a greeting that smtpd has not rejected.
func (c *Case) greets() bool {
	if c.Event.Kind == smtp.EventRequest {
		return c.Event.Phase == smtp.PhaseHelo
	}
	return c.Event.Result == smtp.ResultOK
}

// anyName reports whether the client may greet with any name. For example, the mail programs of
// local users greet with the name of their computer.
func (c *Case) anyName() bool { return c.Internal || c.Submission }

// provenHelo reports whether FCrDNS proves that the client may use the name in its greeting. FCrDNS
// proves this if the greeting and the client's proven name have the same registered domain, and
// therefore the same owner.
func (c *Case) provenHelo() bool {
	name := bytes.TrimRight(c.ProvenName(), ".")
	return len(name) > 0 && (bytes.EqualFold(name, bytes.TrimRight(c.Helo, ".")) || sameOwner(name, c.Helo))
}

// sameOwner reports whether two names have the same registered domain.
func sameOwner(a, b []byte) bool {
	domain := hostname.Registered(a)
	return domain != "" && domain == hostname.Registered(b)
}

// provenWord reports whether the greeting is the first label of the client's proven
// name.
func (c *Case) provenWord() bool {
	label, _, dot := bytes.Cut(c.ProvenName(), []byte{'.'})
	return dot && len(label) > 0 && bytes.EqualFold(label, c.Helo)
}

// forged returns the confidence that a greeting is forged. The greeting's name is one that the
// client could not prove to be its own. The argument is the confidence that the name belongs to a
// different owner.
//
// forged returns "" if the reverse DNS name is truncated or was not reported, because it then
// proves nothing. If the client has no proven name, the confidence is at most medium, because DNS
// may have failed. The confidence is low if the unproven reverse DNS name agrees with the greeting.
func (c *Case) forged(confidence string) string {
	switch {
	case c.RDNSCut || c.nameUnreported():
		return ""
	case len(c.ProvenName()) > 0 || confidence == Low:
		return confidence
	case sameOwner(c.RDNS, c.Helo):
		return Low
	}
	return Medium
}

// toolGreeting returns the confidence of a row about a greeting of a tool, a botnet or a scanning
// organisation, or "" if the greeting proves nothing.
//
// A pattern can match any host name with the same first label. If the client proves that it may use
// the name, the resemblance proves nothing. Any client can greet with a name in the domain of a
// scanning organisation, so the confidence is low unless the greeting is proven. If a private suffix
// follows the name of a tool, and the client has a proven name, the confidence is also low: an
// owner may have given a mail server the name of a tool by coincidence.
func (c *Case) toolGreeting(row *lookup.Row) string {
	proven := c.provenHelo()
	switch {
	case len(c.ProvenName()) > 0 && lookup.PrivateName(c.Helo) && !row.IsPattern():
		return Low
	case proven && row.IsPattern():
		return ""
	case !proven && row.Evidence == "scanner" && row.Value[0] == '.':
		return Low
	}
	return row.Confidence
}

// listedGreeting reports a greeting that is in the shipped lists.
func listedGreeting(c *Case) {
	if !c.greets() || !c.NewHelo {
		return
	}
	bot, scanner, _ := c.Lists.Helo(c.Helo)
	word := c.Lists.Word(c.Helo)
	if bot == nil && scanner == nil && word == nil || c.provenWord() {
		return
	}
	tool := bot != nil && bot.Evidence == "botnet-helo" || scanner != nil
	if word != nil && !tool && !c.anyName() && !c.provenHelo() && !c.Site.OwnName(c.Helo) {
		c.findRow(word, "helo", c.Helo, Low)
	}
	for _, row := range [...]*lookup.Row{bot, scanner} {
		switch {
		case row == nil:
		case row.Evidence == "helo-forged":
			if confidence := c.forged(row.Confidence); confidence != "" && !c.anyName() && !c.provenHelo() {
				c.findRow(row, "helo", c.Helo, confidence)
			}
		case row.Evidence == "botnet-helo" || row.Evidence == "scanner":
			if confidence := c.toolGreeting(row); confidence != "" {
				c.findRow(row, "helo", c.Helo, confidence)
			}
		case !c.anyName():
			confidence := ""
			if row.Evidence == "cloud" {
				confidence = Low // a provider's name does not show who rents the host
			}
			c.findRow(row, "helo", c.Helo, confidence)
		}
	}
}

// forgedGreeting reports a greeting that uses a local domain, a local host name or a
// local address.
func forgedGreeting(c *Case) {
	if !c.greets() || !c.NewHelo || c.Internal {
		return
	}
	switch {
	case c.Site.OwnName(c.Helo):
		confidence := High
		if c.RDNSCut || c.FCrDNS == smtp.FCrDNSError {
			confidence = Medium
		}
		if c.nameUnreported() {
			confidence = Low // another host of the site may have this name
		}
		if !c.provenHelo() {
			c.find(Finding{Evidence: rules.HeloOwnName, By: "helo", Proof: c.Helo, Confidence: confidence})
		}
	case !c.anyName():
		if match, confidence := c.foreignName(); confidence != "" && !c.provenHelo() {
			c.find(Finding{Evidence: rules.HeloForged, By: "helo", Proof: c.Helo, Match: match, Confidence: confidence})
		}
	}
	if a, ok := literal(c.Helo); ok && routable(a) && (c.Site.OwnAddr(a) || a == c.Dst.Addr()) {
		c.find(Finding{Evidence: rules.HeloOwnAddress, By: "helo", Proof: c.Helo, Confidence: High})
	}
}

// foreignName reports a greeting with a name that belongs to a different owner. A greeting with a
// local domain is always reported. A greeting with a host name in a local domain, or with the name
// of a known sender's host, is reported only if the client has no reverse DNS name. With a reverse
// DNS name, the client may be a server that a user rents and that greets with a host name in the
// user's domain.
func (c *Case) foreignName() (match, confidence string) {
	if local, _ := c.Site.LocalDomain(c.Helo); local {
		return "local domain", c.forged(Medium)
	}
	if len(c.RDNS) > 0 || c.nameUnreported() || bytes.IndexByte(c.Helo, '.') < 0 {
		return "", ""
	}
	const parents = 6 // limits the work, because a client may greet with 127 labels
	for rest, i := c.Helo, 0; i < parents; i++ {
		_, parent, ok := bytes.Cut(rest, []byte{'.'})
		if !ok || len(parent) == 0 {
			break
		}
		if local, _ := c.Site.LocalDomain(parent); local {
			return "host in a local domain", Low
		}
		rest = parent
	}
	if _, _, sender := c.Lists.RDNS(c.Helo); sender != nil && sender.Confidence != Low {
		return sender.Value, Low
	}
	return "", ""
}

// special lists networks whose addresses do not belong to a single host. special omits networks
// that package netip recognizes. special also omits documentation networks, because tests use them
// for remote hosts.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // carrier-grade NAT (RFC 6598)
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("fec0::/10"),
}

// routable reports whether an address belongs to a single host, unlike loopback and
// private addresses.
func routable(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !slices.ContainsFunc(special, func(p netip.Prefix) bool { return p.Contains(a) })
}

// rejectedGreeting reports a greeting that smtpd rejected because it is neither a host
// name nor an address literal.
func rejectedGreeting(c *Case) {
	if c.Event.Cause != smtp.CauseSyntax || c.anyName() {
		return
	}
	name := c.Event.Name
	evidence := rules.HeloInvalid
	if len(name) == 0 {
		evidence = rules.HeloMissing
	} else if _, ok := literal(name); ok && name[0] != '[' {
		evidence = rules.HeloBareAddress // a bare IPv6 address; smtpd does not reject a bare IPv4 address
	}
	c.find(Finding{Evidence: evidence, By: "helo", Proof: c.Event.Text, Confidence: Medium})
}

// literal parses an address, either bare or as a literal (RFC 5321 section 4.1.3). The text may end
// with a dot.
func literal(b []byte) (netip.Addr, bool) {
	b = bytes.TrimSuffix(b, []byte{'.'})
	if n := len(b); n > 1 && b[0] == '[' && b[n-1] == ']' {
		b = b[1 : n-1]
	}
	if len(b) >= 5 && bytes.EqualFold(b[:5], []byte("IPv6:")) {
		b = b[5:]
	}
	if len(b) == 0 || len(b) > 45 || b[0] != ':' && (b[0] < '0' || b[0] > '9') && bytes.IndexByte(b, ':') < 0 {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(string(b))
	return a.Unmap().WithZone(""), err == nil
}
