package export

import (
	"bufio"
	"time"
)

// A Format is an output format.
type Format struct {
	Name  string
	Short string // the consumer, in the help text
	Load  string // the command that loads FILE, the output
	Ends  string // completes the sentence "entries end ...": when the consumer drops an entry

	// Only is 32 if the format supports only IPv4, 128 if it supports only IPv6, and 0
	// if it supports both.
	Only int
	// Disjoint means that the format cannot express entries that other entries cover.
	Disjoint bool
	// EndsItself means that the consumer removes expired entries.
	EndsItself bool
	// Renew means that an entry is exported again when its end changes.
	Renew bool
	// Whole means that the first changes for a new consumer are written like a complete
	// list.
	Whole bool
	// Adds means that loading a file leaves the entries of earlier files in place.
	Adds bool

	again   time.Duration // interval for exporting an active entry again; 0: never
	longest time.Duration // maximum remaining time of an entry; 0: no limit
	limit   int           // maximum number of entries in an output; 0: no limit
	fits    func(*Entry) bool
	write   func(*bufio.Writer, *List)
	change  func(*bufio.Writer, *Changes) // nil if the format does not support changes
}

const nextFile = "with the next file, which replaces this one"

// Formats returns all formats. A new format needs a row and a function that writes a
// List. If it supports changes, the row also needs a change function.
func Formats() []Format {
	return []Format{
		{Name: "plain", Short: "one address or network a line", Load: "cat FILE", Ends: nextFile, write: writePlain, change: changePlain},
		{Name: "json", Short: "one JSON object a line", Load: "jq . FILE", Ends: nextFile, Renew: true, write: writeJSON, change: changeJSON},
		{Name: "csv", Short: "comma-separated values with a heading", Load: "any spreadsheet", Ends: nextFile, write: writeCSV},
		{Name: "pf", Short: "table file of pf", Load: "pfctl -t scanwatch -T replace -f FILE", Ends: "with the next file; --diff prints pfctl commands", write: writePF, change: changePF("pfctl -q -t scanwatch")},
		{Name: "pf-anchor", Short: "anchor of pf with its rule", Load: "pfctl -a scanwatch -f FILE", Ends: "with the next file; --diff prints pfctl commands", write: writePFAnchor, change: changePF("pfctl -q -a scanwatch -t scanwatch")},
		{Name: "nft", Short: "separate nftables table with timeouts", Load: "nft -f FILE", Ends: "at their timeout, or with --diff", Disjoint: true, EndsItself: true, Renew: true, Whole: true, write: writeNFT, change: changeNFT},
		{Name: "ipset", Short: "sets for ipset with timeouts", Load: "ipset restore < FILE", Ends: "at their timeout, or with --diff", EndsItself: true, Renew: true, Whole: true, longest: maxIPSetTimeout * time.Second, write: writeIPSet, change: changeIPSet},
		{Name: "iptables", Short: "separate chain of iptables", Load: "iptables-restore --noflush FILE", Ends: "with the next file, or with --diff", Only: 32, Renew: true, Whole: true, write: writeIPTables, change: changeIPTables},
		{Name: "ip6tables", Short: "separate chain of ip6tables", Load: "ip6tables-restore --noflush FILE", Ends: "with the next file, or with --diff", Only: 128, Renew: true, Whole: true, write: writeIPTables, change: changeIPTables},
		{Name: "ip-route", Short: "blackhole routes of Linux", Load: "sh FILE", Ends: "with the next file, or with --diff", Whole: true, write: writeIPRoute, change: changeIPRoute},
		{Name: "bsd-route", Short: "blackhole routes of OpenBSD", Load: "sh FILE", Ends: "with --diff only", Whole: true, Adds: true, write: writeBSDRoute, change: changeBSDRoute},
		{Name: "spamd", Short: "blocklist of spamd, IPv4", Load: "spamd-setup -b", Ends: nextFile, Only: 32, write: writeSpamd},
		{Name: "postfix", Short: "cidr table of Postfix", Load: "postmap -q 192.0.2.1 cidr:FILE", Ends: nextFile, write: writePostfix},
		{Name: "sendmail", Short: "access map of Sendmail", Load: "makemap hash FILE.db < FILE", Ends: nextFile, write: writeSendmail},
		{Name: "rspamd", Short: "map for the multimap module of Rspamd", Load: "rspamd reads the file itself", Ends: nextFile, write: writeRspamd},
		{Name: "kumomta", Short: "TOML table for kumo.cidr.make_map", Load: "kumo.serde.toml_load 'FILE'", Ends: nextFile, write: writeKumo},
		{Name: "crowdsec", Short: "decisions for cscli with durations", Load: "cscli decisions import -i FILE", Ends: "at their duration; --diff prints cscli commands", Disjoint: true, EndsItself: true, Renew: true, Adds: true, write: writeCrowdSec, change: changeCrowdSec},
		{Name: "fail2ban", Short: "log lines for fail2ban", Load: "a jail with the filter scanwatch-export", Ends: "after bantime; --diff prints fail2ban-client commands", Adds: true, write: writeFail2ban, change: changeFail2ban},
		{Name: "abuseipdb", Short: "CSV for AbuseIPDB's bulk report", Load: "curl, see the manual", Ends: "never; --diff reports new entries only", again: reportAgain, limit: maxReports, fits: reportable, Adds: true, write: writeAbuse, change: changeAbuse},
		{Name: "rbldnsd", Short: "combined zone of rbldnsd", Load: "rbldnsd bl.example.org:combined:FILE", Ends: nextFile, write: writeRBLDNSD},
		{Name: "bind", Short: "DNSBL zone for BIND, NSD and others", Load: "named-checkzone bl.example.org FILE", Ends: nextFile, Disjoint: true, write: writeBIND},
	}
}

// Replaces reports whether a file replaces all earlier files. The consumer then drops
// entries that the new file does not contain.
func (f *Format) Replaces() bool { return !f.Adds }

// FormatByName returns the named format, or nil.
func FormatByName(name string) *Format {
	all := Formats()
	for i := range all {
		if all[i].Name == name {
			return &all[i]
		}
	}
	return nil
}
