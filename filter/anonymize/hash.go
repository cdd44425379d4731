package anonymize

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/publicsuffix"

	"scanwatch/filter/lookup"
	"scanwatch/internal/mailbox"
)

// KeySize is the length of a key in bytes.
const KeySize = 32

// maxNames is the maximum number of cached names.
const maxNames = 50_000

// An Anonymizer replaces names and addresses with keyed hashes. An Anonymizer must not
// be used concurrently.
type Anonymizer struct {
	lists    *lookup.Lists
	hash     hash.Hash
	steps    []byte // scratch
	names    map[string][]byte
	patterns map[string]*regexp.Regexp
}

// New returns an Anonymizer with a key of KeySize bytes. The same key always produces the same
// copies.
func New(key []byte, lists *lookup.Lists) *Anonymizer {
	return &Anonymizer{lists: lists, hash: hmac.New(sha256.New, key), names: make(map[string][]byte), patterns: make(map[string]*regexp.Regexp)}
}

// mac returns the keyed hash of text. Hashes of the same text with different kinds are unrelated.
func (a *Anonymizer) mac(kind string, text []byte) (sum [sha256.Size]byte) {
	a.hash.Reset()
	a.hash.Write([]byte(kind + "\x00"))
	a.hash.Write(text)
	a.hash.Sum(sum[:0])
	return sum
}

// word returns a 60-bit hash of text in lower-case letters. The case of text is ignored. The hash
// contains no digits, because a digit in a name can be evidence.
func (a *Anonymizer) word(kind string, text []byte) []byte {
	sum := a.mac(kind, bytes.ToLower(text))
	b := make([]byte, 15)
	for i := range b {
		b[i] = 'a' + sum[i]&15
	}
	return b
}

// Addr anonymizes an address. Addr keeps the network (/24 for IPv4, /48 for IPv6) and hashes the
// host part. Different addresses in a /24 get different copies. The copy matches the same row of
// the lists as the original. An address that has a row is not changed.
func (a *Anonymizer) Addr(addr netip.Addr) netip.Addr {
	if !addr.IsValid() || addr.IsUnspecified() || addr.IsLoopback() {
		return addr
	}
	addr = addr.Unmap()
	row, from := a.lists.Addr(addr), addr
	if addr.Is4() {
		b := addr.As4()
		// Each host is replaced by its successor in a random cycle, so no host is replaced by
		// itself.
		cycle := rand.New(rand.NewChaCha8(a.mac("net", b[:3]))).Perm(256)
		next := make([]byte, 256)
		for i, host := range cycle {
			next[host] = byte(cycle[(i+1)%256])
		}
		for {
			b[3] = next[b[3]]
			if addr = netip.AddrFrom4(b); addr == from || a.lists.Addr(addr) == row {
				return addr
			}
		}
	}
	b := addr.As16()
	subnet, host := a.mac("subnet", b[:8]), a.mac("host", b[:])
	copy(b[6:8], subnet[:])
	copy(b[8:], host[:])
	if addr = netip.AddrFrom16(b); a.lists.Addr(addr) == row {
		return addr
	}
	return from // the row is for a smaller network than the /48
}

// Prefix anonymizes a network.
func (a *Anonymizer) Prefix(p netip.Prefix) netip.Prefix {
	if !p.IsValid() || p.Addr().Is4() && p.Bits() <= 24 || p.Addr().Is6() && p.Bits() <= 48 {
		return p
	}
	return netip.PrefixFrom(a.Addr(p.Addr()), p.Bits()).Masked()
}

// literal anonymizes an address, which may be an address literal (RFC 5321 section 4.1.3). literal
// returns nil if name is not an address.
func (a *Anonymizer) literal(name []byte) []byte {
	m := literals.FindSubmatch(name)
	if m == nil {
		return nil
	}
	addr, err := netip.ParseAddr(string(m[2]))
	if err != nil || addr.Is4() && bytes.IndexByte(name, '%') >= 0 { // only IPv6 has zones
		return nil
	}
	return []byte(string(m[1]) + a.Addr(addr.WithZone("")).String() + string(m[3]))
}

var literals = regexp.MustCompile(`^(\[?(?i:IPv6:)?)([0-9A-Fa-f:.]+)(?:%[^\]]*)?(\]?)$`)

// facts are the properties of a name that lead to evidence or rule it out.
type facts struct {
	rows    [7]*lookup.Row
	generic bool // the name contains numbers that look like parts of an address
	cut     bool // smtpd may have truncated the name
	mail    bool // name of a mail host of a scanning organisation
}

