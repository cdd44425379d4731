package rules

import (
	"fmt"
	"strings"

	"scanwatch/internal/smtp"
)

// reference is the placeholder for the session id in a reply text.
const reference = "$session"

// Temporary returns the text of a permanent reply with a temporary code. The code for
// disconnect is 421, because smtpd closes the connection only after 421.
func Temporary(text string, d smtp.Decision) string {
	if text == "" || text[0] != '5' {
		return text
	}
	code := "450 "
	if d == smtp.Disconnect {
		code = "421 "
	}
	text = text[min(4, len(text)):]
	if strings.HasPrefix(text, "5.") {
		text = "4" + text[1:]
	}
	return code + text
}

// Reply adds the session id to text as a reference that a rejected sender
// can quote. The id replaces `$session` or is appended in brackets. Empty
// text stays empty.
func Reply(text string, session uint64) string {
	id := fmt.Sprintf("%016x", session)
	switch {
	case text == "":
		return ""
	case strings.Contains(text, reference):
		return strings.ReplaceAll(text, reference, id)
	}
	return text + " [" + id + "]"
}
