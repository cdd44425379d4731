// Package journal records the events and outcomes of sessions. Each event and each
// outcome becomes a step in the session's record. Outcomes are also logged and sent to
// watchers. No other package writes records, log lines or watch events about sessions.
// Package journal makes no decisions.
package journal

import (
	"strings"
	"time"

	"scanwatch/filter/events"
	"scanwatch/filter/privacy"
	"scanwatch/filter/track"
	"scanwatch/internal/smtp"
	"scanwatch/store"
)

// Options holds the outputs of a Journal. None of the functions may block or retain its
// arguments.
type Options struct {
	// Record receives the encoded record of an ended session, or of an aggregate of several
	// sessions. Record is also called by Sums.Flush, in the goroutine of Flush's caller.
	Record func(end time.Time, id uint64, value []byte)
	// FrontEnd is the name of the front end in records, or "" for smtpd.
	FrontEnd string
	// Log receives a log line without LF. A suspicious session is logged when it ends. A ban is
	// logged immediately.
	Log func(line []byte)
	// Verbose reports whether each finding, verdict and tag is logged. Nil means false.
	Verbose func() bool
	// Watch, if set, receives each finding, verdict, tag and ban.
	Watch func(*events.Event)
}

// A Journal writes the records, log lines and watch events of all sessions. Only the Sums of a
// Journal are safe for concurrent use.
type Journal struct {
	server []byte // name of the mail server
	o      Options
	hide   hider
	sums   Sums
	log    logger
	bytes  int // total capacity of all step buffers in bytes
	record []byte
	step   store.Step
	event  events.Event
	words  []byte // holds the words of the current step
}

// State is the unfinished record of an open session.
type State struct {
	steps    []byte // encoded by store.AppendStep
	last     int64  // time of the newest step in microseconds since 1970
	omitted  uint32 // number of steps that did not fit into the record
	examples uint32 // number of failed commands recorded with their text
	replies  uint64 // set of pairs of verb and code for which a reply's text is already recorded
	summary  summary
}

// Limits on the data that clients can store in the journal.
const (
	maxSteps    = 64 << 10 // size of a session's steps in bytes
	minSteps    = 2 << 10  // the same limit while the steps of all sessions exceed maxAllSteps
	maxAllSteps = 64 << 20 // total size of the steps of all sessions in bytes
	maxExamples = 20       // number of failed commands per session that are recorded with their text
	maxText     = 200      // length of a command or reply in bytes
	maxUser     = 128      // length of a user name in bytes
)

// New returns a Journal.
func New(o Options) *Journal { return &Journal{o: o} }

// Limit sets the disk budget in bytes. During a flood, the journal combines sessions into
// aggregates to stay within the budget. If budget is 0, every session gets its own record. Limit
// must be called before the first event.
func (j *Journal) Limit(budget int64) { j.sums.begin(budget, j.o.Record) }

// Hide sets the privacy level. If hashed is set, the local parts of all mailboxes are hashed. User
// names that may be passwords are hashed in any case. If h is nil, nothing is hashed.
func (j *Journal) Hide(h *privacy.Hasher, hashed bool) { j.hide.hasher, j.hide.all = h, hashed }

// User returns the recorded form of a user name. A name that may be a password is always hashed. A
// mailbox is hashed if the privacy level requires this. The result is valid until the next call.
func (j *Journal) User(name []byte) []byte { return j.hide.user(name) }

// Begin prepares st for a new session, and reuses the buffers of st.
func (j *Journal) Begin(st *State, at int64) {
	st.summary.begin()
	*st = State{steps: st.steps[:0], last: at, summary: st.summary}
	j.bytes += cap(st.steps)
}

// Release allows the buffers of an ended session to be reused, and discards buffers that are
// larger than an ordinary session needs.
func (j *Journal) Release(st *State) {
	j.bytes -= cap(st.steps)
	if cap(st.steps) > 1024 {
		st.steps = nil
	}
}

// Buffered returns the total capacity of all step buffers in bytes.
func (j *Journal) Buffered() int { return j.bytes }

// Tick logs the numbers of repeated lines that are due, and writes the aggregates that are due.
func (j *Journal) Tick(now int64) {
	j.log.due(j.o.Log, now, false)
	j.sums.tick(now)
}

// Sums returns the aggregates. The aggregates are safe for concurrent use.
func (j *Journal) Sums() *Sums { return &j.sums }

// Flush writes all aggregates and, if logs is set, all pending log lines.
func (j *Journal) Flush(now int64, logs bool) {
	if logs {
		j.log.due(j.o.Log, now, true)
	}
	j.sums.flush(true)
}

