// Package events sends findings and decisions to watchers on the control socket. Each event is a
// line of JSON.
//
// A line contains only printable ASCII, even if a client has sent other bytes. The line is
// therefore safe to print to a terminal.
package events

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// maxValue is the maximum length of a text in bytes, before escaping.
const maxValue = 256

// dropped is the keyword of the line that reports missed events.
const dropped = "dropped"

// An Event is a finding, a decision or a change to the bans. In JSON, keys appear in the order of
// the fields, and empty fields are omitted. Texts are truncated to 256 bytes.
type Event struct {
	Event   string     // finding, verdict, tag, ban, unban
	Time    time.Time  // if zero, Send sets the current time
	Session uint64     // 0 for an event that belongs to no session, such as a manual ban
	Src     netip.Addr // if invalid, the line contains "local" if there is a session, and no address otherwise

	Evidence   string
	Confidence string
	Org        string
	By         string // source of the finding: a list, a pattern, a behaviour
	Match      string // row of a list that matched
	Proof      string

	RDNS   []byte // RDNS and Helo come from the network
	FCrDNS string // pass, fail, error
	Helo   []byte

	Rule     string
	Phase    string
	Decision string
	Would    string // observed decision
	Tag      string
	Until    time.Time // end of the ban
	Prefix   string
	Listed   bool // the ban depends on the listing in a DNS list
	Reason   string
}

// object is the JSON form of an Event, or of the line with the number of dropped events.
type object struct {
	Event      string `json:"event"`
	Time       stamp  `json:"time"`
	Count      uint64 `json:"count,omitempty"`
	Session    string `json:"session,omitempty"`
	Src        string `json:"src,omitempty"`
	Evidence   string `json:"evidence,omitempty"`
	Confidence string `json:"confidence,omitempty"`
	Org        string `json:"org,omitempty"`
	By         string `json:"by,omitempty"`
	Match      string `json:"match,omitempty"`
	Proof      string `json:"proof,omitempty"`
	RDNS       string `json:"rdns,omitempty"`
	FCrDNS     string `json:"fcrdns,omitempty"`
	Helo       string `json:"helo,omitempty"`
	Rule       string `json:"rule,omitempty"`
	Phase      string `json:"phase,omitempty"`
	Decision   string `json:"decision,omitempty"`
	Would      string `json:"would,omitempty"`
	Tag        string `json:"tag,omitempty"`
	Until      stamp  `json:"until,omitzero"`
	Prefix     string `json:"prefix,omitempty"`
	Listed     bool   `json:"listed,omitempty"`
	Reason     string `json:"reason,omitempty"`
}

// appendEvent appends e as a line with its newline.
func appendEvent(dst []byte, e *Event) []byte {
	o := object{
		Event: e.Event, Time: stamp(e.Time), Evidence: e.Evidence, Confidence: e.Confidence, Org: e.Org, By: e.By, Match: e.Match, Proof: e.Proof,
		RDNS: string(e.RDNS), FCrDNS: e.FCrDNS, Helo: string(e.Helo), Rule: e.Rule, Phase: e.Phase, Decision: e.Decision, Would: e.Would,
		Tag: e.Tag, Until: stamp(e.Until), Prefix: e.Prefix, Listed: e.Listed, Reason: e.Reason,
	}
	if e.Session != 0 {
		o.Session = fmt.Sprintf("%016x", e.Session)
	}
	switch {
	case e.Src.IsValid():
		o.Src = e.Src.Unmap().String()
	case e.Session != 0:
		o.Src = "local"
	}
	return appendObject(dst, &o)
}

// appendDropped appends a line that reports n dropped events.
func appendDropped(dst []byte, at time.Time, n uint64) []byte {
	return appendObject(dst, &object{Event: dropped, Time: stamp(at), Count: n})
}

// A stamp is a time that is always printed with microseconds, so that lines can be sorted by time.
type stamp time.Time

// the first and last time that RFC 3339 can express
var (
	firstTime = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC)
	lastTime  = time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC)
)

func (s stamp) IsZero() bool { return time.Time(s).IsZero() }

// MarshalText implements encoding.TextMarshaler.
func (s stamp) MarshalText() ([]byte, error) {
	t := time.Time(s).UTC()
	if t.Before(firstTime) {
		t = firstTime
	} else if t.After(lastTime) {
		t = lastTime
	}
	return t.AppendFormat(nil, "2006-01-02T15:04:05.000000Z"), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *stamp) UnmarshalText(text []byte) error { return (*time.Time)(s).UnmarshalText(text) }

func appendObject(dst []byte, o *object) []byte {
	for _, s := range []*string{&o.Event, &o.Evidence, &o.Confidence, &o.Org, &o.By, &o.Match, &o.Proof, &o.RDNS, &o.FCrDNS, &o.Helo, &o.Src,
		&o.Rule, &o.Phase, &o.Decision, &o.Would, &o.Tag, &o.Prefix, &o.Reason} {
		*s = truncate(*s)
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(o) // strings, numbers and stamps never cause an error
	return AppendASCII(dst, b.Bytes())
}

// AppendASCII appends JSON and escapes all characters except printable ASCII. JSON itself allows
// DEL, C1 controls and bidirectional marks in strings.
func AppendASCII(dst, text []byte) []byte {
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		switch {
		case r < 0x7f:
			dst = append(dst, text[0])
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			dst = fmt.Appendf(dst, `\u%04x\u%04x`, high, low)
		default:
			dst = fmt.Appendf(dst, `\u%04x`, r)
		}
		text = text[n:]
	}
	return dst
}

// truncate returns at most maxValue bytes of s, without splitting a character.
func truncate(s string) string {
	if len(s) <= maxValue {
		return s
	}
	n := maxValue
	for i := 1; i < utf8.UTFMax; i++ {
		if _, size := utf8.DecodeRuneInString(s[n-i:]); size > i {
			return s[:n-i]
		}
	}
	return s[:n]
}

// Decode parses the line of an event. If the line reports dropped events, n is their number.
// Invalid UTF-8 in the event's texts has been replaced by U+FFFD.
func Decode(line []byte) (e Event, n uint64, err error) {
	var o object
	if err := json.Unmarshal(line, &o); err != nil {
		return e, 0, fmt.Errorf("read event: %w", err)
	}
	e = Event{
		Event: o.Event, Time: time.Time(o.Time), Evidence: o.Evidence, Confidence: o.Confidence, Org: o.Org, By: o.By, Match: o.Match, Proof: o.Proof,
		RDNS: []byte(o.RDNS), FCrDNS: o.FCrDNS, Helo: []byte(o.Helo), Rule: o.Rule, Phase: o.Phase, Decision: o.Decision, Would: o.Would,
		Tag: o.Tag, Until: time.Time(o.Until), Prefix: o.Prefix, Listed: o.Listed, Reason: o.Reason,
	}
	if o.Session != "" {
		if e.Session, err = strconv.ParseUint(o.Session, 16, 64); err != nil {
			return Event{}, 0, fmt.Errorf("read event: session: %w", err)
		}
	}
	if o.Src != "" && o.Src != "local" {
		if e.Src, err = netip.ParseAddr(o.Src); err != nil {
			return Event{}, 0, fmt.Errorf("read event: src: %w", err)
		}
	}
	return e, o.Count, nil
}
