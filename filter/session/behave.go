package session

import (
	"fmt"

	"scanwatch/filter/memory"
	"scanwatch/rules"
	"scanwatch/store"
)

// whois tells memory who s is. The answer is valid until the next call.
func (t *Table) whois(s *Session) *memory.Who {
	t.who = memory.Who{Addr: s.Src.Addr(), ASN: s.asn, Placed: s.placed, Helo: s.Helo, User: s.user}
	if s.FCrDNS == store.FCrDNSPass && len(s.RDNS) < cutRDNS {
		t.who.RDNS = s.RDNS
	}
	return &t.who
}

// goodness is whether mail from a session's host was accepted before.
type goodness uint8

const (
	goodUnasked goodness = iota
	goodNo
	goodYes
)

// seenGood asks memory once in a session.
func (t *Table) seenGood(s *Session, at int64) bool {
	if s.good == goodUnasked {
		s.good = goodNo
		if s.Src.IsValid() && t.memory.Good(t.whois(s), at) != "" {
			s.good = goodYes
		}
	}
	return s.good == goodYes
}

// floodAt is the number of sessions of one source at a time from which on it
// is a flood: more than twice of what a Postfix opens for one destination.
const floodAt = 50

// together is the number of live sessions of the source of s; nobody counts those
// of our own house.
func (t *Table) together(s *Session) uint32 {
	if s.here || s.from == nil {
		return 0
	}
	return s.from.live
}

// remember looks at what memory knows of a client that has just connected.
func (t *Table) remember(s *Session) {
	if t.together(s) > floodAt {
		t.find(s, s.start, finding{evidence: rules.Flood, by: "memory", confidence: "medium"})
	}
	who := t.whois(s)
	if b, ok := t.memory.Banned(s.Src.Addr(), s.start); ok {
		ban := b // b itself would be allocated for everybody
		s.ban = &ban
	}
	if t.memory.Sprays(who, s.start) {
		t.find(s, s.start, finding{evidence: rules.AuthSpray, by: "memory", match: "users", confidence: "high"})
	}
}

// pace is how long a client takes between our reply and its next command, in
// microseconds.
type pace struct {
	replied int64 // time of our last reply
	last    int64 // the newest gap; -1 if there was none
	first   int64 // between the greeting and the first command
	least   int64 // of the gaps after that
	n       uint8 // gaps so far
	held    bool  // the greeting was held back
}

// A client that spoke before it was greeted: its first command was there when
// smtpd looked, within earlyGap after the greeting, while the way to it takes
// much longer, as its later gaps show. A polite client's first gap is at least
// as long as the way, so it is never shorter than the later ones by that much: fifteen times.
// On a very short way nothing can be told.
const (
	earlyGap   = 1_000
	earlyLater = 15_000 // the shortest later gap that says how long the way is
	earlySure  = 4      // gaps it takes to be sure: a host near by may be slow once or twice
	paceGaps   = 8      // gaps that are looked at
)

// String tells the gaps, in milliseconds.
func (p *pace) String() string {
	return fmt.Sprintf("%.1fms,later>%.1fms", float64(p.first)/1000, float64(p.least)/1000)
}

// paced takes the time of a line of the client, and judges its pace.
func (t *Table) paced(s *Session, at int64) {
	p := &s.pace
	p.last = -1
	if p.replied == 0 || p.n >= paceGaps {
		return
	}
	p.last = max(at-p.replied, 0)
	p.n++
	switch {
	case p.n == 1:
		p.first = p.last
		return
	case p.n == 2:
		p.least = p.last
	default:
		p.least = min(p.least, p.last)
	}
	if p.first <= earlyGap && p.least >= earlyLater && !t.exempt(s) && !s.here {
		confidence := "medium"
		switch {
		case p.n < earlySure:
			confidence = "low"
		case p.held:
			confidence = "high"
		}
		t.find(s, at, finding{evidence: rules.EarlyTalker, by: "pace", match: p.String(), confidence: confidence})
	}
}

