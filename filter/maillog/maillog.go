// Package maillog reads smtpd's log, as written by syslogd(8) or the journal. The package reports
// the messages that remote hosts have delivered, and the messages that local users have sent.
//
// OpenSMTPD 6.8 to 7.9 log the following lines. SID identifies a session, and EVPID identifies an
// envelope. SID and EVPID consist of 16 hexadecimal digits. The first 8 digits of EVPID identify the
// message.
//
//	SID smtp connected address=192.0.2.1 host=mail.example.net
//	SID smtp authentication user=alice result=ok
//	SID smtp failed-command command="RCPT TO:<x@example.org>" result="550 Invalid recipient: <x@example.org>"
//	SID smtp message msgid=MSGID size=175 nrcpt=2 proto=ESMTP
//	SID smtp envelope evpid=EVPID from=<joe@example.net> to=<alice@example.org>
//	SID smtp disconnected reason=quit
//	SID mta delivery evpid=EVPID from=<> to=<> rcpt=<> source="" relay="" delay=1s result="Ok" stat=""
//
// An IPv6 address is in brackets. For a program on the server, the address is "local". The
// recipient in a line "smtp envelope" is the argument of RCPT, before aliases are expanded.
//
// The host field is the reverse DNS name, which smtpd truncates to 63 bytes. The name
// proves nothing, because smtpd does not log the result of the forward lookup.
//
// smtpd does not quote the text of commands and replies. Nevertheless, a client cannot forge a line
// or a field, because each line starts with smtpd's own words, and addresses cannot contain ">".
package maillog

import (
	"container/heap"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"scanwatch/filter/smtpd"
)

// A Delivery is an envelope that the server accepted from a remote host without authentication.
type Delivery struct {
	Time      int64 // microseconds since 1970
	Server    string
	Addr      netip.Addr
	Host      string // reverse DNS name, unverified and possibly truncated; empty if unknown
	Sender    string // mail address; empty for the null sender
	Recipient string
	MsgID     uint32
	Rejected  int // number of permanently rejected recipients in the session so far
}

// A Sent is an envelope of a local user that a remote server accepted.
type Sent struct {
	Time   int64 // time of the delivery in microseconds since 1970
	Server string
	User   string // empty if a program on the server sent the message
	Domain string // domain of the recipient, in lower case
}

// Counts describes the contents of a log.
type Counts struct {
	Files      int    `json:"files"`
	Bytes      int64  `json:"bytes"` // uncompressed size of the log
	Lines      uint64 `json:"lines"`
	Smtpd      uint64 `json:"smtpd_lines"`
	Sessions   uint64 `json:"sessions"`
	Messages   uint64 `json:"messages"`   // number of accepted messages in all sessions
	Envelopes  uint64 `json:"envelopes"`  // number of accepted envelopes in all sessions
	Duplicates uint64 `json:"duplicates"` // number of envelopes that were logged twice
	Orphans    uint64 `json:"orphans"`    // number of envelopes that were ignored because the log lacks the start of the session
	Unstamped  uint64 `json:"unstamped"`  // number of lines without a time, host and program
	Unknown    uint64 `json:"unknown"`    // number of lines from smtpd in an unknown format
	TooLong    uint64 `json:"too_long"`   // number of lines longer than 64 KiB
	// First and Last are the times of smtpd's first and last lines in microseconds since 1970, or 0
	// if there are none.
	First int64 `json:"-"`
	Last  int64 `json:"-"`
	// Samples holds the first unknown lines.
	Samples []string `json:"samples,omitempty"`
}

// maxSamples and maxSample limit Counts.Samples.
const (
	maxSamples = 3
	maxSample  = 200 // bytes
)

// Options holds the callbacks of Read. Each callback may be nil.
type Options struct {
	Delivered func(*Delivery)
	Sent      func(*Sent)
	// Line is called for each line from smtpd. host is valid only during the call.
	Line func(file int, host []byte, at int64)
	// Progress is called repeatedly with the number of bytes read and the total number. Both
	// numbers count compressed bytes. total is 0 if it is unknown.
	Progress func(read, total int64)
}

