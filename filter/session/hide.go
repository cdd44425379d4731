package session

// What of the names of people may be kept, logged and told: see Settings.Privacy
// of package rules. Live sessions and memory go by the names themselves.

import (
	"bytes"

	"scanwatch/filter/memory"
	"scanwatch/filter/privacy"
	"scanwatch/rules"
	"scanwatch/store"
)

// hide has room for what stands instead of names: for each purpose its own, since
// several belong to one step. What is in it is valid until the next of its kind.
type hide struct {
	sender, rcpt, user, helo, line, reply, param []byte
}

// hasher returns what makes hashes, and how much is to be hidden. It is nil where
// all is kept in clear.
func (t *Table) hasher() (*privacy.Hasher, rules.Privacy) {
	if t.options.Hasher == nil {
		return nil, rules.PrivacyFull
	}
	how := rules.PrivacyDefault
	if t.settings != nil {
		how = t.settings.Policy.Privacy
	}
	return t.options.Hasher(), how
}

// hides is hasher for all but user names, which may be passwords.
func (t *Table) hides() (h *privacy.Hasher, strict bool) {
	h, how := t.hasher()
	if how == rules.PrivacyFull {
		return nil, false
	}
	return h, how == rules.PrivacyStrict
}

// shownSender is a sender as it may be kept. Whether mail will be accepted is not
// known yet, and a sender who was forged is nobody to point at.
func (t *Table) shownSender(addr []byte) []byte {
	h, strict := t.hides()
	if h == nil || len(addr) == 0 {
		return addr
	}
	t.hide.sender = h.Mailbox(t.hide.sender[:0], addr, strict)
	return t.hide.sender
}

// shownRcpt is a recipient as it may be kept: in clear only who is in a domain of
// ours and never existed, as smtpd says (refused) or has said before.
func (t *Table) shownRcpt(addr []byte, refused bool, at int64) []byte {
	h, strict := t.hides()
	if h == nil || len(addr) == 0 || !strict && t.nobody(addr, refused, at) {
		return addr
	}
	t.hide.rcpt = h.Mailbox(t.hide.rcpt[:0], addr, false)
	return t.hide.rcpt
}

// nobody tells whether a recipient never existed here.
func (t *Table) nobody(addr []byte, refused bool, at int64) bool {
	domain, odd := domainOf(addr)
	if local, _ := t.localDomain(domain); odd || !local {
		return false // the victim of an attempt to relay
	}
	switch t.memory.Exists(addr, at) {
	case memory.NeverExisted:
		return true
	case memory.Existed:
		return false // who has left is somebody
	}
	return refused
}

// unknownRcpt tells whether smtpd's answer to a RCPT says that there is no such
// recipient, or that it does not relay.
func unknownRcpt(r store.Result, code uint32) bool {
	switch code { // not told, a wrong line, out of order, a full mailbox, a name not allowed, a policy
	case 0, 501, 503, 552, 553, 554:
		return false
	}
	return r == store.ResultPermfail
}

// shownUser is a user name as it may be kept. What may be a password is hashed
// whatever the operator says.
func (t *Table) shownUser(name []byte) []byte {
	h, how := t.hasher()
	if h == nil || len(name) == 0 || how != rules.PrivacyStrict && !privacy.LikePassword(name) {
		return name
	}
	t.hide.user = h.Word(t.hide.user[:0], name)
	return t.hide.user
}

// shownLine is a redacted command as it may be kept.
func (t *Table) shownLine(line []byte, v verb) []byte {
	h, strict := t.hides()
	switch {
	case h == nil:
		return line
	case v == verbMail || v == verbRcpt || v == verbNames:
		t.hide.line = h.Command(t.hide.line[:0], line, strict && v == verbMail)
	case bytes.IndexByte(line, '@') >= 0:
		t.hide.line = h.Text(t.hide.line[:0], line, strict)
	default:
		return line
	}
	return t.hide.line
}

// shownHelo is a greeting that smtpd refused as it may be kept: some give the address
// of a person.
func (t *Table) shownHelo(name []byte) []byte {
	h, strict := t.hides()
	if h == nil || bytes.IndexByte(name, '@') < 0 {
		return name
	}
	t.hide.helo = h.Text(t.hide.helo[:0], name, strict)
	return t.hide.helo
}

// shownReply is the text of a reply as it may be kept: smtpd repeats the address
// that it is about.
func (t *Table) shownReply(reply, addr, shown []byte) []byte {
	h, strict := t.hides()
	if h == nil || len(reply) == 0 {
		return reply
	}
	b := t.hide.reply[:0]
	rest := reply
	for len(addr) > 0 {
		i := mention(rest, addr)
		if i < 0 {
			break
		}
		b = append(h.Text(b, rest[:i], strict), shown...)
		rest = rest[i+len(addr):]
	}
	t.hide.reply = h.Text(b, rest, strict)
	return t.hide.reply
}

// mention is where an address stands in a reply, -1 if it does not. A short one has to
// stand in brackets: elsewhere it would hit other words.
func mention(reply, addr []byte) int {
	for from := 0; ; from++ {
		i := bytes.Index(reply[from:], addr)
		if i < 0 {
			return -1
		}
		from += i
		end := from + len(addr)
		if len(addr) >= 4 || from > 0 && reply[from-1] == '<' && end < len(reply) && reply[end] == '>' {
			return from
		}
	}
}

// shownParam is what a filter gave with its decision, as it may be kept: another
// address, or a reply.
func (t *Table) shownParam(phase, decision, param []byte) []byte {
	h, strict := t.hides()
	switch {
	case h == nil || len(param) == 0:
		return param
	case string(decision) == "rewrite" && (string(phase) == "mail-from" || string(phase) == "rcpt-to"):
		t.hide.param = h.Mailbox(t.hide.param[:0], param, strict && string(phase) == "mail-from")
	default:
		t.hide.param = h.Text(t.hide.param[:0], param, strict)
	}
	return t.hide.param
}
