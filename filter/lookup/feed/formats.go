package feed

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
)

// All is the value of an option that leaves nothing out.
const All = "all"

// A Format is one form in which lists are published.
type Format struct {
	Name    string
	Help    string // one line
	Option  string // the word before a value that chooses among the entries; "" for none
	Default string // the value when none is given

	// sniff tells whether a file is of this format; formats without it look like
	// others and must be named.
	sniff func(content []byte) bool
	parse func(*collector, []byte) error
}

// Formats lists what Parse knows.
func Formats() []Format { return slices.Clone(formats) }

// formats are sniffed in this order: the peculiar before the general. Add a
// format here.
var formats = []Format{
	{Name: "spamhaus-drop", Help: "Spamhaus DROP, JSON lines or the older text",
		sniff: sniffDrop, parse: parseDrop},
	{Name: "spamhaus-asndrop", Help: "Spamhaus ASN-DROP, JSON lines or the older text",
		sniff: has(`{"asn"`), parse: parseASNDrop},
	{Name: "aws", Help: "Amazon's ip-ranges.json", Option: "service", Default: "EC2",
		sniff: has(`"ip_prefix"`, `"service"`), parse: parseAWS},
	{Name: "google", Help: "Google's cloud.json and goog.json", Option: "service", Default: All,
		sniff: hasAny(`"ipv4Prefix"`, `"ipv6Prefix"`), parse: parseGoogle},
	{Name: "azure", Help: "Microsoft's ServiceTags_Public.json", Option: "tag", Default: "AzureCloud",
		sniff: has(`"addressPrefixes"`), parse: parseAzure},
	{Name: "oracle", Help: "Oracle's public_ip_ranges.json", Option: "tag", Default: "OCI",
		sniff: has(`"regions"`, `"cidrs"`), parse: parseOracle},
	{Name: "abuseipdb", Help: "AbuseIPDB's blacklist, plain, CSV or JSON",
		sniff: hasAny(`"ipAddress"`, "IP,Categories,", "ipAddress,"), parse: parseAbuseIPDB},
	{Name: "misp", Help: "a MISP warning list", Option: "key", Default: "list",
		sniff: has(`"matching_attributes"`), parse: parseJSON},
	{Name: "json", Help: "any JSON: every text in it that is an address or a prefix", Option: "key", Default: All,
		sniff: isJSON, parse: parseJSON},
	{Name: "nft", Help: "nftables definitions",
		sniff: hasLine("define "), parse: parseNFT},
	{Name: "dshield", Help: "DShield's block.txt: start, end, mask length",
		sniff: sniffDShield, parse: parseDShield},
	{Name: "firehol", Help: "FireHOL netset or ipset",
		sniff: hasAny("hash:net ipset", "hash:ip ipset", "# Maintainer"), parse: parseAddresses},
	{Name: "geofeed", Help: "RFC 8805 geofeed: prefix,country,region,city,postal (Linode, Vultr)",
		sniff: sniffGeofeed, parse: parseGeofeed},
	{Name: "csv", Help: "columns divided by commas; that of addresses is called ip, prefix or the like, or is the first",
		sniff: sniffCSV, parse: parseCSV},
	{Name: "asn-list", Help: "AS numbers, one a line, with or without AS, text or CSV",
		sniff: sniffASNList, parse: parseASNList},

	// These look like plain lists; under their own name nothing but addresses
	// passes.
	{Name: "digitalocean", Help: "DigitalOcean's google.csv, a geofeed", parse: parseGeofeed},
	{Name: "blocklist-de", Help: "blocklist.de: addresses", parse: parseAddresses},
	{Name: "mxroute", Help: "MXroute's botnet.list: addresses", parse: parseAddresses},
	{Name: "cins", Help: "CINS Army: addresses", parse: parseAddresses},
	{Name: "emerging-threats", Help: "Emerging Threats block list: addresses and prefixes", parse: parseAddresses},
	{Name: "addresses", Help: "addresses and prefixes, one a line, whatever follows them", parse: parseAddresses},

	{Name: "plain", Help: "addresses, prefixes, AS numbers and names, one a line",
		sniff: func([]byte) bool { return true }, parse: parsePlain},
}

// sniffBytes is how much of a file is looked at to find out its format.
const sniffBytes = 64 << 10

func isJSON(content []byte) bool {
	content = bytes.TrimLeft(content, " \t\r\n")
	return len(content) > 0 && (content[0] == '{' || content[0] == '[')
}

// has claims files that begin with all of the given texts.
func has(texts ...string) func([]byte) bool {
	return func(content []byte) bool {
		head := content[:min(len(content), sniffBytes)]
		for _, text := range texts {
			if !bytes.Contains(head, []byte(text)) {
				return false
			}
		}
		return true
	}
}

func hasAny(texts ...string) func([]byte) bool {
	return func(content []byte) bool {
		for _, text := range texts {
			if has(text)(content) {
				return true
			}
		}
		return false
	}
}

// hasLine claims files in which a line begins so, before any that is neither
// empty nor a comment.
func hasLine(start string) func([]byte) bool {
	return func(content []byte) bool { return strings.HasPrefix(firstLine(content), start) }
}

// firstLine returns the first line that is neither empty nor a comment.
func firstLine(content []byte) string {
	for _, line := range lines(content[:min(len(content), sniffBytes)]) {
		if line = trim(line); line != "" && !isComment(line) {
			return line
		}
	}
	return ""
}

func sniffDrop(content []byte) bool {
	if isJSON(content) {
		return has(`"cidr"`, `"sblid"`)(content)
	}
	first := strings.Fields(firstLine(content))
	return len(first) >= 3 && first[1] == ";" && strings.HasPrefix(first[2], "SBL") ||
		bytes.HasPrefix(content, []byte("; Spamhaus "))
}

func sniffDShield(content []byte) bool {
	for _, line := range lines(content[:min(len(content), sniffBytes)]) {
		fields := strings.Fields(line)
		if len(fields) >= 3 && !isComment(fields[0]) {
			_, err1 := netip.ParseAddr(fields[0])
			_, err2 := netip.ParseAddr(fields[1])
			if err1 == nil && err2 == nil {
				return true
			}
		}
	}
	return false
}

func sniffGeofeed(content []byte) bool {
	prefix, rest, found := strings.Cut(firstLine(content), ",")
	_, err := netip.ParsePrefix(trim(prefix))
	return found && err == nil && strings.Count(rest, ",") >= 2
}

func sniffCSV(content []byte) bool {
	first, _, found := strings.Cut(firstLine(content), ",")
	if !found {
		return false
	}
	first = strings.Trim(trim(first), `"`)
	_, err := parsePrefix(first)
	return err == nil || slices.Contains(addressColumns, strings.ToLower(first))
}

func sniffASNList(content []byte) bool {
	first := firstLine(content)
	word, rest, comma := strings.Cut(first, ",")
	if comma {
		_, ok := parseASN(word, false)
		return ok || strings.EqualFold(strings.Trim(word, `"`), "asn") && rest != ""
	}
	return false // AS64496 alone on a line is plain
}
