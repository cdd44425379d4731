package milter

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// A packet consists of its length in four big-endian bytes, which do not count towards
// the length, a command byte, and data. The names follow libmilter (mfdef.h of Sendmail
// 8.18).

// Commands of the mail server.
const (
	cmdNegotiate = 'O'
	cmdMacros    = 'D'
	cmdConnect   = 'C'
	cmdHelo      = 'H'
	cmdMail      = 'M'
	cmdRcpt      = 'R'
	cmdData      = 'T'
	cmdHeader    = 'L'
	cmdEOH       = 'N'
	cmdBody      = 'B'
	cmdEOM       = 'E'
	cmdAbort     = 'A'
	cmdUnknown   = 'U'
	cmdQuit      = 'Q'
	cmdQuitReuse = 'K' // the connection is used for another session
)

// Replies to the mail server.
const (
	replyContinue = 'c'
	replyTempfail = 't'
	replyReject   = 'r'
	replyCode     = 'y' // with a reply to the client
	replyShutdown = 'f' // 421 and the end of the session
	replyProgress = 'p' // the answer takes longer
)

// Parts of the protocol that a milter can omit, and steps that it can request.
const (
	noBody      = 0x10
	noHeaders   = 0x20
	noEOH       = 0x40
	rejectedToo = 0x800 // refused recipients
	// noReplies are the flags that suppress answers to commands. They are not
	// requested.
	noReplies = 0x1000 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000 | 0x40000 | 0x80000
)

// canListMacros is the flag that allows a milter to request macros.
const canListMacros = 0x100

// version is the protocol version, which Sendmail 8.14 and Postfix 2.6 introduced.
// Older mail servers do not report refused recipients.
const version = 6

const (
	// maxPacket is the maximum length of a packet. Only headers could be longer,
	// and they are never requested.
	maxPacket = 64 << 10
	maxMacro  = 256 // length of a value
	// keptBuffer is the length of the buffer that a connection keeps.
	keptBuffer = 4 << 10
	// maxPause is the time within which a packet must be complete. A packet may
	// begin at any time.
	maxPause = time.Minute
)

var errProtocol = errors.New("not the milter protocol")

// A packet is valid until the next read.
type packet struct {
	command byte
	data    []byte
}

// A wire reads and writes packets.
type wire struct {
	in   *bufio.Reader
	out  io.Writer
	buf  []byte
	send []byte
	// deadline sets the deadline for reading, if the connection has one.
	deadline func(time.Time) error
}

func newWire(rw io.ReadWriter) *wire {
	const ordinary = 4096
	w := &wire{in: bufio.NewReaderSize(rw, ordinary), out: rw}
	if c, ok := rw.(interface{ SetReadDeadline(time.Time) error }); ok {
		w.deadline = c.SetReadDeadline
	}
	return w
}

// read reads a packet. At the end of the input, the error is io.EOF.
func (w *wire) read() (p packet, err error) {
	var head [5]byte
	if _, err := io.ReadFull(w.in, head[:4]); err != nil {
		return p, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxPacket {
		return p, fmt.Errorf("%w: a packet of %d bytes", errProtocol, n)
	}
	if cap(w.buf) < int(n) || cap(w.buf) > keptBuffer {
		w.buf = make([]byte, n)
	}
	w.buf = w.buf[:n]
	if w.in.Buffered() < int(n) && w.deadline != nil {
		_ = w.deadline(time.Now().Add(maxPause))
		defer func() { _ = w.deadline(time.Time{}) }()
	}
	if _, err := io.ReadFull(w.in, w.buf); err != nil {
		return p, fmt.Errorf("%w: an incomplete packet", errProtocol)
	}
	return packet{w.buf[0], w.buf[1:]}, nil
}

// write writes a packet in one call. Before a second call's data, the kernel would wait
// for an acknowledgement of the first.
func (w *wire) write(command byte, data ...[]byte) error {
	n := 1
	for _, d := range data {
		n += len(d)
	}
	w.send = binary.BigEndian.AppendUint32(w.send[:0], uint32(n))
	w.send = append(w.send, command)
	for _, d := range data {
		w.send = append(w.send, d...)
	}
	_, err := w.out.Write(w.send)
	return err
}

// cut returns the text before the next NUL, and the rest.
func cut(data []byte) (text, rest []byte, ok bool) { return bytes.Cut(data, []byte{0}) }

// macros holds the values of the macros sent before a command.
type macros map[string]string

// parse adds those macros in a packet that are needed. A mail server may also send
// others.
func (m macros) parse(data []byte) {
	for {
		name, rest, ok := cut(data)
		if !ok {
			return
		}
		value, rest, _ := cut(rest)
		data = rest
		if name := string(bytes.Trim(clip(name, maxMacro), "{}")); needed[name] {
			m[name] = string(clip(value, maxMacro))
		}
	}
}

// macrosOf lists the macros that are needed at each stage, numbered as SMFIM_* in
// libmilter.
var macrosOf = []struct {
	stage uint32
	names string
}{
	{0, "i j _ {daemon_addr} {daemon_port} {client_port} {client_ptr} {client_resolve} {if_addr}"}, // connect
	{1, "{tls_version} {cipher} {cipher_bits}"},                                                    // HELO
	{2, "i {auth_authen} {auth_type}"},                                                             // MAIL
	{3, "{rcpt_mailer} {rcpt_host} {rcpt_addr}"},                                                   // RCPT
	{5, "i"}, // end of message
}

// needed holds the names in macrosOf.
var needed = func() map[string]bool {
	all := make(map[string]bool)
	for _, m := range macrosOf {
		for name := range strings.FieldsSeq(m.names) {
			all[strings.Trim(name, "{}")] = true
		}
	}
	return all
}()

// negotiation answers the first packet of a connection.
func negotiation(data []byte) ([]byte, error) {
	if len(data) < 12 {
		return nil, errProtocol
	}
	offered := binary.BigEndian.Uint32(data)
	actions, steps := binary.BigEndian.Uint32(data[4:]), binary.BigEndian.Uint32(data[8:])
	if offered < version {
		return nil, fmt.Errorf("the mail server speaks version %d of the protocol; version %d is needed", offered, version)
	}
	want := uint32(noBody|noHeaders|noEOH|rejectedToo) & steps
	answer := binary.BigEndian.AppendUint32(nil, version)
	answer = binary.BigEndian.AppendUint32(answer, actions&canListMacros)
	answer = binary.BigEndian.AppendUint32(answer, want)
	if actions&canListMacros != 0 {
		for _, m := range macrosOf {
			answer = binary.BigEndian.AppendUint32(answer, m.stage)
			answer = append(append(answer, m.names...), 0)
		}
	}
	return answer, nil
}
