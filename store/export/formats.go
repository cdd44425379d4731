package export

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"scanwatch/store/report"
)

// A Format is one way to write a list.
type Format struct {
	Name  string
	Short string // whom it is for
	Load  string // the command that loads it; FILE is where it was written
	Ends  string // how an entry ends at the consumer
	// Only is the length of the addresses that it can express: 32 or 128 bits,
	// 0 for both.
	Only int
	// Disjoint says that no entry may lie within another.
	Disjoint bool
	// EndsItself says that the consumer drops an entry at its end.
	EndsItself bool
	// Renew says that the consumer has to be told when the end of an entry
	// has moved.
	Renew bool
	// Whole says that the consumer takes the first changes, which are
	// everything, in the form of the list.
	Whole bool

	again   time.Duration // after which it is told again of what came again; 0: never
	longest time.Duration // that it takes as the rest of an entry's time; 0: any
	most    int           // entries that it takes at a time; 0: any number
	fits    func(*Entry) bool
	write   func(*bufio.Writer, *List)
	change  func(*bufio.Writer, *Changes) // nil: the file is replaced whole
}

// replaced is how entries end in files that are read whole.
const replaced = "it is not in the next file, which replaces this one whole"

// Formats lists every format.
func Formats() []Format {
	return []Format{
		{Name: "plain", Short: "one address or network a line", Load: "cat FILE", Ends: replaced, write: writePlain, change: changePlain},
		{Name: "json", Short: "one JSON object a line", Load: "jq . FILE", Ends: replaced, Renew: true, write: writeJSON, change: changeJSON},
		{Name: "csv", Short: "comma-separated values with a heading", Load: "any spreadsheet", Ends: replaced, write: writeCSV},
		{Name: "pf", Short: "table file of pf", Load: "pfctl -t scanwatch -T replace -f FILE", Ends: "the next file; --diff prints pfctl commands", write: writePF, change: changePF("pfctl -q -t scanwatch")},
		{Name: "pf-anchor", Short: "anchor of pf, with its rule", Load: "pfctl -a scanwatch -f FILE", Ends: "the next file; --diff prints pfctl commands", write: writePFAnchor, change: changePF("pfctl -q -a scanwatch -t scanwatch")},
		{Name: "nft", Short: "own table of nftables, with timeouts", Load: "nft -f FILE", Ends: "by its timeout, or with --diff", Disjoint: true, EndsItself: true, Renew: true, Whole: true, write: writeNFT, change: changeNFT},
		{Name: "ipset", Short: "sets for ipset, with timeouts", Load: "ipset restore < FILE", Ends: "by its timeout, or with --diff", EndsItself: true, Renew: true, Whole: true, longest: maxIPSetTimeout * time.Second, write: writeIPSet, change: changeIPSet},
		{Name: "iptables", Short: "own chain of iptables", Load: "iptables-restore --noflush FILE", Ends: "the next file, or with --diff", Only: 32, Renew: true, Whole: true, write: writeIPTables, change: changeIPTables},
		{Name: "ip6tables", Short: "own chain of ip6tables", Load: "ip6tables-restore --noflush FILE", Ends: "the next file, or with --diff", Only: 128, Renew: true, Whole: true, write: writeIPTables, change: changeIPTables},
		{Name: "ip-route", Short: "blackhole routes of Linux", Load: "sh FILE", Ends: "the next file, or with --diff", Whole: true, write: writeIPRoute, change: changeIPRoute},
		{Name: "bsd-route", Short: "blackhole routes of OpenBSD", Load: "sh FILE", Ends: "with --diff only", Whole: true, write: writeBSDRoute, change: changeBSDRoute},
		{Name: "spamd", Short: "black list of spamd, IPv4", Load: "spamd-setup -b", Ends: replaced, Only: 32, write: writeSpamd},
		{Name: "postfix", Short: "cidr table of Postfix", Load: "postmap -q 192.0.2.1 cidr:FILE", Ends: replaced, write: writePostfix},
		{Name: "sendmail", Short: "access map of Sendmail", Load: "makemap hash FILE.db < FILE", Ends: replaced, write: writeSendmail},
		{Name: "rspamd", Short: "map for the multimap module of Rspamd", Load: "rspamd reads it itself", Ends: replaced, write: writeRspamd},
		{Name: "kumomta", Short: "TOML table for kumo.cidr.make_map", Load: "kumo.serde.toml_load 'FILE'", Ends: replaced, write: writeKumo},
		{Name: "crowdsec", Short: "decisions for cscli, with durations", Load: "cscli decisions import -i FILE", Ends: "by its duration; --diff prints cscli commands", Disjoint: true, EndsItself: true, Renew: true, write: writeCrowdSec, change: changeCrowdSec},
		{Name: "fail2ban", Short: "log lines for fail2ban", Load: "a jail with the filter scanwatch-export", Ends: "by bantime; --diff prints fail2ban-client commands", write: writeFail2ban, change: changeFail2ban},
		{Name: "abuseipdb", Short: "CSV for the bulk report of AbuseIPDB", Load: "curl, see the manual", Ends: "nothing ends: with --diff only what is new is told", again: reportAgain, most: mostReports, fits: reportable, write: writeAbuse, change: changeAbuse},
		{Name: "rbldnsd", Short: "combined zone of rbldnsd", Load: "rbldnsd bl.example.org:combined:FILE", Ends: replaced, write: writeRBLDNSD},
		{Name: "bind", Short: "DNSBL zone for BIND, NSD and others", Load: "named-checkzone bl.example.org FILE", Ends: replaced, Disjoint: true, write: writeBIND},
	}
}

