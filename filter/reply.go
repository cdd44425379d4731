package filter

import (
	"encoding/hex"
	"time"
)

// Decision is a word of smtpd-filters(7) that answers a request.
type Decision uint8

// The decisions. Rewrite and report are left out on purpose: the first is
// not needed here, the second acts as an unchecked rewrite or ends smtpd.
const (
	Proceed Decision = iota
	Junk
	Reject
	Disconnect
)

var decisionNames = [...]string{"proceed", "junk", "reject", "disconnect"}

func (d Decision) String() string {
	if int(d) < len(decisionNames) {
		return decisionNames[d]
	}
	return "unknown"
}

// In returns the decision that smtpd is told instead of d in a phase: what it
// would not survive there becomes the nearest thing that it does.
func (d Decision) In(phase ID) Decision {
	s := &specs[phase]
	if d == Junk && !s.junk || d >= Reject && !s.refuse || d > Disconnect {
		return Proceed
	}
	if d == Reject && phase == PhaseConnect {
		// reject leaves the client connected, without a banner, until it
		// gives up.
		return Disconnect
	}
	return d
}

// A Reply answers a request. The zero Reply lets things proceed.
type Reply struct {
	Decision Decision
	// Text goes to the client with Reject and Disconnect: a reply code that
	// begins with 4 or 5, a blank, and one line of printable ASCII.
	Text string
	// Hold lets the client wait for the answer. It is bounded; see MaxHeld.
	Hold time.Duration
}

// maxText is the longest reply text in bytes. smtpd 6.8 cuts an answer at
// 2,047 bytes; 7.x ends itself at 16,300. RFC 5321 section 4.5.3.1.5 allows 512.
const maxText = 500

// maxAnswer is the longest line that still fits smtpd's input buffer of 64 KiB.
// With a longer one its lookup process spins for ever.
const maxAnswer = 65535

// appendReply appends the answer to the request ev. It is the only place that
// makes answers, and makes only those that smtpd survives.
func appendReply(dst []byte, ev *Event, r Reply) []byte {
	first, second := ev.Session, ev.Token
	if ev.Version.Before(0, 5) {
		first, second = second, first
	}
	if ev.ID == PhaseDataLine {
		at := len(dst)
		dst = appendIDs(append(dst, "filter-dataline"...), first, second)
		dst = append(append(dst, '|'), ev.Field(0)...)
		dst = dst[:min(len(dst), at+maxAnswer)]
		return append(dst, '\n')
	}
	d := r.Decision.In(ev.ID)
	dst = appendIDs(append(dst, "filter-result"...), first, second)
	dst = append(append(dst, '|'), d.String()...)
	if d >= Reject {
		dst = appendText(append(dst, '|'), r.Text)
	}
	return append(dst, '\n')
}

func appendIDs(dst []byte, ids ...uint64) []byte {
	for _, id := range ids {
		var b [8]byte
		for i := range b {
			b[i] = byte(id >> (56 - 8*i))
		}
		dst = hex.AppendEncode(append(dst, '|'), b[:])
	}
	return dst
}

// appendText appends text as smtpd takes it: `[45]dd text`, one line. smtpd
// answers anything else with "421 Internal server error".
func appendText(dst []byte, text string) []byte {
	if !validCode(text) {
		dst = append(dst, "550 "...)
	}
	if text == "" {
		text = "Refused by local policy"
	}
	for i := range min(len(text), maxText) {
		c := text[i]
		if c < ' ' || c > '~' {
			c = '?'
		}
		dst = append(dst, c)
	}
	return dst
}

func validCode(s string) bool {
	return len(s) > 4 && (s[0] == '4' || s[0] == '5') && isDigit(s[1]) && isDigit(s[2]) && s[3] == ' '
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
