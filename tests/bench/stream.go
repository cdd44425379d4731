//go:build linux

package main

// This file generates streams: the lines that smtpd sends for many concurrent sessions. The same
// arguments always produce the same lines, except for the times.

import (
	"fmt"
	"strconv"
	"time"
)

// A step is a line of a session, or a request.
type step struct {
	request bool
	name    string // name of the report or phase
	rest    string // fields after the session and token
}

// A script generates the lines of session n. Only those events and requests are sent for which the
// filter has registered.
type script func(n int) []step

// A kind is a kind of session with its share in percent.
type kind struct {
	script script
	share  int
}

// mixes maps each mix to its kinds of sessions. In "mix", 87 percent of the requests belong to
// deliveries.
var mixes = map[string][]kind{
	"scan":        {{scan, 100}},
	"delivery":    {{delivery, 100}},
	"harvest-50":  {{harvest(50), 100}},
	"harvest-500": {{harvest(500), 100}},
	"visit":       {{visit, 100}},
	"mix":         {{delivery, 70}, {scan, 29}, {harvest(10), 1}},
	"attacks":     {{guess(5), 40}, {scan, 30}, {harvest(10), 20}, {delivery, 10}},
}

// hosts is the number of hosts.
const hosts = 5000

// host returns the address of a host in the range for benchmarks (RFC 2544).
func host(n int) string { return fmt.Sprintf("198.18.%d.%d", n%hosts/250, 1+n%hosts%250) }

func name(n int) string { return fmt.Sprintf("mail%d.example.net", n%hosts) }

func say(s []step, name, rest string) []step { return append(s, step{name: name, rest: rest}) }

// ask appends a request in the given phase and the event that reports its answer.
func ask(s []step, phase, told, rest string) []step {
	return append(s, step{request: true, name: phase, rest: rest}, step{name: "filter-response", rest: told + "|proceed"})
}

func connect(n int) []step {
	src := host(n)
	s := say(nil, "link-connect", name(n)+"|pass|"+src+":"+strconv.Itoa(20000+n%40000)+"|192.0.2.25:25")
	s = ask(s, "connect", "connected", name(n)+"|"+src)
	s = say(s, "protocol-server", "220 mx.example.org ESMTP OpenSMTPD")
	s = say(s, "link-greeting", "mx.example.org")
	s = say(s, "protocol-client", "EHLO "+name(n))
	s = ask(s, "ehlo", "ehlo", name(n))
	s = say(s, "link-identify", "EHLO|"+name(n))
	s = say(s, "protocol-server", "250-mx.example.org Hello "+name(n)+" ["+src+"], pleased to meet you")
	for _, word := range []string{"250-8BITMIME", "250-ENHANCEDSTATUSCODES", "250-SIZE 36700160", "250-DSN", "250 HELP"} {
		s = say(s, "protocol-server", word)
	}
	return s
}

func mail(s []step, n int, msgid string) []step {
	from := fmt.Sprintf("bounces-%d@example.net", n%1000)
	s = say(s, "protocol-client", "MAIL FROM:<"+from+">")
	s = ask(s, "mail-from", "mail-from", from)
	s = say(s, "protocol-server", "250 2.0.0 Ok")
	s = say(s, "tx-begin", msgid)
	return say(s, "tx-mail", msgid+"|ok|"+from)
}

func quit(s []step) []step {
	s = say(s, "protocol-client", "QUIT")
	s = ask(s, "quit", "quit", "")
	s = say(s, "protocol-server", "221 2.0.0 Bye")
	return say(s, "link-disconnect", "")
}

// visit generates a connection from one of millions of hosts.
func visit(n int) []step {
	src := fmt.Sprintf("%d.%d.%d.%d", 44+n>>24, n>>16&255, n>>8&255, n&255)
	s := say(nil, "link-connect", "<unknown>|fail|"+src+":20000|192.0.2.25:25")
	s = say(s, "link-identify", "EHLO|example.net")
	return say(s, "link-disconnect", "")
}

