package statedir

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/prefix"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/store"
	"scanwatch/store/history"
)

// RecentDays is the number of days for which accepted mail protects a client from being banned by
// mistake.
const RecentDays = 90

// maxNames is the maximum number of names that Legitimate stores for a network.
const maxNames = 10_000

// Legitimate returns a reason not to ban the clients in a network, or "". The reason may be a
// special address, an exempt client, or mail or a login from the network on any host of the fleet in
// the last RecentDays days. exempt returns why a record's client is exempt, or "". warn is called for read errors.
func (d *Dir) Legitimate(p netip.Prefix, exempt func(*store.Record) string, warn func(string)) (string, error) {
	if why := d.special(p); why != "" {
		return why, nil
	}
	single := store.Record{Start: d.Now(), Src: netip.AddrPortFrom(p.Addr(), 0)}
	if why := exempt(&single); why != "" && p == memory.Source(p.Addr()) {
		return why, nil
	}
	why, err := d.recorded(p, exempt, warn)
	if why == "" && err == nil {
		why, err = d.remembered(p)
	}
	return why, err
}

// special returns why the addresses in a network cannot belong to unknown clients, or "".
func (d *Dir) special(p netip.Prefix) string {
	for _, own := range d.Own {
		if p.Contains(own) {
			return own.String() + " is an address of this machine"
		}
	}
	switch a := p.Addr(); {
	case a.IsLoopback(), a.IsUnspecified() && p.Bits() > 0:
		return "it is this machine"
	case a.IsPrivate(), a.IsLinkLocalUnicast():
		return "its addresses are private"
	case a.IsMulticast():
		return "its addresses are multicast"
	}
	return ""
}

// remembered describes a network's mail and logins, on this host and the other hosts of the fleet,
// found in the state.
func (d *Dir) remembered(p netip.Prefix) (why string, err error) {
	rows := memory.NewReader(d.Now())
	err = d.State([]string{"clock", "peers", memory.ElsewhereBucket}, func(en store.Entry) error {
		if rows.Clock(en) {
			return nil
		}
		peer, ok := rows.Peer(en.Key, en.Value)
		on := ""
		if peer.Origin != "" {
			on = " on " + peer.Origin
		}
		switch {
		case !ok || why != "" || !p.Overlaps(peer.Prefix):
		case !peer.LastMail.IsZero():
			why = fmt.Sprintf("%s delivered mail%s, last on %s", prefix.String(peer.Prefix), on, peer.LastMail.Format(time.DateOnly))
		case !peer.LastLogin.IsZero():
			why = fmt.Sprintf("a user logged in from %s%s, last on %s", prefix.String(peer.Prefix), on, peer.LastLogin.Format(time.DateOnly))
		}
		return nil
	})
	return why, err
}

// recorded describes a network's mail and logins found in the records.
func (d *Dir) recorded(p netip.Prefix, exempt func(*store.Record) string, warn func(string)) (string, error) {
	r, err := d.Open()
	if err != nil {
		return "", err
	}
	defer r.Close()
	r.Warn(warn)
	mails, logins, unnamed, why := 0, 0, false, ""
	domains, users := map[string]bool{}, map[string]bool{}
	visit := func(rec *store.Record) error {
		if dst := rec.Dst.Addr(); dst.IsValid() && p.Contains(dst.Unmap()) {
			why = dst.Unmap().String() + " is an address of this server"
			return history.ErrStop
		}
		if !rec.Src.IsValid() || !p.Contains(rec.Src.Addr()) {
			return nil
		}
		if why = exempt(rec); why != "" {
			return history.ErrStop
		}
		if rec.Counts.Mails == 0 && rec.Counts.AuthPass == 0 {
			return nil
		}
		mails += int(rec.Counts.Mails)
		logins += int(rec.Counts.AuthPass)
		unnamed = unnamed || rec.Sessions > 0 && rec.Counts.Mails > 0 // aggregates name no senders, so there may be more domains
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
	if err != nil || why != "" || mails == 0 && logins == 0 {
		return why, err
	}
	var parts []string
	if mails > 0 {
		from := " from " + text.Plural(len(domains), "domain")
		switch {
		case len(domains) == 0:
			from = ""
		case unnamed:
			from = " from at least " + text.Plural(len(domains), "domain")
		}
		parts = append(parts, fmt.Sprintf("it delivered %s%s in %d days", text.Plural(mails, "message"), from, RecentDays))
	}
	if logins > 0 {
		parts = append(parts, text.Plural(len(users), "user")+" logged in from it")
	}
	return strings.Join(parts, ", and "), nil
}
