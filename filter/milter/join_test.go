package milter

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/internal/smtp"
)

// A joiner is a server with a clock that the test sets.
type joiner struct {
	recorder
	*Server
	at     int64
	parted []uint64
}

const sec = int64(1_000_000)

func newJoiner() *joiner {
	j := &joiner{at: 1000 * sec}
	parted := func(id uint64, _ int64, _ smtp.Ending) { j.parted = append(j.parted, id) }
	j.Server = &Server{Sink: &j.recorder, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return time.UnixMicro(j.at) }, Parted: parted}
	return j
}

var joinSrc = netip.MustParseAddrPort("192.0.2.1:1025")

// ends ends a session that started one second ago.
func (j *joiner) ends(id uint64, how smtp.Ending) {
	j.locked("", func(at int64) {
		j.part(&parted{id: id, src: joinSrc, start: at - sec, end: at, ending: how, spoke: true}, at)
	})
}

// logged returns a session in the log that started one second ago and contains failed logins.
func (j *joiner) logged(id uint64, how smtp.Ending, failed int) *Logged {
	l := &Logged{ID: id, Src: joinSrc, Start: j.at - sec, End: j.at, Ending: how}
	for range failed {
		l.Facts = append(l.Facts, Fact{Kind: smtp.EventAuth, Result: smtp.ResultFail, Text: []byte("joe")})
	}
	return l
}

// since returns the events that occurred since the last call.
func (j *joiner) since() string {
	defer func() { j.lines = nil }()
	return strings.Join(j.lines, "\n")
}

const failedLogin = `line 10 ""
reply 535
6 fail name "joe" addr "" text "" code 0 reply "" cause 0
`

