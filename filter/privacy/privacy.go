// Package privacy replaces mail addresses and user names by keyed hashes: equal
// ones stay equal within a site, and who has the key can look for one that he
// knows, but nobody can read them back. It knows no sessions and no policy.
//
// A hash stands where the text stood, as `hash:` and 16 hexadecimal digits. The
// colon can be in no address that smtpd takes (RFC 5321 section 4.1.2).
package privacy

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"hash"
)

// Prefix is what every hash begins with.
const Prefix = "hash:"

const (
	sumBytes = 8 // of the MAC: enough to tell apart what a site will ever see
	hashLen  = len(Prefix) + 2*sumBytes
	maxInput = 512 // bytes that are hashed; addresses are shorter
)

// A Hasher makes hashes with one key. It belongs to one goroutine. The texts that
// its methods append to must not overlap those that they read.
type Hasher struct {
	mac hash.Hash
	in  [maxInput]byte
	sum [sha256.Size]byte
}

// New returns a Hasher with the given key.
func New(key []byte) *Hasher { return &Hasher{mac: hmac.New(sha256.New, key)} }

// Word appends the hash of a word, blind to ASCII case.
func (h *Hasher) Word(dst, word []byte) []byte { return h.append(dst, word, nil) }

// append appends the hash of a and, if there is one, the domain it stands in: info
// is another one in each domain.
func (h *Hasher) append(dst, a, domain []byte) []byte {
	n := fold(h.in[:], a)
	if n < len(h.in) && domain != nil {
		h.in[n] = '@'
		n++
		n += fold(h.in[n:], domain)
	}
	h.mac.Reset()
	h.mac.Write(h.in[:n]) // a hash cannot fail
	sum := h.mac.Sum(h.sum[:0])
	return hex.AppendEncode(append(dst, Prefix...), sum[:sumBytes])
}

// fold copies text in small letters.
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

// roles are local parts that are nobody's name: RFC 5321 section 4.5.1 and RFC 2142
// sections 4 and 5. Policies name them, to let such mail pass.
var roles = []string{"postmaster", "abuse", "noc", "security", "hostmaster", "webmaster", "mailer-daemon"}

// IsRole tells whether a local part is one that is never hashed.
func IsRole[T string | []byte](local T) bool {
	for _, r := range roles {
		if len(local) == len(r) && bytes.EqualFold([]byte(local), []byte(r)) {
			return true
		}
	}
	return false
}

// Mailbox appends an address with its local part hashed, and its domain, too, if
// that is asked for. The null sender stays what it is. Of an address that asks to be
// sent on (a source route, or the percent or bang form, RFC 5321 appendix C) the
// form stays, and the hosts that it names unless they stand in quotes.
func (h *Hasher) Mailbox(dst, addr []byte, domainToo bool) []byte {
	local, domain := addr, []byte(nil)
	if i := bytes.LastIndexByte(addr, '@'); i >= 0 {
		local, domain = addr[:i], addr[i+1:]
	}
	if IsRole(local) {
		dst = append(dst, local...)
	} else {
		dst = h.local(dst, local, domain)
	}
	if len(local) == len(addr) {
		return dst
	}
	dst = append(dst, '@')
	if domainToo && len(domain) > 0 {
		return h.Word(dst, domain)
	}
	return append(dst, domain...)
}

// separators are found in addresses that ask to be sent on.
const separators = "%!@,:"

func (h *Hasher) local(dst, local, domain []byte) []byte {
	before, quoted := byte(0), len(local) > 0 && local[0] == '"'
	for {
		n := bytes.IndexAny(local, separators)
		after := byte(0)
		piece := local
		if n >= 0 {
			piece, after = local[:n], local[n]
		}
		switch host := before == '@' || before == '%' || after == '!'; {
		case len(piece) == 0:
		case host && !quoted && bytes.IndexByte(piece, '.') > 0:
			dst = append(dst, piece...)
		default:
			dst = h.append(dst, piece, domain)
		}
		if n < 0 {
			return dst
		}
		dst = append(dst, after)
		local, before = local[n+1:], after
	}
}

