package maillog

import "bytes"

// A kind is a kind of line that smtpd logs.
type kind uint8

const (
	other kind = iota // irrelevant line
	connected
	disconnected
	authenticated
	accepted // a message was accepted
	envelope
	relayed  // a remote server accepted an envelope
	failed   // an envelope failed permanently
	rejected // a recipient was rejected permanently
)

// An event is a parsed line from smtpd. The slices in an event point into the line.
type event struct {
	kind           kind
	session        uint64
	envelope       uint64
	addr           []byte // address as it appears in the line
	host           []byte
	user           []byte
	sender         []byte
	recipient      []byte
	message        uint32
	authentication bool // a login succeeded
}

// others lists the words that follow "SID smtp", "SID mta" or "SID mda" in irrelevant lines.
var others = map[string][]string{
	"smtp": {"tls", "bad-input", "cert-check", "client-cert-check", "event=proxy", "event=connected"},
	"mta": {"connecting", "connected", "tls", "disconnected", "error", "closing", "cert-check", "server-cert-check",
		"host-rejects-all-mails", "ssl_check_name:"},
	"mda": {"delivery"},
}

// parseEvent parses the text that smtpd logged, without the program name. ok is false if a line
// about a session is malformed. For example, the line may be truncated.
func parseEvent(text []byte) (e event, ok bool) {
	var rest []byte
	if e.session, rest, ok = cutHex(text, 16); !ok || len(rest) == 0 || rest[0] != ' ' {
		return e, true // the line is not about a session: for example, smtpd has started, warns, or copies a filter's output
	}
	subsystem, rest, ok := bytes.Cut(rest[1:], []byte(" "))
	word, rest, more := bytes.Cut(rest, []byte(" "))
	switch {
	case !ok:
		return e, false
	case string(subsystem) == "smtp" && string(word) == "disconnected":
		e.kind = disconnected
		return e, more
	case string(subsystem) == "smtp" && string(word) == "connected":
		e.kind = connected
		return e, e.parseConnected(rest)
	case string(subsystem) == "smtp" && string(word) == "authentication":
		e.kind = authenticated
		return e, e.parseAuthentication(rest)
	case string(subsystem) == "smtp" && string(word) == "message":
		e.kind = accepted
		return e, e.parseMessage(rest)
	case string(subsystem) == "smtp" && string(word) == "envelope":
		e.kind = envelope
		rest, ok := e.parseAddresses(rest)
		return e, ok && len(rest) == 0
	case string(subsystem) == "smtp" && string(word) == "failed-command":
		const rcpt = `command="RCPT`
		if len(rest) > len(rcpt) && bytes.EqualFold(rest[:len(rcpt)], []byte(rcpt)) && bytes.Contains(rest, []byte(` result="5`)) {
			e.kind = rejected
		}
		return e, more
	case string(subsystem) == "mta" && string(word) == "delivery":
		return e, e.parseDelivery(rest)
	}
	for _, o := range others[string(subsystem)] {
		if o == string(word) {
			return e, true
		}
	}
	return e, false
}

// parseConnected parses "address=ADDRESS host=HOST".
func (e *event) parseConnected(s []byte) (ok bool) {
	if s, ok = bytes.CutPrefix(s, []byte("address=")); !ok {
		return false
	}
	e.addr, e.host, ok = bytes.Cut(s, []byte(" host="))
	return ok && len(e.host) > 0 && bytes.IndexByte(e.host, ' ') < 0
}

// parseAuthentication parses "user=USER result=RESULT". USER may contain spaces.
func (e *event) parseAuthentication(s []byte) (ok bool) {
	const mark = " result="
	i := bytes.LastIndex(s, []byte(mark))
	if s, ok = bytes.CutPrefix(s, []byte("user=")); !ok || i < len("user=") {
		return false
	}
	i -= len("user=")
	e.user = s[:i]
	switch string(s[i+len(mark):]) {
	case "ok":
		e.authentication = true
	case "permfail", "tempfail":
	default:
		return false
	}
	return true
}

// parseMessage parses "msgid=MSGID size=N nrcpt=N proto=WORD".
func (e *event) parseMessage(s []byte) (ok bool) {
	if s, ok = bytes.CutPrefix(s, []byte("msgid=")); !ok {
		return false
	}
	id, s, ok := cutHex(s, 8)
	e.message = uint32(id)
	return ok && bytes.HasPrefix(s, []byte(" size=")) && bytes.Contains(s, []byte(" proto="))
}

// parseAddresses parses "evpid=EVPID from=<SENDER> to=<RECIPIENT>" and returns the rest of the
// line. Addresses contain neither "<", ">" nor a space, because smtpd rejects such addresses.
func (e *event) parseAddresses(s []byte) (rest []byte, ok bool) {
	if s, ok = bytes.CutPrefix(s, []byte("evpid=")); !ok {
		return nil, false
	}
	if e.envelope, s, ok = cutHex(s, 16); !ok {
		return nil, false
	}
	if e.sender, s, ok = cutAddress(s, " from=<"); !ok {
		return nil, false
	}
	e.recipient, s, ok = cutAddress(s, " to=<")
	return s, ok && len(e.recipient) > 0
}

// parseDelivery parses a line about a delivery to a remote server. The last field of the line,
// stat, contains text from the remote server.
func (e *event) parseDelivery(s []byte) bool {
	s, ok := e.parseAddresses(s)
	if !ok {
		return false
	}
	_, s, ok = bytes.Cut(s, []byte(` delay=`))
	if !ok {
		return false
	}
	_, s, ok = bytes.Cut(s, []byte(` result="`))
	result, _, closed := bytes.Cut(s, []byte{'"'})
	switch string(result) {
	case "Ok":
		e.kind = relayed
	case "PermFail":
		e.kind = failed
	}
	return ok && closed
}

// cutAddress removes a prefix, an address and ">" from the start of s, and returns the address and
// the rest of s.
func cutAddress(s []byte, prefix string) (addr, rest []byte, ok bool) {
	if s, ok = bytes.CutPrefix(s, []byte(prefix)); !ok {
		return nil, nil, false
	}
	addr, rest, ok = bytes.Cut(s, []byte{'>'})
	return addr, rest, ok && len(addr) <= maxAddress && bytes.IndexByte(addr, '<') < 0 && bytes.IndexByte(addr, ' ') < 0
}

// maxAddress is longer than any address that smtpd accepts. An address that smtpd accepts has at
// most 64 bytes, "@" and 255 bytes. The limit is lower on Linux.
const maxAddress = 400

// cutHex removes n lower-case hexadecimal digits from the start of s, and returns their value and
// the rest of s.
func cutHex(s []byte, n int) (v uint64, rest []byte, ok bool) {
	if len(s) < n {
		return 0, s, false
	}
	for _, c := range s[:n] {
		switch {
		case '0' <= c && c <= '9':
			v = v<<4 | uint64(c-'0')
		case 'a' <= c && c <= 'f':
			v = v<<4 | uint64(c-'a'+10)
		default:
			return 0, s, false
		}
	}
	return v, s[n:], true
}
