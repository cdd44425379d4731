package rules

import (
	"encoding/binary"
	"encoding/hex"
	"strings"
)

// reference stands in a reply text for the session id.
const reference = "$session"

// Reply returns text with the reference that a refused sender can quote: the
// session id, put in the place of `$session`, or in brackets at the end. An
// empty text stays empty.
func Reply(text string, session uint64) string {
	var number [8]byte
	var id [16]byte
	binary.BigEndian.PutUint64(number[:], session)
	hex.Encode(id[:], number[:])
	switch {
	case text == "":
		return ""
	case strings.Contains(text, reference):
		return strings.ReplaceAll(text, reference, string(id[:]))
	}
	return text + " [" + string(id[:]) + "]"
}
