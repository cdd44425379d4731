package control

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"scanwatch/cmd/internal/owner"
	"scanwatch/filter/memory"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
)

// ErrNotRunning means that no process is listening on the control socket.
var ErrNotRunning = errors.New("not running")

// ErrNoSocket means that no process is listening on the companions' socket.
var ErrNoSocket = errors.New("no socket for companions; restart the front end (smtpd, for a filter) if a companion was added, and see scanwatch status")

// A Client sends commands to a running filter, and must not be used concurrently.
type Client struct {
	conn net.Conn
	in   *bufio.Reader
}

// Dial connects to the filter whose state directory is dir. It takes on the rights of the
// directory's owner, because the owner could replace the socket with a link to another socket.
func Dial(dir string) (*Client, error) { return dialAs(dir, owner.Do) }

// DialAsOwner is like Dial, for a process that already has only the owner's rights. It also works
// inside a sandbox.
func DialAsOwner(dir string) (*Client, error) {
	return dialAs(dir, func(_ string, f func() error) error { return f() })
}

func dialAs(dir string, as func(string, func() error) error) (*Client, error) {
	path := SocketPath(dir)
	var conn net.Conn
	err := as(dir, func() (err error) {
		conn, err = net.DialTimeout("unix", path, 5*time.Second)
		return err
	})
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		f := LatestFrontEnd(dir)
		return nil, fmt.Errorf("%s is %w; %s (no process is listening on %s)", f.Program(), ErrNotRunning, f.remedy(), path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("connect to the filter: %w; run this as root, or join the group of the directory", err)
	case err != nil:
		return nil, fmt.Errorf("connect to the filter: %w", err)
	}
	return greet(conn, path)
}

// DialCompanion connects a companion to the filter whose socket is in runDir.
func DialCompanion(runDir string) (*Client, error) {
	path := SocketPath(runDir)
	conn, err := net.DialTimeout("unix", path, 5*time.Second)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w (%s)", ErrNoSocket, path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("connect to the filter: %w; the directory must let the users of companions enter: run chmod go+x %s", err, runDir)
	case err != nil:
		return nil, fmt.Errorf("connect to the filter: %w", err)
	}
	return greet(conn, path)
}

// greet reads the filter's greeting.
func greet(conn net.Conn, path string) (*Client, error) {
	c := &Client{conn: conn, in: bufio.NewReader(conn)}
	line, err := c.lineWithin(idleTimeout)
	if reason, denied := strings.CutPrefix(line, refusal); denied {
		err = errors.New(text.Escape(reason))
	} else if err == nil && line != greeting {
		err = fmt.Errorf("greeting %.80q instead of %q; update the older of the two programs", line, greeting)
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("too many clients; try again")
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to the filter on %s: %w", path, err)
	}
	return c, nil
}

// Close closes the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Status returns the filter's status.
func (c *Client) Status() (s Status, err error) {
	err = c.ask(&s, "status")
	return s, err
}

// Flush asks the filter to write all earlier records to disk.
func (c *Client) Flush() error { return c.ask(nil, "flush") }

// Reload asks the filter to reload its configuration. If forced is set, a table whose
// file is empty becomes empty. The result includes notes about tables and databases.
func (c *Client) Reload(forced bool) (a Config, err error) {
	how := Careful
	if forced {
		how = Forced
	}
	err = c.ask(&a, "reload", how)
	return a, err
}

// Log sets the filter's log level. word is the Word of a Level.
func (c *Client) Log(word string) error { return c.ask(nil, "log", word) }

// Observe stops enforcement for the duration d. If d is 0, enforcement is stopped until
// Enforce is called.
func (c *Client) Observe(d time.Duration) (a Config, err error) {
	err = c.ask(&a, "mode", rules.Observe.String(), strconv.FormatInt(int64(d/time.Second), 10))
	return a, err
}

// Enforce ends Observe and restores the configured mode.
func (c *Client) Enforce() (a Config, err error) {
	err = c.ask(&a, "mode", PolicyMode, "0")
	return a, err
}

