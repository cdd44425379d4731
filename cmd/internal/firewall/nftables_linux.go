package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"scanwatch/rules"
)

// nftables talks to the kernel directly, because nft(8) reads all elements of all
// interval sets for every change.
type nftables struct {
	argument string
	family   byte
	table    string
	sets     []set
	handles  []uint64 // handles of the table and its sets
	conn     *netlink
}

// Attributes missing from golang.org/x/sys/unix.
const (
	nftaTableHandle = 4
	nftaSetHandle   = 16
)

var nftFamilies = map[string]byte{"inet": unix.NFPROTO_INET, "ip": unix.NFPROTO_IPV4, "ip6": unix.NFPROTO_IPV6, "bridge": unix.NFPROTO_BRIDGE, "netdev": unix.NFPROTO_NETDEV}

// openNFTables returns the target for `to nftables "family table prefix"`.
func openNFTables(c *rules.Companion) (*target, error) {
	words := strings.Fields(c.Argument)
	if len(words) != 3 || nftFamilies[words[0]] == 0 {
		return nil, fmt.Errorf("target nftables %q: must be a family, a table and the prefix of the sets, such as \"inet filter scanwatch\"", c.Argument)
	}
	n := &nftables{argument: words[0] + " " + words[1], family: nftFamilies[words[0]], table: words[1]}
	for _, s := range setsOf(words[2]) {
		if words[0] == "ip" && s.v6 || words[0] == "ip6" && !s.v6 {
			continue // the table sees no packets of this family
		}
		n.sets = append(n.sets, s)
	}
	return &target{list: n.list, change: n.change, intact: n.intact, ends: true, disjoint: true,
		pause: 200 * time.Millisecond, retry: checkEvery}, nil
}

// nftDefinition returns the definition of s in a ruleset.
func nftDefinition(s *set) string {
	kind, flags := "ipv4_addr", "timeout"
	if s.v6 {
		kind = "ipv6_addr"
	}
	if s.nets {
		flags = "interval, timeout"
	}
	return fmt.Sprintf("set %s { type %s; flags %s; }", s.name, kind, flags)
}

// ask calls f with a connection. After an error, the next call opens a new connection.
func (n *nftables) ask(f func(*netlink) error) (err error) {
	if n.conn == nil {
		if n.conn, err = dialNetlink(); err != nil {
			return err
		}
	}
	if err = f(n.conn); err != nil {
		n.conn.close()
		n.conn = nil
	}
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w; the companion needs the capability CAP_NET_ADMIN", err)
	}
	return err
}

// intact compares the handles of the table and its sets, which change when the ruleset is
// reloaded. It returns an error if a set is missing or has the wrong properties.
func (n *nftables) intact(context.Context, func() int) (bool, error) {
	var handles []uint64
	err := n.ask(func(c *netlink) (err error) {
		handles, err = n.readHandles(c)
		return err
	})
	same := slices.Equal(handles, n.handles)
	n.handles = handles
	return same, err
}

