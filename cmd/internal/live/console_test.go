package live

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gdamore/tcell/v2"

	"scanwatch/cmd/internal/statedir"
	"scanwatch/filter/events"
	"scanwatch/filter/memory"
	"scanwatch/internal/text"
	"scanwatch/tests/hostiletext"
)

// A terminal is a console on a simulated screen, with a running event loop.
type terminal struct {
	*Console
	t      *testing.T
	screen tcell.SimulationScreen
	ran    chan string // commands
	ended  chan error
	stop   func()
}

// newTerminal starts a console. Every command that the console runs prints output.
func newTerminal(t *testing.T, v *View, width, height int, output string) *terminal {
	t.Helper()
	c := &terminal{t: t, screen: tcell.NewSimulationScreen("UTF-8"), ran: make(chan string, 10), ended: make(chan error, 1)}
	c.Console = NewConsole(v, func(args ...string) string {
		c.ran <- strings.Join(args, " ")
		return output
	})
	c.app.SetScreen(c.screen)
	c.screen.SetSize(width, height)
	ctx, stop := context.WithCancel(t.Context())
	c.stop = stop
	go func() { c.ended <- c.Run(ctx) }()
	t.Cleanup(func() { stop(); <-c.ended })
	return c
}

// text returns the text on the screen.
func (c *terminal) text() string {
	var b strings.Builder
	c.app.QueueUpdateDraw(func() {
		cells, width, _ := c.screen.GetContents()
		for i, cell := range cells {
			if len(cell.Runes) > 0 {
				b.WriteString(string(cell.Runes))
			}
			if i%width == width-1 {
				b.WriteByte('\n')
			}
		}
	})
	return b.String()
}

// await waits until wanted accepts the screen. On failure, the time limit of go test ends
// the loop.
func (c *terminal) await(what string, wanted func(string) bool) {
	c.t.Helper()
	for n := 0; !wanted(c.text()); n++ {
		if n == 2000 {
			c.t.Fatalf("%s: the screen is\n%s", what, c.text())
		}
	}
}

// shows waits until each of the texts has appeared on the screen.
func (c *terminal) shows(texts ...string) {
	c.t.Helper()
	for _, text := range texts {
		c.await(text, func(s string) bool { return strings.Contains(s, text) })
	}
}

// press presses keys. A key is a single character, or the name of a tcell key.
func (c *terminal) press(keys ...string) {
	for _, k := range keys {
		key := tcell.KeyRune
		for code, name := range tcell.KeyNames {
			if name == k {
				key = code
			}
		}
		c.screen.InjectKey(key, []rune(k)[0], 0)
	}
}

// TestConsole checks what each key does.
func TestConsole(t *testing.T) {
	v := recordedView(t)
	c := newTerminal(t, v, 100, 24, "State: not banned\nCause: none\n")
	c.shows(" 1 Sources  2 Rejections  3 Events  4 Bans  5 Networks   18, by last")
	for _, step := range []struct {
		keys  []string
		shows string
		ran   string
	}{
		{[]string{"s"}, "18, by evidence", ""},
		{[]string{"Backtab"}, "NETWORK", ""},
		{[]string{"Tab", "Tab"}, "at connect", ""},
		{[]string{"4"}, "operator: by the postmaster", ""},
		{[]string{"?"}, "keys of scanwatch top", ""},
		{[]string{"q", "1"}, "STANDING", ""},
		{[]string{"/", "1", "9", "2", ".", "0"}, "filter: 192.0", ""},
		{[]string{"Enter"}, "/192.0 1 of 18", ""},
		{[]string{"b"}, "Ban 192.0.2.7 (host7.scan.example.org) for a day? y/n", ""},
		{[]string{"n"}, "? help", ""},
		{[]string{"b", "y"}, "State: not banned; Cause: none", "ban 192.0.2.7"},
		{[]string{"u"}, "Revoke the ban of 192.0.2.7 (host7.scan.example.org)? y/n", ""},
		{[]string{"y"}, "State: not banned; Cause: none", "unban 192.0.2.7"},
		{[]string{"Enter"}, "Cause: none", "why 192.0.2.7"},
		{[]string{"Esc", "Esc"}, "18, by evidence", ""},
		{[]string{"p"}, "PAUSED", ""},
		{[]string{"p"}, "? help", ""},
		{[]string{"/", "x", "x", "x", "Enter", "b"}, "no source is selected", ""},
	} {
		c.press(step.keys...)
		c.shows(step.shows)
		if step.ran != "" {
			if got := <-c.ran; got != step.ran {
				t.Errorf("%v ran %q, want %q", step.keys, got, step.ran)
			}
		}
	}
	select {
	case got := <-c.ran:
		t.Errorf("ran %q", got)
	default:
	}
}

