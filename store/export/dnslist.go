package export

import (
	"bufio"
	"fmt"
	"net/netip"
	"strings"
)

// These formats are for DNS lists (RFC 5782), which require a test entry (section 5).

const (
	listedValue = "127.0.0.2"
	testText    = "Test entry, see RFC 5782"
	soaTimes    = "3600 600 2592000 600"
)

func writeRBLDNSD(w *bufio.Writer, l *List) {
	heading(w, "#", "rbldnsd", l, "rbldnsd -b 192.0.2.53 bl.example.org:combined:FILE")
	fmt.Fprintf(w, "$SOA 600 localhost. postmaster.localhost. %d %s\n$NS 600 localhost.\n", l.Made.Unix(), soaTimes)
	families(l.Entries, func(v string, entries []Entry) {
		fmt.Fprintf(w, "$DATASET ip%strie ip%s @\n:%s:Banned\n", v, v, listedValue)
		test := map[string]string{"4": "127.0.0.2", "6": "::ffff:127.0.0.2"}[v]
		fmt.Fprintf(w, "%s :%s:%s\n", test, listedValue, testText)
		for i := range entries {
			e := &entries[i]
			fmt.Fprintf(w, "%s :%s:%s\n", e.Prefix, listedValue, txt(e))
		}
	})
}

// txt returns the TXT record of e in a DNS list.
func txt(e *Entry) string { return "Banned " + e.note() }

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
