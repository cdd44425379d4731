package sharing

import (
	"bytes"
	"errors"
	"net"
	"strconv"
)

// A guard is a server connection that limits the size of replies. The client library allocates
// as many bytes and elements as a reply announces, so one false number would use up the host's
// memory.
type guard struct {
	net.Conn
	replies
}

// Read reads from the connection, and fails as soon as a reply exceeds a limit.
func (g *guard) Read(b []byte) (int, error) {
	n, err := g.Conn.Read(b)
	if bad := g.add(b[:n]); bad != nil {
		return 0, bad
	}
	return n, err
}

// Limits of a reply. The valid messages that read returns for one host have at most 11 megabytes.
// The messages of all hosts together may exceed the limit; see isolate.
const (
	maxReply    = 32 << 20 // bytes
	maxElements = 1 << 20
	maxDepth    = 8
	maxHeader   = 64 << 10 // bytes of a line
)

var errReply = errors.New("the server's reply is too large or invalid")

// replies parses the structure of the replies in a stream; see the RESP3 specification. The zero
// value is the state between two replies.
type replies struct {
	line     []byte // incomplete line
	skip     int    // remaining bytes of a string, including its line end
	open     []int  // remaining elements of each aggregate, outermost first
	bytes    int    // bytes of the current reply
	elements int    // elements of the current reply
}

func (r *replies) add(b []byte) error {
	for len(b) > 0 {
		if r.skip > 0 {
			n := min(r.skip, len(b))
			if r.skip, b = r.skip-n, b[n:]; r.skip == 0 {
				r.done()
			}
			continue
		}
		part, rest, found := bytes.Cut(b, []byte{'\n'})
		if len(r.line)+len(part) > maxHeader {
			return errReply
		}
		r.line = append(r.line, part...)
		if !found {
			return nil
		}
		b = rest
		if err := r.header(bytes.TrimSuffix(r.line, []byte{'\r'})); err != nil {
			return err
		}
		r.line = r.line[:0]
	}
	return nil
}

// perElement maps the types of aggregates to the number of values per element.
var perElement = map[byte]int{'*': 1, '~': 1, '>': 1, '%': 2}

// header reads a reply's first line. Servers send some types only to clients that ask for them:
// attributes, and strings and aggregates of unknown length.
func (r *replies) header(line []byte) error {
	if len(line) == 0 {
		return errReply
	}
	values := perElement[line[0]]
	isString := bytes.IndexByte([]byte("$!="), line[0]) >= 0
	switch {
	case line[0] == '|':
		return errReply
	case values == 0 && !isString:
		r.bytes += len(line)
		r.done()
		return nil
	case string(line[1:]) == "-1": // null
		r.done()
		return nil
	}
	n, err := strconv.Atoi(string(line[1:]))
	if err != nil || n < 0 || n > maxReply {
		return errReply
	}
	if isString {
		r.bytes, r.skip = r.bytes+n, n+len("\r\n")
	} else {
		n *= values
		r.elements += n
	}
	switch {
	case r.bytes > maxReply || r.elements > maxElements || len(r.open) == maxDepth:
		return errReply
	case isString:
	case n == 0:
		r.done()
	default:
		r.open = append(r.open, n)
	}
	return nil
}

// done ends a value, and every aggregate of which it is the last value.
func (r *replies) done() {
	for len(r.open) > 0 {
		last := len(r.open) - 1
		if r.open[last]--; r.open[last] > 0 {
			return
		}
		r.open = r.open[:last]
	}
	r.bytes, r.elements = 0, 0
}
