package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"scanwatch/internal/safego"
	"scanwatch/store"
)

// Store is the subset of store.Writer that commands use.
type Store interface {
	Status() store.Status
	Flush(context.Context) error
	Segments() ([]store.Segment, error)
	Snapshot(name string) (*store.Snapshot, error)
}

// A Command is a command that a Server offers.
type Command struct {
	Name string
	Args int // number of arguments
	// Run writes the answer. If Run returns an error, the server sends the error to the
	// client. If part of the answer has already been sent, the server closes the
	// connection instead.
	Run func(ctx context.Context, a *Answer, args []string) error
}

// A Server answers clients. The zero value offers no commands.
type Server struct {
	Commands []Command
	Log      *slog.Logger // nil disables logging
	// Companions restricts each client to the commands of its role. If Companions is nil,
	// all clients may use all commands, and access is controlled by the permissions of
	// the socket and its directory.
	Companions *Companions
	// Program is the program that the operator restarts, or "" for smtpd.
	Program string

	mu      sync.Mutex
	clients map[net.Conn]*peer
}

// StatusCommand returns the status command.
func StatusCommand(status func() Status) Command {
	return Command{"status", 0, func(_ context.Context, a *Answer, _ []string) error { return a.JSON(status()) }}
}

// StoreCommands returns the commands that operate on s. The flush command calls all
// functions in flush and then flushes s.
func StoreCommands(s Store, flush ...func(context.Context) error) []Command {
	return []Command{
		{"flush", 0, func(ctx context.Context, a *Answer, _ []string) error {
			ctx, cancel := context.WithTimeout(ctx, copyTimeout)
			defer cancel()
			for _, f := range append(flush, s.Flush) {
				if err := f(ctx); err != nil {
					return err
				}
			}
			return a.JSON(struct{}{})
		}},
		{"segments", 0, func(_ context.Context, a *Answer, _ []string) error {
			all, err := s.Segments()
			if err != nil {
				return err
			}
			return a.JSON(segmentsAnswer{all})
		}},
		{"snapshot", 1, func(_ context.Context, a *Answer, args []string) error {
			snap, err := s.Snapshot(args[0])
			if err != nil {
				return err
			}
			defer snap.Close()
			return sendSnapshot(a, snap)
		}},
	}
}

// An Answer writes to a client. A client that does not read in time is disconnected.
type Answer struct {
	conn  net.Conn
	peer  *peer // nil without companions
	until time.Time
	begun bool
}

// Write sends data that follows the answer line.
func (a *Answer) Write(p []byte) (int, error) {
	a.begun = true
	limit := time.Now().Add(writeTimeout)
	if a.until.Before(limit) {
		limit = a.until
	}
	if err := a.conn.SetWriteDeadline(limit); err != nil {
		return 0, err
	}
	return a.conn.Write(p)
}

// JSON sends the answer line.
func (a *Answer) JSON(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = a.Write(append(line, '\n'))
	return err
}

// Modes of the sockets. Every user can connect to the companions' socket, because the
// server checks the user.
const (
	operatorsMode  = 0o660
	companionsMode = 0o666
)

// Listen creates the socket in the state directory, replacing a stale socket. If another
// process is listening, the error is ErrRunning.
func Listen(dir string) (net.Listener, error) { return listen(dir, operatorsMode) }

func listen(dir string, mode fs.FileMode) (net.Listener, error) {
	path := SocketPath(dir)
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("listen on %s: exists and is not a socket; remove it", path)
	default:
		conn, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			conn.Close()
			return nil, fmt.Errorf("listen on %s: %w", path, ErrRunning)
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, err
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	// Until Chmod, the directory's mode and the umask restrict access.
	if err := os.Chmod(path, mode); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// ErrRunning means that another front end is using the state directory.
var ErrRunning = errors.New("another front end is listening")

// Run serves clients on the socket in dir until ctx is done. If the socket cannot be
// created or is removed, Run logs the error once and retries at the given interval.
func (s *Server) Run(ctx context.Context, dir string, interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	mode := fs.FileMode(operatorsMode)
	if s.Companions != nil {
		mode = companionsMode
	}
	var logged string
	for ctx.Err() == nil {
		l, err := listen(dir, mode)
		if err != nil {
			if err.Error() != logged {
				s.unreachable(err)
			}
			logged = err.Error()
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
			continue
		}
		logged = ""
		mine, err := os.Lstat(SocketPath(dir))
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		ended := make(chan struct{})
		safego.Go(s.log(), "serving commands", func() {
			defer close(ended)
			s.Serve(ctx, l)
		})
		there := err == nil
		for there && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-ended:
				there = false
			case <-tick.C:
				now, err := os.Lstat(SocketPath(dir))
				there = err == nil && os.SameFile(mine, now)
			}
		}
		if now, err := os.Lstat(SocketPath(dir)); err == nil && mine != nil && os.SameFile(mine, now) {
			os.Remove(SocketPath(dir))
		}
		l.Close()
		<-ended
	}
}

