//go:build linux

package smtpd

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Client is an SMTP connection that sends raw bytes and records the dialogue.
type Client struct {
	Dialogue Dialogue

	tcp  *net.TCPConn
	conn net.Conn // TCP, or TLS on top of it
	r    *bufio.Reader
	tls  *tls.Config
}

// A Reply is a reply from the server.
type Reply struct {
	Code int
	Text string // all lines as received, without the final line end
}

func (r Reply) String() string { return r.Text }

func newClient(conn *net.TCPConn, config *tls.Config) *Client {
	return &Client{tcp: conn, conn: conn, r: bufio.NewReader(conn), tls: config}
}

// Peer returns the server's address.
func (c *Client) Peer() string {
	return c.tcp.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().String()
}

// Send sends data in a single write.
func (c *Client) Send(data string) error {
	c.Dialogue.add(false, []byte(data))
	if err := c.conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(c.conn, data); err != nil {
		return fmt.Errorf("send %.60q: %w", data, err)
	}
	return nil
}

// ReadReply reads a reply, which may consist of several lines. If the server closes the connection,
// the error is io.EOF.
func (c *Client) ReadReply() (Reply, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return Reply{}, err
	}
	var text []byte
	for {
		line, err := c.r.ReadBytes('\n')
		c.Dialogue.add(true, line)
		text = append(text, line...)
		if err == io.EOF && len(text) > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return Reply{Text: string(text)}, err
		}
		// A "-" after the code announces another line (RFC 5321 section 4.2.1).
		if len(line) > 3 && line[3] == '-' {
			continue
		}
		reply := Reply{Text: strings.TrimSuffix(string(text), "\r\n")}
		if len(line) < 3 {
			return reply, fmt.Errorf("reply without code: %q", line)
		}
		if reply.Code, err = strconv.Atoi(string(line[:3])); err != nil {
			return reply, fmt.Errorf("reply without code: %q", line)
		}
		return reply, nil
	}
}

// Nagle allows the kernel to delay a short segment until the server has acknowledged the previous
// segment (RFC 1122 section 4.2.3.4). Go disables these delays by default.
func (c *Client) Nagle() error { return c.tcp.SetNoDelay(false) }

// CmdInTwo sends the line and its CR LF in separate writes, and reads the reply.
func (c *Client) CmdInTwo(line string) (Reply, error) {
	if err := c.Send(line); err != nil {
		return Reply{}, err
	}
	return c.Cmd("")
}

// Cmd sends the line with CR LF and reads the reply.
func (c *Client) Cmd(line string) (Reply, error) {
	if err := c.Send(line + "\r\n"); err != nil {
		return Reply{}, err
	}
	return c.ReadReply()
}

// Drain reads and returns data until the server closes the connection. A reset is not an error,
// because it occurs when a server closes a connection with unread input.
func (c *Client) Drain() (string, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	data, err := io.ReadAll(c.r)
	c.Dialogue.add(true, data)
	if errors.Is(err, syscall.ECONNRESET) {
		err = nil
	}
	return string(data), err
}

// StartTLS sends STARTTLS and performs the handshake if the server agrees.
func (c *Client) StartTLS() (Reply, error) {
	reply, err := c.Cmd("STARTTLS")
	if err != nil || reply.Code != 220 {
		return reply, err
	}
	return reply, c.Handshake()
}

// Handshake performs a TLS handshake.
func (c *Client) Handshake() error {
	if c.r.Buffered() > 0 {
		return errors.New("server sent something before the TLS handshake")
	}
	conn := tls.Client(c.tcp, c.tls)
	if err := c.tcp.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if err := conn.Handshake(); err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	c.conn, c.r = conn, bufio.NewReader(conn)
	return nil
}

// CloseWrite closes the connection for sending.
func (c *Client) CloseWrite() error {
	if conn, ok := c.conn.(*tls.Conn); ok {
		if err := conn.CloseWrite(); err != nil {
			return err
		}
	}
	return c.tcp.CloseWrite()
}

// Close closes the connection.
func (c *Client) Close() error { return c.tcp.Close() }

// Reset resets the connection, as if the host had disappeared.
func (c *Client) Reset() error {
	if err := c.tcp.SetLinger(0); err != nil {
		return err
	}
	return c.tcp.Close()
}

// A Dialogue records the data exchanged over a connection, without TLS. Consecutive data in one
// direction are one Part, even if they were sent in several segments.
type Dialogue []Part

// A Part is data sent by one side.
type Part struct {
	Server bool
	Data   []byte
}

func (d *Dialogue) add(server bool, data []byte) {
	if len(data) == 0 {
		return
	}
	if n := len(*d); n > 0 && (*d)[n-1].Server == server {
		(*d)[n-1].Data = append((*d)[n-1].Data, data...)
		return
	}
	*d = append(*d, Part{server, bytes.Clone(data)})
}

// String shows every byte of the dialogue, with one output row for each line sent or received.
//
//	C: "EHLO mail.example.net\r\n"
//	S: "250-mx.example.org Hello ...\r\n"
//
// Two dialogues are equal if their strings are equal.
func (d Dialogue) String() string {
	var b strings.Builder
	for _, part := range d {
		side := "C"
		if part.Server {
			side = "S"
		}
		for line := range strings.Lines(string(part.Data)) {
			fmt.Fprintf(&b, "%s: %q\n", side, line)
		}
	}
	return b.String()
}

// Masked is like String, but replaces smtpd's message ids, so that the dialogues of
// different runs can be compared.
func (d Dialogue) Masked() string {
	return messageID.ReplaceAllString(d.String(), "${1}MESSAGE-ID ")
}

var messageID = regexp.MustCompile(`(?m)^(S: "250 2\.0\.0 )[0-9a-f]{8} `)
