package why

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/prefix"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
)

const (
	// A login exempts a host from bans for loginAge.
	loginAge = 30 * 24 * time.Hour
)

// A Host summarizes all records about a host or network.
type Host struct {
	Standing    *Standing    `json:"standing,omitempty"`
	Prefix      netip.Prefix `json:"prefix"`
	Sessions    int          `json:"sessions"`
	Messages    int          `json:"messages"`
	LastMessage *text.Time   `json:"last_message,omitempty"`
	Logins      int          `json:"logins"`
	LastLogin   *text.Time   `json:"last_login,omitempty"`
	WhileBanned int          `json:"rejected_by_ban"` // sessions rejected because of a ban
	Bans        []Ban        `json:"bans"`            // bans in state.db, as sorted by trim
	History     []BanEvent   `json:"history"`         // bans in the records, newest first
	Exemptions  []Exemption  `json:"exemptions"`
	Remedies    []Remedy     `json:"undo"`

	accused bool // a rule matched the host, or a ban exists
	known   bool // the state lists accepted mail from the host, but no session with the host is recorded
	newest  *Session
}

// A Ban is an entry in state.db's list of bans.
type Ban struct {
	memory.Ban
	Session string `json:"session,omitempty"`
	Expired bool   `json:"expired"`

	// From and To replace memory.Ban's times in JSON.
	From text.Time `json:"since"`
	To   text.Time `json:"until"`
	Seen text.Time `json:"last,omitzero"`
}

// NewBan describes b as of now.
func NewBan(b *memory.Ban, now time.Time) Ban {
	ban := Ban{Ban: *b, Expired: b.Expired(now), From: text.At(b.Since), To: text.At(b.Until), Seen: text.At(b.Last)}
	if b.Session != 0 {
		ban.Session = sessionID(b.Session)
	}
	return ban
}

// A BanEvent is a ban that a rule imposed in a recorded session.
type BanEvent struct {
	At       text.Time `json:"at"`
	Session  string    `json:"session"`
	Rule     string    `json:"rule"`
	Until    string    `json:"until,omitempty"`
	Exempt   string    `json:"exempt,omitempty"`
	Enforced bool      `json:"enforced"`
}

// An Exemption is a reason not to reject or ban a host.
type Exemption struct {
	By    string `json:"by"`
	Holds bool   `json:"holds"`
	Text  string `json:"text"`
}

// A Remedy undoes a decision.
type Remedy struct {
	Do   string `json:"do"` // command, or line for the configuration
	Text string `json:"text"`
}

// A hostIndex maps prefixes to the hosts in an answer.
type hostIndex struct {
	a     *Answer
	hosts map[netip.Prefix]*Host // nil for hosts beyond the limit
}

// add adds a host to the answer unless the answer already has maxHosts hosts.
func (x *hostIndex) add(p netip.Prefix) *Host {
	h := x.hosts[p]
	if h == nil && len(x.a.Hosts) < maxHosts {
		h = &Host{Prefix: p, Bans: []Ban{}, History: []BanEvent{}, Exemptions: []Exemption{}, Remedies: []Remedy{}}
		x.a.Hosts = append(x.a.Hosts, h)
	} else if h == nil {
		x.a.More++
	}
	x.hosts[p] = h
	return h
}

// findHosts adds the sessions' hosts and the banned hosts that match the
// question. The hosts' standing is also loaded.
func (w *query) findHosts() error {
	x := &hostIndex{&w.answer, map[netip.Prefix]*Host{}}
	if l := w.answer.Logins; l != nil {
		l.count()
		for _, host := range slices.SortedFunc(maps.Keys(l.hosts), netip.Prefix.Compare) {
			if l.hosts[host].Passed { // list the user's hosts before the attackers' hosts
				x.add(host)
			}
		}
	}
	for _, s := range w.answer.Sessions {
		h, seen := x.hosts[s.source]
		if !seen && s.source.IsValid() {
			h = x.add(s.source)
		}
		if h != nil {
			h.newest = cmp.Or(h.newest, s)
			h.accused = h.accused || len(s.Rules) > 0
		}
	}
	var rows []store.Entry
	reader := memory.NewReader(w.Now)
	err := w.Rows([]string{"clock", "secret", "peers", memory.ElsewhereBucket, memory.BansBucket, memory.OthersBucket}, func(en store.Entry) error {
		reader.Clock(en)
		if en.Bucket != memory.BansBucket && en.Bucket != memory.OthersBucket {
			rows = append(rows, store.Entry{Bucket: en.Bucket, Key: slices.Clone(en.Key), Value: slices.Clone(en.Value)})
		} else if b, ok := reader.Ban(en.Key, en.Value); ok {
			w.addBan(x, b)
		}
		return nil
	})
	w.memory.Load(slices.Values(rows), w.Now.UnixMicro())
	w.addKnown(x)
	return err
}

