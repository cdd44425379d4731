// Package mailbox parses addresses, and recognises local parts that are hashes or role accounts.
package mailbox

import "bytes"

// HashPrefix begins every hash and is followed by 16 hexadecimal digits. A hash
// replaces a local part or a user name. smtpd accepts no colon in an unquoted
// local part (RFC 5321 section 4.1.2), so a hash cannot be confused with a real
// local part.
const HashPrefix = "hash:"

// HashBytes is the length of a hash in bytes before it is converted to hexadecimal. A hash of this
// length distinguishes all the addresses that a site will ever receive.
const HashBytes = 8

const hashLen = len(HashPrefix) + 2*HashBytes

// IsHash reports whether text is a hash.
func IsHash(text []byte) bool {
	return len(text) == hashLen && string(text[:len(HashPrefix)]) == HashPrefix
}

// Hashed reports whether the local part of addr, or a user name, is a hash.
func Hashed(addr []byte) bool {
	return IsHash(addr) || len(addr) > hashLen && addr[hashLen] == '@' && IsHash(addr[:hashLen])
}

// roles lists the role accounts of RFC 5321 section 4.5.1 and RFC 2142 sections 4 and
// 5. Role accounts are not hashed, because they are not personal data.
var roles = []string{"postmaster", "abuse", "noc", "security", "hostmaster", "webmaster", "mailer-daemon"}

// IsRole reports whether local is the local part of a role account.
func IsRole[T string | []byte](local T) bool {
	for _, r := range roles {
		if len(local) == len(r) && bytes.EqualFold([]byte(local), []byte(r)) {
			return true
		}
	}
	return false
}

// AppendBase appends the mailbox of addr in lower case, without the detail (RFC 5233).
// Almost all mail servers ignore the case of local parts. An address that is not plain has no
// detail.
func AppendBase(dst, addr []byte, delimiter byte) []byte {
	local, domain := split(addr)
	if i := bytes.IndexByte(local, delimiter); i > 0 && Plain(addr) {
		local = local[:i]
	}
	for _, part := range [...][]byte{local, domain} {
		for _, c := range part {
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			dst = append(dst, c)
		}
	}
	return dst
}

// split returns the local part and the domain of an address. The domain begins with @.
func split(addr []byte) (local, domain []byte) {
	if i := bytes.LastIndexByte(addr, '@'); i >= 0 {
		return addr[:i], addr[i:]
	}
	return addr, nil
}

// Plain reports whether all mail servers agree on the mailbox of addr. They disagree on comments,
// groups, routes, quotes and several addresses, so a client can use these to make different
// mailboxes look equal, or equal ones different. A hash is plain.
func Plain(addr []byte) bool {
	if Hashed(addr) {
		return true
	}
	local, domain := split(addr)
	if literal, ok := bytes.CutPrefix(domain, []byte("@[")); ok {
		domain, ok = bytes.CutSuffix(literal, []byte("]"))
		if !ok || bytes.ContainsFunc(domain, func(r rune) bool {
			return r != ':' && r != '.' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
		}) {
			return false
		}
		domain = nil
	}
	return !special(local) && !special(bytes.TrimPrefix(domain, []byte("@")))
}

func special(part []byte) bool {
	return bytes.ContainsAny(part, "()<>[]:;,\"\\@%!") || bytes.ContainsFunc(part, func(r rune) bool { return r <= ' ' || r == 0x7f })
}

// Address returns the address in the argument of a MAIL or RCPT command, without angle brackets and
// parameters. If the address is not plain, mail servers disagree about its parts. Address then
// removes nothing but angle brackets around the whole argument, so that different arguments
// remain different.
func Address(arg []byte) []byte {
	arg = bytes.TrimSpace(arg)
	addr, rest := arg, []byte(nil)
	inner, ok := bytes.CutPrefix(arg, []byte("<"))
	if ok {
		if addr, rest, ok = bytes.Cut(inner, []byte(">")); bytes.IndexByte(addr, '<') >= 0 {
			return arg
		}
		addr = bytes.TrimSpace(addr)
	} else if i := bytes.IndexByte(arg, ' '); i >= 0 {
		addr, rest = arg[:i], arg[i:]
	}
	if Plain(addr) && parameters(rest) || ok && len(rest) == 0 {
		return addr
	}
	return arg
}

// parameters reports whether rest contains only parameters of MAIL or RCPT (RFC 5321 section
// 4.1.2). Some servers search all of the argument for an address.
func parameters(rest []byte) bool {
	if len(rest) > 0 && rest[0] != ' ' || bytes.ContainsAny(rest, "()<>\"") {
		return false
	}
	for word := range bytes.FieldsSeq(rest) {
		if bytes.IndexByte(word, '=') <= 0 && !bytes.EqualFold(word, []byte("SMTPUTF8")) && !bytes.EqualFold(word, []byte("REQUIRETLS")) {
			return false
		}
	}
	return true
}
