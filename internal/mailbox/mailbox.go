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
// Almost all mail servers ignore the case of local parts.
func AppendBase(dst, addr []byte, delimiter byte) []byte {
	local, domain := addr, []byte(nil)
	if i := bytes.LastIndexByte(addr, '@'); i >= 0 {
		local, domain = addr[:i], addr[i:]
	}
	if i := bytes.IndexByte(local, delimiter); i > 0 {
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

// Address returns the address in the argument of a MAIL or RCPT command, without comments, spaces,
// a source route (RFC 5321 section 4.1.1.3), a group name, and text outside of angle brackets.
// Mail servers ignore these parts, so a client could use them to make different mailboxes look
// equal, or equal ones different. If no address remains, Address returns the argument.
func Address(arg []byte) []byte {
	addr, inside := bytes.TrimSpace(arg), false // inside reports whether addr[i] is in angle brackets
	if inner, ok := bytes.CutPrefix(addr, []byte("<")); ok {
		if inner, ok = bytes.CutSuffix(inner, []byte(">")); ok && !bytes.ContainsAny(inner, "<>\"") {
			addr, inside = inner, true
		}
	}
	if !bytes.ContainsAny(addr, "()<>:; \t\r\n") {
		return addr
	}
	var (
		out             = make([]byte, 0, len(addr))
		comments        int
		quoted, literal bool
	)
	for i := 0; i < len(addr); i++ {
		c := addr[i]
		if c == '\\' && i+1 < len(addr) {
			if i++; comments == 0 {
				out = append(out, c, addr[i])
			}
			continue
		}
		switch {
		case c == '(' && !quoted:
			comments++
		case comments > 0:
			if c == ')' {
				comments--
			}
		case quoted || c == '"':
			out, quoted = append(out, c), quoted != (c == '"')
		case c == '<':
			out, inside = out[:0], true
		case c == '>' && inside:
			i = len(addr)
		case c == ':' && !literal && (len(out) > 0 && out[0] == '@' || !inside && addr[len(addr)-1] == ';'):
			out = out[:0]
		case c == ' ' && !inside && bytes.IndexByte(out, '@') > 0: // parameters follow
			i = len(addr)
		case c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == ';' && !inside:
		default:
			out, literal = append(out, c), c == '[' || literal && c != ']'
		}
	}
	if len(out) == 0 && !inside {
		return addr
	}
	return out
}
