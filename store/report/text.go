package report

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"scanwatch/internal/text"
	"scanwatch/rules"
)

// TextOptions are the settings of Summary.Text.
type TextOptions struct {
	Zone  *time.Location
	Style text.Style
	Only  []string // names of sections; empty: all
}

// A textSection is a section of the text. Problems and totals do not form a section.
type textSection struct {
	name  string // name of the section in TextOptions.Only
	write func(*Summary, *lines)
}

var textSections = []textSection{
	{"false-positives", (*Summary).writeSuspects},
	{"scanning", (*Summary).textScanning},
	{"accounts", func(s *Summary, l *lines) { writeAttacked(l, s.Attacked, s.More["attacked_accounts"]) }},
	{"rejections", (*Summary).textRejections},
	{"good-mail", (*Summary).textGoodMail},
	{"rules", (*Summary).textRules},
	{"evidence", func(s *Summary, l *lines) { s.names(l, "evidence", "Findings by evidence", s.Evidence) }},
	{"organisations", func(s *Summary, l *lines) { s.names(l, "organisations", "Findings by organisation", s.Organisations) }},
	{"networks", (*Summary).textNetworks},
	{"helo", func(s *Summary, l *lines) { s.names(l, "helo", "HELO names", s.Helo) }},
	{"harvests", (*Summary).textHarvests},
	{"relay", (*Summary).textRelay},
	{"auth", (*Summary).textAuth},
}

// TextSections returns the names of the sections.
func TextSections() (names []string) {
	for _, s := range textSections {
		names = append(names, s.name)
	}
	return names
}

// Text writes the summary as text.
func (s *Summary) Text(w io.Writer, o TextOptions) error {
	l := &lines{style: o.Style, zone: o.Zone}
	s.textHead(l)
	if len(o.Only) == 0 {
		s.textTotals(l)
	}
	for _, section := range textSections {
		if len(o.Only) == 0 || slices.Contains(o.Only, section.name) {
			section.write(s, l)
		}
	}
	textNotListed(l, s.NotListed)
	_, err := io.WriteString(w, l.String())
	return err
}

// textHead writes the period, the mode and problems.
func (s *Summary) textHead(l *lines) {
	const layout, offset = "2006-01-02 15:04:05", " (-0700)"
	since, until := s.Since.In(l.zone), s.Until.In(l.zone)
	from := since.Format(layout)
	if since.Format(offset) != until.Format(offset) { // daylight saving time
		from += since.Format(offset)
	}
	fmt.Fprintf(l, "Sessions that ended from %s to %s\n", from, until.Format(layout+offset))
	if s.Mode != "" {
		mode := "Mode " + s.Mode
		if s.Mode == rules.Observe.String() {
			mode += ": nothing is rejected, and decisions are only recorded"
		}
		l.para(mode+"; "+s.Policy+".", 0)
	}
	l.problems(s.Problems)
}

func (s *Summary) textTotals(l *lines) {
	l.WriteString("\n              sessions messages accepted rejected deferred     auth     auth\n")
	l.WriteString("                                  rcpts    rcpts    rcpts   failed rejected\n")
	for _, c := range []struct {
		name string
		t    *Totals
	}{{"other hosts", &s.Remote}, {"authenticated", &s.Authenticated}, {"local", &s.Local}} {
		l.row("%-13s %8d %8d %8d %8d %8d %8d %8d", c.name, c.t.Sessions, c.t.Mails, c.t.RcptOK, c.t.RcptPermfail, c.t.RcptTempfail, c.t.AuthFail, c.t.AuthRefused)
	}
	line := fmt.Sprintf("Other hosts: %s; %s with findings", s.addressCount(text.Plural(s.Addresses, "address", "addresses")), text.Plural(s.Remote.Found, "session"))
	if s.Remote.Refused > 0 || s.Remote.Observed == 0 {
		line += fmt.Sprintf(", %d rejected by rules or bans", s.Remote.Refused)
	}
	if s.Remote.Observed > 0 {
		line += fmt.Sprintf(", %d would have been rejected if enforced", s.Remote.Observed)
	}
	l.WriteByte('\n')
	l.para(line+".", 0)
	l.WriteString("The lists below cover other hosts only.\n")
	for _, note := range s.notes() {
		l.para(note, 0)
	}
}

