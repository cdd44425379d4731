// Package session folds smtpd's events into what is known of each SMTP
// session, gathers evidence, answers requests, and hands a record of each
// session to the store when it ends. It knows nothing of the bytes of the
// protocol, of disks and of flags.
//
// What lives as long as the connection, as the transaction and as the command
// is kept in three structs with a reset each: Session, tx and command.
package session

import (
	"net/netip"

	"scanwatch/filter/memory"
	"scanwatch/rules"
	"scanwatch/store"
)

// A Session is one SMTP connection.
type Session struct {
	ID     uint64
	Src    netip.AddrPort
	Dst    netip.AddrPort // the listener's address, possibly a wildcard
	RDNS   []byte
	Helo   []byte
	FCrDNS store.FCrDNS
	Local  bool // over smtpd's own socket: sendmail(8), and smtpd's bounces
	TLS    bool
	Authed bool

	// There may be many thousands: what is small stands together.
	greeted    bool
	saidHelo   bool // tried to greet, or was turned away before
	timedOut   bool
	quit       bool
	hungUp     bool     // smtpd or a filter is closing the connection
	turnedAway bool     // by a filter: what it did not do then says nothing
	refused    bool     // something, by us
	triedMail  bool     // sent MAIL
	abused     bool     // did what no mail server does
	junked     bool     // by us
	barred     bool     // turned away because it is banned
	sawAuth    bool     // from now on every odd line may be a password
	inExchange bool     // smtpd waits for the next line of an AUTH exchange
	noData     bool     // message text was refused, and may come all the same
	here       bool     // of our own house; see Table.here
	placed     bool     // asn is known
	judged     bool     // Helo was
	good       goodness // whether its mail was accepted before
	okNext     uint8    // in okSeen

	Evidence rules.Evidence // with high or medium confidence
	Weak     rules.Evidence // with low confidence only
	Score    int            // what rules have added
	Counts   store.Counts
	omitted  uint32

	start, last int64 // microseconds: of the connection, of the newest step

	okSeen     [16]uint16 // short hashes of recipients that were accepted lately
	okDistinct uint32     // recipients accepted, those in okSeen not again

	replied *replied // see reply; nil for nearly all

	probes      uint32 // refused recipients in domains that are not ours for sure, or that ask to be sent on
	unknown     uint32 // refused recipients in domains of ours
	undecided   uint32 // refused recipients who may be either
	unsupported uint32 // AUTH where it is not offered
	examples    uint32 // failed commands

	pace  pace
	shape shape
	user  []byte // whom it tried to log in as last, as it may be kept
	login []byte // who logged in

	from    *source
	country string      // of the address
	asn     uint32      // the same
	ban     *memory.Ban // that holds for it, or would; nil for nearly all

	policy *rules.Policy // the one of memo, sticky, told and tags
	memo   rules.Memo
	sticky rules.Outcome // a decision that holds until the end of the session
	told   *rules.Rule   // the rule whose verdict was logged last
	// The rules that banned it, or were kept from it, and that only would have.
	banned, wouldBan *rules.Rule
	tags             rules.TagSet // those that are recorded

	tx  tx
	cmd command

	shown uint64 // pairs of verb and reply code whose reply text is recorded
	steps []byte // encoded by store.AppendStep
}

// tx is one mail transaction, from MAIL to the end of its data, or to RSET.
type tx struct {
	open   bool
	passed bool // a pass statement let one of its recipients through
	msgid  uint32
	sender []byte
	// unknown counts refused recipients: a bounce has only one at all.
	unknown uint32
}

func (t *tx) reset() { *t = tx{sender: t.sender[:0]} }

// command is what the client sent last, until everything that follows from it
// has been seen.
type command struct {
	at        int64
	line      []byte // redacted
	reply     []byte
	code      uint32
	verb      verb
	waiting   bool // for smtpd's answer
	open      bool // no event has told the outcome yet
	filtered  bool // a filter, not smtpd, decided it
	rewritten bool // by a filter
	passed    bool // a pass statement lets this recipient through
}

func (c *command) reset() { *c = command{line: c.line[:0], reply: c.reply[:0]} }

// reset makes s ready for another session and keeps its buffers, unless one
// of them has grown beyond what an ordinary session needs.
func (s *Session) reset() {
	keep := func(b []byte) []byte {
		if cap(b) > 1024 {
			return nil
		}
		return b[:0]
	}
	*s = Session{
		RDNS:  keep(s.RDNS),
		Helo:  keep(s.Helo),
		steps: keep(s.steps),
		user:  keep(s.user),
		login: keep(s.login),
		tx:    tx{sender: keep(s.tx.sender)},
		cmd:   command{line: keep(s.cmd.line), reply: keep(s.cmd.reply)},
	}
}

// set copies b into dst and cuts it.
func set(dst, b []byte, most int) []byte {
	return append(dst[:0], b[:min(len(b), most)]...)
}

// Limits in bytes of what is kept of one text.
const (
	maxName  = 255 // RFC 5321 section 4.5.3.1.2
	maxPath  = 256 // section 4.5.3.1.3
	maxLine  = 200 // an example of a command or reply
	maxUser  = 128
	maxValue = 100 // in a log line
)
