//go:build linux

package count

import "net/netip"

// These are the manual's rules for records. A source's first sessions in an hour have separate
// records. So do sessions with accepted messages, a login or a ban. All other sessions become part
// of an aggregate of their source for that hour.
const (
	wholeSessions = 20
	sumIDs        = 500 // after this many rejected sessions, an aggregate is written
	sumNames      = 8   // distinct greetings in an aggregate
)

// A record is a record that the filter should write: for a single session, or for an aggregate of
// several sessions.
type record struct {
	sum      bool
	end      int64 // end of the last session
	id       uint64
	src      netip.Addr // in an aggregate, the first address of the /64 if the addresses differ
	sessions []*session
	ids      int      // rejected sessions
	names    []string // greetings in the aggregate
}

// A ledger divides sessions into records.
type ledger struct {
	hour    int64
	first   map[netip.Prefix]int
	sums    map[netip.Prefix]*record // not yet written
	records []*record
}

func newLedger() *ledger {
	return &ledger{first: map[netip.Prefix]int{}, sums: map[netip.Prefix]*record{}}
}

// clock ends all aggregates if the hour has ended.
func (l *ledger) clock(at int64) {
	if hour := at / 3600e6; hour != l.hour {
		l.hour = hour
		clear(l.first)
		l.flush()
	}
}

// flush ends all aggregates, as the filter does when a reader requests them or when it stops.
func (l *ledger) flush() { clear(l.sums) }

// restart simulates a new filter. The new filter does not know the earlier sessions of the hour.
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

// clip truncates a name to the length that a report prints.
func clip(name string) string { return name[:min(len(name), 128)] }
