package memory

import (
	"scanwatch/internal/mailbox"
)

// Recipients is the table of requested mailboxes. A row records whether the mailbox
// exists. The row of a missing mailbox lists the networks that have requested it. A
// subaddress (RFC 5233) counts as its mailbox.
type Recipients struct {
	*shared
	rows table[uint64, recipient]
	// asks counts the requests for missing mailboxes: by host and mailbox, and by
	// sender and mailbox. Foreign recipients are counted by host and address. It also counts each domain's exempt requests; see freeAsks.
	asks      table[uint64, ask]
	balances  table[uint64, balance] // by Host.number
	delimiter byte
	base      []byte // scratch
}

type recipient struct {
	day      uint16 // day of the latest request or, if the mailbox exists, of the latest acceptance
	accepted bool
	networks distinctNetworks
}

// Accepted recipients are kept longer, because they must not count as missing later.
const (
	probedDays   = 30
	acceptedDays = 400
)

// An ask is a row that counts the requests since a given time.
type ask struct {
	since uint32
	n     uint16
}

const recipientsBucket = "recipients"

const (
	// askWindow is the time within which a host's repeated requests for a mailbox
	// count once. A mailing list that ignores rejections keeps sending messages to
	// its former members.
	askWindow = 30 * daySeconds
	// freeAsks is the number of probed mailboxes that a domain's hosts may request each
	// day without a finding.
	freeAsks = 5
)

func newRecipients(s *shared) *Recipients {
	return &Recipients{
		shared: s, delimiter: '+',
		rows: newTable(s, schema[uint64, recipient]{
			name: "recipients", bucket: recipientsBucket, limit: maxRecipients, evictionScore: recipientScore,
			key: number,
			value: func(r recipient) []byte {
				accepted := byte(0)
				if r.accepted {
					accepted = 1
				}
				return append(append(words(r.day), accepted), words(r.networks[:]...)...)
			},
			decode:  readRecipient,
			shift:   func(_ uint64, r *recipient, by int64) { shiftDay(&r.day, by) },
			combine: combineRecipients, higher: combineRecipients,
			newest: func(_ uint64, r recipient) int64 { return int64(r.day) * daySeconds },
		}),
		asks: newTable(s, schema[uint64, ask]{
			name: "asks", bucket: "asks", limit: maxAsks,
			evictionScore: func(_ uint64, a ask, now uint32) int64 { return rest(a.since, askWindow, now) },
			key:           number,
			value:         func(a ask) []byte { return be.AppendUint16(be.AppendUint32(nil, a.since), a.n) },
			decode:        readAsk,
			shift:         shiftAsk,
		}),
		balances: newBalances(s),
	}
}

func readRecipient(key, v []byte) (k uint64, r recipient, ok bool) {
	k, ok = readNumber(key)
	if !ok || len(v) != 3+2*len(r.networks) {
		return 0, r, false
	}
	r.day, r.accepted = be.Uint16(v), v[2] != 0
	readWords(v[3:], r.networks[:])
	return k, r, true
}

// AcceptsMailbox reports whether a shared row is about a mailbox that its host accepts. ok is
// false for rows about anything else.
func AcceptsMailbox(bucket, value string) (accepted, ok bool) {
	if bucket != recipientsBucket || len(value) < 3 {
		return false, false
	}
	return value[2] != 0, true
}

func readAsk(key, v []byte) (k uint64, a ask, ok bool) {
	k, ok = readNumber(key)
	if !ok || len(v) != 6 {
		return 0, a, false
	}
	return k, ask{be.Uint32(v), be.Uint16(v[4:])}, true
}

func shiftAsk(_ uint64, a *ask, by int64) { shiftTime(&a.since, by) }

func recipientScore(_ uint64, r recipient, now uint32) int64 {
	if r.accepted {
		return ageScore(r.day, now, acceptedDays)
	}
	return ageScore(r.day, now, probedDays)
}

// Delimiter sets the character that separates a mailbox from its detail.
func (t *Recipients) Delimiter(c byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.delimiter = c
}

// Separator returns the character that separates a mailbox from its detail.
func (t *Recipients) Separator() byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.delimiter
}

// mailbox returns the hash of rcpt's mailbox. It requires the lock.
func (t *Recipients) mailbox(rcpt []byte) uint64 {
	t.base = mailbox.AppendBase(t.base[:0], rcpt, t.delimiter)
	return t.hash('r', t.base)
}

// Mailbox returns a number that identifies rcpt's mailbox.
func (t *Recipients) Mailbox(rcpt []byte) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mailbox(rcpt)
}

// Accepted records that mail for rcpt was accepted.
func (t *Recipients) Accepted(rcpt []byte, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.clock.row(now)
	k := t.mailbox(rcpt)
	r, _ := t.rows.get(k)
	if day := dayOf(at); !r.accepted || r.day != day {
		t.rows.put(k, recipient{day: day, accepted: true}, at)
	}
}

