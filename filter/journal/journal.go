// Package journal records the events and outcomes of sessions. Each event and each
// outcome becomes a step in the record of the session. Outcomes also become log lines
// and events for watchers. No other package writes records, log lines and watch events
// on sessions. The package makes no decisions.
package journal

import (
	"time"

	"scanwatch/filter/events"
	"scanwatch/filter/privacy"
	"scanwatch/filter/track"
	"scanwatch/internal/smtp"
	"scanwatch/store"
)

// Options contains the outputs of a Journal. No function may block or retain its
// argument.
type Options struct {
	// Record receives the encoded record of an ended session or of an aggregate.
	// Sums.Flush calls Record in the goroutine of its caller.
	Record func(end time.Time, id uint64, value []byte)
	// Log receives one log line without LF. A suspicious session has a line at its end,
	// and a ban has a line immediately.
	Log func(line []byte)
	// Verbose reports whether each finding, verdict and tag has a log line. A nil
	// Verbose means false.
	Verbose func() bool
	// Watch receives each finding, verdict, tag and ban, and may be nil.
	Watch func(*events.Event)
}

// A Journal writes the records, log lines and watch events of all sessions. Only Sums
// may be used concurrently.
type Journal struct {
	o      Options
	hide   hider
	sums   Sums
	log    logger
	bytes  int // capacity of all step buffers
	record []byte
	step   store.Step
	event  events.Event
	words  []byte // buffer for the words of the current step
}

// State is the unfinished record of an open session.
type State struct {
	steps    []byte // encoded by store.AppendStep
	last     int64  // time of the newest step in microseconds since 1970
	omitted  uint32 // steps that are not in the record
	examples uint32 // failed commands
	replies  uint64 // set of the combinations of verb and code whose reply text is in the record
	summary  summary
}

// Limits on data that clients control.
const (
	maxSteps    = 64 << 10 // size of the steps of a session in bytes ...
	minSteps    = 2 << 10  // ... which is reduced to this size while the steps of all sessions ...
	maxAllSteps = 64 << 20 // ... exceed this number of bytes
	maxExamples = 20       // failed commands of a session that are recorded with their text
	maxText     = 200      // length of a command or reply in bytes
	maxUser     = 128      // length of a user name in bytes
)

// New returns a Journal.
func New(o Options) *Journal { return &Journal{o: o} }

// Limit sets the disk budget in bytes; 0 means a separate record for every session. To
// stay within the budget, the journal adds the sessions of floods to aggregates. Limit
// must be called before the first event.
func (j *Journal) Limit(budget int64) { j.sums.begin(budget, j.o.Record) }

// Hide sets the level of privacy. If hashed is set, the local part of every mailbox is
// hashed. User names that may be passwords are always hashed. A nil Hasher disables
// hashing.
func (j *Journal) Hide(h *privacy.Hasher, hashed bool) { j.hide.hasher, j.hide.all = h, hashed }

// User returns the recorded form of a user name. A possible password is hashed, and a
// mailbox is hashed if the level of privacy requires it. The returned name is valid
// until the next call.
func (j *Journal) User(name []byte) []byte { return j.hide.user(name) }

// Begin prepares st for a new session, and reuses buffers.
func (j *Journal) Begin(st *State, at int64) {
	st.summary.begin()
	*st = State{steps: st.steps[:0], last: at, summary: st.summary}
	j.bytes += cap(st.steps)
}

// Release releases the buffers of an ended session for reuse. A buffer that is larger
// than an ordinary session needs is dropped.
func (j *Journal) Release(st *State) {
	j.bytes -= cap(st.steps)
	if cap(st.steps) > 1024 {
		st.steps = nil
	}
}

// Buffered returns the capacity of all step buffers in bytes.
func (j *Journal) Buffered() int { return j.bytes }

// Tick writes the counts of repeated log lines that are due, and the aggregates of
// ended hours.
func (j *Journal) Tick(now int64) {
	j.log.due(j.o.Log, now, false)
	j.sums.tick(now)
}

// Sums returns the aggregates, which are safe for concurrent use.
func (j *Journal) Sums() *Sums { return &j.sums }

// Flush writes all aggregates and, if logs is set, all pending log lines.
func (j *Journal) Flush(now int64, logs bool) {
	if logs {
		j.log.due(j.o.Log, now, true)
	}
	j.sums.flush(true)
}

// Event records an event as a step of the session. Requests, lines and replies are not
// separate steps.
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

// steps contains the function that sets the step of each recorded kind of event. The
// function returns false for an event that is not recorded.
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
			return false // counted only in the header of the record
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
	smtp.EventQuit: func(_ *Journal, _ *State, _ *smtp.Event, s *store.Step) bool {
		s.Kind = store.KindQuit
		return true
	},
}

// outcome sets code and reply of a failed command. The text of a reply is recorded once
// for each verb and code in a session.
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

// add appends a step. At the limit of the session, the step is only counted.
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

// Outcome writes an outcome to the record, to watchers and to the log.
func (j *Journal) Outcome(s *track.Session, st *State, o *smtp.Outcome) {
	w := &writers[o.Kind]
	if len(o.Proof) > 0 {
		o.Proof = j.hide.line(o.Proof)
	}
	j.step = store.Step{}
	j.words = j.words[:0]
	w.step(j, o, &j.step)
	j.add(st, o.Time, &j.step)
	if o.Repeat {
		return
	}
	if j.o.Watch != nil {
		j.event = events.Event{Time: time.UnixMicro(o.Time), Session: s.ID, Src: s.Src.Addr(), RDNS: s.RDNS, FCrDNS: s.FCrDNS.String(), Helo: s.Helo}
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
	// A ban is never a repetition, because the earlier ban has ended or was revoked.
	key := logKey{kind: &w.repeated, what: w.what(o), form: form(o)}
	if ban && key.form == "" && j.log.acted.allow(o.Time, 1) || (!ban || key.form != "") && j.log.allow(s, key, o.Time) {
		j.log.line = w.line(j.log.line[:0], s, o)
		if ban {
			j.log.line = appendClient(st.summary.appendEvidence(j.log.line), s)
		}
		j.log.line = appendPair(j.log.line, "session", appendHex(nil, s.ID))
		j.o.Log(j.log.line)
	}
}

// summarize logs the line of an ended session.
func (j *Journal) summarize(s *track.Session, m *summary, at int64) {
	if !m.matters || m.banned || m.observed && !m.enforced {
		return
	}
	if j.log.allow(s, m.again(), at) {
		j.log.line = m.line(j.log.line[:0], s)
		j.o.Log(j.log.line)
	}
}

// A Close describes the end of a session.
type Close struct {
	At      int64 // microseconds since 1970
	Ending  smtp.Ending
	Found   bool // the session has a finding
	Refused bool // a rule or ban rejected the client or one of its commands
	Banned  bool // a rule banned the source in this session
}

// End records an ended session and logs its line. whole reports whether the session has
// its own record; an aggregate contains all others.
func (j *Journal) End(s *track.Session, st *State, c Close) (whole bool) {
	j.summarize(s, &st.summary, c.At)
	r := store.Record{
		ID: s.ID, Start: time.UnixMicro(s.Start), End: time.UnixMicro(max(c.At, s.Start)),
		Src: s.Src, Dst: s.Dst, RDNS: s.RDNS, FCrDNS: s.FCrDNS, Ending: c.Ending, Local: s.Local,
		Counts: store.Counts(s.Counts), Omitted: st.omitted,
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

// Last returns the time of the newest step in microseconds since 1970.
func (st *State) Last() int64 { return st.last }