// families calls f for the entries of IPv4 and for those of IPv6.
func families(entries []Entry, f func(v string, entries []Entry)) {
	n := 0
	for n < len(entries) && entries[n].Prefix.Addr().Is4() {
		n++
	}
	f("4", entries[:n])
	f("6", entries[n:])
}

func writePlain(w *bufio.Writer, l *List) {
	for i := range l.Entries {
		fmt.Fprintln(w, host(l.Entries[i].Prefix))
	}
}

func changePlain(w *bufio.Writer, c *Changes) {
	for i := range c.Remove {
		fmt.Fprintln(w, "-"+host(c.Remove[i].Prefix))
	}
	for i := range c.Add {
		fmt.Fprintln(w, "+"+host(c.Add[i].Prefix))
	}
}

// printable makes the texts of e fit to be shown.
func (e *Entry) printable() Entry {
	c := *e
	c.Organisation, c.Reason = report.Printable([]byte(e.Organisation)), report.Printable([]byte(e.Reason))
	c.Evidence = make([]string, len(e.Evidence))
	for i, token := range e.Evidence {
		c.Evidence[i] = report.Printable([]byte(token))
	}
	return c
}

func writeJSON(w *bufio.Writer, l *List) {
	out := json.NewEncoder(w)
	for i := range l.Entries {
		_ = out.Encode(l.Entries[i].printable()) // w keeps its error
	}
}

func changeJSON(w *bufio.Writer, c *Changes) {
	out := json.NewEncoder(w)
	for i := range c.Remove {
		_ = out.Encode(struct {
			Change  string       `json:"change"`
			Prefix  netip.Prefix `json:"prefix"`
			Expires time.Time    `json:"expires"`
		}{"remove", c.Remove[i].Prefix, c.Remove[i].Expires})
	}
	for i := range c.Add {
		_ = out.Encode(struct {
			Change string `json:"change"`
			Entry
		}{"add", c.Add[i].printable()})
	}
}

// columns are those of CSV.
var columns = []struct {
	name  string
	value func(*Entry) string
}{
	{"prefix", func(e *Entry) string { return e.Prefix.String() }},
	{"kind", func(e *Entry) string { return string(e.Kind) }},
	{"first", func(e *Entry) string { return utcOrNone(e.First) }},
	{"last", func(e *Entry) string { return utcOrNone(e.Last) }},
	{"sessions", func(e *Entry) string { return strconv.Itoa(e.Sessions) }},
	{"evidence", func(e *Entry) string { return strings.Join(e.Evidence, " ") }},
	{"organisation", func(e *Entry) string { return e.Organisation }},
	{"confidence", func(e *Entry) string { return e.Confidence }},
	{"reason", func(e *Entry) string { return e.Reason }},
	{"expires", func(e *Entry) string { return utc(e.Expires) }},
}

