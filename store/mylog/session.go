package mylog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"time"
)

// A Session is what a file tells of one SMTP session. It never tells the end:
// the filter wrote its files in the middle of sessions.
type Session struct {
	ID    uint64
	Src   netip.AddrPort // invalid for smtpd's local socket
	Start time.Time      // when link-connect was reported; see StateOnly
	End   time.Time      // the newest event that is known
	// Ended tells that the list of events has a link-disconnect. Without one,
	// how the session ended is not known and must not be guessed.
	Ended bool
	// StateOnly tells that there is no list of events, only what was known
	// when the client greeted. All lines bear the time of the greeting; the
	// connection is older.
	StateOnly bool
	Events    int // lines that there are
	// Omitted is the number of events that are no lines: malformed ones, those
	// of other sessions, and those that hold passwords or message text.
	Omitted int

	lines []byte
}

// Lines writes the session as the lines in which smtpd told the filter of it,
// in protocol version 0.7 of smtpd-filters(7), with their times and without
// passwords. There is no handshake. Requests bear the token 0 if the file does
// not tell theirs; their answers mean nothing.
func Lines(w io.Writer, s *Session) error {
	if _, err := w.Write(s.lines); err != nil {
		return fmt.Errorf("write the lines of session %016x: %w", s.ID, err)
	}
	return nil
}

// The fields of each event behind the session (and token), by the names that
// the filter's library gave them, in the order of protocol version 0.7.
// Of what is missing here, filter-report says nothing that is used, and the
// requests auth and data-line hold passwords and message text.
var (
	reports = map[string][]string{
		"link-connect":    {"rdns", "fcrdns", "src", "dest"},
		"link-greeting":   {"hostname"},
		"link-identify":   {"method", "identity"},
		"link-tls":        {"tls-string"},
		"link-auth":       {"result", "username"},
		"link-disconnect": {},
		"tx-reset":        {"message-id"},
		"tx-begin":        {"message-id"},
		"tx-mail":         {"message-id", "result", "address"},
		"tx-rcpt":         {"message-id", "result", "address"},
		"tx-envelope":     {"message-id", "envelope-id"},
		"tx-data":         {"message-id", "result"},
		"tx-commit":       {"message-id", "message-size"},
		"tx-rollback":     {"message-id"},
		"protocol-client": {"command"},
		"protocol-server": {"response"},
		"filter-response": {"phase", "response", "param"},
		"timeout":         {},
	}
	requests = map[string][]string{
		// The library expected fcrdns, src and dest behind rdns; smtpd sends
		// the address there.
		"connect":   {"rdns", "fcrdns"},
		"helo":      {"identity"},
		"ehlo":      {"identity"},
		"starttls":  {"tls-string"},
		"mail-from": {"address"},
		"rcpt-to":   {"address"},
		"data":      {},
		"rset":      {},
		"quit":      {},
		"noop":      {},
		"commit":    {},
	}
)

// outcomes are the results of link-auth. The library named its fields by their
// place in version 0.6, where the user came first; in what 0.7 says, the result
// may stand in "username".
var outcomes = map[string]bool{"pass": true, "fail": true, "error": true}

// maxField is the longest field in bytes; smtpd takes commands of 2,047.
const maxField = 8 << 10

var (
	errNoSession = errors.New("neither a session's state nor its events: not a file of the filter?")
	errNoID      = errors.New("the session has no id of up to 16 hexadecimal digits")
	errNoConnect = errors.New("it is not known who connected, and when")
)

// decode makes the lines of the session that a text tells of. Its values are
// those that Parse returned; lines is a buffer to append to.
func decode(values []Value, lines []byte) (Session, error) {
	var state *Value
	var events []Value
	for i := range values {
		v := &values[i]
		switch {
		case v.Kind == Hash && v.Get("session") != nil:
			state = v
			if l := v.Get("events"); l != nil && l.Kind == Array && len(l.Elems) > len(events) {
				events = l.Elems
			}
		case v.Kind == Array && len(v.Elems) > len(events):
			events = v.Elems
		}
	}
	id := state
	if id == nil && len(events) > 0 {
		id = &events[0]
	}
	if id == nil {
		return Session{}, errNoSession
	}
	b := builder{}
	b.s.lines = lines
	var err error
	text := field(id, "session")
	if b.s.ID, err = strconv.ParseUint(string(text), 16, 64); err != nil || len(text) > 16 {
		return Session{}, errNoID
	}
	for i := range events {
		e := &events[i]
		if i == 0 && !bytes.Equal(field(e, "event"), []byte("link-connect")) && state != nil {
			b.add(e, state, "report", "link-connect") // the list lacks it, the state does not
		}
		b.event(e)
	}
	if b.s.Events == 0 && state != nil {
		b.state(state)
	}
	if !b.connected {
		return Session{}, errNoConnect
	}
	return b.s, nil
}

type builder struct {
	s         Session
	secrets   censor
	connected bool
}

// event adds a line for an element of the list of events.
func (b *builder) event(e *Value) {
	stream := string(field(e, "request"))
	key := "event"
	if stream == "filter" {
		key = "phase"
	}
	id, err := strconv.ParseUint(string(field(e, "session")), 16, 64)
	if err != nil || id != b.s.ID || !b.add(e, e, stream, string(field(e, key))) {
		b.s.Omitted++
	}
}

