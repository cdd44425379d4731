package smtpd

import (
	"encoding/binary"
	"encoding/hex"

	"scanwatch/internal/smtp"
)

// Allowed returns d, or the closest decision that is valid in the phase. smtpd exits if a decision
// is invalid.
func Allowed(d smtp.Decision, phase ID) smtp.Decision {
	s := &specs[phase]
	if d == smtp.Junk && !s.junk || d >= smtp.Reject && !s.refuse || d > smtp.Disconnect {
		return smtp.Proceed
	}
	if d == smtp.Reject && phase == PhaseConnect {
		// The client would remain connected without a greeting if it were only rejected.
		return smtp.Disconnect
	}
	return d
}

// maxText is the maximum length of the text of a reply in bytes. RFC 5321 section 4.5.3.1.5 allows
// 512. smtpd 6.8 truncates lines longer than 2,047 bytes, and smtpd 7.x exits at 16,300 bytes.
const maxText = 500

// maxAnswer is the maximum length of a response in bytes. The input buffer of smtpd has 64 KiB, and
// a longer line makes its lookup process loop forever.
const maxAnswer = 65535

// appendReply appends the response to the request ev. Only this function creates responses, so all
// of them are valid.
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

// appendText appends the text of a reply. smtpd accepts only a single line of the form `[45]dd
// text`. smtpd replaces any other text with "421 Internal server error".
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
