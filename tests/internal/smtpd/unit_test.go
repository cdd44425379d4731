//go:build linux

package smtpd

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestReverseName(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.25":    "25.2.0.192.in-addr.arpa",
		"2001:db8::7a1": "1.a.7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
	} {
		if got := reverseName(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: got %s, want %s", addr, got, want)
		}
	}
}

// TestZone checks the name server with Go's resolver.
func TestZone(t *testing.T) {
	z, err := newZone([]Host{
		{"192.0.2.1", "Good.example.org", true},
		{"192.0.2.2", "bad.example.org", false},
		{"2001:db8::7", "six.example.org", true},
		{"192.0.2.4", "pair.example.org", true},
		{"192.0.2.5", "pair.example.org", true},
	})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- z.serveDNS(conn) }()
	t.Cleanup(func() {
		conn.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
	for _, test := range []struct {
		query string
		want  string // empty if there is no such name
	}{
		{"192.0.2.1", "Good.example.org."},
		{"192.0.2.2", "bad.example.org."},
		{"192.0.2.3", ""},
		{"2001:db8::7", "six.example.org."},
		{"good.example.org.", "192.0.2.1"},
		{"bad.example.org.", ""},
		{"six.EXAMPLE.org.", "2001:db8::7"},
		{"pair.example.org.", "192.0.2.4 192.0.2.5"},
	} {
		t.Run(test.query, func(t *testing.T) {
			lookup := r.LookupHost
			if _, err := netip.ParseAddr(test.query); err == nil {
				lookup = r.LookupAddr
			}
			got, err := lookup(t.Context(), test.query)
			if test.want == "" {
				if dns, ok := err.(*net.DNSError); !ok || !dns.IsNotFound {
					t.Errorf("got %v, %v, want not found", got, err)
				}
				return
			}
			if slices.Sort(got); err != nil || !slices.Equal(got, strings.Fields(test.want)) {
				t.Errorf("got %v, %v, want %s", got, err, test.want)
			}
		})
	}
}

func TestZoneRefusesBadHosts(t *testing.T) {
	for _, h := range []Host{
		{Addr: "192.0.2", Name: "a.example"},
		{Addr: "192.0.2.1", Name: "a..example"},
		{Addr: "192.0.2.1", Name: strings.Repeat("a", 64) + ".example"},
	} {
		if _, err := newZone([]Host{h}); err == nil {
			t.Errorf("%v: no error", h)
		}
	}
}

func FuzzZoneAnswer(f *testing.F) {
	z, err := newZone([]Host{{"192.0.2.1", "a.example.org", true}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x07example\x03org\x00\x00\x01\x00\x01")) // a name in the zone
	f.Add([]byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01b\x00\x00\x1c\x00\x01"))                   // a name that is not in the zone
	f.Add([]byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x3fcut"))                                     // label beyond the end
	f.Add([]byte("\x12\x34\x81\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01"))                        // a response rather than a query
	f.Fuzz(func(t *testing.T, query []byte) {
		reply := z.answer(query)
		if reply != nil && !bytes.Equal(reply[:2], query[:2]) {
			t.Errorf("query %x: reply %x has another id", query, reply)
		}
	})
}

func TestDialogue(t *testing.T) {
	var d Dialogue
	d.add(true, []byte("220 mx.example.org ESMTP\r\n"))
	d.add(false, []byte("EHLO a\r"))
	d.add(false, []byte("\n"))
	d.add(false, nil)
	d.add(true, []byte("250-mx\r\n250 2.0.0 0123abcd Message accepted for delivery\r\n"))
	want := `S: "220 mx.example.org ESMTP\r\n"
C: "EHLO a\r\n"
S: "250-mx\r\n"
S: "250 2.0.0 0123abcd Message accepted for delivery\r\n"
`
	if got := d.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	masked := strings.Replace(want, "0123abcd", "MESSAGE-ID", 1)
	if got := d.Masked(); got != masked {
		t.Errorf("masked: got\n%s\nwant\n%s", got, masked)
	}
}

func TestReadReply(t *testing.T) {
	for _, test := range []struct {
		name, input string
		code        int
		text        string
		fails       bool
	}{
		{"one line", "250 Ok\r\n", 250, "250 Ok", false},
		{"three lines", "250-a\r\n250-b\r\n250 c\r\n", 250, "250-a\r\n250-b\r\n250 c", false},
		{"code only", "250\r\n", 250, "250", false},
		{"no code", "hello\r\n", 0, "hello", true},
		{"short", "1\r\n", 0, "1", true},
		{"cut", "250-a\r\n25", 0, "250-a\r\n25", true},
		{"nothing", "", 0, "", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			conn, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			server, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			server.Write([]byte(test.input))
			server.Close()
			c := newClient(conn.(*net.TCPConn), nil)
			defer c.Close()
			reply, err := c.ReadReply()
			if reply != (Reply{test.code, test.text}) || (err != nil) != test.fails {
				t.Errorf("got %d %q, %v", reply.Code, reply.Text, err)
			}
		})
	}
}

func TestClientHelloIsNoLine(t *testing.T) {
	if strings.Contains(clientHello, "\n") {
		t.Error("the ClientHello contains a line end")
	}
}
