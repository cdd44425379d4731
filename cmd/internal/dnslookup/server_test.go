package dnslookup

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// A server is a DNS server for tests. The functions udp and tcp return the packets or bytes to send
// in response to a query.
type server struct {
	addr    netip.AddrPort
	udp     func(q *dnsmessage.Message) [][]byte
	tcp     func(q *dnsmessage.Message) [][]byte
	queries atomic.Int64
	mu      sync.Mutex // held while udp is called
}

// do calls f while the server is not handling a query.
func (s *server) do(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func newServer(t *testing.T, udp, tcp func(q *dnsmessage.Message) [][]byte) *server {
	t.Helper()
	s := &server{udp: udp, tcp: tcp}
	var conn *net.UDPConn
	var l *net.TCPListener
	for l == nil {
		var err error
		if conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
			t.Fatal(err)
		}
		s.addr = conn.LocalAddr().(*net.UDPAddr).AddrPort()
		if l, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(s.addr)); err != nil { // another process uses the port
			conn.Close()
			if l = nil; !errors.Is(err, syscall.EADDRINUSE) {
				t.Fatal(err)
			}
		}
	}
	t.Cleanup(func() { conn.Close(); l.Close() })
	go s.serveUDP(conn)
	go s.serveTCP(l)
	return s
}

func (s *server) serveUDP(conn *net.UDPConn) {
	packet := make([]byte, 4096)
	for {
		n, client, err := conn.ReadFromUDPAddrPort(packet)
		if err != nil {
			return
		}
		var q dnsmessage.Message
		if q.Unpack(packet[:n]) != nil {
			continue
		}
		s.queries.Add(1)
		var all [][]byte
		s.do(func() { all = s.udp(&q) })
		for _, p := range all {
			_, _ = conn.WriteToUDPAddrPort(p, client)
		}
	}
}

// serveTCP serves one query from a client, and keeps the connection open.
func (s *server) serveTCP(l *net.TCPListener) {
	for {
		conn, err := l.AcceptTCP()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			var length [2]byte
			if _, err := io.ReadFull(conn, length[:]); err != nil {
				return
			}
			packet := make([]byte, binary.BigEndian.Uint16(length[:]))
			var q dnsmessage.Message
			if _, err := io.ReadFull(conn, packet); err != nil || q.Unpack(packet) != nil || s.tcp == nil {
				return
			}
			for _, part := range s.tcp(&q) {
				_, _ = conn.Write(part)
			}
			_, _ = io.Copy(io.Discard, conn) // until the client closes the connection
		}()
	}
}

// reply returns the response to q with the given records.
func reply(q *dnsmessage.Message, code dnsmessage.RCode, answers ...dnsmessage.Resource) dnsmessage.Message {
	return dnsmessage.Message{
		Header:    dnsmessage.Header{ID: q.ID, Response: true, RCode: code, RecursionAvailable: true},
		Questions: q.Questions, Answers: answers,
	}
}

// packets packs messages.
func packets(all ...dnsmessage.Message) (list [][]byte) {
	for _, m := range all {
		b, err := m.Pack()
		if err != nil {
			panic(err)
		}
		list = append(list, b)
	}
	return list
}

// prefixed returns a message as sent over TCP, preceded by its length.
func prefixed(m dnsmessage.Message) [][]byte {
	b := packets(m)[0]
	return [][]byte{append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)}
}

// addresses returns A records for q's name.
func addresses(q *dnsmessage.Message, ttl uint32, list ...string) (all []dnsmessage.Resource) {
	for _, s := range list {
		all = append(all, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: ttl},
			Body:   &dnsmessage.AResource{A: netip.MustParseAddr(s).As4()},
		})
	}
	return all
}

// listed returns a server function that answers each query with the given addresses, or with
// NXDOMAIN if there are none.
func listed(list ...string) func(q *dnsmessage.Message) [][]byte {
	return func(q *dnsmessage.Message) [][]byte {
		code := dnsmessage.RCodeSuccess
		if len(list) == 0 {
			code = dnsmessage.RCodeNameError
		}
		return packets(reply(q, code, addresses(q, 600, list...)...))
	}
}
