package rules

import (
	"fmt"
	"strings"
)

// reference stands in a reply text for the session id.
const reference = "$session"

// Reply returns text with the reference that a refused sender can quote: the
// session id, put in the place of `$session`, or in brackets at the end. An
// empty text stays empty.
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
