package smtpd

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// Version is a version of the filter protocol. Every line from smtpd contains the version.
type Version struct{ Major, Minor int }

// Newest is the newest version that this package supports. Lines with a later minor version are
// parsed as if they had the newest version.
var Newest = Version{0, 7}

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// Before reports whether v is older than major.minor.
func (v Version) Before(major, minor int) bool {
	return v.Major < major || v.Major == major && v.Minor < minor
}

// ID is the type of an Event. An event is either a report, or a request in a phase. A request must
// be answered.
type ID uint8

// The IDs are the reports in smtpd-filters(7), followed by the phases of requests.
const (
	Unknown ID = iota
	LinkConnect
	LinkGreeting
	LinkIdentify
	LinkTLS
	LinkAuth
	LinkDisconnect
	TxReset
	TxBegin
	TxMail
	TxRcpt
	TxEnvelope
	TxData
	TxCommit
	TxRollback
	ProtocolClient
	ProtocolServer
	FilterReport
	FilterResponse
	Timeout

	PhaseConnect
	PhaseHelo
	PhaseEhlo
	PhaseStartTLS
	PhaseAuth
	PhaseMailFrom
	PhaseRcptTo
	PhaseData
	PhaseDataLine
	PhaseRset
	PhaseQuit
	PhaseNoop
	PhaseCommit

	numIDs
)

// A spec describes a type of event for registration, parsing and tests.
type spec struct {
	name    string
	fields  []string // names of the fields in the order of Newest; only the last field may contain |
	quirk   func(Version, *Event)
	request bool

	// junk reports whether smtpd accepts the decision junk in the phase. refuse reports whether it
	// accepts reject and disconnect.
	junk, refuse bool
}

// addressFirst swaps the fields of tx-mail and tx-rcpt in lines of versions before 0.6, in which
// the result is last.
func addressFirst(v Version, ev *Event) {
	if v.Before(0, 6) {
		ev.swapLast(1)
	}
}

// userFirst swaps the fields of link-auth in lines of versions before 0.7. In old lines, the result
// is last, after a user name that may contain |.
func userFirst(v Version, ev *Event) {
	if v.Before(0, 7) {
		ev.swapLast(0)
	}
}

var specs = [numIDs]spec{
	LinkConnect:    {name: "link-connect", fields: []string{"rdns", "fcrdns", "src", "dest"}},
	LinkGreeting:   {name: "link-greeting", fields: []string{"hostname"}},
	LinkIdentify:   {name: "link-identify", fields: []string{"method", "identity"}},
	LinkTLS:        {name: "link-tls", fields: []string{"tls"}},
	LinkAuth:       {name: "link-auth", fields: []string{"result", "user"}, quirk: userFirst},
	LinkDisconnect: {name: "link-disconnect"},
	TxReset:        {name: "tx-reset", fields: []string{"msgid"}},
	TxBegin:        {name: "tx-begin", fields: []string{"msgid"}},
	TxMail:         {name: "tx-mail", fields: []string{"msgid", "result", "address"}, quirk: addressFirst},
	TxRcpt:         {name: "tx-rcpt", fields: []string{"msgid", "result", "address"}, quirk: addressFirst},
	TxEnvelope:     {name: "tx-envelope", fields: []string{"msgid", "evpid"}},
	TxData:         {name: "tx-data", fields: []string{"msgid", "result"}},
	TxCommit:       {name: "tx-commit", fields: []string{"msgid", "size"}},
	TxRollback:     {name: "tx-rollback", fields: []string{"msgid"}},
	ProtocolClient: {name: "protocol-client", fields: []string{"line"}},
	ProtocolServer: {name: "protocol-server", fields: []string{"line"}},
	FilterReport:   {name: "filter-report", fields: []string{"kind", "name", "text"}},
	FilterResponse: {name: "filter-response", fields: []string{"phase", "decision", "param"}},
	Timeout:        {name: "timeout"},

	PhaseConnect:  {name: "connect", fields: []string{"rdns", "src"}, request: true, junk: true, refuse: true},
	PhaseHelo:     {name: "helo", fields: []string{"identity"}, request: true, junk: true, refuse: true},
	PhaseEhlo:     {name: "ehlo", fields: []string{"identity"}, request: true, junk: true, refuse: true},
	PhaseStartTLS: {name: "starttls", fields: []string{""}, request: true, refuse: true},
	PhaseAuth:     {name: "auth", fields: []string{"args"}, request: true, refuse: true},
	PhaseMailFrom: {name: "mail-from", fields: []string{"args"}, request: true, junk: true, refuse: true},
	PhaseRcptTo:   {name: "rcpt-to", fields: []string{"args"}, request: true, junk: true, refuse: true},
	PhaseData:     {name: "data", fields: []string{""}, request: true, junk: true, refuse: true},
	PhaseDataLine: {name: "data-line", fields: []string{"line"}, request: true},
	PhaseRset:     {name: "rset", fields: []string{""}, request: true, refuse: true},
	PhaseQuit:     {name: "quit", fields: []string{""}, request: true, refuse: true},
	PhaseNoop:     {name: "noop", fields: []string{""}, request: true, refuse: true},
	PhaseCommit:   {name: "commit", fields: []string{""}, request: true, refuse: true},
}