// addKnown adds the queried host if the state lists accepted mail from it but no session with it is
// recorded. This is the case, for example, after the mail log was imported.
func (w *query) addKnown(x *hostIndex) {
	p := w.q.prefix
	if len(w.answer.Hosts) > 0 || !p.IsValid() || !p.IsSingleIP() && p != memory.Source(p.Addr()) {
		return
	}
	w.memory.Peers.Each(w.Now.UnixMicro(), func(peer memory.Peer) {
		if p.Contains(peer.Prefix.Addr()) && !peer.LastMail.IsZero() && len(w.answer.Hosts) < maxHosts {
			x.add(peer.Prefix).known = true
		}
	})
}

// addBan adds a ban to the hosts that it affects. If the question matches the ban itself, the
// banned host is also added.
func (w *query) addBan(x *hostIndex, b memory.Ban) {
	ban := NewBan(&b, w.Now)
	w.answer.Logins.addBan(&ban)
	q := w.q
	asked := q.prefix.IsValid() && q.prefix.Overlaps(b.Prefix) && (!q.addr.IsValid() || b.Affects(q.prefix))
	if q.addr.IsValid() && !asked && !ban.Expired && !ban.Revoked && b.Prefix == memory.Source(q.addr) {
		w.apart().Ban = &ban
	}
	for _, h := range w.answer.Hosts {
		if b.Affects(h.Prefix) {
			h.accused, asked = true, false
			if h.Bans = append(h.Bans, ban); len(h.Bans) > 2*maxBans {
				h.trim()
			}
		}
	}
	if q.session != 0 && b.Session == q.session {
		asked = true
		if b.On() != "" {
			w.note("session %s was%s; run there: scanwatch why %[1]s", ban.Session, text.Escape(b.On()))
		}
	}
	if _, seen := x.hosts[b.Prefix]; asked && !seen {
		if h := x.add(b.Prefix); h != nil {
			h.accused, h.Bans = true, append(h.Bans, ban)
		}
	}
}

// trim sorts the bans and keeps the first maxBans. This host's active bans come first, followed by
// other hosts' active bans and then by ended bans. In each group, the ban that ends last comes
// first.
func (h *Host) trim() {
	group := func(b *Ban) int {
		switch {
		case b.Expired || b.Revoked:
			return 2
		case b.Origin != "":
			return 1
		}
		return 0
	}
	slices.SortFunc(h.Bans, func(a, b Ban) int {
		return cmp.Or(cmp.Compare(group(&a), group(&b)), b.Until.Compare(a.Until), cmp.Compare(b.Prefix.Bits(), a.Prefix.Bits()), a.Prefix.Addr().Compare(b.Prefix.Addr()))
	})
	h.Bans = h.Bans[:min(len(h.Bans), maxBans)]
}

// hostKinds is the set of step kinds that Host.add reads.
var hostKinds = store.KindsOf(store.KindVerdict, store.KindBan)

// add adds a session from h to the counts.
func (h *Host) add(r *store.Record) {
	h.Sessions += r.Many()
	end := r.End.UTC()
	if r.Counts.Mails > 0 {
		h.Messages += int(r.Counts.Mails)
		h.LastMessage = new(text.At(end))
	}
	if r.Counts.AuthPass > 0 {
		h.Logins += int(r.Counts.AuthPass)
		h.LastLogin = new(text.At(end))
	}
	banned := 0
	_ = r.Steps(func(s *store.Step) bool { // session reports corrupt steps
		switch {
		case s.Kind == store.KindVerdict && s.Banned && s.Enforced && r.Sessions > 0:
			banned += int(s.Times)
		case s.Kind == store.KindVerdict && s.Banned && s.Enforced:
			banned = 1
		case s.Kind == store.KindBan:
			h.History = append(h.History, BanEvent{At: text.At(r.Start.Add(s.At).UTC()), Session: sessionID(r.ID), Rule: text.Escape(s.Text),
				Until: until(s), Exempt: text.Escape(s.Exempt), Enforced: s.Enforced})
			if len(h.History) > maxBans {
				h.History = h.History[1:]
			}
		}
		return true
	})
	h.WhileBanned += min(banned, r.Many())
}

// onlyManual reports whether h was banned by the operator but never by a rule.
// A manual ban from another host is subject to the same exemptions as this
// host's rules.
func (h *Host) onlyManual() bool {
	return len(h.History) == 0 && len(h.Bans) > 0 && !slices.ContainsFunc(h.Bans, func(b Ban) bool { return !b.Manual || b.Origin != "" })
}