// progressLines is the number of lines between calls to Options.Progress.
const progressLines = 50_000

// Read reads logs in chronological order and closes them. To save memory, it buffers several logs
// at the same time only if their times overlap.
func Read(logs []*Log, o Options) (c Counts, err error) {
	r := reader{o: o, logs: logs, counts: Counts{Files: len(logs)}, sessions: newSessions()}
	defer func() { err = errors.Join(err, CloseAll(logs)) }()
	q := make(queue, 0, len(logs))
	for _, l := range logs {
		r.total += l.size
		q = append(q, l)
	}
	heap.Init(&q)
	for len(q) > 0 {
		l := q[0]
		limit := int64(1<<63 - 1)
		for i := 1; i < min(len(q), 3); i++ { // the log with the second-earliest line is a child of the root
			limit = min(limit, q[i].at)
		}
		more, err := r.take(l, limit)
		if err != nil {
			return r.counts, fmt.Errorf("read %s: %w", l.Name, err)
		}
		if more {
			heap.Fix(&q, 0)
			continue
		}
		heap.Pop(&q)
		if err := l.Close(); err != nil {
			return r.counts, err
		}
	}
	if r.counts.Lines > 0 && r.counts.Smtpd == 0 {
		return r.counts, errors.New("no lines from smtpd found; they begin with a time, a host and smtpd[PID]; for another server's log, use the kind of that server")
	}
	return r.counts, nil
}

// A queue is a heap of logs. The log whose next line is the earliest is the root.
type queue []*Log

func (q queue) Len() int      { return len(q) }
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(*Log)) }
func (q queue) Less(i, j int) bool {
	if q[i].at == q[j].at { // rotated files can have equal times; the log whose first line is earlier comes first
		return q[i].first < q[j].first
	}
	return q[i].at < q[j].at
}
func (q *queue) Pop() any {
	old := *q
	l := old[len(old)-1]
	*q = old[:len(old)-1]
	return l
}

// A reader is the state of Read.
type reader struct {
	o        Options
	logs     []*Log
	total    int64
	counts   Counts
	sessions sessions
}

// take reads the lines of a log up to the time limit. more reports whether later lines follow.
func (r *reader) take(l *Log, limit int64) (more bool, err error) {
	for {
		line, err := l.next()
		switch {
		case errors.Is(err, io.EOF) && l.cut:
			return false, io.ErrUnexpectedEOF
		case errors.Is(err, io.EOF):
			return false, nil
		case errors.Is(err, errTooLong):
			r.counts.TooLong++
			continue
		case err != nil:
			return false, err
		}
		r.counts.Bytes += int64(l.lineBytes)
		if r.counts.Lines++; r.counts.Lines%progressLines == 0 && r.o.Progress != nil {
			r.o.Progress(r.read(), r.total)
		}
		if line.ok {
			r.line(l, &line)
		} else {
			r.counts.Unstamped++
			r.sample(l.raw)
		}
		if l.at > limit {
			return true, nil
		}
	}
}

// read returns the total number of bytes read from all logs.
func (r *reader) read() (n int64) {
	for _, l := range r.logs {
		n += l.read.Load()
	}
	return n
}

// line handles a line from any program in the log.
func (r *reader) line(l *Log, line *line) {
	if !line.smtpd() {
		return
	}
	c := &r.counts
	c.Smtpd++
	if c.First == 0 || line.at < c.First {
		c.First = line.at
	}
	c.Last = max(c.Last, line.at)
	if r.o.Line != nil {
		r.o.Line(l.index, line.host, line.at)
	}
	e, known := parseEvent(line.text)
	if !known {
		c.Unknown++
		r.sample(line.text)
		return
	}
	r.apply(line, &e)
}

// sample stores the first lines in an unknown format, without credentials.
func (r *reader) sample(text []byte) {
	if len(r.counts.Samples) < maxSamples {
		r.counts.Samples = append(r.counts.Samples, strings.ToValidUTF8(string(smtpd.RedactLog(text[:min(len(text), maxSample)])), "\ufffd"))
	}
}
