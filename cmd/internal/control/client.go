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

	"scanwatch/filter/memory"
	"scanwatch/store"
)

// ErrNotRunning tells that nobody listens: no filter uses the state directory.
var ErrNotRunning = errors.New("filter-scanwatch is not running; is smtpd up, and does smtpd.conf name the filter?")

// A Client asks a running filter. It is not for concurrent use.
type Client struct {
	conn net.Conn
	in   *bufio.Reader
}

// Dial connects to the filter that uses the state directory dir.
func Dial(dir string) (*Client, error) {
	path := SocketPath(dir)
	conn, err := net.DialTimeout("unix", path, 5*time.Second)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w (nobody listens on %s)", ErrNotRunning, path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("ask the running filter (run this as root, or join the group of the directory): %w", err)
	case err != nil:
		return nil, fmt.Errorf("ask the running filter: %w", err)
	}
	c := &Client{conn: conn, in: bufio.NewReader(conn)}
	line, err := c.line()
	if err == nil && line != greeting {
		err = fmt.Errorf("it greets with %.80q where this program expects %q: update the older of the two", line, greeting)
	}
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("it has no place for another client; try again")
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("ask the running filter on %s: %w", path, err)
	}
	return c, nil
}

// Close ends the conversation.
func (c *Client) Close() error { return c.conn.Close() }

// Status asks how the filter is doing.
func (c *Client) Status() (s Status, err error) {
	err = c.ask(&s, "status")
	return s, err
}

// Flush returns when all that the filter recorded before is on disk.
func (c *Client) Flush() error { return c.ask(nil, "flush") }

// Reload makes the filter load its configuration again. Only if it is forced, one
// is taken that newly turns away hosts that did good lately.
func (c *Client) Reload(forced bool) error {
	how := Careful
	if forced {
		how = Forced
	}
	return c.ask(nil, "reload", how)
}

// Log changes how much the filter logs: a Word of Levels.
func (c *Client) Log(word string) error { return c.ask(nil, "log", word) }

// Days returns what was counted by the day, the oldest day first.
func (c *Client) Days() ([]memory.Day, error) {
	var a daysAnswer
	err := c.ask(&a, "days")
	return a.Days, err
}

// Segments lists the files of recorded sessions.
func (c *Client) Segments() ([]store.Segment, error) {
	var a segmentsAnswer
	err := c.ask(&a, "segments")
	return a.Segments, err
}

// Snapshot writes a consistent copy of a segment to w. If the filter does not
// write to it any more, the error is store.ErrFinished.
func (c *Client) Snapshot(w io.Writer, name string) error { return c.copy(w, "snapshot", name) }

// State writes a consistent copy of state.db to w.
func (c *Client) State(w io.Writer) error { return c.copy(w, "state") }

func (c *Client) copy(w io.Writer, words ...string) error {
	var a snapshotAnswer
	if err := c.ask(&a, words...); err != nil {
		return err
	}
	if _, err := io.CopyN(&deadlineWriter{c.conn, w}, c.in, a.Size); err != nil {
		return fmt.Errorf("copy %s from the running filter: %w", a.Segment, noEOF(err))
	}
	return nil
}

// Ban bans a host or a network.
func (c *Client) Ban(p netip.Prefix, d time.Duration, reason string) (b Banned, err error) {
	err = c.ask(&b, "ban", p.String(), strconv.FormatInt(int64(d/time.Second), 10), url.QueryEscape(reason))
	return b, err
}

// Unban ends every ban within p.
func (c *Client) Unban(p netip.Prefix) (b Banned, err error) {
	err = c.ask(&b, "unban", p.String())
	return b, err
}

// deadlineWriter gives the server new time after each piece.
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

// ask sends a command and decodes the answer into a, unless it is nil.
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
		return fmt.Errorf("ask the running filter for %s: %w", words[0], noEOF(err))
	}
	var failed errorAnswer
	if err := json.Unmarshal([]byte(line), &failed); err != nil {
		return fmt.Errorf("ask the running filter for %s: its answer is no JSON: %w", words[0], err)
	}
	switch {
	case failed.Finished:
		return store.ErrFinished
	case failed.Error != "":
		return fmt.Errorf("the running filter says: %s", failed.Error)
	case a != nil:
		return json.Unmarshal([]byte(line), a)
	}
	return nil
}

// maxAnswer is the longest line of an answer: some thousand segments.
const maxAnswer = 4 << 20

func (c *Client) line() (string, error) {
	// Flush may take as long as the server allows.
	if err := c.conn.SetReadDeadline(time.Now().Add(copyTimeout + writeTimeout)); err != nil {
		return "", err
	}
	return c.read()
}

// read reads a line, for as long as the deadline that is set allows.
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
