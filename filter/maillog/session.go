package maillog

import (
	"bytes"
	"net/netip"
	"strings"
)

// These are the maximum sizes of a reader's tables. No real server reaches them.
const (
	maxSessions  = 100_000   // number of open sessions
	maxPending   = 200_000   // number of envelopes of users that are not yet delivered
	maxEnvelopes = 1_000_000 // number of envelopes that are stored to recognise duplicates
)

// A fifo is a map with a maximum size. When a fifo is full, a new key replaces the oldest one.
type fifo[K comparable, V any] struct {
	limit int
	rows  map[K]V
	ring  []K
	next  int // index of the oldest key if the ring is full
}

func newFifo[K comparable, V any](limit int) fifo[K, V] {
	return fifo[K, V]{limit: limit, rows: make(map[K]V)}
}

// put adds an entry. If the map is full, put drops the oldest entry.
func (f *fifo[K, V]) put(k K, v V) {
	if _, ok := f.rows[k]; !ok {
		if len(f.ring) < f.limit {
			f.ring = append(f.ring, k)
		} else {
			delete(f.rows, f.ring[f.next])
			f.ring[f.next] = k
			f.next = (f.next + 1) % f.limit
		}
	}
	f.rows[k] = v
}

// A session is an open session.
type session struct {
	addr  netip.Addr // invalid for a local program
	host  string
	user  string // user that has logged in
	local bool   // the client is a program on the server
	login bool

	rejected int // number of rejected recipients
}

// sessions stores open sessions and envelopes, to which lines of the log refer.
type sessions struct {
	open    fifo[uint64, *session]
	pending fifo[uint64, string] // users by envelope
	seen    fifo[uint64, struct{}]
	// message identifies the message to which the latest envelope belongs.
	message uint32
}

func newSessions() sessions {
	return sessions{
		open: newFifo[uint64, *session](maxSessions), pending: newFifo[uint64, string](maxPending),
		seen: newFifo[uint64, struct{}](maxEnvelopes),
	}
}

// apply updates the sessions after an event, and reports deliveries.
func (r *reader) apply(line *line, e *event) {
	t := &r.sessions
	switch e.kind {
	case connected:
		if _, ok := t.open.rows[e.session]; !ok {
			r.counts.Sessions++
			t.open.put(e.session, newSession(e))
		}
	case disconnected:
		delete(t.open.rows, e.session)
	case authenticated:
		if s := t.open.rows[e.session]; s != nil && e.authentication {
			s.login, s.user = true, string(e.user)
		} else if s == nil && e.authentication {
			// The session started in an older log that is not read.
			t.open.put(e.session, &session{login: true, user: string(e.user)})
		}
	case rejected:
		if s := t.open.rows[e.session]; s != nil {
			s.rejected++
		}
	case envelope:
		r.envelope(line, e)
	case relayed:
		user, ok := t.pending.rows[e.envelope]
		delete(t.pending.rows, e.envelope)
		if _, domain, at := cutDomain(e.recipient); ok && at && r.o.Sent != nil {
			r.o.Sent(&Sent{Time: line.at, Server: string(line.host), User: user, Domain: domain})
		}
	case failed:
		delete(t.pending.rows, e.envelope)
	}
}

func newSession(e *event) *session {
	if string(e.addr) == "local" {
		return &session{local: true}
	}
	s := &session{}
	if a, err := netip.ParseAddr(string(bytes.TrimSuffix(bytes.TrimPrefix(e.addr, []byte("[")), []byte("]")))); err == nil {
		s.addr = a.Unmap().WithZone("")
	}
	if string(e.host) != "<unknown>" {
		s.host = string(e.host)
	}
	return s
}

// envelope reports an accepted envelope from a remote host. A user's envelope is stored until it is
// delivered.
func (r *reader) envelope(line *line, e *event) {
	t, c := &r.sessions, &r.counts
	if _, ok := t.seen.rows[e.envelope]; ok {
		c.Duplicates++
		return
	}
	s := t.open.rows[e.session]
	if s == nil { // do not add the envelope to seen, because another log with overlapping times may contain both it and the start of the session
		c.Orphans++
		return
	}
	t.seen.put(e.envelope, struct{}{})
	c.Envelopes++
	if id := uint32(e.envelope >> 32); id != t.message {
		t.message = id
		c.Messages++
	}
	switch {
	case s.local || s.login:
		if len(e.sender) > 0 { // bounces and automatic replies have no sender and are not a user's mail
			t.pending.put(e.envelope, s.user)
		}
	case s.addr.IsValid() && r.o.Delivered != nil:
		r.o.Delivered(&Delivery{
			Time: line.at, Server: string(line.host), Addr: s.addr, Host: s.host,
			Sender: string(e.sender), Recipient: string(e.recipient), MsgID: uint32(e.envelope >> 32), Rejected: s.rejected,
		})
	}
}

// cutDomain splits an address at the last "@", and returns the domain in lower case.
func cutDomain(addr []byte) (local, domain string, ok bool) {
	i := bytes.LastIndexByte(addr, '@')
	if i < 0 || i == len(addr)-1 {
		return "", "", false
	}
	return string(addr[:i]), strings.ToLower(string(addr[i+1:])), true
}