var generic = regexp.MustCompile(`[0-9]+[-._x][0-9]+[-._x][0-9]+`)

func (a *Anonymizer) facts(name []byte) (f facts) {
	f.rows[0], f.rows[1], f.rows[2] = a.lists.RDNS(name)
	f.rows[3], f.rows[4], f.rows[5] = a.lists.Helo(name)
	f.rows[6] = a.lists.Word(name)
	f.generic, f.cut, f.mail = generic.Match(name), len(name) >= 64, a.lists.ScannerMail(name)
	return f
}

// Name anonymizes a host name, domain or greeting. Name keeps the public suffix, or a suffix that
// is in a row of the lists, and hashes all other labels. If the form of the name is evidence, Name
// instead replaces each letter with a letter and each digit with a digit. A name that has a row
// is not changed.
func (a *Anonymizer) Name(name []byte) []byte {
	if len(name) == 0 {
		return name
	}
	if copied, ok := a.names[string(name)]; ok {
		return copied
	}
	if len(a.names) == maxNames {
		clear(a.names)
	}
	copied := a.literal(name)
	if copied == nil {
		copied = a.name(name)
	}
	a.names[string(name)] = copied
	return copied
}

func (a *Anonymizer) name(name []byte) []byte {
	want := a.facts(name)
	whole := name
	name = bytes.TrimRight(whole, ".") // the lists ignore a trailing dot
	dots := whole[len(name):]
	suffix, domain := suffixes(name)
	if want.mail {
		return bytes.Clone(whole)
	}
	row := suffix // start of the longest suffix in a row
	for _, r := range want.rows {
		if r == nil {
			continue
		}
		if strings.EqualFold(r.Value, string(name)) {
			return bytes.Clone(whole)
		}
		if strings.HasPrefix(r.Value, ".") {
			row = min(row, max(len(name)-len(r.Value), 0))
		}
	}
	join := func(parts ...[]byte) []byte { return append(bytes.Join(parts, nil), dots...) }
	hashed := join(a.labels(name[:suffix], name), name[suffix:])
	formed := join(a.shape(name[:suffix], name), name[suffix:])
	first := hashed
	switch {
	case suffix == len(name):
		first = formed
	case want.generic || want.rows[3] != nil: // for example, dsl.example.net
		first = join(a.shape(name[:domain], name), a.labels(name[domain:suffix], name[domain:]), name[suffix:])
	}
	copies := [][]byte{
		first,
		join(a.labels(name[:row], name), name[row:]),
		formed,
		join(a.shape(name[:row], name), name[row:]),
	}
	if r := want.rows[3]; r != nil && strings.HasPrefix(r.Value, "/") { // keep the part of a label that the pattern matches
		if at := a.pattern("/(?i)" + r.Value[1:]).FindIndex(name); at != nil && at[1]-at[0] < len(name) {
			copies = append(copies, join(a.shape(name[:at[0]], name), name[at[0]:at[1]], a.shape(name[at[1]:], name)))
		}
	}
	for _, copied := range copies {
		if a.facts(copied) == want {
			return copied
		}
	}
	return hashed
}

// labels hashes the labels of a name. The hash of a label depends on all labels to its right, so
// two names in one domain also have copies in one domain. Common words are kept.
func (a *Anonymizer) labels(labels, name []byte) (dst []byte) {
	for len(labels) > 0 {
		label, rest, dot := bytes.Cut(labels, []byte{'.'})
		if a.lists.Word(label) != nil {
			dst = append(dst, label...) // evidence may depend on whether a greeting equals the first label of the reverse DNS name
		} else if len(label) > 0 {
			dst = append(dst, a.word("label", name)...)
		}
		if dot {
			dst = append(dst, '.')
		}
		name, labels = name[len(labels)-len(rest):], rest
	}
	return dst
}

// suffixes returns the indexes at which the public suffix and the registered domain of a name
// begin. The name must not end with a dot. A name without a dot has no public suffix.
func suffixes(name []byte) (suffix, domain int) {
	whole := string(bytes.ToLower(name))
	if len(whole) > len(name) || !strings.Contains(whole, ".") {
		return len(name), 0
	}
	ps, _ := publicsuffix.PublicSuffix(whole)
	if suffix = len(whole) - len(ps); suffix == 0 {
		suffix = strings.LastIndexByte(whole, '.') + 1
	}
	return suffix, strings.LastIndexByte(whole[:max(suffix-1, 0)], '.') + 1
}

