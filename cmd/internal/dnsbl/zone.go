package dnsbl

import (
	"net/netip"
	"time"

	"scanwatch/internal/text"
)

// A zone is a block list.
type zone struct {
	name string
	wire []byte // the name in the form of messages, in lower case
	ttl  uint32 // maximum of the records, in seconds
	code byte   // last byte of the address in an A record
	list list
}

// The last byte of the address that a zone answers for a listed address, by the kind of
// the zone. The others are 127.0.0.
const (
	codeBans     = 2
	codeScanners = 3
	codeClouds   = 4
	codeFile     = 5
)

// A list contains the addresses of a zone. The methods may be called concurrently.
type list interface {
	// find returns the entry that lists an address. The text is only needed if
	// wantText is set.
	find(a netip.Addr, wantText bool) (e entry, ok bool)
	// overlaps reports whether p may contain a listed address.
	overlaps(p netip.Prefix) bool
	// state returns the time of the latest change, and the number of entries. ready is
	// false if the list is unknown: an empty list would be wrong.
	state() (changed time.Time, entries int, ready bool)
}

// An entry lists an address.
type entry struct {
	left uint32 // seconds until the entry expires; 0 if it does not
	text string
}

// The test addresses (RFC 5782 section 5). In IPv6 they are the IPv4-mapped forms.
var (
	testListed  = netip.MustParseAddr("127.0.0.2")
	testListed6 = netip.MustParseAddr("::ffff:127.0.0.2")
	testNetwork = netip.MustParsePrefix("127.0.0.0/8")
)

const (
	testText    = "Test entry of this list"
	maxText     = 160 // bytes of a TXT record
	defaultTTL  = 5 * time.Minute
	negativeTTL = 60 // a new entry is effective after this number of seconds

	// The zones have no secondary servers, which would need these values.
	soaRefresh, soaRetry, soaExpire = 3600, 600, 86400
)

// Labels in each zone, in the form of messages: the name of the server, and the mailbox
// hostmaster@ZONE (RFC 2142).
var nameServer, responsible = []byte("\x02ns"), []byte("\x0ahostmaster")

// A presence is the existence of a name.
type presence int

const (
	absent presence = iota
	empty           // the name has no records, but names below it may have
	listed
)

// look returns the entry of the name that has the given number of labels before the
// zone.
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

// below reports whether a listed address may be in p. Then the name of p exists
// (RFC 8020).
func (z *zone) below(p netip.Prefix) bool {
	return p.Contains(testListed) || p.Contains(testListed6) || z.list.overlaps(p)
}
