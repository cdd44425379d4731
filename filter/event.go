package filter

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// Version is a version of the protocol, as it stands in each line.
type Version struct{ Major, Minor int }

// Newest is the newest version of the protocol that is known here. Minor
// versions above it are taken to be like it.
var Newest = Version{0, 7}

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// Before tells whether v is older than major.minor.
func (v Version) Before(major, minor int) bool {
	return v.Major < major || v.Major == major && v.Minor < minor
}

// ID tells what an Event is: a report of something that happened, or a
// request in a phase, which wants an answer.
type ID uint8

// The reports of smtpd-filters(7), then the phases in which a filter is asked.
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

// spec describes one kind of event. Registration, parsing and the tests take
// what they know of the protocol from here.
type spec struct {
	name    string
	fields  []string // in the order of Newest; the last one keeps its |
	quirk   func(Version, *Event)
	request bool

	// What may be answered in this phase, besides proceed.
	junk, refuse bool
}

// addressFirst: tx-mail and tx-rcpt put the result last before 0.6.
func addressFirst(v Version, ev *Event) {
	if v.Before(0, 6) {
		ev.swapLast(1)
	}
}

// userFirst: link-auth put the result last before 0.7, behind a user name
// that may hold any number of |.
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

// reportIDs and requestIDs find the spec of a name.
var reportIDs, requestIDs = idsByName(false), idsByName(true)

// byLength holds specs by the lengths of their names, of which at most four are
// the same: half the time of a map for what every line asks.
type byLength [len("filter-response") + 1][]ID

func idsByName(request bool) (m byLength) {
	for id, s := range specs {
		if s.name != "" && s.request == request {
			m[len(s.name)] = append(m[len(s.name)], ID(id))
		}
	}
	return m
}

func (m *byLength) find(name []byte) ID {
	if len(name) < len(m) {
		for _, id := range m[len(name)] {
			if specs[id].name == string(name) {
				return id
			}
		}
	}
	return Unknown
}

func (id ID) String() string {
	if id < numIDs && specs[id].name != "" {
		return specs[id].name
	}
	return "unknown"
}

// IsPhase tells whether id is a phase, that is, wants an answer.
func (id ID) IsPhase() bool { return id < numIDs && specs[id].request }

// maxFields is the largest number of fields an event has behind its session
// (and token).
const maxFields = 4

// An Event is one line of smtpd: a report or a request. Its fields alias the
// input buffer and are valid only until the Handler returns.
type Event struct {
	ID      ID
	Out     bool // from smtpd's client side (smtp-out)
	Version Version
	Time    int64 // microseconds since 1970, when smtpd wrote the line
	Session uint64
	Token   uint64 // requests only

	request bool
	fields  [maxFields][]byte
	n       int
	name    []byte // as smtpd wrote it
}

// Field returns the field with the given number in the order of the newest
// protocol version, or nil if the line has none.
func (ev *Event) Field(i int) []byte {
	if i < ev.n {
		return ev.fields[i]
	}
	return nil
}

// Make makes ev the event that a line of the newest protocol version tells of,
// for those who have events without lines. Fields are in the order of Field;
// what there are too many of is left out. Time is in microseconds since 1970.
func (ev *Event) Make(id ID, time int64, session uint64, fields ...[]byte) {
	*ev = Event{ID: id, Version: Newest, Time: time, Session: session, request: id.IsPhase()}
	ev.n = copy(ev.fields[:], fields)
}

// swapLast swaps field i with what follows it. The second value is divided
// from the first at the last |, because it is a word and the first is not.
func (ev *Event) swapLast(i int) {
	if ev.n != i+2 {
		return
	}
	// The split at the first | may have cut inside the first value.
	first, last := ev.fields[i], ev.fields[i+1]
	if j := bytes.LastIndexByte(last, '|'); j >= 0 {
		whole := first[:len(first)+1+len(last)] // both are parts of one line
		first, last = whole[:len(first)+1+j], last[j+1:]
	}
	ev.fields[i], ev.fields[i+1] = last, first
}

var (
	wordReport = []byte("report|")
	wordFilter = []byte("filter|")
	wordConfig = []byte("config|")
	wordSMTPIn = []byte("smtp-in|")
)

