// Package why explains the recorded decisions about a client. An explanation
// lists the rules, the evidence, the exemptions and the remedies.
package why

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/privacy"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/store/history"
)

// Limits of an answer.
const (
	maxSessions = 20      // sessions, unless Options.All or Options.Limit is set
	maxBytes    = 8 << 20 // size of the records in bytes, if Options.All is set
	maxHosts    = 10
	maxBans     = 10 // bans per host
)

// Options are the inputs of Find.
type Options struct {
	// Command is the start of commands in the answer: scanwatch, and options if needed. If Command is
	// empty, it is scanwatch.
	Command string
	Dir     string // state directory
	Reader  *store.Reader
	// Rows calls visit for each row in the given tables of state.db.
	Rows func(tables []string, visit func(store.Entry) error) error
	// Days returns the daily counters, oldest first.
	Days  func() ([]memory.Day, error)
	Lists *lookup.Lists
	// Policy, if set, is the current policy. File names the policy's file.
	Policy *rules.Policy
	File   string
	// Facts returns the facts about r's client at connect, without the answers of DNS lists. Facts
	// is required if Policy is set.
	Facts func(r *store.Record) *rules.Facts
	// Mode is the filter's mode, observe or enforce, and ModeText describes it. Mode and ModeText
	// are empty if the mode is unknown.
	Mode, ModeText string
	// Waiting is set if bans by other hosts are not enforced yet; see memory.Bans.Waiting.
	Waiting bool
	Notes   []string // further reasons why the answer is incomplete
	Now     time.Time
	Zone    *time.Location
	Since   time.Time // only sessions that ended at this time or later
	Until   time.Time // only sessions that ended before this time; zero for all
	// Match reports whether a session is selected by other properties. If Match is nil,
	// all sessions are selected.
	Match func(*store.Record) bool
	All   bool // all sessions, not only the newest 20
	Limit int  // maximum number of sessions; 20 if Limit is 0
}

// An Answer is the outcome of Find. All text is printable.
type Answer struct {
	Schema   int        `json:"schema"` // text.Schema
	Question string     `json:"question"`
	Kinds    []string   `json:"as"`             // possible kinds of the question
	State    string     `json:"state"`          // whether the client is banned, was rejected, or neither
	Cause    string     `json:"cause"`          // cause of the ban or the newest rejection
	Undo     string     `json:"undo"`           // command that undoes the decision
	Mode     string     `json:"mode,omitempty"` // current mode of the filter; no ban is enforced in observe mode
	Matched  int        `json:"matched"`        // matching sessions
	Rejected int        `json:"rejected"`       // matching sessions with an enforced rejection by a rule
	Observed int        `json:"observed"`       // matching sessions with only observed rejections by a rule
	Sessions []*Session `json:"sessions"`       // rejected sessions first, and newest first within each group
	Deciding []*Session `json:"deciding"`       // sessions of the same clients that led to bans in Sessions
	Hosts    []*Host    `json:"hosts"`
	More     int        `json:"more_hosts,omitempty"`
	Apart    *Apart     `json:"apart,omitempty"`  // other hosts in the /64, for a question about one IPv6 host
	Logins   *Logins    `json:"logins,omitempty"` // logins of the user, for a question only about a user
	Searched int        `json:"sessions_searched"`
	Oldest   *text.Time `json:"oldest,omitempty"`
	Notes    []string   `json:"notes"` // why the answer is incomplete

	command string // Options.Command
	mode    string // Mode in words
	waiting bool   // Options.Waiting
	records int    // matching records: sessions and aggregates
}

// Empty reports whether the answer has neither sessions nor hosts.
func (a *Answer) Empty() bool { return a.Matched == 0 && len(a.Hosts) == 0 }

// JSON writes a as a JSON object.
func (a *Answer) JSON(w io.Writer) error {
	return text.JSON(w, a, "  ")
}

// NotFound returns the error to report for an empty answer.
func (a *Answer) NotFound(o *Options) error {
	message := fmt.Sprintf("no session or ban matches %s %q", strings.Join(a.Kinds, " or "), a.Question)
	if a.Oldest == nil {
		message += "; " + o.Dir + " contains no sessions"
	} else {
		message += fmt.Sprintf(" in %d sessions since %s; the session may be open, or its record may have expired",
			a.Searched, a.Oldest.In(o.Zone).Format("2006-01-02 15:04"))
	}
	for _, n := range a.Notes {
		message += "; " + n
	}
	if len(a.Kinds) > 1 || a.Kinds[0] == "helo" {
		message += "; try another kind with --as"
	}
	return errors.New(message)
}

