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
	if !n.has(p) {
		n.bits[family(p.Addr())][p.Bits()]++
	}
	n.rows[p] = b
	n.changed(p)
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