// Text appends text with every mail address in it as Mailbox makes it.
func (h *Hasher) Text(dst, text []byte, domainToo bool) []byte {
	for {
		at := bytes.IndexByte(text, '@')
		if at < 0 {
			return append(dst, text...)
		}
		from := at
		if at > 0 && text[at-1] == '"' { // "a b"@example.org
			from = quote(text[:at-1])
		} else {
			if at > 0 && text[at-1] == ')' { // a comment (RFC 5322 section 3.2.2)
				from = max(bytes.LastIndexByte(text[:at], '('), 0)
			}
			for from > 0 && !ends(text[from-1]) && text[from-1] != ':' {
				from--
			}
			if word := text[from:at]; len(word) > 5 && bytes.EqualFold(word[:5], []byte("AUTH=")) {
				from += 5 // a parameter of MAIL (RFC 4954)
			}
		}
		to := at + 1
		for to < len(text) && !ends(text[to]) {
			to++
		}
		for to > at+1 && (text[to-1] == ':' || text[to-1] == '.') {
			to-- // of the sentence
		}
		dst = append(dst, text[:from]...)
		dst = h.Mailbox(dst, text[from:to], domainToo)
		text = text[to:]
	}
}

// quote is where the quoted string begins that has no end in text.
func quote(text []byte) int {
	for i := len(text) - 1; i > 0; i-- {
		if text[i] == '"' && (i-len(bytes.TrimRight(text[:i], `\\`)))%2 == 0 {
			return i
		}
	}
	return 0
}

// ends tells whether no address goes on over c. The local part of a bounce
// address has = in it, and some have an apostrophe (RFC 5321, section 4.1.2).
func ends(c byte) bool {
	return c <= ' ' || c == 0x7f || bytes.IndexByte([]byte(`<>()",;`), c) >= 0
}

// Command appends a line with a command that names somebody, such as MAIL, RCPT and
// VRFY, with all addresses in it as Mailbox makes them. It need not be right: what
// may be a name or a part of one is none in what is appended.
func (h *Hasher) Command(dst, line []byte, domainToo bool) []byte {
	i := word(line, 0)
	if n := word(line, i); bytes.EqualFold(bytes.TrimSpace(line[i:n]), []byte("FROM")) || bytes.EqualFold(bytes.TrimSpace(line[i:n]), []byte("TO")) {
		i = n
	}
	for i < len(line) && (line[i] == ' ' || line[i] == '\t' || line[i] == ':') {
		i++
	}
	dst, line = append(dst, line[:i]...), line[i:]
	if len(line) > 0 && line[0] == '<' {
		n := bytes.IndexByte(line, '>')
		if n < 0 {
			n = len(line)
		}
		if dst = append(dst, '<'); n > 1 {
			dst = h.Mailbox(dst, line[1:n], domainToo)
		}
		return h.Text(dst, line[n:], domainToo)
	}
	for first := true; len(line) > 0; first = false {
		n := bytes.IndexAny(line, " \t")
		if n < 0 {
			n = len(line)
		}
		switch w := line[:n]; {
		case n == 0:
			n = 1
			dst = append(dst, line[0])
		case bytes.IndexByte(w, '@') > 0 && !first, bytes.IndexByte(w, '=') > 0 && !first: // SIZE=1
			dst = h.Text(dst, w, domainToo)
		default:
			dst = h.Mailbox(dst, w, domainToo)
		}
		line = line[n:]
	}
	return dst
}

// word returns where the word of letters ends that begins behind blanks at i.
func word(line []byte, i int) int {
	for i < len(line) && (line[i] == ' ' || line[i] == '\t') {
		i++
	}
	for i < len(line) && ('a' <= line[i]|0x20 && line[i]|0x20 <= 'z') {
		i++
	}
	return i
}

// IsHash tells whether text is a hash and nothing else.
func IsHash(text []byte) bool {
	return len(text) == hashLen && string(text[:len(Prefix)]) == Prefix
}

// HasHash tells whether there is a hash in an address.
func HasHash(addr []byte) bool { return bytes.Contains(addr, []byte(Prefix)) }