func scan(n int) []step { return quit(connect(n)) }

func delivery(n int) []step {
	msgid := fmt.Sprintf("%08x", n+1)
	to := fmt.Sprintf("user%d@example.org", n%100)
	s := mail(connect(n), n, msgid)
	s = say(s, "protocol-client", "RCPT TO:<"+to+">")
	s = ask(s, "rcpt-to", "rcpt-to", to)
	s = say(s, "tx-envelope", msgid+"|"+msgid+"00000001")
	s = say(s, "protocol-server", "250 2.1.5 Destination address valid: Recipient ok")
	s = say(s, "tx-rcpt", msgid+"|ok|"+to)
	s = say(s, "protocol-client", "DATA")
	s = ask(s, "data", "data", "")
	s = say(s, "protocol-server", `354 Enter mail, end with "." on a line by itself`)
	s = say(s, "tx-data", msgid+"|ok")
	s = say(s, "protocol-client", ".")
	s = ask(s, "commit", "commit", "")
	s = say(s, "protocol-server", "250 2.0.0 "+msgid+" Message accepted for delivery")
	s = say(s, "tx-commit", msgid+"|4850")
	s = say(s, "tx-reset", msgid)
	return quit(s)
}

// harvest generates a session that requests nonexistent recipients.
func harvest(recipients int) script {
	return func(n int) []step {
		msgid := fmt.Sprintf("%08x", n+1)
		s := mail(connect(n), n, msgid)
		for i := range recipients {
			to := fmt.Sprintf("guess%d-%d@example.org", i, n%100)
			s = say(s, "protocol-client", "RCPT TO:<"+to+">")
			s = ask(s, "rcpt-to", "rcpt-to", to)
			s = say(s, "protocol-server", "524 5.2.4 Mailing list expansion problem: <"+to+">")
			s = say(s, "tx-rcpt", msgid+"|permfail|"+to)
		}
		s = say(s, "tx-rollback", msgid)
		return quit(s)
	}
}

// guess generates a session with failed logins.
func guess(logins int) script {
	return func(n int) []step {
		s := connect(n)
		for i := range logins {
			s = say(s, "protocol-client", "AUTH LOGIN")
			s = ask(s, "auth", "auth", "LOGIN")
			s = say(s, "protocol-server", "334 VXNlcm5hbWU6")
			s = say(s, "protocol-client", "********")
			s = say(s, "protocol-server", "334 UGFzc3dvcmQ6")
			s = say(s, "protocol-client", "********")
			s = say(s, "link-auth", fmt.Sprintf("fail|user%d", (n+i)%500))
			s = say(s, "protocol-server", "535 5.7.8 Authentication failed")
		}
		return quit(s)
	}
}

// A stream contains the lines of complete sessions. The tokens of its requests are 0, 1, and so on.
type stream struct {
	data     []byte
	cuts     []int // ends of the requests in data
	ids      []int // offsets of session ids in data
	seconds  []int // offsets of the seconds in the lines' timestamps
	lasts    int64 // duration in whole seconds according to the timestamps, rounded up
	sessions int
	lines    int
}

// again prepares the stream to be played again: it changes the session ids and advances the
// timestamps.
func (s *stream) again(round int) {
	var b [4]byte
	for i := range b {
		b[i] = "0123456789abcdef"[round>>(4*i)&15]
	}
	for _, at := range s.ids {
		copy(s.data[at:], b[:])
	}
	if round == 1 {
		return
	}
	for _, at := range s.seconds {
		old, err := strconv.ParseInt(string(s.data[at:at+10]), 10, 64)
		if err != nil {
			panic(err) // impossible: the stream was generated here
		}
		strconv.AppendInt(s.data[at:at], old+s.lasts, 10)
	}
}

