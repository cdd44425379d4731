package serverlog

import (
	"bytes"
	"slices"
	"strconv"

	"scanwatch/filter/maillog"
	"scanwatch/internal/smtp"
)

const (
	// grace is the time that an ended session waits for lines about its messages, in microseconds
	// of the log.
	grace = 10 * second
	// maxMessages is the maximum number of messages that wait for their outcome, and maxRecipients
	// is the maximum number of recipients of each whose addresses are stored. A session can have
	// maxAlike waiting messages.
	maxMessages   = 20_000
	maxRecipients = 50
)

// A message is a message in the queue of a server that logs senders and recipients after the
// session.
type message struct {
	key     string
	session *session
	serial  uint64 // serial number of the session when the message was added; differs if session has been reused
	since   int64
	sender  []byte
	known   bool // the sender is known
	size    uint64
	nrcpt   int      // number of recipients that more does not count
	rcpts   [][]byte // addresses
	more    int      // number of further recipients whose addresses are not stored
}

// messages holds messages whose sessions have not been reported yet.
type messages struct {
	table *table
	rows  map[string]*message // messages by host and queue identifier
	key   []byte              // reused
	order []*message          // messages with the oldest first; may also contain messages that are done
}

func newMessages(t *table) messages { return messages{table: t, rows: make(map[string]*message)} }

// add adds a message that a session has started to send.
func (m *messages) add(host, id []byte, s *session) {
	if len(id) == 0 || len(s.pending) >= maxAlike || m.get(host, id) != nil {
		return
	}
	key := string(m.key)
	if len(m.order) > 2*maxMessages {
		m.order = slices.DeleteFunc(m.order, func(one *message) bool { return m.rows[one.key] != one })
	}
	for len(m.rows) >= maxMessages {
		if one := m.order[0]; m.rows[one.key] == one {
			m.done(one.key, false)
		}
		m.order = m.order[1:]
	}
	one := &message{key: key, session: s, serial: s.serial, since: m.table.now}
	m.rows[key] = one
	m.order = append(m.order, one)
	s.pending = append(s.pending, one)
}

// get returns the message with the given queue identifier, or nil.
func (m *messages) get(host, id []byte) *message {
	m.key = append(append(append(m.key[:0], host...), '/'), id...)
	return m.rows[string(m.key)]
}

// expire ends messages that have waited too long after the end of their session.
func (m *messages) expire(now int64) {
	for len(m.order) > 0 {
		if one := m.order[0]; m.rows[one.key] == one {
			if s := one.session; s.serial == one.serial && !s.ended && now-s.last <= m.table.kind.idle {
				if now-one.since <= grace {
					return
				}
				// The session is still open, so check this message again later.
				m.order = append(m.order[1:], one)
				one.since = now
				continue
			}
			if now-max(one.since, one.session.last) <= grace {
				return
			}
			m.done(one.key, false)
		}
		m.order = m.order[1:]
	}
}

// done ends a message, and adds its steps to the session. ok reports whether the message is known to
// have been accepted.
func (m *messages) done(key string, ok bool) {
	one := m.rows[key]
	if one == nil {
		return
	}
	delete(m.rows, key)
	s := one.session
	if s.serial != one.serial {
		return // the session has been reported
	}
	s.pending = slices.DeleteFunc(s.pending, func(other *message) bool { return other == one })
	one.report(ok || one.known)
	if s.ended {
		m.table.release(s.waits)
	}
}

// report adds the steps of a message to its session. If ok is not set, the message may have been
// rejected. Its recipients were accepted if their number is known.
func (m *message) report(ok bool) {
	if !ok && m.nrcpt == 0 {
		return
	}
	s := m.session
	s.mail(s.last, m.sender, accepted)
	for _, r := range m.rcpts {
		s.rcpt(s.last, r, 0, nil, smtp.CauseNone, accepted)
	}
	for range min(m.nrcpt-len(m.rcpts)+m.more, maxAlike) {
		s.rcpt(s.last, nil, 0, nil, smtp.CauseNone, accepted)
	}
	s.message(s.last, m.size, accepted, ok)
}

// delivery handles a line that begins with a queue identifier and contains from=, to= or removed.
func (p *postfix) delivery(l *maillog.Line) {
	id, rest := cutID(l.Text)
	one := p.messages.get(l.Host, id)
	if one == nil {
		return
	}
	switch {
	case bytes.HasPrefix(rest, []byte("from=<")):
		one.qmgr(rest[len("from=<"):])
	case bytes.HasPrefix(rest, []byte("to=<")):
		one.to(rest[len("to=<"):])
	case bytes.HasPrefix(rest, []byte("removed")):
		p.messages.done(string(p.messages.key), one.known)
		return
	case bytes.HasPrefix(rest, []byte("milter-reject: END-OF-MESSAGE ")), bytes.HasPrefix(rest, []byte("reject: ")): // by cleanup, after the text
		if s := one.session; s.serial == one.serial {
			s.texts++
		}
		p.messages.done(string(p.messages.key), false)
		return
	default:
		return
	}
	if one.known && len(one.rcpts) >= one.nrcpt {
		p.messages.done(string(p.messages.key), true)
	}
}

// qmgr parses "SENDER>, size=254, nrcpt=1 (queue active)". SENDER may contain ">".
func (m *message) qmgr(s []byte) {
	i := bytes.LastIndex(s, []byte(">, size="))
	if i < 0 {
		return
	}
	m.sender, m.known = bytes.Clone(clip(s[:i], maxPath)), true
	size, rest, _ := bytes.Cut(s[i+len(">, size="):], []byte(", nrcpt="))
	m.size, _ = strconv.ParseUint(string(size), 10, 64)
	n, _, _ := bytes.Cut(rest, []byte(" "))
	m.nrcpt, _ = strconv.Atoi(string(n))
	m.nrcpt = min(max(m.nrcpt, 0), maxAlike)
}

// overflow counts a recipient without its address if enough addresses are stored, and reports whether
// it did.
func (m *message) overflow() bool {
	full := len(m.rcpts) >= maxRecipients && m.nrcpt > len(m.rcpts)
	if full {
		m.nrcpt, m.more = m.nrcpt-1, m.more+1
	}
	return full
}

// to parses "RECIPIENT>, orig_to=<ORIGINAL>, relay=...". ORIGINAL is the recipient that the client
// has sent in the session.
func (m *message) to(s []byte) {
	addr, rest, ok := bytes.Cut(s, []byte(">, "))
	if !ok {
		return
	}
	if orig, ok := bytes.CutPrefix(rest, []byte("orig_to=<")); ok {
		addr, _, _ = bytes.Cut(orig, []byte(">, "))
	}
	if m.overflow() {
		return
	}
	if bytes.IndexByte(addr, '@') < 0 || len(m.rcpts) >= maxRecipients || slices.ContainsFunc(m.rcpts, func(r []byte) bool { return bytes.EqualFold(r, addr) }) {
		m.nrcpt = max(m.nrcpt-1, len(m.rcpts))
		return
	}
	m.rcpts = append(m.rcpts, bytes.Clone(clip(addr, maxPath)))
}

func (p *postfix) expire(now int64)  { p.messages.expire(now) }
func (m *sendmail) expire(now int64) { m.messages.expire(now) }
