package dnsbl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"time"

	"scanwatch/internal/safego"
)

// Limits for TCP clients. There are few TCP clients, because resolvers use TCP only after a
// truncated response.
const (
	maxClients   = 64
	maxOfNetwork = 8
	idleTimeout  = 10 * time.Second // for a query
	writeTimeout = 5 * time.Second
)

// readBuffer is the size of the socket buffer for queued queries in bytes.
const readBuffer = 1 << 20

// fileInterval is the interval at which files are checked for changes.
const fileInterval = 10 * time.Second

// sockets holds a server's open sockets.
type sockets struct {
	udp []*net.UDPConn
	tcp []*net.TCPListener

	all sync.WaitGroup // goroutines that use the sockets

	mu      sync.Mutex
	closed  bool
	clients map[*net.TCPConn]netip.Prefix
}

// Listen opens the sockets. The process must be allowed to bind the port.
func (s *Server) Listen() error {
	for i, a := range s.listen {
		family := "4"
		if a.Addr().Is6() {
			family = "6"
		}
		udp, err := net.ListenUDP("udp"+family, net.UDPAddrFromAddrPort(a))
		if err != nil {
			s.close()
			return fmt.Errorf("listen on UDP %s: %w", a, bindProblem(err))
		}
		_ = udp.SetReadBuffer(readBuffer) // on error, the default suffices for most servers
		s.sockets.udp = append(s.sockets.udp, udp)
		if a.Port() == 0 { // tests let the system choose the port
			a = udp.LocalAddr().(*net.UDPAddr).AddrPort()
			s.listen[i] = a
		}
		tcp, err := net.ListenTCP("tcp"+family, net.TCPAddrFromAddrPort(a))
		if err != nil {
			s.close()
			return fmt.Errorf("listen on TCP %s: %w", a, bindProblem(err))
		}
		s.sockets.tcp = append(s.sockets.tcp, tcp)
	}
	return nil
}

// bindProblem adds a remedy to an error from bind(2).
func bindProblem(err error) error {
	for number, remedy := range map[syscall.Errno]string{
		syscall.EADDRINUSE:    "another name server is using it: set the port of companion serve, and let the resolver forward the zones to this port",
		syscall.EADDRNOTAVAIL: "list this host's addresses after listen",
		syscall.EACCES:        "start the service as root or with the capability CAP_NET_BIND_SERVICE, or set a port above 1023",
	} {
		if errors.Is(err, number) {
			return fmt.Errorf("%w; %s", err, remedy)
		}
	}
	return err
}

// Run serves clients until ctx is done. A value from reload makes Run check the zones' files for
// changes immediately.
func (s *Server) Run(ctx context.Context, reload <-chan struct{}) {
	run := func(name string, f func()) {
		s.sockets.all.Add(1)
		safego.Loop(s.log, name, f, s.sockets.all.Done)
	}
	s.readAll()
	for _, c := range s.sockets.udp {
		for range min(runtime.GOMAXPROCS(0), 4) {
			run("the UDP server", func() { s.serveUDP(c) })
		}
	}
	for _, l := range s.sockets.tcp {
		run("the TCP server", func() { s.serveTCP(l) })
	}
	defer s.sockets.all.Wait()
	defer s.close()
	tick := time.NewTicker(fileInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-reload:
		}
		s.readAll()
	}
}

// readAll rereads the files that have changed. Files may come from external sources, so a
// panic must not end the server.
func (s *Server) readAll() {
	if err := safego.Run(func() error { s.readFiles(); return nil }); err != nil {
		s.log.Error("zone files not read", "err", err, safego.Stack(err))
	}
}

func (s *Server) close() {
	k := &s.sockets
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	for _, c := range k.udp {
		c.Close()
	}
	for _, l := range k.tcp {
		l.Close()
	}
	for c := range k.clients {
		c.Close()
	}
}

// errorPause is the pause after a socket error, such as a lack of memory.
const errorPause = 10 * time.Millisecond

func (s *Server) serveUDP(c *net.UDPConn) {
	packet, buf := make([]byte, maxQuery), make([]byte, 0, maxUDP)
	for {
		n, client, err := c.ReadFromUDPAddrPort(packet)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			time.Sleep(errorPause)
			continue
		}
		if out := s.answer(buf, packet[:n], client, false); out != nil {
			_, _ = c.WriteToUDPAddrPort(out, client) // on error, the client retries
		}
	}
}

func (s *Server) serveTCP(l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			time.Sleep(errorPause)
			continue
		}
		client := c.RemoteAddr().(*net.TCPAddr).AddrPort()
		if !s.admit(c, client.Addr().Unmap()) {
			c.Close()
			continue
		}
		safego.Go(s.log, "a TCP client", func() {
			defer s.dismiss(c)
			s.serveClient(c, client)
		})
	}
}

// admit reports whether a TCP client may stay connected. Clients that may not query the zones are
// disconnected, because they could use up all connections.
func (s *Server) admit(c *net.TCPConn, client netip.Addr) bool {
	if _, ok := s.allow.Lookup(client); !ok {
		return false
	}
	k, network := &s.sockets, networkOf(client)
	k.mu.Lock()
	defer k.mu.Unlock()
	same := 0
	for _, n := range k.clients {
		if n == network {
			same++
		}
	}
	if k.closed || len(k.clients) >= maxClients || same >= maxOfNetwork {
		return false
	}
	if k.clients == nil {
		k.clients = map[*net.TCPConn]netip.Prefix{}
	}
	k.clients[c] = network
	k.all.Add(1)
	return true
}

func (s *Server) dismiss(c *net.TCPConn) {
	c.Close()
	s.sockets.mu.Lock()
	delete(s.sockets.clients, c)
	s.sockets.mu.Unlock()
	s.sockets.all.Done()
}

func (s *Server) serveClient(c *net.TCPConn, client netip.AddrPort) {
	var packet [maxQuery]byte
	buf := make([]byte, 0, maxUDP)
	for {
		if c.SetReadDeadline(time.Now().Add(idleTimeout)) != nil {
			return
		}
		if _, err := io.ReadFull(c, packet[:2]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(packet[:]))
		if n > len(packet) {
			return
		}
		if _, err := io.ReadFull(c, packet[:n]); err != nil {
			return
		}
		out := s.answer(buf, packet[:n], client, true)
		if out == nil || c.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
			return
		}
		length := binary.BigEndian.AppendUint16(nil, uint16(len(out)))
		if _, err := c.Write(append(length, out...)); err != nil {
			return
		}
	}
}