func (n *nftables) readHandles(c *netlink) (handles []uint64, err error) {
	err = c.get(unix.NFT_MSG_GETTABLE, 0, n.family, stringAttr(nil, unix.NFTA_TABLE_NAME, n.table), func(body []byte) {
		handles = append(handles, number(find(body, nftaTableHandle)))
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("table %s does not exist; add it to the ruleset, with: %s", n.argument, definitions(n.sets))
	case err != nil:
		return nil, fmt.Errorf("read table %s: %w", n.argument, err)
	}
	var missing []set
	for i := range n.sets {
		s := &n.sets[i]
		var wrong error
		body := stringAttr(stringAttr(nil, unix.NFTA_SET_TABLE, n.table), unix.NFTA_SET_NAME, s.name)
		err := c.get(unix.NFT_MSG_GETSET, 0, n.family, body, func(body []byte) {
			wrong = n.check(s, body)
			handles = append(handles, number(find(body, nftaSetHandle)))
		})
		switch {
		case errors.Is(err, unix.ENOENT):
			missing = append(missing, *s)
		case err != nil:
			return nil, fmt.Errorf("read set %s of table %s: %w", s.name, n.argument, err)
		case wrong != nil:
			return nil, wrong
		}
	}
	if missing != nil {
		return nil, fmt.Errorf("table %s lacks sets; add to it: %s", n.argument, definitions(missing))
	}
	return handles, nil
}

func definitions(sets []set) string {
	var all []string
	for i := range sets {
		all = append(all, nftDefinition(&sets[i]))
	}
	return strings.Join(all, " ")
}

// check compares a set's properties with its definition.
func (n *nftables) check(s *set, body []byte) error {
	flags := number(find(body, unix.NFTA_SET_FLAGS))
	keyLen := uint64(4)
	if s.v6 {
		keyLen = 16
	}
	if number(find(body, unix.NFTA_SET_KEY_LEN)) != keyLen || flags&unix.NFT_SET_TIMEOUT == 0 || (flags&unix.NFT_SET_INTERVAL != 0) != s.nets {
		return fmt.Errorf("table %s has a different set %s; define it as: %s", n.argument, s.name, nftDefinition(s))
	}
	return nil
}

// elements returns the attributes of a request that concerns elements of s.
func (n *nftables) elements(s *set, list []byte) []byte {
	body := stringAttr(stringAttr(nil, unix.NFTA_SET_ELEM_LIST_TABLE, n.table), unix.NFTA_SET_ELEM_LIST_SET, s.name)
	if list != nil {
		body = attr(body, unix.NFTA_SET_ELEM_LIST_ELEMENTS|unix.NLA_F_NESTED, list)
	}
	return body
}

// A point is a host, or the start or end of a network in a set.
type point struct {
	addr netip.Addr
	end  bool
	left time.Duration
}

func (n *nftables) list(context.Context) (map[netip.Prefix]time.Duration, error) {
	content := map[netip.Prefix]time.Duration{}
	for i := range n.sets {
		s := &n.sets[i]
		var points []point
		err := n.ask(func(c *netlink) error {
			return c.get(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, n.family, n.elements(s, nil), func(body []byte) {
				attrs(find(body, unix.NFTA_SET_ELEM_LIST_ELEMENTS), func(_ uint16, elem []byte) bool {
					if p, ok := readPoint(elem); ok {
						points = append(points, p)
					}
					return true
				})
			})
		})
		switch {
		case errors.Is(err, unix.ENOENT):
			return nil, fmt.Errorf("set %s of table %s does not exist", s.name, n.argument)
		case err != nil:
			return nil, fmt.Errorf("list set %s of table %s: %w", s.name, n.argument, err)
		case !s.nets:
			for _, p := range points {
				content[netip.PrefixFrom(p.addr, p.addr.BitLen())] = p.left
			}
		case !intervals(points, content):
			// Another program has added address ranges that are not networks.
			if err := n.flush(s); err != nil {
				return nil, err
			}
		}
	}
	return content, nil
}

func readPoint(elem []byte) (p point, ok bool) {
	p.left = forever
	attrs(elem, func(kind uint16, v []byte) bool {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			p.addr, ok = netip.AddrFromSlice(find(v, unix.NFTA_DATA_VALUE))
		case unix.NFTA_SET_ELEM_FLAGS:
			p.end = number(v)&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_EXPIRATION:
			p.left = time.Duration(number(v)) * time.Millisecond
		}
		return true
	})
	return p, ok
}

// intervals adds the networks with the given starts and ends to content, or returns false
// if any interval is not a network.
func intervals(points []point, content map[netip.Prefix]time.Duration) bool {
	slices.SortFunc(points, func(a, b point) int {
		if c := a.addr.Compare(b.addr); c != 0 || a.end == b.end {
			return c
		}
		if a.end {
			return -1
		}
		return 1
	})
	for i, p := range points {
		if p.end {
			continue
		}
		end := netip.Addr{} // stays invalid for a network that ends with the last address
		if i+1 < len(points) {
			if !points[i+1].end {
				return false
			}
			end = points[i+1].addr
		}
		q := networkBetween(p.addr, end)
		if !q.IsValid() {
			return false
		}
		content[q] = p.left
	}
	return true
}

// networkBetween returns the network that starts at start and ends just before end.
func networkBetween(start, end netip.Addr) netip.Prefix {
	for bits := start.BitLen(); bits > 0; bits-- {
		p := netip.PrefixFrom(start, bits)
		if p.Masked() != p {
			break
		}
		if after(p) == end {
			return p
		}
	}
	return netip.Prefix{}
}