// unreachable logs the reason for the missing socket.
func (s *Server) unreachable(err error) {
	if s.Companions != nil {
		s.log().Warn("no socket for companions, they cannot reach the filter", "err", err)
		return
	}
	s.log().Warn("no control socket, scanwatch cannot reach the filter", "err", err)
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

// Serve serves the clients of l until ctx is done or l is closed, and then disconnects
// them.
func (s *Server) Serve(ctx context.Context, l net.Listener) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { // safe: only closes connections
		l.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.clients {
			c.Close()
		}
	})
	defer stop()
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel() // must precede Wait
	pause := 10 * time.Millisecond
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			if conn != nil {
				conn.Close()
			}
			return
		}
		if err != nil { // for example, too many open files: leave them to smtpd, and retry later
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = 10 * time.Millisecond
		who, ok := s.admit(ctx, conn)
		if !ok {
			conn.Close()
			continue
		}
		all.Add(1)
		safego.Go(s.log(), "control: a command", func() {
			defer all.Done()
			defer s.dismiss(conn)
			s.client(ctx, conn, who)
		})
	}
}

// admit reports whether a client may connect, and identifies the client.
func (s *Server) admit(ctx context.Context, conn net.Conn) (who *peer, ok bool) {
	if s.Companions != nil {
		var err error
		if who, err = s.Companions.peerOf(conn); err != nil {
			_, _ = (&Answer{conn: conn, until: time.Now().Add(refusalTime)}).Write([]byte(refusal + Restart(err.Error(), s.Program) + "\n"))
			return nil, false
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	full := len(s.clients) >= maxClients
	if who != nil { // there are few such users, and each has its own limit
		full = s.connections(who.uid) >= s.Companions.most(who.uid)
	}
	if full || ctx.Err() != nil {
		return nil, false
	}
	if s.clients == nil {
		s.clients = map[net.Conn]*peer{}
	}
	s.clients[conn] = who
	return who, true
}

// connections returns the number of connections from a user. The caller must hold mu.
func (s *Server) connections(uid uint32) (n int) {
	for _, p := range s.clients {
		if p != nil && p.uid == uid {
			n++
		}
	}
	return n
}

func (s *Server) dismiss(conn net.Conn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.clients, conn)
}

func (s *Server) client(ctx context.Context, conn net.Conn, who *peer) {
	answer := func() *Answer { return &Answer{conn: conn, peer: who, until: time.Now().Add(copyTimeout)} }
	if _, err := answer().Write([]byte(greeting + "\n")); err != nil {
		return
	}
	in := bufio.NewReaderSize(conn, maxLine)
	for ctx.Err() == nil {
		if err := conn.SetReadDeadline(time.Now().Add(idleTimeout)); err != nil {
			return
		}
		line, err := in.ReadSlice('\n')
		if err != nil {
			return // end of input, timeout or line too long
		}
		a := answer()
		words := strings.Fields(string(line))
		if who == nil {
			err = s.run(ctx, a, words)
		} else {
			err = s.runUntilGone(ctx, a, in, words)
		}
		if err != nil {
			if a.begun {
				return
			}
			if a.JSON(errorAnswer{Restart(err.Error(), s.Program), errors.Is(err, store.ErrFinished)}) != nil {
				return
			}
		}
	}
}

// runUntilGone runs a command and cancels its context when the client disconnects.
// Otherwise a companion that is restarted repeatedly could reach the connection limit.
func (s *Server) runUntilGone(ctx context.Context, a *Answer, in *bufio.Reader, words []string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	_ = a.conn.SetReadDeadline(time.Time{})
	ended := make(chan struct{})
	safego.Go(s.log(), "control: a client", func() {
		defer close(ended)
		if _, err := in.Peek(1); err != nil {
			cancel()
		}
	})
	err := s.run(ctx, a, words)
	_ = a.conn.SetReadDeadline(time.Unix(0, 0)) // ends Peek
	<-ended
	return err
}

func (s *Server) run(ctx context.Context, a *Answer, words []string) error {
	if len(words) == 0 {
		return errors.New("no command")
	}
	for _, v := range s.Commands {
		if v.Name != words[0] {
			continue
		}
		if s.Companions != nil {
			if !s.Companions.allows(a.peer, v.Name) {
				return fmt.Errorf("user %d may not use %s", a.peer.uid, v.Name)
			}
			s.Companions.heard(a.peer, time.Now())
		}
		if len(words)-1 != v.Args {
			return fmt.Errorf("%s takes %d arguments, not %d", v.Name, v.Args, len(words)-1)
		}
		// A panic in a command must not stop the mail server.
		err := safego.Run(func() error { return v.Run(ctx, a, words[1:]) })
		if stack := safego.Stack(err); stack.Key != "" {
			s.log().Error("panic in a control command", "command", v.Name, "err", err, stack)
		}
		return err
	}
	return fmt.Errorf("unknown command %q", words[0])
}
