package detect

import (
	"bytes"
	"net/netip"
	"slices"

	"scanwatch/filter/memory"
	"scanwatch/rules"
)

// Site describes the local site.
type Site struct {
	Addrs  map[netip.Addr]bool // addresses of this host
	Name   []byte              // name in the server's greeting
	Admin  []byte              // site name in smtpd.conf(5)
	Policy *rules.Policy       // lists the operator's own addresses, names and domains; may be nil
	Memory *memory.Memory      // knows the learned local domains
}

// Internal reports whether a belongs to this host, or to a private or link-local
// network (RFC 1918, RFC 4193), which the internet cannot reach. Internal clients may
// greet with any name.
func (s *Site) Internal(a netip.Addr) bool {
	return s.OwnAddr(a) || a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast()
}

// OwnAddr reports whether a is one of this host's addresses or one of the policy's
// own-address statements.
func (s *Site) OwnAddr(a netip.Addr) bool {
	if s.Addrs[a] {
		return true
	}
	if s.Policy != nil {
		for _, p := range s.Policy.OwnAddresses {
			if p.Contains(a) {
				return true
			}
		}
	}
	return false
}

// OwnName reports whether name is one of the server's names, which come from its
// greeting, smtpd.conf(5) and own-name statements.
func (s *Site) OwnName(name []byte) bool {
	if len(name) == 0 {
		return false
	}
	if bytes.EqualFold(name, s.Name) || bytes.EqualFold(name, s.Admin) {
		return true
	}
	if s.Policy != nil {
		for _, own := range s.Policy.OwnNames {
			if len(own) == len(name) && bytes.EqualFold(name, []byte(own)) {
				return true
			}
		}
	}
	return false
}

// LocalDomain reports whether this server accepts mail for domain. sure reports whether
// the operator has listed all local domains, so that a negative answer is certain.
func (s *Site) LocalDomain(domain []byte) (local, sure bool) {
	if s.Policy != nil {
		if table := s.Policy.Table("local-domains"); table != nil {
			return table.MatchName(domain), true
		}
	}
	return s.Memory.Domains.Local(domain), false
}

// OwnIn reports whether a prefix includes an address for which OwnAddr is true.
func (s *Site) OwnIn(p netip.Prefix) bool {
	for a := range s.Addrs {
		if p.Contains(a) {
			return true
		}
	}
	return s.Policy != nil && slices.ContainsFunc(s.Policy.OwnAddresses, p.Overlaps)
}
