package statedir

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"scanwatch/internal/smtp"
	"scanwatch/store"
	"scanwatch/store/history"
)

// RecentDays is the number of days for which accepted mail protects a client from
// accidental bans.
const RecentDays = 90

// maxNames is the maximum number of names that Legitimate stores for a network.
const maxNames = 10_000

// Legitimate describes the mail and logins of a network in the last RecentDays days,
// or returns "". Warn is called for problems of reading.
func (d *Dir) Legitimate(p netip.Prefix, warn func(string)) (string, error) {
	r, err := d.Open()
	if err != nil {
		return "", err
	}
	defer r.Close()
	r.Warn(warn)
	mails, logins := 0, 0
	domains, users := map[string]bool{}, map[string]bool{}
	visit := func(rec *store.Record) error {
		if !rec.Src.IsValid() || !p.Contains(rec.Src.Addr()) || rec.Counts.Mails == 0 && rec.Counts.AuthPass == 0 {
			return nil
		}
		mails += int(rec.Counts.Mails)
		logins += int(rec.Counts.AuthPass)
		return rec.Steps(func(s *store.Step) bool {
			switch {
			case s.Kind == store.KindMail && s.Result == smtp.ResultOK && len(domains) < maxNames:
				_, domain, _ := strings.Cut(string(s.Text), "@")
				domains[strings.ToLower(domain)] = true
			case s.Kind == store.KindAuth && s.Result == smtp.ResultPass && len(users) < maxNames:
				users[string(s.Text)] = true
			}
			return true
		})
	}
	err = history.Walk(r, d.Now().AddDate(0, 0, -RecentDays), time.Time{},
		history.Visitor{Kinds: store.KindsOf(store.KindMail, store.KindAuth), Session: visit, Sum: visit})
	if err != nil || mails == 0 && logins == 0 {
		return "", err
	}
	var parts []string
	if mails > 0 {
		parts = append(parts, fmt.Sprintf("it delivered %d messages from %d domains in %d days", mails, len(domains), RecentDays))
	}
	if logins > 0 {
		parts = append(parts, fmt.Sprintf("%d users logged in from it", len(users)))
	}
	return strings.Join(parts, ", and "), nil
}
