package report

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"

	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
)

// maxLatest is the maximum number of rejections that a Collector keeps.
const maxLatest = 1_000

// ErasedAddress replaces the source of a session whose address the operator has erased.
const ErasedAddress = "an erased address"

// A Rejection is a session that a rule or ban rejected or would have rejected. If it represents an
// aggregate, or all sessions that one ban rejected, it describes the last of these sessions.
type Rejection struct {
	Session   string `json:"session"`   // id
	Reference string `json:"reference"` // id in the reply; for a banned client, the session that caused the ban
	End       Time   `json:"end"`
	Address   string `json:"address,omitempty"`
	Erased    bool   `json:"erased,omitempty"` // the operator has removed the address
	RDNS      string `json:"rdns,omitempty"`
	Sender    string `json:"sender,omitempty"`
	Recipient string `json:"recipient,omitempty"`
	Rule      string `json:"rule"`
	Phase     string `json:"phase"`
	Enforced  bool   `json:"enforced"`
	Sessions  int    `json:"sessions"` // number of sessions in the aggregate or rejected by the ban; otherwise 1
}

// decision is a rejection in the current record.
type decision struct {
	rule     []byte // nil: none
	phase    smtp.Phase
	enforced bool
	cause    uint64 // the session that caused the ban of the client; 0 without one
}

// latest is a ring buffer of the latest rejections. If the buffer is full, the oldest rejection is
// at the index next. A new rejection reuses the memory of the oldest rejection's text.
type latest struct {
	all  []rejection
	next int
}

type rejection struct {
	session, reference            uint64
	end                           time.Time
	src                           netip.Addr
	phase                         smtp.Phase
	enforced, erased              bool
	sessions                      int
	rule, rdns, sender, recipient []byte
}

// add adds the rejection in the current record, if there is one.
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
	r.reference, r.erased = cmp.Or(n.rejection.cause, r.session), n.Erased
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

// list returns the latest rejections, and the number of remaining stored rejections. top limits the
// length of the list. All sessions that one ban rejected form a single entry, because a banned host
// could otherwise fill the list.
func (l *latest) list(top int) (list []Rejection, more int) {
	type cause struct {
		src       netip.Addr
		reference uint64
		enforced  bool
	}
	list = []Rejection{}
	listed := map[cause]int{}
	for i := range l.all {
		r := &l.all[(l.next-1-i+2*len(l.all))%len(l.all)]
		if by := (cause{r.src, r.reference, r.enforced}); r.reference != r.session {
			if at, ok := listed[by]; ok {
				if at < len(list) {
					list[at].Sessions += r.sessions
				}
				continue
			}
			listed[by] = len(list) + more
		}
		if len(list) >= top {
			more++
			continue
		}
		one := Rejection{Session: fmt.Sprintf("%016x", r.session), Reference: fmt.Sprintf("%016x", r.reference), End: text.At(r.end), RDNS: text.Escape(r.rdns), Sender: text.Escape(r.sender),
			Recipient: text.Escape(r.recipient), Rule: text.Escape(r.rule), Phase: r.phase.String(), Enforced: r.enforced, Erased: r.erased, Sessions: r.sessions}
		if r.src.IsValid() {
			one.Address = r.src.String()
		}
		list = append(list, one)
	}
	return list, more
}

// host returns the address, or describes a source without an address.
func (r *Rejection) host() string {
	switch {
	case r.Address != "":
		return r.Address
	case r.Erased:
		return ErasedAddress
	}
	return "several hosts"
}
