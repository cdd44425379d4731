package journal

import (
	"bytes"

	"scanwatch/filter/privacy"
)

// A hider hashes mailboxes and possible passwords before they are recorded. Each of its methods has
// a separate buffer, because a step may need the results of several methods. A result is valid
// until the same method is called again.
type hider struct {
	hasher *privacy.Hasher // nil disables hashing
	all    bool            // hash the local part of every mailbox

	buf [5][]byte
}

// mailbox returns the address of a sender or recipient. The address is hashed if the privacy level
// requires it.
func (h *hider) mailbox(addr []byte) []byte {
	if h.hasher == nil || !h.all || len(addr) == 0 {
		return addr
	}
	h.buf[0] = h.hasher.Mailbox(h.buf[0][:0], addr)
	return h.buf[0]
}

// text returns a name. Mailboxes in the name are hashed if the privacy level requires this, because
// some clients greet with a mailbox.
func (h *hider) text(b []byte) []byte { return h.mailboxesIn(1, b) }

// line returns a client's redacted line. Mailboxes in the line are hashed if the privacy level
// requires this.
func (h *hider) line(b []byte) []byte { return h.mailboxesIn(2, b) }

// reply returns the text of a reply. Servers may repeat mailboxes in replies, so the mailboxes are
// hashed if the privacy level requires this.
func (h *hider) reply(b []byte) []byte { return h.mailboxesIn(3, b) }

func (h *hider) mailboxesIn(buf int, b []byte) []byte {
	if h.hasher == nil || !h.all || len(b) == 0 {
		return b
	}
	h.buf[buf] = h.hasher.Text(h.buf[buf][:0], b)
	return h.buf[buf]
}

// user returns a user name. The name is hashed if it may be a password, or if the privacy level
// requires this.
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
