package export

import (
	"bufio"
	"fmt"
	"net/netip"

	"scanwatch/internal/prefix"
)

// This file contains the formats for firewalls and routing tables.

// The following formats are for pf.conf(5) and pfctl(8).

func writePF(w *bufio.Writer, l *List) {
	heading(w, "#", "pf", l, "pfctl -t scanwatch -T replace -f FILE; in pf.conf:",
		"table <scanwatch> persist", "block in quick proto tcp from <scanwatch> to any port "+pfPorts)
	for i := range l.Entries {
		e := &l.Entries[i]
		fmt.Fprintf(w, "%s\t# %s\n", prefix.String(e.Prefix), e.note())
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
		fmt.Fprintf(w, "%s \\\n\t%s", sep, prefix.String(l.Entries[i].Prefix))
	}
	if len(l.Entries) > 0 {
		fmt.Fprint(w, " \\\n}")
	}
	fmt.Fprintf(w, "\nblock in quick proto tcp from <scanwatch> to any port %s\n", pfPorts)
}

// perLine is the number of addresses per command, well below any system's limit.
const perLine = 100

func changePF(command string) func(*bufio.Writer, *Changes) {
	return func(w *bufio.Writer, c *Changes) {
		commands(w, command+" -T delete", c.Remove)
		commands(w, command+" -T add", c.Add)
	}
}

// commands writes command lines with the addresses of entries as arguments.
func commands(w *bufio.Writer, command string, entries []Entry) {
	for i := range entries {
		if i%perLine == 0 {
			if i > 0 {
				fmt.Fprintln(w)
			}
			fmt.Fprint(w, command)
		}
		fmt.Fprint(w, " "+prefix.String(entries[i].Prefix))
	}
	if len(entries) > 0 {
		fmt.Fprintln(w)
	}
}

// nft(8) replaces the table in one transaction, so that no packet passes during the
// replacement.

func writeNFT(w *bufio.Writer, l *List) {
	heading(w, "#", "nft", l, "nft -f FILE; changes only its own table")
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

// changeNFT adds each element before deleting it. nft would otherwise reject
// the whole file if the element had just expired.
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

// The commands for ipset(8) fill a new set and swap it with the old set.

// maxIPSetTimeout is ipset's maximum timeout in seconds. Entries with a later end are
// renewed by later exports.
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

// iptables-restore(8) runs with --noflush. One transaction creates or empties the named
// chain, and adds the rules that follow.

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

// The ip-route(8) format marks its routes with a protocol number.

const ipRoute = "proto 83"

func writeIPRoute(w *bufio.Writer, l *List) {
	heading(w, "#", "ip-route", l, "sh FILE; its routes have "+ipRoute)
	fmt.Fprintf(w, "ip -4 route flush %s\nip -6 route flush %s\n", ipRoute, ipRoute)
	families(l.Entries, func(v string, entries []Entry) { ipBatch(w, v, "replace", entries) })
}

// changeIPRoute adds each route before deleting it, because ip fails on a missing route.
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

// The following format is for OpenBSD's route(8).

func writeBSDRoute(w *bufio.Writer, l *List) {
	heading(w, "#", "bsd-route", l, "sh FILE; --diff deletes routes")
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