// TestJoin checks when the end of a session is reported, and which facts are reported with it.
func TestJoin(t *testing.T) {
	for _, c := range []struct {
		name string
		play func(*joiner)
		want string
	}{
		{"without a reader", func(j *joiner) { j.ends(1, smtp.EndingClosed) }, "disconnect closed"},
		{"the log is late", func(j *joiner) {
			j.Alive()
			j.ends(1, smtp.EndingClosed)
			j.at += sec
			j.Join(&Logged{ID: 7, Src: joinSrc, Start: j.at - 3*sec, End: j.at - sec, Ending: smtp.EndingQuit, Facts: j.logged(0, 0, 1).Facts})
		}, failedLogin + "disconnect quit"},
		{"the log is early", func(j *joiner) {
			j.Join(j.logged(7, smtp.EndingTimeout, 1))
			j.ends(1, smtp.EndingClosed)
		}, failedLogin + "disconnect timeout"},
		{"the log is silent", func(j *joiner) {
			j.Alive()
			j.ends(1, smtp.EndingClosed)
			j.at += JoinWait.Microseconds()
			j.expire(JoinWait)
		}, "disconnect closed"},
		{"the reader has stopped", func(j *joiner) {
			j.Alive()
			j.at += logSilence.Microseconds() + 1
			j.ends(1, smtp.EndingClosed)
		}, "disconnect closed"},
		{"the server stops", func(j *joiner) {
			j.Alive()
			j.ends(1, smtp.EndingClosed)
			j.stop()
			if j.Join(j.logged(7, smtp.EndingQuit, 1)) || j.Alive() {
				t.Error("facts are accepted after the stop")
			}
		}, "disconnect closed"},
		{"the filter ended the session", func(j *joiner) {
			j.Alive()
			j.ends(1, smtp.EndingRejected)
			j.Join(j.logged(7, smtp.EndingDropped, 0))
		}, "disconnect rejected"},
		{"read twice", func(j *joiner) {
			j.Alive()
			for range 2 { // the second session continues to wait
				j.ends(1, smtp.EndingClosed)
				j.Join(j.logged(7, smtp.EndingQuit, 1))
			}
		}, failedLogin + "disconnect quit"},
		{"the rest is read again", func(j *joiner) {
			whole, rest := j.logged(7, smtp.EndingQuit, 3), j.logged(8, smtp.EndingPartial, 2)
			rest.Start, rest.Rest = rest.Start+sec/2, true
			j.Alive()
			j.ends(1, smtp.EndingClosed)
			j.Join(whole)
			j.ends(2, smtp.EndingClosed)
			j.Join(rest)
			j.Join(&Logged{ID: 9, Src: joinSrc, Start: j.at - sec, End: j.at + 1, Ending: smtp.EndingPartial, Rest: true, Facts: rest.Facts[:1]})
		}, failedLogin + failedLogin + failedLogin + "disconnect quit\n" + strings.TrimSuffix(failedLogin, "\n")},
		{"the port is used again in the same second", func(j *joiner) {
			j.Alive()
			for id := range uint64(2) {
				j.ends(id, smtp.EndingClosed)
				j.Join(j.logged(id, smtp.EndingPartial, 1))
				j.stop()
				j.joins.stopped = false
			}
		}, failedLogin + "disconnect closed\n" + failedLogin + "disconnect closed"},
		{"the port is used again", func(j *joiner) {
			first := j.logged(7, smtp.EndingDropped, 0)
			j.Alive()
			j.ends(1, smtp.EndingClosed)
			j.at += 2 * sec
			j.ends(2, smtp.EndingClosed)
			j.Join(first)
			j.Join(j.logged(8, smtp.EndingQuit, 0))
		}, "disconnect dropped\ndisconnect quit"},
		{"another start", func(j *joiner) {
			j.Alive()
			old := j.logged(7, smtp.EndingQuit, 1)
			j.at += maxSkew.Microseconds() + 1
			j.ends(1, smtp.EndingClosed)
			j.Join(old)
			j.stop()
		}, "disconnect closed\nconnect 192.0.2.1:1025 > invalid AddrPort local false \"\" unknown\n" + failedLogin + "disconnect partial"},
		{"not seen by the milter", func(j *joiner) {
			j.Join(j.logged(7, smtp.EndingQuit, 0))
			j.Join(j.logged(8, smtp.EndingQuit, 1))
			j.at += JoinWait.Microseconds()
			j.expire(JoinWait)
		}, "connect 192.0.2.1:1025 > invalid AddrPort local false \"\" unknown\n" + failedLogin + "disconnect partial"},
		{"postscreen and smtpd", func(j *joiner) {
			l := j.logged(7, smtp.EndingPartial, 0)
			l.Facts = []Fact{{Kind: smtp.EventInput, Cause: smtp.CausePipelining, Reply: []byte("early")}}
			j.Join(l)
			j.ends(1, smtp.EndingClosed)
			j.Join(j.logged(8, smtp.EndingQuit, 1))
		}, "13  name \"\" addr \"\" text \"\" code 0 reply \"early\" cause 6\n" + failedLogin + "disconnect quit"},
		{"a mailbox in VRFY", func(j *joiner) {
			l := j.logged(7, smtp.EndingQuit, 0)
			l.Facts = []Fact{{Kind: smtp.EventRcpt, Verb: smtp.VerbNames, Result: smtp.ResultPermfail, Cause: smtp.CauseRecipient, Code: 550, Text: []byte("g@example.org")}}
			j.Join(l)
			j.ends(1, smtp.EndingClosed)
		}, "line 11 \"\"\nreply 550\n8 permfail name \"\" addr \"g@example.org\" text \"\" code 550 reply \"\" cause 7\ndisconnect quit"},
		{"too old", func(j *joiner) {
			l := j.logged(7, smtp.EndingQuit, 1)
			j.at += maxLate.Microseconds() + 1
			j.Join(l)
			j.stop()
		}, ""},
		{"facts known to the milter", func(j *joiner) {
			l := j.logged(7, smtp.EndingQuit, 0)
			l.Facts = []Fact{{Kind: smtp.EventRcpt, Result: smtp.ResultPermfail}, {Kind: smtp.EventCommand, Cause: smtp.CauseUnknown}, {Kind: smtp.EventConnect}, {Kind: smtp.EventDisconnect}}
			j.Alive()
			j.ends(1, smtp.EndingClosed)
			j.Join(l)
		}, "disconnect quit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := newJoiner()
			c.play(j)
			if got := j.since(); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// TestJoinLimit checks that the number of waiting sessions is limited. Parted must be called for
// each session that waits.
func TestJoinLimit(t *testing.T) {
	j := newJoiner()
	j.Alive()
	for i := range maxWaiting + 3 {
		j.ends(uint64(i), smtp.EndingClosed)
	}
	if got := strings.Count(j.since(), "disconnect"); got != 3 || len(j.Server.joins.parted) != maxWaiting || len(j.parted) != maxWaiting+3 {
		t.Errorf("%d sessions are reported, %d are waiting, %d have parted", got, len(j.Server.joins.parted), len(j.parted))
	}
	j = newJoiner()
	for i := range maxJoined + 3 {
		j.Join(j.logged(uint64(i), smtp.EndingQuit, 1))
	}
	if got := strings.Count(j.since(), "disconnect"); got != maxJoined+3-maxLogged || len(j.joins.logged) != maxLogged || len(j.joins.came) != maxLogged || len(j.joins.joined) != maxJoined {
		t.Errorf("%d sessions are reported, %d are waiting", got, len(j.joins.logged))
	}
}

// TestCollector checks which events in the log become facts.
func TestCollector(t *testing.T) {
	var got []*Logged
	c := &Collector{Send: func(l *Logged) { one := *l; got = append(got, &one) }}
	c.Site("mx.example.org")
	at := int64(0)
	event := func(e smtp.Event) {
		at++
		e.Time, e.Session = at, 9
		c.Event(&e)
	}
	event(smtp.Event{Kind: smtp.EventConnect, Src: joinSrc, RDNS: []byte("a.example"), FCrDNS: smtp.FCrDNSPass})
	event(smtp.Event{Kind: smtp.EventLine, Verb: smtp.VerbMail})
	event(smtp.Event{Kind: smtp.EventMail, Verb: smtp.VerbMail, Addr: []byte("a@example.org")})
	event(smtp.Event{Kind: smtp.EventCommand, Verb: smtp.VerbUnknown, Cause: smtp.CauseUnknown})                                     // without text, so only counted
	event(smtp.Event{Kind: smtp.EventCommand, Verb: smtp.VerbUnknown, Cause: smtp.CauseUnknown, Text: []byte(smtp.Masked)})          // may belong to a login
	event(smtp.Event{Kind: smtp.EventCommand, Verb: smtp.VerbUnknown, Cause: smtp.CauseUnknown, Text: []byte("GET / HTTP/1.1\xff")}) // the milter does not receive this line
	event(smtp.Event{Kind: smtp.EventAuth, Result: smtp.ResultFail, Name: []byte("joe")})
	event(smtp.Event{Kind: smtp.EventRcpt, Verb: smtp.VerbRcpt, Result: smtp.ResultPermfail, Cause: smtp.CauseRecipient, Addr: []byte("b@example.org")})
	event(smtp.Event{Kind: smtp.EventRcpt, Verb: smtp.VerbNames, Result: smtp.ResultPermfail, Cause: smtp.CauseRecipient, Addr: []byte("c@example.org")})
	event(smtp.Event{Kind: smtp.EventInput, Cause: smtp.CausePipelining, Reply: []byte("x")})
	event(smtp.Event{Kind: smtp.EventDisconnect, Ending: smtp.EndingQuit})
	if len(got) != 1 {
		t.Fatal(got)
	}
	text, err := got[0].Encode(8000)
	if err != nil || strings.ContainsAny(text, " \n") {
		t.Fatal(text, err)
	}
	l, err := Decode(text)
	want := Logged{
		ID: 9, Server: "mx.example.org", Src: joinSrc, RDNS: []byte("a.example"), FCrDNS: smtp.FCrDNSPass, Start: 1, End: 11, Ending: smtp.EndingQuit, Mail: true,
		Facts: []Fact{
			{Kind: smtp.EventCommand, Cause: smtp.CauseUnknown, Text: []byte("GET / HTTP/1.1\xff")}, {Kind: smtp.EventAuth, Result: smtp.ResultFail, Text: []byte("joe")},
			{Kind: smtp.EventRcpt, Verb: smtp.VerbNames, Result: smtp.ResultPermfail, Cause: smtp.CauseRecipient, Text: []byte("c@example.org")},
			{Kind: smtp.EventInput, Verb: smtp.VerbMail, After: true, Cause: smtp.CausePipelining, Reply: []byte("x")},
		},
	}
	if err != nil || fmt.Sprintf("%+v", *l) != fmt.Sprintf("%+v", want) {
		t.Errorf("%v\ngot  %+v\nwant %+v", err, *l, want)
	}
}

// TestEncode checks that the encoding of a long session has at most the given length. The last
// facts must remain.
func TestEncode(t *testing.T) {
	l := newJoiner().logged(1, smtp.EndingQuit, 300)
	for i := range l.Facts {
		l.Facts[i].Text = bytes.Repeat([]byte{0xff}, 255)
	}
	l.Facts[299].Result = smtp.ResultPass
	text, err := l.Encode(8000)
	if err != nil || len(text) > 8000 {
		t.Fatal(len(text), err)
	}
	got, err := Decode(text)
	if err != nil || len(got.Facts) < 10 || !slices.ContainsFunc(got.Facts, func(f Fact) bool { return f.Result == smtp.ResultPass }) {
		t.Errorf("%d facts, %v", len(got.Facts), err)
	}
	for _, bad := range []string{"", "*", "bnVsbA", "e30"} { // the last two are null and {}
		if l, err := Decode(bad); err == nil && !newJoiner().Join(l) {
			t.Errorf("%q is not accepted", bad)
		}
	}
}
