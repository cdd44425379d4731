package memory

import "net/netip"

// networkBans holds bans of networks. Only operators ban networks. A lookup of an address
// tries each prefix length in use, and returns the narrowest ban. networkBans also holds unbans of
// ranges.
type networkBans struct {
	rows  map[netip.Prefix]ban
	bits  [2][129]int // rows by family and prefix length
	dirty map[netip.Prefix]struct{}
	limit int // maximum number of rows
	rules *ruleNames
	read  func(key, value []byte) (netip.Prefix, ban, bool)
	name  string // name in Status
	// bucket is the name of the bucket on disk.
	bucket string
	ranges bool // the rows are unbans of all hosts and networks in a prefix
	// outgoing lists the bans that other hosts must receive; see table. It is nil if bans
	// are not shared.
	outgoing map[netip.Prefix]bool
	// held is the number of bans by every other host, and displaced the number of those deleted or not
	// added since startup because the table was full.
	held, displaced map[string]int
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func (n *networkBans) bucketName() string { return n.bucket }

func (n *networkBans) status() Status { return Status{n.name, len(n.rows), n.limit, 0} }

func (n *networkBans) has(p netip.Prefix) bool { _, ok := n.rows[p]; return ok }

func (n *networkBans) put(p netip.Prefix, b ban) {
	if old, had := n.rows[p]; had {
		n.hold(&old, -1)
	} else {
		n.bits[family(p.Addr())][p.Bits()]++
	}
	n.hold(&b, 1)
	n.rows[p] = b
	n.changed(p)
}

// hold adds to the number of bans by the host that has imposed b.
func (n *networkBans) hold(b *ban, by int) {
	origin := n.origin(b)
	if n.held[origin] += by; n.held[origin] == 0 {
		delete(n.held, origin)
	}
}

// origin returns the other host of a row, or "".
func (n *networkBans) origin(b *ban) string {
	origin, _ := splitOrigin(n.rules.list[b.rule])
	return origin
}

// touch changes an existing row without sending it to other hosts again.
func (n *networkBans) touch(p netip.Prefix, b ban) {
	n.rows[p] = b
	n.mark(p)
}

// mark causes changes to return the row of p.
func (n *networkBans) mark(p netip.Prefix) {
	if n.dirty == nil {
		n.dirty = make(map[netip.Prefix]struct{})
	}
	n.dirty[p] = struct{}{}
}

// del deletes an existing row.
func (n *networkBans) del(p netip.Prefix) {
	old := n.rows[p]
	n.hold(&old, -1)
	delete(n.rows, p)
	n.bits[family(p.Addr())][p.Bits()]--
	n.changed(p)
}

func (n *networkBans) changed(p netip.Prefix) {
	n.mark(p)
	n.resend(p)
}

// resend causes other hosts to receive a row, or its deletion, again.
func (n *networkBans) resend(p netip.Prefix) {
	if n.outgoing != nil {
		n.outgoing[p] = true
	}
}

// room reports whether there is room for a row that another host has sent. Rows of other hosts
// must not displace all rows of this host.
func (n *networkBans) room() bool { return len(n.rows) < n.limit/maxForeign }

func (n *networkBans) lookup(a netip.Addr, now uint32) (netip.Prefix, ban, bool) {
	if len(n.rows) == 0 {
		return netip.Prefix{}, ban{}, false
	}
	for bits := a.BitLen(); bits >= 0; bits-- {
		if n.bits[family(a)][bits] == 0 {
			continue
		}
		p, err := a.Prefix(bits)
		if err != nil {
			break
		}
		if b, ok := n.rows[p]; ok && b.active(now) {
			return p, b, true
		}
	}
	return netip.Prefix{}, ban{}, false
}

// makeRoom drops expired bans from a full table. It reports whether there is room for a
// ban of p.
func (n *networkBans) makeRoom(p netip.Prefix, now uint32) bool {
	if n.has(p) || len(n.rows) < n.limit {
		return true
	}
	var oldest netip.Prefix
	for p, b := range n.rows {
		if b.until+keepBan < now {
			n.del(p)
		} else if old, ok := n.rows[oldest]; b.until <= now && (!ok || b.until < old.until) {
			oldest = p
		}
	}
	if len(n.rows) >= n.limit && n.has(oldest) {
		n.del(oldest)
		delete(n.outgoing, oldest) // other hosts keep it
	}
	return len(n.rows) < n.limit
}

// makeFairRoom is makeRoom for a ban by another host. If the table is full of active bans, the host
// with the most bans loses its ban that ends first, which is returned, or the new ban if that host has
// imposed it.
func (n *networkBans) makeFairRoom(p netip.Prefix, b *ban, now uint32) (first netip.Prefix, ok bool) {
	if n.makeRoom(p, now) {
		return first, true
	}
	most := n.origin(b)
	highest := n.held[most] + 1
	for origin, held := range n.held {
		if held > highest {
			most, highest = origin, held
		}
	}
	n.displaced[most]++
	if most == n.origin(b) {
		return first, false
	}
	for q, row := range n.rows {
		if n.origin(&row) == most && (!first.IsValid() || row.until < n.rows[first].until) {
			first = q
		}
	}
	n.del(first)
	return first, true
}

func (n *networkBans) shift(by int64) {
	for p, b := range n.rows {
		b.shift(by)
		n.put(p, b)
	}
}

func (n *networkBans) rewrite() {
	for p := range n.rows {
		n.changed(p)
	}
}

func (n *networkBans) changes(count int, put func(key, value []byte)) (left int) {
	for p := range n.dirty {
		if count <= 0 {
			break
		}
		count--
		delete(n.dirty, p)
		var value []byte
		if b, ok := n.rows[p]; ok {
			value = n.rules.value(b)
		}
		put(n.key(p), value)
	}
	return count
}

func (n *networkBans) key(p netip.Prefix) []byte {
	if n.ranges {
		return rangeKey(p)
	}
	return prefixKey(p)
}

func (n *networkBans) restore(key, value []byte, now uint32) bool {
	p, b, ok := n.read(key, value)
	_, wide, _ := readRange(key)
	switch {
	case !ok || wide != n.ranges || !wide && isSource(p):
		return false
	case banScore(p, b, now) < 0:
		n.mark(p) // deletes the row
	case !n.has(p) && len(n.rows) < n.limit:
		n.put(p, b)
		delete(n.dirty, p)
	}
	return true
}