// A recipe describes a stream. New sessions start until there are as many sessions or requests as
// given. The stream ends when all sessions have ended.
type recipe struct {
	mix        string
	registered map[string]bool // as report|smtp-in|link-connect
	open       int             // concurrent sessions
	sessions   int
	requests   int // 0 for no limit
	begin      time.Time
	apart      time.Duration // time between requests

	// first is the number of the first visit, and sources is the number of hosts. Both apply only
	// to visits.
	first, sources int
}

func (r recipe) make() *stream {
	type session struct {
		id    uint64
		steps []step
	}
	var (
		s      stream
		live   []*session
		total  = 0
		clock  = r.begin
		kinds  = mixes[r.mix]
		at     = 0
		report = map[string]bool{}
		filter = map[string]bool{}
	)
	for _, k := range kinds {
		total += k.share
	}
	for _, st := range []string{"link-connect", "link-greeting", "link-identify", "link-auth", "link-disconnect", "tx-begin", "tx-mail", "tx-rcpt", "tx-envelope",
		"tx-data", "tx-commit", "tx-rollback", "tx-reset", "protocol-client", "protocol-server", "filter-response"} {
		report[st] = r.registered["report|smtp-in|"+st]
	}
	for _, st := range []string{"connect", "ehlo", "auth", "mail-from", "rcpt-to", "data", "commit", "quit"} {
		filter[st] = r.registered["filter|smtp-in|"+st]
	}
	next := func() *session {
		if s.sessions >= r.sessions || r.requests > 0 && len(s.cuts) >= r.requests {
			return nil
		}
		n := r.first + s.sessions
		if r.sources > 0 {
			n %= r.sources
		}
		s.sessions++
		pick := int(mixed(uint64(n)) % uint64(total))
		for _, k := range kinds {
			if pick -= k.share; pick < 0 {
				// Session ids must look random, like smtpd's, and repeat only after a long
				// time.
				return &session{id: mixed(uint64(s.sessions) ^ uint64(r.begin.UnixNano())), steps: k.script(n)}
			}
		}
		panic("unreachable")
	}
	for range r.open {
		if one := next(); one != nil {
			live = append(live, one)
		}
	}
	for len(live) > 0 {
		at %= len(live)
		one := live[at]
		for asked := false; len(one.steps) > 0 && !asked; one.steps = one.steps[1:] {
			st := &one.steps[0]
			if st.request && !filter[st.name] || !st.request && !report[st.name] {
				continue
			}
			asked = st.request
			s.lines++
			s.data = append(s.data, "report|0.7|"...)
			if asked {
				s.data = append(s.data[:len(s.data)-len("report|0.7|")], "filter|0.7|"...)
			}
			now := clock.UnixMicro()
			s.seconds = append(s.seconds, len(s.data))
			s.data = strconv.AppendInt(s.data, now/1e6, 10)
			s.data = fmt.Appendf(s.data, ".%06d|smtp-in|%s|", now%1e6, st.name)
			s.ids = append(s.ids, len(s.data))
			s.data = fmt.Appendf(s.data, "%016x", one.id)
			if asked {
				s.data = fmt.Appendf(s.data, "|%016x", len(s.cuts))
			}
			if st.rest != "" || asked {
				s.data = append(append(s.data, '|'), st.rest...)
			}
			s.data = append(s.data, '\n')
			if asked {
				s.cuts = append(s.cuts, len(s.data))
			}
		}
		clock = clock.Add(r.apart)
		if len(one.steps) > 0 {
			at++
		} else if another := next(); another != nil {
			live[at] = another
			at++
		} else {
			live[at] = live[len(live)-1]
			live = live[:len(live)-1]
		}
	}
	s.lasts = int64(clock.Sub(r.begin)/time.Second) + 1
	return &s
}

// mixed returns a hash of n (the finaliser of splitmix64).
func mixed(n uint64) uint64 {
	n += 0x9e3779b97f4a7c15
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}
