package maillog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strconv"
)

// exportStart is the start of each entry in the output of "journalctl -o export".
const exportStart = "__REALTIME_TIMESTAMP="

// An export holds the fields of an entry of the journal.
type export struct {
	time                     string
	host, program, pid, text []byte
	fields                   int
}

// next returns the next entry. A text field has the form "NAME=VALUE". A binary field consists of
// NAME, a newline, the length in 8 bytes, the value, and another newline. An empty line ends an
// entry.
func (x *export) next(l *Log) (line line, err error) {
	*x = export{host: x.host[:0], program: x.program[:0], pid: x.pid[:0], text: x.text[:0]}
	for {
		err := l.readLine()
		end := errors.Is(err, io.EOF) && x.fields > 0
		switch {
		case errors.Is(err, errTooLong):
			continue
		case err != nil && !end:
			return line, err
		}
		if end || len(l.raw) == 0 {
			if x.fields == 0 {
				continue
			}
			l.raw = x.text
			line.at, err = strconv.ParseInt(x.time, 10, 64)
			line.ok = err == nil && line.at > 0 && len(x.program) > 0
			line.host, line.program, line.pid, line.text = x.host, x.program, x.pid, x.text
			return line, nil
		}
		x.fields++
		name, value, text := bytes.Cut(l.raw, []byte("="))
		if !text {
			key := string(name)
			if value, err = l.binary(); err != nil {
				return line, err
			}
			name = []byte(key)
		}
		x.set(string(name), value)
	}
}

// set stores the value of a field if this package uses the field.
func (x *export) set(name string, value []byte) {
	switch name {
	case "__REALTIME_TIMESTAMP":
		x.time = string(value)
	case "_HOSTNAME":
		x.host = append(x.host[:0], value...)
	case "SYSLOG_IDENTIFIER":
		x.program = append(x.program[:0], value...)
	case "SYSLOG_PID":
		x.pid = append(x.pid[:0], value...)
	case "MESSAGE":
		x.text = append(x.text[:0], value...)
	}
}

// binary reads the value of a binary field. binary skips a value that is too long.
func (l *Log) binary() ([]byte, error) {
	var length [8]byte
	if _, err := io.ReadFull(l.in, length[:]); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	n := binary.LittleEndian.Uint64(length[:])
	var value []byte
	if n <= lineLimit {
		value = make([]byte, n)
		if _, err := io.ReadFull(l.in, value); err != nil {
			return nil, io.ErrUnexpectedEOF
		}
	} else if _, err := io.CopyN(io.Discard, l.in, int64(min(n, 1<<62))); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	if c, err := l.in.ReadByte(); err != nil || c != '\n' {
		return nil, errors.New("corrupt journal export: a binary field does not end with a line end")
	}
	l.lineBytes += len(value) + 9
	return value, nil
}
