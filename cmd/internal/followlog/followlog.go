package followlog

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/engine"
	"scanwatch/filter/maillog"
	"scanwatch/filter/serverlog"
	"scanwatch/internal/safego"
	"scanwatch/internal/text"
)

const (
	poll      = 250 * time.Millisecond // interval at which the file is read
	saveEvery = 5 * time.Second        // interval at which the position is saved
	// maxSkew is the maximum age of a line that has just been written, according to its time. Time zones
	// differ by at least 30 minutes. The reader corrects times in the future.
	maxSkew = 20 * time.Minute
)

// A Front is a front end that follows a log.
type Front struct {
	Kind  *serverlog.Kind
	File  string // - for standard input; http:ADDRESS:PORT for records sent over HTTP
	Stdin io.Reader
	Zone  *time.Location

	listener net.Listener // with http:
	dir      string       // state directory
	log      *slog.Logger
	link     *link                       // to the milter; nil without a milter
	flush    func(context.Context) error // writes the records to disk; may be nil

	tail   tail
	reader *serverlog.Reader
	stamps *maillog.Syslog
	fed    time.Time // time at which the latest line was read
	last   int64     // time in that line, in microseconds since 1970; 0 if there was none
	failed string    // latest error that was logged
	live   bool      // the next lines of a file, or the latest line of a pipe, are new
	skewed bool      // according to its time, the latest new line is old

	mu     sync.Mutex
	source control.SourceStatus
}

// Prepare opens the log. Before that, it checks that no other front end is using the state
// directory.
func (f *Front) Prepare(e *engine.Engine) error {
	if err := e.Alone(); err != nil {
		if f.Kind.Name == "postfix" && control.LatestFrontEnd(e.Dir()).Name == "milter" {
			e.Log.Warn("log of the milter's server: use scanwatch follow --milter")
		}
		return err
	}
	e.Source = f.status
	err := f.Open(e.Dir(), e.Log)
	e.Read = append(e.Read, f.Files()...)
	return err
}

// Open opens the log. dir is the state directory. If Open fails, it has logged the error.
func (f *Front) Open(dir string, log *slog.Logger) (err error) {
	f.dir, f.log = dir, log
	f.source = control.SourceStatus{Kind: f.Kind.Name, File: f.File}
	if strings.HasPrefix(f.File, httpPrefix) {
		if f.listener, err = listen(f.File); err != nil {
			log.Error("records cannot be received", "err", err)
		}
		return err
	}
	if f.File == "-" {
		return nil
	}
	if f.tail.name, err = filepath.Abs(f.File); err == nil {
		err = f.open()
	}
	if err != nil {
		f.source.Problem = err.Error()
		if errors.Is(err, fs.ErrNotExist) {
			f.source.Problem += "; without a syslog daemon, read the journal, see milter-scanwatch(8)"
		}
		log.Error("log unreadable", "err", f.source.Problem)
	}
	return err
}

// ReportFailure sends the reason why Open failed to the milter that uses the state directory, if it is
// running. The milter's status then shows the reason.
func (f *Front) ReportFailure() {
	if c, err := control.Dial(f.dir); err == nil {
		_ = control.SendSource(c, f.status()) // the error has been logged
		c.Close()
	}
}

// Files returns the files that the front end reads inside the sandbox.
func (f *Front) Files() []string {
	if f.tail.name == "" {
		return nil
	}
	return []string{f.tail.name}
}

// open opens the log at the saved position.
func (f *Front) open() error {
	saved, err := ReadPosition(f.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return f.tail.open(nil)
	case err != nil:
		f.log.Warn("position of the log unreadable, starting at its end", "err", err)
		return f.tail.open(nil)
	}
	err = f.tail.open(&saved)
	if f.tail.lost {
		f.log.Warn("log replaced while it was not followed, lines may be lost", "file", f.File)
	}
	return err
}

// Serve passes the sessions in the log to the pipeline until SIGTERM, or until the end of
// standard input.
func (f *Front) Serve(e *engine.Engine) error {
	f.flush = e.Flush
	f.serve(e.Pipeline)
	return nil
}

func (f *Front) serve(sink serverlog.Sink) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if f.link != nil {
		f.link.ctx = ctx
	}
	f.begin(sink)
	switch {
	case f.listener != nil:
		f.post(ctx)
	case f.File == "-":
		f.pipe(ctx)
	default:
		f.follow(ctx)
	}
	f.reader.Flush()
}

func (f *Front) begin(sink serverlog.Sink) {
	f.reader = serverlog.New(f.Kind, sink, serverlog.Options{Zone: f.Zone, Date: time.Now(), Prompt: f.link != nil})
	f.stamps, f.fed = maillog.NewSyslog(f.Zone, time.Now()), time.Now()
}

// line passes a line to the reader.
func (f *Front) line(raw []byte) {
	l, ok := maillog.Line{Raw: raw}, false
	if f.Kind.Syslog {
		l, ok = f.stamps.Parse(raw)
	}
	f.reader.Line(&l, ok)
}