// A query collects an Answer.
type query struct {
	Options
	q      *Question
	answer Answer
	texts  map[uint32]string // recorded rule texts by reference
	now    map[string]string // rule texts in the current policy, by name
	memory *memory.Memory    // state.db, for the hosts' standing

	kept []match
}

// A match is a record that matches the question.
type match struct {
	store.Record
	kinds    []string // interpretations of the question that match the record
	rejected bool     // a rule rejected the client, or would have in enforce mode
}

// defaultCommand is the default of Options.Command.
const defaultCommand = "scanwatch"

// Find answers a question from all records and state.db. When Find returns, Reader.Unread is the
// number of unreadable files.
func Find(q *Question, o Options) (*Answer, error) {
	o.Command = cmp.Or(o.Command, defaultCommand)
	w := &query{Options: o, q: q, texts: map[uint32]string{}, now: map[string]string{}, memory: memory.New()}
	if err := w.identify(); err != nil {
		return nil, err
	}
	w.answer = Answer{Schema: text.Schema, command: o.Command, Mode: o.Mode, mode: o.ModeText, waiting: o.Waiting, Question: q.String(), Kinds: q.kinds, Sessions: []*Session{}, Deciding: []*Session{}, Hosts: []*Host{}, Notes: []string{}}
	w.answer.Notes = append(w.answer.Notes, o.Notes...)
	if q.is("sender") || q.is("recipient") || q.is("user") {
		q.hash(o.Dir)
	}
	if o.Policy != nil {
		for _, r := range o.Policy.Rules() {
			w.now[r.Name] = r.String()
		}
	}
	if err := w.findSessions(); err != nil {
		return nil, err
	}
	bans := w.addSessions()
	if err := w.findHosts(); err != nil {
		return nil, err
	}
	for _, h := range w.answer.Hosts {
		h.trim()
	}
	main := w.answer.mainBan()
	if main != nil && main.Ban.Session != 0 && main.On() == "" {
		bans[main.Ban.Session] = nil
	}
	if err := w.searchAll(bans); err != nil {
		return nil, err
	}
	if err := w.noteGaps(); err != nil {
		return nil, err
	}
	for _, s := range w.answer.Sessions {
		for i := range s.Rules {
			r := &s.Rules[i]
			r.Kept = w.addDeciding(bans[r.ban], s.End.Time, func(p netip.Prefix) bool { return p == memory.Source(s.source.Addr()) })
			w.answer.findOrigin(s, r)
		}
	}
	if main != nil && main.On() == "" {
		w.addDeciding(bans[main.Ban.Session], main.Since, main.Affects)
	}
	for _, list := range [][]*Session{w.answer.Sessions, w.answer.Deciding} {
		for _, s := range list {
			for i := range s.Rules {
				if s.Rules[i].BannedOn == "" { // the rule of another host may have the same name as a local rule
					w.addText(&s.Rules[i])
				}
			}
		}
	}
	for _, h := range w.answer.Hosts {
		w.assess(h)
	}
	if l := w.answer.Logins; l != nil {
		l.list()
		w.limits(l)
	}
	w.answer.summarize(o.Zone)
	return &w.answer, nil
}

// rejections reports whether a session or an aggregate has a rejection by a rule. rejections sets
// enforced for an enforced rejection, and would for a rejection that was only observed.
func rejections(r *store.Record) (would, enforced bool) {
	_ = r.Steps(func(s *store.Step) bool { // query.session reports corrupt steps
		if s.Kind == store.KindVerdict && s.Decision >= smtp.Reject && s.Exempt == "" {
			would, enforced = would || !s.Enforced, enforced || s.Enforced
		}
		return !enforced
	})
	return would, enforced
}

// observed returns a lower bound on the number of an aggregate's sessions that
// rules would have rejected. The bound is the largest number of sessions that a
// single rule would have rejected.
func observed(r *store.Record) (n int) {
	_ = r.Steps(func(s *store.Step) bool { // query.session reports corrupt steps
		if s.Kind == store.KindVerdict && s.Decision >= smtp.Reject && s.Exempt == "" && !s.Enforced {
			n = max(n, int(s.Times))
		}
		return true
	})
	return n
}

func (w *query) note(format string, args ...any) {
	w.answer.Notes = append(w.answer.Notes, fmt.Sprintf(format, args...))
}