// keywords matches the words that names and lines keep. The words are commands, and words in the
// patterns of the lists. No keyword identifies a host or user. The letter x is a keyword because it
// separates the numbers in names that are derived from addresses.
var keywords = regexp.MustCompile(`^(?i:http|rtsp|ssh|from|to|size|body|8bitmime|7bit|smtputf8|ret|hdrs|full|notify|never|orcpt|rfc822|plain|login|` +
	`x|pppoe|dialup|dhcp|adsl|dyn|dynamic|broadband|catv|gprs|cdma|user|win|desktop|laptop|vps|ns|ip|ylmf|pc|diretorias|mglndd|auth)$`)

var shapes = regexp.MustCompile(`[A-Za-z]+|[0-9]+|[^\x00-\x7f]+`)

// shape replaces each letter in text with a letter and each digit with a digit. The keyed hash of
// whole determines the replacements. Keywords are kept.
func (a *Anonymizer) shape(text, whole []byte) []byte {
	stream := rand.New(rand.NewChaCha8(a.mac("shape", bytes.ToLower(whole))))
	letter := func() byte { return "abcdefghijklmnopqrstuvwyz"[stream.IntN(25)] } // x is missing because it is a keyword
	return shapes.ReplaceAllFunc(text, func(word []byte) []byte {
		if keywords.Match(word) {
			return word
		}
		copied := bytes.Clone(word)
		for i, c := range word {
			switch {
			case c >= utf8.RuneSelf && utf8.Valid(word):
				copied[i] = letter()
			case '0' <= c && c <= '9':
				copied[i] = '0' + byte(stream.IntN(10))
			case c < 'a':
				copied[i] = letter() - 'a' + 'A'
			case c < utf8.RuneSelf:
				copied[i] = letter()
			}
		}
		return copied
	})
}

var words = regexp.MustCompile(`[A-Za-z0-9]+|[^\x00-\x7f]+`)

// hashWords returns free text with each word replaced by a hash.
func (a *Anonymizer) hashWords(text []byte) []byte {
	return words.ReplaceAllFunc(text, func(word []byte) []byte { return a.word("word", word) })
}

// user anonymizes a user name, which may be a mailbox.
func (a *Anonymizer) user(name []byte) []byte {
	if len(name) == 0 || bytes.IndexByte(name, '@') >= 0 || mailbox.IsHash(name) {
		return a.Mailbox(name)
	}
	return a.word("user", name)
}

// pieces splits a mail address. The pieces are hashes made by package privacy, separators of routes
// and details, and other text.
var pieces = regexp.MustCompile(`hash:[0-9a-f]{16}|[%!@,:+]|[^%!@,:+]+`)

// Mailbox anonymizes a mail address. Mailbox hashes the local part and its detail (RFC 5233), and
// replaces each domain with its anonymized copy. The local parts of role accounts are kept.
func (a *Anonymizer) Mailbox(addr []byte) (dst []byte) {
	at := bytes.LastIndexByte(addr, '@')
	local, domain := addr, []byte(nil)
	if at >= 0 {
		local, domain = addr[:at], addr[at+1:]
	}
	if at >= 0 && mailbox.IsRole(local) {
		dst, local = append(dst, local...), nil
	}
	before := byte(0)
	for _, m := range pieces.FindAllIndex(local, -1) {
		piece, after := local[m[0]:m[1]], byte(0)
		if m[1] < len(local) {
			after = local[m[1]]
		}
		switch {
		case len(piece) == 1 && strings.IndexByte("%!@,:+", piece[0]) >= 0:
			dst = append(dst, piece[0])
		case (before == '@' || before == '%' || after == '!') && bytes.IndexByte(piece, '.') > 0:
			dst = append(dst, a.domain(piece)...)
		case mailbox.IsHash(piece):
			dst = append(dst, a.domain(piece)...)
		case at >= 0 && m[0] == 0 && after == '+' && mailbox.IsRole(piece):
			dst = append(dst, piece...)
		default:
			dst = append(dst, a.word("local@"+string(bytes.ToLower(domain)), piece)...)
		}
		before = piece[len(piece)-1]
	}
	if at >= 0 {
		dst = append(append(dst, '@'), a.domain(domain)...)
	}
	return dst
}

// domain anonymizes a domain. If the domain is a hash made by package privacy, it is hashed again.
func (a *Anonymizer) domain(domain []byte) []byte {
	if !mailbox.IsHash(domain) {
		return a.Name(domain)
	}
	sum := a.mac("hash", domain)
	return hex.AppendEncode([]byte(mailbox.HashPrefix), sum[:8])
}
