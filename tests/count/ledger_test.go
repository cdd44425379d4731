//go:build linux

package count

import "net/netip"

// According to the manual, the first sessions of a source in an hour have separate
// records, and so have sessions with accepted messages, a login or a ban. Every other
// session is part of the aggregate of its source and hour.
const (
	wholeSessions = 20
	sumIDs        = 500 // rejected sessions of an aggregate, which is then written
	sumNames      = 8   // distinct greetings of an aggregate
)

// A record describes a record that the filter must write: a session, or an aggregate of
// several sessions.
type record struct {
	sum      bool
	end      int64 // of the last session
	id       uint64
	src      netip.Addr // of an aggregate: the first address of its /64 if sessions have several
	sessions []*session
	ids      int      // rejected sessions
	names    []string // greetings that an aggregate has
}

// A ledger divides sessions into records.
type ledger struct {
	hour    int64
	first   map[netip.Prefix]int
	sums    map[netip.Prefix]*record // that are not written
	records []*record
}

func newLedger() *ledger {
	return &ledger{first: map[netip.Prefix]int{}, sums: map[netip.Prefix]*record{}}
}

// clock ends all aggregates when the hour has ended.
func (l *ledger) clock(at int64) {
	if hour := at / 3600e6; hour != l.hour {
		l.hour = hour
		clear(l.first)
		l.flush()
	}
}

// flush ends all aggregates, because a reader has requested them or the filter has
// stopped.
func (l *ledger) flush() { clear(l.sums) }

// restart simulates a new filter, which does not know earlier sessions of the hour.
func (l *ledger) restart() {
	l.flush()
	clear(l.first)
}

func (l *ledger) add(s *session) {
	k := source(s.src)
	if s.local || s.AuthPass > 0 || s.Messages > 0 || s.ban != nil || l.first[k] < wholeSessions {
		if !s.local && s.AuthPass == 0 && s.Messages == 0 && s.ban == nil {
			l.first[k]++
		}
		l.records = append(l.records, &record{end: s.end, id: s.id, src: s.src, sessions: []*session{s}})
		return
	}
	sum := l.sums[k]
	if sum == nil {
		sum = &record{sum: true, src: s.src}
		l.sums[k] = sum
		l.records = append(l.records, sum)
	}
	if sum.src != s.src {
		sum.src = k.Addr()
	}
	sum.end, sum.id = s.end, s.id
	sum.sessions = append(sum.sessions, s)
	for _, name := range s.names {
		if name = clip(name); len(sum.names) < sumNames && !contains(sum.names, name) {
			sum.names = append(sum.names, name)
		}
	}
	if s.rejected != "" {
		if sum.ids++; sum.ids == sumIDs {
			delete(l.sums, k)
		}
	}
}

func contains(list []string, one string) bool {
	for _, s := range list {
		if s == one {
			return true
		}
	}
	return false
}

// clip truncates a name to the maximum length in a report.
func clip(name string) string { return name[:min(len(name), 128)] }
