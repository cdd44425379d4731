// Package privacy replaces user names and the local parts of mailboxes with keyed hashes. Equal
// mailboxes of a site have equal hashes. The operator, who has the key, can therefore search for a
// mailbox. A mailbox cannot be recovered from its hash. The package does not depend on sessions or
// policies.
package privacy

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"hash"

	"scanwatch/internal/mailbox"
)

// maxInput is the maximum number of bytes that are hashed. The limit is longer than any mail
// address.
const maxInput = 512

// A Hasher computes hashes with a fixed key. A Hasher must not be used concurrently. Input to a
// method must not overlap dst.
type Hasher struct {
	mac hash.Hash
	in  [maxInput]byte
	sum [sha256.Size]byte
}

// New returns a Hasher that uses the given key.
func New(key []byte) *Hasher { return &Hasher{mac: hmac.New(sha256.New, key)} }

// Word appends the hash of a word. ASCII case is ignored.
func (h *Hasher) Word(dst, word []byte) []byte {
	n := fold(h.in[:], word)
	h.mac.Reset()
	h.mac.Write(h.in[:n]) // cannot fail
	sum := h.mac.Sum(h.sum[:0])
	return hex.AppendEncode(append(dst, mailbox.HashPrefix...), sum[:mailbox.HashBytes])
}

// fold copies text to dst in lower case and returns the number of copied bytes.
func fold(dst, text []byte) int {
	n := min(len(dst), len(text))
	for i, c := range text[:n] {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst[i] = c
	}
	return n
}

// Mailbox appends a mailbox with a hash instead of its local part. The domain is kept, but the
// hash also depends on it. The null sender, role accounts, hashes and empty local parts are kept as
// well. A source route (RFC 5321 appendix C) is hashed together with the local part. Text after the last
// @ that is not a domain is hashed as well, because it may contain a local part.
func (h *Hasher) Mailbox(dst, addr []byte) []byte {
	local := addr
	if i := bytes.LastIndexByte(addr, '@'); i >= 0 && domain(addr[i+1:]) {
		local = addr[:i]
	}
	if len(local) == 0 || mailbox.IsRole(local) || mailbox.IsHash(local) {
		return append(dst, addr...)
	}
	return append(h.Word(dst, addr), addr[len(local):]...)
}

// domain reports whether text may be a domain. An address literal is a domain.
func domain(text []byte) bool {
	return !bytes.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\\' || r < 0x80 && ends(byte(r)) }) &&
		(bytes.HasPrefix(text, []byte("[")) || bytes.IndexByte(text, ':') < 0)
}

// Text appends text in which each mailbox is hashed in the same way as by Mailbox. A mailbox is a
// word with an @, a word in angle brackets, or an argument of a command that takes a mailbox. If it
// is unclear where a mailbox starts or ends, more text than necessary is hashed.
func (h *Hasher) Text(dst, text []byte) []byte {
	if args := arguments(text); args > 0 {
		return h.arguments(append(dst, text[:args]...), text[args:])
	}
	return h.mailboxes(dst, text)
}

// mailboxes implements Text for a text that is not a command.
func (h *Hasher) mailboxes(dst, text []byte) []byte {
	for {
		at := bytes.IndexByte(text, '@')
		if at < 0 {
			return h.brackets(dst, text)
		}
		from := localPart(text, at)
		to := at + 1
		for to < len(text) && !ends(text[to]) {
			to++
		}
		for to > at+1 && (text[to-1] == ':' || text[to-1] == '.') {
			to-- // exclude punctuation after the mailbox
		}
		dst = h.Mailbox(h.brackets(dst, text[:from]), text[from:to])
		text = text[to:]
	}
}

// localPart returns the start of the local part before the @ at index at.
func localPart(text []byte, at int) int {
	from := at
	switch {
	case at > 0 && text[at-1] == '"': // "a b"@example.org
		return quote(text[:at-1])
	case at > 0 && text[at-1] == ')': // a comment (RFC 5322 section 3.2.2)
		from = max(bytes.LastIndexByte(text[:at], '('), 0)
	}
	for from > 0 && !ends(text[from-1]) && text[from-1] != ':' {
		from--
	}
	if word := text[from:at]; len(word) > 5 && bytes.EqualFold(word[:5], []byte("AUTH=")) {
		from += 5 // a parameter of MAIL (RFC 4954)
	}
	return from
}