// Days returns the daily counters, oldest first.
func (c *Client) Days() ([]memory.Day, error) {
	var a daysAnswer
	err := c.ask(&a, "days")
	return a.Days, err
}

// Segments lists the segments of session records.
func (c *Client) Segments() ([]store.Segment, error) {
	var a segmentsAnswer
	err := c.ask(&a, "segments")
	return a.Segments, err
}

// Snapshot writes a consistent copy of a segment to w. If the filter has finished the
// segment, the error is store.ErrFinished.
func (c *Client) Snapshot(w io.Writer, name string) error { return c.copy(w, "snapshot", name) }

// State writes a consistent copy of state.db to w.
func (c *Client) State(w io.Writer) error { return c.copy(w, "state") }

func (c *Client) copy(w io.Writer, words ...string) error {
	var a snapshotAnswer
	if err := c.ask(&a, words...); err != nil {
		return err
	}
	if _, err := io.CopyN(&deadlineWriter{c.conn, w}, c.in, a.Size); err != nil {
		return fmt.Errorf("copy %s from the filter: %w", a.Segment, noEOF(err))
	}
	return nil
}

// Ban bans a host or network.
func (c *Client) Ban(p netip.Prefix, d time.Duration, reason string) (b Banned, err error) {
	err = c.ask(&b, "ban", p.String(), strconv.FormatInt(int64(d/time.Second), 10), url.QueryEscape(reason))
	return b, err
}

// Unban revokes the ban on p, or all bans within p.
func (c *Client) Unban(p netip.Prefix, within bool) (b Banned, err error) {
	how := Exact
	if within {
		how = Within
	}
	err = c.ask(&b, "unban", p.String(), how)
	return b, err
}

// A deadlineWriter extends the read deadline with each write.
type deadlineWriter struct {
	conn net.Conn
	w    io.Writer
}

func (d *deadlineWriter) Write(p []byte) (int, error) {
	if err := d.conn.SetReadDeadline(time.Now().Add(idleTimeout)); err != nil {
		return 0, err
	}
	return d.w.Write(p)
}

// ask sends a command and decodes the answer into a. If a is nil, the answer is
// discarded.
func (c *Client) ask(a any, words ...string) error {
	err := c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err == nil {
		_, err = io.WriteString(c.conn, strings.Join(words, " ")+"\n")
	}
	var line string
	if err == nil {
		line, err = c.line()
	}
	if err != nil {
		return fmt.Errorf("ask the filter for %s: %w", words[0], noEOF(err))
	}
	var failed errorAnswer
	if err := json.Unmarshal([]byte(line), &failed); err != nil {
		return fmt.Errorf("ask the filter for %s: decode the answer: %w", words[0], err)
	}
	switch {
	case failed.Finished:
		return store.ErrFinished
	case failed.Error != "":
		return fmt.Errorf("ask the filter for %s: %s", words[0], failed.Error)
	case a != nil:
		return json.Unmarshal([]byte(line), a)
	}
	return nil
}

// maxAnswer is the maximum length of an answer line in bytes. Even a list of thousands of
// segments is shorter.
const maxAnswer = 4 << 20

// line reads an answer. The server limits how long a command may take, and the client
// waits longer than that.
func (c *Client) line() (string, error) { return c.lineWithin(copyTimeout + writeTimeout) }

func (c *Client) lineWithin(limit time.Duration) (string, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return "", err
	}
	return c.read()
}

// read reads a line before the current deadline.
func (c *Client) read() (string, error) {
	var b strings.Builder
	for {
		part, err := c.in.ReadSlice('\n')
		b.Write(part)
		if err == nil {
			return strings.TrimSuffix(b.String(), "\n"), nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return "", err
		}
		if b.Len() > maxAnswer {
			return "", fmt.Errorf("line of more than %d bytes", maxAnswer)
		}
	}
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
