//go:build linux

package main

// The configuration "on" is the preset tight in enforce mode, with large lists.

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"scanwatch/rules"
)

const (
	suffixes  = 5_000
	prefixes  = 100_000
	asNumbers = 20_000
)

// delay matches rules that delay a client.
var delay = regexp.MustCompile(`(?m)^rule .* delay \d+s.*\n`)

// configure writes the configurations to dir. The filters see this directory under the name seen.
// bare.conf is on.conf without the lists, prompt.conf is on.conf without the delay for unknown
// clients, and none.conf has no rules.
func configure(dir, seen string) error {
	policy, err := rules.ReadyPolicy("tight")
	if err != nil {
		return err
	}
	enforced := strings.Replace(string(policy), "\nmode observe\n", "\nmode enforce\n", 1)
	if enforced == string(policy) {
		return fmt.Errorf("tight has no line to enforce")
	}
	enforced = "store \"/nonexistent\" keep 90d budget 8G\ntable <local-domains> { \"example.org\" }\n" + enforced
	lists := fmt.Sprintf(`asn %[1]q
table <suffixes> file %[2]q
table <prefixes> file %[3]q
rule suffix phase connect match rdns <suffixes> disconnect
rule prefix phase connect match src <prefixes> disconnect
rule as phase connect match asn { 64496, 64497 } disconnect
`, seen+"/asn.mmdb", seen+"/suffixes", seen+"/prefixes")
	at := strings.Index(enforced, "# Known scanning organisations") // after the pass rules
	if at < 0 {
		return fmt.Errorf("tight has no rule for scanners")
	}
	full := enforced[:at] + lists + enforced[at:]
	prompt := delay.ReplaceAllString(full, "")
	if prompt == full {
		return fmt.Errorf("tight has no rule that delays")
	}
	var names, nets bytes.Buffer
	for n := range suffixes {
		fmt.Fprintf(&names, ".zone%d.example.com\n", n)
	}
	for n := range prefixes {
		fmt.Fprintf(&nets, "%d.%d.%d.0/24\n", 11+n>>16, n>>8&255, n&255)
	}
	asn, err := asnFile()
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		"none.conf": []byte("mode observe\n"),
		"bare.conf": []byte(enforced), "on.conf": []byte(full), "prompt.conf": []byte(prompt),
		"suffixes": names.Bytes(), "prefixes": nets.Bytes(), "asn.mmdb": asn, "regexes": regexes(),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// asnFile creates an AS number database that covers the hosts in the streams.
func asnFile() ([]byte, error) {
	tree, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "GeoLite2-ASN", IncludeReservedNetworks: true})
	if err != nil {
		return nil, err
	}
	add := func(prefix string, number int) error {
		p := netip.MustParsePrefix(prefix)
		return tree.Insert(&net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}, mmdbtype.Map{
			"autonomous_system_number":       mmdbtype.Uint32(number),
			"autonomous_system_organization": mmdbtype.String(fmt.Sprintf("Example %d", number)),
		})
	}
	for n := range asNumbers {
		if err := add(fmt.Sprintf("11.%d.%d.0/24", n>>8&255, n&255), 65536+n); err != nil {
			return nil, err
		}
	}
	for n := range hosts / 250 {
		if err := add(fmt.Sprintf("198.18.%d.0/24", n), 64500+n); err != nil {
			return nil, err
		}
	}
	var out bytes.Buffer
	_, err = tree.WriteTo(&out)
	return out.Bytes(), err
}
