package live

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/gdamore/tcell/v2"
	"golang.org/x/term"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/events"
	"scanwatch/internal/safego"
)

// FullScreen reports whether w is a terminal for RunScreen.
func FullScreen(w io.Writer) bool {
	f, ok := w.(*os.File)
	name := os.Getenv("TERM")
	return ok && term.IsTerminal(int(f.Fd())) && name != "" && name != "dumb"
}

// An Update is a message of the filter: an event, a status, or its end.
type Update struct {
	event   *events.Event
	missing uint64
	status  *control.Status
	trouble error // the reason for a missing status
	ended   error
}

// Follow sends the updates of the filter with the state directory dir until ctx is
// done. The caller must call stop.
func Follow(ctx context.Context, dir string) (updates <-chan Update, stop func(), err error) {
	watcher, err := control.Dial(dir)
	if err != nil {
		return nil, nil, err
	}
	asker, err := control.Dial(dir)
	if err != nil {
		watcher.Close()
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(ctx, func() {
		watcher.Close()
		asker.Close()
	})
	out := make(chan Update)
	send := func(n Update) error {
		select {
		case out <- n:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	go func() {
		_ = send(Update{ended: safego.Run(func() error {
			return watcher.Watch(events.Choice{}, func() {}, func(line []byte) error {
				event, missing, err := events.Decode(line)
				if err != nil {
					return err
				}
				return send(Update{event: &event, missing: missing})
			})
		})})
	}()
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		err := safego.Run(func() error {
			for {
				s, err := asker.Status()
				if err != nil {
					return err
				}
				if err := send(Update{status: &s}); err != nil {
					return err
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		})
		_ = send(Update{trouble: err}) // the watcher reports the end of the filter
	}()
	return out, cancel, nil
}

// apply applies the update to v. It returns an error when the filter has stopped.
func (n *Update) apply(v *View, now time.Time) error {
	switch {
	case n.ended != nil:
		return n.ended
	case n.event != nil:
		v.event(now, n.event, n.missing)
	default:
		v.setStatus(now, n.status, n.trouble)
	}
	return nil
}

// RunText writes v to w as a block of text, once or at each interval until ctx is
// done.
func RunText(ctx context.Context, w *bufio.Writer, v *View, updates <-chan Update, now func() time.Time, interval time.Duration, once bool) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case n := <-updates:
			if err := n.apply(v, now()); err != nil {
				return err
			}
		case <-tick.C:
			for _, row := range v.screen(80, 24, now(), false) {
				fmt.Fprintln(w, strings.TrimRight(row.text, " "))
			}
			if once {
				return nil
			}
			fmt.Fprintln(w)
			if err := w.Flush(); err != nil {
				return err
			}
		}
	}
}

// repaint is the interval of painting the screen.
const repaint = 200 * time.Millisecond

// RunScreen displays v on the terminal until the user quits or ctx is done.
func RunScreen(ctx context.Context, v *View, updates <-chan Update, now func() time.Time) error {
	screen, err := tcell.NewScreen()
	if err == nil {
		err = screen.Init()
	}
	if err != nil {
		return fmt.Errorf("open terminal (TERM=%s): %w; TERM=dumb selects plain text", os.Getenv("TERM"), err)
	}
	return runScreen(ctx, screen, v, updates, now)
}

// runScreen restores the terminal, even after a panic.
func runScreen(ctx context.Context, screen tcell.Screen, v *View, updates <-chan Update, now func() time.Time) error {
	defer screen.Fini()
	input, quit := make(chan tcell.Event), make(chan struct{})
	defer close(quit)
	go screen.ChannelEvents(input, quit)
	tick := time.NewTicker(repaint)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case n := <-updates:
			if err := n.apply(v, now()); err != nil {
				return err
			}
			continue // the next tick paints, so that many events need few bytes
		case <-tick.C:
		case event, ok := <-input:
			if !ok {
				return errors.New("terminal closed")
			}
			switch event := event.(type) {
			case *tcell.EventResize:
				screen.Sync()
			case *tcell.EventKey:
				if !handleKey(screen, v, event, now()) {
					return nil
				}
			}
		}
		paint(screen, v, now())
	}
}

// handleKey handles a key. It reports whether to continue.
func handleKey(screen tcell.Screen, v *View, key *tcell.EventKey, now time.Time) bool {
	switch key.Key() {
	case tcell.KeyCtrlC:
		return false
	case tcell.KeyCtrlL:
		screen.Sync()
		return true
	case tcell.KeyCtrlZ: // raw mode disables job control
		if screen.Suspend() == nil {
			stopJob()
			return screen.Resume() == nil
		}
		return true
	}
	if v.helping && key.Rune() != 'q' {
		v.helping = false
		return true
	}
	switch key.Rune() {
	case 'q':
		return false
	case 'p':
		v.pause(now)
	case 's':
		v.nextOrder()
	case 'e':
		v.nextEvidence()
	case '?':
		v.helping = true
	}
	return true
}

// stopJob stops the process group and returns when it continues. The signal has no
// effect on a process group without a shell.
func stopJob() {
	continued := make(chan os.Signal, 1)
	signal.Notify(continued, syscall.SIGCONT)
	defer signal.Stop(continued)
	if syscall.Kill(0, syscall.SIGTSTP) != nil {
		return
	}
	select { // the process stops here, shortly after kill
	case <-continued:
	case <-time.After(time.Second):
	}
}

// paint draws v. Without colours in the terminal, or with NO_COLOR, it uses none:
// tcell would approximate them.
func paint(screen tcell.Screen, v *View, now time.Time) {
	plain := tcell.StyleDefault
	red, yellow := plain.Foreground(tcell.ColorMaroon), plain.Foreground(tcell.ColorOlive)
	if screen.Colors() == 0 {
		red, yellow = plain, plain
	}
	looks := map[look]tcell.Style{
		lookTitle:   plain.Bold(true),
		lookHeading: plain.Reverse(true),
		lookProblem: red.Bold(true),
		lookBan:     red,
		lookVerdict: yellow,
	}
	width, height := screen.Size()
	screen.Clear()
	for y, row := range v.screen(width, height, now, true) {
		screen.PutStrStyled(0, y, row.text, looks[row.look])
	}
	screen.Show()
}
