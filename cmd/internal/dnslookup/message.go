package dnslookup

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// negativeTTL is the lifetime of a negative answer without an SOA record.
	negativeTTL = 5 * time.Minute
	// maxTTL is the longest lifetime of any answer.
	maxTTL = 24 * time.Hour
)

// maxAddresses is the maximum number of addresses in a response. No list returns more codes for an
// address.
const maxAddresses = 16

// errCorrupt means that a response is not a valid DNS message.
var errCorrupt = errors.New("corrupt response")

// A response answers a query for addresses.
type response struct {
	addrs     []netip.Addr // empty if the name does not exist or has no address
	ttl       time.Duration
	truncated bool // ask over TCP
}

// newQuery returns a query for the IPv4 addresses of a name.
func newQuery(id uint16, name string) ([]byte, error) {
	n, err := dnsmessage.NewName(name + ".")
	if err != nil {
		return nil, errors.New("name too long") // the name may contain a key
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	b, err := m.Pack()
	if err != nil {
		return nil, errors.New("invalid name")
	}
	return b, nil
}

// parseResponse parses a packet. If the packet is not a response to the query with this id and
// name, matches is false, because another host may have sent the packet. Errors do not contain the
// name.
func parseResponse(packet []byte, id uint16, name string) (r response, matches bool, err error) {
	var p dnsmessage.Parser
	h, err := p.Start(packet)
	if err != nil || h.ID != id || !h.Response || h.OpCode != 0 {
		return r, false, nil
	}
	q, err := p.Question()
	if err != nil || !isQuestion(&q, name) {
		return r, false, nil
	}
	if _, err := p.Question(); err != dnsmessage.ErrSectionDone {
		return r, false, nil
	}
	switch {
	case h.Truncated:
		return response{truncated: true}, true, nil
	case h.RCode != dnsmessage.RCodeSuccess && h.RCode != dnsmessage.RCodeNameError:
		return r, true, fmt.Errorf("response code %s", strings.TrimPrefix(h.RCode.String(), "RCode"))
	}
	r.ttl = maxTTL
	if err := r.answers(&p, name); err != nil {
		return response{}, true, err
	}
	switch {
	case len(r.addrs) == 0:
		r.ttl = authorityTTL(&p)
	case h.RCode == dnsmessage.RCodeNameError:
		return response{}, true, errors.New("addresses of a name that does not exist")
	}
	return r, true, nil
}

func isQuestion(q *dnsmessage.Question, name string) bool {
	return q.Type == dnsmessage.TypeA && q.Class == dnsmessage.ClassINET && isName(q.Name, name)
}

func isName(n dnsmessage.Name, name string) bool {
	return strings.EqualFold(strings.TrimSuffix(n.String(), "."), name)
}

// answers reads the addresses from the answer section. An alias (CNAME) is an error: lists do not
// use aliases, but some resolvers return one instead of reporting that a name does not exist.
func (r *response) answers(p *dnsmessage.Parser, name string) error {
	for {
		h, err := p.AnswerHeader()
		switch {
		case err == dnsmessage.ErrSectionDone:
			return nil
		case err != nil:
			return errCorrupt
		case h.Type == dnsmessage.TypeCNAME:
			return errors.New("alias instead of an address")
		case h.Type != dnsmessage.TypeA: // such as a DNSSEC signature
			if p.SkipAnswer() != nil {
				return errCorrupt
			}
			continue
		case h.Class != dnsmessage.ClassINET || h.Length != net.IPv4len || !isName(h.Name, name) || len(r.addrs) == maxAddresses:
			return errCorrupt
		}
		a, err := p.AResource()
		if err != nil {
			return errCorrupt
		}
		r.addrs = append(r.addrs, netip.AddrFrom4(a.A))
		r.ttl = min(r.ttl, time.Duration(h.TTL)*time.Second)
	}
}

// authorityTTL returns the lifetime of a negative answer (RFC 2308 section 5).
func authorityTTL(p *dnsmessage.Parser) time.Duration {
	for {
		h, err := p.AuthorityHeader()
		if err != nil {
			return negativeTTL
		}
		if h.Type != dnsmessage.TypeSOA {
			if p.SkipAuthority() != nil {
				return negativeTTL
			}
			continue
		}
		soa, err := p.SOAResource()
		if err != nil {
			return negativeTTL
		}
		return min(time.Duration(min(h.TTL, soa.MinTTL))*time.Second, maxTTL)
	}
}
