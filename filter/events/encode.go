package events

import (
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"
)

// maxValue is how many bytes of a value are kept, before it is escaped.
const maxValue = 256

// An Event is one thing that a program outside may want to hear of at once.
// What is empty is left out of its line, and what is longer than 256 bytes is
// cut. Keys keep the order of the fields.
type Event struct {
	Event   string     // finding, verdict, tag, ban, unban
	Time    time.Time  // zero: when it is sent
	Session uint64     // 0 if it is about none, as a ban by the operator
	Src     netip.Addr // invalid: of a session it is "local", else it is left out

	Evidence   string
	Confidence string
	Org        string
	By         string // who says so: a list, a pattern, a behaviour
	Match      string // the row of a list that matched
	Proof      string

	RDNS   []byte // from the network, as the two below
	FCrDNS string // pass, fail, error
	Helo   []byte

	Rule     string
	Phase    string
	Decision string
	Would    string // the decision that is only observed, not carried out
	Tag      string
	Until    time.Time // end of the ban
	Prefix   string
	Reason   string
}

// appendEvent appends the line of e, newline included.
func appendEvent(dst []byte, e *Event) []byte {
	dst = append(dst, `{"event":`...)
	dst = appendString(dst, e.Event)
	dst = append(dst, `,"time":`...)
	dst = appendTime(dst, e.Time)
	if e.Session != 0 {
		dst = append(dst, `,"session":"`...)
		dst = appendSession(dst, e.Session)
		dst = append(dst, '"')
	}
	switch {
	case e.Src.IsValid():
		dst = append(dst, `,"src":`...)
		dst = appendAddr(dst, e.Src)
	case e.Session != 0:
		dst = append(dst, `,"src":"local"`...)
	}
	dst = appendField(dst, "evidence", e.Evidence)
	dst = appendField(dst, "confidence", e.Confidence)
	dst = appendField(dst, "org", e.Org)
	dst = appendField(dst, "by", e.By)
	dst = appendField(dst, "match", e.Match)
	dst = appendField(dst, "proof", e.Proof)
	dst = appendField(dst, "rdns", e.RDNS)
	dst = appendField(dst, "fcrdns", e.FCrDNS)
	dst = appendField(dst, "helo", e.Helo)
	dst = appendField(dst, "rule", e.Rule)
	dst = appendField(dst, "phase", e.Phase)
	dst = appendField(dst, "decision", e.Decision)
	dst = appendField(dst, "would", e.Would)
	dst = appendField(dst, "tag", e.Tag)
	if !e.Until.IsZero() {
		dst = append(dst, `,"until":`...)
		dst = appendTime(dst, e.Until)
	}
	dst = appendField(dst, "prefix", e.Prefix)
	dst = appendField(dst, "reason", e.Reason)
	return append(dst, "}\n"...)
}

// appendLeftOut appends the line that tells of events without a line.
func appendLeftOut(dst []byte, at time.Time, l LeftOut) []byte {
	dst = append(dst, `{"event":"left-out","time":`...)
	dst = appendTime(dst, at)
	dst = append(dst, `,"count":`...)
	dst = strconv.AppendUint(dst, l.total(), 10)
	dst = append(dst, `,"reasons":{`...)
	separator := ""
	for _, r := range [...]struct {
		name  string
		count uint64
	}{
		{"rate", l.Rate},
		{"full", l.Full},
		{"gone", l.Gone},
	} {
		if r.count == 0 {
			continue
		}
		dst = append(dst, separator...)
		dst = append(dst, '"')
		dst = append(dst, r.name...)
		dst = append(dst, `":`...)
		dst = strconv.AppendUint(dst, r.count, 10)
		separator = ","
	}
	return append(dst, "}}\n"...)
}

func appendField[T string | []byte](dst []byte, key string, value T) []byte {
	if len(value) == 0 {
		return dst
	}
	dst = append(dst, `,"`...)
	dst = append(dst, key...)
	dst = append(dst, `":`...)
	return appendString(dst, value)
}

func appendString[T string | []byte](dst []byte, value T) []byte {
	dst = append(dst, '"')
	dst = appendEscaped(dst, value)
	return append(dst, '"')
}

// appendEscaped appends the inside of a JSON string (RFC 8259 section 7). All
// but printable ASCII is escaped: no terminal, no log viewer and no parser is
// then led astray by control characters, marks of direction or line separators,
// which JSON itself allows.
func appendEscaped[T string | []byte](dst []byte, value T) []byte {
	for i := 0; i < min(len(value), maxValue); {
		c := value[i]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
			i++
		case ' ' <= c && c <= '~':
			dst = append(dst, c)
			i++
		case c < utf8.RuneSelf:
			dst = appendUnit(dst, rune(c))
			i++
		default:
			// A string this short stays on the stack.
			r, n := utf8.DecodeRuneInString(string(value[i:min(i+utf8.UTFMax, len(value))]))
			if i+n > maxValue {
				return dst // a character is kept whole or not at all
			}
			if r > 0xffff {
				r -= 0x10000
				dst = appendUnit(dst, 0xd800|r>>10)
				dst = appendUnit(dst, 0xdc00|r&0x3ff)
			} else {
				dst = appendUnit(dst, r)
			}
			i += n
		}
	}
	return dst
}

const hexDigits = "0123456789abcdef"

func appendUnit(dst []byte, u rune) []byte {
	return append(dst, '\\', 'u', hexDigits[u>>12&0xf], hexDigits[u>>8&0xf], hexDigits[u>>4&0xf], hexDigits[u&0xf])
}

func appendSession(dst []byte, id uint64) []byte {
	for shift := 60; shift >= 0; shift -= 4 {
		dst = append(dst, hexDigits[id>>shift&0xf])
	}
	return dst
}

func appendAddr(dst []byte, a netip.Addr) []byte {
	a = a.Unmap()
	dst = append(dst, '"')
	dst = a.WithZone("").AppendTo(dst)
	if zone := a.Zone(); zone != "" {
		// netip takes any text for a zone.
		dst = append(dst, '%')
		dst = appendEscaped(dst, zone)
	}
	return append(dst, '"')
}

// The years that RFC 3339 can write.
var (
	firstTime = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC)
	lastTime  = time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC)
)

func appendTime(dst []byte, t time.Time) []byte {
	t = t.UTC()
	if t.Before(firstTime) {
		t = firstTime
	} else if t.After(lastTime) {
		t = lastTime
	}
	dst = append(dst, '"')
	dst = t.AppendFormat(dst, "2006-01-02T15:04:05.000000Z")
	return append(dst, '"')
}
