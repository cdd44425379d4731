package control

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/dnslist"
	"scanwatch/filter/events"
	"scanwatch/filter/memory"
	"scanwatch/store"
)

// FuzzConversation checks that the server answers any line without panicking.
func FuzzConversation(f *testing.F) {
	for _, s := range []string{"status\nsegments\n", "snapshot a\nsnapshot\nflush x\n", "\n\n \n", "ban 192.0.2.1/32 60 x\nunban 192.0.2.1/32\n", "state\n", "learn 1793448000000000;192.0.2.1;1;example.net,1793448000000000;example.com\n", "log verbose\nlog x\n",
		"questions 0\nfacts 192.0.2.1;bl;127.0.0.2/127.0.0.4;60,2001:db8::1;bl;?timeout;0\n",
		"rows 0 all\nrows -5 changes\nforeign 0 bans;IMAAAgE;;mx2,peers;AA;AA;mx3\nhosts first %5B%5D\nfleet x\ndropped mx2 5\n",
		strings.Repeat("x", maxLine) + "\n", "\x00\xff\n", "watch - -\n", "unfinished"} {
		f.Add([]byte(s))
	}
	dir := f.TempDir()
	w := store.Open(dir, store.Options{})
	f.Cleanup(func() { w.Close() })
	known := append(commands(f, dir, w), LogCommand(new(slog.LevelVar), slog.New(slog.DiscardHandler)))
	known = append(known, LookupCommands(dnslist.New())...)
	shared := &Sharing{Memory: memory.New(), Now: func() int64 { return time.Now().UnixMicro() }, Log: slog.New(slog.DiscardHandler)}
	known = append(known, shared.Commands()...)
	f.Fuzz(func(t *testing.T, in []byte) {
		var log bytes.Buffer
		s := &Server{Commands: known, Log: slog.New(slog.NewTextHandler(&log, nil))}
		server, client := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.client(context.Background(), server, nil)
			server.Close()
		}()
		go func() {
			_ = client.SetWriteDeadline(time.Now().Add(time.Minute))
			_, _ = client.Write(in)
			_, _ = io.WriteString(client, "\n"+strings.Repeat("x", 2*maxLine)) // ends the conversation
		}()
		out, err := io.ReadAll(client)
		client.Close()
		<-done
		if err != nil || !bytes.HasPrefix(out, []byte(greeting+"\n")) || log.Len() > 0 {
			t.Errorf("%v, %.200q, log %.2000s", err, out, log.String())
		}
	})
}

// FuzzClient checks that the client returns a result or an error for any answer.
func FuzzClient(f *testing.F) {
	for _, s := range []string{"{}\n", `{"error":"no"}` + "\n", `{"error":"no","finished":true}` + "\n", `{"segment":"x","size":5}` + "\nhello",
		`{"segment":"x","size":-1}` + "\n", `{"size":99999999999}` + "\nx", "[1]\n", "x", "\n\n", `{"segments":[{"name":"a"}]}` + "\n", `{"bans":[{}]}` + "\n"} {
		f.Add([]byte(s), uint8(0))
		f.Add([]byte(s), uint8(4))
	}
	asks := []func(*Client){
		func(c *Client) { _, _ = c.Status() },
		func(c *Client) { _ = c.Flush() },
		func(c *Client) { _, _ = c.Reload(false) },
		func(c *Client) { _, _ = c.Segments() },
		func(c *Client) { _ = c.Snapshot(io.Discard, "x") },
		func(c *Client) { _ = c.State(io.Discard) },
		func(c *Client) { _, _ = c.Unban(netip.MustParsePrefix("192.0.2.0/24"), true) },
		func(c *Client) { _ = c.Log("brief") },
		func(c *Client) {
			_ = c.Watch(events.Choice{}, func() {}, func([]byte) error { return nil })
		},
	}
	f.Fuzz(func(t *testing.T, answer []byte, which uint8) {
		server, conn := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, server) }()
		go func() {
			_, _ = server.Write(answer)
			server.Close()
		}()
		c := &Client{conn: conn, in: bufio.NewReader(conn)}
		asks[int(which)%len(asks)](c)
		c.Close()
	})
}
