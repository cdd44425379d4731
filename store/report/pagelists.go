package report

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"scanwatch/internal/text"
	"scanwatch/rules"
)

// decisions returns the cells with rejected sessions. The function decided names their columns.
func decisions(t *Totals, refused, observed bool) (cells []any) {
	if refused {
		cells = append(cells, t.Refused)
	}
	if observed {
		cells = append(cells, t.Observed)
	}
	return cells
}

// suspects returns the section with possible false positives.
func (p *Page) suspects(zone *time.Location) pageSection {
	s := p.Summary
	t := &table{Caption: "Possible false positives", Wide: true, Heads: heads("host", "decision", "reason for doubt", "latest", "scanwatch why"), More: s.More["possible_false_positives"]}
	enforced := false
	for i := range s.Suspects {
		d := &s.Suspects[i]
		why := d.Why
		latest := p.stamp(d.Last.Time, zone)
		enforced = enforced || d.Refused > 0
		if d.Mails > 0 {
			why += " (" + text.Plural(d.Mails, "message") + ")"
		}
		if d.Sender != "" {
			latest.Sub = "from <" + d.Sender + ">"
		}
		t.add("rule "+d.Rule, cell{Text: d.Address, Sub: d.RDNS}, cell{Text: d.refusals(), Sub: "rule " + d.Rule, Long: true}, cell{Text: why, Long: true},
			latest, cell{Text: d.Session, Code: true})
	}
	t.filter(5)
	note := "Rejections that may have affected legitimate mail."
	if !enforced {
		note = "Legitimate mail that the policy might reject in enforce mode. No mail was rejected."
	}
	return pageSection{ID: "doubts", Title: "Possible false positives", Decisions: true, Table: t, Notes: []string{note}}
}

// scanning returns the section on hosts with findings.
func (p *Page) scanning(zone *time.Location) pageSection {
	s := p.Summary
	refused, observed := anyDecided(s.Scanning)
	t := &table{Caption: "Hosts with findings", Wide: true, More: s.More["scanning"], Empty: "No host had findings."}
	t.Heads = heads(slices.Concat([]string{"host", "worst evidence", "#findings", "#sessions"}, decided(refused, observed), []string{"last seen", "banned until"})...)
	for i := range s.Scanning {
		x := &s.Scanning[i]
		until := cell{Text: "–"}
		if !x.Banned.IsZero() {
			until = p.stamp(x.Banned.Time, zone)
		}
		worst := cell{Text: x.Evidence, Sub: cmp.Or(x.legitimate(), x.Organisation)}
		t.add(x.Evidence, slices.Concat([]any{cell{Text: x.Address, Sub: x.RDNS}, worst, x.Found, x.Sessions},
			decisions(&x.Totals, refused, observed), []any{p.stamp(x.Last.Time, zone), until})...)
		if !x.Banned.IsZero() && i < maxRows {
			t.mark("banned")
		}
	}
	t.filter(firstRows)
	return pageSection{ID: "scanning", Title: "Scanning hosts", Decisions: true, Table: t,
		Notes: []string{"Hosts with findings, the worst evidence first, with their organisation if it is known. Hosts with legitimate mail are in the next list."}}
}

// anyDecided reports whether any sessions from the sources were rejected, and whether any would
// have been.
func anyDecided(all []Source) (refused, observed bool) {
	for i := range all {
		refused, observed = refused || all[i].Refused > 0, observed || all[i].Observed > 0
	}
	return refused, observed
}

// goodMail returns the section on hosts with accepted mail.
func (p *Page) goodMail(zone *time.Location) pageSection {
	s := p.Summary
	refused, observed := anyDecided(s.GoodMail)
	t := &table{Caption: "Hosts with accepted mail", Wide: true, More: s.More["good_mail"], Empty: "No message was accepted."}
	t.Heads = heads(slices.Concat([]string{"host", "#messages", "#recipients", "#sessions", "#with findings"}, decided(refused, observed), []string{"last seen"})...)
	for i := range s.GoodMail {
		x := &s.GoodMail[i]
		t.add("", slices.Concat([]any{cell{Text: x.Address, Sub: x.RDNS}, x.Mails, x.RcptOK, x.Sessions, x.Found},
			decisions(&x.Totals, refused, observed), []any{p.stamp(x.Last.Time, zone)})...)
		if x.Found > 0 && i < maxRows {
			t.mark("with findings")
		}
	}
	t.filter(firstRows)
	return pageSection{ID: "mail", Title: "Good mail", Decisions: true, Table: t,
		Notes: []string{"Hosts by the number of accepted messages. Hosts with high-confidence evidence that no mail server would show are omitted."}}
}