// findSessions selects the newest rejected sessions, and then the newest sessions without a
// rejection.
func (w *query) findSessions() error {
	size, summed, unnamed, otherwise := 0, 0, 0, false
	limit := cmp.Or(w.Limit, maxSessions)
	visit := func(r *store.Record) error {
		if w.Match != nil && !w.Match(r) {
			return nil
		}
		if r.Sessions > 0 && w.q.is("user") {
			unnamed += unnamedLogins(r)
		}
		matched := w.q.match(r)
		if matched == nil {
			summed += int(r.Sessions)
			return nil
		}
		w.answer.records++
		if slices.Contains(matched, "user") {
			w.countLogins(r)
		}
		otherwise = otherwise || len(matched) > 1 || matched[0] != "user"
		w.answer.Matched += r.Many()
		would, enforced := rejections(r)
		switch {
		case r.Sessions > 0:
			w.answer.Rejected += int(r.Rejected)
			w.answer.Observed += observed(r)
		case enforced:
			w.answer.Rejected++
		case would:
			w.answer.Observed++
		}
		w.kept = append(w.kept, match{r.Clone(), matched, would || enforced})
		size += r.Size()
		for len(w.kept) > 1 && (size > maxBytes || !w.All && len(w.kept) > limit) {
			i := max(slices.IndexFunc(w.kept, func(m match) bool { return !m.rejected }), 0)
			size -= w.kept[i].Size()
			w.kept = slices.Delete(w.kept, i, i+1)
		}
		return nil
	}
	w.Reader.Only = w.q.selection()
	noted := map[string]bool{}
	w.Reader.Problem = func(segment string, err error) {
		if line := fmt.Sprintf("%s: %v", segment, err); !noted[line] { // a second pass may find the same problem
			noted[line] = true
			w.note("%s", line)
		}
	}
	if err := history.Walk(w.Reader, w.Since, w.Until, history.Visitor{Kinds: store.AllKinds, Session: visit, Sum: visit}); err != nil {
		return err
	}
	if w.q.missed {
		w.note("records contain hashed addresses, and their key %s cannot be read; run scanwatch as the owner of the key or as root", filepath.Join(w.Dir, privacy.KeyFile))
	}
	if summed > 0 && (w.q.is("sender") || w.q.is("recipient")) && !bytes.HasPrefix(w.q.text, []byte("@")) {
		w.note("%s in aggregates, which contain no senders, and only the domains of recipients; search for @DOMAIN, or for the client's address", text.Plural(summed, "session is", "sessions are"))
	}
	w.decideUser(otherwise)
	if unnamed > 0 && w.q.onlyUser() {
		w.note("aggregates contain %s without the user's name; some may be this user's", text.Plural(unnamed, "login attempt"))
	}
	if w.answer.records == 0 && w.q.is("session") {
		if err := w.noteUnnamed(); err != nil {
			return err
		}
	}
	if n := w.answer.records; w.All && len(w.kept) < n {
		w.note("%d of %d records omitted, because all records exceed %d MiB; select newer sessions with --since", n-len(w.kept), n, maxBytes>>20)
	}
	return nil
}

// decideUser restricts the question to a user if all sessions match only because of logins. If
// otherwise is set, at least one session matches for a different reason. The answer then describes
// the decisions about such sessions.
func (w *query) decideUser(otherwise bool) {
	l := w.answer.Logins
	switch {
	case l == nil:
	case !otherwise:
		w.q.kinds = []string{"user"}
		w.answer.Kinds = w.q.kinds
	default:
		if w.answer.Logins = nil; l.Failed > 0 {
			w.note("this is also a user with %s; add --as user for an answer about the logins", text.Plural(l.Failed, "failed login"))
		}
	}
}

// noteUnnamed notes how many sessions are in aggregates that do not list session ids. The note
// counts the rejected sessions, or all sessions if no session was rejected.
func (w *query) noteUnnamed() error {
	summed, rejected := 0, 0
	w.Reader.Only = nil
	err := history.Walk(w.Reader, w.Since, w.Until, history.Visitor{
		Kinds:   store.KindsOf(store.KindReference),
		Session: func(*store.Record) error { return nil },
		Sum: func(r *store.Record) error {
			summed, rejected = summed+r.Many()-int(r.Rejected), rejected+int(r.Rejected)
			return r.Steps(func(*store.Step) bool { rejected--; return true })
		},
	})
	switch {
	case rejected > 0:
		w.note("or it is one of %s in aggregates, whose ids are not recorded; search for the client's address", text.Plural(rejected, "rejected session", "rejected sessions"))
	case summed > 0:
		w.note("or it is one of %s in aggregates, which contain the ids of rejected sessions only; search for the client's address", text.Plural(summed, "session", "sessions"))
	}
	return err
}

