package lookup

// The tokens of evidence that the shipped lists support.
const (
	scanner         = "scanner"
	cloud           = "cloud"
	botnetHelo      = "botnet-helo"
	heloMissing     = "helo-missing"
	heloUnqualified = "helo-unqualified"
	heloBareAddress = "helo-bare-address"
	heloForged      = "helo-forged"
	heloLocalhost   = "helo-localhost"
	heloInvalid     = "helo-invalid"
	talksHTTP       = "talks-http"
	talksSSH        = "talks-ssh"
	relayProbe      = "relay-probe"
	noEvidence      = ""
)

// listEvidence is what a match in a list proves, unless exceptions knows better.
var listEvidence = map[string]string{
	Scanners:   scanner,
	Clouds:     cloud,
	BotnetHelo: botnetHelo,
	Allow:      noEvidence,
}

// exceptions is what rows prove that are not what their list is about. An empty
// column stands for any text; the first fitting entry decides.
var exceptions = []struct {
	list, category, org, value, evidence string
}{
	// Entries of the scanner list that describe no organisation.
	{Scanners, "botnet", "", "", botnetHelo},
	{Scanners, "", "Empty EHLO", "", heloMissing},
	{Scanners, "", "Non-SMTP client on port 25", `/^SSH-[12]\./`, talksSSH},
	// A digit is no binary probe. What the bytes are is for him to tell who sees
	// them all.
	{Scanners, "", "Non-SMTP client on port 25", `/^[^A-Za-z]/`, noEvidence},
	{Scanners, "", "Non-SMTP client on port 25", "", talksHTTP},
	// Everybody who logs in says AUTH; whether it was offered is not in the line.
	{Scanners, "", "AUTH before it is offered", "", noEvidence},

	// Tools of unknown users. An empty greeting comes from too many of them to
	// name one.
	{BotnetHelo, "scanner-tool", "Empty EHLO (Nmap, ZGrab2)", "", heloMissing},
	{BotnetHelo, "scanner-tool", "", "", scanner},
	{BotnetHelo, "tester", "", "", scanner},
	{BotnetHelo, "forged-name", "", "", heloForged},
	// Not a greeting but the sender of a relay test.
	{BotnetHelo, "bruteforcer", "Open-relay tester", "", relayProbe},

	// Names that providers and Windows give by themselves. Careless owners of
	// honest servers keep them, so that they condemn nobody.
	{BotnetHelo, "massmailer", "Mass mailer (default OVH server name)", "", cloud},
	{BotnetHelo, "massmailer", "Mass mailer (default OVH VPS name)", "", cloud},
	{BotnetHelo, "massmailer", "Mass mailer (Google Cloud name)", "", cloud},
	{BotnetHelo, "massmailer", "Mass mailer (numbered VPS names)", "", cloud},
	{BotnetHelo, "", "Windows default name, desktop", "", heloUnqualified},
	{BotnetHelo, "", "Windows default name, laptop", "", heloUnqualified},
	{BotnetHelo, "", "Windows default name, spam relay tester", `/(?i)^win-[a-z0-9]{11}$/`, heloUnqualified},

	{BotnetHelo, "broken-client", "Bare IPv4 address", "", heloBareAddress},
	{BotnetHelo, "broken-client", "No dot in the name", "", heloUnqualified},
	{BotnetHelo, "broken-client", "localhost", "", heloLocalhost},
	{BotnetHelo, "broken-client", "localhost.localdomain", "", heloLocalhost},
	{BotnetHelo, "broken-client", "Loopback literal", "", heloLocalhost},
	{BotnetHelo, "broken-client", "IPv6 loopback literal", "", heloLocalhost},
	{BotnetHelo, "broken-client", "HTTP client on port 25", "", talksHTTP},
	// Names that no host on the internet can have: RFC 6761 section 6.4, and the
	// factory settings of home routers.
	{BotnetHelo, "broken-client", "Private top-level name", ".invalid", heloInvalid},
	{BotnetHelo, "broken-client", "Home router or default setting", "", heloInvalid},
	// The rest is what honest servers of small offices and home lines say too:
	// .local and the like, names of dynamic lines, defaults of whole providers.
	{BotnetHelo, "broken-client", "", "", noEvidence},
}

func evidenceOf(row *Row) string {
	fits := func(want, is string) bool { return want == "" || want == is }
	for _, e := range exceptions {
		if e.list == row.List && fits(e.category, row.Category) && fits(e.org, row.Org) && fits(e.value, row.Value) {
			return e.evidence
		}
	}
	return listEvidence[row.List]
}
