// Package dnsbl implements an authoritative DNS server for block lists (RFC 5782). A
// block list consists of the running filter's bans, a shipped list, or the addresses in a
// file.
//
// The package parses and writes DNS messages itself. A response copies its question byte
// for byte, and names in the response are offsets into that question. Responses
// therefore preserve the case of letters and need no compression table. The tests check
// the messages with the parser from golang.org/x/net/dns/dnsmessage.
package dnsbl

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/control"
	"scanwatch/filter/lookup"
	"scanwatch/internal/prefix"
	"scanwatch/rules"
)

// A Server answers queries for its zones.
type Server struct {
	log       *slog.Logger
	started   time.Time
	listen    []netip.AddrPort
	allow     lookup.Prefixes[struct{}]
	zones     []*zone
	bans      *bans
	files     []*fileList
	clients   *limiter
	strangers *limiter
	sockets   sockets
}

// New returns a server for zones. A zone whose entries come from a file is not served until Run has
// read the file.
func New(c *rules.Companion, zones []*rules.Zone, log *slog.Logger) (*Server, error) {
	s := &Server{
		log: log, started: time.Now(), bans: newBans(),
		clients: newLimiter(clientRate, clientBurst), strangers: newLimiter(strangerRate, strangerBurst),
	}
	for _, a := range c.Listen {
		s.listen = append(s.listen, netip.AddrPortFrom(a, uint16(cmp.Or(c.Port, 53))))
	}
	for _, p := range slices.Concat(c.Allow, loopback) {
		s.allow.Add(p, struct{}{})
	}
	for _, a := range slices.Concat(c.Listen, prefix.Local()) { // addresses of this host
		s.allow.Add(netip.PrefixFrom(a, a.BitLen()), struct{}{})
	}
	lists, err := lookup.Builtin()
	if err != nil {
		return nil, err
	}
	for _, r := range zones {
		z := &zone{name: r.Name, wire: appendWire(nil, r.Name), ttl: uint32(cmp.Or(r.TTL, defaultTTL) / time.Second)}
		switch {
		case r.Bans:
			z.code, z.list = codeBans, s.bans
		case r.Builtin == lookup.Scanners:
			z.code, z.list = codeScanners, newBuiltin(r.Builtin, lists)
		case r.Builtin == lookup.Clouds:
			z.code, z.list = codeClouds, newBuiltin(r.Builtin, lists)
		case r.File != "":
			f := &fileList{path: config.ResolvePath(r.Pos.File, r.File), log: log, changed: s.started}
			s.files = append(s.files, f)
			z.code, z.list = codeFile, f
		default:
			return nil, fmt.Errorf("zone %s: the list %s has no addresses", r.Name, r.Builtin)
		}
		s.zones = append(s.zones, z)
	}
	// Sort the zones so that more specific zones precede the zones above them.
	slices.SortStableFunc(s.zones, func(a, b *zone) int { return len(b.wire) - len(a.wire) })
	return s, nil
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// HasBans reports whether any zone serves the bans.
func (s *Server) HasBans() bool {
	return slices.ContainsFunc(s.zones, func(z *zone) bool { return z.list == list(s.bans) })
}

// Check returns an error if any zone's file is unusable.
func Check(zones []*rules.Zone) error {
	for _, z := range zones {
		if z.File == "" {
			continue
		}
		f := fileList{path: config.ResolvePath(z.Pos.File, z.File), log: slog.New(slog.DiscardHandler)}
		if _, err := f.load(); err != nil {
			return fmt.Errorf("%s: zone %s: file %s: %w", z.Pos, z.Name, f.path, err)
		}
	}
	return nil
}

// Files returns the names of the files that zones are read from.
func (s *Server) Files() (names []string) {
	for _, f := range s.files {
		names = append(names, f.path)
	}
	return names
}

// readFiles rereads all files that have changed.
func (s *Server) readFiles() {
	for _, f := range s.files {
		f.read()
	}
}

// Apply implements follow.Apply for the zone of bans. It returns the number of entries in
// all zones, and an error if any zone's file is unusable.
func (s *Server) Apply(_ context.Context, l control.BanList, entries []control.BanEntry) (int, error) {
	if s.HasBans() {
		s.bans.apply(l, entries)
	}
	total := 0
	for _, z := range s.zones {
		_, n, _ := z.list.state()
		total += n
	}
	return total, s.problem()
}

// problem returns an error if any file is unusable.
func (s *Server) problem() error {
	for _, f := range s.files {
		f.mu.RLock()
		problem := f.problem
		f.mu.RUnlock()
		if problem != nil {
			return fmt.Errorf("%s: %w", f.path, problem)
		}
	}
	return nil
}

// answer returns the response to a packet, stored in buf. The result is nil if the server must not
// respond.
func (s *Server) answer(buf, packet []byte, client netip.AddrPort, tcp bool) []byte {
	if client.Port() == 0 {
		return nil // no client uses port 0
	}
	q, code, ok := parseQuery(packet)
	if !ok {
		return nil
	}
	from := client.Addr().Unmap().WithZone("")
	_, allowed := s.allow.Lookup(from)
	within := true
	switch {
	case tcp || from.IsLoopback(): // the address cannot be forged
	case allowed:
		within = s.clients.take(from, time.Since(s.started))
	case !s.strangers.take(from, time.Since(s.started)):
		return nil
	}
	var r response
	switch {
	case code != noError:
		r = q.begin(buf, code, false)
	case !allowed:
		r = q.begin(buf, refused, false)
	case !within:
		// Send a truncated response, which is no longer than the query. If the client's
		// address is not forged, the client retries over TCP. Without a response, the
		// client would wait for a timeout, and its mail would be delayed.
		r = q.begin(buf, noError, false)
		r.truncate()
	default:
		r = s.resolve(buf, &q)
	}
	return r.end(tcp)
}

// resolve returns the response to a valid query from a client that is allowed to ask.
func (s *Server) resolve(buf []byte, q *query) response {
	z := s.zoneOf(q)
	if z == nil || q.class != classIN && q.class != classANY || q.qtype == typeAXFR || q.qtype == typeIXFR {
		return q.begin(buf, refused, false)
	}
	changed, _, ready := z.list.state()
	if !ready {
		return q.begin(buf, serverFailure, false)
	}
	at := headerSize + len(q.name) - len(z.wire) // offset of the zone's name
	labels, _ := suffix(q.name, len(z.wire))
	serial := uint32(changed.Unix())
	negative := func(code rcode) response {
		r := q.begin(buf, code, true)
		r.soa(authority, at, min(negativeTTL, z.ttl), serial)
		return r
	}
	switch {
	case labels == 0:
		return z.apex(buf, q, at, serial, negative)
	case labels == 1 && equalFold(q.name[:len(nameServer)], nameServer):
		return s.nameServer(buf, q, z, negative)
	}
	e, found := z.look(q.name, labels, q.qtype == typeTXT)
	switch {
	case found == absent && !s.above(q):
		return negative(nameError)
	case found == absent:
		return negative(noError)
	case found == empty, q.qtype != typeA && q.qtype != typeTXT && q.qtype != typeANY:
		return negative(noError)
	}
	r := q.begin(buf, noError, true)
	ttl := z.ttl
	if e.left > 0 {
		ttl = min(ttl, e.left)
	}
	if q.qtype == typeTXT {
		r.record(answers, headerSize, typeTXT, ttl, func(b []byte) []byte { return append(append(b, byte(len(e.text))), e.text...) })
	} else { // for ANY, one record type is enough (RFC 8482)
		r.record(answers, headerSize, typeA, ttl, func(b []byte) []byte { return append(b, 127, 0, 0, z.code) })
	}
	return r
}

// zoneOf returns the most specific zone that contains the queried name, or nil.
func (s *Server) zoneOf(q *query) *zone {
	for _, z := range s.zones {
		if n := len(q.name) - len(z.wire); n >= 0 && equalFold(q.name[n:], z.wire) {
			if _, ok := suffix(q.name, len(z.wire)); ok {
				return z
			}
		}
	}
	return nil
}

// above reports whether the queried name is above a zone in the DNS tree. Such a name exists, even
// without records (RFC 8020).
func (s *Server) above(q *query) bool {
	return slices.ContainsFunc(s.zones, func(z *zone) bool {
		n := len(z.wire) - len(q.name)
		if n <= 0 || !equalFold(q.name, z.wire[n:]) {
			return false
		}
		_, ok := suffix(z.wire, len(q.name))
		return ok
	})
}

// apex answers a query for the zone's own name.
func (z *zone) apex(buf []byte, q *query, at int, serial uint32, negative func(rcode) response) response {
	if q.qtype != typeSOA && q.qtype != typeNS && q.qtype != typeANY {
		return negative(noError)
	}
	r := q.begin(buf, noError, true)
	if q.qtype == typeNS {
		r.record(answers, at, typeNS, z.ttl, func(b []byte) []byte { return appendPointer(append(b, nameServer...), at) })
	} else {
		r.soa(answers, at, z.ttl, serial)
	}
	return r
}

// nameServer answers a query for the server's name. If the server also listens on other
// addresses, loopback addresses are omitted, because they are useless to other hosts.
func (s *Server) nameServer(buf []byte, q *query, z *zone, negative func(rcode) response) response {
	var kind uint16
	r := q.begin(buf, noError, true)
	public := slices.ContainsFunc(s.listen, func(a netip.AddrPort) bool { return !a.Addr().IsLoopback() })
	for _, a := range s.listen {
		if public && a.Addr().IsLoopback() {
			continue
		}
		if kind = typeA; a.Addr().Is6() {
			kind = typeAAAA
		}
		if q.qtype == kind || q.qtype == typeANY && r.empty() {
			r.record(answers, headerSize, kind, z.ttl, func(b []byte) []byte { return append(b, a.Addr().AsSlice()...) })
		}
	}
	if r.empty() {
		return negative(noError)
	}
	return r
}

func (r *response) empty() bool { return binary.BigEndian.Uint16(r.buf[answers:]) == 0 }

// soa adds the SOA record of the zone whose name starts at the given offset. The record's
// TTL is also the TTL of negative answers (RFC 2308).
func (r *response) soa(s section, at int, ttl, serial uint32) {
	r.record(s, at, typeSOA, ttl, func(b []byte) []byte {
		b = appendPointer(append(b, nameServer...), at)
		b = appendPointer(append(b, responsible...), at)
		for _, n := range []uint32{serial, soaRefresh, soaRetry, soaExpire, min(negativeTTL, ttl)} {
			b = binary.BigEndian.AppendUint32(b, n)
		}
		return b
	})
}

func appendPointer(b []byte, at int) []byte { return append(b, 0xc0|byte(at>>8), byte(at)) }
