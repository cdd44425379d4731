package journal

import (
	"bytes"

	"scanwatch/filter/privacy"
)

// A hider hashes mailboxes and possible passwords in records. Each method has its own
// buffer, because a step may need the results of several methods. A result is valid
// until the next call to the same method.
type hider struct {
	hasher *privacy.Hasher // nil disables hashing
	all    bool            // hash the local part of every mailbox

	buf [5][]byte
}

// mailbox returns a sender or recipient, hashed as the privacy level requires.
func (h *hider) mailbox(addr []byte) []byte {
	if h.hasher == nil || !h.all || len(addr) == 0 {
		return addr
	}
	h.buf[0] = h.hasher.Mailbox(h.buf[0][:0], addr)
	return h.buf[0]
}

// text returns a name, with mailboxes hashed as the privacy level requires. Some
// clients greet with a mailbox.
func (h *hider) text(b []byte) []byte { return h.mailboxesIn(1, b) }

// line returns a client's redacted line, with mailboxes hashed as the privacy level
// requires.
func (h *hider) line(b []byte) []byte { return h.mailboxesIn(2, b) }

// reply returns a reply's text, with mailboxes hashed as the privacy level requires.
// Servers may repeat mailboxes in replies.
func (h *hider) reply(b []byte) []byte { return h.mailboxesIn(3, b) }

func (h *hider) mailboxesIn(buf int, b []byte) []byte {
	if h.hasher == nil || !h.all || len(b) == 0 {
		return b
	}
	h.buf[buf] = h.hasher.Text(h.buf[buf][:0], b)
	return h.buf[buf]
}

// user returns a user name, hashed as the privacy level requires. A possible password
// is hashed at every privacy level.
func (h *hider) user(name []byte) []byte {
	switch {
	case h.hasher == nil || len(name) == 0:
		return name
	case privacy.LikePassword(name):
		h.buf[4] = h.hasher.Word(h.buf[4][:0], name)
		return h.buf[4]
	case h.all && bytes.IndexByte(name, '@') >= 0:
		h.buf[4] = h.hasher.Mailbox(h.buf[4][:0], name)
		return h.buf[4]
	}
	return name
}