// follow follows the file.
func (f *Front) follow(ctx context.Context) {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	// The first position is saved immediately. Otherwise, lines that are written after this run
	// would be skipped if this run reads no line.
	var saved Position
	var at time.Time
	for {
		more, err := f.advance(time.Now())
		f.report(err)
		if now := time.Now(); f.tail.pos != saved && (now.Sub(at) >= saveEvery || ctx.Err() != nil) {
			saved, at = f.tail.pos, now
			f.save()
		}
		if ctx.Err() != nil {
			return
		}
		if more {
			continue
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

// advance reads the lines that have been added, and reports whether there are more. At the end of
// the file, it continues with the next file. If there is none, it ends the sessions that are idle.
func (f *Front) advance(now time.Time) (more bool, err error) {
	f.stamps.Newest(now)
	before := f.reader.Counts().Lines
	more, err = f.tail.read(f.line)
	if f.reader.Counts().Lines > before {
		f.read(now)
	}
	if !more && err == nil {
		// The old file may have received lines before it was renamed.
		if more, err = f.tail.next(); !more {
			f.idle(now)
		}
	}
	f.live = !more && err == nil
	f.refresh()
	return more, err
}

// read stores the time of the latest line.
func (f *Front) read(now time.Time) {
	f.fed, f.last = now, f.reader.Last()
	if f.live && f.last > 0 {
		f.skewed = now.Sub(time.UnixMicro(f.last)) > maxSkew
	}
}

// idle advances the log's clock by the time since the latest line. This host's clock may
// differ.
func (f *Front) idle(now time.Time) {
	if f.last > 0 {
		f.reader.Tick(time.UnixMicro(f.last).Add(now.Sub(f.fed)))
	}
}

// report logs a new problem.
func (f *Front) report(err error) {
	message := ""
	switch {
	case err != nil:
		if message = err.Error(); message != f.failed {
			f.log.Warn("log unreadable, trying again", "err", message)
		}
	case f.skewed:
		if message = "the times in new lines are in the past; " + zoneHint; message != f.failed {
			f.log.Warn("bans and facts may have expired before they begin", "err", message)
		}
	case f.foreign():
		if message = fmt.Sprintf("no sessions of %s found yet; if another server writes the log, give its kind, see scanwatch follow --help", f.Kind.Name); message != f.failed {
			f.log.Warn("log not understood", "err", message)
		}
	}
	f.failed = message
	f.mu.Lock()
	defer f.mu.Unlock()
	f.source.Problem = message
}

// foreign reports whether another server seems to have written the log.
func (f *Front) foreign() bool {
	c := f.reader.Counts()
	return c.Sessions == 0 && (c.Unknown >= 100 || c.Used == 0 && c.Lines >= 1000)
}

const zoneHint = "set the log's time zone, for example TZ=UTC, in the environment of this service"

// flushTime limits how long the records may take to be written before the position is saved.
const flushTime = 5 * time.Second

// save first writes the records of all lines before the position, and then saves the position. A
// crash then loses no session that has ended. The store logs its own errors.
func (f *Front) save() {
	if f.link != nil && f.link.unsent {
		return // otherwise, the session would not be read again
	}
	if f.flush != nil {
		ctx, cancel := context.WithTimeout(context.Background(), flushTime)
		_ = f.flush(ctx)
		cancel()
	}
	if err := f.tail.position().Save(f.dir); err != nil {
		f.log.Warn("position of the log not saved", "err", err)
	}
}

// pipe reads standard input to its end.
func (f *Front) pipe(ctx context.Context) {
	lines, next := make(chan []byte), make(chan struct{})
	safego.Go(f.log, "reading standard input", func() {
		defer close(lines)
		in := bufio.NewReaderSize(f.Stdin, maxLine)
		for {
			line, err := in.ReadSlice('\n')
			long := errors.Is(err, bufio.ErrBufferFull)
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = in.ReadSlice('\n')
			}
			if len(line) > 0 && !long {
				select {
				case lines <- line:
				case <-ctx.Done():
					return
				}
				select { // the line is valid until the next one is read
				case <-next:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	f.consume(ctx, lines, next)
}

// consume reads lines until the channel is closed. Next, if set, receives a value after each
// line.
func (f *Front) consume(ctx context.Context, lines <-chan []byte, next chan<- struct{}) {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case line, ok := <-lines:
			if !ok {
				return
			}
			f.line(trim(line))
			now := time.Now()
			f.live = now.Sub(f.fed) > time.Second // other lines may come from a file
			f.read(now)
			if next == nil {
				continue
			}
			select { // the reader may have ended
			case next <- struct{}{}:
			case <-ctx.Done():
				return
			}
		case now := <-ticker.C:
			f.stamps.Newest(now)
			f.idle(now)
			f.report(nil)
			f.refresh()
		}
	}
}

func trim(line []byte) []byte {
	for len(line) > 0 && (line[len(line)-1] == '\n' || line[len(line)-1] == '\r') {
		line = line[:len(line)-1]
	}
	return line
}

// measure updates the log's numbers in the status.
func (f *Front) measure() {
	c := f.reader.Counts()
	size := f.tail.pos.Offset
	if f.tail.file != nil {
		if info, err := f.tail.file.Stat(); err == nil {
			size = info.Size()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &f.source
	s.Lines, s.Unknown, s.Sessions, s.TooLong, s.Samples = c.Lines, c.Unknown, c.Sessions, f.tail.tooLong, c.Samples
	s.Position, s.Behind, s.Rotations = f.tail.pos.Offset, max(size-f.tail.pos.Offset, 0), f.tail.changed
	if f.last > 0 {
		s.Last = text.At(time.UnixMicro(f.last))
	}
}

// refresh updates the status, and sends it to the milter if there is one.
func (f *Front) refresh() {
	f.measure()
	if f.link != nil {
		f.link.alive(*f.status())
	}
}

func (f *Front) status() *control.SourceStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.source
	return &s
}
