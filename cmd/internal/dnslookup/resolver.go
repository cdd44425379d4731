package dnslookup

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"scanwatch/filter/lookup/feed"
)

// Limits of a query. A query takes at most twice timeout over UDP, and once over TCP.
const (
	timeout    = time.Second
	attempts   = 2
	maxPackets = 32       // over UDP; more packets are a flood
	maxMessage = 16 << 10 // over TCP, in bytes
	maxServers = 3        // in resolv.conf(5)
)

var (
	errTimeout = errors.New("timeout")
	errFlood   = errors.New("too many other responses")
	// errNoServer means that no resolver can be used.
	errNoServer = errors.New("no resolver")
)

// A resolver asks DNS servers. Its methods may be called concurrently.
type resolver struct {
	servers []netip.AddrPort
	timeout time.Duration
}

// ask asks the servers with the given indexes in turn, and returns a name's addresses, the server
// asked last, and the number of queries sent. Errors contain the server's address, but not the
// name.
func (r *resolver) ask(ctx context.Context, use []int, name string) (resp response, via, queries int, err error) {
	if len(use) == 0 {
		return resp, 0, 0, errNoServer
	}
	for i := range attempts {
		via = use[i%len(use)]
		var n int
		resp, n, err = r.exchange(ctx, r.servers[via], name)
		if queries += n; err == nil || ctx.Err() != nil {
			return resp, via, queries, err
		}
		err = fmt.Errorf("resolver %s: %w", r.servers[via], err)
	}
	return resp, via, queries, err
}

// exchange asks one server, and repeats the query over TCP if the UDP response is truncated. Each
// query has a random id and, because its socket is new, a random port.
func (r *resolver) exchange(ctx context.Context, server netip.AddrPort, name string) (resp response, queries int, err error) {
	var random [2]byte
	if _, err := rand.Read(random[:]); err != nil {
		return resp, 0, err
	}
	id := binary.BigEndian.Uint16(random[:])
	query, err := newQuery(id, name)
	if err != nil {
		return resp, 0, err
	}
	if resp, err = r.udp(ctx, server, query, id, name); err != nil || !resp.truncated {
		return resp, 1, clean(err)
	}
	resp, err = r.tcp(ctx, server, query, id, name)
	return resp, 2, clean(err)
}

// clean shortens network errors: it replaces deadline errors, and removes addresses from other
// errors, because the client's port is always different.
func clean(err error) error {
	var e net.Error
	var op *net.OpError
	var call *os.SyscallError
	switch {
	case errors.Is(err, net.ErrClosed) || errors.As(err, &e) && e.Timeout():
		return errTimeout
	case errors.As(err, &call):
		return call.Err
	case errors.As(err, &op):
		return op.Err
	}
	return err
}

// dial connects to a server. The connection is closed at the timeout, or when ctx is done.
func (r *resolver) dial(ctx context.Context, network string, server netip.AddrPort) (net.Conn, func(), error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	conn, err := new(net.Dialer).DialContext(ctx, network, server.String())
	if err != nil {
		cancel()
		return nil, nil, err
	}
	until, _ := ctx.Deadline()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	if err := conn.SetDeadline(until); err != nil {
		conn.Close()
	}
	return conn, func() { stop(); cancel(); conn.Close() }, nil
}

func (r *resolver) udp(ctx context.Context, server netip.AddrPort, query []byte, id uint16, name string) (resp response, err error) {
	conn, done, err := r.dial(ctx, "udp", server)
	if err != nil {
		return resp, err
	}
	defer done()
	if _, err := conn.Write(query); err != nil {
		return resp, err
	}
	packet := make([]byte, 4096)
	for range maxPackets {
		n, err := conn.Read(packet)
		if err != nil {
			return resp, err
		}
		if resp, matches, err := parseResponse(packet[:n], id, name); matches {
			return resp, err
		}
	}
	return resp, errFlood
}

func (r *resolver) tcp(ctx context.Context, server netip.AddrPort, query []byte, id uint16, name string) (resp response, err error) {
	conn, done, err := r.dial(ctx, "tcp", server)
	if err != nil {
		return resp, err
	}
	defer done()
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)); err != nil {
		return resp, err
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return resp, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > maxMessage {
		return resp, errCorrupt
	}
	message := make([]byte, n)
	if _, err := io.ReadFull(conn, message); err != nil {
		return resp, err
	}
	resp, matches, err := parseResponse(message, id, name)
	if !matches || resp.truncated {
		return response{}, errCorrupt
	}
	return resp, err
}

// resolvConf is the file that lists the system's resolvers.
const resolvConf = "/etc/resolv.conf"

// maxConf is the maximum number of bytes read from resolvConf.
const maxConf = 64 << 10

// systemServers returns the servers listed in resolv.conf(5).
func systemServers(file string, port uint16) ([]netip.AddrPort, error) {
	f, err := feed.Open(file)
	if err != nil {
		return nil, fmt.Errorf("system resolvers: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConf))
	if err != nil {
		return nil, fmt.Errorf("system resolvers: %w", err)
	}
	var all []netip.AddrPort
	for line := range bytes.Lines(text) {
		words := strings.Fields(string(line))
		if len(words) < 2 || words[0] != "nameserver" || len(all) == maxServers {
			continue
		}
		if a, err := netip.ParseAddr(words[1]); err == nil {
			all = append(all, netip.AddrPortFrom(a, port))
		}
	}
	if all == nil {
		return nil, fmt.Errorf("system resolvers: no nameserver in %s; set one with companion lookup ... resolver", file)
	}
	return all, nil
}