// passFor returns the pass statement that matches a client, or nil. A client
// banned by another host may match a pass statement on this host, even if this
// host has recorded no session with the client.
func passFor(w *query, h *Host, c *client) *rules.Pass {
	switch {
	case h.newest != nil:
		return h.newest.pass
	case w.Policy == nil || !h.Prefix.IsSingleIP():
		return nil
	}
	f := w.Facts(&store.Record{Src: netip.AddrPortFrom(c.addr, 0), Start: w.Now})
	f.Phase = smtp.PhaseConnect
	return w.Policy.Eval(f).Pass
}

func (h *Host) exempt(by string, holds bool, format string, args ...any) {
	h.Exemptions = append(h.Exemptions, Exemption{by, holds, fmt.Sprintf(format, args...)})
}

// A client describes a host as of its newest session.
type client struct {
	addr   netip.Addr
	name   string // reverse DNS name, printable
	raw    []byte // reverse DNS name as recorded
	proven bool   // the name passes FCrDNS
	peer   memory.Client
}

func (h *Host) client() (c client) {
	c.addr = h.Prefix.Addr()
	if h.newest != nil {
		c.addr = netip.MustParseAddr(h.newest.Src) // full address, because hosts in a /64 can have different names
		c.name, c.proven = h.newest.RDNS, h.newest.FCrDNS == smtp.FCrDNSPass.String()
	}
	c.peer = memory.Client{Addr: c.addr}
	c.raw, _ = text.Unescape(c.name)
	if c.proven {
		c.peer.Domain = memory.RegisteredDomain(c.raw)
	}
	return c
}

// assess adds exemptions and remedies to h if the host was rejected or banned.
func (w *query) assess(h *Host) {
	h.trim()
	slices.Reverse(h.History)
	c := h.client()
	switch {
	case h.known:
		w.exemptByMail(h, &c)
		return
	case !h.accused && len(h.History) == 0:
		newAdviser(w, h).exempt()
		if w.memory.Peers.Standing(&c.peer, w.Now.UnixMicro()).Level >= rules.StandingKnown {
			w.exemptByMail(h, &c)
		}
		return
	}
	friends := w.table("friends")
	friend := friends != nil && friends.MatchAddr(c.addr)
	h.exempt("friends", friend, "the address is in <friends>")
	pass := passFor(w, h, &c)
	switch {
	case friend:
	case pass != nil:
		h.exemptByPass(pass)
	case slices.ContainsFunc(h.Bans, func(b Ban) bool { return b.Origin != "" }):
		h.exempt("pass", false, "a pass statement matches")
	}
	w.exemptByName(h, &c)
	if !h.onlyManual() {
		w.exemptByMail(h, &c)
		w.exemptByLogin(h, &c)
	}
	w.addRemedies(h, friend)
}

// exemptByName adds the exemption for <known-senders> and notes whether it applies. exemptByName
// adds nothing if the policy does not use the table.
func (w *query) exemptByName(h *Host, c *client) {
	switch {
	case w.Policy != nil && !strings.Contains(w.Policy.String(), " rdns <known-senders>"):
		// the policy does not use the table
	case h.newest == nil:
		h.exempt("known-senders", false, "the reverse DNS name is in <known-senders> and FCrDNS passes (no session recorded)")
	case c.name == "":
		h.exempt("known-senders", false, "the reverse DNS name is in <known-senders> and FCrDNS passes (no name)")
	case !c.proven:
		h.exempt("known-senders", false, "the reverse DNS name %s is in <known-senders> and FCrDNS passes (FCrDNS did not pass)", c.name)
	default:
		known := w.table("known-senders")
		h.exempt("known-senders", known != nil && known.MatchName(c.raw), "the reverse DNS name %s is in <known-senders> (FCrDNS passes)", c.name)
	}
}

// A Standing is a host's standing and the reason for it.
type Standing struct {
	Level    string `json:"level"`          // none, known or trusted
	By       string `json:"by,omitempty"`   // host, domain or correspondent
	Messages int    `json:"messages"`       // accepted messages
	Days     int    `json:"days"`           // days with messages
	Many     bool   `json:"many,omitempty"` // many hosts share the address
	On       string `json:"on,omitempty"`   // other host on which the standing was earned
}