// parse decodes a report or filter line into ev. It never panics. An event of
// an unknown name gets the ID Unknown, and if it is a request, token and
// session are there so that it can be answered.
func (ev *Event) parse(line []byte) error {
	*ev = Event{}
	ids := &reportIDs
	rest, ok := bytes.CutPrefix(line, wordReport)
	if !ok {
		if rest, ev.request = bytes.CutPrefix(line, wordFilter); !ev.request {
			return errWord
		}
		ids = &requestIDs
	}
	ev.Version, rest = takeVersion(rest)
	ev.Time, rest = takeStamp(rest)
	if rest, ok = bytes.CutPrefix(rest, wordSMTPIn); !ok {
		var direction []byte
		direction, rest, _ = cut(rest)
		ev.Out = string(direction) == "smtp-out"
	}
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
	ev.ID = ids.find(name)
	ev.name = name
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

// cut cuts b at the first |.
func cut(b []byte) (before, after []byte, found bool) {
	if i := bytes.IndexByte(b, '|'); i >= 0 {
		return b[:i], b[i+1:], true
	}
	return b, nil, false
}

type parseError string

func (e parseError) Error() string { return string(e) }

const (
	errWord    parseError = "neither report nor filter"
	errShort   parseError = "too few fields"
	errSession parseError = "session id is not hexadecimal"
	errToken   parseError = "token is not hexadecimal"
)

// takeHex takes the first field, of up to 16 hexadecimal digits. More says that
// there is another one behind it.
func takeHex(b []byte) (v uint64, rest []byte, more, ok bool) {
	if len(b) > 16 && b[16] == '|' { // as smtpd writes them
		x, ok1 := eightHex(binary.BigEndian.Uint64(b))
		y, ok2 := eightHex(binary.BigEndian.Uint64(b[8:]))
		if ok1 && ok2 {
			return x<<32 | y, b[17:], true, true
		}
	}
	n, wrong := 0, int8(0)
	for n < len(b) && b[n] != '|' {
		d := hexDigits[b[n]]
		wrong |= d
		v = v<<4 | uint64(d&15)
		n++
	}
	ok = n > 0 && n <= 16 && wrong >= 0
	if n < len(b) {
		return v, b[n+1:], true, ok
	}
	return v, nil, false, ok
}

// eightHex reads eight hexadecimal digits at once, of which the highest byte of x
// holds the first. Small letters have bit 6 set, which digits have not.
func eightHex(x uint64) (v uint64, ok bool) {
	const high, ones = 0xf0f0f0f0f0f0f0f0, 0x0101010101010101
	letter := x >> 6 & ones
	v = x&^high + 9*letter
	ok = x&high == (ones+letter)*0x30 && v&high == 0 && (v+6*ones)>>4&ones == letter
	v = (v | v>>4) & 0x00ff00ff00ff00ff
	v = (v | v>>8) & 0x0000ffff0000ffff
	return (v | v>>16) & 0xffffffff, ok
}

// hexDigits holds the value of each hexadecimal digit, and -1 elsewhere.
var hexDigits = func() (t [256]int8) {
	for c := range t {
		t[c] = int8(strings.IndexByte("0123456789abcdef", byte(c)))
	}
	return t
}()

// takeStamp takes the first field. What is no time counts as 0.
func takeStamp(b []byte) (int64, []byte) {
	// Ten digits, a point and six digits, which is so until the year 2286.
	if len(b) > 17 && b[10] == '.' && b[17] == '|' && isDigit(b[8]) && isDigit(b[9]) {
		s, ok1 := eightDigits(binary.LittleEndian.Uint64(b))
		u, ok2 := eightDigits(binary.LittleEndian.Uint64(b[9:])&^0xffff | '0'<<8 | '0')
		if ok1 && ok2 {
			return (s*100+int64(b[8]-'0')*10+int64(b[9]-'0'))*1e6 + u, b[18:]
		}
	}
	field, rest, _ := cut(b)
	v, _ := parseStamp(field)
	return v, rest
}

// eightDigits reads eight digits at once, of which the lowest byte of x holds the
// first: pairs of neighbours are put together in all of x, three times.
func eightDigits(x uint64) (v int64, ok bool) {
	const high, low = 0xf0f0f0f0f0f0f0f0, 0x0f0f0f0f0f0f0f0f
	if x&high != 0x3030303030303030 || (x&low+0x0606060606060606)&high != 0 {
		return 0, false
	}
	x &= low
	x = x * (10<<8 + 1) >> 8 & 0x00ff00ff00ff00ff
	x = x * (100<<16 + 1) >> 16 & 0x0000ffff0000ffff
	return int64(x * (10000<<32 + 1) >> 32), true
}

// parseStamp reads SECONDS.MICROSECONDS, always six digits behind the point.
func parseStamp(b []byte) (int64, bool) {
	i := bytes.IndexByte(b, '.')
	if i < 0 {
		return 0, false
	}
	s, ok1 := parseDigits(b[:i], 12)
	u, ok2 := parseDigits(b[i+1:], 6)
	return s*1e6 + u, ok1 && ok2
}

func parseDigits(b []byte, most int) (int64, bool) {
	if len(b) == 0 || len(b) > most {
		return 0, false
	}
	var v int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		v = v*10 + int64(c-'0')
	}
	return v, true
}

// takeVersion takes the first field. What is no version counts as the newest.
func takeVersion(b []byte) (Version, []byte) {
	if len(b) > 3 && b[3] == '|' && isDigit(b[0]) && b[1] == '.' && isDigit(b[2]) {
		return Version{int(b[0] - '0'), int(b[2] - '0')}, b[4:]
	}
	field, rest, _ := cut(b)
	v, ok := parseVersion(field)
	if !ok {
		v = Newest
	}
	return v, rest
}

// parseVersion reads MAJOR.MINOR as two numbers: 0.10 is newer than 0.7.
func parseVersion(b []byte) (Version, bool) {
	i := bytes.IndexByte(b, '.')
	if i < 0 {
		return Version{}, false
	}
	x, ok1 := parseDigits(b[:i], 4)
	y, ok2 := parseDigits(b[i+1:], 4)
	return Version{int(x), int(y)}, ok1 && ok2
}

// String is for logs and tests; it quotes everything.
func (ev *Event) String() string {
	b := fmt.Appendf(nil, "%v %016x", ev.ID, ev.Session)
	for i := range ev.n {
		b = append(append(b, ' '), specs[ev.ID].fields[i]...)
		b = strconv.AppendQuoteToASCII(append(b, '='), string(ev.fields[i]))
	}
	return string(b)
}