// bans returns the section on active bans.
func (p *Page) bans(zone *time.Location) pageSection {
	t := &table{Caption: "Active bans", Wide: true, Heads: heads("host", "rule", "time left", "until", "#offence", "#connections since"), More: p.Bans.More, Empty: "No host is banned."}
	if p.Bans.Problem != "" {
		t.Empty = "The bans are unknown: " + p.Bans.Problem + "."
	}
	enforced := len(p.Bans.List) == 0
	for i := range p.Bans.List {
		b := &p.Bans.List[i]
		how, kind := "", b.Rule
		enforced = enforced || !b.Observed
		switch {
		case b.Observed:
			how = "would be banned"
		case b.Manual:
			how, kind = "by the operator"+b.On, "by the operator"
		case b.On != "":
			how = strings.TrimSpace(b.On)
		}
		t.add(kind, cell{Text: b.Prefix, Sub: b.Name}, cell{Text: b.Rule, Sub: how}, text.ShortDuration(b.Until.Sub(p.Site.Made)),
			p.stamp(b.Until, zone), text.Ordinal(b.Times), b.Attempts)
	}
	t.filter(firstRows)
	c := pageSection{ID: "bans", Title: "Bans in force", Decisions: true, Table: t,
		Notes: []string{"At " + p.Site.Made.In(zone).Format(minuteTime) + ", the newest first. scanwatch unban revokes a ban."}}
	if !enforced {
		c.Title, c.Notes = "Observed bans", []string{"No host is banned. In enforce mode, these hosts would be banned at " + p.Site.Made.In(zone).Format(minuteTime) + "."}
	}
	return c
}

// rejections returns the section on the latest rejections.
func (p *Page) rejections(zone *time.Location) pageSection {
	s := p.Summary
	t := &table{Caption: "Latest rejections", Wide: true, Heads: heads("time", "host", "sender and recipient", "decision", "reference"), More: s.More["rejections"],
		Empty: "No session was rejected, and none would have been."}
	enforced := len(s.Rejections) == 0
	for i := range s.Rejections {
		x := &s.Rejections[i]
		what := "rejected"
		if enforced = enforced || x.Enforced; !x.Enforced {
			what = "would be rejected"
		}
		if x.Sessions > 1 {
			what += ", " + text.Plural(x.Sessions, "session")
		}
		mail := cell{Long: true}
		if x.Sender != "" || x.Recipient != "" {
			mail.Text = "<" + x.Sender + ">"
		}
		if x.Recipient != "" {
			mail.Sub = "to <" + x.Recipient + ">"
		}
		t.add("rule "+x.Rule, p.stamp(x.End.Time, zone), cell{Text: x.host(), Sub: x.RDNS, Long: true}, mail,
			cell{Text: what, Sub: "rule " + x.Rule + ", " + x.Phase}, cell{Text: x.Reference, Code: true})
		if mail.Text != "" && i < maxRows {
			t.mark("with a sender")
		}
	}
	t.filter(firstRows)
	c := pageSection{ID: "rejections", Title: "Latest rejections", Decisions: true, Table: t,
		Notes: []string{"Users quote the reference from a bounce. scanwatch why REFERENCE explains the decision and how to undo it."}}
	if !enforced {
		c.Title, t.Caption = "Latest sessions that would be rejected", "Latest sessions that would be rejected"
		c.Notes = []string{"None of these sessions was rejected. scanwatch why REFERENCE explains the decision."}
	}
	return c
}

// counted returns the sections with bars.
func (p *Page) counted() []pageSection {
	s := p.Summary
	evidence := &table{Caption: "Sessions by evidence", Heads: heads("evidence: the host", "#sessions")}
	for _, e := range s.Evidence {
		means := ""
		if t := rules.TokenByName(e.Name); t != nil {
			means = t.Means
		}
		evidence.bar(e.Name, means, e.Sessions, e.Sessions, s.Evidence[0].Sessions, e.Sessions)
	}
	names := func(all []Name, list, head string, found bool) *table {
		t := &table{Caption: "Sessions by " + head, Heads: heads(head, "#sessions"), More: s.More[list]}
		for _, n := range all {
			hot := 0
			if found {
				hot = n.Sessions
			}
			t.bar(n.Name, n.Evidence, n.Sessions, hot, all[0].Sessions, n.Sessions)
		}
		return t
	}
	nets := &table{Caption: "Sessions by network", Heads: heads("network", "#addresses", "#sessions", "#with findings"), More: s.More["networks"]}
	for _, n := range s.Networks {
		nets.bar(n.Prefix, "", n.Sessions, n.Found, s.Networks[0].Sessions, n.Addresses, n.Sessions, n.Found)
	}
	regions := func(all []Region, list, head, unknown string) *table {
		t := &table{Caption: "Sessions by " + head, Heads: heads(head, "#sources", "#sessions", "#with findings", "#messages"), More: s.More[list]}
		for _, r := range all {
			if r.Name == "" {
				r.Name = unknown
			}
			t.bar(r.Name, r.Organisation, r.Sessions, r.Found, all[0].Sessions, r.Addresses, r.Sessions, r.Found, r.Mails)
		}
		return t
	}
	const parts = "Sessions of other hosts. The red part of a bar has findings."
	half := func(id, title, note string, t *table) pageSection {
		t.filter(firstRows)
		c := pageSection{ID: id, Title: title, Half: true, Table: t}
		if note != "" {
			c.Notes = []string{note}
		}
		return c
	}
	return []pageSection{
		half("evidence", "Evidence", "Sessions with each kind of evidence.", evidence),
		half("organisations", "Organisations", "Sessions with evidence that names an organisation.", names(s.Organisations, "organisations", "organisation", true)),
		half("as", "AS numbers", parts, regions(s.ASNumbers, "as_numbers", "AS number", "unknown")),
		half("countries", "Countries", parts, regions(s.Countries, "countries", "country", "unknown")),
		half("networks", "Networks", parts, nets),
		half("helo", "HELO names", "", names(s.Helo, "helo", "name", false)),
	}
}