// exemptByMail sets the host's standing. exemptByMail adds the exemption for this standing and
// notes whether the exemption applies.
func (w *query) exemptByMail(h *Host, c *client) {
	st := w.memory.Peers.Standing(&c.peer, w.Now.UnixMicro())
	h.Standing = &Standing{Level: st.Level.String(), By: st.By, Messages: st.Messages, Days: st.Days, Many: st.Many, On: text.Escape(st.Origin)}
	day := func(t time.Time) string { return t.Format("2006-01-02") }
	made := fmt.Sprintf("%s on %s from the %s, %s to %s", text.Plural(st.Messages, "accepted message"), text.Plural(st.Days, "day"), st.By, day(st.First), day(st.Last))
	if st.By == "correspondent" {
		made = "users of this server write to its domain, last on " + day(st.Last)
	}
	if st.Origin != "" {
		made = "on " + h.Standing.On + ": " + made
	}
	if !st.Offence.IsZero() {
		made += "; offence on " + day(st.Offence)
	}
	switch {
	case st.Many && st.Origin != "":
		h.exempt("standing", true, "many hosts share the address on %s: no bans by other hosts", h.Standing.On)
	case st.Origin != "":
		h.exempt("standing", true, "known (%s): no bans by other hosts, and doubled thresholds", made)
	case st.Many:
		h.exempt("standing", true, "many hosts share the address: no bans, and no standing")
	case st.Level == rules.StandingTrusted:
		h.exempt("standing", true, "trusted (%s): no bans except for failed logins or by rules with even trusted, and no rule about lists, names, places or scores", made)
	case st.Level == rules.StandingKnown:
		h.exempt("standing", true, "known (%s): no bans except for failed logins or by rules with even trusted, and doubled thresholds", made)
	default:
		h.exempt("standing", false, "known or trusted, for mail accepted on earlier days (%s)", text.Plural(st.Messages, "accepted message"))
	}
}

// exemptByLogin adds the exemption for hosts from which a user has logged in, and notes whether it
// applies.
func (w *query) exemptByLogin(h *Host, c *client) {
	switch st := w.memory.Peers.Standing(&c.peer, w.Now.UnixMicro()); {
	case h.Logins > 0:
		h.exempt("login", w.Now.Sub(h.LastLogin.Time) < loginAge, "a user logged in from the host in the last 30 days (last on %s): no bans, except for auth-spray of other users", h.LastLogin.In(w.Zone).Format("2006-01-02"))
	case !st.Login.IsZero():
		h.exempt("login", true, "a user logged in from the host in the last 30 days, in a session whose record has expired: no bans, except for auth-spray of other users")
	default:
		h.exempt("login", false, "a user logged in from the host in the last 30 days: no bans (no login is known)")
	}
}

// addRemedies adds the commands and configuration lines that undo decisions on h.
func (w *query) addRemedies(h *Host, friend bool) {
	for i, b := range h.Bans {
		if !b.Expired && !slices.ContainsFunc(h.Bans[:i], func(other Ban) bool { return other.Prefix == b.Prefix }) {
			h.Remedies = append(h.Remedies, Remedy{unban(w.Command, &b), unbanned(&b, w.Policy)})
		}
	}
	if friend {
		return
	}
	advice := newAdviser(w, h)
	if w.Policy != nil {
		advice.late()
	}
	h.Remedies = append(h.Remedies, w.befriend(h.Prefix))
	if w.Policy != nil && !strings.Contains(w.Policy.String(), "pass from <friends>") {
		h.Remedies = append(h.Remedies, Remedy{"pass from <friends>", "in " + w.File + ": this statement is missing; add it"})
	}
	advice.listed()
}

// unbanned describes the effect of scanwatch unban under a policy, which may be nil.
func unbanned(b *Ban, p *rules.Policy) string {
	if b.Origin != "" || p != nil && p.Fleet != nil {
		return "ends the ban immediately, and on all hosts that share it"
	}
	return "ends the ban immediately"
}

// befriend returns the remedy that exempts a host permanently.
func (w *query) befriend(p netip.Prefix) Remedy {
	host, t := prefix.String(p), (*rules.TableDecl)(nil)
	if w.Policy != nil {
		t = w.Policy.Declaration("friends")
	}
	if t == nil {
		return Remedy{"table <friends> { " + host + " }", "in " + w.File + ": add the address permanently"}
	}
	where := fmt.Sprintf("%s, line %d", cmp.Or(t.File, w.File), t.Line)
	if len(t.Files) > 0 {
		if where = t.Files[0].Path; !filepath.IsAbs(where) {
			where = filepath.Join(filepath.Dir(w.File), where)
		}
	}
	return Remedy{"add " + host + " to the table <friends>", "file " + text.Escape(where) + ", then run " + w.Command + " reload: exempts the host permanently"}
}

// table returns a table from the current policy, or nil.
func (w *query) table(name string) rules.Table {
	if w.Policy == nil {
		return nil
	}
	return w.Policy.Table(name)
}