func utcOrNone(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return utc(t)
}

func writeCSV(w *bufio.Writer, l *List) {
	c := csv.NewWriter(w)
	cells := make([]string, len(columns))
	for i := range columns {
		cells[i] = columns[i].name
	}
	_ = c.Write(cells)
	for i := range l.Entries {
		e := l.Entries[i].printable()
		for j := range columns {
			cells[j] = report.Cell(columns[j].value(&e))
		}
		_ = c.Write(cells)
	}
	c.Flush()
}

// pf.conf(5) and pfctl(8).

func writePF(w *bufio.Writer, l *List) {
	heading(w, "#", "pf", l, "pfctl -t scanwatch -T replace -f FILE; in pf.conf:",
		"table <scanwatch> persist", "block in quick proto tcp from <scanwatch> to any port "+pfPorts)
	for i := range l.Entries {
		e := &l.Entries[i]
		fmt.Fprintf(w, "%s\t# %s\n", host(e.Prefix), e.note())
	}
}

const pfPorts = "{ 25, 465, 587 }"

func writePFAnchor(w *bufio.Writer, l *List) {
	heading(w, "#", "pf-anchor", l, "pfctl -a scanwatch -f FILE; in pf.conf: anchor \"scanwatch\"")
	fmt.Fprint(w, "table <scanwatch> persist")
	for i := range l.Entries {
		sep := ","
		if i == 0 {
			sep = " {"
		}
		fmt.Fprintf(w, "%s \\\n\t%s", sep, host(l.Entries[i].Prefix))
	}
	if len(l.Entries) > 0 {
		fmt.Fprint(w, " \\\n}")
	}
	fmt.Fprintf(w, "\nblock in quick proto tcp from <scanwatch> to any port %s\n", pfPorts)
}

// perLine is how many addresses one command is given: far less than a system
// takes.
const perLine = 100

func changePF(command string) func(*bufio.Writer, *Changes) {
	return func(w *bufio.Writer, c *Changes) {
		commands(w, command+" -T delete", c.Remove)
		commands(w, command+" -T add", c.Add)
	}
}

// commands writes command with the addresses of entries behind it.
func commands(w *bufio.Writer, command string, entries []Entry) {
	for i := range entries {
		if i%perLine == 0 {
			if i > 0 {
				fmt.Fprintln(w)
			}
			fmt.Fprint(w, command)
		}
		fmt.Fprint(w, " "+host(entries[i].Prefix))
	}
	if len(entries) > 0 {
		fmt.Fprintln(w)
	}
}

// nft(8). Replacing the table is one transaction: no packet slips through.

func writeNFT(w *bufio.Writer, l *List) {
	heading(w, "#", "nft", l, "nft -f FILE; takes nothing but its own table")
	fmt.Fprint(w, "add table inet scanwatch\ndelete table inet scanwatch\ntable inet scanwatch {\n")
	families(l.Entries, func(v string, entries []Entry) {
		fmt.Fprintf(w, "\tset ban%s {\n\t\ttype ipv%s_addr\n\t\tflags interval, timeout\n", v, v)
		if len(entries) > 0 {
			fmt.Fprint(w, "\t\telements = {")
			for i := range entries {
				e := &entries[i]
				fmt.Fprintf(w, "\n\t\t\t%s timeout %ds,", e.Prefix, e.left(l.Made))
			}
			fmt.Fprint(w, "\n\t\t}\n")
		}
		fmt.Fprint(w, "\t}\n")
	})
	fmt.Fprint(w, "\tchain input {\n\t\ttype filter hook input priority -10; policy accept;\n"+
		"\t\tip saddr @ban4 tcp dport { 25, 465, 587 } counter drop\n"+
		"\t\tip6 saddr @ban6 tcp dport { 25, 465, 587 } counter drop\n\t}\n}\n")
}

