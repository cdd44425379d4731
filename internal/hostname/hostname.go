// Package hostname analyses host names. The package finds a name's registered
// domain and detects names that a provider has derived from an address or a
// number. No function sends DNS queries.
package hostname

import (
	"bytes"

	"golang.org/x/net/publicsuffix"
)

// Registered returns the registered domain of a host name in lower case. For mx1.mail.example.org,
// this is example.org. The domain is derived from the public suffix list and from this package's
// tables of providers. Each customer of such a provider has a separate domain.
//
// Registered returns "" for a public suffix, a name without a dot, and an empty
// name. A call takes about a microsecond and allocates memory, so call
// Registered only once per session.
func Registered(name []byte) string {
	if bytes.IndexByte(name, '.') < 0 || len(name) > maxName {
		return ""
	}
	var b [maxName]byte
	name = fold(&b, name)
	d, err := publicsuffix.EffectiveTLDPlusOne(string(name))
	if err != nil {
		return ""
	}
	if n := customer(name); n > len(d) {
		return string(name[len(name)-n:])
	}
	return d
}

// customer returns the length of a customer's domain, or 0 if name is not below a
// suffix in this package's tables.
func customer(name []byte) int {
	labels := make([]int, 1, maxName+1) // indexes of the first bytes of labels
	for at, c := range name {
		if c != '.' {
			continue
		}
		suffix, back := name[at+1:], 1
		if n, ok := chosen[string(suffix)]; ok {
			back += n
		} else if word, ok := defaults[string(suffix)]; !ok || word != "" {
			labels = append(labels, at+1)
			continue
		}
		return len(name) - labels[max(len(labels)-back, 0)]
	}
	return 0
}

// Generic reports whether a provider has derived a host name from an address or a
// number, as in static.1-2-3-4.clients.example.net or vmi123456.example.net.
// The customer did not choose such a name and does not own its domain.
func Generic(name []byte) bool {
	if len(name) == 0 || len(name) > maxName {
		return false
	}
	var b [maxName]byte
	name = fold(&b, name)
	return hasAddress(name) || isDefault(name) || isNumbered(name) || isLine(name)
}

// maxName is the maximum length of a name in bytes (RFC 5321 section 4.5.3.1.2).
const maxName = 255

// fold copies name into b in lower case, without trailing dots.
func fold(b *[maxName]byte, name []byte) []byte {
	name = bytes.TrimRight(name, ".")
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		b[i] = c
	}
	return b[:len(name)]
}

// hasAddress reports whether a name has three or more numbers between separators, as in
// 1-2-3-4.dsl.example.net.
func hasAddress(name []byte) bool {
	groups, digits := 0, 0
	for _, c := range name {
		switch {
		case isDigit(c):
			if digits++; digits == 1 {
				groups++
			}
		case (c == '-' || c == '.' || c == '_' || c == 'x') && digits > 0:
			digits = 0
			if groups >= 3 {
				return true
			}
		default:
			groups, digits = 0, 0
		}
	}
	return groups >= 3
}

// isDefault reports whether a name is a provider's default name.
func isDefault(name []byte) bool {
	for rest := name; ; {
		dot := bytes.IndexByte(rest, '.')
		if dot < 0 {
			return false
		}
		rest = rest[dot+1:]
		if word, ok := defaults[string(rest)]; ok && isWordAndNumber(name, word) {
			return true
		}
	}
}

// isWordAndNumber reports whether the first label of name is word followed by a number of at least
// two digits. If word is empty, any label matches; if word is anyNumber, any
// label with a digit matches.
func isWordAndNumber(name []byte, word string) bool {
	if word == "" {
		return true
	}
	label, _, _ := bytes.Cut(name, []byte{'.'})
	if word == anyNumber {
		return countDigits(label) > 0
	}
	number, ok := bytes.CutPrefix(label, []byte(word))
	if !ok || len(number) < 2 {
		return false
	}
	return countDigits(number) == len(number)
}

// isNumbered reports whether the first label of name is a short word and a number of at
// least six digits, as in vmi123456.example.net. Large senders number their mail
// servers with fewer digits, or after a word such as mail.
func isNumbered(name []byte) bool {
	label, rest, _ := bytes.Cut(name, []byte{'.'})
	if bytes.IndexByte(rest, '.') < 0 {
		return false
	}
	word := bytes.TrimRight(label, "0123456789")
	if len(word) == 0 || len(word) > 6 || len(label)-len(word) < 6 {
		return false
	}
	for _, c := range word {
		if (c < 'a' || 'z' < c) && c != '-' {
			return false
		}
	}
	return !mailWords[string(bytes.TrimRight(word, "-"))]
}

// ForMail reports whether a label below a name's registered domain is typical
// of mail servers, possibly with a number, as in mx1.example.org or
// o1.email.example.org.
func ForMail(name []byte) bool {
	var b [maxName]byte
	if len(name) > maxName {
		return false
	}
	labels := bytes.Split(fold(&b, name), []byte{'.'})
	for _, label := range labels[:max(len(labels)-2, 0)] {
		if mailWords[string(bytes.TrimRight(bytes.TrimRight(label, "0123456789"), "-"))] {
			return true
		}
	}
	return false
}

// mailWords lists the labels, without a number, that are typical of mail
// servers.
var mailWords = map[string]bool{
	"mail": true, "mx": true, "mta": true, "smtp": true, "out": true, "relay": true, "mout": true, "email": true, "mailer": true,
	"mailout": true, "outbound": true, "lists": true, "bounce": true, "bounces": true, "mailgw": true, "postfix": true, "exchange": true,
	"zimbra": true, "sendgrid": true, "mailgun": true, "newsletter": true, "alerts": true,
}

// isLine reports whether a name belongs to an access line, such as a DSL
// line. Such a name contains a word from lineWords, and its first label
// contains a number, possibly an address in hexadecimal.
func isLine(name []byte) bool {
	label, _, _ := bytes.Cut(name, []byte{'.'})
	if countDigits(label) == 0 {
		return false
	}
	for rest := name; ; {
		end := bytes.IndexAny(rest, ".-")
		if end < 0 {
			return false // the remaining label is the top-level domain
		}
		if lineWords[string(bytes.TrimRight(rest[:end], "0123456789"))] {
			return true
		}
		rest = rest[end+1:]
	}
}

// lineWords lists words in the names of access lines. A word is a label, or the part of
// a label before or after a hyphen.
var lineWords = map[string]bool{
	"dyn": true, "dynamic": true, "dynamicip": true, "dip": true, "dhcp": true, "dsl": true, "adsl": true, "vdsl": true, "xdsl": true,
	"sdsl": true, "cable": true, "catv": true, "pppoe": true, "ppp": true, "dialup": true, "dialin": true, "broadband": true,
	"ftth": true, "fttx": true, "wimax": true, "gprs": true, "cdma": true, "umts": true, "lte": true,
}

func countDigits(b []byte) (n int) {
	for _, c := range b {
		if isDigit(c) {
			n++
		}
	}
	return n
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
