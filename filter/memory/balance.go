package memory

import (
	"math"
	"math/bits"
)

// A balance compares the mailboxes that a host has requested: how many exist, and how many are
// missing. Without it, a harvester that requests a mailbox known to exist in each session would
// look like a mailing list with a few old addresses. Conversely, a server that opens a connection
// for each message would look like a harvester after its first missing recipients.
type balance struct {
	since   uint32 // start of the day to which the balance belongs
	missing uint16
	// existing is a linear counter of distinct mailboxes: bit i is set if the hash of a mailbox is
	// i modulo 64. If repeated requests counted, a single existing mailbox could hide a harvest.
	// The count ends at 266, so the existing mailboxes of a host hide at most three times as many
	// missing ones in a day.
	existing uint64
}

func newBalances(s *shared) table[uint64, balance] {
	return newTable(s, schema[uint64, balance]{
		name: "balances", bucket: "balances", limit: maxBalances,
		evictionScore: func(_ uint64, b balance, now uint32) int64 { return rest(b.since, daySeconds, now) },
		key:           number,
		value: func(b balance) []byte {
			return be.AppendUint64(be.AppendUint16(be.AppendUint32(nil, b.since), b.missing), b.existing)
		},
		decode: readBalance,
		shift:  func(_ uint64, b *balance, by int64) { shiftTime(&b.since, by) },
	})
}

func readBalance(key, v []byte) (k uint64, b balance, ok bool) {
	k, ok = readNumber(key)
	if !ok || len(v) != 14 {
		return 0, b, false
	}
	return k, balance{be.Uint32(v), be.Uint16(v[4:]), be.Uint64(v[6:])}, true
}

// count returns the estimated number of distinct existing mailboxes.
func (b *balance) count() uint32 {
	zeros := max(bits.OnesCount64(^b.existing), 1)
	return uint32(math.Round(64 * math.Log(64/float64(zeros))))
}

// Found records that c, which has not logged in, requested a mailbox that exists; see Mailbox.
func (t *Recipients) Found(c *Client, mailbox uint64, now int64) {
	t.settle(c, now, 0, 1<<(mailbox%64))
}

// Missed records that c requested a recipient for the first time, and that the recipient does not
// exist, is not local, or has been rejected by a rule because of its number.
func (t *Recipients) Missed(c *Client, now int64) {
	t.settle(c, now, 1, 0)
}

func (t *Recipients) settle(c *Client, now int64, missing uint32, existing uint64) {
	if c.Account {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	at, k := t.clock.row(now), c.Host().number()
	old, ok := t.balances.live(k, at)
	b := old
	if !ok {
		b = balance{since: at}
	}
	b.missing = uint16(min(uint32(b.missing)+missing, math.MaxUint16))
	b.existing |= existing
	if b != old {
		t.balances.put(k, b, at)
	}
}

// Balance returns how many distinct mailboxes c has requested within the last day: how many exist,
// which is an estimate of at most 266, and how many are missing. If the table was full, only the
// latest requests count.
func (t *Recipients) Balance(c *Client, now int64) (existing, missing uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b, _ := t.balances.live(c.Host().number(), t.clock.row(now))
	return b.count(), uint32(b.missing)
}
