package smtpd

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"scanwatch/internal/smtp"
)

// An owed identifies a request that must be answered.
type owed struct{ session, token uint64 }

// A chaos is a Handler that answers immediately, delays its answer, or panics. A chaos chooses at
// random.
type chaos struct {
	rnd  *rand.Rand
	peer *smtpd
	most time.Duration // maximum delay that Serve allows
	hold bool          // delay all answers, so that more are delayed than is allowed
	// waits holds the latest time for the answer to each waiting request.
	waits map[owed]time.Time
}

// An unprintable is a chaos that also causes a panic when it is logged.
type unprintable struct{ chaos }

func (*unprintable) Error() string { panic("in Error") }

func (c *chaos) Ready(Config) {
	if c.rnd.IntN(4) == 0 {
		panic("in Ready")
	}
}

func (c *chaos) Report(*Event) {
	if c.rnd.IntN(10) == 0 {
		panic("in Report")
	}
}

func (c *chaos) Decide(ev *Event) smtp.Answer {
	r := smtp.Answer{Decision: smtp.Decision(c.rnd.IntN(6)), Text: "550 no"}
	who := owed{ev.Session, ev.Token}
	c.peer.expect(who, 0)
	if end, ok := c.waits[who]; ok && !ev.Waited && !time.Now().Before(end) {
		c.peer.odd = append(c.peer.odd, "asked again without Waited")
	}
	how := c.rnd.IntN(8)
	if c.hold {
		how = 2
	}
	switch how {
	case 0:
		panic("in Decide")
	case 1:
		panic(&unprintable{})
	case 2, 3:
		r.Hold = time.Duration(c.rnd.Int64N(int64(90 * time.Second)))
		c.peer.expect(who, min(r.Hold, c.most))
	case 6, 7:
		r.Wait = time.Duration(c.rnd.Int64N(int64(time.Second))) // also if ev.Waited is set
		if _, ok := c.waits[who]; !ok {
			c.waits[who] = time.Now().Add(min(r.Wait, MaxWait))
		}
		if !ev.Waited {
			c.peer.expect(who, time.Until(c.waits[who]))
		}
	}
	return r
}

// An smtpd stores the answers and the times at which they arrive.
type smtpd struct {
	mu      sync.Mutex
	rest    []byte
	answers map[owed]int
	late    []owed
	odd     []string
	due     map[owed]time.Time // latest time for each answer
}

func (s *smtpd) expect(who owed, within time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.due[who] = time.Now().Add(within)
}

var answerLine = regexp.MustCompile(`^filter-(?:result\|([0-9a-f]{16})\|([0-9a-f]{16})\|(?:proceed|junk|reject\|550 no|disconnect\|550 no)|dataline\|([0-9a-f]{16})\|([0-9a-f]{16})\|.*)$`)

func (s *smtpd) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rest = append(s.rest, b...)
	for {
		line, rest, ok := bytes.Cut(s.rest, []byte{'\n'})
		if !ok {
			return len(b), nil
		}
		s.rest = rest
		if bytes.HasPrefix(line, []byte("register|")) {
			continue
		}
		m := answerLine.FindSubmatch(line)
		if m == nil {
			s.odd = append(s.odd, string(line))
			continue
		}
		var who owed
		who.session, _, _, _ = takeHex(append(m[1], m[3]...))
		who.token, _, _, _ = takeHex(append(m[2], m[4]...))
		s.answers[who]++
		if due, ok := s.due[who]; ok && time.Now().After(due) {
			s.late = append(s.late, who)
		}
	}
}

