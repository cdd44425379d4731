package memory

import "net/netip"

// A book holds the bans of hosts and networks that either this host or other hosts have
// imposed. All methods require the lock.
type book struct {
	hosts    table[Host, ban]
	networks networkBans
	// ranges holds unbans of all hosts and networks in a prefix. An unban of the prefix itself is in
	// hosts or networks.
	ranges networkBans
}

// newBook returns an empty book. The names of its tables in Status are name and "network "
// followed by name. Stored rows for which keep returns false are deleted.
func newBook(s *shared, rules *ruleNames, name, bucket string, hosts, networks int, keep func(*ban) bool) book {
	read := func(key, value []byte) (netip.Prefix, ban, bool) {
		p, row, ok := rules.read(key, value)
		if ok && !keep(&row) {
			row = ban{} // has expired
		}
		return p, row, ok
	}
	table := func(name string, ranges bool) networkBans {
		return networkBans{
			rows: make(map[netip.Prefix]ban), held: make(map[string]int), displaced: make(map[string]int),
			limit: networks, rules: rules, read: read, name: name, bucket: bucket, ranges: ranges,
		}
	}
	return book{
		hosts: newTable(s, schema[Host, ban]{
			name: name, bucket: bucket, limit: hosts, evictionScore: banScore[Host],
			key:   func(k Host) []byte { return prefixKey(k.Prefix()) },
			value: rules.value,
			decode: func(key, value []byte) (Host, ban, bool) {
				p, row, ok := read(key, value)
				if _, wide, _ := readRange(key); !ok || wide || !isSource(p) {
					return Host{}, ban{}, false
				}
				return hostIn(p), row, true
			},
			shift:   func(_ Host, row *ban, by int64) { row.shift(by) },
			merge:   mergeBans,
			combine: func(_ Host, row *ban, other ban) { mergeBans(row, other) },
		}),
		networks: table("network "+name, false),
		ranges:   table("unbans of ranges", true),
	}
}

func (k *book) get(p netip.Prefix) (row ban, ok bool) {
	if isSource(p) {
		return k.hosts.get(hostIn(p))
	}
	row, ok = k.networks.rows[p]
	return row, ok
}

// live is get, but returns no expired row of a host.
func (k *book) live(p netip.Prefix, at uint32) (ban, bool) {
	if isSource(p) {
		return k.hosts.live(hostIn(p), at)
	}
	return k.get(p)
}

// put sets a row. It returns false if there are too many bans of networks.
func (k *book) put(p netip.Prefix, row ban, at uint32) bool {
	if isSource(p) {
		k.hosts.put(hostIn(p), row, at)
		return true
	}
	if !k.networks.makeRoom(p, at) {
		return false
	}
	k.networks.put(p, row)
	return true
}

// touch changes an existing row without sending it to other hosts again.
func (k *book) touch(p netip.Prefix, row ban) {
	if isSource(p) {
		k.hosts.touch(hostIn(p), row)
	} else {
		k.networks.touch(p, row)
	}
}

func (k *book) del(p netip.Prefix) {
	if isSource(p) {
		k.hosts.del(hostIn(p))
	} else {
		k.networks.del(p)
	}
}

// room reports whether there is room for a row of p that another host has sent. Rows of
// other hosts must not displace all rows of this host.
func (k *book) room(p netip.Prefix) bool {
	if isSource(p) {
		return len(k.hosts.rows) < k.hosts.limit/maxForeign
	}
	return k.networks.room()
}

// changed reports whether the row of p has changed, or was deleted, since it was last sent.
func (k *book) changed(p netip.Prefix) bool {
	if isSource(p) {
		return k.hosts.outgoing[hostIn(p)]
	}
	return k.networks.outgoing[p]
}

// resend causes other hosts to receive a row, or its deletion, again.
func (k *book) resend(p netip.Prefix) {
	switch {
	case !isSource(p):
		k.networks.resend(p)
	case isSource(p) && k.hosts.outgoing != nil:
		k.hosts.outgoing[hostIn(p)] = true
	}
}

// connect records a connection, and returns the active ban of a host, if any. If manual is
// set, connect ignores bans by rules.
func (k *book) connect(h Host, manual bool, at uint32) (row ban, active bool) {
	row, ok := k.hosts.get(h)
	if !ok || manual && row.flags&banManual == 0 {
		return row, false
	}
	row.settle(at)
	active = row.active(at)
	if active || !manual {
		row.connected(at, active)
		k.hosts.touch(h, row)
	}
	return row, active
}

// visitBook calls visit for each row for which export returns true, with the exported value.
// export is called with the lock held, and may change the row. visit is called without it.
func visitBook[E any](s *shared, k *book, export func(netip.Prefix, ban) (E, bool), visit func(E)) {
	networks := func() (list []E) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for p, row := range k.networks.rows {
			if e, ok := export(p, row); ok {
				list = append(list, e)
			}
		}
		return list
	}
	for _, e := range networks() {
		visit(e)
	}
	each(&s.mu, &k.hosts, func(h Host, row ban) (E, bool) { return export(h.Prefix(), row) }, visit)
}
