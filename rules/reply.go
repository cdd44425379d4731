package rules

import (
	"fmt"
	"strings"

	"scanwatch/internal/smtp"
)

// reference represents the session id in the text of a reply.
const reference = "$session"

// Temporary returns the text of a reply with a temporary code instead of its permanent code. To
// disconnect a client, the code is 421, because smtpd closes the connection only after 421.
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

// Reply adds the session id to text, so that a rejected sender can refer to it. The id replaces
// `$session`, or follows the text in brackets. If text is empty, Reply returns "".
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