// quote returns the index of the last unclosed quotation mark, or 0.
func quote(text []byte) int {
	for i := len(text) - 1; i > 0; i-- {
		if text[i] == '"' && (i-len(bytes.TrimRight(text[:i], `\\`)))%2 == 0 {
			return i
		}
	}
	return 0
}

// ends reports whether c ends a mailbox. The equals sign and the apostrophe do not, because local
// parts may contain them (RFC 5321 section 4.1.2). For example, sender addresses of mailing lists
// contain equals signs.
func ends(c byte) bool {
	return c <= ' ' || c == 0x7f || bytes.IndexByte([]byte(`<>()",;`), c) >= 0
}

// brackets appends text without an @, and hashes the words in angle brackets. Servers write a
// recipient without a domain in angle brackets.
func (h *Hasher) brackets(dst, text []byte) []byte {
	for {
		from := bytes.IndexByte(text, '<') + 1
		n := bytes.IndexByte(text[from:], '>')
		if from == 0 || n < 0 {
			return append(dst, text...)
		}
		dst = append(dst, text[:from]...)
		if word := text[from : from+n]; bytes.IndexFunc(word, func(r rune) bool { return r <= ' ' || r == '<' || r == '/' }) < 0 {
			dst = h.Mailbox(dst, word)
		} else {
			dst = append(dst, word...)
		}
		text = text[from+n:]
	}
}

// commands lists the commands that take a mailbox. If needed is set, word must follow the verb,
// because replies may also start with words such as Mail or Send.
var commands = []struct {
	verb, word string
	needed     bool
}{
	{"MAIL", "FROM", true}, {"SEND", "FROM", true}, {"SOML", "FROM", true}, {"SAML", "FROM", true},
	{"RCPT", "TO", false}, {"VRFY", "", false}, {"EXPN", "", false},
}

// arguments returns the index at which the arguments of line start. If line is not a command that
// takes a mailbox, arguments returns 0.
func arguments(line []byte) int {
	blanks := len(line) - len(bytes.TrimLeft(line, " \t"))
	verb := letters(line, blanks)
	for _, c := range commands {
		if !bytes.EqualFold(line[blanks:verb], []byte(c.verb)) || verb < len(line) && bytes.IndexByte([]byte(" \t:<"), line[verb]) < 0 {
			continue
		}
		i := verb
		for i < len(line) && (line[i] == ' ' || line[i] == '\t') {
			i++
		}
		if word := letters(line, i); c.word != "" && bytes.EqualFold(line[i:word], []byte(c.word)) {
			i = word
		} else if c.needed {
			return 0
		}
		for i < len(line) && (line[i] == ' ' || line[i] == '\t' || line[i] == ':') {
			i++
		}
		return i
	}
	return 0
}

// letters returns the index after the sequence of letters that starts at i.
func letters(line []byte, i int) int {
	for i < len(line) && ('a' <= line[i]|0x20 && line[i]|0x20 <= 'z') {
		i++
	}
	return i
}

// arguments appends the arguments of a command that takes a mailbox. The first argument is always
// hashed as a mailbox. Later words are also hashed, unless they are parameters such as SIZE=1.
func (h *Hasher) arguments(dst, args []byte) []byte {
	if len(args) > 0 && args[0] == '<' {
		n := bytes.IndexByte(args, '>')
		if n < 0 {
			n = len(args)
		}
		return h.mailboxes(h.Mailbox(append(dst, '<'), args[1:n]), args[n:])
	}
	for first := true; len(args) > 0; first = false {
		n := bytes.IndexAny(args, " \t")
		if n < 0 {
			n = len(args)
		}
		switch w := args[:n]; {
		case n == 0:
			n = 1
			dst = append(dst, args[0])
		case !first && bytes.IndexAny(w, "@=") > 0:
			dst = h.mailboxes(dst, w)
		default:
			dst = h.Mailbox(dst, w)
		}
		args = args[n:]
	}
	return dst
}
