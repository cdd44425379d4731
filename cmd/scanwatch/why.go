package main

// The verb why: what was decided about somebody, on what grounds, what would
// have excused him, and how to undo it. Here is what it finds out; whyprint.go
// tells it.

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/control"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/privacy"
	"scanwatch/rules"
	"scanwatch/store"
	store_report "scanwatch/store/report"
)

const whyHelp = `ARG is a session id, an address, a network, the name of a host, a HELO, or the
address of a sender or a recipient (@DOMAIN: any in that domain). What it is, is
guessed from its form.

  --as KIND     it is a session, address, rdns, helo, sender or recipient
  --since WHEN  only sessions that ended then or later
  --all         all sessions, and not only the newest 20
  --json        one JSON object
` + sinceHelp

// The limits of an answer.
const (
	whySessions = 20      // unless all are asked for, and then
	whyBytes    = 8 << 20 // of records
	whyHosts    = 10      // whose bans and excuses are told
	whyBans     = 10      // of one host
)

// A question is an ARG, ready to be compared with.
type question struct {
	text    []byte
	session uint64
	prefix  netip.Prefix
	hashes  [][]byte // what may be recorded instead of a mail address; nil without the key
	missed  bool     // hashes were met that nobody can tell from the one in question
}

// whyKinds are what an ARG can be. A kind looks at the head of a record or at its
// steps. Fits tells whether an ARG looks like it, and notes what it is; the first
// kind that fits hides the later ones, except for those that look the same.
var whyKinds = []struct {
	name string
	like string // an earlier kind that looks the same
	fits func(*question) bool
	must bool // it can be nothing that does not fit
	head func(*question, *store.Record) bool
	step func(*question, *store.Step) bool
}{
	{name: "session", must: true,
		fits: func(q *question) (ok bool) { q.session, ok = readSession(q.text); return ok },
		head: func(q *question, r *store.Record) bool { return r.ID == q.session }},
	{name: "address", must: true,
		fits: func(q *question) (ok bool) { q.prefix, ok = readHosts(string(q.text)); return ok },
		head: func(q *question, r *store.Record) bool { return r.Src.IsValid() && q.prefix.Contains(r.Src.Addr()) }},
	{name: "sender",
		fits: func(q *question) bool { return len(q.text) == 0 || bytes.IndexByte(q.text, '@') >= 0 },
		step: func(q *question, s *store.Step) bool { return s.Kind == store.KindMail && q.mailbox(s.Text) }},
	{name: "recipient", like: "sender",
		fits: func(q *question) bool { return bytes.IndexByte(q.text, '@') >= 0 },
		step: func(q *question, s *store.Step) bool { return s.Kind == store.KindRcpt && q.mailbox(s.Text) }},
	{name: "rdns",
		fits: func(q *question) bool { return bytes.IndexByte(q.text, '.') > 0 && q.text[0] != '[' },
		head: func(q *question, r *store.Record) bool { return q.host(r.RDNS) }},
	{name: "helo", like: "rdns",
		fits: func(*question) bool { return true },
		step: func(q *question, s *store.Step) bool {
			return s.Kind == store.KindHelo && bytes.EqualFold(s.Text, q.text)
		}},
}

// readSession reads a session id, also as it stands at the end of a reply.
func readSession(text []byte) (uint64, bool) {
	s := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(string(text), "["), "]"))
	if !sessionID.MatchString(s) {
		return 0, false
	}
	id, err := strconv.ParseUint(s, 16, 64)
	return id, err == nil
}

