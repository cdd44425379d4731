package main

// The verb top: the running filter on the whole terminal, or as blocks of text
// where there is none.

import (
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
	"scanwatch/internal/contain"
	"scanwatch/rules"
)

const topHelp = `Shows what happens from now on: sources, findings, verdicts and bans, and how
many there were in the last minute. Keys: q quit, p pause, s sort, e evidence, ?
help. If the output is no terminal, or TERM is dumb, it writes a block of text
again and again.

  --evidence TOKEN     sources and events of that evidence alone, to begin with
  --interval DURATION  between blocks of text; default 2s
  --once               one block of text, after an interval`

// leastInterval keeps a slip of the finger from being a load.
const leastInterval = 100 * time.Millisecond

func top(e *env, args []string) error {
	evidence := e.flags.String("evidence", "", "")
	interval := e.flags.Duration("interval", 2*time.Second, "")
	once := e.flags.Bool("once", false, "")
	if _, err := e.parse(args, 0, 0); err != nil {
		return err
	}
	if *evidence != "" && rules.TokenByName(*evidence) == nil {
		return usage("--evidence %q: there is no such token; the manual scanwatch.conf(5) lists them", *evidence)
	}
	if *interval < leastInterval {
		return usage("--interval %v: shorter than %v", *interval, leastInterval)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	news, done, err := follow(ctx, e.dir)
	if err != nil {
		return err
	}
	defer done()
	view := newTopView(e.zone, *evidence)
	if *once || !fullScreen(e.stdout) {
		return topText(ctx, e, view, news, *interval, *once)
	}
	screen, err := tcell.NewScreen()
	if err == nil {
		err = screen.Init()
	}
	if err != nil {
		return fmt.Errorf("use the terminal (TERM=%s): %w; with TERM=dumb, this writes plain text", os.Getenv("TERM"), err)
	}
	return topScreen(ctx, screen, view, news, e.now)
}

// fullScreen tells whether w is a terminal on which one can paint.
func fullScreen(w io.Writer) bool {
	f, ok := w.(*os.File)
	name := os.Getenv("TERM")
	return ok && term.IsTerminal(int(f.Fd())) && name != "" && name != "dumb"
}

// topNews is what the filter tells: an event, an answer to status, or that it has
// ended.
type topNews struct {
	event   *events.Event
	missing uint64
	status  *control.Status
	trouble error // there is no status
	ended   error
}

// follow tells what the filter of the state directory does, until ctx ends. The
// caller must call done.
func follow(ctx context.Context, dir string) (news <-chan topNews, done func(), err error) {
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
	out := make(chan topNews)
	tell := func(n topNews) error {
		select {
		case out <- n:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	go func() {
		_ = tell(topNews{ended: contain.Run(func() error {
			return watcher.Watch(events.Choice{}, func() {}, func(line []byte) error {
				event, missing, err := events.Decode(line)
				if err != nil {
					return err
				}
				return tell(topNews{event: &event, missing: missing})
			})
		})})
	}()
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		err := contain.Run(func() error {
			for {
				s, err := asker.Status()
				if err != nil {
					return err
				}
				if err := tell(topNews{status: &s}); err != nil {
					return err
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		})
		_ = tell(topNews{trouble: err}) // if that is the end of the filter, the watcher knows
	}()
	return out, cancel, nil
}

// take takes what came. The error is that the filter has ended.
func (n *topNews) take(v *topView, now time.Time) error {
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

// topText writes a block of text each interval.
func topText(ctx context.Context, e *env, v *topView, news <-chan topNews, interval time.Duration, once bool) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case n := <-news:
			if err := n.take(v, e.now()); err != nil {
				return err
			}
		case <-tick.C:
			for _, row := range v.screen(80, 24, e.now(), false) {
				fmt.Fprintln(e.out, strings.TrimRight(row.text, " "))
			}
			if once {
				return nil
			}
			fmt.Fprintln(e.out)
			if err := e.out.Flush(); err != nil {
				return err
			}
		}
	}
}

// repaint is how long an event may wait to be seen.
const repaint = 200 * time.Millisecond

// topScreen shows v on the terminal, which is given back also if this panics.
func topScreen(ctx context.Context, screen tcell.Screen, v *topView, news <-chan topNews, now func() time.Time) error {
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
		case n := <-news:
			if err := n.take(v, now()); err != nil {
				return err
			}
			continue // a flood of events is no flood of bytes to the terminal
		case <-tick.C:
		case event, ok := <-input:
			if !ok {
				return errors.New("the terminal is gone")
			}
			switch event := event.(type) {
			case *tcell.EventResize:
				screen.Sync()
			case *tcell.EventKey:
				if !topKey(screen, v, event, now()) {
					return nil
				}
			}
		}
		paint(screen, v, now())
	}
}

// topKey does what a key is for. It tells whether to go on.
func topKey(screen tcell.Screen, v *topView, key *tcell.EventKey, now time.Time) bool {
	switch key.Key() {
	case tcell.KeyCtrlC:
		return false
	case tcell.KeyCtrlL:
		screen.Sync()
		return true
	case tcell.KeyCtrlZ: // as the terminal did before it was ours
		if screen.Suspend() == nil {
			rest()
			return screen.Resume() == nil
		}
		return true
	}
	if v.help && key.Rune() != 'q' {
		v.help = false
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
		v.help = true
	}
	return true
}

// rest stops the job that this belongs to, and returns when it goes on. A job
// that no shell waits for is not stopped by this signal.
func rest() {
	goesOn := make(chan os.Signal, 1)
	signal.Notify(goesOn, syscall.SIGCONT)
	defer signal.Stop(goesOn)
	if syscall.Kill(0, syscall.SIGTSTP) != nil {
		return
	}
	select { // stopped in here, a moment after the call has returned
	case <-goesOn:
	case <-time.After(time.Second):
	}
}

// paint draws v. Colours are an addition, and left away where there are none or
// NO_COLOR is set: tcell would look for something near them.
func paint(screen tcell.Screen, v *topView, now time.Time) {
	plain := tcell.StyleDefault
	red, yellow := plain.Foreground(tcell.ColorMaroon), plain.Foreground(tcell.ColorOlive)
	if screen.Colors() == 0 {
		red, yellow = plain, plain
	}
	looks := map[topLook]tcell.Style{
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
