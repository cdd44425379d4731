package smtp

import "bytes"

// Masked replaces text that may contain a password.
const Masked = "********"

// Protocol is a protocol other than SMTP.
type Protocol uint8

// Protocols recognised by Sniff.
const (
	ProtocolNone Protocol = iota
	ProtocolSSH
	ProtocolHTTP
	ProtocolTLS
	ProtocolBinary // bytes that are not text
)

// Sniff returns the protocol that a line belongs to, or ProtocolNone.
func Sniff(line []byte) Protocol {
	switch {
	case bytes.HasPrefix(line, []byte("SSH-")): // RFC 4253 section 4.2
		return ProtocolSSH
	case bytes.Contains(line, []byte(" HTTP/")), bytes.Contains(line, []byte(" RTSP/")): // RFC 9112 section 3
		return ProtocolHTTP
	case bytes.HasPrefix(line, []byte{0x16, 0x03}): // content type and major version of a TLS record, RFC 8446 section 5.1
		return ProtocolTLS
	case bytes.ContainsFunc(line, isBinary):
		return ProtocolBinary
	}
	return ProtocolNone
}

func isBinary(r rune) bool { return r < ' ' && r != '\t' && r != '\r' || r == 0x7f || r == '\uFFFD' }
