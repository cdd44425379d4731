package memory

import (
	"time"

	"scanwatch/rules"
)

// Retention returns how long each table keeps data about users and hosts.
func Retention() []rules.Retention {
	const day = daySeconds * time.Second
	return []rules.Retention{
		{What: "bans, after their end", For: keepBan * time.Second},
		{What: "hosts that sent mail or from which users logged in, after the last time", For: peerDays * day},
		{What: "mail addresses of this site that received mail, as hashes, after the last message", For: acceptedDays * day},
		{What: "mail addresses that do not exist, as hashes, after the last attempt", For: probedDays * day},
		{What: "failed logins, as hashes", For: pairHours * time.Hour},
		{What: "how many recipients of a host exist or not", For: day},
		{What: "the last users who logged in from a host, as hashes, after the last login", For: (loginDays + 1) * day},
		{What: "domains of this site, after the last message", For: domainDays * day},
		{What: "daily totals, without addresses and names", For: dayKeep * day},
	}
}