// changeNFT adds before it deletes: nft refuses the whole file if an element to
// be deleted is not there, and this one may have ended a moment ago.
func changeNFT(w *bufio.Writer, c *Changes) {
	element := func(verb, v string, p netip.Prefix, more string) {
		fmt.Fprintf(w, "%s element inet scanwatch ban%s { %s%s }\n", verb, v, p, more)
	}
	families(c.Remove, func(v string, entries []Entry) {
		for i := range entries {
			element("add", v, entries[i].Prefix, "")
			element("delete", v, entries[i].Prefix, "")
		}
	})
	families(c.Add, func(v string, entries []Entry) {
		for i := range entries {
			element("add", v, entries[i].Prefix, fmt.Sprintf(" timeout %ds", entries[i].left(c.Made)))
		}
	})
}

// ipset(8). A new set is filled and then swapped with the old one.

// maxIPSetTimeout is the longest timeout that ipset takes, in seconds. A later
// export gives what lasts longer the rest.
const maxIPSetTimeout = 2147483

func writeIPSet(w *bufio.Writer, l *List) {
	heading(w, "#", "ipset", l, "ipset restore < FILE; then:",
		"iptables -I INPUT -p tcp -m multiport --dports 25,465,587 -m set --match-set scanwatch4 src -j DROP",
		"ip6tables -I INPUT -p tcp -m multiport --dports 25,465,587 -m set --match-set scanwatch6 src -j DROP")
	families(l.Entries, func(v string, entries []Entry) {
		family := map[string]string{"4": "inet", "6": "inet6"}[v]
		for _, name := range []string{"scanwatch" + v, "scanwatch" + v + "-new"} {
			fmt.Fprintf(w, "create %s hash:net family %s timeout 0 maxelem %d -exist\n", name, family, maxState)
		}
		fmt.Fprintf(w, "flush scanwatch%s-new\n", v)
		for i := range entries {
			e := &entries[i]
			fmt.Fprintf(w, "add scanwatch%s-new %s timeout %d\n", v, e.Prefix, min(e.left(l.Made), maxIPSetTimeout))
		}
		fmt.Fprintf(w, "swap scanwatch%s-new scanwatch%s\ndestroy scanwatch%s-new\n", v, v, v)
	})
}

func changeIPSet(w *bufio.Writer, c *Changes) {
	families(c.Remove, func(v string, entries []Entry) {
		for i := range entries {
			fmt.Fprintf(w, "del scanwatch%s %s -exist\n", v, entries[i].Prefix)
		}
	})
	families(c.Add, func(v string, entries []Entry) {
		for i := range entries {
			e := &entries[i]
			fmt.Fprintf(w, "add scanwatch%s %s timeout %d -exist\n", v, e.Prefix, min(e.left(c.Made), maxIPSetTimeout))
		}
	})
}

// iptables-restore(8). With --noflush the line that names the chain empties it
// and makes it if need be, in one transaction with what follows.

func writeIPTables(w *bufio.Writer, l *List) {
	heading(w, "#", "iptables", l, "with ip6tables for IPv6: iptables-restore --noflush FILE; once:",
		"iptables -I INPUT -p tcp -m multiport --dports 25,465,587 -j scanwatch")
	fmt.Fprint(w, "*filter\n:scanwatch - [0:0]\n")
	for i := range l.Entries {
		iptablesRule(w, "-A", &l.Entries[i])
	}
	fmt.Fprint(w, "COMMIT\n")
}

func iptablesRule(w *bufio.Writer, verb string, e *Entry) {
	fmt.Fprintf(w, "%s scanwatch -s %s -m comment --comment \"until %s\" -j DROP\n", verb, e.Prefix, utc(e.Expires))
}

func changeIPTables(w *bufio.Writer, c *Changes) {
	fmt.Fprint(w, "*filter\n")
	for i := range c.Remove {
		iptablesRule(w, "-D", &c.Remove[i])
	}
	for i := range c.Add {
		iptablesRule(w, "-A", &c.Add[i])
	}
	fmt.Fprint(w, "COMMIT\n")
}

