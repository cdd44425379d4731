package dnsbl

import (
	"net/netip"
	"time"

	"scanwatch/internal/text"
)

// A zone is a block list.
type zone struct {
	name string
	wire []byte // the name in wire form, in lower case
	ttl  uint32 // maximum TTL in seconds
	code byte   // last byte of the address in A records
	list list
}

// A listed address resolves to 127.0.0.N, where N depends on the kind of zone.
const (
	codeBans     = 2
	codeScanners = 3
	codeClouds   = 4
	codeFile     = 5
)

// A list holds the addresses in a zone. All methods may be called concurrently.
type list interface {
	// find returns the entry that lists an address, with its text only if wantText is set.
	find(a netip.Addr, wantText bool) (e entry, ok bool)
	// overlaps reports whether p may contain a listed address.
	overlaps(p netip.Prefix) bool
	// state returns the time of the latest change and the number of entries. ready is false while
	// the entries are unknown. The server must not treat a list as empty before it is ready.
	state() (changed time.Time, entries int, ready bool)
}

// An entry lists an address.
type entry struct {
	left uint32 // seconds until the entry expires; 0 if it never expires
	text string
}

// Test addresses from RFC 5782 section 5. The IPv6 test addresses are IPv4-mapped.
var (
	testListed  = netip.MustParseAddr("127.0.0.2")
	testListed6 = netip.MustParseAddr("::ffff:127.0.0.2")
	testNetwork = netip.MustParsePrefix("127.0.0.0/8")
)

const (
	testText    = "Test entry of this list"
	maxText     = 160 // bytes of a TXT record
	defaultTTL  = 5 * time.Minute
	negativeTTL = 60 // seconds until all resolvers see a new entry

	// The SOA timers matter only to secondary servers, which these zones do not have.
	soaRefresh, soaRetry, soaExpire = 3600, 600, 86400
)

// nameServer is the server's label in each zone, in wire form. responsible represents the
// mailbox hostmaster@ZONE (RFC 2142).
var nameServer, responsible = []byte("\x02ns"), []byte("\x0ahostmaster")

// A presence describes whether a name exists, and whether it has records.
type presence int

const (
	absent presence = iota
	empty           // the name has no records, but there may be names below it
	listed
)

// look returns the entry for a name. labels is the number of labels that precede the
// zone's name.
func (z *zone) look(name []byte, labels int, wantText bool) (entry, presence) {
	four, six := addresses(name, labels)
	found := absent
	for _, p := range []netip.Prefix{four, six} {
		switch {
		case !p.IsValid():
		case p.IsSingleIP():
			if e, ok := z.find(p.Addr().Unmap(), wantText); ok {
				return e, listed
			}
		case z.below(p):
			found = empty
		}
	}
	return entry{}, found
}

func (z *zone) find(a netip.Addr, wantText bool) (entry, bool) {
	if testNetwork.Contains(a) {
		return entry{text: testText}, a == testListed
	}
	e, ok := z.list.find(a, wantText)
	if wantText {
		e.text = text.ASCII(e.text, maxText)
	}
	return e, ok
}

// below reports whether p may contain a listed address. If so, the name of p exists (RFC 8020).
func (z *zone) below(p netip.Prefix) bool {
	return p.Contains(testListed) || p.Contains(testListed6) || z.list.overlaps(p)
}
