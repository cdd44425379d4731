package feed

import (
	"bytes"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// All is the value of an option that selects all entries.
const All = "all"

// A Format is a file format in which lists are published.
type Format struct {
	Name    string
	Help    string // one-line description
	Option  string // name of the format's option, or ""
	Default string // default value of the option

	// sniff reports whether a file has this format. If sniff is nil, the format cannot be detected
	// and must be specified.
	sniff func(content []byte) bool
	parse func(*collector, []byte) error
}

// Formats returns the formats that Parse can read.
func Formats() []Format { return slices.Clone(formats) }

// formats contains all formats. Detection tries the formats in this order, so specific formats come
// before general ones. To add a format, add a row.
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
	{Name: "json", Help: "any JSON: every string that is an address or prefix", Option: "key", Default: All,
		sniff: isJSON, parse: parseJSON},
	{Name: "nft", Help: "nftables definitions",
		sniff: hasLine("define "), parse: parseNFT},
	{Name: "dshield", Help: "DShield's block.txt: start, end, mask length",
		sniff: sniffDShield, parse: parseDShield},
	{Name: "firehol", Help: "FireHOL netset or ipset",
		sniff: hasAny("hash:net ipset", "hash:ip ipset", "# Maintainer"), parse: parseAddresses},
	{Name: "geofeed", Help: "RFC 8805 geofeed: prefix,country,region,city,postal (Linode, Vultr)",
		sniff: sniffGeofeed, parse: parseGeofeed},
	{Name: "csv", Help: "comma-separated columns; addresses are in the column with a title such as ip or prefix, or in the first column",
		sniff: sniffCSV, parse: parseCSV},
	{Name: "asn-list", Help: "AS numbers, one per line, with or without the prefix AS, as text or CSV",
		sniff: sniffASNList, parse: parseASNList},

	// The following formats look like plain lists, so they cannot be detected. Files in these
	// formats may contain only addresses.
	{Name: "digitalocean", Help: "DigitalOcean's google.csv, a geofeed", parse: parseGeofeed},
	{Name: "blocklist-de", Help: "blocklist.de: addresses", parse: parseAddresses},
	{Name: "mxroute", Help: "MXroute's botnet.list: addresses", parse: parseAddresses},
	{Name: "cins", Help: "CINS Army: addresses", parse: parseAddresses},
	{Name: "emerging-threats", Help: "Emerging Threats block list: addresses and prefixes", parse: parseAddresses},
	{Name: "addresses", Help: "addresses, prefixes and ranges, followed by any text", parse: parseAddresses},

	{Name: "plain", Help: "addresses, prefixes, AS numbers and names, one per line",
		sniff: func([]byte) bool { return true }, parse: parsePlain},
}

// sniffBytes is the maximum number of bytes that a sniff function reads.
const sniffBytes = 64 << 10

func isJSON(content []byte) bool {
	content = bytes.TrimLeft(content, " \t\r\n")
	return len(content) > 0 && (content[0] == '{' || content[0] == '[')
}

// has returns a function for Format.sniff. The function reports whether the first sniffBytes of a
// file contain all of the given texts.
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

// hasLine returns a function for Format.sniff. The function reports whether the first line that is
// neither empty nor a comment starts with the given text.
func hasLine(start string) func([]byte) bool {
	return func(content []byte) bool { return strings.HasPrefix(firstLine(content), start) }
}

// firstLine returns the first line that is neither empty nor a comment.
func firstLine(content []byte) string {
	for _, line := range lines(content[:min(len(content), sniffBytes)]) {
		if line = strings.TrimSpace(line); line != "" && !isComment(line) {
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
			_, err3 := strconv.ParseUint(fields[2], 10, 8)
			if err1 == nil && err2 == nil && err3 == nil {
				return true
			}
		}
	}
	return false
}

func sniffGeofeed(content []byte) bool {
	network, rest, found := strings.Cut(firstLine(content), ",")
	_, err := netip.ParsePrefix(strings.TrimSpace(network))
	return found && err == nil && strings.Count(rest, ",") >= 2 && addressesBeside(strings.Split(rest, ","), -1) == 0
}

func sniffCSV(content []byte) bool {
	line := firstLine(content)
	first, _, found := strings.Cut(line, ",")
	if !found || addressesBeside(strings.Split(line, ","), -1) > strings.Count(line, ",") {
		return false // in a plain list, some lines consist of only an address
	}
	first = strings.Trim(strings.TrimSpace(first), `"`)
	return isPrefix(first) || slices.Contains(addressColumns, strings.ToLower(first))
}

func sniffASNList(content []byte) bool {
	first := firstLine(content)
	word, rest, comma := strings.Cut(first, ",")
	if comma {
		_, ok := parseASN(word, false)
		return ok || strings.EqualFold(strings.Trim(word, `"`), "asn") && rest != ""
	}
	return false // in a plain list, a line may consist of only an AS number
}