// decidedColumns returns the headings and cells of the columns for decisions.
// Columns in which all numbers are 0 are omitted.
func decidedColumns(all []Source) (heads []string, cells func(*Source) []string) {
	refused, observed := anyDecided(all)
	if refused {
		heads = append(heads, "rejected")
	}
	if observed {
		heads = append(heads, "observed")
	}
	return heads, func(x *Source) (c []string) {
		if refused {
			c = append(c, fmt.Sprintf("%8d", x.Refused))
		}
		if observed {
			c = append(c, fmt.Sprintf("%8d", x.Observed))
		}
		return c
	}
}

// ago returns the time from t to the end of the period.
func (s *Summary) ago(t Time) string { return text.ShortDuration(max(s.Until.Sub(t.Time), 0)) }

// legitimate describes the accepted mail and the logins of a host with findings.
func (x *Source) legitimate() string {
	var parts []string
	if x.Mails > 0 {
		parts = append(parts, text.Plural(x.Mails, "message")+" accepted")
	}
	if x.Logins > 0 {
		parts = append(parts, text.Plural(x.Logins, "login")+" of users")
	}
	return strings.Join(parts, ", ")
}

func (s *Summary) textScanning(l *lines) {
	if !l.section("Scanning hosts", len(s.Scanning)) {
		return
	}
	heads, decided := decidedColumns(s.Scanning)
	rows := [][]string{slices.Concat([]string{"  findings", "sessions"}, heads, []string{"last", "banned", "address", "evidence", "name"})}
	for i := range s.Scanning {
		x := &s.Scanning[i]
		banned := "-"
		if !x.Banned.IsZero() {
			banned = text.ShortDuration(max(x.Banned.Sub(s.Until.Time), 0))
		}
		name := x.RDNS
		if x.Organisation != "" {
			name = strings.TrimSpace(name + " (" + x.Organisation + ")")
		}
		name = strings.Join(slices.DeleteFunc([]string{name, x.legitimate()}, func(s string) bool { return s == "" }), ", ")
		rows = append(rows, slices.Concat([]string{fmt.Sprintf("  %8d", x.Found), fmt.Sprintf("%8d", x.Sessions)}, decided(x),
			[]string{s.ago(x.Last), banned, x.Address, x.Evidence, name}))
	}
	l.table(rows)
	l.more(s.More["scanning"])
}

func (s *Summary) textGoodMail(l *lines) {
	if !l.section("Good mail", len(s.GoodMail)) {
		return
	}
	heads, decided := decidedColumns(s.GoodMail)
	rows := [][]string{slices.Concat([]string{"  messages", "sessions"}, heads, []string{"last", "address", "name"})}
	for i := range s.GoodMail {
		x := &s.GoodMail[i]
		rows = append(rows, slices.Concat([]string{fmt.Sprintf("  %8d", x.Mails), fmt.Sprintf("%8d", x.Sessions)}, decided(x), []string{s.ago(x.Last), x.Address, x.RDNS}))
	}
	l.table(rows)
	l.more(s.More["good_mail"])
}