// ip-route(8). The number of a protocol tells our routes from others.

const ipRoute = "proto 83"

func writeIPRoute(w *bufio.Writer, l *List) {
	heading(w, "#", "ip-route", l, "sh FILE; its routes are those of "+ipRoute)
	fmt.Fprintf(w, "ip -4 route flush %s\nip -6 route flush %s\n", ipRoute, ipRoute)
	families(l.Entries, func(v string, entries []Entry) { ipBatch(w, v, "replace", entries) })
}

// changeIPRoute adds before it deletes: a route that is gone already is no
// failure, and ip would call it one.
func changeIPRoute(w *bufio.Writer, c *Changes) {
	families(c.Remove, func(v string, entries []Entry) {
		ipBatch(w, v, "replace", entries)
		ipBatch(w, v, "del", entries)
	})
	families(c.Add, func(v string, entries []Entry) { ipBatch(w, v, "replace", entries) })
}

func ipBatch(w *bufio.Writer, v, verb string, entries []Entry) {
	if len(entries) == 0 {
		return
	}
	fmt.Fprintf(w, "ip -%s -force -batch - <<'END'\n", v)
	for i := range entries {
		fmt.Fprintf(w, "route %s blackhole %s %s\n", verb, entries[i].Prefix, ipRoute)
	}
	fmt.Fprint(w, "END\n")
}

// route(8) of OpenBSD.

func writeBSDRoute(w *bufio.Writer, l *List) {
	heading(w, "#", "bsd-route", l, "sh FILE; the un-ban is in --diff")
	bsdRoutes(w, "add", l.Entries)
}

func changeBSDRoute(w *bufio.Writer, c *Changes) {
	bsdRoutes(w, "delete", c.Remove)
	bsdRoutes(w, "add", c.Add)
}

func bsdRoutes(w *bufio.Writer, verb string, entries []Entry) {
	families(entries, func(v string, entries []Entry) {
		family, gateway := "-inet", "127.0.0.1"
		if v == "6" {
			family, gateway = "-inet6", "::1"
		}
		for i := range entries {
			p := entries[i].Prefix
			fmt.Fprintf(w, "route -qn %s %s -blackhole -net %s -prefixlen %d %s\n", verb, family, p.Addr(), p.Bits(), gateway)
		}
	})
}

// spamd.conf(5): a file that the method file reads.

func writeSpamd(w *bufio.Writer, l *List) {
	heading(w, "#", "spamd", l, "spamd-setup -b; in spamd.conf, with scanwatch in the list all:",
		`scanwatch:\`, `	:black:\`, `	:msg="Your address %A was turned away by the mail server":\`, `	:method=file:\`, `	:file=FILE:`)
	for i := range l.Entries {
		fmt.Fprintln(w, host(l.Entries[i].Prefix))
	}
}

// reply is what a mail server says to e: with a temporary code if an honest
// server would still be trying at the end (RFC 5321 section 4.5.4.1), as the
// filter does.
func (e *Entry) reply(made time.Time) (code, status, text string) {
	code, status = "554", "5.7.1"
	if e.Expires.Sub(made) <= 48*time.Hour {
		code, status = "421", "4.7.1"
	}
	return code, status, "Turned away until " + e.Expires.UTC().Format("2006-01-02 15:04") + " UTC"
}

// cidr_table(5).

func writePostfix(w *bufio.Writer, l *List) {
	heading(w, "#", "postfix", l, "in main.cf: smtpd_client_restrictions = check_client_access cidr:FILE")
	for i := range l.Entries {
		e := &l.Entries[i]
		code, status, text := e.reply(l.Made)
		fmt.Fprintf(w, "%s %s %s %s\n", e.Prefix, code, status, text)
	}
}

// The access map of Sendmail knows addresses by whole numbers from the left:
// a network of 22 bits is four of 24.

func writeSendmail(w *bufio.Writer, l *List) {
	heading(w, "#", "sendmail", l, "makemap hash FILE.db < FILE; in sendmail.mc:", "FEATURE(`access_db', `hash -T<TMPF> -o FILE')")
	seen := map[netip.Prefix]bool{}
	for i := range l.Entries {
		e := &l.Entries[i]
		unit, sep, tag := 8, ".", ""
		if e.Prefix.Addr().Is6() {
			unit, sep, tag = 16, ":", "IPv6:"
		}
		code, status, text := e.reply(l.Made)
		expand(e.Prefix, unit, func(p netip.Prefix) {
			if !seen[p] { // a map has each key once
				seen[p] = true
				fmt.Fprintf(w, "Connect:%s%s\tERROR:%s:\"%s %s\"\n", tag, strings.Join(parts(p, unit), sep), status, code, text)
			}
		})
	}
}

