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

// A packet of the milter protocol consists of a length, a command byte, and data. The length has
// four big-endian bytes, which are not included in the length. The names follow libmilter (mfdef.h
// of Sendmail 8.18).

// Commands that the mail server sends.
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
	cmdQuitReuse = 'K' // the mail server uses the connection for another session
)

// Replies that the filter sends to the mail server.
const (
	replyContinue = 'c'
	replyTempfail = 't'
	replyReject   = 'r'
	replyCode     = 'y' // followed by a reply to the client
	replyShutdown = 'f' // the server sends 421 and ends the session
	replyProgress = 'p' // the answer takes more time
)

// Flags for parts of the protocol that a milter does not need, and for steps that it requests.
const (
	noBody      = 0x10
	noHeaders   = 0x20
	noEOH       = 0x40
	rejectedToo = 0x800 // also send rejected recipients
	// noReplies is the set of flags that suppress answers to commands. The filter does not request
	// them.
	noReplies = 0x1000 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000 | 0x40000 | 0x80000
)

// canListMacros is the flag that allows a milter to request certain macros.
const canListMacros = 0x100

// version is the protocol version. The protocol version requires Sendmail 8.14 or Postfix 2.6,
// because older servers do not send rejected recipients to a milter.
const version = 6

const (
	// maxPacket is the maximum length of a packet. Only headers may be longer, and the filter does
	// not request them.
	maxPacket = 64 << 10
	maxMacro  = 256 // maximum length of a macro's value
	// keptBuffer is the length of the read buffer that a connection keeps between packets.
	keptBuffer = 4 << 10
	// maxPause is the maximum time between the first and the last byte of a packet. Between
	// packets, there is no limit.
	maxPause = time.Minute
)

var errProtocol = errors.New("not the milter protocol")

// A packet is the latest packet that was read. The data of a packet is valid until the next read.
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
	// deadline sets the read deadline. deadline is nil if the connection has no deadlines.
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

// read reads a packet. If the input ends before a packet, read returns io.EOF.
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

// write writes a packet in one call. With several calls, the kernel would delay the second part
// until the first part is acknowledged.
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

// cut returns the text before the next NUL, and the rest after it.
func cut(data []byte) (text, rest []byte, ok bool) { return bytes.Cut(data, []byte{0}) }

// macros holds the values of the macros that the mail server has sent before its commands.
type macros map[string]string

// parse adds the macros in a packet that the filter needs. A mail server may also send others.
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

// macrosOf lists the macros that the filter needs at each stage. The numbers of the stages are
// SMFIM_* in libmilter.
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

// needed contains the names of all macros in macrosOf.
var needed = func() map[string]bool {
	all := make(map[string]bool)
	for _, m := range macrosOf {
		for name := range strings.FieldsSeq(m.names) {
			all[strings.Trim(name, "{}")] = true
		}
	}
	return all
}()

// negotiation returns the answer to the first packet of a connection.
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