// playOnce runs a random conversation with a chaos. The conversation contains requests, reports,
// clients that disconnect while their answer is delayed, invalid lines and pauses. The input may
// end anywhere. Each complete request must be answered exactly once and in time. The time is that
// of the synctest bubble.
func playOnce(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 2))
	var script strings.Builder
	script.WriteString("config|smtpd-version|7.9.0\nconfig|smtp-session-timeout|60\nconfig|ready\n")
	sessions := 1 + rnd.IntN(600) // sometimes more than may be delayed
	for i := range rnd.IntN(1500) {
		session := uint64(rnd.IntN(sessions))
		head := fmt.Sprintf("|0.7|1795219327.%06d|smtp-in|", i)
		switch rnd.IntN(12) {
		case 0:
			script.WriteString([]string{"\n", "filter|\n", "report|0.7|x|smtp-in|link-connect|zz\n", "\xff\x00|\n", "config|ready\n"}[rnd.IntN(5)])
		case 1:
			fmt.Fprintf(&script, "report%slink-disconnect|%016x\n", head, session)
		case 2:
			fmt.Fprintf(&script, "report%slink-connect|%016x|x|pass|192.0.2.1:1|192.0.2.25:25\n", head, session)
		case 3:
			fmt.Fprintf(&script, "filter%steapot|%016x|%016x|x\n", head, session, i+1)
		default:
			phase := PhaseConnect + ID(rnd.IntN(int(numIDs-PhaseConnect)))
			fmt.Fprintf(&script, "filter%s%v|%016x|%016x|x", head, phase, session, i+1)
			if rnd.IntN(300) == 0 {
				script.WriteString(strings.Repeat("y", maxLine))
			}
			script.WriteByte('\n')
		}
	}
	in := script.String()
	if rnd.IntN(2) == 0 {
		in = in[:rnd.IntN(len(in)+1)] // smtpd stops in the middle of a line
	}
	want := map[owed]bool{}
	for line := range strings.Lines(in) {
		if f := strings.Split(line, "|"); f[0] == "filter" && len(f) > 6 && strings.HasSuffix(line, "\n") {
			session, _, _, _ := takeHex([]byte(f[5]))
			token, _, _, _ := takeHex([]byte(f[6]))
			want[owed{session, token}] = true
		}
	}

	// The session timeout is 60 s. Before smtpd has sent the session timeout, the only limit is
	// MaxHold.
	out := &smtpd{answers: map[owed]int{}, due: map[owed]time.Time{}}
	h := &chaos{rnd: rand.New(rand.NewPCG(seed, 3)), peer: out, most: 30 * time.Second, hold: seed%7 == 3, waits: map[owed]time.Time{}}
	r, w := io.Pipe()
	go func() {
		for len(in) > 0 {
			n := min(1+rnd.IntN(4000), len(in))
			if _, err := io.WriteString(w, in[:n]); err != nil {
				t.Error(err)
			}
			in = in[n:]
			if rnd.IntN(4) == 0 && !h.hold {
				time.Sleep(time.Duration(rnd.Int64N(int64(40 * time.Second))))
			}
		}
		w.Close()
	}()
	logged := 0
	var wake chan struct{}
	if seed%3 == 0 {
		wake = make(chan struct{})
		ended := make(chan struct{})
		defer close(ended)
		go func() {
			for {
				select {
				case <-ended:
					return
				case <-time.After(time.Duration(rand.Int64N(int64(time.Second)))):
				}
				select {
				case <-ended:
					return
				case wake <- struct{}{}:
				}
			}
		}()
	}
	o := Options{Wake: wake, Log: func(line string) {
		if strings.HasPrefix(line, "bug: ") {
			logged++
		}
		if seed%5 == 0 {
			panic("in Log")
		}
	}}
	if err := Serve(r, out, h, o); err != nil {
		t.Error(err)
	}
	for who := range want {
		if n := out.answers[who]; n != 1 {
			t.Errorf("seed %d: %x was answered %d times", seed, who, n)
		}
	}
	if len(out.answers) != len(want) || len(out.rest) > 0 || out.odd != nil {
		t.Errorf("seed %d: %d answers to %d requests; odd ones %.200q, half a line %q", seed, len(out.answers), len(want), out.odd, out.rest)
	}
	if out.late != nil {
		t.Errorf("seed %d: %d answers came too late, such as %x", seed, len(out.late), out.late[0])
	}
	if logged > 1 {
		t.Errorf("seed %d: %d panics were logged, want one at most", seed, logged)
	}
}

// TestAnsweredOnce checks that each request is answered exactly once.
func TestAnsweredOnce(t *testing.T) {
	seeds := uint64(400)
	if testing.Short() {
		seeds = 50
	}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) { playOnce(t, seed) })
		if t.Failed() {
			return
		}
	}
}

func FuzzAnsweredOnce(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		synctest.Test(t, func(t *testing.T) { playOnce(t, seed) })
	})
}
