//go:build linux

package smtpd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
)

// A syslogd receives syslog(3) messages and writes them in the format of a syslog daemon: the host
// name follows the time, and the priority is omitted.
type syslogd struct {
	conn net.PacketConn
	path string
	done chan error
}

// startSyslog listens on a socket. It replaces any existing socket, which must be stale, because
// the caller holds the lock for the root.
func startSyslog(path string, w io.Writer) (*syslogd, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	conn, err := net.ListenPacket("unixgram", path)
	if err != nil {
		return nil, err
	}
	s := &syslogd{conn, path, make(chan error, 1)}
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	go func() { s.done <- s.receive(w) }()
	return s, nil
}

// receive writes a line for each message until the socket is closed.
func (s *syslogd) receive(w io.Writer) error {
	buf := make([]byte, 64<<10)
	for {
		n, _, err := s.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		const stamp = len("Nov 21 10:31:02")
		_, line, ok := bytes.Cut(buf[:n], []byte(">"))
		if !ok || len(line) < stamp {
			return fmt.Errorf("message %q of syslog(3)", buf[:n])
		}
		if _, err := fmt.Fprintf(w, "%s mx%s\n", line[:stamp], bytes.TrimSuffix(line[stamp:], []byte("\n"))); err != nil {
			return err
		}
	}
}

// Close removes the socket and returns the receiver's error.
func (s *syslogd) Close() error { return errors.Join(s.conn.Close(), <-s.done, remove(s.path)) }

// remove removes a file if it exists.
func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