// state adds what is sure if only the state is known: it was written when the
// client's greeting, the last command, was put to the filter. smtpd's replies
// are left out, because when they were sent is not known, and the time that a
// client took tells something about it.
func (b *builder) state(state *Value) {
	b.s.StateOnly = true
	b.add(state, state, "report", "link-connect")
	for _, e := range [...]struct{ key, event string }{
		{"hostname", "link-greeting"},
		{"identity", "link-identify"}, // of the greeting before, say before STARTTLS
		{"tls-string", "link-tls"},
		{"username", "link-auth"},
	} {
		if state.Get(e.key) != nil && !b.add(state, state, "report", e.event) {
			b.s.Omitted++
		}
	}
	if !b.add(state, state, "report", "protocol-client") {
		b.s.Omitted++
		return
	}
	verb, name := cutWord(field(state, "command"))
	for _, phase := range [...]string{"helo", "ehlo"} {
		if string(bytes.ToLower(verb[:min(len(verb), 8)])) == phase {
			asked := Value{Kind: Hash, Keys: [][]byte{[]byte("identity")}, Elems: []Value{{Kind: Scalar, Text: name}}}
			if !b.add(state, &asked, "filter", phase) {
				b.s.Omitted++
			}
		}
	}
}

// add adds the line of an event whose header stands in head and whose fields
// stand in v. It returns false if it cannot be a line of smtpd.
func (b *builder) add(head, v *Value, stream, name string) bool {
	fields, known := reports[name]
	if stream == "filter" {
		fields, known = requests[name]
	} else if stream != "report" {
		return false
	}
	stamp, subsystem := field(head, "timestamp"), field(head, "subsystem")
	at, ok := parseStamp(stamp)
	if !known || !ok || string(subsystem) != "smtp-in" {
		return false
	}
	line := fmt.Appendf(b.s.lines, "%s|0.7|%s|smtp-in|%s|%016x", stream, stamp, name, b.s.ID)
	if stream == "filter" {
		token, _ := strconv.ParseUint(string(field(head, "opaque-token")), 16, 64)
		line = fmt.Appendf(line, "|%016x", token)
		if len(fields) == 0 {
			line = append(line, '|') // as smtpd does
		}
	}
	for i, key := range fields {
		text, last := b.text(v, name, key), i == len(fields)-1
		if last && name == "filter-response" && len(text) == 0 {
			break // most decisions have no parameter
		}
		// The library split lines with a function that makes nothing of an
		// empty text: an empty line of a client is undef.
		if e := v.Get(key); text == nil && (!last || e == nil || e.Kind != Undef) {
			return false
		}
		if len(text) > maxField || bytes.IndexByte(text, '\n') >= 0 || !last && bytes.IndexByte(text, '|') >= 0 {
			return false
		}
		line = append(append(line, '|'), text...)
	}
	if name == "link-connect" {
		if b.connected {
			return false
		}
		b.connected = true
		b.s.Start, b.s.End = at, at
		if src, err := netip.ParseAddrPort(string(field(v, "src"))); err == nil {
			b.s.Src = netip.AddrPortFrom(src.Addr().Unmap().WithZone(""), src.Port())
		}
	} else if !b.connected {
		return false
	}
	b.s.lines = append(line, '\n')
	b.s.Events++
	b.s.Ended = b.s.Ended || name == "link-disconnect"
	if at.After(b.s.End) {
		b.s.End = at
	}
	return true
}

// text returns the field of an event with the given name, without passwords,
// or nil if there is none.
func (b *builder) text(v *Value, event, key string) []byte {
	text := field(v, key)
	switch {
	case text == nil:
	case event == "protocol-client":
		return b.secrets.client(text)
	case event == "protocol-server":
		return b.secrets.server(text)
	case key == "param" && string(field(v, "phase")) == "auth":
		return nil // a filter's words about a password
	case event == "link-auth":
		return login(v, key)
	}
	return text
}

// login returns the result or the user of a link-auth, or nil if they cannot
// be told apart. Users choose their names: one may be called pass, or a|fail.
func login(v *Value, key string) []byte {
	result, user := field(v, "result"), field(v, "username")
	if before07(field(v, "version")) {
		// user|result, divided at the first |; the result is behind the last.
		whole := bytes.Join([][]byte{user, result}, []byte{'|'})
		i := bytes.LastIndexByte(whole, '|')
		user, result = whole[:i], whole[i+1:]
	} else if outcomes[string(user)] {
		if outcomes[string(result)] && !bytes.Equal(result, user) {
			return nil
		}
		user, result = result, user
	}
	if key == "username" {
		return user
	}
	if !outcomes[string(result)] {
		return nil
	}
	return result
}

// before07 tells whether a protocol version is older than 0.7.
func before07(version []byte) bool {
	minor, ok := bytes.CutPrefix(version, []byte("0."))
	n, err := strconv.ParseUint(string(minor), 10, 16)
	return ok && err == nil && n < 7
}

// field returns the bytes of a Scalar in a Hash, or nil; the empty string is
// not nil.
func field(v *Value, key string) []byte {
	e := v.Get(key)
	if e == nil || e.Kind != Scalar {
		return nil
	}
	if e.Text == nil {
		return []byte{}
	}
	return e.Text
}

// parseStamp reads smtpd's SECONDS.MICROSECONDS.
func parseStamp(b []byte) (time.Time, bool) {
	secs, micros, ok := bytes.Cut(b, []byte{'.'})
	if !ok || len(secs) > 11 || len(micros) != 6 {
		return time.Time{}, false
	}
	s, err1 := strconv.ParseUint(string(secs), 10, 63)
	u, err2 := strconv.ParseUint(string(micros), 10, 63)
	return time.UnixMicro(int64(s*1e6 + u)).UTC(), err1 == nil && err2 == nil
}
