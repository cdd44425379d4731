package smtpd

import (
	"encoding/binary"
	"encoding/hex"

	"scanwatch/internal/smtp"
)

// Allowed returns d if it is valid in the phase, or else the closest valid decision.
// smtpd exits on an invalid decision.
func Allowed(d smtp.Decision, phase ID) smtp.Decision {
	s := &specs[phase]
	if d == smtp.Junk && !s.junk || d >= smtp.Reject && !s.refuse || d > smtp.Disconnect {
		return smtp.Proceed
	}
	if d == smtp.Reject && phase == PhaseConnect {
		// A rejected client would remain connected without a greeting.
		return smtp.Disconnect
	}
	return d
}

// maxText is the maximum length of a reply text in bytes. RFC 5321 section 4.5.3.1.5
// allows 512. smtpd 6.8 truncates lines of more than 2,047 bytes, and smtpd 7.x exits
// at 16,300 bytes.
const maxText = 500

// maxAnswer is the maximum length of a response in bytes. smtpd's input buffer is 64
// KiB, and a longer line makes its lookup process loop forever.
const maxAnswer = 65535

// appendReply appends the response to the request ev. No other function creates
// responses, so all of them are valid.
func appendReply(dst []byte, ev *Event, r smtp.Answer) []byte {
	first, second := ev.Session, ev.Token
	if ev.Version.Before(0, 5) {
		first, second = second, first
	}
	if ev.ID == PhaseDataLine {
		at := len(dst)
		dst = appendID(appendID(append(dst, "filter-dataline"...), first), second)
		dst = append(append(dst, '|'), ev.Field(0)...)
		dst = dst[:min(len(dst), at+maxAnswer)]
		return append(dst, '\n')
	}
	d := Allowed(r.Decision, ev.ID)
	dst = appendID(appendID(append(dst, "filter-result"...), first), second)
	dst = append(append(dst, '|'), d.String()...)
	if d >= smtp.Reject {
		dst = appendText(append(dst, '|'), r.Text)
	}
	return append(dst, '\n')
}

func appendID(dst []byte, id uint64) []byte {
	return hex.AppendEncode(append(dst, '|'), binary.BigEndian.AppendUint64(make([]byte, 0, 8), id))
}

// appendText appends text in the only format that smtpd accepts, a single line `[45]dd
// text`. smtpd would replace anything else with "421 Internal server error".
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