func (s *Summary) textRejections(l *lines) {
	title := "Latest rejections"
	if len(s.Rejections) > 0 && !slices.ContainsFunc(s.Rejections, func(r Rejection) bool { return r.Enforced }) {
		title = "Latest sessions that would have been rejected"
	}
	if !l.section(title, len(s.Rejections)) {
		return
	}
	rows := [][]string{{"  time", "reference", "rule", "phase", "address", "sender, recipient"}}
	for i := range s.Rejections {
		r := &s.Rejections[i]
		rule := r.Rule
		if !r.Enforced {
			rule += " (observed)"
		}
		address := r.host()
		if r.Sessions > 1 {
			address = fmt.Sprintf("%s (%d sessions)", address, r.Sessions)
		}
		mailboxes := ""
		if r.Sender != "" {
			mailboxes = "<" + r.Sender + ">"
		}
		if r.Recipient != "" {
			mailboxes = strings.TrimSpace(mailboxes + " to <" + r.Recipient + ">")
		}
		rows = append(rows, []string{"  " + l.at(r.End.Time), r.Reference, rule, r.Phase, address, mailboxes})
	}
	l.table(rows)
	l.more(s.More["rejections"])
}

func (s *Summary) textRules(l *lines) {
	if !l.section("Rules", len(s.Rules)) {
		return
	}
	l.row("  enforced observed     bans   exempt  rule")
	for _, x := range s.Rules {
		l.row("  %8d %8d %8d %8d  %s", x.Enforced, x.Observed, x.Bans, x.Exempt, x.Rule)
	}
	l.more(s.More["rules"])
}

func (s *Summary) textNetworks(l *lines) {
	if !l.section("Networks with most sessions", len(s.Networks)) {
		return
	}
	l.row("  sessions findings  network")
	for _, n := range s.Networks {
		l.row("  %8d %8d  %s", n.Sessions, n.Found, n.Prefix)
	}
	l.more(s.More["networks"])
}

func (s *Summary) textHarvests(l *lines) {
	if l.section("Directory harvests", len(s.Harvest)) {
		l.para(fmt.Sprintf(harvestText, harvestFrom, harvestSlow), 0)
		s.attempts(l, "harvest", s.Harvest)
	}
}

func (s *Summary) textRelay(l *lines) {
	if l.section("Relay probes", len(s.Relay)) {
		l.para(relayText, 0)
		if s.Remote.RcptOK == 0 {
			l.para("No recipient was accepted in this period: some of these domains may be local, and the probes directory harvests.", 0)
		}
		s.attempts(l, "relay", s.Relay)
	}
}

func (s *Summary) textAuth(l *lines) {
	if !l.section("AUTH brute force", len(s.Auth)) {
		return
	}
	width := addressWidth(s.Auth, func(x *Source) string { return x.Address })
	l.row("    failed rejected sessions  %s  name", text.Pad("address", width))
	for _, x := range s.Auth {
		l.row("  %8d %8d %8d  %s  %s", x.AuthFail, x.AuthRefused, x.Sessions, text.Pad(x.Address, width), x.RDNS)
	}
	l.more(s.More["auth"])
}

func (s *Summary) names(l *lines, list, title string, all []Name) {
	if !l.section(title, len(all)) {
		return
	}
	l.WriteString("  sessions\n")
	for _, n := range all {
		line := n.Name
		if n.Evidence != "" {
			line = text.Pad(n.Name, 44) + "  " + n.Evidence
		}
		l.row("  %8d  %s", n.Sessions, line)
	}
	l.more(s.More[list])
}

func (s *Summary) attempts(l *lines, list string, all []Attempt) {
	width := addressWidth(all, func(a *Attempt) string { return a.Address })
	l.row("  rejected sessions  %s  domains", text.Pad("address", width))
	for _, a := range all {
		domains := strings.Join(a.Domains, " ")
		if n := a.domains - len(a.Domains); n > 0 {
			domains += fmt.Sprintf(" +%d", n)
		}
		l.row("  %8d %8d  %s  %s", a.Refused, a.Sessions, text.Pad(a.Address, width), domains)
	}
	l.more(s.More[list])
}

func textNotListed(l *lines, all map[string]int) {
	if len(all) == 0 {
		return
	}
	l.WriteString("\nNot listed\n")
	for _, what := range slices.Sorted(maps.Keys(all)) {
		l.para(fmt.Sprintf("  %8d  %s over the memory limit; the totals include them", all[what], what), 12)
	}
}
