package dnsbl

import "encoding/binary"

// DNS constants from RFC 1035 and RFC 6891.
const (
	headerSize = 12
	maxName    = 255  // maximum length of a name in bytes
	minUDP     = 512  // maximum response size without EDNS0
	maxUDP     = 1232 // maximum response size that avoids fragmentation
	maxQuery   = 4096 // maximum query size over TCP

	flagResponse, flagAuthoritative, flagTruncated, flagRecursion = 1 << 15, 1 << 10, 1 << 9, 1 << 8
	opcodeMask                                                    = 15 << 11
	flagDNSSEC                                                    = 1 << 15 // in the OPT record

	typeA, typeNS, typeSOA, typeTXT, typeAAAA, typeOPT, typeIXFR, typeAXFR, typeANY = 1, 2, 6, 16, 28, 41, 251, 252, 255

	classIN, classANY = 1, 255
)

// An rcode is a response code. Codes above 15 require EDNS0.
type rcode uint16

const (
	noError        rcode = 0
	formatError    rcode = 1
	serverFailure  rcode = 2
	nameError      rcode = 3
	notImplemented rcode = 4
	refused        rcode = 5
	badVersion     rcode = 16
)

// A query is a parsed query. The slices in a query alias the packet, so that a response can repeat
// the question in its original case and refer to its names.
type query struct {
	header   []byte
	question []byte // name, type and class
	name     []byte // ends with the root label
	qtype    uint16
	class    uint16
	edns
}

// edns holds the client's EDNS0 options.
type edns struct {
	present bool
	version byte
	dnssec  bool
	size    int // maximum size of a UDP response
}

// parseQuery parses a packet. If ok is false, the server must not respond, because the packet has
// no header or is a response. A reply to a response could start an endless exchange. For an invalid
// query, code is the response code.
func parseQuery(packet []byte) (q query, code rcode, ok bool) {
	if len(packet) < headerSize || flagsOf(packet)&flagResponse != 0 {
		return q, 0, false
	}
	q.header, q.size = packet[:headerSize], minUDP
	if flagsOf(packet)&opcodeMask != 0 {
		return q, notImplemented, true
	}
	be := binary.BigEndian
	if be.Uint16(packet[4:]) != 1 || be.Uint16(packet[6:]) != 0 || be.Uint16(packet[8:]) != 0 {
		return q, formatError, true
	}
	rest := q.readQuestion(packet[headerSize:])
	if rest == nil {
		return q, formatError, true
	}
	for range be.Uint16(packet[10:]) {
		if rest = q.readAdditional(rest); rest == nil {
			q.present = false
			return q, formatError, true
		}
	}
	if q.present && q.version != 0 {
		return q, badVersion, true
	}
	return q, noError, true
}

func flagsOf(packet []byte) uint16 { return binary.BigEndian.Uint16(packet[2:]) }

// readQuestion reads the question and returns the bytes after it, or nil if the question is
// invalid. The first name in a message is never compressed.
func (q *query) readQuestion(b []byte) []byte {
	end := 0
	for {
		if end >= len(b) || end >= maxName {
			return nil
		}
		n := int(b[end])
		end++
		if n == 0 {
			break
		}
		if n > 63 {
			return nil
		}
		end += n
	}
	if end > maxName || len(b) < end+4 {
		return nil
	}
	q.name, q.question = b[:end], b[:end+4]
	q.qtype, q.class = binary.BigEndian.Uint16(b[end:]), binary.BigEndian.Uint16(b[end+2:])
	return b[end+4:]
}

// readAdditional reads an additional record and returns the bytes after it, or nil if the record is
// invalid. Records other than OPT are ignored.
func (q *query) readAdditional(b []byte) []byte {
	root, end := true, 0
	for {
		if end >= len(b) {
			return nil
		}
		n := int(b[end])
		end++
		if n == 0 {
			break
		}
		root = false
		if n >= 0xc0 { // a pointer ends the name
			end++
			break
		}
		if n > 63 {
			return nil
		}
		end += n
	}
	const fixed = 10 // type, class, TTL and length
	if len(b) < end+fixed {
		return nil
	}
	be := binary.BigEndian
	kind, class, ttl := be.Uint16(b[end:]), be.Uint16(b[end+2:]), be.Uint32(b[end+4:])
	length := int(be.Uint16(b[end+8:]))
	if len(b) < end+fixed+length {
		return nil
	}
	if kind == typeOPT {
		if q.present || !root {
			return nil // a second OPT record is invalid (RFC 6891 section 6.1.1)
		}
		q.present, q.version, q.dnssec = true, byte(ttl>>16), ttl&flagDNSSEC != 0
		q.size = min(max(int(class), minUDP), maxUDP)
	}
	return b[end+fixed+length:]
}

// A response is a response under construction. Records refer to names by their offsets in
// the message.
type response struct {
	buf  []byte
	code rcode
	body int // offset of the first record
	edns
}

// A section is the header offset of the section's record count.
type section int

const (
	answers   section = 6
	authority section = 8
)

// begin starts a response in buf, writing the header and the question.
func (q *query) begin(buf []byte, code rcode, authoritative bool) response {
	flags := flagResponse | flagsOf(q.header)&(opcodeMask|flagRecursion) | uint16(code&15)
	if authoritative {
		flags |= flagAuthoritative
	}
	buf = append(buf[:0], q.header[:2]...)
	buf = binary.BigEndian.AppendUint16(buf, flags)
	questions := byte(min(len(q.question), 1))
	buf = append(buf, 0, questions, 0, 0, 0, 0, 0, 0)
	buf = append(buf, q.question...)
	return response{buf, code, len(buf), q.edns}
}

// record adds a record. name is the offset of the record's name in the message. The
// function data appends the record data.
func (r *response) record(s section, name int, kind uint16, ttl uint32, data func([]byte) []byte) {
	be := binary.BigEndian
	r.buf = append(r.buf, 0xc0|byte(name>>8), byte(name))
	r.buf = be.AppendUint16(r.buf, kind)
	r.buf = be.AppendUint16(r.buf, classIN)
	r.buf = be.AppendUint32(r.buf, ttl)
	length := len(r.buf)
	r.buf = data(append(r.buf, 0, 0))
	be.PutUint16(r.buf[length:], uint16(len(r.buf)-length-2))
	be.PutUint16(r.buf[s:], be.Uint16(r.buf[s:])+1)
}

// end completes the response. A UDP response is truncated if it exceeds the client's maximum size.
func (r *response) end(tcp bool) []byte {
	opt := 0
	if r.present {
		opt = 11
	}
	if !tcp && len(r.buf)+opt > r.size {
		r.truncate()
	}
	if r.present {
		flags := uint16(0)
		if r.dnssec {
			flags = flagDNSSEC // RFC 3225 section 3
		}
		r.buf = append(r.buf, 0, 0, typeOPT, maxUDP>>8, maxUDP&255, byte(r.code>>4), 0)
		r.buf = append(binary.BigEndian.AppendUint16(r.buf, flags), 0, 0)
		r.buf[11]++
	}
	return r.buf
}

// truncate removes all records. The TC flag makes the client retry over TCP.
func (r *response) truncate() {
	r.buf = r.buf[:r.body]
	clear(r.buf[answers:headerSize])
	r.buf[2] |= flagTruncated >> 8
}