// expand calls f for the networks that make up p and have a length that is a
// multiple of unit.
func expand(p netip.Prefix, unit int, f func(netip.Prefix)) {
	bits := (p.Bits() + unit - 1) / unit * unit
	q := netip.PrefixFrom(p.Addr(), bits)
	for n := 1 << (bits - p.Bits()); n > 0; n-- {
		f(q)
		b := q.Addr().AsSlice()
		for i, add := (bits-1)/8, 1<<(7-(bits-1)%8); i >= 0 && add > 0; i-- {
			add += int(b[i])
			b[i], add = byte(add), add>>8
		}
		a, _ := netip.AddrFromSlice(b)
		q = netip.PrefixFrom(a, bits)
	}
}

// parts are the numbers of p, of unit bits each, as they are written: 8 bits
// decimal, else hexadecimal.
func parts(p netip.Prefix, unit int) (list []string) {
	b := p.Addr().AsSlice()
	for at := 0; at < p.Bits(); at += unit {
		switch unit {
		case 4:
			list = append(list, strconv.FormatUint(uint64(b[at/8]>>(4-at%8)&15), 16))
		case 8:
			list = append(list, strconv.Itoa(int(b[at/8])))
		default:
			list = append(list, strconv.FormatUint(uint64(b[at/8])<<8|uint64(b[at/8+1]), 16))
		}
	}
	return list
}

func writeRspamd(w *bufio.Writer, l *List) {
	heading(w, "#", "rspamd", l, `in local.d/multimap.conf: SCANWATCH { type = "ip"; map = "FILE"; score = 8.0; }`)
	for i := range l.Entries {
		e := &l.Entries[i]
		fmt.Fprintf(w, "%s # %s\n", e.Prefix, e.note())
	}
}

func writeKumo(w *bufio.Writer, l *List) {
	heading(w, "#", "kumomta", l, "local away = kumo.cidr.make_map(kumo.serde.toml_load 'FILE')",
		"kumo.on('smtp_server_connection_accepted', function(meta)", "  local reply = away[meta:get_meta('received_from')]",
		"  if reply then kumo.reject(tonumber(reply:sub(1, 3)), reply:sub(5)) end", "end)")
	for i := range l.Entries {
		e := &l.Entries[i]
		code, status, text := e.reply(l.Made)
		fmt.Fprintf(w, "\"%s\" = \"%s %s %s\"\n", e.Prefix, code, status, text)
	}
}

// cscli decisions import. To delete an address deletes networks around it, too:
// so none may lie within another.

type decision struct {
	Duration string `json:"duration"`
	Origin   string `json:"origin"`
	Reason   string `json:"reason"`
	Scope    string `json:"scope"`
	Type     string `json:"type"`
	Value    string `json:"value"`
}

func (e *Entry) decision(made time.Time) decision {
	d := decision{Duration: fmt.Sprintf("%ds", e.left(made)), Origin: "scanwatch", Reason: "scanwatch: " + e.why(), Scope: "Ip", Type: "ban", Value: host(e.Prefix)}
	if !e.Prefix.IsSingleIP() {
		d.Scope = "Range"
	}
	return d
}

func writeCrowdSec(w *bufio.Writer, l *List) {
	fmt.Fprint(w, "[")
	for i := range l.Entries {
		if i > 0 {
			fmt.Fprint(w, ",")
		}
		line, _ := json.Marshal(l.Entries[i].decision(l.Made)) // strings only
		fmt.Fprintf(w, "\n%s", line)
	}
	fmt.Fprint(w, "\n]\n")
}