// after returns the address that follows p, or the zero Addr if p ends with the last
// address.
func after(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last.Next()
}

func (n *nftables) flush(s *set) error {
	return n.ask(func(c *netlink) error {
		t := c.begin()
		t.add(unix.NFT_MSG_DELSETELEM, 0, n.family, n.elements(s, nil))
		return t.commit()
	})
}

// change applies changes in transactions of limited size. Removals come first, so that
// networks are never nested.
func (n *nftables) change(_ context.Context, remove []netip.Prefix, add []entry) error {
	return n.ask(func(c *netlink) error {
		var part changes
		size := 0
		room := func(p netip.Prefix, operations int) error {
			if !p.IsSingleIP() {
				operations *= 2 // networks have a start and an end
			}
			if size += operations * maxElement; size <= c.batch {
				return nil
			}
			err := n.commit(c, &part)
			part, size = changes{}, operations*maxElement
			return err
		}
		for _, p := range remove {
			if err := room(p, 2); err != nil {
				return err
			}
			part.remove = append(part.remove, p)
		}
		for _, e := range add {
			operations := 1
			if e.renewed {
				operations = 3
			}
			if err := room(e.prefix, operations); err != nil {
				return err
			}
			if e.renewed {
				part.remove = append(part.remove, e.prefix)
			}
			part.add = append(part.add, e)
		}
		return n.commit(c, &part)
	})
}

// changes holds the changes in a transaction.
type changes struct {
	remove []netip.Prefix
	add    []entry
}

// commit applies changes in one transaction. The kernel rejects a transaction that deletes a
// missing element, and elements may expire at any time. Therefore, commit adds each element before
// it deletes the element.
func (n *nftables) commit(c *netlink, all *changes) error {
	t := c.begin()
	for i := range n.sets {
		s := &n.sets[i]
		var remove, add []entry
		for _, p := range all.remove {
			if s.takes(p) {
				remove = append(remove, entry{prefix: p})
			}
		}
		for _, e := range all.add {
			if s.takes(e.prefix) {
				add = append(add, e)
			}
		}
		n.elementsOf(t, unix.NFT_MSG_NEWSETELEM, s, remove)
		n.elementsOf(t, unix.NFT_MSG_DELSETELEM, s, remove)
		n.elementsOf(t, unix.NFT_MSG_NEWSETELEM, s, add)
	}
	err := t.commit()
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("change the sets of table %s: %w; they have just been removed", n.argument, err)
	case errors.Is(err, unix.ENFILE):
		return fmt.Errorf("change the sets of table %s: %w; a set is full, give it a larger size or none", n.argument, err)
	case err != nil:
		return fmt.Errorf("change the sets of table %s: %w", n.argument, err)
	}
	return nil
}

// elementsOf adds an operation on elements of s to a transaction.
func (n *nftables) elementsOf(t *batch, kind int, s *set, entries []entry) {
	flags := 0
	if kind == unix.NFT_MSG_NEWSETELEM {
		flags = unix.NLM_F_CREATE
	}
	var list []byte
	for i, e := range entries {
		list = element(list, e.prefix.Addr(), e.left, 0)
		if end := after(e.prefix); s.nets && end.IsValid() {
			list = element(list, end, 0, unix.NFT_SET_ELEM_INTERVAL_END)
		}
		if len(list) > maxElements || i == len(entries)-1 {
			t.add(kind, flags, n.family, n.elements(s, list))
			list = nil
		}
	}
}

// maxElement is the maximum length of an element in a message.
const maxElement = 56

func element(b []byte, key netip.Addr, left time.Duration, flags uint32) []byte {
	e := attr(nil, unix.NFTA_SET_ELEM_KEY|unix.NLA_F_NESTED, attr(nil, unix.NFTA_DATA_VALUE, key.AsSlice()))
	if flags != 0 {
		e = attr(e, unix.NFTA_SET_ELEM_FLAGS, binary.BigEndian.AppendUint32(nil, flags))
	}
	if left > 0 {
		e = uint64Attr(e, unix.NFTA_SET_ELEM_TIMEOUT, uint64(left.Milliseconds()))
	}
	return attr(b, unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, e)
}