// reportIDs and requestIDs map names to IDs.
var reportIDs, requestIDs = idsByName(false), idsByName(true)

func idsByName(request bool) map[string]ID {
	m := make(map[string]ID)
	for id, s := range specs {
		if s.name != "" && s.request == request {
			m[s.name] = ID(id)
		}
	}
	return m
}

func (id ID) String() string {
	if id < numIDs && specs[id].name != "" {
		return specs[id].name
	}
	return "unknown"
}

// IsPhase reports whether id is a phase. An event whose ID is a phase is a request and must be
// answered.
func (id ID) IsPhase() bool { return id < numIDs && specs[id].request }

// maxFields is the maximum number of fields after the session and token.
const maxFields = 4

// An Event is a line from smtpd, which is a report or a request. The fields of an Event are slices
// of the input buffer. The fields are valid only until the Handler returns.
type Event struct {
	ID      ID
	Out     bool // smtpd is the client in this connection (smtp-out)
	Version Version
	Time    int64 // time in microseconds since 1970, as set by smtpd
	Session uint64
	Token   uint64 // set only in requests
	Waited  bool   // the answer must not have a Wait

	request bool
	fields  [maxFields][]byte
	n       int
	name    []byte // name of the event as it appears in the line
}

// Field returns field i in the order of the newest protocol version, starting at 0. If the line
// lacks the field, Field returns nil.
func (ev *Event) Field(i int) []byte {
	if i < ev.n {
		return ev.fields[i]
	}
	return nil
}

// Make sets ev to an event of the newest protocol version. Make is for callers that have no lines
// from smtpd. Fields must be in the same order as for Field. If there are too many fields, the last
// ones are ignored. time is in microseconds since 1970.
func (ev *Event) Make(id ID, time int64, session uint64, fields ...[]byte) {
	*ev = Event{ID: id, Version: Newest, Time: time, Session: session, request: id.IsPhase()}
	ev.n = copy(ev.fields[:], fields)
}

// swapLast swaps field i and the next field, which is the last. Only the value that comes first in
// the line may contain |, so the last | separates the two values.
func (ev *Event) swapLast(i int) {
	if ev.n != i+2 {
		return
	}
	// parse has split the fields at the first |, but this may be part of the first value.
	first, last := ev.fields[i], ev.fields[i+1]
	if j := bytes.LastIndexByte(last, '|'); j >= 0 {
		whole := first[:len(first)+1+len(last)] // the two fields are adjacent in the line
		first, last = whole[:len(first)+1+j], last[j+1:]
	}
	ev.fields[i], ev.fields[i+1] = last, first
}

// parse decodes a report or request into ev. parse never panics. If the event is unknown, ev.ID is
// Unknown. For an unknown request, parse nevertheless sets the session and token, because the
// response needs them.
func (ev *Event) parse(line []byte) error {
	*ev = Event{}
	word, rest, _ := cut(line)
	ids := reportIDs
	if string(word) == "filter" {
		ids, ev.request = requestIDs, true
	} else if string(word) != "report" {
		return errWord
	}
	ev.Version, rest = takeVersion(rest)
	ev.Time, rest = takeStamp(rest)
	direction, rest, _ := cut(rest)
	ev.Out = string(direction) == "smtp-out"
	name, rest, ok := cut(rest)
	if !ok {
		return errShort
	}
	more := false
	if ev.Session, rest, more, ok = takeHex(rest); !ok {
		return errSession
	}
	if ev.request {
		if ev.Token, rest, more, ok = takeHex(rest); !ok {
			return errToken
		}
	}
	ev.ID, ev.name = ids[string(name)], name
	s := &specs[ev.ID]
	for more && ev.n < len(s.fields) {
		if ev.n == len(s.fields)-1 {
			ev.fields[ev.n], more = rest, false
		} else {
			ev.fields[ev.n], rest, more = cut(rest)
		}
		ev.n++
	}
	if s.quirk != nil {
		s.quirk(ev.Version, ev)
	}
	return nil
}