// readHosts reads an address, a network, or an address with a port as logs have it.
func readHosts(s string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddrPort(s); err == nil {
		s = a.Addr().String()
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return memory.Source(a.Unmap().WithZone("")), true
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err == nil
}

// mailbox tells whether an address is the one in question, or is in its domain.
func (q *question) mailbox(address []byte) bool {
	is := func(text []byte) bool { return bytes.EqualFold(address, text) }
	q.missed = q.missed || q.hashes == nil && privacy.HasHash(address)
	if len(q.text) > 0 && q.text[0] == '@' {
		i := bytes.LastIndexByte(address, '@')
		if i < 0 {
			return false
		}
		address = address[i:]
	}
	return is(q.text) || slices.ContainsFunc(q.hashes, is)
}

// hash makes the hashes of a mail address that is asked for, if the key of the
// state directory can be read, and is needed: a hash can be asked for itself.
func (q *question) hash(dir string) {
	if privacy.HasHash(q.text) {
		q.hashes = [][]byte{q.text}
		return
	}
	if key, err := privacy.ReadKey(dir); err == nil {
		h := privacy.New(key)
		q.hashes = [][]byte{h.Mailbox(nil, q.text, false), h.Mailbox(nil, q.text, true)}
	}
}

// host tells whether a name is the one in question, or below it.
func (q *question) host(name []byte) bool {
	if len(name) == len(q.text) || len(name) > len(q.text) && name[len(name)-len(q.text)-1] == '.' {
		return bytes.EqualFold(name[len(name)-len(q.text):], q.text)
	}
	return false
}

// ask reads an ARG, of the given kind or, if that is empty, of those that it
// looks like.
func ask(arg, as string) (q question, kinds []string, err error) {
	// A text that was copied from the output of this program has its escapes.
	q.text = []byte(arg)
	if b, err := store_report.Unprintable(arg); err == nil {
		q.text = b
	}
	if n := len(q.text); n > 1 && q.text[0] == '<' && q.text[n-1] == '>' {
		q.text = q.text[1 : n-1]
	}
	var names []string
	for _, k := range whyKinds {
		names = append(names, k.name)
		switch {
		case as != "" && as != k.name, as == "" && len(kinds) > 0 && !slices.Contains(kinds, k.like):
			continue
		case k.fits(&q), as != "" && !k.must:
			kinds = append(kinds, k.name)
		case as != "":
			return q, nil, usage("why --as %s: %q is none", as, arg)
		}
	}
	if len(kinds) == 0 {
		return q, nil, usage("why --as %q: must be one of %s", as, strings.Join(names, ", "))
	}
	return q, kinds, nil
}

// match tells as what a session is the one in question.
func (q *question) match(kinds []string, r *store.Record) (as []string) {
	steps := false
	for _, k := range whyKinds {
		switch {
		case !slices.Contains(kinds, k.name):
		case k.step != nil:
			steps = true
		case k.head(q, r):
			as = append(as, k.name)
		}
	}
	if !steps {
		return as
	}
	_ = r.Steps(func(s *store.Step) bool { // a damaged rest is told of when it is shown
		for _, k := range whyKinds {
			if k.step != nil && slices.Contains(kinds, k.name) && !slices.Contains(as, k.name) && k.step(q, s) {
				as = append(as, k.name)
			}
		}
		return true
	})
	return as
}

// whyAnswer is all that is known.
type whyAnswer struct {
	Question string        `json:"question"`
	As       []string      `json:"as"`      // what it was taken for
	Matched  int           `json:"matched"` // sessions; the newest are given
	Sessions []*whySession `json:"sessions"`
	Deciding []*whySession `json:"deciding"` // other sessions, in which bans were decided that these met
	Hosts    []*whyHost    `json:"hosts"`
	More     int           `json:"more_hosts,omitempty"`
	Looked   int           `json:"looked_at"` // sessions that are kept
	Oldest   *time.Time    `json:"oldest,omitempty"`
	Notes    []string      `json:"notes"` // why something may be missing
}

// whySession is what happened in a session.
type whySession struct {
	Session  string    `json:"session"`
	Start    time.Time `json:"start"`
	End      time.Time `json:"end"`
	As       []string  `json:"as,omitempty"` // what in it is in question
	Src      string    `json:"src,omitempty"`
	Local    bool      `json:"local,omitempty"`
	RDNS     string    `json:"rdns,omitempty"`
	FCrDNS   string    `json:"fcrdns"`
	Helo     []string  `json:"helo,omitempty"`
	What     []string  `json:"what"` // happened, in words
	Rules    []whyRule `json:"rules,omitempty"`
	Evidence []found   `json:"evidence,omitempty"`
	Omitted  uint32    `json:"omitted,omitempty"`  // steps that were not kept
	Sum      uint32    `json:"sessions,omitempty"` // this is the sum of so many
	Damage   string    `json:"damage,omitempty"`
	source   netip.Prefix
	pass     string // the statement that would let it pass now, when it connects
}

// whyRule is what a rule did, or would have done.
type whyRule struct {
	Rule       string `json:"rule"`
	Phases     string `json:"phases,omitempty"`
	Decision   string `json:"decision"` // reject ..., or ban
	CarriedOut bool   `json:"carried_out"`
	Reply      string `json:"reply,omitempty"` // that the client got
	Until      string `json:"until,omitempty"` // of a ban
	Spared     string `json:"spared,omitempty"`
	Times      int    `json:"times"`                // in this session
	Text       string `json:"text,omitempty"`       // of the rule, as it was then
	Now        string `json:"now,omitempty"`        // same, changed or gone
	CountedBy  string `json:"counted_by,omitempty"` // src, prefix ...: the evidence is that of several sessions

	// Of who came while he was banned: the session in which that was decided, and
	// whether it is still kept.
	BannedIn string `json:"banned_in,omitempty"`
	Kept     bool   `json:"kept,omitempty"`

	ref uint32
	id  uint64 // BannedIn
}

// byHand stands for the session in which the operator's bans were decided.
const byHand = "by hand"

// whyHost is what is known of a host or network over all that is kept.
type whyHost struct {
	Prefix     netip.Prefix `json:"prefix"`
	Sessions   int          `json:"sessions"`
	Mails      int          `json:"mails"`
	LastMail   *time.Time   `json:"last_mail,omitempty"`
	Logins     int          `json:"logins"`
	LastLogin  *time.Time   `json:"last_login,omitempty"`
	TurnedAway int          `json:"turned_away"` // sessions that came during a ban
	Bans       []jsonBan    `json:"bans"`        // that are remembered; those that hold first
	History    []whyBan     `json:"history"`     // what rules decided about bans, the newest first
	Excuses    []excuse     `json:"excuses"`
	Undo       []undoing    `json:"undo"`

	accused bool // something was decided, or would have been
	newest  *whySession
}

// whyBan is a ban that a rule asked for.
type whyBan struct {
	At         time.Time `json:"at"`
	Session    string    `json:"session"`
	Rule       string    `json:"rule"`
	Until      string    `json:"until,omitempty"`
	Spared     string    `json:"spared,omitempty"`
	CarriedOut bool      `json:"carried_out"`
}

// excuse is what keeps a host from being refused or banned.
type excuse struct {
	By    string `json:"by"`
	Holds bool   `json:"holds"`
	Text  string `json:"text"`
}

// undoing is what the operator can do.
type undoing struct {
	Do   string `json:"do"` // a command, or a line of the configuration
	Text string `json:"text"`
}

// An inquiry gathers the answer.
type inquiry struct {
	e      *env
	lists  *lookup.Lists
	config *config.Config    // as it is now; nil if there is none
	now    map[string]string // its rules
	texts  map[uint32]string // of rules as they were
	memory *memory.Memory    // what it says of hosts whose sessions are not kept
	q      question
	answer whyAnswer
}

func why(e *env, args []string) error {
	as := e.flags.String("as", "", "")
	when := e.flags.String("since", "", "")
	all := e.flags.Bool("all", false, "")
	asJSON := e.flags.Bool("json", false, "")
	args, err := e.parse(args, 1, 1)
	if err != nil {
		return err
	}
	var since time.Time
	if *when != "" {
		if since, err = e.since(*when); err != nil {
			return err
		}
	}
	in := &inquiry{e: e, texts: map[uint32]string{}, memory: memory.New()}
	a := &in.answer
	if in.q, a.As, err = ask(args[0], *as); err != nil {
		return err
	}
	if slices.Contains(a.As, "sender") || slices.Contains(a.As, "recipient") {
		in.q.hash(e.dir)
	}
	*a = whyAnswer{Question: printable(in.q.text), As: a.As, Sessions: []*whySession{}, Deciding: []*whySession{}, Hosts: []*whyHost{}, Notes: []string{}}
	if in.q.session != 0 {
		a.Question = hexID(in.q.session)
	} else if in.q.prefix.IsValid() {
		a.Question = host(in.q.prefix)
	}
	if in.lists, err = lookup.Builtin(); err != nil {
		return err
	}
	in.configure()
	r, client, problems, err := e.reader()
	if err != nil {
		return err
	}
	if client != nil {
		defer client.Close()
	}
	for _, p := range problems {
		if !strings.Contains(p, control.ErrNotRunning.Error()) { // it need not
			a.Notes = append(a.Notes, p)
		}
	}
	if err := in.look(r, since, *all); err != nil {
		return err
	}
	if *asJSON {
		j := json.NewEncoder(e.out)
		j.SetEscapeHTML(false)
		j.SetIndent("", "  ")
		err = j.Encode(a)
	} else if a.known() {
		a.print(e.out, e.zone)
	}
	switch {
	case err != nil:
	case r.Unread > 0:
		err = unread(r)
	case !a.known():
		err = in.nothing()
	}
	return err
}

// known tells whether there is anything to tell.
func (a *whyAnswer) known() bool { return a.Matched > 0 || len(a.Hosts) > 0 }

// nothing is the error if there is not.
func (in *inquiry) nothing() error {
	a := &in.answer
	text := fmt.Sprintf("nothing is known of %s %q", strings.Join(a.As, " or "), a.Question)
	if a.Oldest == nil {
		text += "; no session is recorded in " + in.e.dir
	} else {
		text += fmt.Sprintf(" in %d sessions since %s; it may be going on still, or have been removed for its age or the budget",
			a.Looked, a.Oldest.In(in.e.zone).Format("2006-01-02 15:04"))
	}
	for _, n := range a.Notes {
		text += "; " + n
	}
	if len(a.As) > 1 || a.As[0] == "helo" {
		text += "; --as says what else it may be"
	}
	return errors.New(text)
}

// configure reads the configuration as it is now, if there is one.
func (in *inquiry) configure() {
	name := in.e.find(in.e.file)
	if name == "" {
		return
	}
	c, err := config.Load(name, in.lists, nil, false)
	if err != nil {
		in.answer.Notes = append(in.answer.Notes, name+" is broken, so that nothing is known of what it excuses; see scanwatch check")
		return
	}
	in.config, in.now = c, map[string]string{}
	for _, r := range c.Policy.Rules() {
		in.now[r.Name] = r.String()
	}
}

// look finds the sessions, and then what else is known of them and their hosts.
func (in *inquiry) look(r *store.Reader, since time.Time, all bool) error {
	a := &in.answer
	var kept []store.Record
	var as [][]string
	size := 0
	err := each(r, since, func(rec *store.Record) error {
		matched := in.q.match(a.As, rec)
		if matched == nil {
			return nil
		}
		a.Matched++
		kept, as = append(kept, rec.Clone()), append(as, matched)
		size += rec.Size()
		for len(kept) > 1 && (size > whyBytes || !all && len(kept) > whySessions) {
			size -= kept[0].Size()
			kept, as = kept[1:], as[1:]
		}
		return nil
	})
	if err != nil {
		return err
	}
	if in.q.missed {
		a.Notes = append(a.Notes, "addresses are recorded as hashes here, and their key ("+filepath.Join(in.e.dir, privacy.KeyFile)+") cannot be read; run this as its owner or as root")
	}
	if all && len(kept) < a.Matched {
		a.Notes = append(a.Notes, fmt.Sprintf("%d of %d sessions are left out, for want of memory; --since selects the newer ones", a.Matched-len(kept), a.Matched))
	}
	then := map[uint64][]store.Record{} // the sessions of bans
	for i := len(kept) - 1; i >= 0; i-- {
		s := in.session(&kept[i])
		s.As = as[i]
		a.Sessions = append(a.Sessions, s)
		for _, rule := range s.Rules {
			if rule.id != 0 && len(then) < whySessions {
				then[rule.id] = nil
			}
		}
	}
	if err := in.hosts(); err != nil {
		return err
	}
	// Texts of rules, the sessions of bans, and what else the hosts did, is
	// everywhere.
	r.Rules = in.texts
	r.Problem = func(segment string, err error) { a.Notes = append(a.Notes, segment+": "+err.Error()) }
	err = each(r, time.Time{}, func(rec *store.Record) error {
		if a.Looked += rec.Many(); a.Oldest == nil {
			end := rec.End
			a.Oldest = &end
		}
		if list, wanted := then[rec.ID]; wanted && len(list) < whySessions {
			then[rec.ID] = append(list, rec.Clone())
		}
		for _, h := range a.Hosts {
			if rec.Src.IsValid() && h.Prefix.Contains(rec.Src.Addr()) {
				h.add(rec)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	days, err := in.e.days()
	if err != nil {
		return err
	}
	var flood, before uint64
	for i := range days {
		d := &days[i]
		if a.Oldest == nil || d.Day.AddDate(0, 0, 1).Before(*a.Oldest) {
			before += d.Of(memory.DaySessions)
		} else {
			flood += d.Lost()
		}
	}
	if before > 0 {
		a.Notes = append(a.Notes, fmt.Sprintf("%d sessions came earlier, of which only the numbers of each day are kept", before))
	}
	if flood > 0 {
		a.Notes = append(a.Notes, fmt.Sprintf("%d sessions without mail or login were part of a flood and only counted", flood))
	}
	if n := r.Dropped.Total(); n > 0 {
		a.Notes = append(a.Notes, fmt.Sprintf("%d sessions were dropped when they should have been recorded (%s), and are not in this", n, r.Dropped))
	}
	for _, s := range a.Sessions {
		for i := range s.Rules {
			in.follow(s, &s.Rules[i], then)
		}
	}
	for _, list := range [][]*whySession{a.Sessions, a.Deciding} {
		for _, s := range list {
			for i := range s.Rules {
				in.text(&s.Rules[i])
			}
		}
	}
	for _, h := range a.Hosts {
		in.judge(h)
	}
	return nil
}

// session tells of a session.
func (in *inquiry) session(r *store.Record) *whySession {
	s := &whySession{Session: fmt.Sprintf("%016x", r.ID), Start: r.Start.UTC(), End: r.End.UTC(), Local: r.Local,
		RDNS: printable(r.RDNS), FCrDNS: r.FCrDNS.String(), What: []string{}, Omitted: r.Omitted, Sum: r.Sessions}
	if r.Src.IsValid() {
		s.Src, s.source = r.Src.Addr().String(), memory.Source(r.Src.Addr())
		if pass := passes(in.config, r); pass != nil {
			s.pass = pass.String()
		}
		if r.Counts.AuthPass == 0 && len(r.RDNS) == 0 {
			s.Evidence = append(s.Evidence, found{Evidence: rules.RDNSMissing.String(), By: "dns"})
		} else if r.Counts.AuthPass == 0 && r.FCrDNS == store.FCrDNSFail {
			s.Evidence = append(s.Evidence, found{Evidence: rules.FCrDNSFail.String(), By: "dns", Proof: s.RDNS})
		}
	}
	var refused, asked []string // the first recipient that smtpd refused; what is in question
	byUs := map[string]int{}    // by phase: the rule that decided there last
	byFilter := false           // the recipient that comes next was refused by a filter
	tell := func(st *store.Step, word string) {
		for _, k := range whyKinds {
			if k.step != nil && slices.Contains(in.answer.As, k.name) && k.step(&in.q, st) && len(asked) < 3 {
				asked = append(asked, fmt.Sprintf("%s:<%s>: %s", word, printable(st.Text), outcome(st)))
			}
		}
	}
	err := r.Steps(func(st *store.Step) bool {
		switch st.Kind {
		case store.KindHelo:
			if h := printable(st.Text); !slices.Contains(s.Helo, h) {
				s.Helo = append(s.Helo, h)
			}
		case store.KindMail:
			tell(st, "MAIL FROM")
		case store.KindRcpt:
			tell(st, "RCPT TO")
			if !byFilter && refused == nil && st.Result != store.ResultOK {
				refused = append(refused, fmt.Sprintf("<%s>: %s", printable(st.Text), outcome(st)))
			}
			byFilter = false
		case store.KindFinding:
			s.Evidence = append(s.Evidence, newFound(in.lists, r, st))
		case store.KindVerdict:
			rule := whyRule{Rule: printable(st.Text), Phases: printable(st.Arg), Decision: printable(st.Reply), CarriedOut: st.Result == store.ResultOK, ref: st.Rule}
			if string(st.By) == "ban" {
				rule.id, _ = readSession(st.Match)
				rule.BannedIn = cmp.Or(printable(st.Match), byHand)
			}
			i := s.rule(rule, max(int(st.Times), 1))
			if rule.CarriedOut {
				byUs[rule.Phases] = i + 1
			}
		case store.KindBan:
			s.rule(whyRule{Rule: printable(st.Text), Decision: "ban", CarriedOut: st.Result == store.ResultOK, Until: printable(st.Reply), Spared: printable(st.Match), ref: st.Rule}, 1)
		case store.KindFilter:
			decision := string(st.Text)
			byFilter = string(st.Arg) == "rcpt-to" && (decision == "reject" || decision == "disconnect")
			phase := printable(st.Arg)
			phase = cmp.Or(responsePhases[phase], phase)
			switch i := byUs[phase]; {
			case decision == "proceed" || decision == "":
			case i > 0:
				s.Rules[i-1].Reply = cmp.Or(s.Rules[i-1].Reply, printable(st.Reply))
			default:
				s.what("another filter decided at %s: %s", phase, strings.TrimSpace(printable(st.Text)+" "+printable(st.Reply)))
			}
		}
		return true
	})
	if err != nil {
		s.Damage = printable([]byte(err.Error()))
	}
	c := &r.Counts
	for _, w := range asked {
		s.what("%s", w)
	}
	switch n := c.RcptPermfail + c.RcptTempfail; {
	case n > 0 && refused != nil:
		s.what("%d of %d recipients refused or put off, by smtpd first %s", n, n+c.RcptOK, refused[0])
	case n > 0:
		s.what("%d of %d recipients refused or put off", n, n+c.RcptOK)
	}
	if n := c.AuthFail + c.AuthRefused; n > 0 {
		s.what("%s failed or not taken up", plural(n, "login"))
	}
	if c.AuthPass > 0 {
		s.what("logged in: rules do not touch it unless they say auth")
	}
	if c.Mails > 0 {
		s.what("%s accepted for %s", plural(c.Mails, "message"), plural(c.RcptOK, "recipient"))
	}
	if len(s.Rules) == 0 {
		s.what("no rule decided anything")
	}
	s.what("%s", endings[r.Ending])
	return s
}

// responsePhases are the phases that smtpd's filter-response calls by another name
// than the rules do.
var responsePhases = map[string]string{"connected": "connect", "ehlo": "helo", "tls": "starttls"}

// endings are the ways a session can end, in words.
var endings = map[store.Ending]string{
	store.EndingUnknown:  "how it ended is not known",
	store.EndingQuit:     "the client said QUIT",
	store.EndingDropped:  "the client closed the connection",
	store.EndingTimeout:  "smtpd gave up waiting",
	store.EndingRejected: "smtpd or a filter closed the connection",
	store.EndingStopped:  "smtpd stopped",
	store.EndingClosed:   "smtpd was not asked to tell how it ended (detail lean)",
}

func (s *whySession) what(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); text != "" && !slices.Contains(s.What, text) {
		s.What = append(s.What, text)
	}
}

// outcome is what a command came to.
func outcome(s *store.Step) string {
	text := s.Result.String()
	if s.Code != 0 {
		text += fmt.Sprintf(" %d %s", s.Code, printable(s.Reply))
	}
	return strings.TrimSpace(text)
}

// rule adds what a rule did so many times, once for the same thing, and returns where
// it is.
func (s *whySession) rule(rule whyRule, times int) int {
	for i := range s.Rules {
		have := s.Rules[i]
		have.Times, have.Reply, have.Phases = 0, "", rule.Phases
		if have == rule {
			if had := &s.Rules[i].Phases; !slices.Contains(strings.Split(*had, ", "), rule.Phases) {
				*had += ", " + rule.Phases
			}
			s.Rules[i].Times += times
			return i
		}
	}
	rule.Times = times
	s.Rules = append(s.Rules, rule)
	return len(s.Rules) - 1
}

// follow finds the session in which a ban was decided, and adds it, unless it is
// among the others.
func (in *inquiry) follow(s *whySession, rule *whyRule, then map[uint64][]store.Record) {
	list := then[rule.id]
	for i := len(list) - 1; i >= 0; i-- { // the newest before: numbers come again when smtpd starts anew
		r := &list[i]
		if !r.Src.IsValid() || memory.Source(r.Src.Addr()) != s.source || r.Start.After(s.End) {
			continue
		}
		rule.Kept = true
		start := r.Start.UTC()
		same := func(other *whySession) bool { return other.Session == rule.BannedIn && other.Start.Equal(start) }
		a := &in.answer
		if !slices.ContainsFunc(a.Sessions, same) && !slices.ContainsFunc(a.Deciding, same) {
			a.Deciding = append(a.Deciding, in.session(r))
		}
		return
	}
}

// counted finds the condition of a rule that counts over several sessions.
var counted = regexp.MustCompile(` count [^ ]+ > [0-9]+ in [0-9]+[a-z] by ([a-z]+)`)

// text adds how a rule read then, and whether it still does.
func (in *inquiry) text(rule *whyRule) {
	text := in.texts[rule.ref]
	if !strings.HasPrefix(text, "rule "+rule.Rule+" ") {
		return // kept by an older version, or another text with the same reference
	}
	rule.Text = printable([]byte(text))
	if m := counted.FindStringSubmatch(text); m != nil {
		rule.CountedBy = m[1]
	}
	now, there := in.now[rule.Rule]
	switch {
	case in.config == nil:
	case !there:
		rule.Now = "gone"
	case store.RuleRef(now) == rule.ref:
		rule.Now = "same"
	default:
		rule.Now = "changed"
	}
}

// hosts finds whom it is about: where the sessions came from, and the bans of
// these and of the address in question.
func (in *inquiry) hosts() error {
	a := &in.answer
	index := map[netip.Prefix]*whyHost{}
	add := func(p netip.Prefix) *whyHost {
		h := index[p]
		if h == nil && len(a.Hosts) < whyHosts {
			h = &whyHost{Prefix: p, Bans: []jsonBan{}, History: []whyBan{}, Excuses: []excuse{}, Undo: []undoing{}}
			a.Hosts = append(a.Hosts, h)
		} else if h == nil {
			a.More++
		}
		index[p] = h
		return h
	}
	for _, s := range a.Sessions {
		if _, seen := index[s.source]; !seen && s.source.IsValid() {
			if h := add(s.source); h != nil {
				h.newest = s
			}
		}
		if h := index[s.source]; h != nil {
			h.accused = h.accused || len(s.Rules) > 0
		}
	}
	var rows []store.Entry
	err := in.e.state([]string{"secret", "peers", "bans"}, func(en store.Entry) error {
		if en.Bucket != "bans" {
			rows = append(rows, store.Entry{Bucket: en.Bucket, Key: slices.Clone(en.Key), Value: slices.Clone(en.Value)})
			return nil
		}
		b, ok := memory.ReadBan(en.Key, en.Value)
		if !ok {
			return nil
		}
		asked := in.q.prefix.IsValid() && in.q.prefix.Overlaps(b.Prefix)
		for _, h := range a.Hosts {
			if h.Prefix.Overlaps(b.Prefix) {
				h.accused, asked = true, false
				if h.Bans = append(h.Bans, jsonBan{b, hexID(b.Session), b.Over(in.e.now())}); len(h.Bans) > 2*whyBans {
					h.trim()
				}
			}
		}
		if _, seen := index[b.Prefix]; asked && !seen || in.q.session != 0 && b.Session == in.q.session && !seen {
			if h := add(b.Prefix); h != nil {
				h.accused, h.Bans = true, append(h.Bans, jsonBan{b, hexID(b.Session), b.Over(in.e.now())})
			}
		}
		return nil
	})
	in.memory.Load(slices.Values(rows), in.e.now().UnixMicro())
	return err
}

// trim keeps the bans that end last.
func (h *whyHost) trim() {
	slices.SortFunc(h.Bans, func(a, b jsonBan) int {
		return cmp.Or(b.Until.Compare(a.Until), cmp.Compare(b.Prefix.Bits(), a.Prefix.Bits()), a.Prefix.Addr().Compare(b.Prefix.Addr()))
	})
	h.Bans = h.Bans[:min(len(h.Bans), whyBans)]
}

// add notes what a host did in a session.
func (h *whyHost) add(r *store.Record) {
	h.Sessions += r.Many()
	end := r.End.UTC()
	if r.Counts.Mails > 0 {
		h.Mails += int(r.Counts.Mails)
		h.LastMail = &end
	}
	if r.Counts.AuthPass > 0 {
		h.Logins += int(r.Counts.AuthPass)
		h.LastLogin = &end
	}
	away := 0
	_ = r.Steps(func(s *store.Step) bool {
		switch {
		case s.Kind == store.KindVerdict && string(s.By) == "ban" && s.Result == store.ResultOK:
			away = max(int(s.Times), 1)
		case s.Kind == store.KindBan:
			h.History = append(h.History, whyBan{At: r.Start.Add(s.At).UTC(), Session: fmt.Sprintf("%016x", r.ID), Rule: printable(s.Text),
				Until: printable(s.Reply), Spared: printable(s.Match), CarriedOut: s.Result == store.ResultOK})
			if len(h.History) > whyBans {
				h.History = h.History[1:]
			}
		}
		return true
	})
	h.TurnedAway += away
}

// byHandOnly tells whether nobody but the operator decided anything about a host.
func (h *whyHost) byHandOnly() bool {
	return len(h.History) == 0 && len(h.Bans) > 0 && !slices.ContainsFunc(h.Bans, func(b jsonBan) bool { return !b.Manual })
}

// judge tells what would have excused a host, and what undoes what was decided.
func (in *inquiry) judge(h *whyHost) {
	h.trim()
	slices.Reverse(h.History)
	if !h.accused && len(h.History) == 0 {
		return
	}
	name, proven := "", false
	if h.newest != nil {
		name, proven = h.newest.RDNS, h.newest.FCrDNS == store.FCrDNSPass.String()
	}
	friends, allow := in.table("friends"), in.table("allow")
	excuses := func(by string, holds bool, format string, args ...any) {
		h.Excuses = append(h.Excuses, excuse{by, holds, fmt.Sprintf(format, args...)})
	}
	a := h.Prefix.Addr()
	if h.newest != nil {
		a = netip.MustParseAddr(h.newest.Src) // in an IPv6 /64 it matters
	}
	who := memory.Who{Addr: a}
	if raw, err := store_report.Unprintable(name); err == nil && proven && len(raw) < cutRDNS {
		who.RDNS = raw
	}
	good, spared := in.memory.Good(&who, in.e.now().UnixMicro()), in.memory.Spared(&who, in.e.now().UnixMicro())
	friend := friends != nil && friends.MatchAddr(a)
	excuses("friends", friend, "its address is in <friends>")
	if !friend && h.newest != nil && h.newest.pass != "" {
		excuses("pass", true, "it may pass: %s", printable([]byte(h.newest.pass)))
	}
	switch {
	case in.config != nil && !strings.Contains(in.config.Policy.String(), " rdns <allow>"):
		// no statement looks at it
	case h.newest == nil:
		excuses("allow", false, "its name is in <allow> and DNS proves it (no session of it is kept)")
	case name == "":
		excuses("allow", false, "its name is in <allow> and DNS proves it (it has no name)")
	case !proven:
		excuses("allow", false, "its name %s is in <allow> and DNS proves it (it did not)", name)
	default:
		raw, _ := store_report.Unprintable(name)
		excuses("allow", allow != nil && allow.MatchName(raw), "its name %s, which DNS proves, is in <allow>", name)
	}
	switch {
	case h.byHandOnly():
		// the operator's word stands
	case h.Mails > 0:
		excuses("seen-good", true, "mail was accepted from it: %s, the last on %s; rules that say !seen-good leave it alone then, and bans for %d days, unless it misbehaved", plural(h.Mails, "message"), h.LastMail.In(in.e.zone).Format("2006-01-02"), recentDays)
	case good != "":
		also := ""
		if spared == "mail" || spared == "mail-domain" {
			also = ", and bans"
		}
		excuses("seen-good", true, "mail was accepted before from its %s, as is remembered, though not in a session that is kept: rules that say !seen-good leave it alone%s", good, also)
	default:
		excuses("seen-good", false, "mail was accepted from it before, for bans and for rules that say !seen-good (none is kept)")
	}
	switch {
	case h.byHandOnly():
	case h.Logins > 0:
		excuses("login", in.e.now().Sub(*h.LastLogin) < 30*24*time.Hour, "somebody logged in from it in the last 30 days (the last one on %s): no bans", h.LastLogin.In(in.e.zone).Format("2006-01-02"))
	case spared == "login":
		excuses("login", true, "somebody logged in from it in the last 30 days, as is remembered: no bans")
	default:
		excuses("login", false, "somebody logged in from it in the last 30 days: no bans (nobody is known to have)")
	}

	for _, b := range h.Bans {
		if !b.Over {
			h.Undo = append(h.Undo, undoing{"scanwatch unban " + host(b.Prefix), "ends the ban at once"})
		}
	}
	file := config.DefaultFile()
	if in.config != nil {
		file = in.config.File
	}
	if !friend {
		h.Undo = append(h.Undo, undoing{"table <friends> { " + host(h.Prefix) + " }", "in " + file + ": add the address, for good"})
		if in.config != nil && !strings.Contains(in.config.Policy.String(), "pass from <friends>") {
			h.Undo = append(h.Undo, undoing{"pass from <friends>", "the same: it has no such statement"})
		}
	}
}

// host writes a prefix as an address, if it is one.
func host(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func plural[N int | uint32](n N, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// table is a table of the configuration as it is now, nil if there is none.
func (in *inquiry) table(name string) rules.Table {
	if in.config == nil {
		return nil
	}
	return in.config.Policy.Table(name)
}