// Event records an event as a step of the session, unless it is a request, a line or a reply.
func (j *Journal) Event(s *track.Session, st *State, ev *smtp.Event) {
	write := steps[ev.Kind]
	if write == nil {
		return
	}
	j.step = store.Step{}
	if write(j, st, ev, &j.step) {
		j.add(st, ev.Time, &j.step)
	}
}

// steps contains a function for each recorded kind of event. The function fills in the step. The
// function returns false if the event must not be recorded.
var steps = [smtp.NumKinds]func(*Journal, *State, *smtp.Event, *store.Step) bool{
	smtp.EventGreeting: func(_ *Journal, _ *State, ev *smtp.Event, s *store.Step) bool {
		s.Kind = store.KindGreeting
		return ev.Code == 220
	},
	smtp.EventHelo: func(j *Journal, st *State, ev *smtp.Event, s *store.Step) bool {
		s.Kind, s.Text, s.Arg, s.Result = store.KindHelo, j.hide.text(ev.Name), ev.Word, ev.Result
		return j.outcome(st, ev, s)
	},
	smtp.EventTLS: func(_ *Journal, _ *State, ev *smtp.Event, s *store.Step) bool {
		s.Kind, s.Text = store.KindTLS, ev.Text
		return true
	},
	smtp.EventAuth: func(_ *Journal, _ *State, ev *smtp.Event, s *store.Step) bool {
		s.Kind, s.Text, s.Result = store.KindAuth, clip(ev.Name, maxUser), ev.Result
		return true
	},
	smtp.EventMail: func(j *Journal, st *State, ev *smtp.Event, s *store.Step) bool {
		s.Kind, s.Text, s.Result, s.MsgID = store.KindMail, j.hide.mailbox(ev.Addr), ev.Result, ev.MsgID
		return j.outcome(st, ev, s)
	},
	smtp.EventRcpt: func(j *Journal, st *State, ev *smtp.Event, s *store.Step) bool {
		s.Kind, s.Text, s.Result = store.KindRcpt, j.hide.mailbox(ev.Addr), ev.Result
		return j.outcome(st, ev, s)
	},
	smtp.EventData: func(j *Journal, st *State, ev *smtp.Event, s *store.Step) bool {
		s.Kind, s.Result = store.KindData, ev.Result
		return j.outcome(st, ev, s)
	},
	smtp.EventCommit: func(_ *Journal, _ *State, ev *smtp.Event, s *store.Step) bool {
		s.Kind, s.Size = store.KindCommit, ev.Size
		return true
	},
	smtp.EventRollback: func(_ *Journal, _ *State, _ *smtp.Event, s *store.Step) bool {
		s.Kind = store.KindRollback
		return true
	},
	smtp.EventCommand: func(j *Journal, st *State, ev *smtp.Event, s *store.Step) bool {
		if st.examples++; st.examples > maxExamples {
			return false // only counted, in the header of the record
		}
		s.Kind, s.Text = store.KindCommand, j.hide.line(ev.Text)
		return j.outcome(st, ev, s)
	},
	smtp.EventInput: func(j *Journal, _ *State, ev *smtp.Event, s *store.Step) bool {
		s.Kind, s.Code, s.Reply = store.KindInput, ev.Code, j.hide.reply(ev.Reply)
		return true
	},
	smtp.EventFilter: func(j *Journal, _ *State, ev *smtp.Event, s *store.Step) bool {
		s.Kind, s.Reply = store.KindFilter, j.hide.reply(ev.Text)
		var ok bool
		if s.Phase, ok = smtp.ParsePhase(string(ev.Name)); !ok || s.Phase == smtp.PhaseEnd {
			s.Phase, s.Arg = smtp.NumPhases, ev.Name
		}
		if s.Decision, ok = smtp.ParseDecision(string(ev.Word)); !ok {
			s.Text = ev.Word
		}
		return true
	},
	smtp.EventTimeout: func(_ *Journal, _ *State, _ *smtp.Event, s *store.Step) bool {
		s.Kind = store.KindTimeout
		return true
	},
	smtp.EventListed: func(_ *Journal, _ *State, ev *smtp.Event, s *store.Step) bool {
		s.Kind, s.Text, s.Arg, s.Match, s.Result = store.KindListed, ev.Name, ev.Text, ev.Word, ev.Result
		return true
	},
	smtp.EventQuit: func(_ *Journal, _ *State, _ *smtp.Event, s *store.Step) bool {
		s.Kind = store.KindQuit
		return true
	},
}

// outcome sets the code and the reply of a failed command. In each session, the text of a reply is
// recorded only once for each verb and code.
func (j *Journal) outcome(st *State, ev *smtp.Event, s *store.Step) bool {
	if ev.Result == smtp.ResultOK {
		return true
	}
	s.Code = ev.Code
	bit := uint64(1) << ((uint32(ev.Verb)*37 + ev.Code) % 64)
	if st.replies&bit == 0 {
		st.replies |= bit
		s.Reply = j.hide.reply(ev.Reply)
	}
	return true
}

