// Package senders lists kinds of legitimate senders for tests. The names, greetings and addresses
// belong to real senders: large providers, mailing services, rented servers, companies,
// universities and home connections. The names of small sites are replaced with example names.
package senders

import (
	_ "embed"
	"fmt"
	"iter"
	"net/netip"
	"strings"
)

//go:embed senders.tsv
var table string

// A Sender is a kind of legitimate sender.
type Sender struct {
	Line   int        // in senders.tsv
	RDNS   string     // reverse DNS name; empty for none
	FCrDNS string     // pass, fail or error
	Helo   string     // greeting
	Note   string     // description; after "tight:" the reason why the tight preset may reject the sender
	Addr   netip.Addr // a real address if it matters, otherwise an address in 198.18.0.0/15
}

func (s *Sender) String() string {
	return fmt.Sprintf("line %d: %s (%s, fcrdns %s) greets %s (%s)", s.Line, s.Addr, s.RDNS, s.FCrDNS, s.Helo, s.Note)
}

// All returns all senders. A sender without an address receives one in a separate network.
func All() (list []Sender) {
	for i, line := range strings.Split(strings.TrimSuffix(table, "\n"), "\n") {
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, "rdns\t") {
			continue
		}
		f := append(strings.Split(line, "\t"), "", "", "", "")
		s := Sender{Line: i + 1, RDNS: f[0], FCrDNS: f[1], Helo: f[2], Note: f[3], Addr: netip.AddrFrom4([4]byte{198, byte(18 + i/256), byte(i), 25})}
		if s.RDNS == "-" {
			s.RDNS = ""
		}
		if s.Helo == "=" {
			s.Helo = s.RDNS
		}
		if f[4] != "" {
			s.Addr = netip.MustParseAddr(f[4])
		}
		list = append(list, s)
	}
	return list
}

// Variants yields s and variants of it. The variants differ in letter case, end with a dot, or have
// names that DNS does not return or confirm.
func (s Sender) Variants() iter.Seq[Sender] {
	return func(yield func(Sender) bool) {
		upper, dot, unconfirmed, nameless := s, s, s, s
		upper.RDNS, upper.Helo = strings.ToUpper(s.RDNS), strings.ToUpper(s.Helo)
		dot.Helo += "."
		unconfirmed.FCrDNS = "error"
		nameless.RDNS, nameless.FCrDNS = "", "error"
		for _, v := range []Sender{s, upper, dot, unconfirmed, nameless} {
			if !yield(v) {
				return
			}
		}
	}
}
