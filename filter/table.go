package filter

import (
	"net/netip"
	"sync/atomic"
	"time"

	"scanwatch/filter/decide"
	"scanwatch/filter/detect"
	"scanwatch/filter/journal"
	"scanwatch/filter/memory"
	"scanwatch/filter/track"
	"scanwatch/internal/smtp"
)

// A session is an open session, with its facts and each stage's state.
type session struct {
	track   track.Session
	detect  detect.State
	decide  decide.State
	journal journal.State
	source  *source
	domain  string // registered domain of the proven name; may be empty
	spared  bool   // watchers have received the event "exempt"
	asking  bool   // DNS lists have been asked about the client, and some have not answered
	waiting bool   // a request waits for a DNS list; the stages before the decision have already handled it
	parked  int64  // time of the latest decision to let a request wait
	// listings is the value of dnslist.Table.Withdrawals when the session's facts were last
	// updated.
	listings uint32
	waited   time.Duration // sum of the waits of all requests

	sender     []byte          // domain of the latest ordinary sender
	registered string          // registered domain of sender
	ordinary   string          // registered domain of the sender, if mail to a recipient of the transaction improves the client's standing
	delivery   memory.Delivery // ordinary mail in this session so far
}

// A source is a host with open sessions.
type source struct{ live uint32 }

// maxSessions is the maximum number of open sessions. A mail server runs out of file
// descriptors before it has that many sessions.
const maxSessions = 50_000

// maxFree is the maximum number of unused sessions kept for reuse.
const maxFree = 1000

// together returns the number of open sessions from the source of s. Sessions of internal clients
// are not counted.
func (s *session) together() uint32 {
	if s.track.Internal || s.source == nil {
		return 0
	}
	return s.source.live
}

// A table holds the open sessions and counts them by source.
type table struct {
	live    map[uint64]*session
	last    *session // session of the previous event
	free    []*session
	sources map[uint64]*source
	count   atomic.Int64 // number of open sessions
	missed  uint64       // number of sessions not tracked because the table was full
}

func newTable() table {
	return table{live: make(map[uint64]*session), sources: make(map[uint64]*source)}
}

// session returns the open session with the given id, or nil. session tries the previous event's
// session first.
func (t *table) session(id uint64) *session {
	if t.last == nil || t.last.track.ID != id {
		t.last = t.live[id]
	}
	return t.last
}

// open adds a session. open returns nil if too many sessions are open.
func (t *table) open(id uint64, src netip.AddrPort) *session {
	if len(t.live) >= maxSessions {
		t.missed++
		return nil
	}
	var s *session
	if n := len(t.free); n > 0 {
		s, t.free = t.free[n-1], t.free[:n-1]
	} else {
		s = new(session)
	}
	s.track.ID = id
	t.live[id], t.last = s, s
	t.count.Store(int64(len(t.live)))
	if src.IsValid() {
		k := memory.Number(src.Addr())
		if s.source = t.sources[k]; s.source == nil {
			s.source = new(source)
			t.sources[k] = s.source
		}
		s.source.live++
	}
	return s
}

// Part records that the client of a session has disconnected. The session is no longer counted as
// open, although its EventDisconnect follows later. Part imposes the bans that do not depend on
// further events.
func Part(p *Pipeline, id uint64, at int64, how smtp.Ending) {
	p.begin(at)
	s := p.table.session(id)
	if s == nil {
		return
	}
	if judged(s, how) {
		p.identify(s)
		p.write(s, decide.Parted(&p.decider, p.subject(s), at))
	}
	p.table.part(s)
}

func (t *table) part(s *session) {
	if s.source == nil {
		return
	}
	if s.source.live--; s.source.live == 0 {
		delete(t.sources, memory.Number(s.track.Src.Addr()))
	}
	s.source = nil
}

func (t *table) close(s *session) {
	t.part(s)
	delete(t.live, s.track.ID)
	t.last = nil
	t.count.Store(int64(len(t.live)))
	if len(t.free) < maxFree {
		s.track.Reset()
		s.detect, s.decide, s.source, s.domain, s.asking, s.waiting = detect.State{}, decide.State{}, nil, "", false, false
		s.parked, s.waited = 0, 0
		s.sender, s.registered, s.ordinary, s.delivery = s.sender[:0], "", "", memory.Delivery{Senders: s.delivery.Senders[:0]}
		t.free = append(t.free, s)
	}
}
