package forward

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"scanwatch/filter/events"
)

// message matches the message format of RFC 5424 section 6.
var message = regexp.MustCompile(`^<(\d{1,3})>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z [!-~]{1,255} scanwatch \d+ [!-~]{1,32} \[scanwatch@32473( [a-z]+="([^"\\\]]|\\["\\\]])*")*\] [ -~]+$`)

func syslogBatch() []byte {
	w := &window{host: "mx 1\n", from: noon}
	e := finding(1, `a"b]c\`)
	e.Rule = strings.Repeat("x", 300)
	w.add(e)
	w.add(&events.Event{Event: "ban", Time: noon, Session: 1, Src: e.Src, Prefix: "198.51.100.1/32", Rule: "scan", Until: noon})
	w.lose(losses{events: 2})
	w.lose(losses{gaps: 1})
	return encode(w.take(noon, w.lost()))
}

// TestMessages checks the format of messages.
func TestMessages(t *testing.T) {
	b, err := decodeBatch(syslogBatch())
	if err != nil {
		t.Fatal(err)
	}
	all := (&syslog{pid: 7}).messages(b)
	for i, want := range []string{"<22>1 2026-11-02T12:00:00.000000Z mx_1_ scanwatch 7 finding [scanwatch@32473 src=\"198.51.100.1\" count=\"1\" evidence=\"a\\\"b\\]c\\\\\"",
		`<21>1 2026-11-02T12:00:00.000000Z mx_1_ scanwatch 7 ban [scanwatch@32473 src="198.51.100.1" prefix="198.51.100.1/32" count="1" rule="scan" session="0000000000000001"] ban 198.51.100.1/32 rule scan until 2026-11-02T12:00:00Z`,
		`<21>1 2026-11-02T12:00:00.000000Z mx_1_ scanwatch 7 dropped [scanwatch@32473 count="2" gaps="1"] 2 events are missing`} {
		if !strings.HasPrefix(string(all[i]), want) || !message.Match(all[i]) || len(all[i]) > maxMessage {
			t.Errorf("%s\nwant %s", all[i], want)
		}
	}
	if len(all) != 3 {
		t.Errorf("%d messages", len(all))
	}
}

// read returns the messages in a stream with octet counting.
func readStream(in io.Reader) (all []string, err error) {
	for r := bufio.NewReader(in); ; {
		var n int
		if _, err := fmt.Fscanf(r, "%d ", &n); err != nil {
			return all, nil
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		all = append(all, string(b))
	}
}

// TestTransports checks that messages arrive over each transport.
func TestTransports(t *testing.T) {
	r := newReceiver(t) // for its certificate
	stream := func(wrap func(net.Conn) net.Conn) (string, func() ([]string, error)) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		type result struct {
			all []string
			err error
		}
		done := make(chan result, 1)
		go func() {
			conn, err := l.Accept()
			if err != nil {
				done <- result{nil, err}
				return
			}
			defer conn.Close()
			all, err := readStream(wrap(conn))
			done <- result{all, err}
		}()
		return l.Addr().String(), func() ([]string, error) { got := <-done; return got.all, got.err }
	}
	packets := func(network, address string) (string, func() ([]string, error)) {
		c, err := net.ListenPacket(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.LocalAddr().String(), func() (all []string, err error) {
			for range 3 {
				b := make([]byte, 4096)
				n, _, err := c.ReadFrom(b)
				if err != nil {
					return nil, err
				}
				all = append(all, string(b[:n]))
			}
			return all, nil
		}
	}
	dir, err := os.MkdirTemp("", "log")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	config := &tls.Config{Certificates: r.TLS.Certificates}
	tcp, readTCP := stream(func(c net.Conn) net.Conn { return c })
	secure, readTLS := stream(func(c net.Conn) net.Conn { return tls.Server(c, config) })
	udp, readUDP := packets("udp", "127.0.0.1:0")
	socket, readSocket := packets("unixgram", filepath.Join(dir, "log"))
	for address, read := range map[string]func() ([]string, error){"tcp://" + tcp: readTCP, "tls://" + secure: readTLS, "udp://" + udp: readUDP, socket: readSocket} {
		s := &syslog{address: address, roots: r.roots, pid: 7}
		if err := s.deliver(t.Context(), syslogBatch()); err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		all, err := read()
		if err != nil || len(all) != 3 {
			t.Errorf("%s: %d messages, %v", address, len(all), err)
		}
		for _, m := range all {
			if !message.MatchString(m) {
				t.Errorf("%s: %s", address, m)
			}
		}
	}
	// While the server is not running, the batch is kept. An unknown certificate authority
	// is an error.
	if err := (&syslog{address: socket + ".none"}).deliver(context.Background(), syslogBatch()); err == nil {
		t.Error("no error without a socket")
	}
	if err := (&syslog{address: "tls://" + r.Listener.Addr().String(), roots: x509.NewCertPool()}).deliver(context.Background(), syslogBatch()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("unknown authority: %v", err)
	}
}

// TestStdout checks that a batch is one line of printable ASCII.
func TestStdout(t *testing.T) {
	var out bytes.Buffer
	w := &window{}
	e := finding(1, "scanner")
	e.Helo = []byte("\u009b31m\u202e\x7f\u00fc\xff\n")
	w.add(e)
	if err := (&writer{w: &out}).deliver(t.Context(), encode(w.take(noon, w.lost()))); err != nil || !regexp.MustCompile(`^[ -~]+\n$`).Match(out.Bytes()) || !strings.Contains(out.String(), `"helo":"\u009b31m\u202e\u007f\u00fc\ufffd\n"`) {
		t.Errorf("%v: %q", err, out.String())
	}
	out.Reset()
	if err := (&writer{w: &out}).deliver(t.Context(), syslogBatch()); err != nil || strings.Count(out.String(), "\n") != 1 || !strings.HasPrefix(out.String(), `{"version":1,`) {
		t.Errorf("%v: %s", err, out.String())
	}
}

// TestControlCharacters checks that the operator's reason cannot start a new message, and that
// messages are printable ASCII.
func TestControlCharacters(t *testing.T) {
	w := &window{host: "mx", from: noon}
	w.add(&events.Event{Event: "ban", By: "operator", Time: noon, Prefix: "198.51.100.1/32", Until: noon, Reason: "a\n<22>1 b\tü\u202e\\]"})
	b, err := decodeBatch(encode(w.take(noon, w.lost())))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range (&syslog{pid: 7}).messages(b) {
		if !message.Match(m) || !strings.Contains(string(m), `reason="a\\n<22>1 b\\t\\u00fc`) {
			t.Errorf("%q", m)
		}
	}
}