// attacks returns the sections on attacks.
func (p *Page) attacks(zone *time.Location) []pageSection {
	s := p.Summary
	accounts := &table{Caption: "Accounts under attack", Heads: heads("user", "#failed", "#networks", "#own logins", "last failure"), More: s.More["attacked_accounts"]}
	for i := range s.Attacked {
		u := &s.Attacked[i]
		accounts.add("", u.User, u.Failed, u.networks(), u.Logins, p.stamp(u.Last.Time, zone))
	}
	auth := &table{Caption: "AUTH brute force", Heads: heads("host", "#sessions", "#failed", "#rejected"), More: s.More["auth"]}
	for i := range s.Auth {
		x := &s.Auth[i]
		auth.add("", cell{Text: x.Address, Sub: x.RDNS}, x.Sessions, x.AuthFail, x.AuthRefused)
	}
	attempts := func(list, caption string, all []Attempt) *table {
		t := &table{Caption: caption, Heads: heads("host", "domains", "#sessions", "#recipients"), More: s.More[list]}
		for i := range all {
			a := &all[i]
			domains := slices.Clone(a.Domains)
			if n := a.domains - len(a.Domains); n > 0 {
				domains = append(domains, "+"+strconv.Itoa(n))
			}
			t.add("", cell{Text: a.Address, Sub: a.RDNS}, strings.Join(domains, " "), a.Sessions, a.Refused)
		}
		return t
	}
	all := []pageSection{
		{ID: "accounts", Title: "Accounts under attack", Notes: []string{attackedText}, Table: accounts},
		{ID: "auth", Title: "AUTH brute force", Notes: []string{"Hosts by the number of failed and rejected logins."}, Table: auth},
		{ID: "harvests", Title: "Directory harvests", Notes: []string{fmt.Sprintf(harvestText, harvestFrom, harvestSlow)}, Table: attempts("harvest", "Directory harvests", s.Harvest)},
		{ID: "relay", Title: "Relay probes", Notes: []string{relayText}, Table: attempts("relay", "Relay probes", s.Relay)},
	}
	for i := range all {
		all[i].Table.filter(firstRows)
	}
	return all
}

// rules returns the section on rules.
func (p *Page) rules() pageSection {
	s := p.Summary
	t := &table{Caption: "Rules", Heads: heads("rule", "#enforced", "#observed", "#bans", "#exempt"), More: s.More["rules"]}
	for _, r := range s.Rules {
		t.add("", r.Rule, r.Enforced, r.Observed, r.Bans, r.Exempt)
	}
	t.filter(firstRows)
	return pageSection{ID: "rules", Title: "Rules", Decisions: true, Table: t,
		Notes: []string{"Sessions that a rule decided, enforced or observed; bans; and decisions and bans withheld from exempt hosts."}}
}

// returns creates the section on returning hosts.
func (p *Page) returns(zone *time.Location) pageSection {
	c := pageSection{ID: "returns", Title: "Returning hosts"}
	r := p.Returns
	if r == nil {
		return c
	}
	c.Notes = append(c.Notes, period(r.Since.Time, r.Until.Time, zone)+". Percentage of hosts that returned within each time after their first session with the ban or finding. Only hosts watched for the whole time are counted.")
	for _, problem := range r.Problems {
		c.Notes = append(c.Notes, "! "+problem)
	}
	c.Notes = append(c.Notes, fmt.Sprintf("The ban is the shortest after which fewer than %d %% more returned. Shares of fewer than %d hosts have no colour.", int(fewMore*100), minHosts))
	columns := []string{"class", "#hosts"}
	for _, step := range returnSteps {
		columns = append(columns, "#"+step.name)
	}
	c.Table = &table{Caption: "Returning hosts", Heads: heads(append(columns, "#ban")...)}
	for i := range r.Rows {
		row := &r.Rows[i]
		cells := []any{row.Of, row.Hosts}
		for _, w := range row.Within {
			one := cell{Text: "–"}
			if w.Watched > 0 {
				one.Text = strconv.FormatFloat(100*float64(w.Returned)/float64(w.Watched), 'f', 0, 64) + " %"
			}
			if w.Watched >= minHosts {
				one.Level = strconv.Itoa(shade(float64(w.Returned) / float64(w.Watched)))
			}
			cells = append(cells, one)
		}
		ban := row.Ban
		if row.AtLeast {
			ban = "≥ " + ban
		}
		c.Table.add("", append(cells, ban)...)
	}
	return c
}
