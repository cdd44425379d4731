package feed

import (
	"slices"
	"time"
)

// Database is the name of the MaxMind DB format, which Parse does not read.
const Database = "mmdb"

// A Published is a list or database that its publisher offers for download.
type Published struct {
	Name   string
	URL    string // %Y and %m represent the year and the month
	Format string // a format of Parse with its option, or Database
	// Least is the minimum interval between downloads. If the publisher states no interval, Least
	// is a polite interval.
	Least  time.Duration
	Header string // name of the HTTP header for the operator's key; empty if no key is needed
	Terms  string
	Credit string
}

// Catalogue returns the known feeds. Catalogue includes only publishers that offer HTTPS, because
// an attacker could change a file that is sent over HTTP.
func Catalogue() []Published { return slices.Clone(catalogue) }

// Find returns the feed with the given name.
func Find(name string) (Published, bool) {
	i := slices.IndexFunc(catalogue, func(p Published) bool { return p.Name == name })
	if i < 0 {
		return Published{}, false
	}
	return catalogue[i], true
}

const (
	spamhausTerms  = "free of charge with attribution; keep the date and copyright in the file; once a day is enough"
	spamhausCredit = "The Spamhaus Project, https://www.spamhaus.org/drop/"
	dbipTerms      = "CC BY 4.0: pages that show results must link to db-ip.com"
	dbipCredit     = "IP Geolocation by DB-IP, https://db-ip.com"
)

// catalogue contains all feeds. To add a feed, add a row here and an item in the FEEDS
// section of scanwatch(8).
var catalogue = []Published{
	{Name: "spamhaus-drop4", URL: "https://www.spamhaus.org/drop/drop_v4.json", Format: "spamhaus-drop",
		Least: time.Hour, Terms: spamhausTerms, Credit: spamhausCredit},
	{Name: "spamhaus-drop6", URL: "https://www.spamhaus.org/drop/drop_v6.json", Format: "spamhaus-drop",
		Least: time.Hour, Terms: spamhausTerms, Credit: spamhausCredit},
	{Name: "spamhaus-asndrop", URL: "https://www.spamhaus.org/drop/asndrop.json", Format: "spamhaus-asndrop",
		Least: time.Hour, Terms: spamhausTerms, Credit: spamhausCredit},
	{Name: "blocklist-de-mail", URL: "https://lists.blocklist.de/lists/mail.txt", Format: "blocklist-de",
		Least: 6 * time.Hour, Terms: "free of charge; attackers seen in the last 48 hours", Credit: "https://www.blocklist.de"},
	{Name: "abuseipdb", URL: "https://api.abuseipdb.com/api/v2/blacklist", Format: "abuseipdb",
		Least: 6 * time.Hour, Header: "Key", Terms: "free account with five requests a day; no redistribution", Credit: "https://www.abuseipdb.com"},
	{Name: "dshield", URL: "https://feeds.dshield.org/block.txt", Format: "dshield",
		Least: time.Hour, Terms: "non-commercial use only", Credit: "DShield, https://www.dshield.org"},
	{Name: "firehol-level1", URL: "https://iplists.firehol.org/files/firehol_level1.netset", Format: "firehol",
		Least: 6 * time.Hour, Terms: "each list in it has the licence of its source", Credit: "FireHOL, https://iplists.firehol.org"},
	{Name: "cins", URL: "https://cinsscore.com/list/ci-badguys.txt", Format: "cins",
		Least: 6 * time.Hour, Terms: "own use only", Credit: "CINS Army, https://cinsscore.com"},
	{Name: "emerging-threats", URL: "https://rules.emergingthreats.net/fwrules/emerging-Block-IPs.txt", Format: "emerging-threats",
		Least: 6 * time.Hour, Terms: "includes Spamhaus DROP and DShield, whose terms apply", Credit: "Emerging Threats, https://rules.emergingthreats.net"},
	{Name: "aws-ec2", URL: "https://ip-ranges.amazonaws.com/ip-ranges.json", Format: "aws service EC2",
		Least: 6 * time.Hour, Terms: "published by the owner of the networks", Credit: "Amazon Web Services"},
	{Name: "google-cloud", URL: "https://www.gstatic.com/ipranges/cloud.json", Format: "google",
		Least: 6 * time.Hour, Terms: "published by the owner of the networks", Credit: "Google"},
	{Name: "oracle-cloud", URL: "https://docs.oracle.com/en-us/iaas/tools/public_ip_ranges.json", Format: "oracle",
		Least: 6 * time.Hour, Terms: "published by the owner of the networks", Credit: "Oracle"},
	{Name: "digitalocean", URL: "https://digitalocean.com/geo/google.csv", Format: "digitalocean",
		Least: 6 * time.Hour, Terms: "published by the owner of the networks", Credit: "DigitalOcean"},
	{Name: "linode", URL: "https://geoip.linode.com/", Format: "geofeed",
		Least: 6 * time.Hour, Terms: "published by the owner of the networks", Credit: "Linode"},
	{Name: "vultr", URL: "https://geofeed.constant.com/?text", Format: "geofeed",
		Least: 6 * time.Hour, Terms: "published by the owner of the networks", Credit: "Vultr"},
	{Name: "dbip-asn", URL: "https://download.db-ip.com/free/dbip-asn-lite-%Y-%m.mmdb.gz", Format: Database,
		Least: 6 * time.Hour, Terms: dbipTerms, Credit: dbipCredit},
	{Name: "dbip-country", URL: "https://download.db-ip.com/free/dbip-country-lite-%Y-%m.mmdb.gz", Format: Database,
		Least: 6 * time.Hour, Terms: dbipTerms, Credit: dbipCredit},
}