// cut splits b at the first |. found is false if there is none.
func cut(b []byte) (before, after []byte, found bool) {
	if i := bytes.IndexByte(b, '|'); i >= 0 {
		return b[:i], b[i+1:], true
	}
	return b, nil, false
}

var (
	errWord    = errors.New("neither a report nor a filter line")
	errShort   = errors.New("too few fields")
	errSession = errors.New("session id is not hexadecimal")
	errToken   = errors.New("token is not hexadecimal")
)

// takeHex removes the first field of b, which must consist of 1 to 16 hexadecimal digits. more
// reports whether another field follows.
func takeHex(b []byte) (v uint64, rest []byte, more, ok bool) {
	n, ok := 0, true
	for ; n < len(b) && b[n] != '|'; n++ {
		d := hexDigits[b[n]]
		ok = ok && d > 0
		v = v<<4 | uint64(d-1)&15
	}
	ok = ok && 0 < n && n <= 16
	if n == len(b) {
		return v, nil, false, ok
	}
	return v, b[n+1:], true, ok
}

// parseHex parses a lower-case hexadecimal number with at most the given number of digits.
func parseHex(b []byte, most int) (v uint64, ok bool) {
	for _, c := range b {
		d := hexDigits[c]
		if d == 0 {
			return 0, false
		}
		v = v<<4 | uint64(d-1)
	}
	return v, 0 < len(b) && len(b) <= most
}

// hexDigits maps each lower-case hexadecimal digit to its value plus 1. hexDigits maps all other
// bytes to 0.
var hexDigits = func() (t [256]uint8) {
	for i, c := range []byte("0123456789abcdef") {
		t[c] = uint8(i) + 1
	}
	return t
}()

// takeStamp removes the first field of b, which is a time. If the time is invalid, takeStamp
// returns 0.
func takeStamp(b []byte) (int64, []byte) {
	if len(b) > 17 && b[10] == '.' && b[17] == '|' { // this is the usual form until the year 2286
		seconds, ok1 := parseDigits(b[:10], 10)
		micros, ok2 := parseDigits(b[11:17], 6)
		if ok1 && ok2 {
			return seconds*1e6 + micros, b[18:]
		}
	}
	field, rest, _ := cut(b)
	v, _ := parseStamp(field)
	return v, rest
}

// parseStamp parses SECONDS.MICROSECONDS and returns microseconds. The fraction always has six
// digits.
func parseStamp(b []byte) (int64, bool) {
	before, after, _ := bytes.Cut(b, []byte{'.'})
	s, ok1 := parseDigits(before, 12)
	u, ok2 := parseDigits(after, 6)
	return s*1e6 + u, ok1 && ok2
}

// parseDigits parses a decimal number with at most the given number of digits.
func parseDigits(b []byte, most int) (v int64, ok bool) {
	if len(b) == 0 || len(b) > most {
		return 0, false
	}
	for _, c := range b {
		if !isDigit(c) {
			return 0, false
		}
		v = v*10 + int64(c-'0')
	}
	return v, true
}

// takeVersion removes the first field of b, which is a version. If the version is invalid,
// takeVersion returns Newest.
func takeVersion(b []byte) (Version, []byte) {
	if len(b) > 3 && b[3] == '|' && isDigit(b[0]) && b[1] == '.' && isDigit(b[2]) { // all existing versions have this form
		return Version{int(b[0] - '0'), int(b[2] - '0')}, b[4:]
	}
	field, rest, _ := cut(b)
	v, ok := parseVersion(field)
	if !ok {
		v = Newest
	}
	return v, rest
}

// parseVersion parses MAJOR.MINOR. MAJOR and MINOR are numbers, so 0.10 is newer than 0.7.
func parseVersion(b []byte) (Version, bool) {
	before, after, _ := bytes.Cut(b, []byte{'.'})
	x, ok1 := parseDigits(before, 4)
	y, ok2 := parseDigits(after, 4)
	return Version{int(x), int(y)}, ok1 && ok2
}

// String returns the event in a quoted form for logs and tests.
func (ev *Event) String() string {
	b := fmt.Appendf(nil, "%v %016x", ev.ID, ev.Session)
	for i := range ev.n {
		b = append(append(b, ' '), specs[ev.ID].fields[i]...)
		b = strconv.AppendQuoteToASCII(append(b, '='), string(ev.fields[i]))
	}
	return string(b)
}