func changeCrowdSec(w *bufio.Writer, c *Changes) {
	flag := func(e *Entry) string {
		if e.Prefix.IsSingleIP() {
			return "--ip " + e.Prefix.Addr().String()
		}
		return "--range " + e.Prefix.String()
	}
	for i := range c.Remove {
		fmt.Fprintf(w, "cscli decisions delete %s\n", flag(&c.Remove[i]))
	}
	for i := range c.Add {
		d := c.Add[i].decision(c.Made)
		fmt.Fprintf(w, "cscli decisions add %s --duration %s --type ban --reason '%s'\n", flag(&c.Add[i]), d.Duration, d.Reason)
	}
}

// fail2ban: a log whose lines contrib/fail2ban/filter.d/scanwatch-export.conf
// knows, with the time at which each was seen last.

func writeFail2ban(w *bufio.Writer, l *List) {
	for i := range l.Entries {
		e := &l.Entries[i]
		at := e.Last
		if at.IsZero() {
			at = l.Made
		}
		fmt.Fprintf(w, "%s scanwatch export: src=%s until=%s why=\"%s\"\n", utc(at), host(e.Prefix), utc(e.Expires), e.why())
	}
}

func changeFail2ban(w *bufio.Writer, c *Changes) {
	commands(w, "fail2ban-client set scanwatch-export unbanip", c.Remove)
	commands(w, "fail2ban-client set scanwatch-export banip", c.Add)
}

// DNS lists as RFC 5782 describes them. Its section 5 asks for an entry to test
// with.

const (
	listedValue = "127.0.0.2"
	testText    = "Test entry, see RFC 5782"
	soaTimes    = "3600 600 2592000 600"
)

func writeRBLDNSD(w *bufio.Writer, l *List) {
	heading(w, "#", "rbldnsd", l, "rbldnsd -b 192.0.2.53 bl.example.org:combined:FILE")
	fmt.Fprintf(w, "$SOA 600 localhost. postmaster.localhost. %d %s\n$NS 600 localhost.\n", l.Made.Unix(), soaTimes)
	families(l.Entries, func(v string, entries []Entry) {
		fmt.Fprintf(w, "$DATASET ip%strie ip%s @\n:%s:Turned away\n", v, v, listedValue)
		test := map[string]string{"4": "127.0.0.2", "6": "::ffff:127.0.0.2"}[v]
		fmt.Fprintf(w, "%s :%s:%s\n", test, listedValue, testText)
		for i := range entries {
			e := &entries[i]
			fmt.Fprintf(w, "%s :%s:%s\n", e.Prefix, listedValue, txt(e))
		}
	})
}

// txt is the text of a DNS list.
func txt(e *Entry) string { return "Turned away " + e.note() }

func writeBIND(w *bufio.Writer, l *List) {
	heading(w, ";", "bind", l, "named-checkzone bl.example.org FILE")
	fmt.Fprintf(w, "$TTL 600\n@ IN SOA localhost. postmaster.localhost. %d %s\n@ IN NS localhost.\n", l.Made.Unix(), soaTimes)
	record := func(name, text string) {
		fmt.Fprintf(w, "%s IN A %s\n%s IN TXT \"%s\"\n", name, listedValue, name, text)
	}
	record("2.0.0.127", testText)
	families(l.Entries, func(v string, entries []Entry) {
		unit, whole := 8, 32
		if v == "6" {
			unit, whole = 4, 128
		}
		for i := range entries {
			e := &entries[i]
			expand(e.Prefix, unit, func(p netip.Prefix) {
				labels := parts(p, unit)
				var name strings.Builder
				if p.Bits() < whole {
					name.WriteString("*.")
				}
				for j := len(labels) - 1; j >= 0; j-- {
					name.WriteString(labels[j])
					if j > 0 {
						name.WriteByte('.')
					}
				}
				record(name.String(), txt(e))
			})
		}
	})
}
