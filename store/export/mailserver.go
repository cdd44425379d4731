package export

import (
	"bufio"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"scanwatch/internal/prefix"
)

// This file contains the formats for mail servers.

// spamd-setup(8) reads this format if spamd.conf(5) specifies the method "file".

func writeSpamd(w *bufio.Writer, l *List) {
	heading(w, "#", "spamd", l, "spamd-setup -b; in spamd.conf, with scanwatch in the list all:",
		`scanwatch:\`, `	:black:\`, `	:msg="Your address %A is banned by the mail server":\`, `	:method=file:\`, `	:file=FILE:`)
	for i := range l.Entries {
		fmt.Fprintln(w, prefix.String(l.Entries[i].Prefix))
	}
}

// reply returns a mail server's reply to the host e. The reply is temporary if the entry ends while
// a legitimate server would still be retrying (RFC 5321 section 4.5.4.1). The filter's replies
// follow the same rule.
func (e *Entry) reply(made time.Time) (code, status, text string) {
	code, status = "554", "5.7.1"
	if e.Expires.Sub(made) <= 48*time.Hour {
		code, status = "421", "4.7.1"
	}
	return code, status, "Banned until " + e.Expires.UTC().Format("2006-01-02 15:04") + " UTC"
}

// The following format is for Postfix's cidr_table(5).

func writePostfix(w *bufio.Writer, l *List) {
	heading(w, "#", "postfix", l, "in main.cf: smtpd_client_restrictions = permit_mynetworks, permit_sasl_authenticated, check_client_access cidr:FILE")
	for i := range l.Entries {
		e := &l.Entries[i]
		code, status, text := e.reply(l.Made)
		fmt.Fprintf(w, "%s %s %s %s\n", e.Prefix, code, status, text)
	}
}

// Sendmail's access map matches complete octets or groups from the left, so
// a /22 is written as four /24 networks.

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
			if !seen[p] { // keys of a map are unique
				seen[p] = true
				fmt.Fprintf(w, "Connect:%s%s\tERROR:%s:\"%s %s\"\n", tag, strings.Join(parts(p, unit), sep), status, code, text)
			}
		})
	}
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
