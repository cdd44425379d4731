package sharing

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"scanwatch/filter/share"
)

// Rows of other hosts are read in small steps between the other requests, so that one host with many
// rows, or a slow network, does not delay the rows of the others. Every user of the server can make
// its host's rows large and cause them to be read again, so the time between two reads grows.

const (
	// readTime is the time for which rows are read before messages are read again.
	readTime = 250 * time.Millisecond
	// The time between two reads of a host's rows increases up to lastReadPause. It is a problem above
	// manyReads.
	lastReadPause = 5 * time.Minute
	manyReads     = 30 * time.Second
)

// A hostRows is the state of reading all rows of another host.
type hostRows struct {
	wanted   bool          // the rows must be read
	next     time.Time     // earliest time at which they are read
	pause    time.Duration // time between the start of the latest read and next
	step     *step         // nil if the rows are not being read
	complete bool          // all rows have been read since this companion started
	problem  string        // problem of the latest read
	// strange is set if the host has no valid message, and rows that may be invalid. Every user of the
	// server can invent such hosts.
	strange bool
}

// A step is the position in a host's rows up to which they have been read.
type step struct {
	cursor uint64
	rows   int
	wrong  error // error of an unusable row
}

// missing is the problem of a host whose rows must be read again and again.
const missing = "its rows must be read again and again, so they are read less often; another host may have the same name, or a user of the server forges messages"

// want lets a host's rows be read.
func want(s *Service, host string, strange bool) {
	if slices.Contains(s.fleet.Ignore, host) || host == s.fleet.Name {
		return
	}
	h := s.reads[host]
	if h == nil {
		if len(s.reads) >= maxHosts+maxStrange {
			return
		}
		h = &hostRows{strange: strange}
		s.reads[host] = h
	}
	h.wanted = true
}

// restart starts all reads again on a new connection. Hosts whose rows were unusable must wait,
// because they may have ended the previous connection. If the server has lost its rows, and the filter
// is still waiting for them, the rows that have been read were perhaps not all.
func restart(s *Service) {
	lost := !s.server.claimed.Equal(s.claimed)
	s.claimed = s.server.claimed
	for _, h := range s.reads {
		if lost && !s.confirmed {
			h.complete = false
		}
		h.wanted = h.wanted || h.step != nil || !h.complete
		if h.step = nil; h.problem == "" {
			h.next, h.pause = time.Time{}, 0
		}
	}
}

// reading reports whether rows are being read.
func reading(s *Service) bool {
	for _, h := range s.reads {
		if h.step != nil {
			return true
		}
	}
	return false
}

// complete reports whether the rows of all hosts have been read since this companion started. If the
// filter has never had the standing on other hosts, this includes hosts whose rows are unusable:
// without their rows, it would enforce bans of clients with a standing on them.
func complete(s *Service) bool {
	if !s.whole {
		return false
	}
	for _, h := range s.reads {
		if !h.complete && !h.strange && (s.waiting || h.problem == "") {
			return false
		}
	}
	return true
}

// readRows starts the reads that are due, and continues the started reads for readTime.
func readRows(ctx context.Context, s *Service) error {
	now := time.Now()
	until := now.Add(readTime)
	for host, h := range s.reads {
		if time.Now().After(until) {
			break
		}
		switch {
		case h.step != nil:
		case h.wanted && !now.Before(h.next):
			if err := begin(ctx, s, host, h); err != nil {
				return err
			}
		case !h.wanted && now.Sub(h.next) > lastReadPause:
			h.pause = 0
		}
	}
	for {
		host := next(s)
		if host == "" {
			return nil
		}
		if err := proceed(ctx, s, host, s.reads[host]); err != nil {
			return err
		}
		if time.Now().After(until) {
			return nil
		}
	}
}

// next returns the host whose rows are read next, or "". Hosts whose rows have never been complete come
// first, and hosts whose rows are read again and again come last. One host is read after the other, so
// that some are complete even if each connection is short.
func next(s *Service) (first string) {
	var best *hostRows
	for host, h := range s.reads {
		if h.step == nil {
			continue
		}
		before := best == nil
		switch {
		case before:
		case h.complete != best.complete:
			before = best.complete
		default:
			before = cmp.Or(cmp.Compare(h.pause, best.pause), cmp.Compare(host, first)) < 0
		}
		if before {
			first, best = host, h
		}
	}
	return first
}