// add appends a step to the record. If the record has its maximum size, add only counts the step.
func (j *Journal) add(st *State, at int64, step *store.Step) {
	if len(st.steps) > minSteps && (len(st.steps) > maxSteps || j.bytes > maxAllSteps) {
		st.omitted++
		return
	}
	j.bytes -= cap(st.steps)
	st.steps = store.AppendStep(st.steps, step, time.Duration(at-st.last)*time.Microsecond)
	j.bytes += cap(st.steps)
	st.last = max(st.last, at)
}

// Outcome records an outcome, logs it, and sends it to watchers.
func (j *Journal) Outcome(s *track.Session, st *State, o *smtp.Outcome) {
	w := &writers[o.Kind]
	if o.Mailbox { // hashed as a whole: in a text, a recipient without a domain is not recognised
		o.Proof = j.hide.mailbox(o.Proof)
	} else {
		o.Proof = j.hide.line(o.Proof)
	}
	if strings.IndexByte(o.Match, '@') >= 0 { // the match is an earlier greeting, which may contain a mailbox
		o.Match = string(j.hide.reply([]byte(o.Match)))
	}
	o.Helo = j.hide.text(s.Helo)
	j.step = store.Step{}
	j.words = j.words[:0]
	w.step(j, o, &j.step)
	j.add(st, o.Time, &j.step)
	if o.Repeat {
		return
	}
	if j.o.Watch != nil {
		j.event = events.Event{Time: time.UnixMicro(o.Time), Session: s.ID, Src: s.Src.Addr(), RDNS: s.RDNS, FCrDNS: s.FCrDNS.String(), Helo: o.Helo}
		w.event(o, &j.event)
		j.o.Watch(&j.event)
	}
	ban := w.summary == nil
	switch {
	case ban && !st.summary.ban(o):
		return
	case !ban:
		w.summary(&st.summary, o)
		if j.o.Verbose == nil || !j.o.Verbose() {
			return
		}
	}
	// A ban is never a repetition, because a new ban requires that the earlier one has ended or was
	// revoked.
	key := logKey{kind: &w.repeated, what: w.what(o), form: form(o)}
	if ban && key.form == "" && j.log.acted.allow(o.Time, 1) || (!ban || key.form != "") && j.log.allow(s, key, o.Time) {
		j.log.line = w.line(j.log.line[:0], s, o)
		if ban {
			j.log.line = appendClient(st.summary.appendEvidence(j.log.line), s, o.Helo)
		}
		j.log.line = appendPair(j.log.line, "session", appendHex(nil, s.ID))
		j.o.Log(j.log.line)
	}
}

// summarize logs an ended session.
func (j *Journal) summarize(s *track.Session, m *summary, at int64) {
	if !m.matters || m.banned || m.observed && !m.enforced {
		return
	}
	if j.log.allow(s, m.again(), at) {
		j.log.line = m.line(j.log.line[:0], s, j.hide.text(s.Helo))
		j.o.Log(j.log.line)
	}
}

// A Close describes how a session ended.
type Close struct {
	At      int64 // microseconds since 1970
	Ending  smtp.Ending
	Found   bool // the session has a finding
	Refused bool // a rule or ban rejected the client or one of its commands
	Banned  bool // a rule banned the source in this session
}

// End records an ended session and logs it. whole reports whether the session gets its own record.
// All other sessions are added to an aggregate.
func (j *Journal) End(s *track.Session, st *State, c Close) (whole bool) {
	j.summarize(s, &st.summary, c.At)
	r := store.Record{
		ID: s.ID, Start: time.UnixMicro(s.Start), End: time.UnixMicro(max(c.At, s.Start)),
		Src: s.Src, Dst: s.Dst, RDNS: s.RDNS, FCrDNS: s.FCrDNS, Ending: c.Ending, Local: s.Local,
		Counts: store.Counts(s.Counts), Omitted: st.omitted,
	}
	if j.o.FrontEnd != "" {
		r.FrontEnd, r.Server = []byte(j.o.FrontEnd), j.server
	}
	used := j.sums.payer(&r, &c)
	if used == nil {
		j.sums.add(&r, st.steps, &c)
		return false
	}
	j.record = store.AppendRecord(j.record[:0], &r, st.steps)
	*used += int64(len(j.record)) + recordCost
	j.o.Record(r.End, r.ID, j.record)
	return true
}

func clip(b []byte, most int) []byte { return b[:min(len(b), most)] }

// Site sets the mail server's name.
func (j *Journal) Site(name []byte) { j.server = name }

// Last returns the time of the newest step, in microseconds since 1970.
func (st *State) Last() int64 { return st.last }
