//go:build linux

package share

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"scanwatch/tests/internal/filterproc"
)

// A clockProxy is a proxy that changes the time in a server's replies, and may delay them.
type clockProxy struct {
	port  int
	shift atomic.Int64 // seconds
	rate  atomic.Int64 // bytes of replies in a second; 0 means no limit
}

// timeReply matches the reply to TIME. No other reply has this form.
var timeReply = regexp.MustCompile(`\*2\r\n\$10\r\n(\d{10})\r\n(\$\d\r\n\d+\r\n)`)

func newClockProxy(t *testing.T, s *server) *clockProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &clockProxy{port: l.Addr().(*net.TCPAddr).Port}
	var all sync.WaitGroup
	var open sync.Map
	t.Cleanup(func() {
		l.Close()
		open.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
		all.Wait()
	})
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.port))
			if err != nil {
				c.Close()
				continue
			}
			open.Store(c, nil)
			open.Store(up, nil)
			all.Go(func() {
				_, _ = io.Copy(up, c)
				up.Close()
			})
			all.Go(func() {
				p.replies(c, up)
				c.Close()
			})
		}
	})
	return p
}

func (p *clockProxy) replies(to io.Writer, from io.Reader) {
	b := make([]byte, 1<<20)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		out := timeReply.ReplaceAllFunc(b[:n], func(reply []byte) []byte {
			m := timeReply.FindSubmatch(reply)
			seconds, _ := strconv.ParseInt(string(m[1]), 10, 64)
			s := strconv.FormatInt(seconds+p.shift.Load(), 10)
			return fmt.Appendf(nil, "*2\r\n$%d\r\n%s\r\n%s", len(s), s, m[2])
		})
		for rate := p.rate.Load(); rate > 0 && len(out) > 4096; out = out[4096:] {
			if _, err := to.Write(out[:4096]); err != nil {
				return
			}
			time.Sleep(4096 * time.Second / time.Duration(rate))
		}
		if _, err := to.Write(out); err != nil {
			return
		}
	}
}

// left returns the remaining time of a ban as text.
func (h *host) left(addr string) string {
	h.t.Helper()
	for line := range strings.Lines(h.scanwatch("bans")) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == addr {
			return f[1]
		}
	}
	return ""
}

// TestServerClock corrects the server's clock, and then makes it wrong again. No ban may become
// longer or shorter.
func TestServerClock(t *testing.T) {
	t.Parallel()
	s := newServer(t, "redis")
	p := newClockProxy(t, s)
	p.shift.Store(20 * 60)
	f := newFleet(t, s)
	f.to = fmt.Sprintf("\"valkey://127.0.0.1:%d\"", p.port)
	a, b := f.host("mx1", ""), f.host("mx2", "")
	a.ban("198.51.100.1") // for an hour
	filterproc.Eventually(t, "mx2 rejects the client", b.turnsAway("198.51.100.1"))
	check := func(when string) {
		t.Helper()
		for _, h := range []*host{a, b} {
			filterproc.Eventually(t, h.name+" has 59 minutes left "+when, func() bool { return strings.HasPrefix(h.left("198.51.100.1"), "59m") })
		}
	}
	check("before the correction")
	sent := s.cli("hgetall", "{scanwatch}:rows:mx1")
	p.shift.Store(0)
	filterproc.Eventually(t, "mx1 has sent its row again", func() bool { return s.cli("hgetall", "{scanwatch}:rows:mx1") != sent })
	for _, h := range []*host{a, b} {
		_ = h.companion.Process.Kill()
		_ = h.companion.Wait()
		h.startCompanion()
		h.filter.End(0)
		h.startFilter()
	}
	for i, h := range []*host{a, b} {
		addr := fmt.Sprintf("198.51.100.%d", 10+i)
		h.ban(addr)
		filterproc.Eventually(t, "mx1 knows "+addr, a.turnsAway(addr))
		filterproc.Eventually(t, "mx2 knows "+addr, b.turnsAway(addr))
	}
	check("after the correction")
	for _, wrong := range []int64{-1_700_000_000, -26 * 3600, 31 * 86400} {
		p.shift.Store(wrong)
		for _, h := range []*host{a, b} {
			filterproc.Eventually(t, h.name+" names the problem", h.reports("the clocks of the server and this host differ by more than 1h"))
			if !h.turnsAway("198.51.100.1")() {
				t.Errorf("%s lets the client in while the clock of the server is wrong by %ds", h.name, wrong)
			}
		}
	}
	p.shift.Store(0)
	for _, h := range []*host{a, b} {
		filterproc.Eventually(t, h.name+" has no problem", func() bool { return !strings.Contains(h.scanwatch("status"), "PROBLEM") })
	}
	a.ban("198.51.100.2")
	filterproc.Eventually(t, "mx2 rejects the second client", b.turnsAway("198.51.100.2"))
	check("after the wrong times")
}

// TestFalseNames adds more names to the set of hosts than there may be hosts.
func TestFalseNames(t *testing.T) {
	t.Parallel()
	f, a, b := pair(t)
	s := f.server
	add := []string{"sadd", "{scanwatch}:hosts"}
	for i := range 5000 {
		add = append(add, fmt.Sprint("aa", i))
	}
	s.cli(add...)
	for i := range 150 {
		s.cli("hset", fmt.Sprint("{scanwatch}:rows:aa", i), "x", "y")
	}
	_ = a.companion.Process.Kill() // from now on, only its rows show that mx1 exists
	_ = a.companion.Wait()
	s.cli("del", "{scanwatch}:alive:mx1")
	_ = b.companion.Process.Kill()
	_ = b.companion.Wait()
	b.filter.End(0)
	f.host("mx3", "") // this host adds its own name
	b.startFilter()
	b.startCompanion()
	c := f.host("mx4", "")
	filterproc.Eventually(t, "mx4 rejects the client", c.turnsAway("198.51.100.1"))
	filterproc.Eventually(t, "mx2 knows mx1", b.problem("host      mx1: 1 row"))
	filterproc.Eventually(t, "mx2 reports a false name", b.problem("host      aa"))
	a.startCompanion()
	b.ban("198.51.100.2")
	a.ban("198.51.100.3")
	for _, h := range []*host{a, b, c} {
		for _, addr := range []string{"198.51.100.2", "198.51.100.3"} {
			filterproc.Eventually(t, h.name+" rejects "+addr, h.turnsAway(addr))
		}
	}
	if n := strings.Count(b.scanwatch("status"), "host      aa"); n > 100 {
		t.Errorf("%d false names are listed", n)
	}
}
