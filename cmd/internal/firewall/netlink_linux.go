package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Constants of nfnetlink messages; see linux/netfilter/nf_tables.h. Lengths and types are
// in host byte order, and values are in network byte order.

const (
	nlHeader   = unix.SizeofNlMsghdr
	nfHeader   = 4 // struct nfgenmsg
	attrHeader = unix.SizeofNlAttr
	typeMask   = ^uint16(unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)

	// maxElements limits the total length of the elements in a message, because the
	// length of their attribute is a 16-bit number.
	maxElements = 60_000

	// Maximum length of a transaction, with a large socket buffer and with the default
	// one. Only root can have a large buffer.
	largeBatch = 1_000_000
	smallBatch = 120_000

	netlinkTimeout = 20 * time.Second
)

// attr appends an attribute.
func attr(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeader+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, -len(value)&3)...)
}

func stringAttr(b []byte, kind uint16, s string) []byte {
	return attr(b, kind, append([]byte(s), 0))
}

func uint64Attr(b []byte, kind uint16, n uint64) []byte {
	return attr(b, kind, binary.BigEndian.AppendUint64(nil, n))
}

// attrs calls f for each attribute in b until f returns false.
func attrs(b []byte, f func(kind uint16, value []byte) bool) {
	for len(b) >= attrHeader {
		n := int(binary.NativeEndian.Uint16(b))
		if n < attrHeader || n > len(b) || !f(binary.NativeEndian.Uint16(b[2:])&typeMask, b[attrHeader:n]) {
			return
		}
		b = b[min((n+3)&^3, len(b)):]
	}
}

// find returns the value of the wanted attribute in b, or nil.
func find(b []byte, wanted uint16) (value []byte) {
	attrs(b, func(kind uint16, v []byte) bool {
		if kind == wanted {
			value = v
		}
		return kind != wanted
	})
	return value
}

// number decodes a 4-byte or 8-byte number. For other lengths, number returns 0.
func number(b []byte) uint64 {
	switch len(b) {
	case 4:
		return uint64(binary.BigEndian.Uint32(b))
	case 8:
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// message appends a message.
func message(b []byte, kind, flags int, seq uint32, family byte, resource uint16, body []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(nlHeader+nfHeader+len(body)))
	b = binary.NativeEndian.AppendUint16(b, uint16(kind))
	b = binary.NativeEndian.AppendUint16(b, uint16(flags|unix.NLM_F_REQUEST))
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0) // the kernel fills in the sender
	b = append(b, family, unix.NFNETLINK_V0)
	b = binary.BigEndian.AppendUint16(b, resource)
	return append(b, body...)
}

// A netlink is a socket for nf_tables.
type netlink struct {
	fd    int
	seq   uint32
	buf   []byte
	batch int // maximum length of a transaction
}

func dialNetlink() (*netlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	limit := unix.NsecToTimeval(int64(netlinkTimeout))
	for _, do := range []func() error{
		func() error { return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) },
		func() error { return unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1) },
		func() error { return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit) },
	} {
		if err := do(); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("open a netlink socket: %w", err)
		}
	}
	n := &netlink{fd: fd, buf: make([]byte, 64<<10), batch: smallBatch}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 2*largeBatch) == nil {
		n.batch = largeBatch
	}
	return n, nil
}

func (n *netlink) close() { unix.Close(n.fd) }

// kind returns the message type for an nf_tables message.
func kind(message int) int { return unix.NFNL_SUBSYS_NFTABLES<<8 | message }

// errEnd ends receive without an error.
var errEnd = errors.New("end")

// receive calls f for each message until f returns an error. If the message is an
// acknowledgement, or reports an error from the kernel, failed is set and body is empty.
func (n *netlink) receive(f func(kind uint16, flags uint16, seq uint32, body []byte, failed error) error) error {
	for {
		length, _, err := unix.Recvfrom(n.fd, n.buf, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("read from netlink: %w", err)
		}
		for b := n.buf[:length]; len(b) >= nlHeader; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < nlHeader || size > len(b) {
				return errors.New("read from netlink: truncated message")
			}
			kind, flags, seq := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), binary.NativeEndian.Uint32(b[8:])
			body := b[nlHeader:size]
			b = b[min((size+3)&^3, len(b)):]
			var failed error
			if kind == unix.NLMSG_ERROR || kind == unix.NLMSG_DONE {
				if len(body) >= 4 {
					if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
						failed = unix.Errno(-code)
					}
				}
				body = nil
			} else {
				body = body[min(nfHeader, len(body)):]
			}
			if err := f(kind, flags, seq, body, failed); err == errEnd {
				return nil
			} else if err != nil {
				return err
			}
		}
	}
}

// get sends a request and calls f for each reply.
func (n *netlink) get(request, flags int, family byte, body []byte, f func(body []byte)) error {
	n.seq++
	err := unix.Sendto(n.fd, message(nil, kind(request), flags|unix.NLM_F_ACK, n.seq, family, 0, body), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err != nil {
		return fmt.Errorf("write to netlink: %w", err)
	}
	interrupted := false
	err = n.receive(func(kind, flags uint16, seq uint32, body []byte, failed error) error {
		switch {
		case seq != n.seq:
			return nil // the reply belongs to an earlier request that failed
		case failed != nil:
			return failed
		case kind == unix.NLMSG_ERROR, kind == unix.NLMSG_DONE:
			return errEnd
		}
		interrupted = interrupted || flags&unix.NLM_F_DUMP_INTR != 0
		f(body)
		return nil
	})
	if err == nil && interrupted {
		return unix.EINTR
	}
	return err
}

// A batch is a transaction.
type batch struct {
	n     *netlink
	b     []byte
	first uint32
}

func (n *netlink) begin() *batch {
	n.seq++
	t := &batch{n: n, first: n.seq}
	t.b = message(nil, unix.NFNL_MSG_BATCH_BEGIN, 0, n.seq, 0, unix.NFNL_SUBSYS_NFTABLES, nil)
	return t
}

func (t *batch) add(kind_, flags int, family byte, body []byte) {
	t.n.seq++
	t.b = message(t.b, kind(kind_), flags|unix.NLM_F_ACK, t.n.seq, family, 0, body)
}

// commit commits the transaction. When sendto returns, the kernel has processed the
// transaction and has queued a reply for each message.
func (t *batch) commit() error {
	last := t.n.seq
	t.n.seq++
	t.b = message(t.b, unix.NFNL_MSG_BATCH_END, 0, t.n.seq, 0, unix.NFNL_SUBSYS_NFTABLES, nil)
	if last == t.first {
		return nil
	}
	if err := unix.Sendto(t.n.fd, t.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("write to netlink: %w", err)
	}
	var result error
	err := t.n.receive(func(_, _ uint16, seq uint32, _ []byte, failed error) error {
		if seq < t.first || seq > t.n.seq {
			return nil
		}
		if result == nil {
			result = failed
		}
		if seq == last || seq == t.first {
			return errEnd
		}
		return nil
	})
	if err != nil {
		return err
	}
	return result
}