// addSessions adds the descriptions of the selected sessions, rejected sessions first. The keys of
// bans are the ids of the sessions that led to bans.
func (w *query) addSessions() (bans map[uint64][]store.Record) {
	bans = map[uint64][]store.Record{}
	slices.Reverse(w.kept)
	slices.SortStableFunc(w.kept, func(a, b match) int {
		switch {
		case a.rejected == b.rejected:
			return 0
		case a.rejected:
			return -1
		}
		return 1
	})
	for i := range w.kept {
		s := w.session(&w.kept[i].Record)
		s.Kinds = w.kept[i].kinds
		w.answer.Sessions = append(w.answer.Sessions, s)
		for _, rule := range s.Rules {
			if rule.ban != 0 && len(bans) < maxSessions {
				bans[rule.ban] = nil
			}
		}
	}
	return bans
}

// searchAll reads the rules' texts, the sessions that led to bans, and the hosts' history.
func (w *query) searchAll(bans map[uint64][]store.Record) error {
	a := &w.answer
	w.Reader.Rules = w.texts
	keep := func(r *store.Record, id uint64) {
		if list, wanted := bans[id]; wanted && len(list) < maxSessions {
			bans[id] = append(list, r.Clone())
		}
	}
	named := map[string]bool{}
	visit := func(r *store.Record) error {
		keep(r, r.ID)
		w.countApart(r, named)
		for _, h := range a.Hosts {
			if h.holds(r) {
				h.add(r)
			}
		}
		return nil
	}
	sum := func(r *store.Record) error {
		_ = r.Steps(func(s *store.Step) bool {
			if s.Kind == store.KindReference && s.Session != r.ID {
				keep(r, s.Session)
			}
			return true
		})
		return visit(r)
	}
	only := &store.Selection{IDs: slices.Collect(maps.Keys(bans))}
	for _, h := range a.Hosts {
		only.Sources = append(only.Sources, h.Prefix)
	}
	if w.q.addr.IsValid() {
		only.Sources = append(only.Sources, memory.Source(w.q.addr))
	}
	w.Reader.Only = only
	kinds := hostKinds
	if len(bans) > 0 {
		kinds = store.AllKinds
	}
	err := history.Walk(w.Reader, time.Time{}, time.Time{}, history.Visitor{Kinds: kinds, Session: visit, Sum: sum})
	a.Apart.name(named)
	if a.Searched = w.Reader.Searched; a.Searched > 0 {
		a.Oldest = new(text.At(w.Reader.Oldest))
	}
	return err
}

// noteGaps notes how many sessions have no record.
func (w *query) noteGaps() error {
	days, err := w.Days()
	if err != nil {
		return err
	}
	var before uint64
	for i := range days {
		if w.answer.Oldest == nil || days[i].Day.AddDate(0, 0, 1).Before(w.answer.Oldest.Time) {
			before += days[i].Of(memory.DaySessions)
		}
	}
	if before > 0 {
		w.note("the records of %d earlier sessions have expired; only their daily counts remain", before)
	}
	if n := w.Reader.Dropped.Total(); n > 0 {
		w.note("%d sessions were dropped instead of recorded: %s", n, w.Reader.Dropped)
	}
	return nil
}

// addDeciding adds the session that led to a ban to the answer, and reports whether list, the records
// with its id, contains it. Several sessions may have the same id, because smtpd may repeat ids after
// a restart. addDeciding therefore looks for the client's newest session before the given time.
func (w *query) addDeciding(list []store.Record, before time.Time, client func(netip.Prefix) bool) bool {
	for i := len(list) - 1; i >= 0; i-- {
		r := &list[i]
		if !r.Src.IsValid() || !client(memory.Source(r.Src.Addr())) || r.Start.After(before) {
			continue
		}
		if !w.answer.has(sessionID(r.ID), r.Start) {
			w.answer.Deciding = append(w.answer.Deciding, w.session(r))
		}
		return true
	}
	return false
}

// has reports whether a includes the session with the given id and start.
func (a *Answer) has(id string, start time.Time) bool {
	for _, list := range [][]*Session{a.Sessions, a.Deciding} {
		for _, s := range list {
			if s.Session == id && s.Start.Equal(start) {
				return true
			}
		}
	}
	return false
}

func sessionID(id uint64) string { return fmt.Sprintf("%016x", id) }
