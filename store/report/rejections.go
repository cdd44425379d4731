package report

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"

	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
)

// maxLatest is the number of rejections that a Collector keeps.
const maxLatest = 1_000

// A Rejection is a session that a rule or ban rejected, or would have rejected. Of a sum
// of sessions, it is the last one.
type Rejection struct {
	Session   string `json:"session"`   // id
	Reference string `json:"reference"` // id in the reply: of a banned client, the session that caused the ban
	End       Time   `json:"end"`
	Address   string `json:"address,omitempty"`
	RDNS      string `json:"rdns,omitempty"`
	Sender    string `json:"sender,omitempty"`
	Recipient string `json:"recipient,omitempty"`
	Rule      string `json:"rule"`
	Phase     string `json:"phase"`
	Enforced  bool   `json:"enforced"`
	Sessions  int    `json:"sessions"` // 1, or the number of sessions of the sum
}

// decision is a rejection in the current record.
type decision struct {
	rule     []byte // nil: none
	phase    smtp.Phase
	enforced bool
	cause    uint64 // the session that caused the ban of the client; 0 without one
}

// latest contains the latest rejections, the oldest of which is at next if all places
// are in use. The texts reuse their memory.
type latest struct {
	all  []rejection
	next int
}

type rejection struct {
	session, reference            uint64
	end                           time.Time
	src                           netip.Addr
	phase                         smtp.Phase
	enforced                      bool
	sessions                      int
	rule, rdns, sender, recipient []byte
}

// add adds the rejection of the current record, if there is one.
func (l *latest) add(n *current) {
	if n.rejection.rule == nil {
		return
	}
	if len(l.all) < maxLatest {
		l.all = append(l.all, rejection{})
	}
	r := &l.all[l.next]
	l.next = (l.next + 1) % maxLatest
	r.session, r.end, r.src, r.phase, r.enforced = n.ID, n.End, netip.Addr{}, n.rejection.phase, n.rejection.enforced
	if n.reference != 0 {
		r.session = n.reference
	}
	r.reference = cmp.Or(n.rejection.cause, r.session)
	if n.Src.IsValid() {
		r.src = n.Src.Addr().Unmap()
	}
	if r.sessions = 1; n.sum {
		r.sessions = max(n.refused(), n.observed())
	}
	for _, c := range []struct {
		to   *[]byte
		text []byte
	}{{&r.rule, n.rejection.rule}, {&r.rdns, n.RDNS}, {&r.sender, n.sender}, {&r.recipient, n.recipient}} {
		*c.to = append((*c.to)[:0], c.text[:min(len(c.text), 255)]...)
	}
}

// list returns the first top rejections, the latest first, and the number of further ones
// that are kept.
func (l *latest) list(top int) (list []Rejection, more int) {
	list = []Rejection{}
	for i := range min(top, len(l.all)) {
		r := &l.all[(l.next-1-i+2*len(l.all))%len(l.all)]
		one := Rejection{Session: fmt.Sprintf("%016x", r.session), Reference: fmt.Sprintf("%016x", r.reference), End: text.At(r.end), RDNS: text.Escape(r.rdns), Sender: text.Escape(r.sender),
			Recipient: text.Escape(r.recipient), Rule: text.Escape(r.rule), Phase: r.phase.String(), Enforced: r.enforced, Sessions: r.sessions}
		if r.src.IsValid() {
			one.Address = r.src.String()
		}
		list = append(list, one)
	}
	return list, len(l.all) - len(list)
}