// begin starts to read all of a host's rows. The stream is read from its latest message.
func begin(ctx context.Context, s *Service, host string, h *hostRows) error {
	h.pause = min(max(2*h.pause, firstPause), lastReadPause)
	h.wanted, h.next = false, time.Now().Add(h.pause)
	s.apply(&received{host: host}) // so that the status lists even a host without rows
	newest, err := s.server.newest(ctx, host)
	if err == nil {
		s.latest[host] = newest // the next message may follow a gap
		s.server.hear(host, s.server.last[host], s.skew)
		h.step = new(step)
		return nil
	}
	return finish(s, host, h, err)
}

// proceed reads some of a host's rows.
func proceed(ctx context.Context, s *Service, host string, h *hostRows) error {
	done, err := s.server.rows(ctx, host, h.step, func(rows []share.Row) { s.apply(&received{host: host, message: message{rows: rows}}) })
	if err == nil && !done && (!h.strange || h.step.wrong == nil) {
		return nil
	}
	if err == nil {
		err = h.step.wrong
	}
	return finish(s, host, h, err)
}

// finish ends a read.
func finish(s *Service, host string, h *hostRows, err error) error {
	h.step = nil
	switch {
	case err == nil:
		if back := time.Now().Add(2 * upkeep); h.problem != "" && s.returned.Before(back) {
			s.returned = back // someone may have deleted the unusable rows, and the host has not yet sent them again
		}
		h.complete, h.strange, h.problem = true, false, ""
	case !unusable(err):
		return err
	case h.strange:
		s.wrong[host] = err.Error()
		delete(s.server.last, host)
		delete(s.reads, host)
	default: // perhaps only for now
		h.problem, h.wanted = err.Error(), true
	}
	return nil
}

// unread returns the problem of reading a host's rows, or "".
func (h *hostRows) unread(waiting bool) string {
	switch {
	case h.problem != "" && waiting && !h.complete:
		return h.problem + "; bans by other hosts are not enforced until its rows can be read, or the fleet statement ignores it"
	case h.problem == "" && h.pause > manyReads:
		return missing
	}
	return h.problem
}

var (
	errTooMany = fmt.Errorf("more than %d rows in the server", maxSnapshot)
	errTooSlow = fmt.Errorf("the server needs more than %v for some of its rows", requestTimeout)
)

// newest returns the position of a host's latest message, or zero if its stream has no valid message.
// Later messages are returned by read.
func (s *server) newest(ctx context.Context, host string) (newest position, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, requestTimeout, errTooSlow)
	defer cancel()
	log, err := s.client.Do(ctx, s.client.B().Xrevrange().Key(logKey(host)).End("+").Start("-").Count(1).Build()).AsXRange()
	if err != nil {
		return newest, late(ctx, err)
	}
	s.last[host] = "0-0"
	if len(log) > 0 {
		s.last[host] = log[0].ID
		if m, err := decode(s.key, host, []byte(log[0].FieldValues["rows"])); err == nil {
			newest = position{m.run, m.number}
		}
	}
	return newest, nil
}

// late replaces the error of a request that has taken too long.
func late(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errTooSlow) {
		return errTooSlow
	}
	return err
}

// rows calls use for some of a host's rows. done reports whether there are no more.
func (s *server) rows(ctx context.Context, host string, at *step, use func([]share.Row)) (done bool, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, requestTimeout, errTooSlow)
	defer cancel()
	e, err := s.client.Do(ctx, s.client.B().Hscan().Key(rowsKey(host)).Cursor(at.cursor).Count(rowsPerScan).Build()).AsScanEntry()
	if err != nil {
		return false, late(ctx, err)
	}
	for i := 1; i < len(e.Elements); i += 2 {
		m, err := decode(s.key, host, []byte(e.Elements[i]))
		if err == nil && (len(m.rows) != 1 || field(&m.rows[0]) != e.Elements[i-1]) { // a copy, so that the host has more rows
			err = errInvalid
		}
		if err != nil {
			at.wrong = err
			continue
		}
		use(m.rows)
	}
	at.cursor = e.Cursor
	if at.rows += len(e.Elements) / 2; at.rows > maxSnapshot {
		return false, errTooMany
	}
	return at.cursor == 0, nil
}
