package detect

import (
	"bytes"
	"net/netip"
	"slices"

	"scanwatch/filter/memory"
	"scanwatch/internal/hostname"
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

// Internal reports whether a belongs to this host, or to a private or link-local network (RFC 1918,
// RFC 4193) that the internet cannot reach. Internal clients may greet with any name.
func (s *Site) Internal(a netip.Addr) bool {
	return s.OwnAddr(a) || a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast()
}

// OwnAddr reports whether a is an address of this host or an address in one of the policy's
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

// OwnName reports whether name is one of the server's names. The server's names are the name in its
// greeting, the site name in smtpd.conf(5), and the names in own-name statements. The name may end
// with a dot.
func (s *Site) OwnName(name []byte) bool {
	name = bytes.TrimSuffix(name, []byte{'.'})
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

// LocalDomain reports whether this server accepts mail for domain. sure reports whether the
// operator has listed all local domains. If sure is false, a domain that is not known to be local
// may still be local.
func (s *Site) LocalDomain(domain []byte) (local, sure bool) {
	if s.Policy != nil {
		if table := s.Policy.Table("local-domains"); table != nil {
			return table.MatchName(domain), true
		}
	}
	return s.Memory.Domains.Local(domain), false
}

// OwnDomain reports whether a proven name of a client lies in a domain of this site: in a domain of
// the table <local-domains>, or in the registered domain of the server if the server accepts mail
// for it. Other domains learned from accepted mail are not sufficient, because they may belong to
// users. A name that a provider has chosen for a customer's host is not in a domain of the site.
func (s *Site) OwnDomain(name []byte) bool {
	if len(name) == 0 || hostname.Generic(name) {
		return false
	}
	if s.Policy != nil {
		if table := s.Policy.Table("local-domains"); table != nil {
			for rest, ok := bytes.TrimSuffix(name, []byte{'.'}), true; ok && len(rest) > 0; _, rest, ok = bytes.Cut(rest, []byte{'.'}) {
				if table.MatchName(rest) {
					return true
				}
			}
		}
	}
	domain := []byte(hostname.Registered(s.Name))
	local, _ := s.LocalDomain(domain)
	return len(domain) > 0 && local && sameOwner(s.Name, name)
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