// TestConsoleRefusal checks that a refusal to ban a host names the command that bans the host
// anyway.
func TestConsoleRefusal(t *testing.T) {
	c := newTerminal(t, recordedView(t), 120, 24, "10.0.0.1 was not banned: its addresses are private; use --force to ban it")
	c.press("/", "1", "9", "2", ".", "0", "Enter", "b", "y")
	c.shows("private; use --force to ban it: scanwatch ban --force 192.0.2.7")
}

// TestConsoleNotBanned checks that the console does not offer to revoke a ban that does
// not exist.
func TestConsoleNotBanned(t *testing.T) {
	v := recordedView(t)
	v.data.memory = memory.New() // all bans are known
	v.data.bans = map[netip.Prefix]*memory.Ban{}
	c := newTerminal(t, v, 120, 24, "")
	c.press("/", "1", "9", "2", ".", "0", "Enter", "u")
	c.shows("192.0.2.7 is not banned")
	v.mu.Lock()
	v.data.addBan(memory.Ban{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Until: v.now().Add(time.Hour)})
	v.mu.Unlock()
	c.press("u")
	c.shows("Revoke the ban of 192.0.2.7")
}

// TestConsoleSelection checks that the selection follows its source when the table changes. If the
// first row is selected, the selection must stay on the first row. If a table grows, the user must
// be able to scroll to its end.
func TestConsoleSelection(t *testing.T) {
	v := newView()
	seconds := 0
	send := func(host byte) {
		seconds++
		v.event(&events.Event{Event: "finding", Time: now.Add(time.Duration(seconds) * time.Second), Session: 1, Src: netip.AddrFrom4([4]byte{192, 0, 2, host}), Evidence: "harvest"}, 0)
	}
	for host := range byte(3) {
		send(host)
	}
	c := newTerminal(t, v, 80, 16, "")
	selected := func(want string) {
		t.Helper()
		c.await("selected "+want, func(string) (ok bool) {
			c.app.QueueUpdate(func() { c.update(false); ok = c.current().key.prefix.Addr().String() == want })
			return ok
		})
	}
	selected("192.0.2.2")
	send(9)
	selected("192.0.2.9")
	c.press("j", "Down")
	selected("192.0.2.1")
	send(0)
	for host := byte(10); host < 60; host++ {
		send(host)
	}
	selected("192.0.2.1")
	c.shows("192.0.2.1 ")
	c.press("Home")
	selected("192.0.2.59")
	c.shows("192.0.2.59 ")
	c.press("PgDn")
	c.press("G")
	selected("192.0.2.1")
}

// TestConsoleHostile checks that text from clients can neither control the terminal nor act as
// markup, in every section and with many screen sizes.
func TestConsoleHostile(t *testing.T) {
	v := hostileView()
	v.event(&events.Event{Event: "finding", Time: now.Add(time.Second), Session: 1, Src: netip.MustParseAddr("192.0.2.1"), RDNS: []byte("[red::b]x[-].example"),
		FCrDNS: "pass", Evidence: "scanner", Org: "[::r]Org[", Confidence: "high", Proof: `["region"]y[""]`}, 0)
	var output strings.Builder
	for _, one := range hostiletext.Texts() {
		fmt.Fprintln(&output, text.Escape(one.Text)) // the real commands also escape text
	}
	for _, size := range [][2]int{{140, 40}, {80, 24}, {300, 100}, {30, 3}, {1, 1}} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			c := newTerminal(t, v, size[0], size[1], output.String())
			v.disconnected(errors.New("[blue]down["), statedir.Mode{})
			for _, key := range []string{"1", "2", "3", "4", "5", "1", "b", "y", "Enter", "?"} {
				c.press(key)
				if size[0] == 140 && key == "1" { // markup would not be visible
					c.shows("[red::b]x[-].example", "[::r]Org[ ", "[blue]down[ ")
				}
				if err := hostiletext.Terminal([]byte(c.text())); err != nil {
					t.Errorf("%s: %v", key, err)
				}
			}
		})
	}
}

