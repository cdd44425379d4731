package replay

import (
	"bytes"

	"scanwatch/internal/smtp"
	"scanwatch/store"
)

// A playback is a session that is being replayed.
type playback struct {
	rec    store.Record
	out    Outcome
	cursor store.Cursor
	at     int64 // time of the next step in microseconds since 1970
	newest int64 // time of the latest event
	over   bool  // the session has ended in the same way as its record
	gone   bool  // the policy disconnected the client

	next     next
	ruled    bool // in the record, a rule of this filter made a decision in phase ruledAt, and the KindFilter step for it follows
	ruledAt  smtp.Phase
	rule     string // rule of the latest decision
	banned   bool   // a ban caused the latest decision
	junk     bool   // the policy has marked the session as junk
	wasJunk  bool   // when the session was recorded, a filter marked a message as junk
	unhelo   bool   // the policy rejected the latest greeting
	lostAll  int    // number of messages that no recipient receives any more
	tx       transaction
	done     store.Counts // counters of the commands replayed so far
	examples int          // number of failed commands with a step
	padded   bool         // commands without a step have been replayed
	cmd      command
	sawAuth  bool // the client has sent AUTH; later unknown commands are masked in the record
	replies  [8]reply
	nreplies int
}

// A next is the next step and the decisions that were recorded for it.
type next struct {
	step     store.Step
	held     store.Step // step that follows step because they were swapped; see swap
	last     bool       // only the end of the session follows
	filter   store.Step // recorded decision of any filter
	filtered bool       // filter is set
	ours     bool       // a rule of this filter made the decision in filter
	ruled    bool       // a rule of this filter made an enforced or observed decision
}

// A transaction is the current transaction, both the recorded one and the replayed one.
type transaction struct {
	open   bool // the transaction is open now
	sender []byte
	msgid  uint32
	was    int  // number of recipients that were accepted when recorded
	now    int  // number of recipients that are accepted now
	data   bool // DATA was accepted when recorded
	junk   bool
	why    Refusal // latest rejection in the transaction now
}

// A reply is the text of a reply. If several steps have the same verb and code, only the first of
// them contains the text.
type reply struct {
	code uint32
	verb [4]byte
	text []byte
}

// advance reads the next step from the record.
func (v *playback) advance() {
	n := &v.next
	n.filtered, n.ours, n.ruled = false, false, false
	if n.held.Kind != store.KindNone {
		n.step, n.held = n.held, store.Step{}
		v.at = v.newest
		return
	}
	first := int64(0) // time of the first effect of the command
	start := v.rec.Start.UnixMicro()
	for v.cursor.Next(&n.step) {
		s := &n.step
		if at := start + s.At.Microseconds(); first == 0 && at > v.newest {
			first = at
		}
		switch s.Kind {
		case store.KindVerdict:
			n.ruled = true
			if s.Enforced {
				v.ruled, v.ruledAt = true, s.Phase
			}
		case store.KindFilter:
			v.filterNext(s)
		case store.KindFinding, store.KindTag, store.KindBan:
		default:
			v.swap()
			v.at = max(first, v.newest)
			return
		}
	}
	n.last = true
	v.at = max(v.rec.End.UnixMicro(), v.newest)
}

// filterNext stores a filter's recorded decision about the next step.
func (v *playback) filterNext(s *store.Step) {
	n := &v.next
	n.filter, n.filtered = *s, true
	v.wasJunk = v.wasJunk || s.Decision == smtp.Junk
	n.ours = v.ruled && s.Phase == v.ruledAt
	v.ruled = false
	v.out.Ended = v.out.Ended || n.ours && n.refused()
}

// refused reports whether a filter rejected the step when it was recorded.
func (n *next) refused() bool { return n.filtered && n.filter.Decision >= smtp.Reject }

// resumed reports whether a rule of this filter rejected the step when it was recorded. If the
// policy accepts the step now, the result of its command is unknown.
func (n *next) resumed() bool { return n.ours && n.refused() }

// decided reports whether a filter made the recorded decision in the given phase.
func (n *next) decided(phase smtp.Phase) bool {
	return n.filtered && n.filter.Phase == phase
}

// swap restores the original order of a failed command and the rejected input after it. The input
// was recorded immediately, but the command was recorded only when the session continued.
func (v *playback) swap() {
	n := &v.next
	if n.step.Kind != store.KindInput {
		return
	}
	c := v.cursor
	var s store.Step
	for c.Next(&s) {
		switch s.Kind {
		case store.KindFinding, store.KindVerdict, store.KindTag, store.KindBan:
			continue
		case store.KindCommand, store.KindHelo:
			if s.Code >= 400 {
				n.held, n.step, v.cursor = n.step, s, c
			}
		}
		return
	}
}

// text returns the text of a step's reply. The text may be in an earlier step with the same verb
// and code.
func (v *playback) text(s *store.Step) []byte {
	var verb [4]byte
	copy(verb[:], bytes.ToUpper(s.Text[:min(len(s.Text), 4)]))
	if s.Kind != store.KindCommand {
		verb = [4]byte{byte(s.Kind)}
	}
	n := min(v.nreplies, len(v.replies))
	if len(s.Reply) > 0 {
		v.replies[v.nreplies%len(v.replies)] = reply{s.Code, verb, s.Reply}
		v.nreplies++
		return s.Reply
	}
	for _, r := range v.replies[:n] {
		if r.code == s.Code && r.verb == verb {
			return r.text
		}
	}
	if s.Code == 500 {
		return unknownCommand
	}
	return nil
}

// lost updates the counts for a message that was accepted when recorded, but is rejected now. If
// some is set, other recipients still receive the message.
func (v *playback) lost(t *transaction, some bool) {
	m := Message{Sender: t.sender, Rcpts: t.was, Some: some, Refusal: t.why}
	if some {
		m.Rcpts -= t.now
	} else {
		v.lostAll++
	}
	if m.Rule == "" {
		m.Refusal = v.out.Refusal
	}
	v.out.Lost = append(v.out.Lost, m)
}

// skip skips a step that cannot happen under the policy.
func skip(p *Player, v *playback, s *store.Step) {
	if p.o.Skipped != nil {
		p.o.Skipped(s)
	}
	t := &v.tx
	switch s.Kind {
	case store.KindMail:
		if s.Result == smtp.ResultOK {
			why := t.why
			*t = transaction{sender: s.Text, why: why}
		}
	case store.KindRcpt:
		if s.Result == smtp.ResultOK {
			t.was++
		}
	case store.KindCommit:
		v.lost(t, false)
		t.was = 0
	}
}

// lose skips the rest of a session that the policy has ended.
func lose(p *Player, v *playback) {
	if v.tx.why.Rule == "" {
		v.tx.why = v.out.Refusal
	}
	for v.cursor.Next(&v.next.step) {
		skip(p, v, &v.next.step)
	}
	v.loseOmitted()
}

// loseOmitted counts messages as lost if their steps are missing from the record.
func (v *playback) loseOmitted() {
	for range min(max(int(v.rec.Counts.Mails)-int(v.done.Mails)-v.lostAll, 0), maxPadded) {
		v.out.Lost = append(v.out.Lost, Message{Unknown: true, Refusal: v.out.Refusal})
	}
}