// shape is the way a client behaves up to its first recipient, without what
// differs between hosts of one operation: addresses, names and their length.
type shape struct {
	text [32]byte
	n    uint8
	done bool   // the first recipient was seen
	hash uint64 // 0 until then
}

func (p *shape) add(c byte) {
	if int(p.n) < len(p.text) {
		p.text[p.n] = c
		p.n++
	}
}

// verbLetters are the letters that stand for commands in a shape.
var verbLetters = [...]byte{verbHelo: 'h', verbEhlo: 'e', verbMail: 'm', verbRcpt: 'r', verbAuth: 'a', verbData: 'd', verbDot: '.',
	verbQuit: 'q', verbExchange: 'x', verbUnknown: '?'}

// command adds a command and the class of the time it took.
func (p *shape) command(v verb, gap int64) {
	if p.done {
		return
	}
	letter := byte('o')
	if int(v) < len(verbLetters) && verbLetters[v] != 0 {
		letter = verbLetters[v]
	}
	p.add(letter)
	// What networks and computers do differently by chance is left out: only
	// a client that waits on purpose, or takes its time, shows.
	switch {
	case gap < 0:
	case gap < 700_000:
		p.add('0')
	case gap < 4_000_000:
		p.add('1')
	default:
		p.add('2')
	}
	p.done = v == verbRcpt
}

// form adds the form of a name: letters, digits and signs, but not how many.
func (p *shape) form(name []byte) {
	last := byte(0)
	for _, c := range name {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
			c = 'a'
		case '0' <= c && c <= '9':
			c = '9'
		}
		if c != last {
			p.add(c)
		}
		last = c
	}
}

// judgeShape recognises, at its first recipient, a client that behaves as
// hosts of other networks did that guessed recipients or probed.
func (t *Table) judgeShape(s *Session, at int64) {
	// Bounces of mail with forged senders come from everywhere to people who
	// do not exist, all alike: they are no campaign.
	if s.shape.hash != 0 || !s.shape.done || len(s.tx.sender) == 0 || t.exempt(s) || s.submission() || s.here {
		return
	}
	p := s.shape
	p.add(' ')
	if s.TLS {
		p.add('t')
	}
	if len(s.RDNS) == 0 {
		p.add('n')
	}
	p.form(cut(s.Helo, 40))
	s.shape.hash = max(t.memory.Shape(p.text[:p.n]), 1)
	if t.memory.Campaign(t.whois(s), s.shape.hash, at) {
		t.find(s, at, finding{evidence: rules.Campaign, by: "memory", match: string(p.text[:p.n]), confidence: "medium"})
	}
}

// judgeEnd looks back at a session that is over, and remembers what came of it.
func (t *Table) judgeEnd(s *Session, how store.Ending, at int64) {
	if t.exempt(s) || s.here || s.barred {
		return
	}
	switch {
	case s.turnedAway || s.Counts.Mails > 0:
		// It could not go on, or had no reason to.
	case s.tx.open && how != store.EndingQuit && how != store.EndingRejected && how != store.EndingClosed:
		t.find(s, at, finding{evidence: rules.Abandoned, by: "ending", match: how.String(), confidence: "high"})
	case !s.triedMail:
		match := "greeting"
		if s.Counts.Commands == 0 && len(s.Helo) == 0 {
			match = "silent"
		}
		t.find(s, at, finding{evidence: rules.NoMail, by: "ending", match: match, confidence: "high"})
	}
	t.atEnd(s, at)

	who := t.whois(s)
	switch {
	case s.abused:
		t.memory.Misbehaved(who, at)
	case s.Counts.Mails > 0 && !s.junked:
		t.memory.Delivered(who, int(s.Counts.Mails), at)
	}
	if s.shape.hash != 0 && !s.submission() {
		good := s.Counts.Mails > 0
		if bad := s.unknown+s.undecided > 0 && s.Counts.RcptOK == 0 || s.abused; good || bad {
			t.memory.Behaved(who, s.shape.hash, good, at)
		}
	}
}