// A fini records whether the terminal was restored.
type fini struct {
	tcell.SimulationScreen
	done bool
}

func (f *fini) Fini() {
	f.done = true
	f.SimulationScreen.Fini()
}

// TestConsoleRestores checks that the terminal is restored no matter how the console ends.
func TestConsoleRestores(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(c *Console, s tcell.SimulationScreen, stop func())
		want any
	}{
		{"quit", func(_ *Console, s tcell.SimulationScreen, _ func()) { s.InjectKey(tcell.KeyRune, 'q', 0) }, nil},
		{"interrupt", func(_ *Console, s tcell.SimulationScreen, _ func()) { s.InjectKey(tcell.KeyCtrlC, 0, 0) }, nil},
		{"signal", func(_ *Console, _ tcell.SimulationScreen, stop func()) { stop() }, nil},
		{"panic", func(c *Console, s tcell.SimulationScreen, _ func()) {
			c.view.now = func() time.Time { panic("oops") }
		}, "oops"},
		{"panic of a command", func(c *Console, s tcell.SimulationScreen, _ func()) {
			c.run = func(...string) string { panic("oops") }
			for _, key := range "by" {
				s.InjectKey(tcell.KeyRune, key, 0)
			}
			go func() {
				for seen := false; !seen; {
					c.app.QueueUpdate(func() { seen = c.message == "bug: oops" })
				}
				s.InjectKey(tcell.KeyRune, 'q', 0)
			}()
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			screen := &fini{SimulationScreen: tcell.NewSimulationScreen("UTF-8")}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			c := NewConsole(recordedView(t), nil)
			c.app.SetScreen(screen)
			test.do(c, screen, stop)
			got := func() (got any) {
				defer func() {
					if p := recover(); p != nil {
						got = p
					}
				}()
				if err := c.Run(ctx); err != nil {
					return err
				}
				return nil
			}()
			if got != test.want || !screen.done {
				t.Errorf("got %v, want %v; restored: %v", got, test.want, screen.done)
			}
		})
	}
}

// BenchmarkTop measures the time to handle an event, and to draw a screen with full
// tables.
func BenchmarkTop(b *testing.B) {
	v := newView()
	v.connected(topStatus())
	i := 0
	send := func() {
		i++
		v.event(&events.Event{Event: "finding", Time: now.Add(time.Duration(i)), Evidence: "harvest", Confidence: "high",
			Src: netip.AddrFrom4([4]byte{198, byte(i >> 16), byte(i >> 8), byte(i)}), Proof: "12 recipients unknown"}, 0)
	}
	for range maxSources {
		send()
	}
	b.Run("event", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			send()
		}
	})
	b.Run("screen", func(b *testing.B) {
		screen := tcell.NewSimulationScreen("UTF-8")
		c := NewConsole(v, nil)
		c.app.SetScreen(screen)
		screen.SetSize(140, 40)
		b.ReportAllocs()
		for b.Loop() {
			c.update(true)
			c.app.ForceDraw()
		}
	})
}

// TestFeedError checks that the console shows why there is no connection.
func TestFeedError(t *testing.T) {
	v := newView()
	v.connected(topStatus())
	v.disconnected(errors.New("the filter has ended"), statedir.Mode{})
	if got := heads(v, 80); !strings.Contains(got, "not connected, only records") || !strings.Contains(got, "PROBLEM   the filter has ended") {
		t.Error(got)
	}
}