// Known reports whether mail for rcpt has been accepted on this host. A mailbox may
// exist without being known. Claims by other hosts do not count: rules about counts do
// not apply to known mailboxes, so a false claim could keep a harvest from being
// stopped.
func (t *Recipients) Known(rcpt []byte, now int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.rows.live(t.mailbox(rcpt), t.clock.row(now))
	return ok && r.accepted
}

// acceptedElsewhere reports whether another host has accepted mail for a mailbox.
func (t *Recipients) acceptedElsewhere(k uint64, at uint32) bool {
	r, _, ok := t.rows.other(k, at)
	return ok && r.accepted
}

// Lagging reports whether the rejection of rcpt must not count as a missing mailbox,
// because mail for rcpt was accepted earlier on this host or, once a day for each
// client, on another host. This host's list of users may be older than the other
// host's, but another host's claims must not hide a harvest.
func (t *Recipients) Lagging(c *Client, rcpt []byte, now int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	k, at := t.mailbox(rcpt), t.clock.row(now)
	if r, ok := t.rows.live(k, at); ok && r.accepted {
		return true
	}
	if !t.acceptedElsewhere(k, at) {
		return false
	}
	once := mix(c.Host().number(), t.hash('l', nil))
	a, ok := t.asks.get(once)
	if !ok || rest(a.since, daySeconds, at) < 0 {
		a = ask{since: at, n: short(k)}
		t.asks.put(once, a, at)
	}
	return a.n == short(k) // the retry of a message counts as the same request
}

// Refused records that the mail server rejected an unknown client's recipient. If mail
// for the recipient has been accepted, the recipient's row does not change.
func (t *Recipients) Refused(c *Client, rcpt []byte, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.clock.row(now)
	k := t.mailbox(rcpt)
	r, _ := t.rows.live(k, at)
	if r.accepted || t.acceptedElsewhere(k, at) {
		return
	}
	r.day = dayOf(at)
	addShort(r.networks[:], short(network(c.Addr)))
	t.rows.put(k, r, at)
}

// Asked records that c requested rcpt, which does not exist. It reports whether c had
// already requested rcpt within askWindow.
func (t *Recipients) Asked(c *Client, rcpt []byte, now int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.clock.row(now)
	k := mix(c.Host().number(), t.mailbox(rcpt))
	if c.Account {
		k = mix(t.hash('u', c.User), t.mailbox(rcpt))
	}
	return t.again(k, at)
}

// Tried records that c requested rcpt, which is not local. It reports whether c had
// already requested rcpt within askWindow. Addresses are compared byte by byte, because
// the part after a delimiter may contain a route to another recipient.
func (t *Recipients) Tried(c *Client, rcpt []byte, now int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.again(mix(c.Host().number(), t.hash('f', rcpt)), t.clock.row(now))
}

// Held records that a rule rejected c's recipient rcpt. It reports whether the same
// recipient was already rejected within askWindow, as happens when mail servers retry.
func (t *Recipients) Held(c *Client, rcpt []byte, now int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.again(mix(t.mailbox(rcpt), c.Host().number()), t.clock.row(now))
}

// WasHeld reports whether a rule has rejected c's recipient rcpt within askWindow.
func (t *Recipients) WasHeld(c *Client, rcpt []byte, now int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, held := t.asks.live(mix(t.mailbox(rcpt), c.Host().number()), t.clock.row(now))
	return held
}

// again records a request, and requires the lock. It reports whether the same request
// was already recorded within askWindow.
func (t *Recipients) again(k uint64, at uint32) bool {
	_, again := t.asks.live(k, at)
	if !again {
		t.asks.put(k, ask{since: at}, at)
	}
	return again
}

// Probed reports whether at least distinctAt networks, not counting c's own, have
// requested rcpt, which has never existed. Networks seen only by other hosts can add at
// most Multiple times the number of networks seen here.
func (t *Recipients) Probed(c *Client, rcpt []byte, now int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	k, at := t.mailbox(rcpt), t.clock.row(now)
	r, ok := t.rows.live(k, at)
	if !ok || r.accepted || t.acceptedElsewhere(k, at) {
		return false
	}
	own := r.networks.others(c.Addr)
	others, _, _ := t.rows.other(k, at)
	combineRecipients(k, &r, others)
	return own+min(r.networks.others(c.Addr)-own, Multiple*own) >= distinctAt
}

// Excused records a request for a probed mailbox, and reports whether the request is
// exempt. The mailbox may be new, so only requests from clients with a proven name are
// exempt. Each pair of sender and recipient is exempt once. Together, the hosts of a
// domain get at most freeAsks exempt requests a day.
func (t *Recipients) Excused(c *Client, sender, rcpt []byte, now int64) bool {
	if c.Domain == "" {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.clock.row(now)
	pair := mix(t.hash('s', sender), t.mailbox(rcpt))
	domain := t.hash('a', []byte(c.Domain))
	n, _ := t.asks.get(domain)
	if rest(n.since, daySeconds, at) < 0 {
		n = ask{}
	}
	if _, again := t.asks.live(pair, at); again || n.n >= freeAsks {
		return false
	}
	if n.n == 0 {
		n.since = at
	}
	n.n++
	t.asks.put(pair, ask{since: at}, at)
	t.asks.put(domain, n, at)
	return true
}
